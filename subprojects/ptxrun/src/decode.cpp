// Statements -> Inst records, register allocation, linking of called functions.
#include "decode.hpp"

#include <algorithm>

namespace ptxrun {

char const* const kClsNames[] = {"int",   "fp32",      "fp64",      "fp16",      "mma",       "convert",
                                 "move",  "ld_global", "st_global", "ld_shared", "st_shared", "local",
                                 "param", "atom",      "shuffle",   "barrier",   "branch",    "other"};

char const* const kSharedKindNames[] = {"load", "store", "atomic", "ldmatrix", "stmatrix", "async_copy", "mbarrier"};

struct Linker {
  ModuleImpl& m;
  Program& p;
  std::map<uint64_t, Ref> const_index[5];                 // by width: value -> ref
  std::unordered_map<std::string_view, uint64_t> shared;  // module scope shared variables -> offset
  uint64_t shared_top = 0;
  uint64_t dynamic_align = 16;
  struct Pending {
    uint32_t call;
    std::string_view callee;
    uint32_t caller;
  };
  std::vector<Pending> pending;
  struct Placed {
    uint32_t entry = 0, frame = 0, local = 0;
  };
  std::map<std::string_view, Placed> placed;
  std::vector<uint32_t> dynamic_patch;  // const refs that hold the dynamic smem offset
};

namespace {

int class_of(Ty t) {
  if (t == Ty::Pred) return 0;
  switch (type_bytes(t)) {
    case 1:
    case 2: return 1;
    case 4: return 2;
    case 8: return 3;
    default: return 4;
  }
}
constexpr uint32_t kClassBytes[5] = {4, 64, 128, 256, 512};
constexpr int kClassWidth[5] = {0, 2, 4, 8, 16};
int class_of_width(int bytes) { return bytes == 0 ? 0 : bytes <= 2 ? 1 : bytes == 4 ? 2 : bytes == 8 ? 3 : 4; }

uint64_t align_up(uint64_t v, uint64_t a) { return (v + a - 1) / a * a; }

// Handlers for addresses that are only known at run time, and clocks.
void lea_local(Warp& w, Inst const& in, uint32_t m) {
  auto* d = w.at<uint64_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = w.cur.local + in.imm; });
}
void trunc_64_32(Warp& w, Inst const& in, uint32_t m) {
  auto* d = w.at<uint32_t>(in.d);
  auto* a = w.at<uint64_t>(in.a);
  for_lanes(m, [&](int l) { d[l] = uint32_t(a[l]); });
}
void zext_32_64(Warp& w, Inst const& in, uint32_t m) {
  auto* d = w.at<uint64_t>(in.d);
  auto* a = w.at<uint32_t>(in.a);
  for_lanes(m, [&](int l) { d[l] = a[l]; });
}
template <class D, class A>
void resize_reg(Warp& w, Inst const& in, uint32_t m) {
  auto* d = w.at<D>(in.d);
  auto* a = w.at<A>(in.a);
  for_lanes(m, [&](int l) { d[l] = D(a[l]); });
}
void lea_param(Warp& w, Inst const& in, uint32_t m) {
  auto* d = w.at<uint64_t>(in.d);
  uint64_t base = uint64_t(launch_params(w));
  for_lanes(m, [&](int l) { d[l] = base + in.imm; });
}
void read_clock(Warp& w, Inst const& in, uint32_t m) {
  uint64_t t = w.executed;
  if (in.aux == 8)
    for_lanes(m, [&](int l) { w.at<uint64_t>(in.d)[l] = t; });
  else
    for_lanes(m, [&](int l) { w.at<uint32_t>(in.d)[l] = uint32_t(in.aux2 ? t >> 32 : t); });
}

}  // namespace

struct FuncDecoder {
  Linker& lk;
  Function& f;
  uint32_t func_index;
  std::vector<uint8_t> vclass;  // class of every virtual register
  std::vector<Inst> code;
  std::vector<std::pair<Ref, bool>> extra;  // operand, is it a destination
  std::vector<uint32_t> stmt_first;         // statement -> first Inst
  struct Branch {
    uint32_t inst;
    std::string_view label;
    uint32_t scope;
  };
  std::vector<Branch> branches;
  std::unordered_map<Sym const*, uint32_t> param_off;  // .param variables: offset in the frame
  std::unordered_map<Sym const*, uint64_t> local_off;
  uint32_t param_bytes = 0, frame_bytes = 0;
  uint64_t local_bytes = 0;
  int carry_reg = -1;

