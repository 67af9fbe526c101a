/* One vector register of floats, for AVX-512, AVX2 and whatever else the compiler knows. */
#ifndef GAIN_CELL_VECTORS_H
#define GAIN_CELL_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* ROWS x MOST accumulators, MOST operands and one broadcast have to fit the register file */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif
#define MOST 3

/* All sixteen registers are taken by one step of `multiply`: loads of the next step shall not be moved into it */
#if LANES == 8
#define KEEP_ORDER __asm__ volatile("" ::: "memory");
#else
#define KEEP_ORDER
#endif

/* Whether products of codes beat those of floats */
#if LANES > 4
#define CODES_MULTIPLY 1
#else
#define CODES_MULTIPLY 0
#endif

/* Unrolled, so that accumulators indexed by r and v live in registers; `wide` has to be a constant */
#define EACH_ROW(r) _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
#define EACH_VECTOR(v) _Pragma("GCC unroll 3") for (int v = 0; v < wide; v++)

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

INLINE vf load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The first `count` lanes, zero in the others: a row of the pool may end at its end */
INLINE vf load_some(const float *p, int64_t count)
{
    if (count >= LANES)
        return load(p);
    float x[LANES] = {0};
    for (int64_t i = 0; i < count; i++)
        x[i] = p[i];
    return load(x);
}

INLINE void store(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

INLINE vf all(float x)
{
#if LANES == 16
    return (vf)_mm512_set1_ps(x);
#elif LANES == 8
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

/* A constant made here and now: kept in a register across `multiply` it would push an accumulator out */
INLINE vf fresh(float x)
{
    vf y = all(x);
#if LANES > 4
    __asm__ volatile("" : "+v"(y));
#endif
    return y;
}

INLINE vf clamp(vf x, vf low, vf high)
{
#if LANES == 16
    return (vf)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)low), (__m512)high);
#elif LANES == 8
    return (vf)_mm256_min_ps(_mm256_max_ps((__m256)x, (__m256)low), (__m256)high);
#else
    vi below = x < low, above = x > high;
    return (vf)((below & (vi)low) | (above & (vi)high) | (~(below | above) & (vi)x));
#endif
}

/* Half to even, for |x| < 2^22: the sum with 1.5 * 2^23 has no room for a fraction. */
INLINE vf rounded(vf x)
{
    const float shift = 12582912.0f;
    return (x + shift) - shift;
}

/* Half to even without an addition that a product could be contracted with: the same in every instruction set */
INLINE vf whole(vf x)
{
#if LANES == 16
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif LANES == 8
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    for (int i = 0; i < LANES; i++)
        x[i] = __builtin_rintf(x[i]);
    return x;
#endif
}

/* a b + c, rounded once where the processor can; as an expression it might round c, where that is a product, in place */
INLINE vf fused(vf a, vf b, vf c)
{
#if LANES == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < LANES; i++)
        c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

/* x where 0 < phi < 1, else 0 */
INLINE vf where_open(vf phi, vf x)
{
#if LANES == 16
    __mmask16 low = _mm512_cmp_ps_mask((__m512)phi, _mm512_setzero_ps(), _CMP_GT_OQ);
    __mmask16 open = _mm512_mask_cmp_ps_mask(low, (__m512)phi, _mm512_set1_ps(1.0f), _CMP_LT_OQ);
    return (vf)_mm512_maskz_mov_ps(open, (__m512)x);
#else
    return (vf)((vi)x & (phi > 0.0f) & (phi < 1.0f));
#endif
}

#define LARGEST 3.0e38f /* no pulse is longer */

/* x where phi > 0, else 0 */
INLINE vf where_above(vf phi, vf x)
{
#if LANES == 16
    return (vf)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)phi, _mm512_setzero_ps(), _CMP_GT_OQ), (__m512)x);
#else
    return (vf)((vi)x & (phi > 0.0f));
#endif
}

/* One bit for each lane with |x| >= 1, lane 0 lowest */
INLINE unsigned saturated_lanes(vf x)
{
#if LANES == 16
    return _mm512_cmp_ps_mask(_mm512_abs_ps((__m512)x), _mm512_set1_ps(1.0f), _CMP_GE_OQ);
#elif LANES == 8
    __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)x);
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(size, _mm256_set1_ps(1.0f), _CMP_GE_OQ));
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++)
        bits |= (unsigned)(x[i] >= 1.0f || x[i] <= -1.0f) << i;
    return bits;
#endif
}

/* x in the lanes whose bit is not set, else 0; the bits of lane 0 start at bit `first` of a string of bytes */
INLINE vf where_clear(const uint8_t *bytes, int64_t first, vf x)
{
#if LANES == 16
    uint16_t bits;
    memcpy(&bits, bytes + first / 8, sizeof bits);
    return (vf)_mm512_maskz_mov_ps((__mmask16)~bits, (__m512)x);
#else
    int32_t bits = bytes[first / 8] >> (first % 8);
    vi one_each;
    for (int i = 0; i < LANES; i++)
        one_each[i] = bits & 1 << i;
    return (vf)((vi)x & (one_each == 0));
#endif
}

INLINE float sum(vf x)
{
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#elif LANES == 8
    __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
#else
    return (x[0] + x[1]) + (x[2] + x[3]);
#endif
}

typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_index __attribute__((vector_size(16)));

