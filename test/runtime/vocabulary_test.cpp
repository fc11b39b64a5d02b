/// \file
/// Tokens as a file lists them, and every way in which a list can be broken.

#include "runtime/tokenizer/vocabulary.hpp"

#include <catch2/catch.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/core/error.hpp"
#include "test/support/thrown.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using Catch::Contains;
using runtime::byte_token_text;
using runtime::byte_token_value;
using runtime::no_token;
using runtime::token_id;
using runtime::token_kind;
using runtime::vocabulary;
using test::gguf_writer;

namespace {

using texts = std::vector<std::string>;
using kinds = std::vector<std::int32_t>;

gguf_writer file_of(texts const& tokens) { return gguf_writer().set("tokenizer.ggml.tokens", tokens); }

vocabulary read(gguf_writer const& file) {
  auto const bytes = file.bytes();
  return vocabulary(runtime::gguf_file::parse(bytes, "test.gguf"));
}

/// What a broken file says; it always names the file first.
std::string refusal(gguf_writer const& file) {
  auto const error = test::error_of([&] { read(file); });
  CHECK(error.code == errc::bad_file);
  CHECK_THAT(error.text, Catch::StartsWith("test.gguf: "));
  return error.text;
}

}  // namespace

TEST_CASE("A vocabulary keeps texts, kinds and ids after its file is gone", "[tokenizer]") {
  auto const v = read(file_of({"<unk>", "<s>", "a", "<u>", "x", "<0x0A>", "raw"})
                          .set("tokenizer.ggml.token_type", kinds{2, 3, 1, 4, 5, 6, 0}));
  CHECK(v.size() == 7);
  CHECK(v.text(1) == "<s>");
  CHECK(v.find("<0x0A>") == 5);
  CHECK(v.find("b") == no_token);
  CHECK(v.find("<s") == no_token);
  std::vector<token_kind> const expected{token_kind::unknown,      token_kind::control, token_kind::normal,
                                         token_kind::user_defined, token_kind::unused,  token_kind::byte,
                                         token_kind::undefined};
  std::vector<bool> const ordinary{false, false, true, false, true, false, true};
  for (token_id id = 0; id < v.size(); ++id) {
    auto const i = static_cast<std::size_t>(id);
    CHECK(v.kind(id) == expected[i]);
    CHECK(v.is_ordinary(id) == ordinary[i]);
    CHECK(v.find(v.text(id)) == id);
  }
}

TEST_CASE("Without kinds every token is normal", "[tokenizer]") {
  auto const v = read(file_of({"a", "<0xZZ>"}));
  CHECK(v.kind(0) == token_kind::normal);
  CHECK(v.kind(1) == token_kind::normal);
}

TEST_CASE("Tokens may be any bytes; empty ones are no text's and may repeat", "[tokenizer]") {
  using namespace std::string_literals;
  auto const v = read(file_of({"", "\xFF\xC0", "", "a\0b"s, "a"}));
  CHECK(v.size() == 5);
  CHECK(v.find("") == no_token);
  CHECK(v.find("\xFF\xC0") == 1);
  CHECK(v.find("a\0b"s) == 3);
  CHECK(v.find("a") == 4);
}

TEST_CASE("A vocabulary without tokens is refused", "[tokenizer]") {
  CHECK_THAT(refusal(gguf_writer()), Contains("tokenizer.ggml.tokens"));
  CHECK_THAT(refusal(file_of({})), Contains("has 0 tokens, expected at least one"));
  CHECK_THAT(refusal(gguf_writer().set("tokenizer.ggml.tokens", kinds{1, 2})), Contains("array of strings"));
}

TEST_CASE("A token that is there twice is refused with both ids", "[tokenizer]") {
  CHECK_THAT(refusal(file_of({"a", "b", "c", "b"})), Contains("tokens 1 and 3 are both \"b\""));
  CHECK_THAT(refusal(file_of({"\n\xFF", "\n\xFF"})), Contains("\"\\x0A\\xFF\""));
}

TEST_CASE("A token may have 4096 bytes and no more", "[tokenizer]") {
  std::string const longest(4096, 'a');
  CHECK(read(file_of({"b", longest})).find(longest) == 1);
  CHECK_THAT(refusal(file_of({"b", longest + "a"})), Contains("token 1 has 4097 bytes, expected at most 4096"));
}

TEST_CASE("As many kinds as tokens are wanted, and known ones", "[tokenizer]") {
  auto const with_kinds = [](kinds const& numbers) {
    return refusal(file_of({"a", "b"}).set("tokenizer.ggml.token_type", numbers));
  };
  CHECK_THAT(with_kinds({1}), Contains("has 1 entries, expected one for each of the 2 tokens"));
  CHECK_THAT(with_kinds({1, 1, 1}), Contains("has 3 entries"));
  CHECK_THAT(with_kinds({}), Contains("has 0 entries"));
  CHECK_THAT(with_kinds({1, 7}), Contains("of token 1 is 7, expected 0 to 6"));
  CHECK_THAT(with_kinds({-1, 1}), Contains("of token 0 is -1"));
}

TEST_CASE("A byte token is written <0xNN>", "[tokenizer]") {
  for (auto const broken :
       {"<0x0a>", "<0x1>", "<0x123>", "0x41", "<0xG0>", "<0x0G>", "<0X41>", " <0x41>", "<0x41>>", "A", ""}) {
    INFO(broken);
    auto const said = refusal(file_of({"a", broken}).set("tokenizer.ggml.token_type", kinds{1, 6}));
    CHECK_THAT(said, Contains("byte token 1 is \"" + std::string(broken) + "\", expected <0xNN>"));
    CHECK(byte_token_value(broken) == -1);
  }
}

TEST_CASE("The text of a byte token gives its byte", "[tokenizer]") {
  CHECK(byte_token_text(0) == "<0x00>");
  CHECK(byte_token_text('\n') == "<0x0A>");
  CHECK(byte_token_text(0xF5) == "<0xF5>");
  for (int byte = 0; byte < 256; ++byte)
    CHECK(byte_token_value(byte_token_text(static_cast<unsigned char>(byte))) == byte);
}
