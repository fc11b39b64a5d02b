// Internal data structures shared by the parser, the decoder and the executor.
#pragma once
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ptxrun.hpp"

namespace ptxrun {

// ---------------------------------------------------------------------------------------------
// Types

enum class Ty : uint8_t {
  None,
  Pred,
  B8,
  B16,
  B32,
  B64,
  B128,
  U8,
  U16,
  U32,
  U64,
  S8,
  S16,
  S32,
  S64,
  F16,
  F16x2,
  BF16,
  BF16x2,
  TF32,
  F32,
  F64,
  E4M3x2,
  E5M2x2,
  S16x2,
  U16x2
};
Ty parse_type(std::string_view s);  // "u32" -> U32; Ty::None when it is not a type
int type_bytes(Ty t);
inline bool is_signed(Ty t) { return (t >= Ty::S8 && t <= Ty::S64) || t == Ty::S16x2; }
inline bool is_float(Ty t) { return t >= Ty::F16 && t <= Ty::F64; }

enum class Space : uint8_t { Generic, Global, Shared, Local, Param, Const };

// Generic addresses: global memory is its host address; shared and local have windows of their own,
// in a range that is never a host address.
constexpr uint64_t kSharedWindow = 1ull << 60, kLocalWindow = 2ull << 60;
constexpr int kLanes = 32;

// ---------------------------------------------------------------------------------------------
// Parsed text

struct Sym;

struct Operand {
  enum Kind : uint8_t { None, Reg, Imm, Sym_, Addr, Vec, Sink, Label } kind = None;
  bool neg = false;       // "!p"
  bool is_float = false;  // immediate was written 0f / 0d
  uint8_t float_bytes = 0;
  int reg = -1;      // Reg, and the base register of Addr (-1: none)
  uint64_t imm = 0;  // Imm; offset of Sym_ / Addr
  Sym const* sym = nullptr;
  std::string_view name;       // label or function name
  std::vector<Operand> elems;  // Vec: elements; Reg: the second destination "d|p"; Addr: extra coordinates
};

struct Statement {
  std::string_view op;                 // full opcode with modifiers
  std::vector<std::string_view> mods;  // split at '.', mods[0] is the base opcode
  std::vector<Operand> args;
  int pred = -1;
  bool pred_neg = false;
  uint32_t line = 0, src = 0;             // PTX line; source location id
  uint32_t scope = 0;                     // of labels: see Function::scope_parent
  std::vector<std::string_view> targets;  // brx.idx
};

struct Sym {  // a named variable
  std::string_view name;
  Space space = Space::Global;
  size_t bytes = 0, align = 1;
  uint64_t addr = 0;  // host address (global/const), offset (shared/local/param)
  bool is_extern = false;
};

struct VReg {
  Ty type;
  std::string_view name;
};

struct Function {
  std::string_view name, body;
  uint32_t body_line = 0;
  bool entry = false, defined = false;
  std::vector<Sym> params, rets;
  int max_threads = 0;
  bool has_reqntid = false;

  // Filled when the body is parsed.
  bool parsed = false;
  std::vector<VReg> regs;
  std::deque<Sym> locals;
  std::vector<Statement> code;
  // Labels belong to the block "{ }" they are in; inlined assembly may repeat a name in several blocks.
  std::map<std::pair<std::string_view, uint32_t>, uint32_t> labels;  // (name, scope) -> statement
  std::vector<uint32_t> scope_parent;
  std::unordered_map<std::string_view, std::vector<std::string_view>> target_lists;
};

struct SourceLoc {
  uint16_t file;
  uint32_t line, column, parent;  // parent: the call that was inlined (id of another one; 0: none)
};

class ModuleImpl : public std::enable_shared_from_this<ModuleImpl> {
 public:
  explicit ModuleImpl(std::string text);
  ~ModuleImpl();
  void parse_body(Function& f);
  Program* program(std::string const& name);  // decoded and linked, on first use
  std::string source_of(uint32_t src) const;  // "file:line", with the place of the inlined call
  std::string user_line(uint32_t src) const;  // innermost "file:line" that is not in a header of the toolkit

