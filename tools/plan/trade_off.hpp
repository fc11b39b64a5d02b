#pragma once
/// \file
/// One choice for each layer, of least loss for its bytes.

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace kvquant::plan {

/// What a layer can be: its bytes, its loss, and what it is called by whoever asks.
struct layer_choice {
  std::size_t bytes = 0;
  double loss = 0;
  std::size_t id = 0;
};

/// Those that no other beats: by rising bytes, with falling loss. Of equal ones the first.
std::vector<layer_choice> undominated(std::vector<layer_choice> choices);

/// All sums of one choice for each layer that no other sum beats, exactly: bytes and losses of layers add up, so of two
/// ways to fill the first layers with as many bytes or fewer the one with less loss is no worse whatever follows, and
/// the others can be forgotten. What remains after the last layer is the whole frontier, and for every budget its best
/// point is the best choice there is, but for the rounding of sums. Takes its time with layers that have many choices
/// of bytes without a common measure; those of one page size times whole pages have one.
class trade_off {
 public:
  /// Every layer has a choice.
  explicit trade_off(std::span<std::vector<layer_choice> const> layers);

  std::size_t size() const { return stages_.back().size(); }
  /// By rising bytes.
  std::size_t bytes(std::size_t point) const { return stages_.back()[point].bytes; }
  double loss(std::size_t point) const { return stages_.back()[point].loss; }
  /// The last point of no more than `bytes`, or nothing.
  std::optional<std::size_t> best_within(std::size_t bytes) const;
  /// [layers] the ids that make up a point.
  std::vector<std::size_t> choices(std::size_t point) const;

 private:
  struct state {
    std::size_t bytes = 0;
    double loss = 0;
    std::size_t id = 0, before = 0;  ///< the layer's choice, and the state of the layers before it
  };
  std::vector<std::vector<state>> stages_;  // [layers + 1]
};

}  // namespace kvquant::plan
