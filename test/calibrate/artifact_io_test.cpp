#include "kvquant/calibrate/artifact_io.hpp"

#include <algorithm>
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

using nuq2_spec = spec<nuq<2>, nuq<2>>;
using mixed_spec = spec<nuq<4>, uniform<3>>;

/// Nothing in it has its default value.
fit_options unusual_fit() {
  fit_options options = small_fit();
  options.shape.rope = {.enabled = false,
                        .pairing = rope_pairing::interleaved,
                        .theta = 500000.1,
                        .rotary_dim = 8,
                        .scaling = rope_scaling::yarn,
                        .factor = 3.7,
                        .original_context = 8192,
                        .low_frequency_factor = 1.5,
                        .high_frequency_factor = 5.5,
                        .beta_fast = 31,
                        .beta_slow = 2,
                        .attention_factor = 1.1,
                        .frequency_factors = {1, 0.1f, 1e-30f, 8}};
  options.keys = key_space::post_rope;
  options.weights = fit_weights::activation;
  options.q_norm = true;
  options.origin.model_name = "\"quoted\" \xc3\xa9\n";
  options.origin.seed = UINT64_MAX;
  options.origin.library_version = "0.0.0";
  return options;
}

template <Spec S>
inline constexpr bool has_channels = is_by_channel<typename S::key_format> || is_by_channel<typename S::value_format>;

/// Formats that are `by_channel` are fitted to gradients, as their statistics were gathered with.
template <Spec S>
artifact<S> sample(fit_options options = unusual_fit()) {
  static calibrator const statistics = small_calibration(has_channels<S> ? small_channel_options() : small_options());
  if (has_channels<S>) options.weights = fit_weights::fisher;
  return fit<S>(statistics, options);
}

/// Two channels of one layer, so that every byte of the file can be tried.
artifact<nuq2_spec> tiny() {
  artifact<nuq2_spec> it;
  it.info.spec = "nuq2";
  it.info.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .rope = {}};
  it.info.q_norm = true;
  codebook const book = {{-1, -0.5f, 0.25f, 1}, {-1.125f, -0.5625f, 0.25f, 1.125f}, {1.125, 0}, 0.1, 3, 0};
  it.layers = {{{make_range(-1, 2), make_range(3, 3)}, book, book, {1, 2}, {3, 4}}};
  return it;
}

template <Spec S>
artifact<S> read(bytes content) {
  return read_artifact<S>(safetensors_file(std::move(content), "x.kvq"));
}

