"""Tests of scripts/amalgamate: order, what it hoists, and what it refuses to join."""

import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "amalgamate"


def load():
    loader = importlib.machinery.SourceFileLoader("amalgamate", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("amalgamate", loader))
    sys.modules["amalgamate"] = module
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True
amalgamate = load()

CONFIG = '#pragma once\n#define KVQUANT_VERSION "9.8.7"\n'


class Joining(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.header("core/config.hpp", CONFIG)

    def header(self, name: str, text: str) -> None:
        path = self.root / "include" / "kvquant" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def join(self, top: str, **headers: str) -> str:
        self.header("kvquant.hpp", "#pragma once\n" + top)
        for name, text in headers.items():
            self.header(f"{name}.hpp", text)
        return amalgamate.amalgamate(self.root, [])[0]

    def refusal(self, top: str, **headers: str) -> str:
        with self.assertRaises(amalgamate.Refusal) as caught:
            self.join(top, **headers)
        return str(caught.exception)

    def test_each_header_stands_once_where_it_is_first_included(self):
        text = self.join('#include "kvquant/b.hpp"\n#include "kvquant/a.hpp"\nint top;\n',
                         a="#pragma once\nint a;\n", b='#pragma once\n#include "kvquant/a.hpp"\nint b;\n')
        self.assertEqual([it for it in text.splitlines() if it.startswith("int")], ["int a;", "int b;", "int top;"])
        self.assertNotIn("#pragma once", text)
        self.assertNotIn('#include "', text)

    def test_a_header_may_include_the_one_that_includes_it(self):
        text = self.join('int first;\n#include "kvquant/rest.hpp"\n',
                         rest='#pragma once\n#include "kvquant/kvquant.hpp"\nint second;\n')
        self.assertLess(text.index("int first"), text.index("int second"))

    def test_the_standard_library_comes_first_and_once(self):
        text = self.join('#include <vector>\n#include "kvquant/a.hpp"\nint top;\n',
                         a="#pragma once\n#include <vector>\n#include <array>\nint a;\n")
        self.assertEqual(text.count("#include"), 2)
        self.assertIn("#include <array>\n#include <vector>\n", text)
        self.assertLess(text.index("<vector>"), text.index("int a"))

    def test_headers_of_others_stay_behind_the_switches_before_them(self):
        text = self.join('#include "kvquant/a.hpp"\n#define XXH_INLINE_ALL\n#include <xxhash.h>\n',
                         a="#pragma once\n#if defined(__linux__)\n#include <sys/mman.h>\n#endif\n")
        self.assertIn("#define XXH_INLINE_ALL\n#include <xxhash.h>\n", text)
        self.assertIn("#if defined(__linux__)\n#include <sys/mman.h>\n#endif\n", text)

    def test_license_and_version_are_on_top(self):
        first, second = self.join("int top;\n").splitlines()[:2]
        self.assertIn("kvquant 9.8.7: the core", first)
        self.assertIn("SPDX-License-Identifier: Apache-2.0", second)

    def test_names_that_would_collide_are_refused(self):
        for text, complaint in {
            "namespace {\nint a;\n}\n": "a.hpp:2: an unnamed namespace",
            "namespace\n{\nint a;\n}\n": "a.hpp:2: an unnamed namespace",
            "using namespace std;\n": "a.hpp:2: a using-directive",
            "#define SIZE 3\n": "SIZE stays defined",
            "#undef SIZE\n#define SIZE 3\n": "SIZE stays defined",
        }.items():
            with self.subTest(text):
                self.assertIn(complaint, self.refusal('#include "kvquant/a.hpp"\n', a="#pragma once\n" + text))

    def test_a_macro_of_two_headers_is_refused(self):
        self.assertIn("KVQ_X is defined in kvquant/a.hpp too",
                      self.refusal('#include "kvquant/a.hpp"\n#include "kvquant/b.hpp"\n',
                                   a="#pragma once\n#define KVQ_X 1\n", b="#pragma once\n#define KVQ_X 2\n"))

    def test_a_macro_that_ends_with_its_header_is_not(self):
        text = self.join("#if 1\n#define KVQ_HD\n#else\n#define KVQ_HD\n#endif\n#define SIZE 3\n#undef SIZE\n"
                         "// namespace {\nnamespace kvquant { using namespace_of_theirs = int; }\n")
        self.assertIn("#undef SIZE", text)

    def test_what_cannot_be_joined_is_refused(self):
        self.assertIn('"kvquant/none.hpp" is no header', self.refusal('#include "kvquant/none.hpp"\n'))
        self.assertIn('no "#pragma once"', self.refusal('#include "kvquant/a.hpp"\n', a="int a;\n"))
        self.assertIn("included under a condition",
                      self.refusal('#if 1\n#include "kvquant/a.hpp"\n#endif\n', a="#pragma once\n"))


class Ours(unittest.TestCase):
    def test_the_file_is_the_same_whatever_the_order_of_parts_and_the_hashes(self):
        with tempfile.TemporaryDirectory() as folder:
            made = []
            for seed, parts in (("1", ["generic", "io"]), ("2", ["io", "generic"])):
                out = pathlib.Path(folder) / f"{seed}.hpp"
                options = [f"--with={part}" for part in parts]
                said = subprocess.run([SCRIPT, *options, "-o", out], env={**os.environ, "PYTHONHASHSEED": seed},
                                      check=True, capture_output=True, text=True).stdout
                self.assertIn("needs nlohmann/json.hpp, xxhash.h", said)
                made.append(out.read_bytes())
            self.assertEqual(*made)
            self.assertEqual(len(list(pathlib.Path(folder).iterdir())), 2)

    def test_the_core_needs_the_standard_library_alone(self):
        _, joined = amalgamate.amalgamate(ROOT, [])
        self.assertEqual(joined.foreign, set())

    def test_every_part_can_be_joined(self):
        _, joined = amalgamate.amalgamate(ROOT, list(amalgamate.PARTS))
        listed = [header for part in amalgamate.PARTS.values() for header in part]
        self.assertLessEqual(set(listed), set(joined.headers))

    def test_a_place_that_is_none_is_named(self):
        done = subprocess.run([SCRIPT, "-o", "/nowhere/at/all.hpp"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nowhere/at", done.stderr)


if __name__ == "__main__":
    unittest.main()
