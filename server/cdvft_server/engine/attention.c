/* Attention of packed segments on the CPU: many short ones, or one query over long keys, in one call for all of them.
 *
 * A task is one piece and one key head. Up to ROWS of its queries walk over the keys in blocks of KEYS: scores, a running
 * maximum and sum for each query, weights times values (Milakov and Gimelshein 2018, "Online normalizer calculation for
 * softmax"), all of it in the second cache. Many queries lie side by side in vectors, so that nothing is summed across a
 * vector; few ones (a decode step's) take a dot product for each key. Vectors are GCC's; the compiler cuts them for the
 * processor. Plain C for ctypes; every size is in elements. Half-precision numbers are bfloat16, widened, and rounded to
 * nearest even; sums are in float.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shared.h"

#if !defined(__GNUC__)
#error "vectors of GCC or Clang are needed"
#endif

#define INLINE static inline __attribute__((always_inline)) /* into each of a function's clones */

const int cdvft_version = 1; /* native.py asks for it: one more whenever a call changes */

enum {
    LANES = 16,
    WIDE = 2 * LANES, /* columns of a product */
    ROWS = 64,        /* queries that go together */
    FEW = 4,          /* up to so many: a dot product for each key */
    KEYS = 64,        /* of a block */
    LINE = 64,        /* bytes of a cache line */
};

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A tensor [heads, tokens, d] whose last axis is contiguous; half: bfloat16. */
typedef struct {
    void *data;
    int64_t head, token; /* strides */
} Tensor;

/* Queries [start, stop) (with the query heads that share a key head inside) see keys [kv_start, kv_stop); causal: the
 * last of them sees all, each token before it one less. */
typedef struct {
    int64_t start, stop, kv_start, kv_stop, causal;
} Piece;

typedef struct {
    Tensor query, key, value, out;
    int64_t heads, groups, d;
    float scale;
    int half;
} Call;

