#!/usr/bin/env python3
"""Compiles public headers alone, twice in one translation unit, without a warning.

Usage: check_headers.py INCLUDE COMPILER [HEADER...], every header of the folder INCLUDE by default; exits with 77
(skipped) where the compiler is missing.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]
SYSTEM_INCLUDES = ["-isystem", "/usr/include/eigen3"]


def check(compiler: str, include: pathlib.Path, header: str) -> str:
    """The compiler's complaints, empty where there are none."""
    unit = f'#include "{header}"\n#include "{header}"\n'
    command = [compiler, *FLAGS, *SYSTEM_INCLUDES, f"-I{include}", "-x", "c++", "-"]
    done = subprocess.run(command, input=unit, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{header} does not compile alone:\n{done.stderr}"


def main() -> int:
    include, compiler, headers = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if shutil.which(compiler) is None:
        print(f"skipped: {compiler} is not installed")
        return SKIPPED
    headers = headers or sorted(str(header.relative_to(include)) for header in include.rglob("*.hpp"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as workers:
        faults = [fault for fault in workers.map(lambda header: check(compiler, include, header), headers) if fault]
    print("\n".join(faults) or f"{len(headers)} headers compile alone")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