  std::string text;
  int arch = 0;
  std::map<std::string_view, Function> functions;
  std::unordered_map<std::string_view, Sym> symbols;  // module scope variables
  std::map<int, std::string> files;
  std::vector<SourceLoc> locs{{0, 0, 0, 0}};
  std::mutex mutex;

 private:
  void scan();
  std::map<std::string, std::unique_ptr<Program>> programs_;
  std::vector<void*> storage_;
};

// ---------------------------------------------------------------------------------------------
// Decoded program

// Where an operand lives: two bits of base (frame registers, constants, special registers) and a
// byte offset. Every operand is an array of 32 lanes, except predicates: one 32-bit mask.
using Ref = uint32_t;
constexpr Ref kNoRef = ~0u;
constexpr Ref kBaseConst = 1u << 30, kBaseSpecial = 2u << 30, kBaseMask = 3u << 30;

struct Warp;
struct Inst;
using Handler = void (*)(Warp&, Inst const&, uint32_t mask);

enum class Cls : uint8_t {
  Int,
  Fp32,
  Fp64,
  Fp16,
  Mma,
  Convert,
  Move,
  LdGlobal,
  StGlobal,
  LdShared,
  StShared,
  Local,
  Param,
  Atom,
  Shuffle,
  Barrier,
  Branch,
  Other,
  Count
};
extern char const* const kClsNames[];

enum class Ctl : uint8_t { None, Bra, Brx, Call, Ret, Exit, Trap, Bar, Sync, Yield };

enum InstFlags : uint8_t {
  kNegC = 1,  // predicate source operand c is negated
  kFtz = 2,
  kSat = 4,
  kAddr32 = 8,     // address register is 32 bits wide
  kHasC = 16,      // optional third operand present
  kVolatile = 32,  // volatile / relaxed / acquire / release access
  kNoResult = 64,  // red: no destination
};

// What a shared memory request is counted as. Auto: load, store or atomic, by the kind of access.
enum class SharedKind : uint8_t { Load, Store, Atomic, LdMatrix, StMatrix, Copy, Mbarrier, Count, Auto = Count };
extern char const* const kSharedKindNames[];

struct Inst {
  Handler fn = nullptr;
  uint64_t imm = 0;
  Ref d = kNoRef, d2 = kNoRef, a = kNoRef, b = kNoRef, c = kNoRef;
  Ref pred = kNoRef;
  uint32_t x0 = 0;
  uint16_t xn = 0;  // extra operands: Program::extra[x0, x0 + xn)
  uint8_t flags = 0;
  bool pred_neg = false;
  Cls cls = Cls::Other;
  Ctl ctl = Ctl::None;
  Space space = Space::Generic;
  uint8_t bytes = 0;          // size of one memory element
  uint8_t vec = 1;            // vector elements
  uint8_t aux = 0, aux2 = 0;  // meaning depends on the handler
  SharedKind shared_kind = SharedKind::Auto;
  uint32_t line = 0, src = 0, func = 0;
};

struct CallCopy {
  uint32_t from, to, bytes;
};  // per-lane copy between frames (offsets, bytes per lane)

struct CallInfo {
  int builtin = 0;  // 0: PTX function
  uint32_t target = 0, frame_bytes = 0, local_bytes = 0;
  std::vector<CallCopy> args, rets;
};

struct Program {
  KernelInfo info;
  ModuleImpl* module = nullptr;
  std::vector<Inst> code;
  std::vector<Ref> extra;
  std::vector<CallInfo> calls;
  std::vector<std::vector<uint32_t>> tables;  // brx.idx targets
  std::vector<std::string> func_names;
  std::vector<char> constants;  // broadcast immediates (64-byte aligned copy: see const_base)
  char* const_base = nullptr;
  size_t frame_bytes = 0, local_bytes = 0;
  bool has_dynamic_smem = false;
  uint32_t entry = 0;
  std::string opcode_text(Inst const& in) const;
};

Program* decode_program(ModuleImpl& m, Function& entry);

// ---------------------------------------------------------------------------------------------
// Execution state

// Special register slots (32 lanes of u32 each), in Warp::specials.
enum class Special : uint8_t {
  TidX,
  TidY,
  TidZ,
  NtidX,
  NtidY,
  NtidZ,
  CtaidX,
  CtaidY,
  CtaidZ,
  NctaidX,
  NctaidY,
  NctaidZ,
  LaneId,
  WarpId,
  NwarpId,
  SmId,
  NsmId,
  MaskEq,
  MaskLe,
  MaskLt,
  MaskGe,
  MaskGt,
  DynSmem,
  TotalSmem,
  EnvReg1,
  EnvReg2,
  Zero,
  One,
  Count
};

struct Allocation {
  uint64_t base = 0, end = 0;
  bool owned = false;
  std::vector<uint8_t> init;                  // one bit per byte, when the init check is on
  std::vector<std::atomic<uint8_t>> touched;  // per 32-byte sector: 1 read, 2 written (statistics)
};

class MemoryMap {
 public:
  static MemoryMap& get();
  Allocation* find(uint64_t addr);     // allocation that holds addr, or nullptr
  Allocation* nearest(uint64_t addr);  // for messages
  void add(void* p, size_t bytes, bool owned, bool initialised);
  bool remove(void* p, bool* owned);
  std::mutex mutex;
  std::map<uint64_t, std::unique_ptr<Allocation>> by_base;
  std::vector<std::unique_ptr<Allocation>> removed;  // kept until the next launch: warps may still know them
};

struct MemStats {
  uint64_t requests = 0, sectors = 0, useful = 0;
};

struct SharedStats {
  uint64_t requests = 0, wavefronts = 0;
};

// Profile: counts of one instruction of the decoded program.
struct LineCount {
  uint64_t warp = 0, thread = 0, wavefronts = 0, sectors = 0;
  void add(LineCount const& o) {
    warp += o.warp;
    thread += o.thread;
    wavefronts += o.wavefronts;
    sectors += o.sectors;
  }
};

struct Stats {
  std::array<uint64_t, size_t(Cls::Count)> warp{}, thread{};
  MemStats ld, st, atom;
  std::array<SharedStats, size_t(SharedKind::Count)> shared{};
  uint64_t barriers = 0, divergent_branches = 0;
  void add(Stats const& o);
};

struct Frame {
  uint32_t ret_pc, regs, local;
  Inst const* call;
  bool operator==(Frame const&) const = default;
};

// A set of lanes of one warp that share a program counter.
struct Fragment {
  enum State : uint8_t { Ready, SyncWait, BarWait };
  uint32_t pc = 0, mask = 0;
  uint32_t regs = 0, local = 0;  // frame bases
  uint32_t bar_id = 0;
  State state = Ready;
  std::vector<Frame> stack;
};

struct Block;

struct Warp {
  char* base[3] = {};  // bases that a Ref selects
  Block* block = nullptr;
  Program const* prog = nullptr;
  Fragment cur;  // running fragment
  bool has_cur = false;
  std::vector<Fragment> others;
  uint32_t alive = 0;
  uint32_t limit = ~0u;  // smallest pc of another runnable fragment at the same depth
  uint32_t index = 0;
  std::vector<char> reg_store, local_store;
  char* regs0 = nullptr;  // 64-byte aligned start of reg_store
  alignas(64) uint32_t specials[size_t(Special::Count)][kLanes];
  std::array<Allocation*, 4> alloc_cache{};  // most recently used allocations
  Stats stats;
  LineCount* profile = nullptr;  // by instruction index; null when off
  bool done = false;
  uint64_t executed = 0;

