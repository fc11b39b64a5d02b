#!/usr/bin/env python3
"""Compiles and runs examples in an empty folder that has nothing but the one header, without a warning.

Usage: check_single.py SOURCE COMPILER EXAMPLE[:PART]..., with a compiler or `cmake` and the lines of docs/install.md;
exits with 77 (skipped) where it is missing.
"""

import pathlib
import re
import sys
import tempfile

from check_install import need, run

FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
HEADER = "kvquant_single.hpp"
CMAKE = re.compile(r"```cmake\n(.*?)```", re.DOTALL)
OURS = re.compile(r'(#include "(kvquant|backends)/[^"]+"\n)+')


def with_one_include(text: str) -> str:
    """As a program of somebody who has the one file would say it."""
    return OURS.sub(f'#include "{HEADER}"\n', text).replace('"examples/support.hpp"', '"support.hpp"')


def compile_by_cmake(source: pathlib.Path, example: str, folder: pathlib.Path) -> None:
    """By what the page says, with the header where it says."""
    lines = CMAKE.search((source / "docs" / "install.md").read_text(encoding="utf-8"))[1]
    place = folder / re.search(r"INTERFACE (third_party/\S+)\)", lines)[1]
    place.mkdir(parents=True)
    (folder / HEADER).rename(place / HEADER)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(consumer CXX)\nset(CMAKE_CXX_EXTENSIONS OFF)\n" + lines +
        f"add_executable(program {example}.cpp)\ntarget_link_libraries(program PRIVATE kvquant)\n", encoding="utf-8")
    run("cmake", ".", cwd=folder)
    run("cmake", "--build", ".", cwd=folder)


def build(source: pathlib.Path, compiler: str, example: str, part: str, folder: pathlib.Path) -> None:
    folder.mkdir()
    parts = [f"--with={part}"] if part else []
    print(run(source / "scripts" / "amalgamate", *parts, "-o", HEADER, cwd=folder).strip())
    for name in (f"{example}.cpp", "support.hpp"):
        text = (source / "examples" / name).read_text(encoding="utf-8")
        (folder / name).write_text(with_one_include(text), encoding="utf-8")
    if compiler == "cmake":
        compile_by_cmake(source, example, folder)
    else:
        run(compiler, *FLAGS, f"{example}.cpp", "-o", "program", cwd=folder)
    print(run(folder / "program", cwd=folder).strip())


def main() -> int:
    source, compiler, *examples = sys.argv[1:]
    need(compiler)
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(examples):
            example, _, part = name.partition(":")
            build(pathlib.Path(source), compiler, example, part, pathlib.Path(folder) / str(index))
    return 0


if __name__ == "__main__":
    sys.exit(main())
