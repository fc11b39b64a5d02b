/// \file
/// Writes what the tests of the C interface need, and what the C++ engine answers to the same questions (fixture.h).
/// Usage: write_case FOLDER

#include <array>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "engines/engines.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "test/support/small_cache.hpp"

namespace {

namespace fs = std::filesystem;
using namespace kvquant;
using test::float_matrix;
using S = spec<nuq<3>, nuq<3>>;

constexpr std::size_t tokens = 300, prefix = 200, rows = 3;  // as in fixture.h

test::artifact_choice choice() { return {.shape = {.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32}}; }

void write(fs::path const& path, std::vector<float> const& values) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<char const*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!out.flush()) throw error{errc::bad_file, text(path.string(), ": cannot be written")};
}

void add(std::vector<float>& to, float_matrix const& it) { to.insert(to.end(), it.values.begin(), it.values.end()); }

/// The answers to `queries`: of the last rows, and of each token as `append_and_attend` has them.
std::vector<float> answers(any_artifact const& artifact, test::token_stream const& stream,
                           std::vector<float_matrix> const& queries) {
  auto const cache = make_engine(default_backend(), artifact, {.max_tokens = 1024});
  inline_executor here;
  std::vector<float> all;
  for (int layer = 0; layer < artifact.info.shape.layers; ++layer) {
    view2d<float const> const q = queries[static_cast<std::size_t>(layer)].view();
    auto const at_once = cache->open(), as_decoded = cache->open();
    at_once->append(layer, stream.keys(layer, 0, prefix), stream.values(layer, 0, prefix), here);
    float_matrix out(rows, q.cols), most(rows, 4), sum(rows, 4), decoded(prefix, q.cols);
    attend_request const request{.sequence = at_once.get(),
                                 .q = q.middle_rows(prefix - rows, rows),
                                 .out = out.view(),
                                 .score_max = most.view(),
                                 .score_sum = sum.view()};
    cache->attend(layer, {&request, 1}, here);
    as_decoded->append_and_attend(layer, stream.keys(layer, 0, prefix), stream.values(layer, 0, prefix),
                                  q.middle_rows(0, prefix), decoded.view(), {}, here);
    for (float_matrix const* it : {&out, &most, &sum, &decoded}) add(all, *it);
  }
  return all;
}

void write_case(fs::path const& folder) {
  test::token_stream const stream(choice().shape, tokens), another(choice().shape, tokens, 99);
  std::vector<float_matrix> queries;
  std::vector<float> all;
  for (std::size_t layer = 0; layer < stream.k.size(); ++layer) {
    queries.push_back(test::random_keys(tokens, 128, 50 + layer));
    add(all, stream.k[layer]);
    add(all, stream.v[layer]);
    add(all, queries[layer]);
  }
  write(folder / "tokens.bin", all);

  auto artifact = test::artifact_for<S>(stream, choice());
  save(artifact, folder / "model.kvq");
  write(folder / "answers.bin", answers(artifact, stream, queries));

  auto foreign = test::artifact_for<S>(another, choice());
  foreign.info.origin = {.model_name = "another model", .model_hash = "89ab"};
  save(foreign, folder / "another_model.kvq");

  auto windowed = choice();
  windowed.shape.local = {.layers = {1}, .window = 100, .rope = {.theta = 500}};
  auto of_windows = test::artifact_for<S>(stream, windowed);
  save(of_windows, folder / "windows.kvq");
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw std::invalid_argument("expected a FOLDER");
  write_case(argv[1]);
  return EXIT_SUCCESS;
} catch (std::exception const& failure) {
  std::cerr << "write_case: " << failure.what() << '\n';
  return EXIT_FAILURE;
}
