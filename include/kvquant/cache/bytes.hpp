#pragma once
/// \file
/// Where a cache's memory goes.

#include <cstddef>

namespace kvquant {

/// Bytes allocated, by what they are for. Every byte is counted once.
struct byte_report {
  std::size_t codes = 0;         ///< of keys and values
  std::size_t value_ranges = 0;  ///< the values' scales and zeros
  std::size_t slots = 0;         ///< sparse elements
  std::size_t padding = 0;       ///< of pages to whole lines
  std::size_t sinks = 0;         ///< the first tokens, exact
  std::size_t tail = 0;          ///< the latest tokens, exact
  std::size_t tables = 0;        ///< codebooks and key channels: once for all sequences
  std::size_t page_table = 0;    ///< ids of pages, counts of owners
  std::size_t slack = 0;         ///< allocated and not in use: free pages, room in the tail

  /// All of them.
  std::size_t total() const {
    return codes + value_ranges + slots + padding + sinks + tail + tables + page_table + slack;
  }
  /// Of `elements` keys and values: 2 · tokens · layers · kv_channels.
  double bits_per_element(std::size_t elements) const {
    return elements == 0 ? 0 : 8 * static_cast<double>(total()) / static_cast<double>(elements);
  }
  /// Part by part.
  byte_report& operator+=(byte_report const& other) {
    codes += other.codes;
    value_ranges += other.value_ranges;
    slots += other.slots;
    padding += other.padding;
    sinks += other.sinks;
    tail += other.tail;
    tables += other.tables;
    page_table += other.page_table;
    slack += other.slack;
    return *this;
  }
};

}  // namespace kvquant
