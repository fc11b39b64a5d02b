// cvt in all its forms, and cvta / isspacep.
#include <algorithm>

#include "decode.hpp"
#include "fp.hpp"

namespace ptxrun {

namespace {

enum CvtFlags : uint64_t { kIntRound = 1, kSatFlag = 2, kFtzFlag = 4, kRelu = 8, kSatFinite = 16 };

template <class D, class A>
void cast(Warp& w, Inst const& in, uint32_t m) {
  D* d = w.at<D>(in.d);
  A const* a = w.at<A>(in.a);
  for_lanes(m, [&](int l) {
    if constexpr (std::is_same_v<A, F16> || std::is_same_v<A, BF16>)
      d[l] = D(float(a[l]));
    else
      d[l] = D(a[l]);
  });
}

// float -> 32-bit integer towards zero, saturating; NaN gives 0.
template <class I>
void f32_to_int_rz(Warp& w, Inst const& in, uint32_t m) {
  I* d = w.at<I>(in.d);
  float const* a = w.at<float>(in.a);
  constexpr float lo = float(std::numeric_limits<I>::min()), hi = 4294967040.0f, hi_s = 2147483520.0f;
  constexpr float top = std::is_signed_v<I> ? hi_s : hi;
  for_lanes(m, [&](int l) {
    float x = a[l];
    d[l] = x != x    ? I(0)
           : x < lo  ? std::numeric_limits<I>::min()
           : x > top ? std::numeric_limits<I>::max()
                     : I(int64_t(x));
  });
}

void f32_round_int(Warp& w, Inst const& in, uint32_t m) {
  float* d = w.at<float>(in.d);
  float const* a = w.at<float>(in.a);
  switch (Round(in.aux)) {
    case Round::Nearest: for_lanes(m, [&](int l) { d[l] = __builtin_rintf(a[l]); }); break;
    case Round::Zero: for_lanes(m, [&](int l) { d[l] = __builtin_truncf(a[l]); }); break;
    case Round::Down: for_lanes(m, [&](int l) { d[l] = __builtin_floorf(a[l]); }); break;
    default: for_lanes(m, [&](int l) { d[l] = __builtin_ceilf(a[l]); }); break;
  }
}

// Integer to integer: take the low bits of the source type, extend, narrow to the destination type,
// extend to the destination register. aux/aux2: source / destination types.
template <class DR, class SR>
void int_to_int(Warp& w, Inst const& in, uint32_t m) {
  DR* d = w.at<DR>(in.d);
  SR const* a = w.at<SR>(in.a);
  Ty st = Ty(in.aux), dt = Ty(in.aux2);
  int s = 64 - 8 * type_bytes(st), t = 64 - 8 * type_bytes(dt);
  bool ss = is_signed(st), ds = is_signed(dt);
  if (in.imm & kSatFlag) {
    __int128 lo = ds ? -((__int128)1 << (63 - t)) : 0,
             hi = ds ? ((__int128)1 << (63 - t)) - 1 : ((__int128)1 << (64 - t)) - 1;
    for_lanes(m, [&](int l) {
      uint64_t u = uint64_t(a[l]) << s;
      __int128 v = ss ? (__int128)(int64_t(u) >> s) : (__int128)(u >> s);
      d[l] = DR(v < lo ? lo : v > hi ? hi : v);
    });
    return;
  }
  if (ss && ds)
    for_lanes(m, [&](int l) { d[l] = DR(int64_t(uint64_t(int64_t(uint64_t(a[l]) << s) >> s) << t) >> t); });
  else if (ss)
    for_lanes(m, [&](int l) { d[l] = DR((uint64_t(int64_t(uint64_t(a[l]) << s) >> s) << t) >> t); });
  else if (ds)
    for_lanes(m, [&](int l) { d[l] = DR(int64_t((uint64_t(a[l]) << s >> s) << t) >> t); });
  else
    for_lanes(m, [&](int l) { d[l] = DR((uint64_t(a[l]) << s >> s) << t >> t); });
}
template <class DR>
Handler int_to_int_for(int sr) {
  return sr == 2 ? int_to_int<DR, uint16_t> : sr == 4 ? int_to_int<DR, uint32_t> : int_to_int<DR, uint64_t>;
}

// Any other pair of types. in.bytes / in.vec: source / destination register widths; x0: rounding mode.
uint64_t read_lane(Warp& w, Ref r, int bytes, int l) {
  return bytes == 2 ? w.at<uint16_t>(r)[l] : bytes == 4 ? w.at<uint32_t>(r)[l] : w.at<uint64_t>(r)[l];
}
void write_lane(Warp& w, Ref r, int bytes, int l, uint64_t v) {
  if (bytes == 2)
    w.at<uint16_t>(r)[l] = uint16_t(v);
  else if (bytes == 4)
    w.at<uint32_t>(r)[l] = uint32_t(v);
  else
    w.at<uint64_t>(r)[l] = v;
}
long double round_int(long double x, Round r) {
  switch (r) {
    case Round::Zero: return std::trunc(x);
    case Round::Down: return std::floor(x);
    case Round::Up: return std::ceil(x);
    default: return std::nearbyint(x);
  }
}
uint64_t encode(long double x, Ty t, Round r, bool ftz) {
  switch (t) {
    case Ty::F64:
      return std::bit_cast<uint64_t>(
          double(r == Round::Nearest ? x : round_to(x, 52, -1022, 1023, r, 0x1.fffffffffffffp1023L)));
    case Ty::F32: {
      float f = float(r == Round::Nearest ? x : round_to(x, 23, -126, 127, r, 0x1.fffffep127L));
      return std::bit_cast<uint32_t>(ftz ? flush(f) : f);
    }
    case Ty::F16:
      if (std::isnan(x)) return 0x7fff;
      return F16(float(round_to(x, 10, -14, 15, r, 65504.0L))).bits;
    case Ty::BF16:
      if (std::isnan(x)) return 0x7fff;
      return BF16(float(round_to(x, 7, -126, 127, r, 0x1.fep127L))).bits;
    case Ty::TF32:
      return std::bit_cast<uint32_t>(float(std::isnan(x) ? x : round_to(x, 10, -126, 127, r, 0x1.ffcp127L)));
    default: return 0;
  }
}
void generic(Warp& w, Inst const& in, uint32_t m) {
  Ty st = Ty(in.aux), dt = Ty(in.aux2);
  Round r = Round(in.b & 15);
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    uint64_t bits = read_lane(w, in.a, in.bytes, l);
    long double x = 0;
    int sh = 64 - 8 * type_bytes(st);
    switch (st) {
      case Ty::F64: x = std::bit_cast<double>(bits); break;
      case Ty::F32:
      case Ty::TF32: {
        float f = std::bit_cast<float>(uint32_t(bits));
        x = in.imm & kFtzFlag ? flush(f) : f;
        break;
      }
      case Ty::F16: x = float(std::bit_cast<F16>(uint16_t(bits))); break;
      case Ty::BF16: x = float(std::bit_cast<BF16>(uint16_t(bits))); break;
      default:
        if (is_signed(st))
          x = (long double)(int64_t(bits << sh) >> sh);
        else
          x = (long double)(bits << sh >> sh);
    }
    if (is_float(dt)) {
      if (in.imm & kIntRound) x = round_int(x, r);
      if (in.imm & kSatFlag) x = !(x > 0) ? 0 : x > 1 ? 1 : x;
      if ((in.imm & kRelu) && x < 0) x = 0;
      if (in.imm & kSatFinite) {
        long double top = dt == Ty::F16 ? 65504.0L : dt == Ty::BF16 ? 0x1.fep127L : 0x1.ffcp127L;
        if (!std::isnan(x)) x = std::clamp(x, -top, top);
      }
      write_lane(w, in.d, in.vec, l, encode(x, dt, in.imm & kIntRound ? Round::Nearest : r, in.imm & kFtzFlag));
    } else {
      int n = 8 * type_bytes(dt);
      uint64_t v;
      if (std::isnan(x))
        v = n == 64 ? 1ull << 63 : 0;
      else {
        x = round_int(x, r);
        if (is_signed(dt)) {
          long double lo = -std::ldexp(1.0L, n - 1), hi = std::ldexp(1.0L, n - 1) - 1;
          v = uint64_t(int64_t(std::clamp(x, lo, hi)));
        } else {
          v = uint64_t(std::clamp(x, 0.0L, std::ldexp(1.0L, n) - 1));
        }
      }
      write_lane(w, in.d, in.vec, l, v);
    }
  }
}

// Packed results: d.hi = a, d.lo = b (or the halves of one packed source). aux2: destination type.
void to_pair(Warp& w, Inst const& in, uint32_t m) {
  Ty dt = Ty(in.aux2), st = Ty(in.aux);
  Round r = Round(in.imm >> 8);
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    float hi, lo;
    if (st == Ty::F32)
      hi = w.at<float>(in.a)[l], lo = w.at<float>(in.b)[l];
    else if (st == Ty::F16x2)
      hi = w.at<Pair<F16>>(in.a)[l].hi, lo = w.at<Pair<F16>>(in.a)[l].lo;
    else if (st == Ty::BF16x2)
      hi = w.at<Pair<BF16>>(in.a)[l].hi, lo = w.at<Pair<BF16>>(in.a)[l].lo;
    else {
      uint16_t v = w.at<uint16_t>(in.a)[l];
      hi = st == Ty::E4M3x2 ? from_e4m3(uint8_t(v >> 8)) : from_e5m2(uint8_t(v >> 8));
      lo = st == Ty::E4M3x2 ? from_e4m3(uint8_t(v)) : from_e5m2(uint8_t(v));
    }
    if (in.imm & kRelu) hi = hi < 0 ? 0 : hi, lo = lo < 0 ? 0 : lo;
    if ((in.imm & kSatFinite) && (dt == Ty::F16x2 || dt == Ty::BF16x2)) {
      float top = dt == Ty::F16x2 ? 65504.0f : 0x1.fep127f;
      if (hi == hi) hi = std::clamp(hi, -top, top);
      if (lo == lo) lo = std::clamp(lo, -top, top);
    }
    switch (dt) {
      case Ty::F16x2:
        w.at<uint32_t>(in.d)[l] = r == Round::Nearest ? uint32_t(F16(hi).bits) << 16 | F16(lo).bits
                                                      : uint32_t(encode(hi, Ty::F16, r, false)) << 16 |
                                                            uint32_t(encode(lo, Ty::F16, r, false));
        break;
      case Ty::BF16x2:
        w.at<uint32_t>(in.d)[l] = r == Round::Nearest ? uint32_t(BF16(hi).bits) << 16 | BF16(lo).bits
                                                      : uint32_t(encode(hi, Ty::BF16, r, false)) << 16 |
                                                            uint32_t(encode(lo, Ty::BF16, r, false));
        break;
      case Ty::E4M3x2: w.at<uint16_t>(in.d)[l] = uint16_t(to_e4m3(hi) << 8 | to_e4m3(lo)); break;
      default: w.at<uint16_t>(in.d)[l] = uint16_t(to_e5m2(hi) << 8 | to_e5m2(lo)); break;
    }
  }
}

