#include "tools/tasks/longbench.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/quote.hpp"
#include "tools/tasks/hide.hpp"

namespace kvquant::tasks {

namespace {

/// A line of a file, which knows where it stands.
class json_line {
 public:
  json_line(std::string_view text, std::string where) : where_(std::move(where)) {
    value_ = nlohmann::json::parse(text, nullptr, false);
    require(!value_.is_discarded(), errc::bad_file, where_, ": no JSON");
    require(value_.is_object(), errc::bad_file, where_, ": expected a JSON object");
  }

  std::string const& where() const { return where_; }
  std::string text(char const* name) const {
    auto const found = value_.find(name);
    require(found != value_.end() && found->is_string(), errc::bad_file, where_, ": expected \"", name, "\", a string");
    return found->get<std::string>();
  }
  std::string text_or_nothing(char const* name) const { return value_.contains(name) ? text(name) : std::string{}; }
  /// Empty where it is not there, or null.
  std::vector<std::string> texts(char const* name) const {
    auto const found = value_.find(name);
    if (found == value_.end() || found->is_null()) return {};
    bool const right = found->is_array() && std::all_of(found->begin(), found->end(),
                                                        [](nlohmann::json const& it) { return it.is_string(); });
    require(right, errc::bad_file, where_, ": expected \"", name, "\", a list of strings");
    return found->get<std::vector<std::string>>();
  }
  std::vector<std::string> answers() const {
    auto all = texts("answers");
    require(!all.empty(), errc::bad_file, where_, ": expected \"answers\", a list of strings, one at least");
    return all;
  }

