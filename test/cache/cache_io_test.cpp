#include "kvquant/cache/cache_io.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "test/support/column_major_layout.hpp"
#include "test/support/containers.hpp"
#include "test/support/sequence_files.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using S = small_cache::spec_type;

/// One page, 2 sinks, a tail of 3.
bytes const& tiny_file() {
  static bytes const file = [] {
    tiny_cache cache;
    return saved(cache, sequence_of(cache, tiny_cache::stream(), 2 + 64 + 3));
  }();
  return file;
}

/// What loading complains of: the file is named, and no page is kept.
template <class Cache>
thrown refusal(Cache& cache, bytes const& file) {
  std::size_t const free = cache.free_blocks();
  thrown const found = error_of([&] { loaded(cache, file); });
  CHECK(cache.free_blocks() == free);
  CHECK_THAT(found.text, Catch::StartsWith("x.kvs: "));
  return found;
}

/// The same of a tiny file in which `change` touched its parts.
template <class F>
thrown refusal_after(F&& change) {
  static tiny_cache cache;
  sequence_parts parts(tiny_file());
  change(parts);
  return refusal(cache, parts.forged());
}

thrown refusal_with(char const* field, nlohmann::json const& value) {
  INFO(field << " = " << value);
  return refusal_after([&](sequence_parts& parts) { parts.description[field] = value; });
}

/// Of a cache with another artifact or other options, the file of 100 tokens of a small one.
template <class F>
thrown refusal_by_other(F&& change) {
  artifact<S> it = small_artifact<S>();
  cache_options options{.max_tokens = 256, .sinks = 5};
  change(it, options);
  small_cache from(4);
  row_major_cache<S> to(it, options);
  return refusal(to, saved(from, sequence_of(from, small_stream(), 100)));
}

/// Where the parts of the tiny file's data lie: sinks and tail, then one page.
struct tiny_places {
  page_geometry geometry = tiny_cache().geometry();
  std::size_t page = 2 * 5 * 32;  // five tokens of 16 keys and 16 values: whole lines
  std::size_t v_ranges = page + geometry.k_code_bytes() + geometry.v_code_bytes();
  std::size_t k_slots = v_ranges + geometry.range_bytes();
  std::size_t v_slots = k_slots + geometry.k_slots * sizeof(outlier);
};

}  // namespace

TEST_CASE("a sequence comes back from its file bit for bit, and goes on as it would have", "[cache]") {
  int const recent = GENERATE(0, 2);
  std::size_t const tokens = GENERATE(as<std::size_t>(), 0, 3, 5, 6, 5 + 63, 5 + 64, 5 + 64 + 17, 5 + 3 * 64 + 40);
  CAPTURE(recent, tokens);
  small_cache from(8, recent), to(8, recent);
  sequence a = sequence_of(from, small_stream(), tokens);
  sequence b = loaded(to, saved(from, a));
  CHECK(b.tokens() == tokens);
  CHECK((contents_of(to, b) == contents_of(from, a)));
  append_tokens(from, a, small_stream(), tokens, 100);
  append_tokens(to, b, small_stream(), tokens, 100);
  CHECK((contents_of(to, b) == contents_of(from, a)));
}

TEST_CASE("a sequence with a re-opened page comes back, and is sealed again to the same bytes", "[cache]") {
  std::size_t const cut = GENERATE(as<std::size_t>(), 5 + 1, 5 + 64 + 33, 5 + 128 - 1);
  std::size_t const more = GENERATE(as<std::size_t>(), 0, 20);
  small_cache cache(8);
  sequence a = sequence_of(cache, small_stream(), 5 + 128);
  cache.truncate(a, cut);
  append_tokens(cache, a, small_stream(), cut, more);
  sequence b = loaded(cache, saved(cache, a));
  CHECK((contents_of(cache, b) == contents_of(cache, a)));
  append_tokens(cache, b, small_stream(), cut + more, 5 + 192 - cut - more);
  CHECK((contents_of(cache, b) == contents_of(cache, sequence_of(cache, small_stream(), 5 + 192))));
}