  FuncDecoder(Linker& l, Function& fn) : lk(l), f(fn) {
    func_index = uint32_t(lk.p.func_names.size());
    lk.p.func_names.emplace_back(f.name);
    lk.m.parse_body(f);
    for (VReg const& r : f.regs) vclass.push_back(uint8_t(class_of(r.type)));
    layout();
  }

  // Formal parameters first (so that callers know their place), then local .param variables.
  static uint32_t formal_layout(Function const& f, std::unordered_map<Sym const*, uint32_t>* out) {
    uint32_t off = 0;
    if (f.entry) return 0;
    for (auto* list : {&f.params, &f.rets})
      for (Sym const& s : *list) {
        if (out) (*out)[&s] = off;
        off += uint32_t(align_up(s.bytes, 16) * kLanes);
      }
    return off;
  }
  void layout() {
    param_bytes = formal_layout(f, &param_off);
    for (Sym& s : f.locals) {
      if (s.space == Space::Param) {
        param_off[&s] = param_bytes;
        param_bytes += uint32_t(align_up(s.bytes, 16) * kLanes);
      } else if (s.space == Space::Local) {
        local_bytes = align_up(local_bytes, s.align);
        local_off[&s] = local_bytes;
        local_bytes += s.bytes;
      } else if (s.space == Space::Shared) {
        lk.shared_top = align_up(lk.shared_top, s.align);
        s.addr = lk.shared_top;
        lk.shared_top += s.bytes;
      }
    }
    local_bytes = align_up(local_bytes, 16);
  }

  uint64_t shared_address(Sym const& s) {
    if (!lk.m.symbols.count(s.name) || &lk.m.symbols.at(s.name) != &s) return s.addr;
    if (s.is_extern || s.bytes == 0) {
      lk.p.has_dynamic_smem = true;
      lk.dynamic_align = std::max<uint64_t>(lk.dynamic_align, s.align);
      return ~0ull;  // patched when the size of the static part is known
    }
    auto it = lk.shared.find(s.name);
    if (it != lk.shared.end()) return it->second;
    lk.shared_top = align_up(lk.shared_top, s.align);
    uint64_t at = lk.shared_top;
    lk.shared[s.name] = at;
    lk.shared_top += s.bytes;
    return at;
  }

  Ref constant(uint64_t value, int bytes, bool dynamic = false) {
    int c = class_of_width(bytes);
    auto& index = lk.const_index[c];
    if (!dynamic)
      if (auto it = index.find(value); it != index.end()) return it->second;
    auto& pool = lk.p.constants;
    size_t at = align_up(pool.size(), 64);
    pool.resize(at + std::max<uint32_t>(kClassBytes[c], 64));
    char* p = pool.data() + at;
    if (c == 0) {
      uint32_t m = value ? ~0u : 0;
      memcpy(p, &m, 4);
    } else {
      for (int l = 0; l < kLanes; ++l) memcpy(p + l * kClassWidth[c], &value, std::min(kClassWidth[c], 8));
    }
    Ref r = kBaseConst | Ref(at);
    if (dynamic)
      lk.dynamic_patch.push_back(r | (bytes == 8 ? 1 : 0));  // low bit: width marker
    else
      index[value] = r;
    return r;
  }

  Ref new_vreg(int bytes) {
    vclass.push_back(uint8_t(class_of_width(bytes)));
    return Ref(vclass.size() - 1);
  }

  void push(Statement const& st, Inst in, std::vector<std::pair<Ref, bool>> const& ex) {
    in.line = st.line;
    in.src = st.src;
    in.func = func_index;
    in.x0 = uint32_t(extra.size());
    in.xn = uint16_t(ex.size());
    extra.insert(extra.end(), ex.begin(), ex.end());
    if (st.pred >= 0) {
      in.pred = Ref(st.pred);
      in.pred_neg = st.pred_neg;
    }
    code.push_back(in);
  }

  void decode();
  void decode_control(Emit& e);
  void decode_call(Emit& e);
  void allocate();
};

// ---------------------------------------------------------------------------------------------
// Emit helpers

