/* Numbers in memory: types, strides, and what a cache cannot hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

static kvquant_cache* cache;
static kvquant_sequence* sequence;

static void begin(size_t tokens) {
  cache = make_cache("model.kvq");
  sequence = filled_sequence(cache, tokens);
}
static void end(void) {
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

/* `rows` rows with `gap` numbers between them that nobody is to read. */
static float* spread(float const* from, size_t rows, size_t cols, size_t gap) {
  float* to = malloc(rows * (cols + gap) * sizeof *to);
  for (size_t row = 0; row < rows; ++row) {
    memcpy(to + row * (cols + gap), from + row * cols, cols * sizeof *to);
    for (size_t i = 0; i < gap; ++i) to[row * (cols + gap) + cols + i] = NAN;
  }
  return to;
}

static void rows_may_lie_apart(void) {
  begin(0);
  struct answer found = {0};
  float out[ROWS * (Q_CHANNELS + 5)];
  for (int layer = 0; layer < LAYERS; ++layer) {
    struct layer_tokens const* from = &fixture.tokens[layer];
    float *k = spread(from->k, PREFIX, KV_CHANNELS, 3), *v = spread(from->v, PREFIX, KV_CHANNELS, 7);
    float* q = spread(from->q + (PREFIX - ROWS) * Q_CHANNELS, ROWS, Q_CHANNELS, 1);
    CHECK_OK(kvquant_append(sequence, layer, PREFIX, KVQUANT_F32, k, KV_CHANNELS + 3, v, KV_CHANNELS + 7));
    kvquant_query query = question(sequence, layer, &found);
    query.q = q;
    query.q_stride = Q_CHANNELS + 1;
    query.out = out;
    query.out_stride = Q_CHANNELS + 5;
    for (size_t i = 0; i < sizeof out / sizeof *out; ++i) out[i] = -77;
    CHECK_OK(kvquant_attend(cache, layer, &query, 1));
    for (size_t row = 0; row < ROWS; ++row) {
      CHECK_SAME(out + row * (Q_CHANNELS + 5), fixture.answers[layer].out + row * Q_CHANNELS, Q_CHANNELS);
      for (size_t i = 0; i < 5; ++i) CHECK(out[row * (Q_CHANNELS + 5) + Q_CHANNELS + i] == -77);
    }
    free(k);
    free(v);
    free(q);
  }
  end();
}

/* The nearest value towards 0 that 16 bits of either kind hold. */
static float truncated(float x, bool brain) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= brain ? 0xffff0000u : 0xffffe000u;
  memcpy(&x, &bits, sizeof x);
  return fabsf(x) < 0x1p-14f ? 0 : x;
}
static uint16_t narrowed(float x, bool brain) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (brain) return (uint16_t)(bits >> 16);
  if (x == 0) return (uint16_t)(bits >> 16 & 0x8000);
  return (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 127 + 15) << 10 | (bits >> 13 & 0x3ff));
}

static void numbers_of_16_bits_are_those_of_32(void) {
  static float floats[3][PREFIX * Q_CHANNELS];
  static uint16_t shorts[3][PREFIX * Q_CHANNELS];
  for (int brain = 0; brain < 2; ++brain) {
    begin(0);
    kvquant_sequence* other = open_sequence(cache);
    kvquant_dtype const dtype = brain ? KVQUANT_BF16 : KVQUANT_F16;
    float const* from[] = {fixture.tokens[0].k, fixture.tokens[0].v, fixture.tokens[0].q};
    for (size_t side = 0; side < 3; ++side)
      for (size_t i = 0; i < (size_t)PREFIX * (side == 2 ? Q_CHANNELS : KV_CHANNELS); ++i) {
        floats[side][i] = truncated(from[side][i], brain);
        shorts[side][i] = narrowed(floats[side][i], brain);
      }
    CHECK_OK(kvquant_append(sequence, 0, PREFIX, KVQUANT_F32, floats[0], 0, floats[1], 0));
    CHECK_OK(kvquant_append(other, 0, PREFIX, dtype, shorts[0], KV_CHANNELS, shorts[1], 0));
    struct answer expected = {0}, found = {0};
    kvquant_query of_floats = question(sequence, 0, &expected), of_shorts = question(other, 0, &found);
    of_floats.q = floats[2];
    of_shorts.q = shorts[2];
    of_shorts.q_dtype = dtype;
    CHECK_OK(kvquant_attend(cache, 0, &of_floats, 1));
    CHECK_OK(kvquant_attend(cache, 0, &of_shorts, 1));
    CHECK_SAME(found.out, expected.out, ROWS * Q_CHANNELS);
    shorts[0][5 * KV_CHANNELS + 9] = brain ? 0x7f00 : 0x7c00; /* 1.7e38, infinity */
    CHECK_FAILS(kvquant_append(other, 0, 6, dtype, shorts[0], 0, shorts[1], 0), KVQUANT_ERROR_BAD_VALUE,
                "layer 0: append: keys: token 5, channel 9 is ");
    CHECK_OK(kvquant_sequence_close(other));
    end();
  }
}

