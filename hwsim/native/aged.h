/* Cells that fade at paces of their own: images of a piece's cells at the nodes of a range of ages.
 *
 *     image_j = sum_n c_n z^n       z = y exp(-rate a_j)       dy = sum_j dz/dy dimage_j sum_n n c_n z^(n-1)
 *
 * or, under the self-limited law, z = sign(y) v_scale max(-ln(W + rate a_j), 0) with W = exp(-|y| / v_scale).
 */
#ifndef GAIN_CELL_AGED_H
#define GAIN_CELL_AGED_H

#include "tiles.h"

#define BARE 4 /* in place of a degree */
#define EACH_COEFFICIENT(i) _Pragma("GCC unroll 4") for (int i = 0; i <= degree && degree != BARE; i++)
/* Calls f(.., degree, limited) with constants */
#define WITH_DEGREE(x, limited, f, ...)                            \
    switch ((x)->degree == 1 && !(x)->c[1] ? BARE : (x)->degree) { \
    case 0: f(__VA_ARGS__, 0, limited); break;                     \
    case 1: f(__VA_ARGS__, 1, limited); break;                     \
    case 2: f(__VA_ARGS__, 2, limited); break;                     \
    case 3: f(__VA_ARGS__, 3, limited); break;                     \
    default: f(__VA_ARGS__, BARE, limited); break;                 \
    }
#define WITH_LAW(x, f, ...)                    \
    if ((x)->v_scale > 0.0f)                   \
        WITH_DEGREE(x, 1, f, __VA_ARGS__)      \
    else                                       \
        WITH_DEGREE(x, 0, f, __VA_ARGS__)

#define BESIDE 16 /* weights beside those of a range: lanes and rows beyond a block's and a piece's last ones */

/* e^x for x <= 0: a power of two times a Taylor series about 0, |r| < 0.35; what is left of less than e^-87 is 0 soon */
INLINE vf decayed(vf x)
{
    x = clamp(x, all(-87.0f), all(0.0f));
    const vf n = whole(x * 1.44269504f);
    vf r = fused(n, all(-0.693145751953125f), x); /* ln 2, its first 16 bits and the rest */
    r = fused(n, all(-1.42860682e-6f), r);
    vf y = all(1.0f / 5040.0f);
    y = fused(y, r, all(1.0f / 720.0f));
    y = fused(y, r, all(1.0f / 120.0f));
    y = fused(y, r, all(1.0f / 24.0f));
    y = fused(y, r, all(1.0f / 6.0f));
    y = fused(y, r, all(0.5f));
    y = fused(y, r, all(1.0f));
    y = fused(y, r, all(1.0f));
    return y * (vf)((to_integers(n) + 127) << 23);
}

/* ln x of a normal x > 0: a power of two, and 2 artanh((m - 1) / (m + 1)) of the rest, m from sqrt(1/2) to sqrt(2) */
INLINE vf logarithm(vf x)
{
    const vi n = ((vi)x - 0x3f3504f3) >> 23; /* bits of sqrt(1/2) */
    const vf m = (vf)((vi)x - (n << 23)), power = to_floats(n), f = (m - 1.0f) / (m + 1.0f), f2 = f * f;
    vf y = all(2.0f / 9.0f);
    y = fused(y, f2, all(2.0f / 7.0f));
    y = fused(y, f2, all(2.0f / 5.0f));
    y = fused(y, f2, all(2.0f / 3.0f));
    y = fused(y, f2, all(2.0f));
    return fused(power, all(0.693145751953125f), fused(power, all(1.42860682e-6f), f * y));
}

/* What is left of an excursion, and dz/dy, when the self-limited law has W become w */
INLINE vf limited_by(vf y, vf w, float v_scale)
{
    const vf left = clamp(logarithm(w) * -v_scale, all(0.0f), all(LARGEST));
    return (vf)((vi)left | ((vi)y & (vi)all(-0.0f)));
}

INLINE vf limited_slope(vf start, vf w)
{
    return (vf)((vi)(start / w) & (w < 1.0f));
}

INLINE vf start_of(vf y, float v_scale)
{
    return decayed((vf)((vi)y | (vi)all(-0.0f)) * (1.0f / v_scale));
}

/* What cell (row, column) of a piece is */
typedef struct {
    const float *y, *rate, *c[4];
    int64_t rows[4]; /* numbers of c[n] between two rows of cells */
    int64_t degree;
    float v_scale;
} cells_of_piece;

