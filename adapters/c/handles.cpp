#include "adapters/c/handles.hpp"

#include <array>
#include <utility>

#include "adapters/c/status.hpp"

namespace kvquant::c {

namespace {

// A ticket, from its highest bit: 1; how often the slot was filled, 31 bits; its kind, 4 bits; the slot, 28 bits.
constexpr int slot_bits = 28, kind_bits = 4, kind_shift = slot_bits, filling_shift = slot_bits + kind_bits;
constexpr std::uint64_t is_ticket = std::uint64_t{1} << 63, most_slots = std::uint64_t{1} << slot_bits,
                        most_fillings = (std::uint64_t{1} << (63 - filling_shift)) - 1;

constexpr std::size_t slot_in(std::uint64_t ticket) { return static_cast<std::size_t>(ticket & (most_slots - 1)); }
constexpr std::uint64_t kind_in(std::uint64_t ticket) { return (ticket >> kind_shift) & ((1u << kind_bits) - 1); }
constexpr std::uint64_t filling_in(std::uint64_t ticket) { return (ticket & ~is_ticket) >> filling_shift; }

constexpr std::array names = {"no handle", "an artifact", "a cache", "a sequence"};
constexpr char const* name_of(std::uint64_t kind) { return names[kind < names.size() ? kind : 0]; }
constexpr char const* name_of(handle_kind kind) { return name_of(static_cast<std::uint64_t>(kind)); }

[[noreturn]] void refuse(handle_kind kind, char const* instead) {
  throw failure{KVQUANT_ERROR_BAD_HANDLE, text("the handle ", instead, ", expected ", name_of(kind))};
}

}  // namespace

std::uint64_t handle_table::add(handle_kind kind, std::shared_ptr<void> object) {
  std::lock_guard const lock(mutex_);
  if (free_.empty()) {
    require(slots_.size() < most_slots, errc::bad_value, slots_.size(), " handles are open, there are no more");
    if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 1);  // so that `remove` need not allocate
    slots_.emplace_back();
    free_.push_back(slots_.size() - 1);
  }
  std::size_t const index = free_.back();
  slot& it = slots_[index];
  std::uint64_t const filling = filling_in(it.ticket) + 1;
  it.ticket = is_ticket | filling << filling_shift | static_cast<std::uint64_t>(kind) << kind_shift | index;
  it.object = std::move(object);
  free_.pop_back();
  return it.ticket;
}

handle_table::slot const& handle_table::slot_of(std::uint64_t ticket, handle_kind kind) const {
  if (ticket == 0) refuse(kind, "is NULL");
  std::size_t const index = slot_in(ticket);
  bool const known = (ticket & is_ticket) != 0 && index < slots_.size() && filling_in(ticket) > 0 &&
                     filling_in(ticket) <= filling_in(slots_[index].ticket) && kind_in(ticket) >= 1 &&
                     kind_in(ticket) < names.size();
  if (!known) refuse(kind, "is none of this library");
  if (kind_in(ticket) != static_cast<std::uint64_t>(kind)) refuse(kind, text("is ", name_of(kind_in(ticket))).c_str());
  if (slots_[index].ticket != ticket || slots_[index].object == nullptr) refuse(kind, "was closed");
  return slots_[index];
}

std::shared_ptr<void> handle_table::find(std::uint64_t ticket, handle_kind kind) const {
  std::lock_guard const lock(mutex_);
  return slot_of(ticket, kind).object;
}

std::shared_ptr<void> handle_table::remove(std::uint64_t ticket, handle_kind kind) {
  std::lock_guard const lock(mutex_);
  slot_of(ticket, kind);
  std::size_t const index = slot_in(ticket);
  // A slot that was filled as often as can be told apart is never filled again.
  if (filling_in(ticket) < most_fillings) free_.push_back(index);
  return std::move(slots_[index].object);
}

handle_table& handles() {
  static auto& it = *new handle_table;
  return it;
}

}  // namespace kvquant::c
