// The functions of the runtime that libraries call, with streams, events and captured graphs.
#include "check.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#define GIVES(expected, expr)                                                                \
  do {                                                                                       \
    cudaError_t err_ = (expr);                                                               \
    if (err_ != (expected)) {                                                                \
      std::printf("%s:%d: %s -> %s\n", __FILE__, __LINE__, #expr, cudaGetErrorString(err_)); \
      ++g_failed;                                                                            \
    }                                                                                        \
    cudaGetLastError();                                                                      \
  } while (0)

struct Scale {
  int by;
  char rest[28];
};
__device__ int d_offset = 5;
__global__ void scale_kernel(int* data, Scale scale, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) data[i] = data[i] * scale.by + d_offset;
}
__global__ void append_kernel(int* list, int value) { list[++list[0]] = value; }
__global__ __launch_bounds__(256) void shared_kernel(int* out) {
  extern __shared__ int room[];
  room[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}

static cudaMemoryType type_of(void const* p) {
  cudaPointerAttributes a;
  CUDA_OK(cudaPointerGetAttributes(&a, p));
  return a.type;
}

static void test_memory() {
  size_t before, now, total;
  CUDA_OK(cudaMemGetInfo(&before, &total));
  int *device, *async, *managed, *pinned, *mapped;
  CUDA_OK(cudaMalloc(&device, 4096));
  CUDA_OK(cudaMallocAsync(&async, 4096, nullptr));
  CUDA_OK(cudaMallocManaged(&managed, 4096));
  CUDA_OK(cudaMallocHost(&pinned, 4096));
  CUDA_OK(cudaHostAlloc(&mapped, 4096, cudaHostAllocMapped));
  CUDA_OK(cudaMemGetInfo(&now, &total));
  CHECK(before - now == 3 * 4096);
  std::vector<int> own(1024);
  CHECK(type_of(device + 1023) == cudaMemoryTypeDevice && type_of(async) == cudaMemoryTypeDevice);
  CHECK(type_of(managed) == cudaMemoryTypeManaged && type_of(pinned) == cudaMemoryTypeHost);
  CHECK(type_of(own.data()) == cudaMemoryTypeUnregistered);
  CUDA_OK(cudaHostRegister(own.data(), 4096, cudaHostRegisterDefault));
  CHECK(type_of(own.data()) == cudaMemoryTypeHost);
  GIVES(cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(own.data(), 4096, cudaHostRegisterDefault));
  GIVES(cudaErrorInvalidValue, cudaFreeHost(own.data()));
  CUDA_OK(cudaHostUnregister(own.data()));
  GIVES(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(own.data()));
  GIVES(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(pinned));
  void* alias;
  CUDA_OK(cudaHostGetDevicePointer(&alias, mapped, 0));
  CHECK(alias == mapped);

  cudaMemLocation here{};
  here.type = cudaMemLocationTypeDevice;
  CUDA_OK(cudaMemPrefetchAsync(managed, 4096, here, 0, nullptr));
  CUDA_OK(cudaMemAdvise(managed, 4096, cudaMemAdviseSetReadMostly, here));
  GIVES(cudaErrorInvalidValue, cudaMemPrefetchAsync(device, 4096, here, 0, nullptr));
  GIVES(cudaErrorInvalidValue, cudaMemAdvise(managed, 4100, cudaMemAdviseSetReadMostly, here));

  // A block of 3 rows of 5 numbers inside rows of 8.
  std::iota(pinned, pinned + 1024, 0);
  CUDA_OK(cudaMemset(device, 0, 4096));
  CUDA_OK(cudaMemcpy2DAsync(device, 32, pinned, 20, 20, 3, cudaMemcpyHostToDevice, nullptr));
  CUDA_OK(cudaMemcpyAsync(managed, device, 96, cudaMemcpyDefault, nullptr));
  for (int i = 0; i < 24; ++i) CHECK(managed[i] == (i % 8 < 5 ? i / 8 * 5 + i % 8 : 0));
  CUDA_OK(cudaMemset2DAsync(managed, 32, 0xff, 4, 3, nullptr));
  CHECK(managed[8] == -1 && managed[9] == 6);
  scale_kernel<<<1, 32>>>(managed, Scale{2, {}}, 10);
  CUDA_OK(cudaDeviceSynchronize());
  CHECK(managed[9] == 6 * 2 + 5);
  GIVES(cudaErrorInvalidValue, cudaMemcpy(device, pinned, 4097, cudaMemcpyHostToDevice));
  GIVES(cudaErrorInvalidValue, cudaMemcpy(device, pinned, 4097, cudaMemcpyDefault));
  GIVES(cudaErrorInvalidValue, cudaMemset(device + 1, 0, 4096));
  GIVES(cudaErrorInvalidMemcpyDirection, cudaMemcpy(device, pinned, 4, static_cast<cudaMemcpyKind>(9)));
  GIVES(cudaErrorInvalidPitchValue, cudaMemcpy2D(device, 16, pinned, 20, 20, 3, cudaMemcpyHostToDevice));
  struct {
    int flag, next;
  } reuse = {1, 2};
  CUDA_OK(cudaMemPoolGetAttribute(nullptr, cudaMemPoolReuseAllowOpportunistic, &reuse.flag));
  CHECK(reuse.flag == 0 && reuse.next == 2);

  GIVES(cudaErrorInvalidValue, cudaFree(pinned));
  GIVES(cudaErrorInvalidValue, cudaFreeHost(device));
  CUDA_OK(cudaFree(device));
  GIVES(cudaErrorInvalidValue, cudaFree(device));
  CUDA_OK(cudaFreeAsync(async, nullptr));
  CUDA_OK(cudaFree(managed));
  CUDA_OK(cudaFreeHost(pinned));
  CUDA_OK(cudaFreeHost(mapped));
  CUDA_OK(cudaMemGetInfo(&now, &total));
  CHECK(now == before);
  GIVES(cudaErrorMemoryAllocation, cudaMalloc(&device, total + 1));
}

static void test_device() {
  int n, device, major, runtime, driver;
  CUDA_OK(cudaGetDeviceCount(&n));
  CUDA_OK(cudaSetDevice(0));
  CUDA_OK(cudaGetDevice(&device));
  GIVES(cudaErrorInvalidDevice, cudaSetDevice(n));
  cudaDeviceProp p;
  CUDA_OK(cudaGetDeviceProperties(&p, 0));
  CUDA_OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CHECK(n == 1 && device == 0 && p.major == 8 && major == 8 && p.warpSize == 32);
  CUDA_OK(cudaRuntimeGetVersion(&runtime));
  CUDA_OK(cudaDriverGetVersion(&driver));
  CHECK(runtime == CUDART_VERSION && driver >= runtime);

  GIVES(cudaErrorInvalidDevice, cudaSetDevice(7));
  cudaSetDevice(7);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(!std::strcmp(cudaGetErrorName(cudaErrorStreamCaptureUnjoined), "cudaErrorStreamCaptureUnjoined"));
}

static void test_functions() {
  cudaFuncAttributes a;
  CUDA_OK(cudaFuncGetAttributes(&a, shared_kernel));
  CHECK(a.maxThreadsPerBlock == 256 && a.sharedSizeBytes == 0);
  constexpr size_t kMuch = 100 << 10;
  DeviceBuffer<int> out(256);
  void* args[] = {&out.ptr};
  GIVES(cudaErrorInvalidValue, cudaLaunchKernel((void const*)shared_kernel, dim3(1), dim3(256), args, kMuch, nullptr));
  CUDA_OK(cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMuch));
  GIVES(cudaErrorInvalidValue,
        cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10));
  CUDA_OK(cudaLaunchKernel((void const*)shared_kernel, dim3(1), dim3(256), args, kMuch, nullptr));
  CHECK(out.host()[3] == 252);
  out.zero();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(128);
  config.dynamicSmemBytes = 1024;
  CUDA_OK(cudaLaunchKernelExC(&config, (void const*)shared_kernel, args));
  CUDA_OK(cudaLaunchKernelEx(&config, shared_kernel, out.ptr));
  CHECK(out.host()[3] == 124 && out.host()[128] == 0);
  int blocks;
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, shared_kernel, 256, 0));
  CHECK(blocks == 8);
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, shared_kernel, 256, kMuch));
  CHECK(blocks == 1);
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, shared_kernel, 256, 200 << 10));
  CHECK(blocks == 0);
}

