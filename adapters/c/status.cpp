#include "adapters/c/status.hpp"

#include <array>
#include <cstddef>

#include "kvquant/core/config.hpp"

namespace kvquant::c {

namespace {

constexpr std::array status_names = {
    "ok",     "bad_shape",  "bad_value", "bad_format",    "bad_file", "out_of_pages", "unsupported",
    "device", "bad_handle", "busy",      "out_of_memory", "executor", "broken",       "internal_error"};

/// Of this thread. `text` is "" or points to `kept`, or to a constant where there was no memory to keep anything.
struct last_error {
  std::string kept;
  char const* text = "";
};
last_error& of_this_thread() {
  thread_local last_error it;
  return it;
}

}  // namespace

kvquant_status status_of(errc code) noexcept {
  switch (code) {
    case errc::bad_shape: return KVQUANT_ERROR_BAD_SHAPE;
    case errc::bad_value: return KVQUANT_ERROR_BAD_VALUE;
    case errc::bad_format: return KVQUANT_ERROR_BAD_FORMAT;
    case errc::bad_file: return KVQUANT_ERROR_BAD_FILE;
    case errc::out_of_pages: return KVQUANT_ERROR_OUT_OF_PAGES;
    case errc::unsupported: return KVQUANT_ERROR_UNSUPPORTED;
    case errc::device: return KVQUANT_ERROR_DEVICE;
  }
  return KVQUANT_ERROR_INTERNAL;
}

kvquant_status failed(kvquant_status status, char const* where, char const* text) noexcept {
  last_error& last = of_this_thread();
  try {
    last.kept = kvquant::text(where, ": ", text);
    last.text = last.kept.c_str();
  } catch (...) {
    last.text = "not enough memory to say what was wrong";
  }
  return status;
}

}  // namespace kvquant::c

char const* kvquant_version() { return KVQUANT_VERSION; }
int32_t kvquant_version_number() { return KVQUANT_VERSION_NUMBER; }

char const* kvquant_status_name(kvquant_status status) {
  auto const index = static_cast<std::size_t>(status);
  return status >= 0 && index < kvquant::c::status_names.size() ? kvquant::c::status_names[index] : "unknown";
}

char const* kvquant_last_error() { return kvquant::c::of_this_thread().text; }
