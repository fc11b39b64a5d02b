/* Caches: what they are made of and what they report. */
#include <stdlib.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

static void a_cache_says_what_it_is(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_cache_info info = {.size = sizeof info};
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(strcmp(info.backend, kvquant_default_backend()) == 0);
  CHECK(info.layers == LAYERS && info.kv_channels == KV_CHANNELS && info.q_channels == Q_CHANNELS);
  CHECK(info.sinks == 1 && info.recent_pages == 0 && info.workers == 1);
  CHECK(info.free_pages == LAYERS * 1024 / KVQUANT_PAGE_TOKENS);
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(info.free_pages == LAYERS * (1024 - 192) / KVQUANT_PAGE_TOKENS);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(info.free_pages == LAYERS * 1024 / KVQUANT_PAGE_TOKENS);
  CHECK_OK(kvquant_cache_close(cache));
}

static void every_option_arrives(void) {
  kvquant_cache_options options = small_options();
  CHECK(options.size == sizeof options && options.sinks == KVQUANT_SINKS_OF_ARTIFACT && options.rewind_tokens == 64);
  options.backend = "cpu-generic";
  options.max_tokens = 500;
  options.sinks = 5;
  options.recent_pages = 2;
  options.threads = 2;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  kvquant_cache_info info = {.size = sizeof info};
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(strcmp(info.backend, "cpu-generic") == 0);
  CHECK(info.sinks == 5 && info.recent_pages == 2 && info.workers == 2 && info.free_pages == LAYERS * 8);
  CHECK_OK(kvquant_cache_close(cache));
  options.sinks = 0;
  options.threads = 0;
  cache = make_cache_with("model.kvq", &options);
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(info.sinks == 0 && info.workers >= 1);
  CHECK_OK(kvquant_cache_close(cache));

  options = small_options(); /* of layers with a window */
  kvquant_bytes all = {.size = sizeof all}, of_windows = {.size = sizeof of_windows}, rewindable = of_windows;
  kvquant_cache* caches[3];
  options.max_tokens = 4096;
  caches[0] = make_cache_with("windows.kvq", &options);
  options.max_sequences = 1;
  caches[1] = make_cache_with("windows.kvq", &options);
  options.rewind_tokens = 640;
  caches[2] = make_cache_with("windows.kvq", &options);
  CHECK_OK(kvquant_cache_get_bytes(caches[0], &all));
  CHECK_OK(kvquant_cache_get_bytes(caches[1], &of_windows));
  CHECK_OK(kvquant_cache_get_bytes(caches[2], &rewindable));
  CHECK(of_windows.total <= rewindable.total && rewindable.total <= all.total);
  for (size_t i = 0; i < 3; ++i) CHECK_OK(kvquant_cache_close(caches[i]));
}

