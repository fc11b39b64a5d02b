#include "kvquant/calibrate/statistics_io.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/calibrated.hpp"
#include "test/support/containers.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using nuq3_spec = spec<nuq<3>, nuq<3>>;

saved_statistics saved(calibrator statistics) {
  fit_options const options = small_fit();
  return {std::move(statistics), options.shape, key_space::post_rope, options.origin};
}

saved_statistics saved_and_read(calibrator statistics) {
  temporary_folder const folder;
  save(saved(std::move(statistics)), folder / "a.kvs");
  return load_statistics(folder / "a.kvs");
}

/// Two channels of one layer in two bins, so that every byte of the file can be tried.
bytes tiny() {
  calibration_options const options = {.layers = 1, .kv_channels = 2, .max_tokens = 8, .bins = 2};
  calibrator it(options);
  auto const x = random_keys(8, 2, 3), weights = random_weights(8, 2, 4);
  it.observe_range(0, x);
  it.freeze_ranges();
  it.observe(0, x, x, weights, weights);
  temporary_folder const folder;
  saved_statistics statistics = saved(std::move(it));
  statistics.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .rope = {}};
  save(statistics, folder / "a.kvs");
  return read_bytes(folder / "a.kvs");
}

void check_equal(histogram const& a, histogram const& b) {
  auto const x = a.bins(), y = b.bins();
  REQUIRE(x.size() == y.size());
  for (std::size_t bin = 0; bin < x.size(); ++bin)
    for (auto member : {&moments::mass, &moments::first, &moments::second}) CHECK(x[bin].*member == y[bin].*member);
}

void check_equal(side_statistics const& a, side_statistics const& b) {
  CHECK(a.values == b.values);
  CHECK(a.outliers == b.outliers);
  CHECK(a.sensitivity == b.sensitivity);
  for (fit_weights const weights : all_fit_weights) check_equal(a.of(weights), b.of(weights));
  REQUIRE(a.channels.size() == b.channels.size());
  for (std::size_t c = 0; c < a.channels.size(); ++c) {
    CHECK(detail::flatten({a.channels[c].range}) == detail::flatten({b.channels[c].range}));
    check_equal(a.channels[c].values, b.channels[c].values);
  }
}

void check_equal(calibrator const& a, calibrator const& b) {
  CHECK(a.options() == b.options());
  CHECK(a.ranges_frozen() == b.ranges_frozen());
  REQUIRE(a.layers().size() == b.layers().size());
  for (std::size_t layer = 0; layer < a.layers().size(); ++layer) {
    auto const &x = a.layers()[layer], &y = b.layers()[layer];
    CHECK(detail::flatten(x.key_ranges) == detail::flatten(y.key_ranges));
    check_equal(x.key, y.key);
    check_equal(x.value, y.value);
  }
}

std::string statistics_complaint(bytes content) {
  thrown const found = error_of([&] { read_statistics(safetensors_file(std::move(content), "x.kvs")); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, Catch::StartsWith("x.kvs: "));
  return found.text;
}

template <class F>
std::string complaint_after(bytes const& whole, F&& change) {
  container_parts parts(whole);
  change(parts);
  return statistics_complaint(parts.forged());
}

}  // namespace

TEST_CASE("statistics read as they were saved", "[calibrate]") {
  calibrator const it = small_calibration(GENERATE(small_options(), small_channel_options()));
  saved_statistics const back = saved_and_read(it);
  check_equal(it, back.statistics);
  CHECK(back.keys == key_space::post_rope);
  CHECK(back.shape.layers == 2);
  CHECK(back.shape.q_heads == 4);
  CHECK(back.shape.kv_heads == 2);
  CHECK(back.shape.head_dim == 16);
  CHECK(back.origin.model_name == "a small model");
  CHECK(back.origin.model_hash == "0123");
  CHECK(back.origin.context == 500);
  CHECK(back.origin.seed == 1);
  CHECK(back.origin.library_version == KVQUANT_VERSION);
}

TEST_CASE("a fit of statistics that were read gives the artifact of those that were not", "[calibrate]") {
  calibrator const it = small_calibration();
  saved_statistics const back = saved_and_read(it);
  for (fit_weights const weights : all_fit_weights) {
    fit_options options = small_fit();
    options.weights = weights;
    options.q_norm = true;
    CHECK(to_bytes(fit<nuq3_spec>(back.statistics, options)) == to_bytes(fit<nuq3_spec>(it, options)));
  }
}

TEST_CASE("what several machines saw merges into what one would have seen", "[calibrate]") {
  calibration_options options = GENERATE(small_options(), small_channel_options());
  calibrator a(options), b(options);
  observe_ranges(a, 1);
  a.freeze_ranges();
  b.use_ranges_of(a);
  observe_window(a, 1);
  observe_window(b, 50);
  calibrator read = saved_and_read(a).statistics;
  read.merge(saved_and_read(b).statistics);
  calibrator whole = a;
  whole.merge(b);
  check_equal(whole, read);
  observe_window(read, 90);  // and goes on observing
  observe_window(whole, 90);
  check_equal(whole, read);

  options.sinks = 2;
  CHECK_THROWS_WITH(read.merge(saved_and_read(small_calibration(options)).statistics), says("other options"));
}

