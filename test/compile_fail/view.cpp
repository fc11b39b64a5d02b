#include "kvquant/core/view.hpp"

namespace {

void read(kvquant::view2d<float const>) {}
void write(kvquant::view2d<float>) {}

}  // namespace

int main() {
  float data[4] = {};
  kvquant::view2d<float> const writable(data, 2, 2);
  kvquant::view2d<float const> const readable = writable;
  read(writable);
  read(readable);
  write(writable);
#if CASE == 1  // view2d<float>
  write(readable);
#elif CASE == 2  // readable(0, 0)
  readable(0, 0) = 1.0f;
#elif CASE == 3  // view2d
  kvquant::view2d<double const> const other = writable;
#endif
}
