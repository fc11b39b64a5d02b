#include "runtime/gguf.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "test/support/gguf_walk.hpp"
#include "test/support/gguf_writer.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::byte_sink;
using test::error_of;
using test::gguf_type;
using test::gguf_writer;
using test::says;
using test::thrown;
using bytes_t = std::vector<std::byte>;

/// A metadata value of every type and a tensor of several.
gguf_writer sample() {
  std::mt19937 random(1);
  gguf_writer w;
  w.set("u8", std::uint8_t{200}).set("i8", std::int8_t{-100}).set("u16", std::uint16_t{60000});
  w.set("i16", std::int16_t{-30000}).set("u32", 4'000'000'000u).set("i32", -2'000'000'000);
  w.set("u64", std::uint64_t{1} << 63).set("i64", std::int64_t{-1} << 62).set("f32", 0.5f).set("f64", 1e300);
  w.set("yes", true).set("no", false).set("text", "sm\u00f6l").set("empty", "");
  w.set("tokens", std::vector<std::string>{"a", "", "bcd"}).set("types", std::vector<std::int32_t>{1, -2, 3});
  w.set("scores", std::vector<float>{0.25f, -1.0f}).set("flags", std::vector<bool>{true, false});
  w.set("none", std::vector<std::uint64_t>{}).set("bytes", std::vector<std::uint8_t>{255, 0});
  w.add("embedding", tensor_type::q4_1, {64, 3}, std::vector<float>(192, 0.5f));
  w.add("norm", tensor_type::f32, {5}, std::vector<float>{1, 2, 3, 4, 5});
  w.add_random("k", tensor_type::q6_k, {256, 1, 2}, random);
  w.add_random("half", tensor_type::f16, {3, 1, 1, 2}, random);
  return w;
}

gguf_file parse(bytes_t const& bytes) { return gguf_file::parse(bytes, "sample"); }

thrown error_of(bytes_t const& bytes) {
  return error_of([&] { parse(bytes); });
}
thrown error_of(gguf_writer const& w) { return error_of(w.bytes()); }

template <class T>
void patch(bytes_t& bytes, std::size_t at, T value) {
  auto const raw = byte_sink().put(value).bytes();
  std::ranges::copy(raw, bytes.begin() + static_cast<std::ptrdiff_t>(at));
}

