/// \file
/// The same attention by ggml's CPU backend: `ggml_flash_attn_ext` of one query, over keys and values as llama.cpp lays
/// them out, a row a token with all KV heads in it. Keys are rotated before they are stored there, so no rotation is
/// timed. Caches are cold, as in `bench/attend.cpp`.

#include <benchmark/benchmark.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/bandwidth.hpp"
#include "bench/support/run.hpp"
#include "kvquant/reference/attention.hpp"
#include "measure/artifact.hpp"
#include "measure/attention.hpp"
#include "measure/job.hpp"
#include "measure/machine.hpp"
#include "measure/roof.hpp"

namespace {

using namespace kvquant;

template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* it) const {
    Free(it);
  }
};
using context_ptr = std::unique_ptr<ggml_context, freed_by<ggml_free>>;
using threads_ptr = std::unique_ptr<ggml_threadpool, freed_by<ggml_threadpool_free>>;

/// Keys or values of `channels` in a ggml type, [tokens, channels].
std::vector<std::byte> stored(ggml_type type, std::vector<float> const& x, std::size_t channels) {
  auto const rows = static_cast<std::int64_t>(x.size() / channels), cols = static_cast<std::int64_t>(channels);
  std::vector<std::byte> bytes(ggml_row_size(type, cols) * static_cast<std::size_t>(rows));
  ggml_quantize_chunk(type, x.data(), bytes.data(), 0, rows, cols, nullptr);
  return bytes;
}

/// What the bytes of one KV head read as, [tokens, head_dim].
reference::matrix read_head(ggml_type type, std::vector<std::byte> const& bytes, model_shape const& shape, int head) {
  std::size_t const d = static_cast<std::size_t>(shape.head_dim);
  std::size_t const head_bytes = ggml_row_size(type, shape.head_dim),
                    row_bytes = head_bytes * static_cast<std::size_t>(shape.kv_heads), rows = bytes.size() / row_bytes;
  std::vector<float> x(rows * d);
  for (std::size_t row = 0; row < rows; ++row)
    ggml_get_type_traits(type)->to_float(&bytes[row * row_bytes + static_cast<std::size_t>(head) * head_bytes],
                                         &x[row * d], shape.head_dim);
  return reference::to_matrix({x.data(), rows, d});
}

class ggml_subject {
 public:
  ggml_subject(measure::job const& what, ggml_type type)
      : what_(what),
        type_(type),
        channels_(static_cast<std::size_t>(what.shape.kv_channels())),
        input_(what.tokens(), channels_),
        query_(1, static_cast<std::size_t>(what.shape.q_heads) * static_cast<std::size_t>(what.shape.head_dim), 7),
        k_(stored(type, input_.k, channels_)),
        v_(stored(type, input_.v, channels_)) {
    std::size_t const layers = std::max<std::size_t>((measure::cold_working_set() + bytes() - 1) / bytes(), 1);
    std::size_t const overhead = ggml_graph_overhead_custom(8, false) + 16 * ggml_tensor_overhead();
    context_.reset(ggml_init({layers * (bytes() + overhead + query_bytes() * 4) + (1u << 20), nullptr, false}));
    for (std::size_t layer = 0; layer < layers; ++layer) graphs_.push_back(graph_of_layer());
    auto params = ggml_threadpool_params_default(what.threads);
    threads_.reset(ggml_threadpool_new(&params));
    plan_ = ggml_graph_plan(graphs_.front(), what.threads, threads_.get());
    work_.resize(plan_.work_size);
    plan_.work_data = work_.data();
  }

  std::size_t bytes() const { return k_.size() + v_.size(); }
  void attend() {
    ggml_graph_compute(graphs_[layer_], &plan_);
    layer_ = (layer_ + 1) % graphs_.size();
  }
  /// ‖got − expected‖ / ‖expected‖ over the query heads of the last KV head.
  double relative_error() {
    model_shape one_head = what_.shape;
    one_head.rope.enabled = false;
    int const head = std::exchange(one_head.kv_heads, 1) - 1;
    one_head.q_heads /= head + 1;
    auto const width = static_cast<std::size_t>(one_head.q_heads) * static_cast<std::size_t>(one_head.head_dim);
    std::vector<std::int64_t> positions(what_.tokens());
    std::iota(positions.begin(), positions.end(), std::int64_t{0});
    auto const mine = [&](view2d<float const> all) {
      return reference::to_matrix(all.middle_cols(query_.channels - width, width));
    };
    auto const expected = reference::attention(mine(query_.keys()), read_head(type_, k_, what_.shape, head),
                                               read_head(type_, v_, what_.shape, head), one_head, scale(),
                                               std::span(positions).last(1), positions);
    auto const* const out = static_cast<float const*>(ggml_get_data(ggml_graph_node(graphs_[layer_], -1)));
    attend();
    return (mine({out, 1, query_.channels}) - expected.out).norm() / expected.out.norm();
  }