static void options_that_cannot_be_are_refused(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  kvquant_cache* cache = (kvquant_cache*)artifact;
  kvquant_executor executor = {.size = sizeof executor, .workers = 1};
  struct {
    kvquant_cache_options options;
    kvquant_status status;
    char const* words;
  } wrong[9];
  for (size_t i = 0; i < 9; ++i) {
    wrong[i].options = small_options();
    wrong[i].status = KVQUANT_ERROR_BAD_VALUE;
  }
  wrong[0].options.threads = -1, wrong[0].words = "threads is -1";
  wrong[1].options.threads = 1 << 20, wrong[1].words = "threads is 1048576";
  wrong[2].options.sinks = -2, wrong[2].words = "sinks is -2";
  wrong[3].options.recent_pages = -1, wrong[3].words = "recent_pages is -1";
  wrong[4].options.rewind_tokens = -1, wrong[4].words = "rewind_tokens is -1";
  wrong[5].options.max_tokens = (size_t)-1, wrong[5].words = "max_tokens is";
  wrong[6].options.backend = "abacus", wrong[6].words = "backend \"abacus\"";
  wrong[6].status = KVQUANT_ERROR_UNSUPPORTED;
  wrong[7].options.executor = &executor, wrong[7].words = "executor.run is NULL";
  wrong[8].options.size = 0, wrong[8].words = "options.size is 0";
  for (size_t i = 0; i < 9; ++i) {
    CHECK_FAILS(kvquant_cache_create(artifact, &wrong[i].options, &cache), wrong[i].status, wrong[i].words);
    CHECK(cache == NULL);
  }
  CHECK_FAILS(kvquant_cache_create(artifact, NULL, &cache), KVQUANT_ERROR_BAD_VALUE, "options is NULL");
  kvquant_cache_options const options = small_options();
  CHECK_FAILS(kvquant_cache_create(artifact, &options, NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");
  CHECK_OK(kvquant_artifact_close(artifact));
}

/* The sanitizers and valgrind end a program whose `new` fails. */
#if defined(__has_feature)
#define HAS_FEATURE(it) __has_feature(it)
#else
#define HAS_FEATURE(it) 0
#endif
static bool memory_may_run_out(void) {
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
  return false;
#else
  return getenv("KVQUANT_TEST_UNDER_VALGRIND") == NULL;
#endif
}
static void more_than_memory_has_is_an_error(void) {
  if (!memory_may_run_out()) return;
  kvquant_rope const rope = kvquant_rope_default();
  kvquant_model_shape const shape = {
      .size = sizeof shape, .layers = 1, .q_heads = 256, .kv_heads = 256, .head_dim = 256, .rope = &rope};
  kvquant_artifact* artifact = NULL;
  kvquant_cache* cache = NULL;
  CHECK_OK(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact));
  kvquant_cache_options options = small_options();
  options.max_tokens = (size_t)1 << 30; /* of 256 KiB each: 2^48 bytes */
  CHECK_FAILS(kvquant_cache_create(artifact, &options, &cache), KVQUANT_ERROR_OUT_OF_MEMORY, "not enough memory");
  CHECK(cache == NULL);
  CHECK_OK(kvquant_artifact_close(artifact));
}

static size_t sum_of(kvquant_bytes const* it) {
  return it->codes + it->value_ranges + it->slots + it->padding + it->sinks + it->tail + it->tables + it->page_table +
         it->slack;
}

static void every_byte_is_counted(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  kvquant_bytes of_cache = {.size = sizeof of_cache}, of_sequence = {.size = sizeof of_sequence};
  CHECK_OK(kvquant_cache_get_bytes(cache, &of_cache));
  CHECK_OK(kvquant_sequence_get_bytes(sequence, &of_sequence));
  CHECK(of_cache.total == sum_of(&of_cache) && of_sequence.total == sum_of(&of_sequence));
  size_t const codes = (size_t)LAYERS * 3 * KVQUANT_PAGE_TOKENS * 2 * KV_CHANNELS * 3 / 8;
  CHECK(of_cache.codes == codes && of_sequence.codes == codes);
  CHECK(of_cache.sinks == 0 && of_sequence.sinks == (size_t)LAYERS * 2 * KV_CHANNELS * 2);
  CHECK(of_sequence.tail == (size_t)LAYERS * 2 * KV_CHANNELS * 2 * (PREFIX - 1 - 3 * KVQUANT_PAGE_TOKENS));
  CHECK(of_cache.elements == 0 && of_sequence.elements == (size_t)2 * PREFIX * LAYERS * KV_CHANNELS);
  kvquant_clamps clamps = {.size = sizeof clamps, .keys = 5};
  CHECK_OK(kvquant_cache_get_clamps(cache, &clamps));
  CHECK(clamps.clamped_keys <= clamps.keys && clamps.clamped_values <= clamps.values && clamps.keys != 5);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

/* Another KV cache of the same tokens in binary16: near the answers of 3 bits, and not the same. */
static void an_exact_cache_needs_no_calibration(void) {
  kvquant_artifact *coded = open_artifact("model.kvq"), *exact = NULL;
  kvquant_model_shape shape = {.size = sizeof shape};
  CHECK_OK(kvquant_artifact_get_shape(coded, &shape));
  CHECK_OK(kvquant_artifact_make_f16(&shape, NULL, NULL, &exact));
  kvquant_cache_options const options = small_options();
  kvquant_cache* cache = NULL;
  CHECK_OK(kvquant_cache_create(exact, &options, &cache));
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  struct answer found = {0};
  kvquant_query const query = question(sequence, 0, &found);
  CHECK_OK(kvquant_attend(cache, 0, &query, 1));
  double error = 0, norm = 0;
  for (size_t i = 0; i < ROWS * Q_CHANNELS; ++i) {
    double const expected = fixture.answers[0].out[i], off = found.out[i] - expected;
    error += off * off;
    norm += expected * expected;
  }
  CHECK(error > 0 && error < 0.25 * norm);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
  CHECK_OK(kvquant_artifact_close(exact));
  CHECK_OK(kvquant_artifact_close(coded));
}

struct test_case const cache_cases[] = {{"a cache says what it is", a_cache_says_what_it_is},
                                        {"every option arrives", every_option_arrives},
                                        {"options that cannot be are refused", options_that_cannot_be_are_refused},
                                        {"more than memory has is an error", more_than_memory_has_is_an_error},
                                        {"every byte is counted", every_byte_is_counted},
                                        {"an exact cache needs no calibration", an_exact_cache_needs_no_calibration},
                                        {NULL, NULL}};
