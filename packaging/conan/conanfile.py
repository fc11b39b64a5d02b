"""Conan 2: the headers of the library and of its CPU backends, whatever the settings.

`conan create packaging/conan` packs this tree. Options say what a program includes, and so what else it needs.
"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load

NEEDS = {
    "cpu": ["highway/[>=1.0.3 <2]"],
    "io": ["nlohmann_json/[>=3.11 <4]", "xxhash/[>=0.8.1 <0.9]"],
    "reference": ["eigen/[>=3.4 <4]"],
}


class Kvquant(ConanFile):
    name = "kvquant"
    description = "KV-cache quantization for transformer inference (C++20, header-only)"
    license = "Apache-2.0"
    topics = ("llm", "kv-cache", "quantization", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {
        "cpu": [True, False],  # backends/cpu/backend.hpp and the thread pool; the generic backend needs nothing
        "io": [True, False],  # *_io.hpp and engine.hpp
        "reference": [True, False],  # kvquant/reference/
    }
    default_options = {"cpu": False, "io": False, "reference": False}
    no_copy_source = True

    @property
    def _tree(self) -> str:
        return os.path.join(self.recipe_folder, os.pardir, os.pardir)

    def set_version(self) -> None:
        self.version = re.search(r"version: '([^']+)'", load(self, os.path.join(self._tree, "meson.build")))[1]

    def export_sources(self) -> None:
        for pattern in ("LICENSE", "include/kvquant/*.hpp", "backends/cpu/*.hpp", "backends/cpu/*.inl"):
            copy(self, pattern, self._tree, self.export_sources_folder)

    def requirements(self) -> None:
        for option, packages in NEEDS.items():
            for package in packages if self.options.get_safe(option) else []:
                self.requires(package, transitive_headers=True)

    def validate(self) -> None:
        check_min_cppstd(self, 20)

    def package(self) -> None:
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        include = os.path.join(self.package_folder, "include")
        copy(self, "*", os.path.join(self.source_folder, "include"), include)
        copy(self, "backends/*", self.source_folder, os.path.join(include, "kvquant-backends"))

    def package_id(self) -> None:
        self.info.clear()

    def package_info(self) -> None:
        self.cpp_info.bindirs = self.cpp_info.libdirs = []
        self.cpp_info.includedirs = ["include", "include/kvquant-backends"]
        self.cpp_info.set_property("cmake_target_name", "kvquant::kvquant")
        self.cpp_info.set_property("pkg_config_name", "kvquant")
        if self.options.cpu and self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["pthread"]
