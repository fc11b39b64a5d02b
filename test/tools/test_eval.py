#!/usr/bin/env python3
"""kvquant eval, against figures computed from the losses that it dumps."""

import math
import statistics

from eval_case import ROW_NAMES, EvalCase
from tool_case import KV_HEADS, main

BASELINES = ["f16", "q8_0", "q4_0", "kivi2", "kivi4", "int4", "int3"]
KV_CHANNELS = KV_HEADS * 32


class Figures(EvalCase):
    def setUp(self) -> None:
        super().setUp()
        self.calibrate("{bits}.kvq", "--bits", "4,3,2", "--q-norm", "off")
        self.found, self.losses = self.evaluate(
            "--artifact", "4.kvq", "--artifact", "3.kvq", "--artifact", "2.kvq", "--baseline", ",".join(BASELINES),
            "--context", "256", "--tokens", "1100", "--mode", "simulated")

    def test_rows_are_f16_baselines_artifacts_under_stable_names(self) -> None:
        names = [row["name"] for row in self.found["rows"]]
        self.assertEqual(names, [*BASELINES, "nuq4-1%", "nuq3-1%", "nuq2-1%"])
        for row in self.found["rows"]:
            self.assertEqual(set(row), ROW_NAMES)
        self.assertEqual({name: self.found[name] for name in ("model", "mode", "context", "text")},
                         {"model": "tiny llama", "mode": "simulated", "context": 256, "text": str(self.text)})

    def test_figures_are_those_of_the_dumped_losses(self) -> None:
        base, f16 = self.losses[0], self.found["rows"][0]
        for row, nll in zip(self.found["rows"], self.losses):
            with self.subTest(row["name"]):
                delta = [a - b for a, b in zip(nll, base)]
                perplexity = math.exp(math.fsum(nll) / len(nll))
                self.assertTrue(math.isclose(row["perplexity"], perplexity, rel_tol=1e-11))
                self.assertAlmostEqual(row["delta_percent"], 100 * (perplexity / f16["perplexity"] - 1), delta=1e-9)
                self.assertAlmostEqual(row["delta_nll"], statistics.fmean(delta), delta=1e-12)
                error = statistics.stdev(delta) / math.sqrt(len(delta))
                self.assertAlmostEqual(row["delta_nll_se"], error, delta=1e-12)

    def test_f16_is_what_the_others_are_compared_with(self) -> None:
        f16 = self.found["rows"][0]
        self.assertEqual([f16[name] for name in ("delta_percent", "delta_nll", "delta_nll_se", "kl_mean", "kl_p999")],
                         [0] * 5)
        self.assertEqual((f16["top1_agreement"], f16["bits_per_element"]), (1, 16))
        # A random model guesses worse than uniformly over its 256 tokens, but not absurdly so.
        self.assertTrue(256 < f16["perplexity"] < 256**2)

    def test_fewer_bits_are_further_from_f16(self) -> None:
        rows = {row["name"]: row for row in self.found["rows"]}
        for better, worse in (("nuq4-1%", "nuq3-1%"), ("nuq3-1%", "nuq2-1%"), ("q8_0", "q4_0"), ("kivi4", "kivi2"),
                              ("int4", "int3")):
            with self.subTest(better=better, worse=worse):
                self.assertLess(0, rows[better]["kl_mean"])
                self.assertLess(rows[better]["kl_mean"], rows[worse]["kl_mean"])
                self.assertGreater(rows[better]["bits_per_element"], rows[worse]["bits_per_element"])
                self.assertGreater(rows[better]["top1_agreement"], rows[worse]["top1_agreement"])
        for row in self.found["rows"]:
            self.assertLessEqual(row["kl_mean"], row["kl_p999"])
            self.assertTrue(0 <= row["top1_agreement"] <= 1)

    def test_bits_of_the_baselines(self) -> None:
        # Blocks of 32 with 16 or 32 further bits; int: rows of 64 with 32 further bits.
        expected = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5, "kivi2": 3, "kivi4": 5, "int4": 4.5, "int3": 3.5}
        for name in ("bits_per_element", "bits_per_element_32k"):
            self.assertEqual({row["name"]: row[name] for row in self.found["rows"][:7]}, expected)

    def test_only_whole_windows_count(self) -> None:
        self.assertEqual(self.found["predictions"], 4 * 255)


