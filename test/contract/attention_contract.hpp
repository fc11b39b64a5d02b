#pragma once
/// \file
/// What a backend gives to be held to the contract. The contract itself are the test cases of this folder, compiled
/// once; a backend's program defines `under_test()` (see `generic_test.cpp`) and is linked with them.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvquant/attend/backend.hpp"
#include "kvquant/core/type_list.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/quantize/spec.hpp"
#include "test/contract/layout.hpp"
#include "test/contract/subject.hpp"

namespace kvquant::contract {

/// Every format, and two specs whose sides differ: in width, and in kind.
using contract_specs =
    type_list<spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>,  //
              spec<normal_float<2>, normal_float<2>>, spec<normal_float<3>, normal_float<3>>,
              spec<normal_float<4>, normal_float<4>>, spec<uniform<2>, uniform<2>>, spec<uniform<3>, uniform<3>>,
              spec<uniform<4>, uniform<4>>, spec<uniform<5>, uniform<5>>, spec<uniform<6>, uniform<6>>,
              spec<uniform<7>, uniform<7>>, spec<uniform<8>, uniform<8>>,  //
              spec<adaptive, adaptive>, spec<passthrough, passthrough>, spec<nuq<4>, nuq<2>>, spec<uniform<5>, nuq<3>>>;

/// What single precision is allowed where scores are of ordinary size.
constexpr double float_tolerance = 1e-5;

/// A backend with one spec.
struct candidate {
  std::string spec;
  std::unique_ptr<subject> (*make)(problem const&, std::size_t tokens);
  void (*check_layout)(int head_dim, double outliers_k, double outliers_v);
};

/// What a backend's arithmetic is allowed against the reference over the same cache.
struct arithmetic_bounds {
  double out = float_tolerance;     ///< relative L2 of a row
  double scores = float_tolerance;  ///< of m, relative to 1 + |m|, and of l
  bool large_scores = true;         ///< holds for scores in the thousands
  bool same_rows = true;            ///< a query's row has the same bits whatever other queries are asked
};

struct backend_under_test {
  std::string_view name;
  arithmetic_bounds bounds;
  support (*supports)(artifact_info const&);
  std::vector<candidate> candidates;
  void (*construct_attention)(artifact_info const&);  ///< of a nuq3 artifact so described, without layers
};

/// Defined by each backend's program.
backend_under_test const& under_test();

/// `Specs`: those that the backend serves.
template <Backend B, class Specs = contract_specs>
backend_under_test describe(arithmetic_bounds const& bounds = {}) {
  backend_under_test out{B::name, bounds, [](artifact_info const& info) { return B::supports(info); }, {}, {}};
  for_each_type(Specs{}, [&]<class S>(std::type_identity<S>) {
    out.candidates.push_back({S::name(),
                              [](problem const& it, std::size_t tokens) -> std::unique_ptr<subject> {
                                return std::make_unique<subject_of<B, S>>(it, tokens);
                              },
                              check_layout<typename B::template page_layout<S>>});
  });
  out.construct_attention = [](artifact_info const& info) {
    using S = spec<nuq<3>, nuq<3>>;
    artifact<S> it;
    it.info = info;
    typename B::template attention<S> const refused(it);
  };
  return out;
}

}  // namespace kvquant::contract
