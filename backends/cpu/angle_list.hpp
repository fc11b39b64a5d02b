#pragma once
/// \file
/// Angles from the tiles where tasks begin to the queries that they serve.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backends/cpu/tables.hpp"
#include "kvquant/attend/attend_args.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::cpu {

/// Cosines and sines of consecutive positions, evaluated in double, in the order in which they are asked for. The
/// layers of a model ask for the same ones in turn, so what was computed for one is there for the next.
class angle_list {
 public:
  /// What follows is asked for again from the start.
  void rewind() { next_ = 0; }

  /// Where the angles of positions first, first + 1, … lie in `data`: [rows, {cos, sin}, padded(pairs)].
  std::size_t add(rope const& rotation, rotation_tables const& tables, std::int64_t first, std::size_t rows,
                  query_space space) {
    request const wanted{first, rows, space};
    if (next_ < requests_.size() && requests_[next_] == wanted) return starts_[next_++];
    std::size_t const start = next_ == 0 ? 0 : starts_[next_ - 1] + requests_[next_ - 1].rows * row_floats(tables);
    requests_.resize(next_);
    starts_.resize(next_);
    requests_.push_back(wanted);
    starts_.push_back(start);
    angles_.resize(start + rows * row_floats(tables));
    for (std::size_t row = 0; row < rows; ++row)
      set(rotation, tables, first + (space == query_space::pre_rope ? static_cast<std::int64_t>(row) : 0), space,
          angles_.data() + start + row * row_floats(tables));
    ++next_;
    return start;
  }
  float const* data() const { return angles_.data(); }

 private:
  struct request {
    std::int64_t first;
    std::size_t rows;
    query_space space;
    friend bool operator==(request const&, request const&) = default;
  };

  static std::size_t row_floats(rotation_tables const& tables) { return 2 * padded(tables.pairs); }

  /// The attention factor multiplies queries and keys; the keys' tables leave theirs to the query, and rotated queries
  /// have their own already.
  static void set(rope const& rotation, rotation_tables const& tables, std::int64_t position, query_space space,
                  float* to) {
    std::size_t const all_pairs = padded(tables.pairs);
    std::fill_n(to, all_pairs, 1.0f);
    std::fill_n(to + all_pairs, all_pairs, 0.0f);
    rotation.angles_at(position, std::span(to, tables.turned), std::span(to + all_pairs, tables.turned));
    if (space == query_space::post_rope) return;
    for (std::size_t pair = 0; pair < tables.turned; ++pair) {
      to[pair] *= tables.factor;
      to[all_pairs + pair] *= tables.factor;
    }
  }

  std::vector<request> requests_;
  std::vector<std::size_t> starts_;
  line_vector<float> angles_;
  std::size_t next_ = 0;
};

}  // namespace kvquant::cpu
