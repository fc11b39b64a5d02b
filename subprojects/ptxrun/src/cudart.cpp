// The subset of the CUDA runtime that compiled CUDA programs use, on top of the executor.
// Everything is synchronous: a launch has finished when it returns. As on a device, a fault inside a
// kernel shows as an error of the following calls; its text goes to stderr at once.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "fatbin.hpp"
#include "ptxrun.hpp"
#include "streams.hpp"

using namespace ptxrun;

namespace {

struct FatBinary {
  void const* data = nullptr;
  bool loaded = false, has_cubin = false;
  Module module;
  int arch = 0;
};

struct FunctionEntry {
  FatBinary* bin = nullptr;
  std::string name;
  Kernel kernel;
  bool ready = false;
  int max_dynamic_smem = 48 * 1024;
};

struct VarEntry {
  FatBinary* bin = nullptr;
  std::string name;
  size_t bytes = 0;
};

struct LaunchConfig {
  dim3 grid, block;
  size_t smem;
  cudaStream_t stream;
};

struct Region {
  size_t bytes;
  cudaMemoryType type;
  bool registered = false;  // allocated by the program itself
};

struct State {
  std::recursive_mutex mutex;
  std::unordered_map<void const*, FunctionEntry> functions;
  std::unordered_map<void const*, VarEntry> vars;
  std::vector<FatBinary*> binaries;
  std::map<char const*, Region> regions;  // what was allocated, by its address
  size_t device_bytes = 0;                // allocated on the device, managed memory included
};
State& state() {
  static State* s = new State;  // used by destructors of static objects
  return *s;
}

thread_local cudaError_t g_last = cudaSuccess;
thread_local std::vector<LaunchConfig> g_configs;
cudaError_t g_sticky = cudaSuccess;

constexpr size_t kDeviceBytes = size_t(16) << 30;

int device_arch() {
  int a = Options::get().arch;
  if (a) return a;
  State& s = state();
  std::lock_guard lock(s.mutex);
  for (FatBinary* b : s.binaries) a = std::max(a, b->arch);
  return a ? a : 80;
}

// Parses the PTX of a binary: that of the highest architecture that the device supports.
void load(FatBinary& b) {
  if (b.loaded) return;
  b.loaded = true;
  if (b.arch)
    b.module = Module::load(fatbin_ptx(b.data, b.arch));
  else if (b.has_cubin)
    std::fprintf(stderr,
                 "ptxrun: the program holds machine code but no PTX; compile it with -gencode "
                 "arch=compute_80,code=compute_80\n");
}

FunctionEntry* find_function(void const* f) {
  State& s = state();
  auto it = s.functions.find(f);
  if (it == s.functions.end()) return nullptr;
  FunctionEntry& e = it->second;
  if (!e.ready) {
    e.ready = true;
    try {
      load(*e.bin);
      if (e.bin->arch) e.kernel = e.bin->module.kernel(e.name);
    } catch (std::exception const& x) {
      std::fprintf(stderr, "ptxrun: %s\n", x.what());
    }
  }
  return e.kernel ? &e : nullptr;
}

cudaError_t error_of(FaultKind k) {
  switch (k) {
    case FaultKind::Misaligned: return cudaErrorMisalignedAddress;
    case FaultKind::Assert: return cudaErrorAssert;
    case FaultKind::Trap: return cudaErrorLaunchFailure;
    case FaultKind::Deadlock: return cudaErrorLaunchTimeout;
    case FaultKind::Launch: return cudaErrorInvalidConfiguration;
    case FaultKind::Unsupported: return cudaErrorNotSupported;
    default: return cudaErrorIllegalAddress;
  }
}

// `args` as Kernel::launch takes them: pointers, or the bytes that a graph keeps.
template <class Args>
cudaError_t run_kernel(Kernel const& kernel, Launch const& l, Args const& args) {
  if (g_sticky != cudaSuccess) return done(g_sticky);
  try {
    kernel.launch(l, args);
  } catch (Fault const& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s\n", e.what());
    if (e.kind == FaultKind::Launch) return done(cudaErrorInvalidConfiguration);  // not sticky
    g_sticky = error_of(e.kind);
    if (std::getenv("PTXRUN_ABORT")) std::abort();
    return cudaSuccess;  // reported by the next call
  } catch (std::exception const& e) {
    std::fprintf(stderr, "ptxrun: %s\n", e.what());
    return done(cudaErrorNotSupported);
  }
  return cudaSuccess;
}

cudaError_t launch(void const* func, dim3 grid, dim3 block, void** args, size_t smem, cudaStream_t stream,
                   bool cooperative = false) {
  if (g_sticky != cudaSuccess) return done(g_sticky);
  FunctionEntry* f;
  {
    std::lock_guard lock(state().mutex);
    f = find_function(func);
  }
  if (!f) return done(cudaErrorInvalidDeviceFunction);
  KernelInfo const& info = f->kernel.info();
  if (smem + info.static_smem > 48 * 1024 && smem > size_t(f->max_dynamic_smem)) return done(cudaErrorInvalidValue);
  Launch l{{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, smem, cooperative};
  auto now = [&] { return run_kernel(f->kernel, l, static_cast<void* const*>(args)); };
  return submit(stream, now, [&]() -> Work {
    std::vector<std::vector<uint8_t>> values;
    for (size_t i = 0; i < info.param_size.size(); ++i) {
      auto* value = static_cast<uint8_t const*>(args[i]);
      values.emplace_back(value, value + info.param_size[i]);
    }
    return [l, kernel = f->kernel, values = std::move(values)] { return run_kernel(kernel, l, values); };
  });
}

// For what does not wait for a stream.
template <class F>
cudaError_t at_once(F const& work) {
  if (cudaError_t e = forbidden_in_capture(); e != cudaSuccess) return e;
  return work();
}

// Device addresses are host addresses, so every copy is a memcpy after a bounds check of the device side.
cudaError_t copy(void* dst, void const* src, size_t n, cudaMemcpyKind kind) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return done(cudaErrorInvalidMemcpyDirection);
  if (n == 0) return done(cudaSuccess);
  bool guess = kind == cudaMemcpyDefault;
  bool check_dst =
      kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice || (guess && Memory::contains(dst));
  bool check_src =
      kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice || (guess && Memory::contains(src));
  if ((check_dst && !Memory::contains(dst, n)) || (check_src && !Memory::contains(src, n))) {
    std::fprintf(stderr, "ptxrun: cudaMemcpy of %zu bytes is outside of the device allocation\n", n);
    return done(cudaErrorInvalidValue);
  }
  if (g_sticky != cudaSuccess) return done(g_sticky);
  std::memmove(dst, src, n);
  Memory::mark_initialised(dst, n);
  return done(cudaSuccess);
}

cudaError_t symbol_address(void const* symbol, char** p, size_t* bytes) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  auto it = s.vars.find(symbol);
  if (it == s.vars.end()) return done(cudaErrorInvalidSymbol);
  load(*it->second.bin);
  if (!it->second.bin->arch) return done(cudaErrorInvalidSymbol);
  *p = static_cast<char*>(it->second.bin->module.variable(it->second.name, bytes));
  return *p ? cudaSuccess : done(cudaErrorInvalidSymbol);
}

