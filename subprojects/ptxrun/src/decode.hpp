// Decoder interface used by the handler files: turns one Statement into Inst records.
#pragma once
#include "internal.hpp"

namespace ptxrun {

struct FuncDecoder;

struct Emit {
  FuncDecoder& fd;
  Function& f;
  Statement const& st;
  Inst in;
  std::vector<std::pair<Ref, bool>> extras;  // operand, is it a destination

  Emit(FuncDecoder& d, Function& fn, Statement const& s) : fd(d), f(fn), st(s) {}

  std::string_view base() const { return st.mods[0]; }
  bool has(std::string_view mod) const {
    for (size_t i = 1; i < st.mods.size(); ++i)
      if (st.mods[i] == mod) return true;
    return false;
  }
  // The n-th type among the modifiers, counted from the front.
  Ty type(int n = 0) const {
    for (size_t i = 1; i < st.mods.size(); ++i)
      if (Ty t = parse_type(st.mods[i]); t != Ty::None && n-- == 0) return t;
    return Ty::None;
  }
  size_t nargs() const { return st.args.size(); }
  Operand const& arg(size_t i) const {
    if (i >= st.args.size()) fail("missing operand");
    return st.args[i];
  }
  int reg_bytes(Operand const& o) const;      // register width, 0 for predicates, -1 when not a register
  Ref def(Operand const& o, int bytes = -1);  // destination; `bytes` is checked when given
  Ref use(Operand const& o, int bytes);       // source as an array of `bytes`-wide lanes (0: predicate mask)
  Ref imm(uint64_t value, int bytes);         // broadcast constant
  Ref temp(int bytes);
  void address(Operand const& o);  // fills in.a, in.imm and kAddr32
  Ref carry();                     // the condition-code register (one bit per lane)
  void add_extra(Ref r, bool is_def) { extras.emplace_back(r, is_def); }

  // Shorthands for plain instructions: d = op(a[, b[, c]]), all operands `bytes` wide.
  void set1(Handler fn, Cls cls, int bytes) {
    set(fn, cls);
    in.d = def(arg(0), bytes);
    in.a = use(arg(1), bytes);
  }
  void set2(Handler fn, Cls cls, int bytes) {
    set1(fn, cls, bytes);
    in.b = use(arg(2), bytes);
  }
  void set3(Handler fn, Cls cls, int bytes) {
    set2(fn, cls, bytes);
    in.c = use(arg(3), bytes);
  }
  void set(Handler fn, Cls cls) {
    in.fn = fn;
    in.cls = cls;
  }

  void push();  // appends `in` (with `extras`) to the code
  [[noreturn]] void fail(std::string const& msg) const {
    throw ParseError("PTX line " + std::to_string(st.line) + ": " + std::string(st.op) + ": " + msg);
  }
};

// Runs `body(lane)` for every active lane; the full-warp case has no test and vectorises.
template <class F>
inline __attribute__((always_inline)) void for_lanes(uint32_t mask, F&& body) {
  if (mask == ~0u) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) body(l);
  } else {
    for (uint32_t m = mask; m; m &= m - 1) body(std::countr_zero(m));
  }
}

}  // namespace ptxrun
