/* Ternary weights on arrays whose inputs come bit by bit: column sums, converters, shifts and adds.
 *
 *     S[c,r,t,o] = sum_{i in array r} bit_c(x[t,i]) w[i,o]                    whole numbers; the sign's cycle counts down
 *     out[t,o]   = sum_{c,r} 2^c clamp(round(S / step + sigma z[c,r,t,o]), -top, top)
 *
 * Four bits of a cycle have sixteen patterns: the sums of the four weights that each picks are made once for 64 tokens,
 * so that a column sum is one addition for every four inputs, for 32 outputs at a time. Where weights are so small that
 * 16 bits hold the sums of 64 of them, they are taken as they are; else a weight is units code + error, both of eight
 * bits, and so are two sums.
 *
 * Source: Arlazarov, Dinic, Kronrod and Faradzev, On economical construction of the transitive closure of a directed
 * graph, 1970.
 */
#include <stdlib.h>

#include "arrays.h"

#define CYCLES 8
#define PATTERNS 16 /* of four bits */
#define GROUPS 16   /* fours of inputs whose sums are held at a time, 24 KB; their codes add up to 64 at most */
#define TABLE (PATTERNS * OUTPUTS) /* numbers of one four */

typedef int8_t bytes __attribute__((vector_size(LANES > 4 ? 32 : 16)));
typedef int8_t quarter __attribute__((vector_size(2 * LANES)));
#define BYTES (int)sizeof(bytes)
#define EACH_BYTES(v) _Pragma("GCC unroll 4") for (int v = 0; v < OUTPUTS / BYTES; v++)

typedef struct {
    int8_t codes[GROUPS][PATTERNS][OUTPUTS]; /* sums of the weights that a pattern picks */
    int16_t errors[GROUPS][PATTERNS][OUTPUTS]; /* and of errors, or of whole weights */
    int16_t code_sums[TOKENS][CYCLES][OUTPUTS]; /* of an array so far */
    int16_t error_sums[TOKENS][CYCLES][OUTPUTS];
    int32_t whole_sums[TOKENS][CYCLES][OUTPUTS];
    float total[TOKENS][OUTPUTS]; /* of the arrays so far */
} bench;

/* In registers or beside the stack's top: numbers of the arguments would be fetched and turned around each time */
typedef struct {
    vf step, units, sigma, top;
} converters;

typedef struct {
    void *memory;
    bench *bench;
    float (*total)[OUTPUTS]; /* there */
    uint16_t *patterns; /* (tokens, CYCLES, fours of all arrays) first number of a pattern in a table */
    uint8_t *inputs;    /* of a token, in whole fours of each array */
} workplace;

