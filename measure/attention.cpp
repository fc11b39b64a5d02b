#include "measure/attention.hpp"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "kvquant/core/error.hpp"
#include "measure/roof.hpp"

namespace kvquant::measure {

namespace {

/// Kernels that compute with integers are off by 0.2 to 0.9 %.
constexpr double largest_error = 2e-2;

/// However long they take.
constexpr std::size_t fewest_rounds = 3;

/// One format of a job, and how far its turns have come.
class runner {
 public:
  runner(job const& what, format_choice const& format, attention_target const& on, std::size_t working_set)
      : what_(what), format_(format), bytes_(on.bytes_per_call(what, format)) {
    layers_ = static_cast<int>(std::clamp<std::size_t>((working_set + bytes_ - 1) / bytes_, 1, on.most_layers));
  }

  std::size_t memory() const { return bytes_ * static_cast<std::size_t>(layers_); }
  double spent() const { return spent_; }
  std::vector<double> const& seconds() const { return seconds_; }

  /// Fills the cache, compares with the reference, and finds out how many calls a turn of `seconds` takes.
  void prepare(attention_target const& on, double seconds) {
    subject_ = on.make_subject(what_, format_, layers_);
    error_ = subject_->relative_error();
    require(error_ <= largest_error, errc::bad_value, name(), ": attention is off by ", error_,
            " of its length, expected at most ", largest_error);
    timed_calls const first = subject_->run(1);
    calls_ = static_cast<std::size_t>(std::clamp(seconds / first.seconds * static_cast<double>(first.calls), 1.0, 1e6));
  }

  void turn() {
    timed_calls const it = subject_->run(calls_);
    spent_ += it.seconds;
    seconds_.push_back(it.seconds / static_cast<double>(it.calls));
  }

  attention_result result(runner const& baseline, double bandwidth) const {
    std::vector<double> seconds = seconds_;
    double const middle = median(seconds), speed = static_cast<double>(bytes_) / middle;
    return {.name = name(),
            .format = format_,
            .seconds_per_call = middle,
            .ns_per_token_layer = 1e9 * middle / static_cast<double>(what_.batch * what_.tokens()),
            .bytes = bytes_,
            .gigabytes_per_second = speed / 1e9,
            .share_of_bandwidth = speed / bandwidth,
            .ratio_to_f16 = median_ratio(baseline.seconds_, seconds_),
            .error = error_};
  }

 private:
  std::string name() const { return to_string(what_) + ", " + to_string(format_); }

  job const& what_;
  format_choice format_;
  std::size_t bytes_, calls_ = 1;
  int layers_;
  std::unique_ptr<attention_subject> subject_;
  double error_ = 0, spent_ = 0;
  std::vector<double> seconds_;  // of one call, by round
};

/// Rounds until each runner has had its share, or all together more than theirs.
void take_turns(std::span<runner> runners, attention_options const& options) {
  auto const has_enough = [&](runner const& it) {
    return it.seconds().size() >= options.rounds && it.spent() >= options.seconds;
  };
  double spent = 0;
  for (std::size_t round = 0; !std::all_of(runners.begin(), runners.end(), has_enough); ++round) {
    if (round >= fewest_rounds && spent >= options.most_seconds) return;
    spent += seconds_of([&] {
      for (runner& it : runners) it.turn();
    });
  }
}

}  // namespace

attention_results measure_attention(job const& what, std::span<format_choice const> formats,
                                    attention_options const& options, attention_target const& on) {
  std::vector<runner> runners;
  std::size_t const working_set = options.working_set.value_or(on.cold_bytes);
  runners.emplace_back(what, baseline_format(), on, working_set);
  for (format_choice const& format : formats)
    if (format.spec != baseline_format().spec) runners.emplace_back(what, format, on, working_set);
  auto const mib = [](std::size_t bytes) { return bytes >> 20; };
  std::size_t const memory = std::accumulate(runners.begin(), runners.end(), std::size_t{0},
                                             [](std::size_t sum, runner const& it) { return sum + it.memory(); });
  if (memory > on.free_bytes / 10 * 6)
    return {{},
            text(to_string(what), ": needs ", mib(memory), " MiB, more than 60 % of the ", mib(on.free_bytes),
                 " MiB that are free")};

  for (runner& it : runners) it.prepare(on, options.seconds / static_cast<double>(options.rounds));
  take_turns(runners, options);

  attention_results all;
  for (runner const& it : runners) all.results.push_back(it.result(runners.front(), on.bandwidth));
  return all;
}

}  // namespace kvquant::measure
