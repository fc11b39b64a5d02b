/// \file
/// Any bytes are an artifact or an error. A container is tried twice: as it is, and with kind, version and hash put
/// right, without which no change would get past the hash.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/core/error.hpp"

namespace {

using bytes = std::vector<std::byte>;

void read(bytes content) {
  try {
    kvquant::safetensors_file const file(std::move(content), "fuzz");
    auto const info = kvquant::read_artifact_info(file);
    kvquant::visit_spec(info.spec, [&]<class S>(std::type_identity<S>) {
      auto const it = kvquant::read_artifact<S>(file);
      static_cast<void>(kvquant::to_bytes(it));
    });
  } catch (kvquant::error const&) {
  }
}

/// None where `content` has no JSON header with a description to be hashed.
std::optional<bytes> with_right_hash(bytes const& content) {
  std::uint64_t length = 0;
  if (content.size() < sizeof length) return std::nullopt;
  std::memcpy(&length, content.data(), sizeof length);
  auto const rest = std::span(content).subspan(sizeof length);
  if (length > rest.size()) return std::nullopt;
  auto const* const text = reinterpret_cast<char const*>(rest.data());
  auto header = nlohmann::json::parse(text, text + length, nullptr, false);
  if (!header.is_object() || !header["__metadata__"].is_object()) return std::nullopt;
  auto& metadata = header["__metadata__"];
  if (!metadata["description"].is_string()) return std::nullopt;
  metadata["kind"] = kvquant::artifact_kind;
  if (metadata["version"] != kvquant::local_version) metadata["version"] = kvquant::plain_version;
  auto const data = rest.subspan(static_cast<std::size_t>(length));
  metadata["hash"] = kvquant::detail::content_hash(metadata["description"].get<std::string>(), data);
  std::string const json = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  length = json.size();
  auto const prefix = std::as_bytes(std::span(&length, 1)), middle = std::as_bytes(std::span(json));
  bytes repaired(prefix.begin(), prefix.end());
  repaired.insert(repaired.end(), middle.begin(), middle.end());
  repaired.insert(repaired.end(), data.begin(), data.end());
  return repaired;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto const input = std::as_bytes(std::span(data, size));
  bytes const content(input.begin(), input.end());
  if (auto repaired = with_right_hash(content)) read(std::move(*repaired));
  read(content);
  return 0;
}
