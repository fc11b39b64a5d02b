#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "adapters/c/objects.hpp"
#include "adapters/c/status.hpp"
#include "adapters/c/structs.hpp"

namespace kvquant::c {

namespace {

static_assert(KVQUANT_PAGE_TOKENS == page_tokens);

kvquant_cache_options default_options() {
  kvquant_cache_options it{};
  it.size = sizeof it;
  it.sinks = KVQUANT_SINKS_OF_ARTIFACT;
  it.rewind_tokens = cache_options{}.rewind_tokens;
  it.threads = 1;
  return it;
}

std::optional<kvquant_executor> executor_of(kvquant_cache_options const& options) {
  if (options.executor == nullptr) return std::nullopt;
  auto const it = read_struct(options.executor, "executor");
  require(it.run != nullptr, errc::bad_value, "executor.run is NULL, expected a function");
  require(it.workers >= 1, errc::bad_value, "executor.workers is ", it.workers, ", expected 1 or more");
  return it;
}

constexpr int most_threads = 4096;

std::shared_ptr<cache_object> make_cache(any_artifact const& artifact, kvquant_cache_options const& options) {
  require(options.threads >= 0 && options.threads <= most_threads, errc::bad_value, "threads is ", options.threads,
          ", expected 1 to ", most_threads, ", or 0 for as many as the machine has");
  require(options.sinks >= KVQUANT_SINKS_OF_ARTIFACT, errc::bad_value, "sinks is ", options.sinks,
          ", expected 0 or more, or KVQUANT_SINKS_OF_ARTIFACT");
  auto const foreign = executor_of(options);
  cache_options sizes{.max_tokens = options.max_tokens,
                      .recent_pages = options.recent_pages,
                      .max_sequences = options.max_sequences,
                      .rewind_tokens = options.rewind_tokens};
  if (options.sinks >= 0) sizes.sinks = options.sinks;
  std::string const backend = options.backend == nullptr ? std::string(default_backend()) : options.backend;
  return std::make_shared<cache_object>(make_engine(backend, artifact, sizes), options.threads, foreign);
}

/// The name that the table of backends has, which ends with a zero and stays.
char const* lasting_name(std::string_view name) {
  for (std::string_view const it : backend_names())
    if (it == name) return it.data();
  return "";
}

}  // namespace

void write_bytes(kvquant_bytes* out, byte_report const& it, std::size_t elements) {
  write_struct(out, "out",
               kvquant_bytes{.size = sizeof(kvquant_bytes),
                             .codes = it.codes,
                             .value_ranges = it.value_ranges,
                             .slots = it.slots,
                             .padding = it.padding,
                             .sinks = it.sinks,
                             .tail = it.tail,
                             .tables = it.tables,
                             .page_table = it.page_table,
                             .slack = it.slack,
                             .total = it.total(),
                             .elements = elements});
}

}  // namespace kvquant::c

using namespace kvquant::c;

std::size_t kvquant_backend_count() { return kvquant::backend_names().size(); }

char const* kvquant_backend_name(std::size_t index) {
  auto const names = kvquant::backend_names();
  return index < names.size() ? names[index].data() : nullptr;
}

char const* kvquant_default_backend() {
  char const* name = nullptr;
  guarded(__func__, [&] { name = lasting_name(kvquant::default_backend()); });
  return name;
}

kvquant_status kvquant_supports(char const* backend, kvquant_artifact* artifact) {
  return guarded(__func__, [&] {
    std::string const name = text_of(backend, "backend");
    kvquant::require_supported(kvquant::supports(name, object_of(artifact)->get().info), name);
  });
}

kvquant_status kvquant_cache_options_init(kvquant_cache_options* options, std::size_t size) {
  return guarded(__func__, [&] { init_struct(options, "options", size, default_options()); });
}

kvquant_status kvquant_cache_create(kvquant_artifact* artifact, kvquant_cache_options const* options,
                                    kvquant_cache** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    auto const of = object_of(artifact);
    *out = give_handle<kvquant_cache>(make_cache(of->get(), read_struct(options, "options", default_options())));
  });
}

kvquant_status kvquant_cache_get_info(kvquant_cache* cache, kvquant_cache_info* out) {
  return guarded(__func__, [&] {
    auto const of = object_of(cache);
    kvquant::engine const& it = of->get();
    write_struct(out, "out",
                 kvquant_cache_info{.size = sizeof(kvquant_cache_info),
                                    .backend = lasting_name(it.backend()),
                                    .free_pages = it.free_blocks(),
                                    .sinks = static_cast<int32_t>(it.sinks()),
                                    .recent_pages = static_cast<int32_t>(it.recent_pages()),
                                    .layers = of->shape().layers,
                                    .kv_channels = of->shape().kv_channels(),
                                    .q_channels = static_cast<int32_t>(of->q_channels()),
                                    .workers = of->executor().workers()});
  });
}

kvquant_status kvquant_cache_get_bytes(kvquant_cache* cache, kvquant_bytes* out) {
  return guarded(__func__, [&] { write_bytes(out, object_of(cache)->get().bytes(), 0); });
}

kvquant_status kvquant_cache_get_clamps(kvquant_cache* cache, kvquant_clamps* out) {
  return guarded(__func__, [&] {
    kvquant::clamp_counts const it = object_of(cache)->get().clamps();
    write_struct(out, "out",
                 kvquant_clamps{.size = sizeof(kvquant_clamps),
                                .keys = it.keys,
                                .values = it.values,
                                .clamped_keys = it.clamped_keys,
                                .clamped_values = it.clamped_values});
  });
}

kvquant_status kvquant_cache_close(kvquant_cache* cache) {
  return guarded(__func__, [&] { close_handle(cache); });
}
