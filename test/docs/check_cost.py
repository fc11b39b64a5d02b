#!/usr/bin/env python3
"""What docs/ says a datatype and a backend of one's own cost is what they take. The datatype of
examples/04_new_format.cpp is added to a copy of the headers as docs/05_write_a_format.md tells, and a program is
compiled that calibrates, saves, loads and packs by its name; the files of the toy backend are counted.

Usage: check_cost.py ROOT COMPILER [FLAG...]
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from check_docs import region  # noqa: E402

ROOT = pathlib.Path(sys.argv[1]).resolve()
COMPILER = sys.argv[2:]
HEADER = """#pragma once
/// \\file
/// Levels at powers of two.

#include <array>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant {

%s
}  // namespace kvquant
"""
PROGRAM = """
#include <filesystem>
#include <random>
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/calibrate/fit.hpp"
#include "kvquant/format/formats.hpp"

int main(int, char** arguments) {
  using S = kvquant::spec<kvquant::power_of_two, kvquant::power_of_two>;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> tokens(100 * 32);
  for (float& x : tokens) x = normal(random);
  kvquant::view2d<float const> const rows(tokens.data(), 100, 32);
  kvquant::calibrator statistics({.layers = 1, .kv_channels = 32, .max_tokens = 100});
  statistics.observe_range(0, rows);
  statistics.freeze_ranges();
  statistics.observe(0, rows, rows);
  kvquant::model_shape const shape{.layers = 1, .q_heads = 2, .kv_heads = 2, .head_dim = 16};
  auto fitted = kvquant::fit<S>(statistics, {.shape = shape, .weights = kvquant::fit_weights::activation});
  kvquant::save(fitted, arguments[1]);
  auto const artifact = kvquant::load_artifact<S>(arguments[1]);
  if (artifact.info.spec != "pow2_3" || kvquant::parse_format("pow2_3").bits != 3) return 1;
  kvquant::kv_cache<S, kvquant::row_major_layout<S>> cache(artifact, {.max_tokens = 128});
  kvquant::sequence text = cache.open();
  cache.append(text, 0, rows, rows);
  kvquant::canonical_page<S> page;
  cache.read_page(text, 0, 0, 1, page);
  auto const keys = artifact.keys(0);
  double error = 0;
  for (std::size_t c = 0; c < 16; ++c)  // the first token is no page's
    error += std::abs(keys.decode(16 + c, page.k_codes[5 * 16 + c]) - rows(6, 16 + c));
  return error / 16 < 0.5 ? 0 : 2;
}
"""


def said(page: str) -> str:
    """What a page says is measured."""
    found = re.search(r"\*\*Measured: (.*?)\*\*", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"docs/{page} says nothing measured"
    return found[1]


def lines_of(path: pathlib.Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


class Cost(unittest.TestCase):
    def test_format(self) -> None:
        example = (ROOT / "examples" / "04_new_format.cpp").read_text(encoding="utf-8")
        struct = region(example, "format").replace("kvquant::", "")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            headers = folder / "include"
            shutil.copytree(ROOT / "include", headers)
            (headers / "kvquant" / "format" / "power_of_two.hpp").write_text(HEADER % struct, encoding="utf-8")
            listed = headers / "kvquant" / "format" / "formats.hpp"
            before = listed.read_text(encoding="utf-8")
            include = '#include "kvquant/format/passthrough.hpp"\n'
            after = before.replace(include, include + include.replace("passthrough", "power_of_two"))
            after = after.replace("passthrough>;", "passthrough, power_of_two>;", 1)
            listed.write_text(after, encoding="utf-8")
            (folder / "program.cpp").write_text(PROGRAM, encoding="utf-8")
            subprocess.run([*COMPILER, "-std=c++20", "-O0", f"-I{headers}", str(folder / "program.cpp"), "-o",
                            str(folder / "program")], check=True)
            subprocess.run([str(folder / "program"), str(folder / "of_pow2.kvq")], check=True)

            files = [it for it in headers.rglob("*.hpp")
                     if not (ROOT / it.relative_to(folder)).exists()
                     or it.read_bytes() != (ROOT / it.relative_to(folder)).read_bytes()]
            old, new = before.splitlines(), after.splitlines()
            added = sum(lines_of(it) for it in files if it != listed) + len(new) - len(old)
            changed = len([line for line in old if line not in new])
        self.assertEqual(said("05_write_a_format.md"), f"{len(files)} files, {added} new lines and {changed} changed.")

    def test_backend(self) -> None:
        own = [ROOT / "examples" / "05_new_backend.hpp", ROOT / "test" / "contract" / "toy_test.cpp"]
        naming = [it for folder in ("include", "backends", "engines", "measure", "runtime", "tools", "test/contract")
                  for it in (ROOT / folder).rglob("*") if it.suffix in (".hpp", ".cpp", ".inl", ".build")
                  and re.search(r"05_new_backend|\btoy\b", it.read_text(encoding="utf-8"))]
        self.assertEqual(sorted(it.relative_to(ROOT).as_posix() for it in naming),
                         ["test/contract/meson.build", "test/contract/toy_test.cpp"])
        build = (ROOT / "test" / "contract" / "meson.build").read_text(encoding="utf-8").splitlines()
        lines = sum(map(lines_of, own))
        in_build = len([line for line in build if "toy" in line])
        self.assertEqual(said("06_write_a_backend.md"),
                         f"{len(own)} files, {lines} lines and {in_build} line in `test/contract/meson.build`")
        for header in re.findall(r'#include "([^"]+)"', own[0].read_text(encoding="utf-8")):
            self.assertTrue((ROOT / "include" / header).is_file(), f"{header} is not public")

    def test_contributing_repeats_them(self) -> None:
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        for page in ("05_write_a_format.md", "06_write_a_backend.md"):
            self.assertIn(said(page).rstrip("."), " ".join(text.split()))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
