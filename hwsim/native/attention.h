/* Arguments of the native attention kernels; hwsim/native/arguments.py mirrors the structs field by field.
 *
 * What is computed, for each head n, query t (write index) and slot (s mod M), in float32:
 *
 *     S[t,s]  = sum_i wk_i[t-s] <q_t, K_i[s]> + ck[t-s] <q_t, 1> + offset[slot] + sigma[t] z[t,slot]     t-M < s <= t
 *     phi     = clamp(S, 0, 1), and where that is not 0: max(phi + jitter z1[t,slot], 0)
 *     X_j[t]  = sum_{s in sub-tile j} phi (sum_i wv_i[t-s] V_i[s] + cv[t-s]) + sigma_j[t] z2[t,j]
 *     y_j     = clamp(X gain, -1, 1) / step + offset + readout_noise z3[t,j]
 *     code_j  = clamp(round(y + errors[round(clamp(y, -1/step, 1/step))]), -top, top) step
 *     out[t]  = sum_j code_j
 *
 * Queries, keys and values are images of cells in float32, or codes of one byte: <q, K> is then a whole number, exact.
 * On a pulse grid phi wv is rounded to whole numbers, X is their product's sum times `grid`, and all sums are exact.
 *
 * Sub-tile j holds the slots jC .. jC+C-1. The newest tokens of this lap and the oldest of the lap before meet in the
 * sub-tile under the write pointer, before its conversion.
 */
#ifndef GAIN_CELL_ATTENTION_H
#define GAIN_CELL_ATTENTION_H

#include <stdint.h>

#define MOST_IMAGES 12

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Cells that fade at paces of their own: their currents at any age follow from images at the ages of nodes, with
 * weights made for one range of ages each. A range begins `unit` tokens after the one before. */
typedef struct {
    const float *states;         /* (count, keys, width) excursions just after the write */
    const float *rate;           /* (heads, keys, width) loss per token */
    const float *coefficient[4]; /* c_n of the current, (heads, keys, width) or (heads, width); c_1 NULL: z itself */
    const float *ages;           /* (ranges, nodes) */
    const int64_t *counts;       /* (ranges) nodes that a range has, the first ones */
    const float *weights;        /* (ranges, nodes, length) by age, with BESIDE numbers on either side */
    int64_t each[4];             /* whether each token has a coefficient c_n of its own */
    int64_t degree, nodes, length, unit;
    double v_scale;              /* of the self-limited law; 0 is exponential */
} aged_cells;

typedef struct {
    /* Sizes. Tensors are contiguous, float32 unless said; width is a multiple of 16. */
    int64_t count;    /* batch x heads */
    int64_t heads;    /* n mod heads is the head whose circuits are meant */
    int64_t queries;
    int64_t keys;
    int64_t width;    /* dimensions, padded with zeros */
    int64_t dims;     /* dimensions that exist */
    int64_t window;   /* M [tokens] */
    int64_t slots;    /* C, slots of a sub-tile */
    int64_t query_start; /* write index of the first query */
    int64_t key_start;   /* write index of the first key */
    int64_t threads;
    int64_t images_k, images_v;   /* of the forward products; nodes of aged cells */
    int64_t images_dk, images_dv; /* of the gradient's products */
    int64_t codes;                /* of the converter that have an error of their own */
    /* Inputs of both directions */
    const float *query;  /* (count, queries, width) */
    const float *key;    /* (count, images_k, keys, width) */
    const float *value;  /* (count, images_v, keys, width) */
    const float *weight_k; /* (images_k, window) by age */
    const float *weight_v; /* (images_v, window) */
    const float *constant_k; /* (window) current of every cell by age, beside the images, or NULL */
    const float *constant_v;
    const float *score_offset; /* (heads, window) or NULL */
    const float *score_sigma;  /* (count, queries) or NULL */
    const int32_t *score_start; /* (count, queries, tiles) places in the pool, or NULL */
    const float *charge_noise; /* (3): full scale, white^2, flicker^2, or NULL */
    const int32_t *charge_start; /* (count, queries, tiles) or NULL */
    const int32_t *jitter_start;  /* (count, queries, tiles) or NULL */
    const int32_t *readout_start; /* (count, queries, tiles) or NULL */
    const float *pool;
    const float *gain;   /* (heads, tiles, width) or NULL */
    const float *offset; /* (heads, tiles, width) [steps] or NULL */
    const float *errors; /* (heads, tiles, codes, width) [steps], of the codes -(codes / 2) and up, or NULL */
    const uint8_t *query_code; /* in place of query, key and value: shapes as theirs, one image each */
    const int8_t *key_code;
    const int8_t *value_code;
    const aged_cells *aged_k, *aged_v; /* in place of key, value and their weights, or NULL */
    double step;         /* 0: continuous */
    double top;          /* highest code */
    double grid;         /* 0: pulses are continuous */
    double jitter;       /* deviation of a pulse that is not empty */
    double readout_noise; /* [steps] */
    /* Results of the forward direction */
    float *out;          /* (count, queries, width) */
    uint8_t *saturated;  /* (count, queries, tiles, width / 8) one bit where |X gain| >= 1, or NULL */
    /* Backward: cells whose slope the gradient takes; the same as the forward ones unless a surrogate is used */
    const float *grad;   /* (count, queries, width) */
    const float *slope_key, *slope_value;   /* (count, images_dk or images_dv, keys, width) */
    const float *slope_weight_k, *slope_weight_v, *slope_constant_k, *slope_constant_v;
    const aged_cells *aged_dk, *aged_dv;
    float *grad_query;   /* (count, queries, width) */
    float *grad_key;     /* as slope_key; (count, keys, width) by the excursions of aged cells */
    float *grad_value;   /* as slope_value, likewise */
    /* Decode: keys are slots (keys == window) */
    const int64_t *position; /* (count) write index of each query */
} attention_arguments;

