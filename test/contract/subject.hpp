#pragma once
/// \file
/// A cache and the attention over it, whatever the backend and the datatypes.

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/attend/backend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/reference/pages.hpp"
#include "test/support/hand_made_artifact.hpp"

namespace kvquant::contract {

using test::float_matrix;

/// A model, a cache of it, and tokens.
struct problem {
  test::hand_made_options model;
  int recent_pages = 0;
  std::vector<float_matrix> k, v;  ///< [layers], each [tokens, kv_channels]

  std::size_t tokens() const { return k.front().rows; }
  std::size_t query_channels() const {
    return static_cast<std::size_t>(model.shape.q_heads) * static_cast<std::size_t>(model.shape.head_dim);
  }
};

class subject {
 public:
  subject() = default;
  subject(subject const&) = delete;
  subject& operator=(subject const&) = delete;
  virtual ~subject() = default;

  virtual sequence open() = 0;
  virtual void append(sequence& to, int layer, view2d<float const> k, view2d<float const> v) = 0;
  virtual void truncate(sequence& of, std::size_t tokens) = 0;
  virtual void drop(sequence& of, std::size_t first, std::size_t count) = 0;
  virtual layer_view view(sequence const& of, int layer) const = 0;
  virtual reference::keys_and_values read(sequence const& of, int layer) const = 0;
  virtual void attend(int layer, std::span<attend_args const> batch, executor_ref executor) const = 0;
};

/// Ranges come from the first half of the problem's tokens, so that some of the others lie beyond them.
template <PackedSpec S>
artifact<S> artifact_for(problem const& it) {
  auto const first_half = [](std::vector<float_matrix> const& layers) {
    std::vector<float_matrix> seen;
    for (float_matrix const& x : layers) {
      std::size_t const rows = (x.rows + 1) / 2;
      seen.emplace_back(rows, x.cols);
      seen.back().values.assign(x.values.begin(), x.values.begin() + static_cast<std::ptrdiff_t>(rows * x.cols));
    }
    return seen;
  };
  return test::hand_made_artifact<S>(it.model, first_half(it.k), first_half(it.v));
}

template <Backend B, PackedSpec S>
class subject_of final : public subject {
 public:
  using layout = typename B::template page_layout<S>;
  using attention = typename B::template attention<S>;
  static_assert(PageLayout<layout> && Attention<attention, S>);

  /// Room for `tokens`, all sequences together.
  subject_of(problem const& it, std::size_t tokens)
      : artifact_(artifact_for<S>(it)),
        attention_(artifact_),
        cache_(artifact_, {.max_tokens = tokens, .recent_pages = it.recent_pages}) {}

  sequence open() override { return cache_.open(); }
  void append(sequence& to, int layer, view2d<float const> k, view2d<float const> v) override {
    cache_.append(to, layer, k, v);
  }
  void truncate(sequence& of, std::size_t tokens) override { cache_.truncate(of, tokens); }
  void drop(sequence& of, std::size_t first, std::size_t count) override { cache_.drop(of, first, count); }
  layer_view view(sequence const& of, int layer) const override { return cache_.view(of, layer); }
  reference::keys_and_values read(sequence const& of, int layer) const override {
    return reference::read_layer(cache_, artifact_, of, layer);
  }
  void attend(int layer, std::span<attend_args const> batch, executor_ref executor) const override {
    attention_(layer, batch, executor);
  }

 private:
  artifact<S> artifact_;
  attention attention_;
  kv_cache<S, layout> cache_;
};

}  // namespace kvquant::contract
