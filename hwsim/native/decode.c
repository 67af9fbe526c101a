/* Decode: one query for each head against a ring of `window` slots, read where it lies. */
#include "tiles.h"

/* Weights of the slots, from ages: slot c holds the token of age (position - c) mod M, if that was ever written. */
static void slot_weights(float *out, const float *table, int64_t window, int64_t position)
{
    int64_t p = position % window;
    for (int64_t c = 0; c <= p; c++)
        out[c] = table[p - c];
    for (int64_t c = p + 1; c < window; c++)
        out[c] = position >= window ? table[window + p - c] : 0.0f;
}

INLINE float dot(const float *a, const float *b, int64_t width)
{
    vf even = {0}, odd = {0};
    int64_t d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) {
        even += load(a + d) * load(b + d);
        odd += load(a + d + LANES) * load(b + d + LANES);
    }
    if (d < width)
        even += load(a + d) * load(b + d);
    return sum(even + odd);
}

/* Ask for the bytes that the other array's loop wants next: each loop alone leaves the memory idle at its end */
INLINE void fetch_row(const float *row, int64_t width)
{
    for (int64_t d = 0; d < width; d += 16)
        __builtin_prefetch(row + d);
}

/* charge[column ..] += sum of rows weighted by pulses; the columns of one to three vectors stay in registers */
INLINE void add_weighted(float *charge, const float *values, int64_t width, const float *pulses, int64_t rows,
                         const int wide)
{
    vf acc[2][MOST];
    for (int v = 0; v < wide; v++) {
        acc[0][v] = load(charge + v * LANES);
        acc[1][v] = (vf){0};
    }
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2)
        for (int i = 0; i < 2; i++)
            for (int v = 0; v < wide; v++)
                acc[i][v] += pulses[r + i] * load(values + (r + i) * width + v * LANES);
    for (int v = 0; v < wide; v++) {
        if (r < rows)
            acc[0][v] += pulses[r] * load(values + r * width + v * LANES);
        store(charge + v * LANES, acc[0][v] + acc[1][v]);
    }
}

static void decode_head(const attention_arguments *p, float *memory, int64_t n)
{
    const int64_t width = p->width, window = p->window, position = p->position[n], tiles = tiles_of(p);
    const float *query = p->query + n * width;
    float *phi = memory, *weights = phi + window + LANES, *pulses = weights + window * (p->images_k + p->images_v + 2);
    float *constant_k = pulses - 2 * window, *constant_v = pulses - window, query_sum = 0.0f;
    float *charge = pulses + window, *out = p->out + n * width;
    int64_t filled = least(window, position + 1), head = n % p->heads;
    float inverse = p->step > 0.0 ? (float)(1.0 / p->step) : 1.0f, top = (float)p->top;

    for (int64_t i = 0; i < p->images_k; i++)
        slot_weights(weights + i * window, p->weight_k + i * window, window, position);
    for (int64_t i = 0; i < p->images_v; i++)
        slot_weights(weights + (p->images_k + i) * window, p->weight_v + i * window, window, position);
    if (p->constant_k)
        slot_weights(constant_k, p->constant_k, window, position);
    if (p->constant_v)
        slot_weights(constant_v, p->constant_v, window, position);
    for (int64_t d = 0; d < width; d++) {
        out[d] = 0.0f;
        query_sum += query[d];
    }

    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t first = tile * p->slots, last = least(least(first + p->slots, window), filled);
        if (first >= last)
            break;
        for (int64_t c = first; c < last; c++) {
            phi[c] = p->score_offset ? p->score_offset[head * window + c] : 0.0f;
            phi[c] += p->constant_k ? query_sum * constant_k[c] : 0.0f;
        }
        for (int64_t i = 0; i < p->images_k; i++) {
            const float *key = p->key + (n * p->images_k + i) * window * width;
            const float *next = p->value + (n * p->images_v + least(i, p->images_v - 1)) * window * width;
            for (int64_t c = first; c < last; c++) {
                fetch_row(next + c * width, width);
                phi[c] += weights[i * window + c] * dot(query, key + c * width, width);
            }
        }
        const float *noise = p->score_sigma ? p->pool + p->score_start[n * tiles + tile] : NULL;
        vf total = {0}, squares = {0}, constants = {0};
        for (int64_t c = first; c < last; c += LANES) {
            vf x = load_some(phi + c, last - c);
            if (noise)
                x += p->score_sigma[n] * load_some(noise + c - first, last - c);
            x = clamp(x, all(0.0f), all(1.0f));
            store(phi + c, x); /* what lies behind `last` is not made yet, or slack */
            total += x;
            squares += x * x;
            if (p->constant_v)
                constants += x * load_some(constant_v + c, last - c);
        }
        float constant = sum(constants);
        memset(charge, 0, (size_t)width * sizeof(float));
        for (int64_t i = 0; i < p->images_v; i++) {
            const float *value = p->value + ((n * p->images_v + i) * window + first) * width;
            const float *next = p->key + (n * p->images_k + least(i, p->images_k - 1)) * window * width;
            for (int64_t c = first; c < last; c++) {
                if (c + p->slots < window)
                    fetch_row(next + (c + p->slots) * width, width);
                pulses[c] = phi[c] * weights[(p->images_k + i) * window + c];
            }
            int left = (int)(width / LANES), wide;
            for (int64_t column = 0; left > 0; column += wide * LANES, left -= wide) {
                wide = next_width(left);
                WITH_WIDTH(wide, add_weighted, charge + column, value + column, width, pulses + first, last - first)
            }
        }
        float spread = 0.0f;
        const float *z = NULL;
        if (p->charge_noise) {
            spread = p->charge_noise[0]
                     * __builtin_sqrtf(p->charge_noise[1] * sum(total) + p->charge_noise[2] * sum(squares));
            z = p->pool + p->charge_start[n * tiles + tile];
        }
        int64_t circuits = (head * tiles + tile) * width;
        for (int64_t d = 0; d < p->dims; d++) {
            float x = charge[d] + constant;
            x = z ? x + spread * z[d] : x;
            x = p->gain ? x * p->gain[circuits + d] : x;
            x = (x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x) * inverse;
            if (p->step > 0.0) {
                x = p->offset ? x + p->offset[circuits + d] : x;
                x = x < -top ? -top : x > top ? top : x;
                x = (x + 12582912.0f) - 12582912.0f;
            }
            out[d] += x;
        }
    }
    for (int64_t d = 0; d < width; d++)
        out[d] *= p->step > 0.0 ? (float)p->step : 1.0f;
}

int attention_decode(const attention_arguments *p)
{
    int failed = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1) reduction(| : failed)
#endif
    {
        size_t floats = (size_t)(p->window * (4 + p->images_k + p->images_v) + p->width + LANES);
        float *memory = malloc(floats * sizeof(float));
        failed |= !memory;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t n = 0; n < p->count; n++)
            if (memory)
                decode_head(p, memory, n);
        free(memory);
    }
    return failed;
}
