#pragma once
/// \file
/// The printable characters by which byte-level BPE vocabularies spell arbitrary bytes (GPT-2's mapping): printable
/// Latin-1 stands for itself, the other 68 bytes, in order, are U+0100, U+0101, … So a space is written "Ġ".

#include <optional>
#include <string>
#include <string_view>

namespace kvquant::runtime {

/// The UTF-8 spelling of `bytes`: one character a byte.
std::string spell_bytes(std::string_view bytes);

/// The bytes that `spelling` stands for; nothing if it holds a character that is not of the alphabet.
std::optional<std::string> unspell_bytes(std::string_view spelling);

}  // namespace kvquant::runtime
