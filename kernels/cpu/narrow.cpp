// Whole maps' convolutions to few outputs, such as a U-Net's last: each line's products with all taps are made once, then shifted and
// added.

#include <algorithm>
#include <vector>

#include "product.h"

using namespace sige;

namespace {

constexpr int64_t FOUR = 4;  // outputs that are summed at a time

// A whole map's convolution to few outputs.
struct Narrow {
    const float* image;  // (height, width, channels)
    int64_t height, width, channels, high, wide;
    const float* panels;  // of all taps' outputs side by side: lane tap * outputs + output
    int64_t outputs, lanes;  // lanes: high * wide * outputs, filled up to whole vectors as the panels are
    const float* bias;  // (outputs,) or null
    bool through;       // whether the image goes through `before` first: a norm's map and an activation
    After before;
    float* out;         // (height, width, outputs)
};

// What one thread keeps of a narrow convolution.
struct Lines {
    std::vector<float> ready;     // HIGH pixels of the image, as they come to the product
    std::vector<float> products;  // of all taps with HIGH pixels and the wide - 1 before them, (., lanes)
    std::vector<float> sums;      // (high, high, width * outputs + FOUR): of the latest lines, for each line of taps, over its taps

    explicit Lines(const Narrow& narrow)
        : ready(HIGH * narrow.channels),
          products((HIGH + narrow.wide - 1) * narrow.lanes + FOUR),
          sums(narrow.high * narrow.high * (narrow.width * narrow.outputs + FOUR)) {}

    float* of(const Narrow& narrow, int64_t y, int64_t dy) {
        return sums.data() + (y % narrow.high * narrow.high + dy) * (narrow.width * narrow.outputs + FOUR);
    }
};

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// The products with a line's pixels [row, row + rows), behind those of the pixels before. What comes next is fetched meanwhile.
void products(const Narrow& narrow, const float* line, int64_t row, int64_t rows, Lines& lines) {
    const int64_t lanes = narrow.lanes, channels = narrow.channels;
    const float *pixels = line + row * channels, *next = pixels + 2 * HIGH * channels;
    if (narrow.through) {
        After before = narrow.before;
        before.second = lines.ready.data();
        for (int64_t r = 0; r < rows; r++)
            for (int64_t column = 0; column < channels; column += LANES)
                finish(before, load(pixels + r * channels + column, channels - column), r, column, channels, channels - column);
        pixels = lines.ready.data();
    }
    float* out = lines.products.data() + (narrow.wide - 1) * lanes;
    const Task task{pixels, nullptr, rows, 1, channels, narrow.panels, lanes, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, out, After{}, out};
    for (int64_t first = 0; first < lanes; first += WIDE) {
        const Panel panel{narrow.panels + first * channels, first, lanes - first < WIDE ? lanes - first : WIDE};
        block(task, panel, Ahead{next, first ? 0 : HIGH * BURST}, rows, 0, 0, 1);
    }
}

// The sums over each line of taps for the pixels that the line `y` of the map takes part in.
void line_sums(const Narrow& narrow, int64_t y, Lines& lines) {
    const int64_t lanes = narrow.lanes, outputs = narrow.outputs, kept = (narrow.wide - 1) * lanes, right = narrow.wide / 2;
    const float* line = narrow.image + y * narrow.width * narrow.channels;
    float* block = lines.products.data();
    std::fill(block, block + kept, 0.0f);  // to the left of the map there is nothing, nor to the right
    for (int64_t row = 0; row < narrow.width + right; row += HIGH) {
        const int64_t until = row + HIGH < narrow.width + right ? row + HIGH : narrow.width + right;
        const int64_t rows = (until < narrow.width ? until : narrow.width) - row;
        if (rows > 0) products(narrow, line, row, rows, lines);
        const int64_t made = rows > 0 ? rows : 0;
        std::fill(block + kept + made * lanes, block + kept + (until - row) * lanes, 0.0f);
        for (int64_t dy = 0; dy < narrow.high; dy++) {
            float* sums = lines.of(narrow, y, dy);
            for (int64_t x = row > right ? row - right : 0; x < until - right; x++) {
                const float* from = block + (x + right - row) * lanes + dy * narrow.wide * outputs;
                for (int64_t o = 0; o < outputs; o += FOUR) {  // lanes that are too many are written over by the next pixel
                    Four sum = *reinterpret_cast<const Four*>(from + o);
                    for (int64_t dx = 1; dx < narrow.wide; dx++) sum += *reinterpret_cast<const Four*>(from + dx * (lanes + outputs) + o);
                    *reinterpret_cast<Four*>(sums + x * outputs + o) = sum;
                }
            }
        }
        std::memmove(block, block + (until - row) * lanes, kept * sizeof(float));
    }
}

// The lines [first, last) of a narrow convolution.
void band(const Narrow& narrow, int64_t first, int64_t last, Lines& lines) {
    const int64_t above = (narrow.high - 1) / 2, floats = narrow.width * narrow.outputs;
    int64_t ready = first > above ? first - above : 0;
    for (int64_t y = first; y < last; y++) {
        const int64_t needed = y - above + narrow.high < narrow.height ? y - above + narrow.high : narrow.height;
        for (; ready < needed; ready++) line_sums(narrow, ready, lines);
        float* out = narrow.out + y * floats;
        for (int64_t i = 0; i < floats; i++) out[i] = narrow.bias ? narrow.bias[i % narrow.outputs] : 0;
        for (int64_t dy = 0; dy < narrow.high; dy++) {
            const int64_t from = y + dy - above;
            if (from < 0 || from >= narrow.height) continue;
            const float* sums = lines.of(narrow, from, dy);
            for (int64_t i = 0; i < floats; i++) out[i] += sums[i];
        }
    }
}

}  // namespace

extern "C" {

// Convolution of whole maps (batch, height, width, channels), stride and dilation 1, as many lines and columns out as in; of maps that
// went through `scale` and `shift` (batch, channels), or null, and an activation.
void conv_narrow(const float* image, int64_t batch, int64_t height, int64_t width, int64_t channels, const float* panels, int64_t high,
                 int64_t wide, int64_t outputs, const float* bias, const float* scale, const float* shift, int64_t activation, float slope,
                 float* out, int64_t threads) {
    const int64_t bands = height < 4 * threads ? height : 4 * threads;
    const int64_t used = high * wide * outputs, rest = used % WIDE, lanes = used - rest + (rest > LANES ? WIDE : rest ? LANES : 0);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < batch * bands; item++) {
        const int64_t sample = item / bands, part = item % bands, pixels = sample * height * width;
        const float *factors = scale ? scale + sample * channels : nullptr, *terms = scale ? shift + sample * channels : nullptr;
        const After before{factors, terms, nullptr, activation, slope, nullptr, nullptr, nullptr};
        const Narrow narrow{image + pixels * channels, height, width, channels, high, wide, panels, outputs, lanes, bias,
                            scale || activation, before, out + pixels * outputs};
        Lines lines(narrow);
        band(narrow, height * part / bands, height * (part + 1) / bands, lines);
    }
}
}
