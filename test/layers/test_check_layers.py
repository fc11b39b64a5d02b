#!/usr/bin/env python3
"""Plants one violation of each rule in a clean tree and demands that check_layers finds exactly it."""

import pathlib
import tempfile
import unittest

import check_layers

HEADER = "#pragma once\n"

# One file a layer, each including what it may.
CLEAN = {
    "include/kvquant/core/view.hpp": "#include <span>\n",
    "include/kvquant/format/nuq.hpp": '#include "kvquant/core/view.hpp"\n',
    "include/kvquant/pack/bit_pack.hpp": "#include <cstdint>\n",
    "include/kvquant/rope/rope.hpp": "// std::thread is only spoken of here\n",
    "include/kvquant/quantize/spec.hpp": '#include "kvquant/format/nuq.hpp"\n#include "kvquant/rope/rope.hpp"\n',
    "include/kvquant/calibrate/artifact.hpp": '#include "kvquant/quantize/spec.hpp"\n',
    "include/kvquant/calibrate/artifact_io.hpp": "#include <nlohmann/json.hpp>\n",
    "include/kvquant/cache/page.hpp": '#include "kvquant/calibrate/artifact.hpp"\n',
    "include/kvquant/attend/backend.hpp": '#include "kvquant/cache/page.hpp"\n',
    "include/kvquant/distributed/merge.hpp": '#include "kvquant/attend/backend.hpp"\n',
    "include/kvquant/reference/attention.hpp": "#include <Eigen/Core>\n",
    "include/kvquant/kvquant.hpp": '#include "kvquant/attend/backend.hpp"\n',
    "include/kvquant/engine.hpp": '#include "backends/cpu/backend.hpp"\n',
    "backends/cpu/backend.hpp": '#include "kvquant/attend/backend.hpp"\n#include <hwy/highway.h>\n',
    "backends/cpu/thread_pool.hpp": "#include <thread>\nstd::thread worker;\n",
    "backends/cpu/isa/avx512.cpp": "#include <immintrin.h>\n",
    "backends/cuda/backend.cuh": "#include <cuda_runtime.h>\n",
    "backends/mpi/communicator.hpp": '#include <mpi.h>\n#include "kvquant/distributed/merge.hpp"\n',
    "backends/nccl/communicator.hpp": "#include <nccl.h>\n",
    "measure/roof.hpp": '#include "backends/cpu/thread_pool.hpp"\n',
    "runtime/model.hpp": '#include <Eigen/Core>\n#include "backends/cpu/thread_pool.hpp"\n',
    "tools/kvquant/main.cpp": '#include <CLI/CLI.hpp>\n#include <fmt/format.h>\n#include "runtime/model.hpp"\n',
    "adapters/python/src/module.cpp": "#include <nanobind/nanobind.h>\n",
    "test/support/main.cpp": "#include <catch2/catch.hpp>\n#include <thread>\n",
}

