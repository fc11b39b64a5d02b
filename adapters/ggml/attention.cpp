#include "adapters/ggml/attention.hpp"

#include <ggml.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "kvquant/core/error.hpp"
#include "kvquant/core/scoped_timer.hpp"

namespace kvquant::ggml {

namespace {

void require_heads(char const* name, ggml_tensor const* it, int head_dim, int heads, std::int64_t tokens) {
  require(it != nullptr, errc::bad_shape, "ggml attention: there is no ", name);
  std::size_t const head_bytes = sizeof(float) * static_cast<std::size_t>(head_dim);
  bool const fits = it->type == GGML_TYPE_F32 && it->ne[0] == head_dim && it->ne[1] == heads && it->ne[2] == tokens &&
                    it->ne[3] == 1 && it->nb[0] == sizeof(float) && it->nb[1] == head_bytes &&
                    it->nb[2] % sizeof(float) == 0;
  if (fits) return;
  auto const& [d, h, n, more] = it->ne;
  throw error{errc::bad_shape,
              text("ggml attention: ", name, " is ", ggml_type_name(it->type), " [", d, ", ", h, ", ", n, ", ", more,
                   "] with strides of ", it->nb[0], ", ", it->nb[1], ", ", it->nb[2], " bytes, expected f32 [",
                   head_dim, ", ", heads, ", ", tokens, ", 1] with strides of ", sizeof(float), ", ", head_bytes)};
}

/// A row a token.
template <class T>
view2d<T> token_rows(ggml_tensor const* it) {
  return {static_cast<T*>(it->data), static_cast<std::size_t>(it->ne[2]),
          static_cast<std::size_t>(it->ne[0] * it->ne[1]), it->nb[2] / sizeof(float)};
}

}  // namespace

attention::attention(engine const& cache, attend_options const& options) : cache_(cache), options_(options) {
  for (int layer = 0; layer < cache.info().shape.layers; ++layer) layers_.push_back({this, layer});
}

ggml_tensor* attention::node(ggml_context* graph, int layer, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v) {
  model_shape const& shape = cache_.info().shape;
  require(layer >= 0 && layer < shape.layers, errc::bad_value, "ggml attention: layer ", layer, ", expected 0 to ",
          shape.layers - 1);
  require_heads("q", q, shape.head_dim, shape.q_heads, q != nullptr ? q->ne[2] : 0);
  require_heads("k", k, shape.head_dim, shape.kv_heads, q->ne[2]);
  require_heads("v", v, shape.head_dim, shape.kv_heads, q->ne[2]);
  std::array<ggml_tensor*, 3> inputs = {q, k, v};
  return ggml_custom_4d(graph, GGML_TYPE_F32, q->ne[0], q->ne[1], q->ne[2], 1, inputs.data(),
                        static_cast<int>(inputs.size()), call, GGML_N_TASKS_MAX,
                        &layers_[static_cast<std::size_t>(layer)]);
}

void attention::begin(std::span<batch_part const> batch) {
  std::vector<part> parts;
  for (batch_part const& it : batch) {
    require(it.sequence != nullptr && it.tokens > 0, errc::bad_value, "ggml attention: part ", parts.size(),
            " of the batch has ", it.tokens, " tokens of ", it.sequence != nullptr ? "a sequence" : "no sequence",
            ", expected a sequence and at least one token");
    bool const seen =
        std::any_of(parts.begin(), parts.end(), [&](part const& other) { return other.sequence == it.sequence; });
    require(!seen, errc::bad_value, "ggml attention: part ", parts.size(),
            " of the batch is of a sequence that came before, expected all its tokens in one part");
    parts.push_back({it.sequence, it.tokens, it.sequence->tokens()});
  }
  batch_ = std::move(parts);
  failure_ = nullptr;
  for (layer_operator& it : layers_) it.computed = false;
}

void attention::finish() {
  try {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    for (layer_operator const& it : layers_)
      require(it.computed, errc::bad_value, "ggml attention: layer ", it.layer,
              " was not computed, expected a graph of all ", layers_.size(), " layers, computed to its end");
  } catch (...) {
    if (auto const cannot = cut_back()) std::throw_with_nested(*cannot);
    throw;
  }
}

std::optional<error> attention::cut_back() const {
  try {
    for (part const& it : batch_)
      if (it.sequence->tokens() > it.before) it.sequence->truncate(it.before);
  } catch (error const& cannot) {
    return cannot;
  }
  return std::nullopt;
}

void attention::call(ggml_tensor* out, int ith, int nth, void* layer_operator_) {
  auto& it = *static_cast<layer_operator*>(layer_operator_);
  it.owner->crew_.join(ith, nth, [&](executor_ref executor) noexcept { it.owner->compute(it, out, executor); });
}

void attention::compute(layer_operator& it, ggml_tensor* out, executor_ref executor) noexcept {
  try {
    if (!failure_) {
      require(!std::exchange(it.computed, true), errc::bad_value, "ggml attention: layer ", it.layer,
              " was computed twice, expected begin() before each computation");
      return append_and_attend(it.layer, out, executor);
    }
  } catch (...) {
    failure_ = std::current_exception();
  }
  std::memset(out->data, 0, ggml_nbytes(out));
}

void attention::append_and_attend(int layer, ggml_tensor* out, executor_ref executor) {
  auto const q = token_rows<float const>(out->src[0]), k = token_rows<float const>(out->src[1]),
             v = token_rows<float const>(out->src[2]);
  auto const results = token_rows<float>(out);
  std::size_t tokens = 0;
  for (part const& it : batch_) tokens += it.tokens;
  require(tokens == q.rows, errc::bad_shape, "ggml attention: layer ", layer, " computes ", q.rows,
          " tokens, expected the ", tokens, " of the batch that begin() was given");

  std::vector<attend_request> steps;  // of single tokens: all are appended, then all attend together
  std::size_t first = 0;
  for (part const& it : batch_) {
    auto const mine = [&](auto const& rows) { return rows.middle_rows(first, it.tokens); };
    if (it.tokens > 1) {
      it.sequence->append_and_attend(layer, mine(k), mine(v), mine(q), mine(results), options_, executor);
    } else {
      scoped_timer const timer(options_.spent, &decode_seconds::append);
      it.sequence->append(layer, mine(k), mine(v), executor);
      steps.push_back({.sequence = it.sequence, .q = mine(q), .out = mine(results), .options = options_});
    }
    first += it.tokens;
  }
  scoped_timer const timer(options_.spent, &decode_seconds::attend);
  if (!steps.empty()) cache_.attend(layer, steps, executor);
}

}  // namespace kvquant::ggml
