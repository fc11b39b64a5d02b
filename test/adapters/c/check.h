/* Checks of a C program, counted as Catch2 counts them: the closing line is what scripts/tally.py reads. */
#ifndef KVQUANT_TEST_CHECK_H
#define KVQUANT_TEST_CHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "adapters/c/kvquant.h"

bool check(bool holds, char const* condition, char const* file, int line);
bool check_ok(kvquant_status status, char const* call, char const* file, int line);
/* That the call failed so, and that the text says `words`. */
bool check_fails(kvquant_status status, kvquant_status expected, char const* words, char const* call, char const* file,
                 int line);
bool check_same(float const* found, float const* expected, size_t count, char const* what, char const* file, int line);

#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)
#define CHECK_OK(call) check_ok((call), #call, __FILE__, __LINE__)
#define CHECK_FAILS(call, expected, words) check_fails((call), (expected), (words), #call, __FILE__, __LINE__)
/* Bit for bit. */
#define CHECK_SAME(found, expected, count) \
  check_same((found), (expected), (count), #found " and " #expected, __FILE__, __LINE__)

struct test_case {
  char const* name;
  void (*run)(void);
};
/* Runs cases up to one without a name. */
void run_cases(struct test_case const* cases);
/* Prints the closing line; the program's exit status. */
int finish_cases(void);

#endif
