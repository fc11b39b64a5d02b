#pragma once
/// \file
/// The intrinsics of x86-64.

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the intrinsics' own undefined operands for ours (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