int Emit::reg_bytes(Operand const& o) const {
  if (o.kind != Operand::Reg) return -1;
  return kClassWidth[fd.vclass[o.reg]];
}

Ref Emit::temp(int bytes) { return fd.new_vreg(bytes); }
Ref Emit::imm(uint64_t value, int bytes) { return fd.constant(value, bytes); }

Ref Emit::carry() {
  if (fd.carry_reg < 0) fd.carry_reg = int(fd.new_vreg(0));
  return Ref(fd.carry_reg);
}

Ref Emit::def(Operand const& o, int bytes) {
  if (o.kind == Operand::Sink) return temp(bytes < 0 ? 4 : bytes);
  if (o.kind != Operand::Reg) fail("destination is not a register");
  if (bytes >= 0 && reg_bytes(o) != std::max(bytes, bytes == 1 ? 2 : 0))
    fail("destination register has the wrong width");
  return Ref(o.reg);
}

Ref Emit::use(Operand const& o, int bytes) {
  if (bytes == 1) bytes = 2;
  switch (o.kind) {
    case Operand::Imm: {
      uint64_t v = o.imm;
      if (o.is_float && bytes == 8 && o.float_bytes == 4)
        v = std::bit_cast<uint64_t>(double(std::bit_cast<float>(uint32_t(v))));
      if (o.is_float && bytes == 4 && o.float_bytes == 8) v = std::bit_cast<uint32_t>(float(std::bit_cast<double>(v)));
      if (bytes > 0 && bytes < 8) v &= (1ull << (8 * bytes)) - 1;
      return imm(v, bytes);
    }
    case Operand::Reg: {
      int have = reg_bytes(o);
      if (have == bytes) return Ref(o.reg);
      Inst saved = in;
      in = Inst{};
      in.cls = Cls::Move;
      in.a = Ref(o.reg);
      in.d = temp(bytes);
      if (have == 8 && bytes == 4)
        in.fn = resize_reg<uint32_t, uint64_t>;
      else if (have == 8 && bytes == 2)
        in.fn = resize_reg<uint16_t, uint64_t>;
      else if (have == 4 && bytes == 2)
        in.fn = resize_reg<uint16_t, uint32_t>;
      else if (have == 2 && bytes == 4)
        in.fn = resize_reg<uint32_t, uint16_t>;
      else if (have == 2 && bytes == 8)
        in.fn = resize_reg<uint64_t, uint16_t>;
      else if (have == 4 && bytes == 8)
        in.fn = resize_reg<uint64_t, uint32_t>;
      else
        fail("source register has the wrong width");
      Ref r = in.d;
      fd.push(st, in, {});
      in = saved;
      return r;
    }
    case Operand::Sym_: {
      Sym const& s = *o.sym;
      if (s.space == Space::Shared) {
        uint64_t at = fd.shared_address(s);
        if (at == ~0ull) {
          // The constant holds the operand's offset until the static shared size is known.
          return fd.constant(o.imm, bytes, true);
        }
        return imm(at + o.imm, bytes);
      }
      if (s.space == Space::Global || s.space == Space::Const) {
        if (!s.addr) fail("undefined variable " + std::string(s.name));
        return imm(s.addr + o.imm, bytes);
      }
      Inst saved = in;
      in = Inst{};
      in.cls = Cls::Move;
      in.d = temp(8);
      if (s.space == Space::Local) {
        in.fn = lea_local;
        in.imm = fd.local_off.at(&s) + o.imm;
      } else {
        if (!f.entry) fail("address of a function parameter is not supported");
        in.fn = lea_param;
        in.imm = s.addr + o.imm;
      }
      Ref r = in.d;
      fd.push(st, in, {});
      if (bytes == 4) {
        in.fn = trunc_64_32;
        in.a = r;
        in.d = temp(4);
        r = in.d;
        fd.push(st, in, {});
      }
      in = saved;
      return r;
    }
    case Operand::Label: {
      static const std::unordered_map<std::string_view, Special> table = {
          {"%tid.x", Special::TidX},
          {"%tid.y", Special::TidY},
          {"%tid.z", Special::TidZ},
          {"%ntid.x", Special::NtidX},
          {"%ntid.y", Special::NtidY},
          {"%ntid.z", Special::NtidZ},
          {"%ctaid.x", Special::CtaidX},
          {"%ctaid.y", Special::CtaidY},
          {"%ctaid.z", Special::CtaidZ},
          {"%nctaid.x", Special::NctaidX},
          {"%nctaid.y", Special::NctaidY},
          {"%nctaid.z", Special::NctaidZ},
          {"%laneid", Special::LaneId},
          {"%warpid", Special::WarpId},
          {"%nwarpid", Special::NwarpId},
          {"%smid", Special::SmId},
          {"%nsmid", Special::NsmId},
          {"%lanemask_eq", Special::MaskEq},
          {"%lanemask_le", Special::MaskLe},
          {"%lanemask_lt", Special::MaskLt},
          {"%lanemask_ge", Special::MaskGe},
          {"%lanemask_gt", Special::MaskGt},
          {"%dynamic_smem_size", Special::DynSmem},
          {"%total_smem_size", Special::TotalSmem},
          {"%aggr_smem_size", Special::TotalSmem},
          // Without clusters every block is a cluster of its own.
          {"%clusterid.x", Special::CtaidX},
          {"%clusterid.y", Special::CtaidY},
          {"%clusterid.z", Special::CtaidZ},
          {"%nclusterid.x", Special::NctaidX},
          {"%nclusterid.y", Special::NctaidY},
          {"%nclusterid.z", Special::NctaidZ},
          {"%cluster_ctaid.x", Special::Zero},
          {"%cluster_ctaid.y", Special::Zero},
          {"%cluster_ctaid.z", Special::Zero},
          {"%cluster_nctaid.x", Special::One},
          {"%cluster_nctaid.y", Special::One},
          {"%cluster_nctaid.z", Special::One},
          {"%cluster_ctarank", Special::Zero},
          {"%cluster_nctarank", Special::One},
          {"%reserved_smem_offset_1", Special::Zero},
          {"%envreg1", Special::EnvReg1},
          {"%envreg2", Special::EnvReg2},
          {"%gridid", Special::Zero}};
      if (o.name == "WARP_SZ") return imm(32, bytes);
      auto it = table.find(o.name);
      bool clock = o.name == "%clock" || o.name == "%clock64" || o.name == "%globaltimer" || o.name == "%clock_hi" ||
                   o.name == "%globaltimer_lo" || o.name == "%globaltimer_hi";
      if (it == table.end() && !clock) fail("unknown symbol " + std::string(o.name));
      Inst saved = in;
      in = Inst{};
      in.cls = Cls::Move;
      Ref r = kBaseSpecial | Ref(size_t(it == table.end() ? Special::Zero : it->second) * kLanes * 4);
      if (clock) {
        in.fn = read_clock;
        in.aux = uint8_t(bytes);
        in.aux2 = o.name.ends_with("_hi");
        in.d = r = temp(bytes);
        fd.push(st, in, {});
      } else if (bytes == 8) {
        in.fn = zext_32_64;
        in.a = r;
        in.d = temp(8);
        r = in.d;
        fd.push(st, in, {});
      } else if (bytes == 2) {
        in.fn = resize_reg<uint16_t, uint32_t>;
        in.a = r;
        in.d = temp(2);
        r = in.d;
        fd.push(st, in, {});
      }
      in = saved;
      return r;
    }
    default: fail("bad source operand");
  }
}

