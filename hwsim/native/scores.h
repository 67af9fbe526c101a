/* First product of a piece, S^T = K Q^T, and what makes pulses of it. */
#ifndef GAIN_CELL_SCORES_H
#define GAIN_CELL_SCORES_H

#include "aged.h"
#include "tiles.h"

typedef struct {
    const attention_arguments *p;
    const tables *t;
    workspace *w;
    int64_t n;       /* batch x head */
    int64_t start;   /* write index of the block's first query */
    int queries;
    int plain;       /* one image each, neither constant nor offset nor noise nor jitter */
    int coded;       /* codes in place of images */
    int gridded;     /* pulses are whole numbers */
    int weighted;    /* forward: store phi times the weights of the values; backward: phi itself */
} pass;

/* Noise that has a number of the pool for each slot, transposed: (key, query); sigmas (queries) or one for all */
static void place_noise(const pass *s, int64_t tile, piece at, const int32_t *starts, const float *sigmas, float sigma,
                        float *to)
{
    const attention_arguments *p = s->p;
    int64_t tiles = tiles_of(p), row = s->n * p->queries + s->start - p->query_start;
    int64_t inside = at.first % p->window - tile * p->slots;
    for (int q = 0; q < s->queries; q++) {
        const float *z = p->pool + starts[(row + q) * tiles + tile] + inside;
        if (sigmas)
            sigma = sigmas[row + q];
        for (int r = 0; r < at.rows; r++)
            to[r * BLOCK + q] = sigma * z[r];
    }
}

/* Copies a block of queries, and turns it for the first product. */
static void take_queries(const pass *s)
{
    const attention_arguments *p = s->p;
    workspace *w = s->w;
    int64_t row = s->n * p->queries + s->start - p->query_start, width = p->width;
    if (!s->coded) {
        copy_rows(w->query, p->query + row * width, s->queries, width);
    } else {
        memset(w->code, 0, (size_t)(BLOCK * width));
        memcpy(w->code, p->query_code + row * width, (size_t)(s->queries * width));
        if (CODES_MULTIPLY) /* four codes move as one number */
            transpose((float *)w->code_t, BLOCK, (const float *)w->code, width / 4, BLOCK, width / 4);
        if (CODES_MULTIPLY && !p->grad && !p->constant_k)
            return;
        widen_rows(w->query, (const int8_t *)w->code, BLOCK, width);
    }
    transpose(w->query_t, BLOCK, w->query, width, BLOCK, width);
    if (p->grad || p->constant_k)
        sum_rows(w->query_sum, w->query_t, width);
}

INLINE void score_rows(const pass *s, piece at, const float *const *keys, int row, int lane, const int plain,
                       const int weighted, const int coded, const int wide)
{
    const attention_arguments *p = s->p;
    int64_t age = s->start + lane - (at.first + row);
    vf score[ROWS][MOST], acc[ROWS][MOST];
    if (coded) {
        vi total[ROWS][MOST];
        EACH_ROW(r)
            EACH_VECTOR(v)
                total[r][v] = (vi){0};
        multiply_codes(total, wide, (const int8_t *)keys[0] + row * p->width, p->width, s->w->code_t + 4 * lane, BLOCK,
                       p->width / 4);
        EACH_ROW(r)
            EACH_VECTOR(v)
                score[r][v] = to_floats(total[r][v]) * load(s->w->now.k.of[0] + age - r + v * LANES);
    }
    for (int64_t i = 0; !coded && i < (plain ? 1 : s->w->now.k.images); i++) {
        clear(acc, wide);
        multiply(acc, wide, keys[i] + row * p->width, p->width, 1, s->w->query_t + lane, BLOCK, p->width);
        float *total = s->w->pulses + row * BLOCK + lane; /* in memory: registers are all taken */
        EACH_ROW(r)
            EACH_VECTOR(v) {
                vf x = acc[r][v] * load(s->w->now.k.of[i] + age - r + v * LANES);
                if (plain)
                    score[r][v] = x;
                else
                    store(total + r * BLOCK + v * LANES, i ? load(total + r * BLOCK + v * LANES) + x : x);
            }
    }
    if (!plain) {
        EACH_ROW(r) {
            EACH_VECTOR(v)
                if (!coded)
                    score[r][v] = load(s->w->pulses + (row + r) * BLOCK + lane + v * LANES);
            float exists = row + r < at.rows ? 1.0f : 0.0f;
            float offset = 0.0f;
            if (p->score_offset && exists != 0.0f)
                offset = p->score_offset[s->n % p->heads * p->window + (at.first + row + r) % p->window];
            EACH_VECTOR(v) {
                vf x = score[r][v] + offset;
                if (p->constant_k)
                    x += load(s->w->query_sum + lane + v * LANES) * load(s->t->constant_k + age - r + v * LANES);
                if (p->score_sigma && exists != 0.0f)
                    x += load(s->w->noise + (row + r) * BLOCK + lane + v * LANES);
                score[r][v] = x * exists * load(s->t->live + age - r + v * LANES);
            }
        }
    }
    const vf zero = fresh(0.0f), one = fresh(1.0f);
    EACH_ROW(r)
        EACH_VECTOR(v) {
            vf phi = clamp(score[r][v], zero, one);
            float *to = s->w->pulses + (row + r) * BLOCK + lane + v * LANES;
            if (!plain && p->jitter_start) {
                int64_t here = to - s->w->pulses;
                if (!weighted)
                    store(s->w->clean + here, phi);
                phi = where_above(phi, clamp(phi + load(s->w->jitter + here), zero, all(LARGEST)));
            }
            if (!weighted) {
                store(to, phi);
                continue;
            }
            vf pulse = phi * load(s->w->now.v.of[0] + age - r + v * LANES);
            store(to, s->gridded ? whole(pulse) : pulse);
            if (!plain) {
                for (int64_t i = 1; i < s->w->now.v.images; i++)
                    store(to + i * BLOCK * BLOCK, phi * load(s->w->now.v.of[i] + age - r + v * LANES));
                float *sums = s->w->sums + lane + v * LANES;
                if (p->constant_v)
                    store(sums + 2 * BLOCK,
                          load(sums + 2 * BLOCK) + phi * load(s->t->constant_v + age - r + v * LANES));
                if (p->charge_noise) {
                    store(sums, load(sums) + phi);
                    store(sums + BLOCK, load(sums + BLOCK) + phi * phi);
                }
            }
        }
}