/* A converter of `low` + n `step`, n = 0 .. top; tokens lie `strides` numbers apart, their dimensions side by side */
typedef struct {
    int64_t batch, heads, tokens, dims, width;
    int64_t strides[3]; /* of batch, heads, tokens */
    double low, high, step, top;
    const float *in;
    void *out;          /* (batch, heads, tokens, width): n as uint8, or 2 n - top as int8; zero beyond dims */
    int64_t centred;
} converter;

/* Codes of one layer's cells while tokens come one by one; all sequences are written at the same time */
typedef struct {
    int64_t batch, heads, kv_heads, dims, width;
    int64_t window, slots;
    int64_t padded;     /* slots of an array in memory: a multiple of 16, at least the window */
    int64_t position;   /* write index of the token */
    int8_t *keys;       /* (batch kv_heads, padded / 16, width / 4, 16, 4), zero where nothing was written */
    int8_t *values;     /* (batch kv_heads, padded, width), likewise */
    const float *weight_k, *weight_v; /* (2 window + 16) weights of ages window - 1 .. 0, twice, and zeros */
    const float *query;               /* (batch heads, dims) before the converter */
    const float *key, *value;         /* (batch kv_heads, dims) likewise */
    float *out;                       /* (batch heads, dims) */
    double query_step, query_top;     /* converter of the queries on [0, 1] */
    double low, high, step, cell_top; /* converter of the cells */
    double readout_step, top, grid;   /* as above */
} ring;

/* Ternary weights of one matrix on arrays of `rows` inputs, which take 8-bit codes in `cycles` digits */
typedef struct {
    int64_t tokens, inputs, outputs;
    int64_t rows, tiles;   /* inputs of an array; arrays */
    int64_t groups;        /* of inputs of an array, the last one filled up with zeros: fours, else twos */
    int64_t cycles;
    int64_t threads;
    const int8_t *x;         /* (tokens, inputs) */
    const int8_t *codes;     /* bit by bit (outputs / 32, tiles, fours, 4, 32): -1, 0, 1 */
                             /* else (outputs / 32, tiles, twos, 32, 2): 0, 1, 2, one more than the code; or NULL */
    const int8_t *errors;    /* bit by bit, like codes, so small that 16 bits hold their sum over an array; or NULL */
    const int16_t *whole;    /* in place of both, weights (bit by bit so small that 16 bits hold the sum of 64 inputs) */
    const float *pool;
    const int64_t *places;   /* (tiles, cycles, tokens) where in the pool the noise of the outputs begins, or NULL */
    float *out;              /* (tokens, outputs) sum of shifted codes */
    double units;            /* a weight is units code + error */
    double inverse, noise, top; /* 1 / step, deviation [steps], highest code; 0, not bit by bit: no converter */
} linear_arrays;

EXPORT int bit_serial_product(const linear_arrays *);
EXPORT int digit_product(const linear_arrays *);
EXPORT int ring_step(const ring *);
EXPORT int attention_forward(const attention_arguments *);
EXPORT int attention_backward(const attention_arguments *);
EXPORT int attention_decode(const attention_arguments *);
EXPORT int convert_codes(const converter *);
/* Returns floating point operations of `rounds` rounds of independent fused multiply-adds, the ceiling of this core. */
EXPORT double fma_operations(int64_t rounds, float *sink);
EXPORT int lanes(void);

#endif
