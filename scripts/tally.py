#!/usr/bin/env python3
"""Counts test cases in the logs of `meson test`. Usage: tally.py testlog.json... [--plus PASSED FAILED SKIPPED]...

A Catch2 program and pytest count as many cases as their closing line says, any other test as one. The last line is
`N passed, N failed, N skipped`; the exit status is 1 where a case failed or none ran.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import NamedTuple

ALL_PASSED = re.compile(r"^All tests passed \(\d+ assertions? in (\d+) test cases?\)", re.MULTILINE)
SOME_FAILED = re.compile(r"^test cases: +(\d+) \|(.*)$", re.MULTILINE)
PYTEST = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", re.MULTILINE)
SKIPPED_CASES = re.compile(r"^skipped: (\d+) cases", re.MULTILINE)


class Counts(NamedTuple):
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(self, other)))

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_catch(said: str) -> Counts | None:
    """None where no closing line of Catch2 is there."""
    if all_passed := ALL_PASSED.search(said):
        return Counts(passed=int(all_passed[1]))
    if some_failed := SOME_FAILED.search(said):
        failed = re.search(r"(\d+) failed(?! as expected)", some_failed[2])
        failures = int(failed[1]) if failed else 0
        return Counts(passed=int(some_failed[1]) - failures, failed=failures)
    return None


def count_pytest(said: str) -> Counts | None:
    """None where no closing line of pytest is there."""
    if not (closing := PYTEST.search(said)):
        return None
    found = {what: int(number) for number, what in (part.split() for part in closing[1].split(", "))}
    failed = sum(found.get(what, 0) for what in ("failed", "error", "errors"))
    return Counts(found.get("passed", 0) + found.get("xfailed", 0), failed, found.get("skipped", 0))


def count(test: dict) -> Counts:
    said = test.get("stdout", "")
    if test["result"] == "SKIP":
        cases = SKIPPED_CASES.search(said)
        return Counts(skipped=int(cases[1]) if cases else 1)
    cases = count_catch(said) or count_pytest(said)
    if test["result"] in ("OK", "EXPECTEDFAIL"):
        return cases or Counts(passed=1)
    # A program may fail although no case did: a sanitizer's finding at exit, a crash, a time-out.
    return cases if cases and cases.failed else (cases or Counts()).plus(Counts(failed=1))


def report(test: dict) -> str:
    """What a reader needs of a test that failed or was skipped."""
    said = (test.get("stdout", "") + test.get("stderr", "")).strip()
    if test["result"] == "SKIP":
        return f"-- {test['name']}: {said.splitlines()[-1] if said else 'skipped'}"
    return f"== {test['name']} failed ({test['result']}, exit status {test['returncode']})\n{said[-6000:]}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", type=pathlib.Path)
    parser.add_argument("--plus", nargs=3, type=int, action="append", default=[])
    arguments = parser.parse_args()
    total = Counts()
    for log in arguments.logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            test = json.loads(line)
            total = total.plus(count(test))
            if test["result"] not in ("OK", "EXPECTEDFAIL"):
                print(report(test))
    for further in arguments.plus:
        total = total.plus(Counts(*further))
    print(total)
    return 1 if total.failed or total.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
