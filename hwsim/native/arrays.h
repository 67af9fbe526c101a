/* What the two kernels of arrays share: 32 outputs at a time, numbers of 16 bits, the noise of a conversion. */
#ifndef GAIN_CELL_ARRAYS_H
#define GAIN_CELL_ARRAYS_H

#include "attention.h"
#include "vectors.h"

#define OUTPUTS 32 /* of a block */
#define TOKENS 64  /* of a chunk */
#define SHORTS (2 * LANES)
#define EACH_SHORTS(v) _Pragma("GCC unroll 4") for (int v = 0; v < OUTPUTS / SHORTS; v++)
#define EACH_FLOATS(v) _Pragma("GCC unroll 8") for (int v = 0; v < OUTPUTS / LANES; v++)

typedef int16_t shorts __attribute__((vector_size(4 * LANES)));
typedef int16_t half __attribute__((vector_size(2 * LANES)));

INLINE shorts load_shorts(const int16_t *p)
{
    shorts x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The lower or the upper half of some numbers, a lane each */
INLINE vi short_integers(shorts x, const int upper)
{
#if LANES == 16
    return (vi)_mm512_cvtepi16_epi32(upper ? _mm512_extracti64x4_epi64((__m512i)x, 1) : _mm512_castsi512_si256((__m512i)x));
#elif LANES == 8
    return (vi)_mm256_cvtepi16_epi32(upper ? _mm256_extracti128_si256((__m256i)x, 1) : _mm256_castsi256_si128((__m256i)x));
#else
    half some;
    memcpy(&some, (const char *)&x + upper * (int)sizeof some, sizeof some);
    return __builtin_convertvector(some, vi);
#endif
}

/* Where the noise of a conversion lies; a copy where the pool may end before the block does */
INLINE const float *noise_of(const float *noise, int64_t left, float *copy)
{
    if (left >= OUTPUTS)
        return noise;
    memcpy(copy, noise, (size_t)left * sizeof(float));
    return copy;
}

/* From anywhere in the pool: asked for before it is needed */
INLINE void ask_for_noise(const float *noise)
{
    for (int o = 0; o < OUTPUTS; o += 16)
        __builtin_prefetch(noise + o);
}

#endif