/// What reading complains of: `bad_file`, naming the file.
std::string artifact_complaint(bytes content) {
  thrown const found = error_of([&] { read<nuq2_spec>(std::move(content)); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, Catch::StartsWith("x.kvq: "));
  return found.text;
}

/// The same of a file in which `change` touched its parts.
template <class F>
std::string complaint_after(F&& change) {
  container_parts parts(to_bytes(tiny()));
  change(parts);
  return artifact_complaint(parts.forged());
}

void check_equal(rope_config const& a, rope_config const& b) {
  CHECK(a.enabled == b.enabled);
  CHECK(a.pairing == b.pairing);
  CHECK(a.theta == b.theta);
  CHECK(a.rotary_dim == b.rotary_dim);
  CHECK(a.scaling == b.scaling);
  CHECK(a.factor == b.factor);
  CHECK(a.original_context == b.original_context);
  CHECK(a.low_frequency_factor == b.low_frequency_factor);
  CHECK(a.high_frequency_factor == b.high_frequency_factor);
  CHECK(a.beta_fast == b.beta_fast);
  CHECK(a.beta_slow == b.beta_slow);
  CHECK(a.attention_factor == b.attention_factor);
  CHECK(a.frequency_factors == b.frequency_factors);
}

void check_equal(artifact_info const& a, artifact_info const& b) {
  CHECK(a.spec == b.spec);
  CHECK(a.shape.layers == b.shape.layers);
  CHECK(a.shape.q_heads == b.shape.q_heads);
  CHECK(a.shape.kv_heads == b.shape.kv_heads);
  CHECK(a.shape.head_dim == b.shape.head_dim);
  check_equal(a.shape.rope, b.shape.rope);
  CHECK(a.shape.local.layers == b.shape.local.layers);
  CHECK(a.shape.local.window == b.shape.local.window);
  check_equal(a.shape.local.rope, b.shape.local.rope);
  CHECK(a.outlier_fraction_k == b.outlier_fraction_k);
  CHECK(a.outlier_fraction_v == b.outlier_fraction_v);
  CHECK(a.sinks == b.sinks);
  CHECK(a.keys == b.keys);
  CHECK(a.weights == b.weights);
  CHECK(a.q_norm == b.q_norm);
  CHECK(a.origin.model_name == b.origin.model_name);
  CHECK(a.origin.model_hash == b.origin.model_hash);
  CHECK(a.origin.tokenizer_hash == b.origin.tokenizer_hash);
  CHECK(a.origin.text_hash == b.origin.text_hash);
  CHECK(a.origin.samples == b.origin.samples);
  CHECK(a.origin.context == b.origin.context);
  CHECK(a.origin.seed == b.origin.seed);
  CHECK(a.origin.library_version == b.origin.library_version);
}

void check_equal(codebook const& a, codebook const& b) {
  CHECK(a.levels == b.levels);
  CHECK(a.decode_levels == b.decode_levels);
  CHECK(a.norm.scale == b.norm.scale);
  CHECK(a.norm.offset == b.norm.offset);
  CHECK(a.objective == b.objective);
  CHECK(a.mass == b.mass);
  CHECK(a.outlier_rate == b.outlier_rate);
}

void check_equal(channel_codes const& a, channel_codes const& b) {
  CHECK(a.widths == b.widths);
  CHECK(detail::flatten(a.maps) == detail::flatten(b.maps));
  CHECK(detail::flatten(a.seen) == detail::flatten(b.seen));
  CHECK(a.levels == b.levels);
  CHECK(a.table_of == b.table_of);
}

template <Spec S>
void check_equal(artifact<S> const& a, artifact<S> const& b) {
  check_equal(a.info, b.info);
  REQUIRE(a.layers.size() == b.layers.size());
  for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
    auto const &x = a.layers[layer], &y = b.layers[layer];
    CHECK(detail::flatten(x.key_ranges) == detail::flatten(y.key_ranges));
    check_equal(x.key, y.key);
    check_equal(x.value, y.value);
    CHECK(x.key_sensitivity == y.key_sensitivity);
    CHECK(x.value_sensitivity == y.value_sensitivity);
    check_equal(x.key_channels, y.key_channels);
    check_equal(x.value_channels, y.value_channels);
  }
}

template <Spec S>
void check_round_trip(temporary_folder const& folder) {
  INFO(S::name());
  auto it = sample<S>();
  save(it, folder / "a.kvq");
  CHECK(it.info.hash.size() == 16);
  auto const back = load_artifact<S>(folder / "a.kvq");
  check_equal(it, back);
  CHECK(back.info.hash == it.info.hash);
  CHECK(to_bytes(back) == read_bytes(folder / "a.kvq"));
}

}  // namespace

TEST_CASE("artifacts of every spec read as they were saved", "[calibrate]") {
  temporary_folder const folder;
  for_each_type(specs{}, [&]<class S>(std::type_identity<S>) { check_round_trip<S>(folder); });
  check_round_trip<mixed_spec>(folder);
  check_round_trip<spec<passthrough, nuq<2>>>(folder);
  check_round_trip<spec<adaptive, nuq<3>>>(folder);
  CHECK(folder.files() == 1);
}

