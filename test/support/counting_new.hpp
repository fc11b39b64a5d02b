#pragma once
/// \file
/// How often operator new was called, in a program that links `counting_new.cpp`.

#include <cstddef>

namespace kvquant::test {

std::size_t allocations();

}  // namespace kvquant::test
