/* Artifacts and backends. */
#include <stdio.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

static void an_artifact_says_what_it_is(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  kvquant_artifact_info info = {.size = sizeof info};
  CHECK_OK(kvquant_artifact_get_info(artifact, &info));
  CHECK(strcmp(info.format, "nuq3") == 0);
  CHECK(strcmp(info.model_name, "a small model") == 0);
  CHECK(strcmp(info.model_hash, "0123") == 0);
  CHECK(strcmp(info.library_version, KVQUANT_VERSION) == 0);
  CHECK(strlen(info.hash) == 16);
  CHECK(info.key_bits == 3 && info.value_bits == 3);
  CHECK(info.key_outlier_fraction == 0.02 && info.value_outlier_fraction == 0.05);
  CHECK(info.sinks == 1 && info.q_norm == 0);
  kvquant_model_shape shape = {.size = sizeof shape};
  CHECK_OK(kvquant_artifact_get_shape(artifact, &shape));
  CHECK(shape.layers == LAYERS && shape.q_heads == Q_HEADS && shape.kv_heads == KV_HEADS && shape.head_dim == HEAD_DIM);
  CHECK(shape.rope->enabled == 1 && shape.rope->theta == 10000 && shape.rope->scaling == KVQUANT_ROPE_NOT_SCALED);
  CHECK(shape.local_layers == NULL && shape.local_layer_count == 0 && shape.local_rope == NULL);
  CHECK_OK(kvquant_artifact_close(artifact));
}

static void layers_with_a_window_are_named(void) {
  kvquant_artifact* artifact = open_artifact("windows.kvq");
  kvquant_model_shape shape = {.size = sizeof shape};
  CHECK_OK(kvquant_artifact_get_shape(artifact, &shape));
  CHECK(shape.local_layer_count == 1 && shape.local_layers[0] == 1 && shape.local_window == 100);
  CHECK(shape.local_rope->theta == 500 && shape.rope->theta == 10000);
  CHECK_OK(kvquant_artifact_require_model(artifact, "a small model", "0123", &shape));
  shape.local_window = 101;
  CHECK_FAILS(kvquant_artifact_require_model(artifact, "a small model", "0123", &shape), KVQUANT_ERROR_BAD_FORMAT,
              "a window of 101");
  CHECK_OK(kvquant_artifact_close(artifact));
}

static void an_artifact_belongs_to_one_model(void) {
  kvquant_artifact* artifact = open_artifact("another_model.kvq");
  kvquant_model_shape shape = {.size = sizeof shape};
  CHECK_OK(kvquant_artifact_get_shape(artifact, &shape));
  shape.rope = NULL;
  CHECK_OK(kvquant_artifact_require_model(artifact, "another model", "89ab", &shape));
  CHECK_FAILS(kvquant_artifact_require_model(artifact, "mine", "0123", &shape), KVQUANT_ERROR_BAD_FORMAT,
              "the artifact was made for \"another model\"");
  shape.layers = 3;
  CHECK_FAILS(kvquant_artifact_require_model(artifact, "another model", "89ab", &shape), KVQUANT_ERROR_BAD_FORMAT,
              "3 layers");
  CHECK_FAILS(kvquant_artifact_require_model(artifact, "another model", NULL, &shape), KVQUANT_ERROR_BAD_VALUE,
              "model_hash is NULL");
  CHECK_FAILS(kvquant_artifact_require_model(artifact, "another model", "89ab", NULL), KVQUANT_ERROR_BAD_VALUE,
              "shape is NULL");
  CHECK_OK(kvquant_artifact_close(artifact));
}

