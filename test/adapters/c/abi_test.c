/* What programs that were compiled before rely on: sizes and places of members, values of constants. No struct ends
   with padding, which a member of a later version would find unset. */
#include <stdlib.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

#define HAS(type, total, member, place)                               \
  _Static_assert(sizeof(type) == (total), #type " has another size"); \
  _Static_assert(offsetof(type, member) == (place), #type " has its last member elsewhere")

HAS(kvquant_rope, 104, frequency_factor_count, 96);
HAS(kvquant_model_shape, 64, local_rope, 56);
HAS(kvquant_artifact_info, 120, q_norm, 116);
HAS(kvquant_executor, 32, run, 24);
HAS(kvquant_cache_options, 56, executor, 48);
HAS(kvquant_cache_info, 48, workers, 44);
HAS(kvquant_bytes, 96, elements, 88);
HAS(kvquant_clamps, 40, clamped_values, 32);
HAS(kvquant_query, 96, reserved, 92);

_Static_assert(KVQUANT_OK == 0 && KVQUANT_ERROR_BAD_SHAPE == 1 && KVQUANT_ERROR_BAD_VALUE == 2 &&
                   KVQUANT_ERROR_BAD_FORMAT == 3 && KVQUANT_ERROR_BAD_FILE == 4 && KVQUANT_ERROR_OUT_OF_PAGES == 5 &&
                   KVQUANT_ERROR_UNSUPPORTED == 6 && KVQUANT_ERROR_DEVICE == 7 && KVQUANT_ERROR_BAD_HANDLE == 8 &&
                   KVQUANT_ERROR_BUSY == 9 && KVQUANT_ERROR_OUT_OF_MEMORY == 10 && KVQUANT_ERROR_EXECUTOR == 11 &&
                   KVQUANT_ERROR_BROKEN == 12 && KVQUANT_ERROR_INTERNAL == 13,
               "a status has another number");
_Static_assert(KVQUANT_F32 == 0 && KVQUANT_F16 == 1 && KVQUANT_BF16 == 2, "a dtype has another number");

static void the_version_is_that_of_the_build(void) {
  CHECK(strcmp(kvquant_version(), KVQUANT_BUILD_VERSION) == 0);
  CHECK(strcmp(KVQUANT_VERSION, KVQUANT_BUILD_VERSION) == 0);
  CHECK(kvquant_version_number() == KVQUANT_VERSION_NUMBER);
  char* end = NULL;
  CHECK(strtol(KVQUANT_VERSION, &end, 10) == KVQUANT_VERSION_MAJOR);
  CHECK(strtol(end + 1, &end, 10) == KVQUANT_VERSION_MINOR);
  CHECK(strtol(end + 1, &end, 10) == KVQUANT_VERSION_PATCH);
}

static void every_status_has_a_name_of_its_own(void) {
  for (kvquant_status one = KVQUANT_OK; one <= KVQUANT_ERROR_INTERNAL; ++one) {
    CHECK(strcmp(kvquant_status_name(one), "unknown") != 0);
    for (kvquant_status other = KVQUANT_OK; other < one; ++other)
      CHECK(strcmp(kvquant_status_name(one), kvquant_status_name(other)) != 0);
  }
  CHECK(strcmp(kvquant_status_name(KVQUANT_ERROR_OUT_OF_PAGES), "out_of_pages") == 0);
  CHECK(strcmp(kvquant_status_name(KVQUANT_ERROR_INTERNAL + 1), "unknown") == 0);
  CHECK(strcmp(kvquant_status_name(-1), "unknown") == 0);
}

static void the_text_of_an_error_stays_until_the_next_one(void) {
  kvquant_artifact* artifact = NULL;
  CHECK_FAILS(kvquant_artifact_open(path_of("absent.kvq"), &artifact), KVQUANT_ERROR_BAD_FILE, "absent.kvq");
  CHECK(strncmp(kvquant_last_error(), "kvquant_artifact_open: ", 23) == 0);
  kvquant_cache* cache = make_cache("model.kvq");
  CHECK_OK(kvquant_cache_close(cache));
  CHECK(strstr(kvquant_last_error(), "absent.kvq") != NULL);
  CHECK_FAILS(kvquant_cache_close(cache), KVQUANT_ERROR_BAD_HANDLE, "closed");
  CHECK(strstr(kvquant_last_error(), "absent.kvq") == NULL);
}

/* A program that knows fewer members, and one that knows more. */
struct newer_options {
  kvquant_cache_options known;
  uint64_t further;
};
static void structs_of_other_versions_are_understood(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  kvquant_cache* cache = NULL;
  kvquant_cache_options options = small_options();
  options.size = offsetof(kvquant_cache_options, threads);
  options.threads = -7; /* beyond the end of what the program knows */
  CHECK_OK(kvquant_cache_create(artifact, &options, &cache));
  CHECK_OK(kvquant_cache_close(cache));

  struct newer_options newer = {.known = small_options()};
  newer.known.size = sizeof newer;
  CHECK_OK(kvquant_cache_create(artifact, &newer.known, &cache));
  newer.further = 1;
  kvquant_cache* refused = NULL;
  CHECK_FAILS(kvquant_cache_create(artifact, &newer.known, &refused), KVQUANT_ERROR_UNSUPPORTED, "options has members");

  struct {
    kvquant_bytes known;
    uint64_t further;
  } bytes = {.known = {.size = sizeof bytes}, .further = 5};
  CHECK_OK(kvquant_cache_get_bytes(cache, &bytes.known));
  CHECK(bytes.further == 0 && bytes.known.total > 0 && bytes.known.size == sizeof bytes);
  kvquant_bytes older = {.size = offsetof(kvquant_bytes, sinks), .sinks = 77, .total = 78};
  CHECK_OK(kvquant_cache_get_bytes(cache, &older));
  CHECK(older.sinks == 77 && older.total == 78 && older.slack == 0);

  kvquant_clamps clamps = {.size = 3};
  CHECK_FAILS(kvquant_cache_get_clamps(cache, &clamps), KVQUANT_ERROR_BAD_VALUE, "out.size is 3, expected 40");
  clamps.size = (size_t)-1;
  CHECK_FAILS(kvquant_cache_get_clamps(cache, &clamps), KVQUANT_ERROR_BAD_VALUE, "out.size is");
  CHECK_FAILS(kvquant_cache_get_clamps(cache, NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");
  CHECK_FAILS(kvquant_cache_options_init(NULL, sizeof options), KVQUANT_ERROR_BAD_VALUE, "options is NULL");
  CHECK_FAILS(kvquant_cache_options_init(&options, 2), KVQUANT_ERROR_BAD_VALUE, "options of 2 bytes, expected 56");
  CHECK_OK(kvquant_cache_close(cache));
  CHECK_OK(kvquant_artifact_close(artifact));
}

struct test_case const abi_cases[] = {
    {"the version is that of the build", the_version_is_that_of_the_build},
    {"every status has a name of its own", every_status_has_a_name_of_its_own},
    {"the text of an error stays until the next one", the_text_of_an_error_stays_until_the_next_one},
    {"structs of other versions are understood", structs_of_other_versions_are_understood},
    {NULL, NULL}};
