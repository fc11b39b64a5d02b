#include <nanobind/nanobind.h>

#include <algorithm>
#include <functional>

#include "adapters/python/src/cache.hpp"

namespace kvquant::python {

void cache_state::require_open() const {
  if (!engine_) throw nanobind::value_error("the cache is closed");
}

void cache_state::adopt(std::shared_ptr<sequence_state> const& opened) {
  std::lock_guard const lock(sequences_mutex_);
  std::erase_if(sequences_, [](auto const& it) { return it.expired(); });
  sequences_.push_back(opened);
}

void cache_state::close() {
  std::unique_lock const nobody_else(open_);
  std::lock_guard const lock(sequences_mutex_);
  for (auto const& weak : sequences_)
    if (auto const it = weak.lock()) it->sequence_.reset();
  sequences_.clear();
  engine_.reset();
  pool_.reset();
}

engine_sequence& sequence_state::opened() const {
  owner_->require_open();
  if (!sequence_) throw nanobind::value_error("the sequence is closed");
  return *sequence_;
}

locked_sequences::locked_sequences(std::vector<std::shared_ptr<sequence_state>> const& all) : all_(all) {
  std::vector<sequence_state*> distinct;
  for (auto const& it : all) distinct.push_back(it.get());
  std::sort(distinct.begin(), distinct.end(), std::less<>{});
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (sequence_state* const it : distinct) locks_.emplace_back(it->mutex_);
}

}  // namespace kvquant::python