INLINE void score_groups(const pass *s, piece at, const float *const *keys, const int plain, const int weighted,
                         const int coded)
{
    for (int row = 0; row < at.rows; row += ROWS) {
        int low, high;
        readers(s->p, s->start, s->queries, at.first + row, (int)least(ROWS, at.rows - row), &low, &high);
        low = low / LANES * LANES;
        int left = (high - low + LANES - 1) / LANES, wide;
        for (int lane = low; left > 0; lane += wide * LANES, left -= wide) {
            wide = next_width(left);
            WITH_WIDTH(wide, score_rows, s, at, keys, row, lane, plain, weighted, coded)
        }
    }
}

/* Codes of a piece's keys in whole groups of ROWS, as numbers where codes do not multiply; backward needs the numbers */
static const float *code_rows(const pass *s, piece at)
{
    const attention_arguments *p = s->p;
    const int8_t *rows = p->key_code + (s->n * p->keys + at.first - p->key_start) * p->width;
    if (!CODES_MULTIPLY || p->grad)
        widen_rows(s->w->keys, rows, at.rows, p->width);
    if (!CODES_MULTIPLY)
        return s->w->keys;
    if (at.rows % ROWS == 0)
        return (const float *)rows;
    int8_t *copy = (int8_t *)s->w->rows;
    memset(copy, 0, (size_t)(BLOCK * p->width));
    memcpy(copy, rows, (size_t)(at.rows * p->width));
    return (const float *)copy;
}

/* Fills w->pulses where some query of a group of ROWS reads some key of a group of ROWS. */
static void score_piece(const pass *s, int64_t tile, piece at)
{
    const attention_arguments *p = s->p;
    const float *keys[MOST_IMAGES];
    float *copy = s->w->rows;
    if (s->coded)
        keys[0] = code_rows(s, at);
    if (p->aged_k) {
        int64_t range = range_of(p, p->aged_k, s->start, at);
        take_weights(&s->w->now.k, p, p->aged_k, range);
        if (s->weighted)
            take_weights(&s->w->now.v, p, p->aged_v, range);
        make_images(s->w->aged, p, p->aged_k, s->n, at, range);
        for (int64_t i = 0; i < s->w->now.k.images; i++)
            keys[i] = s->w->aged + i * BLOCK * p->width;
    }
    for (int64_t i = 0; !s->coded && !p->aged_k && i < p->images_k; i++, copy += BLOCK * p->width)
        keys[i] = whole_rows(p->key + (s->n * p->images_k + i) * p->keys * p->width, at, p->key_start, p->width, copy);
    if (!s->plain && p->score_sigma)
        place_noise(s, tile, at, p->score_start, p->score_sigma, 0.0f, s->w->noise);
    if (!s->plain && p->jitter_start)
        place_noise(s, tile, at, p->jitter_start, NULL, (float)p->jitter, s->w->jitter);
    if (s->coded && CODES_MULTIPLY) {
        if (s->plain && s->weighted)
            score_groups(s, at, keys, 1, 1, 1);
        else if (s->plain)
            score_groups(s, at, keys, 1, 0, 1);
        else
            score_groups(s, at, keys, 0, s->weighted, 1);
    } else if (s->plain && s->weighted) {
        score_groups(s, at, keys, 1, 1, 0);
    } else if (s->plain) {
        score_groups(s, at, keys, 1, 0, 0);
    } else {
        score_groups(s, at, keys, 0, s->weighted, 0);
    }
}

#endif
