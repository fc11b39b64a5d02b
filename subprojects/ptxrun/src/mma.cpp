// mma.sync and wmma: matrix multiply-accumulate by one warp.
#include "decode.hpp"
#include "fp.hpp"

namespace ptxrun {

namespace {

enum Elem : uint8_t { kF16, kBF16, kTF32, kF64, kS8, kU8, kS4, kU4, kB1, kF32, kS32, kE4M3, kE5M2 };

int elem_bits(int e) {
  switch (e) {
    case kF16:
    case kBF16: return 16;
    case kTF32:
    case kF32:
    case kS32: return 32;
    case kF64: return 64;
    case kS4:
    case kU4: return 4;
    case kB1: return 1;
    default: return 8;
  }
}

struct Shape {
  int m, n, k;
};

double element(uint64_t const* regs, int reg_bits, int e, int i) {
  int bits = elem_bits(e), per = reg_bits / bits;
  uint64_t v = regs[i / per] >> (i % per * bits);
  switch (e) {
    case kF16: return float(std::bit_cast<F16>(uint16_t(v)));
    case kBF16: return float(std::bit_cast<BF16>(uint16_t(v)));
    case kTF32: return std::bit_cast<float>(uint32_t(v) & 0xffffe000u);
    case kF32: return std::bit_cast<float>(uint32_t(v));
    case kF64: return std::bit_cast<double>(v);
    case kS8: return int8_t(v);
    case kU8: return uint8_t(v);
    case kS4: return int8_t(uint8_t(v << 4)) >> 4;
    case kU4: return double(v & 15);
    case kE4M3: return from_e4m3(uint8_t(v));
    case kE5M2: return from_e5m2(uint8_t(v));
    case kS32: return int32_t(v);
    default: return 0;
  }
}

// Fragment layouts of mma.sync. In a group of four lanes, each register of A holds 32 bits of one row:
// `per` consecutive columns. Registers go rows g, g+8 first, then the next column block.
struct Place {
  int row, col;
};
Place place_a(int lane, int i, int per, int rows_regs) {
  int reg = i / per, within = i % per, g = lane / 4, t = lane % 4;
  return {g + 8 * (reg % rows_regs), t * per + within + 4 * per * (reg / rows_regs)};
}
Place place_b(int lane, int i, int per) {
  int reg = i / per, within = i % per;
  return {lane % 4 * per + within + 4 * per * reg, lane / 4};  // row (k), column (n)
}
Place place_c(int lane, int i) { return {lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2}; }

// The elements of one register of all lanes, as double: v[element][lane].
void unpack_lanes(Warp& w, Ref r, int e, double (*v)[kLanes]) {
  uint32_t const* x = w.at<uint32_t>(r);
  switch (e) {
    case kF64:
      for (int l = 0; l < kLanes; ++l) v[0][l] = w.at<double>(r)[l];
      return;
    case kF32:
      for (int l = 0; l < kLanes; ++l) v[0][l] = std::bit_cast<float>(x[l]);
      return;
    case kS32:
      for (int l = 0; l < kLanes; ++l) v[0][l] = int32_t(x[l]);
      return;
    case kF16:
      for (int l = 0; l < kLanes; ++l) {
        v[0][l] = std::bit_cast<F16>(uint16_t(x[l]));
        v[1][l] = std::bit_cast<F16>(uint16_t(x[l] >> 16));
      }
      return;
    case kBF16:
      for (int l = 0; l < kLanes; ++l) {
        v[0][l] = std::bit_cast<float>(x[l] << 16);
        v[1][l] = std::bit_cast<float>(x[l] & 0xffff0000u);
      }
      return;
    case kS8:
    case kU8:
      for (int i = 0; i < 4; ++i)
        for (int l = 0; l < kLanes; ++l)
          v[i][l] = e == kS8 ? double(int8_t(x[l] >> (8 * i))) : double(uint8_t(x[l] >> (8 * i)));
      return;
    default:
      for (int l = 0; l < kLanes; ++l) {
        uint64_t bits = x[l];
        for (int i = 0; i < 32 / elem_bits(e); ++i) v[i][l] = element(&bits, 32, e, i);
      }
  }
}

// aux: A element | B element << 4; aux2: accumulator element; imm: shape; extra: D, A, B, C registers;
// vec/bytes/flags hold the register counts.
struct Counts {
  int d, a, b, c;
};

void mma(Warp& w, Inst const& in, uint32_t) {
  Shape s{int(in.imm & 255), int(in.imm >> 8 & 255), int(in.imm >> 16 & 0xffff)};
  int ea = in.aux & 15, eb = in.aux >> 4, ec = in.aux2 & 15, ed = in.aux2 >> 4;
  Counts n{in.vec, in.bytes, int(in.imm >> 32 & 255), int(in.imm >> 40 & 255)};
  Ref const *xd = &w.prog->extra[in.x0], *xa = xd + n.d, *xb = xa + n.a, *xc = xb + n.b;
  alignas(64) static thread_local double A[16][256], B[256][8], C[16][8];
  bool const wide = ea == kF64;
  int const per = wide ? 1 : 32 / elem_bits(ea), rows_regs = s.m / 8;
  alignas(64) double v[8][kLanes];
  for (int r = 0; r < n.a; ++r) {
    unpack_lanes(w, xa[r], ea, v);
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < per; ++i) {
        Place p = place_a(l, r * per + i, per, rows_regs);
        A[p.row][p.col] = v[i][l];
      }
  }
  for (int r = 0; r < n.b; ++r) {
    unpack_lanes(w, xb[r], eb, v);
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < per; ++i) {
        Place p = place_b(l, r * per + i, per);
        B[p.row][p.col] = v[i][l];
      }
  }
  int const cper = ec == kF64 ? 1 : 32 / elem_bits(ec);
  for (int r = 0; r < n.c; ++r) {
    unpack_lanes(w, xc[r], ec, v);
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < cper; ++i) {
        Place p = place_c(l, r * cper + i);
        C[p.row][p.col] = v[i][l];
      }
  }
  // Products and sums are formed in double and rounded once: at least as exact as the device.
  alignas(64) static thread_local double D[16][8];
  // Two at a time, which every x86-64 can: wider vectors are taken apart in memory where the machine has none.
  typedef double Two __attribute__((vector_size(16)));
  for (int i = 0; i < s.m; ++i) {
    Two acc[4];
    memcpy(acc, C[i], sizeof acc);
    for (int k = 0; k < s.k; ++k)
      for (int j = 0; j < 4; ++j) acc[j] += A[i][k] * reinterpret_cast<Two const*>(B[k])[j];
    memcpy(D[i], acc, sizeof acc);
  }
  for (int l = 0; l < kLanes; ++l) {
    int dper = (ed == kF64 ? 64 : 32) / elem_bits(ed);
    for (int i = 0; i < n.d; ++i) {
      if (ed == kF64) {
        Place p = place_c(l, i);
        w.at<double>(xd[i])[l] = D[p.row][p.col];
      } else if (dper == 2) {
        Place p = place_c(l, 2 * i);
        w.at<uint32_t>(xd[i])[l] = F16(D[p.row][p.col]).bits | uint32_t(F16(D[p.row][p.col + 1]).bits) << 16;
      } else {
        Place p = place_c(l, i);
        double v = D[p.row][p.col];
        if (ed == kS32)
          w.at<uint32_t>(xd[i])[l] = in.flags & kSat
                                         ? uint32_t(int32_t(std::fmin(std::fmax(v, -2147483648.0), 2147483647.0)))
                                         : uint32_t(int64_t(v));
        else
          w.at<float>(xd[i])[l] = float(v);
      }
    }
  }
}

