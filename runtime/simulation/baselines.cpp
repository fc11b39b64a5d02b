#include "runtime/simulation/baselines.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::runtime {

namespace rounding {

void f16(std::span<float> x) {
  for (float& value : x) value = round_to_half(value);
}

void q8_0(std::span<float> x) {
  float largest = 0;
  for (float const value : x) largest = std::max(largest, std::fabs(value));
  float const step = largest / 127, inverse = step != 0 ? 1 / step : 0, stored = round_to_half(step);
  for (float& value : x) value = std::round(value * inverse) * stored;
}

void q4_0(std::span<float> x) {
  float largest = 0;  // with its sign
  for (float const value : x)
    if (std::fabs(value) > std::fabs(largest)) largest = value;
  float const step = largest / -8, inverse = step != 0 ? 1 / step : 0, stored = round_to_half(step);
  for (float& value : x) value = (std::clamp(std::floor(value * inverse + 8.5f), 0.0f, 15.0f) - 8) * stored;
}

void asymmetric_int(float* x, std::size_t count, std::size_t stride, int bits) {
  float low = x[0], high = x[0];
  for (std::size_t i = 1; i < count; ++i) {
    low = std::min(low, x[i * stride]);
    high = std::max(high, x[i * stride]);
  }
  auto const most = static_cast<float>((1 << bits) - 1);
  low = round_to_half(low);
  float const step = std::max(round_to_half((high - low) / most), 1e-7f);
  for (std::size_t i = 0; i < count; ++i) {
    float& value = x[i * stride];
    value = std::clamp(std::nearbyint((value - low) / step), 0.0f, most) * step + low;
  }
}

}  // namespace rounding

namespace {

/// Rows cut into blocks that are rounded alone.
struct block_rounding {
  std::size_t block;         // values
  std::uint64_t block_bits;  // stored
  void (*round)(std::span<float>);
};

template <int Bits>
void round_to_int(std::span<float> x) {
  rounding::asymmetric_int(x.data(), x.size(), 1, Bits);
}

class block_simulator final : public simulator {
 public:
  block_simulator(std::string name, block_rounding rounding, key_space space, executor_ref executor)
      : simulator(std::move(name)), rounding_(rounding), space_(space), executor_(executor) {}

  void keys_pre_rope(int, view2d<float> k) override {
    if (space_ == key_space::pre_rope) round(k);
  }
  void keys_post_rope(int, view2d<float> k) override {
    if (space_ == key_space::post_rope) round(k);
  }
  void values(int, view2d<float> v) override { round(v); }

 private:
  void round(view2d<float> x) {
    for_row_blocks(executor_, x.rows, [&](std::size_t first, std::size_t rows) {
      for (std::size_t row = first; row < first + rows; ++row)
        for (std::size_t col = 0; col < x.cols; col += rounding_.block)
          rounding_.round(x.row(row).subspan(col, rounding_.block));
    });
    count(x.rows * x.cols, x.rows * (x.cols / rounding_.block) * rounding_.block_bits);
  }

  block_rounding rounding_;
  key_space space_;
  executor_ref executor_;
};

/// Keys per channel in groups of tokens, values per token in groups of channels, the recent tokens exact.
/// Bits are those of the quantized part.
class kivi_simulator final : public simulator {
 public:
  static constexpr int group = 32, residual = 128;

  kivi_simulator(std::string name, int bits, executor_ref executor)
      : simulator(std::move(name)), bits_(bits), executor_(executor) {}

  void keys_post_rope(int, view2d<float> k) override {
    executor_.parallel_for(k.rows / group, [&](std::size_t task, int) {
      for (std::size_t channel = 0; channel < k.cols; ++channel)
        rounding::asymmetric_int(&k(task * group, channel), group, k.stride, bits_);
    });
    count_groups(k.rows / group * k.cols);
  }
  void values(int, view2d<float> v) override {
    for_row_blocks(executor_, v.rows, [&](std::size_t first, std::size_t rows) {
      for (std::size_t row = first; row < first + rows; ++row)
        for (std::size_t col = 0; col < v.cols; col += group) rounding::asymmetric_int(&v(row, col), group, 1, bits_);
    });
    count_groups(v.rows * v.cols / group);
  }
  std::optional<exact_window> window() const override {
    return exact_window{[](int t) { return (t + 1) / residual * residual; },
                        [](int t) { return std::max(0, t + 1 - residual); }};
  }

 private:
  void count_groups(std::size_t groups) {
    count(groups * group, groups * (group * static_cast<std::uint64_t>(bits_) + 32));
  }

  int bits_;
  executor_ref executor_;
};

constexpr std::array<std::string_view, 7> names = {"f16", "q8_0", "q4_0", "kivi2", "kivi4", "int4", "int3"};

std::string join(std::span<std::string_view const> parts) {
  std::string all;
  for (std::string_view const part : parts) all += (all.empty() ? "" : ", ") + std::string(part);
  return all;
}

}  // namespace

std::span<std::string_view const> baseline_names() { return names; }

std::unique_ptr<simulator> simulate_baseline(std::string_view name, model_config const& config, executor_ref executor) {
  require(std::find(names.begin(), names.end(), name) != names.end(), errc::unsupported, "baseline \"", name,
          "\", expected one of ", join(names));
  auto const row = static_cast<std::size_t>(config.kv_channels());
  auto const blocks = [&](block_rounding rounding, key_space space) -> std::unique_ptr<simulator> {
    return std::make_unique<block_simulator>(std::string(name), rounding, space, executor);
  };
  if (name == "f16") return blocks({row, 16 * row, rounding::f16}, key_space::post_rope);
  if (name == "int4") return blocks({row, row * 4 + 32, round_to_int<4>}, key_space::pre_rope);
  if (name == "int3") return blocks({row, row * 3 + 32, round_to_int<3>}, key_space::pre_rope);
  // The others group 32 channels of a head.
  require(config.head_dim % 32 == 0, errc::unsupported, "baseline ", name, " with head_dim ", config.head_dim,
          ", expected a multiple of 32");
  if (name == "q8_0") return blocks({32, 32 * 8 + 16, rounding::q8_0}, key_space::post_rope);
  if (name == "q4_0") return blocks({32, 32 * 4 + 16, rounding::q4_0}, key_space::post_rope);
  return std::make_unique<kivi_simulator>(std::string(name), name == "kivi2" ? 2 : 4, executor);
}

}  // namespace kvquant::runtime
