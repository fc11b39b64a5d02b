#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "backends/cpu/backend.hpp"
#include "backends/cpu/thread_pool.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/half.hpp"
#include "measure/artifact.hpp"
#include "measure/attention_check.hpp"
#include "measure/attention_target.hpp"
#include "measure/choices.hpp"
#include "measure/machine.hpp"
#include "measure/roof.hpp"

namespace kvquant::measure {

namespace {

/// Tokens of KV heads that the reference reads in one check.
constexpr std::size_t checked_tokens = std::size_t{1} << 14;

model_shape with_layers(model_shape shape, int layers) {
  shape.layers = layers;
  return shape;
}

template <PackedSpec S>
class subject_of final : public attention_subject {
 public:
  using layout = backend::page_layout<S>;
  using cache_type = kv_cache<S, layout>;

  subject_of(job const& what, format_choice const& format, int layers, std::shared_ptr<cpu::thread_pool> workers)
      : what_(what),
        workers_(std::move(workers)),
        tokens_(distinct_tokens, static_cast<std::size_t>(what.shape.kv_channels())),
        artifact_(make_measured_artifact<S>(with_layers(what.shape, layers), format, tokens_)),
        cache_(artifact_, {.max_tokens = what.batch * what.context, .sinks = static_cast<int>(sink_tokens)}),
        attention_(artifact_),
        queries_(what.batch,
                 static_cast<std::size_t>(what.shape.q_heads) * static_cast<std::size_t>(what.shape.head_dim), 7),
        out_(queries_.k.size()),
        args_(what.batch) {
    auto const canonical = quantized_pages(make_measured_artifact<S>(with_layers(what.shape, 1), format, tokens_));
    for (std::size_t item = 0; item < what.batch; ++item) sequences_.push_back(filled(canonical));
  }

  timed_calls run(std::size_t fewest) override {
    double const seconds = seconds_of([&] {
      for (std::size_t call = 0; call < fewest; ++call)
        attend(std::exchange(layer_, (layer_ + 1) % artifact_.info.shape.layers));
    });
    return {fewest, seconds};
  }

  /// Over as many KV heads of the last layer of the last sequence as take a second or so.
  double relative_error() override {
    int const layer = artifact_.info.shape.layers - 1, kv_heads = artifact_.info.shape.kv_heads;
    attend(layer);
    std::size_t const affordable = std::max<std::size_t>(checked_tokens / what_.tokens(), 1), last = args_.size() - 1;
    int const first = kv_heads - static_cast<int>(std::min(affordable, cache_.kv_heads()));
    return relative_error_of(cache_, artifact_, sequences_.back(), layer, first, queries_.values().middle_rows(last, 1),
                             out().middle_rows(last, 1));
  }

 private:
  void attend(int layer) {
    for (std::size_t item = 0; item < args_.size(); ++item)
      args_[item] = {.cache = cache_.view(sequences_[item], layer),
                     .q = queries_.values().middle_rows(item, 1),
                     .out = out().middle_rows(item, 1)};
    attention_(layer, args_, *workers_);
  }

  view2d<float> out() { return {out_.data(), args_.size(), queries_.channels}; }

  /// [distinct_pages, kv_heads]
  std::vector<canonical_page<S>> quantized_pages(artifact<S> const& one_layer) const {
    cache_type cache(one_layer, {.max_tokens = distinct_pages * page_tokens, .sinks = static_cast<int>(sink_tokens)});
    sequence of = cache.open();
    cache.append(of, 0, tokens_.keys(), tokens_.values());
    std::vector<canonical_page<S>> pages(distinct_pages * cache.kv_heads());
    for (std::size_t i = 0; i < pages.size(); ++i)
      cache.read_page(of, 0, i / cache.kv_heads(), i % cache.kv_heads(), pages[i]);
    return pages;
  }

  sequence filled(std::vector<canonical_page<S>> const& pages) {
    auto const exact = [&](int, bool, view2d<half> k, view2d<half> v) {
      for (auto const& [from, to] : {std::pair{tokens_.keys(), k}, std::pair{tokens_.values(), v}})
        for (std::size_t row = 0; row < to.rows; ++row)
          std::transform(from.row(row).begin(), from.row(row).end(), to.row(row).begin(), to_half);
    };
    auto const page = [&](int layer, std::size_t index, std::size_t head, canonical_page<S>& to) {
      to = pages[(static_cast<std::size_t>(layer) + index) % distinct_pages * cache_.kv_heads() + head];
    };
    return cache_.assemble(what_.tokens(), what_.context, exact, page);
  }

  job what_;
  std::shared_ptr<cpu::thread_pool> workers_;
  random_tokens tokens_;
  artifact<S> artifact_;
  cache_type cache_;
  backend::attention<S> attention_;
  random_tokens queries_;            // its values: [batch, q_heads · head_dim]
  std::vector<float> out_;           // [batch, q_heads · head_dim]
  std::vector<attend_args> args_;    // [batch]
  std::vector<sequence> sequences_;  // [batch]
  int layer_ = 0;                    // the next one
};

}  // namespace

attention_target cpu_target(int threads) {
  auto const workers = std::make_shared<cpu::thread_pool>(threads);
  return {.bandwidth = read_bandwidth(*workers),
          .free_bytes = available_memory_bytes(),
          .cold_bytes = cold_working_set(),
          .most_layers = std::size_t{1} << 16,
          .bytes_per_call = bytes_per_call<backend>,
          .make_subject = [workers](job const& what, format_choice const& format, int layers) {
            std::unique_ptr<attention_subject> made;
            visit_measured(format, [&]<class S>(std::type_identity<S>) {
              made = std::make_unique<subject_of<S>>(what, format, layers, workers);
            });
            return made;
          }};
}

}  // namespace kvquant::measure
