"""The programs that docs/python.md quotes."""

import pathlib
import re
import subprocess
import sys

import kvquant

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_the_walkthrough(tmp_path: pathlib.Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / "python" / "walkthrough.py"), str(tmp_path)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("nuq3-1%: ") and "keys off by " in lines[0]
    assert lines[1].startswith("301 tokens in ")
    assert "dtype float64, expected float32" in lines[2] and "shape (300, 4, 32)" in lines[3]
    assert lines[4].startswith("bad_value: ")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.stats", "mine.kvq", "chat.kvs"}


def test_a_runtime_is_ported() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / "python" / "port_a_runtime.py")], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["floats", "f16, 0 sinks", "nuq4-1%, weights activation"]
    moved = [float(re.search(r"move by ([0-9.]+)", line)[1]) for line in lines[1:]]
    assert moved[0] < 1e-4 < moved[1] < 0.02
    size = [int(re.search(r"([0-9]+) bytes", line)[1]) for line in lines[1:]]
    assert size[1] < size[0] / 3


def test_an_artifact_is_read_without_the_library(artifact: kvquant.Artifact, tmp_path: pathlib.Path) -> None:
    artifact.save(tmp_path / "a.kvq")
    done = subprocess.run([sys.executable, str(ROOT / "examples" / "python" / "read_artifact.py"), str(tmp_path / "a.kvq")],
                          capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "kvquant-artifact nuq3"
    assert {"key.ranges 2 128", "key.levels 2 8", "value.decode_levels 2 8"} <= set(lines)
