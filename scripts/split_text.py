#!/usr/bin/env python3
"""Cuts a text in two that share nothing: what is measured on, and what is calibrated on.

Usage: split_text.py TEXT FOLDER writes FOLDER/evaluation.txt and FOLDER/calibration.txt
"""

import pathlib
import sys

# 8192 tokens, at the 6 bytes that even a poor tokenizer makes of one, with room to spare.
EVALUATION_BYTES = 64 * 1024


def split_text(text: bytes) -> list[bytes]:
    """The first 64 KiB (of a short text: the first fifth) to the end of a line, and the rest."""
    cut = text.find(b"\n", min(EVALUATION_BYTES, len(text) // 5)) + 1
    if cut == 0:
        raise SystemExit("the text has no line break to be cut at")
    return [text[:cut], text[cut:].lstrip(b"\n")]


def main() -> int:
    text, folder = map(pathlib.Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("evaluation.txt", "calibration.txt"), split_text(text.read_bytes())):
        (folder / name).write_bytes(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
