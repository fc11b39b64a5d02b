#!/usr/bin/env python3
"""Runs a Catch2 program that needs the model which an environment variable names; without one, says how many cases are
skipped and exits with 77.

Usage: with_model.py VARIABLE PROGRAM [ARGUMENT...]
"""

import os
import subprocess
import sys

SKIPPED = 77


def main() -> int:
    variable, *command = sys.argv[1:]
    if os.path.isfile(os.environ.get(variable, "")):
        return subprocess.run(command).returncode
    names = subprocess.run([*command, "--list-test-names-only"], capture_output=True, text=True).stdout
    print(f"skipped: {len(names.splitlines())} cases: {variable} names no file")
    return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
