#pragma once
/// \file
/// The memories that models run in.

#include <cstddef>
#include <string_view>

namespace kvquant::plan {

struct device {
  std::string_view name;
  std::size_t memory_bytes = 0;
  double bandwidth = 0;  ///< bytes per second, by the data sheet; 0: to be measured
  bool is_gpu = true;    ///< its pages lie as the CUDA backend wants them
};

/// This machine's main memory.
inline constexpr std::string_view host_name = "cpu";

/// Throws `bad_value` naming those that are known. That of the host has the memory of this machine.
device find_device(std::string_view name);

}  // namespace kvquant::plan
