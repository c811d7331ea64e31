// A norm's scale and shift, an activation and the exchange with rows of a map, in one pass over rows. What `kernels/cpu/library.py` calls.

#include "vectors.h"

constexpr int64_t WORTH_SHARING = 32 * 1024;  // values above which threads are woken

template <class Number>
void activate(const Number* rows, int64_t count, int64_t channels, const AfterOf<Number>& after, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (count * channels > WORTH_SHARING)
    for (int64_t row = 0; row < count; row++)
        for (int64_t column = 0; column < channels; column += LANES) {
            const int64_t lanes = channels - column;
            finish(after, load(rows + row * channels + column, lanes), row, column, channels, lanes);
        }
}

extern "C" {

void activate_rows(const float* rows, int64_t count, int64_t channels, const After* after, int64_t threads) {
    activate(rows, count, channels, *after, threads);
}

void activate_rows_bfloat16(const Bfloat16* rows, int64_t count, int64_t channels, const AfterOf<Bfloat16>* after, int64_t threads) {
    activate(rows, count, channels, *after, threads);
}
}