# (file, line added to it, what the complaint must say)
PLANTED = [
    ("include/kvquant/core/view.hpp", '#include "kvquant/format/nuq.hpp"', "layer core must not include format"),
    ("include/kvquant/format/nuq.hpp", '#include "kvquant/pack/bit_pack.hpp"', "layer format must not include pack"),
    ("include/kvquant/pack/bit_pack.hpp", '#include "kvquant/rope/rope.hpp"', "layer pack must not include rope"),
    ("include/kvquant/rope/rope.hpp", '#include "kvquant/format/nuq.hpp"', "layer rope must not include format"),
    ("include/kvquant/quantize/spec.hpp", '#include "kvquant/calibrate/artifact.hpp"', "must not include calibrate"),
    ("include/kvquant/calibrate/artifact.hpp", '#include "kvquant/cache/page.hpp"', "must not include cache"),
    ("include/kvquant/cache/page.hpp", '#include "kvquant/attend/backend.hpp"', "must not include attend"),
    ("include/kvquant/attend/backend.hpp", '#include "kvquant/reference/attention.hpp"', "must not include reference"),
    ("include/kvquant/attend/backend.hpp", '#include "kvquant/distributed/merge.hpp"', "must not include distributed"),
    ("include/kvquant/reference/attention.hpp", '#include "backends/cpu/backend.hpp"', "must not include backends/cpu"),
    ("backends/cpu/backend.hpp", '#include "kvquant/reference/attention.hpp"', "must not include reference"),
    ("backends/cpu/backend.hpp", '#include "backends/cuda/backend.cuh"', "must not include backends/cuda"),
    ("backends/cpu/backend.hpp", '#include "kvquant/engine.hpp"', "must not include engine.hpp"),
    ("backends/cuda/backend.cuh", '#include "backends/cpu/backend.hpp"', "must not include backends/cpu"),
    ("backends/nccl/communicator.hpp", '#include "backends/mpi/communicator.hpp"', "must not include backends/mpi"),
    ("runtime/model.hpp", '#include "tools/kvquant/main.cpp"', "layer runtime must not include tools"),
    ("tools/kvquant/main.cpp", '#include "test/support/main.cpp"', "layer tools must not include test"),
    ("tools/kvquant/main.cpp", '#include "main.hpp"', 'neither "kvquant/…" nor a path from the root'),
    ("measure/roof.hpp", '#include "runtime/model.hpp"', "layer measure must not include runtime"),
    ("measure/roof.hpp", "#include <ggml.h>", "ggml"),
    ("runtime/model.hpp", "#include <nanobind/nanobind.h>", "nanobind"),
    ("tools/kvquant/main.cpp", "#include <kvquant/kvquant.hpp>", "quoted includes"),
    ("tools/kvquant/main.cpp", "#include <Eigen/Core>", "Eigen"),
    ("include/kvquant/quantize/spec.hpp", "#include <Eigen/Core>", "Eigen"),
    ("include/kvquant/core/view.hpp", "#include <nlohmann/json.hpp>", "nlohmann"),
    ("include/kvquant/calibrate/artifact.hpp", "#include <nlohmann/json.hpp>", "nlohmann"),
    ("include/kvquant/core/view.hpp", "#include <cuda_fp16.h>", "CUDA"),
    ("runtime/model.hpp", "#include <cuda_runtime.h>", "CUDA"),
    ("backends/cuda/backend.cuh", "#include <nccl.h>", "NCCL"),
    ("backends/nccl/communicator.hpp", "#include <mpi.h>", "MPI"),
    ("backends/cpu/backend.hpp", "#include <immintrin.h>", "intrinsics"),
    ("runtime/model.hpp", "#include <arm_neon.h>", "intrinsics"),
    ("runtime/model.hpp", "#include <thread>", "threads"),
    ("backends/cpu/backend.hpp", "std::jthread helper;", "threads"),
    ("include/kvquant/core/view.hpp", "#pragma omp parallel for", "threads"),
    ("include/kvquant/core/view.hpp", "#include <hwy/highway.h>", "Highway"),
    ("tools/kvquant/main.cpp", "#include <hwy/highway.h>", "Highway"),
    ("runtime/model.hpp", "#include <CLI/CLI.hpp>", "CLI11"),
    ("runtime/model.hpp", "#include <fmt/format.h>", "fmt"),
    ("runtime/model.hpp", "#include <catch2/catch.hpp>", "Catch2"),
    ("tools/kvquant/main.cpp", "#include <benchmark/benchmark.h>", "Google Benchmark"),
    ("include/kvquant/calibrate/artifact.hpp", "#include <xxhash.h>", "xxHash"),
    ("include/kvquant/core/view.hpp", "#include <sys/mman.h>", "memory of the system"),
    ("include/kvquant/core/view.hpp", "#include <unistd.h>", "standard library only"),
    ("include/kvquant/core/view.hpp", "#include <boost/any>", "standard library only"),
]


def plant(root: pathlib.Path, tree: dict[str, str]) -> None:
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(HEADER + text, encoding="utf-8")


class LayerRules(unittest.TestCase):
    def check(self, tree: dict[str, str]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            plant(pathlib.Path(folder), tree)
            return check_layers.violations(pathlib.Path(folder))

    def test_a_clean_tree_passes(self) -> None:
        self.assertEqual(self.check(CLEAN), [])

    def test_each_planted_violation_is_found_alone(self) -> None:
        for path, line, complaint in PLANTED:
            with self.subTest(path=path, line=line):
                found = self.check({**CLEAN, path: CLEAN[path] + line + "\n"})
                self.assertEqual(len(found), 1, found)
                self.assertTrue(found[0].startswith(path + ":"), found)
                self.assertIn(complaint, found[0])

    def test_every_foreign_rule_is_planted(self) -> None:
        complaints = {complaint for _, _, complaint in PLANTED}
        for rule in check_layers.FOREIGN:
            self.assertTrue(any(complaint in rule.rule for complaint in complaints), rule.rule)

    def test_a_folder_outside_the_table_is_found(self) -> None:
        found = self.check({**CLEAN, "include/kvquant/attic/old.hpp": ""})
        self.assertEqual(found, ["include/kvquant/attic/old.hpp: belongs to no layer of the table"])


if __name__ == "__main__":
    unittest.main()
