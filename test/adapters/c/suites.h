/* The cases of the C interface, by what they are about. */
#ifndef KVQUANT_TEST_SUITES_H
#define KVQUANT_TEST_SUITES_H

#include "test/adapters/c/check.h"

extern struct test_case const abi_cases[], artifact_cases[], cache_cases[], executor_cases[], handle_cases[],
    input_cases[], sequence_cases[];

#endif
