/* Ternary weights on arrays whose inputs come in digits of several bits: column sums, converters, shifts and adds.
 *
 *     S[c,r,t,o] = sum_{i in array r} x_c[t,i] w[i,o]                         whole numbers; b bits a digit, c the cycle
 *     out[t,o]   = sum_{c,r} 2^(b c) clamp(round(S / step + sigma z[c,r,t,o]), -top, top)
 *
 * An instruction multiplies two neighbouring digits by the weights of 8 to 32 outputs and adds both products. Codes are
 * of eight bits, 0 .. 2 in place of -1 .. 1 because one operand has no sign, and their sums of sixteen; weights that a
 * chip's errors made are of sixteen bits and their sums of thirty-two.
 */
#include <stdlib.h>

#include "arrays.h"

#define INPUT_BITS 8
#define LINES (LANES == 16 ? 8 : 4) /* whose sums are held in registers */
#define EACH_LINE(r) _Pragma("GCC unroll 8") for (int r = 0; r < LINES; r++)
#define PIECE 64    /* twos added up in sixteen bits: begun at minus the sum of digits, no sum is beyond 2^14 */

/* A line is the digit of all inputs of one token in one cycle, line t cycles + c. */
typedef struct {
    void *memory;
    int8_t *twos;     /* (lines, groups of all arrays, 4) two digits of 16 bits; of 8 bits, both twice */
    int16_t *ones;    /* (lines, tiles, pieces) sum of the digits of a piece */
    int8_t *digits;   /* of one line, in whole twos of each array, filled up with zeros */
    int32_t sums[LINES][OUTPUTS];
    float total[TOKENS][OUTPUTS]; /* of the arrays so far */
} workplace;

INLINE int64_t pieces_of(const linear_arrays *p)
{
    return (p->groups + PIECE - 1) / PIECE;
}

static void cut_digits(const int8_t *x, int8_t *digits, int64_t count, int cycle, int bits, int last)
{
    const int mask = last ? -1 : (1 << bits) - 1;
    for (int64_t i = 0; i < count; i++)
        digits[i] = (int8_t)((x[i] >> bits * cycle) & mask);
}

static void lay_out_line(const linear_arrays *p, workplace *w, int64_t line)
{
    const int64_t pieces = pieces_of(p), all = p->tiles * p->groups;
    int8_t *to = w->twos + 4 * line * all;
    if (p->whole) {
        int16_t *wide = (int16_t *)to;
        for (int64_t i = 0; i < 2 * all; i++)
            wide[i] = w->digits[i];
        return;
    }
    for (int64_t g = 0; g < all; g++) {
        memcpy(to + 4 * g, w->digits + 2 * g, 2);
        memcpy(to + 4 * g + 2, w->digits + 2 * g, 2);
    }
    for (int64_t r = 0; r < p->tiles; r++)
        for (int64_t k = 0; k < pieces; k++) {
            const int64_t end = k + 1 < pieces ? (k + 1) * PIECE : p->groups;
            const int8_t *digits = w->digits + 2 * r * p->groups;
            int32_t sum = 0;
            for (int64_t i = 2 * k * PIECE; i < 2 * end; i++)
                sum += digits[i];
            w->ones[(line * p->tiles + r) * pieces + k] = (int16_t)sum;
        }
}

/* Digits of all lines of a chunk */
static void cut_inputs(const linear_arrays *p, workplace *w, int64_t first, int tokens)
{
    const int cycles = (int)p->cycles, bits = INPUT_BITS / cycles;
    for (int t = 0; t < tokens; t++)
        for (int c = 0; c < cycles; c++) {
            for (int64_t r = 0; r < p->tiles; r++) {
                int64_t from = r * p->rows, count = p->inputs - from < p->rows ? p->inputs - from : p->rows;
                cut_digits(p->x + (first + t) * p->inputs + from, w->digits + 2 * r * p->groups, count, c, bits,
                           c == cycles - 1);
            }
            lay_out_line(p, w, t * cycles + c);
        }
}

