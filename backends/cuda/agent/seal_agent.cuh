#pragma once
/// \file
/// One block of threads seals the page of one KV head, as `page_sealer` and `fragment_layout` say.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backends/cuda/agent/radix_select.cuh"
#include "backends/cuda/kernel/seal_params.hpp"
#include "backends/cuda/tuning.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant::cuda {

template <int Bits>
class seal_agent {
 public:
  using code = std::conditional_t<Bits == 16, std::uint16_t, std::uint8_t>;
  using packed = std::conditional_t<Bits == by_width, std::uint16_t, std::uint32_t>;  ///< what codes are packed into
  static constexpr bool scaled = Bits != 16, widths_differ = Bits == by_width, ranged = scaled && !widths_differ;
  static constexpr int page_rows = slab_tokens * slabs_per_page, warps = seal_threads / warp_lanes;

  /// Of all blocks alike; the rest of shared memory is `shared_bytes(elements)`.
  struct storage {
    radix_select::storage select;
    value_range ranges[page_rows];
    std::conditional_t<widths_differ, seal_levels<16>, seal_levels<Bits>> levels;
    slot_runs runs_before[slabs_per_page];
    std::uint32_t of_warp[2][warps];  ///< slots of keys and of values, by the warps whose tokens they are
  };
  static constexpr std::size_t shared_bytes(std::size_t elements) {
    return elements * (2 * sizeof(code) + (scaled ? sizeof(half) : 0));
  }

  __device__ seal_agent(seal_params<Bits> const& params, storage& shared, std::byte* rest)
      : p_(params),
        s_(shared),
        codes_{reinterpret_cast<code*>(rest), reinterpret_cast<code*>(rest) + params.elements()},
        residuals_(reinterpret_cast<std::uint16_t*>(codes_[1] + params.elements())),
        head_(blockIdx.y),
        reused_(blockIdx.x == 0 ? params.reused : 0),
        channels_(params.channels),
        page_(params.slab + (std::size_t{params.blocks[blockIdx.x]} * gridDim.y + head_) * params.page_bytes),
        before_(params.before + head_ * params.page_bytes) {
    if constexpr (widths_differ) channels_.widths += head_;
  }

  __device__ void run() {
    load();
    __syncthreads();
    if (reused_ > 0) read_codes();
    seal_side<side::k>();
    seal_side<side::v>();
    __syncthreads();
    write();
  }

 private:
  enum class side { k, v };
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int lane() { return thread() % warp_lanes; }
  static __device__ int warp() { return thread() / warp_lanes; }
  __device__ bool sparse() const { return p_.k_slots + p_.v_slots > 0; }
  /// Among the rows that are appended; for tokens that are not reused.
  __device__ std::uint32_t row_of(int token) const {
    return blockIdx.x * page_rows + static_cast<std::uint32_t>(token) - p_.reused;
  }

  template <class T>
  static __device__ T& at(std::byte* from, std::size_t offset) {
    return *reinterpret_cast<T*>(from + offset);
  }
  template <class T>
  static __device__ T const& at(std::byte const* from, std::size_t offset) {
    return *reinterpret_cast<T const*>(from + offset);
  }
  __device__ std::size_t range_offset(int token) const {
    return token / slab_tokens * p_.offsets.slab_bytes + p_.offsets.slab_ranges +
           token % slab_tokens * sizeof(value_range);
  }

  __device__ std::size_t runs_offset(int slab) const {
    return static_cast<std::size_t>(slab) * p_.offsets.slab_bytes + p_.offsets.slab_slots;
  }

  /// Everything of the page before that a part of the new one might be written over.
  __device__ void load() {
    if constexpr (ranged) {
      for (int token = thread(); token < page_rows; token += seal_threads)
        s_.ranges[token] = token < static_cast<int>(reused_) ? at<value_range>(before_, range_offset(token))
                                                             : p_.ranges[row_of(token)];
      if (thread() == 0) s_.levels = p_.levels;
    }
    if constexpr (scaled) {
      if (reused_ > 0 && sparse() && thread() < slabs_per_page)
        s_.runs_before[thread()] = at<slot_runs>(before_, runs_offset(thread()));
    }
  }

  /// Those of the reused tokens; the others are overwritten.
  __device__ void read_codes() {
    if (thread() < slabs_per_page * warp_lanes) {
      lane_codes<Bits> const it{channels_, p_.head_dim, warp(), lane()};
      std::byte const* const from = before_ + warp() * p_.offsets.slab_bytes;
      it.read(
          [&](int offset) { return at<packed>(from, offset); },
          [&](bool is_key, int element, std::uint64_t of) { codes_[is_key ? 0 : 1][element] = static_cast<code>(of); });
    }
    __syncthreads();
  }

