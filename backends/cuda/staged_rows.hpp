#pragma once
/// \file
/// Queries of the host in device memory, and results on their way back.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "backends/cuda/memory.hpp"
#include "backends/cuda/plan.hpp"
#include "kvquant/attend/attend_args.hpp"

namespace kvquant::cuda {

/// Of one batch, row behind row.
class staged_rows {
 public:
  std::vector<device_rows> upload(std::span<attend_args const> batch, model_shape const& shape, cudaStream_t on) {
    heads_ = static_cast<std::size_t>(shape.q_heads);
    channels_ = heads_ * static_cast<std::size_t>(shape.head_dim);
    host_.clear();
    for (attend_args const& it : batch)
      for (std::size_t row = 0; row < it.q.rows; ++row)
        host_.insert(host_.end(), it.q.row(row).begin(), it.q.row(row).end());
    rows_ = host_.size() / channels_;
    q_.upload(host_, on);
    results_.reserve(rows_ * (channels_ + 2 * heads_));
    std::vector<device_rows> out;
    std::size_t first = 0;
    for (attend_args const& it : batch) {
      out.push_back({q_.data() + first * channels_, results_.data() + first * channels_,
                     results_.data() + maxima() + first * heads_, results_.data() + sums() + first * heads_});
      first += it.q.rows;
    }
    return out;
  }

  /// Waits for the results.
  void download(std::span<attend_args const> batch, stream const& from) {
    host_.resize(rows_ * (channels_ + 2 * heads_));
    if (!host_.empty())
      check(cudaMemcpyAsync(host_.data(), results_.data(), host_.size() * sizeof(float), cudaMemcpyDeviceToHost,
                            from.get()),
            "cudaMemcpyAsync");
    from.wait();
    std::size_t row = 0;
    for (attend_args const& to : batch)
      for (std::size_t i = 0; i < to.q.rows; ++i, ++row) {
        std::copy_n(host_.data() + row * channels_, channels_, to.out.row(i).data());
        if (!to.score_max.empty())
          std::copy_n(host_.data() + maxima() + row * heads_, heads_, to.score_max.row(i).data());
        if (!to.score_sum.empty())
          std::copy_n(host_.data() + sums() + row * heads_, heads_, to.score_sum.row(i).data());
      }
  }

 private:
  std::size_t maxima() const { return rows_ * channels_; }
  std::size_t sums() const { return rows_ * (channels_ + heads_); }

  std::size_t heads_ = 0, channels_ = 0, rows_ = 0;
  std::vector<float> host_;      // queries; then results
  device_array<float> q_;        // [rows, q_heads · head_dim]
  device_array<float> results_;  // [rows, q_heads · head_dim]; m and l, [rows, q_heads] each
};

}  // namespace kvquant::cuda