class Windows(EvalCase):
    def test_without_bos_the_first_token_is_not_predicted(self) -> None:
        self.assertEqual(self.evaluate("--context", "128", "--tokens", "512")[0]["predictions"], 4 * 127)

    def test_with_bos_every_token_is_predicted(self) -> None:
        model = self.write_model("bos.gguf", "--add-bos")
        self.assertEqual(self.evaluate("--context", "128", "--tokens", "512", model=model)[0]["predictions"], 4 * 128)

    def test_all_of_the_text_is_used_unless_told_otherwise(self) -> None:
        found, _ = self.evaluate("--context", "1000")
        self.assertEqual(found["predictions"], 3 * 999)
        self.assertEqual(self.evaluate("--context", "1000", "--tokens", "9999999")[0]["rows"], found["rows"])

    def test_a_windows_losses_depend_on_nothing_but_the_window(self) -> None:
        _, (all_windows,) = self.evaluate("--context", "100", "--tokens", "400")
        self.text.write_text(self.text.read_text()[200:300])
        _, (third,) = self.evaluate("--context", "100")
        self.assertEqual(third, all_windows[2 * 99:3 * 99])

    def test_a_loss_depends_on_earlier_tokens_alone(self) -> None:
        _, (before,) = self.evaluate("--context", "128", "--tokens", "128")
        self.text.write_text(self.text.read_text()[:100] + "#" * 28)
        _, (after,) = self.evaluate("--context", "128")
        self.assertEqual(after[:99], before[:99])
        self.assertTrue(all(a != b for a, b in zip(after[99:], before[99:])))

    def test_the_shortest_window_is_two_tokens(self) -> None:
        self.text.write_text("ab")
        found, _ = self.evaluate("--context", "2")
        self.assertEqual((found["predictions"], found["rows"][0]["delta_nll_se"]), (1, 0))


class Caches(EvalCase):
    def test_bits_of_an_artifact_without_outliers(self) -> None:
        self.calibrate("a.kvq", "--outliers", "0", "--format", "int", "--bits", "4")
        row = self.rows("--artifact", "a.kvq", "--context", "128", "--tokens", "256", "--mode",
                        "simulated")["int4"]
        per_token = (4 + 4 + 32 / KV_CHANNELS) / 2  # codes of both sides and a range of two binary16 a token's values
        self.assertAlmostEqual(row["bits_per_element"], (127 * per_token + 16) / 128, delta=1e-12)

    def test_a_cache_of_sinks_alone_is_f16(self) -> None:
        self.calibrate("a.kvq", "--sinks", "62", "--keys", "post-rope")
        found, losses = self.evaluate("--artifact", "a.kvq", "--context", "62", "--tokens", "124", "--mode",
                                      "simulated")
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(found["rows"][1]["bits_per_element"], 16)

    def test_names_say_what_differs_from_the_defaults(self) -> None:
        self.calibrate("a.kvq", "--outliers", "0.05", "--sinks", "2", "--keys", "post-rope", "--weights", "none",
                       "--q-norm", "on")
        self.assertIn("nuq3-5%, 2 sinks, post-RoPE keys, weights none, Q-Norm",
                      self.rows("--artifact", "a.kvq", "--context", "64", "--tokens", "64", "--mode", "simulated"))

    def test_other_architectures(self) -> None:
        model = self.write_model("qwen2.gguf", "--architecture", "qwen2")
        self.calibrate("a.kvq", "--bits", "4", model=model)
        found, _ = self.evaluate("--artifact", "a.kvq", "--context", "64", "--tokens", "256", "--mode", "simulated",
                                 model=model)
        self.assertEqual(found["model"], "tiny qwen2")
        self.assertTrue(0 < found["rows"][1]["kl_mean"] < math.log(256))

    def test_baselines_that_the_shape_forbids_are_refused(self) -> None:
        model = self.write_model("narrow.gguf", "--head-dim", "24")
        for name in ("q8_0", "q4_0", "kivi2", "kivi4"):
            self.expect_error(1, [name, "head_dim 24", "expected a multiple of 32"], "eval", model, "--text", self.text,
                              "--baseline", name)
        found, _ = self.evaluate("--baseline", "int4,int3", "--context", "64", "--tokens", "64", model=model)
        self.assertEqual([row["name"] for row in found["rows"]], ["f16", "int4", "int3"])

    def test_the_same_at_any_number_of_threads(self) -> None:
        self.calibrate("a.kvq")
        self.same_at_any_number_of_threads("--artifact", "a.kvq", "--baseline", "q4_0,kivi2", "--context", "300",
                                           "--mode", "simulated")

    def test_the_table_has_a_line_for_each_row(self) -> None:
        lines = self.succeed("eval", self.model, "--text", self.text, "--baseline", "int4", "--context", "64",
                             "--tokens", "128", "--mode", "simulated").splitlines()
        self.assertEqual(lines[0], "tiny llama: 2 windows of 64 tokens, 126 predictions, simulated")
        self.assertEqual([line.split()[0] for line in lines[1:]], ["cache", "f16", "int4"])
        self.assertEqual([line.split()[1:3] for line in lines[2:]], [["16.00", "16.00"], ["4.50", "4.50"]])


if __name__ == "__main__":
    main()
