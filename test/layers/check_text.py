#!/usr/bin/env python3
"""No file names a folder of somebody's machine, and none promises work for later. Usage: check_text.py ROOT"""

import os
import pathlib
import re
import sys
from typing import Iterator

SKIPPED_FOLDERS = re.compile(r"^(\.git|\.cache|build.*|subprojects|__pycache__)$")

# Written in pieces so that this file passes its own check.
RULES = {
    "a path of one machine": re.compile(
        r"(^|[^A-Za-z0-9_./$}])/(wo" r"rk|ro" r"ot|ho" r"me/[a-z]\w*|Us" r"ers/\w+|mnt/\w+)/|\b[A-Z]:\\\\?Us" r"ers"),
    "a promise of later work": re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b"),
}


def files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for start in (root, root / "subprojects" / "ptxrun"):  # the subproject that is ours
        for folder, folders, names in os.walk(start):
            folders[:] = sorted(name for name in folders if not SKIPPED_FOLDERS.match(name))
            yield from (pathlib.Path(folder, name) for name in sorted(names))


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for file in files(root):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a seed of the fuzzers, say
        for number, line in enumerate(lines, 1):
            found += [f"{file.relative_to(root)}:{number}: {rule}: {line.strip()}"
                      for rule, pattern in RULES.items() if pattern.search(line)]
    return found


def self_test() -> None:
    planted = ["see /wo" "rk/main/x", '"/ro' 'ot/.cache"', "// TO" "DO: later", "/ho" "me/anna/models/a.gguf"]
    innocent = ["/usr/local/cuda/bin", "../work/x", "$HOME/work/", "https://example.org/work/x", "TODOS"]
    for line in planted:
        assert any(rule.search(line) for rule in RULES.values()), line
    for line in innocent:
        assert not any(rule.search(line) for rule in RULES.values()), line


def main() -> int:
    self_test()
    found = violations(pathlib.Path(sys.argv[1]))
    print("\n".join(found) or "clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
