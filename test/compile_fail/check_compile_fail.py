#!/usr/bin/env python3
"""Code that must not compile. Each source compiles as it stands, and does not where one of its cases is switched on.

A case is a line `#if CASE == n  // text that the compiler must say`. Without switching on a case the file must compile,
so that nothing fails for a reason of its own. Usage: check_compile_fail.py SOURCE INCLUDE COMPILER [ARGUMENT...]
"""

import pathlib
import re
import subprocess
import sys

CASE = re.compile(r"^#(?:el)?if CASE == (\d+)\s*//\s*(.+)$", re.MULTILINE)


def flags_to_explain(compiler: list[str]) -> list[str]:
    """GCC, by whatever name it goes, names the missing member only at a greater depth; clang always does."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return [] if "clang" in version else ["-fconcepts-diagnostics-depth=3"]


def compile_case(compiler: list[str], include: str, source: str, case: int) -> tuple[bool, str]:
    command = [*compiler, "-std=c++20", "-fsyntax-only", f"-I{include}", f"-DCASE={case}", source]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def main() -> int:
    source, include, *compiler = sys.argv[1:]
    compiler += flags_to_explain(compiler)
    cases = [(int(number), words.strip()) for number, words in CASE.findall(pathlib.Path(source).read_text())]
    faults = [] if cases else ["there is no case in the file"]
    compiles, said = compile_case(compiler, include, source, 0)
    if not compiles:
        faults.append(f"does not compile as it stands:\n{said}")
    for number, words in cases:
        compiles, said = compile_case(compiler, include, source, number)
        if compiles:
            faults.append(f"case {number} compiles, but must not: {words}")
        elif words not in said:
            faults.append(f"case {number} fails without saying '{words}':\n{said}")
    print("\n".join(f"{source}: {fault}" for fault in faults) or f"{len(cases)} cases are refused")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
