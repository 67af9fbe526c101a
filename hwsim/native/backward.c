/* Backward direction: scores and pulses are computed again, five products for each piece of keys.
 *
 *     dX = dout gain [not saturated]        dphi^T = sum_i wv_i (V_i dX^T) + cv sum_d dX
 *     dS_i^T = wk_i dphi^T [0 < S < 1]      (and likewise with ck, summed over the keys, for <dq, 1>)
 *     dQ += sum_i dS_i K_i                  dK_i += dS_i^T Q                     dV_i += (phi wv_i)^T dX
 *
 * Where jitter ended a pulse before it began, its score has no gradient.
 */
#include "scores.h"

/* Gradient behind the readout of one sub-tile; returns whether it differs from that of the output. */
static int pass_readout(const pass *s, int64_t tile)
{
    const attention_arguments *p = s->p;
    int64_t tiles = tiles_of(p), width = p->width, bytes = width / 8, stride = tiles * bytes;
    int64_t row = s->n * p->queries + s->start - p->query_start;
    const uint8_t *saturated = p->saturated ? p->saturated + (row * tiles + tile) * bytes : NULL;
    const float *gain = p->gain ? p->gain + (s->n % p->heads * tiles + tile) * width : NULL;
    uint8_t any = 0;
    for (int q = 0; saturated && q < s->queries; q++)
        for (int64_t i = 0; i < bytes; i++)
            any |= saturated[q * stride + i];
    if (!any && !gain && !s->gridded)
        return 0;
    for (int q = 0; q < s->queries; q++)
        for (int64_t d = 0; d < width; d += LANES) {
            vf x = load(s->w->grad + q * width + d);
            if (gain)
                x *= load(gain + d);
            if (any)
                x = where_clear(saturated + q * stride, d, x);
            if (s->gridded)
                x *= (float)p->grid;
            store(s->w->passed + q * width + d, x);
        }
    memset(s->w->passed + s->queries * width, 0, (size_t)((BLOCK - s->queries) * width) * sizeof(float));
    transpose(s->w->passed_t, BLOCK, s->w->passed, width, BLOCK, width);
    sum_rows(s->w->passed_sum, s->w->passed_t, width);
    return 1;
}

/* From phi and dX^T to the gradients of the scores and the weighted pulses, ROWS keys at a time. */
INLINE void slope_rows(const pass *s, piece at, const float *const *values, const float *passed_t,
                       const float *passed_sum, int row, int lane, const int plain, const int wide)
{
    const attention_arguments *p = s->p;
    int64_t age = s->start + lane - (at.first + row);
    vf slope[ROWS][MOST], acc[ROWS][MOST];
    for (int64_t i = 0; i < (plain ? 1 : s->w->now.slope_v.images); i++) {
        clear(acc, wide);
        multiply(acc, wide, values[i] + row * p->width, p->width, 1, passed_t + lane, BLOCK, p->width);
        EACH_ROW(r)
            EACH_VECTOR(v) {
                vf x = acc[r][v] * load(s->w->now.slope_v.of[i] + age - r + v * LANES);
                float *total = s->w->slopes + (row + r) * BLOCK + lane + v * LANES; /* registers are all taken */
                if (plain)
                    slope[r][v] = x;
                else
                    store(total, i ? load(total) + x : x);
            }
    }
    EACH_ROW(r)
        EACH_VECTOR(v) {
            if (!plain)
                slope[r][v] = load(s->w->slopes + (row + r) * BLOCK + lane + v * LANES);
            int64_t to = (row + r) * BLOCK + lane + v * LANES, then = age - r + v * LANES;
            if (!plain && p->slope_constant_v)
                slope[r][v] += load(passed_sum + lane + v * LANES) * load(s->t->slope_constant_v + then);
            vf phi = load(s->w->pulses + to), open;
            if (!plain && p->jitter_start)
                open = where_above(phi, where_open(load(s->w->clean + to), slope[r][v]));
            else
                open = where_open(phi, slope[r][v]);
            if (!plain && p->slope_constant_k) {
                float *sums = s->w->constant_grad + lane + v * LANES;
                store(sums, load(sums) + open * load(s->t->slope_constant_k + then));
            }
            for (int64_t i = 0; i < (plain ? 1 : s->w->now.slope_k.images); i++)
                store(s->w->slopes + i * BLOCK * BLOCK + to, open * load(s->w->now.slope_k.of[i] + then));
            for (int64_t i = 0; i < (plain ? 1 : s->w->now.slope_v.images); i++) {
                vf pulse = phi * load(s->w->now.slope_v.of[i] + then);
                store(s->w->pulses + i * BLOCK * BLOCK + to, s->gridded ? whole(pulse) : pulse);
            }
        }
}

