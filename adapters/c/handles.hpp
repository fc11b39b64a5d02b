#pragma once
/// \file
/// Handles are tickets: what they stand for is looked up, so that one that was closed is known as such for good.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "adapters/c/kvquant.h"

namespace kvquant::c {

class artifact_object;
class cache_object;
class sequence_object;

enum class handle_kind : std::uint8_t { artifact = 1, cache = 2, sequence = 3 };

/// Which object and kind belong to a type of the interface.
template <class Handle>
struct handle_traits;
template <>
struct handle_traits<kvquant_artifact> {
  using object = artifact_object;
  static constexpr handle_kind kind = handle_kind::artifact;
};
template <>
struct handle_traits<kvquant_cache> {
  using object = cache_object;
  static constexpr handle_kind kind = handle_kind::cache;
};
template <>
struct handle_traits<kvquant_sequence> {
  using object = sequence_object;
  static constexpr handle_kind kind = handle_kind::sequence;
};

/// Objects by ticket. A ticket names a slot and how often that was filled, and is never given out twice. From any
/// number of threads.
class handle_table {
 public:
  std::uint64_t add(handle_kind kind, std::shared_ptr<void> object);
  /// Throws `failure` with KVQUANT_ERROR_BAD_HANDLE that says what the ticket is instead.
  std::shared_ptr<void> find(std::uint64_t ticket, handle_kind kind) const;
  /// The same; the ticket is worth nothing from then on.
  std::shared_ptr<void> remove(std::uint64_t ticket, handle_kind kind);

 private:
  struct slot {
    std::uint64_t ticket = 0;  // the latest
    std::shared_ptr<void> object{};
  };
  slot const& slot_of(std::uint64_t ticket, handle_kind kind) const;

  mutable std::mutex mutex_;
  std::vector<slot> slots_;
  std::vector<std::size_t> free_;
};

/// That of the process. It is never destroyed: handles may be closed while the process ends.
handle_table& handles();

// Tickets as the pointers that the interface speaks of. Theirs have the highest bit set, which no address of a program
// has on the machines that we know: whoever reads through one is stopped.
static_assert(sizeof(void*) == sizeof(std::uint64_t), "tickets need pointers of 64 bits");

template <class Handle>
std::uint64_t ticket_of(Handle const* handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

template <class Handle>
Handle* give_handle(std::shared_ptr<typename handle_traits<Handle>::object> object) {
  return reinterpret_cast<Handle*>(handles().add(handle_traits<Handle>::kind, std::move(object)));
}

/// Keeps the object alive for the call, whoever closes its handle meanwhile.
template <class Handle>
std::shared_ptr<typename handle_traits<Handle>::object> object_of(Handle const* handle) {
  return std::static_pointer_cast<typename handle_traits<Handle>::object>(
      handles().find(ticket_of(handle), handle_traits<Handle>::kind));
}

/// Does nothing for NULL.
template <class Handle>
void close_handle(Handle const* handle) {
  if (handle != nullptr) handles().remove(ticket_of(handle), handle_traits<Handle>::kind);
}

}  // namespace kvquant::c
