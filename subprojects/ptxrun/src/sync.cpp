// Barriers, warp-wide operations, mbarrier, and the built-in device functions (printf, assert, malloc).
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "decode.hpp"

namespace ptxrun {

namespace {

// shfl.sync: aux 0 up, 1 down, 2 bfly, 3 idx. a: value, b: lane operand, x[0]: clamp/segment operand.
void shfl(Warp& w, Inst const& in, uint32_t m) {
  uint32_t const *a = w.at<uint32_t>(in.a), *b = w.at<uint32_t>(in.b), *cc = w.at<uint32_t>(w.prog->extra[in.x0]);
  uint32_t value[kLanes], inside = 0;
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    int bval = int(b[l] & 31), cval = int(cc[l] & 31), seg = int(cc[l] >> 8 & 31);
    int max_lane = (l & seg) | (cval & ~seg), min_lane = l & seg, j = 0;
    bool p = false;
    switch (in.aux) {
      case 0:
        j = l - bval;
        p = j >= max_lane;
        break;
      case 1:
        j = l + bval;
        p = j <= max_lane;
        break;
      case 2:
        j = l ^ bval;
        p = j <= max_lane;
        break;
      default:
        j = min_lane | (bval & ~seg);
        p = j <= max_lane;
        break;
    }
    if (!p) j = l;
    if (p) inside |= 1u << l;
    // A source outside the group gives an undefined value on the device; here: the own value.
    value[l] = (m >> j & 1) ? a[j] : a[l];
  }
  uint32_t* d = w.at<uint32_t>(in.d);
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    d[l] = value[l];
  }
  if (in.d2 != kNoRef) w.pred(in.d2) = (w.pred(in.d2) & ~m) | inside;
}

// vote.sync: aux 0 all, 1 any, 2 uni, 3 ballot
void vote(Warp& w, Inst const& in, uint32_t m) {
  uint32_t p = w.pred(in.a);
  if (in.flags & kNegC) p = ~p;
  p &= m;
  if (in.aux == 3) {
    uint32_t* d = w.at<uint32_t>(in.d);
    for_lanes(m, [&](int l) { d[l] = p; });
    return;
  }
  bool v = in.aux == 0 ? p == m : in.aux == 1 ? p != 0 : p == m || p == 0;
  uint32_t& d = w.pred(in.d);
  d = (d & ~m) | (v ? m : 0);
}

template <class T>
void match(Warp& w, Inst const& in, uint32_t m) {  // aux: 0 any, 1 all
  T const* a = w.at<T>(in.a);
  uint32_t r[kLanes];
  bool all = true;
  T first = a[std::countr_zero(m)];
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    r[l] = 0;
    all &= a[l] == first;
    for (uint32_t j = m; j; j &= j - 1)
      if (int o = std::countr_zero(j); a[o] == a[l]) r[l] |= 1u << o;
  }
  uint32_t* d = w.at<uint32_t>(in.d);
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    d[l] = in.aux ? (all ? m : 0) : r[l];
  }
  if (in.d2 != kNoRef) w.pred(in.d2) = (w.pred(in.d2) & ~m) | (all ? m : 0);
}

// redux.sync: aux 0 add, 1 min, 2 max, 3 and, 4 or, 5 xor; aux2: signed
void redux(Warp& w, Inst const& in, uint32_t m) {
  uint32_t const* a = w.at<uint32_t>(in.a);
  uint32_t r = a[std::countr_zero(m)];
  for (uint32_t k = m & (m - 1); k; k &= k - 1) {
    uint32_t v = a[std::countr_zero(k)];
    switch (in.aux) {
      case 0: r += v; break;
      case 1: r = in.aux2 ? uint32_t(std::min(int32_t(r), int32_t(v))) : std::min(r, v); break;
      case 2: r = in.aux2 ? uint32_t(std::max(int32_t(r), int32_t(v))) : std::max(r, v); break;
      case 3: r &= v; break;
      case 4: r |= v; break;
      default: r ^= v; break;
    }
  }
  uint32_t* d = w.at<uint32_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = r; });
}

void warp_barrier(Warp&, Inst const&, uint32_t) {}

