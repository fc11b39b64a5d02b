#include "tools/kvquant/evaluated_cache.hpp"

#include <utility>

#include "kvquant/cache/page.hpp"

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
  packed_cache(std::unique_ptr<engine> cache, std::string name) : cache_(std::move(cache)), name_(std::move(name)) {}

  std::string const& name() const override { return name_; }
  runtime::matrix forward(runtime::model const& model, std::span<runtime::token_id const> ids) override {
    auto const sequence = cache_->open(ids.size());
    runtime::matrix hidden = runtime::forward(model, ids, *sequence);
    tokens_ = ids.size();
    bytes_ = sequence->bytes();
    return hidden;
  }
  /// What pages take grows with their number; the rest does not.
  double bits_at(std::size_t tokens) const override {
    model_shape const& shape = cache_->info().shape;
    double const elements = 2.0 * shape.layers * shape.kv_channels();
    std::size_t const in_pages = bytes_.codes + bytes_.value_ranges + bytes_.slots + bytes_.padding + bytes_.page_table;
    auto const sealed = [](std::size_t n) {  // tokens
      std::size_t const pages = (n - 1) / page_tokens;
      return static_cast<double>(pages * page_tokens);
    };
    double const per_token = sealed(tokens_) == 0 ? 0 : static_cast<double>(in_pages) / sealed(tokens_);
    auto const fixed = static_cast<double>(bytes_.total() - in_pages);
    return 8 * (fixed + per_token * sealed(tokens)) / (static_cast<double>(tokens) * elements);
  }

 private:
  std::unique_ptr<engine> cache_;
  std::string name_;
  std::size_t tokens_ = 0;
  byte_report bytes_;
};

}  // namespace

std::unique_ptr<evaluated_cache> evaluate_simulated(std::unique_ptr<runtime::simulator> cache) {
  return std::make_unique<simulated_cache>(std::move(cache));
}

std::unique_ptr<evaluated_cache> evaluate_packed(std::unique_ptr<engine> cache, std::string name) {
  return std::make_unique<packed_cache>(std::move(cache), std::move(name));
}

}  // namespace kvquant::tool
