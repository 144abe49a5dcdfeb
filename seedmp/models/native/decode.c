/* What a decoder layer does between its products, for a few rows of several branches over one KV arena.
 *
 * Letters: T rows, H heads, J KV heads, D head size (a multiple of 16), S slots. Numbers are float32, or bfloat16 where
 * `is_bf16`; sums are float32. The arena of a layer is [S, J, D] for keys and for values, as seedmp/ipc/arena.py says.
 *
 * A row sees the slots of its tiles and those of its tail. A tile is slots that several rows see: each of their keys
 * and values is read once for all of these rows. Softmax is taken online over blocks of slots, so no matrix of scores
 * exists (Milakov and Gimelshein 2018; Dao et al. 2022).
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define BLOCK 64     /* slots whose scores are kept at once */
#define ROWS 4       /* rows that share a loaded key */
#define MAX_DIM 256

/* Inlined for each constant `is_bf16`, so that loops have no branch. */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0; /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16); /* to nearest, ties to even */
}

INLINE vec load(const void *from, int64_t at, int is_bf16) {
    if (!is_bf16) return *(const vec *)((const float *)from + at);
    const uint16_t *halves = (const uint16_t *)from + at;
#ifdef __AVX512F__
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)halves));
    return (vec)_mm512_slli_epi32(wide, 16);
#else
    return (vec)(__builtin_convertvector(*(const hvec *)halves, uvec) << 16);
#endif
}

INLINE void store(float *to, vec value) { *(vec *)to = value; }

INLINE float get(const void *from, int64_t at, int is_bf16) {
    return is_bf16 ? from_bf16(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

INLINE void put(void *to, int64_t at, float value, int is_bf16) {
    if (is_bf16) ((uint16_t *)to)[at] = to_bf16(value);
    else ((float *)to)[at] = value;
}

INLINE float sum_of(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

/* exp of each lane, none above 0; below -87 it is 0. Cephes' polynomial, relative error 2e-7. */
INLINE vec exp_of(vec x) {
    ivec is_low = x < -87.f;
    vec scaled = x * 1.44269504088896341f;
    ivec power = __builtin_convertvector(scaled - 0.5f, ivec); /* the nearest whole number, as x <= 0 */
    vec whole = __builtin_convertvector(power, vec);
    vec rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec poly = 1.9875691500E-4f * rest + 1.3981999507E-3f;
    poly = poly * rest + 8.3334519073E-3f;
    poly = poly * rest + 4.1665795894E-2f;
    poly = poly * rest + 1.6666665459E-1f;
    poly = poly * rest + 5.0000001201E-1f;
    poly = poly * rest * rest + rest + 1.f;
    vec result = (vec)((ivec)poly + (power << 23));
    ivec is_nan = x != x;
    result = (vec)((ivec)result & ~is_low);
    return (vec)(((ivec)x & is_nan) | ((ivec)result & ~is_nan));
}

INLINE void norm_row(const void *x, const float *weight, void *out, int64_t at, int64_t size, float epsilon,
                     int is_bf16) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += get(x, at + i, is_bf16) * get(x, at + i, is_bf16);
    float scale = 1.f / sqrtf(squares / (float)size + epsilon);
    for (int64_t i = 0; i < size; i++) put(out, at + i, get(x, at + i, is_bf16) * scale * weight[i], is_bf16);
}

/* out[t] = x[t] / rms(x[t]) * weight, for T rows of `size` numbers. */
void seedmp_rms_norm(const void *x, const float *weight, void *out, int64_t num_rows, int64_t size, float epsilon,
                     int is_bf16) {
    for (int64_t t = 0; t < num_rows; t++) {
        if (is_bf16) norm_row(x, weight, out, t * size, size, epsilon, 1);
        else norm_row(x, weight, out, t * size, size, epsilon, 0);
    }
}

typedef struct {
    int64_t num_rows, num_heads, num_kv_heads, dim;
    int64_t is_bf16;
    float scale;           /* of scores */
    float epsilon;         /* of head norms */
    const float *q_norm;   /* [D], or null */
    const float *k_norm;   /* [D], or null */
} Shape;

typedef struct {
    int64_t num_groups;          /* rows of different groups share no tile */
    const int32_t *group_tiles;  /* [groups + 1] first tile of each group */
    const int32_t *tile_slots;   /* [tiles + 1] first entry in `slots` */
    const int32_t *tile_rows;    /* [tiles + 1] first entry in `rows` */
    const int32_t *slots;        /* that tiles consist of */
    const int32_t *rows;         /* that see them */
    const int32_t *group_rows;   /* [groups + 1] first entry in `members` */
    const int32_t *members;      /* [T] rows of each group */
    const int32_t *row_tails;    /* [T + 1] first entry in `tails` */
    const int32_t *tails;        /* slots that a row sees besides its tiles */
    const int64_t *own_slots;    /* [T] where K and V of a row go */
    const float *cosine;         /* [T, D / 2] */
    const float *sine;           /* [T, D / 2] */
} Plan;

typedef struct {
    float *query;   /* [T, H, D] rotated and scaled */
    float *sums;    /* [T, H, D] of values so far, weighted */
    float *maxima;  /* [T, H] of scores so far */
    float *weights; /* [T, H] sums of weights so far */
} Work;

INLINE void turn(const void *from, int64_t at, const float *cosine, const float *sine, const float *norm, float factor,
                 const Shape *s, float *to, int is_bf16) {
    int64_t half = s->dim / 2;
    float values[MAX_DIM];
    for (int64_t i = 0; i < s->dim; i++) values[i] = get(from, at + i, is_bf16);
    if (norm) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < s->dim; i++) squares += values[i] * values[i];
        float scale = 1.f / sqrtf(squares / (float)s->dim + s->epsilon);
        for (int64_t i = 0; i < s->dim; i++) values[i] *= scale * norm[i];
    }
    for (int64_t i = 0; i < half; i++) {
        to[i] = (values[i] * cosine[i] - values[half + i] * sine[i]) * factor;
        to[half + i] = (values[half + i] * cosine[i] + values[i] * sine[i]) * factor;
    }
}