#if defined(__clang__)
#define PICK(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#else
#define PICK(x, y, a, b, c, d) __builtin_shuffle(x, y, (quad_index){a, b, c, d})
#endif

/* out[c][r] = in[r][c] for r, c < 4 */
INLINE void transpose_quad(float *out, int64_t out_stride, const float *in, int64_t in_stride)
{
    quad x[4], y[4];
    for (int r = 0; r < 4; r++)
        memcpy(&x[r], in + r * in_stride, sizeof x[r]);
    y[0] = PICK(x[0], x[1], 0, 4, 1, 5);
    y[1] = PICK(x[2], x[3], 0, 4, 1, 5);
    y[2] = PICK(x[0], x[1], 2, 6, 3, 7);
    y[3] = PICK(x[2], x[3], 2, 6, 3, 7);
    x[0] = PICK(y[0], y[1], 0, 1, 4, 5);
    x[1] = PICK(y[0], y[1], 2, 3, 6, 7);
    x[2] = PICK(y[2], y[3], 0, 1, 4, 5);
    x[3] = PICK(y[2], y[3], 2, 3, 6, 7);
    for (int r = 0; r < 4; r++)
        memcpy(out + r * out_stride, &x[r], sizeof x[r]);
}

/* Codes of one byte: four to a lane */
INLINE vi load_integers(const void *p)
{
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE vi all_codes(const int8_t *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
#if LANES == 16
    return (vi)_mm512_set1_epi32(x);
#elif LANES == 8
    return (vi)_mm256_set1_epi32(x);
#else
    return (vi){x, x, x, x};
#endif
}

/* acc + sum of four products of unsigned codes up to 127 and signed ones in each lane */
INLINE vi add_codes(vi acc, vi unsigned_codes, vi signed_codes)
{
#if LANES == 16 && defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_codes, (__m512i)signed_codes);
#elif LANES == 16
    __m512i pairs = _mm512_maddubs_epi16((__m512i)unsigned_codes, (__m512i)signed_codes);
    return acc + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif LANES == 8
    __m256i pairs = _mm256_maddubs_epi16((__m256i)unsigned_codes, (__m256i)signed_codes);
    return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int shift = 0; shift < 32; shift += 8)
        acc += (unsigned_codes >> shift & 255) * ((signed_codes << (24 - shift)) >> 24);
    return acc;
#endif
}

INLINE vf to_floats(vi x)
{
#if LANES == 16
    return (vf)_mm512_cvtepi32_ps((__m512i)x);
#elif LANES == 8
    return (vf)_mm256_cvtepi32_ps((__m256i)x);
#else
    return __builtin_convertvector(x, vf);
#endif
}

/* Of whole numbers */
INLINE vi to_integers(vf x)
{
#if LANES == 16
    return (vi)_mm512_cvtps_epi32((__m512)x);
#elif LANES == 8
    return (vi)_mm256_cvtps_epi32((__m256)x);
#else
    return __builtin_convertvector(x, vi);
#endif
}

/* The next LANES codes, a lane each */
INLINE vf widened(const int8_t *p)
{
#if LANES == 16
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif LANES == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return (vf){p[0], p[1], p[2], p[3]};
#endif
}

/* acc[r][v] += sum_k of a's codes [r ra + 4k ..] times b's [4 (k rb + v LANES + lane) ..] */
INLINE void multiply_codes(vi acc[ROWS][MOST], const int wide, const int8_t *a, int64_t ra, const uint8_t *b,
                           int64_t rb, int64_t count)
{
    for (int64_t k = 0; k < count; k++, a += 4, b += 4 * rb) {
        vi y[MOST];
        EACH_VECTOR(v)
            y[v] = load_integers(b + 4 * v * LANES);
        EACH_ROW(r) {
            vi x = all_codes(a + r * ra);
            EACH_VECTOR(v)
                acc[r][v] = add_codes(acc[r][v], y[v], x);
        }
        KEEP_ORDER
    }
}

/* acc[r][v] += sum_k a[r ra + k ka] b[k rb + v LANES + lane]; the one loop where the time goes.
 * `wide` is a constant at each call, so that the accumulators live in registers. */
INLINE void multiply(vf acc[ROWS][MOST], const int wide, const float *a, int64_t ra, int64_t ka, const float *b,
                     int64_t rb, int64_t count)
{
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; k++, a += ka, b += rb) {
        vf y[MOST];
        EACH_VECTOR(v)
            y[v] = load(b + v * LANES);
        EACH_ROW(r) {
            vf x = all(a[r * ra]);
            EACH_VECTOR(v)
                acc[r][v] += x * y[v];
        }
        KEEP_ORDER
    }
}

INLINE void clear(vf acc[ROWS][MOST], const int wide)
{
    EACH_ROW(r)
        EACH_VECTOR(v)
            acc[r][v] = (vf){0};
}

/* How many vectors of the `left` ones to take next */
INLINE int next_width(int left)
{
#if ROWS == 8
    return left >= 3 && left % 2 ? 3 : left >= 2 ? 2 : 1;
#else
    return left >= 3 && left != 4 ? 3 : left >= 2 ? 2 : 1;
#endif
}

/* Calls f(.., wide) with a constant */
#define WITH_WIDTH(wide, f, ...)         \
    switch (wide) {                      \
    case 1: f(__VA_ARGS__, 1); break;    \
    case 2: f(__VA_ARGS__, 2); break;    \
    default: f(__VA_ARGS__, 3); break;   \
    }

#endif
