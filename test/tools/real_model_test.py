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
        cls.results = {}
        for mode in ("simulated", "deployed"):
            cls.run_tool("eval", cls.model, "--text", evaluation, *artifacts, "--baseline", "q8_0,q4_0,kivi2",
                         "--context", "512", "--tokens", "2048", "--mode", mode, "--json", "eval.json")
            cls.results[mode] = json.loads((cls.folder / "eval.json").read_text())
        cls.found = cls.results["simulated"]
        cls.rows, cls.deployed = ({row["name"].split("-")[0]: row for row in cls.results[mode]["rows"]}
                                  for mode in ("simulated", "deployed"))

    @classmethod
    def run_tool(cls, *words: str | pathlib.Path) -> None:
        subprocess.run([KVQUANT, *map(str, words), "--quiet"], check=True, cwd=cls.folder, stdout=subprocess.DEVNULL)

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

    def test_an_exact_page_brings_every_cache_closer_to_f16(self) -> None:
        for name in ("q8_0", "q4_0", "kivi2", "nuq4", "nuq3", "nuq2"):
            self.assertLess(self.deployed[name]["kl_mean"], self.rows[name]["kl_mean"])
        self.assertEqual(self.deployed["f16"], self.rows["f16"])

    def test_packed_caches_lose_little_and_are_as_small_as_they_say(self) -> None:
        for name, most, bits in (("nuq4", 2, 4.7), ("nuq3", 6, 3.7), ("nuq2", 30, 2.7)):  # percent; of heads of 64
            self.assertLess(self.deployed[name]["delta_percent"], most)
            self.assertLess(self.deployed[name]["bits_per_element_32k"], bits)

    def test_the_model_answers_with_its_cache_in_3_bits(self) -> None:
        for options in ([], ["--artifact", "nuq3.kvq"]):
            self.run_tool("generate", self.model, *options, "--prompt", "What is the capital of France?", "--max-tokens",
                          "24", "--json", "answer.json")
            answer = json.loads((self.folder / "answer.json").read_text())
            self.assertIn("Paris", answer["text"])
            self.assertTrue(answer["stopped"])

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