static void what_is_no_number_is_named_and_nothing_stored(void) {
  static float const wrong[] = {NAN, INFINITY, -INFINITY, 65520, -1e30f};
  begin(PREFIX);
  static float k[8 * KV_CHANNELS], q[ROWS * Q_CHANNELS];
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    struct answer found = {0};
    memset(k, 0, sizeof k);
    k[3 * KV_CHANNELS + 17] = wrong[i];
    float const* v = fixture.tokens[1].v;
    CHECK_FAILS(kvquant_append(sequence, 1, 8, KVQUANT_F32, k, 0, v, 0), KVQUANT_ERROR_BAD_VALUE,
                "kvquant_append: layer 1: append: keys: token 3, channel 17 is ");
    CHECK_FAILS(kvquant_append(sequence, 0, 8, KVQUANT_F32, v, 0, k, 0), KVQUANT_ERROR_BAD_VALUE,
                "layer 0: append: values: token 3, channel 17 is ");
    kvquant_query query = question(sequence, 1, &found);
    query.score_max = query.score_sum = NULL;
    CHECK_FAILS(kvquant_append_and_attend(1, KVQUANT_F32, k + KV_CHANNELS, 0, v, 0, &query), KVQUANT_ERROR_BAD_VALUE,
                "layer 1: append: keys: token 2, channel 17 is ");
    memset(q, 0, sizeof q);
    q[2 * Q_CHANNELS + 100] = wrong[i];
    query.q = q;
    CHECK_FAILS(kvquant_attend(cache, 1, &query, 1), KVQUANT_ERROR_BAD_VALUE,
                "layer 1: attend: query 2, channel 100 is ");
    CHECK_FAILS(kvquant_append_and_attend(1, KVQUANT_F32, v, 0, v, 0, &query), KVQUANT_ERROR_BAD_VALUE,
                "layer 1: attend: query 2, channel 100 is ");
  }
  CHECK(tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  end();
}

