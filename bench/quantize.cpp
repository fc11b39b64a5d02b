/// \file
/// Quantizing and packing rows of keys and values with the portable code of the library: one thread, rows of 1024
/// channels. Each case is held against the reference before it is timed. Bytes are those of the rows in binary16.
/// `of_copy` is the share of the speed at which one thread copies as much, `to_f16` how many times longer it takes than
/// to store the rows as binary16.

#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kvquant/kvquant.hpp"
#include "kvquant/reference/quantize.hpp"
#include "measure/roof.hpp"

namespace {

using namespace kvquant;
using state = benchmark::State;

constexpr std::size_t tokens = 64, channels = 1024, elements = tokens * channels;
constexpr double outlier_fraction = 0.01;

/// Rows that every case reads: each channel with a centre and a spread of its own.
view2d<float const> rows() {
  static std::vector<float> const values = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> centre(channels), x(elements);
    for (float& c : centre) c = 2 * normal(random);
    for (std::size_t i = 0; i < elements; ++i) x[i] = centre[i % channels] + normal(random);
    return x;
  }();
  return {values.data(), tokens, channels};
}

std::vector<value_range> const& ranges() {
  static std::vector<value_range> const all = [] {
    std::vector<value_range> found;
    for (std::size_t c = 0; c < channels; ++c) {
      tail_sketch tails(tail_sketch::capacity_for(outlier_fraction, tokens));
      for (std::size_t t = 0; t < tokens; ++t) tails.add(rows()(t, c));
      auto const [lower, upper] = tails.quantiles(outlier_fraction / 2);
      found.push_back(make_range(lower, upper));
    }
    return found;
  }();
  return all;
}

template <Format F>
typename F::table table() {
  if constexpr (F::fitted) {
    auto const& even = uniform<F::bits>::default_table().level;
    return F::make_table(even);
  } else {
    return F::default_table();
  }
}

template <Format F>
reference::levels reference_levels() {
  auto const levels = table<F>();
  reference::vector values(1 << F::bits);
  for (int i = 0; i < values.size(); ++i) values(i) = F::decode(levels, static_cast<typename F::code_type>(i));
  return {values, values};
}

/// What a page needs of a token: packed codes, and sparse residuals.
struct token_sink {
  std::vector<std::uint8_t> codes = std::vector<std::uint8_t>(channels);
  std::vector<std::byte> packed;
  std::vector<outlier> sparse;
};

/// Quantizes every row; `after(token)` sees its codes.
template <Format F, class After>
void quantize_keys(key_side<F> const& side, token_sink& to, After&& after) {
  to.packed.resize(packed_bytes<F::bits>(channels));
  for (std::size_t t = 0; t < tokens; ++t) {
    to.sparse.clear();
    side.quantize(rows().row(t), to.codes, [&](outlier it) { to.sparse.push_back(it); });
    pack<F::bits>(to.codes, to.packed);
    after(t);
  }
}

template <Format F, class After>
void quantize_values(token_side<F> const& side, rank_selector& selector, token_sink& to, After&& after) {
  to.packed.resize(packed_bytes<F::bits>(channels));
  for (std::size_t t = 0; t < tokens; ++t) {
    to.sparse.clear();
    side.quantize(rows().row(t), to.codes, selector, [&](outlier it) { to.sparse.push_back(it); });
    pack<F::bits>(to.codes, to.packed);
    after(t);
  }
}

/// Counts the codes that differ from the reference's: values on a boundary may, as single precision rounds.
class comparison {
 public:
  explicit comparison(reference::coded_matrix expected) : expected_(std::move(expected)) {}
  void add(std::size_t token, token_sink const& it) {
    for (std::size_t c = 0; c < channels; ++c)
      differing_ += it.codes[c] != expected_.codes(static_cast<Eigen::Index>(token), static_cast<Eigen::Index>(c));
    outliers_ += it.sparse.size();
  }
  bool agrees() const { return differing_ <= elements / 10000 && outliers_ == expected_.outliers.size(); }

 private:
  reference::coded_matrix expected_;
  std::size_t differing_ = 0, outliers_ = 0;
};

double f16_seconds() {
  std::vector<half> out(elements);
  return measure::median_seconds([&] {
    for (std::size_t i = 0; i < elements; ++i) out[i] = to_half(rows().data[i]);
    benchmark::DoNotOptimize(out.data());
  });
}

void report(state& st) {
  using benchmark::Counter;
  constexpr std::size_t bytes = elements * sizeof(half);
  static double const copy = measure::copy_seconds(bytes), f16 = f16_seconds();
  st.SetBytesProcessed(static_cast<std::int64_t>(st.iterations()) * static_cast<std::int64_t>(bytes));
  st.counters["of_copy"] = Counter(copy, Counter::kIsIterationInvariantRate);
  st.counters["to_f16"] = Counter(f16, Counter::kIsIterationInvariantRate | Counter::kInvert);
}

template <class F>
void keys(state& st) {
  key_side<F> const side(ranges(), table<F>(), true);
  token_sink to;
  comparison check(reference::quantize_keys(reference::to_matrix(rows()), ranges(), reference_levels<F>(), true));
  quantize_keys(side, to, [&](std::size_t t) { check.add(t, to); });
  if (!check.agrees()) return st.SkipWithError("differs from the reference");
  for (auto _ : st) quantize_keys(side, to, [&](std::size_t) { benchmark::DoNotOptimize(to.packed.data()); });
  report(st);
}

template <class F>
void values(state& st) {
  value_side<F> const side(channels, table<F>(), outlier_fraction);
  rank_selector selector = side.make_selector();
  token_sink to;
  comparison check(reference::quantize_values(reference::to_matrix(rows()), outlier_fraction, reference_levels<F>()));
  quantize_values(side, selector, to, [&](std::size_t t) { check.add(t, to); });
  if (!check.agrees()) return st.SkipWithError("differs from the reference");
  for (auto _ : st)
    quantize_values(side, selector, to, [&](std::size_t) { benchmark::DoNotOptimize(to.packed.data()); });
  report(st);
}

using measured = type_list<nuq<2>, nuq<3>, nuq<4>, normal_float<4>, uniform<4>, uniform<8>>;

}  // namespace

int main(int argc, char** argv) {
  for_each_type(measured{}, []<class F>(std::type_identity<F>) {
    std::string const name = to_string(format_id_of<F>);
    benchmark::RegisterBenchmark(("keys/" + name).c_str(), keys<F>);
    benchmark::RegisterBenchmark(("values/" + name).c_str(), values<F>);
  });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
