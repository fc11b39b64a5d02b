#pragma once
/// \file
/// Machine instructions that C++ has no word for.

#include <cstddef>
#include <cstdint>

namespace kvquant::cuda::arch {

/// 32 bits of a register: two binary16 numbers, or packed codes.
using word = std::uint32_t;

/// D = A B + D with A [16, 16] by rows, B [16, 8] by columns, in binary16, and D [16, 8] in binary32. With g = lane / 4
/// and t = lane % 4 a lane holds a[0] = A(g, 2t), a[1] = A(g + 8, 2t), a[2] = A(g, 2t + 8), a[3] = A(g + 8, 2t + 8),
/// b0 = B(2t, g), b1 = B(2t + 8, g), each with its neighbour along K, and d = D(g, 2t), D(g, 2t + 1), D(g + 8, ...).
__device__ __forceinline__ void mma(float (&d)[4], word const (&a)[4], word b0, word b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// An 8 x 8 matrix of binary16, row lane / 4, turned about its diagonal.
__device__ __forceinline__ word transposed(word rows) {
  word columns;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(columns) : "r"(rows));
  return columns;
}

/// Four bytes of (high, low), each chosen by a nibble of `selector` whose top bit must be 0. The intrinsic would clear
/// it.
__device__ __forceinline__ word permuted(word low, word high, word selector) {
  word bytes;
  asm("prmt.b32 %0,%1,%2,%3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}

/// 2^x to 2 ulp; denormals are 0.
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ word shared_address(void const* p) { return static_cast<word>(__cvta_generic_to_shared(p)); }

/// Whether it holds for a lane of the warp. Of what all lanes agree on: tells the compiler so, which otherwise would
/// keep watch over lanes that go different ways.
__device__ __forceinline__ bool any(bool mine) { return __any_sync(~0u, mine); }

__device__ __forceinline__ void load_four(uint4 const* from, word* out) {
  uint4 const it = *from;
  out[0] = it.x, out[1] = it.y, out[2] = it.z, out[3] = it.w;
}

/// Copies 16 bytes while the thread goes on, past the first-level cache, from `Offset` bytes behind one address to as
/// far behind another.
template <int Offset>
__device__ __forceinline__ void copy_async(word shared, void const* global) {
  asm volatile("cp.async.cg.shared.global [%0+%2],[%1+%2],16;" ::"r"(shared), "l"(global), "n"(Offset) : "memory");
}
/// Copies 4 bytes while the thread goes on, or writes zeros.
__device__ __forceinline__ void copy_or_clear(word shared, void const* global, bool copy) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4,%2;" ::"r"(shared), "l"(global), "r"(copy ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most `Groups` of this thread's latest commits are under way.
template <int Groups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

}  // namespace kvquant::cuda::arch
