#include <algorithm>
#include <map>
#include <utility>

#include "kvquant/core/error.hpp"
#include "tools/tasks/hide.hpp"
#include "tools/tasks/ruler_tasks.hpp"

namespace kvquant::tasks {

namespace {

enum class filler_kind { repeated, prose, needles };

/// What tells the needle tasks apart (RULER, table 6).
struct needle_shape {
  filler_kind filler = filler_kind::prose;
  bool uuid_keys = false, uuid_values = false;
  std::size_t keys = 1;    ///< hidden
  std::size_t values = 1;  ///< of each key
  std::size_t asked = 1;   ///< keys
};

needle_shape const& shape_of(std::string const& task) {
  static std::map<std::string, needle_shape> const shapes = {
      {"niah-single-1", {.filler = filler_kind::repeated}},
      {"niah-single-2", {}},
      {"niah-single-3", {.uuid_values = true}},
      {"niah-multikey-1", {.keys = 4}},
      {"niah-multikey-2", {.filler = filler_kind::needles}},
      {"niah-multikey-3", {.filler = filler_kind::needles, .uuid_keys = true, .uuid_values = true}},
      {"niah-multivalue", {.values = 4}},
      {"niah-multiquery", {.keys = 4, .asked = 4}}};
  auto const found = shapes.find(task);
  require(found != shapes.end(), errc::unsupported, "RULER task \"", task, "\", expected one of `ruler_tasks()`");
  return found->second;
}

constexpr std::size_t answer_tokens = 128, digits = 7, places = 40;

std::string noun_of(needle_shape const& shape) { return shape.uuid_values ? "identifier" : "number"; }

std::string needle_text(needle_shape const& shape, std::string const& key, std::string const& value) {
  return "The " + noun_of(shape) + " kept for " + key + " is " + value + ".";
}

std::vector<std::string> draw_keys(needle_shape const& shape, random_source& random, std::size_t count) {
  if (!shape.uuid_keys) return distinct_words(random, count, 2);
  std::vector<std::string> keys;
  while (keys.size() < count) keys.push_back(random_uuid(random));
  return keys;
}

haystack filler_for(ruler_request const& request, needle_shape const& shape) {
  random_source random = request.random("filler");
  switch (shape.filler) {
    case filler_kind::repeated: return repeated_sentences(random);
    case filler_kind::prose:
      return request.plan.filler ? *request.plan.filler : generated_prose(random, request.length / 8 + 8);
    case filler_kind::needles: break;
  }
  haystack out;
  std::size_t const count = request.length / 8 + 8;
  for (std::string const& key : draw_keys(shape, random, count))
    out.sentences.push_back(
        needle_text(shape, key, shape.uuid_values ? random_uuid(random) : random_number(random, digits)));
  return out;
}

/// Needles of one sample, with where they stand as a share of the haystack in fortieths.
struct hidden {
  std::vector<std::string> keys;
  std::vector<std::pair<std::size_t, std::string>> needles;  ///< place, text
  std::vector<std::string> asked, answers;
};

bool appears(haystack const& in, std::string const& text) {
  return std::any_of(in.sentences.begin(), in.sentences.end(),
                     [&](std::string const& it) { return it.find(text) != it.npos; });
}

hidden draw(needle_shape const& shape, haystack const& filler, random_source& random) {
  hidden out;
  do out.keys = draw_keys(shape, random, shape.keys);
  while (std::any_of(out.keys.begin(), out.keys.end(), [&](std::string const& it) { return appears(filler, it); }));
  out.asked.assign(out.keys.begin(), out.keys.begin() + static_cast<std::ptrdiff_t>(shape.asked));
  for (std::size_t i = 0; i < shape.keys; ++i)
    for (std::size_t j = 0; j < shape.values; ++j) {
      std::string value = shape.uuid_values ? random_uuid(random) : number_not_in(filler, random, digits);
      out.needles.emplace_back(random.below(places), needle_text(shape, out.keys[i], value));
      if (i < shape.asked) out.answers.push_back(std::move(value));
    }
  std::sort(out.needles.begin(), out.needles.end());
  return out;
}

question ask_for(needle_shape const& shape, haystack const& filler, hidden const& it, std::size_t sentences) {
  std::vector<needle> needles;
  for (auto const& [place, text] : it.needles) needles.push_back({sentences * place / (places - 1), text});
  std::string const noun = noun_of(shape);
  bool const one = it.answers.size() == 1;
  std::string const what = one ? noun + " kept for " : noun + "s kept for ", keys = join(it.asked, ", ");
  return {.text = "Some " + noun + "s are kept in this text. Remember them: you will be asked about them.\n\n" +
                  hide(filler, sentences, needles) + "\n\n" +
                  (one ? "What is the " + what + keys + "?" : "What are all the " + what + keys + "?"),
          .answer_start = "The " + what + keys + (one ? " is" : " are")};
}

}  // namespace

sample_group needles(ruler_request const& request) {
  needle_shape const& shape = shape_of(request.task);
  haystack const filler = filler_for(request, shape);
  std::vector<hidden> all;
  for (std::size_t index = 0; index < request.plan.samples; ++index) {
    random_source random = request.random(index);
    all.push_back(draw(shape, filler, random));
  }
  // The later the first needle, the more of the haystack is shared.
  std::stable_sort(all.begin(), all.end(),
                   [](hidden const& a, hidden const& b) { return a.needles.front().first < b.needles.front().first; });
  sample_group group;
  for (hidden const& hides : all) {
    sample& it = request.add_to(group, hides.answers, answer_tokens);
    request.fill(it, [&](std::size_t units) { return ask_for(shape, filler, hides, units); });
  }
  return group;
}

}  // namespace kvquant::tasks
