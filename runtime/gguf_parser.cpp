#include "runtime/gguf_parser.hpp"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/byte_cursor.hpp"
#include "runtime/quote.hpp"

namespace kvquant::runtime {
namespace {

/// GGUF's own numbers.
enum class value_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// Calls f(std::type_identity<T>{}) with the C++ type of a value; false for arrays and unknown numbers.
template <class F>
bool visit_value_type(value_type type, F&& f) {
  switch (type) {
    case value_type::u8: f(std::type_identity<std::uint8_t>{}); return true;
    case value_type::i8: f(std::type_identity<std::int8_t>{}); return true;
    case value_type::u16: f(std::type_identity<std::uint16_t>{}); return true;
    case value_type::i16: f(std::type_identity<std::int16_t>{}); return true;
    case value_type::u32: f(std::type_identity<std::uint32_t>{}); return true;
    case value_type::i32: f(std::type_identity<std::int32_t>{}); return true;
    case value_type::f32: f(std::type_identity<float>{}); return true;
    case value_type::boolean: f(std::type_identity<bool>{}); return true;
    case value_type::string: f(std::type_identity<std::string_view>{}); return true;
    case value_type::u64: f(std::type_identity<std::uint64_t>{}); return true;
    case value_type::i64: f(std::type_identity<std::int64_t>{}); return true;
    case value_type::f64: f(std::type_identity<double>{}); return true;
    case value_type::array: return false;
  }
  return false;
}

template <class T>
using widened_scalar =
    std::conditional_t<std::is_same_v<T, bool> || std::is_same_v<T, std::string_view>, T,
                       std::conditional_t<std::is_floating_point_v<T>, double,
                                          std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>>>;

template <class T>
using widened_element = std::conditional_t<std::is_same_v<T, std::string_view>, T,
                                           std::conditional_t<std::is_floating_point_v<T>, double, std::int64_t>>;

class parser {
 public:
  parser(std::span<std::byte const> bytes, std::string_view origin) : bytes_(bytes), in_(bytes, origin) {}

  gguf_content parse() && {
    read_version();
    auto const tensor_count = in_.take_count(smallest_tensor_record, "the number of tensors");
    auto const entry_count = in_.take_count(smallest_entry, "the number of metadata entries");
    for (std::size_t i = 0; i < entry_count; ++i) read_entry();
    records_.reserve(tensor_count);
    for (std::size_t i = 0; i < tensor_count; ++i) read_tensor_record();
    reject_duplicate_names();
    place_tensors();
    return std::move(content_);
  }

 private:
  /// What the file says about a tensor, before its data is known to exist.
  struct record {
    gguf_tensor tensor;
    std::uint64_t offset = 0;  ///< from the start of the data section
    std::size_t bytes = 0;
    std::size_t at = 0;  ///< where the record lies in the file
  };

  static constexpr std::size_t smallest_entry = 8 + 4 + 1;                  // empty key, type, one byte
  static constexpr std::size_t smallest_tensor_record = 8 + 4 + 8 + 4 + 8;  // empty name, one dimension, type, offset
  static constexpr std::uint32_t most_dimensions = 4;

  void read_version() {
    auto const magic = in_.take<std::uint32_t>("the magic");
    if (magic == 0x47475546) reject_big_endian(0);  // "FUGG"
    if (magic != 0x46554747) in_.fail(errc::bad_file, 0, "not a GGUF file: expected the magic \"GGUF\"");
    auto const version = in_.take<std::uint32_t>("the version");
    // Versions are small: if only the upper bytes of the number are set, it was written in the other order.
    if (version != 0 && (version & 0xffff) == 0) reject_big_endian(4);
    if (version != 2 && version != 3)
      in_.fail(errc::unsupported, 4, "GGUF version ", version, " is not supported; expected 2 or 3");
    content_.version = version;
  }

  [[noreturn]] void reject_big_endian(std::size_t at) const {
    in_.fail(errc::unsupported, at, "a big-endian GGUF file; expected little-endian");
  }