 private:
  std::string where_;
  nlohmann::json value_;
};

template <class Record, class Read>
std::vector<Record> parse_lines(std::string_view content, std::string_view name, Read read) {
  std::vector<Record> records;
  for (std::size_t number = 1; !content.empty(); ++number) {
    std::size_t const end = std::min(content.find('\n'), content.size());
    std::string_view const line = content.substr(0, end);
    if (line.find_first_not_of(" \t\r") != line.npos)
      records.push_back(read(json_line(line, text(name, ": line ", number))));
    content.remove_prefix(std::min(end + 1, content.size()));
  }
  require(!records.empty(), errc::bad_file, name, ": no lines, expected a JSON object a line");
  return records;
}

// Forms of prompts, in words of our own. Those of few examples and of code go on with the context.
constexpr char const* question_form =
    "Read this text and answer the question below with as few words as possible.\n\n{context}\n\nQuestion: {input}\n"
    "Answer:";
constexpr char const* summary_form = "Read this text.\n\n{context}\n\n{input}\nWrite a summary of it.\nSummary:";
constexpr char const* examples_form = "{context}\n{input}";
constexpr char const* count_form =
    "Some of these paragraphs may be repeated. How many different ones are there? Answer with a number alone.\n\n"
    "{context}\n\nNumber:";
constexpr char const* retrieval_form =
    "Which of these paragraphs does the summary below belong to? Answer with its name, as in \"Paragraph 1\".\n\n"
    "{context}\n\nSummary: {input}\n\nAnswer:";
constexpr char const* code_form = "{context}{input}";

/// Metrics and most tokens are LongBench's.
std::map<std::string_view, dataset_rules> const& known_datasets() {
  static auto const all = [] {
    dataset_rules const qa{metric::token_f1, 32, question_form}, summary{metric::rouge_l, 512, summary_form},
        code{metric::edit_similarity, 64, code_form, true};
    auto const longer = [](dataset_rules it, std::size_t tokens) {
      it.most_tokens = tokens;
      return it;
    };
    auto const examples = [](metric kind, std::size_t tokens) {
      return dataset_rules{kind, tokens, examples_form, true, true};
    };
    return std::map<std::string_view, dataset_rules>{
        {"narrativeqa", longer(qa, 128)},
        {"qasper", longer(qa, 128)},
        {"multifieldqa_en", longer(qa, 64)},
        {"multifieldqa_zh", longer(qa, 64)},
        {"hotpotqa", qa},
        {"2wikimqa", qa},
        {"musique", qa},
        {"dureader", {metric::rouge_l, 128, question_form}},
        {"gov_report", summary},
        {"qmsum", summary},
        {"multi_news", summary},
        {"vcsum", summary},
        {"trec", examples(metric::classification, 64)},
        {"triviaqa", examples(metric::token_f1, 32)},
        {"samsum", examples(metric::rouge_l, 128)},
        {"lsht", examples(metric::classification, 64)},
        {"passage_count", {metric::number, 32, count_form}},
        {"passage_retrieval_en", {metric::number, 32, retrieval_form}},
        {"passage_retrieval_zh", {metric::number, 32, retrieval_form}},
        {"lcc", code},
        {"repobench-p", code},
    };
  }();
  return all;
}

std::string fill_in(std::string_view form, longbench_record const& record) {
  constexpr std::string_view context = "{context}", input = "{input}";
  std::string out;
  while (!form.empty()) {
    if (form.starts_with(context)) {
      out += record.context;
      form.remove_prefix(context.size());
    } else if (form.starts_with(input)) {
      out += record.input;
      form.remove_prefix(input.size());
    } else {
      out += form.front();
      form.remove_prefix(1);
    }
  }
  return out;
}

/// The prompt, of whose text as much of the middle is left out as is too long.
void fit_middle(prompt_maker const& maker, sample& it) {
  std::size_t const room = prompt_room(it);
  it.prompt = maker.ids(it.ask);
  if (it.prompt.size() <= room) return;
  auto const ids = maker.words().encode(it.ask.text, {.add_special = false});
  std::size_t kept = ids.size();
  while (it.prompt.size() > room) {
    // Where a cut falls inside a word its tokens may be more.
    std::size_t const excess = it.prompt.size() - room;
    require(kept > excess, errc::bad_value, it.task, ": a length of ", it.length, ", expected more than ",
            it.length - room + excess, ", what the answer and the chat template take");
    kept -= excess;
    auto const half = static_cast<std::ptrdiff_t>(kept / 2);
    std::vector<runtime::token_id> const head(ids.begin(), ids.begin() + half), tail(ids.end() - half, ids.end());
    it.ask.text = maker.words().decode(head) + maker.words().decode(tail);
    it.prompt = maker.ids(it.ask);
  }
}

dataset_rules rules_for(longbench_record const& record, longbench_choices const& choices) {
  auto rules = rules_of(record.dataset).value_or(dataset_rules{});
  rules.kind = choices.kind.value_or(rules.kind);
  rules.form = choices.form.value_or(rules.form);
  rules.most_tokens = choices.most_tokens.value_or(rules.most_tokens);
  require(rules.kind != metric::classification || !record.classes.empty(), errc::bad_value, record.dataset, " \"",
          record.id, R"(": no "all_classes", expected some to be scored by classification)");
  return rules;
}

}  // namespace

std::vector<longbench_record> parse_longbench(std::string_view content, std::string_view name) {
  return parse_lines<longbench_record>(content, name, [](json_line const& line) {
    return longbench_record{.context = line.text("context"),
                            .input = line.text("input"),
                            .dataset = line.text("dataset"),
                            .language = line.text_or_nothing("language"),
                            .id = line.text_or_nothing("_id"),
                            .answers = line.answers(),
                            .classes = line.texts("all_classes")};
  });
}

std::vector<document> parse_documents(std::string_view content, std::string_view name) {
  return parse_lines<document>(content, name, [](json_line const& line) {
    return document{.text = line.text("context"), .question = line.text("question"), .answers = line.answers()};
  });
}

std::optional<dataset_rules> rules_of(std::string_view dataset) {
  constexpr std::string_view even_lengths = "_e";  // of LongBench-E
  if (dataset.ends_with(even_lengths)) dataset.remove_suffix(even_lengths.size());
  auto const found = known_datasets().find(dataset);
  if (found == known_datasets().end()) return std::nullopt;
  return found->second;
}

std::vector<sample_group> longbench_samples(prompt_maker const& maker, std::span<longbench_record const> records,
                                            sample_plan const& plan, longbench_choices const& choices) {
  std::vector<sample_group> groups;
  for (std::size_t const length : plan.lengths) {
    std::map<std::string, std::size_t> count;
    std::string const* context = nullptr;
    for (longbench_record const& record : records) {
      std::size_t const index = count[record.dataset]++;
      if (plan.samples > 0 && index >= plan.samples) continue;
      auto const rules = rules_for(record, choices);
      bool const classes = rules.kind == metric::classification;
      if (context == nullptr || *context != record.context) groups.emplace_back();
      context = &record.context;
      groups.back().push_back({.task = record.dataset,
                               .length = length,
                               .index = index,
                               .ask = {.text = fill_in(rules.form, record), .plain = rules.plain},
                               .kind = rules.kind,
                               .expected = {record.answers, record.classes, record.language == "zh"},
                               .first_line = rules.first_line,
                               .most_tokens = rules.most_tokens,
                               .chance = classes ? 1 / static_cast<double>(record.classes.size()) : 0});
      fit_middle(maker, groups.back().back());
    }
  }
  return groups;
}

}  // namespace kvquant::tasks
