/* Handles that are closed, NULL, of another kind, or none at all. */
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

/* Every function that takes a handle, with one that is to be refused. */
static void check_artifact_refused(kvquant_artifact* wrong, char const* words) {
  kvquant_artifact_info info = {.size = sizeof info};
  kvquant_model_shape shape = {.size = sizeof shape};
  kvquant_cache_options const options = small_options();
  kvquant_cache* cache = NULL;
  CHECK_FAILS(kvquant_artifact_get_info(wrong, &info), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_artifact_get_shape(wrong, &shape), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_artifact_require_model(wrong, "", "", &shape), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_supports("cpu", wrong), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_cache_create(wrong, &options, &cache), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK(cache == NULL);
}

static void check_cache_refused(kvquant_cache* wrong, char const* words) {
  kvquant_cache_info info = {.size = sizeof info};
  kvquant_bytes bytes = {.size = sizeof bytes};
  kvquant_clamps clamps = {.size = sizeof clamps};
  kvquant_sequence* sequence = NULL;
  CHECK_FAILS(kvquant_cache_get_info(wrong, &info), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_cache_get_bytes(wrong, &bytes), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_cache_get_clamps(wrong, &clamps), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_open(wrong, 0, &sequence), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_load(wrong, path_of("x.kvs"), &sequence), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_attend(wrong, 0, NULL, 0), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK(sequence == NULL);
}

static void check_sequence_refused(kvquant_cache* cache, kvquant_sequence* wrong, char const* words) {
  kvquant_bytes bytes = {.size = sizeof bytes};
  kvquant_sequence* fork = NULL;
  struct answer found = {0};
  kvquant_query query = question(wrong, 0, &found);
  size_t tokens = 5;
  float const* k = fixture.tokens[0].k;
  CHECK_FAILS(kvquant_sequence_fork(wrong, &fork), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_save(wrong, path_of("x.kvs")), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_get_tokens(wrong, &tokens), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_get_bytes(wrong, &bytes), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_reserve(wrong, 1), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_truncate(wrong, 0), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_sequence_drop(wrong, 1, 64), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_append(wrong, 0, 1, KVQUANT_F32, k, 0, k, 0), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_HANDLE, words);
  query.score_max = query.score_sum = NULL;
  CHECK_FAILS(kvquant_append_and_attend(0, KVQUANT_F32, k, 0, k, 0, &query), KVQUANT_ERROR_BAD_HANDLE, words);
  CHECK(fork == NULL && tokens == 0);
}

static void null_is_refused_and_closing_it_does_nothing(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  check_artifact_refused(NULL, "the handle is NULL, expected an artifact");
  check_cache_refused(NULL, "the handle is NULL, expected a cache");
  check_sequence_refused(cache, NULL, "the handle is NULL, expected a sequence");
  CHECK_OK(kvquant_artifact_close(NULL));
  CHECK_OK(kvquant_cache_close(NULL));
  CHECK_OK(kvquant_sequence_close(NULL));
  CHECK_OK(kvquant_cache_close(cache));
}

static void what_was_closed_is_refused_for_good(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  kvquant_cache *cache = make_cache("model.kvq"), *closed_cache = make_cache("model.kvq");
  kvquant_sequence* sequence = open_sequence(cache);
  CHECK_OK(kvquant_artifact_close(artifact));
  CHECK_OK(kvquant_cache_close(closed_cache));
  CHECK_OK(kvquant_sequence_close(sequence));
  for (int reused = 0; reused < 2; ++reused) { /* with their slots free, and taken by others */
    check_artifact_refused(artifact, "the handle was closed, expected an artifact");
    check_cache_refused(closed_cache, "the handle was closed, expected a cache");
    check_sequence_refused(cache, sequence, "the handle was closed, expected a sequence");
    CHECK_FAILS(kvquant_artifact_close(artifact), KVQUANT_ERROR_BAD_HANDLE, "was closed");
    CHECK_FAILS(kvquant_cache_close(closed_cache), KVQUANT_ERROR_BAD_HANDLE, "was closed");
    CHECK_FAILS(kvquant_sequence_close(sequence), KVQUANT_ERROR_BAD_HANDLE, "was closed");
    for (int i = 0; i < 100 && reused == 0; ++i) {
      kvquant_sequence* other = open_sequence(cache);
      CHECK(other != sequence);
      CHECK_OK(kvquant_sequence_close(other));
    }
  }
  CHECK_OK(kvquant_cache_close(cache));
}

static void handles_of_another_kind_are_refused(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = open_sequence(cache);
  check_artifact_refused((kvquant_artifact*)cache, "the handle is a cache, expected an artifact");
  check_cache_refused((kvquant_cache*)sequence, "the handle is a sequence, expected a cache");
  check_sequence_refused(cache, (kvquant_sequence*)artifact, "the handle is an artifact, expected a sequence");
  CHECK_FAILS(kvquant_cache_close((kvquant_cache*)sequence), KVQUANT_ERROR_BAD_HANDLE, "is a sequence");
  CHECK(tokens_of(sequence) == 0);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
  CHECK_OK(kvquant_artifact_close(artifact));
}

static void addresses_and_garbage_are_no_handles(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence* sequence = open_sequence(cache);
  uintptr_t const garbage[] = {1,
                               (uintptr_t)&fixture,
                               (uintptr_t)sequence ^ ((uintptr_t)1 << 63),
                               (uintptr_t)sequence ^ ((uintptr_t)1 << 27),
                               (uintptr_t)sequence ^ ((uintptr_t)8 << 28),
                               (uintptr_t)sequence + ((uintptr_t)1 << 32),
                               UINTPTR_MAX};
  for (size_t i = 0; i < sizeof garbage / sizeof *garbage; ++i)
    check_sequence_refused(cache, (kvquant_sequence*)garbage[i], "the handle is none of this library");
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

static void a_closed_cache_lives_as_long_as_its_sequences(void) {
  kvquant_cache* cache = make_cache("model.kvq");
  kvquant_sequence *sequence = filled_sequence(cache, 100), *fork = NULL, *loaded = NULL;
  CHECK_OK(kvquant_cache_close(cache));
  CHECK_FAILS(kvquant_sequence_open(cache, 0, &fork), KVQUANT_ERROR_BAD_HANDLE, "was closed");
  CHECK_OK(kvquant_sequence_fork(sequence, &fork));
  CHECK_OK(append_tokens(fork, 100, PREFIX - 100));
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK(tokens_of(fork) == PREFIX);
  CHECK_OK(kvquant_sequence_save(fork, path_of("outlived.kvs")));
  CHECK_OK(kvquant_sequence_close(fork));
  cache = make_cache("model.kvq");
  CHECK_OK(kvquant_sequence_load(cache, path_of("outlived.kvs"), &loaded));
  check_answers(cache, loaded);
  CHECK_OK(kvquant_sequence_close(loaded));
  CHECK_OK(kvquant_cache_close(cache));
}

static void sequences_of_another_cache_are_refused(void) {
  kvquant_cache *cache = make_cache("model.kvq"), *another = make_cache("model.kvq");
  kvquant_sequence *own = filled_sequence(cache, PREFIX), *foreign = filled_sequence(another, PREFIX);
  struct answer found[2];
  memset(found, 0, sizeof found);
  kvquant_query const batch[] = {question(own, 0, &found[0]), question(foreign, 0, &found[1])};
  CHECK_FAILS(kvquant_attend(cache, 0, batch, 2), KVQUANT_ERROR_BAD_VALUE, "the sequence is not one of this engine");
  CHECK(found[0].score_sum[0] == 0);
  CHECK_OK(kvquant_attend(cache, 0, batch, 1));
  CHECK_OK(kvquant_sequence_close(foreign));
  CHECK_OK(kvquant_sequence_close(own));
  CHECK_OK(kvquant_cache_close(another));
  CHECK_OK(kvquant_cache_close(cache));
}

struct test_case const handle_cases[] = {
    {"NULL is refused and closing it does nothing", null_is_refused_and_closing_it_does_nothing},
    {"what was closed is refused for good", what_was_closed_is_refused_for_good},
    {"handles of another kind are refused", handles_of_another_kind_are_refused},
    {"addresses and garbage are no handles", addresses_and_garbage_are_no_handles},
    {"a closed cache lives as long as its sequences", a_closed_cache_lives_as_long_as_its_sequences},
    {"sequences of another cache are refused", sequences_of_another_cache_are_refused},
    {NULL, NULL}};
