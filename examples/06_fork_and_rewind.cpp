/// \file
/// Two continuations of one conversation share its pages, and tokens that were guessed and rejected leave no trace.

#include <cstdio>

#include "examples/support.hpp"

int main() {
  using example::append, example::contents_of;
  constexpr std::size_t prompt = 381, reply = 128, end = prompt + 2 * reply, guesses = 8, accepted = 3;
  example::token_stream const tokens(end, 1), others(reply, 2);  // what the model says, and what it might have said
  // Beside the page that is being filled, a whole one stays exact. So the latest 64 tokens are never in a sealed page:
  // as many can be guessed and taken back, and no page ever knew of them.
  example::cache_type cache(example::fitted_artifact(), {.max_tokens = 2048, .recent_pages = 1});

  // [doc:fork]
  kvquant::sequence chat = cache.open();
  append(cache, chat, tokens, 0, prompt);  // cache.append, to every layer
  std::size_t const free_before = cache.free_blocks();
  std::size_t free_forked, free_replied;
  {
    kvquant::sequence rival = cache.fork(chat);  // the same pages; a copy of the exact tokens
    free_forked = cache.free_blocks();
    append(cache, rival, others, 0, reply);  // each takes pages for what is new
    append(cache, chat, tokens, prompt, reply);
    free_replied = cache.free_blocks();
  }  // what was rival's alone is free again
  std::size_t const free_chosen = cache.free_blocks();

  append(cache, chat, tokens, prompt + reply, accepted);  // speculation: guesses that the model will agree with,
  append(cache, chat, others, 0, guesses - accepted);     // and others; this seals a page
  cache.truncate(chat, prompt + reply + accepted);
  append(cache, chat, tokens, prompt + reply + accepted, reply - accepted);
  // [/doc]

  kvquant::sequence plain = cache.open();
  append(cache, plain, tokens, 0, end);
  bool const same = contents_of(cache, chat) == contents_of(cache, plain);
  std::printf("free blocks: %zu, forked %zu, both replied %zu, one closed %zu\n", free_before, free_forked,
              free_replied, free_chosen);
  std::printf("%zu tokens after a fork and rejected guesses: %s bytes as without them\n", chat.tokens(),
              same ? "the same" : "other");
  bool const shared = free_forked == free_before;
  bool const given_back = free_before - free_replied == 2 * (free_before - free_chosen) && free_chosen > free_replied;
  return same && shared && given_back ? 0 : 1;
}
