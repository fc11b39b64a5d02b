// Zstandard decompression (RFC 8878), as needed for fat binaries: one frame, no dictionary.
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <vector>

#include "fatbin.hpp"

namespace ptxrun {

namespace {

using Bytes = unsigned char const*;

[[noreturn]] void damaged() { throw std::runtime_error("ptxrun: damaged zstd data in fat binary"); }

struct ForwardBits {
  Bytes p, end;
  size_t pos = 0;  // in bits
  uint32_t read(int n) {
    uint32_t v = 0;
    for (int i = 0; i < n; ++i, ++pos) {
      if (p + pos / 8 >= end) damaged();
      v |= uint32_t(p[pos / 8] >> (pos % 8) & 1) << i;
    }
    return v;
  }
  Bytes next_byte() const { return p + (pos + 7) / 8; }
};

// Read from the end towards the front; bits before the front are zero.
struct BackwardBits {
  Bytes p;
  int64_t pos;
  BackwardBits(Bytes begin, size_t n) : p(begin) {
    if (n == 0 || begin[n - 1] == 0) damaged();
    pos = int64_t(n) * 8 - std::countl_zero(begin[n - 1]) - 1;
  }
  uint64_t read(int n) {
    pos -= n;
    return peek_at(pos, n);
  }
  uint64_t peek(int n) const { return peek_at(pos - n, n); }
  uint64_t peek_at(int64_t at, int n) const {
    uint64_t v = 0;
    int shift = 0;
    if (at < 0) {
      shift = int(-at);
      if (shift >= n) return 0;
      at = 0;
    }
    int want = n - shift, got = 0;
    for (int64_t b = at / 8; got < want + int(at % 8); ++b, got += 8) {
      if (got < 64) v |= uint64_t(p[b]) << got;
    }
    v >>= at % 8;
    return (v & ((1ull << want) - 1)) << shift;
  }
};

struct FseTable {
  struct Entry {
    uint8_t symbol, bits;
    uint16_t base;
  };
  int log = 0;
  std::vector<Entry> e;

  void build(std::span<int const> prob, int table_log) {
    log = table_log;
    size_t size = size_t(1) << log, high = size;
    e.assign(size, {});
    std::vector<uint32_t> next(prob.size());
    for (size_t s = 0; s < prob.size(); ++s) {
      next[s] = prob[s] < 0 ? 1 : uint32_t(prob[s]);
      if (prob[s] == -1) e[--high].symbol = uint8_t(s);
    }
    size_t step = (size >> 1) + (size >> 3) + 3, pos = 0;
    for (size_t s = 0; s < prob.size(); ++s)
      for (int i = 0; i < prob[s]; ++i) {
        e[pos].symbol = uint8_t(s);
        do pos = (pos + step) & (size - 1);
        while (pos >= high);
      }
    for (Entry& x : e) {
      uint32_t n = next[x.symbol]++;
      x.bits = uint8_t(log - (std::bit_width(n) - 1));
      x.base = uint16_t((n << x.bits) - size);
    }
  }
  void build_rle(uint8_t symbol) {
    log = 0;
    e.assign(1, {symbol, 0, 0});
  }
  // Reads the description of a distribution; returns the first byte after it.
  Bytes read(Bytes p, Bytes end, int max_log) {
    ForwardBits in{p, end};
    int table_log = int(in.read(4)) + 5;
    if (table_log > max_log) damaged();
    std::vector<int> prob;
    int remaining = 1 << table_log;
    while (remaining > 0 && prob.size() < 256) {
      int bits = std::bit_width(uint32_t(remaining + 1));
      uint32_t v = in.read(bits), lower = (1u << (bits - 1)) - 1,
               threshold = (1u << bits) - 1 - uint32_t(remaining + 1);
      if ((v & lower) < threshold) {
        --in.pos;
        v &= lower;
      } else if (v > lower)
        v -= threshold;
      int pr = int(v) - 1;
      remaining -= pr < 0 ? -pr : pr;
      prob.push_back(pr);
      if (pr == 0)
        for (uint32_t r = 3; r == 3;) {
          r = in.read(2);
          prob.insert(prob.end(), r, 0);
        }
    }
    if (remaining != 0) damaged();
    build(prob, table_log);
    return in.next_byte();
  }
};

struct FseState {
  FseTable const& t;
  uint32_t s;
  FseState(FseTable const& table, BackwardBits& in) : t(table), s(uint32_t(in.read(table.log))) {}
  uint8_t symbol() const { return t.e[s].symbol; }
  void update(BackwardBits& in) { s = t.e[s].base + uint32_t(in.read(t.e[s].bits)); }
};

struct Huffman {
  int bits = 0;
  std::vector<std::pair<uint8_t, uint8_t>> table;  // symbol, length