TEST_CASE("codes of channels that cannot be are refused, saying which", "[calibrate]") {
  using adaptive_spec = spec<adaptive, adaptive>;
  auto const complaint_of = [](auto&& change) {
    auto it = sample<adaptive_spec>();
    change(it.layers[1].value_channels, it);
    thrown const found = error_of([&] { read<adaptive_spec>(to_bytes(it)); });
    CHECK(found.code == errc::bad_file);
    return found.text;
  };
  auto const after = [&](auto&& change) {
    return complaint_of([&](channel_codes& codes, artifact<adaptive_spec>&) { change(codes); });
  };
  CHECK_THAT(after([](channel_codes& it) { it.widths[3] = 0; }), says("channel 3 of 0 bits"));
  CHECK_THAT(after([](channel_codes& it) { it.widths[3] = 5; }), says("channel 3 of 5 bits"));
  CHECK_THAT(after([](channel_codes& it) { it.table_of[7] = 4; }), says("table 4 of 4"));
  CHECK_THAT(after([](channel_codes& it) { it.table_of[7] = static_cast<std::uint16_t>(it.table_of[7] ^ 1); }),
             says("channel 7 of"));
  CHECK_THAT(after([](channel_codes& it) { it.maps[0] = {to_half(1), to_half(-1)}; }), says("range of channel 0"));
  CHECK_THAT(after([](channel_codes& it) { it.seen[2].upper = half{0x7c00}; }), says("range of channel 2"));
  CHECK_THAT(after([](channel_codes& it) { std::reverse(it.levels[2].begin(), it.levels[2].end()); }), says("level 1"));
  thrown const unequal = error_of([] {
    auto it = sample<adaptive_spec>();
    it.layers[1].key_channels.levels.pop_back();
    to_bytes(it);
  });
  CHECK(unequal.code == errc::bad_shape);
}

TEST_CASE("levels of a channel's own are what the description says, and the tables", "[calibrate]") {
  using adaptive_spec = spec<adaptive, adaptive>;
  auto it = sample<adaptive_spec>();
  CHECK_FALSE(read<adaptive_spec>(to_bytes(it)).info.own_levels);
  channel_codes& codes = it.layers[1].key_channels;
  auto const same = codes.levels[codes.table_of[4]];
  codes.table_of[4] = static_cast<std::uint16_t>(codes.levels.size());
  for (layer_artifact& layer : it.layers) layer.key_channels.levels.push_back(same);
  thrown const unsaid = error_of([&] { read<adaptive_spec>(to_bytes(it)); });
  CHECK(unsaid.code == errc::bad_file);
  CHECK_THAT(unsaid.text, says("own_levels"));
  it.info.own_levels = true;
  CHECK(read<adaptive_spec>(to_bytes(it)).info.own_levels);
}

TEST_CASE("visit_artifact reads the spec that the file names, of those it knows", "[calibrate]") {
  temporary_folder const folder;
  auto known = sample<spec<normal_float<3>, normal_float<3>>>();
  auto unknown = sample<mixed_spec>();
  save(known, folder / "known.kvq");
  save(unknown, folder / "unknown.kvq");
  int calls = 0;
  visit_artifact(folder / "known.kvq", [&]<class S>(artifact<S> const& found) {
    ++calls;
    CHECK(S::name() == "nf3");
    CHECK(found.info.hash == known.info.hash);
  });
  CHECK(calls == 1);
  auto const refused = error_of([&] { visit_artifact(folder / "unknown.kvq", [](auto const&) { FAIL("visited"); }); });
  CHECK(refused.code == errc::bad_format);
  CHECK_THAT(refused.text, says("\"nuq4/int3\"") && says("nuq3"));
}

TEST_CASE("the hash is that of the content: equal for equal artifacts, another for any change", "[calibrate]") {
  auto const hash_after = [](auto change) {
    auto it = tiny();
    change(it);
    std::string hash;
    to_bytes(it, &hash);
    return hash;
  };
  std::string const hash = hash_after([](auto&) {});
  CHECK(hash == hash_after([](auto& it) { it.info.hash = "of another time"; }));
  CHECK(hash != hash_after([](auto& it) { it.info.origin.seed = 1; }));
  CHECK(hash != hash_after([](auto& it) { it.layers[0].value.decode_levels[3] = 1.25f; }));
  CHECK(hash != hash_after([](auto& it) { it.layers[0].key.objective = 0.2; }));
  CHECK(hash != hash_after([](auto& it) { it.layers[0].key_ranges[1].upper.bits += 1; }));
}

TEST_CASE("a flipped bit anywhere is refused", "[calibrate]") {
  bytes const whole = to_bytes(tiny());
  std::vector<std::size_t> accepted;
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      bytes changed = whole;
      changed[at] ^= std::byte{1} << bit;
      try {
        auto const it = read<nuq2_spec>(changed);
        if (to_bytes(it) != whole) accepted.push_back(at);
      } catch (error const& e) {
        if (e.code != errc::bad_file) accepted.push_back(at);
      }
    }
  CHECK(accepted == std::vector<std::size_t>{});
}

