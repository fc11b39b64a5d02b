#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <tuple>
#include <utility>

#include "tools/kvquant/task.hpp"
#include "tools/tasks/summary.hpp"

namespace kvquant::tool {

namespace {

using nlohmann::json;
using table = std::vector<std::vector<std::string>>;

/// Samples that a row of a table sums up.
struct row_key {
  std::string task;
  std::size_t length;
  int depth;  ///< `any_depth`: all of them together

  static constexpr int any_depth = -1;
  auto operator<=>(row_key const&) const = default;
};

/// The lines of a cache by sample, so that those of two caches stand side by side.
using lines_by_sample = std::map<std::string, json const*>;

class collected_lines {
 public:
  explicit collected_lines(task_run const& run) {
    for (json const& line : run.results.lines())
      for (int const depth : {row_key::any_depth, line.value("depth", row_key::any_depth)})
        rows_[{line.at("task"), line.at("length"), depth}][line.at("cache")][line.at("sample")] = &line;
  }

  std::map<row_key, std::map<std::string, lines_by_sample>> const& rows() const { return rows_; }
  std::vector<double> values(row_key const& key, std::string const& cache, char const* member) const {
    std::vector<double> all;
    for (auto const& [sample, line] : lines(key, cache)) all.push_back(line->at(member).get<double>());
    return all;
  }
  lines_by_sample const& lines(row_key const& key, std::string const& cache) const { return rows_.at(key).at(cache); }
  /// Of a guess, on average.
  double chance(row_key const& key) const {
    auto const& of_f16 = lines(key, "f16");
    double sum = 0;
    for (auto const& [sample, line] : of_f16) sum += line->value("chance", 0.0);
    return sum / static_cast<double>(of_f16.size());
  }
  std::vector<row_key> keys_over_depths() const {
    std::vector<row_key> keys;
    for (auto const& [key, caches] : rows_)
      if (key.depth == row_key::any_depth) keys.push_back(key);
    return keys;
  }
  std::vector<int> depths() const {
    std::vector<int> all;
    for (auto const& [key, caches] : rows_)
      if (key.depth != row_key::any_depth && std::find(all.begin(), all.end(), key.depth) == all.end())
        all.push_back(key.depth);
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  std::map<row_key, std::map<std::string, lines_by_sample>> rows_;
};

bool f16_at_chance(collected_lines const& lines, row_key const& key) {
  return tasks::at_chance(lines.values(key, "f16", "score"), lines.chance(key));
}

/// The answer is as unlikely as one guess among all that are possible.
bool f16_guesses(collected_lines const& lines, row_key const& key) {
  auto nll = lines.values(key, "f16", "nll");
  for (double& it : nll) it = -it;
  return tasks::at_chance(nll, std::log(lines.chance(key)));
}

void add_moments(json& row, std::string const& name, tasks::moments const& it) {
  row[name] = it.mean;
  row[name + "_se"] = it.standard_error;
}

json answer_row(collected_lines const& lines, row_key const& key, std::string const& cache) {
  auto const scores = lines.values(key, cache, "score");
  json row = {{"samples", scores.size()}, {"chance", lines.chance(key)}, {"f16_at_chance", f16_at_chance(lines, key)}};
  add_moments(row, "score", tasks::moments_of(scores));
  add_moments(row, "delta", tasks::difference(scores, lines.values(key, "f16", "score")));
  return row;
}

json needle_row(collected_lines const& lines, row_key const& key, std::string const& cache) {
  auto const nll = lines.values(key, cache, "nll");
  json row = {{"samples", nll.size()}, {"f16_at_chance", f16_guesses(lines, key)}};
  add_moments(row, "kl", tasks::moments_of(lines.values(key, cache, "kl")));
  add_moments(row, "nll", tasks::moments_of(nll));
  add_moments(row, "delta_nll", tasks::difference(nll, lines.values(key, "f16", "nll")));
  row["top1_agreement"] = tasks::moments_of(lines.values(key, cache, "top1_agreement")).mean;
  return row;
}

/// Where samples first differ, rising; as far as the text goes for those that never do.
std::vector<std::size_t> divergences(lines_by_sample const& lines) {
  std::vector<std::size_t> all;
  for (auto const& [sample, line] : lines) {
    json const& first = line->at("first_divergence");
    all.push_back((first.is_null() ? line->at("tokens") : first).get<std::size_t>());
  }
  std::sort(all.begin(), all.end());
  return all;
}

json drift_row(collected_lines const& lines, row_key const& key, std::string const& cache) {
  auto const& of_cache = lines.lines(key, cache);
  json row = {{"samples", of_cache.size()}, {"first_divergences", divergences(of_cache)}};
  for (char const* const name : {"kl", "agreement"})
    add_moments(row, name, tasks::moments_of(lines.values(key, cache, name)));
  json buckets = of_cache.begin()->second->at("buckets");
  for (std::size_t i = 0; i < buckets.size(); ++i)
    for (char const* const name : {"kl", "agreement"}) {
      std::vector<double> all;
      for (auto const& [sample, line] : of_cache) all.push_back(line->at("buckets").at(i).at(name).get<double>());
      buckets[i][name] = tasks::moments_of(all).mean;
    }
  row["buckets"] = buckets;
  return row;
}

auto row_maker(std::string const& task) {
  return task == "drift" ? drift_row : task == "needle-kl" ? needle_row : answer_row;
}

std::string percent(double share) { return fmt::format("{:.1f}", 100 * share); }
std::string percent_change(json const& row) {
  return fmt::format("{:+.1f} ± {:.1f}", 100 * row.at("delta").get<double>(), 100 * row.at("delta_se").get<double>());
}

constexpr char const* no_conclusion = "f16 at chance";

/// A row for each length and cache, with a number for each depth.
void print_depths(task_run const& run, collected_lines const& lines, std::vector<std::string> const& more,
                  std::function<std::string(row_key const&, std::string const&)> const& cell,
                  std::function<std::vector<std::string>(row_key const&, std::string const&)> const& sums) {
  table rows = {{"cache", "length"}};
  for (int const depth : lines.depths()) rows[0].push_back(fmt::format("{} %", depth));
  rows[0].insert(rows[0].end(), more.begin(), more.end());
  for (row_key const& key : lines.keys_over_depths())
    for (named_cache const& cache : run.caches) {
      std::vector<std::string> row = {cache.name, std::to_string(key.length)};
      for (int const depth : lines.depths()) row.push_back(cell({key.task, key.length, depth}, cache.name));
      for (std::string& it : sums(key, cache.name)) row.push_back(std::move(it));
      rows.push_back(std::move(row));
    }
  print_table(rows);
}

/// From nothing to all.
std::string shade(double share) {
  constexpr std::array shades = {"··", "░░", "▒▒", "▓▓", "██"};
  return shades.at(static_cast<std::size_t>(std::lround(std::clamp(share, 0.0, 1.0) * 4)));
}

void print_heat_map(task_run const& run, collected_lines const& lines) {
  table rows = {{"depth"}};
  for (named_cache const& cache : run.caches) rows[0].push_back(cache.name);
  for (int const depth : lines.depths()) {
    rows.push_back({fmt::format("{} %", depth)});
    for (named_cache const& cache : run.caches) {
      std::string blocks;
      for (row_key const& key : lines.keys_over_depths())
        blocks += shade(tasks::moments_of(lines.values({key.task, key.length, depth}, cache.name, "score")).mean);
      rows.back().push_back(blocks);
    }
  }
  fmt::print("\n");
  print_table(rows);
  fmt::print("a block for each length, the shortest first; ·· ░░ ▒▒ ▓▓ ██: 0 to 100 %\n");
}

void print_passkey(task_run const& run, collected_lines const& lines) {
  print_depths(
      run, lines, {"all", "Δ ± SE"},
      [&](row_key const& key, std::string const& cache) {
        return percent(tasks::moments_of(lines.values(key, cache, "score")).mean);
      },
      [&](row_key const& key, std::string const& cache) -> std::vector<std::string> {
        json const row = answer_row(lines, key, cache);
        std::string const change = row.at("f16_at_chance") ? no_conclusion : cache == "f16" ? "" : percent_change(row);
        return {percent(row.at("score")), change};
      });
  print_heat_map(run, lines);
}

void print_needle(task_run const& run, collected_lines const& lines) {
  print_depths(
      run, lines, {"KL ± SE", "NLL", "ΔNLL ± SE", "top-1 %"},
      [&](row_key const& key, std::string const& cache) {
        return fmt::format("{:.4f}", tasks::moments_of(lines.values(key, cache, "kl")).mean);
      },
      [&](row_key const& key, std::string const& cache) -> std::vector<std::string> {
        json const row = needle_row(lines, key, cache);
        auto const number = [&](char const* name) { return row.at(name).get<double>(); };
        std::string const change = fmt::format("{:+.3f} ± {:.3f}", number("delta_nll"), number("delta_nll_se"));
        return {fmt::format("{:.4f} ± {:.4f}", number("kl"), number("kl_se")), fmt::format("{:.3f}", number("nll")),
                row.at("f16_at_chance") ? no_conclusion
                : cache == "f16"        ? ""
                                        : change,
                percent(number("top1_agreement"))};
      });
}

void print_drift(task_run const& run, collected_lines const& lines) {
  row_key const key = lines.keys_over_depths().front();
  table rows = {{"cache", "first differs at", "same %", "KL"}};
  json const of_f16 = drift_row(lines, key, "f16");
  for (json const& bucket : of_f16.at("buckets"))
    rows[0].push_back(fmt::format("KL {}+", bucket.at("first").get<std::size_t>()));
  for (named_cache const& cache : run.caches) {
    json const row = drift_row(lines, key, cache.name);
    auto const first = divergences(lines.lines(key, cache.name));
    std::size_t const median = first[(first.size() - 1) / 2];
    rows.push_back({cache.name, median < key.length ? std::to_string(median) : "never", percent(row.at("agreement")),
                    fmt::format("{:.4f}", row.at("kl").get<double>())});
    for (json const& bucket : row.at("buckets"))
      rows.back().push_back(fmt::format("{:.4f}", bucket.at("kl").get<double>()));
  }
  print_table(rows);
}

/// A row for each task and length, a column for each cache.
void print_scores(task_run const& run, collected_lines const& lines) {
  table rows = {{"task", "length", "samples"}};
  for (named_cache const& cache : run.caches) rows[0].push_back(cache.name);
  std::map<std::string, std::vector<double>> sums;  // of rows above chance, by cache
  for (row_key const& key : lines.keys_over_depths()) {
    rows.push_back({key.task, std::to_string(key.length)});
    bool const chance = f16_at_chance(lines, key);
    rows.back().push_back(std::to_string(lines.lines(key, "f16").size()));
    for (named_cache const& cache : run.caches) {
      json const row = answer_row(lines, key, cache.name);
      std::string const score = percent(row.at("score"));
      if (!chance) sums[cache.name].push_back(row.at("score"));
      rows.back().push_back(chance                ? score + " *"
                            : cache.name == "f16" ? score
                                                  : fmt::format("{} ({})", score, percent_change(row)));
    }
  }
  std::size_t const all = rows.size() - 1, above = sums["f16"].size();
  if (above > 1) {
    rows.push_back({"mean above chance", "", ""});
    for (named_cache const& cache : run.caches)
      rows.back().push_back(percent(tasks::moments_of(sums[cache.name]).mean));
  }
  print_table(rows);
  if (above < all)
    fmt::print("* {} of {}: f16 cannot be told from a guess, so this says nothing of other caches\n", all - above, all);
}

}  // namespace

nlohmann::json summarise_task(task_run const& run) {
  collected_lines const lines(run);
  json found = run.header;
  found.erase("kvquant_results");
  found["rows"] = json::array();
  for (auto const& [key, caches] : lines.rows())
    for (named_cache const& cache : run.caches) {
      json row = row_maker(run.options.name)(lines, key, cache.name);
      row["task"] = key.task;
      row["length"] = key.length;
      row["cache"] = cache.name;
      if (key.depth != row_key::any_depth) row["depth"] = key.depth;
      found["rows"].push_back(std::move(row));
    }
  return found;
}

void print_task(task_run const& run) {
  collected_lines const lines(run);
  std::size_t const samples = run.results.lines().size() / run.caches.size();
  fmt::print("{}: {}, {} samples\n", one_line(run.opened.config.name), run.options.name, samples);
  if (run.options.name == "drift")
    print_drift(run, lines);
  else if (run.options.name == "needle-kl")
    print_needle(run, lines);
  else if (run.options.name == "passkey")
    print_passkey(run, lines);
  else
    print_scores(run, lines);
}

}  // namespace kvquant::tool