/* Rotate a row's queries and keys, and write its K and V into the arena. */
INLINE void enter_row(int64_t t, const void *qkv, const Shape *s, const Plan *p, const Work *w, void *keys,
                      void *values, int is_bf16) {
    int64_t dim = s->dim, heads = s->num_heads, kv = s->num_kv_heads, size = is_bf16 ? 2 : 4;
    int64_t at = t * (heads + 2 * kv) * dim;
    const float *cosine = p->cosine + t * dim / 2, *sine = p->sine + t * dim / 2;
    for (int64_t h = 0; h < heads; h++)
        turn(qkv, at + h * dim, cosine, sine, s->q_norm, s->scale, s, w->query + (t * heads + h) * dim, is_bf16);
    int64_t slot = p->own_slots[t] * kv * dim;
    float key[MAX_DIM];
    for (int64_t h = 0; h < kv; h++) {
        turn(qkv, at + (heads + h) * dim, cosine, sine, s->k_norm, 1.f, s, key, is_bf16);
        for (int64_t i = 0; i < dim; i++) put(keys, slot + h * dim + i, key[i], is_bf16);
    }
    const char *value = (const char *)qkv + (at + (heads + kv) * dim) * size;
    memcpy((char *)values + slot * size, value, (size_t)(kv * dim * size));
}

