#pragma once
/// \file
/// Words and sentences to hide things among.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/tasks/random.hpp"

namespace kvquant::tasks {

/// What needles are hidden in; used from the start again when it is at its end.
struct haystack {
  std::vector<std::string> sentences;
  std::size_t first = 0;  ///< the sentence that it starts with

  std::string const& sentence(std::size_t i) const { return sentences[(first + i) % sentences.size()]; }
};

/// A few sentences that repeat, from one of them on.
haystack repeated_sentences(random_source& random);
/// Sentences that say nothing and repeat seldom. No digits.
haystack generated_prose(random_source& random, std::size_t sentences);
/// The sentences of a text. Throws `bad_value` if there are none.
haystack sentences_of(std::string_view text);

/// Different words, all made of equally many plain ones: as few as give that many, but `least_parts`.
std::vector<std::string> distinct_words(random_source& random, std::size_t count, std::size_t least_parts = 1);
/// Words of letters without meaning.
std::vector<std::string> coded_words(random_source& random, std::size_t count);

/// So many characters of an alphabet.
std::string random_characters(random_source& random, std::string_view alphabet, std::size_t count);
/// `digits` digits, the first not 0.
std::string random_number(random_source& random, std::size_t digits);
/// 8-4-4-4-12 hexadecimal digits.
std::string random_uuid(random_source& random);

std::string join(std::span<std::string const> parts, std::string_view between);

}  // namespace kvquant::tasks
