/* What stands around the FFTs of a CDVFT in a packed batch: each token multiplied by its own adapter's vectors.
 *
 * Gathering the vectors first would write and read them once more than needed; here they are read where they lie.
 * Plain C for ctypes: no Python in it, no state. `rows[t]` is the bank row of token t; tables are [rows, ...] and
 * contiguous; every size is in elements. Half-precision inputs are bfloat16, widened and rounded to nearest even.
 */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU __attribute__((noinline))
#endif

static inline float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

FOR_EACH_CPU static void scale(const float *restrict x, const float *restrict by, float *restrict out, int64_t n) {
    for (int64_t k = 0; k < n; k++) out[k] = x[k] * by[k];
}

FOR_EACH_CPU static void scale_half(const uint16_t *restrict x, const float *restrict by, float *restrict out,
                                    int64_t n) {
    for (int64_t k = 0; k < n; k++) out[k] = widened(x[k]) * by[k];
}

FOR_EACH_CPU static void add_scaled(float *restrict y, const float *restrict x, const float *restrict by, int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] += x[k] * by[k];
}

FOR_EACH_CPU static void add_scaled_half(uint16_t *restrict y, const float *restrict x, const float *restrict by,
                                         int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] = rounded(widened(y[k]) + x[k] * by[k]);
}

/* Complex numbers as pairs: y = x * by, or y += x * by. */
FOR_EACH_CPU static void product(const float *restrict x, const float *restrict by, float *restrict y, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        float re = x[2 * k] * by[2 * k] - x[2 * k + 1] * by[2 * k + 1];
        float im = x[2 * k] * by[2 * k + 1] + x[2 * k + 1] * by[2 * k];
        y[2 * k] = re;
        y[2 * k + 1] = im;
    }
}

FOR_EACH_CPU static void add_product(const float *restrict x, const float *restrict by, float *restrict y, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        float re = x[2 * k] * by[2 * k] - x[2 * k + 1] * by[2 * k + 1];
        float im = x[2 * k] * by[2 * k + 1] + x[2 * k + 1] * by[2 * k];
        y[2 * k] += re;
        y[2 * k + 1] += im;
    }
}

/* out [tokens, width] = diag[rows] * x [tokens, d] (stride between tokens), zeros beyond d */
void cdvft_scale(const void *x, int64_t stride, int half, const float *diag, const int64_t *rows, float *out,
                 int64_t tokens, int64_t d, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const float *by = diag + rows[t] * d;
        if (half)
            scale_half((const uint16_t *)x + t * stride, by, out + t * width, d);
        else
            scale((const float *)x + t * stride, by, out + t * width, d);
        if (width > d) memset(out + t * width + d, 0, sizeof(float) * (size_t)(width - d));
    }
}

/* y [tokens, q_out, bins] = sum_j spectrum[rows][i, j] * x [tokens, q_in, bins], complex */
void cdvft_multiply(const float *x, const float *spectrum, const int64_t *rows, float *y, int64_t tokens, int64_t q_out,
                    int64_t q_in, int64_t bins, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const float *own = spectrum + 2 * rows[t] * q_out * q_in * bins;
        for (int64_t i = 0; i < q_out; i++) {
            float *to = y + 2 * (t * q_out + i) * bins;
            for (int64_t j = 0; j < q_in; j++) {
                const float *from = x + 2 * (t * q_in + j) * bins, *by = own + 2 * (i * q_in + j) * bins;
                if (j == 0)
                    product(from, by, to, bins);
                else
                    add_product(from, by, to, bins);
            }
        }
    }
}

/* y [tokens, d] (stride between tokens) += diag[rows] * x [tokens, width] */
void cdvft_add(void *y, int64_t stride, int half, const float *x, int64_t width, const float *diag, const int64_t *rows,
               int64_t tokens, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const float *by = diag + rows[t] * d;
        if (half)
            add_scaled_half((uint16_t *)y + t * stride, x + t * width, by, d);
        else
            add_scaled((float *)y + t * stride, x + t * width, by, d);
    }
}
