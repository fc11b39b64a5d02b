#include "tools/kvquant/evaluated_cache.hpp"

#include <fmt/format.h>

#include <utility>

#include "kvquant/cache/page.hpp"
#include "runtime/simulation/deployed.hpp"

namespace kvquant::tool {

namespace {

class simulated_cache final : public evaluated_cache {
 public:
  explicit simulated_cache(std::unique_ptr<runtime::simulator> cache) : cache_(std::move(cache)) {}

  std::string const& name() const override { return cache_->name(); }
  runtime::matrix forward(runtime::model const& model, std::span<runtime::token_id const> ids) override {
    return model.forward(ids, cache_.get());
  }
  double bits_at(std::size_t tokens) const override { return cache_->bits_at(tokens); }

 private:
  std::unique_ptr<runtime::simulator> cache_;
};

class packed_cache final : public evaluated_cache {
 public:
  packed_cache(std::unique_ptr<engine> cache, cache_options const& options, std::string name)
      : cache_(std::move(cache)), options_(options), name_(std::move(name)) {}

  std::string const& name() const override { return name_; }
  runtime::matrix forward(runtime::model const& model, std::span<runtime::token_id const> ids) override {
    auto const sequence = cache_->open(ids.size());
    runtime::matrix hidden = runtime::forward(model, ids, *sequence);
    bytes_ = sequence->bytes();
    return hidden;
  }
  /// What pages take grows with their number; the rest does not.
  double bits_at(std::size_t tokens) const override {
    artifact_info const& info = cache_->info();
    byte_report const pool = cache_->bytes();
    std::size_t const slab = pool.codes + pool.value_ranges + pool.slots + pool.padding + pool.slack;
    std::size_t const capacity = (options_.max_tokens + page_tokens - 1) / page_tokens;  // pages
    double const per_page = static_cast<double>(slab + pool.page_table) / static_cast<double>(capacity);
    std::size_t const pages =
        sealed_tokens(tokens, static_cast<std::size_t>(info.sinks), static_cast<std::size_t>(options_.recent_pages)) /
        page_tokens;
    auto const fixed = static_cast<double>(bytes_.sinks + bytes_.tail + bytes_.slack + bytes_.tables);
    double const elements = 2.0 * info.shape.layers * info.shape.kv_channels() * static_cast<double>(tokens);
    return 8 * (fixed + per_page * static_cast<double>(pages)) / elements;
  }
  clamp_counts clamps() const override { return cache_->clamps(); }

 private:
  std::unique_ptr<engine> cache_;
  cache_options options_;
  std::string name_;
  byte_report bytes_;
};

}  // namespace

std::unique_ptr<evaluated_cache> evaluate_simulated(std::unique_ptr<runtime::simulator> cache) {
  return std::make_unique<simulated_cache>(std::move(cache));
}

std::unique_ptr<evaluated_cache> evaluate_packed(std::unique_ptr<engine> cache, cache_options const& options,
                                                 std::string name) {
  return std::make_unique<packed_cache>(std::move(cache), options, std::move(name));
}

std::string label_with(std::string label, int recent_pages) {
  if (recent_pages == 1) label += ", 1 recent page";
  if (recent_pages > 1) label += fmt::format(", {} recent pages", recent_pages);
  return label;
}

std::unique_ptr<runtime::simulator> deploy_baseline(std::unique_ptr<runtime::simulator> baseline, int recent_pages) {
  runtime::deployed_window const window{.recent_pages = static_cast<std::size_t>(recent_pages)};
  std::string name = label_with(baseline->name(), recent_pages);
  return runtime::simulate_deployed(std::move(baseline), window, std::move(name));
}

}  // namespace kvquant::tool