void Emit::address(Operand const& o) {
  if (o.kind != Operand::Addr) fail("expected an address");
  in.imm = 0;
  if (o.sym) {
    Operand s = o;
    s.kind = Operand::Sym_;
    in.a = use(s, 8);
  } else if (o.reg >= 0) {
    int w = kClassWidth[fd.vclass[o.reg]];
    if (w == 4) in.flags |= kAddr32;
    in.a = Ref(o.reg);
    in.imm = o.imm;
  } else {
    in.a = imm(o.imm, 8);
  }
}

void Emit::push() { fd.push(st, in, extras); }

// ---------------------------------------------------------------------------------------------

void FuncDecoder::decode_call(Emit& e) {
  // call[.uni] [(ret)] , func [, (args)]
  Operand const *rets = nullptr, *callee = nullptr, *args = nullptr;
  for (Operand const& o : e.st.args) {
    if (o.kind == Operand::Vec && !callee)
      rets = &o;
    else if (o.kind == Operand::Vec)
      args = args ? args : &o;
    else if (!callee)
      callee = &o;
  }
  if (!callee || callee->kind != Operand::Label) e.fail("call through a pointer is not supported");
  CallInfo ci;
  ci.builtin = builtin_id(callee->name);
  auto copies = [&](Operand const* list, std::vector<Sym> const* formals, Function const* fn,
                    std::vector<CallCopy>& out) {
    if (!list) return;
    std::unordered_map<Sym const*, uint32_t> off;
    if (fn) formal_layout(*fn, &off);
    for (size_t i = 0; i < list->elems.size(); ++i) {
      Operand const& a = list->elems[i];
      if (a.kind != Operand::Sym_ || a.sym->space != Space::Param) e.fail("call argument is not a .param variable");
      uint32_t caller = param_off.at(a.sym), bytes = uint32_t(align_up(a.sym->bytes, 16));
      uint32_t to = 0;
      if (fn) {
        if (i >= formals->size()) e.fail("too many call arguments");
        to = off.at(&(*formals)[i]);
        bytes = std::min<uint32_t>(bytes, uint32_t(align_up((*formals)[i].bytes, 16)));
      }
      out.push_back({caller, to, bytes});
    }
  };
  auto it = lk.m.functions.find(callee->name);
  Function const* fn = ci.builtin || it == lk.m.functions.end() ? nullptr : &it->second;
  if (!ci.builtin && (!fn || !fn->defined)) e.fail("undefined function " + std::string(callee->name));
  copies(args, fn ? &fn->params : nullptr, fn, ci.args);
  copies(rets, fn ? &fn->rets : nullptr, fn, ci.rets);
  e.in.cls = Cls::Branch;
  e.in.ctl = Ctl::Call;
  e.in.imm = lk.p.calls.size();
  if (fn) lk.pending.push_back({uint32_t(lk.p.calls.size()), callee->name, func_index});
  lk.p.calls.push_back(ci);
  e.push();
}

