#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "adapters/c/objects.hpp"
#include "adapters/c/status.hpp"
#include "adapters/c/structs.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"

namespace kvquant::c {

namespace {

/// The struct with its size; everything else is zero.
template <class T>
T sized() {
  T it{};
  it.size = sizeof(T);
  return it;
}

kvquant_rope rope_of(rope_config const& from) {
  return {.size = sizeof(kvquant_rope),
          .enabled = from.enabled ? 1 : 0,
          .pairing = static_cast<kvquant_rope_pairing>(from.pairing),
          .theta = from.theta,
          .rotary_dim = from.rotary_dim,
          .scaling = static_cast<kvquant_rope_scaling>(from.scaling),
          .factor = from.factor,
          .original_context = from.original_context,
          .low_frequency_factor = from.low_frequency_factor,
          .high_frequency_factor = from.high_frequency_factor,
          .beta_fast = from.beta_fast,
          .beta_slow = from.beta_slow,
          .attention_factor = from.attention_factor,
          .frequency_factors = from.frequency_factors.empty() ? nullptr : from.frequency_factors.data(),
          .frequency_factor_count = from.frequency_factors.size()};
}
static_assert(static_cast<int>(rope_pairing::interleaved) == KVQUANT_ROPE_INTERLEAVED &&
              static_cast<int>(rope_scaling::linear) == KVQUANT_ROPE_LINEAR &&
              static_cast<int>(rope_scaling::ntk) == KVQUANT_ROPE_NTK &&
              static_cast<int>(rope_scaling::llama3) == KVQUANT_ROPE_LLAMA3 &&
              static_cast<int>(rope_scaling::yarn) == KVQUANT_ROPE_YARN);

template <class T>
std::vector<T> array_of(T const* first, std::size_t count, std::size_t most, char const* what) {
  require(count <= most, errc::bad_shape, what, ": ", count, " of them, expected at most ", most);
  require(count == 0 || first != nullptr, errc::bad_value, what, " is NULL, expected ", count, " numbers");
  return {first, first + count};
}

rope_config config_of(kvquant_rope const* given, char const* what) {
  kvquant_rope const from = read_struct(given, what, rope_of({}));
  require(from.pairing >= KVQUANT_ROPE_HALF_SPLIT && from.pairing <= KVQUANT_ROPE_INTERLEAVED, errc::bad_value, what,
          ".pairing is ", from.pairing, ", expected a KVQUANT_ROPE_ pairing");
  require(from.scaling >= KVQUANT_ROPE_NOT_SCALED && from.scaling <= KVQUANT_ROPE_YARN, errc::bad_value, what,
          ".scaling is ", from.scaling, ", expected a KVQUANT_ROPE_ scaling");
  return {
      .enabled = from.enabled != 0,
      .pairing = static_cast<rope_pairing>(from.pairing),
      .theta = from.theta,
      .rotary_dim = from.rotary_dim,
      .scaling = static_cast<rope_scaling>(from.scaling),
      .factor = from.factor,
      .original_context = from.original_context,
      .low_frequency_factor = from.low_frequency_factor,
      .high_frequency_factor = from.high_frequency_factor,
      .beta_fast = from.beta_fast,
      .beta_slow = from.beta_slow,
      .attention_factor = from.attention_factor,
      .frequency_factors = array_of(from.frequency_factors, from.frequency_factor_count, 1 << 12, "frequency_factors")};
}

enum class ropes { needed, not_needed };

model_shape shape_of(kvquant_model_shape const* given, ropes needs) {
  kvquant_model_shape const from = read_struct(given, "shape");
  model_shape it{.layers = from.layers, .q_heads = from.q_heads, .kv_heads = from.kv_heads, .head_dim = from.head_dim};
  it.local = {.layers = array_of(from.local_layers, from.local_layer_count, 1 << 16, "local_layers"),
              .window = from.local_window};
  if (needs == ropes::needed) {
    it.rope = config_of(from.rope, "rope");
    if (!it.local.layers.empty()) it.local.rope = config_of(from.local_rope, "local_rope");
  }
  validate(it);
  return it;
}

struct code_bits {
  double key, value;
};
code_bits code_bits_of(artifact_info const& info) {
  code_bits bits{};
  visit_spec(info.spec, [&]<class S>(std::type_identity<S>) {
    bits = {static_cast<double>(S::key_format::bits), static_cast<double>(S::value_format::bits)};
  });
  if (info.key_token_bits > 0) bits.key = static_cast<double>(info.key_token_bits) / info.shape.head_dim;
  if (info.value_token_bits > 0) bits.value = static_cast<double>(info.value_token_bits) / info.shape.head_dim;
  return bits;
}

void make(any_artifact it, kvquant_artifact** out) {
  *out = give_handle<kvquant_artifact>(std::make_shared<artifact_object>(std::move(it)));
}

std::string or_empty(char const* text) { return text == nullptr ? "" : text; }

}  // namespace

artifact_object::artifact_object(any_artifact it)
    : it_(std::move(it)),
      rope_(rope_of(it_.info.shape.rope)),
      local_rope_(rope_of(it_.info.shape.local.rope)),
      shape_(sized<kvquant_model_shape>()),
      info_(sized<kvquant_artifact_info>()) {
  model_shape const& shape = it_.info.shape;
  shape_.layers = shape.layers;
  shape_.q_heads = shape.q_heads;
  shape_.kv_heads = shape.kv_heads;
  shape_.head_dim = shape.head_dim;
  shape_.rope = &rope_;
  if (!shape.local.layers.empty()) {
    shape_.local_layers = shape.local.layers.data();
    shape_.local_layer_count = shape.local.layers.size();
    shape_.local_window = shape.local.window;
    shape_.local_rope = &local_rope_;
  }
  code_bits const bits = code_bits_of(it_.info);
  provenance const& origin = it_.info.origin;
  info_.format = it_.info.spec.c_str();
  info_.model_name = origin.model_name.c_str();
  info_.model_hash = origin.model_hash.c_str();
  info_.tokenizer_hash = origin.tokenizer_hash.c_str();
  info_.text_hash = origin.text_hash.c_str();
  info_.library_version = origin.library_version.c_str();
  info_.hash = it_.info.hash.c_str();
  info_.key_bits = bits.key;
  info_.value_bits = bits.value;
  info_.key_outlier_fraction = it_.info.outlier_fraction_k;
  info_.value_outlier_fraction = it_.info.outlier_fraction_v;
  info_.seed = origin.seed;
  info_.sinks = it_.info.sinks;
  info_.samples = origin.samples;
  info_.context = origin.context;
  info_.q_norm = it_.info.q_norm ? 1 : 0;
}

}  // namespace kvquant::c

