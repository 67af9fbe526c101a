/* One token's codes. */
#ifndef GAIN_CELL_CODES_H
#define GAIN_CELL_CODES_H

#include "tiles.h"

/* Whole numbers of -128 .. 127 as bytes */
INLINE void narrow(uint8_t *out, vf x)
{
#if LANES == 16
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)x)));
#elif LANES == 8
    __m256i codes = _mm256_cvtps_epi32((__m256)x);
    __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64((__m128i *)out, _mm_packs_epi16(pairs, pairs));
#else
    for (int i = 0; i < LANES; i++)
        out[i] = (uint8_t)(int8_t)x[i];
#endif
}

/* The nearest n of low + n step, n = 0 .. top, as n or centred as 2 n - top; zeros beyond dims. Returns whether one of
 * the numbers is none, which no code stands for. */
INLINE int convert_row(uint8_t *out, const float *in, int64_t dims, int64_t width, double low, double high, double step,
                       double top, int centred)
{
    vi none = {0};
    for (int64_t d = 0; d < dims; d += LANES) {
        vf x = load_some(in + d, dims - d);
        none |= x != x;
        x = whole((clamp(x, all((float)low), all((float)high)) - all((float)low)) / all((float)step));
        x = centred ? x + x - all((float)top) : x;
        if (dims - d >= LANES) {
            narrow(out + d, x);
        } else {
            uint8_t some[LANES];
            narrow(some, x);
            memcpy(out + d, some, (size_t)(dims - d));
        }
    }
    memset(out + dims, 0, (size_t)(width - dims));
    int any = 0;
    for (int i = 0; i < LANES; i++)
        any |= none[i];
    return any != 0;
}

#endif