  template <side Side>
  __device__ void seal_side() {
    quantize<Side>();
    if constexpr (scaled) {
      if (slots<Side>() == 0) return;
      if (reused_ > 0) restore_residuals<Side>();
      __syncthreads();
      choose_slots<Side>();
      __syncthreads();
    }
  }

  template <side Side>
  __device__ std::uint32_t slots() const {
    return Side == side::k ? p_.k_slots : p_.v_slots;
  }
  __device__ std::uint32_t of_model(int channel) const {
    return head_ * static_cast<std::uint32_t>(p_.head_dim) + static_cast<std::uint32_t>(channel);
  }
  template <side Side>
  __device__ affine map(int token, int channel) const {
    if constexpr (widths_differ)
      return own<Side>().maps[of_model(channel)];
    else if constexpr (Side == side::k)
      return p_.key_maps[of_model(channel)];
    else
      return affine_of(s_.ranges[token]);
  }
  template <side Side>
  __device__ auto const& own() const {
    return Side == side::k ? p_.levels.k : p_.levels.v;
  }
  template <side Side>
  __device__ auto const& levels(int channel) const {
    if constexpr (widths_differ)
      return own<Side>().tables[own<Side>().table_of[of_model(channel)]];
    else
      return Side == side::k ? s_.levels.k : s_.levels.v;
  }

  template <side Side>
  __device__ void quantize() {
    code* const codes = codes_[static_cast<int>(Side)];
    [[maybe_unused]] unsigned clamped = 0;
    for (int element = thread(); element < p_.elements(); element += seal_threads) {
      int const token = element / p_.head_dim, channel = element % p_.head_dim;
      if (token < static_cast<int>(reused_)) {
        if constexpr (scaled) residuals_[element] = 0;
        continue;
      }
      std::uint16_t const* const row = Side == side::k ? p_.rows.k(row_of(token)) : p_.rows.v(row_of(token));
      std::uint16_t const bits = row[of_model(channel)];
      if constexpr (scaled) {
        auto const& table = levels<Side>(channel);
        affine const by = map<Side>(token, channel);
        float const x = to_float(half{bits});
        codes[element] = table.encode(by.normalise(x));
        // As `affine::restore`, rounded twice: a fused multiply-add would give other bits than the host.
        float const dense = __fadd_rn(__fmul_rn(by.scale, table.decode(codes[element])), by.zero);
        residuals_[element] = residual_of(x, dense).bits;
        if constexpr (widths_differ) clamped += is_clamped<Side>(channel, x) ? 1 : 0;
      } else {
        codes[element] = bits;
      }
    }
    if constexpr (widths_differ) {
      clamped = __reduce_add_sync(~0u, clamped);
      if (lane() == 0 && clamped > 0) atomicAdd(reinterpret_cast<unsigned long long*>(own<Side>().clamped), clamped);
    }
  }
  template <side Side>
  __device__ bool is_clamped(int channel, float x) const {
    if (own<Side>().seen == nullptr) return false;
    seen_range const seen = own<Side>().seen[of_model(channel)];
    return x < seen.low || x > seen.high;
  }

  /// Of the reused tokens: what the page before kept. What had lost its residual would lose it again.
  template <side Side>
  __device__ void restore_residuals() {
    __syncthreads();
    std::size_t const slots = Side == side::k ? p_.offsets.k_slots : p_.offsets.v_slots;
    for (int slab = 0; slab < slabs_per_page; ++slab) {
      slot_run const run = Side == side::k ? s_.runs_before[slab].k : s_.runs_before[slab].v;
      for (std::uint32_t i = threadIdx.x; i < run.count; i += seal_threads) {
        auto const it = at<fragment_slot>(before_, slots + run.offset + i * sizeof(fragment_slot));
        int const element = Side == side::k ? key_element_at(channels_, p_.head_dim, slab, it.place)
                                            : value_element_at(channels_, p_.head_dim, slab, it.place);
        if (element < static_cast<int>(reused_) * p_.head_dim) residuals_[element] = it.residual;
      }
    }
  }

  /// What `slot_selector` orders by, as one number: the weight, the residual's size, and the lower index first.
  template <side Side>
  __device__ std::uint64_t rank_key(int element) const {
    float const* const sensitivity = Side == side::k ? p_.k_sensitivity : p_.v_sensitivity;
    std::uint16_t const bits = residuals_[element];
    float const r = to_float(half{bits});
    float const weight = sensitivity[of_model(element % p_.head_dim)] * r * r + 0.0f;  // no −0
    return std::uint64_t{__float_as_uint(weight)} << 32 | static_cast<std::uint32_t>(bits & 0x7fff) << 16 |
           static_cast<std::uint32_t>(0xffff - element);
  }