INLINE void slope_groups(const pass *s, piece at, const float *const *values, const float *passed_t,
                         const float *passed_sum, const int plain)
{
    for (int row = 0; row < at.rows; row += ROWS) {
        int low, high;
        readers(s->p, s->start, s->queries, at.first + row, (int)least(ROWS, at.rows - row), &low, &high);
        low = low / LANES * LANES;
        int left = (high - low + LANES - 1) / LANES, wide;
        for (int lane = low; left > 0; lane += wide * LANES, left -= wide) {
            wide = next_width(left);
            WITH_WIDTH(wide, slope_rows, s, at, values, passed_t, passed_sum, row, lane, plain)
        }
    }
}

INLINE void add_product(float *to, int64_t width, const float *a, int64_t ra, int64_t ka, const float *b,
                        int64_t count, const int wide)
{
    vf acc[ROWS][MOST];
    EACH_ROW(r)
        EACH_VECTOR(v)
            __builtin_prefetch(to + r * width + v * LANES, 1);
    clear(acc, wide);
    multiply(acc, wide, a, ra, ka, b, width, count);
    EACH_ROW(r)
        EACH_VECTOR(v)
            store(to + r * width + v * LANES, load(to + r * width + v * LANES) + acc[r][v]);
}

/* to (ROWS, width) += a b, with b (count, width) */
static void add_rows(float *to, int64_t width, const float *a, int64_t ra, int64_t ka, const float *b, int64_t count)
{
    int left = (int)(width / LANES), wide;
    for (int64_t column = 0; left > 0 && count > 0; column += wide * LANES, left -= wide) {
        wide = next_width(left);
        WITH_WIDTH(wide, add_product, to + column, width, a, ra, ka, b + column, count)
    }
}

/* to (rows of the piece, width) += pulses^T b */
static void add_to_rows(const pass *s, piece at, float *to, const float *pulses, const float *b)
{
    const attention_arguments *p = s->p;
    for (int row = 0; row < at.rows; row += ROWS) {
        int low, high;
        readers(p, s->start, s->queries, at.first + row, (int)least(ROWS, at.rows - row), &low, &high);
        add_rows(to + row * p->width, p->width, pulses + row * BLOCK + low, BLOCK, 1, b + low * p->width, high - low);
    }
}

/* grad (keys of the piece, width) += pulses^T b for every image */
static void add_to_cells(const pass *s, piece at, float *grad, int64_t images, const float *pulses, const float *b)
{
    const attention_arguments *p = s->p;
    for (int64_t i = 0; i < images; i++) {
        float *rows = grad + ((s->n * images + i) * p->keys + at.first - p->key_start) * p->width, *to = rows;
        if (at.rows % ROWS)
            copy_rows(to = s->w->added, rows, at.rows, p->width);
        add_to_rows(s, at, to, pulses + i * BLOCK * BLOCK, b);
        if (to != rows)
            memcpy(rows, to, (size_t)(at.rows * p->width) * sizeof(float));
    }
}

/* The same by the excursions of aged cells, through their images */
static void add_to_aged(const pass *s, piece at, const aged_cells *cells, float *grad, int64_t images,
                        const float *pulses, const float *b)
{
    const attention_arguments *p = s->p;
    const int64_t plane = BLOCK * p->width;
    memset(s->w->added, 0, (size_t)(images * plane) * sizeof(float));
    for (int64_t i = 0; i < images; i++)
        add_to_rows(s, at, s->w->added + i * plane, pulses + i * BLOCK * BLOCK, b);
    pass_images(grad + (s->n * p->keys + at.first - p->key_start) * p->width, s->w->added, p, cells, s->n, at,
                range_of(p, cells, s->start, at));
}

/* Images of aged keys and values that the gradients are those of, and their weights */
static void take_slopes(const pass *s, piece at, const float **values)
{
    const attention_arguments *p = s->p;
    int64_t range = range_of(p, p->aged_dk, s->start, at), plane = BLOCK * p->width;
    take_weights(&s->w->now.slope_k, p, p->aged_dk, range);
    take_weights(&s->w->now.slope_v, p, p->aged_dv, range);
    if (p->aged_dk != p->aged_k)
        make_images(s->w->aged, p, p->aged_dk, s->n, at, range);
    make_images(s->w->rows, p, p->aged_dv, s->n, at, range);
    for (int64_t i = 0; i < s->w->now.slope_v.images; i++)
        values[i] = s->w->rows + i * plane;
}