static void test_streams() {
  cudaStream_t s;
  CUDA_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  unsigned flags;
  CUDA_OK(cudaStreamGetFlags(s, &flags));
  CHECK(flags == cudaStreamNonBlocking);
  cudaEvent_t start, stop, untimed;
  CUDA_OK(cudaEventCreate(&start));
  CUDA_OK(cudaEventCreate(&stop));
  CUDA_OK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
  float ms;
  CUDA_OK(cudaEventRecord(start, s));
  GIVES(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, start, stop));
  CUDA_OK(cudaEventRecord(untimed, s));
  CUDA_OK(cudaStreamWaitEvent(nullptr, untimed, 0));
  CUDA_OK(cudaEventRecord(stop, s));
  CUDA_OK(cudaEventSynchronize(stop));
  CUDA_OK(cudaEventQuery(stop));
  CUDA_OK(cudaStreamQuery(s));
  CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
  CHECK(ms >= 0);
  GIVES(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, start, untimed));
  for (cudaEvent_t e : {start, stop, untimed}) CUDA_OK(cudaEventDestroy(e));
  GIVES(cudaErrorInvalidResourceHandle, cudaEventRecord(start, s));
  CUDA_OK(cudaStreamDestroy(s));
  GIVES(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(s));
  DeviceBuffer<int> d(1);
  scale_kernel<<<1, 1, 0, s>>>(d.ptr, Scale{}, 1);
  GIVES(cudaErrorInvalidResourceHandle, cudaGetLastError());
}

