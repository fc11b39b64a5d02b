#include "measure/job.hpp"

#include <array>
#include <charconv>

#include "kvquant/cache/page.hpp"
#include "kvquant/core/error.hpp"
#include "measure/choices.hpp"

namespace kvquant::measure {

namespace {

/// The number that all of `text` spells; whether there is one.
template <class T>
bool parse_number(std::string_view text, T& out) {
  auto const [end, failure] = std::from_chars(text.data(), text.data() + text.size(), out);
  return failure == std::errc{} && end == text.data() + text.size();
}

}  // namespace

model_shape parse_shape(std::string_view text) {
  std::array<int, 3> parts{};
  std::string_view rest = text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    auto const end = i + 1 < parts.size() ? rest.find('/') : rest.size();
    require(end != rest.npos && parse_number(rest.substr(0, end), parts[i]), errc::bad_shape, "shape \"", text,
            "\", expected query heads/KV heads/channels of a head, as in 32/8/128");
    rest.remove_prefix(i + 1 < parts.size() ? end + 1 : end);
  }
  model_shape shape{.layers = 1, .q_heads = parts[0], .kv_heads = parts[1], .head_dim = parts[2], .rope = {}};
  validate(shape);
  make_page_geometry(shape.head_dim, 1, 1, 0, 0);  // throws for heads that pages cannot hold
  return shape;
}

std::string to_string(model_shape const& shape) {
  return text(shape.q_heads, '/', shape.kv_heads, '/', shape.head_dim);
}

std::size_t parse_context(std::string_view text) {
  bool const kibi = text.ends_with('K');
  std::size_t count = 0;
  bool const known = parse_number(text.substr(0, text.size() - (kibi ? 1 : 0)), count);
  std::size_t const most = std::size_t{1} << (kibi ? 14 : 24), unit = kibi ? 1024 : 1;
  require(known && count >= 1 && count <= most && count * unit % page_tokens == 0, errc::bad_value, "context \"", text,
          "\", expected a multiple of ", page_tokens, " tokens up to 16384K, as in 256 or 8K");
  return count * unit;
}

std::string context_name(std::size_t context) {
  return context % 1024 == 0 ? text(context / 1024, 'K') : std::to_string(context);
}

format_choice parse_format_choice(std::string_view text) {
  auto const dash = text.find('-');
  std::string_view const name = text.substr(0, dash);
  format_choice choice;
  bool found = false;
  std::string known;
  for_each_type(measured_specs{}, [&]<class S>(std::type_identity<S>) {
    std::string const spec = S::name();
    constexpr bool has_bits = is_by_channel<typename S::key_format>;
    bool const is_this = has_bits ? name.starts_with(spec) && parse_number(name.substr(spec.size()), choice.bits) &&
                                        choice.bits >= 1.5 && choice.bits <= 4.5
                                  : name == spec;
    if (is_this) choice.spec = spec;
    found = found || is_this;
    known += (known.empty() ? "" : ", ") + spec + (has_bits ? " and its bits, 1.5 to 4.5" : "");
  });
  double percent = 0;
  if (dash != text.npos)
    found = found && text.ends_with('%') && parse_number(text.substr(dash + 1, text.size() - dash - 2), percent) &&
            percent > 0 && percent <= 10 && choice.spec != baseline_spec::name();
  require(found, errc::bad_format, "format \"", text, "\", expected one of ", known,
          ", with the outliers of those below 8 bits after it, up to 10 %, as in nuq3-1%");
  choice.outlier_fraction = percent / 100;
  return choice;
}

std::string to_string(format_choice const& format) {
  std::string const name = format.bits > 0 ? text(format.spec, format.bits) : format.spec;
  return format.outlier_fraction > 0 ? text(name, '-', 100 * format.outlier_fraction, '%') : name;
}

format_choice baseline_format() { return {baseline_spec::name()}; }

std::string to_string(job const& it) {
  std::string const calls = text(to_string(it.shape), ' ', context_name(it.context), ", batch ", it.batch);
  if (it.threads == 0) return calls;
  return text(calls, ", ", it.threads, it.threads == 1 ? " thread" : " threads");
}

std::vector<model_shape> default_shapes() {
  return {parse_shape("32/32/128"), parse_shape("32/8/128"), parse_shape("9/3/64")};
}

std::vector<format_choice> default_formats() {
  return {{"nuq4"}, {"nuq4", 0.01}, {"nuq3"},           {"nuq3", 0.01},
          {"nuq2"}, {"nuq2", 0.01}, {"adaptive", 0, 3}, {"adaptive", 0, 2.5}};
}

std::vector<std::size_t> sweep_contexts() {
  std::vector<std::size_t> contexts;
  for (std::size_t it = 256; it <= std::size_t{32} << 10; it *= 2) contexts.push_back(it);
  return contexts;
}

std::vector<format_choice> sweep_formats() {
  return {{"nuq4"}, {"nuq4", 0.01}, {"nuq3", 0.01}, {"nuq2", 0.01}, {"adaptive", 0, 3}};
}

}  // namespace kvquant::measure