/* Adds two products of codes in each number of 16 bits */
INLINE shorts add_small(shorts acc, shorts codes, vi digits)
{
#if LANES == 16
    return acc + (shorts)_mm512_maddubs_epi16((__m512i)codes, (__m512i)digits);
#elif LANES == 8
    return acc + (shorts)_mm256_maddubs_epi16((__m256i)codes, (__m256i)digits);
#else
    shorts both = (shorts)digits;
    return acc + (codes & 255) * ((shorts)(both << 8) >> 8) + (codes >> 8) * (both >> 8);
#endif
}

/* Adds two products of weights in each number of 32 bits */
INLINE vi add_wide(vi acc, vi weights, vi digits)
{
#if LANES == 16 && defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)weights, (__m512i)digits);
#elif LANES == 16
    return acc + (vi)_mm512_madd_epi16((__m512i)weights, (__m512i)digits);
#elif LANES == 8
    return acc + (vi)_mm256_madd_epi16((__m256i)weights, (__m256i)digits);
#else
    return acc + ((weights << 16) >> 16) * ((digits << 16) >> 16) + (weights >> 16) * (digits >> 16);
#endif
}

/* Two digits of line r in every lane; of two pointers, so that the processor finds all lines without further registers */
INLINE vi digits_of(const int8_t *const at[2], int64_t stride, int r)
{
    return all_codes(at[r / (LINES / 2)] + r % (LINES / 2) * stride);
}

/* Sums of some lines over one array, from weights of 8 bits */
INLINE void sum_codes(const linear_arrays *p, workplace *w, const int8_t *codes, int64_t line, int64_t tile)
{
    const int64_t stride = 4 * p->tiles * p->groups, pieces = pieces_of(p);
    const int8_t *twos = w->twos + line * stride + 4 * tile * p->groups;
    for (int64_t k = 0; k < pieces; k++) {
        const int64_t end = k + 1 < pieces ? (k + 1) * PIECE : p->groups;
        shorts acc[LINES][OUTPUTS / SHORTS];
        EACH_LINE(r) {
            shorts none = (shorts){0} - w->ones[((line + r) * p->tiles + tile) * pieces + k];
            EACH_SHORTS(v)
                acc[r][v] = none;
        }
        const int8_t *at[2] = {twos + 4 * k * PIECE, twos + 4 * k * PIECE + LINES / 2 * stride};
        for (int64_t g = k * PIECE; g < end; g++, at[0] += 4, at[1] += 4) {
            shorts y[OUTPUTS / SHORTS];
            EACH_SHORTS(v)
                memcpy(&y[v], codes + g * 2 * OUTPUTS + v * (int)sizeof y[v], sizeof y[v]);
            EACH_LINE(r) {
                vi x = digits_of(at, stride, r);
                EACH_SHORTS(v)
                    acc[r][v] = add_small(acc[r][v], y[v], x);
            }
        }
        EACH_LINE(r)
            EACH_FLOATS(v) {
                vi sum = short_integers(acc[r][v / 2], v % 2), before;
                if (k) {
                    memcpy(&before, w->sums[r] + v * LANES, sizeof before);
                    sum += before;
                }
                memcpy(w->sums[r] + v * LANES, &sum, sizeof sum);
            }
    }
}

/* The same from weights of 16 bits */
INLINE void sum_weights(const linear_arrays *p, workplace *w, const int16_t *weights, int64_t line, int64_t tile)
{
    const int64_t stride = 4 * p->tiles * p->groups;
    const int8_t *twos = w->twos + line * stride + 4 * tile * p->groups;
    for (int part = 0; part < OUTPUTS; part += 2 * LANES) {
        vi acc[LINES][2];
        EACH_LINE(r) {
            acc[r][0] = (vi){0};
            acc[r][1] = (vi){0};
        }
        const int8_t *at[2] = {twos, twos + LINES / 2 * stride};
        for (int64_t g = 0; g < p->groups; g++, at[0] += 4, at[1] += 4) {
            const int16_t *y = weights + 2 * (g * OUTPUTS + part);
            vi first = load_integers(y), second = load_integers(y + 2 * LANES);
            EACH_LINE(r) {
                vi x = digits_of(at, stride, r);
                acc[r][0] = add_wide(acc[r][0], first, x);
                acc[r][1] = add_wide(acc[r][1], second, x);
            }
        }
        EACH_LINE(r) {
            memcpy(w->sums[r] + part, &acc[r][0], sizeof acc[r][0]);
            memcpy(w->sums[r] + part + LANES, &acc[r][1], sizeof acc[r][1]);
        }
    }
}