void activemask(Warp& w, Inst const& in, uint32_t m) {
  uint32_t* d = w.at<uint32_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = m; });
}
// elect.sync d|p, mask: the first lane of the group
void elect(Warp& w, Inst const& in, uint32_t m) {
  uint32_t first = uint32_t(std::countr_zero(m));
  uint32_t* d = w.at<uint32_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = first; });
  if (in.d2 != kNoRef) w.pred(in.d2) = (w.pred(in.d2) & ~m) | 1u << first;
}

// movmatrix: transposes an 8x8 matrix of 16-bit elements; lane 4r+c holds row r, columns 2c and 2c+1.
void movmatrix(Warp& w, Inst const& in, uint32_t) {
  uint16_t mat[8][8];
  memcpy(mat, w.at<uint32_t>(in.a), sizeof mat);  // lanes are side by side: this is the row-major matrix
  uint32_t* d = w.at<uint32_t>(in.d);
  for (int l = 0; l < kLanes; ++l) {
    int r = l / 4, c = l % 4 * 2;
    d[l] = mat[c][r] | uint32_t(mat[c + 1][r]) << 16;
  }
}

// mbarrier objects (8 bytes of shared memory). Fields: phase, expected arrivals, pending arrivals,
// pending transaction bytes.
struct Mbar {
  uint32_t pending : 15, expected : 15, phase : 1, unused : 1;
  int32_t tx;
};
static_assert(sizeof(Mbar) == 8);

void complete_phase(Mbar& b) {
  if (b.pending == 0 && b.tx == 0) {
    b.phase ^= 1;
    b.pending = b.expected;
  }
}
Mbar* mbar_at(Warp& w, Inst const& in, int lane, Ref addr) {
  char* p[kLanes];
  Inst i = in;
  i.flags |= kVolatile;
  resolve(w, i, 1u << lane, Space::Shared, 8, 2, p, addr, in.imm);
  return reinterpret_cast<Mbar*>(p[lane]);
}
enum { kInit, kInval, kArrive, kArriveDrop, kExpect, kTestWait, kTestParity, kCpArrive, kArriveExpect, kCompleteTx };
void mbarrier(Warp& w, Inst const& in, uint32_t m) {
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    if (in.aux == kInit) {  // the memory may be uninitialised before
      char* p[kLanes];
      Inst i = in;
      i.flags |= kVolatile;
      resolve(w, i, 1u << l, Space::Shared, 8, 1, p, in.a, in.imm);
      uint32_t n = w.at<uint32_t>(in.b)[l];
      *reinterpret_cast<Mbar*>(p[l]) = Mbar{n & 0x7fff, n & 0x7fff, 0, 0, 0};
      continue;
    }
    Mbar& b = *mbar_at(w, in, l, in.a);
    uint32_t count = in.b != kNoRef ? w.at<uint32_t>(in.b)[l] : 1;
    switch (in.aux) {
      case kInval: break;
      case kArriveExpect:
        b.tx += int32_t(count);
        count = 1;
        [[fallthrough]];
      case kArrive:
      case kArriveDrop:
      case kCpArrive: {
        uint64_t state = b.phase;
        if (in.aux == kCpArrive && !w.block->async_threads.empty()) {
          uint32_t thread = w.index * kLanes + uint32_t(l);
          w.block->async_arrivals.push_back({uint32_t(reinterpret_cast<char*>(&b) - w.block->shared), thread,
                                             w.block->async_threads[thread].issued, bool(b.phase)});
        }
        if (in.aux == kCpArrive && !in.aux2) break;  // copies are done: arrival cancels the increment
        b.pending -= count;
        if (in.aux == kArriveDrop) b.expected -= count;
        complete_phase(b);
        if (in.d != kNoRef) w.at<uint64_t>(in.d)[l] = state;
        break;
      }
      case kExpect: b.tx += int32_t(count); break;
      case kCompleteTx:
        b.tx -= int32_t(count);
        complete_phase(b);
        break;
      default: {
        uint32_t phase = in.aux == kTestParity ? w.at<uint32_t>(in.b)[l] & 1 : uint32_t(w.at<uint64_t>(in.b)[l] & 1);
        bool done = b.phase != phase;
        uint32_t& p = w.pred(in.d);
        p = (p & ~(1u << l)) | uint32_t(done) << l;
        if (!done) break;
        ++w.block->epoch;  // a synchronisation, for the race check
        uint32_t at = uint32_t(reinterpret_cast<char*>(&b) - w.block->shared);
        std::erase_if(w.block->async_arrivals, [&](AsyncArrival const& a) {  // the phase included these copies
          if (a.bar != at || a.phase != bool(phase)) return false;
          async_finish(*w.block, a.thread, a.number, true);
          return true;
        });
      }
    }
  }
}