void FuncDecoder::decode_control(Emit& e) {
  std::string_view b = e.base();
  e.in.cls = Cls::Branch;
  if (b == "bra") {
    e.in.ctl = Ctl::Bra;
    branches.push_back({uint32_t(code.size()), e.arg(0).name, e.st.scope});
    e.push();
  } else if (b == "brx") {
    e.in.a = e.use(e.arg(0), 4);
    e.in.ctl = Ctl::Brx;
    e.in.imm = lk.p.tables.size();
    lk.p.tables.emplace_back();
    branches.push_back({uint32_t(code.size()), e.arg(1).name, e.st.scope});
    e.push();
  } else if (b == "ret" || b == "exit") {
    e.in.ctl = b == "ret" && !f.entry ? Ctl::Ret : Ctl::Exit;
    e.push();
  } else if (b == "trap" || b == "brkpt") {
    e.in.ctl = Ctl::Trap;
    e.push();
  } else {
    decode_call(e);
  }
}

void FuncDecoder::decode() {
  for (Statement const& st : f.code) {
    stmt_first.push_back(uint32_t(code.size()));
    Emit e(*this, f, st);
    std::string_view b = st.mods[0];
    if (b == "bra" || b == "brx" || b == "ret" || b == "exit" || b == "trap" || b == "brkpt" || b == "call") {
      decode_control(e);
      continue;
    }
    if (b == "pragma") continue;
    // .param accesses need the layout of this function.
    if ((b == "ld" || b == "st") && e.has("param") && e.arg(b == "ld" ? 1 : 0).sym) {
      Operand const& addr = e.arg(b == "ld" ? 1 : 0);
      auto it = param_off.find(addr.sym);
      if (it != param_off.end()) {
        e.in.space = Space::Param;
        e.in.aux = 1;  // per-lane array in the frame
        e.in.aux2 = uint8_t(align_up(addr.sym->bytes, 16) / 16);
        if (align_up(addr.sym->bytes, 16) / 16 > 255) e.fail("call parameter larger than 4 KB");
        e.in.imm = it->second;
        e.in.c = kBaseConst | Ref(addr.imm);  // byte offset, not an operand
      } else {
        e.in.space = Space::Param;
        e.in.imm = addr.sym->addr + addr.imm;
      }
    }
    if (!decode_alu(e) && !decode_cvt(e) && !decode_memory(e) && !decode_sync(e) && !decode_mma(e))
      e.fail("instruction is not implemented");
  }
  stmt_first.push_back(uint32_t(code.size()));
  // A function may end without ret after a trap; falling off the end is an exit.
  Inst end;
  end.ctl = f.entry ? Ctl::Exit : Ctl::Ret;
  end.cls = Cls::Branch;
  end.func = func_index;
  end.line = f.code.empty() ? f.body_line : f.code.back().line;
  code.push_back(end);

  auto target = [&](std::string_view label, uint32_t scope) {
    for (;; scope = f.scope_parent[scope]) {
      if (auto it = f.labels.find({label, scope}); it != f.labels.end()) return stmt_first[it->second];
      if (scope == 0) throw ParseError("unknown label " + std::string(label) + " in " + std::string(f.name));
    }
  };
  for (auto& [at, label, scope] : branches) {
    Inst& in = code[at];
    if (in.ctl == Ctl::Bra)
      in.imm = target(label, scope);
    else {
      auto it = f.target_lists.find(label);
      if (it == f.target_lists.end()) throw ParseError("unknown branch table " + std::string(label));
      for (auto l : it->second) lk.p.tables[in.imm].push_back(target(l, scope));
    }
  }
  allocate();
}