static void what_is_no_artifact_is_refused(void) {
  kvquant_artifact* artifact = (kvquant_artifact*)&fixture;
  CHECK_FAILS(kvquant_artifact_open(path_of("tokens.bin"), &artifact), KVQUANT_ERROR_BAD_FILE, "tokens.bin");
  CHECK(artifact == NULL);
  CHECK_FAILS(kvquant_artifact_open(fixture.folder, &artifact), KVQUANT_ERROR_BAD_FILE, fixture.folder);
  CHECK_FAILS(kvquant_artifact_open(NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "path is NULL");
  CHECK_FAILS(kvquant_artifact_open(path_of("model.kvq"), NULL), KVQUANT_ERROR_BAD_VALUE, "out is NULL");

  static char content[1 << 20]; /* of the artifact, without its end */
  FILE* file = fopen(path_of("model.kvq"), "rb");
  size_t const bytes = fread(content, 1, sizeof content, file);
  fclose(file);
  file = fopen(path_of("cut.kvq"), "wb");
  fwrite(content, 1, bytes - 4, file);
  fclose(file);
  CHECK_FAILS(kvquant_artifact_open(path_of("cut.kvq"), &artifact), KVQUANT_ERROR_BAD_FILE, "cut.kvq");
  content[bytes - 4] ^= 1;
  file = fopen(path_of("cut.kvq"), "wb");
  fwrite(content, 1, bytes, file);
  fclose(file);
  CHECK_FAILS(kvquant_artifact_open(path_of("cut.kvq"), &artifact), KVQUANT_ERROR_BAD_FILE, "hash");
}

static kvquant_model_shape shape_with(kvquant_rope const* rope) {
  kvquant_model_shape shape = {.size = sizeof shape,
                               .layers = LAYERS,
                               .q_heads = Q_HEADS,
                               .kv_heads = KV_HEADS,
                               .head_dim = HEAD_DIM,
                               .rope = rope};
  return shape;
}

static void an_exact_artifact_needs_a_shape_alone(void) {
  float const factors[HEAD_DIM / 2] = {1, 2, 3};
  kvquant_rope rope = kvquant_rope_default(), local_rope = kvquant_rope_default();
  rope.theta = 500000;
  rope.pairing = KVQUANT_ROPE_INTERLEAVED;
  rope.scaling = KVQUANT_ROPE_LINEAR;
  rope.factor = 8;
  rope.frequency_factors = factors;
  rope.frequency_factor_count = HEAD_DIM / 2;
  local_rope.pairing = KVQUANT_ROPE_INTERLEAVED;
  kvquant_model_shape shape = shape_with(&rope), found = {.size = sizeof found};
  int32_t const local[] = {0};
  shape.local_layers = local;
  shape.local_layer_count = 1;
  shape.local_window = 80;
  shape.local_rope = &local_rope;
  kvquant_artifact* artifact = NULL;
  CHECK_OK(kvquant_artifact_make_f16(&shape, "mine", "cafe", &artifact));
  CHECK_OK(kvquant_artifact_get_shape(artifact, &found));
  CHECK(found.rope->theta == 500000 && found.rope->factor == 8 && found.rope->scaling == KVQUANT_ROPE_LINEAR);
  CHECK(found.rope->pairing == KVQUANT_ROPE_INTERLEAVED && found.rope->frequency_factor_count == HEAD_DIM / 2);
  CHECK(memcmp(found.rope->frequency_factors, factors, sizeof factors) == 0);
  CHECK(found.local_layers != local && found.local_layers[0] == 0 && found.local_window == 80);
  kvquant_artifact_info info = {.size = sizeof info};
  CHECK_OK(kvquant_artifact_get_info(artifact, &info));
  CHECK(strcmp(info.format, "f16") == 0 && info.key_bits == 16 && strcmp(info.model_hash, "cafe") == 0);
  CHECK(strcmp(info.hash, "") == 0);
  CHECK_OK(kvquant_artifact_close(artifact));
}

static void shapes_that_cannot_be_are_refused(void) {
  kvquant_rope rope = kvquant_rope_default();
  kvquant_artifact* artifact = NULL;
  kvquant_model_shape shape = shape_with(&rope);
  shape.q_heads = 3;
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_SHAPE, "q_heads is 3");
  shape = shape_with(NULL);
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "rope is NULL");
  shape = shape_with(&rope);
  shape.local_layer_count = 2;
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "local_layers");
  shape = shape_with(&rope);
  rope.scaling = 9;
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "rope.scaling is 9");
  rope = kvquant_rope_default();
  rope.pairing = -1;
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "rope.pairing is -1");
  rope = kvquant_rope_default();
  rope.frequency_factor_count = 1 << 20;
  CHECK_FAILS(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_SHAPE, "frequency_factors");
  CHECK_FAILS(kvquant_artifact_make_f16(NULL, NULL, NULL, &artifact), KVQUANT_ERROR_BAD_VALUE, "shape is NULL");
  CHECK(artifact == NULL);
}

static void backends_have_names(void) {
  CHECK(kvquant_backend_count() >= 3);
  int defaults = 0;
  for (size_t i = 0; i < kvquant_backend_count(); ++i)
    defaults += strcmp(kvquant_backend_name(i), kvquant_default_backend()) == 0;
  CHECK(defaults == 1);
  CHECK(kvquant_backend_name(kvquant_backend_count()) == NULL);
}

static void a_backend_says_what_it_lacks(void) {
  kvquant_artifact* artifact = open_artifact("model.kvq");
  CHECK_OK(kvquant_supports(kvquant_default_backend(), artifact));
  CHECK_OK(kvquant_supports("cpu-generic", artifact));
  CHECK_FAILS(kvquant_supports("abacus", artifact), KVQUANT_ERROR_UNSUPPORTED, "expected one of cpu");
  CHECK_FAILS(kvquant_supports(NULL, artifact), KVQUANT_ERROR_BAD_VALUE, "backend is NULL");
  CHECK_OK(kvquant_artifact_close(artifact));

  kvquant_rope const rope = kvquant_rope_default();
  kvquant_model_shape shape = shape_with(&rope);
  shape.head_dim = 24; /* no multiple of what the fast kernels read at once */
  CHECK_OK(kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact));
  CHECK_FAILS(kvquant_supports("cpu", artifact), KVQUANT_ERROR_UNSUPPORTED, "cpu: not supported: head_dim 24");
  kvquant_cache_options options = small_options();
  options.backend = "cpu";
  kvquant_cache* cache = NULL;
  CHECK_FAILS(kvquant_cache_create(artifact, &options, &cache), KVQUANT_ERROR_UNSUPPORTED, "not supported: ");
  CHECK_OK(kvquant_artifact_close(artifact));
}

struct test_case const artifact_cases[] = {
    {"an artifact says what it is", an_artifact_says_what_it_is},
    {"layers with a window are named", layers_with_a_window_are_named},
    {"an artifact belongs to one model", an_artifact_belongs_to_one_model},
    {"what is no artifact is refused", what_is_no_artifact_is_refused},
    {"an exact artifact needs a shape alone", an_exact_artifact_needs_a_shape_alone},
    {"shapes that cannot be are refused", shapes_that_cannot_be_are_refused},
    {"backends have names", backends_have_names},
    {"a backend says what it lacks", a_backend_says_what_it_lacks},
    {NULL, NULL}};
