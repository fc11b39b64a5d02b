#!/usr/bin/env python3
"""Code in the documentation is code that runs: each block of C, C++ or Python after `<!-- FILE:REGION -->` is the region
of that file between `// [doc:REGION]` and `// [/doc]` (`/* */` in C, `#` in Python), and no other such block is there.
Links to files of the project lead somewhere, and to a heading where they name one.

Usage: check_docs.py ROOT [--write]    (--write: puts the regions into the pages)
"""

import functools
import os
import pathlib
import re
import sys
import textwrap
from typing import Iterator

BLOCK = re.compile(r"(?:<!-- (?P<file>\S+):(?P<region>\w+) -->\n)?```(?P<language>c|cpp|python)\n(?P<code>.*?)```",
                   re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)(?P<file>[^)#\s]*)(?:#(?P<heading>[^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def region(text: str, name: str) -> str | None:
    found = re.search(rf"^ *(?://|/\*|#) \[doc:{name}\](?: \*/)?\n(.*?)^ *(?://|/\*|#) \[/doc\]", text,
                      re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found[1]) if found else None


@functools.cache
def anchors(page: pathlib.Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    titles = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower().strip()).replace(" ", "-") for title in titles}


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
    for link in LINK.finditer(FENCED.sub("", text)):
        target = pathlib.Path(os.path.normpath(page.parent / link["file"])) if link["file"] else page
        if not target.exists():
            yield f"{page.relative_to(root)}: a link to {link['file']}, which is not there"
        elif link["heading"] and target.suffix == ".md" and link["heading"] not in anchors(target):
            yield f"{page.relative_to(root)}: a link to {link['file']}#{link['heading']}, which has no such heading"


def write(root: pathlib.Path, page: pathlib.Path) -> None:
    """Puts the regions that a page names into it."""
    def filled(block: re.Match[str]) -> str:
        code = region((root / block["file"]).read_text(encoding="utf-8"), block["region"]) if block["file"] else None
        return block[0] if code is None else f"<!-- {block['file']}:{block['region']} -->\n```{block['language']}\n{code}```"
    text = page.read_text(encoding="utf-8")
    page.write_text(BLOCK.sub(filled, text), encoding="utf-8")


def pages(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def main() -> int:
    root = pathlib.Path(sys.argv[1]).resolve()
    if "--write" in sys.argv[2:]:
        for page in pages(root):
            write(root, page)
    found = [fault for page in pages(root) for fault in faults(root, page)]
    print("\n".join(found) or f"{len(pages(root))} pages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
