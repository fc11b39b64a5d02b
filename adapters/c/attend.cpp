#include <cmath>
#include <cstddef>
#include <vector>

#include "adapters/c/objects.hpp"
#include "adapters/c/rows.hpp"
#include "adapters/c/status.hpp"
#include "adapters/c/structs.hpp"

namespace kvquant::c {

namespace {

/// Calls `f`; what it refuses names the layer.
template <class F>
void in_layer(int layer, F&& f) {
  try {
    f();
  } catch (error const& it) {
    throw error{it.code, text("layer ", layer, ": ", it.what())};
  }
}

attend_options options_of(kvquant_query const& it) {
  require(it.reserved == 0, errc::unsupported, "query.reserved is ", it.reserved, ", expected 0");
  return {.space = it.q_rotated != 0 ? query_space::post_rope : query_space::pre_rope,
          .window = it.window,
          .softmax_scale = it.softmax_scale};
}

input_rows queries_of(kvquant_query const& it, cache_object const& cache) {
  return {it.q, it.q_dtype, it.rows, cache.q_channels(), it.q_stride, "query.q"};
}

view2d<float> output_of(kvquant_query const& it, cache_object const& cache) {
  return checked_rows(it.out, it.rows, cache.q_channels(), it.out_stride, "query.out");
}

view2d<float> sums_of(float* wanted, kvquant_query const& it, cache_object const& cache, char const* what) {
  auto const heads = static_cast<std::size_t>(cache.shape().q_heads);
  return wanted == nullptr ? view2d<float>{} : checked_rows(wanted, it.rows, heads, 0, what);
}

/// Query `index` of an array, whose first says how large each is.
kvquant_query query_at(kvquant_query const* first, std::size_t size, std::size_t index) {
  auto const* at = reinterpret_cast<std::byte const*>(first) + index * size;
  auto const* it = reinterpret_cast<kvquant_query const*>(at);
  std::size_t const own = size_of(it, "query");
  require(own == size, errc::bad_value, "query ", index, ": size is ", own, ", that of the first is ", size);
  return read_struct(it, "query");
}

/// Queries with what they need for as long as they are answered.
class batch {
 public:
  batch(cache_object& cache, kvquant_query const* queries, std::size_t count) {
    require(count == 0 || queries != nullptr, errc::bad_value, "queries is NULL, expected ", count, " of them");
    for (std::size_t index = 0; index < count; ++index) add(cache, query_at(queries, size_of(queries, "query"), index));
  }

  std::vector<attend_request> const& requests() const { return requests_; }

 private:
  void add(cache_object& cache, kvquant_query const& it) {
    sequences_.emplace_back(it.sequence);
    queries_.push_back(queries_of(it, cache));
    requests_.push_back({.sequence = sequences_.back().get(),
                         .q = queries_.back().view(),
                         .out = output_of(it, cache),
                         .score_max = sums_of(it.score_max, it, cache, "query.score_max"),
                         .score_sum = sums_of(it.score_sum, it, cache, "query.score_sum"),
                         .options = options_of(it)});
  }

  std::vector<reading> sequences_;
  std::vector<input_rows> queries_;
  std::vector<attend_request> requests_;
};

}  // namespace

}  // namespace kvquant::c

using namespace kvquant::c;

kvquant_status kvquant_append(kvquant_sequence* sequence, int32_t layer, std::size_t tokens, kvquant_dtype dtype,
                              void const* k, std::size_t k_stride, void const* v, std::size_t v_stride) {
  return guarded(__func__, [&] {
    changing to(sequence);
    to.cache().require_layer(layer);
    auto const channels = static_cast<std::size_t>(to.cache().shape().kv_channels());
    in_layer(layer, [&] {
      input_rows const keys(k, dtype, tokens, channels, k_stride, "k");
      input_rows const values(v, dtype, tokens, channels, v_stride, "v");
      to.apply([&](auto& it) { it.append(layer, keys.view(), values.view(), to.cache().executor()); });
    });
  });
}

kvquant_status kvquant_attend(kvquant_cache* cache, int32_t layer, kvquant_query const* queries, std::size_t count) {
  return guarded(__func__, [&] {
    auto const of = object_of(cache);
    of->require_layer(layer);
    in_layer(layer, [&] {
      batch const asked(*of, queries, count);
      of->get().attend(layer, asked.requests(), of->executor());
    });
  });
}

kvquant_status kvquant_append_and_attend(int32_t layer, kvquant_dtype dtype, void const* k, std::size_t k_stride,
                                         void const* v, std::size_t v_stride, kvquant_query const* query) {
  return guarded(__func__, [&] {
    kvquant_query const asked = read_struct(query, "query");
    kvquant::require(asked.score_max == nullptr && asked.score_sum == nullptr, kvquant::errc::unsupported,
                     "query.score_max and score_sum are not to be had here, expected NULL");
    changing to(asked.sequence);
    to.cache().require_layer(layer);
    auto const channels = static_cast<std::size_t>(to.cache().shape().kv_channels());
    in_layer(layer, [&] {
      input_rows const keys(k, dtype, asked.rows, channels, k_stride, "k");
      input_rows const values(v, dtype, asked.rows, channels, v_stride, "v");
      input_rows const q = queries_of(asked, to.cache());
      auto const out = output_of(asked, to.cache());
      to.apply([&](auto& it) {
        it.append_and_attend(layer, keys.view(), values.view(), q.view(), out, options_of(asked),
                             to.cache().executor());
      });
    });
  });
}
