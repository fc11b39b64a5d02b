#include <algorithm>
#include <cstddef>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/backend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "measure/artifact.hpp"
#include "measure/attention_check.hpp"
#include "measure/attention_target.hpp"
#include "measure/choices.hpp"
#include "measure/device.hpp"

namespace kvquant::measure {

namespace {

/// Pages lie in one array, each in a place of its own; a round is one captured graph of all layers.
template <PackedSpec S>
class subject_of final : public attention_subject {
 public:
  subject_of(job const& what, format_choice const& format, int layers)
      : what_(what),
        layers_(static_cast<std::size_t>(layers)),
        tokens_(distinct_tokens, static_cast<std::size_t>(what.shape.kv_channels())),
        artifact_(make_measured_artifact<S>(what.shape, format, tokens_)),
        cache_(artifact_, {.max_tokens = distinct_tokens, .sinks = static_cast<int>(sink_tokens)}),
        small_(cache_.open()),
        attention_(artifact_),
        queries_(what.batch,
                 static_cast<std::size_t>(what.shape.q_heads) * static_cast<std::size_t>(what.shape.head_dim), 7),
        q_(std::span<float const>(queries_.v)) {
    cache_.append(small_, 0, tokens_.keys(), tokens_.values());
    out_.reserve(queries_.v.size());
    fill_pages();
    for (std::size_t layer = 0; layer < layers_; ++layer) prepare(layer);
    queue_.wait();
    round_ = std::make_unique<cuda::captured_graph>(queue_, [&] {
      for (auto const& it : calls_) attention_.run(*it, queue_.get());
    });
    round_->launch(queue_);
    queue_.wait();
  }

  timed_calls run(std::size_t fewest) override {
    std::size_t const rounds = (fewest + layers_ - 1) / layers_;
    timer_.start(queue_);
    for (std::size_t round = 0; round < rounds; ++round) round_->launch(queue_);
    return {rounds * layers_, timer_.seconds(queue_)};
  }

  /// Over the tokens that were quantized.
  double relative_error() override {
    auto const q = queries_.values().middle_rows(0, 1);
    std::vector<float> out(q.cols);
    attend_args const args{.cache = cache_.view(small_, 0), .q = q, .out = {out.data(), 1, q.cols}};
    inline_executor here;
    attention_(0, {&args, 1}, here);
    return relative_error_of(cache_, artifact_, small_, 0, 0, q, args.out);
  }

 private:
  std::size_t pages() const { return what_.context / page_tokens; }

  /// Blocks of every layer and sequence.
  void fill_pages() {
    layer_view const from = cache_.view(small_, 0);
    std::size_t const blocks = layers_ * what_.batch * pages(), size = cache_.kv_heads() * from.page_bytes;
    slab_.reserve(blocks * size);
    for (std::size_t i = 0; i < blocks; ++i)
      cuda::check(cudaMemcpyAsync(slab_.data() + i * size, from.slab + from.pages[i % distinct_pages] * size, size,
                                  cudaMemcpyDefault, queue_.get()),
                  "cudaMemcpyAsync");
    ids_.resize(blocks);
    std::iota(ids_.begin(), ids_.end(), page_id{0});
    queue_.wait();
  }

  void prepare(std::size_t layer) {
    std::vector<attend_args> batch(what_.batch);
    std::vector<cuda::device_rows> rows;
    for (std::size_t i = 0; i < what_.batch; ++i) {
      layer_view view = cache_.view(small_, 0);
      view.slab = slab_.data();
      view.pages = {ids_.data() + (layer * what_.batch + i) * pages(), pages()};
      view.sealed = what_.context;
      batch[i] = {.cache = view, .q = queries_.values().middle_rows(i, 1), .out = {nullptr, 1, queries_.channels}};
      rows.push_back({q_.data() + i * queries_.channels, out_.data() + i * queries_.channels, nullptr, nullptr});
    }
    calls_.push_back(std::make_unique<cuda::prepared_call>());
    attention_.prepare(0, batch, rows, *calls_.back(), queue_.get());
  }

  job what_;
  std::size_t layers_;
  random_tokens tokens_;
  artifact<S> artifact_;
  kv_cache<S, cuda::page_layout<S>> cache_;
  sequence small_;
  cuda::attention<S> attention_;
  random_tokens queries_;  // its values: [batch, q_heads · head_dim]
  cuda::stream queue_;
  cuda::event_timer timer_;
  cuda::device_array<float> q_, out_;
  cuda::device_array<std::byte> slab_;  // [layers, batch, pages, kv_heads, page_bytes]
  std::vector<page_id> ids_;
  std::vector<std::unique_ptr<cuda::prepared_call>> calls_;  // [layers]
  std::unique_ptr<cuda::captured_graph> round_;
};

}  // namespace

attention_target cuda_target() {
  require_device();
  return {.bandwidth = copy_bandwidth(),
          .free_bytes = free_device_bytes(),
          .cold_bytes = 8 * static_cast<std::size_t>(cuda::device_attribute(cudaDevAttrL2CacheSize)),
          .most_layers = 256,
          .bytes_per_call = bytes_per_call<cuda::backend>,
          .make_subject = [](job const& what, format_choice const& format, int layers) {
            std::unique_ptr<attention_subject> made;
            visit_measured(format, [&]<class S>(std::type_identity<S>) {
              if constexpr (cuda::FragmentSpec<S>) made = std::make_unique<subject_of<S>>(what, format, layers);
            });
            require(made != nullptr, errc::unsupported, "CUDA backend: no kernels for ", to_string(format));
            return made;
          }};
}

}  // namespace kvquant::measure