static void backward_piece(const pass *s, piece at, const float *passed, const float *passed_t,
                           const float *passed_sum)
{
    const attention_arguments *p = s->p;
    const float *values[MOST_IMAGES];
    float *copy = s->w->rows;
    if (s->coded) {
        widen_rows(copy, p->value_code + (s->n * p->keys + at.first - p->key_start) * p->width, at.rows, p->width);
        values[0] = copy;
    }
    if (p->aged_dv)
        take_slopes(s, at, values);
    for (int64_t i = 0; !s->coded && !p->aged_dv && i < p->images_dv; i++, copy += BLOCK * p->width)
        values[i] = whole_rows(p->slope_value + (s->n * p->images_dv + i) * p->keys * p->width, at, p->key_start,
                               p->width, copy);
    if (p->images_dk == 1 && p->images_dv == 1 && !p->aged_dk && !p->slope_constant_k && !p->slope_constant_v && !p->jitter_start)
        slope_groups(s, at, values, passed_t, passed_sum, 1);
    else
        slope_groups(s, at, values, passed_t, passed_sum, 0);
    for (int query = 0; query < s->queries; query += ROWS) {
        int low, high;
        read_by(p, s->start + query, (int)least(ROWS, s->queries - query), at, &low, &high);
        for (int64_t i = 0; i < s->w->now.slope_k.images; i++) {
            const float *keys = s->coded ? s->w->keys : p->aged_dk ? s->w->aged + i * BLOCK * p->width : p->slope_key
                                + ((s->n * p->images_dk + i) * p->keys + at.first - p->key_start) * p->width;
            add_rows(s->w->charge + query * p->width, p->width, s->w->slopes + (i * BLOCK + low) * BLOCK + query, 1,
                     BLOCK, keys + low * p->width, high - low);
        }
    }
    if (p->aged_dk) {
        add_to_aged(s, at, p->aged_dk, p->grad_key, s->w->now.slope_k.images, s->w->slopes, s->w->query);
        add_to_aged(s, at, p->aged_dv, p->grad_value, s->w->now.slope_v.images, s->w->pulses, passed);
    } else {
        add_to_cells(s, at, p->grad_key, p->images_dk, s->w->slopes, s->w->query);
        add_to_cells(s, at, p->grad_value, p->images_dv, s->w->pulses, passed);
    }
}

static void backward_block(const attention_arguments *p, const tables *t, workspace *w, int64_t n, int64_t start,
                           int64_t stop)
{
    pass s = {.p = p, .t = t, .w = w, .n = n, .start = start, .queries = (int)(stop - start), .weighted = 0,
              .coded = p->query_code != NULL, .gridded = p->grid > 0.0};
    s.plain = p->images_k == 1 && !p->aged_k && !p->constant_k && !p->score_offset && !p->score_sigma && !p->jitter_start;
    int64_t row = n * p->queries + start - p->query_start;
    take_queries(&s);
    copy_rows(w->grad, p->grad + row * p->width, s.queries, p->width);
    transpose(w->grad_t, BLOCK, w->grad, p->width, BLOCK, p->width);
    sum_rows(w->grad_sum, w->grad_t, p->width);
    memset(w->constant_grad, 0, BLOCK * sizeof(float));
    memset(w->charge, 0, (size_t)(BLOCK * p->width) * sizeof(float));
    for (int64_t tile = 0; tile < tiles_of(p); tile++) {
        int count = find_pieces(p, start, stop, tile, w->pieces);
        if (!count)
            continue;
        int differs = pass_readout(&s, tile);
        for (int i = 0; i < count; i++) {
            score_piece(&s, tile, w->pieces[i]);
            backward_piece(&s, w->pieces[i], differs ? w->passed : w->grad, differs ? w->passed_t : w->grad_t,
                           differs ? w->passed_sum : w->grad_sum);
        }
    }
    for (int q = 0; q < s.queries; q++)
        for (int64_t d = 0; d < p->width; d += LANES)
            store(p->grad_query + (row + q) * p->width + d, load(w->charge + q * p->width + d) + w->constant_grad[q]);
}

int attention_backward(const attention_arguments *p)
{
    tables t;
    int failed = 0;
    if (!make_tables(&t, p))
        return 1;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1) reduction(| : failed)
#endif
    {
        workspace w;
        failed |= !make_workspace(&w, p, &t);
        int ready = w.memory != NULL;
        int64_t rows = p->keys * p->width;
        /* A head is one thread's: its sums are always added in the same order */
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t n = 0; n < p->count; n++) {
            if (!ready)
                continue;
            int64_t of_keys = (p->aged_dk ? 1 : p->images_dk) * rows, of_values = (p->aged_dv ? 1 : p->images_dv) * rows;
            memset(p->grad_key + n * of_keys, 0, (size_t)of_keys * sizeof(float));
            memset(p->grad_value + n * of_values, 0, (size_t)of_values * sizeof(float));
            int64_t end = p->query_start + p->queries;
            for (int64_t at = p->query_start, next; at < end; at = next) {
                next = block_end(p, at);
                backward_block(p, &t, &w, n, at, next);
            }
        }
        free(w.memory);
    }
    free(t.memory);
    return failed;
}
