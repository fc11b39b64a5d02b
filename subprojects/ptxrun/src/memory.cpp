// Registered device memory, and the path every load and store takes: address -> checked host pointer.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "decode.hpp"

namespace ptxrun {

MemoryMap& MemoryMap::get() {
  static MemoryMap* map = new MemoryMap;  // never destroyed: used by destructors of static objects
  return *map;
}

void MemoryMap::add(void* p, size_t bytes, bool owned, bool initialised) {
  auto a = std::make_unique<Allocation>();
  a->base = uint64_t(p);
  a->end = a->base + bytes;
  a->owned = owned;
  if (Options::get().check_init) a->init.assign((bytes + 7) / 8 + 8, initialised ? 0xff : 0);
  std::lock_guard lock(mutex);
  by_base[a->base] = std::move(a);
}

bool MemoryMap::remove(void* p, bool* owned) {
  std::lock_guard lock(mutex);
  auto it = by_base.find(uint64_t(p));
  if (it == by_base.end()) return false;
  if (owned) *owned = it->second->owned;
  it->second->end = it->second->base;  // nothing is inside any more
  it->second->touched.clear();
  removed.push_back(std::move(it->second));
  by_base.erase(it);
  return true;
}

Allocation* MemoryMap::find(uint64_t addr) {
  std::lock_guard lock(mutex);
  auto it = by_base.upper_bound(addr);
  if (it == by_base.begin()) return nullptr;
  Allocation* a = std::prev(it)->second.get();
  return addr < a->end ? a : nullptr;
}

Allocation* MemoryMap::nearest(uint64_t addr) {
  std::lock_guard lock(mutex);
  Allocation* best = nullptr;
  uint64_t dist = ~0ull;
  for (auto& [base, a] : by_base) {
    uint64_t d = addr < base ? base - addr : addr - (a->end - 1);
    if (d < dist) dist = d, best = a.get();
  }
  return best;
}

void* Memory::alloc(size_t bytes) {
  size_t room = (bytes + 511) / 256 * 256;
  void* p = std::aligned_alloc(256, room);
  if (!p) return nullptr;
  memset(p, 0xff, room);
  MemoryMap::get().add(p, bytes, true, false);
  return p;
}
bool Memory::free(void* p) {
  bool owned = false;
  if (!MemoryMap::get().remove(p, &owned) || !owned) return false;
  std::free(p);
  return true;
}
void Memory::add(void* p, size_t bytes, bool initialised) { MemoryMap::get().add(p, bytes, false, initialised); }
bool Memory::remove(void* p) { return MemoryMap::get().remove(p, nullptr); }
bool Memory::contains(void const* p, size_t bytes) {
  Allocation* a = MemoryMap::get().find(uint64_t(p));
  return a && uint64_t(p) + bytes <= a->end;
}

namespace {

void set_init(Allocation& a, uint64_t addr, uint64_t bytes) {
  for (uint64_t o = addr - a.base, e = o + bytes; o < e; ++o)
    __atomic_fetch_or(&a.init[o / 8], uint8_t(1 << (o % 8)), __ATOMIC_RELAXED);
}
bool is_init(Allocation const& a, uint64_t addr, uint64_t bytes) {
  for (uint64_t o = addr - a.base, e = o + bytes; o < e; ++o)
    if (!(a.init[o / 8] >> (o % 8) & 1)) return false;
  return true;
}

std::string hex(uint64_t v) {
  char s[32];
  snprintf(s, sizeof s, "0x%llx", (unsigned long long)v);
  return s;
}

char const* access_name(int write) { return write == 0 ? "read" : write == 1 ? "write" : "atomic"; }

[[noreturn]] void out_of_bounds(Warp& w, Inst const& in, int lane, uint64_t addr, uint32_t bytes, int write) {
  std::string msg = std::string("out-of-bounds global ") + access_name(write) + " of " + std::to_string(bytes) +
                    " bytes at " + hex(addr);
  if (Allocation* a = MemoryMap::get().nearest(addr); a) {
    uint64_t size = a->end - a->base;
    if (addr >= a->base)
      msg += ": byte " + std::to_string(addr - a->base) + " of an allocation of " + std::to_string(size) + " bytes";
    else
      msg +=
          ": " + std::to_string(a->base - addr) + " bytes before an allocation of " + std::to_string(size) + " bytes";
  }
  fault(w, in, lane, FaultKind::OutOfBounds, msg);
}

// Some programs read padding whose value they never use, so this can be a warning (once per place).
void uninitialised(Warp& w, Inst const& in, int lane, std::string const& msg) {
  if (!Options::get().init_warn_only) fault(w, in, lane, FaultKind::Uninitialised, msg);
  LaunchState& ls = *w.block->launch;
  std::lock_guard lock(ls.mutex);
  if (!ls.warned.insert(&in).second) return;
  try {
    fault(w, in, lane, FaultKind::Uninitialised, msg);
  } catch (Fault const& f) {
    std::fprintf(stderr, "%s\n  (warning only)\n", f.what());
  }
}

// The different keys of one request, at most 64.
struct SmallSet {
  uint64_t key[64];
  uint8_t slot[128] = {};  // hash table: index + 1
  int n = 0;
  int add(uint64_t k) {  // index of the key
    if (n && key[n - 1] == k) return n - 1;
    uint32_t h = uint32_t(k ^ k >> 7 ^ k >> 14) & 127;
    while (slot[h] && key[slot[h] - 1] != k) h = (h + 1) & 127;
    if (slot[h]) return slot[h] - 1;
    key[n] = k;
    slot[h] = uint8_t(++n);
    return n - 1;
  }
};

// Sectors, useful bytes and first-touch marks of one global request.
void count_global(Warp& w, uint32_t mask, uint64_t const* addr, uint32_t bytes, int write, Allocation* one) {
  SmallSet set;
  uint32_t used[kLanes];
  for (uint32_t m = mask; m; m &= m - 1) {
    uint64_t a = addr[std::countr_zero(m)];
    uint32_t bits = uint32_t(((1ull << bytes) - 1) << (a & 31));
    int before = set.n, i = set.add(a / 32);
    used[i] = i == before ? bits : used[i] | bits;
  }
  int const n = set.n;
  uint64_t const* sector = set.key;
  MemStats& st = write == 0 ? w.stats.ld : write == 1 ? w.stats.st : w.stats.atom;
  ++st.requests;
  st.sectors += n;
  if (w.profile) w.profile[w.cur.pc].sectors += n;
  for (int i = 0; i < n; ++i) {
    st.useful += std::popcount(used[i]);
    Allocation* al = one ? one : MemoryMap::get().find(std::max(sector[i] * 32, uint64_t(0)));
    if (!al) continue;
    if (al->touched.empty()) {
      MemoryMap& mm = MemoryMap::get();
      std::lock_guard lock(mm.mutex);
      if (al->touched.empty()) {
        std::vector<std::atomic<uint8_t>> t((al->end - al->base) / 32 + 2);
        al->touched.swap(t);
      }
    }
    auto& t = al->touched[sector[i] - al->base / 32];
    uint8_t flag = write == 0 ? 1 : write == 1 ? 2 : 3;
    if ((t.load(std::memory_order_relaxed) & flag) != flag) t.fetch_or(flag, std::memory_order_relaxed);
  }
}

// Shared memory: passes over the 32 banks. Wide accesses are served in halves or quarters of a warp.
uint32_t wavefronts(uint32_t m, uint64_t const* addr, uint32_t bytes) {
  SmallSet words;  // at most 32 of 4 bytes, or 8 of 16 bytes
  uint32_t count[kLanes] = {}, worst = 1;
  for (; m; m &= m - 1) {
    uint64_t a = addr[std::countr_zero(m)];
    for (uint64_t word = a / 4; word <= (a + bytes - 1) / 4; ++word)
      if (int before = words.n; words.add(word) == before) worst = std::max(worst, ++count[word % 32]);
  }
  return worst;
}

void count_shared(Warp& w, Inst const& in, uint32_t mask, uint64_t const* addr, uint32_t bytes, int write) {
  SharedKind kind = in.shared_kind == SharedKind::Auto ? SharedKind(write) : in.shared_kind;
  SharedStats& st = w.stats.shared[size_t(kind)];
  // ldmatrix and stmatrix come here once for each matrix, but are one request.
  bool matrix = kind == SharedKind::LdMatrix || kind == SharedKind::StMatrix;
  st.requests += !matrix || (mask & 1);
  int groups = bytes <= 4 ? 1 : bytes <= 8 ? 2 : 4, lanes = kLanes / groups;
  uint32_t n = 0;
  // Usual case: no bank is asked for two words. Each part of the warp has a row of `lanes` places, one for
  // each piece of max(4, bytes) bytes that the banks can deliver at once.
  bool clean = bytes <= 16;
  if (clean) {
    uint32_t place[kLanes], piece[kLanes], part = uint32_t(lanes) - 1;
    int shift = bytes <= 4 ? 2 : bytes <= 8 ? 3 : 4;
    auto at = [&](int l) { return (uint32_t(l) & ~part) | (piece[l] & part); };
    for (int l = 0; l < kLanes; ++l) piece[l] = uint32_t(addr[l] >> shift);
    uint32_t bad = 0;
    if (mask == ~0u) {
      for (int l = 0; l < kLanes; ++l) place[at(l)] = piece[l];
      for (int l = 0; l < kLanes; ++l) bad |= place[at(l)] ^ piece[l];
    } else {
      for (uint32_t m = mask; m; m &= m - 1) {
        int l = std::countr_zero(m);
        place[at(l)] = piece[l];
      }
      for (uint32_t m = mask; m; m &= m - 1) {
        int l = std::countr_zero(m);
        bad |= place[at(l)] ^ piece[l];
      }
    }
    clean = bad == 0;
  }
  for (int g = 0; g < groups; ++g)
    if (uint32_t m = mask & (groups == 1 ? ~0u : ((1u << lanes) - 1) << (g * lanes)); m)
      n += clean ? 1 : wavefronts(m, addr, bytes);
  st.wavefronts += n;
  if (w.profile) w.profile[w.cur.pc].wavefronts += n;
}

void race_check(Warp& w, Inst const& in, uint32_t mask, uint64_t const* addr, uint32_t bytes, int write) {
  Block& b = *w.block;
  uint16_t me = uint16_t(w.index + 1);
  for (uint32_t m = mask; m; m &= m - 1) {
    int l = std::countr_zero(m);
    for (uint32_t k = 0; k < bytes; ++k) {
      SharedShadow& s = b.shadow[addr[l] + k];
      bool written = s.write_epoch == b.epoch && s.writer != me && !(write == 2 && s.atomic);
      bool was_read = s.read_epoch == b.epoch && (s.many_readers || s.reader != me);
      if (written || (write && was_read))
        fault(w, in, l, FaultKind::Race,
              std::string("race on shared memory byte ") + std::to_string(addr[l] + k) + ": " + access_name(write) +
                  " without a barrier after a " + (written ? "write" : "read") + " by warp " +
                  std::to_string((written ? s.writer : s.reader) - 1));
      if (write) {
        s.write_epoch = b.epoch;
        s.writer = me;
        s.atomic = write == 2;
      } else if (s.read_epoch != b.epoch) {
        s.read_epoch = b.epoch;
        s.reader = me;
        s.many_readers = false;
      } else if (s.reader != me)
        s.many_readers = true;
    }
  }
}

// Async check: no access may touch the destination of a copy that its thread has not waited for.
void async_check(Warp& w, Inst const& in, uint32_t mask, uint64_t const* addr, uint32_t bytes, int write) {
  Block& b = *w.block;
  for (uint32_t m = mask; m; m &= m - 1) {
    int l = std::countr_zero(m);
    for (uint64_t word = addr[l] / 4; word <= (addr[l] + bytes - 1) / 4; ++word) {
      AsyncWord const& a = b.async_words[word];
      if (!a.number) continue;
      AsyncThread const& t = b.async_threads[a.thread];
      if (a.number <= t.done) continue;
      auto it =
          std::find_if(t.copies.begin(), t.copies.end(), [&](AsyncCopy const& c) { return c.number == a.number; });
      bool committed = !t.groups.empty() && a.number <= t.groups.back();
      bool const own = a.thread == w.index * kLanes + uint32_t(l);
      std::string msg = std::string("shared ") + access_name(write) + " at " + hex(addr[l]) +
                        " before the end of an asynchronous copy: cp.async";
      if (it != t.copies.end()) {
        msg += " at PTX line " + std::to_string(it->inst->line);
        if (std::string src = w.prog->module->source_of(it->inst->src); !src.empty()) msg += ", " + src;
      }
      msg += " by " +
             (own ? std::string("this thread")
                  : "warp " + std::to_string(a.thread / kLanes) + ", lane " + std::to_string(a.thread % kLanes)) +
             (committed ? ", group not waited for" : ", not committed and not waited for");
      fault(w, in, l, FaultKind::Async, msg);
    }
  }
}

}  // namespace

void async_issue(Warp& w, Inst const& in, uint32_t mask, char* const* dst) {
  Block& b = *w.block;
  for (uint32_t m = mask; m; m &= m - 1) {
    int l = std::countr_zero(m);
    uint32_t thread = w.index * kLanes + uint32_t(l), at = uint32_t(dst[l] - b.shared);
    AsyncThread& t = b.async_threads[thread];
    t.copies.push_back({++t.issued, at, in.bytes, &in});
    for (uint32_t o = 0; o < in.bytes; o += 4) b.async_words[(at + o) / 4] = {thread, t.issued};
  }
}

void async_finish(Block& b, uint32_t thread, uint32_t number, bool by_barrier) {
  AsyncThread& t = b.async_threads[thread];
  if (number <= t.done) return;
  t.done = number;
  size_t n = 0;
  for (; n < t.copies.size() && t.copies[n].number <= number; ++n) {
    // For the race check the copy writes now, as its thread: others need a barrier after the wait. (An mbarrier
    // is that barrier.)
    if (b.shadow.empty() || by_barrier) continue;
    AsyncCopy const& c = t.copies[n];
    for (uint32_t i = c.at; i < c.at + c.bytes; ++i) {
      SharedShadow& s = b.shadow[i];
      s.write_epoch = b.epoch;
      s.writer = uint16_t(thread / kLanes + 1);
      s.atomic = false;
    }
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + ptrdiff_t(n));
}

void async_wait(Warp& w, int lane, uint32_t keep_groups) {
  uint32_t thread = w.index * kLanes + uint32_t(lane);
  AsyncThread& t = w.block->async_threads[thread];
  if (t.groups.size() <= keep_groups) return;
  auto last = t.groups.end() - ptrdiff_t(keep_groups) - 1;
  async_finish(*w.block, thread, *last, false);
  t.groups.erase(t.groups.begin(), last + 1);
}

void Memory::mark_initialised(void const* p, size_t bytes) {
  if (!Options::get().check_init || !bytes) return;
  if (Allocation* a = MemoryMap::get().find(uint64_t(p)); a && !a->init.empty()) {
    uint64_t end = std::min(uint64_t(p) + bytes, a->end), at = uint64_t(p);
    for (; at < end && (at - a->base) % 8; ++at) set_init(*a, at, 1);
    uint64_t whole = (end - at) / 8;
    if (at < end) memset(&a->init[(at - a->base) / 8], 0xff, whole);
    set_init(*a, at + whole * 8, end - (at + whole * 8));
  }
}

void resolve(Warp& w, Inst const& in, uint32_t mask, Space space, uint32_t bytes, int write, char** out, Ref addr_ref,
             uint64_t offset) {
  alignas(64) uint64_t addr[kLanes];
  uint64_t lo = ~0ull, hi = 0, low_bits = 0;
  if (in.flags & kAddr32) {
    uint32_t const* a = w.at<uint32_t>(addr_ref);
    for (int l = 0; l < kLanes; ++l) addr[l] = uint32_t(a[l] + uint32_t(offset));
  } else {
    uint64_t const* a = w.at<uint64_t>(addr_ref);
    for (int l = 0; l < kLanes; ++l) addr[l] = a[l] + offset;
  }
  if (mask == ~0u) {
    for (int l = 0; l < kLanes; ++l) {
      lo = std::min(lo, addr[l]);
      hi = std::max(hi, addr[l]);
      low_bits |= addr[l];
    }
  } else {
    for (uint32_t m = mask; m; m &= m - 1) {
      uint64_t a = addr[std::countr_zero(m)];
      lo = std::min(lo, a);
      hi = std::max(hi, a);
      low_bits |= a;
    }
  }
  if (low_bits & (bytes - 1)) {
    for (uint32_t m = mask; m; m &= m - 1)
      if (int l = std::countr_zero(m); addr[l] & (bytes - 1))
        fault(w, in, l, FaultKind::Misaligned,
              std::string("misaligned ") + access_name(write) + " of " + std::to_string(bytes) + " bytes at " +
                  hex(addr[l]));
  }
  if (space == Space::Generic) {
    uint64_t window = lo & ~((1ull << 60) - 1);
    if (window != (hi & ~((1ull << 60) - 1))) {  // lanes address different spaces: one after the other
      for (uint64_t win = 0; win < 16; ++win) {
        uint32_t part = 0;
        for (uint32_t m = mask; m; m &= m - 1)
          if (int l = std::countr_zero(m); addr[l] >> 60 == win) part |= 1u << l;
        if (part) resolve(w, in, part, Space::Generic, bytes, write, out, addr_ref, offset);
      }
      return;
    }
    space = window == kSharedWindow ? Space::Shared : window == kLocalWindow ? Space::Local : Space::Global;
  }
  LaunchState& ls = *w.block->launch;
  if (space == Space::Shared) {
    if (lo >> 60 == 1) {
      for (int l = 0; l < kLanes; ++l) addr[l] &= kSharedWindow - 1;
      hi &= kSharedWindow - 1;
    }
    Block& b = *w.block;
    if (hi + bytes > b.shared_bytes) {
      for (uint32_t m = mask; m; m &= m - 1)
        if (int l = std::countr_zero(m); addr[l] + bytes > b.shared_bytes)
          fault(w, in, l, FaultKind::OutOfBounds,
                std::string("out-of-bounds shared ") + access_name(write) + " of " + std::to_string(bytes) +
                    " bytes at " + hex(addr[l]) + ": the block has " + std::to_string(b.shared_bytes) + " bytes");
    }
    if (ls.observed) [[unlikely]] {
      if (ls.stats) count_shared(w, in, mask, addr, bytes, write);
      if (ls.check_async) async_check(w, in, mask, addr, bytes, write);
      if (ls.check_race && !(in.flags & kVolatile)) race_check(w, in, mask, addr, bytes, write);
      if (ls.check_init) {
        for (uint32_t m = mask; m; m &= m - 1) {
          int l = std::countr_zero(m);
          for (uint32_t k = 0; k < bytes; ++k) {
            uint8_t& s = b.shared_init[addr[l] + k];
            if (write == 1)
              s = 1;
            else if (!s)
              uninitialised(w, in, l, "read of uninitialised shared memory at " + hex(addr[l] + k));
          }
        }
      }
    }
    for (int l = 0; l < kLanes; ++l) out[l] = b.shared + addr[l];
    return;
  }
  if (space == Space::Local) {
    size_t size = w.local_store.size() / kLanes;
    for (uint32_t m = mask; m; m &= m - 1) {
      int l = std::countr_zero(m);
      uint64_t a = addr[l] & (kLocalWindow - 1);
      if (a + bytes > size)
        fault(w, in, l, FaultKind::OutOfBounds,
              std::string("out-of-bounds local ") + access_name(write) + " at " + hex(a));
      out[l] = w.local_store.data() + l * size + a;
    }
    return;
  }
  // Global, constant and kernel parameter memory. Usually all lanes are inside one allocation.
  Allocation* al = nullptr;
  auto& cache = w.alloc_cache;
  for (size_t i = 0; i < cache.size(); ++i) {
    Allocation* c = cache[i];
    if (!c || lo < c->base || hi + bytes > c->end) continue;
    al = c;
    break;
  }
  if (!al) {
    al = MemoryMap::get().find(lo);
    if (al && hi + bytes <= al->end) {
      std::copy_backward(cache.begin(), cache.end() - 1, cache.end());
      cache[0] = al;
    } else {
      al = nullptr;
      for (uint32_t m = mask; m; m &= m - 1) {
        int l = std::countr_zero(m);
        Allocation* a = MemoryMap::get().find(addr[l]);
        if (!a || addr[l] + bytes > a->end) out_of_bounds(w, in, l, addr[l], bytes, write);
      }
    }
  }
  if (ls.stats) count_global(w, mask, addr, bytes, write, al);
  if (ls.check_init) {
    for (uint32_t m = mask; m; m &= m - 1) {
      int l = std::countr_zero(m);
      Allocation* a = al ? al : MemoryMap::get().find(addr[l]);
      if (a->init.empty()) continue;
      if (write != 1 && !is_init(*a, addr[l], bytes))
        uninitialised(w, in, l,
                      "read of uninitialised global memory at byte " + std::to_string(addr[l] - a->base) +
                          " of an allocation of " + std::to_string(a->end - a->base) + " bytes");
      if (write) set_init(*a, addr[l], bytes);
    }
  }
  for (int l = 0; l < kLanes; ++l) out[l] = reinterpret_cast<char*>(addr[l]);
}

}  // namespace ptxrun
