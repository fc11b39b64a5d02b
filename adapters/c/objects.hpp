#pragma once
/// \file
/// What handles stand for.

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include "adapters/c/executors.hpp"
#include "adapters/c/handles.hpp"
#include "adapters/c/kvquant.h"
#include "engines/engines.hpp"

namespace kvquant::c {

class artifact_object {
 public:
  explicit artifact_object(any_artifact it);
  // What it has handed out points into it.
  artifact_object(artifact_object const&) = delete;
  artifact_object& operator=(artifact_object const&) = delete;

  any_artifact const& get() const { return it_; }
  kvquant_model_shape const& shape() const { return shape_; }
  kvquant_artifact_info const& info() const { return info_; }

 private:
  any_artifact it_;
  kvquant_rope rope_, local_rope_;
  kvquant_model_shape shape_;
  kvquant_artifact_info info_;
};

class cache_object {
 public:
  cache_object(std::unique_ptr<engine> cache, int threads, std::optional<kvquant_executor> const& foreign)
      : executor_(threads, foreign), engine_(std::move(cache)) {}

  engine& get() { return *engine_; }
  engine const& get() const { return *engine_; }
  executor_ref executor() { return executor_.ref(); }
  model_shape const& shape() const { return engine_->info().shape; }
  std::size_t q_channels() const {
    return static_cast<std::size_t>(shape().q_heads) * static_cast<std::size_t>(shape().head_dim);
  }
  /// Throws `bad_value` for what is no layer of the model.
  void require_layer(int layer) const {
    require(layer >= 0 && layer < shape().layers, errc::bad_value, "layer ", layer, ", expected 0 to ",
            shape().layers - 1);
  }

 private:
  cache_executor executor_;
  std::unique_ptr<engine> engine_;
};

/// Who uses a sequence: one call that changes it, or several that read.
class users {
 public:
  bool begin_reading() {
    int now = count_.load(std::memory_order_relaxed);
    while (now >= 0)
      if (count_.compare_exchange_weak(now, now + 1, std::memory_order_acquire)) return true;
    return false;
  }
  bool begin_changing() {
    int nobody = 0;
    return count_.compare_exchange_strong(nobody, changing, std::memory_order_acquire);
  }
  void end_reading() { count_.fetch_sub(1, std::memory_order_release); }
  void end_changing() { count_.store(0, std::memory_order_release); }

 private:
  static constexpr int changing = -1;
  std::atomic<int> count_{0};  // of readers, or `changing`
};

class sequence_object {
 public:
  sequence_object(std::shared_ptr<cache_object> of, std::unique_ptr<engine_sequence> it)
      : cache_(std::move(of)), it_(std::move(it)) {}

  std::shared_ptr<cache_object> const& cache() const { return cache_; }

 private:
  friend class reading;
  friend class changing;

  std::shared_ptr<cache_object> cache_;  // outlives what is in it
  std::unique_ptr<engine_sequence> it_;
  users users_;
  bool broken_ = false;  // a call failed half-way
};

/// The sequence of a handle, which nobody changes as long as this lives. Throws `failure` with KVQUANT_ERROR_BUSY where
/// somebody does, KVQUANT_ERROR_BROKEN where a call failed half-way.
class reading {
 public:
  explicit reading(kvquant_sequence const* handle);
  reading(reading&& other) noexcept = default;
  reading& operator=(reading&&) = delete;
  ~reading() {
    if (object_) object_->users_.end_reading();
  }

  engine_sequence const* operator->() const { return object_->it_.get(); }
  engine_sequence const* get() const { return object_->it_.get(); }
  std::shared_ptr<cache_object> const& cache() const { return object_->cache(); }

 private:
  std::shared_ptr<sequence_object> object_;
};

/// The same for a call that changes it: nobody else uses it.
class changing {
 public:
  explicit changing(kvquant_sequence const* handle);
  changing(changing const&) = delete;
  changing& operator=(changing const&) = delete;
  ~changing() { object_->users_.end_changing(); }

  /// Calls `f(sequence)`. What is no `kvquant::error` may leave a sequence half changed: it is broken from then on.
  template <class F>
  void apply(F&& f) {
    try {
      f(*object_->it_);
    } catch (error const&) {
      throw;
    } catch (...) {
      object_->broken_ = true;
      throw;
    }
  }
  cache_object& cache() const { return *object_->cache(); }

 private:
  std::shared_ptr<sequence_object> object_;
};

/// What a report says, to the caller's struct.
void write_bytes(kvquant_bytes* out, byte_report const& it, std::size_t elements);

}  // namespace kvquant::c
