// Attention on a CUDA device, of binary16 and of packed pages in turn. Layers are so many that none is in the device's
// cache when its turn comes; a round is one captured graph of them all. Usage: cuda_attend [SHAPE:CONTEXT:BATCH]...

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "backends/cuda/backend.hpp"
#include "bench/support/cuda.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/reference/attention.hpp"
#include "kvquant/reference/pages.hpp"
#include "measure/choices.hpp"
#include "measure/job.hpp"
#include "measure/roof.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::measure;

/// Pages that are quantized from tokens; all others repeat them.
constexpr std::size_t distinct_pages = 8, distinct_tokens = sink_tokens + distinct_pages * page_tokens + tail_tokens;
/// Of all layers of a case: eight times the second-level cache of an H100.
constexpr std::size_t working_set_bytes = std::size_t{400} << 20;
constexpr int rounds = 9;

struct cuda_job {
  model_shape shape;
  std::size_t context = 0, batch = 1;
};

/// "32/8/128:8K:16"
cuda_job parse_job(std::string const& text) {
  auto const first = text.find(':'), second = text.find(':', first + 1);
  require(first != text.npos && second != text.npos, errc::bad_value, "job \"", text,
          "\", expected SHAPE:CONTEXT:BATCH, as 32/8/128:8K:16");
  return {parse_shape(text.substr(0, first)), parse_context(text.substr(first + 1, second - first - 1)),
          std::stoul(text.substr(second + 1))};
}

class subject {
 public:
  virtual ~subject() = default;
  virtual double relative_error() const = 0;
  /// Of one layer, in one round.
  virtual double seconds() const = 0;
  virtual std::size_t bytes() const = 0;
};

template <PackedSpec S>
class subject_of final : public subject {
 public:
  subject_of(cuda_job const& what, format_choice const& format)
      : what_(what),
        tokens_(distinct_tokens, static_cast<std::size_t>(what.shape.kv_channels())),
        artifact_(make_measured_artifact<S>(what.shape, format, tokens_.keys())),
        cache_(artifact_, {.max_tokens = distinct_tokens, .sinks = static_cast<int>(sink_tokens)}),
        small_(cache_.open()),
        attention_(artifact_),
        queries_(what.batch, channels()),
        q_(std::span<float const>(queries_.v)) {
    cache_.append(small_, 0, tokens_.keys(), tokens_.values());
    out_.reserve(queries_.v.size());
    fill_pages();
    for (std::size_t layer = 0; layer < layers(); ++layer) prepare(layer);
    on_.wait();
    round_ = std::make_unique<cuda::captured_graph>(on_, [&] {
      for (auto const& it : calls_) attention_.run(*it, on_.get());
    });
    round_->launch(on_);
    on_.wait();
  }

  double relative_error() const override {
    auto const q = queries_.values().middle_rows(0, 1);
    std::vector<float> out(q.cols);
    attend_args const args{.cache = cache_.view(small_, 0), .q = q, .out = {out.data(), 1, q.cols}};
    inline_executor here;
    attention_(0, {&args, 1}, here);
    auto const held = reference::read_layer(cache_, artifact_, small_, 0);
    std::vector<std::int64_t> positions(distinct_tokens);
    std::iota(positions.begin(), positions.end(), std::int64_t{0});
    auto const expected =
        reference::attention(reference::to_matrix(q), held.k, held.v, what_.shape, 1 / std::sqrt(what_.shape.head_dim),
                             std::span(positions).last(1), positions)
            .out;
    return (reference::to_matrix(args.out) - expected).norm() / expected.norm();
  }
  double seconds() const override {
    timer_.start(on_);
    round_->launch(on_);
    return timer_.seconds(on_) / static_cast<double>(layers());
  }
  std::size_t bytes() const override {
    std::size_t const exact = (sink_tokens + tail_tokens) * tokens_.channels * 2 * sizeof(half);
    return what_.batch * (pages() * block_bytes() + exact);
  }

 private:
  std::size_t channels() const {
    return static_cast<std::size_t>(what_.shape.q_heads) * static_cast<std::size_t>(what_.shape.head_dim);
  }
  std::size_t pages() const { return what_.context / page_tokens; }
  std::size_t block_bytes() const { return cache_.kv_heads() * cache_.view(small_, 0).page_bytes; }
  std::size_t layers() const {
    return std::clamp<std::size_t>(working_set_bytes / (what_.batch * pages() * block_bytes()) + 1, 2, 64);
  }

