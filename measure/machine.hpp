#pragma once
/// \file
/// What of the machine decides how large a case is.

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <string>

namespace kvquant::measure {

/// Of the largest cache of the first core; 32 MiB where Linux does not say.
inline std::size_t last_level_cache_bytes() {
  std::size_t largest = 0;
  for (int index = 0;; ++index) {
    std::ifstream in("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::size_t kib = 0;
    if (!(in >> kib)) break;
    largest = std::max(largest, kib * 1024);
  }
  return largest > 0 ? largest : std::size_t{32} << 20;
}

/// What layers hold together so that one is cold again when its turn comes.
inline std::size_t cold_working_set() { return 2 * last_level_cache_bytes(); }

/// A line of /proc/meminfo; 4 GiB where Linux does not say.
inline std::size_t memory_bytes(std::string const& line) {
  std::ifstream in("/proc/meminfo");
  for (std::string name; in >> name;) {
    std::size_t kib = 0;
    if (name == line && in >> kib) return kib * 1024;
    std::getline(in, name);
  }
  return std::size_t{4} << 30;
}

/// What the kernel would give without swapping.
inline std::size_t available_memory_bytes() { return memory_bytes("MemAvailable:"); }
inline std::size_t total_memory_bytes() { return memory_bytes("MemTotal:"); }

}  // namespace kvquant::measure
