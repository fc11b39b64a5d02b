/* A toy runtime in C, before and after: its own cache of floats, and the same layers on the caches of an artifact and
   of binary16. What is measured is how far the model's output moves, and how long a token takes. Usage:
   02_port_a_runtime ARTIFACT.kvq, whose shape the model takes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvquant.h>

enum { HIDDEN = 64, PROMPT = 300, STEPS = 20, MOST = PROMPT + STEPS };

static void check(kvquant_status status) {
  if (status == KVQUANT_OK) return;
  fprintf(stderr, "%s: %s\n", kvquant_status_name(status), kvquant_last_error());
  exit(1);
}

static float* floats(size_t count) {
  float* x = calloc(count, sizeof *x);
  if (x == NULL) exit(1);
  return x;
}
static float* noise(size_t count, float scale) {
  float* x = floats(count);
  for (size_t i = 0; i < count; ++i) x[i] = scale * ((float)rand() / (float)RAND_MAX - 0.5f);
  return x;
}
/* out [rows, outputs] = x [rows, inputs] · w [outputs, inputs] */
static void multiply(float const* w, float const* x, int rows, int inputs, int outputs, float* out) {
  for (int r = 0; r < rows; ++r)
    for (int o = 0; o < outputs; ++o) {
      float sum = 0;
      for (int i = 0; i < inputs; ++i) sum += w[o * inputs + i] * x[r * inputs + i];
      out[r * outputs + o] = sum;
    }
}

/* Rows of length 1 on average of their squares, as models keep them. */
static void normalize(float const* x, int rows, float* out) {
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
    for (int i = 0; i < HIDDEN; ++i) sum += x[r * HIDDEN + i] * x[r * HIDDEN + i];
    float const scale = 1 / sqrtf(sum / HIDDEN + 1e-6f);
    for (int i = 0; i < HIDDEN; ++i) out[r * HIDDEN + i] = scale * x[r * HIDDEN + i];
  }
}

struct model {
  kvquant_model_shape shape;
  int kv, q;    /* channels */
  float** w[4]; /* of keys, values, queries, and back; by layer */
};

/* [doc:forward] */
/* Attention of each token over all up to it, [tokens, channels]; keys and queries are before RoPE. */
typedef void attend_function(void* cache, int layer, int tokens, float* k, float* v, float* q, float* out);

/* Hidden states of tokens, [tokens, HIDDEN], in place. */
static void forward(struct model const* m, float* x, int tokens, attend_function* attend, void* cache) {
  size_t const kv = (size_t)(tokens * m->kv), q = (size_t)(tokens * m->q);
  float *keys = floats(kv), *values = floats(kv), *queries = floats(q), *out = floats(q);
  float *normal = floats((size_t)tokens * HIDDEN), *added = floats((size_t)tokens * HIDDEN);
  for (int layer = 0; layer < m->shape.layers; ++layer) {
    normalize(x, tokens, normal);
    multiply(m->w[0][layer], normal, tokens, HIDDEN, m->kv, keys);
    multiply(m->w[1][layer], normal, tokens, HIDDEN, m->kv, values);
    multiply(m->w[2][layer], normal, tokens, HIDDEN, m->q, queries);
    attend(cache, layer, tokens, keys, values, queries, out);
    multiply(m->w[3][layer], out, tokens, m->q, HIDDEN, added);
    for (int i = 0; i < tokens * HIDDEN; ++i) x[i] += added[i];
  }
  free(keys), free(values), free(queries), free(out), free(normal), free(added);
}
/* [/doc] */

/* What the runtime had: keys after RoPE, of all channels and unscaled, and values of each layer, [MOST, channels]. */
struct plain_cache {
  struct model const* model;
  float **k, **v;
  int* tokens;
};

static void rotate(struct model const* m, float* head, int position) {
  kvquant_rope const* rope = m->shape.rope;
  int const pairs = m->shape.head_dim / 2, split = rope->pairing == KVQUANT_ROPE_HALF_SPLIT;
  for (int pair = 0; pair < pairs; ++pair) {
    double const angle = position * pow(rope->theta, -(double)pair / pairs);
    float *a = head + (split ? pair : 2 * pair), *b = split ? a + pairs : a + 1;
    float const c = (float)cos(angle), s = (float)sin(angle), first = *a;
    *a = first * c - *b * s;
    *b = *b * c + first * s;
  }
}

static void plain_attend(void* to, int layer, int tokens, float* k, float* v, float* q, float* out) {
  struct plain_cache* it = to;
  struct model const* m = it->model;
  int const d = m->shape.head_dim, group = m->shape.q_heads / m->shape.kv_heads;
  for (int t = 0; t < tokens; ++t) {
    int const position = it->tokens[layer]++;
    float* keys = it->k[layer] + position * m->kv;
    memcpy(keys, k + t * m->kv, (size_t)m->kv * sizeof *k);
    memcpy(it->v[layer] + position * m->kv, v + t * m->kv, (size_t)m->kv * sizeof *v);
    for (int head = 0; head < m->shape.kv_heads; ++head) rotate(m, keys + head * d, position);
    for (int head = 0; head < m->shape.q_heads; ++head) {
      float *query = q + t * m->q + head * d, *sum = out + t * m->q + head * d, total = 0;
      rotate(m, query, position);
      memset(sum, 0, (size_t)d * sizeof *sum);
      for (int j = 0; j <= position; ++j) {
        int const at = j * m->kv + head / group * d;
        float score = 0;
        for (int c = 0; c < d; ++c) score += query[c] * it->k[layer][at + c];
        float const p = expf(score / sqrtf((float)d));
        for (int c = 0; c < d; ++c) sum[c] += p * it->v[layer][at + c];
        total += p;
      }
      for (int c = 0; c < d; ++c) sum[c] /= total;
    }
  }
}

