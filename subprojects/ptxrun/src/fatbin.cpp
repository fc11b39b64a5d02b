// Fat binary container.
#include "fatbin.hpp"

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace ptxrun {

namespace {

struct FatHeader {
  uint32_t magic;  // 0xBA55ED50
  uint16_t version, header_bytes;
  uint64_t bytes;  // of all entries
};
struct EntryHeader {
  uint16_t kind, version;  // kind 1: PTX, 2: machine code
  uint32_t header_bytes;
  uint64_t bytes;  // payload, padded
  uint32_t compressed_bytes;
  uint32_t options_at;
  uint16_t minor, major;
  uint32_t arch;
  uint32_t name_at, name_bytes;
  uint64_t flags;
  uint64_t zero;
  uint64_t raw_bytes;  // after decompression
};
constexpr uint32_t kFatMagic = 0xBA55ED50u;

uint32_t le32(unsigned char const* p) {
  return uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
}

}  // namespace

std::string lz4_decompress(unsigned char const* in, size_t n, size_t out_size) {
  std::string out;
  out.reserve(out_size);
  unsigned char const* end = in + n;
  auto length = [&](size_t v) {
    if (v == 15)
      for (unsigned char c = 255; c == 255 && in < end;) v += c = *in++;
    return v;
  };
  while (in < end) {
    unsigned token = *in++;
    size_t lit = length(token >> 4);
    if (lit > size_t(end - in)) break;
    out.append(reinterpret_cast<char const*>(in), lit);
    in += lit;
    if (in + 2 > end || out.size() >= out_size) break;
    size_t off = in[0] | size_t(in[1]) << 8;
    in += 2;
    size_t len = length(token & 15) + 4;
    if (!off || off > out.size()) throw std::runtime_error("ptxrun: damaged LZ4 data in fat binary");
    for (size_t i = 0; i < len; ++i) out.push_back(out[out.size() - off]);
  }
  out.resize(out_size);
  return out;
}

namespace {

// Calls fn(entry, payload) for every entry.
template <class F>
void for_entries(void const* data, F&& fn) {
  auto* p = static_cast<unsigned char const*>(data);
  FatHeader h;
  memcpy(&h, p, sizeof h);
  if (h.magic != kFatMagic) throw std::runtime_error("ptxrun: not a fat binary");
  unsigned char const *at = p + h.header_bytes, *end = at + h.bytes;
  while (at + sizeof(EntryHeader) <= end) {
    EntryHeader e{};
    memcpy(&e, at, sizeof e);
    if (!e.header_bytes || !e.bytes) break;
    fn(e, at + e.header_bytes);
    at += e.header_bytes + e.bytes;
  }
}

}  // namespace

int fatbin_arch(void const* data, int limit, bool* has_cubin) {
  int best = 0;
  for_entries(data, [&](EntryHeader const& e, unsigned char const*) {
    if (e.kind != 1)
      *has_cubin = true;
    else if (int(e.arch) <= limit && int(e.arch) > best)
      best = int(e.arch);
  });
  return best;
}

std::string fatbin_ptx(void const* data, int arch) {
  std::string text;
  for_entries(data, [&](EntryHeader const& e, unsigned char const* body) {
    if (e.kind != 1 || int(e.arch) != arch || !text.empty()) return;
    size_t n = e.compressed_bytes ? e.compressed_bytes : e.bytes;
    if (le32(body) == 0xFD2FB528u)
      text = zstd_decompress(body, n, e.raw_bytes);
    else if (e.raw_bytes && e.compressed_bytes && e.raw_bytes != e.compressed_bytes)
      text = lz4_decompress(body, n, e.raw_bytes);
    else
      text.assign(reinterpret_cast<char const*>(body), n);
    if (size_t z = text.find('\0'); z != std::string::npos) text.resize(z);
  });
  return text;
}

}  // namespace ptxrun