  void read_entry() {
    std::size_t const at = in_.at();
    std::string_view const key = in_.take_string("the length of a metadata key");
    auto const type = static_cast<value_type>(in_.take<std::uint32_t>("the type of a metadata value"));
    std::string const what = "metadata " + quote(key);
    gguf_value value = type == value_type::array ? read_array(what) : read_scalar(type, what);
    if (key == "general.alignment") set_alignment(value, at);
    if (!content_.metadata.emplace(key, std::move(value)).second) in_.fail(errc::bad_file, at, what, " is there twice");
  }

  gguf_value read_scalar(value_type type, std::string_view what) {
    gguf_value value;
    bool const known = visit_value_type(
        type, [&]<class T>(std::type_identity<T>) { value = static_cast<widened_scalar<T>>(take_value<T>(what)); });
    if (!known) reject_value_type(type, what);
    return value;
  }

  gguf_value read_array(std::string_view what) {
    auto const type = static_cast<value_type>(in_.take<std::uint32_t>(what));
    if (type == value_type::array)
      in_.fail(errc::unsupported, in_.at() - 4, what, " is an array of arrays; expected numbers, bools or strings");
    gguf_array array;
    bool const known = visit_value_type(type, [&]<class T>(std::type_identity<T>) { array = read_elements<T>(what); });
    if (!known) reject_value_type(type, what);
    return array;
  }

  template <class T>
  std::vector<widened_element<T>> read_elements(std::string_view what) {
    constexpr std::size_t bytes_each = std::is_same_v<T, std::string_view> ? sizeof(std::uint64_t) : sizeof(T);
    std::size_t const count = in_.take_count(bytes_each, text("the length of ", what));
    std::vector<widened_element<T>> elements;
    elements.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      T const element = take_value<T>(what);
      if constexpr (std::is_same_v<T, std::uint64_t>)
        if (!std::in_range<std::int64_t>(element))
          in_.fail(errc::bad_file, in_.at() - sizeof element, what, " holds ", element, "; expected less than 2^63");
      elements.push_back(static_cast<widened_element<T>>(element));
    }
    return elements;
  }

  template <class T>
  T take_value(std::string_view what) {
    if constexpr (std::is_same_v<T, std::string_view>) {
      return in_.take_string(what);
    } else if constexpr (std::is_same_v<T, bool>) {
      auto const byte = in_.take<std::uint8_t>(what);
      if (byte > 1) in_.fail(errc::bad_file, in_.at() - 1, what, " is a bool of ", +byte, "; expected 0 or 1");
      return byte == 1;
    } else {
      return in_.take<T>(what);
    }
  }

  [[noreturn]] void reject_value_type(value_type type, std::string_view what) const {
    in_.fail(errc::bad_file, in_.at() - 4, what, " has type ", static_cast<std::uint32_t>(type),
             "; expected a type from 0 to 12");
  }

  void set_alignment(gguf_value const& stored, std::size_t at) {
    auto const* value = std::get_if<std::uint64_t>(&stored);
    constexpr std::uint64_t largest = 1u << 30;
    if (value == nullptr || !std::has_single_bit(*value) || *value < 8 || *value > largest)
      in_.fail(errc::bad_file, at, "metadata \"general.alignment\" is ",
               value == nullptr ? "no unsigned integer" : std::to_string(*value),
               "; expected a power of two from 8 to 2^30");
    alignment_ = *value;
  }

  void read_tensor_record() {
    record r;
    r.at = in_.at();
    r.tensor.name = in_.take_string("the length of a tensor's name");
    std::string const what = "tensor " + quote(r.tensor.name);
    std::size_t const elements = read_shape(r, what);
    auto const number = in_.take<std::uint32_t>(what);
    auto const type = find_tensor_type(number);
    if (!type)
      in_.fail(errc::unsupported, in_.at() - 4, what, " is stored as ", tensor_type_name(number),
               ", which cannot be read here");
    if (r.tensor.shape[0] % type->block != 0)
      in_.fail(errc::bad_file, r.at, what, " has rows of ", r.tensor.shape[0], " elements; expected a multiple of ",
               type->block, " for ", type->name);
    if (elements / type->block > std::numeric_limits<std::size_t>::max() / type->block_bytes)
      in_.fail(errc::bad_file, r.at, what, " has ", elements, " elements, more than can be addressed");
    r.tensor.type = type->type;
    r.bytes = elements / type->block * type->block_bytes;
    r.offset = in_.take<std::uint64_t>(what);
    if (r.offset % alignment_ != 0)
      in_.fail(errc::bad_file, in_.at() - sizeof r.offset, what, " lies at offset ", r.offset,
               "; expected a multiple of ", alignment_);
    records_.push_back(std::move(r));
  }

