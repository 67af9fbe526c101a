/* How a sequence is cut: blocks of queries, and for each sub-tile the pieces of keys that a block reads. */
#ifndef GAIN_CELL_TILES_H
#define GAIN_CELL_TILES_H

#include <stdlib.h>

#include "attention.h"
#include "vectors.h"

#define BLOCK 64 /* queries of a block; keys of a piece */
#define MARGIN 160 /* zeros on either side of an age table: BLOCK + BLOCK + LANES and some */

typedef struct {
    int64_t first; /* write index of the first key */
    int rows;
} piece;

/* Age tables with zeros at the ages that are not read, shared by all threads of a call. */
typedef struct {
    int64_t images;
    const float *of[MOST_IMAGES]; /* found by age */
} weights;

typedef struct {
    weights k, v, slope_k, slope_v;
} all_weights;

typedef struct {
    float *memory;
    all_weights by_age; /* of the images; those of aged cells depend on the piece */
    const float *live;
    const float *constant_k, *constant_v, *slope_constant_k, *slope_constant_v; /* NULL where there is none */
} tables;

/* What one thread works with; sizes in floats beside each. */
typedef struct {
    void *memory;
    float *query, *query_t;   /* (BLOCK, width), (width, BLOCK) */
    uint8_t *code, *code_t;   /* (BLOCK, width), (width / 4, BLOCK, 4) codes of the queries */
    float *keys;              /* (BLOCK, width) keys of a piece, made of codes */
    float *out;               /* (BLOCK, width) */
    float *pulses;            /* (images, BLOCK keys, BLOCK queries) phi, or phi times its weight */
    float *charge;            /* (BLOCK, width) of the pieces so far; backward: gradient of the queries */
    float *rows;              /* (images, BLOCK, width) keys or values of a ragged piece, with zeros below */
    float *noise, *jitter;    /* (BLOCK keys, BLOCK queries) of the scores and of the pulses */
    float *clean;             /* likewise, backward: phi before its jitter */
    float *sums;              /* (3, BLOCK) of phi, phi^2 and phi times the constant's weight, for each query */
    float *query_sum;         /* (BLOCK) sums of the queries over their dimensions */
    float *grad_sum, *passed_sum; /* (BLOCK) likewise of the gradients */
    float *constant_grad;     /* (BLOCK) gradient of query_sum */
    float *grad, *grad_t;     /* (BLOCK, width), (width, BLOCK) */
    float *passed, *passed_t; /* gradient behind the readout of one sub-tile, likewise */
    float *slopes;            /* (images, BLOCK keys, BLOCK queries) gradient of the scores, weighted */
    float *added;             /* (images, BLOCK, width) gradients of a piece: of a ragged one, or of images at nodes */
    float *aged;              /* (images, BLOCK, width) images of a piece's keys at nodes */
    all_weights now;          /* of the images of the piece at hand */
    piece *pieces;
} workspace;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t tiles_of(const attention_arguments *p) { return (p->window + p->slots - 1) / p->slots; }

/* End of the block of queries that starts at write index `start`. Within one sub-tile a block and its keys form a
 * square, of which this lap fills one triangle and the lap before the other: no work is lost at the window's ends. */
INLINE int64_t block_end(const attention_arguments *p, int64_t start)
{
    int64_t unit = p->slots >= BLOCK ? p->slots : BLOCK / p->slots * p->slots;
    int64_t lap = start / p->window * p->window, slot = start - lap;
    int64_t base = slot / unit * unit, end = least(base + unit, p->window);
    end = least(end, base + ((slot - base) / BLOCK + 1) * BLOCK);
    return least(lap + end, p->query_start + p->queries);
}

/* Where the piece that begins there would begin if nothing had cut it off */
INLINE int64_t piece_base(const attention_arguments *p, int64_t first)
{
    return first - first % p->window % p->slots % BLOCK;
}

/* Lists the pieces of sub-tile `tile` that queries [start, stop) read. */
static inline int find_pieces(const attention_arguments *p, int64_t start, int64_t stop, int64_t tile, piece *found)
{
    int count = 0;
    int64_t oldest = most(p->key_start, start - p->window + 1), end = least(p->key_start + p->keys, stop);
    int64_t now = start / p->window;
    for (int64_t lap = now > 0 ? now - 1 : 0; lap <= now; lap++) {
        int64_t base = lap * p->window;
        int64_t first = base + tile * p->slots, last = base + least((tile + 1) * p->slots, p->window);
        first = most(first, oldest);
        last = least(last, end);
        for (int64_t next; first < last; first = next) {
            next = least(last, piece_base(p, first) + BLOCK);
            found[count++] = (piece){first, (int)(next - first)};
        }
    }
    return count;
}

/* Which of a block's queries [start, ..) read any of `rows` keys from `first` on; the answer is [*low, *high). */
INLINE void readers(const attention_arguments *p, int64_t start, int queries, int64_t first, int rows, int *low,
                    int *high)
{
    *low = (int)most(0, first - start);
    *high = (int)least(queries, first + rows - 1 + p->window - start);
}

/* Which keys of a piece any of the queries [start, start + queries) read. */
INLINE void read_by(const attention_arguments *p, int64_t start, int queries, piece at, int *low, int *high)
{
    *low = (int)most(0, start - p->window + 1 - at.first);
    *high = (int)least(at.rows, start + queries - at.first);
}

/* out[c][r] = in[r][c], for rows and columns in fours */
static inline void transpose(float *restrict out, int64_t out_stride, const float *restrict in, int64_t in_stride,
                      int64_t rows, int64_t columns)
{
    for (int64_t c = 0; c < columns; c += 4)
        for (int64_t r = 0; r < rows; r += 4)
            transpose_quad(out + c * out_stride + r, out_stride, in + r * in_stride + c, in_stride);
}