int attribute(cudaDeviceAttr a) {
  int arch = device_arch();
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 * 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (arch >= 90 ? 227 : arch == 80 ? 163 : 99) * 1024;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (arch >= 90 ? 228 : arch == 80 ? 164 : 100) * 1024;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrTotalConstantMemory: return 64 * 1024;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1410000;
    case cudaDevAttrMemoryClockRate: return 1215000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrL2CacheSize: return 40 << 20;
    case cudaDevAttrMultiProcessorCount: return 108;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return arch / 10;
    case cudaDevAttrComputeCapabilityMinor: return arch % 10;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported: return 1;
    default: return 0;
  }
}

bool on_device(cudaMemoryType type) { return type == cudaMemoryTypeDevice || type == cudaMemoryTypeManaged; }

cudaError_t allocate(void** p, size_t n, cudaMemoryType type) {
  if (!p) return done(cudaErrorInvalidValue);
  *p = nullptr;
  if (n == 0) return done(cudaSuccess);
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (n > kDeviceBytes - (on_device(type) ? s.device_bytes : 0)) return done(cudaErrorMemoryAllocation);
  *p = Memory::alloc(n);
  if (!*p) return done(cudaErrorMemoryAllocation);
  if (type != cudaMemoryTypeDevice) Memory::mark_initialised(*p, n);  // the host may write at any time
  if (on_device(type)) s.device_bytes += n;
  s.regions[static_cast<char*>(*p)] = {n, type};
  return done(cudaSuccess);
}
cudaError_t release(void* p, bool of_device) {
  if (!p) return done(cudaSuccess);
  State& s = state();
  std::lock_guard lock(s.mutex);
  auto it = s.regions.find(static_cast<char*>(p));
  if (it == s.regions.end() || it->second.registered || on_device(it->second.type) != of_device)
    return done(cudaErrorInvalidValue);
  if (of_device) s.device_bytes -= it->second.bytes;
  s.regions.erase(it);
  Memory::free(p);
  return done(cudaSuccess);
}
// Graphs that allocate or free memory are not supported.
std::function<Work()> const no_graph;
cudaError_t allocate_async(void** p, size_t n, cudaStream_t stream) {
  return submit(
      stream, [=] { return allocate(p, n, cudaMemoryTypeDevice); }, no_graph);
}
// What holds all `n` bytes at `p`; null where that is no single allocation.
Region const* region_of(void const* p, size_t n = 1) {
  auto* at = static_cast<char const*>(p);
  auto& regions = state().regions;
  auto it = regions.upper_bound(at);
  if (it == regions.begin()) return nullptr;
  --it;
  return at + n <= it->first + it->second.bytes ? &it->second : nullptr;
}
// For advice and prefetching, which managed memory alone takes.
cudaError_t check_managed(void const* p, size_t n, cudaMemLocation const& where) {
  std::lock_guard lock(state().mutex);
  Region const* region = region_of(p, n);
  if (!region || region->type != cudaMemoryTypeManaged) return done(cudaErrorInvalidValue);
  if (where.type == cudaMemLocationTypeDevice && where.id != 0) return done(cudaErrorInvalidDevice);
  return done(cudaSuccess);
}
cudaError_t fill(void* p, int v, size_t n) {
  if (n == 0) return done(cudaSuccess);
  if (!Memory::contains(p, n)) {
    std::fprintf(stderr, "ptxrun: cudaMemset of %zu bytes is outside of the device allocation\n", n);
    return done(cudaErrorInvalidValue);
  }
  std::memset(p, v, n);
  Memory::mark_initialised(p, n);
  return done(cudaSuccess);
}
cudaError_t copy_rows(void* d, size_t dp, void const* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  if (w > dp || w > sp) return done(cudaErrorInvalidPitchValue);
  for (size_t y = 0; y < h; ++y)
    if (cudaError_t e = copy(static_cast<char*>(d) + y * dp, static_cast<char const*>(s) + y * sp, w, k);
        e != cudaSuccess)
      return e;
  return done(cudaSuccess);
}
cudaError_t fill_rows(void* p, size_t pitch, int v, size_t w, size_t h) {
  for (size_t y = 0; y < h; ++y)
    if (cudaError_t e = fill(static_cast<char*>(p) + y * pitch, v, w); e != cudaSuccess) return e;
  return done(cudaSuccess);
}
// The address of `n` bytes at `off` in the symbol.
cudaError_t symbol_part(void const* symbol, size_t n, size_t off, char** p) {
  size_t bytes;
  if (cudaError_t e = symbol_address(symbol, p, &bytes); e != cudaSuccess) return e;
  *p += off;
  return off > bytes || n > bytes - off ? done(cudaErrorInvalidValue) : cudaSuccess;
}

}  // namespace

