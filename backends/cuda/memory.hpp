#pragma once
/// \file
/// Memory that the device reads, and streams.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <span>
#include <utility>

#include "backends/cuda/error.hpp"

namespace kvquant::cuda {

/// An array in device memory that grows and keeps nothing when it does.
template <class T>
class device_array {
 public:
  device_array() = default;
  explicit device_array(std::span<T const> from) {
    reserve(from.size());
    if (!from.empty()) check(cudaMemcpy(data_, from.data(), from.size_bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  device_array(device_array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_array& operator=(device_array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_array() { cudaFree(data_); }

  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

  /// At least `size` elements, with whatever is in them.
  void reserve(std::size_t size) {
    if (size <= size_) return;
    cudaFree(std::exchange(data_, nullptr));
    size_ = 0;
    check(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), "cudaMalloc");
    size_ = size;
  }
  void upload(std::span<T const> from, cudaStream_t stream) {
    reserve(from.size());
    if (from.empty()) return;
    check(cudaMemcpyAsync(data_, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

class stream {
 public:
  stream() { check(cudaStreamCreateWithFlags(&it_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  stream(stream const&) = delete;
  stream& operator=(stream const&) = delete;
  ~stream() { cudaStreamDestroy(it_); }

  cudaStream_t get() const { return it_; }
  void wait() const { check(cudaStreamSynchronize(it_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t it_ = nullptr;
};

/// What a stream is given once, to be launched again as a whole.
class captured_graph {
 public:
  /// `enqueue()` puts work on the stream.
  template <class Enqueue>
  captured_graph(stream const& on, Enqueue&& enqueue) {
    check(cudaStreamBeginCapture(on.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    enqueue();
    check(cudaStreamEndCapture(on.get(), &graph_), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&it_, graph_, 0), "cudaGraphInstantiate");
  }
  captured_graph(captured_graph const&) = delete;
  captured_graph& operator=(captured_graph const&) = delete;
  ~captured_graph() {
    cudaGraphExecDestroy(it_);
    cudaGraphDestroy(graph_);
  }
  void launch(stream const& on) const { check(cudaGraphLaunch(it_, on.get()), "cudaGraphLaunch"); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t it_ = nullptr;
};

/// Seconds of the device between two points of a stream.
class event_timer {
 public:
  event_timer() {
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  event_timer(event_timer const&) = delete;
  event_timer& operator=(event_timer const&) = delete;
  ~event_timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  void start(stream const& on) const { check(cudaEventRecord(start_, on.get()), "cudaEventRecord"); }
  double seconds(stream const& on) const {
    check(cudaEventRecord(end_, on.get()), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, end_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

/// Memory of both the host and the device (`cudaMallocManaged`). What is large stays on the device once it is used
/// there.
class managed_memory_resource final : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t) override {
    void* it = nullptr;
    check(cudaMallocManaged(&it, bytes == 0 ? 1 : bytes), "cudaMallocManaged");
    if (bytes >= large_bytes) prefer_device(it, bytes);
    return it;
  }
  void do_deallocate(void* it, std::size_t, std::size_t) override { cudaFree(it); }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  static constexpr std::size_t large_bytes = std::size_t{1} << 20;
  static void prefer_device(void* it, std::size_t bytes) {
    cudaMemLocation to{};
    to.type = cudaMemLocationTypeDevice;
    check(cudaGetDevice(&to.id), "cudaGetDevice");
    check(cudaMemAdvise(it, bytes, cudaMemAdviseSetPreferredLocation, to), "cudaMemAdvise");
  }
};

/// One for the whole program. Small blocks come out of larger ones: the device hands out 64 KB at the least.
inline std::pmr::memory_resource* managed_memory() {
  static managed_memory_resource device;
  static std::pmr::synchronized_pool_resource pools({.max_blocks_per_chunk = 0, .largest_required_pool_block = 1 << 16},
                                                    &device);
  return &pools;
}

/// One value that both read and write.
template <class T>
class managed_value {
 public:
  explicit managed_value(T value) : it_(static_cast<T*>(managed_memory()->allocate(sizeof(T), alignof(T)))) {
    *it_ = value;
  }
  managed_value(managed_value const&) = delete;
  managed_value& operator=(managed_value const&) = delete;
  ~managed_value() { managed_memory()->deallocate(it_, sizeof(T), alignof(T)); }
  T* get() const { return it_; }

 private:
  T* it_;
};

}  // namespace kvquant::cuda