  template <class T>
  T* at(Ref r) const {
    return reinterpret_cast<T*>(base[r >> 30] + (r & ~kBaseMask));
  }
  uint32_t& pred(Ref r) const { return *at<uint32_t>(r); }
};

struct Barrier {
  uint32_t arrived = 0, expected = 0;
  uint32_t popc = 0;
  bool any = false, all = true, active = false;
};

struct SharedShadow {  // race check: last accesses of one byte
  uint32_t write_epoch = 0, read_epoch = 0;
  uint16_t writer = 0, reader = 0;
  bool many_readers = false, atomic = false;
};

// Unfinished cp.async copies of one thread (async and race checks). Copies are numbered from 1.
struct AsyncCopy {
  uint32_t number, at, bytes;
  Inst const* inst;
};
struct AsyncThread {
  uint32_t issued = 0, done = 0;  // numbers of the last copy, and of the last one waited for
  std::vector<uint32_t> groups;   // committed groups that may be unfinished: their last copy
  std::vector<AsyncCopy> copies;  // not waited for, oldest first
};
struct AsyncArrival {
  uint32_t bar, thread, number;
  bool phase;
};  // cp.async.mbarrier.arrive
struct AsyncWord {
  uint32_t thread = 0, number = 0;
};  // 4 bytes of shared memory: last copy to it; 0: none

struct LaunchState;

struct Block {
  LaunchState* launch = nullptr;
  Dim3 id;
  uint64_t linear = 0;
  std::vector<Warp> warps;
  std::vector<char> shared_store;
  char* shared = nullptr;
  uint32_t shared_bytes = 0;
  uint32_t threads = 0, alive = 0;
  std::array<Barrier, 16> bars;
  uint32_t epoch = 1;
  std::vector<uint8_t> shared_init;
  std::vector<SharedShadow> shadow;
  std::vector<AsyncThread> async_threads;  // empty when neither check is on
  std::vector<AsyncWord> async_words;
  std::vector<AsyncArrival> async_arrivals;
  uint64_t idle_rounds = 0;