  /// Blocks of every layer and sequence, each with a place of its own.
  void fill_pages() {
    layer_view const from = cache_.view(small_, 0);
    std::size_t const blocks = layers() * what_.batch * pages(), size = block_bytes();
    slab_.reserve(blocks * size);
    for (std::size_t i = 0; i < blocks; ++i)
      cuda::check(cudaMemcpyAsync(slab_.data() + i * size, from.slab + from.pages[i % distinct_pages] * size, size,
                                  cudaMemcpyDefault, on_.get()),
                  "cudaMemcpyAsync");
    ids_.resize(blocks);
    std::iota(ids_.begin(), ids_.end(), page_id{0});
    on_.wait();
  }

  void prepare(std::size_t layer) {
    std::vector<attend_args> batch(what_.batch);
    std::vector<cuda::device_rows> rows;
    for (std::size_t i = 0; i < what_.batch; ++i) {
      layer_view view = cache_.view(small_, 0);
      view.slab = slab_.data();
      view.pages = {ids_.data() + (layer * what_.batch + i) * pages(), pages()};
      view.sealed = what_.context;
      batch[i] = {.cache = view, .q = queries_.values().middle_rows(i, 1), .out = {nullptr, 1, channels()}};
      rows.push_back({q_.data() + i * channels(), out_.data() + i * channels(), nullptr, nullptr});
    }
    calls_.push_back(std::make_unique<cuda::prepared_call>());
    attention_.prepare(0, batch, rows, *calls_.back(), on_.get());
  }

  cuda_job what_;
  random_tokens tokens_;
  artifact<S> artifact_;
  kv_cache<S, cuda::page_layout<S>> cache_;
  sequence small_;
  cuda::attention<S> attention_;
  random_tokens queries_;  // its values: [batch, q_heads · head_dim]
  cuda::stream on_;
  cuda::event_timer timer_;
  cuda::device_array<float> q_, out_;
  cuda::device_array<std::byte> slab_;  // [layers, batch, pages, kv_heads, page_bytes]
  std::vector<page_id> ids_;
  std::vector<std::unique_ptr<cuda::prepared_call>> calls_;  // [layers]
  std::unique_ptr<cuda::captured_graph> round_;
};

void measure_job(cuda_job const& what, double bandwidth) {
  std::vector<std::string> const names{"f16", "nuq4", "nuq4-1%", "nuq3", "nuq3-1%", "nuq2-1%"};
  std::vector<std::unique_ptr<subject>> subjects;
  for (std::string const& name : names) {
    format_choice const format = parse_format_choice(name);
    visit_measured(format, [&]<class S>(std::type_identity<S>) {
      if constexpr (cuda::FragmentSpec<S>) subjects.push_back(std::make_unique<subject_of<S>>(what, format));
    });
    double const error = subjects.back()->relative_error();
    require(error < 1e-2, errc::bad_value, name, " differs from the reference by ", error, ", expected less than 0.01");
  }
  std::vector<std::vector<double>> seconds(names.size());
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < names.size(); ++i) seconds[i].push_back(subjects[i]->seconds());
  for (std::size_t i = 0; i < names.size(); ++i) {
    double const it = median(seconds[i]), bytes = static_cast<double>(subjects[i]->bytes());
    std::printf("%-10s %6s %5zu  %-8s %8.1f us %8.1f GB/s %5.1f %% %6.2fx\n", to_string(what.shape).c_str(),
                context_name(what.context).c_str(), what.batch, names[i].c_str(), it * 1e6, bytes / it / 1e9,
                100 * bytes / it / bandwidth, median(seconds[0]) / it);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_on_device("cuda_attend", [&] {
    std::vector<std::string> jobs(argv + 1, argv + argc);
    if (jobs.empty())
      jobs = {"32/32/128:4K:1", "32/32/128:8K:1", "32/32/128:4K:8", "32/8/128:512:1", "32/8/128:8K:1",
              "32/8/128:32K:1", "32/8/128:8K:16", "32/8/128:64K:4", "9/3/64:8K:16"};
    double const bandwidth = bench::copy_bandwidth();
    std::printf("copies move %.0f GB/s\nshape      context batch  format    per layer       speed   of it   to f16\n",
                bandwidth / 1e9);
    for (std::string const& job : jobs) measure_job(parse_job(job), bandwidth);
  });
}