struct Streams {
  cudaStream_t a, b;
  cudaEvent_t forked, joined;
  Streams() {
    CUDA_OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CUDA_OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CUDA_OK(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
    CUDA_OK(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
  }
  ~Streams() {
    for (cudaStream_t s : {a, b}) CUDA_OK(cudaStreamDestroy(s));
    for (cudaEvent_t e : {forked, joined}) CUDA_OK(cudaEventDestroy(e));
  }
};

static void test_graph() {
  Streams s;
  DeviceBuffer<int> list(16), copy(16);
  int calls = 0;
  cudaStreamCaptureStatus status;
  CUDA_OK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal));
  CUDA_OK(cudaMemsetAsync(list.ptr, 0, 64, s.a));
  for (int i = 1; i <= 3; ++i) append_kernel<<<1, 1, 0, s.a>>>(list.ptr, 10 * i);  // parameters are kept by value
  CUDA_OK(cudaEventRecord(s.forked, s.a));
  CUDA_OK(cudaStreamWaitEvent(s.b, s.forked, 0));
  CUDA_OK(cudaStreamIsCapturing(s.b, &status));
  CHECK(status == cudaStreamCaptureStatusActive);
  CUDA_OK(cudaMemcpyAsync(copy.ptr, list.ptr, 64, cudaMemcpyDeviceToDevice, s.b));
  CUDA_OK(cudaLaunchHostFunc(
      s.b, [](void* n) { ++*static_cast<int*>(n); }, &calls));
  CUDA_OK(cudaEventRecord(s.joined, s.b));
  CUDA_OK(cudaStreamWaitEvent(s.a, s.joined, 0));
  scale_kernel<<<1, 16, 0, s.a>>>(copy.ptr, Scale{3, {}}, 16);
  cudaGraph_t graph;
  CUDA_OK(cudaStreamEndCapture(s.a, &graph));
  CUDA_OK(cudaStreamIsCapturing(s.b, &status));
  CHECK(status == cudaStreamCaptureStatusNone && calls == 0);
  size_t nodes;
  CUDA_OK(cudaGraphGetNodes(graph, nullptr, &nodes));
  CHECK(nodes == 7);
  cudaGraphExec_t exec;
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  CUDA_OK(cudaGraphDestroy(graph));
  for (int round = 1; round <= 2; ++round) {
    CUDA_OK(cudaGraphLaunch(exec, s.a));
    CUDA_OK(cudaStreamSynchronize(s.a));
    auto v = copy.host();
    CHECK(calls == round && v[0] == 3 * 3 + 5 && v[1] == 35 && v[2] == 65 && v[3] == 95 && v[4] == 5);
    copy.zero();
  }

  // A graph inside another, and the update of what was instantiated.
  CUDA_OK(cudaStreamBeginCapture(s.b, cudaStreamCaptureModeGlobal));
  CUDA_OK(cudaGraphLaunch(exec, s.b));
  CUDA_OK(cudaStreamEndCapture(s.b, &graph));
  cudaGraphExec_t outer;
  CUDA_OK(cudaGraphInstantiateWithFlags(&outer, graph, 0));
  CUDA_OK(cudaGraphLaunch(outer, nullptr));
  CHECK(calls == 3);
  cudaGraphExecUpdateResultInfo info;
  GIVES(cudaErrorGraphExecUpdateFailure, cudaGraphExecUpdate(exec, graph, &info));
  CHECK(info.result == cudaGraphExecUpdateErrorTopologyChanged);
  CUDA_OK(cudaGraphExecUpdate(outer, graph, &info));
  CUDA_OK(cudaGraphDestroy(graph));
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphExecDestroy(outer));
}