  template <side Side>
  __device__ void choose_slots() {
    auto const key = [&](int element) { return rank_key<Side>(element); };
    std::uint64_t least = 0;
    if (slots<Side>() < static_cast<std::uint32_t>(p_.elements()))
      least = radix_select(s_.select).nth_largest<std::uint64_t>(p_.elements(), slots<Side>(), selected::bound, key);

    int const per_warp = p_.elements() / warps, first = warp() * per_warp;
    std::uint32_t(&of_warp)[warps] = s_.of_warp[static_cast<int>(Side)];
    std::uint32_t mine = 0;
    for (int i = first + lane(); i < first + per_warp; i += warp_lanes)
      mine += static_cast<std::uint32_t>(__popc(__ballot_sync(~0u, key(i) >= least)));
    if (lane() == 0) of_warp[warp()] = mine;
    __syncthreads();
    std::uint32_t next = slots_before<Side>(warp());
    for (int i = first + lane(); i < first + per_warp; i += warp_lanes) {
      bool const chosen = key(i) >= least;
      std::uint32_t const all = __ballot_sync(~0u, chosen);
      if (chosen) write_slot<Side>(next + static_cast<std::uint32_t>(__popc(all & ((1u << lane()) - 1))), i);
      next += static_cast<std::uint32_t>(__popc(all));
    }
  }
  template <side Side>
  __device__ void write_slot(std::uint32_t index, int element) {
    std::size_t const from = Side == side::k ? p_.offsets.k_slots : p_.offsets.v_slots;
    std::uint32_t const place =
        Side == side::k ? key_place(channels_, p_.head_dim, element) : value_place(channels_, p_.head_dim, element);
    at<std::uint32_t>(page_, from + index * sizeof(fragment_slot)) =
        place | static_cast<std::uint32_t>(residuals_[element]) << 16;
  }
  /// Of the tokens of warps before `end`.
  template <side Side>
  __device__ std::uint32_t slots_before(int end) const {
    if (slots<Side>() == 0) return 0;
    std::uint32_t sum = 0;
    for (int i = 0; i < end; ++i) sum += s_.of_warp[static_cast<int>(Side)][i];
    return sum;
  }

  __device__ void write() {
    if constexpr (widths_differ) {  // cells that a head leaves empty
      for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
        clear(slab * p_.offsets.slab_bytes, slab * p_.offsets.slab_bytes + p_.offsets.slab_ranges);
      __syncthreads();
    }
    if (thread() < slabs_per_page * warp_lanes) {
      lane_codes<Bits> const it{channels_, p_.head_dim, warp(), lane()};
      std::byte* const to = page_ + warp() * p_.offsets.slab_bytes;
      it.write([&](bool is_key, int element) { return codes_[is_key ? 0 : 1][element]; },
               [&](int offset, packed word) { at<packed>(to, offset) = word; });
    }
    if constexpr (ranged)
      for (int token = thread(); token < page_rows; token += seal_threads)
        at<value_range>(page_, range_offset(token)) = s_.ranges[token];
    if constexpr (scaled)
      if (sparse() && thread() < slabs_per_page) write_runs(thread());
    clear(p_.offsets.end, p_.page_bytes);
  }
  __device__ void write_runs(int slab) {
    at<slot_runs>(page_, runs_offset(slab)) = {slots_of<side::k>(slab), slots_of<side::v>(slab)};
  }
  template <side Side>
  __device__ slot_run slots_of(int slab) const {
    constexpr int warps_per_slab = warps / slabs_per_page;
    std::uint32_t const first = slots_before<Side>(slab * warps_per_slab);
    return {static_cast<std::uint16_t>(first * sizeof(fragment_slot)),
            static_cast<std::uint16_t>(slots_before<Side>((slab + 1) * warps_per_slab) - first)};
  }
  /// Bytes that nothing lies in are zeros.
  __device__ void clear(std::size_t first, std::size_t last) {
    for (std::size_t i = first + threadIdx.x * 4; i < last; i += seal_threads * 4) at<std::uint32_t>(page_, i) = 0;
  }

  seal_params<Bits> const& p_;
  storage& s_;
  code* codes_[2];            // [64, head_dim] of keys, of values
  std::uint16_t* residuals_;  // [64, head_dim], binary16, of one side at a time
  std::uint32_t head_, reused_;
  head_channels channels_;  // of the head
  std::byte* page_;
  std::byte const* before_;
};

}  // namespace kvquant::cuda