// cvt.pack.sat.dtype.s32{.b32} d, a, b{, c}: aux: destination bytes, aux2: signed
void pack_sat(Warp& w, Inst const& in, uint32_t m) {
  int n = 8 * in.aux;
  int64_t lo = in.aux2 ? -(1ll << (n - 1)) : 0, hi = in.aux2 ? (1ll << (n - 1)) - 1 : (1ll << n) - 1;
  uint32_t mask = (1u << n) - 1;
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    uint32_t a = uint32_t(std::clamp<int64_t>(w.at<int32_t>(in.a)[l], lo, hi)) & mask,
             b = uint32_t(std::clamp<int64_t>(w.at<int32_t>(in.b)[l], lo, hi)) & mask;
    uint32_t v = a << n | b;
    if (in.c != kNoRef) v |= w.at<uint32_t>(in.c)[l] << (2 * n);
    w.at<uint32_t>(in.d)[l] = v;
  }
}

template <bool To>
void cvta_window(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint64_t>(in.d), *a = w.at<uint64_t>(in.a);
  uint64_t base = in.imm;
  if (To)
    for_lanes(m, [&](int l) { d[l] = a[l] & (base - 1); });
  else
    for_lanes(m, [&](int l) { d[l] = a[l] | base; });
}
void copy64(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint64_t>(in.d), *a = w.at<uint64_t>(in.a);
  for_lanes(m, [&](int l) { d[l] = a[l]; });
}
void isspacep(Warp& w, Inst const& in, uint32_t m) {
  auto* a = w.at<uint64_t>(in.a);
  uint32_t r = 0;
  for (int l = 0; l < kLanes; ++l) r |= uint32_t((a[l] >> 60) == in.imm) << l;
  uint32_t& d = w.pred(in.d);
  d = (d & ~m) | (r & m);
}