bool decode_mbarrier(Emit& e) {
  e.in.cls = Cls::Barrier;
  e.in.space = Space::Shared;
  e.in.shared_kind = SharedKind::Mbarrier;
  bool cp = e.base() == "cp";
  size_t addr_at = 0;
  if (cp) {
    e.in.aux = kCpArrive;
    e.in.aux2 = e.has("noinc");
  } else if (e.has("init"))
    e.in.aux = kInit;
  else if (e.has("inval"))
    e.in.aux = kInval;
  else if (e.has("arrive"))
    e.in.aux = e.has("expect_tx") ? kArriveExpect : kArrive;
  else if (e.has("arrive_drop"))
    e.in.aux = kArriveDrop;
  else if (e.has("expect_tx"))
    e.in.aux = kExpect;
  else if (e.has("complete_tx"))
    e.in.aux = kCompleteTx;
  else if (e.has("test_wait") || e.has("try_wait"))
    e.in.aux = e.has("parity") ? kTestParity : kTestWait;
  else
    return false;
  bool arrive = e.in.aux == kArrive || e.in.aux == kArriveDrop || e.in.aux == kArriveExpect;
  bool wait = e.in.aux == kTestWait || e.in.aux == kTestParity;
  if ((arrive && e.arg(0).kind != Operand::Addr) || wait) {
    if (e.arg(0).kind != Operand::Sink) e.in.d = e.def(e.arg(0), wait ? 0 : 8);
    addr_at = 1;
  }
  e.address(e.arg(addr_at));
  if (wait)
    e.in.b = e.use(e.arg(addr_at + 1), e.in.aux == kTestParity ? 4 : 8);
  else if (e.nargs() > addr_at + 1)
    e.in.b = e.use(e.arg(addr_at + 1), 4);
  e.in.fn = mbarrier;
  e.push();
  if (wait && e.has("try_wait")) {  // let other warps run while waiting
    Inst y;
    y.ctl = Ctl::Yield;
    y.cls = Cls::Barrier;
    e.in = y;
    e.push();
  }
  return true;
}

}  // namespace

void mbarrier_complete_tx(char* p, uint32_t bytes) {
  Mbar& b = *reinterpret_cast<Mbar*>(p);
  b.tx -= int32_t(bytes);
  complete_phase(b);
}

