#include "runtime/simulation/deployed.hpp"

#include <utility>

#include "kvquant/cache/page.hpp"

namespace kvquant::runtime {

namespace {

class deployed_simulator final : public simulator {
 public:
  deployed_simulator(std::unique_ptr<simulator> inner, deployed_window window, std::string name)
      : simulator(std::move(name)), inner_(std::move(inner)), window_(window) {}

  void keys_pre_rope(int layer, view2d<float> k) override { inner_->keys_pre_rope(layer, sealed_rows(k)); }
  void keys_post_rope(int layer, view2d<float> k) override { inner_->keys_post_rope(layer, sealed_rows(k)); }
  void values(int layer, view2d<float> v) override { inner_->values(layer, sealed_rows(v)); }

  /// A query sees its page quantized when it is that page's last token.
  std::optional<exact_window> window() const override {
    auto const first_exact = [window = window_](int t) {
      auto const tokens = static_cast<std::size_t>(t) + 1;
      return static_cast<int>(window.sinks + kvquant::sealed_tokens(tokens, window.sinks, window.recent_pages));
    };
    return exact_window{first_exact, first_exact};
  }

  double bits_at(std::size_t tokens) const override {
    std::size_t const sealed = sealed_tokens(tokens);
    std::size_t const exact = window_.sinks + (window_.recent_pages + 1) * page_tokens;  // allocated
    return (inner_->bits_per_element() * static_cast<double>(sealed) + 16.0 * static_cast<double>(exact)) /
           static_cast<double>(tokens);
  }

 private:
  std::size_t sealed_tokens(std::size_t tokens) const {
    return kvquant::sealed_tokens(tokens, window_.sinks, window_.recent_pages);
  }
  view2d<float> sealed_rows(view2d<float> x) const {
    std::size_t const sealed = sealed_tokens(x.rows);
    return sealed == 0 ? view2d<float>(x.data, 0, x.cols) : x.middle_rows(window_.sinks, sealed);
  }

  std::unique_ptr<simulator> inner_;
  deployed_window window_;
};

}  // namespace

std::unique_ptr<simulator> simulate_deployed(std::unique_ptr<simulator> inner, deployed_window window,
                                             std::string name) {
  return std::make_unique<deployed_simulator>(std::move(inner), window, std::move(name));
}

}  // namespace kvquant::runtime
