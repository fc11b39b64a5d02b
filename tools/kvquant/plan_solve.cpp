#include "tools/kvquant/plan_solve.hpp"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "kvquant/core/error.hpp"
#include "tools/kvquant/plan_output.hpp"
#include "tools/plan/loss_table.hpp"
#include "tools/plan/memory_plan.hpp"
#include "tools/plan/quantity.hpp"
#include "tools/plan/solve.hpp"

namespace kvquant::tool {

namespace {

plan::loss_table gather(solve_sources const& sources, int threads) {
  std::optional<plan::loss_table> all;
  auto const add = [&](std::string const& path, plan::loss_table more) {
    try {
      all ? merge(*all, std::move(more)) : void(all = std::move(more));
    } catch (error const& failure) {
      throw error{failure.code, text(path, ": ", failure.what())};
    }
  };
  cpu::thread_pool pool(threads);
  for (std::string const& path : sources.statistics) add(path, plan::losses_of(load_statistics(path), pool));
  for (std::string const& path : sources.artifacts) add(path, plan::losses_of(std::filesystem::path(path)));
  return std::move(*all);
}

std::string loss_name(double loss) { return fmt::format("{:.4g}", loss); }

/// The command that makes an artifact of the format. Bits by channel are divided between the sides by `calibrate`.
std::string command_for(plan::cache_format const& format) {
  if (format.is_exact()) return "no calibration: f16";
  side_format const& side = format.key;
  bool const divided = side.by_channel() && format.value.by_channel();
  if (!format.is_one_spec() && !divided) return "the artifact of " + plan::to_string(format);
  std::string const bits = fmt::format("{}", divided ? (side.bits + format.value.bits) / 2 : side.id.bits);
  return fmt::format("kvquant calibrate MODEL --format {} --bits {} --outliers {}", side.id.name, bits,
                     side.outlier_fraction);
}

struct named_solution {
  char const* key;
  char const* name;
  plan::solution const& found;
};

std::vector<named_solution> solutions_of(plan::solved const& it) {
  return {{"makeable", "can be made today", it.makeable},
          {"sides_apart", "keys and values apart", it.sides_apart},
          {"layers_apart", "layers apart too", it.layers_apart}};
}

/// Of `adaptive`, which has many, the points of the frontier alone.
void show_curve(plan::solved const& it, std::size_t budget) {
  text_table table = {
      {"format", "bits/element", "cache", "fits", "loss", "Pareto", "keys and values apart", "layers apart too"}};
  for (plan::curve_point const& point : it.curve) {
    if (!point.is_pareto && point.format.key.by_channel()) continue;
    table.push_back({plan::to_string(point.format), fmt::format("{:.2f}", point.bits), size_name(point.bytes),
                     point.bytes <= budget ? "yes" : "no", loss_name(point.loss), point.is_pareto ? "*" : "",
                     loss_name(point.sides_apart), loss_name(point.layers_apart)});
  }
  print_table(table);
}

void show_solutions(plan::solved const& it) {
  text_table table = {{"within the budget", "bits/element", "cache", "loss", "format"}};
  for (named_solution const& one : solutions_of(it)) {
    if (one.found.by_layer.empty())
      table.push_back({one.name, "-", "-", "-", "none"});
    else
      table.push_back({one.name, fmt::format("{:.2f}", one.found.bits), size_name(one.found.bytes),
                       loss_name(one.found.loss),
                       &one.found == &it.layers_apart ? "see below" : plan::to_string(one.found.by_layer.front())});
  }
  print_table(table);
  text_table layers = {{"layer", "keys", "values"}};
  for (std::size_t layer = 0; layer < it.layers_apart.by_layer.size(); ++layer) {
    plan::cache_format const& format = it.layers_apart.by_layer[layer];
    layers.push_back({std::to_string(layer), to_string(format.key), to_string(format.value)});
  }
  fmt::print("\n");
  print_table(layers);
  fmt::print("\ncan be made today: {}\n",
             it.makeable.by_layer.empty() ? "none that fits" : command_for(it.makeable.by_layer.front()));
  fmt::print("The others show what there is to gain: no artifact has formats of its own for a layer.\n");
}

/// `all`: what was asked for.
void write_files(plan::solved const& it, nlohmann::json all, common_options const& common, std::string const& csv) {
  nlohmann::json rows = nlohmann::json::array(), solutions;
  for (plan::curve_point const& point : it.curve)
    rows.push_back({{"format", plan::to_string(point.format)},
                    {"bits_per_element", point.bits},
                    {"bytes", point.bytes},
                    {"loss", point.loss},
                    {"pareto", point.is_pareto},
                    {"loss_sides_apart", point.sides_apart},
                    {"loss_layers_apart", point.layers_apart}});
  for (named_solution const& one : solutions_of(it)) {
    if (one.found.by_layer.empty()) continue;
    nlohmann::json layers = nlohmann::json::array();
    for (plan::cache_format const& format : one.found.by_layer)
      layers.push_back({{"keys", to_string(format.key)}, {"values", to_string(format.value)}});
    solutions[one.key] = {
        {"bits_per_element", one.found.bits}, {"bytes", one.found.bytes}, {"loss", one.found.loss}, {"layers", layers}};
  }
  all["rows"] = rows;
  all["solutions"] = solutions;
  write_json(common.json, all);
  write_csv(csv, rows);
}

}  // namespace

void solve_plan(solve_sources const& sources, int devices, plan::cache_request request, common_options const& common,
                std::string const& csv) {
  plan::loss_table losses = gather(sources, common.threads);
  request.shape = plan::shape_of_device(losses.shape, devices);
  std::erase_if(losses.makeable, [&](plan::cache_format const& it) {
    request.format = it;
    return request.owner == plan::page_owner::cuda && !plan::is_served_by_cuda(request);
  });
  std::size_t const budget = plan::parse_bytes(sources.budget);
  plan::solved const found = plan::solve(losses, request, budget);
  write_files(found,
              {{"model", losses.origin.model_name},
               {"context", request.tokens},
               {"batch", request.sequences},
               {"devices", devices},
               {"budget", budget}},
              common, csv);
  if (common.quiet) return;
  fmt::print("{}: {} layers, {} KV heads x {}, batch {} x {} tokens, {} for the cache\n",
             one_line(losses.origin.model_name), losses.shape.layers, losses.shape.kv_heads, losses.shape.head_dim,
             request.sequences, request.tokens, size_name(budget));
  fmt::print("loss: half the sum of F d^2 over the elements of a window of {} tokens\n\n", losses.origin.context);
  show_curve(found, budget);
  fmt::print("\n");
  show_solutions(found);
}

}  // namespace kvquant::tool
