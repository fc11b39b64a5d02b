#include "test/adapters/c/fixture.h"

#include <stdio.h>
#include <stdlib.h>

#include "test/adapters/c/check.h"

struct fixture fixture;

static void stop(char const* what) {
  fprintf(stderr, "%s: %s\n", what, kvquant_last_error());
  exit(2);
}

static void read_exactly(char const* name, void* to, size_t bytes) {
  FILE* file = fopen(path_of(name), "rb");
  if (file == NULL || fread(to, 1, bytes, file) != bytes || fgetc(file) != EOF) stop(name);
  fclose(file);
}

void read_fixture(char const* folder) {
  fixture.folder = folder;
  read_exactly("tokens.bin", fixture.tokens, sizeof fixture.tokens);
  read_exactly("answers.bin", fixture.answers, sizeof fixture.answers);
}

char const* path_of(char const* name) {
  static char paths[4][4096];
  static int next;
  char* path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", fixture.folder, name);
  return path;
}

kvquant_artifact* open_artifact(char const* name) {
  kvquant_artifact* artifact = NULL;
  if (kvquant_artifact_open(path_of(name), &artifact) != KVQUANT_OK) stop(name);
  return artifact;
}

kvquant_cache_options small_options(void) {
  kvquant_cache_options options = kvquant_cache_options_default();
  options.max_tokens = 1024;
  return options;
}

kvquant_cache* make_cache_with(char const* name, kvquant_cache_options const* options) {
  kvquant_artifact* artifact = open_artifact(name);
  kvquant_cache* cache = NULL;
  if (kvquant_cache_create(artifact, options, &cache) != KVQUANT_OK) stop(name);
  kvquant_artifact_close(artifact);
  return cache;
}

kvquant_cache* make_cache(char const* name) {
  kvquant_cache_options const options = small_options();
  return make_cache_with(name, &options);
}

kvquant_sequence* open_sequence(kvquant_cache* cache) {
  kvquant_sequence* sequence = NULL;
  if (kvquant_sequence_open(cache, 0, &sequence) != KVQUANT_OK) stop("open_sequence");
  return sequence;
}

kvquant_sequence* filled_sequence(kvquant_cache* cache, size_t tokens) {
  kvquant_sequence* sequence = open_sequence(cache);
  if (append_tokens(sequence, 0, tokens) != KVQUANT_OK) stop("filled_sequence");
  return sequence;
}

kvquant_status append_tokens(kvquant_sequence* to, size_t first, size_t count) {
  for (int layer = 0; layer < LAYERS; ++layer) {
    struct layer_tokens const* from = &fixture.tokens[layer];
    kvquant_status const status = kvquant_append(to, layer, count, KVQUANT_F32, from->k + first * KV_CHANNELS, 0,
                                                 from->v + first * KV_CHANNELS, 0);
    if (status != KVQUANT_OK) return status;
  }
  return KVQUANT_OK;
}

size_t tokens_of(kvquant_sequence* sequence) {
  size_t tokens = 0;
  CHECK_OK(kvquant_sequence_get_tokens(sequence, &tokens));
  return tokens;
}

kvquant_query question(kvquant_sequence* of, int layer, struct answer* to) {
  kvquant_query it = {.size = sizeof it,
                      .sequence = of,
                      .rows = ROWS,
                      .q = fixture.tokens[layer].q + (PREFIX - ROWS) * Q_CHANNELS,
                      .out = to->out,
                      .score_max = to->score_max,
                      .score_sum = to->score_sum};
  return it;
}

void check_answers(kvquant_cache* cache, kvquant_sequence* sequence) {
  for (int layer = 0; layer < LAYERS; ++layer) {
    struct answer found = {0};
    kvquant_query const query = question(sequence, layer, &found);
    struct answer const* expected = &fixture.answers[layer];
    CHECK_OK(kvquant_attend(cache, layer, &query, 1));
    CHECK_SAME(found.out, expected->out, ROWS * Q_CHANNELS);
    CHECK_SAME(found.score_max, expected->score_max, ROWS * Q_HEADS);
    CHECK_SAME(found.score_sum, expected->score_sum, ROWS * Q_HEADS);
  }
}
