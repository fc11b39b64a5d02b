#!/usr/bin/env python3
"""The shared library exports what the golden list names and the header declares, nothing else.

Usage: check_exports.py LIBRARY HEADER GOLDEN; exits with 77 (skipped) where nm is missing.
"""

import pathlib
import re
import shutil
import subprocess
import sys

SKIPPED = 77
DECLARED = re.compile(r"^KVQUANT_API\s[^;(]*?(\w+)\(", re.MULTILINE)


def exported(library: pathlib.Path) -> set[str]:
    """Names with the kinds of their symbols: T is code, D, B and R are data, W and u what compilers merge."""
    said = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {" ".join(line.split()[-2:]) for line in said.splitlines()}


def main() -> int:
    library, header, golden = (pathlib.Path(path) for path in sys.argv[1:])
    if shutil.which("nm") is None:
        print("skipped: nm is not installed")
        return SKIPPED
    lists = {
        "the library": exported(library),
        "the header": {f"T {name}" for name in DECLARED.findall(header.read_text(encoding="utf-8"))},
    }
    expected = {f"T {name}" for name in golden.read_text(encoding="utf-8").split()}
    faults = [f"{where}: {name}{'' if name in found else ' is missing'}{' is not in the list' if name in found else ''}"
              for where, found in lists.items() for name in sorted(found ^ expected)]
    print("\n".join(faults) or f"{len(expected)} functions")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
