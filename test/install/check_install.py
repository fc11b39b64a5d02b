#!/usr/bin/env python3
"""Installs into a temporary prefix, moves it, and builds and runs a small consumer against it.

Usage: check_install.py WAY SOURCE BUILD COMPILER..., a WAY of `WAYS` below; exits with 77 (skipped) where the tool that
is being tested with is missing.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
HERE = pathlib.Path(__file__).parent
IGNORED = shutil.ignore_patterns(".git", "build*", "subprojects", "__pycache__")


def run(*command: str | pathlib.Path, **options) -> str:
    """Standard output; a failing command ends the test with everything that it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def need(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        print(f"skipped: {tool} is not installed")
        sys.exit(SKIPPED)
    return path


def install(build: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    """Installs under work/staged and moves the prefix: nothing in it may remember where it was."""
    run("meson", "install", "-C", build, "--no-rebuild", env={**os.environ, "DESTDIR": str(work / "staged")})
    options = {o["name"]: o["value"] for o in json.loads(run("meson", "introspect", "--buildoptions", build))}
    moved = work / "moved"
    shutil.move(work / "staged" / options["prefix"].lstrip("/"), moved)
    return moved


def write_project(work: pathlib.Path, consumer: str, build_file: str, name: str) -> pathlib.Path:
    project = work / "consumer"
    project.mkdir()
    shutil.copy(HERE / consumer, project)
    shutil.copy(HERE / build_file, project / name)
    return project


def ask_pkg_config(prefix: pathlib.Path, *query: str) -> list[str]:
    where = ":".join(str(it.parent) for it in prefix.rglob("*.pc"))
    command = [need("pkg-config"), f"--define-variable=prefix={prefix}", *query]
    return run(*command, env={**os.environ, "PKG_CONFIG_PATH": where}).split()


def with_pkg_config(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cxx: list[str],
                    package: str = "kvquant", consumer: str = "consumer") -> pathlib.Path:
    need("pkg-config")
    prefix = install(build, work)
    flags = ask_pkg_config(prefix, "--cflags", "--libs", package)
    run(*cxx, "-std=c++20", HERE / f"{consumer}.cpp", *flags, "-o", work / "program")
    return work / "program"


def c_with_pkg_config(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cc: list[str]) -> pathlib.Path:
    """Against the static library, which is run here, and the shared one."""
    need("pkg-config")
    prefix = install(build, work)
    includes = ask_pkg_config(prefix, "--cflags", "kvquant-c")
    (folder,) = {path.parent for path in prefix.rglob("libkvquant.a")}
    compile_it = [*cc, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", HERE / "consumer.c", *includes]
    private = [it for it in ask_pkg_config(prefix, "--libs", "--static", "kvquant-c") if it != "-lkvquant"]
    run(*compile_it, folder / "libkvquant.a", *private, "-o", work / "static_program")
    print(run(work / "static_program"), end="")
    shared = ask_pkg_config(prefix, "--libs", "kvquant-c")
    run(*compile_it, *shared, f"-Wl,-rpath,{folder}", "-o", work / "program")
    return work / "program"


def with_cmake(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cxx: list[str],
               consumer: str = "consumer") -> pathlib.Path:
    tool = need("cmake")
    prefix = install(build, work)
    project = write_project(work, f"{consumer}.cpp", f"{consumer}.cmake", "CMakeLists.txt")
    run(tool, "-S", project, "-B", work / "out", f"-DCMAKE_PREFIX_PATH={prefix}", env={**os.environ, "CXX": cxx[-1]})
    run(tool, "--build", work / "out")
    return work / "out" / "consumer"


def with_subproject(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cxx: list[str]) -> pathlib.Path:
    tool = need("meson")
    project = write_project(work, "consumer.cpp", "consumer.meson", "meson.build")
    shutil.copytree(source, project / "subprojects" / "kvquant", ignore=IGNORED)
    run(tool, "setup", work / "out", project, env={**os.environ, "CXX": " ".join(cxx)})
    targets = [target["name"] for target in json.loads(run(tool, "introspect", "--targets", work / "out"))]
    if targets != ["consumer"] or json.loads(run(tool, "introspect", "--tests", work / "out")):
        sys.exit(f"a subproject must add no target and no test of its own, found {targets}")
    run(tool, "compile", "-C", work / "out")
    return work / "out" / "consumer"


WAYS = {
    "pkg-config": with_pkg_config,
    "cmake": with_cmake,
    "subproject": with_subproject,
    "c-pkg-config": c_with_pkg_config,
    "cpu-pkg-config": functools.partial(with_pkg_config, package="kvquant-cpu", consumer="cpu_consumer"),
    "cpu-cmake": functools.partial(with_cmake, consumer="cpu_consumer"),
    "cuda-pkg-config": functools.partial(with_pkg_config, package="kvquant-cuda", consumer="cuda_consumer"),
    "cuda-cmake": functools.partial(with_cmake, consumer="cuda_consumer"),
}
NO_DEVICE = {"CUDA_VISIBLE_DEVICES": ""}


def main() -> int:
    way, source, build, *compiler = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        program = WAYS[way](pathlib.Path(folder), pathlib.Path(source), pathlib.Path(build), compiler)
        print(run(program, env={**os.environ, **NO_DEVICE}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
