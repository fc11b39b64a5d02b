// PTX text -> functions, variables and statements. Bodies are parsed when a kernel is first used.
#include <cxxabi.h>
#include <cstdlib>

#include "internal.hpp"

namespace ptxrun {

Ty parse_type(std::string_view s) {
  static const std::unordered_map<std::string_view, Ty> table = {
      {"pred", Ty::Pred},   {"b8", Ty::B8},         {"b16", Ty::B16},       {"b32", Ty::B32},     {"b64", Ty::B64},
      {"b128", Ty::B128},   {"u8", Ty::U8},         {"u16", Ty::U16},       {"u32", Ty::U32},     {"u64", Ty::U64},
      {"s8", Ty::S8},       {"s16", Ty::S16},       {"s32", Ty::S32},       {"s64", Ty::S64},     {"f16", Ty::F16},
      {"f16x2", Ty::F16x2}, {"bf16", Ty::BF16},     {"bf16x2", Ty::BF16x2}, {"tf32", Ty::TF32},   {"f32", Ty::F32},
      {"f64", Ty::F64},     {"e4m3x2", Ty::E4M3x2}, {"e5m2x2", Ty::E5M2x2}, {"s16x2", Ty::S16x2}, {"u16x2", Ty::U16x2}};
  auto it = table.find(s);
  return it == table.end() ? Ty::None : it->second;
}

int type_bytes(Ty t) {
  switch (t) {
    case Ty::B8:
    case Ty::U8:
    case Ty::S8: return 1;
    case Ty::B16:
    case Ty::U16:
    case Ty::S16:
    case Ty::F16:
    case Ty::BF16:
    case Ty::E4M3x2:
    case Ty::E5M2x2: return 2;
    case Ty::B64:
    case Ty::U64:
    case Ty::S64:
    case Ty::F64: return 8;
    case Ty::B128: return 16;
    case Ty::None: return 0;
    default: return 4;
  }
}

std::string demangle(std::string_view name) {
  int status = 0;
  std::string s(name);
  char* p = abi::__cxa_demangle(s.c_str(), nullptr, nullptr, &status);
  if (status == 0 && p) s = p;
  std::free(p);
  return s;
}

namespace {

struct Token {
  enum Kind : uint8_t { End, Word, Number, Punct, String } kind = End;
  std::string_view text;
  uint64_t value = 0;
  uint8_t float_bytes = 0;
};

bool word_start(char c) { return isalpha((unsigned char)c) || c == '_' || c == '$' || c == '%' || c == '.'; }
bool word_char(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%' || c == '.' || c == ':'; }

class Lexer {
 public:
  Lexer(std::string_view text, uint32_t line) : p_(text.data()), end_(text.data() + text.size()), line_(line) {
    next();
  }
  Token const& peek() const { return tok_; }
  uint32_t line() const { return tok_line_; }
  char const* pos() const { return tok_.text.data(); }

  Token take() {
    Token t = tok_;
    next();
    return t;
  }
  bool is(std::string_view s) const {
    return (tok_.kind == Token::Punct || tok_.kind == Token::Word) && tok_.text == s;
  }
  bool accept(std::string_view s) {
    if (!is(s)) return false;
    next();
    return true;
  }
  void expect(std::string_view s) {
    if (!accept(s)) fail("expected '" + std::string(s) + "', found '" + std::string(tok_.text) + "'");
  }
  std::string_view word() {
    if (tok_.kind != Token::Word) fail("expected a name, found '" + std::string(tok_.text) + "'");
    return take().text;
  }
  uint64_t number() {
    bool neg = accept("-");
    if (tok_.kind != Token::Number) fail("expected a number, found '" + std::string(tok_.text) + "'");
    uint64_t v = take().value;
    return neg ? 0 - v : v;
  }
  [[noreturn]] void fail(std::string const& msg) const {
    throw ParseError("PTX line " + std::to_string(tok_line_) + ": " + msg);
  }
  // The rest of the current source line (for .loc and .file, which have no terminator).
  std::string_view rest_of_line() {
    char const* s = tok_.text.data();
    char const* q = s;
    while (q < end_ && *q != '\n') ++q;
    p_ = q;
    line_ = tok_line_;
    std::string_view r(s, q - s);
    next();
    return r;
  }
  // Skips a "{ ... }" group whose opening brace is the current token; returns the inside.
  std::string_view skip_braces() {
    char const* s = tok_.text.data() + 1;
    char const* q = s;
    uint32_t line = tok_line_;
    int depth = 1;
    for (; q < end_; ++q) {
      if (*q == '\n')
        ++line;
      else if (*q == '"') {
        for (++q; q < end_ && *q != '"'; ++q) {
        }
      } else if (*q == '/' && q + 1 < end_ && q[1] == '/') {
        while (q + 1 < end_ && q[1] != '\n') ++q;
      } else if (*q == '{')
        ++depth;
      else if (*q == '}' && --depth == 0)
        break;
    }
    p_ = q < end_ ? q + 1 : q;
    line_ = line;
    next();
    return {s, size_t(q - s)};
  }

 private:
  void next() {
    for (; p_ < end_; ++p_) {
      if (*p_ == '\n')
        ++line_;
      else if (*p_ == '/' && p_ + 1 < end_ && p_[1] == '/') {
        while (p_ + 1 < end_ && p_[1] != '\n') ++p_;
      } else if (*p_ == '/' && p_ + 1 < end_ && p_[1] == '*') {
        for (p_ += 2; p_ + 1 < end_ && !(*p_ == '*' && p_[1] == '/'); ++p_) line_ += *p_ == '\n';
        ++p_;
      } else if (!isspace((unsigned char)*p_))
        break;
    }
    tok_line_ = line_;
    tok_ = {};
    char const* s = p_;
    tok_.text = {s, 0};
    if (p_ >= end_) return;
    if (isdigit((unsigned char)*p_)) {
      number_token();
    } else if (word_start(*p_)) {
      while (p_ < end_ && word_char(*p_)) {
        // "::" is part of a modifier (shared::cta); a single ':' ends a label.
        if (*p_ == ':') {
          if (p_ + 1 < end_ && p_[1] == ':')
            ++p_;
          else
            break;
        }
        ++p_;
      }
      tok_.kind = Token::Word;
    } else if (*p_ == '"') {
      for (++p_; p_ < end_ && *p_ != '"'; ++p_) {
      }
      ++p_;
      tok_.kind = Token::String;
    } else {
      ++p_;
      tok_.kind = Token::Punct;
    }
    tok_.text = {s, size_t(p_ - s)};
  }
  void number_token() {
    tok_.kind = Token::Number;
    if (*p_ == '0' && p_ + 1 < end_ && strchr("fFdD", p_[1])) {
      bool dbl = p_[1] == 'd' || p_[1] == 'D';
      p_ += 2;
      for (int i = 0; i < (dbl ? 16 : 8) && p_ < end_; ++i, ++p_) tok_.value = tok_.value * 16 + hex(*p_);
      tok_.float_bytes = dbl ? 8 : 4;
      return;
    }
    int radix = 10;
    if (*p_ == '0' && p_ + 1 < end_ && (p_[1] == 'x' || p_[1] == 'X'))
      radix = 16, p_ += 2;
    else if (*p_ == '0' && p_ + 1 < end_ && (p_[1] == 'b' || p_[1] == 'B'))
      radix = 2, p_ += 2;
    else if (*p_ == '0')
      radix = 8;
    for (; p_ < end_ && isalnum((unsigned char)*p_); ++p_) {
      if (*p_ == 'U' || *p_ == 'u') continue;
      tok_.value = tok_.value * radix + hex(*p_);
    }
  }
  static int hex(char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

  char const *p_, *end_;
  uint32_t line_, tok_line_ = 0;
  Token tok_;
};

// "[.align N] .type name[N]" after a state space word.
struct VarDecl {
  Sym sym;
  Ty type = Ty::None;
  bool array = false;
};

VarDecl parse_var(Lexer& lx, Space space) {
  VarDecl v;
  v.sym.space = space;
  size_t elem = 0, vec = 1;
  while (lx.peek().kind == Token::Word && lx.peek().text[0] == '.') {
    std::string_view w = lx.word();
    if (w == ".align")
      v.sym.align = lx.number();
    else if (w == ".v2")
      vec = 2;
    else if (w == ".v4")
      vec = 4;
    else if (w == ".ptr" || w == ".global" || w == ".shared" || w == ".const" || w == ".local" || w == ".generic" ||
             w == ".managed")
      continue;
    else if (w == ".attribute") {
      lx.expect("(");
      while (!lx.accept(")")) lx.take();
    } else {
      v.type = parse_type(w.substr(1));
      if (v.type == Ty::None) lx.fail("unknown type " + std::string(w));
      elem = type_bytes(v.type);
    }
  }
  v.sym.name = lx.word();
  size_t count = 1;
  while (lx.accept("[")) {
    v.array = true;
    if (lx.is("]"))
      count = 0;
    else
      count *= lx.number();
    lx.expect("]");
  }
  v.sym.bytes = elem * vec * count;
  v.sym.align = std::max(v.sym.align, elem * vec);
  return v;
}

}  // namespace

ModuleImpl::ModuleImpl(std::string t) : text(std::move(t)) { scan(); }

ModuleImpl::~ModuleImpl() {
  for (void* p : storage_) Memory::free(p);
}

static std::string loc_text(ModuleImpl const& m, uint32_t src) {
  SourceLoc const& l = m.locs[src];
  if (!l.line) return {};
  auto it = m.files.find(l.file);
  return (it == m.files.end() ? "?" : it->second) + ":" + std::to_string(l.line);
}
std::string ModuleImpl::user_line(uint32_t src) const {
  for (uint32_t i = src; i; i = locs[i].parent)
    if (std::string s = loc_text(*this, i); s.find("/targets/") == std::string::npos) return s;
  return loc_text(*this, src);
}
std::string ModuleImpl::source_of(uint32_t src) const {
  std::string s = loc_text(*this, src);
  if (std::string u = user_line(src); u != s) s += ", inlined at " + u;
  return s;
}

// Module scope: variables and function headers.
void ModuleImpl::scan() {
  Lexer lx(text, 1);
  bool is_extern = false;
  struct Init {
    uint64_t addr;
    std::string_view name;
    uint64_t offset;
    size_t bytes;
    int shift;
  };
  std::vector<Init> fixups;
  while (lx.peek().kind != Token::End) {
    std::string_view w = lx.word();
    if (w == ".version") {
      lx.take();
      while (lx.peek().kind == Token::Word && lx.peek().text[0] == '.' && isdigit((unsigned char)lx.peek().text[1]))
        lx.take();
    } else if (w == ".target") {
      do {
        std::string_view t = lx.word();
        if (t.substr(0, 3) == "sm_") arch = std::atoi(std::string(t.substr(3)).c_str());
      } while (lx.accept(","));
    } else if (w == ".address_size")
      lx.take();
    else if (w == ".visible" || w == ".weak" || w == ".common" || w == ".hidden") {
    } else if (w == ".extern")
      is_extern = true;
    else if (w == ".file") {
      int id = int(lx.number());
      std::string_view name = lx.take().text;
      files[id] = std::string(name.substr(1, name.size() - 2));
      while (lx.accept(",")) lx.take();
    } else if (w == ".section") {
      while (!lx.is("{")) lx.take();
      lx.skip_braces();
    } else if (w == ".pragma" || w == ".alias") {
      while (!lx.accept(";")) lx.take();
    } else if (w == ".global" || w == ".const" || w == ".shared" || w == ".local") {
      Space space = w == ".shared"  ? Space::Shared
                    : w == ".const" ? Space::Const
                    : w == ".local" ? Space::Local
                                    : Space::Global;
      VarDecl v = parse_var(lx, space);
      v.sym.is_extern = is_extern;
      if ((space == Space::Global || space == Space::Const)) {
        if (auto it = symbols.find(v.sym.name); is_extern && it != symbols.end())
          v.sym.addr = it->second.addr;
        else {
          void* p = Memory::alloc(std::max<size_t>(v.sym.bytes, 1));
          memset(p, 0, v.sym.bytes);
          Memory::mark_initialised(p, v.sym.bytes);
          storage_.push_back(p);
          v.sym.addr = uint64_t(p);
        }
      }
      if (lx.accept("=")) {
        bool braces = lx.accept("{");
        size_t elem = std::max(type_bytes(v.type), 1);
        uint64_t at = v.sym.addr;
        do {
          while (lx.accept("{")) {
          }
          if (lx.is("}")) break;
          Token t = lx.peek();
          if (t.kind == Token::Number || lx.is("-")) {
            bool neg = lx.is("-");
            uint64_t val = neg ? lx.number() : lx.take().value;
            if (lx.is("(")) {  // byte of an address: 0xFF00(symbol)
              lx.take();
              int shift = std::countr_zero(val);
              bool generic = lx.accept("generic");
              if (generic) lx.expect("(");
              std::string_view name = lx.word();
              if (generic) lx.expect(")");
              uint64_t off = lx.accept("+") ? lx.number() : 0;
              lx.expect(")");
              fixups.push_back({at, name, off, 1, shift});
            } else {
              memcpy(reinterpret_cast<void*>(at), &val, std::min<size_t>(elem, 8));
            }
          } else {
            bool generic = lx.accept("generic");
            if (generic) lx.expect("(");
            std::string_view name = lx.word();
            if (generic) lx.expect(")");
            uint64_t off = lx.accept("+") ? lx.number() : 0;
            fixups.push_back({at, name, off, elem, 0});
          }
          at += elem;
          while (lx.accept("}")) {
          }
        } while (lx.accept(","));
        if (braces)
          while (lx.accept("}")) {
          }
      }
      lx.expect(";");
      if (!symbols.count(v.sym.name) || !is_extern) symbols[v.sym.name] = v.sym;
      is_extern = false;
    } else if (w == ".entry" || w == ".func") {
      Function f;
      f.entry = w == ".entry";
      auto param_list = [&](std::vector<Sym>& out) {
        lx.expect("(");
        size_t off = 0;
        while (!lx.accept(")")) {
          lx.accept(".param");
          lx.accept(".reg");
          Sym s = parse_var(lx, Space::Param).sym;
          off = (off + s.align - 1) / s.align * s.align;
          s.addr = off;
          off += s.bytes;
          out.push_back(s);
          lx.accept(",");
        }
      };
      if (lx.is(".attribute")) {
        lx.take();
        while (!lx.accept(")")) lx.take();
      }
      if (!f.entry && lx.is("(")) param_list(f.rets);
      f.name = lx.word();
      if (lx.is("(")) param_list(f.params);
      while (!lx.is("{") && !lx.is(";")) {
        std::string_view d = lx.take().text;
        if (d == ".maxntid" || d == ".reqntid") {
          f.has_reqntid = d == ".reqntid";
          f.max_threads = int(lx.number());
          while (lx.accept(",")) f.max_threads *= int(lx.number());
        }
      }
      if (lx.is("{")) {
        f.body_line = lx.line();
        f.body = lx.skip_braces();
        f.defined = true;
      } else
        lx.expect(";");
      auto it = functions.find(f.name);
      if (it == functions.end())
        functions.emplace(f.name, std::move(f));
      else if (!it->second.defined && f.defined)
        it->second = std::move(f);
      is_extern = false;
    } else
      lx.fail("unexpected '" + std::string(w) + "' at module scope");
  }
  for (Init const& i : fixups) {
    auto it = symbols.find(i.name);
    if (it == symbols.end()) continue;  // address of a function: calls through pointers are not supported
    uint64_t v = (it->second.addr + i.offset) >> i.shift;
    memcpy(reinterpret_cast<void*>(i.addr), &v, i.bytes);
  }
}

namespace {

struct Scope {
  uint32_t id = 0;
  std::unordered_map<std::string_view, int> regs;
  std::unordered_map<std::string_view, int> ranges;  // "%r<100>": prefix -> first id
  std::unordered_map<std::string_view, Sym*> vars;
};

class BodyParser {
 public:
  BodyParser(ModuleImpl& m, Function& f) : m_(m), f_(f), lx_(f.body, f.body_line) {}

  void run() {
    push();
    for (Sym& s : f_.params) scopes_.back().vars[s.name] = &s;
    for (Sym& s : f_.rets) scopes_.back().vars[s.name] = &s;
    while (lx_.peek().kind != Token::End) statement();
  }

 private:
  void push() {
    f_.scope_parent.push_back(scopes_.empty() ? 0 : scopes_.back().id);
    scopes_.emplace_back();
    scopes_.back().id = uint32_t(f_.scope_parent.size() - 1);
  }

  int find_reg(std::string_view name) const {
    for (size_t i = scopes_.size(); i-- > 0;) {
      Scope const& s = scopes_[i];
      if (auto it = s.regs.find(name); it != s.regs.end()) return it->second;
      size_t n = name.size();
      while (n > 0 && isdigit((unsigned char)name[n - 1])) --n;
      for (; n < name.size(); ++n) {  // the prefix itself may end in a digit
        auto it = s.ranges.find(name.substr(0, n));
        if (it == s.ranges.end()) continue;
        return it->second + std::atoi(std::string(name.substr(n)).c_str());
      }
    }
    return -1;
  }
  Sym const* find_var(std::string_view name) const {
    for (size_t i = scopes_.size(); i-- > 0;)
      if (auto it = scopes_[i].vars.find(name); it != scopes_[i].vars.end()) return it->second;
    auto it = m_.symbols.find(name);
    return it == m_.symbols.end() ? nullptr : &it->second;
  }

  void statement() {
    if (lx_.accept("{")) {
      push();
      return;
    }
    if (lx_.accept("}")) {
      scopes_.pop_back();
      return;
    }
    if (lx_.accept(";")) return;
    if (lx_.is("@")) {
      instruction();
      return;
    }
    if (lx_.peek().kind != Token::Word) lx_.fail("unexpected '" + std::string(lx_.peek().text) + "'");
    std::string_view w = lx_.peek().text;
    if (w[0] != '.') {
      uint32_t line = lx_.line();
      lx_.take();
      if (lx_.accept(":")) {
        if (lx_.is(".branchtargets")) {
          lx_.take();
          auto& list = f_.target_lists[w];
          do list.push_back(lx_.word());
          while (lx_.accept(","));
          lx_.expect(";");
        } else if (lx_.is(".callprototype")) {
          while (!lx_.accept(";")) lx_.take();
        } else
          f_.labels[{w, scopes_.back().id}] = uint32_t(f_.code.size());
        return;
      }
      instruction(w, line);
      return;
    }
    lx_.take();
    if (w == ".reg")
      reg_decl(lx_.word());
    else if (w.substr(0, 5) == ".reg.")
      reg_decl(w.substr(4));  // ".reg.b32 x" in inline assembly
    else if (w == ".loc") {
      std::string_view r = lx_.rest_of_line();
      SourceLoc l{};
      sscanf(std::string(r.substr(0, 40)).c_str(), "%hu %u %u", &l.file, &l.line, &l.column);
      auto add = [&](SourceLoc const& x) {
        m_.locs.push_back(x);
        return last_loc_[{x.file, x.line, x.column}] = uint32_t(m_.locs.size() - 1);
      };
      if (size_t at = r.find("inlined_at "); at != std::string_view::npos) {
        SourceLoc p{};
        sscanf(std::string(r.substr(at + 11, 40)).c_str(), "%hu %u %u", &p.file, &p.line, &p.column);
        auto it = last_loc_.find({p.file, p.line, p.column});
        l.parent = it != last_loc_.end() ? it->second : add(p);
      }
      src_ = add(l);
    } else if (w == ".pragma") {
      while (!lx_.accept(";")) lx_.take();
    } else if (w == ".shared" || w == ".local" || w == ".param" || w == ".global" || w == ".const") {
      Space sp = w == ".shared"  ? Space::Shared
                 : w == ".local" ? Space::Local
                 : w == ".param" ? Space::Param
                 : w == ".const" ? Space::Const
                                 : Space::Global;
      do {
        f_.locals.push_back(parse_var(lx_, sp).sym);
        scopes_.back().vars[f_.locals.back().name] = &f_.locals.back();
      } while (lx_.accept(","));
      if (sp == Space::Global || sp == Space::Const) lx_.fail("global variable inside a function is not supported");
      lx_.expect(";");
    } else if (w == ".file" || w == ".section")
      lx_.rest_of_line();
    else
      lx_.fail("unexpected directive " + std::string(w));
  }

  void reg_decl(std::string_view type_name) {
    Ty type = parse_type(type_name.substr(1));
    if (type == Ty::None) lx_.fail("unknown register type");
    do {
      std::string_view name = lx_.word();
      int first = int(f_.regs.size());
      if (lx_.accept("<")) {
        size_t n = lx_.number();
        lx_.expect(">");
        f_.regs.resize(first + n, VReg{type, name});
        scopes_.back().ranges[name] = first;
      } else {
        f_.regs.push_back({type, name});
        scopes_.back().regs[name] = first;
      }
    } while (lx_.accept(","));
    lx_.expect(";");
  }

  void instruction(std::string_view op = {}, uint32_t line = 0) {
    Statement st;
    st.src = src_;
    st.scope = scopes_.back().id;
    if (op.empty()) {
      lx_.expect("@");
      st.pred_neg = lx_.accept("!");
      st.pred = find_reg(lx_.word());
      line = lx_.line();
      op = lx_.word();
    }
    st.op = op;
    st.line = line;
    for (size_t i = 0; i <= op.size();) {
      size_t j = op.find('.', i);
      if (j == std::string_view::npos) j = op.size();
      st.mods.push_back(op.substr(i, j - i));
      i = j + 1;
    }
    bool call = st.mods[0] == "call";
    if (!lx_.is(";")) {
      do st.args.push_back(operand(call));
      while (lx_.accept(","));
    }
    lx_.expect(";");
    f_.code.push_back(std::move(st));
  }

  Operand operand(bool call) {
    Operand o;
    Token const& t = lx_.peek();
    if (lx_.accept("[")) {
      o = operand(false);
      if (o.kind == Operand::Imm) {
        o.reg = -1;
        o.sym = nullptr;
      } else if (o.kind == Operand::Label)
        lx_.fail("unknown symbol " + std::string(o.name));
      o.kind = Operand::Addr;
      while (lx_.accept(",")) o.elems.push_back(operand(false));
      lx_.expect("]");
      return o;
    }
    if (lx_.is("{") || (call && lx_.is("("))) {
      o.kind = Operand::Vec;
      std::string_view close = lx_.is("{") ? "}" : ")";
      lx_.take();
      while (!lx_.accept(close)) {
        o.elems.push_back(operand(false));
        lx_.accept(",");
      }
      return o;
    }
    if (lx_.accept("!")) {
      o = operand(false);
      o.neg = true;
      return o;
    }
    if (t.kind == Token::Number || lx_.is("-")) {
      o.kind = Operand::Imm;
      bool neg = lx_.accept("-");
      Token n = lx_.take();
      o.imm = neg ? 0 - n.value : n.value;
      o.is_float = n.float_bytes != 0;
      o.float_bytes = n.float_bytes;
      return o;
    }
    std::string_view w = lx_.word();
    if (w == "_") {
      o.kind = Operand::Sink;
    } else if (int r = find_reg(w); r >= 0) {
      o.kind = Operand::Reg;
      o.reg = r;
      if (f_.regs[r].type == Ty::None) lx_.fail("bad register");
    } else if (Sym const* s = find_var(w)) {
      o.kind = Operand::Sym_;
      o.sym = s;
      o.name = w;
    } else {
      o.kind = Operand::Label;  // label, function, or special register
      o.name = w;
    }
    if (lx_.accept("+"))
      o.imm = lx_.number();
    else if (lx_.is("-") && o.kind != Operand::Label)
      o.imm = lx_.number();
    if (lx_.accept("|")) o.elems.push_back(operand(false));
    return o;
  }

  ModuleImpl& m_;
  Function& f_;
  Lexer lx_;
  std::vector<Scope> scopes_;
  uint32_t src_ = 0;
  std::map<std::array<uint32_t, 3>, uint32_t> last_loc_;  // file, line, column -> last location there
};

}  // namespace

void ModuleImpl::parse_body(Function& f) {
  if (f.parsed) return;
  f.parsed = true;
  BodyParser(*this, f).run();
}

}  // namespace ptxrun
