// binary16 as the executor converts it, against the compiler's.
#include <cstdio>
#include <cstring>
#include <random>

#include "fp.hpp"

int main() {
  using ptxrun::F16;
  int failed = 0;
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    float got = std::bit_cast<F16>(uint16_t(i)), want = float(std::bit_cast<_Float16>(uint16_t(i)));
    failed += std::memcmp(&got, &want, sizeof got) != 0;  // NaN is not equal to itself
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000000; ++i) {
    float any = std::bit_cast<float>(uint32_t(random()));
    // Exponents around the range of binary16; bits of a double that decide ties, and bits that a float drops.
    uint64_t bits = random() & ~(0x7ffull << 52);
    if (i % 2) bits = (bits & ~((1ull << 40) - 1)) | (i % 4 == 1);
    double d = std::bit_cast<double>(bits | (993 + random() % 50) << 52);
    failed += F16(any).bits != std::bit_cast<uint16_t>(_Float16(any));
    failed += F16(float(d)).bits != std::bit_cast<uint16_t>(_Float16(float(d)));
    failed += F16(d).bits != std::bit_cast<uint16_t>(_Float16(d));
  }
  std::printf("%d conversions differ\n", failed);
  return failed != 0;
}