using namespace kvquant::c;

kvquant_status kvquant_artifact_open(char const* path, kvquant_artifact** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    make(kvquant::load_any_artifact(text_of(path, "path")), out);
  });
}

kvquant_status kvquant_artifact_make_f16(kvquant_model_shape const* shape, char const* model_name,
                                         char const* model_hash, kvquant_artifact** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    auto exact = kvquant::make_passthrough_artifact(shape_of(shape, ropes::needed));
    exact.info.origin.model_name = or_empty(model_name);
    exact.info.origin.model_hash = or_empty(model_hash);
    make(std::move(exact), out);
  });
}

kvquant_status kvquant_artifact_get_info(kvquant_artifact* artifact, kvquant_artifact_info* out) {
  return guarded(__func__, [&] { write_struct(out, "out", object_of(artifact)->info()); });
}

kvquant_status kvquant_artifact_get_shape(kvquant_artifact* artifact, kvquant_model_shape* out) {
  return guarded(__func__, [&] { write_struct(out, "out", object_of(artifact)->shape()); });
}

kvquant_status kvquant_artifact_require_model(kvquant_artifact* artifact, char const* model_name,
                                              char const* model_hash, kvquant_model_shape const* shape) {
  return guarded(__func__, [&] {
    auto const of = object_of(artifact);
    kvquant::require_made_for(of->get().info, text_of(model_name, "model_name"), text_of(model_hash, "model_hash"),
                              shape_of(shape, ropes::not_needed));
  });
}

kvquant_status kvquant_artifact_close(kvquant_artifact* artifact) {
  return guarded(__func__, [&] { close_handle(artifact); });
}

kvquant_status kvquant_rope_init(kvquant_rope* rope, std::size_t size) {
  return guarded(__func__, [&] { init_struct(rope, "rope", size, rope_of({})); });
}
