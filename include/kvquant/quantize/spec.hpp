#pragma once
/// \file
/// What a cache stores: the shape of the model and the datatypes of both sides.

#include <string>
#include <type_traits>

#include "kvquant/core/error.hpp"
#include "kvquant/core/type_list.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/rope/rope_config.hpp"

namespace kvquant {

/// Run-time values; kernels dispatch on them.
struct model_shape {
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  rope_config rope{};

  int kv_channels() const { return kv_heads * head_dim; }
};

/// Throws `bad_shape` naming the member that cannot be.
inline void validate(model_shape const& shape) {
  auto const positive = [](int x, int largest, char const* what) {
    require(x >= 1 && x <= largest, errc::bad_shape, "model shape: ", what, " is ", x, ", expected 1 to ", largest);
  };
  positive(shape.layers, 1 << 16, "layers");
  positive(shape.q_heads, 1 << 16, "q_heads");
  positive(shape.kv_heads, 1 << 16, "kv_heads");
  positive(shape.head_dim, 1 << 12, "head_dim");
  require(shape.q_heads % shape.kv_heads == 0, errc::bad_shape, "model shape: q_heads is ", shape.q_heads,
          ", expected a multiple of kv_heads, ", shape.kv_heads);
  require(shape.kv_heads <= (1 << 16) / shape.head_dim, errc::bad_shape, "model shape: kv_heads x head_dim is ",
          shape.kv_heads, " x ", shape.head_dim, ", expected at most 65536");
}

/// Where keys are quantized. Before RoPE a channel's values keep their distribution along the context (KVQuant,
/// section 3.2); after it is for comparison.
enum class key_space { pre_rope, post_rope };

template <Format K, Format V>
struct spec {
  using key_format = K;
  using value_format = V;
  static constexpr int page_tokens = 64;

  /// "nuq3", or "nuq4/nuq2" where keys and values differ.
  static std::string name() {
    std::string const key = to_string(format_id_of<K>), value = to_string(format_id_of<V>);
    return key == value ? key : key + "/" + value;
  }
};

template <class S>
concept Spec = Format<typename S::key_format> && Format<typename S::value_format> && requires {
  { S::page_tokens } -> std::convertible_to<int>;
  { S::name() } -> std::convertible_to<std::string>;
};

namespace detail {
template <class Formats>
struct same_on_both_sides;
template <class... F>
struct same_on_both_sides<type_list<F...>> {
  using type = type_list<spec<F, F>...>;
};
}  // namespace detail

/// The specs that tools choose from at run time. Others are instantiated by whoever wants them.
using specs = detail::same_on_both_sides<formats>::type;

/// Calls `f(std::type_identity<S>{})` for the spec of that name. Throws `bad_format` naming the ones there are.
template <class F>
void visit_spec(std::string const& name, F&& f) {
  if (visit_first(
          specs{}, [&]<class S>(std::type_identity<S>) { return S::name() == name; }, f))
    return;
  std::string known;
  for_each_type(specs{}, [&]<class S>(std::type_identity<S>) { known += (known.empty() ? "" : ", ") + S::name(); });
  throw error{errc::bad_format, text("unknown format \"", name, "\", expected one of ", known)};
}

}  // namespace kvquant