/// A file in a folder of its own, removed at the end.
class scratch_folder {
 public:
  scratch_folder()
      : path_(std::filesystem::temp_directory_path() / ("kvquant_gguf_" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  ~scratch_folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(char const* name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

TEST_CASE("metadata of every type") {
  auto w = sample();
  w.version = GENERATE(2u, 3u);
  auto const bytes = w.bytes();
  auto const file = parse(bytes);
  CHECK(file.version() == w.version);
  CHECK(file.bytes() == bytes.size());
  CHECK(file.metadata().size() == w.entries.size());
  CHECK(file.integer("u8") == 200);
  CHECK(file.integer("i8") == -100);
  CHECK(file.integer("u16") == 60000);
  CHECK(file.integer("i16") == -30000);
  CHECK(file.integer("u32") == 4'000'000'000);
  CHECK(file.integer("i32") == -2'000'000'000);
  CHECK(file.integer("i64") == std::int64_t{-1} << 62);
  CHECK(std::get<std::uint64_t>(file.metadata().at("u64")) == std::uint64_t{1} << 63);
  CHECK(file.number("u64") == 0x1p63);
  CHECK(file.number("f32") == 0.5);
  CHECK(file.number("f64") == 1e300);
  CHECK(file.number("i8") == -100);
  CHECK(file.boolean("yes", false));
  CHECK_FALSE(file.boolean("no", true));
  CHECK(file.string("text") == "sm\u00f6l");
  CHECK(file.string("empty").empty());
  CHECK(file.strings("tokens") == std::vector<std::string_view>{"a", "", "bcd"});
  CHECK(file.integers("types") == std::vector<std::int64_t>{1, -2, 3});
  CHECK(file.integers("flags") == std::vector<std::int64_t>{1, 0});
  CHECK(file.integers("bytes") == std::vector<std::int64_t>{255, 0});
  CHECK(file.integers("none").empty());
  CHECK(file.numbers("scores") == std::vector{0.25, -1.0});
}

TEST_CASE("look-ups with a default, and look-ups that cannot be answered") {
  auto w = sample();
  w.set("nan", std::numeric_limits<float>::quiet_NaN());
  auto const bytes = w.bytes();
  auto const file = parse(bytes);
  CHECK(file.contains("u8"));
  CHECK_FALSE(file.contains("u9"));
  CHECK(file.integer_or("u9", 7) == 7);
  CHECK(file.integer_or("u8", 7) == 200);
  CHECK(file.number_or("u9", 0.1) == 0.1);
  CHECK(file.string_or("u9", "x") == "x");
  CHECK(file.string_or("text", "x") == "sm\u00f6l");
  CHECK(file.boolean("u9", true));

  auto const missing = error_of([&] { file.integer("llama.block_count"); });
  CHECK(missing.code == errc::bad_file);
  CHECK_THAT(missing.text, says("sample: metadata \"llama.block_count\" is missing; expected an integer"));
  CHECK_THAT(error_of([&] { file.integer("text"); }).text, says("\"text\" is a string; expected an integer"));
  CHECK_THAT(error_of([&] { file.integer_or("f32", 1); }).text, says("is a floating-point number"));
  CHECK_THAT(error_of([&] { file.integer("u64"); }).text, says("is 9223372036854775808; expected"));
  CHECK_THAT(error_of([&] { file.number("nan"); }).text, says("expected a finite number"));
  CHECK_THAT(error_of([&] { file.string("u8"); }).text, says("is an integer; expected a string"));
  CHECK_THAT(error_of([&] { file.boolean("u8", false); }).text, says("expected a bool"));
  CHECK_THAT(error_of([&] { file.strings("types"); }).text, says("is an array of integers; expected an array of str"));
  CHECK_THAT(error_of([&] { file.numbers("types"); }).text, says("expected an array of floating-point numbers"));
  CHECK_THAT(error_of([&] { file.integers("yes"); }).text, says("is a bool; expected an array of integers"));
}

TEST_CASE("tensors: shapes and data") {
  auto w = sample();
  w.alignment = GENERATE(8u, 32u, 4096u);
  w.set("general.alignment", static_cast<std::uint32_t>(w.alignment));
  // The writer places tensors as they are added: place them anew.
  auto const records = std::exchange(w.tensors, {});
  for (auto const& r : records) w.add(r.name, static_cast<tensor_type>(r.type), r.shape, r.data);

  auto const bytes = w.bytes();
  auto const file = parse(bytes);
  REQUIRE(file.tensors().size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(file.tensors()[i].name == records[i].name);
    CHECK(std::ranges::equal(file.tensors()[i].data, records[i].data));
    CHECK(static_cast<std::size_t>(file.tensors()[i].data.data() - bytes.data()) % w.alignment == 0);
  }
  auto const& embedding = file.tensor("embedding");
  CHECK(embedding.type == tensor_type::q4_1);
  CHECK(embedding.shape == std::vector<std::size_t>{64, 3});
  CHECK(embedding.elements() == 192);
  CHECK(embedding.cols() == 64);
  CHECK(embedding.rows() == 3);
  CHECK(file.tensor("half").rows() == 2);
  std::vector<float> norm(5);
  dequantize(tensor_type::f32, file.tensor("norm").data, norm);
  CHECK(norm == std::vector<float>{1, 2, 3, 4, 5});
  CHECK(file.find_tensor("output.weight") == nullptr);
  auto const missing = error_of([&] { file.tensor("output.weight"); });
  CHECK(missing.code == errc::bad_file);
  CHECK_THAT(missing.text, says("sample: tensor \"output.weight\" is missing"));
}

TEST_CASE("files without metadata or tensors") {
  auto const bytes = gguf_writer().bytes();
  auto const file = parse(bytes_t(bytes.begin(), bytes.begin() + 24));
  CHECK(file.metadata().empty());
  CHECK(file.tensors().empty());
}

TEST_CASE("files through the mapping") {
  scratch_folder const folder;
  sample().write(folder / "sample.gguf");
  auto opened = gguf_file::open(folder / "sample.gguf");
  auto const* const data = opened.tensor("norm").data.data();
  gguf_file file = std::move(opened);  // views stay valid
  CHECK(file.tensor("norm").data.data() == data);
  CHECK(file.origin() == (folder / "sample.gguf").string());
  CHECK(test::walk(file) == test::walk(parse(sample().bytes())));

  SECTION("hash") {
    CHECK(file.hash() == parse(sample().bytes()).hash());
    auto other = sample();
    other.version = 2;
    CHECK(file.hash() != parse(other.bytes()).hash());
    // XXH3-128 of the 24 bytes of an empty file, from the xxhash package of Python.
    auto const empty = byte_sink().put(std::as_bytes(std::span("GGUF", 4))).put(3u).put(std::uint64_t{0});
    auto const bytes = byte_sink(empty).put(std::uint64_t{0}).bytes();
    CHECK(parse(bytes).hash() == "fd59a5f5077d3594b2b224ba64cc5c3d");
  }
  SECTION("what is no file") {
    auto const missing = error_of([&] { gguf_file::open(folder / "none.gguf"); });
    CHECK(missing.code == errc::bad_file);
    CHECK_THAT(missing.text, says("none.gguf: cannot open: No such file"));
    CHECK_THAT(error_of([&] { gguf_file::open(folder / "."); }).text, says("not a regular file"));
    std::ofstream(folder / "empty.gguf").flush();
    CHECK_THAT(error_of([&] { gguf_file::open(folder / "empty.gguf"); }).text, says("the file ends inside the magic"));
  }
}

TEST_CASE("headers that are not ours") {
  auto const bytes = sample().bytes();
  auto const with = [&](std::size_t at, std::uint32_t value) {
    auto changed = bytes;
    patch(changed, at, value);
    return error_of(changed);
  };
  CHECK(with(0, 0x46474747).code == errc::bad_file);
  CHECK_THAT(with(0, 0x04034b50).text, says("sample: byte 0: not a GGUF file"));
  CHECK(with(4, 0x03000000).code == errc::unsupported);
  CHECK_THAT(with(4, 0x03000000).text, says("big-endian"));
  CHECK_THAT(with(0, 0x47475546).text, says("big-endian"));
  for (std::uint32_t const version : {0u, 1u, 4u, 0xffffffffu}) {
    CHECK(with(4, version).code == errc::unsupported);
    CHECK_THAT(with(4, version).text, says("GGUF version " + std::to_string(version) + " is not supported"));
  }
}

TEST_CASE("counts and lengths beyond the file allocate nothing") {
  auto const huge = GENERATE(std::uint64_t{1} << 63, ~std::uint64_t{0}, std::uint64_t{1} << 32, std::uint64_t{1} << 61);
  auto const bytes = sample().bytes();
  auto const with = [&](std::size_t at) {
    auto changed = bytes;
    patch(changed, at, huge);
    return error_of(changed);
  };
  auto const check = [&](thrown const& t, std::string const& part) {
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says(part) && says(std::to_string(huge)) && says("bytes left in the file hold at most"));
  };
  check(with(8), "the number of tensors");
  check(with(16), "the number of metadata entries");
  check(with(24), "byte 24: the length of a metadata key");

  auto const raw = [&](gguf_type type, byte_sink const& value) {
    return error_of(gguf_writer().set_raw("key", static_cast<std::uint32_t>(type), value.bytes()));
  };
  check(raw(gguf_type::string, byte_sink().put(huge)), "metadata \"key\"");
  for (gguf_type const type : {gguf_type::u8, gguf_type::f64, gguf_type::boolean, gguf_type::string})
    check(raw(gguf_type::array, byte_sink().put(type).put(huge)), "the length of metadata \"key\"");
}

TEST_CASE("metadata that is not well formed") {
  auto const raw = [](std::uint32_t type, byte_sink value) {
    return error_of(gguf_writer().set_raw("key", type, value.pad_to(64).bytes()));
  };
  CHECK_THAT(raw(13, byte_sink()).text, says("metadata \"key\" has type 13; expected a type from 0 to 12"));
  CHECK(raw(13, byte_sink()).code == errc::bad_file);
  CHECK_THAT(raw(9, byte_sink().put(77u)).text, says("has type 77"));
  auto const nested = raw(9, byte_sink().put(gguf_type::array).put(std::uint64_t{1}));
  CHECK(nested.code == errc::unsupported);
  CHECK_THAT(nested.text, says("metadata \"key\" is an array of arrays"));
  CHECK_THAT(raw(7, byte_sink().put(std::uint8_t{2})).text, says("is a bool of 2; expected 0 or 1"));
  CHECK_THAT(error_of(gguf_writer().set("key", std::vector<std::uint64_t>{1, std::uint64_t{1} << 63})).text,
             says("holds 9223372036854775808; expected less than 2^63"));
  auto const twice = error_of(gguf_writer().set("a", 1).set("b", 2).set("a", "other"));
  CHECK(twice.code == errc::bad_file);
  CHECK_THAT(twice.text, says("metadata \"a\" is there twice"));
  auto const unprintable = error_of(gguf_writer().set("a\x1b[31m\n", 1).set("a\x1b[31m\n", 2));
  CHECK_THAT(unprintable.text, says(R"("a\x1B[31m\x0A")"));
}

TEST_CASE("alignment must be a power of two from 8 on") {
  for (std::uint32_t const alignment : {0u, 1u, 4u, 24u, 33u, 1u << 31}) {
    auto const t = error_of(sample().set("general.alignment", alignment));
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says("\"general.alignment\" is " + std::to_string(alignment)) && says("power of two"));
  }
  CHECK_THAT(error_of(sample().set("general.alignment", "32")).text, says("is no unsigned integer"));
}

TEST_CASE("tensor records that are not well formed") {
  using record = gguf_writer::tensor_record;
  struct {
    std::function<void(record&)> change;  ///< of "norm", the second tensor
    errc code;
    std::string expected;
  } const cases[] = {
      {[](record& r) { r.shape = {}; }, errc::bad_file, "tensor \"norm\" has 0 dimensions; expected 1 to 4"},
      {[](record& r) {
         r.shape = {1, 1, 1, 1, 5};
       },
       errc::bad_file, "has 5 dimensions"},
      {[](record& r) {
         r.shape = {5, 0};
       },
       errc::bad_file, "has no element in dimension 1"},
      {[](record& r) {
         r.shape = {std::uint64_t{1} << 40, std::uint64_t{1} << 24};
       },
       errc::bad_file, "more elements than can be addressed"},
      {[](record& r) { r.shape = {std::uint64_t{1} << 62}; }, errc::bad_file, "more than can be addressed"},
      {[](record& r) { r.shape = {std::uint64_t{1} << 61}; }, errc::bad_file, "but the data section has"},
      {[](record& r) {
         r.shape = {6};
         r.offset = 1 << 20;
       },
       errc::bad_file, "from offset 1048576 on, but the data"},
      {[](record& r) { r.offset = ~std::uint64_t{31}; }, errc::bad_file, "but the data section has"},
      {[](record& r) { r.offset += 8; }, errc::bad_file, "expected a multiple of 32"},
      {[](record& r) { r.offset = 96; }, errc::bad_file,
       "\"norm\" at offset 96 overlaps tensor \"embedding\", which takes 120 bytes from offset 0 on"},
      {[](record& r) { r.offset = 0; }, errc::bad_file, "overlaps"},
      {[](record& r) { r.shape = {40}; }, errc::bad_file, "tensor \"k\" at offset 160 overlaps tensor \"norm\""},
      {[](record& r) { r.name = "embedding"; }, errc::bad_file, "tensor \"embedding\" is there twice"},
      {[](record& r) { r.type = 16; }, errc::unsupported, "tensor \"norm\" is stored as IQ2_XXS, which cannot be read"},
      {[](record& r) { r.type = 12345; }, errc::unsupported, "tensor \"norm\" is stored as type 12345"},
      {[](record& r) { r.type = 2; }, errc::bad_file, "rows of 5 elements; expected a multiple of 32 for Q4_0"},
  };
  for (auto const& [change, code, expected] : cases) {
    auto w = sample();
    w.tensors[1].data.clear();  // the writer would follow the record with it
    change(w.tensors[1]);
    auto const t = error_of(w);
    INFO(t.text);
    CHECK(t.code == code);
    CHECK_THAT(t.text, says(expected) && says("sample: byte "));
  }
}

TEST_CASE("every truncation is an error") {
  auto const bytes = sample().bytes();
  CHECK_NOTHROW(parse(bytes));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    bytes_t const cut(bytes.begin(),
                      bytes.begin() + static_cast<std::ptrdiff_t>(size));  // its own allocation, for ASan
    auto const t = error_of(cut);
    if (t.code != errc::bad_file || t.text.find("sample: byte ") != 0) FAIL("at " << size << ": " << t.text);
  }
}

/// Whether the bytes were accepted; anything but acceptance or our own error fails the test.
bool survives(bytes_t const& bytes) {
  try {
    test::walk(parse(bytes));
    return true;
  } catch (error const&) {
    return false;
  }
}

TEST_CASE("flipped bits are accepted or refused, never fatal") {
  auto const bytes = sample().bytes();
  std::size_t accepted = 0, refused = 0;
  auto const count = [&](bytes_t const& b) { survives(b) ? ++accepted : ++refused; };
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    auto flipped = bytes;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    count(flipped);
  }
  std::mt19937 random(3);
  for (int i = 0; i < 4000; ++i) {
    auto flipped = bytes;
    for (int flips = 0; flips < 4; ++flips) flipped[random() % flipped.size()] ^= static_cast<std::byte>(random());
    count(flipped);
  }
  CHECK(accepted > 1000);  // weights and texts may hold anything
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace kvquant::runtime
