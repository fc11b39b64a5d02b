#include "tools/plan/device.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "kvquant/core/error.hpp"
#include "measure/machine.hpp"

namespace kvquant::plan {

namespace {

constexpr std::size_t mebi = std::size_t{1} << 20;

/// Memory as the driver reports it, before anything runs there; bandwidth by NVIDIA's data sheets (SXM modules).
constexpr std::array devices = {device{"a100-40g", 40960 * mebi, 1555e9}, device{"a100-80g", 81920 * mebi, 2039e9},
                                device{"h100-80g", 81559 * mebi, 3350e9}, device{"h200", 143771 * mebi, 4800e9},
                                device{"rtx-4090", 24564 * mebi, 1008e9}, device{host_name, 0, 0, false}};

}  // namespace

device find_device(std::string_view name) {
  auto const found = std::ranges::find(devices, name, &device::name);
  if (found == devices.end()) {
    std::string known;
    for (device const& it : devices) (known += known.empty() ? "" : ", ") += it.name;
    throw error{errc::bad_value, text("unknown device \"", name, "\", expected one of ", known)};
  }
  device it = *found;
  if (it.memory_bytes == 0) it.memory_bytes = measure::total_memory_bytes();
  return it;
}

}  // namespace kvquant::plan
