/* What write_case.cpp left in a folder: artifacts, the tokens of a small model, and what the C++ engine answers. */
#ifndef KVQUANT_TEST_FIXTURE_H
#define KVQUANT_TEST_FIXTURE_H

#include <stddef.h>

#include "adapters/c/kvquant.h"

enum {
  LAYERS = 2,
  Q_HEADS = 4,
  KV_HEADS = 2,
  HEAD_DIM = 32,
  KV_CHANNELS = KV_HEADS * HEAD_DIM,
  Q_CHANNELS = Q_HEADS * HEAD_DIM,
  TOKENS = 300,
  PREFIX = 200, /* tokens of the sequence that the answers are of */
  ROWS = 3      /* queries of them */
};

/* The expected answers of one layer. */
struct answer {
  float out[ROWS * Q_CHANNELS], score_max[ROWS * Q_HEADS], score_sum[ROWS * Q_HEADS];
  float decoded[PREFIX * Q_CHANNELS]; /* of each token, as append_and_attend has them */
};

/* Of the model's forward pass, [TOKENS, channels] each. */
struct layer_tokens {
  float k[TOKENS * KV_CHANNELS], v[TOKENS * KV_CHANNELS], q[TOKENS * Q_CHANNELS];
};

struct fixture {
  char const* folder;
  struct layer_tokens tokens[LAYERS];
  struct answer answers[LAYERS];
};
extern struct fixture fixture;

/* Ends the program where the folder is not what it should be. */
void read_fixture(char const* folder);

/* A path in the folder; valid until the fourth call after it. */
char const* path_of(char const* name);

/* These end the program where they fail: what they do is tested elsewhere. */
kvquant_artifact* open_artifact(char const* name);
kvquant_cache* make_cache(char const* artifact);
kvquant_cache* make_cache_with(char const* artifact, kvquant_cache_options const* options);
kvquant_cache_options small_options(void);
kvquant_sequence* open_sequence(kvquant_cache* cache);
kvquant_sequence* filled_sequence(kvquant_cache* cache, size_t tokens);

/* Tokens [first, first + count) of the fixture, to every layer; the first status that is no success. */
kvquant_status append_tokens(kvquant_sequence* to, size_t first, size_t count);
size_t tokens_of(kvquant_sequence* sequence);

/* ROWS queries of a sequence of PREFIX tokens, with all that can be asked for, to `to`. */
kvquant_query question(kvquant_sequence* of, int layer, struct answer* to);
/* Asks both layers of a sequence of PREFIX tokens, and compares with the fixture. */
void check_answers(kvquant_cache* cache, kvquant_sequence* sequence);

#endif
