#include <cstddef>
#include <memory>
#include <utility>

#include "adapters/c/objects.hpp"
#include "adapters/c/status.hpp"

namespace kvquant::c {

namespace {

[[noreturn]] void refuse_busy() { throw failure{KVQUANT_ERROR_BUSY, "another call is using the sequence"}; }
[[noreturn]] void refuse_broken() {
  throw failure{KVQUANT_ERROR_BROKEN, "an earlier call failed half-way, the sequence can only be closed"};
}

void give(std::shared_ptr<cache_object> cache, std::unique_ptr<engine_sequence> it, kvquant_sequence** out) {
  *out = give_handle<kvquant_sequence>(std::make_shared<sequence_object>(std::move(cache), std::move(it)));
}

}  // namespace

reading::reading(kvquant_sequence const* handle) : object_(object_of(handle)) {
  if (!object_->users_.begin_reading()) refuse_busy();
  if (!object_->broken_) return;
  object_->users_.end_reading();
  refuse_broken();
}

changing::changing(kvquant_sequence const* handle) : object_(object_of(handle)) {
  if (!object_->users_.begin_changing()) refuse_busy();
  if (!object_->broken_) return;
  object_->users_.end_changing();
  refuse_broken();
}

}  // namespace kvquant::c

using namespace kvquant::c;

kvquant_status kvquant_sequence_open(kvquant_cache* cache, std::size_t expected_tokens, kvquant_sequence** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    auto of = object_of(cache);
    auto opened = of->get().open(expected_tokens);
    give(std::move(of), std::move(opened), out);
  });
}

kvquant_status kvquant_sequence_fork(kvquant_sequence* sequence, kvquant_sequence** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    reading const it(sequence);
    give(it.cache(), it->fork(), out);
  });
}

kvquant_status kvquant_sequence_load(kvquant_cache* cache, char const* path, kvquant_sequence** out) {
  return guarded(__func__, [&] {
    clear_result(out);
    auto of = object_of(cache);
    auto loaded = of->get().load(text_of(path, "path"));
    give(std::move(of), std::move(loaded), out);
  });
}

kvquant_status kvquant_sequence_save(kvquant_sequence* sequence, char const* path) {
  return guarded(__func__, [&] { reading(sequence)->save(text_of(path, "path")); });
}

kvquant_status kvquant_sequence_get_tokens(kvquant_sequence* sequence, std::size_t* out) {
  return guarded(__func__, [&] {
    clear_result(out);
    *out = reading(sequence)->tokens();
  });
}

kvquant_status kvquant_sequence_get_bytes(kvquant_sequence* sequence, kvquant_bytes* out) {
  return guarded(__func__, [&] {
    reading const it(sequence);
    kvquant::model_shape const& shape = it.cache()->shape();
    std::size_t const channels = static_cast<std::size_t>(shape.layers) * static_cast<std::size_t>(shape.kv_channels());
    write_bytes(out, it->bytes(), 2 * it->tokens() * channels);
  });
}

kvquant_status kvquant_sequence_reserve(kvquant_sequence* sequence, std::size_t tokens) {
  return guarded(__func__, [&] { changing(sequence).apply([&](auto& it) { it.reserve(tokens); }); });
}

kvquant_status kvquant_sequence_truncate(kvquant_sequence* sequence, std::size_t tokens) {
  return guarded(__func__, [&] { changing(sequence).apply([&](auto& it) { it.truncate(tokens); }); });
}

kvquant_status kvquant_sequence_drop(kvquant_sequence* sequence, std::size_t first, std::size_t count) {
  return guarded(__func__, [&] { changing(sequence).apply([&](auto& it) { it.drop(first, count); }); });
}

kvquant_status kvquant_sequence_close(kvquant_sequence* sequence) {
  return guarded(__func__, [&] { close_handle(sequence); });
}
