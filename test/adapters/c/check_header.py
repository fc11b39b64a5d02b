#!/usr/bin/env python3
"""Compiles a C header alone, twice in one translation unit, as strict C11 and as C++11, with every compiler that is there.

Usage: check_header.py HEADER
"""

import pathlib
import shutil
import subprocess
import sys

FLAGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]
LANGUAGES = {"gcc": ["-x", "c", "-std=c11"], "clang": ["-x", "c", "-std=c11"], "g++": ["-x", "c++", "-std=c++11"],
             "clang++": ["-x", "c++", "-std=c++11"]}


def check(compiler: str, header: pathlib.Path) -> str:
    """The compiler's complaints, empty where there are none."""
    unit = f'#include "{header.name}"\n#include "{header.name}"\nint main(void) {{ return KVQUANT_OK; }}\n'
    command = [compiler, *FLAGS, *LANGUAGES[compiler], f"-I{header.parent}", "-"]
    done = subprocess.run(command, input=unit, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{' '.join(command)}:\n{done.stderr}"


def main() -> int:
    header = pathlib.Path(sys.argv[1]).absolute()
    compilers = [name for name in LANGUAGES if shutil.which(name)]
    faults = [fault for name in compilers if (fault := check(name, header))]
    print("\n".join(faults) or f"{header.name} compiles with {', '.join(compilers)}")
    return 1 if faults or not compilers else 0


if __name__ == "__main__":
    sys.exit(main())
