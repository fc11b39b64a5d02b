"""What the tests of the command line tool share. A module is run as: MODULE KVQUANT WRITE_TINY_MODEL [TEST...]"""

import ast
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

KVQUANT, WRITE_TINY_MODEL = (str(pathlib.Path(path).absolute()) for path in sys.argv[1:3])
LAYERS, KV_HEADS = 2, 2  # of the tiny models
WORDS = "alpha beta gamma delta of the and quick".split()


def main() -> None:
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])


def read_npy(path: pathlib.Path) -> list[tuple[float, ...]]:
    """The rows of a float64 array of two dimensions.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    content = path.read_bytes()
    magic, major, minor, length = struct.unpack_from("<6sBBH", content)
    header = content[10:10 + length].decode("ascii")
    assert (magic, major, minor) == (b"\x93NUMPY", 1, 0), (magic, major, minor)
    assert (10 + length) % 64 == 0 and header.endswith("\n"), header
    described = ast.literal_eval(header.strip())
    assert (described["descr"], described["fortran_order"]) == ("<f8", False), described
    rows, columns = described["shape"]
    values = struct.unpack(f"<{rows * columns}d", content[10 + length:])
    return [values[row * columns:(row + 1) * columns] for row in range(rows)]


def read_safetensors(path: pathlib.Path) -> tuple[dict, dict]:
    """Metadata, and tensors by name as (shape, values)."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + length])
    metadata, tensors = header.pop("__metadata__"), {}
    letters = {"F16": "e", "F32": "f", "F64": "d", "U64": "Q", "U16": "H", "U8": "B"}
    for name, it in header.items():
        begin, end = it["data_offsets"]
        letter = letters[it["dtype"]]
        count = (end - begin) // struct.calcsize(letter)
        tensors[name] = it["shape"], struct.unpack_from(f"<{count}{letter}", content, 8 + length + begin)
    return metadata, tensors


def random_text(size: int, seed: int = 1) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(size // 3))[:size]


class ToolCase(unittest.TestCase):
    """A temporary folder with a tiny model (each byte is a token; 2 layers, 2 KV heads x 32) and a text of
    3000 bytes.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = self.write_model("model.gguf")
        self.text = self.folder / "text.txt"
        self.text.write_text(random_text(3000))

    def write_model(self, name: str, *options: str) -> pathlib.Path:
        """Without BOS and with heads of 32 channels, which all baselines can do, unless options say otherwise."""
        path = self.folder / name
        subprocess.run([WRITE_TINY_MODEL, str(path), "--head-dim", "32", *options], check=True)
        return path

    def run_tool(self, *words: str | pathlib.Path, **options) -> subprocess.CompletedProcess:
        return subprocess.run([KVQUANT, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              cwd=self.folder, timeout=600, **options)

    def succeed(self, *words: str | pathlib.Path, **options) -> str:
        """Standard output. Standard error, which is no terminal here, stays empty."""
        done = self.run_tool(*words, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ""), words)
        return done.stdout

    def succeed_json(self, *words: str | pathlib.Path) -> dict:
        path = self.folder / "result.json"
        self.assertEqual(self.succeed(*words, "--quiet", "--json", path), "")
        return json.loads(path.read_text())

    def expect_error(self, status: int, said: list[str], *words: str | pathlib.Path, **options) -> None:
        """One line on stderr that holds all of `said`, nothing on stdout, no file changed, left or missing."""
        before = self.contents()
        done = self.run_tool(*words, **options)
        self.assertEqual(done.returncode, status, (words, done.stderr))
        self.assertEqual(done.stdout, "", words)
        self.assertRegex(done.stderr, r"\Akvquant: [^\n]+\n\Z")
        for part in said:
            self.assertIn(part, done.stderr)
        self.assertEqual(self.contents(), before, words)

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def calibrate(self, output: str, *options: str | pathlib.Path, model: pathlib.Path | None = None,
                  samples: int = 3) -> pathlib.Path:
        """The artifact `output`, from windows of 64 tokens; {bits} in it stays for the caller to replace."""
        self.succeed("calibrate", model or self.model, "--text", self.text, "--samples", str(samples), "--context",
                     "64", "--quiet", "-o", output, *options)
        return self.folder / output