bool parse_shape(Emit const& e, Shape& s) {
  for (auto m : e.st.mods)
    if (sscanf(std::string(m).c_str(), "m%dn%dk%d", &s.m, &s.n, &s.k) == 3) return true;
  return false;
}

int parse_elem(std::string_view s) {
  static const std::unordered_map<std::string_view, int> t = {
      {"f16", kF16}, {"bf16", kBF16}, {"tf32", kTF32}, {"f64", kF64}, {"s8", kS8},     {"u8", kU8},
      {"s4", kS4},   {"u4", kU4},     {"f32", kF32},   {"s32", kS32}, {"e4m3", kE4M3}, {"e5m2", kE5M2}};
  auto it = t.find(s);
  return it == t.end() ? -1 : it->second;
}

// wmma: the fragment layout is ours to choose. Element e of lane l of a matrix with `total` elements,
// seen as a linear index over rows and columns: consecutive elements of a lane are consecutive columns.
// A and B (16-bit): 16 elements per lane, held twice on the device; here only the first half is used.
// aux: 0 load a, 1 load b, 2 load c, 3 store d. imm: shape; aux2: element | column-major << 7; bytes: registers
struct WmmaDims {
  int rows, cols;
};
WmmaDims wmma_dims(Shape const& s, int which) {
  return which == 0 ? WmmaDims{s.m, s.k} : which == 1 ? WmmaDims{s.k, s.n} : WmmaDims{s.m, s.n};
}

