#include "kvquant/calibrate/safetensors.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "test/support/containers.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using metadata = std::map<std::string, std::string>;

/// One tensor of each type, an empty one and a scalar among them; 70 bytes of data.
safetensors_writer sample() {
  safetensors_writer file(metadata{{"who", "me"}});
  file.add<half>("h", {3}, std::array{half{0x3c00}, half{0x7e00}, half{0x8001}});
  file.add<float>("f", {2, 2}, std::array{1.5f, -0.0f, std::numeric_limits<float>::infinity(), 1e-42f});
  file.add<double>("d", {1, 1, 2}, std::array{0.1, -1e300});
  file.add<std::uint64_t>("u", {3}, std::array<std::uint64_t, 3>{0, 1, UINT64_MAX});
  file.add<float>("none", {4, 0}, {});
  file.add<double>("scalar", {}, std::array{2.5});
  return file;
}

/// What reading `file` complains of: `bad_file`, naming where the bytes are from.
std::string container_complaint(bytes file) {
  thrown const found = error_of([&] { safetensors_file(std::move(file), "x.bin"); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, Catch::StartsWith("x.bin: "));
  return found.text;
}

std::string container_complaint(std::string const& header, std::size_t data_bytes = 0) {
  INFO(header);
  return container_complaint(container_of(header, data_bytes));
}

std::string tensor(std::string const& dtype, std::string const& shape, std::string const& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string one_tensor(std::string const& dtype, std::string const& shape, std::string const& offsets) {
  return R"({"a":)" + tensor(dtype, shape, offsets) + "}";
}

std::string two_tensors(std::string const& offsets_a, std::string const& offsets_b) {
  return R"({"a":)" + tensor("F32", "[2]", offsets_a) + R"(,"b":)" + tensor("F32", "[1]", offsets_b) + "}";
}

}  // namespace

TEST_CASE("tensors read as they were written", "[calibrate]") {
  safetensors_file const file(sample().bytes(), "memory");
  CHECK(file.get<half>("h", {3}) == std::vector<half>{{0x3c00}, {0x7e00}, {0x8001}});
  auto const floats = file.get<float>("f", {2, 2});
  CHECK(floats == std::vector<float>{1.5f, 0.0f, std::numeric_limits<float>::infinity(), 1e-42f});
  CHECK(std::signbit(floats[1]));
  CHECK(file.get<double>("d", {1, 1, 2}) == std::vector<double>{0.1, -1e300});
  CHECK(file.get<std::uint64_t>("u", {3}) == std::vector<std::uint64_t>{0, 1, UINT64_MAX});
  CHECK(file.get<float>("none", {4, 0}).empty());
  CHECK(file.get<double>("scalar", {}) == std::vector<double>{2.5});
  CHECK(file.metadata("who") == "me");
  CHECK(file.metadata().size() == 1);
}

TEST_CASE("a file has the published layout", "[calibrate]") {
  safetensors_writer writer = sample();
  writer.set_metadata("quoted", "a \"b\"\n\xc3\xa9");
  bytes const file = writer.bytes();
  std::size_t length = 0;
  for (std::size_t i = 0; i < 8; ++i) length += static_cast<std::size_t>(file[i]) << (8 * i);
  CHECK(length % 8 == 0);
  REQUIRE(file.size() == 8 + length + 70);
  CHECK(file[8] == std::byte{'{'});
  auto const* const text = reinterpret_cast<char const*>(file.data()) + 8;
  auto const header = nlohmann::json::parse(text, text + length);
  CHECK(header["__metadata__"] == nlohmann::json{{"who", "me"}, {"quoted", "a \"b\"\n\xc3\xa9"}});
  CHECK(header["h"] == nlohmann::json::parse(tensor("F16", "[3]", "[0,6]")));
  CHECK(header["f"] == nlohmann::json::parse(tensor("F32", "[2,2]", "[6,22]")));
  CHECK(header["d"] == nlohmann::json::parse(tensor("F64", "[1,1,2]", "[22,38]")));
  CHECK(header["u"] == nlohmann::json::parse(tensor("U64", "[3]", "[38,62]")));
  CHECK(header["none"] == nlohmann::json::parse(tensor("F32", "[4,0]", "[62,62]")));
  CHECK(header["scalar"] == nlohmann::json::parse(tensor("F64", "[]", "[62,70]")));
  CHECK(file[8 + length + 0] == std::byte{0x00});  // binary16 1 is 3c00, its low byte first
  CHECK(file[8 + length + 1] == std::byte{0x3c});
  CHECK(file[8 + length + 46] == std::byte{0x01});  // the second U64
}

TEST_CASE("the header is padded for every length of it", "[calibrate]") {
  for (std::size_t i = 0; i < 16; ++i) {
    safetensors_writer writer(metadata{{"pad", std::string(i, 'x')}});
    writer.add<float>("a", {1}, std::array{1.0f});
    bytes const file = writer.bytes();
    CHECK((file.size() - sizeof(float)) % 8 == 0);
    CHECK(safetensors_file(file, "memory").get<float>("a", {1}) == std::vector{1.0f});
  }
}

TEST_CASE("a writer refuses values that do not fill their shape, and a name given twice", "[calibrate]") {
  safetensors_writer file(metadata{});
  CHECK_THROWS_WITH(file.add<float>("a", {2}, std::array{1.0f}), says("tensor \"a\": 1 values"));
  CHECK_THROWS_AS(file.add<float>("a", {SIZE_MAX, 4}, {}), error);
  file.add<float>("a", {1}, std::array{1.0f});
  CHECK_THROWS_WITH(file.add<float>("a", {1}, std::array{2.0f}), says("\"a\"") && says("twice"));
  CHECK_THROWS_AS(file.add<float>("__metadata__", {1}, std::array{2.0f}), error);
  CHECK(safetensors_file(file.bytes(), "memory").get<float>("a", {1}) == std::vector{1.0f});
}

TEST_CASE("fields that others add to the header are passed over", "[calibrate]") {
  std::string const header = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3],)"
                             R"("note":{"deep":[null,true]}}}   )";
  safetensors_file const file(container_of(header, 3), "memory");
  CHECK(file.get<std::uint8_t>("a", {3}) == std::vector<std::uint8_t>(3));
  CHECK(file.metadata("format") == "pt");
  CHECK_THROWS_WITH(file.metadata("version"), says("memory") && says("no \"version\""));
}

