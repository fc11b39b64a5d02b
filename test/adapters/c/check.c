#include "test/adapters/c/check.h"

#include <stdio.h>
#include <string.h>

static struct {
  int assertions, failed_assertions, cases, failed_cases;
  char const* name;
} counts;

bool check(bool holds, char const* condition, char const* file, int line) {
  ++counts.assertions;
  if (holds) return true;
  ++counts.failed_assertions;
  printf("%s:%d: in \"%s\": %s\n", file, line, counts.name, condition);
  return false;
}

bool check_ok(kvquant_status status, char const* call, char const* file, int line) {
  if (check(status == KVQUANT_OK, call, file, line)) return true;
  printf("  failed with %s: %s\n", kvquant_status_name(status), kvquant_last_error());
  return false;
}

bool check_fails(kvquant_status status, kvquant_status expected, char const* words, char const* call, char const* file,
                 int line) {
  bool const said = strstr(kvquant_last_error(), words) != NULL;
  if (check(status == expected && said, call, file, line)) return true;
  printf("  ended with %s: \"%s\"\n  expected %s and \"%s\"\n", kvquant_status_name(status), kvquant_last_error(),
         kvquant_status_name(expected), words);
  return false;
}

bool check_same(float const* found, float const* expected, size_t count, char const* what, char const* file, int line) {
  size_t first = 0;
  while (first < count && memcmp(found + first, expected + first, sizeof *found) == 0) ++first;
  if (check(first == count, what, file, line)) return true;
  printf("  element %zu of %zu is %.9g, expected %.9g\n", first, count, (double)found[first], (double)expected[first]);
  return false;
}

void run_cases(struct test_case const* cases) {
  for (; cases->name != NULL; ++cases) {
    int const before = counts.failed_assertions;
    counts.name = cases->name;
    cases->run();
    ++counts.cases;
    if (counts.failed_assertions != before) ++counts.failed_cases;
  }
}

int finish_cases(void) {
  if (counts.failed_cases == 0)
    printf("All tests passed (%d assertions in %d test cases)\n", counts.assertions, counts.cases);
  else
    printf("test cases: %d | %d passed | %d failed\nassertions: %d | %d passed | %d failed\n", counts.cases,
           counts.cases - counts.failed_cases, counts.failed_cases, counts.assertions,
           counts.assertions - counts.failed_assertions, counts.failed_assertions);
  return counts.failed_cases == 0 ? 0 : 1;
}
