/* How a product is shared out: chunks of tokens among threads, blocks of outputs, arrays one after another.
 *
 * Included behind what it calls: a `workplace` of one thread with its `memory` and `total` (TOKENS, OUTPUTS), and
 * make_workplace, cut_inputs and read_tile of that kernel.
 */
static int read_all(const linear_arrays *p)
{
    int failed = 0;
    /* Few tokens are shared out in smaller chunks */
    int64_t chunk = (p->tokens + p->threads - 1) / p->threads, blocks = (p->outputs + OUTPUTS - 1) / OUTPUTS;
    chunk = chunk > TOKENS ? TOKENS : chunk < 1 ? 1 : chunk;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1) reduction(| : failed)
#endif
    {
        workplace w;
        failed |= !make_workplace(&w, p, chunk);
        int ready = w.memory != NULL;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t first = 0; first < p->tokens; first += chunk) {
            if (!ready)
                continue;
            int tokens = (int)(p->tokens - first < chunk ? p->tokens - first : chunk);
            cut_inputs(p, &w, first, tokens);
            for (int64_t block = 0; block < blocks; block++) {
                int64_t left = p->outputs - block * OUTPUTS, width = left < OUTPUTS ? left : OUTPUTS;
                memset(w.total, 0, TOKENS * OUTPUTS * sizeof(float));
                for (int64_t tile = 0; tile < p->tiles; tile++)
                    read_tile(p, &w, tile, block, first, tokens);
                for (int t = 0; t < tokens; t++)
                    memcpy(p->out + (first + t) * p->outputs + block * OUTPUTS, w.total[t],
                           (size_t)width * sizeof(float));
            }
        }
        free(w.memory);
    }
    return failed;
}
