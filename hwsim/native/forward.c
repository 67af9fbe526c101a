/* Forward direction: one block of queries of one head at a time, over all sub-tiles. */
#include "scores.h"

typedef struct {
    float limit, inverse, step, top, grid;
    int rounds;
    const float *gain, *offset, *errors; /* of this head and sub-tile, or NULL; errors from the one of code 0 on */
    int plain;
    uint8_t *saturated; /* of the block's first query, or NULL */
    int64_t stride;     /* bytes between two queries */
    float spread[BLOCK];      /* deviation of the charge's noise of each query */
    const float *noise[BLOCK], *readout_noise[BLOCK]; /* of the charges and of the codes, or NULL */
    uint8_t live[BLOCK];      /* whether the query reads anything of the sub-tile */
} readout;

INLINE void note_saturated(readout *o, int query, int64_t column, vf x)
{
    unsigned bits = saturated_lanes(x);
    uint8_t *to = o->saturated + query * o->stride + column / 8;
#if LANES == 16
    uint16_t word = (uint16_t)bits;
    memcpy(to, &word, 2);
#elif LANES == 8
    *to = (uint8_t)bits;
#else
    *to = (uint8_t)(column % 8 ? *to | bits << 4 : bits);
#endif
}

/* Errors of the codes, a lane each; those of one code lie side by side */
INLINE vf errors_of(vf code, const float *errors, int64_t width)
{
    float x[LANES], y[LANES];
    store(x, code);
    for (int i = 0; i < LANES; i++)
        y[i] = errors[(x[i] == x[i] ? (int64_t)x[i] : 0) * width + i]; /* what is not a number has no code */
    return load(y);
}

/* Digitises the charges of ROWS queries and adds the codes to the output. */
INLINE void read_rows(const pass *s, readout *o, vf acc[ROWS][MOST], int query, int64_t column, const int plain,
                      const int wide)
{
    const int64_t width = s->p->width;
    EACH_ROW(r) {
        if (query + r >= s->queries)
            break;
        EACH_VECTOR(v) {
            int64_t at = column + v * LANES;
            vf x = s->gridded ? acc[r][v] * o->grid : acc[r][v];
            if (!plain) {
                if (s->p->constant_v)
                    x += s->w->sums[2 * BLOCK + query + r];
                if (o->noise[query + r])
                    x += o->spread[query + r] * load_some(o->noise[query + r] + at, s->p->dims - at);
                if (o->gain)
                    x *= load(o->gain + at);
            }
            if (o->saturated)
                note_saturated(o, query + r, at, x);
            if (!plain && !o->live[query + r])
                continue;
            if (plain || !o->rounds) {
                x = clamp(x * o->inverse, all(-o->limit), all(o->limit));
            } else {
                x = clamp(x, all(-1.0f), all(1.0f)) * o->inverse;
                if (o->offset)
                    x += load(o->offset + at);
                if (o->readout_noise[query + r])
                    x += (float)s->p->readout_noise * load_some(o->readout_noise[query + r] + at, s->p->dims - at);
                if (o->errors) {
                    x = clamp(x, all(-o->inverse), all(o->inverse));
                    x += errors_of(rounded(x), o->errors + at, width);
                }
                x = clamp(x, all(-o->top), all(o->top));
            }
            if (o->rounds)
                x = rounded(x);
            float *to = s->w->out + (query + r) * width + at;
            store(to, load(to) + x);
        }
    }
}

INLINE void charge_rows(const pass *s, readout *o, const float *const *values, int low, int high, int query,
                        int64_t column, int first, int last, const int plain, const int wide)
{
    const attention_arguments *p = s->p;
    float *charge = s->w->charge + query * p->width + column;
    vf acc[ROWS][MOST];
    clear(acc, wide);
    if (!first)
        EACH_ROW(r)
            EACH_VECTOR(v)
                acc[r][v] = load(charge + r * p->width + v * LANES);
    for (int64_t i = 0; i < (plain ? 1 : s->w->now.v.images); i++)
        multiply(acc, wide, s->w->pulses + (i * BLOCK + low) * BLOCK + query, 1, BLOCK,
                 values[i] + low * p->width + column, p->width, high - low);
    if (last)
        read_rows(s, o, acc, query, column, plain, wide);
    else
        EACH_ROW(r)
            EACH_VECTOR(v)
                store(charge + r * p->width + v * LANES, acc[r][v]);
}

INLINE void charge_groups(const pass *s, readout *o, const float *const *values, piece at, int first, int last,
                          const int plain)
{
    const attention_arguments *p = s->p;
    for (int query = 0; query < s->queries; query += ROWS) {
        int low, high;
        read_by(p, s->start + query, (int)least(ROWS, s->queries - query), at, &low, &high);
        high = (int)most(low, high);
        int left = (int)(p->width / LANES), wide;
        for (int64_t column = 0; left > 0; column += wide * LANES, left -= wide) {
            wide = next_width(left);
            WITH_WIDTH(wide, charge_rows, s, o, values, low, high, query, column, first, last, plain)
        }
    }
}

