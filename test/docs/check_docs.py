#!/usr/bin/env python3
"""Code in the documentation is code that runs: each block of C++ or Python after `<!-- FILE:REGION -->` is the region of
that file between `// [doc:REGION]` and `// [/doc]` (`#` in Python), and no other such block is there. Links to files of the
project lead somewhere.

Usage: check_docs.py ROOT
"""

import pathlib
import re
import sys
import textwrap
from typing import Iterator

BLOCK = re.compile(r"(?:<!-- (?P<file>\S+):(?P<region>\w+) -->\n)?```(?P<language>cpp|python)\n(?P<code>.*?)```", re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def region(text: str, name: str) -> str | None:
    found = re.search(rf"^ *(?://|#) \[doc:{name}\]\n(.*?)^ *(?://|#) \[/doc\]", text, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found[1]) if found else None


def faults(root: pathlib.Path, page: pathlib.Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        where = f"{page.relative_to(root)}:{text.count(chr(10), 0, block.start()) + 1}"
        if block["file"] is None:
            yield f"{where}: a block of {block['language']} that no file is named for"
            continue
        expected = region((root / block["file"]).read_text(encoding="utf-8"), block["region"])
        if expected != block["code"]:
            yield f"{where}: differs from region {block['region']} of {block['file']}:\n{expected}"
    for link in LINK.findall(FENCED.sub("", text)):
        if not (page.parent / link).exists():
            yield f"{page.relative_to(root)}: a link to {link}, which is not there"


def pages(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    found = [fault for page in pages(root) for fault in faults(root, page)]
    print("\n".join(found) or f"{len(pages(root))} pages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
