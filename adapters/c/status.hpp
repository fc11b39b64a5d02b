#pragma once
/// \file
/// Exceptions end here: they become a status and the text of `kvquant_last_error`.

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "adapters/c/kvquant.h"
#include "kvquant/core/error.hpp"

namespace kvquant::c {

/// A failure that only the C interface knows.
struct failure : std::runtime_error {
  kvquant_status status;
  failure(kvquant_status s, std::string const& text) : std::runtime_error(text), status(s) {}
};

kvquant_status status_of(errc code) noexcept;

/// Keeps the text for this thread, and returns `status`.
kvquant_status failed(kvquant_status status, char const* where, char const* text) noexcept;

/// Runs `f`; `where` is the function that was called.
template <class F>
kvquant_status guarded(char const* where, F&& f) noexcept {
  try {
    f();
    return KVQUANT_OK;
  } catch (error const& it) {
    return failed(status_of(it.code), where, it.what());
  } catch (failure const& it) {
    return failed(it.status, where, it.what());
  } catch (std::bad_alloc const&) {
    return failed(KVQUANT_ERROR_OUT_OF_MEMORY, where, "not enough memory");
  } catch (std::exception const& it) {
    return failed(KVQUANT_ERROR_INTERNAL, where, it.what());
  } catch (...) {
    return failed(KVQUANT_ERROR_INTERNAL, where, "an exception of an unknown type");
  }
}

/// Where a function writes its result: NULL there until it has one.
template <class T>
void clear_result(T* out) {
  require(out != nullptr, errc::bad_value, "out is NULL, expected where the result goes");
  *out = {};
}

/// A text that must be there.
inline std::string text_of(char const* text, char const* what) {
  require(text != nullptr, errc::bad_value, what, " is NULL, expected a text");
  return text;
}

}  // namespace kvquant::c