  void init(LaunchState& ls, uint64_t linear_id, LineCount* profile);
  enum Result { Done, Yielded };
  Result run(bool allow_long);
  void arrive(Warp& w, Fragment& f, Inst const& in, uint32_t mask, bool wait);
  void check_barriers();
};

struct LaunchState {
  Program const* prog = nullptr;
  Launch cfg;
  std::vector<char> params;                 // argument buffer
  alignas(16) uint32_t workspace[16] = {};  // of a cooperative launch: barrier of the whole grid
  uint32_t shared_bytes = 0;
  bool stats = false, profile = false;  // stats: count traffic (also on for the profile)
  bool check_init = false, check_race = false, check_async = false;
  bool observed = false;  // any of these: shared accesses take the slow path
  uint64_t max_insts = 0;
  std::atomic<uint64_t> next_block{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string error;
  FaultKind error_kind = FaultKind::Trap;
  Stats total;
  std::vector<LineCount> lines;  // profile of all workers
  double seconds = 0;
  std::unordered_set<Inst const*> warned;  // init check, warning mode
};

// Throws Fault with the whole context in its text.
[[noreturn]] void fault(Warp& w, Inst const& in, int lane, FaultKind kind, std::string const& msg);

// Turns the address operand (in.a + in.imm) of the active lanes into host pointers, after all checks.
// `write`: 0 read, 1 write, 2 atomic.
void resolve(Warp& w, Inst const& in, uint32_t mask, Space space, uint32_t bytes, int write, char** out, Ref addr_ref,
             uint64_t offset);

// cp.async bookkeeping, used when Block::async_threads is not empty.
void async_issue(Warp& w, Inst const& in, uint32_t mask, char* const* dst);
void async_wait(Warp& w, int lane, uint32_t keep_groups);  // the last `keep_groups` groups may be unfinished
void async_finish(Block& b, uint32_t thread, uint32_t number, bool by_barrier);  // copies up to `number` are done

void call_builtin(Warp& w, Inst const& in, uint32_t mask, CallInfo const& ci);
int builtin_id(std::string_view name);
char* launch_params(Warp const& w);

// Decoder tables implemented next to the handlers. Each returns false for an unknown instruction.
struct Emit;
bool decode_alu(Emit& e);
bool decode_cvt(Emit& e);
bool decode_memory(Emit& e);
bool decode_sync(Emit& e);
bool decode_mma(Emit& e);

std::string demangle(std::string_view name);

}  // namespace ptxrun
