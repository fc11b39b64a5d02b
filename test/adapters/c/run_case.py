#!/usr/bin/env python3
"""Lets WRITER fill a temporary folder, and runs PROGRAM on it: as it is, or under valgrind, where every error and every
leak counts. Usage: run_case.py [--valgrind] WRITER PROGRAM [NAME...]; the program is given the folder, or of each NAME
its path in the folder. Exits with 77 (skipped) where valgrind is missing.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite,possible"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--valgrind", action="store_true")
    parser.add_argument("writer", type=pathlib.Path)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if arguments.valgrind and shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed")
        return SKIPPED
    environment = dict(os.environ)
    if arguments.valgrind:
        environment.setdefault("KVQUANT_ISA", "portable")  # of AVX-512 valgrind knows nothing
        environment["KVQUANT_TEST_UNDER_VALGRIND"] = "1"  # which ends programs whose memory runs out
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([arguments.writer, folder], check=True, env=environment)
        places = [os.path.join(folder, name) for name in arguments.names] or [folder]
        command = [*(VALGRIND if arguments.valgrind else []), arguments.program, *places]
        return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
