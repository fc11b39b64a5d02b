#include "runtime/gguf.hpp"

#include <array>
#include <cmath>
#include <functional>
#include <mutex>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/content_hash.hpp"
#include "runtime/gguf_parser.hpp"
#include "runtime/mapped_file.hpp"
#include "runtime/quote.hpp"

namespace kvquant::runtime {
namespace {

std::string_view describe(gguf_value const& value) {
  struct {
    std::string_view operator()(std::int64_t) const { return "an integer"; }
    std::string_view operator()(std::uint64_t) const { return "an integer"; }
    std::string_view operator()(double) const { return "a floating-point number"; }
    std::string_view operator()(bool) const { return "a bool"; }
    std::string_view operator()(std::string_view) const { return "a string"; }
    std::string_view operator()(gguf_array const& array) const {
      constexpr std::array<std::string_view, 3> names{"an array of integers", "an array of floating-point numbers",
                                                      "an array of strings"};
      return names[array.index()];
    }
  } constexpr name;
  return std::visit(name, value);
}

}  // namespace

std::size_t gguf_tensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>{});
}
std::size_t gguf_tensor::rows() const { return elements() / cols(); }

struct gguf_file::state {
  state(mapped_file file, std::span<std::byte const> given, std::string name)
      : mapping(std::move(file)), bytes(given), origin(std::move(name)), parsed(parse_gguf(bytes, origin)) {
    for (std::size_t i = 0; i < parsed.tensors.size(); ++i) by_name.emplace(parsed.tensors[i].name, i);
  }

  gguf_value const* find(std::string_view key) const {
    auto const found = parsed.metadata.find(key);
    return found == parsed.metadata.end() ? nullptr : &found->second;
  }

  gguf_value const& at(std::string_view key, std::string_view expected) const {
    auto const* value = find(key);
    require(value != nullptr, errc::bad_file, origin, ": metadata ", quote(key), " is missing; expected ", expected);
    return *value;
  }

  [[noreturn]] void reject(std::string_view key, std::string_view expected, std::string_view found) const {
    throw error{errc::bad_file, text(origin, ": metadata ", quote(key), " is ", found, "; expected ", expected)};
  }

  /// The alternative `T` of a value or of its array.
  template <class T>
  T const& get(std::string_view key, std::string_view expected) const {
    gguf_value const& value = at(key, expected);
    T const* found = nullptr;
    if constexpr (std::is_constructible_v<gguf_array, std::in_place_type_t<T>>) {
      if (auto const* array = std::get_if<gguf_array>(&value)) found = std::get_if<T>(array);
    } else {
      found = std::get_if<T>(&value);
    }
    if (found == nullptr) reject(key, expected, describe(value));
    return *found;
  }

  mapped_file mapping;
  std::span<std::byte const> bytes;
  std::string origin;
  gguf_content parsed;
  std::unordered_map<std::string_view, std::size_t> by_name;
  mutable std::once_flag hashed;
  mutable std::string hash;
};

gguf_file gguf_file::open(std::filesystem::path const& path) {
  mapped_file mapping(path);
  auto const bytes = mapping.bytes();
  return gguf_file(std::make_unique<state>(std::move(mapping), bytes, path.string()));
}

gguf_file gguf_file::parse(std::span<std::byte const> bytes, std::string origin) {
  return gguf_file(std::make_unique<state>(mapped_file(), bytes, std::move(origin)));
}

gguf_file::gguf_file(std::unique_ptr<state> s) : state_(std::move(s)) {}
gguf_file::gguf_file(gguf_file&&) noexcept = default;
gguf_file& gguf_file::operator=(gguf_file&&) noexcept = default;
gguf_file::~gguf_file() = default;

std::uint32_t gguf_file::version() const { return state_->parsed.version; }
std::string const& gguf_file::origin() const { return state_->origin; }
std::size_t gguf_file::bytes() const { return state_->bytes.size(); }

std::string const& gguf_file::hash() const {
  std::call_once(state_->hashed, [this] {
    content_hash whole;
    whole.add_bytes(state_->bytes);
    state_->hash = whole.hex();
  });
  return state_->hash;
}

std::map<std::string_view, gguf_value> const& gguf_file::metadata() const { return state_->parsed.metadata; }
bool gguf_file::contains(std::string_view key) const { return state_->find(key) != nullptr; }

std::int64_t gguf_file::integer(std::string_view key) const {
  constexpr std::string_view expected = "an integer below 2^63";
  gguf_value const& value = state_->at(key, expected);
  if (auto const* number = std::get_if<std::int64_t>(&value)) return *number;
  auto const* number = std::get_if<std::uint64_t>(&value);
  if (number == nullptr) state_->reject(key, expected, describe(value));
  if (!std::in_range<std::int64_t>(*number)) state_->reject(key, expected, std::to_string(*number));
  return static_cast<std::int64_t>(*number);
}

double gguf_file::number(std::string_view key) const {
  constexpr std::string_view expected = "a finite number";
  gguf_value const& value = state_->at(key, expected);
  if (auto const* n = std::get_if<std::int64_t>(&value)) return static_cast<double>(*n);
  if (auto const* n = std::get_if<std::uint64_t>(&value)) return static_cast<double>(*n);
  auto const* n = std::get_if<double>(&value);
  if (n == nullptr) state_->reject(key, expected, describe(value));
  if (!std::isfinite(*n)) state_->reject(key, expected, std::to_string(*n));
  return *n;
}

bool gguf_file::boolean(std::string_view key, bool otherwise) const {
  return contains(key) ? state_->get<bool>(key, "a bool") : otherwise;
}
std::string_view gguf_file::string(std::string_view key) const {
  return state_->get<std::string_view>(key, "a string");
}
std::int64_t gguf_file::integer_or(std::string_view key, std::int64_t otherwise) const {
  return contains(key) ? integer(key) : otherwise;
}
double gguf_file::number_or(std::string_view key, double otherwise) const {
  return contains(key) ? number(key) : otherwise;
}
std::string_view gguf_file::string_or(std::string_view key, std::string_view otherwise) const {
  return contains(key) ? string(key) : otherwise;
}

std::vector<std::string_view> const& gguf_file::strings(std::string_view key) const {
  return state_->get<std::vector<std::string_view>>(key, "an array of strings");
}
std::vector<std::int64_t> const& gguf_file::integers(std::string_view key) const {
  return state_->get<std::vector<std::int64_t>>(key, "an array of integers");
}
std::vector<double> const& gguf_file::numbers(std::string_view key) const {
  return state_->get<std::vector<double>>(key, "an array of floating-point numbers");
}

std::vector<gguf_tensor> const& gguf_file::tensors() const { return state_->parsed.tensors; }

gguf_tensor const* gguf_file::find_tensor(std::string_view name) const {
  auto const found = state_->by_name.find(name);
  return found == state_->by_name.end() ? nullptr : &state_->parsed.tensors[found->second];
}

gguf_tensor const& gguf_file::tensor(std::string_view name) const {
  auto const* found = find_tensor(name);
  require(found != nullptr, errc::bad_file, origin(), ": tensor ", quote(name), " is missing");
  return *found;
}

}  // namespace kvquant::runtime
