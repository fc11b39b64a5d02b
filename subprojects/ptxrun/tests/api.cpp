// The library interface, with PTX given as text.
#include <cstdio>
#include <cstring>

#include "ptxrun.hpp"

static char const* kPtx = R"(
.version 7.0
.target sm_80
.address_size 64
.global .align 4 .u32 offset = 7;
.visible .entry _Z5scalePKfPffi(
  .param .u64 p_in, .param .u64 p_out, .param .f32 p_k, .param .u32 p_n)
{
  .reg .pred %p<2>;
  .reg .b32 %r<6>;
  .reg .f32 %f<5>;
  .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [p_in];
  ld.param.u64 %rd2, [p_out];
  ld.param.f32 %f1, [p_k];
  ld.param.u32 %r1, [p_n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.s32 %p1, %r5, %r1;
  @%p1 bra DONE;
  mul.wide.s32 %rd3, %r5, 4;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.f32 %f2, [%rd4];
  mul.f32 %f3, %f2, %f1;
  ld.global.u32 %r5, [offset];
  cvt.rn.f32.s32 %f4, %r5;
  add.f32 %f3, %f3, %f4;
  st.global.f32 [%rd5], %f3;
DONE:
  ret;
}
)";

template <class T>
std::vector<uint8_t> raw(T v) {
  std::vector<uint8_t> b(sizeof v);
  std::memcpy(b.data(), &v, sizeof v);
  return b;
}

int main() {
  using namespace ptxrun;
  Module m = Module::load(kPtx);
  Kernel k = m.kernel("scale(float const*");
  int failed = !k;
  int const n = 1000;
  auto* in = static_cast<float*>(Memory::alloc(n * 4));
  auto* out = static_cast<float*>(Memory::alloc(n * 4));
  for (int i = 0; i < n; ++i) in[i] = float(i);
  k.launch({{8}, {128}}, {raw(in), raw(out), raw(2.0f), raw(n)});
  for (int i = 0; i < n; ++i) failed |= out[i] != 2.0f * float(i) + 7;
  bool caught = false;
  try {
    k.launch({{8}, {128}}, {raw(in), raw(out), raw(2.0f), raw(n + 1)});
  } catch (Fault const& f) {
    caught = f.kind == FaultKind::OutOfBounds && std::strstr(f.what(), "block (7,0,0), thread (104,0,0)");
  }
  failed |= !caught;
  caught = false;
  try {
    Module::load(".version 7.0\n.target sm_80\n.visible .entry k() {\n bogus.u32 1;\n}\n").kernel("k");
  } catch (ParseError const& e) {
    caught = std::strstr(e.what(), "PTX line 4") != nullptr;
  }
  failed |= !caught;
  std::printf("%-12s %s\n", "api", failed ? "FAILED" : "ok");
  return failed;
}