TEST_CASE("a file cut anywhere is refused", "[calibrate]") {
  bytes const whole = to_bytes(tiny());
  for (std::size_t size = 0; size < whole.size(); ++size)
    artifact_complaint(bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
}

TEST_CASE("files of another kind, version, hash or spec are refused", "[calibrate]") {
  auto const complaint_with = [](std::string const& key, nlohmann::json const& value) {
    container_parts parts(to_bytes(tiny()));
    if (value.is_null())
      parts.header["__metadata__"].erase(key);
    else
      parts.metadata(key) = value;
    return artifact_complaint(parts.joined());
  };
  CHECK_THAT(complaint_with("kind", "kvquant-statistics"), says("not a kvquant-artifact file but kvquant-statistics"));
  CHECK_THAT(complaint_with("kind", {}), says("not a kvquant-artifact file"));
  CHECK_THAT(complaint_with("version", "3"), says("version 3, expected 1 or 2"));
  CHECK_THAT(complaint_with("version", {}), says("no \"version\""));
  CHECK_THAT(complaint_with("hash", "0123456789abcdef"), says("damaged") && says("0123456789abcdef"));
  CHECK_THAT(complaint_with("hash", {}), says("no \"hash\""));
  CHECK_THAT(complaint_with("description", "{}"), says("damaged"));
  CHECK_THAT(complaint_with("description", {}), says("no \"description\""));

  auto const other = error_of([] { read<mixed_spec>(to_bytes(tiny())); });
  CHECK(other.code == errc::bad_format);
  CHECK_THAT(other.text, says("x.kvq: an artifact of nuq2, expected nuq4/int3"));
}

TEST_CASE("numbers that cannot be are refused, whatever the hash says", "[calibrate]") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  auto const with_number = [](std::string const& tensor, std::size_t index, auto value) {
    return complaint_after([&](container_parts& parts) { parts.set(tensor, index, value); });
  };
  for (std::string const name : {"key.levels", "key.decode_levels", "value.levels", "value.decode_levels"}) {
    CHECK_THAT(with_number(name, 2, nan), says("level 2 is nan"));
    CHECK_THAT(with_number(name, 3, infinite), says("level 3 is inf"));
    CHECK_THAT(with_number(name, 2, -0.75f), says("level 2 is -0.75") && says("no less than the one before"));
  }
  CHECK_THAT(with_number("key.ranges", 0, half{0x7e00}), says("key range 0 is [nan, 2]"));
  CHECK_THAT(with_number("key.ranges", 3, half{0x7c00}), says("key range 1 is [3, inf]"));
  CHECK_THAT(with_number("key.ranges", 1, to_half(-2)), says("key range 0 is [-1, -2]"));
  for (std::string const name : {"key.sensitivity", "value.sensitivity"}) {
    CHECK_THAT(with_number(name, 1, nan), says(name) && says("nan"));
    CHECK_THAT(with_number(name, 0, -1.0f), says(name) && says("-1"));
  }
}

TEST_CASE("numbers that are not whole or do not fit are not cut to fit", "[calibrate]") {
  using nlohmann::json;
  int whole = 7;
  for (json const& value : {json(2.9), json(1e300), json(std::int64_t{1} << 31), json(true), json("2"), json(nullptr)})
    CHECK_THROWS_WITH(detail::get_whole(json{{"layers", value}}, "layers", whole), says("\"layers\": " + value.dump()));
  std::uint64_t seed = 7;
  CHECK_THROWS_AS(detail::get_whole(json{{"seed", -1}}, "seed", seed), error);
  CHECK((whole == 7 && seed == 7));
  detail::get_whole(json{{"layers", -3}}, "layers", whole);
  detail::get_whole(json{{"seed", std::numeric_limits<std::uint64_t>::max()}}, "seed", seed);
  CHECK(whole == -3);
  CHECK(seed == std::numeric_limits<std::uint64_t>::max());
}

