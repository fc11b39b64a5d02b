#include <catch2/catch.hpp>
#include <cstddef>
#include <utility>

#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::contract;

/// Layers 0 and 2 of three see `window` tokens and turn faster than layer 1.
problem local_problem(std::size_t tokens, int window, rope_config const& rotation, int head_dim = 64) {
  model_shape shape = make_shape(1, 2, head_dim, rotation, 3);
  shape.local = {.layers = {0, 2}, .window = window, .rope = {.enabled = rotation.enabled}};
  shape.local.rope.pairing = rotation.pairing;
  shape.local.rope.theta = 100;
  shape.local.rope.rotary_dim = rotation.rotary_dim;
  return make_problem({.shape = shape, .sinks = 5}, tokens);
}

/// Where a backend has no local layers it must say so; then there is nothing to ask.
bool has_local_layers() {
  auto const info = artifact_for<spec<nuq<3>, nuq<3>>>(local_problem(10, 8, {})).info;
  support const said = under_test().supports(info);
  if (said) return true;
  CHECK_THAT(said.missing, test::says("a window and RoPE of their own"));
  CHECK(test::error_of([&] { under_test().construct_attention(info); }).code == errc::unsupported);
  return false;
}

}  // namespace

TEST_CASE("local layers have their rotation, and a window that leaves out sinks", "[contract]") {
  if (!has_local_layers()) return;
  int const window = GENERATE(1, 3, 40, 64, 100, 290, 1000);
  for (candidate const& with : under_test().candidates)
    for (rope_config const& rotation : rotations(64)) {
      auto const what = local_problem(300, window, rotation);
      auto const held = with.make(what, 3 * what.tokens());
      filled const tokens(what, *held);
      auto const q = make_queries(what, 9);
      for (int layer = 0; layer < 3; ++layer) {
        CAPTURE(with.spec, window, layer, rotation.rotary_dim, static_cast<int>(rotation.pairing));
        check_agrees(tokens.attend(q, {}, layer), tokens.expected(q, {}, layer));
      }
    }
}

TEST_CASE("of a layer's window and that of a question the shorter one counts", "[contract]") {
  if (!has_local_layers()) return;
  std::size_t const asked = GENERATE(as<std::size_t>(), 1, 20, 70, 200);
  for (candidate const& with : under_test().candidates) {
    auto const what = local_problem(280, 70, {});
    auto const held = with.make(what, 3 * what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 280);
    for (int layer = 0; layer < 2; ++layer) {
      CAPTURE(with.spec, asked, layer);
      check_agrees(tokens.attend(q, {.window = asked}, layer), tokens.expected(q, {.window = asked}, layer));
    }
  }
}

TEST_CASE("pages that lay behind a window and were given back are missed by nobody", "[contract]") {
  if (!has_local_layers()) return;
  std::size_t const tokens = 800, step = GENERATE(as<std::size_t>(), 1, 50);
  for (candidate const& with : under_test().candidates) {
    auto const what = local_problem(tokens, 100, {});
    auto const held = with.make(what, 2 * tokens);
    sequence it = held->open();
    for (int layer = 0; layer < 3; ++layer)
      for (std::size_t at = 0; at < tokens; at += step)
        held->append(it, layer, what.k[static_cast<std::size_t>(layer)].view().middle_rows(at, step),
                     what.v[static_cast<std::size_t>(layer)].view().middle_rows(at, step));
    filled const all(what, *held, std::move(it));
    auto const q = make_queries(what, step);
    for (int layer = 0; layer < 3; ++layer) {
      CAPTURE(with.spec, step, layer);
      CHECK((held->view(all.tokens, layer).gone > 0) == (layer != 1));
      check_agrees(all.attend(q, {}, layer), all.expected(q, {}, layer));
    }
  }
}

TEST_CASE("a query of a local layer has the same bits whatever is asked beside it", "[contract]") {
  if (!has_local_layers() || !under_test().bounds.same_rows) return;
  constexpr std::size_t rows = 140;
  for (candidate const& with : under_test().candidates) {
    auto const what = local_problem(2000, GENERATE(50, 700), {});
    auto const held = with.make(what, 3 * what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, rows);
    auto const all = tokens.attend(q);
    for (std::size_t const last : {1u, 2u, 64u, 65u}) {
      CAPTURE(with.spec, last);
      CHECK(tokens.attend(q.view().middle_rows(rows - last, last)) == last_rows(all, last));
    }
  }
}
