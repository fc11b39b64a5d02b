/// \file
/// The backend of `05_new_backend.hpp` in a cache, beside the library's generic one.

#include "examples/05_new_backend.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "examples/support.hpp"

namespace {

using example::shape, example::spec, example::tensor, example::token_stream;

/// Attention from the last tokens of a sequence of `B`'s own cache, in the last layer.
template <kvquant::Backend B>
tensor attend_with(kvquant::artifact<spec> const& artifact, token_stream const& tokens, std::size_t asked) {
  kvquant::kv_cache<spec, typename B::template page_layout<spec>> cache(artifact, {.max_tokens = 1024});
  typename B::template attention<spec> const attend(artifact);
  kvquant::inline_executor here;
  kvquant::sequence chat = cache.open();
  int const layer = shape.layers - 1;
  cache.append(chat, layer, tokens.k(layer, 0, tokens.tokens), tokens.v(layer, 0, tokens.tokens));
  tensor out(asked, shape.q_heads);
  std::array<kvquant::attend_args, 1> const batch = {
      {{cache.view(chat, layer), tokens.q(layer, tokens.tokens - asked, asked), out(layer, 0, asked)}}};
  attend(layer, batch, here);
  return out;
}

}  // namespace

int main() {
  auto const artifact = example::fitted_artifact();
  token_stream const tokens(500, 1);
  tensor const mine = attend_with<toy::backend>(artifact, tokens, 8);
  tensor const theirs = attend_with<example::backend>(artifact, tokens, 8);
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < mine.values().size(); ++i) {
    difference = std::max(difference, std::abs(double{mine.values()[i]} - theirs.values()[i]));
    largest = std::max(largest, std::abs(double{theirs.values()[i]}));
  }
  std::printf("largest element %.3f, largest difference from the generic backend %.1e\n", largest, difference);
  return largest > 0 && difference <= 1e-5 * largest ? 0 : 1;
}