bool decode_sync(Emit& e) {
  std::string_view b = e.base();
  auto sync = [&](Handler h, Cls cls, Operand const* mask) {
    e.in.fn = h;
    e.in.cls = cls;
    e.in.ctl = Ctl::Sync;
    if (mask) e.in.c = e.use(*mask, 4);
  };
  auto dest_pred = [&](int bytes) {
    e.in.d = e.def(e.arg(0), bytes);
    if (!e.arg(0).elems.empty()) e.in.d2 = e.def(e.arg(0).elems[0], 0);
  };
  if (b == "mbarrier" || (b == "cp" && e.has("mbarrier"))) return decode_mbarrier(e);
  if ((b == "bar" || b == "barrier") && e.has("warp")) {
    sync(warp_barrier, Cls::Barrier, &e.arg(0));
    e.in.aux2 = 99;  // may be reached at several places
    e.push();
    return true;
  }
  if (b == "barrier" && (e.has("cluster"))) {  // a cluster is one block
    e.in.cls = Cls::Barrier;
    if (e.has("arrive")) return true;
    e.in.ctl = Ctl::Bar;
    e.in.a = e.imm(15, 4);
    e.push();
    return true;
  }
  if (b == "bar" || b == "barrier") {
    e.in.cls = Cls::Barrier;
    e.in.ctl = Ctl::Bar;
    if (e.has("red")) {
      bool popc = e.has("popc");
      e.in.aux = popc ? 1 : e.has("and") ? 2 : 3;
      e.in.d = e.def(e.arg(0), popc ? 4 : 0);
      e.in.a = e.use(e.arg(1), 4);
      size_t last = e.nargs() - 1;
      if (last > 2) e.in.b = e.use(e.arg(2), 4);
      e.in.c = e.use(e.arg(last), 0);
      if (e.arg(last).neg) e.in.flags |= kNegC;
    } else {
      e.in.a = e.use(e.arg(0), 4);
      if (e.nargs() > 1) e.in.b = e.use(e.arg(1), 4);
      if (e.has("arrive")) e.in.aux2 = 2;
    }
    e.push();
    return true;
  }
  if (b == "shfl") {
    if (!e.has("sync")) return false;
    sync(shfl, Cls::Shuffle, &e.arg(4));
    dest_pred(4);
    e.in.a = e.use(e.arg(1), 4);
    e.in.b = e.use(e.arg(2), 4);
    e.add_extra(e.use(e.arg(3), 4), false);
    e.in.aux = e.has("up") ? 0 : e.has("down") ? 1 : e.has("bfly") ? 2 : 3;
    e.push();
    return true;
  }
  if (b == "vote") {
    if (!e.has("sync")) return false;
    sync(vote, Cls::Shuffle, &e.arg(2));
    bool ballot = e.has("ballot");
    e.in.d = e.def(e.arg(0), ballot ? 4 : 0);
    e.in.a = e.use(e.arg(1), 0);
    if (e.arg(1).neg) e.in.flags |= kNegC;
    e.in.aux = ballot ? 3 : e.has("all") ? 0 : e.has("any") ? 1 : 2;
    e.push();
    return true;
  }
  if (b == "match") {
    bool wide = e.type() == Ty::B64;
    sync(wide ? match<uint64_t> : match<uint32_t>, Cls::Shuffle, &e.arg(2));
    dest_pred(4);
    e.in.a = e.use(e.arg(1), wide ? 8 : 4);
    e.in.aux = e.has("all");
    e.push();
    return true;
  }
  if (b == "redux") {
    static char const* ops[] = {"add", "min", "max", "and", "or", "xor"};
    if (is_float(e.type())) return false;
    sync(redux, Cls::Shuffle, &e.arg(2));
    e.in.d = e.def(e.arg(0), 4);
    e.in.a = e.use(e.arg(1), 4);
    for (uint8_t i = 0; i < 6; ++i)
      if (e.has(ops[i])) e.in.aux = i;
    e.in.aux2 = is_signed(e.type());
    e.push();
    return true;
  }
  if (b == "elect") {
    sync(elect, Cls::Shuffle, &e.arg(1));
    dest_pred(4);
    e.push();
    return true;
  }
  if (b == "movmatrix") {
    if (!e.has("m8n8") || !e.has("trans") || !e.has("b16")) return false;
    sync(movmatrix, Cls::Shuffle, nullptr);
    e.in.d = e.def(e.arg(0), 4);
    e.in.a = e.use(e.arg(1), 4);
    e.push();
    return true;
  }
  if (b == "activemask") {
    e.in.fn = activemask;
    e.in.cls = Cls::Shuffle;
    e.in.d = e.def(e.arg(0), 4);
    e.push();
    return true;
  }
  if (b == "nanosleep") {
    e.in.ctl = Ctl::Yield;
    e.push();
    return true;
  }
  return false;
}

// ---------------------------------------------------------------------------------------------
// Built-in device functions

enum Builtin { kNone, kVprintf, kAssertFail, kMalloc, kFree };

int builtin_id(std::string_view name) {
  if (name == "vprintf") return kVprintf;
  if (name == "__assertfail") return kAssertFail;
  if (name == "malloc") return kMalloc;
  if (name == "free") return kFree;
  return kNone;
}

