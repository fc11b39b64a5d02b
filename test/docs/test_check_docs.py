#!/usr/bin/env python3
"""Plants faults in a small tree of documentation and demands that check_docs finds exactly them."""

import pathlib
import tempfile
import unittest

import check_docs

SOURCES = {
    "a.cpp": "int main() {\n  // [doc:body]\n  int x = 1;\n  // [/doc]\n}\n",
    "a.c": "int main(void) {\n  /* [doc:body] */\n  int x = 2;\n  /* [/doc] */\n}\n",
}
CPP_BLOCK = "<!-- a.cpp:body -->\n```cpp\nint x = 1;\n```\n"
C_BLOCK = "<!-- a.c:body -->\n```c\nint x = 2;\n```\n"


class Documentation(unittest.TestCase):
    def faults(self, page: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in {**SOURCES, "page.md": page}.items():
                (root / name).write_text(text, encoding="utf-8")
            return list(check_docs.faults(root, root / "page.md"))

    def test_blocks_that_are_regions_pass(self) -> None:
        self.assertEqual(self.faults(CPP_BLOCK + C_BLOCK + "[code](a.c)\n```\nplain\n```\n"), [])

    def test_a_block_that_differs_is_found(self) -> None:
        for block, name in ((CPP_BLOCK, "a.cpp"), (C_BLOCK, "a.c")):
            found = self.faults("text\n" + block.replace("int x", "int y"))
            self.assertEqual(len(found), 1, found)
            self.assertTrue(found[0].startswith(f"page.md:2: differs from region body of {name}"), found)

    def test_a_block_without_a_file_is_found(self) -> None:
        for language in ("c", "cpp"):
            self.assertEqual(self.faults(f"```{language}\nint x;\n```\n"),
                             [f"page.md:1: a block of {language} that no file is named for"])

    def test_a_region_that_is_not_there_is_found(self) -> None:
        self.assertEqual(len(self.faults(C_BLOCK.replace("body", "soul"))), 1)

    def test_a_link_to_nowhere_is_found(self) -> None:
        self.assertEqual(self.faults("[code](b.c)\n"), ["page.md: a link to b.c, which is not there"])

    def test_a_link_to_a_heading_that_is_not_there_is_found(self) -> None:
        page = "# A page's title, once\n[here](#a-pages-title-once) [there](page.md#a-pages-title-once)\n"
        self.assertEqual(self.faults(page), [])
        self.assertEqual(self.faults(page + "[nowhere](#b)\n"),
                         ["page.md: a link to #b, which has no such heading"])

    def test_regions_are_written(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            old = (CPP_BLOCK + C_BLOCK).replace("int x", "int old")
            for name, text in {**SOURCES, "page.md": old}.items():
                (root / name).write_text(text, encoding="utf-8")
            check_docs.write(root, root / "page.md")
            self.assertEqual((root / "page.md").read_text(encoding="utf-8"), CPP_BLOCK + C_BLOCK)


if __name__ == "__main__":
    unittest.main()
