#include "tools/tasks/longbench.hpp"

#include <catch2/catch.hpp>

#include "test/support/thrown.hpp"
#include "test/tools/tasks/generated.hpp"

namespace kvquant::tasks {
namespace {

using test::byte_maker, test::count, test::error_of, test::says;

std::string line_of(std::string const& dataset, std::string const& more = "") {
  return R"({"context": "A text.", "input": "What?", "answers": ["yes"], "dataset": ")" + dataset +
         R"(", "length": 2, "all_classes": null, "language": "en", "_id": "x")" + more + "}\n";
}

TEST_CASE("LongBench: members of a line") {
  auto const records = parse_longbench("\n" + line_of("qasper") + "  \r\n" +
                                           R"({"context":"c","input":"i","answers":["a","b"],"dataset":"d",)"
                                           R"("all_classes":["k"],"language":"zh"})",
                                       "x.jsonl");
  REQUIRE(records.size() == 2);
  CHECK((records[0].context == "A text." && records[0].input == "What?" && records[0].id == "x"));
  CHECK(records[0].classes.empty());
  CHECK((records[1].answers == std::vector<std::string>{"a", "b"} && records[1].language == "zh"));
  CHECK(records[1].classes == std::vector<std::string>{"k"});
}

TEST_CASE("LongBench: bad lines are told by number") {
  auto const said = [](std::string const& content) {
    auto const failure = error_of([&] { parse_longbench(line_of("qasper") + content, "x.jsonl"); });
    CHECK(failure.code == errc::bad_file);
    return failure.text;
  };
  CHECK_THAT(said("{\"context\": \"A te"), says("x.jsonl: line 2: no JSON"));
  CHECK_THAT(said("\n[1]\n"), says("x.jsonl: line 3: expected a JSON object"));
  CHECK_THAT(said("{}"), says("x.jsonl: line 2: expected \"context\", a string"));
  CHECK_THAT(said(R"({"context":"","input":3})"), says("expected \"input\", a string"));
  CHECK_THAT(said(R"({"context":"","input":"","dataset":"d","answers":[]})"), says("expected \"answers\""));
  CHECK_THAT(said(R"({"context":"","input":"","dataset":"d","answers":"a"})"), says("expected \"answers\", a list"));
  CHECK_THAT(error_of([] { parse_longbench(" \n", "x.jsonl"); }).text, says("x.jsonl: no lines"));
}

TEST_CASE("LongBench: datasets have their metric and length of answers") {
  CHECK(rules_of("gov_report")->kind == metric::rouge_l);
  CHECK(rules_of("gov_report")->most_tokens == 512);
  CHECK(rules_of("trec_e")->kind == metric::classification);
  CHECK((rules_of("trec")->plain && rules_of("trec")->first_line));
  CHECK(rules_of("lcc")->kind == metric::edit_similarity);
  CHECK(rules_of("passage_count")->kind == metric::number);
  CHECK_FALSE(rules_of("mine"));
}

std::vector<sample_group> samples(byte_maker const& bytes, std::string const& lines, sample_plan const& plan,
                                  longbench_choices const& choices = {}) {
  return longbench_samples(bytes.maker, parse_longbench(lines, "x.jsonl"), plan, choices);
}

TEST_CASE("LongBench: questions on one text are a group, and samples are counted by dataset") {
  byte_maker const bytes;
  std::string const other = R"({"context":"Other.","input":"Who?","answers":["me"],"dataset":"mine"})";
  std::string const lines = line_of("qasper") + line_of("hotpotqa") + other;
  auto const groups = samples(bytes, lines, {.lengths = {600}, .samples = 0});
  REQUIRE(groups.size() == 2);
  REQUIRE(groups[0].size() == 2);
  CHECK((groups[0][0].most_tokens == 128 && groups[0][1].most_tokens == 32));
  CHECK(count(bytes.text(groups[0][0]), "A text.") == 1);
  CHECK(groups[1][0].id() == "mine/600/0");
  auto const two = samples(bytes, line_of("qasper") + line_of("qasper") + other, {.lengths = {600}, .samples = 1});
  REQUIRE(two.size() == 2);
  CHECK(two[0].size() == 1);
}

TEST_CASE("LongBench: what is chosen goes before what the dataset has") {
  byte_maker const bytes;
  auto const group = samples(bytes, line_of("qasper"), {.lengths = {600}, .samples = 0},
                             {metric::edit_similarity, "<{input}|{context}|{input}>{", 7})[0];
  CHECK(group[0].kind == metric::edit_similarity);
  CHECK(group[0].most_tokens == 7);
  CHECK(bytes.text(group[0]) == "<What?|A text.|What?>{");
}

TEST_CASE("LongBench: a prompt that is too long loses its middle") {
  byte_maker const bytes;
  std::string const long_text = std::string(300, 'a') + "MIDDLE" + std::string(300, 'b');
  std::string const line = R"({"context":")" + long_text + R"(","input":"end","answers":["a"],"dataset":"mine"})";
  longbench_choices const form{.form = "{context}{input}", .most_tokens = 10};
  auto const cut = samples(bytes, line, {.lengths = {110}, .samples = 0}, form)[0][0];
  CHECK(bytes.text(cut) == std::string(50, 'a') + std::string(47, 'b') + "end");
  auto const whole = samples(bytes, line, {.lengths = {619}, .samples = 0}, form)[0][0];
  CHECK(bytes.text(whole) == long_text + "end");

  tasks::prompt_maker const chat(bytes.words, chat_frame{"<user>", "<me>"});
  auto const framed = longbench_samples(chat, parse_longbench(line, "x"), {.lengths = {110}, .samples = 0}, form)[0][0];
  CHECK(bytes.text(framed) == "<user>" + std::string(45, 'a') + std::string(42, 'b') + "end<me>");
  CHECK_THAT(error_of([&] {
               longbench_samples(chat, parse_longbench(line, "x"), {.lengths = {20}, .samples = 0}, form);
             }).text,
             says("mine: a length of 20"));
}

TEST_CASE("LongBench: classification needs classes, whose number is chance") {
  byte_maker const bytes;
  std::string const no_classes = line_of("trec");
  CHECK_THAT(error_of([&] { samples(bytes, no_classes, {.lengths = {600}, .samples = 0}); }).text,
             says("trec \"x\": no \"all_classes\""));
  std::string const line =
      R"({"context":"c","input":"i","answers":["A"],"dataset":"trec","all_classes":["A","B","C","D"]})";
  CHECK(samples(bytes, line, {.lengths = {600}, .samples = 0})[0][0].chance == 0.25);
}

TEST_CASE("documents for questions: members of a line") {
  auto const all = parse_documents(R"({"context":"c","question":"q","answers":["a"]})", "d.jsonl");
  CHECK((all.size() == 1 && all[0].text == "c" && all[0].question == "q" && all[0].answers.size() == 1));
  CHECK_THAT(error_of([] { parse_documents("{\"context\":\"c\"}", "d.jsonl"); }).text,
             says("d.jsonl: line 1: expected \"question\""));
}

}  // namespace
}  // namespace kvquant::tasks