namespace {

std::mutex heap_mutex;
std::unordered_set<void*>& heap_blocks() {
  static auto* s = new std::unordered_set<void*>;
  return *s;
}

// A string in device memory; also accepts generic addresses of shared and local memory.
std::string read_string(uint64_t addr) {
  Allocation* a = MemoryMap::get().find(addr);
  if (!a) return "(bad address)";
  char const* p = reinterpret_cast<char const*>(addr);
  return std::string(p, strnlen(p, a->end - addr));
}

std::string format(std::string const& fmt, char const* args, char const* end) {
  std::string out;
  auto next = [&](size_t n) -> uint64_t {
    uint64_t v = 0;
    size_t at = (size_t(args - end + 65536) + n - 1) / n * n;  // arguments are naturally aligned
    args = end - 65536 + at;
    if (args + n <= end) memcpy(&v, args, n);
    args += n;
    return v;
  };
  for (size_t i = 0; i < fmt.size(); ++i) {
    if (fmt[i] != '%') {
      out += fmt[i];
      continue;
    }
    if (i + 1 < fmt.size() && fmt[i + 1] == '%') {
      out += '%';
      ++i;
      continue;
    }
    std::string spec = "%";
    int longs = 0;
    for (++i; i < fmt.size() && strchr("-+ #0123456789.*lhzjt", fmt[i]); ++i) {
      if (fmt[i] == '*')
        spec += std::to_string(int(next(4)));
      else if (fmt[i] == 'l' || fmt[i] == 'z' || fmt[i] == 'j' || fmt[i] == 't')
        ++longs;
      else if (fmt[i] != 'h')
        spec += fmt[i];
    }
    if (i >= fmt.size()) break;
    char buf[512];
    char c = fmt[i];
    if (strchr("di", c))
      snprintf(buf, sizeof buf, (spec + "lld").c_str(), longs ? (long long)next(8) : (long long)int32_t(next(4)));
    else if (strchr("uxXo", c))
      snprintf(buf, sizeof buf, (spec + "ll" + c).c_str(),
               longs ? (unsigned long long)next(8) : (unsigned long long)uint32_t(next(4)));
    else if (c == 'c')
      snprintf(buf, sizeof buf, (spec + c).c_str(), int(next(4)));
    else if (strchr("eEfFgGaA", c))
      snprintf(buf, sizeof buf, (spec + c).c_str(), std::bit_cast<double>(next(8)));
    else if (c == 'p')
      snprintf(buf, sizeof buf, "0x%llx", (unsigned long long)next(8));
    else if (c == 's') {
      std::string s = read_string(next(8));
      snprintf(buf, sizeof buf, (spec + c).c_str(), s.c_str());
    } else
      snprintf(buf, sizeof buf, "%%%c", c);
    out += buf;
  }
  return out;
}

}  // namespace

void call_builtin(Warp& w, Inst const& in, uint32_t mask, CallInfo const& ci) {
  auto arg = [&](size_t i, int l, size_t bytes = 8) {
    uint64_t v = 0;
    memcpy(&v, w.base[0] + ci.args[i].from + l * ci.args[i].bytes, bytes);
    return v;
  };
  auto ret = [&](int l, uint64_t v) {
    if (!ci.rets.empty()) memcpy(w.base[0] + ci.rets[0].from + l * ci.rets[0].bytes, &v, 8);
  };
  for (uint32_t k = mask; k; k &= k - 1) {
    int l = std::countr_zero(k);
    switch (ci.builtin) {
      case kVprintf: {
        uint64_t args = arg(1, l);
        char const *p = nullptr, *end = nullptr;
        if (args >> 60 == 2) {
          size_t size = w.local_store.size() / kLanes;
          uint64_t off = args & (kLocalWindow - 1);
          if (off <= size) p = w.local_store.data() + l * size + off, end = w.local_store.data() + (l + 1) * size;
        }
        // Alignment is relative to the argument block, which is itself 8-byte aligned.
        std::vector<char> block(65536, 0);
        if (p) memcpy(block.data(), p, std::min<size_t>(block.size(), size_t(end - p)));
        std::string s = format(read_string(arg(0, l)), block.data(), block.data() + block.size());
        std::fwrite(s.data(), 1, s.size(), stdout);
        ret(l, s.size());
        break;
      }
      case kAssertFail:
        fault(w, in, l, FaultKind::Assert,
              read_string(arg(1, l)) + ":" + std::to_string(arg(2, l, 4)) + ": " + read_string(arg(3, l)) +
                  ": assertion `" + read_string(arg(0, l)) + "` failed");
      case kMalloc: {
        std::lock_guard lock(heap_mutex);
        void* p = Memory::alloc(std::max<uint64_t>(arg(0, l), 1));
        heap_blocks().insert(p);
        ret(l, uint64_t(p));
        break;
      }
      case kFree: {
        std::lock_guard lock(heap_mutex);
        auto* p = reinterpret_cast<void*>(arg(0, l));
        if (!p) break;
        if (!heap_blocks().erase(p))
          fault(w, in, l, FaultKind::OutOfBounds, "free of a pointer that malloc did not return");
        Memory::free(p);
        break;
      }
    }
  }
}

}  // namespace ptxrun
