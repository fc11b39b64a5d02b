// Tiny test harness shared by the self tests: host-only, no framework needed.
#pragma once
#include <cuda_runtime.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

inline int g_failed = 0;

#define CUDA_OK(expr)                                                                        \
  do {                                                                                       \
    cudaError_t err_ = (expr);                                                               \
    if (err_ != cudaSuccess) {                                                               \
      std::printf("%s:%d: %s -> %s\n", __FILE__, __LINE__, #expr, cudaGetErrorString(err_)); \
      ++g_failed;                                                                            \
    }                                                                                        \
  } while (0)

#define CHECK(cond)                                                        \
  do {                                                                     \
    if (!(cond)) {                                                         \
      std::printf("%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #cond); \
      ++g_failed;                                                          \
    }                                                                      \
  } while (0)

template <typename T>
struct DeviceBuffer {
  T* ptr = nullptr;
  size_t n = 0;
  explicit DeviceBuffer(size_t count) : n(count) { CUDA_OK(cudaMalloc(&ptr, count * sizeof(T))); }
  explicit DeviceBuffer(std::vector<T> const& v) : DeviceBuffer(v.size()) {
    CUDA_OK(cudaMemcpy(ptr, v.data(), n * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceBuffer() { cudaFree(ptr); }
  DeviceBuffer(DeviceBuffer const&) = delete;
  DeviceBuffer& operator=(DeviceBuffer const&) = delete;
  void zero() { CUDA_OK(cudaMemset(ptr, 0, n * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> v(n);
    CUDA_OK(cudaMemcpy(v.data(), ptr, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }
};

inline bool near(double got, double want, double rel, double abs = 1e-6) {
  return std::fabs(got - want) <= abs + rel * std::fabs(want);
}

inline int finish(char const* name) {
  std::printf("%-12s %s\n", name, g_failed ? "FAILED" : "ok");
  return g_failed ? 1 : 0;
}
