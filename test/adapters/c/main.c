/* Usage: c_interface FOLDER, which write_case.cpp has filled */
#include <stdio.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "expected a FOLDER\n");
    return 2;
  }
  read_fixture(argv[1]);
  struct test_case const* const suites[] = {abi_cases,    artifact_cases, cache_cases,   executor_cases,
                                            handle_cases, input_cases,    sequence_cases};
  for (size_t i = 0; i < sizeof suites / sizeof *suites; ++i) run_cases(suites[i]);
  return finish_cases();
}
