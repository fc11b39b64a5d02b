// Where the codes of one side of a head lie in its pages, and what they read as.

/// All of `Bits` bits, with one table.
template <int Bits>
class side_codes {
 public:
  static constexpr std::size_t block_channels = channels_of_block(false);  ///< of values

  side_codes(channel_order const& /*of places*/, chunk_levels const& levels) : table_(levels.entries[0].data()) {}

  /// `f(packed, table)` of a unit: eight blocks.
  template <class F>
  [[gnu::always_inline]] void at(std::uint8_t const* codes, std::size_t unit, F&& f) const {
    f(codes + unit * packed_block_bytes<Bits>, table_);
  }
  /// `f(bits, first, last, start, table_at)` for units that have one width, a constant, and follow each other; their
  /// codes begin at `start`, their tables are `table_at(unit)`.
  template <class F>
  [[gnu::always_inline]] void for_each_run(std::size_t units, F&& f) const {
    f(
        std::integral_constant<int, Bits>{}, std::size_t{0}, units,
        std::size_t{0}, [&](std::size_t) __attribute__((always_inline))->auto const& { return table_; });
  }

  /// For a loop in which the table stays the same.
  static code_table<Bits> const& held(code_table<Bits> const& table) { return table; }

 private:
  code_table<Bits> table_;
};

/// Of widths and tables that differ from chunk to chunk.
template <>
class side_codes<bits_by_chunk> {
 public:
  static constexpr std::size_t block_channels = channels_of_block(true);

  side_codes(channel_order const& order, chunk_levels const& levels) : order_(order) {
    for (std::size_t chunk = 0; chunk < most_chunks && order.widths[chunk] > 0; ++chunk)
      with_bits(order.widths[chunk], [&](auto bits) {
        code_table<bits()> const table(levels.entries[chunk].data());
        std::memcpy(tables_[chunk].bytes, &table, sizeof(table));
      });
  }

  template <class F>
  [[gnu::always_inline]] void at(std::uint8_t const* codes, std::size_t unit, F&& f) const {
    with_bits(
        order_.widths[unit], [&](auto bits) __attribute__((always_inline)) {
          f(codes + order_.starts[unit], tables_[unit].template as<bits()>());
        });
  }
  template <class F>
  [[gnu::always_inline]] void for_each_run(std::size_t units, F&& f) const {
    for (std::size_t first = 0, last = 0; first < units; first = last) {
      while (last < units && order_.widths[last] == order_.widths[first]) ++last;
      with_bits(
          order_.widths[first], [&](auto bits) __attribute__((always_inline)) {
            f(
                bits, first, last,
                std::size_t{order_.starts[first]}, [&](std::size_t unit) __attribute__((always_inline))->auto const& {
                  return tables_[unit].template as<bits()>();
                });
          });
    }
  }

  template <int Bits>
  [[gnu::always_inline]] static code_table<Bits> held(code_table<Bits> const& table) {
    return table.held();
  }

 private:
  /// A table of any width.
  struct any_table {
    alignas(code_table<2>) std::byte
        bytes[std::max({sizeof(code_table<1>), sizeof(code_table<2>), sizeof(code_table<3>), sizeof(code_table<4>)})];
    template <int Bits>
    code_table<Bits> const& as() const {
      return *std::launder(reinterpret_cast<code_table<Bits> const*>(bytes));
    }
  };
  /// `with_width`, which is not of these instructions.
  template <class F>
  [[gnu::always_inline]] static void with_bits(int width, F&& f) {
    switch (width) {
      case 1: return f(std::integral_constant<int, 1>{});
      case 2: return f(std::integral_constant<int, 2>{});
      case 3: return f(std::integral_constant<int, 3>{});
      default: return f(std::integral_constant<int, 4>{});
    }
  }

  channel_order const& order_;
  std::array<any_table, most_chunks> tables_;
};