TEST_CASE("descriptions that do not fit are refused, whatever the hash says", "[calibrate]") {
  auto const with_field = [](char const* pointer, nlohmann::json const& value) {
    INFO(pointer << " = " << value);
    return complaint_after(
        [&](container_parts& parts) { parts.description[nlohmann::json::json_pointer(pointer)] = value; });
  };
  CHECK_THAT(with_field("/layers/1", nlohmann::json::object()), says("reports of 2 layers, expected 1"));
  CHECK_THAT(with_field("/layers", nlohmann::json::array()), says("reports of 0 layers"));
  with_field("/info/shape/layers", 2);
  CHECK_THAT(with_field("/info/shape/layers", 0), says("layers is 0"));
  CHECK_THAT(with_field("/info/shape/head_dim", 3), says("key.ranges") && says("expected F16[1, 6]"));
  CHECK_THAT(with_field("/info/shape/kv_heads", 100000), says("kv_heads is 100000"));
  CHECK_THAT(with_field("/info/outlier_fraction_k", 1.5), says("1.5"));
  CHECK_THAT(with_field("/info/outlier_fraction_v", -0.1), says("-0.1"));
  CHECK_THAT(with_field("/info/sinks", -1), says("-1 sinks"));
  CHECK_THAT(with_field("/info/weights", "guess"), says("unknown weights \"guess\""));
  CHECK_THAT(with_field("/info/keys", "rope"), says("unknown key space \"rope\""));
  CHECK_THAT(with_field("/info/shape/rope/scaling", ""), says("unknown rope scaling"));
  CHECK_THAT(with_field("/info/shape/rope/pairing", "none"), says("unknown rope pairing"));
  for (char const* const pointer :
       {"/info", "/layers", "/info/spec", "/info/shape", "/info/shape/rope", "/info/shape/rope/frequency_factors",
        "/info/origin", "/info/origin/model_hash", "/info/q_norm", "/layers/0", "/layers/0/key", "/layers/0/key/q_norm",
        "/layers/0/value/objective", "/layers/0/value/mass", "/layers/0/key/outlier_rate"})
    for (nlohmann::json const& wrong : {nlohmann::json(), nlohmann::json({{"a", 1}}), nlohmann::json({{"b"}})})
      with_field(pointer, wrong);
}

TEST_CASE("local layers are said in files of version 2 alone", "[calibrate]") {
  auto plain = tiny(), local = tiny();
  local.info.shape.local = {.layers = {0}, .window = 512, .rope = local.info.shape.rope};
  local.info.shape.local.rope.theta = 1234;
  temporary_folder const folder;
  save(plain, folder / "plain.kvq");
  save(local, folder / "local.kvq");
  auto const of = [&](char const* name) { return safetensors_file::read(folder / name); };
  CHECK(of("plain.kvq").metadata("version") == "1");
  CHECK(of("plain.kvq").metadata("description").find("\"local\"") == std::string::npos);
  CHECK(of("local.kvq").metadata("version") == "2");
  check_equal(read_artifact_info(of("local.kvq")), local.info);
  check_equal(read_artifact_info(of("plain.kvq")), plain.info);
}

TEST_CASE("local layers that cannot be are refused, whatever the hash says", "[calibrate]") {
  auto const with_local = [](nlohmann::json const& layers, nlohmann::json const& window) {
    return complaint_after([&](container_parts& parts) {
      auto& shape = parts.description["info"]["shape"];
      shape["local"] = {{"layers", layers}, {"window", window}, {"rope", shape["rope"]}};
    });
  };
  CHECK_THAT(with_local({0.5}, 8), says("local layer 0.5"));
  CHECK_THAT(with_local({-1}, 8), says("local layer -1"));
  CHECK_THAT(with_local({std::int64_t{1} << 40}, 8), says("local layer 1099511627776"));
  CHECK_THAT(with_local({1}, 8), says("local layer 1 after -1, expected rising numbers from 0 to 0"));
  CHECK_THAT(with_local({0}, 0), says("the window of local layers is 0"));
  CHECK_THAT(with_local({0}, 1.5), says("\"window\": 1.5"));
}

