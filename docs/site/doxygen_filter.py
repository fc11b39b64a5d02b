#!/usr/bin/env python3
"""What Doxygen 1.9 reads in place of a header, line for line: a comment on `T a, b;` is of both, and comparisons that
are defaulted are not there.

Usage: doxygen_filter.py HEADER
"""

import pathlib
import re
import sys

DEFAULTED = re.compile(r"^ *friend (constexpr )?bool operator==.*= default;$")
BEHIND = re.compile(r"^(?P<code>[^/]*;) *///< ?(?P<text>.*)$")
ABOVE = re.compile(r"^ */// ?(?P<text>.*)$")
NO_DECLARATION = re.compile(r"(using|template|return|for|friend|case)\b")
FIRST = re.compile(r"^(?P<type>.*?)\s\*?\w+\s*(=.*|\{.*\})?$")
OTHER = re.compile(r"^ \*?\w+ ?(=.*|\{.*\})?$")
OPENING, CLOSING = "(<{[", ")>}]"


def declarators(code: str) -> list[str]:
    """`T a = 1, b{}` at its commas, those in brackets aside."""
    parts, depth = [""], 0
    for character in code:
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def split(code: str) -> list[str]:
    """A declaration for each variable of one; anything else as it is."""
    first, *others = declarators(code.strip().removesuffix(";"))
    head = FIRST.match(first)
    if not others or "(" in first or NO_DECLARATION.match(first) or not head or not all(map(OTHER.match, others)):
        return [code]
    return [f"{it};" for it in [first, *(head["type"] + other for other in others)]]


def filtered(text: str) -> str:
    """All of a header, with as many lines."""
    out: list[str] = []
    above: list[str] = []
    for line in text.split("\n"):
        behind = BEHIND.match(line)
        code, own = (behind["code"], [behind["text"]]) if behind else (line, [])
        if DEFAULTED.match(line):
            line = ""
        elif code.endswith(";") and not code.lstrip().startswith("//") and len(parts := split(code)) > 1:
            comment = " ".join([*above, *own])
            line = " ".join(f"{it} /**< {comment} */" if comment else it for it in parts)
            out[len(out) - len(above) :] = [""] * len(above)
        comment_line = ABOVE.match(line)
        above = [*above, comment_line["text"]] if comment_line and not comment_line["text"].startswith("<") else []
        out.append(line)
    return "\n".join(out)


if __name__ == "__main__":
    sys.stdout.write(filtered(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")))
