#include "runtime/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "runtime/kernels.hpp"
#include "runtime/linear.hpp"

namespace kvquant::runtime {

namespace {

// Queries whose scores are computed by one matrix product. Fixed, so that results do not depend on the threads.
constexpr std::size_t block_queries = 128;

view2d<float const> head_of(view2d<float const> x, std::size_t head, std::size_t head_dim) {
  return x.middle_cols(head * head_dim, head_dim);
}
view2d<float> head_of(view2d<float> x, std::size_t head, std::size_t head_dim) {
  return x.middle_cols(head * head_dim, head_dim);
}

/// Owning scratch matrices of one task.
class scratch_matrix {
 public:
  view2d<float> get(std::size_t rows, std::size_t cols) {
    values_.resize(std::max(values_.size(), rows * cols));
    return {values_.data(), rows, cols};
  }

 private:
  std::vector<float> values_;
};

/// One head of one block of queries: which rows it covers and which keys they may see, [from, from + keys).
struct query_block {
  std::size_t head, first, count, from, keys;
  std::size_t end() const { return from + keys; }

  view2d<float const> seen(view2d<float const> rows) const { return rows.middle_rows(from, keys); }
  view2d<float> seen(view2d<float> rows) const { return rows.middle_rows(from, keys); }
  /// The key, or the nearest that the block may see, or the end.
  std::size_t clamp(int key) const { return std::clamp(static_cast<std::size_t>(std::max(key, 0)), from, end()); }
};

std::size_t first_key(attention_shape const& shape, std::size_t query) {
  return shape.window == 0 ? 0 : query + 1 - std::min(query + 1, shape.window);
}

query_block block_of(attention_shape const& shape, std::size_t head, std::size_t index, std::size_t tokens) {
  std::size_t const first = index * block_queries, count = std::min(block_queries, tokens - first),
                    from = first_key(shape, first);
  return {head, first, count, from, first + count - from};  // causal: no keys after the block's last query
}

std::size_t blocks(std::size_t tokens) { return (tokens + block_queries - 1) / block_queries; }

/// Row i of a block sees keys up to first + i, within its window; their scores become probabilities, others 0.
void causal_softmax(attention_shape const& shape, query_block const& block, view2d<float> scores) {
  for (std::size_t i = 0; i < scores.rows; ++i) {
    auto const row = scores.row(i);
    std::size_t const begin = first_key(shape, block.first + i) - block.from, end = block.first + i + 1 - block.from;
    kernels::softmax(row.subspan(begin, end - begin));
    std::fill(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(begin), 0.0f);
    std::fill(row.begin() + static_cast<std::ptrdiff_t>(end), row.end(), 0.0f);
  }
}

/// Scores of the keys that a query reads exactly replace those of the changed keys.
void use_exact_keys(attention_shape const& shape, attention_input const& in, query_block block, view2d<float> scores,
                    scratch_matrix& scratch) {
  auto const first_exact = [&](std::size_t i) {
    return block.clamp(in.window->first_key(static_cast<int>(block.first + i)));
  };
  std::size_t const from = first_exact(0), count = block.end() - from;
  if (count == 0) return;
  auto const exact = scratch.get(block.count, count);
  matrix_product(head_of(in.q, block.head, shape.head_dim).middle_rows(block.first, block.count),
                 head_of(in.k_exact, shape.kv_head(block.head), shape.head_dim).middle_rows(from, count), true,
                 shape.softmax_scale, 0, exact);
  for (std::size_t i = 0; i < block.count; ++i)
    for (std::size_t key = first_exact(i); key < block.end(); ++key) scores(i, key - block.from) = exact(i, key - from);
}

/// Adds p · (v_exact − v) over the values that each query reads exactly.
void add_exact_values(attention_shape const& shape, attention_input const& in, query_block block,
                      view2d<float const> probabilities, view2d<float> out, scratch_matrix& scratch) {
  std::size_t const kv_head = shape.kv_head(block.head);
  auto const v = head_of(in.v, kv_head, shape.head_dim), exact = head_of(in.v_exact, kv_head, shape.head_dim);
  auto const first_exact = [&](std::size_t i) {
    return block.clamp(in.window->first_value(static_cast<int>(block.first + i)));
  };
  std::size_t const from = first_exact(0), count = block.end() - from;
  if (count == 0) return;
  auto const difference = scratch.get(count + block.count, std::max(shape.head_dim, count));
  auto const delta = difference.middle_rows(0, count).middle_cols(0, shape.head_dim);
  auto const masked = difference.middle_rows(count, block.count).middle_cols(0, count);
  for (std::size_t row = 0; row < count; ++row)
    for (std::size_t c = 0; c < shape.head_dim; ++c) delta(row, c) = exact(from + row, c) - v(from + row, c);
  for (std::size_t i = 0; i < block.count; ++i)
    for (std::size_t key = from; key < block.end(); ++key)
      masked(i, key - from) = key < first_exact(i) ? 0 : probabilities(i, key - block.from);
  matrix_product(masked, delta, false, 1, 1, out);
}

/// Scores of a block against all its keys, as probabilities: [block.count, block.keys].
view2d<float> probabilities_of(attention_shape const& shape, attention_input const& in, query_block block,
                               scratch_matrix& scores_scratch, scratch_matrix& exact_scratch) {
  auto const scores = scores_scratch.get(block.count, block.keys);
  matrix_product(head_of(in.q, block.head, shape.head_dim).middle_rows(block.first, block.count),
                 block.seen(head_of(in.k, shape.kv_head(block.head), shape.head_dim)), true, shape.softmax_scale, 0,
                 scores);
  if (in.window != nullptr) use_exact_keys(shape, in, block, scores, exact_scratch);
  causal_softmax(shape, block, scores);
  return scores;
}

struct worker_scratch {
  scratch_matrix scores, other;
};

}  // namespace

void attend(attention_shape const& shape, attention_input const& in, view2d<float> out, executor_ref executor) {
  std::vector<worker_scratch> scratch(static_cast<std::size_t>(executor.workers()));
  executor.parallel_for(shape.q_heads * blocks(in.q.rows), [&](std::size_t task, int worker) {
    auto& mine = scratch[static_cast<std::size_t>(worker)];
    query_block const block = block_of(shape, task % shape.q_heads, task / shape.q_heads, in.q.rows);
    auto const p = probabilities_of(shape, in, block, mine.scores, mine.other);
    auto const result = head_of(out, block.head, shape.head_dim).middle_rows(block.first, block.count);
    matrix_product(p, block.seen(head_of(in.v, shape.kv_head(block.head), shape.head_dim)), false, 1, 0, result);
    if (in.window != nullptr) add_exact_values(shape, in, block, p, result, mine.other);
  });
}

namespace {

/// One query head's share of the gradients with respect to its KV head: [T, head_dim] each.
struct head_gradients {
  std::vector<float> dk, dv;
};

void backward_of_head(attention_shape const& shape, attention_input const& in, view2d<float const> d_out,
                      view2d<float> dq, std::size_t head, head_gradients& gradients, worker_scratch& scratch) {
  std::size_t const tokens = in.q.rows, d = shape.head_dim, kv_head = shape.kv_head(head);
  gradients.dk.assign(tokens * d, 0);
  gradients.dv.assign(tokens * d, 0);
  view2d<float> const dk(gradients.dk.data(), tokens, d), dv(gradients.dv.data(), tokens, d);
  scratch_matrix unused;
  for (std::size_t i = 0; i < blocks(tokens); ++i) {
    query_block const block = block_of(shape, head, i, tokens);
    auto const p = probabilities_of(shape, in, block, scratch.scores, unused);
    auto const d_rows = head_of(d_out, head, d).middle_rows(block.first, block.count);
    transposed_matrix_product(p, d_rows, 1, 1, block.seen(dv));
    auto const dp = scratch.other.get(block.count, block.keys);
    matrix_product(d_rows, block.seen(head_of(in.v, kv_head, d)), true, 1, 0, dp);
    for (std::size_t row = 0; row < block.count; ++row) kernels::softmax_backward(p.row(row), dp.row(row));
    matrix_product(dp, block.seen(head_of(in.k, kv_head, d)), false, shape.softmax_scale, 0,
                   head_of(dq, head, d).middle_rows(block.first, block.count));
    transposed_matrix_product(dp, head_of(in.q, head, d).middle_rows(block.first, block.count), shape.softmax_scale, 1,
                              block.seen(dk));
  }
}

}  // namespace

void attend_backward(attention_shape const& shape, attention_input const& in, view2d<float const> d_out,
                     view2d<float> dq, view2d<float> dk, view2d<float> dv, executor_ref executor) {
  std::vector<worker_scratch> scratch(static_cast<std::size_t>(executor.workers()));
  std::vector<head_gradients> heads(shape.q_heads);
  executor.parallel_for(shape.q_heads, [&](std::size_t head, int worker) {
    backward_of_head(shape, in, d_out, dq, head, heads[head], scratch[static_cast<std::size_t>(worker)]);
  });
  // Query heads that share a KV head are added in their order.
  std::size_t const group = shape.q_heads / shape.kv_heads, d = shape.head_dim;
  executor.parallel_for(in.k.rows, [&](std::size_t token, int) {
    for (std::size_t channel = 0; channel < in.k.cols; ++channel) {
      std::size_t const at = token * d + channel % d;
      float key = 0, value = 0;
      for (std::size_t head = channel / d * group; head < (channel / d + 1) * group; ++head) {
        key += heads[head].dk[at];
        value += heads[head].dv[at];
      }
      dk(token, channel) = key;
      dv(token, channel) = value;
    }
  });
}

}  // namespace kvquant::runtime