/* `num` (row, head) pairs of one KV head, at most ROWS, meet up to BLOCK slots. Inlined for each constant `num`. */
INLINE void meet(
    const int32_t *slots, int num_slots, const int64_t *pairs, int num, int64_t kv_head, const void *keys,
    const void *values, const Shape *s, const Work *w, int64_t dim, int is_bf16) {
    int64_t stride = s->num_kv_heads * dim, head_at = kv_head * dim;
    int parts = (int)(dim / LANES);
    float scores[ROWS][BLOCK] __attribute__((aligned(64)));
    const float *query[ROWS];
    for (int r = 0; r < num; r++) query[r] = w->query + pairs[r] * dim;
    for (int j = 0; j < num_slots; j++) {
        int64_t at = slots[j] * stride + head_at;
        vec part[ROWS];
        vec key = load(keys, at, is_bf16);
#pragma GCC unroll 8
        for (int r = 0; r < num; r++) part[r] = load(query[r], 0, 0) * key;
#pragma GCC unroll 8
        for (int i = 1; i < parts; i++) {
            key = load(keys, at + i * LANES, is_bf16);
#pragma GCC unroll 8
            for (int r = 0; r < num; r++) part[r] += load(query[r], i * LANES, 0) * key;
        }
#pragma GCC unroll 8
        for (int r = 0; r < num; r++) scores[r][j] = sum_of(part[r]);
    }
    int padded = (num_slots + LANES - 1) / LANES * LANES;
    for (int r = 0; r < num; r++) {
        float largest = w->maxima[pairs[r]];
        for (int j = 0; j < num_slots; j++) largest = scores[r][j] > largest ? scores[r][j] : largest;
        for (int j = num_slots; j < padded; j++) scores[r][j] = -INFINITY;
        float rescale = expf(w->maxima[pairs[r]] - largest);
        vec total = {0};
        for (int j = 0; j < padded; j += LANES) {
            vec weight = exp_of(load(scores[r], j, 0) - largest);
            store(scores[r] + j, weight);
            total += weight;
        }
        w->maxima[pairs[r]] = largest;
        w->weights[pairs[r]] = w->weights[pairs[r]] * rescale + sum_of(total);
        float *sums = w->sums + pairs[r] * dim;
        if (rescale != 1.f)
            for (int64_t i = 0; i < dim; i += LANES) store(sums + i, load(sums, i, 0) * rescale);
    }
    for (int i = 0; i < parts; i++) {
        vec part[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < num; r++) part[r] = load(w->sums + pairs[r] * dim, i * LANES, 0);
        for (int j = 0; j < num_slots; j++) {
            vec value = load(values, slots[j] * stride + head_at + i * LANES, is_bf16);
#pragma GCC unroll 8
            for (int r = 0; r < num; r++) part[r] += value * scores[r][j];
        }
#pragma GCC unroll 8
        for (int r = 0; r < num; r++) store(w->sums + pairs[r] * dim + i * LANES, part[r]);
    }
}

static void meet_any(const int32_t *slots, int num_slots, const int64_t *pairs, int num, int64_t kv_head,
                     const void *keys, const void *values, const Shape *s, const Work *w) {
#define MEET(num, dim, is_bf16) meet(slots, num_slots, pairs, num, kv_head, keys, values, s, w, dim, is_bf16)
#define MEET_NUM(dim, is_bf16)               \
    switch (num) {                           \
    case 1: MEET(1, dim, is_bf16); break;    \
    case 2: MEET(2, dim, is_bf16); break;    \
    case 3: MEET(3, dim, is_bf16); break;    \
    default: MEET(4, dim, is_bf16);          \
    }
    if (s->dim == 64 && s->is_bf16) MEET_NUM(64, 1)
    else if (s->dim == 64) MEET_NUM(64, 0)
    else if (s->dim == 128 && s->is_bf16) MEET_NUM(128, 1)
    else if (s->dim == 128) MEET_NUM(128, 0)
    else MEET_NUM(s->dim, (int)s->is_bf16)
#undef MEET_NUM
#undef MEET
}

/* Pairs of the rows and of the heads that share a KV head, ROWS at a time, meet a block of slots. */
static void meet_rows(const int32_t *slots, int num_slots, const int32_t *rows, int num_rows, int64_t kv_head,
                      const void *keys, const void *values, const Shape *s, const Work *w) {
    int64_t group = s->num_heads / s->num_kv_heads;
    int64_t pairs[ROWS];
    int num_pairs = 0;
    for (int r = 0; r < num_rows; r++) {
        for (int64_t g = 0; g < group; g++) {
            pairs[num_pairs++] = rows[r] * s->num_heads + kv_head * group + g;
            if (num_pairs == ROWS) {
                meet_any(slots, num_slots, pairs, num_pairs, kv_head, keys, values, s, w);
                num_pairs = 0;
            }
        }
    }
    if (num_pairs) meet_any(slots, num_slots, pairs, num_pairs, kv_head, keys, values, s, w);
}

