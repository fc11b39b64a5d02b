#!/usr/bin/env python3
"""Compiles every public header that needs no other library under nvcc, where any warning is an error.

Usage: check_nvcc.py INCLUDE; exits with 77 (skipped) without nvcc.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<((?:Eigen/|nlohmann/|xxhash)[^>]+)>)', re.MULTILINE)


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def stands_alone(include: pathlib.Path, header: str) -> bool:
    """False where the header or one that it includes wants Eigen, nlohmann/json or xxHash."""
    seen, waiting = set(), [header]
    while waiting:
        header = waiting.pop()
        if header in seen:
            continue
        seen.add(header)
        for ours, foreign in INCLUDE.findall((include / header).read_text(encoding="utf-8")):
            if foreign:
                return False
            waiting.append(ours)
    return True


def main() -> int:
    include, nvcc = pathlib.Path(sys.argv[1]), find_nvcc()
    if nvcc is None:
        print("skipped: nvcc is neither in PATH nor in /usr/local/cuda/bin")
        return SKIPPED
    headers = sorted(str(header.relative_to(include)) for header in include.rglob("*.hpp"))
    headers = [header for header in headers if stands_alone(include, header)]
    with tempfile.TemporaryDirectory() as folder:
        unit = pathlib.Path(folder, "headers.cu")
        unit.write_text("".join(f'#include "{header}"\n' for header in headers), encoding="utf-8")
        command = [nvcc, "-std=c++20", "-Werror", "all-warnings", f"-I{include}", "-c", unit, "-o", f"{folder}/headers.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout + done.stderr + f"{len(headers)} headers under {nvcc}: exit status {done.returncode}")
    return 0 if done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
