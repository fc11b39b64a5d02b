#include "backends/cuda/launch/attend.hpp"

#include "backends/cuda/supports.hpp"

namespace kvquant::cuda {

namespace {

template <int Bits, std::size_t... I>
attend_launcher of_head_dim(int head_dim, std::index_sequence<I...>) {
  attend_launcher found = nullptr;
  ((head_dim == head_dims[I] ? void(found = launch_attend<Bits, head_dims[I]>) : void()), ...);
  return found;
}

template <std::size_t... I>
attend_launcher of_bits(int bits, int head_dim, std::index_sequence<I...>) {
  attend_launcher found = nullptr;
  ((bits == code_bits[I]
        ? void(found = of_head_dim<code_bits[I]>(head_dim, std::make_index_sequence<head_dims.size()>{}))
        : void()),
   ...);
  return found;
}

}  // namespace

attend_launcher attend_launcher_for(int bits, int head_dim) {
  return of_bits(bits, head_dim, std::make_index_sequence<code_bits.size()>{});
}

}  // namespace kvquant::cuda