/* All rows of a group, for some KV heads. */
static void attend_group(int64_t group, int64_t first_head, int64_t end_head, const void *keys, const void *values,
                         void *out, const Shape *s, const Plan *p, const Work *w) {
    int64_t dim = s->dim, per = s->num_heads / s->num_kv_heads;
    int64_t line = 64 / (s->is_bf16 ? 2 : 4), width = (end_head - first_head) * dim, stride = s->num_kv_heads * dim;
    int64_t size = s->is_bf16 ? 2 : 4;
    for (int32_t m = p->group_rows[group]; m < p->group_rows[group + 1]; m++) {
        int64_t pair = p->members[m] * s->num_heads + first_head * per, num = (end_head - first_head) * per;
        for (int64_t i = 0; i < num; i++) w->maxima[pair + i] = -INFINITY, w->weights[pair + i] = 0;
        memset(w->sums + pair * dim, 0, (size_t)(num * dim) * 4);
    }
    for (int32_t tile = p->group_tiles[group]; tile < p->group_tiles[group + 1]; tile++) {
        const int32_t *rows = p->rows + p->tile_rows[tile];
        int num_rows = p->tile_rows[tile + 1] - p->tile_rows[tile];
        int32_t end = p->tile_slots[tile + 1];
        for (int32_t at = p->tile_slots[tile]; at < end; at += BLOCK) {
            int num = end - at < BLOCK ? end - at : BLOCK;
            for (int32_t next = at + num; next < end && next < at + num + BLOCK; next++) {
                int64_t from = p->slots[next] * stride + first_head * dim;
                for (int64_t i = 0; i < width; i += line) {
                    __builtin_prefetch((const char *)keys + (from + i) * size);
                    __builtin_prefetch((const char *)values + (from + i) * size);
                }
            }
            for (int64_t h = first_head; h < end_head; h++)
                meet_rows(p->slots + at, num, rows, num_rows, h, keys, values, s, w);
        }
    }
    for (int32_t m = p->group_rows[group]; m < p->group_rows[group + 1]; m++) {
        int32_t row = p->members[m];
        int32_t end = p->row_tails[row + 1];
        for (int32_t at = p->row_tails[row]; at < end; at += BLOCK) {
            int num = end - at < BLOCK ? end - at : BLOCK;
            for (int64_t h = first_head; h < end_head; h++)
                meet_rows(p->tails + at, num, &row, 1, h, keys, values, s, w);
        }
        int64_t first_pair = row * s->num_heads;
        for (int64_t pair = first_pair + first_head * per; pair < first_pair + end_head * per; pair++) {
            float scale = 1.f / w->weights[pair];
            const float *sums = w->sums + pair * dim;
            if (s->is_bf16)
                for (int64_t i = 0; i < dim; i++) put(out, pair * dim + i, sums[i] * scale, 1);
            else
                for (int64_t i = 0; i < dim; i++) put(out, pair * dim + i, sums[i] * scale, 0);
        }
    }
}

/* Attention of one layer: [T, (H + 2 J) * D] `qkv` -> [T, H * D] `out`; the rows' K and V are written on the way. */
void seedmp_attend(const void *qkv, void *keys, void *values, void *out, const Shape *s, const Plan *p, const Work *w,
                   int64_t num_threads) {
    int64_t wanted = 3 * num_threads; /* tasks; blocks of heads are as wide as possible, for long reads */
    int64_t blocks = (wanted + p->num_groups - 1) / p->num_groups;
    if (blocks > s->num_kv_heads) blocks = s->num_kv_heads;
    if (num_threads == 1) blocks = 1;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < s->num_rows; t++) {
            if (s->is_bf16) enter_row(t, qkv, s, p, w, keys, values, 1);
            else enter_row(t, qkv, s, p, w, keys, values, 0);
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p->num_groups * blocks; task++) {
            int64_t group = task / blocks, block = task % blocks;
            attend_group(group, s->num_kv_heads * block / blocks, s->num_kv_heads * (block + 1) / blocks, keys, values,
                         out, s, p, w);
        }
    }
}
