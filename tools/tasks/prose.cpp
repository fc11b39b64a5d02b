#include "tools/tasks/prose.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "kvquant/core/error.hpp"

namespace kvquant::tasks {

namespace {

constexpr std::array<std::string_view, 8> repeated = {
    "The river runs past the old mill.", "A road goes up into the hills.", "Clouds drift over the fields.",
    "The shop on the corner is closed.", "Somebody sweeps the yard.",      "Evening comes and the lamps are lit.",
    "Nothing much happens here.",        "The wind turns in the night."};

constexpr std::array<std::string_view, 48> adjectives = {
    "amber",   "ancient", "blue",    "brave",  "bright",  "broken", "calm",   "careful", "clever", "cold",
    "curious", "dark",    "distant", "dusty",  "eager",   "empty",  "famous", "gentle",  "golden", "green",
    "happy",   "heavy",   "hidden",  "honest", "hungry",  "large",  "lonely", "loud",    "lucky",  "modern",
    "narrow",  "noble",   "patient", "pale",   "plain",   "proud",  "quick",  "quiet",   "rapid",  "round",
    "silent",  "simple",  "slow",    "small",  "strange", "sunny",  "tall",   "wooden"};

constexpr std::array<std::string_view, 112> nouns = {
    "actor",  "anchor", "apple",  "arrow",   "baker",   "barrel", "basket", "beach",   "bell",     "bird",   "boat",
    "book",   "bottle", "branch", "bridge",  "brush",   "bucket", "butter", "button",  "cabin",    "camel",  "candle",
    "canvas", "carpet", "castle", "chair",   "cherry",  "clock",  "cloud",  "coast",   "coffee",   "copper", "corner",
    "cotton", "cousin", "desert", "dinner",  "doctor",  "donkey", "dragon", "driver",  "engine",   "farmer", "feather",
    "fence",  "field",  "finger", "flower",  "forest",  "garden", "glass",  "glove",   "grape",    "guitar", "hammer",
    "harbor", "helmet", "honey",  "hotel",   "island",  "jacket", "kettle", "kitten",  "ladder",   "lamp",   "leaf",
    "lemon",  "letter", "lion",   "market",  "meadow",  "melon",  "mirror", "monkey",  "mountain", "museum", "needle",
    "ocean",  "office", "orange", "owner",   "painter", "palace", "paper",  "pebble",  "pencil",   "pepper", "piano",
    "pillow", "pilot",  "planet", "plate",   "pocket",  "potato", "rabbit", "ribbon",  "rocket",   "sailor", "school",
    "shadow", "singer", "spoon",  "station", "stone",   "street", "table",  "teacher", "temple",   "ticket", "tiger",
    "tower",  "window"};

constexpr std::array<std::string_view, 16> verbs = {"watched", "followed",  "remembered", "painted", "carried", "found",
                                                    "visited", "described", "admired",    "forgot",  "missed",  "drew",
                                                    "praised", "avoided",   "noticed",    "wanted"};

constexpr std::array<std::string_view, 12> endings = {
    "in the morning", "without a word", "for many years",   "after the rain", "near the shore", "on the way home",
    "once again",     "in late summer", "before the storm", "with some care", "by accident",    "as usual"};

std::string two_words(random_source& random, std::string_view between) {
  std::string all(random.pick(adjectives));
  return all.append(between).append(random.pick(nouns));
}

std::string prose_sentence(random_source& random) {
  std::string all = "The " + two_words(random, " ") + " ";
  all.append(random.pick(verbs)).append(" the ").append(two_words(random, " ")).append(" ");
  return all.append(random.pick(endings)).append(".");
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view spaces = " \t\r\n";
  std::size_t const first = text.find_first_not_of(spaces);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

}  // namespace

haystack repeated_sentences(random_source& random) {
  return {{repeated.begin(), repeated.end()}, random.below(repeated.size())};
}

haystack generated_prose(random_source& random, std::size_t sentences) {
  haystack out;
  while (out.sentences.size() < sentences) out.sentences.push_back(prose_sentence(random));
  return out;
}

haystack sentences_of(std::string_view text) {
  haystack out;
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    // "3.14" and "e.g." go on behind the stop.
    bool const last = i + 1 == text.size(), stop = text[i] == '.' || text[i] == '!' || text[i] == '?';
    bool const ends = last || text[i] == '\n' || (stop && (text[i + 1] == ' ' || text[i + 1] == '\n'));
    if (!ends) continue;
    if (std::string_view const it = trimmed(text.substr(start, i + 1 - start)); !it.empty())
      out.sentences.emplace_back(it);
    start = i + 1;
  }
  require(!out.sentences.empty(), errc::bad_value, "a text to hide needles in has no sentences");
  return out;
}

std::vector<std::string> distinct_words(random_source& random, std::size_t count, std::size_t least_parts) {
  std::size_t parts = least_parts, words = nouns.size();
  for (std::size_t i = 1; i < parts; ++i) words *= adjectives.size();
  for (; words < 2 * count; ++parts) words *= adjectives.size();  // half of them are drawn at most
  std::set<std::string> taken;
  std::vector<std::string> all;
  while (all.size() < count) {
    std::string word;
    for (std::size_t i = 1; i < parts; ++i) word.append(random.pick(adjectives)).append("-");
    word.append(random.pick(nouns));
    if (taken.insert(word).second) all.push_back(std::move(word));
  }
  return all;
}

std::vector<std::string> coded_words(random_source& random, std::size_t count) {
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyz";
  std::set<std::string> taken;
  std::vector<std::string> words;
  while (words.size() < count)
    if (auto word = random_characters(random, letters, 6); taken.insert(word).second) words.push_back(std::move(word));
  return words;
}

std::string random_characters(random_source& random, std::string_view alphabet, std::size_t count) {
  std::string all;
  while (all.size() < count) all += random.pick(alphabet);
  return all;
}

std::string random_number(random_source& random, std::size_t digits) {
  std::string number = random_characters(random, "123456789", 1);
  return number + random_characters(random, "0123456789", digits - 1);
}

std::string random_uuid(random_source& random) {
  std::vector<std::string> parts;
  for (std::size_t const length : {8u, 4u, 4u, 4u, 12u})
    parts.push_back(random_characters(random, "0123456789abcdef", length));
  return join(parts, "-");
}

std::string join(std::span<std::string const> parts, std::string_view between) {
  std::string all;
  for (std::size_t i = 0; i < parts.size(); ++i) (i > 0 ? all.append(between) : all).append(parts[i]);
  return all;
}

}  // namespace kvquant::tasks
