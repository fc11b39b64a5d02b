/* A program that knows the C interface only as an installed package. */
#include <kvquant.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  kvquant_rope const rope = kvquant_rope_default();
  kvquant_model_shape const shape = {
      .size = sizeof shape, .layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 64, .rope = &rope};
  kvquant_artifact* artifact = NULL;
  kvquant_cache* cache = NULL;
  kvquant_cache_options options = kvquant_cache_options_default();
  options.max_tokens = 128;
  if (kvquant_artifact_make_f16(&shape, NULL, NULL, &artifact) != KVQUANT_OK ||
      kvquant_cache_create(artifact, &options, &cache) != KVQUANT_OK || kvquant_cache_close(cache) != KVQUANT_OK ||
      kvquant_artifact_close(artifact) != KVQUANT_OK) {
    printf("%s\n", kvquant_last_error());
    return 1;
  }
  printf("%s %s\n", kvquant_version(), kvquant_default_backend());
  return strcmp(kvquant_version(), KVQUANT_VERSION) == 0 ? 0 : 1;
}
