/// \file
/// Gemma 3 270M (`KVQUANT_TEST_GEMMA`, as scripts/fetch_assets has it) on Wikitext-2 (the folder `KVQUANT_TEST_TEXT`).

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "runtime/cache_engine.hpp"
#include "runtime/gguf.hpp"
#include "runtime/model.hpp"
#include "runtime/scoring.hpp"
#include "runtime/tokenizer.hpp"
#include "test/runtime/model_pair.hpp"

namespace kvquant::runtime {
namespace {

using test::relative_error;
using test::to_real;

struct gemma {
  cpu::thread_pool pool;
  gguf_file file;
  runtime::tokenizer tokenizer;
  std::string text;

  gemma(char const* model, std::filesystem::path const& text_path) : file(gguf_file::open(model)), tokenizer(file) {
    std::ifstream in(text_path, std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::vector<token_id> first_tokens(std::size_t count) const {
    auto ids = tokenizer.encode(std::string_view(text).substr(0, 8 * count), {.add_special = false});
    REQUIRE(ids.size() >= count);
    ids.resize(count);
    return ids;
  }
};

std::unique_ptr<gemma> load() {
  char const* const model = std::getenv("KVQUANT_TEST_GEMMA");
  char const* const folder = std::getenv("KVQUANT_TEST_TEXT");
  REQUIRE(model != nullptr);
  REQUIRE(folder != nullptr);
  auto const text = std::filesystem::path(folder) / "wikitext2_test.txt";
  INFO(text.string());
  REQUIRE(std::filesystem::exists(text));
  return std::make_unique<gemma>(model, text);
}

}  // namespace

TEST_CASE("WikiText-2's test set has 292,282 tokens of Gemma 3, and comes back", "[model]") {
  auto const it = load();
  auto const ids = it->tokenizer.encode(it->text, {.add_special = false});
  CHECK(ids.size() == 292282);
  CHECK(it->tokenizer.decode(ids) == it->text);
  CHECK(it->tokenizer.bos() == 2);
  CHECK(it->tokenizer.encode("a  b\n\nc").front() == 2);
}

// llama.cpp has 24.94, with activations in 8 bits.
TEST_CASE("the perplexity of Gemma 3 over eight windows of BOS and 512 tokens is 24.86", "[model]") {
  auto const it = load();
  model const m(it->file, it->pool);
  auto const text = it->first_tokens(8 * 512);
  double sum = 0;
  for (std::size_t at = 0; at < text.size(); at += 512) {
    auto const targets = std::span(text).subspan(at, 512);
    std::vector<token_id> ids = {it->tokenizer.bos()};
    ids.insert(ids.end(), targets.begin(), targets.end());
    matrix const hidden = m.forward(ids);
    for (double const nll : negative_log_likelihood(m, view_of(hidden).middle_rows(0, 512), targets)) sum += nll;
  }
  CHECK(std::exp(sum / static_cast<double>(text.size())) == Approx(24.86).margin(0.05));
}

TEST_CASE("beyond its window Gemma 3 says the same through a cache in binary16, which keeps the window alone",
          "[model]") {
  auto const it = load();
  model const m(it->file, it->pool);
  auto const ids = it->first_tokens(1024);
  matrix const expected = m.forward(ids);
  auto const cache = make_exact_cache(m.config(), it->file.hash(), ids.size());
  auto const sequence = cache->open(ids.size());
  CHECK(relative_error(to_real(forward(m, ids, *sequence)), to_real(expected)) < 1e-2);
  // 18 layers, of which 15 see 512 tokens: a few pages more at most.
  CHECK(sequence->bytes().codes < (3 * 1024 + 15 * (512 + 64 + 3 * page_tokens)) * std::size_t{2 * 2 * 256});
}

}  // namespace kvquant::runtime