TEST_CASE("statistics are saved once their ranges are frozen, and whole", "[calibrate]") {
  temporary_folder const folder;
  calibrator open(small_options());
  observe_ranges(open, 1);
  CHECK_THROWS_WITH(save(saved(open), folder / "a.kvs"), says("not frozen"));
  saved_statistics other_shape = saved(small_calibration());
  other_shape.shape.layers = 3;
  CHECK_THROWS_WITH(save(other_shape, folder / "a.kvs"), says("2 layers x 32 channels, for a model of 3 x 32"));
  CHECK(folder.files() == 0);
  save(saved(small_calibration()), folder / "a.kvs");
  bytes const before = read_bytes(folder / "a.kvs");
  std::filesystem::create_directory(folder / "a.kvs.partial");  // stands where the new file would be written
  open.freeze_ranges();
  CHECK(error_of([&] { save(saved(open), folder / "a.kvs"); }).code == errc::bad_file);
  CHECK(read_bytes(folder / "a.kvs") == before);
}

TEST_CASE("a flipped bit or a cut anywhere in statistics is refused", "[calibrate]") {
  bytes const whole = tiny();
  for (std::size_t at = 0; at < whole.size(); ++at) {
    bytes changed = whole;
    changed[at] ^= std::byte{1} << (at % 8);
    INFO("byte " << at);
    statistics_complaint(changed);
    statistics_complaint(bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(at)));
  }
}

TEST_CASE("an artifact is no statistics, nor are these an artifact", "[calibrate]") {
  auto const artifact_bytes = to_bytes(fit<nuq3_spec>(small_calibration(), small_fit()));
  CHECK_THAT(statistics_complaint(artifact_bytes), says("not a kvquant-statistics file but kvquant-artifact"));
  CHECK_THROWS_WITH(read_artifact_info(safetensors_file(tiny(), "x.kvs")),
                    says("not a kvquant-artifact file but kvquant-statistics"));
  container_parts parts(tiny());
  parts.metadata("version") = "0";
  CHECK_THAT(statistics_complaint(parts.joined()), says("version 0, expected 1 or 2"));
}

TEST_CASE("sums and counts that cannot be are refused, whatever the hash says", "[calibrate]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
  bytes const whole = tiny();
  auto const with_number = [&](std::string const& tensor, std::size_t index, auto value) {
    return complaint_after(whole, [&](container_parts& parts) { parts.set(tensor, index, value); });
  };
  for (std::string const side : {"key", "value"}) {
    for (fit_weights const weights : all_fit_weights) {
      std::string const name = side + "." + std::string(to_string(weights));
      CHECK_THAT(with_number(name, 3, -1.0), says("\"" + name + "\" holds a negative mass"));
      CHECK_THAT(with_number(name, 4, nan), says("\"" + name + "\" holds nan"));
      CHECK_THAT(with_number(name, 5, infinite), says("holds inf"));
    }
    CHECK_THAT(with_number(side + ".sensitivity", 1, nan), says("sensitivity"));
    CHECK_THAT(with_number(side + ".sensitivity", 0, -1e-9), says("sensitivity"));
    CHECK_THAT(with_number(side + ".counts", 1, UINT64_MAX), says(side + ".counts"));
  }
  CHECK_THAT(with_number("key.ranges", 0, half{0x7e00}), says("key range 0"));
}

TEST_CASE("options that do not fit the tensors are refused, whatever the hash says", "[calibrate]") {
  bytes const whole = tiny();
  auto const with_field = [&](char const* pointer, nlohmann::json const& value) {
    INFO(pointer << " = " << value);
    return complaint_after(
        whole, [&](container_parts& parts) { parts.description[nlohmann::json::json_pointer(pointer)] = value; });
  };
  CHECK_THAT(with_field("/options/bins", 0), says("0 bins"));
  CHECK_THAT(with_field("/options/bins", -1), says("\"bins\": -1, expected a whole number"));
  CHECK_THAT(with_field("/options/bins", 1 << 20), says("do not fit"));
  CHECK_THAT(with_field("/options/bins", 1), says("expected F64[1, 1, 3]"));
  CHECK_THAT(with_field("/options/layers", 2), says("do not fit"));
  CHECK_THAT(with_field("/options/layers", 70000), says("70000 layers"));
  CHECK_THAT(with_field("/options/kv_channels", 3), says("expected F16[1, 6]"));
  CHECK_THAT(with_field("/options/outlier_fraction_k", 1), says("outlier fraction"));
  CHECK_THAT(with_field("/options/max_tokens", 0), says("max_tokens"));
  CHECK_THAT(with_field("/shape/head_dim", 0), says("head_dim is 0"));
  CHECK_THAT(with_field("/shape/head_dim", 4), says("1 layers x 2 channels, for a model of 1 x 4"));
  CHECK_THAT(with_field("/keys", "none"), says("unknown key space"));
  for (char const* const pointer : {"/options", "/options/bins", "/shape", "/keys", "/origin", "/origin/seed"})
    for (nlohmann::json const& wrong : {nlohmann::json(), nlohmann::json({{"a", 1}}), nlohmann::json("many")})
      CHECK_THAT(with_field(pointer, wrong), says("description") || says("unknown key space"));
}
