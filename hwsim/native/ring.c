/* A ring of codes: writes one token of every sequence, and lets its query read. */
#include "codes.h"

#define GROUP 16 /* slots whose keys lie together, four dimensions of each at a time */

/* Where dimension d of the key in slot c lies */
INLINE int64_t key_place(const ring *p, int64_t c, int64_t d)
{
    return (c / GROUP * (p->width / 4) + d / 4) * GROUP * 4 + c % GROUP * 4 + d % 4;
}

static int write_token(const ring *p, int64_t n, uint8_t *code)
{
    int64_t slot = p->position % p->window, rows = p->padded * p->width;
    int none = convert_row(code, p->key + n * p->dims, p->dims, p->width, p->low, p->high, p->step, p->cell_top, 1);
    for (int64_t d = 0; d < p->width; d += 4)
        memcpy(p->keys + n * rows + key_place(p, slot, d), code + d, 4);
    none |= convert_row(code, p->value + n * p->dims, p->dims, p->width, p->low, p->high, p->step, p->cell_top, 1);
    memcpy(p->values + n * rows + slot * p->width, code, (size_t)p->width);
    return none;
}

/* Pulses times the decay of the values, for all slots; what was never written holds zeros, which make none. */
static void make_pulses(const ring *p, const int8_t *keys, const uint8_t *code, float *pulses)
{
    int64_t filled = least(p->window, p->position + 1), first = p->window - 1 - p->position % p->window;
    const float *weight_k = p->weight_k + first, *weight_v = p->weight_v + first;
    for (int64_t c = 0; c < filled; c += GROUP, keys += GROUP * p->width) {
        vi total[GROUP / LANES];
        for (int i = 0; i < GROUP / LANES; i++)
            total[i] = (vi){0};
        for (int64_t d = 0; d < p->width; d += 4) {
            vi q = all_codes((const int8_t *)code + d);
            for (int i = 0; i < GROUP / LANES; i++)
                total[i] = add_codes(total[i], q, load_integers(keys + GROUP * d + 4 * i * LANES));
        }
        for (int i = 0; i < GROUP / LANES; i++) {
            vf score = to_floats(total[i]) * load(weight_k + c + i * LANES);
            vf pulse = clamp(score, all(0.0f), all(1.0f)) * load(weight_v + c + i * LANES);
            store(pulses + c + i * LANES, p->grid > 0.0 ? whole(pulse) : pulse);
        }
    }
}

INLINE void add_values(float *charge, const int8_t *values, int64_t width, const float *pulses, int64_t rows,
                       const int wide)
{
    vf acc[2][MOST];
    for (int v = 0; v < wide; v++)
        acc[0][v] = acc[1][v] = (vf){0};
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2)
        for (int i = 0; i < 2; i++)
            for (int v = 0; v < wide; v++)
                acc[i][v] += pulses[r + i] * widened(values + (r + i) * width + v * LANES);
    for (int v = 0; v < wide; v++) {
        if (r < rows)
            acc[0][v] += pulses[r] * widened(values + r * width + v * LANES);
        store(charge + v * LANES, acc[0][v] + acc[1][v]);
    }
}

static void read_tile(const ring *p, const int8_t *values, const float *pulses, int64_t rows, float *charge, float *out)
{
    int left = (int)(p->width / LANES), wide;
    for (int64_t column = 0; left > 0; column += wide * LANES, left -= wide) {
        wide = next_width(left);
        WITH_WIDTH(wide, add_values, charge + column, values + column, p->width, pulses, rows)
    }
    const float inverse = p->readout_step > 0.0 ? (float)(1.0 / p->readout_step) : 1.0f, top = (float)p->top;
    const float limit = p->readout_step > 0.0 && top < inverse ? top : inverse, grid = (float)p->grid;
    for (int64_t d = 0; d < p->width; d += LANES) {
        vf x = load(charge + d);
        if (p->grid > 0.0)
            x *= grid;
        x = clamp(x * inverse, all(-limit), all(limit));
        if (p->readout_step > 0.0)
            x = rounded(x);
        store(out + d, load(out + d) + x);
    }
}

int ring_step(const ring *p)
{
    int64_t group = p->heads / p->kv_heads, rows = p->padded * p->width;
    float *memory = malloc((size_t)(p->padded + 3 * p->width + 64) * sizeof(float)); /* a multiple of LANES each */
    if (!memory)
        return 2;
    float *pulses = memory, *charge = pulses + p->padded, *out = charge + p->width;
    uint8_t *code = (uint8_t *)(out + p->width);
    const float step = p->readout_step > 0.0 ? (float)p->readout_step : 1.0f;
    int none = 0;
    for (int64_t n = 0; n < p->batch * p->kv_heads; n++) {
        none |= write_token(p, n, code);
        for (int64_t h = n * group; h < (n + 1) * group; h++) {
            none |= convert_row(code, p->query + h * p->dims, p->dims, p->width, 0.0, 1.0, p->query_step, p->query_top, 0);
            make_pulses(p, p->keys + n * rows, code, pulses);
            memset(out, 0, (size_t)p->width * sizeof(float));
            int64_t filled = least(p->window, p->position + 1);
            for (int64_t first = 0; first < filled; first += p->slots)
                read_tile(p, p->values + n * rows + first * p->width, pulses + first, least(p->slots, filled - first),
                          charge, out);
            for (int64_t d = 0; d < p->dims; d++)
                p->out[h * p->dims + d] = out[d] * step;
        }
    }
    free(memory);
    return none;
}