void wmma_load_store(Warp& w, Inst const& in, uint32_t) {
  Shape s{int(in.imm & 255), int(in.imm >> 8 & 255), int(in.imm >> 16 & 255)};
  int e = in.aux2 & 15;
  bool col = in.aux2 & 128, store = in.aux == 3;
  WmmaDims dim = wmma_dims(s, in.aux);
  int bits = elem_bits(e), bytes = bits / 8, per_reg = std::max(32 / bits, 1), per_lane = dim.rows * dim.cols / kLanes;
  Ref const* x = &w.prog->extra[in.x0];
  uint32_t const* stride = w.at<uint32_t>(in.b);
  if (!store)
    for (int i = 0; i < in.bytes; ++i) memset(w.at<uint32_t>(x[i]), 0, 4 * kLanes);
  for (int i = 0; i < per_lane; ++i) {
    alignas(64) uint64_t addr[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      int lin = l * per_lane + i, r = lin / dim.cols, c = lin % dim.cols;
      uint64_t base = in.flags & kAddr32 ? w.at<uint32_t>(in.a)[l] : w.at<uint64_t>(in.a)[l];
      addr[l] = base + uint64_t(col ? c * int64_t(stride[l]) + r : r * int64_t(stride[l]) + c) * uint64_t(bytes);
    }
    // Resolve through a private address operand.
    char* saved = w.base[1];
    w.base[1] = reinterpret_cast<char*>(addr);
    Inst a = in;
    a.flags &= uint8_t(~kAddr32);
    char* p[kLanes];
    try {
      resolve(w, a, ~0u, in.space, uint32_t(bytes), store, p, kBaseConst, in.vec);
    } catch (...) {
      w.base[1] = saved;
      throw;
    }
    w.base[1] = saved;
    int reg = i / per_reg, sh = i % per_reg * bits;
    for (int l = 0; l < kLanes; ++l) {
      uint32_t& v = w.at<uint32_t>(x[reg])[l];
      uint32_t mem = 0;
      if (store) {
        mem = v >> sh;
        memcpy(p[l], &mem, size_t(bytes));
      } else {
        memcpy(&mem, p[l], size_t(bytes));
        v |= mem << sh;
      }
    }
  }
}

void wmma_mma(Warp& w, Inst const& in, uint32_t) {
  Shape s{int(in.imm & 255), int(in.imm >> 8 & 255), int(in.imm >> 16 & 0xffff)};
  int ea = in.aux & 15, ec = in.aux2 & 15, ed = in.aux2 >> 4;
  Counts n{in.vec, in.bytes, int(in.imm >> 32 & 255), int(in.imm >> 40 & 255)};
  Ref const *xd = &w.prog->extra[in.x0], *xa = xd + n.d, *xb = xa + n.a, *xc = xb + n.b;
  static thread_local double M[3][32 * 32];
  auto load = [&](int which, Ref const* x, int e) {
    WmmaDims dim = wmma_dims(s, which);
    int per_lane = dim.rows * dim.cols / kLanes, per_reg = 32 / elem_bits(e);
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < per_lane; ++i) {
        uint64_t r = w.at<uint32_t>(x[i / per_reg])[l];
        M[which][l * per_lane + i] = element(&r, 32, e, i % per_reg);
      }
  };
  load(0, xa, ea);
  load(1, xb, ea);
  load(2, xc, ec);
  int per_lane = s.m * s.n / kLanes, per_reg = 32 / elem_bits(ed);
  for (int i = 0; i < n.d; ++i) memset(w.at<uint32_t>(xd[i]), 0, 4 * kLanes);
  for (int lin = 0; lin < s.m * s.n; ++lin) {
    int r = lin / s.n, c = lin % s.n, l = lin / per_lane, i = lin % per_lane;
    double acc = M[2][lin];
    for (int k = 0; k < s.k; ++k) acc += M[0][r * s.k + k] * M[1][k * s.n + c];
    uint32_t bits = ed == kF32   ? std::bit_cast<uint32_t>(float(acc))
                    : ed == kS32 ? uint32_t(int64_t(acc))
                                 : F16(acc).bits;
    w.at<uint32_t>(xd[i / per_reg])[l] |= bits << (i % per_reg * elem_bits(ed));
  }
}