INLINE bytes load_bytes(const int8_t *p)
{
    bytes x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* LANES numbers as floats */
INLINE vf short_floats(const int16_t *p)
{
    half x;
    memcpy(&x, p, sizeof x);
    return to_floats(__builtin_convertvector(x, vi));
}

/* Patterns of all fours of a token, each four bytes of codes */
static void cut_inputs(const linear_arrays *p, workplace *w, int64_t first, int tokens)
{
    const int64_t fours = p->tiles * p->groups;
    for (int t = 0; t < tokens; t++) {
        const int8_t *x = p->x + (first + t) * p->inputs;
        memset(w->inputs, 0, (size_t)(4 * fours));
        for (int64_t r = 0; r < p->tiles; r++) {
            int64_t from = r * p->rows, count = p->inputs - from < p->rows ? p->inputs - from : p->rows;
            memcpy(w->inputs + 4 * r * p->groups, x + from, (size_t)count);
        }
        for (int c = 0; c < CYCLES; c++) {
            uint16_t *to = w->patterns + (t * CYCLES + c) * fours;
            for (int64_t g = 0; g < fours; g++) { /* bits 0, 8, 16, 24 move to 28 .. 31, and nothing else gets there */
                uint32_t four;
                memcpy(&four, w->inputs + 4 * g, 4);
                to[g] = (uint16_t)((((four >> c & 0x01010101u) * 0x10204080u) >> 28) * OUTPUTS);
            }
        }
    }
}

/* Sums of what each pattern picks of four rows of weights: one addition to that without its lowest bit */
#define SUM_PATTERNS(sums, rows)                                                                       \
    memset((sums)[0], 0, sizeof (sums)[0]);                                                            \
    for (int pattern = 1; pattern < PATTERNS; pattern++) {                                             \
        int lowest = __builtin_ctz((unsigned)pattern), rest = pattern & (pattern - 1);                 \
        for (int o = 0; o < OUTPUTS; o++)                                                              \
            (sums)[pattern][o] = (__typeof__((sums)[0][0]))((sums)[rest][o] + (rows)[lowest * OUTPUTS + o]); \
    }

static void make_tables(const linear_arrays *p, bench *b, int64_t place, int64_t groups)
{
    for (int64_t g = 0; g < groups; g++) {
        const int8_t *codes = p->codes + (place + g) * 4 * OUTPUTS;
        const int8_t *errors = p->errors + (place + g) * 4 * OUTPUTS;
        SUM_PATTERNS(b->codes[g], codes)
        SUM_PATTERNS(b->errors[g], errors)
    }
}

/* Likewise of whole weights */
static void make_whole_tables(const linear_arrays *p, bench *b, int64_t place, int64_t groups)
{
    for (int64_t g = 0; g < groups; g++) {
        const int16_t *weights = p->whole + (place + g) * 4 * OUTPUTS;
        SUM_PATTERNS(b->errors[g], weights)
    }
}

/* Adds up the patterns of one token in one cycle. */
INLINE void add_patterns(bench *b, const uint16_t *at, int64_t groups, int16_t *code_sums, int16_t *error_sums,
                         const int more)
{
    bytes codes[OUTPUTS / BYTES];
    shorts errors[OUTPUTS / SHORTS];
    EACH_BYTES(v)
        codes[v] = (bytes){0};
    EACH_SHORTS(v)
        errors[v] = more ? load_shorts(error_sums + v * SHORTS) : (shorts){0};
    for (int64_t g = 0; g < groups; g++, at++) {
        EACH_BYTES(v)
            codes[v] += load_bytes(b->codes[g][0] + *at + v * BYTES);
        EACH_SHORTS(v)
            errors[v] += load_shorts(b->errors[g][0] + *at + v * SHORTS);
    }
    int8_t small[OUTPUTS];
    EACH_BYTES(v)
        memcpy(small + v * BYTES, &codes[v], sizeof codes[v]);
    EACH_SHORTS(v) {
        quarter some;
        memcpy(&some, small + v * SHORTS, sizeof some);
        shorts sum = __builtin_convertvector(some, shorts);
        if (more)
            sum += load_shorts(code_sums + v * SHORTS);
        memcpy(code_sums + v * SHORTS, &sum, sizeof sum);
        memcpy(error_sums + v * SHORTS, &errors[v], sizeof errors[v]);
    }
}

/* Converts the sums of one cycle, and adds their codes, shifted, to the totals */
INLINE void convert_sums(const converters *of, const int16_t *codes, const int16_t *errors, float *total, int c,
                         const float *noise, const int noisy)
{
    const vf step = c == CYCLES - 1 ? -of->step : of->step, shift = all((float)(1 << c));
    EACH_FLOATS(v) {
        /* Whole numbers below 2^24: exact */
        vf x = fused(short_floats(codes + v * LANES), of->units, short_floats(errors + v * LANES)) * step;
        if (noisy)
            x = fused(load(noise + v * LANES), of->sigma, x);
        x = clamp(whole(x), -of->top, of->top);
        store(total + v * LANES, fused(x, shift, load(total + v * LANES)));
    }
}

/* Adds some fours of inputs to the sums of an array for a chunk of tokens; the last ones convert the sums. */
INLINE void read_fours(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens,
                       int64_t four, int64_t groups, const int noisy)
{
    bench *b = w->bench;
    const converters of = {all((float)p->inverse), all((float)p->units), all((float)p->noise), all((float)p->top)};
    const uint16_t *at = w->patterns + tile * p->groups + four;
    const int more = four > 0, last = four + groups == p->groups;
    const int64_t all_fours = p->tiles * p->groups, left = p->outputs - block * OUTPUTS, count = p->tokens;
    const int64_t *places = noisy ? p->places + tile * CYCLES * count + first : NULL;
    const float *pool = p->pool + block * OUTPUTS;
    float copy[OUTPUTS] = {0};
    for (int t = 0; t < tokens; t++)
        for (int c = 0; c < CYCLES; c++, at += all_fours) {
            int16_t *codes = b->code_sums[t][c], *errors = b->error_sums[t][c];
            const float *noise = NULL;
            if (noisy && last) {
                noise = noise_of(pool + places[c * count + t], left, copy);
                ask_for_noise(noise);
            }
            add_patterns(b, at, groups, codes, errors, more);
            if (last)
                convert_sums(&of, codes, errors, b->total[t], c, noise, noisy);
        }
}

/* Adds what one array makes of a chunk of tokens to their totals. */
static void read_array(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens)
{
    const int64_t place = (block * p->tiles + tile) * p->groups;
    for (int64_t g = 0; g < p->groups; g += GROUPS) {
        int64_t groups = p->groups - g < GROUPS ? p->groups - g : GROUPS;
        make_tables(p, w->bench, place + g, groups);
        if (p->places)
            read_fours(p, w, tile, block, first, tokens, g, groups, 1);
        else
            read_fours(p, w, tile, block, first, tokens, g, groups, 0);
    }
}

/* The same with whole weights: sums go to the converters without a detour, totals wait in registers. */
INLINE void read_whole(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens,
                       int64_t four, int64_t groups, const int noisy)
{
    bench *b = w->bench;
    const int more = four > 0, last = four + groups == p->groups;
    const vf inverse = all((float)p->inverse), sigma = all((float)p->noise), top = all((float)p->top);
    const int64_t all_fours = p->tiles * p->groups, left = p->outputs - block * OUTPUTS, count = p->tokens;
    const uint16_t *at = w->patterns + tile * p->groups + four;
    const int64_t *places = noisy ? p->places + tile * CYCLES * count + first : NULL;
    const float *pool = p->pool + block * OUTPUTS;
    float copy[OUTPUTS] = {0};
    for (int t = 0; t < tokens; t++) {
        vf total[OUTPUTS / LANES];
        EACH_FLOATS(v)
            total[v] = load(b->total[t] + v * LANES);
        for (int c = 0; c < CYCLES; c++, at += all_fours) {
            const float *noise = NULL;
            if (noisy && last) {
                noise = noise_of(pool + places[c * count + t], left, copy);
                if (t + 1 < tokens)
                    ask_for_noise(pool + places[c * count + t + 1]);
            }
            shorts sums[OUTPUTS / SHORTS];
            EACH_SHORTS(v)
                sums[v] = (shorts){0};
            const int16_t *table = b->errors[0][0];
            for (int64_t g = 0; g < groups; g++) {
                const int16_t *picked = table + g * TABLE + at[g];
                EACH_SHORTS(v)
                    sums[v] += load_shorts(picked + v * SHORTS);
            }
            int32_t *so_far = b->whole_sums[t][c];
            const vf step = c == CYCLES - 1 ? -inverse : inverse, shift = all((float)(1 << c));
            EACH_FLOATS(v) {
                vi sum = short_integers(sums[v / 2], v % 2), before;
                if (more) {
                    memcpy(&before, so_far + v * LANES, sizeof before);
                    sum += before;
                }
                if (!last) {
                    memcpy(so_far + v * LANES, &sum, sizeof sum);
                    continue;
                }
                vf x = to_floats(sum) * step;
                if (noisy)
                    x = fused(load(noise + v * LANES), sigma, x);
                total[v] = fused(clamp(whole(x), -top, top), shift, total[v]);
            }
        }
        EACH_FLOATS(v)
            store(b->total[t] + v * LANES, total[v]);
    }
}

static void read_whole_array(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens)
{
    const int64_t place = (block * p->tiles + tile) * p->groups;
    for (int64_t g = 0; g < p->groups; g += GROUPS) {
        const int64_t groups = p->groups - g < GROUPS ? p->groups - g : GROUPS;
        make_whole_tables(p, w->bench, place + g, groups);
        if (p->places)
            read_whole(p, w, tile, block, first, tokens, g, groups, 1);
        else
            read_whole(p, w, tile, block, first, tokens, g, groups, 0);
    }
}

static int make_workplace(workplace *w, const linear_arrays *p, int64_t tokens)
{
    int64_t fours = p->tiles * p->groups;
    size_t patterns = (size_t)(fours * tokens) * CYCLES * sizeof(uint16_t);
    char *memory = w->memory = malloc(sizeof(bench) + patterns + (size_t)(4 * fours) + 64);
    if (!memory)
        return 0;
    memory += 64 - (uintptr_t)memory % 64;
    w->bench = (bench *)memory;
    w->total = w->bench->total;
    w->patterns = (uint16_t *)(memory + sizeof(bench));
    w->inputs = (uint8_t *)(memory + sizeof(bench) + patterns);
    return 1;
}

static void read_tile(const linear_arrays *p, workplace *w, int64_t tile, int64_t block, int64_t first, int tokens)
{
    if (p->whole)
        read_whole_array(p, w, tile, block, first, tokens);
    else
        read_array(p, w, tile, block, first, tokens);
}

#include "chunks.h"

int bit_serial_product(const linear_arrays *p)
{
    return read_all(p);
}
