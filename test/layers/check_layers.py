#!/usr/bin/env python3
"""Holds every include of the project against the table of layers.

A layer may include itself and what `LAYERS` lists for it; `FOREIGN` says where other people's headers may appear and
`FORBIDDEN` where words may not. Usage: check_layers.py ROOT
"""

import fnmatch
import pathlib
import re
import sys
from typing import Iterator, NamedTuple

SOURCE_SUFFIXES = {".hpp", ".h", ".cpp", ".cc", ".c", ".cu", ".cuh"}


def closure(direct: dict[str, list[str]]) -> dict[str, set[str]]:
    """Every layer with all the layers below it; `direct` lists lower layers first."""
    below: dict[str, set[str]] = {}
    for layer, neighbours in direct.items():
        below[layer] = set(neighbours).union(*(below[n] for n in neighbours))
    return below


BACKENDS = ["reference", "backends/cpu", "backends/cuda"]
TRANSPORTS = ["backends/mpi", "backends/nccl"]

# What each layer stands on. Layers that are not below one another never include each other.
LAYERS = closure({
    "core": [],
    "format": ["core"],
    "pack": ["core"],
    "rope": ["core"],
    "quantize": ["format", "pack", "rope"],
    "calibrate": ["quantize"],
    "cache": ["calibrate"],
    "attend": ["cache"],
    "distributed": ["attend"],
    **{backend: ["attend"] for backend in BACKENDS},
    **{transport: ["distributed"] for transport in TRANSPORTS},
    "kvquant.hpp": ["distributed"],
    "engine.hpp": BACKENDS + TRANSPORTS + ["kvquant.hpp"],
    "engines": ["engine.hpp"],
    "runtime": ["engines"],
    "adapters": ["engines"],
    "measure": ["engine.hpp"],
    "tools": ["runtime", "measure"],
    "examples": ["runtime", "adapters"],
    "bench": ["runtime", "measure"],
    "test": ["runtime", "tools", "bench", "adapters", "examples"],
})


class Foreign(NamedTuple):
    """Headers of others (patterns of their names) and the only files (patterns of paths) that may include them."""

    rule: str
    headers: list[str]
    allowed: list[str]


FOREIGN = [
    Foreign("Eigen", ["Eigen/*", "unsupported/Eigen/*"], ["include/kvquant/reference/*", "runtime/*", "test/*"]),
    Foreign("nlohmann/json", ["nlohmann/*"],
            ["include/kvquant/*_io.hpp", "include/kvquant/calibrate/safetensors.hpp", "runtime/*", "tools/*", "bench/*",
             "test/*"]),
    Foreign("xxHash", ["xxhash.h"], ["include/kvquant/*_io.hpp", "runtime/*", "test/*"]),
    Foreign("CUDA", ["cuda*", "cub/*", "cute/*", "cutlass/*", "cooperative_groups*", "device_launch_parameters.h",
                     "mma.h", "nv*.h", "thrust/*"], ["backends/cuda/*", "backends/nccl/*"]),
    Foreign("NCCL", ["nccl*"], ["backends/nccl/*"]),
    Foreign("MPI", ["mpi.h"], ["backends/mpi/*"]),
    Foreign("intrinsics", ["*intrin.h", "arm_*.h"], ["backends/cpu/isa/*"]),
    Foreign("threads", ["thread", "future", "pthread.h", "omp.h"], ["*/thread_pool.hpp", "test/*"]),
    Foreign("Highway", ["hwy/*"], ["backends/cpu/*", "runtime/*"]),
    Foreign("CLI11", ["CLI/*"], ["tools/*"]),
    Foreign("fmt", ["fmt/*"], ["tools/*", "bench/*"]),
    Foreign("Catch2", ["catch2/*"], ["test/*"]),
    Foreign("Google Benchmark", ["benchmark/*"], ["bench/*"]),
    Foreign("ggml", ["ggml*.h"], ["adapters/ggml/*", "bench/baseline/*", "test/adapters/ggml/*"]),
    Foreign("nanobind", ["nanobind/*", "Python.h"], ["adapters/python/*"]),
    Foreign("memory of the system", ["sys/mman.h"], ["include/kvquant/cache/huge_pages.hpp", "runtime/*"]),
    # Whatever else has a folder or a suffix in its name is not C++'s own; the library has no use for it.
    Foreign("standard library only", ["*/*", "*.*"], ["backends/*", "engines/*", "runtime/*", "adapters/*", "tools/*",
                                                      "examples/*", "bench/*", "test/*"]),
]


class Word(NamedTuple):
    rule: str
    pattern: re.Pattern[str]
    allowed: list[str]


FORBIDDEN = [
    Word("threads", re.compile(r"std::(jthread|thread|async)\b|#\s*pragma\s+omp\b"), ["*/thread_pool.hpp", "test/*"]),
    Word("quoted includes", re.compile(r"#\s*include\s+<kvquant/"), []),
]

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
COMMENT = re.compile(r"//.*")


def allowed(path: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def layer_of(path: str) -> str | None:
    """`path` is relative to the root; None where no layer is known."""
    parts = path.split("/")
    if parts[:2] == ["include", "kvquant"]:
        parts = parts[2:]
    elif parts[0] == "backends":
        parts = ["/".join(parts[:2])]
    return parts[0] if parts[0] in LAYERS else None


def resolve(root: pathlib.Path, name: str) -> str | None:
    """The file that a quoted include means: of the library, or counted from the root."""
    for candidate in (f"include/{name}", name):
        if (root / candidate).is_file():
            return candidate
    return None


def check_quoted(root: pathlib.Path, path: str, name: str) -> str | None:
    layer, target = layer_of(path), resolve(root, name)
    if target is None:
        return f'"{name}" is neither "kvquant/…" nor a path from the root'
    other = layer_of(target)
    if layer is None or other is None:
        return f"{path if layer is None else target} belongs to no layer of the table"
    if other != layer and other not in LAYERS[layer]:
        return f"layer {layer} must not include {other} ({name})"
    return None


def check_foreign(path: str, name: str) -> str | None:
    """The first rule that names the header decides."""
    for rule in FOREIGN:
        if allowed(name, rule.headers):
            return None if allowed(path, rule.allowed) else f"{rule.rule}: <{name}> is not for this file"
    return None


def check_line(root: pathlib.Path, path: str, line: str) -> Iterator[str]:
    if include := INCLUDE.match(line):
        quoted, angled = include.groups()
        fault = check_quoted(root, path, quoted) if quoted else check_foreign(path, angled)
        if fault:
            yield fault
    for word in FORBIDDEN:
        if word.pattern.search(COMMENT.sub("", line)) and not allowed(path, word.allowed):
            yield f"{word.rule}: {line.strip()}"


def sources(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder in ("include", "backends", "engines", "runtime", "adapters", "measure", "tools", "examples", "bench",
                   "test"):
        yield from (file for file in sorted((root / folder).rglob("*")) if file.suffix in SOURCE_SUFFIXES)


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for file in sources(root):
        path = file.relative_to(root).as_posix()
        if layer_of(path) is None:
            found.append(f"{path}: belongs to no layer of the table")
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path}:{number}: {fault}" for fault in check_line(root, path, line)]
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    found = violations(root)
    print("\n".join(found) or f"{sum(1 for _ in sources(root))} files keep to their layers")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