enum { AS_THEY_ARE, CONVERTED, CONVERTED_WITH_NOISE };

/* Adds what one array makes of a chunk of tokens to their totals: sums, or codes, times what their cycle counts. */
INLINE void read_array(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens,
                       const int how)
{
    const int cycles = (int)p->cycles, lines = tokens * cycles, bits = INPUT_BITS / cycles;
    const int64_t place = (block * p->tiles + tile) * p->groups * 2 * OUTPUTS, left = p->outputs - block * OUTPUTS;
    const vf inverse = all((float)p->inverse), sigma = all((float)p->noise), top = all((float)p->top);
    float copy[OUTPUTS] = {0};
    int t = 0, c = 0;
    for (int line = 0; line < lines; line += LINES) {
        const float *noise[LINES];
        const int count = lines - line < LINES ? lines - line : LINES;
        for (int r = 0; how == CONVERTED_WITH_NOISE && r < count; r++) {
            const int64_t *places = p->places + (tile * cycles + (line + r) % cycles) * p->tokens;
            noise[r] = p->pool + block * OUTPUTS + places[first + (line + r) / cycles];
            ask_for_noise(noise[r]);
        }
        if (p->whole)
            sum_weights(p, w, p->whole + place, line, tile);
        else
            sum_codes(p, w, p->codes + place, line, tile);
        for (int r = 0; r < count; r++) {
            const float *some = how == CONVERTED_WITH_NOISE ? noise_of(noise[r], left, copy) : NULL;
            const vf counts = all((float)(1 << bits * c));
            EACH_FLOATS(v) {
                vf x = to_floats(load_integers(w->sums[r] + v * LANES));
                if (how != AS_THEY_ARE)
                    x *= inverse;
                if (how == CONVERTED_WITH_NOISE)
                    x = fused(load(some + v * LANES), sigma, x);
                if (how != AS_THEY_ARE)
                    x = clamp(whole(x), -top, top);
                float *total = w->total[t] + v * LANES;
                store(total, fused(x, counts, load(total)));
            }
            if (++c == cycles) {
                c = 0;
                t++;
            }
        }
    }
}

static int make_workplace(workplace *w, const linear_arrays *p, int64_t tokens)
{
    const int64_t lines = tokens * p->cycles + LINES - 1, groups = p->tiles * p->groups;
    const size_t twos = (size_t)(4 * lines * groups);
    const size_t ones = (size_t)(lines * p->tiles * pieces_of(p)) * sizeof *w->ones;
    char *memory = w->memory = calloc(1, twos + ones + (size_t)(2 * groups) + 64);
    if (!memory)
        return 0;
    memory += 64 - (uintptr_t)memory % 64;
    w->twos = (int8_t *)memory;
    w->ones = (int16_t *)(memory + twos);
    w->digits = (int8_t *)(memory + twos + ones);
    return 1;
}

static void read_tile(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens)
{
    if (p->top <= 0.0)
        read_array(p, w, tile, block, first, tokens, AS_THEY_ARE);
    else if (!p->places)
        read_array(p, w, tile, block, first, tokens, CONVERTED);
    else
        read_array(p, w, tile, block, first, tokens, CONVERTED_WITH_NOISE);
}

#include "chunks.h"

int digit_product(const linear_arrays *p)
{
    return read_all(p);
}