TEST_CASE("a sequence in binary16 comes back from its file bit for bit, into any layout", "[cache]") {
  using exact = spec<passthrough, passthrough>;
  row_major_cache<exact> rows(small_artifact<exact>(), {.max_tokens = 512});
  kv_cache<exact, column_major_layout<exact>> columns(small_artifact<exact>(), {.max_tokens = 512});
  sequence const a = sequence_of(rows, small_stream(), 1 + 150);
  bytes const file = saved(rows, a);
  CHECK((contents_of(rows, loaded(rows, file)) == contents_of(rows, a)));
  CHECK(saved(columns, loaded(columns, file)) == file);

  sequence_parts parts(file);
  for (std::size_t const behind : {2u, 2048u + 2}) {  // the last value, the last key
    CAPTURE(behind);
    auto damaged = parts;
    damaged.set(parts.data.size() - behind, std::uint16_t{0x7c00});
    auto const refused = refusal(rows, damaged.forged());
    CHECK(refused.code == errc::bad_file);
    CHECK_THAT(refused.text, says("code 31744") && says("not a finite number"));
  }
}

TEST_CASE("a file serves caches of any layout", "[cache]") {
  small_cache rows(8);
  kv_cache<S, column_major_layout<S>> columns(small_artifact<S>(), {.max_tokens = 512, .sinks = 5});
  sequence const a = sequence_of(rows, small_stream(), 5 + 150);
  bytes const file = saved(rows, a);
  sequence const b = loaded(columns, file);
  CHECK((pages_of(columns, b) == pages_of(rows, a)));
  CHECK(saved(columns, b) == file);
  CHECK((contents_of(rows, loaded(rows, saved(columns, b))) == contents_of(rows, a)));
}

TEST_CASE("files are written and read by path", "[cache]") {
  temporary_folder const folder;
  small_cache cache(8);
  sequence const it = sequence_of(cache, small_stream(), 100);
  save_sequence(cache, it, folder / "a.kvs");
  save_sequence(cache, sequence_of(cache, small_stream(), 150), folder / "a.kvs");
  CHECK(folder.files() == 1);
  CHECK(load_sequence(cache, folder / "a.kvs").tokens() == 150);
  for (auto const& path : {folder / "missing", folder / "."}) {
    auto const refused = error_of([&] { load_sequence(cache, path); });
    CHECK(refused.code == errc::bad_file);
    CHECK_THAT(refused.text, says(path.string()));
  }
}

TEST_CASE("a sequence is not saved in the middle of a step, nor by another cache", "[cache]") {
  temporary_folder const folder;
  small_cache cache(8), other(8);
  sequence it = sequence_of(cache, small_stream(), 100);
  CHECK(error_of([&] { save_sequence(other, it, folder / "a.kvs"); }).code == errc::bad_value);
  cache.append(it, 0, small_stream().keys(0, 100, 1), small_stream().values(0, 100, 1));
  auto const refused = error_of([&] { save_sequence(cache, it, folder / "a.kvs"); });
  CHECK(refused.code == errc::bad_value);
  CHECK_THAT(refused.text, says("layer 1 has 100 tokens, layer 0 has 101"));
  CHECK(folder.files() == 0);
}

TEST_CASE("a sequence whose save fails leaves the old file and nothing beside it", "[cache]") {
  temporary_folder const folder;
  small_cache cache(8);
  sequence const it = sequence_of(cache, small_stream(), 100);
  CHECK(error_of([&] { save_sequence(cache, it, folder / "missing/a.kvs"); }).code == errc::bad_file);
  CHECK(folder.files() == 0);
  save_sequence(cache, it, folder / "a.kvs");
  bytes const before = read_bytes(folder / "a.kvs");
  std::filesystem::create_directory(folder / "a.kvs.partial");  // stands where the new file would be written
  CHECK(error_of([&] { save_sequence(cache, cache.open(), folder / "a.kvs"); }).code == errc::bad_file);
  CHECK(read_bytes(folder / "a.kvs") == before);
}

TEST_CASE("any flipped bit is refused", "[cache]") {
  tiny_cache cache;
  std::vector<std::size_t> accepted;
  for (std::size_t at = 0; at < tiny_file().size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      bytes changed = tiny_file();
      changed[at] ^= std::byte{1} << bit;
      try {
        loaded(cache, changed);
        accepted.push_back(at);
      } catch (error const& e) {
        if (e.code != errc::bad_file) accepted.push_back(at);
      }
    }
  CHECK(accepted == std::vector<std::size_t>{});
  CHECK(cache.free_blocks() == 3);
}

TEST_CASE("a file cut anywhere, or with more behind it, is refused", "[cache]") {
  tiny_cache cache;
  bytes file = tiny_file();
  for (std::size_t size = 0; size < file.size(); ++size)
    CHECK(refusal(cache, bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size))).code == errc::bad_file);
  file.push_back(std::byte{0});
  CHECK(refusal(cache, file).code == errc::bad_file);
}