// What must not happen between the beginning and the end of a capture, and how the capture ends after it.
template <class F>
static void ends_capture(cudaError_t why, cudaError_t end, F const& f) {
  Streams s;
  CUDA_OK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeGlobal));
  GIVES(why, f(s));
  cudaGraph_t graph;
  GIVES(end, cudaStreamEndCapture(s.a, &graph));
  CHECK(graph == nullptr);
}

static void test_forbidden() {
  DeviceBuffer<int> d(4);
  int host[4] = {};
  void* p;
  auto invalid = cudaErrorStreamCaptureInvalidated;
  ends_capture(cudaErrorStreamCaptureUnsupported, invalid, [&](Streams&) { return cudaMalloc(&p, 4); });
  ends_capture(cudaErrorStreamCaptureUnsupported, invalid, [&](Streams& s) { return cudaStreamSynchronize(s.a); });
  ends_capture(cudaErrorStreamCaptureUnsupported, invalid, [&](Streams&) { return cudaDeviceSynchronize(); });
  ends_capture(cudaErrorStreamCaptureUnsupported, invalid,
               [&](Streams&) { return cudaMemcpy(host, d.ptr, 16, cudaMemcpyDeviceToHost); });
  ends_capture(cudaErrorNotSupported, invalid, [&](Streams& s) { return cudaMallocAsync(&p, 4, s.a); });
  ends_capture(cudaErrorCapturedEvent, invalid, [&](Streams& s) {
    CUDA_OK(cudaEventRecord(s.forked, s.a));
    return cudaEventSynchronize(s.forked);
  });
  ends_capture(cudaErrorStreamCaptureIsolation, invalid, [&](Streams& s) {
    CUDA_OK(cudaEventRecord(s.forked, s.b));
    return cudaStreamWaitEvent(s.a, s.forked, 0);
  });
  ends_capture(cudaErrorStreamCaptureUnmatched, invalid, [&](Streams& s) {
    CUDA_OK(cudaEventRecord(s.forked, s.a));
    CUDA_OK(cudaStreamWaitEvent(s.b, s.forked, 0));
    cudaGraph_t graph;
    return cudaStreamEndCapture(s.b, &graph);
  });
  ends_capture(cudaSuccess, cudaErrorStreamCaptureUnjoined, [&](Streams& s) {
    CUDA_OK(cudaEventRecord(s.forked, s.a));
    CUDA_OK(cudaStreamWaitEvent(s.b, s.forked, 0));
    return cudaMemsetAsync(d.ptr, 0, 16, s.b);
  });
}

static void test_modes() {
  cudaGraph_t graph;
  cudaStream_t blocking;
  CUDA_OK(cudaStreamCreate(&blocking));
  CUDA_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  DeviceBuffer<int> d(1);  // a relaxed capture lets its thread allocate
  GIVES(cudaErrorStreamCaptureImplicit, cudaMemsetAsync(d.ptr, 0, 4, nullptr));
  GIVES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &graph));
  GIVES(cudaErrorIllegalState, cudaStreamEndCapture(blocking, &graph));
  CUDA_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  GIVES(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(blocking));
  GIVES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &graph));
  GIVES(cudaErrorStreamCaptureUnsupported, cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal));

  // Other threads are bound by global captures alone.
  auto elsewhere = [](auto call) {
    cudaError_t e;
    std::thread([&] { e = call(); }).join();
    return e;
  };
  CUDA_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeThreadLocal));
  CUDA_OK(elsewhere([] { return cudaDeviceSynchronize(); }));
  auto mode = cudaStreamCaptureModeRelaxed;
  CUDA_OK(cudaThreadExchangeStreamCaptureMode(&mode));
  CUDA_OK(cudaDeviceSynchronize());
  CUDA_OK(cudaThreadExchangeStreamCaptureMode(&mode));
  CUDA_OK(cudaStreamEndCapture(blocking, &graph));
  CUDA_OK(cudaGraphDestroy(graph));
  CUDA_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeGlobal));
  GIVES(cudaErrorStreamCaptureUnsupported, elsewhere([] { return cudaDeviceSynchronize(); }));
  GIVES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &graph));
  CUDA_OK(cudaStreamDestroy(blocking));
}

int main() {
  test_memory();
  test_device();
  test_functions();
  test_streams();
  test_graph();
  test_forbidden();
  test_modes();
  return finish("runtime");
}