bool decode_wmma(Emit& e) {
  Shape s;
  if (!parse_shape(e, s)) return false;
  e.in.ctl = Ctl::Sync;
  auto regs = [&](Operand const& o, bool def) {
    for (Operand const& r : o.elems) e.add_extra(def ? e.def(r, 4) : e.use(r, 4), def);
    return int(o.elems.size());
  };
  e.in.imm = uint64_t(s.m) | uint64_t(s.n) << 8 | uint64_t(s.k) << 16;
  if (e.has("mma")) {
    // wmma.mma.sync.aligned.alayout.blayout.shape[.dtype.atype.btype].ctype
    std::vector<int> el;
    for (auto m : e.st.mods)
      if (int x = parse_elem(m); x >= 0) el.push_back(x);
    int ed, ea, ec;
    if (el.size() == 2)
      ed = el[0], ea = kF16, ec = el[1];
    else if (el.size() == 4)
      ed = el[0], ea = el[1], ec = el[3];
    else
      return false;
    if (elem_bits(ea) < 8 || elem_bits(ea) > 32) return false;
    e.in.cls = Cls::Mma;
    int nd = regs(e.arg(0), true), na = regs(e.arg(1), false), nb = regs(e.arg(2), false), nc = regs(e.arg(3), false);
    e.in.vec = uint8_t(nd);
    e.in.bytes = uint8_t(na);
    e.in.imm |= uint64_t(nb) << 32 | uint64_t(nc) << 40;
    e.in.aux = uint8_t(ea);
    e.in.aux2 = uint8_t(ec | ed << 4);
    e.in.fn = wmma_mma;
    e.push();
    return true;
  }
  bool store = e.has("store");
  int el = -1;
  for (auto m : e.st.mods)
    if (int x = parse_elem(m); x >= 0) el = x;
  if (el < 0 || elem_bits(el) < 8 || elem_bits(el) > 32) return false;
  Space sp = e.has("global") ? Space::Global : e.has("shared") || e.has("shared::cta") ? Space::Shared : Space::Generic;
  e.in.cls = sp == Space::Shared ? (store ? Cls::StShared : Cls::LdShared) : (store ? Cls::StGlobal : Cls::LdGlobal);
  e.in.space = sp;
  uint64_t shape = e.in.imm;
  e.address(e.arg(store ? 0 : 1));
  if (e.in.imm > 255) e.fail("address offset is not implemented");
  e.in.vec = uint8_t(e.in.imm);  // address offset
  e.in.imm = shape;
  e.in.aux = store ? 3 : e.has("a") ? 0 : e.has("b") ? 1 : 2;
  e.in.aux2 = uint8_t(el | (e.has("col") ? 128 : 0));
  e.in.bytes = uint8_t(regs(e.arg(store ? 1 : 0), !store));
  WmmaDims d = wmma_dims(s, e.in.aux);
  if (e.nargs() > 2)
    e.in.b = e.use(e.arg(2), 4);
  else
    e.in.b = e.imm(uint64_t(e.has("col") ? d.rows : d.cols), 4);
  e.in.fn = wmma_load_store;
  e.push();
  return true;
}

}  // namespace

bool decode_mma(Emit& e) {
  if (e.base() == "wmma") return decode_wmma(e);
  if (e.base() != "mma") return false;
  Shape s;
  if (!parse_shape(e, s) || e.has("sp") || e.has("mma_sp") || !e.has("row") || e.has("block_scale")) return false;
  std::vector<int> el;  // d, a, b, c
  for (auto m : e.st.mods)
    if (int x = parse_elem(m); x >= 0) el.push_back(x);
  if (el.size() != 4 || s.n != 8 || s.m > 16 || s.k > 256) return false;
  if (s.m == 8 && s.k == 4 && el[1] != kF64) return false;  // the sm_70 layout
  e.in.cls = Cls::Mma;
  e.in.ctl = Ctl::Sync;
  auto regs = [&](Operand const& o, bool def, int elem) {
    size_t n = o.kind == Operand::Vec ? o.elems.size() : 1;
    for (size_t i = 0; i < n; ++i) {
      Operand const& r = o.kind == Operand::Vec ? o.elems[i] : o;
      int bytes = elem == kF64 ? 8 : 4;
      e.add_extra(def ? e.def(r, bytes) : e.use(r, bytes), def);
    }
    return int(n);
  };
  int nd = regs(e.arg(0), true, el[0]), na = regs(e.arg(1), false, el[1]), nb = regs(e.arg(2), false, el[2]),
      nc = regs(e.arg(3), false, el[3]);
  e.in.vec = uint8_t(nd);
  e.in.bytes = uint8_t(na);
  e.in.imm = uint64_t(s.m) | uint64_t(s.n) << 8 | uint64_t(s.k) << 16 | uint64_t(nb) << 32 | uint64_t(nc) << 40;
  e.in.aux = uint8_t(el[1] | el[2] << 4);
  e.in.aux2 = uint8_t(el[3] | el[0] << 4);
  if (e.has("satfinite")) e.in.flags |= kSat;
  e.in.fn = mma;
  e.push();
  return true;
}

}  // namespace ptxrun
