#pragma once
/// \file
/// The library's version and its three macros.

#include <cassert>

///@{
/// Of this copy of the library; docs/versioning.md.
#define KVQUANT_VERSION_MAJOR 0
#define KVQUANT_VERSION_MINOR 1
#define KVQUANT_VERSION_PATCH 0
#define KVQUANT_VERSION "0.1.0"
///@}

/// Marks what runs on the host and, compiled by nvcc, on the device too.
#if defined(__CUDACC__)
#define KVQ_HD __host__ __device__
#else
#define KVQ_HD
#endif

/// Internal invariants only: whatever a caller can get wrong throws `kvquant::error` instead.
#define KVQ_ASSERT(condition) assert(condition)
