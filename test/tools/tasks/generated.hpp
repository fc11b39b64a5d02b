#pragma once
/// \file
/// What generators make for a model whose token b is byte b.

#include <cstddef>
#include <string>
#include <string_view>

#include "test/support/vocabularies.hpp"
#include "tools/tasks/sample.hpp"

namespace kvquant::test {

struct byte_maker {
  runtime::tokenizer words = byte_level("smollm").build();
  tasks::prompt_maker maker{words, std::nullopt};

  std::string text(tasks::sample const& it) const { return words.decode(it.prompt); }
};

inline std::size_t count(std::string_view in, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = in.find(part); at != in.npos; at = in.find(part, at + 1)) ++found;
  return found;
}

inline bool same_prompts(tasks::sample_group const& a, tasks::sample_group const& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = a[i].prompt == b[i].prompt;
  return same;
}

}  // namespace kvquant::test