/* out[r] = sum_c in[c][r], for the BLOCK columns of a transposed matrix */
static inline void sum_rows(float *out, const float *in, int64_t rows)
{
    for (int64_t q = 0; q < BLOCK; q += LANES) {
        vf total = {0};
        for (int64_t d = 0; d < rows; d++)
            total += load(in + d * BLOCK + q);
        store(out + q, total);
    }
}

/* Copies `rows` rows and writes zeros below them, up to BLOCK. */
static inline void copy_rows(float *out, const float *in, int rows, int64_t width)
{
    memcpy(out, in, (size_t)(rows * width) * sizeof(float));
    memset(out + rows * width, 0, (size_t)((BLOCK - rows) * width) * sizeof(float));
}

/* Rows of a piece in whole groups of ROWS: the tensor's own, or a copy with zeros below. */
INLINE const float *whole_rows(const float *base, piece at, int64_t key_start, int64_t width, float *copy)
{
    const float *rows = base + (at.first - key_start) * width;
    if (at.rows % ROWS == 0)
        return rows;
    copy_rows(copy, rows, at.rows, width);
    return copy;
}

/* Rows of codes as floats, with zeros below them up to BLOCK */
static inline void widen_rows(float *out, const int8_t *in, int rows, int64_t width)
{
    for (int64_t i = 0; i < rows * width; i += LANES)
        store(out + i, widened(in + i));
    memset(out + rows * width, 0, (size_t)((BLOCK - rows) * width) * sizeof(float));
}

static inline const float *padded(float *at, const float *table, int64_t window)
{
    memset(at, 0, (size_t)(window + 2 * MARGIN) * sizeof(float));
    for (int64_t age = 0; age < window; age++)
        at[MARGIN + age] = table ? table[age] : 1.0f;
    return at + MARGIN;
}

static inline int make_tables(tables *t, const attention_arguments *p)
{
    int64_t size = p->window + 2 * MARGIN;
    t->memory = malloc((size_t)((4 * MOST_IMAGES + 5) * size) * sizeof(float));
    if (!t->memory)
        return 0;
    float *at = t->memory;
    t->by_age.k.images = p->images_k;
    t->by_age.v.images = p->images_v;
    t->by_age.slope_k.images = p->images_dk;
    t->by_age.slope_v.images = p->images_dv;
    for (int64_t i = 0; p->weight_k && i < p->images_k; i++, at += size)
        t->by_age.k.of[i] = padded(at, p->weight_k + i * p->window, p->window);
    for (int64_t i = 0; p->weight_v && i < p->images_v; i++, at += size)
        t->by_age.v.of[i] = padded(at, p->weight_v + i * p->window, p->window);
    for (int64_t i = 0; p->slope_weight_k && i < p->images_dk; i++, at += size)
        t->by_age.slope_k.of[i] = padded(at, p->slope_weight_k + i * p->window, p->window);
    for (int64_t i = 0; p->slope_weight_v && i < p->images_dv; i++, at += size)
        t->by_age.slope_v.of[i] = padded(at, p->slope_weight_v + i * p->window, p->window);
    const float *given[] = {p->constant_k, p->constant_v, p->slope_constant_k, p->slope_constant_v};
    const float **made[] = {&t->constant_k, &t->constant_v, &t->slope_constant_k, &t->slope_constant_v};
    for (int i = 0; i < 4; i++, at += size)
        *made[i] = given[i] ? padded(at, given[i], p->window) : NULL;
    t->live = padded(at, NULL, p->window);
    return 1;
}

static inline float *take(float **at, int64_t floats)
{
    float *here = *at;
    *at += (floats + 15) / 16 * 16;
    return here;
}

static inline int make_workspace(workspace *w, const attention_arguments *p, const tables *t)
{
    w->now = t->by_age;
    int64_t plane = BLOCK * p->width, square = BLOCK * BLOCK;
    int64_t images = most(most(p->images_k, p->images_v), most(p->images_dk, p->images_dv));
    int64_t pieces = 2 * (p->slots / BLOCK + 2);
    int64_t aged = p->aged_k || p->aged_v ? images : 0;
    int64_t floats = (10 + images + (aged ? 2 * aged : 1)) * plane + (2 * images + 3) * square + 7 * BLOCK + 16;
    char *memory = malloc((size_t)floats * sizeof(float) + (size_t)pieces * sizeof(piece) + 64);
    w->memory = memory;
    if (!memory)
        return 0;
    float *at = (float *)(memory + (64 - (uintptr_t)memory % 64));
    w->query = take(&at, plane);
    w->query_t = take(&at, plane);
    w->code = (uint8_t *)take(&at, plane / 4);
    w->code_t = (uint8_t *)take(&at, plane / 4);
    w->keys = take(&at, plane);
    w->out = take(&at, plane);
    w->charge = take(&at, plane);
    w->rows = take(&at, images * plane);
    w->grad = take(&at, plane);
    w->grad_t = take(&at, plane);
    w->passed = take(&at, plane);
    w->passed_t = take(&at, plane);
    w->added = take(&at, (aged ? aged : 1) * plane);
    w->aged = take(&at, aged * plane);
    w->pulses = take(&at, images * square);
    w->slopes = take(&at, images * square);
    w->noise = take(&at, square);
    w->jitter = take(&at, square);
    w->clean = take(&at, square);
    w->sums = take(&at, 3 * BLOCK);
    w->query_sum = take(&at, BLOCK);
    w->grad_sum = take(&at, BLOCK);
    w->passed_sum = take(&at, BLOCK);
    w->constant_grad = take(&at, BLOCK);
    w->pieces = (piece *)at;
    return 1;
}

#endif
