/* The cache in a runtime that is written in C: a prompt, some steps of two sequences, a fork, a file. What the model's
   forward pass would compute is random here. Usage: 01_quickstart ARTIFACT.kvq SEQUENCE.kvs */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <kvquant.h>

/* [doc:errors] */
static void check(kvquant_status status) {
  if (status == KVQUANT_OK) return;
  fprintf(stderr, "%s: %s\n", kvquant_status_name(status), kvquant_last_error());
  exit(1);
}
/* [/doc] */

enum { PROMPT = 200, STEPS = 20, MOST = 256 };

/* Of one token of one layer, after a model's projections. */
struct projected {
  float *k, *v, *q;
};

static float noise(void) { return (float)rand() / (float)RAND_MAX - 0.5f; }

static struct projected project(kvquant_cache_info const* sizes, int tokens) {
  size_t const kv = (size_t)tokens * (size_t)sizes->kv_channels, q = (size_t)tokens * (size_t)sizes->q_channels;
  struct projected it = {malloc(kv * sizeof(float)), malloc(kv * sizeof(float)), malloc(q * sizeof(float))};
  if (it.k == NULL || it.v == NULL || it.q == NULL) exit(1);
  for (size_t i = 0; i < kv; ++i) it.k[i] = noise(), it.v[i] = noise();
  for (size_t i = 0; i < q; ++i) it.q[i] = noise();
  return it;
}

static void discard(struct projected it) {
  free(it.k);
  free(it.v);
  free(it.q);
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s ARTIFACT SEQUENCE\n", argv[0]);
    return 2;
  }

  /* [doc:open] */
  kvquant_artifact* artifact;
  check(kvquant_artifact_open(argv[1], &artifact));
  check(kvquant_supports(kvquant_default_backend(), artifact));

  kvquant_cache_options options = kvquant_cache_options_default();
  options.max_tokens = 4096; /* of all sequences together */
  options.threads = 2;
  kvquant_cache* cache;
  check(kvquant_cache_create(artifact, &options, &cache));
  check(kvquant_artifact_close(artifact));

  kvquant_cache_info info = {.size = sizeof info};
  check(kvquant_cache_get_info(cache, &info));
  /* [/doc] */

  float* out = calloc(PROMPT * (size_t)info.q_channels, sizeof *out);
  float* other_out = calloc((size_t)info.q_channels, sizeof *out);
  if (out == NULL || other_out == NULL) return 1;

  /* [doc:prompt] */
  kvquant_sequence* chat;
  check(kvquant_sequence_open(cache, MOST, &chat));
  check(kvquant_sequence_reserve(chat, PROMPT)); /* or it fails here, not half-way */
  for (int layer = 0; layer < info.layers; ++layer) {
    struct projected x = project(&info, PROMPT); /* keys and queries before RoPE */
    kvquant_query query = {.size = sizeof query, .sequence = chat, .rows = PROMPT, .q = x.q, .out = out};
    check(kvquant_append_and_attend(layer, KVQUANT_F32, x.k, 0, x.v, 0, &query));
    discard(x);
  }
  /* [/doc] */

  /* [doc:steps] */
  kvquant_sequence* rival;
  check(kvquant_sequence_fork(chat, &rival)); /* shares the prompt's pages */
  for (int step = 0; step < STEPS; ++step)
    for (int layer = 0; layer < info.layers; ++layer) {
      struct projected x = project(&info, 1), y = project(&info, 1);
      check(kvquant_append(chat, layer, 1, KVQUANT_F32, x.k, 0, x.v, 0));
      check(kvquant_append(rival, layer, 1, KVQUANT_F32, y.k, 0, y.v, 0));
      kvquant_query queries[] = {
          {.size = sizeof *queries, .sequence = chat, .rows = 1, .q = x.q, .out = out},
          {.size = sizeof *queries, .sequence = rival, .rows = 1, .q = y.q, .out = other_out},
      };
      check(kvquant_attend(cache, layer, queries, 2));
      discard(x);
      discard(y);
    }
  check(kvquant_sequence_truncate(rival, PROMPT + STEPS / 2)); /* half of the guesses were wrong */
  /* [/doc] */

  /* [doc:file] */
  check(kvquant_sequence_save(chat, argv[2]));
  check(kvquant_sequence_close(chat));
  check(kvquant_sequence_load(cache, argv[2], &chat));
  kvquant_bytes bytes = {.size = sizeof bytes};
  check(kvquant_sequence_get_bytes(chat, &bytes));
  printf("%zu bytes, of which codes %zu, sinks %zu, tail %zu\n", bytes.total, bytes.codes, bytes.sinks, bytes.tail);
  check(kvquant_sequence_close(rival));
  check(kvquant_sequence_close(chat));
  check(kvquant_cache_close(cache));
  /* [/doc] */

  int const right = isfinite(out[0]) && isfinite(other_out[0]) && out[0] != other_out[0] && bytes.codes > 0;
  free(out);
  free(other_out);
  return right ? 0 : 1;
}
