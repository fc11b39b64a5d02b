#pragma once
/// \file
/// Which instructions the kernels use: found once at run time, or named by the user.

#include <array>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "kvquant/core/error.hpp"

namespace kvquant::cpu {

/// Fastest first.
enum class isa {
  avx512,   ///< with VBMI (byte permutes) and VNNI (dot products of bytes): Ice Lake, Zen 4 and later
  avx2,     ///< with FMA and F16C: Haswell, Zen and later
  portable  ///< vectors of 128 bits through Highway: any machine, x86-64 from SSSE3 on
};

/// Fastest first.
inline constexpr std::array all_isas{isa::avx512, isa::avx2, isa::portable};

/// As KVQUANT_ISA and reports spell it.
constexpr std::string_view name_of(isa it) {
  switch (it) {
    case isa::avx512: return "avx512";
    case isa::avx2: return "avx2";
    case isa::portable: return "portable";
  }
  return "unknown";
}

/// Whether this processor has them.
inline bool is_available([[maybe_unused]] isa it) {
#if defined(__x86_64__)
  // Every processor with AVX2 has F16C, which clang 14 cannot ask for.
  auto const has_avx2 = [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); };
  if (it == isa::portable) return __builtin_cpu_supports("ssse3");
  if (it == isa::avx512)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  return has_avx2();
#else
  return it == isa::portable;
#endif
}

/// What this machine can run, fastest first.
inline std::span<isa const> available_isas() {
  static auto const found = [] {
    struct {
      std::array<isa, all_isas.size()> list{};
      std::size_t count = 0;
    } out;
    for (isa const it : all_isas)
      if (is_available(it)) out.list[out.count++] = it;
    return out;
  }();
  return std::span(found.list).first(found.count);
}

/// Throws `unsupported` naming what this machine can run.
inline isa parse_isa(std::string_view name) {
  std::string known;
  for (isa const it : available_isas()) {
    if (name_of(it) == name) return it;
    known += (known.empty() ? "" : ", ") + std::string(name_of(it));
  }
  throw error{errc::unsupported, text("instructions \"", name, "\", expected one of ", known, " on this machine")};
}

/// The one that the environment's KVQUANT_ISA names, or the fastest. Throws as `parse_isa` does, and `unsupported`
/// where there is none.
inline isa chosen_isa() {
  char const* const forced = std::getenv("KVQUANT_ISA");
  if (forced != nullptr && *forced != '\0') return parse_isa(forced);
  require(!available_isas().empty(), errc::unsupported,
          "CPU backend: no instructions for this machine, expected SSSE3");
  return available_isas().front();
}

}  // namespace kvquant::cpu