// Liveness analysis and linear scan, one pool of slots per register width.
void FuncDecoder::allocate() {
  const uint32_t n = uint32_t(code.size()), nv = uint32_t(vclass.size());
  auto is_v = [](Ref r) { return r != kNoRef && (r >> 30) == 0; };
  auto uses = [&](Inst const& in, auto&& fn) {
    for (Ref r : {in.a, in.b, in.c, in.pred})
      if (is_v(r)) fn(r);
    for (uint32_t i = in.x0; i < in.x0 + in.xn; ++i)
      if (!extra[i].second && is_v(extra[i].first)) fn(extra[i].first);
  };
  auto defs = [&](Inst const& in, auto&& fn) {
    for (Ref r : {in.d, in.d2})
      if (is_v(r)) fn(r);
    for (uint32_t i = in.x0; i < in.x0 + in.xn; ++i)
      if (extra[i].second && is_v(extra[i].first)) fn(extra[i].first);
  };

  // Basic blocks.
  std::vector<uint8_t> leader(n + 1, 0);
  leader[0] = 1;
  for (uint32_t i = 0; i < n; ++i) {
    Inst const& in = code[i];
    if (in.ctl == Ctl::Bra)
      leader[in.imm] = leader[i + 1] = 1;
    else if (in.ctl == Ctl::Brx) {
      for (uint32_t t : lk.p.tables[in.imm]) leader[t] = 1;
      leader[i + 1] = 1;
    } else if (in.ctl == Ctl::Exit || in.ctl == Ctl::Ret || in.ctl == Ctl::Trap)
      leader[i + 1] = 1;
  }
  std::vector<uint32_t> start, block_of(n);
  for (uint32_t i = 0; i < n; ++i) {
    if (leader[i]) start.push_back(i);
    block_of[i] = uint32_t(start.size() - 1);
  }
  const uint32_t nb = uint32_t(start.size());
  start.push_back(n);
  std::vector<std::vector<uint32_t>> succ(nb);
  for (uint32_t b = 0; b < nb; ++b) {
    Inst const& in = code[start[b + 1] - 1];
    bool falls = true;
    if (in.ctl == Ctl::Bra) {
      succ[b].push_back(block_of[in.imm]);
      falls = in.pred != kNoRef;
    } else if (in.ctl == Ctl::Brx) {
      for (uint32_t t : lk.p.tables[in.imm]) succ[b].push_back(block_of[t]);
      falls = in.pred != kNoRef;
    } else if (in.ctl == Ctl::Exit || in.ctl == Ctl::Ret || in.ctl == Ctl::Trap)
      falls = in.pred != kNoRef;
    if (falls && b + 1 < nb) succ[b].push_back(b + 1);
  }

  const size_t words = (nv + 63) / 64;
  std::vector<uint64_t> gen(nb * words), kill(nb * words), live_in(nb * words), live_out(nb * words);
  auto bit = [](uint64_t* s, uint32_t v) { return s[v / 64] >> (v % 64) & 1; };
  auto set = [](uint64_t* s, uint32_t v) { s[v / 64] |= 1ull << (v % 64); };
  for (uint32_t b = 0; b < nb; ++b)
    for (uint32_t i = start[b]; i < start[b + 1]; ++i) {
      uses(code[i], [&](Ref r) {
        if (!bit(&kill[b * words], r)) set(&gen[b * words], r);
      });
      if (code[i].pred == kNoRef) defs(code[i], [&](Ref r) { set(&kill[b * words], r); });
    }
  for (bool changed = true; changed;) {
    changed = false;
    for (uint32_t b = nb; b-- > 0;) {
      uint64_t *in = &live_in[b * words], *out = &live_out[b * words];
      for (uint32_t s : succ[b])
        for (size_t k = 0; k < words; ++k) out[k] |= live_in[s * words + k];
      for (size_t k = 0; k < words; ++k) {
        uint64_t v = gen[b * words + k] | (out[k] & ~kill[b * words + k]);
        if (v != in[k]) in[k] = v, changed = true;
      }
    }
  }

  // Intervals. A definition is at 2i+1, a use at 2i; instructions with several destinations may
  // write one before all sources are read, so their sources live on to 2i+2.
  std::vector<uint32_t> lo(nv, ~0u), hi(nv, 0);
  auto extend = [&](Ref v, uint32_t pos) {
    lo[v] = std::min(lo[v], pos);
    hi[v] = std::max(hi[v], pos);
  };
  for (uint32_t b = 0; b < nb; ++b) {
    for (uint32_t v = 0; v < nv; ++v) {
      if (bit(&live_in[b * words], v)) extend(v, 2 * start[b]);
      if (bit(&live_out[b * words], v)) extend(v, 2 * start[b + 1]);
    }
    for (uint32_t i = start[b]; i < start[b + 1]; ++i) {
      bool multi = code[i].d2 != kNoRef || code[i].xn > 0;
      uses(code[i], [&](Ref r) { extend(r, 2 * i + (multi ? 2 : 0)); });
      defs(code[i], [&](Ref r) {
        extend(r, 2 * i + 1);
        if (multi) extend(r, 2 * i);
      });
    }
  }

  std::vector<uint32_t> order, slot(nv, ~0u);
  for (uint32_t v = 0; v < nv; ++v)
    if (lo[v] != ~0u) order.push_back(v);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return lo[a] < lo[b]; });
  uint32_t count[5] = {};
  std::vector<uint32_t> free_slots[5];
  using Active = std::pair<uint32_t, uint32_t>;  // end, register
  std::vector<Active> heap;
  auto later = [](Active const& a, Active const& b) { return a.first > b.first; };
  for (uint32_t v : order) {
    while (!heap.empty() && heap.front().first < lo[v]) {
      std::pop_heap(heap.begin(), heap.end(), later);
      uint32_t x = heap.back().second;
      heap.pop_back();
      free_slots[vclass[x]].push_back(slot[x]);
    }
    int c = vclass[v];
    if (free_slots[c].empty())
      slot[v] = count[c]++;
    else {
      slot[v] = free_slots[c].back();
      free_slots[c].pop_back();
    }
    heap.emplace_back(hi[v], v);
    std::push_heap(heap.begin(), heap.end(), later);
  }
  uint32_t base[5], top = uint32_t(align_up(param_bytes, 64));
  for (int c = 4; c >= 0; --c) {
    base[c] = top;
    top += count[c] * kClassBytes[c];
  }
  frame_bytes = uint32_t(align_up(top, 64)) + 64;  // unused registers map to the last 64 bytes: never read
  auto place = [&](Ref& r) {
    if (is_v(r)) r = base[vclass[r]] + slot[r] * kClassBytes[vclass[r]];
  };
  for (Inst& in : code) {
    place(in.d);
    place(in.d2);
    place(in.a);
    place(in.b);
    place(in.c);
    place(in.pred);
  }
  for (auto& x : extra) place(x.first);
  if (f.entry) lk.p.info.registers = int(count[2] + 2 * count[3] + (count[1] + 1) / 2 + 4 * count[4]);
}

