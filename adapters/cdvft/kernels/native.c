/* A CDVFT's change of a packed batch, token by token: each by its own adapter's vectors, all of it in the first cache.
 *
 * The FFTs are MKL's, which torch's library exports; `cdvft_bind` is told where. Plain C for ctypes: no Python in it.
 * `rows[t]` is the bank row of token t; tables are [rows, ...] and contiguous; every size is in
 * elements. Half-precision numbers are bfloat16, widened, and rounded to nearest even.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shared.h"

const int cdvft_version = 2; /* native.py asks for it: one more whenever a call changes */

/* MKL's DFTI: its functions' types, and the names and values that its manual gives to settings. */
typedef long (*create_function)(void **, int, long);
typedef long (*set_function)(void *, int, ...);
typedef long (*handle_function)(void *);
typedef long (*free_function)(void **);
typedef long (*compute_function)(void *, void *, ...);

enum { LINE = 64 }; /* bytes of a cache line */

enum {
    DFTI_BACKWARD_SCALE = 5,
    DFTI_NUMBER_OF_TRANSFORMS = 7,
    DFTI_CONJUGATE_EVEN_STORAGE = 10,
    DFTI_PLACEMENT = 11,
    DFTI_INPUT_DISTANCE = 14,
    DFTI_OUTPUT_DISTANCE = 15,
    DFTI_THREAD_LIMIT = 27,
    DFTI_REAL = 33,
    DFTI_COMPLEX_COMPLEX = 39,
    DFTI_NOT_INPLACE = 44,
};

static create_function create;
static set_function set;
static handle_function commit;
static free_function release;
static compute_function forward, backward;

void cdvft_bind(create_function a, set_function b, handle_function c, free_function d, compute_function e,
                compute_function f) {
    create = a, set = b, commit = c, release = d, forward = e, backward = f;
}

void cdvft_free(void *plan) { release(&plan); }

/* `count` real transforms of length p side by side, or their inverses, by one thread, for any number of callers at
 * once; NULL where MKL has none. */
void *cdvft_plan(int64_t p, int64_t count, int inverse) {
    void *plan = NULL;
    long bins = (long)(p / 2 + 1), problem;
    if (create(&plan, DFTI_REAL, (long)p)) return NULL;
    problem = set(plan, DFTI_PLACEMENT, DFTI_NOT_INPLACE);
    problem |= set(plan, DFTI_CONJUGATE_EVEN_STORAGE, DFTI_COMPLEX_COMPLEX);
    problem |= set(plan, DFTI_NUMBER_OF_TRANSFORMS, (long)count);
    problem |= set(plan, DFTI_INPUT_DISTANCE, inverse ? bins : (long)p);
    problem |= set(plan, DFTI_OUTPUT_DISTANCE, inverse ? (long)p : bins);
    problem |= set(plan, DFTI_THREAD_LIMIT, 1L);
    if (inverse) problem |= set(plan, DFTI_BACKWARD_SCALE, 1.0 / (double)p);
    if (problem || commit(plan)) {
        release(&plan);
        return NULL;
    }
    return plan;
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

FOR_EACH_CPU static void widen(const uint16_t *restrict x, float *restrict out, int64_t n) {
    for (int64_t k = 0; k < n; k++) out[k] = widened(x[k]);
}

FOR_EACH_CPU static void add(float *restrict y, const float *restrict x, int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] += x[k];
}

FOR_EACH_CPU static void add_half(uint16_t *restrict y, const float *restrict x, int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] = rounded(widened(y[k]) + x[k]);
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

/* One site of one bank: d_in inputs and d_out outputs in q_in and q_out blocks of length p. Diagonals may be NULL: ones. */
typedef struct {
    int64_t d_in, d_out, p, q_in, q_out;
    const float *diag_in, *spectrum, *diag_out; /* [rows, d_in], [rows, q_out, q_in, p/2+1] complex, [rows, d_out] */
    void *forward, *inverse;                    /* plans of q_in and of q_out transforms */
} Site;

/* diag_in[row] * x, padded with zeros to whole blocks. */
static void take(const Site *site, const void *x, int64_t at, int half, int64_t row, float *real) {
    const int64_t d_in = site->d_in;
    const float *by = site->diag_in ? site->diag_in + row * d_in : NULL;
    if (half)
        by ? scale_half((const uint16_t *)x + at, by, real, d_in) : widen((const uint16_t *)x + at, real, d_in);
    else
        by ? scale((const float *)x + at, by, real, d_in)
           : (void)memcpy(real, (const float *)x + at, sizeof(float) * (size_t)d_in);
    memset(real + d_in, 0, sizeof(float) * (size_t)(site->q_in * site->p - d_in));
}

/* y += diag_out[row] * real */
static void give(const Site *site, const float *real, int64_t row, void *y, int64_t at, int half) {
    const int64_t d_out = site->d_out;
    const float *by = site->diag_out ? site->diag_out + row * d_out : NULL;
    if (half)
        by ? add_scaled_half((uint16_t *)y + at, real, by, d_out) : add_half((uint16_t *)y + at, real, d_out);
    else
        by ? add_scaled((float *)y + at, real, by, d_out) : add((float *)y + at, real, d_out);
}

/* y [tokens, d_out] += diag_out[rows] * irfft(sum_j spectrum[rows][i, j] * rfft(diag_in[rows] * x)_j); rows of x and y
 * lie x_stride and y_stride apart. The number of tokens that are not done: MKL refused, or there was no memory. */
int64_t cdvft_add(const Site *site, const void *x, int64_t x_stride, int x_half, void *y, int64_t y_stride, int y_half,
                  const int64_t *rows, int64_t tokens, int threads) {
    const int64_t p = site->p, q_in = site->q_in, q_out = site->q_out;
    const int64_t bins = p / 2 + 1, widest = q_in > q_out ? q_in : q_out;
    const size_t room = (size_t)(widest * p + 2 * (q_in + q_out) * bins);
    int64_t refused = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : refused)
    {
        char *own = malloc(sizeof(float) * room + LINE);
        float *real = (float *)(((uintptr_t)own + LINE - 1) & ~(uintptr_t)(LINE - 1));
        float *in = real + widest * p, *out = in + 2 * q_in * bins;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            const float *spectrum = site->spectrum + 2 * rows[t] * q_out * q_in * bins;
            if (!own) {
                refused++;
                continue;
            }
            take(site, x, t * x_stride, x_half, rows[t], real);
            int failed = forward(site->forward, real, in) != 0;
            for (int64_t i = 0; i < q_out; i++) {
                product(in, spectrum + 2 * i * q_in * bins, out + 2 * i * bins, bins);
                for (int64_t j = 1; j < q_in; j++)
                    add_product(in + 2 * j * bins, spectrum + 2 * (i * q_in + j) * bins, out + 2 * i * bins, bins);
            }
            failed |= backward(site->inverse, out, real) != 0;
            refused += failed;
            if (!failed) give(site, real, rows[t], y, t * y_stride, y_half);
        }
        free(own);
    }
    return refused;
}