 private:
  std::size_t query_bytes() const { return query_.k.size() * sizeof(float); }
  double scale() const { return 1 / std::sqrt(what_.shape.head_dim); }

  ggml_tensor* cache_side(std::vector<std::byte> const& content) {
    auto* const all = ggml_new_tensor_2d(context_.get(), type_, static_cast<std::int64_t>(channels_),
                                         static_cast<std::int64_t>(what_.tokens()));
    std::memcpy(all->data, content.data(), content.size());
    std::int64_t const d = what_.shape.head_dim;  // viewed as [kv_heads, tokens, head_dim]
    return ggml_view_3d(context_.get(), all, d, all->ne[1], what_.shape.kv_heads, all->nb[1], ggml_row_size(type_, d),
                        0);
  }
  ggml_cgraph* graph_of_layer() {
    auto* const q = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, what_.shape.head_dim, 1, what_.shape.q_heads);
    std::memcpy(q->data, query_.k.data(), query_bytes());
    auto* const out = ggml_flash_attn_ext(context_.get(), q, cache_side(k_), cache_side(v_), nullptr,
                                          static_cast<float>(scale()), 0, 0);
    auto* const graph = ggml_new_graph_custom(context_.get(), 8, false);
    ggml_build_forward_expand(graph, out);
    return graph;
  }

  measure::job what_;
  ggml_type type_;
  std::size_t channels_;
  measure::random_tokens input_, query_;  // the query is the latter's key
  std::vector<std::byte> k_, v_;          // of a layer: all layers hold the same
  context_ptr context_;
  threads_ptr threads_;
  std::vector<ggml_cgraph*> graphs_;  // [layers]
  std::size_t layer_ = 0;
  std::vector<std::uint8_t> work_;
  ggml_cplan plan_{};
};

/// ggml quantizes the query as the keys are and adds values up in binary16.
constexpr double largest_error = 0.02;

void attend(benchmark::State& st, measure::job const& what, ggml_type type) {
  ggml_subject subject(what, type);
  double const error = subject.relative_error();
  require(error <= largest_error, errc::bad_value, to_string(what), ": ggml's ", ggml_type_name(type), " is off by ",
          error, ", expected at most ", largest_error);
  std::vector<double> seconds;
  for (auto _ : st) {
    seconds.push_back(measure::seconds_of([&] { subject.attend(); }));
    st.SetIterationTime(seconds.back());
  }
  auto const bytes = static_cast<double>(subject.bytes());
  double const middle = measure::median(seconds), speed = bytes / middle;
  st.counters["ns_per_token_layer"] = 1e9 * middle / static_cast<double>(what.tokens());
  st.counters["gbps"] = speed / 1e9;
  st.counters["share_of_bandwidth"] = speed / bench::bandwidth_of(what.threads);
  st.counters["bytes"] = bytes;
  st.counters["error"] = error;
}

void add_all() {
  constexpr std::array types = {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
  for (model_shape const& shape : measure::default_shapes())
    for (char const* const context : {"256", "1K", "4K", "8K", "16K", "32K"})
      for (int const threads : {1, 2})
        for (ggml_type const type : types) {
          measure::job const what{
              .shape = shape, .context = measure::parse_context(context), .batch = 1, .threads = threads};
          std::string name = to_string(what) + ", ggml " + ggml_type_name(type);
          std::replace(name.begin(), name.end(), ' ', '_');
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& st) {
            attend(st, what, type);
          })->UseManualTime();
        }
}

}  // namespace

int main(int argc, char** argv) {
  ggml_cpu_init();
  return kvquant::bench::run(argc, argv, add_all);
}