INLINE cells_of_piece take_cells(const attention_arguments *p, const aged_cells *from, int64_t n, piece at)
{
    const int64_t width = p->width, first = at.first - p->key_start, head = n % p->heads;
    cells_of_piece x = {.y = from->states + (n * p->keys + first) * width,
                        .rate = from->rate + (head * p->keys + first) * width, .degree = from->degree,
                        .v_scale = (float)from->v_scale};
    for (int64_t i = 0; i <= x.degree; i++) {
        int64_t each = from->each[i]; /* whether each token has a coefficient of its own */
        x.rows[i] = each ? width : 0;
        x.c[i] = from->coefficient[i] ? from->coefficient[i] + (each ? head * p->keys + first : head) * width : NULL;
    }
    return x;
}

/* Range of the ages at which a block reads a piece: the last one that begins before the youngest of them. */
INLINE int64_t range_of(const attention_arguments *p, const aged_cells *cells, int64_t start, piece at)
{
    return (start - piece_base(p, at.first) + BLOCK) / cells->unit;
}

/* Points to the weights of all nodes of a range, so that they are found by age. */
static inline void take_weights(weights *to, const attention_arguments *p, const aged_cells *cells, int64_t range)
{
    int64_t youngest = range * cells->unit - BLOCK - (least(BLOCK, p->slots) - 1);
    to->images = cells->counts[range];
    for (int64_t j = 0; j < to->images; j++)
        to->of[j] = cells->weights + (range * cells->nodes + j) * cells->length + BESIDE - youngest;
}

/* Images of cells whose current has a degree that the compiler knows; BARE is the excursion itself. */
INLINE void images_of(float *to, const cells_of_piece *x, piece at, int64_t width, const float *ages, int64_t nodes,
                      const int degree, const int limited)
{
    for (int64_t row = 0; row < at.rows; row++)
        for (int64_t d = 0; d < width; d += LANES) {
            const vf y = load(x->y + row * width + d), rate = load(x->rate + row * width + d);
            const vf start = limited ? start_of(y, x->v_scale) : (vf){0};
            vf c[4];
            EACH_COEFFICIENT(i)
                c[i] = load(x->c[i] + row * x->rows[i] + d);
            for (int64_t j = 0; j < nodes; j++) {
                vf z = limited ? limited_by(y, fused(rate, all(ages[j]), start), x->v_scale)
                               : y * decayed(rate * -ages[j]), image = z;
                if (degree != BARE) {
                    image = c[degree];
                    _Pragma("GCC unroll 3") for (int i = degree - 1; i >= 0; i--)
                        image = fused(image, z, c[i]);
                }
                store(to + j * BLOCK * width + row * width + d, image);
            }
        }
}

/* Adds the gradient by excursions, likewise. */
INLINE void slopes_of(float *to, const float *grad, const cells_of_piece *x, piece at, int64_t width,
                      const float *ages, int64_t nodes, const int degree, const int limited)
{
    for (int64_t row = 0; row < at.rows; row++)
        for (int64_t d = 0; d < width; d += LANES) {
            const vf y = load(x->y + row * width + d), rate = load(x->rate + row * width + d);
            const vf start = limited ? start_of(y, x->v_scale) : (vf){0};
            vf total = load(to + row * width + d), c[4];
            EACH_COEFFICIENT(i)
                c[i] = load(x->c[i] + row * x->rows[i] + d) * (float)i;
            for (int64_t j = 0; j < nodes; j++) {
                const vf w = fused(rate, all(ages[j]), start);
                const vf kept = limited ? limited_slope(start, w) : decayed(rate * -ages[j]);
                const vf z = limited ? limited_by(y, w, x->v_scale) : y * kept;
                vf slope = degree == BARE ? all(1.0f) : (vf){0};
                if (degree != BARE)
                    _Pragma("GCC unroll 3") for (int i = degree; i >= 1; i--)
                        slope = fused(slope, z, c[i]);
                total = fused(load(grad + j * BLOCK * width + row * width + d), kept * slope, total);
            }
            store(to + row * width + d, total);
        }
}

/* Images (nodes, BLOCK, width) of a piece's cells, zero in the rows below it. */
static inline void make_images(float *to, const attention_arguments *p, const aged_cells *cells, int64_t n, piece at,
                               int64_t range)
{
    const int64_t width = p->width, nodes = cells->counts[range];
    const cells_of_piece x = take_cells(p, cells, n, at);
    WITH_LAW(&x, images_of, to, &x, at, width, cells->ages + range * cells->nodes, nodes)
    for (int64_t j = 0; j < nodes; j++)
        memset(to + (j * BLOCK + at.rows) * width, 0, (size_t)((BLOCK - at.rows) * width) * sizeof(float));
}

/* Adds the gradient by excursions of gradients by images (nodes, BLOCK, width). */
static inline void pass_images(float *to, const float *grad, const attention_arguments *p, const aged_cells *cells,
                               int64_t n, piece at, int64_t range)
{
    const cells_of_piece x = take_cells(p, cells, n, at);
    WITH_LAW(&x, slopes_of, to, grad, &x, at, p->width, cells->ages + range * cells->nodes, cells->counts[range])
}

#endif