TEST_CASE("tensors may be listed in any order and with none of a header's optional parts", "[calibrate]") {
  safetensors_file const file(container_of(two_tensors("[4,12]", "[0,4]"), 12), "memory");
  CHECK(file.get<float>("a", {2}) == std::vector<float>(2));
  CHECK(file.metadata().empty());
  CHECK(safetensors_file(container_of("{}"), "memory").data().empty());
}

TEST_CASE("a tensor is had by its name, type and shape only", "[calibrate]") {
  safetensors_file const file(sample().bytes(), "x.bin");
  CHECK_THROWS_WITH(file.get<float>("g", {2, 2}), says("x.bin: tensor \"g\" is missing"));
  CHECK_THROWS_WITH(file.get<double>("f", {2, 2}), says("\"f\" is F32[2, 2], expected F64[2, 2]"));
  CHECK_THROWS_WITH(file.get<float>("f", {4}), says("expected F32[4]"));
  CHECK_THROWS_AS(file.get<float>("f", {2, 2, 1}), error);
}

TEST_CASE("a file cut at any byte, or with one too many, is refused", "[calibrate]") {
  bytes const whole = sample().bytes();
  for (std::size_t size = 0; size < whole.size(); ++size)
    container_complaint(bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
  bytes longer = whole;
  longer.push_back({});
  CHECK_THAT(container_complaint(longer), says("1 bytes follow the last tensor"));
}

TEST_CASE("header lengths beyond the file or beyond reason are refused", "[calibrate]") {
  bytes file = sample().bytes();
  auto const with_length = [&](std::uint64_t length) {
    std::memcpy(file.data(), &length, sizeof length);
    return file;
  };
  for (std::uint64_t const length : {std::uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7, std::uint64_t{file.size()},
                                     std::uint64_t{file.size() - 7}, std::uint64_t{100} << 20})
    CHECK_THAT(container_complaint(with_length(length)), says("a header of " + std::to_string(length) + " bytes"));
  CHECK_THAT(container_complaint(with_length(0)), says("header"));
}

TEST_CASE("sizes that overflow are refused", "[calibrate]") {
  CHECK_THAT(container_complaint(one_tensor("F32", "[4294967296,4294967296]", "[0,0]")), says("larger than its file"));
  CHECK_THAT(container_complaint(one_tensor("F32", "[4611686018427387905]", "[0,4]"), 4), says("larger than its file"));
  CHECK_THAT(container_complaint(one_tensor("F64", "[2305843009213693952]", "[0,0]")), says("larger than its file"));
  CHECK_THAT(container_complaint(one_tensor("F32", "[1]", "[18446744073709551612,0]"), 4), says("lies at bytes"));
  CHECK_THAT(container_complaint(one_tensor("F32", "[1]", "[0,18446744073709551615]"), 4), says("lies at bytes"));
  container_complaint(one_tensor("F32", "[0,18446744073709551616]", "[0,0]"));  // 2^64
}

TEST_CASE("sizes are whole numbers, not negative", "[calibrate]") {
  for (std::string const shape : {"[1.0]", "[-1]", "[0,-1]", "[1e300]", "[true]", "[\"1\"]", "[null]", "[[1]]", "1",
                                  "{\"0\":1}", "null", "\"1\""})
    container_complaint(one_tensor("F32", shape, "[0,4]"), 4);
  for (std::string const offsets : {"[0.0,4]", "[0,4.5]", "[-4,0]", "[0,1e300]", "[0]", "[]", "[0,4,8]", "{}", "null",
                                    "4", "[4,0]", "[0,3]", "[0,5]", "[\"0\",\"4\"]", "[false,4]"})
    container_complaint(one_tensor("F32", "[1]", offsets), 4);
}

TEST_CASE("tensors that overlap, leave a gap, or leave bytes over are refused", "[calibrate]") {
  CHECK_THAT(container_complaint(two_tensors("[0,8]", "[4,8]"), 8), says("overlap"));
  CHECK_THAT(container_complaint(two_tensors("[0,8]", "[0,4]"), 8), says("overlap"));
  CHECK_THAT(container_complaint(two_tensors("[0,8]", "[12,16]"), 16), says("gap at byte 8"));
  CHECK_THAT(container_complaint(two_tensors("[4,12]", "[12,16]"), 16), says("gap at byte 0"));
  CHECK_THAT(container_complaint(two_tensors("[0,8]", "[8,12]"), 13), says("1 bytes follow"));
  CHECK_THAT(container_complaint(std::string("{}"), 5), says("5 bytes follow"));
}

TEST_CASE("a header that is no object of tensors is refused", "[calibrate]") {
  for (std::string const header : {"[]",
                                   "null",
                                   "5",
                                   "\"a\"",
                                   "",
                                   "   ",
                                   "{",
                                   "{}{}",
                                   "{} x",
                                   "[{}]",
                                   "{\"a\":1}",
                                   "{\"a\":null}",
                                   "{\"a\":[]}",
                                   "{\"a\":{}}",
                                   "{\"\":{}}",
                                   "{\"a\":\xff}",
                                   "{\"__metadata__\":5}",
                                   "{\"__metadata__\":[\"x\"]}",
                                   "{\"__metadata__\":{\"a\":5}}",
                                   "{\"__metadata__\":{\"a\":null}}"})
    container_complaint(header);
  container_complaint(std::string(100000, '['));  // depth must not cost stack
  CHECK_THAT(container_complaint(one_tensor("BF16", "[2]", "[0,4]"), 4), says("type BF16, expected F16"));
  CHECK_THAT(container_complaint(one_tensor("f32", "[1]", "[0,4]"), 4), says("type f32"));
  container_complaint(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4);
  container_complaint(R"({"a":{"dtype":5,"shape":[1],"data_offsets":[0,4]}})", 4);
}

TEST_CASE("a name that occurs twice is refused", "[calibrate]") {
  std::string const a = R"("a":)" + tensor("F32", "[1]", "[0,4]");
  CHECK_THAT(container_complaint("{" + a + "," + a + "}", 4), says("\"a\"") && says("twice"));
  CHECK_THAT(container_complaint("{" + a + R"(,"a":)" + tensor("F32", "[1]", "[4,8]") + "}", 8), says("twice"));
  CHECK_THAT(container_complaint(R"({"__metadata__":{},"__metadata__":{}})"), says("twice"));
  CHECK_THAT(container_complaint(R"({"__metadata__":{"k":"1","k":"2"}})"), says("\"k\"") && says("twice"));
}

TEST_CASE("files are read from disk, and what is no file is refused by name", "[calibrate]") {
  temporary_folder const folder;
  sample().write(folder / "a.bin");
  CHECK(folder.files() == 1);
  auto const file = safetensors_file::read(folder / "a.bin");
  CHECK(file.origin() == (folder / "a.bin").string());
  CHECK(file.get<double>("scalar", {}) == std::vector{2.5});
  CHECK(read_bytes(folder / "a.bin") == sample().bytes());
  CHECK_THROWS_WITH(safetensors_file::read(folder / "b.bin"), says("b.bin"));
  CHECK_THROWS_WITH(safetensors_file::read(folder / ""), says("not a file"));
  std::ofstream(folder / "empty.bin").flush();
  CHECK_THROWS_WITH(safetensors_file::read(folder / "empty.bin"), says("empty.bin: not a safetensors file: 0 bytes"));
}