Program* decode_program(ModuleImpl& m, Function& entry) {
  auto prog = std::make_unique<Program>();
  Linker lk{m, *prog, {}, {}, 0, 16, {}, {}, {}};
  prog->module = &m;
  auto place = [&](Function& fn) {
    FuncDecoder fd(lk, fn);
    fd.decode();
    Program& p = *prog;
    uint32_t code0 = uint32_t(p.code.size()), extra0 = uint32_t(p.extra.size());
    for (Inst in : fd.code) {
      if (in.ctl == Ctl::Bra) in.imm += code0;
      if (in.ctl == Ctl::Brx)
        for (uint32_t& t : p.tables[in.imm]) t += code0;
      in.x0 += extra0;
      p.code.push_back(in);
    }
    for (auto& x : fd.extra) p.extra.push_back(x.first);
    lk.placed[fn.name] = {code0, fd.frame_bytes, uint32_t(fd.local_bytes)};
    if (fn.entry) {
      p.frame_bytes = fd.frame_bytes;
      p.local_bytes = fd.local_bytes;
    }
  };
  place(entry);
  std::vector<std::string_view> caller_names{entry.name};
  for (size_t i = 0; i < lk.pending.size(); ++i)
    if (std::string_view callee = lk.pending[i].callee; !lk.placed.count(callee)) place(m.functions.at(callee));
  for (auto& pc : lk.pending) {
    CallInfo& ci = prog->calls[pc.call];
    ci.target = lk.placed.at(pc.callee).entry;
    auto const& caller = lk.placed.at(prog->func_names[pc.caller]);
    ci.frame_bytes = caller.frame;
    ci.local_bytes = caller.local;
    prog->info.local_bytes += lk.placed.at(pc.callee).local;
  }
  // Dynamic shared memory starts after the static variables.
  uint64_t dyn = align_up(lk.shared_top, lk.dynamic_align);
  for (uint32_t r : lk.dynamic_patch) {
    bool wide = r & 1;
    char* p = prog->constants.data() + ((r & ~1u) & ~kBaseMask);
    for (int l = 0; l < kLanes; ++l) {
      if (wide) {
        uint64_t v;
        memcpy(&v, p + 8 * l, 8);
        v += dyn;
        memcpy(p + 8 * l, &v, 8);
      } else {
        uint32_t v;
        memcpy(&v, p + 4 * l, 4);
        v += uint32_t(dyn);
        memcpy(p + 4 * l, &v, 4);
      }
    }
  }
  KernelInfo& info = prog->info;
  info.name = std::string(entry.name);
  info.static_smem = prog->has_dynamic_smem ? dyn : lk.shared_top;
  info.local_bytes += prog->local_bytes;
  info.ptx_arch = m.arch;
  if (entry.max_threads) info.max_threads = entry.max_threads;
  for (Sym const& s : entry.params) {
    info.param_offset.push_back(s.addr);
    info.param_size.push_back(s.bytes);
    info.param_bytes = s.addr + s.bytes;
  }
  size_t bytes = prog->constants.size();
  prog->constants.resize(bytes + 64);
  auto raw = uint64_t(prog->constants.data()), aligned = align_up(raw, 64);
  if (aligned != raw) memmove(prog->constants.data() + (aligned - raw), prog->constants.data(), bytes);
  prog->const_base = reinterpret_cast<char*>(aligned);
  return prog.release();
}

Program* ModuleImpl::program(std::string const& name) {
  std::lock_guard lock(mutex);
  auto it = programs_.find(name);
  if (it != programs_.end()) return it->second.get();
  auto f = functions.find(name);
  if (f == functions.end() || !f->second.entry || !f->second.defined) return nullptr;
  try {
    it = programs_.emplace(name, std::unique_ptr<Program>(decode_program(*this, f->second))).first;
  } catch (ParseError const& e) {
    throw ParseError("kernel " + demangle(name) + ": " + e.what());
  }
  return it->second.get();
}

std::string Program::opcode_text(Inst const& in) const {
  // Re-reads the statement from the module text: cheap, and only used in messages.
  uint32_t line = 1;
  std::string const& t = module->text;
  size_t pos = 0;
  while (line < in.line && (pos = t.find('\n', pos)) != std::string::npos) ++pos, ++line;
  if (pos == std::string::npos) return {};
  size_t end = t.find('\n', pos);
  std::string s = t.substr(pos, end - pos);
  size_t first = s.find_first_not_of(" \t");
  s = first == std::string::npos ? "" : s.substr(first);
  for (char& c : s)
    if (c == '\t') c = ' ';
  return s;
}

}  // namespace ptxrun