/* [doc:after] */
static void kvquant_attend_function(void* to, int layer, int tokens, float* k, float* v, float* q, float* out) {
  kvquant_query query = {.size = sizeof query, .sequence = to, .rows = (size_t)tokens, .q = q, .out = out};
  check(kvquant_append_and_attend(layer, KVQUANT_F32, k, 0, v, 0, &query));
}
/* [/doc] */

/* The last hidden states of a prompt's tokens and some that come one by one; returns milliseconds for one of them. */
static double answer(struct model const* m, float* x, attend_function* attend, void* cache) {
  forward(m, x, PROMPT, attend, cache);
  clock_t const start = clock();
  for (int step = 0; step < STEPS; ++step) forward(m, x + (PROMPT + step) * HIDDEN, 1, attend, cache);
  return (double)(clock() - start) * 1000 / CLOCKS_PER_SEC / STEPS;
}

static double distance(float const* exact, float const* found) {
  double error = 0, norm = 0;
  for (int i = 0; i < MOST * HIDDEN; ++i) {
    error += pow(found[i] - exact[i], 2);
    norm += pow(exact[i], 2);
  }
  return sqrt(error / norm);
}

/* How far hidden states move on a cache of an artifact. */
static double try_cache(struct model const* m, kvquant_artifact* artifact, float const* in, float const* exact) {
  kvquant_cache_options options = kvquant_cache_options_default();
  options.max_tokens = MOST;
  kvquant_cache* cache;
  kvquant_sequence* sequence;
  check(kvquant_cache_create(artifact, &options, &cache));
  check(kvquant_sequence_open(cache, MOST, &sequence));
  float* x = floats((size_t)MOST * HIDDEN);
  memcpy(x, in, (size_t)MOST * HIDDEN * sizeof *x);
  double const ms = answer(m, x, kvquant_attend_function, sequence), moved = distance(exact, x);
  kvquant_artifact_info info = {.size = sizeof info};
  check(kvquant_artifact_get_info(artifact, &info));
  printf("%s: a token takes %.2f ms, hidden states move by %.5f\n", info.format, ms, moved);
  free(x);
  check(kvquant_sequence_close(sequence));
  check(kvquant_cache_close(cache));
  return moved;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s ARTIFACT\n", argv[0]);
    return 2;
  }
  kvquant_artifact *artifact, *exact_artifact;
  check(kvquant_artifact_open(argv[1], &artifact));
  struct model m = {.shape = {.size = sizeof m.shape}};
  check(kvquant_artifact_get_shape(artifact, &m.shape));
  check(kvquant_artifact_make_f16(&m.shape, "toy", NULL, &exact_artifact));
  m.kv = m.shape.kv_heads * m.shape.head_dim;
  m.q = m.shape.q_heads * m.shape.head_dim;
  int const layers = m.shape.layers;
  struct plain_cache plain = {&m, calloc((size_t)layers, sizeof(float*)), calloc((size_t)layers, sizeof(float*)),
                              calloc((size_t)layers, sizeof(int))};
  for (int i = 0; i < 4; ++i) m.w[i] = calloc((size_t)layers, sizeof(float*));
  for (int layer = 0; layer < layers; ++layer) {
    for (int i = 0; i < 4; ++i) m.w[i][layer] = noise((size_t)((i < 2 ? m.kv : m.q) * HIDDEN), 0.5f);
    plain.k[layer] = floats((size_t)(MOST * m.kv));
    plain.v[layer] = floats((size_t)(MOST * m.kv));
  }
  float *in = noise((size_t)MOST * HIDDEN, 2), *exact = floats((size_t)MOST * HIDDEN);
  memcpy(exact, in, (size_t)MOST * HIDDEN * sizeof *in);
  printf("floats: a token takes %.2f ms\n", answer(&m, exact, plain_attend, &plain));
  double const by_half = try_cache(&m, exact_artifact, in, exact), by_codes = try_cache(&m, artifact, in, exact);

  for (int layer = 0; layer < layers; ++layer) {
    for (int i = 0; i < 4; ++i) free(m.w[i][layer]);
    free(plain.k[layer]), free(plain.v[layer]);
  }
  for (int i = 0; i < 4; ++i) free(m.w[i]);
  free(plain.k), free(plain.v), free(plain.tokens), free(in), free(exact);
  check(kvquant_artifact_close(artifact));
  check(kvquant_artifact_close(exact_artifact));
  return by_half < 1e-3 && by_codes < 2 ? 0 : 1; /* far off where the artifact is of another model than this one */
}