static inline const char *at(const Call *call, const Tensor *tensor, int64_t head, int64_t token) {
    return (const char *)tensor->data + (head * tensor->head + token * tensor->token) * (call->half ? 2 : 4);
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE floats greater(floats a, floats b) {
    const ints take = a > b;
    return (floats)(((ints)a & take) | ((ints)b & ~take));
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PICKED __builtin_shufflevector
#endif
#endif

/* The sums of four vectors' lanes, to to[0] to to[3]. */
INLINE void sum_four(const floats *v, float *to) {
#if defined(PICKED)
    floats half[2], sum;
    for (int k = 0; k < 2; k++) { /* eight sums of each of two */
        const floats a = v[2 * k], b = v[2 * k + 1];
        half[k] = PICKED(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                  PICKED(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    sum = PICKED(half[0], half[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
          PICKED(half[0], half[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    sum += PICKED(sum, sum, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    sum += PICKED(sum, sum, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (int k = 0; k < 4; k++) to[k] = sum[4 * k];
#else
    for (int k = 0; k < 4; k++) {
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += v[k][lane];
        to[k] = sum;
    }
#endif
}

/* exp(x) for x <= 0, to about two units in the last place; 0 below -87, NaN for NaN. 2^n e^f with n whole and
 * |f| <= ln(2) / 2, where the next term of e^f's Taylor series is below 2^-27. */
INLINE floats exponential(floats x) {
    const floats n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to whole numbers */
    const floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;           /* x - n ln 2, ln 2 in two parts */
    floats y = f * (1.0f / 5040) + (1.0f / 720);
    y = y * f + (1.0f / 120);
    y = y * f + (1.0f / 24);
    y = y * f + (1.0f / 6);
    y = y * f + 0.5f;
    y = y * f + 1.0f;
    y = y * f + 1.0f;
    return (floats)(((ints)y + (__builtin_convertvector(n, ints) << 23)) & ~(x <= -87.0f));
}

/* c [rows, vectors * LANES] += a b: element (r, k) of a at a[r][k * step], rows of b and c ldb and ldc apart. */
INLINE void multiply(const int rows, const int vectors, const float *const *a, int64_t step, const float *b,
                     int64_t ldb, float *c, int64_t ldc, int64_t n) {
    floats sum[8][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = *(const floats *)(c + r * ldc + v * LANES);
    for (int64_t k = 0; k < n; k++)
        for (int v = 0; v < vectors; v++) {
            const floats own = *(const floats *)(b + k * ldb + v * LANES);
            for (int r = 0; r < rows; r++) sum[r][v] += a[r][k * step] * own;
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) *(floats *)(c + r * ldc + v * LANES) = sum[r][v];
}

/* What a task computes in; `wide` is d in whole multiples of WIDE. */
typedef struct {
    float *query;   /* [d, ROWS] times the scale; of few queries [FEW, wide] */
    float *keys;    /* [KEYS, wide]: a block in float, where it does not lie so */
    float *values;  /* the same */
    float *weights; /* [KEYS, ROWS]; of few queries [FEW, KEYS] */
    float *out;     /* [ROWS, wide] */
    float *most;    /* [ROWS]: the greatest score so far */
    float *sums;    /* [ROWS]: of weights, as of `most` */
    float *faded;   /* [ROWS]: what a block made of the weights before it */
} Work;

static int64_t room(int64_t d) { return (2 * ROWS + 2 * KEYS) * up(d, WIDE) + ROWS * KEYS + 3 * ROWS; }

static Work work_in(float *memory, int64_t d) {
    const int64_t wide = up(d, WIDE);
    Work work;
    work.query = memory;
    work.keys = work.query + ROWS * wide;
    work.values = work.keys + KEYS * wide;
    work.out = work.values + KEYS * wide;
    work.weights = work.out + ROWS * wide;
    work.most = work.weights + KEYS * ROWS;
    work.sums = work.most + ROWS;
    work.faded = work.sums + ROWS;
    return work;
}

INLINE void read_row(const Call *call, const char *from, float *to) {
    if (call->half)
        for (int64_t c = 0; c < call->d; c++) to[c] = widened(((const uint16_t *)from)[c]);
    else
        memcpy(to, from, sizeof(float) * (size_t)call->d);
}

/* A block of keys or values in float, rows `*stride` apart: as they lie, or a copy, with zeros up to `wide`. */
INLINE const float *block_of(const Call *call, const Tensor *tensor, int64_t head, int64_t first, int64_t count,
                             int64_t width, float *copy, int64_t *stride) {
    const int64_t wide = up(call->d, WIDE);
    if (!call->half && call->d == width) {
        *stride = tensor->token;
        return (const float *)at(call, tensor, head, first);
    }
    for (int64_t j = 0; j < count; j++) {
        read_row(call, at(call, tensor, head, first + j), copy + j * wide);
        memset(copy + j * wide + call->d, 0, sizeof(float) * (size_t)(wide - call->d));
    }
    *stride = wide;
    return copy;
}

/* out [rows, d] += weights values; weight (r, j) at weights[r * row + j * step]. */
INLINE void gather(const Work *work, int64_t rows, int64_t row, int64_t step, const float *values, int64_t stride,
                   int64_t count, int64_t wide) {
    for (int64_t c = 0; c < wide; c += WIDE) {
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) {
            const float *from = work->weights + r * row, *a[4] = {from, from + row, from + 2 * row, from + 3 * row};
            multiply(4, 2, a, step, values + c, stride, work->out + r * wide + c, wide, count);
        }
        for (; r < rows; r++) {
            const float *a[1] = {work->weights + r * row};
            multiply(1, 2, a, step, values + c, stride, work->out + r * wide + c, wide, count);
        }
    }
}

/* One block for many rows, `across` with those that fill vectors up. Row r sees its first seen[r] keys; `masks`: not all
 * rows see all of the block. */
FOR_EACH_CPU static void block_of_many(const Call *call, const Work *work, int64_t rows, int64_t head, int64_t first,
                                       int64_t count, const int32_t *seen, int masks) {
    const int64_t d = call->d, wide = up(d, WIDE), across = up(rows, LANES);
    int64_t stride;
    const float *keys = block_of(call, &call->key, head, first, count, d, work->keys, &stride);
    memset(work->weights, 0, sizeof(float) * (size_t)(count * ROWS));
    for (int64_t r = 0; r < across;) {
        const int two = across - r >= WIDE;
        for (int64_t j = 0; j < count;) {
            const float *a[8];
            float *to = work->weights + j * ROWS + r;
            for (int k = 0; k < 8; k++) a[k] = keys + least(j + k, count - 1) * stride;
            if (count - j < 4) {
                multiply(1, 2, a, 1, work->query + r, ROWS, to, ROWS, d);
                j += 1;
            } else if (two || count - j < 8) {
                multiply(4, 2, a, 1, work->query + r, ROWS, to, ROWS, d);
                j += 4;
            } else {
                multiply(8, 1, a, 1, work->query + r, ROWS, to, ROWS, d);
                j += 8;
            }
        }
        r += two ? WIDE : LANES;
    }
    for (int64_t r = 0; r < across; r += LANES) {
        float *own = work->weights + r;
        if (masks)
            for (int64_t j = 0; j < count; j++) {
                const ints see = *(const ints *)(seen + r) > (int32_t)j;
                const floats score = *(floats *)(own + j * ROWS), none = score * 0 - __builtin_inff();
                *(floats *)(own + j * ROWS) = (floats)(((ints)score & see) | ((ints)none & ~see));
            }
        const floats before = *(const floats *)(work->most + r);
        floats most = before, sum = {0};
        for (int64_t j = 0; j < count; j++) most = greater(*(const floats *)(own + j * ROWS), most);
        for (int64_t j = 0; j < count; j++) {
            const floats weight = exponential(*(const floats *)(own + j * ROWS) - most);
            *(floats *)(own + j * ROWS) = weight;
            sum += weight;
        }
        const floats faded = exponential(before - most);
        *(floats *)(work->most + r) = most;
        *(floats *)(work->sums + r) = *(const floats *)(work->sums + r) * faded + sum;
        *(floats *)(work->faded + r) = faded;
    }
    for (int64_t r = 0; r < rows; r++)
        if (work->faded[r] != 1.0f)
            for (int64_t c = 0; c < wide; c++) work->out[r * wide + c] *= work->faded[r];
    const float *values = block_of(call, &call->value, head, first, count, wide, work->values, &stride);
    gather(work, rows, 1, ROWS, values, stride, count, wide);
}

/* One block for up to FEW rows. */
FOR_EACH_CPU static void block_of_few(const Call *call, const Work *work, int64_t rows, int64_t head, int64_t first,
                                      int64_t count, const int32_t *seen) {
    const int64_t d = call->d, wide = up(d, WIDE), whole = d / LANES * LANES, padded = up(count, LANES);
    int64_t stride;
    const float *keys = block_of(call, &call->key, head, first, count, d, work->keys, &stride);
    for (int64_t j = 0; j < count; j += 4)
        for (int64_t r = 0; r < rows; r++) {
            const float *query = work->query + r * wide, *key[4];
            floats sum[4] = {{0}};
            for (int k = 0; k < 4; k++) key[k] = keys + least(j + k, count - 1) * stride;
            for (int64_t c = 0; c < whole; c += LANES)
                for (int k = 0; k < 4; k++) sum[k] += *(const floats *)(query + c) * *(const floats *)(key[k] + c);
            for (int64_t c = whole; c < d; c++)
                for (int k = 0; k < 4; k++) sum[k][0] += query[c] * key[k][c];
            sum_four(sum, work->weights + r * KEYS + j);
        }
    for (int64_t r = 0; r < rows; r++) {
        float *own = work->weights + r * KEYS, most = work->most[r];
        for (int64_t j = seen[r] > 0 ? seen[r] : 0; j < padded; j++) own[j] = -__builtin_inff();
        floats sums = {0}, greatest = *(const floats *)own;
        for (int64_t j = LANES; j < padded; j += LANES) greatest = greater(*(const floats *)(own + j), greatest);
        for (int k = 0; k < LANES; k++) most = greatest[k] > most ? greatest[k] : most;
        for (int64_t j = 0; j < padded; j += LANES) {
            const floats weight = exponential(*(const floats *)(own + j) - most);
            *(floats *)(own + j) = weight;
            sums += weight;
        }
        const floats before = {work->most[r] - most};
        const float faded = exponential(before)[0];
        work->sums[r] *= faded;
        for (int k = 0; k < LANES; k++) work->sums[r] += sums[k];
        work->most[r] = most;
        if (faded != 1.0f)
            for (int64_t c = 0; c < wide; c++) work->out[r * wide + c] *= faded;
    }
    const float *values = block_of(call, &call->value, head, first, count, wide, work->values, &stride);
    gather(work, rows, KEYS, 1, values, stride, count, wide);
}

/* Queries `begin` and so on of a piece, `groups` of them for each of its tokens. */
FOR_EACH_CPU static void attend(const Call *call, const Piece *piece, int64_t head, int64_t begin, int64_t rows,
                                const Work *work) {
    const int64_t d = call->d, wide = up(d, WIDE), groups = call->groups, first = piece->start * groups + begin;
    const int64_t hidden = piece->causal ? piece->stop - piece->start - 1 : 0, keys = piece->kv_stop - piece->kv_start;
    const int few = rows <= FEW;
    int32_t sees[ROWS], seen[ROWS]; /* keys from the first one, and from a block's first one */
    if (!few) memset(work->query, 0, sizeof(float) * (size_t)(d * ROWS));
    for (int64_t r = 0; r < ROWS; r++) {
        sees[r] = (int32_t)(keys - hidden + (piece->causal ? (begin + least(r, rows - 1)) / groups : 0));
        work->most[r] = -__builtin_inff();
        work->sums[r] = 0;
    }
    for (int64_t r = 0; r < rows; r++) {
        float *row = few ? work->query + r * wide : work->values;
        read_row(call, at(call, &call->query, head, first + r), row);
        for (int64_t c = 0; c < d; c++) (few ? row + c : work->query + c * ROWS + r)[0] = row[c] * call->scale;
    }
    memset(work->out, 0, sizeof(float) * (size_t)(rows * wide));
    for (int64_t j = 0; j < sees[rows - 1]; j += KEYS) {
        const int64_t count = least(KEYS, sees[rows - 1] - j);
        for (int64_t r = 0; r < ROWS; r++) seen[r] = (int32_t)least(sees[r] - j, count);
        if (few)
            block_of_few(call, work, rows, head, piece->kv_start + j, count, seen);
        else
            block_of_many(call, work, rows, head, piece->kv_start + j, count, seen, seen[0] < count);
    }
    for (int64_t r = 0; r < rows; r++) {
        const float over = 1.0f / work->sums[r], *own = work->out + r * wide;
        char *to = (char *)(uintptr_t)at(call, &call->out, head, first + r);
        if (call->half)
            for (int64_t c = 0; c < d; c++) ((uint16_t *)to)[c] = rounded(own[c] * over);
        else
            for (int64_t c = 0; c < d; c++) ((float *)to)[c] = own[c] * over;
    }
}

/* All pieces, each for all `heads` key heads. 0, or 1 where there is no memory: then some rows are not written. */
int cdvft_attend(const Call *call, const Piece *pieces, int64_t count, int threads) {
    int missing = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : missing)
    {
        char *own = malloc(sizeof(float) * (size_t)room(call->d) + LINE);
        const Work work = work_in((float *)(((uintptr_t)own + LINE - 1) & ~(uintptr_t)(LINE - 1)), call->d);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < count * call->heads; task++) {
            const Piece *piece = pieces + task / call->heads;
            const int64_t rows = (piece->stop - piece->start) * call->groups;
            missing |= own == NULL;
            for (int64_t r = 0; own && r < rows; r += ROWS)
                attend(call, piece, task % call->heads, r, least(ROWS, rows - r), &work);
        }
        free(own);
    }
    return missing;
}
