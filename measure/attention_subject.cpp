#include "measure/attention_subject.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/reference/attention.hpp"
#include "kvquant/reference/pages.hpp"
#include "measure/artifact.hpp"
#include "measure/choices.hpp"

namespace kvquant::measure {

namespace {

/// Pages that are quantized from tokens; all others repeat them.
constexpr std::size_t distinct_pages = 4;
constexpr std::size_t distinct_tokens = sink_tokens + distinct_pages * page_tokens + tail_tokens;
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

  subject_of(job const& what, format_choice const& format, int layers)
      : what_(what),
        tokens_(distinct_tokens, static_cast<std::size_t>(what.shape.kv_channels())),
        artifact_(make_measured_artifact<S>(with_layers(what.shape, layers), format, tokens_.keys())),
        cache_(artifact_, {.max_tokens = what.batch * what.context, .sinks = static_cast<int>(sink_tokens)}),
        attention_(artifact_),
        queries_(what.batch,
                 static_cast<std::size_t>(what.shape.q_heads) * static_cast<std::size_t>(what.shape.head_dim), 7),
        out_(queries_.k.size()),
        args_(what.batch) {
    auto const canonical =
        quantized_pages(make_measured_artifact<S>(with_layers(what.shape, 1), format, tokens_.keys()));
    for (std::size_t item = 0; item < what.batch; ++item) sequences_.push_back(filled(canonical));
  }

  void attend(int layer, executor_ref executor) override {
    for (std::size_t item = 0; item < args_.size(); ++item)
      args_[item] = {.cache = cache_.view(sequences_[item], layer),
                     .q = queries_.values().middle_rows(item, 1),
                     .out = out().middle_rows(item, 1)};
    attention_(layer, args_, executor);
  }

  double relative_error(executor_ref executor) override {
    int const layer = artifact_.info.shape.layers - 1, kv_heads = artifact_.info.shape.kv_heads;
    attend(layer, executor);
    std::size_t const affordable = std::max<std::size_t>(checked_tokens / what_.tokens(), 1);
    int const first = kv_heads - static_cast<int>(std::min(affordable, cache_.kv_heads()));
    double error = 0, norm = 0;
    for (int head = first; head < kv_heads; ++head) {
      reference::matrix const expected = expected_of(layer, head);
      auto const columns = static_cast<std::size_t>(expected.cols());
      auto const mine =
          out().middle_rows(args_.size() - 1, 1).middle_cols(static_cast<std::size_t>(head) * columns, columns);
      error += (reference::to_matrix(mine) - expected).squaredNorm();
      norm += expected.squaredNorm();
    }
    return std::sqrt(error / norm);
  }

 private:
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

  /// The outputs of the query heads that read KV head `head`, of the last sequence: [1, group · head_dim].
  reference::matrix expected_of(int layer, int head) const {
    model_shape one_head = artifact_.info.shape;
    one_head.q_heads /= std::exchange(one_head.kv_heads, 1);
    auto const width = static_cast<std::size_t>(one_head.q_heads) * static_cast<std::size_t>(one_head.head_dim);
    auto const q = queries_.values()
                       .middle_rows(queries_.tokens - 1, 1)
                       .middle_cols(static_cast<std::size_t>(head) * width, width);
    auto const held = reference::read_head(cache_, artifact_, sequences_.back(), layer, head);
    std::vector<std::int64_t> positions(static_cast<std::size_t>(held.k.rows()));
    std::iota(positions.begin(), positions.end(), std::int64_t{0});
    return reference::attention(reference::to_matrix(q), held.k, held.v, one_head, 1 / std::sqrt(one_head.head_dim),
                                std::span(positions).last(1), positions)
        .out;
  }

  job what_;
  random_tokens tokens_;
  artifact<S> artifact_;
  cache_type cache_;
  backend::attention<S> attention_;
  random_tokens queries_;            // its values: [batch, q_heads · head_dim]
  std::vector<float> out_;           // [batch, q_heads · head_dim]
  std::vector<attend_args> args_;    // [batch]
  std::vector<sequence> sequences_;  // [batch]
};

}  // namespace

std::size_t bytes_per_call(job const& what, format_choice const& format) {
  std::size_t page_bytes = 0;
  visit_measured(format, [&]<class S>(std::type_identity<S>) {
    page_bytes = backend::page_layout<S>::page_bytes(make_page_geometry(what.shape.head_dim, S::key_format::bits,
                                                                        S::value_format::bits, format.outlier_fraction,
                                                                        format.outlier_fraction));
  });
  std::size_t const pages = what.context / page_tokens * static_cast<std::size_t>(what.shape.kv_heads);
  std::size_t const exact_bytes =
      (sink_tokens + tail_tokens) * static_cast<std::size_t>(what.shape.kv_channels()) * 2 * sizeof(half);
  return what.batch * (pages * page_bytes + exact_bytes);
}

std::unique_ptr<attention_subject> make_attention_subject(job const& what, format_choice const& format, int layers) {
  std::unique_ptr<attention_subject> made;
  visit_measured(format,
                 [&]<class S>(std::type_identity<S>) { made = std::make_unique<subject_of<S>>(what, format, layers); });
  return made;
}

}  // namespace kvquant::measure