TEST_CASE("files of another kind or version are told from damaged ones", "[cache]") {
  tiny_cache cache;
  auto const complaint_at = [&](std::size_t at, std::byte value) {
    bytes file = tiny_file();
    file[at] = value;
    return refusal(cache, file).text;
  };
  CHECK_THAT(complaint_at(0, std::byte{'k'}), says("not a kvquant sequence"));
  CHECK_THAT(complaint_at(8, std::byte{3}), says("version 3, expected 1 or 2"));
  CHECK_THAT(complaint_at(24, std::byte{0}) + complaint_at(24, std::byte{1}), says("damaged"));
  CHECK_THAT(complaint_at(40, std::byte{'?'}), says("damaged"));
}

TEST_CASE("a sequence of another model, artifact or geometry is refused, saying what differs", "[cache]") {
  auto const check = [](thrown const& found, std::string const& what) {
    CHECK(found.code == errc::bad_format);
    CHECK_THAT(found.text, says("a sequence of another cache: " + what));
  };
  check(refusal_by_other([](auto& it, auto&) { it.info.origin.model_hash = "ffff"; }),
        "the model's hash is \"0123\", expected ffff");
  check(refusal_by_other([](auto& it, auto&) { it.info.hash = "eeee"; }),
        "the artifact's hash is \"4567\", expected eeee");
  check(refusal_by_other([](auto&, auto& options) { options.sinks = 4; }), "the number of sinks is 5, expected 4");
  small_cache recent(8, 2), latest(8);
  check(refusal(latest, saved(recent, sequence_of(recent, small_stream(), 5 + 150))),
        "a tail of 150 tokens, expected that of 0 recent pages");
  auto const hostile = refusal_with("model_hash", "\x1b[31m");
  CHECK(hostile.text.find('\x1b') == std::string::npos);
  check(refusal_by_other([](auto& it, auto&) { it.info.outlier_fraction_k = 0.04; }), "k_slots is");
  check(refusal_by_other([](auto& it, auto&) { it.info.outlier_fraction_k = 0; }), "k_slots is");
  check(refusal_by_other([](auto& it, auto&) {
          it.layers.pop_back();
          it.info.shape.layers = 1;
        }),
        "layers is 2, expected 1");
  check(refusal_by_other([](auto& it, auto&) {
          it.info.shape.kv_heads = 1;
          it.info.shape.head_dim = 32;
        }),
        "kv_heads is 2, expected 1");

  using other_spec = spec<nuq<2>, nuq<2>>;
  small_cache from(4);
  row_major_cache<other_spec> other(small_artifact<other_spec>(), {.max_tokens = 256, .sinks = 5});
  check(refusal(other, saved(from, sequence_of(from, small_stream(), 100))), "the format is \"nuq3\", expected nuq2");
  check(refusal_with("v_bits", 3), "v_bits is 3, expected 2");
  check(refusal_with("head_dim", 32), "head_dim is 32, expected 16");
}

TEST_CASE("a sequence shorter than the sinks is one of any cache with more", "[cache]") {
  small_cache from(4);
  row_major_cache<S> to(small_artifact<S>(), {.max_tokens = 256, .sinks = 9});
  sequence const it = loaded(to, saved(from, sequence_of(from, small_stream(), 4)));
  CHECK((contents_of(to, it) == contents_of(to, sequence_of(to, small_stream(), 4))));
}

TEST_CASE("a sequence for which there are no pages is not loaded", "[cache]") {
  small_cache cache(4);
  sequence it = sequence_of(cache, small_stream(), 5 + 3 * 64);
  bytes const file = saved(cache, it);
  CHECK(refusal(cache, file).code == errc::out_of_pages);
  cache.drop(it, 5, 128);
  CHECK(loaded(cache, file).tokens() == 5 + 3 * 64);
  CHECK(cache.free_pages() == 3);
}

TEST_CASE("numbers of tokens that cannot be are refused, whatever the checksum says", "[cache]") {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  for (std::uint64_t const sealed : {std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{65}, std::uint64_t{128},
                                     std::uint64_t{1} << 32, (std::uint64_t{1} << 63) - 5, std::uint64_t{1} << 63,
                                     (std::uint64_t{1} << 63) + 64, (most / 1000) * 64, most - 64, most - 5}) {
    CAPTURE(sealed);
    auto const found = refusal_after([&](sequence_parts& parts) {
      parts.description["sealed"] = sealed;
      parts.description["tokens"] = sealed + 5;
    });
    CHECK((found.code == errc::bad_file || found.code == errc::bad_value || found.code == errc::bad_format));
  }
  for (std::uint64_t const tail : {std::uint64_t{2}, std::uint64_t{67}, (std::uint64_t{1} << 32) - 1})
    CHECK(refusal_after([&](sequence_parts& parts) {
            parts.description["tail_tokens"] = tail;
            parts.description["tokens"] = 2 + 64 + tail;
          }).code == errc::bad_file);
  CHECK_THAT(refusal_with("tokens", most).text, says("expected 2 sinks + 64 in pages + 3 in the tail"));
  CHECK_THAT(refusal_with("tail_tokens", std::uint64_t{1} << 32).text, says("too large"));
  CHECK_THAT(refusal_with("sinks", 3).text, says("expected 3 sinks"));
}

