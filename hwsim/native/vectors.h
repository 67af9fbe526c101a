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

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

INLINE vf load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

INLINE vf all(float x)
{
    return (vf){0} + x;
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

/* acc[r][v] += sum_k a[r ra + k ka] b[k rb + v LANES + lane]; the one loop where the time goes.
 * `wide` is a constant at each call, so that the accumulators live in registers. */
INLINE void multiply(vf acc[ROWS][MOST], const int wide, const float *a, int64_t ra, int64_t ka, const float *b,
                     int64_t rb, int64_t count)
{
    for (int64_t k = 0; k < count; k++, a += ka, b += rb) {
        vf y[MOST];
#pragma GCC unroll 3
        for (int v = 0; v < wide; v++)
            y[v] = load(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            vf x = all(a[r * ra]);
#pragma GCC unroll 3
            for (int v = 0; v < wide; v++)
                acc[r][v] += x * y[v];
        }
    }
}

INLINE void clear(vf acc[ROWS][MOST], const int wide)
{
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < wide; v++)
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
