#!/usr/bin/env python3
"""Packs the library as package managers do, and builds and runs a consumer of the package.

Usage: check_recipes.py {conan|port} SOURCE BUILD CXX...
`conan` runs the client with a folder of its own and no network, `port` runs vcpkg's port without vcpkg. Exits with 77
(skipped) where a tool is missing.
"""

import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

from check_install import IGNORED, install, need, run, write_project

OF_THE_SYSTEM = ["highway/1.0.3", "nlohmann_json/3.11.2", "xxhash/0.8.1", "eigen/3.4.0"]  # what Debian 12 has, say


def headers(include: pathlib.Path) -> set[str]:
    """Without CUDA's, which recipes of headers alone do not pack."""
    found = {file.relative_to(include).as_posix() for file in include.rglob("*") if file.is_file()}
    return {name for name in found if not name.startswith("kvquant-backends/backends/cuda/")}


def require_same_headers(packed: pathlib.Path, work: pathlib.Path, build: pathlib.Path) -> None:
    # The packages have no C library, and not its header.
    if difference := headers(packed) ^ headers(install(build, work) / "include") - {"kvquant.h"}:
        sys.exit(f"the package and Meson's installation differ in {sorted(difference)}")


def version_of(source: pathlib.Path) -> str:
    return re.search(r"version: '([^']+)'", (source / "meson.build").read_text(encoding="utf-8"))[1]


def with_conan(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cxx: list[str]) -> str:
    """Packs with no option, builds against the package with all of them and what they need taken as the system's."""
    tool = need("conan")
    need("cmake")
    tree, profile = work / "tree", work / "with_all"
    shutil.copytree(source, tree, ignore=IGNORED)  # the client writes beside the recipe
    profile.write_text("include(default)\n[platform_requires]\n" + "".join(f"{it}\n" for it in OF_THE_SYSTEM))
    environment = {**os.environ, "CONAN_HOME": str(work / "conan"), "CXX": cxx[-1]}
    reference = f"kvquant/{version_of(source)}"
    offline = ["--no-remote", "-s", "compiler.cppstd=20"]
    options = [f"--options=kvquant/*:{name}=True" for name in ("cpu", "io", "reference")]

    def conan(*command: str | pathlib.Path) -> str:
        return run(tool, *command, env=environment)

    conan("profile", "detect")
    conan("create", tree / "packaging/conan", "--test-folder=", *offline)
    conan("test", tree / "packaging/conan/test_package", reference, "--profile", profile, *offline, *options)
    listed = json.loads(conan("list", f"{reference}:*", "--format=json"))["Local Cache"][reference]
    package, = next(iter(listed["revisions"].values()))["packages"]  # one, whatever the options
    folder = conan("cache", "path", f"{reference}:{package}").strip()
    require_same_headers(pathlib.Path(folder) / "include", work, build)
    return f"{reference}: packed, built against and run"


def build_consumer(work: pathlib.Path, cxx: list[str], *options: str) -> str:
    project = write_project(work, "consumer.cpp", "consumer.cmake", "CMakeLists.txt")
    run("cmake", "-S", project, "-B", work / "out", *options, env={**os.environ, "CXX": cxx[-1]})
    run("cmake", "--build", work / "out")
    return run(work / "out" / "consumer")


def check_manifest(source: pathlib.Path) -> str:
    """The version that the port gives its files."""
    manifest = json.loads((source / "packaging/vcpkg/kvquant/vcpkg.json").read_text(encoding="utf-8"))
    known = {"name", "version-semver", "description", "license", "features"}
    features = manifest["features"].values()
    if set(manifest) != known or any(set(it) != {"description", "dependencies"} for it in features):
        sys.exit(f"vcpkg.json has fields that are not expected: {manifest}")
    if manifest["name"] != "kvquant" or manifest["version-semver"] != version_of(source):
        sys.exit(f"vcpkg.json is of {manifest['name']} {manifest['version-semver']}, expected {version_of(source)}")
    return manifest["version-semver"]


def with_port(work: pathlib.Path, source: pathlib.Path, build: pathlib.Path, cxx: list[str]) -> str:
    need("cmake")
    packed = work / "packed"
    run("cmake", f"-DPORT_DIR={source}/packaging/vcpkg/kvquant", f"-DCURRENT_PACKAGES_DIR={packed}",
        f"-DVERSION={check_manifest(source)}", "-P", source / "test/install/vcpkg_port.cmake")
    files = sorted(file.name for file in (packed / "share" / "kvquant").iterdir())
    if files != ["copyright", "kvquantConfig.cmake", "kvquantConfigVersion.cmake", "usage"]:
        sys.exit(f"share/kvquant has {files}")
    require_same_headers(packed / "include", work, build)
    return build_consumer(work, cxx, f"-DCMAKE_PREFIX_PATH={packed}")


WAYS = {"conan": with_conan, "port": with_port}


def main() -> int:
    way, source, build, *cxx = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        print(WAYS[way](pathlib.Path(folder), pathlib.Path(source), pathlib.Path(build), cxx).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