static void charge_piece(const pass *s, readout *o, piece at, int first, int last)
{
    const attention_arguments *p = s->p;
    const float *values[MOST_IMAGES];
    if (s->coded) {
        widen_rows(s->w->keys, p->value_code + (s->n * p->keys + at.first - p->key_start) * p->width, at.rows, p->width);
        values[0] = s->w->keys;
    }
    if (p->aged_v) {
        make_images(s->w->rows, p, p->aged_v, s->n, at, range_of(p, p->aged_v, s->start, at));
        for (int64_t i = 0; i < s->w->now.v.images; i++)
            values[i] = s->w->rows + i * BLOCK * p->width;
    }
    for (int64_t i = 0; !s->coded && !p->aged_v && i < p->images_v; i++)
        values[i] = p->value + ((s->n * p->images_v + i) * p->keys + at.first - p->key_start) * p->width;
    if (o->plain)
        charge_groups(s, o, values, at, first, last, 1);
    else
        charge_groups(s, o, values, at, first, last, 0);
}

/* What the readout of one sub-tile needs beyond the charges: noise and who reads it. */
static void prepare_readout(const pass *s, readout *o, int64_t tile, const piece *pieces, int count)
{
    const attention_arguments *p = s->p;
    int64_t tiles = tiles_of(p), row = s->n * p->queries + s->start - p->query_start;
    int64_t circuits = (s->n % p->heads * tiles + tile) * p->width;
    o->gain = p->gain ? p->gain + circuits : NULL;
    o->offset = p->offset ? p->offset + circuits : NULL;
    o->errors = p->errors ? p->errors + circuits * p->codes + p->codes / 2 * p->width : NULL;
    o->saturated = p->saturated ? p->saturated + (row * tiles + tile) * (p->width / 8) : NULL;
    o->stride = tiles * (p->width / 8);
    for (int q = 0; q < s->queries && !o->plain; q++) {
        o->live[q] = 0;
        for (int i = 0; i < count; i++) {
            int low, high;
            read_by(p, s->start + q, 1, pieces[i], &low, &high);
            o->live[q] |= high > low;
        }
        o->noise[q] = NULL;
        if (p->charge_noise) {
            float variance = p->charge_noise[1] * s->w->sums[q] + p->charge_noise[2] * s->w->sums[BLOCK + q];
            o->spread[q] = p->charge_noise[0] * __builtin_sqrtf(variance);
            o->noise[q] = p->pool + p->charge_start[(row + q) * tiles + tile];
        }
        o->readout_noise[q] = p->readout_start ? p->pool + p->readout_start[(row + q) * tiles + tile] : NULL;
    }
}

static void forward_block(const attention_arguments *p, const tables *t, workspace *w, int64_t n, int64_t start,
                          int64_t stop)
{
    pass s = {.p = p, .t = t, .w = w, .n = n, .start = start, .queries = (int)(stop - start), .weighted = 1,
              .coded = p->query_code != NULL, .gridded = p->grid > 0.0};
    int circuits = p->gain || p->offset || p->errors || p->readout_start;
    s.plain = p->images_k == 1 && p->images_v == 1 && !p->aged_k && !p->score_offset && !p->score_sigma && !p->charge_noise
              && !p->constant_k && !p->constant_v && !p->jitter_start;
    readout o = {.rounds = p->step > 0.0, .top = (float)p->top, .plain = s.plain && !circuits, .grid = (float)p->grid};
    o.inverse = o.rounds ? (float)(1.0 / p->step) : 1.0f;
    o.limit = o.rounds && o.top < o.inverse ? o.top : o.inverse;

    int64_t row = n * p->queries + start - p->query_start;
    take_queries(&s);
    memset(w->out, 0, (size_t)(BLOCK * p->width) * sizeof(float));
    for (int64_t tile = 0; tile < tiles_of(p); tile++) {
        int count = find_pieces(p, start, stop, tile, w->pieces);
        if (!s.plain)
            memset(w->sums, 0, 3 * BLOCK * sizeof(float));
        for (int i = 0; i < count; i++) {
            score_piece(&s, tile, w->pieces[i]);
            if (i == count - 1) /* the noise's deviation needs the pulses of all pieces */
                prepare_readout(&s, &o, tile, w->pieces, count);
            charge_piece(&s, &o, w->pieces[i], i == 0, i == count - 1);
        }
    }
    float *out = p->out + row * p->width, step = o.rounds ? (float)p->step : 1.0f;
    for (int64_t i = 0, end = s.queries * p->width; i < end; i += LANES)
        store(out + i, load(w->out + i) * step);
}

int attention_forward(const attention_arguments *p)
{
    tables t;
    int failed = 0;
    if (!make_tables(&t, p))
        return 1;
    /* Blocks have no common length: list where they start */
    int64_t blocks = 0;
    for (int64_t at = p->query_start; at < p->query_start + p->queries; at = block_end(p, at))
        blocks++;
    int64_t *starts = malloc((size_t)(blocks + 1) * sizeof(int64_t));
    if (!starts) {
        free(t.memory);
        return 1;
    }
    starts[0] = p->query_start;
    for (int64_t i = 0; i < blocks; i++)
        starts[i + 1] = block_end(p, starts[i]);
#ifdef _OPENMP
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1) reduction(| : failed)
#endif
    {
        workspace w;
        failed |= !make_workspace(&w, p, &t);
        int ready = w.memory != NULL;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t i = 0; i < p->count * blocks; i++)
            if (ready)
                forward_block(p, &t, &w, i / blocks, starts[i % blocks], starts[i % blocks + 1]);
        free(w.memory);
    }
    free(starts);
    free(t.memory);
    return failed;
}
