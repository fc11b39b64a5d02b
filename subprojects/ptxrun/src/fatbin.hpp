#pragma once
#include <string>
namespace ptxrun {

// The data behind __cudaRegisterFatBinary. Highest architecture (at most `limit`) for which it holds
// PTX, or 0; `has_cubin`: there is machine code too, which cannot be executed here.
int fatbin_arch(void const* data, int limit, bool* has_cubin);
std::string fatbin_ptx(void const* data, int arch);

std::string lz4_decompress(unsigned char const* in, size_t n, size_t out_size);
std::string zstd_decompress(unsigned char const* in, size_t n, size_t out_size);

}  // namespace ptxrun
