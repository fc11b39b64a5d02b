#!/usr/bin/env python3
"""docs/artifact_format.md and docs/cache_format.md are held to files: those in the tree are read by the pages' rules
alone, and every member that a file has is named on its page.

Usage: test_formats.py ROOT
"""

import json
import pathlib
import re
import struct
import subprocess
import sys
import unittest
from typing import Any, Iterator

ROOT = pathlib.Path(sys.argv[1]).resolve()
ARTIFACT = ROOT / "test" / "calibrate" / "golden" / "nuq3.kvq"
SEQUENCES = ROOT / "test" / "fuzz" / "corpus" / "sequence"
SIZES = {"F16": 2, "F32": 4, "F64": 8, "U64": 8, "U16": 2, "U8": 1}


def named_on(page: str) -> set[str]:
    """Words in code on a page."""
    spans = re.findall(r"`([^`\n]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return {word for span in spans for word in re.findall(r"\w+", span)}


def members(value: Any) -> Iterator[str]:
    """Names of all members, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from members(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from members(inner)


def fnv1a(*parts: bytes) -> str:
    state = 0xCBF29CE484222325
    for part in parts:
        for byte in part:
            state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def half(data: bytes, at: int) -> float:
    return struct.unpack_from("<e", data, at)[0]


class Artifact(unittest.TestCase):
    def setUp(self) -> None:
        self.file = ARTIFACT.read_bytes()
        begin = 8 + int.from_bytes(self.file[:8], "little")
        self.assertEqual(begin % 8, 0)
        self.header = json.loads(self.file[8:begin])
        self.data = self.file[begin:]
        self.metadata = self.header.pop("__metadata__")
        self.description = json.loads(self.metadata["description"])

    def test_container(self) -> None:
        self.assertEqual(set(self.metadata), {"kind", "version", "description", "hash"})
        self.assertEqual((self.metadata["kind"], self.metadata["version"]), ("kvquant-artifact", "1"))
        self.assertEqual(self.metadata["hash"], fnv1a(self.metadata["description"].encode(), self.data))

    def test_tensors(self) -> None:
        shape = self.description["info"]["shape"]
        layers, channels = shape["layers"], shape["kv_heads"] * shape["head_dim"]
        expected = {"key.ranges": ("F16", [layers, 2 * channels])}
        for side in ("key", "value"):
            expected |= {f"{side}.levels": ("F32", [layers, 8]), f"{side}.decode_levels": ("F32", [layers, 8]),
                         f"{side}.sensitivity": ("F32", [layers, channels])}
        self.assertEqual({name: (it["dtype"], it["shape"]) for name, it in self.header.items()}, expected)
        at = 0
        for name in expected:  # in the order of the page's table
            begin, end = self.header[name]["data_offsets"]
            size = SIZES[expected[name][0]] * expected[name][1][0] * expected[name][1][1]
            self.assertEqual((begin, end), (at, at + size), name)
            at = end
        self.assertEqual(at, len(self.data))

    def test_every_member_is_on_the_page(self) -> None:
        self.assertEqual(sorted(set(members(self.description)) - named_on("artifact_format.md")), [])

    def test_the_page_s_program(self) -> None:
        page = (ROOT / "docs" / "artifact_format.md").read_text(encoding="utf-8")
        program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
        check = "print(tensors['key.ranges'].shape, description['info']['spec'])"
        done = subprocess.run([sys.executable, "-c", program + check, str(ARTIFACT)], capture_output=True, text=True)
        if "No module named 'numpy'" in done.stderr:
            self.skipTest("numpy is missing")
        shape = self.description["info"]["shape"]
        self.assertEqual(done.stdout.strip(),
                         f"({shape['layers']}, {2 * shape['kv_heads'] * shape['head_dim']}) nuq3", done.stderr)


class Sequence(unittest.TestCase):
    def read(self, name: str) -> tuple[int, dict, bytes]:
        file = (SEQUENCES / name).read_bytes()
        magic, version, length, data_bytes, _ = struct.unpack_from("<8sIIQQ", file)
        self.assertEqual(magic, b"KVQSEQ\r\n")
        begin = (32 + length + 63) // 64 * 64
        self.assertEqual(file[32 + length:begin].strip(b"\0"), b"")
        self.assertEqual(len(file), begin + data_bytes)
        return version, json.loads(file[32:32 + length]), file[begin:]

    def check(self, name: str, expected_version: int) -> None:
        version, it, data = self.read(name)
        self.assertEqual(version, expected_version)
        self.assertEqual(sorted(set(members(it)) - named_on("cache_format.md")), [])
        self.assertEqual(it["tokens"], it["sinks"] + it["sealed"] + it["tail_tokens"])
        channels, elements = it["kv_heads"] * it["head_dim"], 64 * it["head_dim"]
        codes = [elements * it[f"{side}_bits"] // 8 for side in "kv"]
        used = sum(codes) + 256 + 4 * (it["k_slots"] + it["v_slots"])
        page_bytes = (used + 63) // 64 * 64
        exact = 2 * 2 * (it["sinks"] + it["tail_tokens"]) * channels
        at = 0
        for layer in range(it["layers"]):
            rows = data[at:at + exact]
            at += exact
            self.assertEqual(data[at:(at + 63) // 64 * 64].strip(b"\0"), b"")
            at = (at + 63) // 64 * 64
            self.assertTrue(all(abs(half(rows, i)) <= 65504 for i in range(0, exact, 2)))
            gone = it["gone"]["pages"] if layer in it.get("gone", {}).get("layers", []) else 0
            for _ in range(((it["sealed"] + 63) // 64 - gone) * it["kv_heads"]):
                self.check_page(data[at:at + page_bytes], it, sum(codes))
                at += page_bytes
        self.assertEqual(at, len(data))

    def check_page(self, page: bytes, it: dict, at: int) -> None:
        for token in range(64):
            self.assertLessEqual(half(page, at + 4 * token), half(page, at + 4 * token + 2))
        at += 256
        for slots in (it["k_slots"], it["v_slots"]):
            indices = [struct.unpack_from("<H", page, at + 4 * slot)[0] for slot in range(slots)]
            self.assertEqual(indices, sorted(set(indices)))
            self.assertTrue(all(index < 64 * it["head_dim"] for index in indices))
            at += 4 * slots
        self.assertEqual(page[at:].strip(b"\0"), b"")

    def test_whole(self) -> None:
        for name in ("empty.kvs", "sinks.kvs", "page.kvs", "reopened.kvs"):
            with self.subTest(name=name):
                self.check(name, 1)

    def test_windowed(self) -> None:
        self.check("windowed.kvs", 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
