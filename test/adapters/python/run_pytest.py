#!/usr/bin/env python3
"""Runs pytest on some files of this folder, or is skipped, saying so, where what it needs is missing.
Usage: run_pytest.py [FILE...], none where the package was not built."""

import importlib.util
import pathlib
import sys

SKIPPED = 77
NOTHING_RAN = 5  # pytest's, where every file was skipped as a whole


def main() -> int:
    if not sys.argv[1:]:
        print("skipped: the Python package was not built, its Python lacks nanobind (scripts/python_environment)")
        return SKIPPED
    missing = [name for name in ("numpy", "pytest") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} of Python are missing (scripts/python_environment)")
        return SKIPPED
    import pytest

    folder = pathlib.Path(__file__).resolve().parent
    status = int(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", "--color=no", "--rootdir", str(folder),
                                 *(str(folder / name) for name in sys.argv[1:])]))
    return SKIPPED if status == NOTHING_RAN else status


if __name__ == "__main__":
    sys.exit(main())