  Bytes read(Bytes p, Bytes end) {
    if (p >= end) damaged();
    unsigned h = *p++;
    std::vector<uint8_t> w;
    if (h >= 128) {
      size_t n = h - 127;
      if (p + (n + 1) / 2 > end) damaged();
      for (size_t i = 0; i < n; ++i) w.push_back(i % 2 ? p[i / 2] & 15 : p[i / 2] >> 4);
      p += (n + 1) / 2;
    } else {
      if (p + h > end) damaged();
      FseTable t;
      Bytes data = t.read(p, p + h, 6);
      BackwardBits in(data, size_t(p + h - data));
      FseState a(t, in), b(t, in);
      for (;;) {
        w.push_back(a.symbol());
        a.update(in);
        if (in.pos < 0) {
          w.push_back(b.symbol());
          break;
        }
        w.push_back(b.symbol());
        b.update(in);
        if (in.pos < 0) {
          w.push_back(a.symbol());
          break;
        }
        if (w.size() > 255) damaged();
      }
      p += h;
    }
    uint32_t sum = 0;
    for (uint8_t x : w) sum += x ? 1u << (x - 1) : 0;
    if (!sum) damaged();
    bits = std::bit_width(sum);
    uint32_t rest = (1u << bits) - sum;
    if (rest & (rest - 1)) damaged();
    w.push_back(uint8_t(std::bit_width(rest)));
    table.assign(size_t(1) << bits, {});
    size_t at = 0;
    for (int x = 1; x <= bits; ++x)
      for (size_t s = 0; s < w.size(); ++s)
        if (w[s] == x)
          for (size_t k = 0; k < size_t(1) << (x - 1); ++k) table.at(at++) = {uint8_t(s), uint8_t(bits + 1 - x)};
    return p;
  }
  void decode(Bytes p, size_t n, size_t count, std::string& out) const {
    BackwardBits in(p, n);
    for (size_t i = 0; i < count; ++i) {
      auto [symbol, len] = table[in.peek(bits)];
      in.pos -= len;
      out.push_back(char(symbol));
    }
  }
};

struct CodeInfo {
  uint32_t base;
  uint8_t bits;
};
constexpr auto kLiteralCodes = [] {
  std::array<CodeInfo, 36> t{};
  constexpr uint8_t bits[] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  uint32_t base = 16;
  for (uint32_t i = 0; i < 16; ++i) t[i] = {i, 0};
  for (uint32_t i = 16; i < 36; ++i) {
    t[i] = {i == 25 ? 64 : base, bits[i - 16]};
    base = t[i].base + (1u << bits[i - 16]);
  }
  return t;
}();
constexpr auto kMatchCodes = [] {
  std::array<CodeInfo, 53> t{};
  constexpr uint8_t bits[] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  for (uint32_t i = 0; i < 32; ++i) t[i] = {i + 3, 0};
  uint32_t base = 35;
  for (uint32_t i = 32; i < 53; ++i) {
    t[i] = {base, bits[i - 32]};
    base += 1u << bits[i - 32];
  }
  return t;
}();
static_assert(kLiteralCodes[35].base == 65536 && kLiteralCodes[24].base == 48 && kMatchCodes[43].base == 131 &&
              kMatchCodes[52].base == 65539);

// Plain arrays: fat binaries are registered before dynamic initialisation of this file.
constexpr int kLiteralDefault[] = {4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1,  1,  2,  2,
                                   2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1};
constexpr int kMatchDefault[] = {1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,  1,  1,  1,  1,  1,  1, 1,
                                 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1};
constexpr int kOffsetDefault[] = {1, 1, 1, 1, 1, 1, 2, 2, 2, 1,  1,  1,  1,  1, 1,
                                  1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1};

struct Decoder {
  std::string out;
  Huffman huffman;
  FseTable literal, offset, match;
  std::array<size_t, 3> rep = {1, 4, 8};

