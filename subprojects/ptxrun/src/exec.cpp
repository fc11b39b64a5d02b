// Warp and block scheduling, control flow, kernel launch.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "decode.hpp"
#include "stats.hpp"

namespace ptxrun {

namespace {

constexpr uint64_t kWarpSlice = 50000;       // instructions before another warp gets its turn
constexpr uint64_t kFragmentSlice = 20000;   // ... before another part of a diverged warp does
constexpr uint64_t kRoundsBeforeYield = 64;  // rounds over the warps of a block before another block runs

bool same_place(Fragment const& a, Fragment const& b) {
  return a.pc == b.pc && a.regs == b.regs && a.local == b.local && a.stack == b.stack;
}

// Chooses the next part of the warp to run: deepest call first, then smallest pc, so that diverged
// lanes meet again at the join point. `fifo` takes the one that has waited longest instead.
bool pick(Warp& w, bool fifo) {
  size_t best = w.others.size();
  for (size_t i = 0; i < w.others.size(); ++i) {
    Fragment const& f = w.others[i];
    if (f.state != Fragment::Ready) continue;
    if (best == w.others.size()) {
      best = i;
      if (fifo) break;
      continue;
    }
    Fragment const& g = w.others[best];
    if (f.stack.size() > g.stack.size() || (f.stack.size() == g.stack.size() && f.pc < g.pc)) best = i;
  }
  if (best == w.others.size()) return false;
  w.cur = std::move(w.others[best]);
  w.others.erase(w.others.begin() + best);
  w.has_cur = true;
  w.limit = ~0u;
  for (size_t i = 0; i < w.others.size();) {
    Fragment& f = w.others[i];
    if (f.state != Fragment::BarWait && same_place(f, w.cur)) {
      w.cur.mask |= f.mask;
      w.others.erase(w.others.begin() + i);
      continue;
    }
    if (!fifo && f.state == Fragment::Ready && f.stack.size() == w.cur.stack.size()) w.limit = std::min(w.limit, f.pc);
    ++i;
  }
  w.base[0] = w.regs0 + w.cur.regs;
  return true;
}

void park(Warp& w, Fragment::State state) {
  w.cur.state = state;
  w.others.push_back(std::move(w.cur));
  w.has_cur = false;
}

// Splits `mask` off the running fragment, to go on at `pc`.
void split(Warp& w, uint32_t mask, uint32_t pc, Fragment::State state = Fragment::Ready) {
  Fragment f = w.cur;
  f.mask = mask;
  f.pc = pc;
  f.state = state;
  w.cur.mask &= ~mask;
  if (state == Fragment::Ready) w.limit = std::min(w.limit, pc);
  w.others.push_back(std::move(f));
}

void ensure_frame(Warp& w, size_t regs, size_t local) {
  if (regs + 64 > w.reg_store.size()) {
    size_t used = w.reg_store.size();
    std::vector<char> bigger(std::max(used * 2, regs + 4096));
    char* aligned = reinterpret_cast<char*>((uint64_t(bigger.data()) + 63) & ~63ull);
    memcpy(aligned, w.regs0, used - 64);
    w.reg_store = std::move(bigger);
    w.regs0 = aligned;
  }
  size_t have = w.local_store.size() / kLanes;
  if (local > have) {
    size_t want = std::max(have * 2, local);
    std::vector<char> bigger(want * kLanes);
    for (int l = 0; l < kLanes; ++l)
      if (have) memcpy(bigger.data() + l * want, w.local_store.data() + l * have, have);
    w.local_store = std::move(bigger);
  }
}

void copy_lanes(char* to, char const* from, uint32_t bytes, uint32_t mask) {
  for (uint32_t m = mask; m; m &= m - 1) {
    int l = std::countr_zero(m);
    memcpy(to + l * bytes, from + l * bytes, bytes);
  }
}

void do_call(Warp& w, Inst const& in, uint32_t mask) {
  CallInfo const& ci = w.prog->calls[in.imm];
  if (ci.builtin) {
    call_builtin(w, in, mask, ci);
    ++w.cur.pc;
    return;
  }
  if (mask != w.cur.mask) split(w, w.cur.mask & ~mask, w.cur.pc + 1);
  Fragment& f = w.cur;
  if (f.stack.size() > 2000) fault(w, in, std::countr_zero(mask), FaultKind::Trap, "device call stack overflow");
  uint32_t callee_regs = f.regs + ci.frame_bytes;
  // The callee's frame size is not needed exactly: its own calls extend the store again.
  ensure_frame(w, callee_regs + w.prog->frame_bytes + (1 << 16), f.local + ci.local_bytes + w.prog->info.local_bytes);
  for (CallCopy const& c : ci.args) copy_lanes(w.regs0 + callee_regs + c.to, w.regs0 + f.regs + c.from, c.bytes, mask);
  f.stack.push_back({f.pc + 1, f.regs, f.local, &in});
  f.regs = callee_regs;
  f.local += ci.local_bytes;
  f.pc = ci.target;
  park(w, Fragment::Ready);
  pick(w, false);
}

void do_ret(Warp& w, Inst const&, uint32_t mask) {
  if (mask != w.cur.mask) split(w, w.cur.mask & ~mask, w.cur.pc + 1);
  Fragment& f = w.cur;
  Frame fr = f.stack.back();
  f.stack.pop_back();
  CallInfo const& ci = w.prog->calls[fr.call->imm];
  for (CallCopy const& c : ci.rets) copy_lanes(w.regs0 + fr.regs + c.from, w.regs0 + f.regs + c.to, c.bytes, mask);
  f.regs = fr.regs;
  f.local = fr.local;
  f.pc = fr.ret_pc;
  park(w, Fragment::Ready);
  pick(w, false);
}

void do_exit(Warp& w, uint32_t mask) {
  w.alive &= ~mask;
  w.cur.mask &= ~mask;
  w.block->alive -= std::popcount(mask);
  for (Fragment& f : w.others)
    if (f.state == Fragment::SyncWait) f.state = Fragment::Ready;  // their group may be complete now
  if (w.cur.mask)
    ++w.cur.pc;
  else
    w.has_cur = false;
  w.block->check_barriers();
}

// bar.warp.sync may be reached at different places by the lanes of one group.
bool release_warp_barrier(Warp& w, Inst const& in) {
  uint32_t waiting = 0, members = 0;
  auto collect = [&](Fragment& f, auto&& fn) {
    Inst const& i = w.prog->code[f.pc];
    if (f.state == Fragment::SyncWait && i.ctl == Ctl::Sync && i.fn == in.fn && i.aux2 == 99) fn(f, i);
  };
  for (Fragment& f : w.others)
    collect(f, [&](Fragment& g, Inst const& i) {
      waiting |= g.mask;
      char const* regs = i.c >> 30 == 0 ? w.regs0 + g.regs : w.base[i.c >> 30];
      auto const* m = reinterpret_cast<uint32_t const*>(regs + (i.c & ~kBaseMask));
      for (uint32_t k = g.mask; k; k &= k - 1) members |= m[std::countr_zero(k)];
    });
  if (!waiting || (members & w.alive & ~waiting)) return false;
  for (Fragment& f : w.others)
    collect(f, [&](Fragment& g, Inst const&) {
      ++g.pc;
      g.state = Fragment::Ready;
    });
  return true;
}

// Warp-wide operations: run when all live lanes of the member mask are here, else wait for them.
void do_sync(Warp& w, Inst const& in, uint32_t mask) {
  bool absorbed = false;
  for (size_t i = 0; i < w.others.size();) {
    Fragment& f = w.others[i];
    if (f.state == Fragment::SyncWait && same_place(f, w.cur)) {
      w.cur.mask |= f.mask;
      w.others.erase(w.others.begin() + i);
      absorbed = true;
    } else
      ++i;
  }
  if (absorbed) {
    mask = w.cur.mask;
    if (in.pred != kNoRef) mask &= in.pred_neg ? ~w.pred(in.pred) : w.pred(in.pred);
  }
  uint32_t wait = 0;
  if (in.c == kNoRef) {
    if ((mask & w.alive) == w.alive)
      in.fn(w, in, mask);
    else
      wait = mask;
  } else {
    uint32_t const* mem = w.at<uint32_t>(in.c);
    for (uint32_t todo = mask; todo;) {
      uint32_t members = mem[std::countr_zero(todo)], group = 0;
      for (uint32_t m = todo; m; m &= m - 1)
        if (int l = std::countr_zero(m); mem[l] == members) group |= 1u << l;
      todo &= ~group;
      if (group & ~members)
        fault(w, in, std::countr_zero(group & ~members), FaultKind::Deadlock,
              "thread executes a warp-wide operation without being in its member mask");
      if (members & w.alive & ~group)
        wait |= group;
      else
        in.fn(w, in, group);
    }
  }
  if (!wait) {
    ++w.cur.pc;
    return;
  }
  if (wait == w.cur.mask)
    park(w, Fragment::SyncWait);
  else {
    split(w, wait, w.cur.pc, Fragment::SyncWait);
    ++w.cur.pc;
  }
  if (in.aux2 == 99) release_warp_barrier(w, in);
}

void do_brx(Warp& w, Inst const& in, uint32_t mask) {
  uint32_t const* idx = w.at<uint32_t>(in.a);
  auto const& table = w.prog->tables[in.imm];
  uint32_t pc = w.cur.pc;
  if (mask != w.cur.mask) split(w, w.cur.mask & ~mask, pc + 1);
  for (uint32_t todo = mask; todo;) {
    int first = std::countr_zero(todo);
    uint32_t same = 0;
    for (uint32_t m = todo; m; m &= m - 1)
      if (int l = std::countr_zero(m); idx[l] == idx[first]) same |= 1u << l;
    if (idx[first] >= table.size()) fault(w, in, first, FaultKind::Trap, "branch table index out of range");
    todo &= ~same;
    if (todo)
      split(w, same, table[idx[first]]);
    else
      w.cur.pc = table[idx[first]];
  }
  park(w, Fragment::Ready);
  pick(w, false);
}

enum class Stop { Blocked, Slice };

template <bool Profile>
Stop run_warp(Warp& w) {
  Inst const* code = w.prog->code.data();
  const uint64_t stop_at = w.executed + kWarpSlice, max_insts = w.block->launch->max_insts;
  uint64_t fragment_start = w.executed;
  if (!w.has_cur && !pick(w, false)) return Stop::Blocked;
  for (;;) {
    uint32_t pc = w.cur.pc;
    if (pc >= w.limit) {
      park(w, Fragment::Ready);
      pick(w, false);
      continue;
    }
    Inst const& in = code[pc];
    uint32_t m = w.cur.mask;
    if (in.pred != kNoRef) {
      uint32_t p = w.pred(in.pred);
      m &= in.pred_neg ? ~p : p;
    }
    ++w.executed;
    ++w.stats.warp[size_t(in.cls)];
    w.stats.thread[size_t(in.cls)] += std::popcount(m);
    if constexpr (Profile) {
      ++w.profile[pc].warp;
      w.profile[pc].thread += std::popcount(m);
    }
    switch (in.ctl) {
      case Ctl::None:
        if (m) in.fn(w, in, m);
        ++w.cur.pc;
        continue;
      case Ctl::Bra: {
        uint32_t target = uint32_t(in.imm), rest = w.cur.mask & ~m;
        if (!m)
          ++w.cur.pc;
        else if (!rest)
          w.cur.pc = target;
        else {
          ++w.stats.divergent_branches;
          if (target <= pc) {
            split(w, rest, pc + 1);
            w.cur.pc = target;
          } else {
            split(w, m, target);
            ++w.cur.pc;
          }
        }
        if (target > pc) continue;
        break;  // backward branch: see whether the slice is used up
      }
      case Ctl::Brx:
        if (m)
          do_brx(w, in, m);
        else
          ++w.cur.pc;
        break;
      case Ctl::Call:
        if (m)
          do_call(w, in, m);
        else
          ++w.cur.pc;
        break;
      case Ctl::Ret:
        if (m)
          do_ret(w, in, m);
        else
          ++w.cur.pc;
        break;
      case Ctl::Exit:
        if (m)
          do_exit(w, m);
        else
          ++w.cur.pc;
        break;
      case Ctl::Trap:
        if (m) fault(w, in, std::countr_zero(m), FaultKind::Trap, "trap");
        ++w.cur.pc;
        break;
      case Ctl::Sync:
        if (m)
          do_sync(w, in, m);
        else
          ++w.cur.pc;
        break;
      case Ctl::Bar:
        if (m)
          w.block->arrive(w, w.cur, in, m, in.aux2 != 2);
        else
          ++w.cur.pc;
        break;
      case Ctl::Yield:
        ++w.cur.pc;
        park(w, Fragment::Ready);
        pick(w, true);
        return Stop::Slice;
    }
    if (!w.has_cur) {
      if (!w.alive) {
        w.done = true;
        return Stop::Blocked;
      }
      if (!pick(w, false)) return Stop::Blocked;
    }
    if (w.executed >= stop_at) {
      if (max_insts && w.executed > max_insts)
        fault(w, in, std::countr_zero(w.cur.mask), FaultKind::Deadlock, "instruction limit reached (PTXRUN_MAX_INSTS)");
      if (!w.others.empty()) {
        park(w, Fragment::Ready);
        pick(w, true);
      }
      return Stop::Slice;
    }
    if (!w.others.empty() && w.executed - fragment_start > kFragmentSlice) {
      park(w, Fragment::Ready);
      pick(w, true);
      fragment_start = w.executed;
    }
  }
}

std::string where(Warp const& w, Inst const& in) {
  Program const& p = *w.prog;
  std::string s = "kernel " + demangle(p.info.name);
  if (p.func_names[in.func] != p.info.name) s += ", function " + demangle(p.func_names[in.func]);
  s += ", PTX line " + std::to_string(in.line) + " \"" + p.opcode_text(in) + "\"";
  if (std::string src = p.module->source_of(in.src); !src.empty()) s += ", " + src;
  return s;
}

std::string dim_text(Dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

}  // namespace

char* launch_params(Warp const& w) { return w.block->launch->params.data(); }

void fault(Warp& w, Inst const& in, int lane, FaultKind kind, std::string const& msg) {
  std::string s = "ptxrun: " + msg + "\n  in " + where(w, in) + "\n  block " + dim_text(w.block->id);
  auto sp = [&](Special x) { return w.specials[size_t(x)][lane]; };
  s += ", thread " + dim_text({sp(Special::TidX), sp(Special::TidY), sp(Special::TidZ)}) + " (warp " +
       std::to_string(w.index) + ", lane " + std::to_string(lane) + ")";
  throw Fault(kind, s);
}

// ---------------------------------------------------------------------------------------------
// Blocks

void Block::init(LaunchState& ls, uint64_t linear_id, LineCount* profile) {
  launch = &ls;
  linear = linear_id;
  const Dim3 g = ls.cfg.grid, b = ls.cfg.block;
  id = {uint32_t(linear % g.x), uint32_t(linear / g.x % g.y), uint32_t(linear / g.x / g.y)};
  threads = alive = uint32_t(b.count());
  bars = {};
  epoch = 1;
  idle_rounds = 0;
  shared_bytes = ls.shared_bytes;
  shared_store.resize(shared_bytes + 256);
  shared = reinterpret_cast<char*>((uint64_t(shared_store.data()) + 127) & ~127ull);
  memset(shared, 0xff, shared_bytes);
  if (ls.check_init) shared_init.assign(shared_bytes, 0);
  if (ls.check_race) shadow.assign(shared_bytes, {});
  if (ls.check_async || ls.check_race) {
    async_threads.assign((threads + 31) / 32 * 32, {});
    async_words.assign(shared_bytes / 4 + 8, {});
    async_arrivals.clear();
  }
  uint32_t nw = (threads + 31) / 32;
  uint64_t grid_ws = ls.cfg.cooperative ? uint64_t(ls.workspace) : 0;
  warps.resize(nw);
  for (uint32_t i = 0; i < nw; ++i) {
    Warp& w = warps[i];
    w.block = this;
    w.prog = ls.prog;
    w.index = i;
    w.others.clear();
    w.has_cur = true;
    w.done = false;
    w.executed = 0;
    w.limit = ~0u;
    w.alloc_cache = {};
    w.stats = {};
    w.profile = profile;
    uint32_t lanes = std::min(32u, threads - i * 32);
    w.alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    w.cur = {};
    w.cur.pc = ls.prog->entry;
    w.cur.mask = w.alive;
    if (w.reg_store.size() < ls.prog->frame_bytes + 64) {
      w.reg_store.assign(ls.prog->frame_bytes + 64, 0);
      w.regs0 = reinterpret_cast<char*>((uint64_t(w.reg_store.data()) + 63) & ~63ull);
    }
    if (w.local_store.size() / kLanes < ls.prog->info.local_bytes)
      w.local_store.assign(ls.prog->info.local_bytes * kLanes, char(0xff));
    w.base[0] = w.regs0;
    w.base[1] = ls.prog->const_base;
    w.base[2] = reinterpret_cast<char*>(w.specials);
    for (uint32_t l = 0; l < 32; ++l) {
      uint32_t t = i * 32 + l;
      auto set = [&](Special s, uint32_t v) { w.specials[size_t(s)][l] = v; };
      set(Special::TidX, t % b.x);
      set(Special::TidY, t / b.x % b.y);
      set(Special::TidZ, t / b.x / b.y);
      set(Special::NtidX, b.x);
      set(Special::NtidY, b.y);
      set(Special::NtidZ, b.z);
      set(Special::CtaidX, id.x);
      set(Special::CtaidY, id.y);
      set(Special::CtaidZ, id.z);
      set(Special::NctaidX, g.x);
      set(Special::NctaidY, g.y);
      set(Special::NctaidZ, g.z);
      set(Special::LaneId, l);
      set(Special::WarpId, i);
      set(Special::NwarpId, nw);
      set(Special::SmId, uint32_t(linear % 108));
      set(Special::NsmId, 108);
      set(Special::MaskEq, 1u << l);
      set(Special::MaskLt, (1u << l) - 1);
      set(Special::MaskLe, (2u << l) - 1);
      set(Special::MaskGe, ~((1u << l) - 1));
      set(Special::MaskGt, ~((2u << l) - 1));
      set(Special::DynSmem, uint32_t(ls.cfg.dynamic_smem));
      set(Special::TotalSmem, shared_bytes);
      set(Special::EnvReg1, uint32_t(grid_ws >> 32));
      set(Special::EnvReg2, uint32_t(grid_ws));
      set(Special::Zero, 0);
      set(Special::One, 1);
    }
  }
}

// bar.sync / bar.arrive / bar.red. in.a: barrier id, in.b: thread count (optional), in.c: predicate.
void Block::arrive(Warp& w, Fragment& f, Inst const& in, uint32_t mask, bool wait) {
  int lane = std::countr_zero(mask);
  uint32_t idn = w.at<uint32_t>(in.a)[lane];
  if (idn >= bars.size()) fault(w, in, lane, FaultKind::Trap, "barrier number out of range");
  Barrier& b = bars[idn];
  if (!b.active) {
    b = {};
    b.active = true;
    b.expected = in.b == kNoRef ? 0 : w.at<uint32_t>(in.b)[lane];
  }
  b.arrived += std::popcount(mask);
  if (in.aux) {
    uint32_t p = w.pred(in.c);
    if (in.flags & kNegC) p = ~p;
    p &= mask;
    b.popc += std::popcount(p);
    b.any |= p != 0;
    b.all &= p == mask;
  }
  ++w.stats.barriers;
  f.bar_id = idn;
  if (!wait)
    ++f.pc;
  else if (mask != f.mask) {
    split(w, mask, f.pc, Fragment::BarWait);
    ++w.cur.pc;
  } else
    park(w, Fragment::BarWait);
  check_barriers();
}

void Block::check_barriers() {
  for (uint32_t i = 0; i < bars.size(); ++i) {
    Barrier& b = bars[i];
    if (!b.active) continue;
    uint32_t need = b.expected ? b.expected : alive;
    if (b.arrived < need) continue;
    b.active = false;
    ++epoch;
    idle_rounds = 0;
    for (Warp& w : warps)
      for (Fragment& f : w.others) {
        if (f.state != Fragment::BarWait || f.bar_id != i) continue;
        Inst const& in = w.prog->code[f.pc];
        if (in.aux) {  // bar.red: result register of this fragment's frame
          char* regs = w.regs0 + f.regs + in.d;
          for (uint32_t m = f.mask; m; m &= m - 1) {
            int l = std::countr_zero(m);
            if (in.aux == 1)
              reinterpret_cast<uint32_t*>(regs)[l] = b.popc;
            else {
              auto& p = *reinterpret_cast<uint32_t*>(regs);
              bool v = in.aux == 2 ? b.all : b.any;
              p = (p & ~(1u << l)) | uint32_t(v) << l;
            }
          }
        }
        f.state = Fragment::Ready;
        ++f.pc;
      }
  }
}

Block::Result Block::run(bool yield_often) {
  auto const run_one = launch->profile ? run_warp<true> : run_warp<false>;
  for (;;) {
    bool any = false, progress = false, slice = false;
    for (Warp& w : warps) {
      if (w.done) continue;
      any = true;
      bool ready = w.has_cur ||
                   std::any_of(w.others.begin(), w.others.end(), [](auto& f) { return f.state == Fragment::Ready; });
      if (!ready) continue;
      progress = true;
      slice |= run_one(w) == Stop::Slice;
    }
    if (!any) return Done;
    if (!progress) {
      std::string msg = "deadlock: no thread of the block can go on";
      Inst const* at = nullptr;
      Warp* who = nullptr;
      int lane = 0;
      for (Warp& w : warps)
        for (Fragment& f : w.others) {
          Inst const& in = w.prog->code[f.pc];
          char m[16];
          snprintf(m, sizeof m, "%08x", f.mask);
          if (msg.size() < 600)
            msg += "\n    warp " + std::to_string(w.index) + " lanes " + m + " wait at PTX line " +
                   std::to_string(in.line) + " \"" + w.prog->opcode_text(in) + "\"";
          if (!at) at = &in, who = &w, lane = std::countr_zero(f.mask);
        }
      fault(*who, *at, lane, FaultKind::Deadlock, msg);
    }
    if (slice && (yield_often || ++idle_rounds > kRoundsBeforeYield)) return Yielded;
  }
}

// ---------------------------------------------------------------------------------------------
// Launch

namespace {

void worker(LaunchState& ls) {
  std::deque<std::unique_ptr<Block>> resident;
  std::vector<std::unique_ptr<Block>> pool;
  const uint64_t total = ls.cfg.grid.count();
  Stats stats;
  std::vector<LineCount> lines(ls.profile ? ls.prog->code.size() : 0);
  bool want_new = true;
  while (!ls.failed) {
    if (want_new || resident.empty()) {
      uint64_t id = resident.size() < 1024 ? ls.next_block.fetch_add(1) : total;
      if (id < total) {
        std::unique_ptr<Block> b;
        if (pool.empty())
          b = std::make_unique<Block>();
        else
          b = std::move(pool.back()), pool.pop_back();
        b->init(ls, id, ls.profile ? lines.data() : nullptr);
        resident.push_front(std::move(b));
      } else if (resident.empty())
        break;
      want_new = false;
    }
    std::unique_ptr<Block> b = std::move(resident.front());
    resident.pop_front();
    try {
      if (b->run(ls.cfg.cooperative) == Block::Done) {
        for (Warp& w : b->warps) stats.add(w.stats);
        pool.push_back(std::move(b));
      } else {
        b->idle_rounds = 0;
        resident.push_back(std::move(b));
        want_new = true;
      }
    } catch (Fault const& f) {
      for (Warp& w : b->warps) stats.add(w.stats);
      std::lock_guard lock(ls.mutex);
      if (!ls.failed.exchange(true)) {
        ls.error = f.what();
        ls.error_kind = f.kind;
      }
    }
  }
  std::lock_guard lock(ls.mutex);
  ls.total.add(stats);
  ls.lines.resize(lines.size());
  for (size_t i = 0; i < lines.size(); ++i) ls.lines[i].add(lines[i]);
}

std::mutex launch_mutex;  // one launch at a time

}  // namespace

Options& Options::get() {
  static Options o = [] {
    Options x;
    auto env = [](char const* n) {
      char const* v = std::getenv(n);
      return std::string(v ? v : "");
    };
    std::string check = env("PTXRUN_CHECK");
    x.check_init = check.find("init") != std::string::npos;
    x.init_warn_only = check.find("initwarn") != std::string::npos;
    x.check_race = check.find("race") != std::string::npos;
    x.check_async = check.find("async") != std::string::npos;
    if (std::string t = env("PTXRUN_THREADS"); !t.empty()) x.threads = std::max(1, std::atoi(t.c_str()));
    x.stats_file = env("PTXRUN_STATS");
    x.profile_file = env("PTXRUN_PROFILE");
    x.arch = std::atoi(env("PTXRUN_ARCH").c_str());
    x.max_insts = std::strtoull(env("PTXRUN_MAX_INSTS").c_str(), nullptr, 10);
    return x;
  }();
  return o;
}

KernelInfo const& Kernel::info() const { return prog_->info; }

void Kernel::launch(Launch const& l, void* const* args) const {
  Options const& opt = Options::get();
  KernelInfo const& info = prog_->info;
  auto bad = [&](std::string const& m) {
    throw Fault(FaultKind::Launch, "ptxrun: launch of " + demangle(info.name) + ": " + m);
  };
  if (!l.grid.count() || !l.block.count()) bad("empty grid or block");
  if (l.grid.x > 0x7fffffff || l.grid.y > 65535 || l.grid.z > 65535) bad("grid too large");
  if (l.block.count() > 1024 || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64) bad("block too large");
  if (l.block.count() > uint64_t(info.max_threads)) bad("block larger than the kernel's launch bounds");
  std::lock_guard lock(launch_mutex);
  LaunchState ls;
  ls.prog = prog_;
  ls.cfg = l;
  ls.shared_bytes = uint32_t(info.static_smem + l.dynamic_smem);
  if (ls.shared_bytes > 227 * 1024) bad("more than 227 KB of shared memory");
  ls.check_init = opt.check_init;
  ls.check_race = opt.check_race;
  ls.check_async = opt.check_async;
  ls.profile = !opt.profile_file.empty();
  ls.stats = !opt.stats_file.empty() || ls.profile;
  ls.observed = ls.stats || ls.check_init || ls.check_race || ls.check_async;
  ls.max_insts = opt.max_insts;
  // 16-byte aligned: vector<char> storage comes from operator new.
  ls.params.resize(info.param_bytes + 16);
  for (size_t i = 0; i < info.param_offset.size(); ++i)
    memcpy(ls.params.data() + info.param_offset[i], args[i], info.param_size[i]);
  MemoryMap::get().add(ls.params.data(), ls.params.size(), false, true);
  ls.workspace[0] = sizeof ls.workspace;
  if (l.cooperative) MemoryMap::get().add(ls.workspace, sizeof ls.workspace, false, true);

  {
    MemoryMap& mm = MemoryMap::get();
    std::lock_guard mem_lock(mm.mutex);
    mm.removed.clear();
  }
  auto start = std::chrono::steady_clock::now();
  int n = int(std::min<uint64_t>(opt.threads, l.grid.count()));
  std::vector<std::thread> extra;
  for (int i = 1; i < n; ++i) extra.emplace_back(worker, std::ref(ls));
  worker(ls);
  for (auto& t : extra) t.join();
  ls.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MemoryMap::get().remove(ls.params.data(), nullptr);
  MemoryMap::get().remove(ls.workspace, nullptr);
  if (!opt.stats_file.empty()) write_stats(ls);
  if (ls.profile) write_profile(ls);
  if (ls.failed) throw Fault(ls.error_kind, ls.error);
}

void Kernel::launch(Launch const& l, std::vector<std::vector<uint8_t>> const& args) const {
  if (args.size() != info().param_size.size())
    throw Fault(FaultKind::Launch, "ptxrun: wrong number of arguments for " + info().name);
  std::vector<void*> p;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].size() != info().param_size[i])
      throw Fault(FaultKind::Launch, "ptxrun: wrong size of argument " + std::to_string(i) + " of " + info().name);
    p.push_back(const_cast<uint8_t*>(args[i].data()));
  }
  launch(l, p.data());
}

Module Module::load(std::string text) {
  Module m;
  m.impl_ = std::make_shared<ModuleImpl>(std::move(text));
  return m;
}

Kernel Module::kernel(std::string_view name) const {
  if (Program* p = impl_->program(std::string(name))) return {impl_, p};
  Function const* found = nullptr;
  for (auto& [n, f] : impl_->functions) {
    if (!f.entry || demangle(n).find(name) == std::string::npos) continue;
    if (found) throw ParseError("kernel name is ambiguous: " + std::string(name));
    found = &f;
  }
  if (!found) return {};
  return {impl_, impl_->program(std::string(found->name))};
}

std::vector<std::string> Module::kernel_names() const {
  std::vector<std::string> v;
  for (auto& [n, f] : impl_->functions)
    if (f.entry) v.emplace_back(n);
  return v;
}

void* Module::variable(std::string_view name, size_t* bytes) const {
  auto it = impl_->symbols.find(name);
  if (it == impl_->symbols.end()) return nullptr;
  if (bytes) *bytes = it->second.bytes;
  return reinterpret_cast<void*>(it->second.addr);
}

int Module::arch() const { return impl_->arch; }

}  // namespace ptxrun