bool is_int(Ty t) { return t >= Ty::B8 && t <= Ty::S64 && t != Ty::B128; }

}  // namespace

bool decode_cvt(Emit& e) {
  std::string_view b = e.base();
  if (b == "cvta") {
    e.in.cls = Cls::Move;
    bool to = e.has("to");
    e.in.d = e.def(e.arg(0), 8);
    e.in.a = e.use(e.arg(1), 8);
    bool shared = e.has("shared") || e.has("shared::cta") || e.has("shared::cluster");
    e.in.imm = shared ? kSharedWindow : e.has("local") ? kLocalWindow : 0;
    e.in.fn = !e.in.imm ? copy64 : to ? cvta_window<true> : cvta_window<false>;
    e.push();
    return true;
  }
  if (b == "isspacep") {
    e.in.cls = Cls::Int;
    e.in.d = e.def(e.arg(0), 0);
    e.in.a = e.use(e.arg(1), 8);
    e.in.imm = e.has("shared") || e.has("shared::cta") || e.has("shared::cluster") ? 1 : e.has("local") ? 2 : 0;
    e.in.fn = isspacep;
    e.push();
    return true;
  }
  if (b == "mapa") {  // a cluster is one block: the address is its own
    bool wide = e.type() == Ty::U64;
    e.in.cls = Cls::Move;
    e.in.d = e.def(e.arg(0), wide ? 8 : 4);
    e.in.a = e.use(e.arg(1), wide ? 8 : 4);
    e.in.fn = wide ? copy64 : cast<uint32_t, uint32_t>;
    e.push();
    return true;
  }
  if (b != "cvt") return false;
  e.in.cls = Cls::Convert;

  if (e.has("pack")) {
    Ty dt = e.type(0);
    e.in.aux = uint8_t(type_bytes(dt));
    e.in.aux2 = is_signed(dt);
    e.in.d = e.def(e.arg(0), 4);
    e.in.a = e.use(e.arg(1), 4);
    e.in.b = e.use(e.arg(2), 4);
    if (e.nargs() > 3) e.in.c = e.use(e.arg(3), 4);
    e.in.fn = pack_sat;
    e.push();
    return true;
  }
  Ty dt = e.type(0), st = e.type(1);
  if (dt == Ty::None || st == Ty::None) return false;
  Round r = Round::Nearest;
  bool int_round = false;
  auto has = [&](char const* s) { return e.has(s); };
  if (has("rz") || has("rzi")) r = Round::Zero;
  if (has("rm") || has("rmi")) r = Round::Down;
  if (has("rp") || has("rpi")) r = Round::Up;
  if (has("rna")) r = Round::NearestAway;
  if (has("rni") || has("rzi") || has("rmi") || has("rpi")) int_round = true;
  uint64_t flags = 0;
  if (int_round) flags |= kIntRound;
  if (has("sat")) flags |= kSatFlag;
  if (has("ftz")) flags |= kFtzFlag;
  if (has("relu")) flags |= kRelu;
  if (has("satfinite")) flags |= kSatFinite;
  e.in.aux = uint8_t(st);
  e.in.aux2 = uint8_t(dt);

  if (dt == Ty::F16x2 || dt == Ty::BF16x2 || dt == Ty::E4M3x2 || dt == Ty::E5M2x2) {
    e.in.imm = flags | uint64_t(r) << 8;
    e.in.d = e.def(e.arg(0), type_bytes(dt));
    e.in.a = e.use(e.arg(1), type_bytes(st));
    if (st == Ty::F32) e.in.b = e.use(e.arg(2), 4);
    e.in.fn = to_pair;
    e.push();
    return true;
  }
  int dr = e.reg_bytes(e.arg(0)), sr = e.reg_bytes(e.arg(1));
  if (e.arg(0).kind == Operand::Sink) dr = std::max(type_bytes(dt), 2);
  if (sr < 0) sr = std::max(type_bytes(st), 2);  // immediate or special register
  e.in.d = e.def(e.arg(0), dr);
  e.in.a = e.use(e.arg(1), sr);
  if (is_int(dt) && is_int(st)) {
    e.in.imm = flags;
    e.in.fn = dr == 2   ? int_to_int_for<uint16_t>(sr)
              : dr == 4 ? int_to_int_for<uint32_t>(sr)
                        : int_to_int_for<uint64_t>(sr);
    e.push();
    return true;
  }
  // Common cases without modifiers; widths must match exactly.
  bool exact = dr == std::max(type_bytes(dt), 2) && sr == std::max(type_bytes(st), 2) && type_bytes(dt) > 1 &&
               type_bytes(st) > 1;
  Handler h = nullptr;
  if (exact && !(flags & ~uint64_t(kIntRound))) {
    if (!int_round && r == Round::Nearest) {
      if (st == Ty::F32 && dt == Ty::F16) h = cast<F16, float>;
      if (st == Ty::F32 && dt == Ty::BF16) h = cast<BF16, float>;
      if (st == Ty::F16 && dt == Ty::F32) h = cast<float, F16>;
      if (st == Ty::BF16 && dt == Ty::F32) h = cast<float, BF16>;
      if (st == Ty::F32 && dt == Ty::F64) h = cast<double, float>;
      if (st == Ty::F64 && dt == Ty::F32) h = cast<float, double>;
      if (st == Ty::S32 && dt == Ty::F32) h = cast<float, int32_t>;
      if (st == Ty::U32 && dt == Ty::F32) h = cast<float, uint32_t>;
      if (st == Ty::S32 && dt == Ty::F64) h = cast<double, int32_t>;
      if (st == Ty::U32 && dt == Ty::F64) h = cast<double, uint32_t>;
      if (st == Ty::S64 && dt == Ty::F64) h = cast<double, int64_t>;
      if (st == Ty::U64 && dt == Ty::F64) h = cast<double, uint64_t>;
      if (st == Ty::S64 && dt == Ty::F32) h = cast<float, int64_t>;
      if (st == Ty::U64 && dt == Ty::F32) h = cast<float, uint64_t>;
    }
    if (int_round && r == Round::Zero && st == Ty::F32 && dt == Ty::S32) h = f32_to_int_rz<int32_t>;
    if (int_round && r == Round::Zero && st == Ty::F32 && dt == Ty::U32) h = f32_to_int_rz<uint32_t>;
    if (int_round && st == Ty::F32 && dt == Ty::F32) {
      h = f32_round_int;
      e.in.aux = uint8_t(r);
    }
  }
  if (h) {
    e.in.fn = h;
  } else {
    e.in.imm = flags;
    e.in.bytes = uint8_t(sr);
    e.in.vec = uint8_t(dr);
    e.in.b = kBaseConst | Ref(r);  // rounding mode, not an operand
    e.in.fn = generic;
    if (!is_float(dt) && !is_float(st)) return false;
  }
  e.push();
  return true;
}

}  // namespace ptxrun
