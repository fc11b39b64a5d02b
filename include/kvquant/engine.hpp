#pragma once
/// \file
/// A cache with its backend behind virtual calls, so that adapters and tools are compiled once for all formats. Code
/// that knows its format uses `kv_cache` and a backend's `attention` themselves.

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvquant/attend/attend.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/cache/cache_io.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/read_tokens.hpp"
#include "kvquant/calibrate/any_artifact.hpp"
#include "kvquant/core/type_list.hpp"

namespace kvquant {

/// One sequence of an engine, which must outlive it. Everything throws what `kv_cache` throws.
class engine_sequence {
 public:
  virtual ~engine_sequence() = default;

  /// Of the layer that has most.
  virtual std::size_t tokens() const = 0;
  /// See `kv_cache::append`.
  virtual void append(int layer, view2d<float const> k, view2d<float const> v, executor_ref executor) = 0;
  /// `kvquant::attend_as_decoded`: appends, and attends from every token as if they came one by one.
  virtual void append_and_attend(int layer, view2d<float const> k, view2d<float const> v, view2d<float const> q,
                                 view2d<float> out, attend_options const& options, executor_ref executor) = 0;
  /// See `kv_cache::fork`.
  virtual std::unique_ptr<engine_sequence> fork() const = 0;
  /// See `kv_cache::reserve`.
  virtual void reserve(std::size_t tokens) = 0;
  /// See `kv_cache::truncate`.
  virtual void truncate(std::size_t tokens) = 0;
  /// See `kv_cache::drop`.
  virtual void drop(std::size_t first, std::size_t count) = 0;
  /// `read_tokens`: what a layer holds of the tokens from `first` on.
  virtual void read(int layer, std::size_t first, view2d<float> k, view2d<float> v) const = 0;
  /// See `kv_cache::bytes`.
  virtual byte_report bytes() const = 0;
  /// See `save_sequence`.
  virtual void save(std::filesystem::path const& path) const = 0;
};

/// Queries of one sequence's last tokens; see `attend_args`.
struct attend_request {
  engine_sequence const* sequence = nullptr;  ///< of the same engine
  view2d<float const> q;                      ///< [queries, q_heads · head_dim]
  view2d<float> out;                          ///< [queries, q_heads · head_dim]
  view2d<float> score_max{}, score_sum{};     ///< [queries, q_heads], or empty: not wanted
  attend_options options{};                   ///< `spent` is not used
};

/// The cache of one model. Sequences may be used from different threads, each from one at a time.
class engine {
 public:
  virtual ~engine() = default;

  /// The name it was chosen by.
  virtual std::string_view backend() const = 0;
  /// Of the artifact.
  virtual artifact_info const& info() const = 0;
  /// See `kv_cache::sinks`.
  virtual std::size_t sinks() const = 0;
  /// See `cache_options`.
  virtual std::size_t recent_pages() const = 0;
  /// Pages that no sequence has, each of all KV heads of a layer.
  virtual std::size_t free_blocks() const = 0;
  /// See `kv_cache::open`.
  virtual std::unique_ptr<engine_sequence> open(std::size_t expected_tokens = 0) = 0;
  /// See `load_sequence`.
  virtual std::unique_ptr<engine_sequence> load(std::filesystem::path const& path) = 0;
  /// Throws `bad_value` for a sequence that is not one of this engine.
  virtual void attend(int layer, std::span<attend_request const> batch, executor_ref executor) const = 0;
  /// Of the pages and tables; see `kv_cache::bytes`.
  virtual byte_report bytes() const = 0;
  /// See `kv_cache::clamps`.
  virtual clamp_counts clamps() const = 0;
};

namespace detail {

template <PackedSpec S, Backend B>
class engine_of final : public engine {
 public:
  engine_of(artifact<S> const& it, cache_options const& options) : cache_(it, options), attention_(it) {}

  std::string_view backend() const override { return B::name; }
  artifact_info const& info() const override { return cache_.info(); }
  std::size_t sinks() const override { return cache_.sinks(); }
  std::size_t recent_pages() const override { return cache_.recent_pages(); }
  std::size_t free_blocks() const override { return cache_.free_blocks(); }
  std::unique_ptr<engine_sequence> open(std::size_t expected_tokens) override {
    return wrap(cache_.open(expected_tokens));
  }
  std::unique_ptr<engine_sequence> load(std::filesystem::path const& path) override {
    return wrap(load_sequence(cache_, path));
  }
  void attend(int layer, std::span<attend_request const> batch, executor_ref executor) const override {
    std::vector<attend_args> args;
    args.reserve(batch.size());
    for (attend_request const& it : batch) {
      auto const* own = dynamic_cast<sequence_of const*>(it.sequence);
      require(own != nullptr && &own->engine_ == this, errc::bad_value,
              "attend: the sequence is not one of this engine");
      args.push_back({.cache = cache_.view(own->tokens_, layer),
                      .q = it.q,
                      .out = it.out,
                      .score_max = it.score_max,
                      .score_sum = it.score_sum,
                      .space = it.options.space,
                      .window = it.options.window,
                      .softmax_scale = it.options.softmax_scale});
    }
    attention_(layer, args, executor);
  }
  byte_report bytes() const override { return cache_.bytes(); }
  clamp_counts clamps() const override { return cache_.clamps(); }

