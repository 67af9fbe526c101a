/* Converters: the codes of queries, keys and values. */
#include "codes.h"

int convert_codes(const converter *p)
{
    uint8_t *out = p->out;
    int none = 0;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->heads; h++)
            for (int64_t t = 0; t < p->tokens; t++, out += p->width) {
                const float *in = p->in + b * p->strides[0] + h * p->strides[1] + t * p->strides[2];
                none |= convert_row(out, in, p->dims, p->width, p->low, p->high, p->step, p->top, (int)p->centred);
            }
    return none;
}
