#include "runtime/chat_template.hpp"

#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "test/support/thrown.hpp"
#include "test/support/tiny_model.hpp"
#include "test/support/vocabularies.hpp"

namespace kvquant::runtime {
namespace {

/// As SmolLM2-135M-Instruct has it.
constexpr std::string_view smollm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// <s> begins a text, </s> ends it.
test::gguf_writer words() {
  auto v = test::many_merges("smollm");
  auto const id_of = [&](char const* text) {
    return static_cast<std::uint32_t>(std::ranges::find(v.texts, text) - v.texts.begin());
  };
  auto const begin = id_of("<s>"), end = id_of("</s>");
  return test::with(v.file(), "tokenizer.ggml.bos_token_id", begin).set("tokenizer.ggml.eos_token_id", end);
}

std::string render(test::gguf_writer const& writer, std::vector<chat_message> const& messages) {
  test::memory_gguf const gguf(writer);
  return render_chat(gguf.file(), tokenizer(gguf.file()), messages);
}
test::gguf_writer words_with(std::string_view chat_template) {
  return words().set("tokenizer.chat_template", chat_template);
}
/// What one user says.
std::string render_one(std::string_view chat_template, std::string content = "hi") {
  return render(words_with(chat_template), {{"user", std::move(content)}});
}

test::thrown refusal(std::string_view chat_template) {
  auto const found = test::error_of([&] { render_one(chat_template); });
  CHECK(found.text.find('\n') == std::string::npos);
  return found;
}

/// The one message, whatever it is.
constexpr std::string_view content_alone = "{{ messages[0].content }}";

/// An environment variable has another value as long as this lives.
class changed_environment {
 public:
  changed_environment(char const* name, std::string const& value) : name_(name) {
    if (char const* const before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~changed_environment() {
    if (before_)
      setenv(name_, before_->c_str(), 1);
    else
      unsetenv(name_);
  }
  changed_environment(changed_environment const&) = delete;
  changed_environment& operator=(changed_environment const&) = delete;

 private:
  char const* name_;
  std::optional<std::string> before_;
};

/// What is said where `python3` is that shell script, or where there is none.
test::thrown refusal_with_python(std::optional<std::string> const& script) {
  auto const folder = std::filesystem::temp_directory_path() / ("kvquant_python_" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  if (script) {
    std::ofstream(folder / "python3") << "#!/bin/sh\n" << *script << '\n';
    std::filesystem::permissions(folder / "python3", std::filesystem::perms::owner_all);
  }
  changed_environment const path("PATH", folder.string());
  auto const found = refusal(content_alone);
  std::filesystem::remove_all(folder);
  return found;
}

TEST_CASE("SmolLM2's template says who speaks, and that the assistant is next") {
  CHECK(render(words_with(smollm2),
               {{"system", "Be brief."}, {"user", "Hello"}, {"assistant", "Yes?"}, {"user", "Bye"}}) ==
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        "Yes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  CHECK(render_one(smollm2, "Hello") ==
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("a template knows the tokens that begin and end a text, and what templates are used to") {
  CHECK(render_one("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}") ==
        "<s>[user] hi</s>");
  CHECK(render_one("  {% if true %}\nyes\n  {% endif %}\n") == "yes\n");  // tags take their line with them
  CHECK(render_one("{{ strftime_now('%%') }}") == "%");
  CHECK(render_one(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}") ==
        "1");
  auto const endless = test::without(words_with("{{ bos_token }}|{{ eos_token }}|"), "tokenizer.ggml.eos_token_id");
  CHECK(render(endless, {}) == "<s>||");
}

TEST_CASE("content comes back as it was, whatever is in it") {
  std::string const content =
      GENERATE(as<std::string>(), "", "{{ 7 * 7 }} {% raise %} {# #}", "<b> & \"quoted\" 'so' \\",
               "a\tb\r\nc\vd\x01\x1b[2J\x7f", "grün 你好 🦙", std::string("nul\0byte", 8));
  CHECK(render_one(content_alone, content) == content);
  CHECK(render_one(content_alone, std::string(300000, 'x')).size() == 300000);
}

TEST_CASE("bytes that are not UTF-8 become replacement characters") {
  CHECK(render_one(content_alone, "a\xff\xfe z") == "a\uFFFD\uFFFD z");
  CHECK(render_one(content_alone, "cut \xe4\xbd") == "cut \uFFFD");
}

TEST_CASE("what a template complains of is said, with the file's name") {
  auto const found = refusal("{{ raise_exception('roles must alternate') }}");
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text,
             test::says("tiny.gguf: the chat template cannot be rendered") && test::says("roles must alternate"));
  CHECK_THAT(refusal("{{ raise_exception('one\nline\x1b') }}").text, test::says("one\\x0Aline\\x1B"));
}

TEST_CASE("a template that cannot be read or goes wrong is refused on one line") {
  CHECK_THAT(refusal("{% for m in %}").text, test::says("TemplateSyntaxError"));
  CHECK_THAT(refusal("{% if %}\n\n{{").text, test::says("TemplateSyntaxError"));
  CHECK_THAT(refusal("{{ messages[7].content.upper() }}").text, test::says("UndefinedError"));
  CHECK_THAT(refusal("{% include 'other' %}").text, test::says("cannot be rendered"));
}

TEST_CASE("a template reaches nothing outside itself, and no more memory and time than it may use") {
  CHECK_THAT(refusal("{{ ''.__class__.__mro__[1].__subclasses__() }}").text, test::says("SecurityError"));
  CHECK_THAT(refusal("{{ messages.append(1) }}").text, test::says("SecurityError"));
  CHECK_THAT(refusal("{% for i in range(99999999) %}{% endfor %}").text, test::says("OverflowError"));
  CHECK_THAT(refusal("{{ 'x' * 3000000000 }}").text, test::says("MemoryError"));
  CHECK_THAT(refusal_with_python("kill -XCPU $$").text, test::says("tiny.gguf") && test::says("too slow or too large"));
}

TEST_CASE("a file without a template has none, and is told so") {
  test::memory_gguf const without(words()), with(words_with(content_alone));
  CHECK(!has_chat_template(without.file()));
  CHECK(has_chat_template(with.file()));
  auto const found = test::error_of([&] { render(words(), {}); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, test::says("tiny.gguf") && test::says("tokenizer.chat_template"));
}

TEST_CASE("without Python or jinja2 it is said what is missing") {
  auto const jinja2 = refusal_with_python("exit 3"), python = refusal_with_python(std::nullopt);
  CHECK(jinja2.code == errc::unsupported);
  CHECK_THAT(jinja2.text, test::says("jinja2 is missing") && test::says("python3-jinja2"));
  CHECK(python.code == errc::unsupported);
  CHECK_THAT(python.text, test::says("python3 cannot be run: No such file"));
}

TEST_CASE("the user's Python variables change nothing") {
  changed_environment const home("PYTHONHOME", "/absent");
  CHECK(render_one(content_alone) == "hi");
}

}  // namespace
}  // namespace kvquant::runtime