cudaError_t ptxrun::done(cudaError_t e) {
  if (e == cudaSuccess) e = g_sticky;
  if (e != cudaSuccess && e != cudaErrorNotReady) g_last = e;
  return e;
}

extern "C" {

// --- registration (called by code that nvcc generates) ------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    void const* data;
    void* unused;
  };
  auto* b = new FatBinary;
  b->data = static_cast<Wrapper*>(wrapper)->data;
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.binaries.push_back(b);
  // The architecture decides the answer of cudaGetDeviceProperties, so it is needed early.
  try {
    int limit = Options::get().arch ? Options::get().arch : 1 << 20;
    b->arch = fatbin_arch(b->data, limit, &b->has_cubin);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "%s\n", e.what());
  }
  return reinterpret_cast<void**>(b);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** bin, char const* host, char*, char const* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  FunctionEntry& f = s.functions[host];
  f.bin = reinterpret_cast<FatBinary*>(bin);
  f.name = name;
}
void __cudaRegisterVar(void** bin, char* host, char*, char const* name, int, size_t bytes, int, int) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.vars[host] = {reinterpret_cast<FatBinary*>(bin), name, bytes};
}
void __cudaRegisterManagedVar(void** bin, void** host, char*, char const* name, int, size_t bytes, int, int) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  auto* b = reinterpret_cast<FatBinary*>(bin);
  load(*b);
  if (b->arch) *host = b->module.variable(name);
  s.vars[host] = {b, name, bytes};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, CUstream_st* stream) {
  g_configs.push_back({grid, block, smem, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* smem, void* stream) {
  if (g_configs.empty()) return cudaErrorMissingConfiguration;
  LaunchConfig c = g_configs.back();
  g_configs.pop_back();
  *grid = c.grid;
  *block = c.block;
  *smem = c.smem;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* k, void const* f) {
  *k = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void** args, size_t smem, cudaStream_t s) {
  return launch(reinterpret_cast<void const*>(k), grid, block, args, smem, s);
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t k, dim3 grid, dim3 block, void** args, size_t smem, cudaStream_t s) {
  return launch(reinterpret_cast<void const*>(k), grid, block, args, smem, s);
}

// --- launches -----------------------------------------------------------------------------------

cudaError_t cudaLaunchKernel(void const* f, dim3 grid, dim3 block, void** args, size_t smem, cudaStream_t s) {
  return launch(f, grid, block, args, smem, s);
}
cudaError_t cudaLaunchCooperativeKernel(void const* f, dim3 grid, dim3 block, void** args, size_t smem,
                                        cudaStream_t s) {
  return launch(f, grid, block, args, smem, s, true);
}
cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* c, void const* f, void** args) {
  bool coop = false;
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id == cudaLaunchAttributeCooperative) coop |= c->attrs[i].val.cooperative != 0;
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      auto d = c->attrs[i].val.clusterDim;
      if (d.x * d.y * d.z > 1) {
        std::fprintf(stderr, "ptxrun: thread block clusters are not supported\n");
        return done(cudaErrorNotSupported);
      }
    }
  }
  return launch(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream, coop);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, void const* f) {
  std::lock_guard lock(state().mutex);
  FunctionEntry* e = find_function(f);
  if (!e) return done(cudaErrorInvalidDeviceFunction);
  KernelInfo const& i = e->kernel.info();
  *a = {};
  a->sharedSizeBytes = i.static_smem;
  a->localSizeBytes = i.local_bytes;
  a->maxThreadsPerBlock = i.max_threads;
  a->numRegs = std::min(255, std::max(8, i.registers));
  a->ptxVersion = i.ptx_arch;
  a->binaryVersion = i.ptx_arch;
  a->maxDynamicSharedSizeBytes = e->max_dynamic_smem;
  a->preferredShmemCarveout = -1;
  return done(cudaSuccess);
}
cudaError_t cudaFuncSetAttribute(void const* f, cudaFuncAttribute attr, int value) {
  std::lock_guard lock(state().mutex);
  FunctionEntry* e = find_function(f);
  if (!e) return done(cudaErrorInvalidDeviceFunction);
  if (attr == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 ||
        size_t(value) + e->kernel.info().static_smem > size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)))
      return done(cudaErrorInvalidValue);
    e->max_dynamic_smem = value;
  }
  return done(cudaSuccess);
}
cudaError_t cudaFuncSetCacheConfig(void const*, cudaFuncCache) { return done(cudaSuccess); }
cudaError_t cudaFuncGetName(char const** name, void const* f) {
  std::lock_guard lock(state().mutex);
  FunctionEntry* e = find_function(f);
  if (!e) return done(cudaErrorInvalidDeviceFunction);
  *name = e->name.c_str();
  return done(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void const* f, int threads, size_t smem) {
  std::lock_guard lock(state().mutex);
  FunctionEntry* e = find_function(f);
  if (!e) return done(cudaErrorInvalidDeviceFunction);
  if (threads <= 0) return done(cudaErrorInvalidValue);
  // Of the registers of the machine code nothing is known.
  size_t shared = smem + e->kernel.info().static_smem + size_t(attribute(cudaDevAttrReservedSharedMemoryPerBlock));
  int by_smem = int(size_t(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)) / shared);
  int by_threads = threads > e->kernel.info().max_threads ? 0 : 2048 / ((threads + 31) / 32 * 32);
  *n = std::min({attribute(cudaDevAttrMaxBlocksPerMultiprocessor), by_threads, by_smem});
  return done(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void const* f, int threads, size_t smem,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, threads, smem);
}
cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t* n, void const*, int, int) {
  *n = 48 * 1024;
  return done(cudaSuccess);
}