TEST_CASE("tensors of another shape, type or name are refused", "[calibrate]") {
  auto const with_entry = [](char const* pointer, nlohmann::json const& value) {
    return complaint_after(
        [&](container_parts& parts) { parts.header[nlohmann::json::json_pointer(pointer)] = value; });
  };
  CHECK_THAT(with_entry("/key.levels/shape", {4, 1}), says("\"key.levels\" is F32[4, 1], expected F32[1, 4]"));
  CHECK_THAT(with_entry("/value.sensitivity", {{"dtype", "F64"}, {"shape", {1}}, {"data_offsets", {80, 88}}}),
             says("\"value.sensitivity\" is F64[1]"));
  CHECK_THAT(complaint_after([](container_parts& parts) {
               parts.header["value.level"] = parts.header["value.levels"];
               parts.header.erase("value.levels");
             }),
             says("\"value.levels\" is missing"));
}

TEST_CASE("a save that fails leaves the old file and nothing beside it", "[calibrate]") {
  temporary_folder const folder;
  auto it = tiny();
  save(it, folder / "a.kvq");
  bytes const before = read_bytes(folder / "a.kvq");

  auto broken = tiny();
  broken.layers[0].key.levels.pop_back();
  CHECK_THROWS_WITH(save(broken, folder / "a.kvq"), says("\"key.levels\": layer 0 has 3 values, expected 4"));
  CHECK(folder.files() == 1);

  std::filesystem::create_directory(folder / "a.kvq.partial");  // stands where the new file would be written
  it.info.sinks = 7;
  thrown const failure = error_of([&] { save(it, folder / "a.kvq"); });
  CHECK(failure.code == errc::bad_file);
  CHECK_THAT(failure.text, says("a.kvq"));
  CHECK(read_bytes(folder / "a.kvq") == before);
  std::filesystem::remove(folder / "a.kvq.partial");

  std::filesystem::create_directories(folder / "taken" / "inside");
  CHECK(error_of([&] { save(it, folder / "taken"); }).code == errc::bad_file);
  CHECK(error_of([&] { save(it, folder / "missing" / "a.kvq"); }).code == errc::bad_file);
  CHECK(folder.files() == 2);
  save(it, folder / "a.kvq");
  CHECK(load_artifact<nuq2_spec>(folder / "a.kvq").info.sinks == 7);
}

TEST_CASE("an artifact that does not fit together is not written", "[calibrate]") {
  auto const complaint_of = [](auto change) {
    auto it = tiny();
    change(it);
    return error_of([&] { to_bytes(it); }).text;
  };
  CHECK_THAT(complaint_of([](auto& it) { it.layers.clear(); }), says("0 layers"));
  CHECK_THAT(complaint_of([](auto& it) { it.info.spec = "nuq3"; }), says("\"nuq3\"") && says("\"nuq2\""));
  CHECK_THAT(complaint_of([](auto& it) { it.layers.push_back(it.layers[0]); }),
             says("2 layers x 2 channels, for a model of 1 x 2"));
  CHECK_THAT(complaint_of([](auto& it) { it.info.shape.head_dim = 3; }), says("for a model of 1 x 3"));
  CHECK_THAT(complaint_of([](auto& it) { it.layers[0].value_sensitivity.clear(); }),
             says("value.sensitivity") && says("expected 2"));
}

TEST_CASE("a name that is no UTF-8 does not cost the artifact", "[calibrate]") {
  auto it = tiny();
  it.info.origin.model_name = "caf\xe9";
  CHECK(read<nuq2_spec>(to_bytes(it)).info.origin.model_name == "caf\xef\xbf\xbd");  // U+FFFD
}

TEST_CASE("an artifact of another model is refused, naming both", "[calibrate]") {
  artifact_info const info = sample<nuq2_spec>(small_fit()).info;
  model_shape const shape = small_shape();
  CHECK_NOTHROW(require_made_for(info, "by another name", "0123", shape));
  auto const refused = error_of([&] { require_made_for(info, "the other", "ffff", shape); });
  CHECK(refused.code == errc::bad_format);
  CHECK_THAT(refused.text, says("\"a small model\" (2 layers, 2 KV heads x 16, hash 0123)") &&
                               says("\"the other\" (2 layers, 2 KV heads x 16, hash ffff)"));
  for (auto member : {&model_shape::layers, &model_shape::kv_heads, &model_shape::head_dim}) {
    model_shape other = shape;
    other.*member = 5;
    CHECK_THROWS_AS(require_made_for(info, "a small model", "0123", other), error);
  }
}
