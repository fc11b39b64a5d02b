#pragma once
/// \file
/// What a call complains of.

#include <catch2/catch.hpp>
#include <concepts>
#include <string>

#include "kvquant/core/error.hpp"

namespace kvquant::test {

struct thrown {
  errc code{};
  std::string text;
};

/// Fails the test if `f` throws nothing of ours.
template <std::invocable F>
thrown error_of(F const& f) {
  try {
    f();
  } catch (error const& e) {
    return {e.code, e.what()};
  }
  FAIL("nothing was thrown");
  return {};
}

inline Catch::Matchers::StdString::ContainsMatcher says(std::string const& part) { return Catch::Contains(part); }

}  // namespace kvquant::test
