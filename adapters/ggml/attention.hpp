#pragma once
/// \file
/// Attention over a kvquant cache as an operator of ggml graphs.

#include <cstddef>
#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "adapters/ggml/crew.hpp"
#include "kvquant/engine.hpp"

struct ggml_context;
struct ggml_tensor;

namespace kvquant::ggml {

/// Tokens that follow one another in a batch and in one sequence.
struct batch_part {
  engine_sequence* sequence;
  std::size_t tokens;
};

/// Makes the operators of all layers and keeps what they share: which sequences the tokens belong to, and what went
/// wrong, as no exception may cross ggml. Each operator appends its layer's keys and values and attends, on the threads
/// of the graph. The engine and this object must outlive the graphs.
class attention {
 public:
  explicit attention(engine const& cache, attend_options const& options = {});
  attention(attention const&) = delete;  // its operators point to it

  /// An operator for `q` [head_dim, q_heads, tokens], `k`, `v` [head_dim, kv_heads, tokens], in ggml's order of
  /// dimensions: f32, keys before RoPE, queries as `attend_options::space` says, heads side by side and tokens at any
  /// stride. The result is [head_dim, q_heads, tokens], contiguous. Throws `bad_shape` for what does not fit the model.
  ggml_tensor* node(ggml_context* graph, int layer, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v);

  /// Before each computation of a graph: whose tokens its batch holds, in order. Throws `bad_value` for a part without
  /// tokens or without a sequence, or for a sequence that comes twice.
  void begin(std::span<batch_part const> batch);

  /// After it: throws what the first operator that failed threw, or `bad_value` if some layer was not computed. Then
  /// the sequences are cut back to what they were (`engine_sequence::truncate`); if one cannot be, its error is thrown
  /// with the first nested in it. An operator that fails, and those after it, give zeros.
  void finish();

 private:
  struct layer_operator {
    attention* owner;
    int layer;
    bool computed = false;
  };
  struct part {
    engine_sequence* sequence;
    std::size_t tokens, before;
  };

  static void call(ggml_tensor* out, int ith, int nth, void* layer_operator_);
  void compute(layer_operator& it, ggml_tensor* out, executor_ref executor) noexcept;
  void append_and_attend(int layer, ggml_tensor* out, executor_ref executor);
  std::optional<error> cut_back() const;  ///< what it was refused with

  engine const& cache_;
  attend_options options_;
  std::vector<layer_operator> layers_;
  std::vector<part> batch_;
  std::exception_ptr failure_;
  crew crew_;
};

}  // namespace kvquant::ggml
