#pragma once
/// \file
/// Code for instructions that the rest of a program does not assume: what stands between `KVQ_TARGET_BEGIN(features)`
/// and `KVQ_TARGET_END` is compiled for them, templates and lambdas included. It must run only where the machine has
/// them (see `isa.hpp`), and nothing before it may have been compiled for less and be expected to inline more.

#define KVQ_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define KVQ_TARGET_BEGIN(features) \
  KVQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KVQ_TARGET_END KVQ_PRAGMA(clang attribute pop)
#else
#define KVQ_TARGET_BEGIN(features) KVQ_PRAGMA(GCC push_options) KVQ_PRAGMA(GCC target(features))
#define KVQ_TARGET_END KVQ_PRAGMA(GCC pop_options)
#endif