static void types_and_strides_that_cannot_be_are_refused(void) {
  begin(PREFIX);
  float const* k = fixture.tokens[0].k;
  char const* crooked = (char const*)k + 1;
  CHECK_FAILS(kvquant_append(sequence, 0, 1, 3, k, 0, k, 0), KVQUANT_ERROR_BAD_FORMAT,
              "k: dtype 3, expected KVQUANT_F32");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, -1, k, 0, k, 0), KVQUANT_ERROR_BAD_FORMAT, "k: dtype -1");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, KVQUANT_F32, k, KV_CHANNELS - 1, k, 0), KVQUANT_ERROR_BAD_SHAPE,
              "k: a stride of 63 elements, expected at least the 64");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, KVQUANT_F32, k, 0, k, 1), KVQUANT_ERROR_BAD_SHAPE, "v: a stride of 1");
  CHECK_FAILS(kvquant_append(sequence, 0, (size_t)-1, KVQUANT_F32, k, 0, k, 0), KVQUANT_ERROR_BAD_SHAPE, "k: ");
  CHECK_FAILS(kvquant_append(sequence, 0, 3, KVQUANT_F32, k, SIZE_MAX / 4, k, 0), KVQUANT_ERROR_BAD_SHAPE, "k: ");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, KVQUANT_F32, NULL, 0, k, 0), KVQUANT_ERROR_BAD_VALUE, "k is NULL");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, KVQUANT_F32, k, 0, NULL, 0), KVQUANT_ERROR_BAD_VALUE, "v is NULL");
  CHECK_FAILS(kvquant_append(sequence, 0, 1, KVQUANT_F32, crooked, 0, k, 0), KVQUANT_ERROR_BAD_VALUE,
              "k is not aligned");
  CHECK_FAILS(kvquant_append(sequence, LAYERS, 1, KVQUANT_F32, k, 0, k, 0), KVQUANT_ERROR_BAD_VALUE,
              "layer 2, expected 0 to 1");
  CHECK_FAILS(kvquant_append(sequence, -1, 1, KVQUANT_F32, k, 0, k, 0), KVQUANT_ERROR_BAD_VALUE, "layer -1");
  CHECK_OK(kvquant_append(sequence, 0, 0, KVQUANT_F32, NULL, 0, NULL, 0));
  CHECK(tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  end();
}

static void questions_that_cannot_be_are_refused(void) {
  begin(PREFIX);
  struct answer found = {0};
  kvquant_query const right = question(sequence, 0, &found);
  kvquant_query query = right, batch[2] = {right, right};
  query.q_stride = 5;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_SHAPE, "query.q: a stride of 5");
  query = right, query.out_stride = 5;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_SHAPE, "query.out: a stride of 5");
  query = right, query.out = NULL;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_VALUE, "query.out is NULL");
  query = right, query.q = NULL;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_VALUE, "query.q is NULL");
  query = right, query.q_dtype = 8;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_FORMAT, "query.q: dtype 8");
  query = right, query.reserved = 1;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_UNSUPPORTED, "query.reserved is 1");
  query = right, query.rows = PREFIX + 1;
  static float far_too_many[(PREFIX + 1) * Q_CHANNELS];
  query.out = far_too_many;
  query.score_max = query.score_sum = NULL;
  query.q = fixture.tokens[0].q;
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_VALUE, "201 queries for a sequence of 200 tokens");
  CHECK_FAILS(kvquant_attend(cache, 7, &right, 1), KVQUANT_ERROR_BAD_VALUE, "layer 7, expected 0 to 1");
  CHECK_FAILS(kvquant_attend(cache, 0, NULL, 1), KVQUANT_ERROR_BAD_VALUE, "queries is NULL");
  batch[1].size -= 8;
  CHECK_FAILS(kvquant_attend(cache, 0, batch, 2), KVQUANT_ERROR_BAD_VALUE, "query 1: size is 88");
  float const* k = fixture.tokens[0].k;
  CHECK_FAILS(kvquant_append_and_attend(0, KVQUANT_F32, k, 0, k, 0, &right), KVQUANT_ERROR_UNSUPPORTED,
              "score_max and score_sum are not to be had here");
  CHECK_FAILS(kvquant_append_and_attend(0, KVQUANT_F32, k, 0, k, 0, NULL), KVQUANT_ERROR_BAD_VALUE, "query is NULL");
  CHECK_FAILS(kvquant_sequence_get_tokens(sequence, NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");
  CHECK_FAILS(kvquant_sequence_fork(sequence, NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");
  CHECK_FAILS(kvquant_sequence_get_bytes(sequence, NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");
  CHECK(found.score_sum[0] == 0 && tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  end();
}

struct test_case const input_cases[] = {
    {"rows may lie apart", rows_may_lie_apart},
    {"numbers of 16 bits are those of 32", numbers_of_16_bits_are_those_of_32},
    {"what is no number is named and nothing stored", what_is_no_number_is_named_and_nothing_stored},
    {"types and strides that cannot be are refused", types_and_strides_that_cannot_be_are_refused},
    {"questions that cannot be are refused", questions_that_cannot_be_are_refused},
    {NULL, NULL}};
