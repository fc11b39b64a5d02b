// ptxrun: executes PTX (as emitted by nvcc) on the CPU. Public interface.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptxrun {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

struct Launch {
  Dim3 grid, block;
  size_t dynamic_smem = 0;
  bool cooperative = false;  // all blocks make progress together (grid-wide barriers)
};

enum class FaultKind {
  OutOfBounds,
  Misaligned,
  Uninitialised,
  Race,
  Deadlock,
  Trap,
  Assert,
  Unsupported,
  Launch,
  Async
};

// A kernel did something wrong; what() names kernel, PTX line, source line, block and thread.
struct Fault : std::runtime_error {
  FaultKind kind;
  Fault(FaultKind k, std::string const& what) : std::runtime_error(what), kind(k) {}
};

// The PTX text cannot be read, or uses something that is not implemented.
struct ParseError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Run-time options. Defaults come from the environment (see README), and can be changed in code.
struct Options {
  bool check_init = false;      // PTXRUN_CHECK=init: reads of never written global/shared memory are faults
  bool init_warn_only = false;  // PTXRUN_CHECK=initwarn: the same, but report on stderr and go on
  bool check_race = false;      // PTXRUN_CHECK=race: unsynchronised shared accesses by different warps are faults
  bool check_async =
      false;        // PTXRUN_CHECK=async: shared accesses to the destination of an unfinished cp.async are faults
  int threads = 1;  // PTXRUN_THREADS: worker threads for the blocks of one launch
  std::string stats_file;    // PTXRUN_STATS: JSON lines, one object per launch ("-": stderr)
  std::string profile_file;  // PTXRUN_PROFILE: hottest lines of each launch (*.json: JSON lines; "-": stderr)
  int arch = 0;              // PTXRUN_ARCH: compute capability to report (80, 86, 89, 90); 0: from the program
  uint64_t max_insts = 0;    // PTXRUN_MAX_INSTS: warp instructions per launch before it counts as hung; 0: no limit
  static Options& get();
};

// Device memory is host memory that has been registered. Every global access is checked against it.
class Memory {
 public:
  static void* alloc(size_t bytes);                                 // 256-byte aligned, filled with 0xFF bytes
  static bool free(void* p);                                        // false: not an allocation of alloc()
  static void add(void* p, size_t bytes, bool initialised = true);  // register memory owned by the caller
  static bool remove(void* p);
  static void mark_initialised(void const* p, size_t bytes);  // after a host write (init check)
  static bool contains(void const* p, size_t bytes = 1);
};

struct KernelInfo {
  std::string name;
  size_t static_smem = 0, local_bytes = 0, param_bytes = 0;
  int max_threads = 1024, registers = 0, ptx_arch = 0;
  std::vector<size_t> param_offset, param_size;
};

class ModuleImpl;
struct Program;

class Kernel {
 public:
  KernelInfo const& info() const;
  // args: one pointer per kernel parameter to its value, as for cudaLaunchKernel.
  void launch(Launch const& l, void* const* args) const;
  // The same from raw argument bytes.
  void launch(Launch const& l, std::vector<std::vector<uint8_t>> const& args) const;
  explicit operator bool() const { return prog_ != nullptr; }

  Kernel() = default;
  Kernel(std::shared_ptr<ModuleImpl> m, Program* p) : mod_(std::move(m)), prog_(p) {}

 private:
  std::shared_ptr<ModuleImpl> mod_;
  Program* prog_ = nullptr;
};

class Module {
 public:
  static Module load(std::string ptx_text);
  Kernel kernel(std::string_view name) const;  // exact mangled name, or a substring of the demangled name
  std::vector<std::string> kernel_names() const;
  // Address and size of a __device__ / __constant__ variable; nullptr when there is none.
  void* variable(std::string_view name, size_t* bytes = nullptr) const;
  int arch() const;

 private:
  std::shared_ptr<ModuleImpl> impl_;
};

}  // namespace ptxrun
