#pragma once
/// \file
/// A case of a measurement, and how it is written.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/quantize/spec.hpp"

namespace kvquant::measure {

/// What a sequence holds beside its pages.
inline constexpr std::size_t sink_tokens = 1, tail_tokens = 40;

/// "32/8/128" is query heads, KV heads, channels of a head; one layer. Throws `bad_shape` for anything else.
model_shape parse_shape(std::string_view text);
std::string to_string(model_shape const& shape);

/// "256" or "8K": tokens in pages, a multiple of 64 up to 16M. Throws `bad_value`.
std::size_t parse_context(std::string_view text);
std::string context_name(std::size_t context);

/// A spec and the fraction of elements kept sparse: "nuq3", "nuq3-1%"; "adaptive2.5-0.5%", whose outliers are part of
/// the 2.5 bits.
struct format_choice {
  std::string spec;
  double outlier_fraction = 0;
  double bits = 0;  ///< of an element, of formats that are `by_channel`
};
/// Throws `bad_format` naming the specs there are.
format_choice parse_format_choice(std::string_view text);
std::string to_string(format_choice const& format);
/// What every format is compared with.
format_choice baseline_format();

/// What one call of attention does: a query for each of `batch` sequences of one layer.
struct job {
  model_shape shape;        ///< its number of layers is for the measurement to choose
  std::size_t context = 0;  ///< tokens in pages of each sequence; sink and tail come on top
  std::size_t batch = 1;
  int threads = 1;  ///< of the CPU; 0: a device

  std::size_t tokens() const { return sink_tokens + context + tail_tokens; }
};
/// "32/8/128 8K, batch 1, 2 threads"
std::string to_string(job const& it);

/// LLaMA-7B, Llama-3-8B, SmolLM2-135M.
std::vector<model_shape> default_shapes();
std::vector<format_choice> default_formats();

/// Where a format has to be faster than the baseline, whatever the instructions: from 256 tokens on.
std::vector<std::size_t> sweep_contexts();
std::vector<format_choice> sweep_formats();

}  // namespace kvquant::measure
