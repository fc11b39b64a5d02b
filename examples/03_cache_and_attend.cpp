/// \file
/// The paged cache in a runtime: a prompt goes in, tokens are decoded one by one, two sequences share a step. What
/// attention reads from 3 bits is compared with attention over the exact keys and values.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <span>
#include <utility>
#include <vector>

#include "examples/support.hpp"
#include "kvquant/attend/attend.hpp"

namespace {

using example::backend, example::shape, example::spec, example::tensor, example::token_stream;

constexpr std::size_t prompt = 800, last = 840, other_last = 300;
/// 3 bits are off by 0.2 on normally distributed keys and values that nothing but noise tells apart.
constexpr double band = 0.25;

/// Turns every head to its token's position.
void rotate(tensor& x, std::size_t tokens) {
  kvquant::rope const rotation(shape.rope, shape.head_dim);
  auto const angles = rotation.angle_table(0, tokens);
  auto const d = static_cast<std::size_t>(shape.head_dim);
  for (int layer = 0; layer < shape.layers; ++layer)
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t c = 0; c < x.cols(); c += d) rotation.rotate(x(layer, t, 1).row(0).subspan(c, d), angles[t]);
}

/// softmax(q · k / √d) v of one head over exact tokens; `k`, `v` [tokens, head_dim], `q` and `k` after RoPE.
std::vector<double> exact_attention(std::span<float const> q, kvquant::view2d<float const> k,
                                    kvquant::view2d<float const> v) {
  std::vector<double> out(q.size());
  double sum = 0;
  for (std::size_t token = 0; token < k.rows; ++token) {
    double score = 0;
    for (std::size_t i = 0; i < q.size(); ++i) score += double{q[i]} * double{k(token, i)};
    double const p = std::exp(score / std::sqrt(static_cast<double>(q.size())));
    for (std::size_t i = 0; i < q.size(); ++i) out[i] += p * double{v(token, i)};
    sum += p;
  }
  for (double& x : out) x /= sum;
  return out;
}

/// ‖got − exact‖ / ‖exact‖ of tokens [first, last] of all layers.
double relative_error(tensor const& got, token_stream exact, std::size_t first) {
  rotate(exact.k, exact.tokens);
  rotate(exact.q, exact.tokens);
  auto const d = static_cast<std::size_t>(shape.head_dim), heads = exact.q.cols() / d,
             group = exact.q.cols() / exact.k.cols();
  double error = 0, norm = 0;
  for (int layer = 0; layer < shape.layers; ++layer)
    for (std::size_t t = first; t < exact.tokens; ++t)
      for (std::size_t head = 0; head < heads; ++head) {
        auto const k = std::as_const(exact.k)(layer, 0, t + 1), v = std::as_const(exact.v)(layer, 0, t + 1);
        auto const expected = exact_attention(exact.q(layer, t, 1).row(0).subspan(head * d, d),
                                              k.middle_cols(head / group * d, d), v.middle_cols(head / group * d, d));
        for (std::size_t i = 0; i < d; ++i) {
          error += std::pow(double{got(layer, t, 1)(0, head * d + i)} - expected[i], 2);
          norm += std::pow(expected[i], 2);
        }
      }
  return std::sqrt(error / norm);
}

void print(kvquant::byte_report const& it, std::size_t elements) {
  for (auto const& [part, bytes] : {std::pair{"codes", it.codes},
                                    {"value ranges", it.value_ranges},
                                    {"slots", it.slots},
                                    {"padding", it.padding},
                                    {"sinks", it.sinks},
                                    {"tail", it.tail},
                                    {"tables", it.tables},
                                    {"page table", it.page_table},
                                    {"slack", it.slack},
                                    {"in all", it.total()}})
    std::printf("%-12s %7zu bytes, %5.2f bits per element\n", part, bytes,
                8 * static_cast<double>(bytes) / static_cast<double>(elements));
}

}  // namespace

int main() {
  auto const artifact = example::fitted_artifact();
  token_stream const mine(last + 1, 1), others(other_last + 1, 2);
  tensor mine_out(mine.tokens, shape.q_heads), others_out(others.tokens, shape.q_heads);

  // [doc:embed]
  kvquant::kv_cache<spec, backend::page_layout<spec>> cache(artifact, {.max_tokens = 2048});
  backend::attention<spec> const attend(artifact);
  kvquant::inline_executor here;  // or kvquant::cpu::thread_pool, or threads of your own
  kvquant::sequence chat = cache.open(), other = cache.open();
  for (int layer = 0; layer < shape.layers; ++layer) {  // prompts; keys before RoPE
    cache.append(chat, layer, mine.k(layer, 0, prompt), mine.v(layer, 0, prompt));
    cache.append(other, layer, others.k(layer, 0, other_last), others.v(layer, 0, other_last));
  }
  for (std::size_t t = prompt; t < last; ++t)  // then token by token; queries before RoPE too
    for (int layer = 0; layer < shape.layers; ++layer)
      kvquant::attend_as_decoded(cache, attend, chat, layer, mine.k(layer, t, 1), mine.v(layer, t, 1),
                                 mine.q(layer, t, 1), mine_out(layer, t, 1), {}, here);
  for (int layer = 0; layer < shape.layers; ++layer) {  // a step of two sequences: append to both, attend once
    cache.append(chat, layer, mine.k(layer, last, 1), mine.v(layer, last, 1));
    cache.append(other, layer, others.k(layer, other_last, 1), others.v(layer, other_last, 1));
    std::array<kvquant::attend_args, 2> const batch = {
        {{cache.view(chat, layer), mine.q(layer, last, 1), mine_out(layer, last, 1)},
         {cache.view(other, layer), others.q(layer, other_last, 1), others_out(layer, other_last, 1)}}};
    attend(layer, batch, here);
  }
  // [/doc]

  print(cache.bytes(chat), cache.elements(chat));
  double const error = std::max(relative_error(mine_out, mine, prompt), relative_error(others_out, others, other_last));
  std::printf("attention is off by %.3f of its length, expected less than %.2f\n", error, band);
  return error < band ? 0 : 1;
}
