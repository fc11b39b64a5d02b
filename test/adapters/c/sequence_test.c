/* Sequences: their tokens, and attention over them as the C++ engine has it. */
#include <stdlib.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

static void attention_is_that_of_the_engine(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  CHECK(tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void appending_and_attending_is_that_of_the_engine(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = open_sequence(cache);
  static float out[PREFIX * Q_CHANNELS];
  for (int layer = 0; layer < LAYERS; ++layer) {
    struct layer_tokens const* from = &fixture.tokens[layer];
    kvquant_query const query = {.size = sizeof query, .sequence = sequence, .rows = PREFIX, .q = from->q, .out = out};
    CHECK_OK(kvquant_append_and_attend(layer, KVQUANT_F32, from->k, 0, from->v, 0, &query));
    CHECK_SAME(out, fixture.answers[layer].decoded, PREFIX * Q_CHANNELS);
  }
  CHECK(tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void a_batch_is_answered_as_each_alone(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence *one = filled_sequence(cache, PREFIX), *short_one = filled_sequence(cache, 10);
  struct answer first = {0}, second = {0}, third = {0}, alone = {0};
  kvquant_query const batch[3] = {question(one, 1, &first), question(short_one, 1, &second), question(one, 1, &third)};
  CHECK_OK(kvquant_attend(cache, 1, batch, 3));
  CHECK_SAME(first.out, fixture.answers[1].out, ROWS * Q_CHANNELS);
  CHECK_SAME(third.score_sum, fixture.answers[1].score_sum, ROWS * Q_HEADS);
  kvquant_query const of_short = question(short_one, 1, &alone);
  CHECK_OK(kvquant_attend(cache, 1, &of_short, 1));
  CHECK_SAME(second.out, alone.out, ROWS * Q_CHANNELS);
  CHECK_OK(kvquant_attend(cache, 1, NULL, 0));
  CHECK_OK(kvquant_sequence_close(one));
  CHECK_OK(kvquant_sequence_close(short_one));
  CHECK_OK(kvquant_cache_close(cache));
}

static void window_scale_and_rotation_matter(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  struct answer found[4];
  memset(found, 0, sizeof found);
  kvquant_query queries[4];
  for (size_t i = 0; i < 4; ++i) {
    queries[i] = question(sequence, 0, &found[i]);
    queries[i].score_sum = queries[i].score_max = NULL;
  }
  queries[1].window = 20;
  queries[2].softmax_scale = 0.01f;
  queries[3].q_rotated = 1;
  CHECK_OK(kvquant_attend(cache, 0, queries, 4));
  CHECK_SAME(found[0].out, fixture.answers[0].out, ROWS * Q_CHANNELS);
  for (size_t i = 1; i < 4; ++i) CHECK(memcmp(found[i].out, found[0].out, sizeof found[0].out) != 0);
  CHECK(found[0].score_max[0] == 0 && found[0].score_sum[0] == 0);

  kvquant_query scaled = question(sequence, 0, &found[0]); /* what the default scale is */
  scaled.softmax_scale = 0.17677669f;
  CHECK_OK(kvquant_attend(cache, 0, &scaled, 1));
  CHECK_SAME(found[0].out, fixture.answers[0].out, ROWS * Q_CHANNELS);
  scaled.softmax_scale = -1;
  CHECK_FAILS(kvquant_attend(cache, 0, &scaled, 1), KVQUANT_ERROR_BAD_VALUE, "softmax scale is -1");
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void a_fork_goes_its_own_way(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence *sequence = filled_sequence(cache, PREFIX), *fork = NULL;
  CHECK_OK(kvquant_sequence_fork(sequence, &fork));
  CHECK_OK(append_tokens(fork, PREFIX, 20)); /* which seals no page: what is cut leaves no trace */
  CHECK(tokens_of(fork) == PREFIX + 20 && tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_sequence_truncate(fork, PREFIX));
  check_answers(cache, fork);
  CHECK_OK(kvquant_sequence_close(fork));
  CHECK_OK(kvquant_cache_close(cache));
}

static void tokens_are_cut_and_dropped(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = filled_sequence(cache, TOKENS);
  CHECK_OK(kvquant_sequence_drop(sequence, 1 + KVQUANT_PAGE_TOKENS, 2 * KVQUANT_PAGE_TOKENS));
  CHECK(tokens_of(sequence) == TOKENS - 2 * KVQUANT_PAGE_TOKENS);
  CHECK_FAILS(kvquant_sequence_drop(sequence, 5, 64), KVQUANT_ERROR_BAD_VALUE, "expected whole sealed pages");
  CHECK_OK(kvquant_sequence_truncate(sequence, 30));
  CHECK(tokens_of(sequence) == 30);
  CHECK_FAILS(kvquant_sequence_truncate(sequence, 31), KVQUANT_ERROR_BAD_VALUE, "to 31 tokens, the sequence has 30");
  CHECK_OK(append_tokens(sequence, 30, PREFIX - 30));
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void a_full_cache_says_so_and_loses_nothing(void) {
  kvquant_cache_options options = small_options();
  options.max_tokens = PREFIX - 1;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  kvquant_sequence *sequence = filled_sequence(cache, PREFIX), *rival = open_sequence(cache);
  CHECK_OK(kvquant_sequence_reserve(rival, 128)); /* one page, and the tail */
  CHECK_FAILS(kvquant_sequence_reserve(sequence, 64), KVQUANT_ERROR_OUT_OF_PAGES, "kvquant_sequence_reserve: ");
  CHECK_FAILS(append_tokens(sequence, PREFIX, 64), KVQUANT_ERROR_OUT_OF_PAGES, "layer 0: ");
  CHECK(tokens_of(sequence) == PREFIX);
  check_answers(cache, sequence);
  CHECK_OK(append_tokens(rival, 0, 128));
  CHECK_OK(kvquant_sequence_close(rival));
  CHECK_OK(append_tokens(sequence, PREFIX, 64));
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void a_saved_sequence_goes_on_in_another_cache(void) {
  kvquant_cache_options options = small_options();
  options.backend = "cpu-generic";
  kvquant_cache *cache = make_cache("model.kvq"), *another = make_cache_with("model.kvq", &options);
  kvquant_sequence *sequence = filled_sequence(another, 120), *loaded = NULL;
  CHECK_OK(kvquant_sequence_save(sequence, path_of("saved.kvs")));
  CHECK_OK(kvquant_sequence_load(cache, path_of("saved.kvs"), &loaded));
  CHECK(tokens_of(loaded) == 120);
  CHECK_OK(append_tokens(loaded, 120, PREFIX - 120));
  check_answers(cache, loaded);

  kvquant_cache* foreign = make_cache("another_model.kvq");
  kvquant_sequence* refused = loaded;
  CHECK_FAILS(kvquant_sequence_load(foreign, path_of("saved.kvs"), &refused), KVQUANT_ERROR_BAD_FORMAT, "saved.kvs");
  CHECK(refused == NULL);
  CHECK_FAILS(kvquant_sequence_load(cache, path_of("model.kvq"), &refused), KVQUANT_ERROR_BAD_FILE, "model.kvq");
  CHECK_FAILS(kvquant_sequence_load(cache, path_of("absent.kvs"), &refused), KVQUANT_ERROR_BAD_FILE, "absent.kvs");
  CHECK_FAILS(kvquant_sequence_load(cache, NULL, &refused), KVQUANT_ERROR_BAD_VALUE, "path is NULL");
  CHECK_FAILS(kvquant_sequence_save(loaded, path_of("absent/saved.kvs")), KVQUANT_ERROR_BAD_FILE, "absent");
  CHECK_FAILS(kvquant_sequence_save(loaded, NULL), KVQUANT_ERROR_BAD_VALUE, "path is NULL");
  CHECK_OK(kvquant_sequence_close(loaded));
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(foreign));
  CHECK_OK(kvquant_cache_close(another));
  CHECK_OK(kvquant_cache_close(cache));
}

struct test_case const sequence_cases[] = {
    {"attention is that of the engine", attention_is_that_of_the_engine},
    {"appending and attending is that of the engine", appending_and_attending_is_that_of_the_engine},
    {"a batch is answered as each alone", a_batch_is_answered_as_each_alone},
    {"window, scale and rotation matter", window_scale_and_rotation_matter},
    {"a fork goes its own way", a_fork_goes_its_own_way},
    {"tokens are cut and dropped", tokens_are_cut_and_dropped},
    {"a full cache says so and loses nothing", a_full_cache_says_so_and_loses_nothing},
    {"a saved sequence goes on in another cache", a_saved_sequence_goes_on_in_another_cache},
    {NULL, NULL}};
