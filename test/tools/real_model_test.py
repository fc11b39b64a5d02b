#!/usr/bin/env python3
"""The whole chain on a real model: KVQUANT_TEST_MODEL, on text from the folder KVQUANT_TEST_TEXT.

Usage: real_model_test.py KVQUANT. Exits with 77 (skipped) where one of the two is missing.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SKIPPED = 77
KVQUANT = str(pathlib.Path(sys.argv[1]).absolute())
# For evaluation and for calibration: what scripts/fetch_assets stores, or WikiText-2.
TEXTS = (("evaluation.txt", "calibration.txt"), ("wikitext2_test.txt", "wikitext2_valid.txt"))


def find_texts() -> tuple[pathlib.Path, pathlib.Path] | None:
    folder = pathlib.Path(os.environ.get("KVQUANT_TEST_TEXT") or "absent")
    for evaluation, calibration in TEXTS:
        if (folder / evaluation).is_file() and (folder / calibration).is_file():
            return folder / evaluation, folder / calibration
    return None


class RealModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.model = os.environ["KVQUANT_TEST_MODEL"]
        evaluation, cls.calibration = find_texts()
        cls.run_tool("calibrate", cls.model, "--text", cls.calibration, "--bits", "4,3,2", "--samples", "3",
                     "--context", "512", "-o", "nuq{bits}.kvq")
        artifacts = [word for bits in "432" for word in ("--artifact", f"nuq{bits}.kvq")]
        cls.run_tool("eval", cls.model, "--text", evaluation, *artifacts, "--baseline", "q8_0,q4_0,kivi2", "--context",
                     "512", "--tokens", "2048", "--json", "eval.json")
        cls.found = json.loads((cls.folder / "eval.json").read_text())
        cls.rows = {row["name"].split("-")[0]: row for row in cls.found["rows"]}

    @classmethod
    def run_tool(cls, *words: str | pathlib.Path) -> None:
        subprocess.run([KVQUANT, *map(str, words), "--quiet"], check=True, cwd=cls.folder)

    def test_the_model_reads_prose(self) -> None:
        self.assertIn(self.found["predictions"], (4 * 511, 4 * 512))
        self.assertTrue(5 < self.rows["f16"]["perplexity"] < 50, self.rows["f16"])

    def test_fewer_bits_are_further_from_f16(self) -> None:
        for better, worse in (("q8_0", "nuq4"), ("nuq4", "nuq3"), ("nuq3", "nuq2")):
            self.assertLess(self.rows[better]["kl_mean"], self.rows[worse]["kl_mean"])
            self.assertGreater(self.rows[better]["top1_agreement"], self.rows[worse]["top1_agreement"])
            self.assertGreater(self.rows[better]["bits_per_element"], self.rows[worse]["bits_per_element"])

    def test_losses_stay_within_generous_bands(self) -> None:
        self.assertLess(abs(self.rows["q8_0"]["delta_percent"]), 1)
        for name, most in (("nuq4", 8), ("nuq3", 25), ("nuq2", 150)):  # percent
            self.assertTrue(0 < self.rows[name]["delta_percent"] < most, self.rows[name])

    def test_codebooks_beat_plain_blocks_at_the_same_width(self) -> None:
        self.assertLess(self.rows["nuq4"]["bits_per_element"], self.rows["q4_0"]["bits_per_element"] + 0.1)
        for figure in ("kl_mean", "delta_nll"):
            self.assertLess(self.rows["nuq4"][figure], self.rows["q4_0"][figure])
        self.assertLess(self.rows["nuq3"]["kl_mean"], self.rows["kivi2"]["kl_mean"])

    def test_artifacts_are_the_same_at_any_number_of_threads(self) -> None:
        for threads in ("1", "2"):
            self.run_tool("calibrate", self.model, "--text", self.calibration, "--samples", "1", "--context", "256",
                          "--threads", threads, "-o", threads + ".kvq")
        self.assertEqual((self.folder / "1.kvq").read_bytes(), (self.folder / "2.kvq").read_bytes())


if __name__ == "__main__":
    if not os.path.isfile(os.environ.get("KVQUANT_TEST_MODEL", "")):
        print("skipped: KVQUANT_TEST_MODEL names no file")
        sys.exit(SKIPPED)
    if find_texts() is None:
        print("skipped: KVQUANT_TEST_TEXT names no folder with", " or ".join(map(" and ".join, TEXTS)))
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
