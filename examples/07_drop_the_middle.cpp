/// \file
/// A conversation outgrows its cache. Pages from its middle are dropped, and the tokens behind them move to the front;
/// nothing is read, rotated or quantized again.
///
/// A page holds keys before RoPE, and attention turns them by wherever the page stands now. A cache of keys after RoPE
/// has each token's old position in its codes: to move it by n tokens, every key would have to be decoded, turned back
/// by n and quantized again, with a second rounding error and in channels whose ranges do not fit turned keys. Or its
/// keys stay at their old places, and positions grow beyond what the model was trained for.

#include <array>
#include <cstdio>

#include "examples/support.hpp"

namespace {

using example::shape;

constexpr std::size_t page = kvquant::page_tokens, asked = 8;

/// Attention from the last `asked` tokens of a sequence, in every layer.
example::tensor attend_to(example::cache_type const& cache, kvquant::sequence const& of,
                          example::backend::attention<example::spec> const& attend, example::token_stream const& from) {
  kvquant::inline_executor here;
  example::tensor out(asked, shape.q_heads);
  // [doc:attend]
  for (int layer = 0; layer < shape.layers; ++layer) {
    std::array<kvquant::attend_args, 1> const queries = {
        {{cache.view(of, layer), from.q(layer, from.tokens - asked, asked), out(layer, 0, asked)}}};
    attend(layer, queries, here);
  }
  // [/doc]
  return out;
}

}  // namespace

int main() {
  using example::append, example::contents_of;
  auto const artifact = example::fitted_artifact();
  example::backend::attention<example::spec> const attend(artifact);
  example::cache_type cache(artifact, {.max_tokens = 10 * page});
  std::size_t const sinks = cache.sinks(), so_far = sinks + 10 * page + 20, more = 2 * page;
  example::token_stream const tokens(so_far + more, 1);
  kvquant::sequence chat = cache.open();
  append(cache, chat, tokens, 0, so_far);
  auto const before = contents_of(cache, chat);

  // [doc:drop]
  std::size_t const first = sinks + page, count = 4 * page;  // whole pages; the sinks and the first page stay
  try {
    cache.reserve(chat, more);
  } catch (kvquant::error const& full) {
    if (full.code != kvquant::errc::out_of_pages) throw;
    cache.drop(chat, first, count);  // tokens behind them are `count` positions further to the front from now on
  }
  // [/doc]

  auto const after = contents_of(cache, chat);
  bool untouched = chat.tokens() == so_far - count;
  for (std::size_t layer = 0; layer < after.size(); ++layer) {
    auto kept = before[layer];
    kept.pages.erase(kept.pages.begin() + 1, kept.pages.begin() + 5);
    untouched = untouched && after[layer] == kept;
  }

  // Another cache never sees the dropped tokens. The pages of both begin with the same tokens.
  example::cache_type fresh(artifact, {.max_tokens = 10 * page});
  kvquant::sequence rest = fresh.open();
  append(fresh, rest, tokens, 0, first);
  append(fresh, rest, tokens, first + count, so_far - first - count);
  append(cache, chat, tokens, so_far, more);
  append(fresh, rest, tokens, so_far, more);
  bool const same_bytes = contents_of(cache, chat) == contents_of(fresh, rest);
  bool const same_attention =
      attend_to(cache, chat, attend, tokens).values() == attend_to(fresh, rest, attend, tokens).values();

  std::printf("%zu tokens, %zu dropped, %zu more: %zu\n", so_far, count, more, chat.tokens());
  std::printf("the other pages are %s; as in a cache without the dropped tokens: bytes %s, attention %s\n",
              untouched ? "untouched" : "changed", same_bytes ? "yes" : "no", same_attention ? "yes" : "no");
  return untouched && same_bytes && same_attention ? 0 : 1;
}