 private:
  using cache_type = kv_cache<S, typename B::template page_layout<S>>;

  class sequence_of final : public engine_sequence {
   public:
    sequence_of(engine_of& owner, sequence tokens) : engine_(owner), tokens_(std::move(tokens)) {}

    std::size_t tokens() const override { return tokens_.tokens(); }
    void append(int layer, view2d<float const> k, view2d<float const> v, executor_ref executor) override {
      engine_.cache_.append(tokens_, layer, k, v, executor);
    }
    void append_and_attend(int layer, view2d<float const> k, view2d<float const> v, view2d<float const> q,
                           view2d<float> out, attend_options const& options, executor_ref executor) override {
      attend_as_decoded(engine_.cache_, engine_.attention_, tokens_, layer, k, v, q, out, options, executor);
    }
    std::unique_ptr<engine_sequence> fork() const override { return engine_.wrap(engine_.cache_.fork(tokens_)); }
    void reserve(std::size_t tokens) override { engine_.cache_.reserve(tokens_, tokens); }
    void truncate(std::size_t tokens) override { engine_.cache_.truncate(tokens_, tokens); }
    void drop(std::size_t first, std::size_t count) override { engine_.cache_.drop(tokens_, first, count); }
    void read(int layer, std::size_t first, view2d<float> k, view2d<float> v) const override {
      read_tokens(engine_.cache_, tokens_, layer, first, k, v);
    }
    byte_report bytes() const override { return engine_.cache_.bytes(tokens_); }
    void save(std::filesystem::path const& path) const override { save_sequence(engine_.cache_, tokens_, path); }

   private:
    friend class engine_of;
    engine_of& engine_;
    sequence tokens_;
  };

  std::unique_ptr<engine_sequence> wrap(sequence tokens) {
    return std::make_unique<sequence_of>(*this, std::move(tokens));
  }

  cache_type cache_;
  typename B::template attention<S> attention_;
};

}  // namespace detail

/// Throws `unsupported` naming what the backend lacks for this artifact.
template <Backend B, Spec S>
std::unique_ptr<engine> make_engine(artifact<S> const& it, cache_options const& options) {
  if constexpr (PackedSpec<S>) {
    require_supported(B::supports(it.info), B::name);
    return std::make_unique<detail::engine_of<S, B>>(it, options);
  } else {
    throw error{errc::unsupported, text(B::name, ": not supported: pages of ", S::name(),
                                        ", expected codes of 1 to 8 bits, or f16 on both sides")};
  }
}

/// The same for an artifact of any format. Throws `bad_format` for one of none of `specs`.
template <Backend B>
std::unique_ptr<engine> make_engine(any_artifact const& it, cache_options const& options) {
  std::unique_ptr<engine> made;
  visit_artifact(it, [&](auto const& typed) { made = make_engine<B>(typed, options); });
  return made;
}

/// Calls `f(std::type_identity<B>{})` for the backend in `Backends` (a `type_list`) with that name. Throws
/// `unsupported` naming the backends there are.
template <class Backends, class F>
void visit_backend(std::string_view name, F&& f) {
  if (visit_first(
          Backends{}, [&]<class B>(std::type_identity<B>) { return B::name == name; }, f))
    return;
  std::string known;
  for_each_type(Backends{},
                [&]<class B>(std::type_identity<B>) { known += (known.empty() ? "" : ", ") + std::string(B::name); });
  throw error{errc::unsupported, text("backend \"", name, "\", expected one of ", known)};
}

/// `make_engine<B>` of the backend in `Backends` with that name. Throws what both throw.
template <class Backends>
std::unique_ptr<engine> make_engine(std::string_view backend, any_artifact const& it, cache_options const& options) {
  std::unique_ptr<engine> made;
  visit_backend<Backends>(backend, [&]<class B>(std::type_identity<B>) { made = make_engine<B>(it, options); });
  return made;
}

}  // namespace kvquant
