// Appending a prompt on a CUDA device, all of it sealed, from binary16 in device memory; and one token that seals
// nothing. Usage: cuda_seal [SHAPE:TOKENS]...

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>
#include <type_traits>
#include <vector>

#include "backends/cuda/page_layout.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "measure/choices.hpp"
#include "measure/device.hpp"
#include "measure/job.hpp"
#include "measure/roof.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::measure;

constexpr int rounds = 9, single_tokens = 32;

struct seal_job {
  model_shape shape;
  std::size_t tokens;
};

/// "32/8/128:4K"
seal_job parse_job(std::string const& text) {
  auto const colon = text.find(':');
  require(colon != text.npos, errc::bad_value, "job \"", text, "\", expected SHAPE:TOKENS, as 32/8/128:4K");
  return {parse_shape(text.substr(0, colon)), parse_context(text.substr(colon + 1))};
}

template <PackedSpec S>
class subject {
 public:
  using layout = cuda::page_layout<S>;

  subject(seal_job const& what, format_choice const& format, random_tokens const& input)
      : tokens_(what.tokens),
        artifact_(make_measured_artifact<S>(what.shape, format, input)),
        cache_(artifact_, {.max_tokens = tokens_ + page_tokens, .sinks = 0, .queue = queue_.get()}),
        k_(std::span<half const>(to_halves(input.k))),
        v_(std::span<half const>(to_halves(input.v))),
        sequence_(cache_.open(tokens_ + page_tokens)) {
    append(tokens_);
    cache_.wait();
    check(input);
  }

  /// Of a prompt, and of each token by itself behind it.
  double prompt_seconds() {
    cache_.truncate(sequence_, 0);
    timer_.start(queue_);
    append(tokens_);
    return timer_.seconds(queue_);
  }
  double token_seconds() {
    timer_.start(queue_);
    for (int i = 0; i < single_tokens; ++i) append(1);
    return timer_.seconds(queue_) / single_tokens;
  }

 private:
  void append(std::size_t count) {
    cache_.append(sequence_, 0, view2d<half const>(k_.data(), count, cache_.kv_channels()),
                  view2d<half const>(v_.data(), count, cache_.kv_channels()));
  }
  /// The first pages are the bytes of the definition.
  void check(random_tokens const& input) {
    std::size_t const pages = std::min<std::size_t>(4, tokens_ / page_tokens);
    kv_cache<S, cuda::fragment_layout<S>> host(artifact_, {.max_tokens = pages * page_tokens, .sinks = 0});
    sequence expected = host.open();
    host.append(expected, 0, input.keys().middle_rows(0, pages * page_tokens),
                input.values().middle_rows(0, pages * page_tokens));
    layer_view const found = cache_.view(sequence_, 0), wanted = host.view(expected, 0);
    for (std::size_t page = 0; page < pages; ++page)
      for (std::size_t head = 0; head < host.kv_heads(); ++head) {
        auto const a = found.page(page, head, host.kv_heads()), b = wanted.page(page, head, host.kv_heads());
        require(std::equal(a.begin(), a.end(), b.begin(), b.end()), errc::bad_value, S::name(), ": page ", page,
                " of head ", head, " is not what the definition makes of it");
      }
  }

  std::size_t tokens_;
  cuda::stream queue_;
  cuda::event_timer timer_;
  artifact<S> artifact_;
  kv_cache<S, layout> cache_;
  cuda::device_array<half> k_, v_;
  sequence sequence_;
};

void measure_job(seal_job const& what, double bandwidth) {
  random_tokens const input(what.tokens, static_cast<std::size_t>(what.shape.kv_channels()));
  double const bytes = 2 * static_cast<double>(input.k.size() * sizeof(half));
  for (char const* const name : {"f16", "nuq4", "nuq4-1%", "nuq3", "nuq3-1%", "nuq2-1%"}) {
    format_choice const format = parse_format_choice(name);
    visit_measured(format, [&]<class S>(std::type_identity<S>) {
      if constexpr (cuda::FragmentSpec<S>) {
        subject<S> it(what, format, input);
        std::vector<double> prompts, tokens;
        for (int round = 0; round < rounds; ++round) {
          prompts.push_back(it.prompt_seconds());
          tokens.push_back(it.token_seconds());
        }
        double const prompt = median(prompts);
        std::printf("%-10s %6s  %-8s %9.1f us %8.1f GB/s %5.1f %%  %6.1f us\n", to_string(what.shape).c_str(),
                    context_name(what.tokens).c_str(), name, prompt * 1e6, bytes / prompt / 1e9,
                    100 * bytes / prompt / bandwidth, median(tokens) * 1e6);
      }
    });
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    require_device();
    std::vector<std::string> jobs(argv + 1, argv + argc);
    if (jobs.empty()) jobs = {"32/32/128:4K", "32/8/128:4K", "32/8/128:512", "9/3/64:4K"};
    double const bandwidth = copy_bandwidth();
    std::printf("copies move %.0f GB/s\nshape      tokens  format   of a layer   of input   of it  a token\n",
                bandwidth / 1e9);
    for (std::string const& job : jobs) measure_job(parse_job(job), bandwidth);
    return 0;
  } catch (std::exception const& failure) {
    std::fprintf(stderr, "%s: %s\n", argv[0], failure.what());
    return 1;
  }
}