// --- memory -------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** p, size_t n) {
  return at_once([=] { return allocate(p, n, cudaMemoryTypeDevice); });
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) { return allocate_async(p, n, s); }
cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t, cudaStream_t s) {
  return allocate_async(p, n, s);
}
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) {
  return at_once([=] { return allocate(p, n, cudaMemoryTypeManaged); });
}
cudaError_t cudaMallocHost(void** p, size_t n) {
  return at_once([=] { return allocate(p, n, cudaMemoryTypeHost); });
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaMallocPitch(void** p, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return cudaMalloc(p, *pitch * height);
}
cudaError_t cudaFree(void* p) {
  return at_once([=] { return release(p, true); });
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) {
  return submit(
      s, [=] { return release(p, true); }, no_graph);
}
cudaError_t cudaFreeHost(void* p) {
  return at_once([=] { return release(p, false); });
}
cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  std::lock_guard lock(state().mutex);
  if (!p || n == 0) return done(cudaErrorInvalidValue);
  if (!state().regions.insert({static_cast<char*>(p), {n, cudaMemoryTypeHost, true}}).second)
    return done(cudaErrorHostMemoryAlreadyRegistered);
  Memory::add(p, n);
  return done(cudaSuccess);
}
cudaError_t cudaHostUnregister(void* p) {
  std::lock_guard lock(state().mutex);
  auto it = state().regions.find(static_cast<char*>(p));
  if (it == state().regions.end() || !it->second.registered) return done(cudaErrorHostMemoryNotRegistered);
  Memory::remove(p);
  state().regions.erase(it);
  return done(cudaSuccess);
}
cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned) {
  *d = h;
  return done(cudaSuccess);
}
cudaError_t cudaHostGetFlags(unsigned* f, void*) {
  *f = 0;
  return done(cudaSuccess);
}
cudaError_t cudaMemcpy(void* d, void const* s, size_t n, cudaMemcpyKind k) {
  return at_once([=] { return copy(d, s, n, k); });
}
cudaError_t cudaMemcpyAsync(void* d, void const* s, size_t n, cudaMemcpyKind k, cudaStream_t stream) {
  return submit(stream, [=] { return copy(d, s, n, k); });
}
cudaError_t cudaMemcpyPeer(void* d, int, void const* s, int, size_t n) {
  return cudaMemcpy(d, s, n, cudaMemcpyDeviceToDevice);
}
cudaError_t cudaMemcpyPeerAsync(void* d, int, void const* s, int, size_t n, cudaStream_t stream) {
  return cudaMemcpyAsync(d, s, n, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemcpy2D(void* d, size_t dp, void const* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  return at_once([=] { return copy_rows(d, dp, s, sp, w, h, k); });
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, void const* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k,
                              cudaStream_t stream) {
  return submit(stream, [=] { return copy_rows(d, dp, s, sp, w, h, k); });
}
cudaError_t cudaMemset(void* p, int v, size_t n) {
  return at_once([=] { return fill(p, v, n); });
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t stream) {
  return submit(stream, [=] { return fill(p, v, n); });
}
cudaError_t cudaMemset2D(void* p, size_t pitch, int v, size_t w, size_t h) {
  return at_once([=] { return fill_rows(p, pitch, v, w, h); });
}
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h, cudaStream_t stream) {
  return submit(stream, [=] { return fill_rows(p, pitch, v, w, h); });
}
cudaError_t cudaMemcpyToSymbol(void const* symbol, void const* s, size_t n, size_t off, cudaMemcpyKind) {
  char* p;
  if (cudaError_t e = symbol_part(symbol, n, off, &p); e != cudaSuccess) return e;
  return cudaMemcpy(p, s, n, cudaMemcpyDefault);
}
cudaError_t cudaMemcpyToSymbolAsync(void const* symbol, void const* s, size_t n, size_t off, cudaMemcpyKind,
                                    cudaStream_t stream) {
  char* p;
  if (cudaError_t e = symbol_part(symbol, n, off, &p); e != cudaSuccess) return e;
  return cudaMemcpyAsync(p, s, n, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemcpyFromSymbol(void* d, void const* symbol, size_t n, size_t off, cudaMemcpyKind) {
  char* p;
  if (cudaError_t e = symbol_part(symbol, n, off, &p); e != cudaSuccess) return e;
  return cudaMemcpy(d, p, n, cudaMemcpyDefault);
}
cudaError_t cudaMemcpyFromSymbolAsync(void* d, void const* symbol, size_t n, size_t off, cudaMemcpyKind,
                                      cudaStream_t stream) {
  char* p;
  if (cudaError_t e = symbol_part(symbol, n, off, &p); e != cudaSuccess) return e;
  return cudaMemcpyAsync(d, p, n, cudaMemcpyDefault, stream);
}
cudaError_t cudaGetSymbolAddress(void** p, void const* symbol) {
  size_t bytes;
  cudaError_t e = symbol_address(symbol, reinterpret_cast<char**>(p), &bytes);
  return e;
}
cudaError_t cudaGetSymbolSize(size_t* n, void const* symbol) {
  char* p;
  return symbol_address(symbol, &p, n);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  std::lock_guard lock(state().mutex);
  *total = kDeviceBytes;
  *free_bytes = kDeviceBytes - state().device_bytes;
  return done(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, void const* p) {
  std::lock_guard lock(state().mutex);
  *a = {};
  if (Region const* region = region_of(p))
    a->type = region->type;
  else  // variables of the program are in no region
    a->type = Memory::contains(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  bool known = a->type != cudaMemoryTypeUnregistered;
  a->device = known ? 0 : cudaInvalidDeviceId;
  a->devicePointer = known ? const_cast<void*>(p) : nullptr;
  a->hostPointer = a->type == cudaMemoryTypeDevice ? nullptr : const_cast<void*>(p);
  return done(cudaSuccess);
}
cudaError_t cudaMemAdvise(void const* p, size_t n, cudaMemoryAdvise, cudaMemLocation where) {
  return check_managed(p, n, where);
}
cudaError_t cudaMemPrefetchAsync(void const* p, size_t n, cudaMemLocation where, unsigned, cudaStream_t s) {
  return submit(s, [=] { return check_managed(p, n, where); });
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) {
  *p = nullptr;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* p, int) {
  *p = nullptr;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t) { return done(cudaSuccess); }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* p, cudaMemPoolProps const*) {
  *p = nullptr;
  return done(cudaSuccess);
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return done(cudaSuccess); }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return done(cudaSuccess); }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* v) {
  bool flag = attribute == cudaMemPoolReuseFollowEventDependencies || attribute == cudaMemPoolReuseAllowOpportunistic ||
              attribute == cudaMemPoolReuseAllowInternalDependencies;
  std::memset(v, 0, flag ? sizeof(int) : sizeof(uint64_t));
  return done(cudaSuccess);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return done(cudaSuccess); }

// --- device -------------------------------------------------------------------------------------

cudaError_t cudaDeviceSynchronize(void) {
  std::fflush(stdout);
  return at_once([] { return done(cudaSuccess); });
}
cudaError_t cudaDeviceReset(void) {
  g_sticky = g_last = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return done(cudaSuccess);
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return done(cudaSuccess);
}
cudaError_t cudaSetDevice(int d) { return done(d == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return cudaSetDevice(d); }
cudaError_t cudaSetDeviceFlags(unsigned) { return done(cudaSuccess); }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d != 0) return done(cudaErrorInvalidDevice);
  *v = attribute(a);
  return done(cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d != 0) return done(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "ptxrun CPU executor");
  p->totalGlobalMem = kDeviceBytes;
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  p->sharedMemPerMultiprocessor = size_t(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = device_arch() / 10;
  p->minor = device_arch() % 10;
  p->multiProcessorCount = 108;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->memoryBusWidth = 5120;
  p->l2CacheSize = 40 << 20;
  p->unifiedAddressing = p->managedMemory = p->concurrentManagedAccess = p->canMapHostMemory = 1;
  p->concurrentKernels = p->cooperativeLaunch = p->memoryPoolsSupported = 1;
  return done(cudaSuccess);
}
cudaError_t cudaChooseDevice(int* d, cudaDeviceProp const*) {
  *d = 0;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit) {
  *v = 8 << 20;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return done(cudaSuccess); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* lo, int* hi) {
  *lo = *hi = 0;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return done(cudaSuccess); }
cudaError_t cudaDeviceCanAccessPeer(int* v, int, int) {
  *v = 0;
  return done(cudaSuccess);
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return done(cudaErrorNotSupported); }
cudaError_t cudaDeviceGetPCIBusId(char* id, int n, int) {
  std::snprintf(id, size_t(n), "0000:00:00.0");
  return done(cudaSuccess);
}
cudaError_t cudaCtxResetPersistingL2Cache(void) { return done(cudaSuccess); }
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return done(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return done(cudaSuccess);
}
cudaError_t cudaProfilerStart(void) { return done(cudaSuccess); }
cudaError_t cudaProfilerStop(void) { return done(cudaSuccess); }

// --- errors -------------------------------------------------------------------------------------

cudaError_t cudaGetLastError(void) {
  cudaError_t e = g_last != cudaSuccess ? g_last : g_sticky;
  g_last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError(void) { return g_last != cudaSuccess ? g_last : g_sticky; }

struct ErrorText {
  cudaError_t error;
  char const *name, *text;
};
static constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidPitchValue, "cudaErrorInvalidPitchValue", "invalid pitch argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorMissingConfiguration, "cudaErrorMissingConfiguration", "__global__ function call is not configured"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorGraphExecUpdateFailure, "cudaErrorGraphExecUpdateFailure",
     "the graph update was not performed because it included changes which violated constraints specific to "
     "instantiated graph update"},
};
static ErrorText error_text(cudaError_t e) {
  auto* at = std::find_if(std::begin(kErrors), std::end(kErrors), [=](ErrorText const& t) { return t.error == e; });
  return at == std::end(kErrors) ? ErrorText{e, "cudaErrorUnknown", "unknown error"} : *at;
}
char const* cudaGetErrorString(cudaError_t e) { return error_text(e).text; }
char const* cudaGetErrorName(cudaError_t e) { return error_text(e).name; }

}  // extern "C"
