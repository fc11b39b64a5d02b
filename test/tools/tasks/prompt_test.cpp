#include "tools/tasks/prompt.hpp"

#include <catch2/catch.hpp>

#include "test/support/thrown.hpp"
#include "test/support/tiny_model.hpp"

namespace kvquant::tasks {
namespace {

using test::error_of, test::memory_gguf, test::says, test::tiny_model;

memory_gguf with_template(std::string const& chat_template) {
  return memory_gguf(tiny_model{}.writer().set("tokenizer.chat_template", chat_template));
}

TEST_CASE("a chat template is what stands around the user's text") {
  auto const gguf = with_template("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<me>");
  runtime::tokenizer const words(gguf.file());
  auto const frame = read_chat_frame(gguf.file(), words);
  REQUIRE(frame);
  CHECK(frame->before == "<user>");
  CHECK(frame->after == "</><me>");
  prompt_maker const chat(words, frame), plain(words, std::nullopt);
  question const asked{.text = "Who?", .answer_start = "It is"};
  CHECK(words.decode(chat.ids(asked)) == "<user>Who?</><me>It is");
  CHECK(words.decode(plain.ids(asked)) == "Who?\nIt is");
  CHECK(chat.ids({.text = "Who?", .plain = true}) == plain.ids({.text = "Who?"}));
}

TEST_CASE("without a template there is no frame, and one that hides the text is refused") {
  memory_gguf const none(tiny_model{}.writer());
  CHECK_FALSE(read_chat_frame(none.file(), runtime::tokenizer(none.file())));
  auto const mute = with_template("nothing");
  auto const refused = error_of([&] { read_chat_frame(mute.file(), runtime::tokenizer(mute.file())); });
  CHECK(refused.code == errc::bad_file);
  CHECK_THAT(refused.text, says("does not write once what the user says"));
}

TEST_CASE("filler is as much as fits") {
  memory_gguf const gguf(tiny_model{}.writer());
  runtime::tokenizer const words(gguf.file());
  prompt_maker const maker(words, std::nullopt);
  auto const ask = [](std::size_t units) { return question{.text = "ab" + std::string(3 * units, 'x')}; };
  CHECK(most_filler(maker, ask, 2, "t") == 0);
  CHECK(most_filler(maker, ask, 2 + 3 * 17 + 2, "t") == 17);
  CHECK(most_filler(maker, ask, 2 + 3 * 1000, "t") == 1000);
  CHECK(most_filler(maker, ask, 5000, "t", 20) == 20);
  CHECK_THAT(error_of([&] { most_filler(maker, ask, 1, "t"); }).text, says("t: a length that leaves 1 tokens"));
}

}  // namespace
}  // namespace kvquant::tasks