  /// Returns the number of elements, which fits into a size_t.
  std::size_t read_shape(record& r, std::string_view what) {
    auto const dimensions = in_.take<std::uint32_t>(what);
    if (dimensions == 0 || dimensions > most_dimensions)
      in_.fail(errc::bad_file, in_.at() - 4, what, " has ", dimensions, " dimensions; expected 1 to ", most_dimensions);
    std::size_t elements = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      auto const extent = in_.take<std::uint64_t>(what);
      if (extent == 0) in_.fail(errc::bad_file, in_.at() - 8, what, " has no element in dimension ", d);
      if (extent > std::numeric_limits<std::size_t>::max() / elements)
        in_.fail(errc::bad_file, in_.at() - 8, what, " has more elements than can be addressed: ", extent,
                 " in dimension ", d);
      elements *= extent;
      r.tensor.shape.push_back(extent);
    }
    return elements;
  }

  void reject_duplicate_names() const {
    std::vector<record const*> by_name = pointers();
    std::ranges::stable_sort(by_name, {}, [](record const* r) { return r->tensor.name; });
    auto const twice = std::ranges::adjacent_find(by_name, {}, [](record const* r) { return r->tensor.name; });
    if (twice != by_name.end())
      in_.fail(errc::bad_file, (*std::next(twice))->at, "tensor ", quote((*twice)->tensor.name), " is there twice");
  }

  /// Gives every tensor its bytes, once they are known to lie inside the file and in no other tensor.
  void place_tensors() {
    if (records_.empty()) return;
    std::size_t const start = (in_.at() + alignment_ - 1) / alignment_ * alignment_;
    if (start > bytes_.size())
      in_.fail(errc::bad_file, in_.at(), "the file ends at byte ", bytes_.size(),
               "; expected the tensors' data from byte ", start, " on");
    auto const data = bytes_.subspan(start);
    for (record& r : records_) {
      if (r.offset > data.size() || r.bytes > data.size() - r.offset)
        in_.fail(errc::bad_file, r.at, "tensor ", quote(r.tensor.name), " takes ", r.bytes, " bytes from offset ",
                 r.offset, " on, but the data section has ", data.size(), " bytes");
      r.tensor.data = data.subspan(r.offset, r.bytes);
    }
    reject_overlaps();
    content_.tensors.reserve(records_.size());
    for (record& r : records_) content_.tensors.push_back(std::move(r.tensor));
  }

  void reject_overlaps() const {
    std::vector<record const*> by_offset = pointers();
    std::ranges::stable_sort(by_offset, {}, &record::offset);
    auto const clash = std::ranges::adjacent_find(
        by_offset, [](record const* a, record const* b) { return a->offset + a->bytes > b->offset; });
    if (clash == by_offset.end()) return;
    record const& first = **clash;
    record const& second = **std::next(clash);
    in_.fail(errc::bad_file, second.at, "tensor ", quote(second.tensor.name), " at offset ", second.offset,
             " overlaps tensor ", quote(first.tensor.name), ", which takes ", first.bytes, " bytes from offset ",
             first.offset, " on");
  }

  std::vector<record const*> pointers() const {
    std::vector<record const*> out;
    out.reserve(records_.size());
    for (record const& r : records_) out.push_back(&r);
    return out;
  }

  std::span<std::byte const> bytes_;
  byte_cursor in_;
  std::uint64_t alignment_ = 32;
  std::vector<record> records_;
  gguf_content content_;
};

}  // namespace

gguf_content parse_gguf(std::span<std::byte const> bytes, std::string_view origin) {
  return parser(bytes, origin).parse();
}

}  // namespace kvquant::runtime