TEST_CASE("data of another size are refused, whatever the checksum says", "[cache]") {
  for (std::ptrdiff_t const change : {-64, -1, 1, 64})
    CHECK(refusal_after([&](sequence_parts& parts) {
            parts.data.resize(static_cast<std::size_t>(static_cast<std::ptrdiff_t>(parts.data.size()) + change));
          }).code == errc::bad_file);
  CHECK(refusal_after([](sequence_parts& parts) { parts.data.clear(); }).code == errc::bad_file);
}

TEST_CASE("descriptions that are none are refused, whatever the checksum says", "[cache]") {
  for (char const* const field : {"spec", "model_hash", "artifact_hash", "layers", "kv_heads", "head_dim", "sinks",
                                  "tail_tokens", "tokens", "sealed", "k_bits", "v_bits", "k_slots", "v_slots"}) {
    for (auto const& wrong : {nlohmann::json(), nlohmann::json({{"a", 1}}), nlohmann::json(2.5), nlohmann::json(-1)})
      CHECK(refusal_with(field, wrong).code == errc::bad_file);
    CHECK(refusal_after([&](sequence_parts& parts) { parts.description.erase(field); }).code == errc::bad_file);
  }
  for (auto const& wrong : {nlohmann::json(), nlohmann::json(3), nlohmann::json::array()})
    CHECK(refusal_after([&](sequence_parts& parts) { parts.description = wrong; }).code == errc::bad_file);
}

TEST_CASE("values that cannot be are refused, whatever the checksum says", "[cache]") {
  tiny_places const at;
  half const nan{0x7e00}, infinite{0x7c00};
  auto const complaint_with = [](std::size_t place, auto value) {
    auto const found = refusal_after([&](sequence_parts& parts) { parts.set(place, value); });
    CHECK(found.code == errc::bad_file);
    return found.text;
  };
  for (half const bad : {nan, infinite, half{0xfc00}}) {
    for (std::size_t const element : {0u, 5u * 16 - 1, 5u * 16, 2u * 5 * 16 - 1})
      CHECK_THAT(complaint_with(2 * element, bad), says("exact tokens hold a value that is not finite"));
    CHECK_THAT(complaint_with(at.v_ranges, bad), says("value range"));
    CHECK_THAT(complaint_with(at.v_ranges + 63 * 4 + 2, bad), says("value range"));
    CHECK_THAT(complaint_with(at.k_slots + 2, bad), says("finite residuals"));
    CHECK_THAT(complaint_with(at.v_slots + 2, bad), says("finite residuals"));
  }
  CHECK_THAT(complaint_with(at.v_ranges, value_range{to_half(1), to_half(-1)}), says("[1, -1]"));
  for (std::size_t const slots : {at.k_slots, at.v_slots}) {
    CHECK_THAT(complaint_with(slots, std::uint16_t{1023}), says("rising indices"));      // the next is not above it
    CHECK_THAT(complaint_with(slots + 4, std::uint16_t{0}), says("rising indices"));     // nor this
    CHECK_THAT(complaint_with(slots, std::uint16_t{1024}), says("slot of index 1024"));  // beyond the page
  }
  auto const repeated = refusal_after([&](sequence_parts& parts) {
    std::copy_n(parts.data.begin() + static_cast<std::ptrdiff_t>(at.k_slots), 4,
                parts.data.begin() + static_cast<std::ptrdiff_t>(at.k_slots + 4));
  });
  CHECK_THAT(repeated.text, says("rising indices"));
}

TEST_CASE("the fuzzer's whole seeds are sequences of the tiny cache", "[cache]") {
  tiny_cache cache;
  for (auto const& [name, tokens] : std::vector<std::pair<std::string, std::size_t>>{
           {"empty.kvs", 0}, {"sinks.kvs", 1}, {"page.kvs", 69}, {"reopened.kvs", 100}}) {
    bytes const file = read_bytes(std::filesystem::path(KVQUANT_TEST_DATA) / "fuzz/corpus/sequence" / name);
    CHECK(loaded(cache, file).tokens() == tokens);
  }
}
