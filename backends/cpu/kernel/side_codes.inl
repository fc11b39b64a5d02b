// Where the codes of one side of a head lie in its pages, and what they read as.

/// All of `Bits` bits.
template <int Bits>
class side_codes {
 public:
  static constexpr std::size_t block_channels = channels_of_block(false);  ///< of values

  side_codes(width_bytes const& bytes, channel_order const& /*of places*/) : table_(bytes[Bits - 1].entries.data()) {}

  /// `f(packed, table)` of a chunk: eight blocks.
  template <class F>
  [[gnu::always_inline]] void at(std::uint8_t const* codes, std::size_t chunk, F&& f) const {
    f(codes + chunk * packed_block_bytes<Bits>, table_);
  }
  /// `f(first, last, start, table)` for units, of eight blocks each, that have one width and follow each other; their
  /// codes begin at `start`.
  template <class F>
  [[gnu::always_inline]] void for_each_run(std::size_t units, F&& f) const {
    f(std::size_t{0}, units, std::size_t{0}, table_);
  }

 private:
  code_table<Bits> table_;
};

template <>
class side_codes<bits_by_chunk> {
 public:
  static constexpr std::size_t block_channels = channels_of_block(true);

  side_codes(width_bytes const& bytes, channel_order const& order)
      : order_(order),
        one_(bytes[0].entries.data()),
        two_(bytes[1].entries.data()),
        three_(bytes[2].entries.data()),
        four_(bytes[3].entries.data()) {}

  template <class F>
  [[gnu::always_inline]] void at(std::uint8_t const* codes, std::size_t chunk, F&& f) const {
    with_table(order_.widths[chunk], [&](auto const& table)
                   __attribute__((always_inline)) { f(codes + order_.starts[chunk], table); });
  }
  template <class F>
  [[gnu::always_inline]] void for_each_run(std::size_t units, F&& f) const {
    for (std::size_t first = 0, last = 0; first < units; first = last) {
      while (last < units && order_.widths[last] == order_.widths[first]) ++last;
      with_table(order_.widths[first], [&](auto const& table)
                     __attribute__((always_inline)) { f(first, last, std::size_t{order_.starts[first]}, table); });
    }
  }

 private:
  template <class F>
  [[gnu::always_inline]] void with_table(int width, F&& f) const {
    switch (width) {
      case 1: return f(one_);
      case 2: return f(two_);
      case 3: return f(three_);
      default: return f(four_);
    }
  }

  channel_order const& order_;
  code_table<1> one_;
  code_table<2> two_;
  code_table<3> three_;
  code_table<4> four_;
};