  Bytes literals(Bytes p, Bytes end, std::string& lit) {
    if (p >= end) damaged();
    int type = p[0] & 3, format = p[0] >> 2 & 3;
    auto le = [&](int n) {
      uint64_t v = 0;
      if (p + n > end) damaged();
      for (int i = 0; i < n; ++i) v |= uint64_t(p[i]) << (8 * i);
      return v;
    };
    if (type < 2) {
      int n = format == 1 ? 2 : format == 3 ? 3 : 1;
      size_t size = size_t(le(n) >> (n == 1 ? 3 : 4));
      p += n;
      if (type == 0) {
        if (p + size > end) damaged();
        lit.assign(reinterpret_cast<char const*>(p), size);
        return p + size;
      }
      if (p >= end) damaged();
      lit.assign(size, char(*p));
      return p + 1;
    }
    int n = format < 2 ? 3 : format == 2 ? 4 : 5, width = format < 2 ? 10 : format == 2 ? 14 : 18;
    uint64_t h = le(n) >> 4;
    size_t size = h & ((1u << width) - 1), packed = h >> width & ((1u << width) - 1);
    p += n;
    Bytes stop = p + packed;
    if (stop > end) damaged();
    if (type == 2) p = huffman.read(p, stop);
    if (format == 0)
      huffman.decode(p, size_t(stop - p), size, lit);
    else {
      if (p + 6 > stop) damaged();
      size_t len[4] = {size_t(p[0] | p[1] << 8), size_t(p[2] | p[3] << 8), size_t(p[4] | p[5] << 8), 0};
      p += 6;
      if (len[0] + len[1] + len[2] > size_t(stop - p)) damaged();
      len[3] = size_t(stop - p) - len[0] - len[1] - len[2];
      size_t each = (size + 3) / 4;
      for (int i = 0; i < 4; ++i) {
        huffman.decode(p, len[i], i < 3 ? each : size - 3 * each, lit);
        p += len[i];
      }
    }
    return stop;
  }

  void block(Bytes p, Bytes end) {
    std::string lit;
    p = literals(p, end, lit);
    if (p >= end) damaged();
    size_t count = *p++;
    if (count >= 128 && count < 255)
      count = ((count - 128) << 8) + *p++;
    else if (count == 255)
      count = p[0] + (p[1] << 8) + 0x7f00, p += 2;
    if (!count) {
      out += lit;
      return;
    }
    int modes = *p++;
    auto table = [&](FseTable& t, int mode, std::span<int const> dflt, int dflt_log, int max_log) {
      if (mode == 0)
        t.build(dflt, dflt_log);
      else if (mode == 1)
        t.build_rle(*p++);
      else if (mode == 2)
        p = t.read(p, end, max_log);
      else if (t.e.empty())
        damaged();
    };
    table(literal, modes >> 6 & 3, kLiteralDefault, 6, 9);
    table(offset, modes >> 4 & 3, kOffsetDefault, 5, 8);
    table(match, modes >> 2 & 3, kMatchDefault, 6, 9);
    if (p >= end) damaged();
    BackwardBits in(p, size_t(end - p));
    FseState ll(literal, in), of(offset, in), ml(match, in);
    size_t used = 0;
    for (size_t i = 0; i < count; ++i) {
      if (ll.symbol() > 35 || ml.symbol() > 52 || of.symbol() > 31) damaged();
      size_t off = (size_t(1) << of.symbol()) + in.read(of.symbol());
      size_t len = kMatchCodes[ml.symbol()].base + in.read(kMatchCodes[ml.symbol()].bits);
      size_t lits = kLiteralCodes[ll.symbol()].base + in.read(kLiteralCodes[ll.symbol()].bits);
      if (off > 3) {
        off -= 3;
        rep = {off, rep[0], rep[1]};
      } else {
        size_t idx = off - 1 + (lits == 0);
        off = idx == 3 ? rep[0] - 1 : rep[idx];
        if (idx == 1)
          rep = {off, rep[0], rep[2]};
        else if (idx >= 2)
          rep = {off, rep[0], rep[1]};
      }
      if (used + lits > lit.size()) damaged();
      out.append(lit, used, lits);
      used += lits;
      if (off == 0 || off > out.size()) damaged();
      for (size_t k = 0, at = out.size() - off; k < len; ++k) out.push_back(out[at + k]);
      if (i + 1 < count) {
        ll.update(in);
        ml.update(in);
        of.update(in);
      }
    }
    out.append(lit, used, std::string::npos);
  }
};

}  // namespace

std::string zstd_decompress(Bytes p, size_t n, size_t out_size) {
  Bytes end = p + n;
  if (n < 6) damaged();
  unsigned d = p[4];
  p += 5;
  if (!(d & 32)) ++p;  // window descriptor
  constexpr int dict_bytes[] = {0, 1, 2, 4};
  p += dict_bytes[d & 3];
  int size_flag = d >> 6;
  p += size_flag == 0 ? (d & 32 ? 1 : 0) : 1 << size_flag;  // content size
  Decoder dec;
  dec.out.reserve(out_size);
  for (bool last = false; !last;) {
    if (p + 3 > end) damaged();
    uint32_t h = p[0] | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16;
    p += 3;
    last = h & 1;
    size_t size = h >> 3;
    int type = h >> 1 & 3;
    if (type == 1) {
      if (p >= end) damaged();
      dec.out.append(size, char(*p++));
      continue;
    }
    if (type == 3 || p + size > end) damaged();
    if (type == 0)
      dec.out.append(reinterpret_cast<char const*>(p), size);
    else
      dec.block(p, p + size);
    p += size;
  }
  return std::move(dec.out);
}

}  // namespace ptxrun
