/* The ceiling of this core for the kernels' instructions, to compare them with. */
#include "vectors.h"
#include "attention.h"

#define CHAINS 12

double fma_operations(int64_t rounds, float *sink)
{
    vf x[CHAINS], a = all(0.999f), b = all(1e-3f);
    for (int i = 0; i < CHAINS; i++)
        x[i] = all((float)i);
    for (int64_t k = 0; k < rounds; k++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            x[i] = x[i] * a + b;
    vf total = {0};
    for (int i = 0; i < CHAINS; i++)
        total += x[i];
    *sink = sum(total);
    return 2.0 * LANES * CHAINS * (double)rounds;
}

int lanes(void)
{
    return LANES;
}
