#pragma once
/// \file
/// NumPy's array file, version 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

#include <fmt/format.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include "kvquant/core/atomic_file.hpp"

namespace kvquant::tool {

/// Writes [rows, cols] float64, row-major; the file appears whole or not at all.
inline void write_npy(std::filesystem::path const& path, std::size_t rows, std::size_t cols,
                      std::span<double const> values) {
  constexpr std::size_t preamble = 10, alignment = 64;  // magic, version, length of the header
  std::string header = fmt::format("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  std::size_t const padded = (preamble + header.size() + 1 + alignment - 1) / alignment * alignment - preamble;
  header.resize(padded - 1, ' ');
  header += '\n';
  std::string start = "\x93NUMPY";
  start += '\x01';
  start += '\0';
  start += static_cast<char>(header.size() & 0xff);
  start += static_cast<char>(header.size() >> 8);
  atomic_file file(path);
  file.write(start + header);
  file.write(std::as_bytes(values));
  file.commit();
}

}  // namespace kvquant::tool
