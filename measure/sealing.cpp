#include "measure/sealing.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/reference/pages.hpp"
#include "measure/artifact.hpp"
#include "measure/choices.hpp"
#include "measure/roof.hpp"

namespace kvquant::measure {

namespace {

constexpr std::size_t rounds = 11, sealed_pages = 16, tokens = sealed_pages * page_tokens;

class sealing_subject {
 public:
  virtual ~sealing_subject() = default;
  virtual void seal() = 0;
  /// ‖read − given‖ / ‖given‖ of keys or of values, the larger.
  virtual double relative_error() = 0;
};

template <PackedSpec S>
class subject_of final : public sealing_subject {
 public:
  subject_of(model_shape const& shape, format_choice const& format, random_tokens const& input)
      : input_(input),
        k_(to_halves(input.k)),
        v_(to_halves(input.v)),
        artifact_(make_measured_artifact<S>(shape, format, input)),
        cache_(artifact_, {.max_tokens = tokens, .sinks = 0}) {}

  void seal() override {
    sequence of = cache_.open(tokens);
    append_to(of);
  }
  double relative_error() override {
    sequence of = cache_.open(tokens);
    append_to(of);
    auto const held = reference::read_layer(cache_, artifact_, of, 0);
    reference::matrix const k = reference::to_matrix(input_.keys()), v = reference::to_matrix(input_.values());
    return std::max((held.k - k).norm() / k.norm(), (held.v - v).norm() / v.norm());
  }

 private:
  void append_to(sequence& of) {
    cache_.append(of, 0, view2d<half const>(k_.data(), tokens, input_.channels),
                  view2d<half const>(v_.data(), tokens, input_.channels));
  }

  random_tokens const& input_;
  std::vector<half> k_, v_;  // [tokens, kv_channels]
  artifact<S> artifact_;
  kv_cache<S, backend::page_layout<S>> cache_;
};

/// Rounding to one of 2^bits levels, evenly spaced over 3.5 deviations to both sides, is off by 2.0 / (2^bits − 1)
/// deviations, and by half as much again where a token has more channels or wider ones; half a unit in binary16's last
/// place comes to less than 2^-11.
double largest_error(int bits) { return 3 / (std::exp2(bits) - 1) + 0x1p-11; }

/// One format, and how long each round took.
struct runner {
  std::string name;
  std::unique_ptr<sealing_subject> subject;
  double error = 0, spent = 0;
  std::vector<double> seconds;

  runner(model_shape const& shape, format_choice const& format, random_tokens const& input) : name(to_string(format)) {
    visit_measured(format, [&]<class S>(std::type_identity<S>) {
      subject = std::make_unique<subject_of<S>>(shape, format, input);
      error = subject->relative_error();
      constexpr int narrowest =
          is_by_channel<typename S::key_format> ? 1 : std::min(S::key_format::bits, S::value_format::bits);
      double const most = largest_error(narrowest);
      require(error <= most, errc::bad_value, name, ": pages read back off by ", error,
              " of their length, expected at most ", most);
    });
  }
  void turn() {
    seconds.push_back(seconds_of([&] { subject->seal(); }));
    spent += seconds.back();
  }
  bool done(double wanted) const { return seconds.size() >= rounds && spent >= wanted; }
};

}  // namespace

std::vector<sealing_result> measure_sealing(model_shape const& shape, std::span<format_choice const> formats,
                                            double seconds) {
  random_tokens const input(tokens, static_cast<std::size_t>(shape.kv_channels()));
  std::vector<runner> runners;
  runners.emplace_back(shape, baseline_format(), input);
  for (format_choice const& format : formats)
    if (format.spec != baseline_format().spec) runners.emplace_back(shape, format, input);
  while (!std::all_of(runners.begin(), runners.end(), [&](runner const& it) { return it.done(seconds); }))
    for (runner& it : runners) it.turn();

  std::size_t const bytes = 2 * input.k.size() * sizeof(half);
  double const copy = copy_seconds(bytes);
  std::vector<sealing_result> results;
  for (runner const& it : runners) {
    std::vector<double> seconds_of_rounds = it.seconds;
    double const middle = median(seconds_of_rounds), ratio = median_ratio(runners.front().seconds, it.seconds);
    results.push_back({it.name, static_cast<double>(bytes) / middle / 1e9, ratio, copy / middle, it.error});
  }
  return results;
}

}  // namespace kvquant::measure
