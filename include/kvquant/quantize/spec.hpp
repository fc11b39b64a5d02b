#pragma once
/// \file
/// What a cache stores: the shape of the model and the datatypes of both sides.

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/core/type_list.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/rope/rope_config.hpp"

namespace kvquant {

/// Layers of a model that see the latest tokens alone, with a rotation of their own (Gemma 3's, say).
struct local_layers {
  std::vector<int> layers{};  ///< which, rising; none: every layer sees all tokens
  int window = 0;             ///< tokens that a query sees, the latest ones, its own included
  rope_config rope{};         ///< their rotation; turns the same channels in the same pairs as the others'
};

/// Run-time values; kernels dispatch on them.
struct model_shape {
  int layers = 0;        ///< at least 1
  int q_heads = 0;       ///< a multiple of `kv_heads`
  int kv_heads = 0;      ///< at least 1
  int head_dim = 0;      ///< channels of a head
  rope_config rope{};    ///< of the layers that see all tokens
  local_layers local{};  ///< layers that see a window alone; none by default

  /// Elements of a token's keys, or values, in one layer.
  int kv_channels() const { return kv_heads * head_dim; }
  /// Whether a layer sees a window alone.
  bool is_local(int layer) const { return std::binary_search(local.layers.begin(), local.layers.end(), layer); }
  /// The rotation of a layer.
  rope_config const& rope_of(int layer) const { return is_local(layer) ? local.rope : rope; }
  /// Tokens that a query of the layer sees, the latest ones, its own included; 0: all.
  std::size_t window_of(int layer) const { return is_local(layer) ? static_cast<std::size_t>(local.window) : 0; }
};

namespace detail {

/// Pages lie alike in every layer, by which channels are turned together; and a window holds the query itself.
inline void validate_local(model_shape const& shape) {
  local_layers const& local = shape.local;
  if (local.layers.empty()) return;
  int previous = -1;
  for (int const layer : local.layers) {
    require(layer > previous && layer < shape.layers, errc::bad_shape, "model shape: local layer ", layer, " after ",
            previous, ", expected rising numbers from 0 to ", shape.layers - 1);
    previous = layer;
  }
  require(local.window >= 1, errc::bad_shape, "model shape: the window of local layers is ", local.window,
          ", expected 1 or more");
  auto const turned = [&](rope_config const& rope) {
    return !rope.enabled ? 0 : rope.rotary_dim == 0 ? shape.head_dim : rope.rotary_dim;
  };
  require(turned(local.rope) == turned(shape.rope) && local.rope.pairing == shape.rope.pairing, errc::unsupported,
          "model shape: local layers turn ", turned(local.rope), " channels of a head, the others ", turned(shape.rope),
          ", expected the same channels in the same pairs");
}

}  // namespace detail

/// Throws `bad_shape` naming the member that cannot be, `unsupported` for local layers whose pairs are others.
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
  detail::validate_local(shape);
}

/// Where keys are quantized. Before RoPE a channel's values keep their distribution along the context (KVQuant,
/// section 3.2); after it is for comparison.
enum class key_space { pre_rope, post_rope };

/// The datatypes of a cache: of its keys, and of its values.
template <Format K, Format V>
struct spec {
  ///@{
  /// Format of a side.
  using key_format = K;
  using value_format = V;
  ///@}
  /// Tokens of a page.
  static constexpr int page_tokens = 64;

  /// "nuq3", or "nuq4/nuq2" where keys and values differ.
  static std::string name() {
    std::string const key = to_string(format_id_of<K>), value = to_string(format_id_of<V>);
    return key == value ? key : key + "/" + value;
  }
};

/// What `spec` is: a format of keys, one of values, and the name of both.
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
