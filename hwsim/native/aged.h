/* Cells that fade at paces of their own: images of a piece's cells at the nodes of a range of ages.
 *
 *     image_j = sum_n c_n z^n       z = y exp(-rate a_j)       dy = sum_j exp(-rate a_j) dimage_j sum_n n c_n z^(n-1)
 */
#ifndef GAIN_CELL_AGED_H
#define GAIN_CELL_AGED_H

#include "tiles.h"

#define BARE 4 /* in place of a degree */
#define EACH_COEFFICIENT(i) _Pragma("GCC unroll 4") for (int i = 0; i <= degree && degree != BARE; i++)
#define WITH_DEGREE(x, f, ...)                                     \
    switch ((x)->degree == 1 && !(x)->c[1] ? BARE : (x)->degree) { \
    case 0: f(__VA_ARGS__, 0); break;                              \
    case 1: f(__VA_ARGS__, 1); break;                              \
    case 2: f(__VA_ARGS__, 2); break;                              \
    case 3: f(__VA_ARGS__, 3); break;                              \
    default: f(__VA_ARGS__, BARE); break;                          \
    }

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

/* What cell (row, column) of a piece is */
typedef struct {
    const float *y, *rate, *c[4];
    int64_t rows[4]; /* numbers of c[n] between two rows of cells */
    int64_t degree;
} cells_of_piece;

INLINE cells_of_piece take_cells(const attention_arguments *p, const aged_cells *from, int64_t n, piece at)
{
    const int64_t width = p->width, first = at.first - p->key_start, head = n % p->heads;
    cells_of_piece x = {.y = from->states + (n * p->keys + first) * width,
                        .rate = from->rate + (head * p->keys + first) * width, .degree = from->degree};
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
                      const int degree)
{
    for (int64_t row = 0; row < at.rows; row++)
        for (int64_t d = 0; d < width; d += LANES) {
            const vf y = load(x->y + row * width + d), rate = load(x->rate + row * width + d);
            vf c[4];
            EACH_COEFFICIENT(i)
                c[i] = load(x->c[i] + row * x->rows[i] + d);
            for (int64_t j = 0; j < nodes; j++) {
                vf z = y * decayed(rate * -ages[j]), image = z;
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
                      const float *ages, int64_t nodes, const int degree)
{
    for (int64_t row = 0; row < at.rows; row++)
        for (int64_t d = 0; d < width; d += LANES) {
            const vf y = load(x->y + row * width + d), rate = load(x->rate + row * width + d);
            vf total = load(to + row * width + d), c[4];
            EACH_COEFFICIENT(i)
                c[i] = load(x->c[i] + row * x->rows[i] + d) * (float)i;
            for (int64_t j = 0; j < nodes; j++) {
                const vf kept = decayed(rate * -ages[j]), z = y * kept;
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
    WITH_DEGREE(&x, images_of, to, &x, at, width, cells->ages + range * cells->nodes, nodes)
    for (int64_t j = 0; j < nodes; j++)
        memset(to + (j * BLOCK + at.rows) * width, 0, (size_t)((BLOCK - at.rows) * width) * sizeof(float));
}

/* Adds the gradient by excursions of gradients by images (nodes, BLOCK, width). */
static inline void pass_images(float *to, const float *grad, const attention_arguments *p, const aged_cells *cells,
                               int64_t n, piece at, int64_t range)
{
    const cells_of_piece x = take_cells(p, cells, n, at);
    WITH_DEGREE(&x, slopes_of, to, grad, &x, at, p->width, cells->ages + range * cells->nodes, cells->counts[range])
}

#endif
