#!/usr/bin/env python3
"""kvquant eval through packed pages, as decoding uses them."""

from eval_case import ROW_NAMES, EvalCase
from tool_case import main

CONTEXT = 256
SEALED = 192  # of CONTEXT: whole pages behind one sink
LONG, LONG_SEALED = 32768, 511 * 64
EXACT = 1 + 64  # a sink, and the page that is being filled


def allocated_bits(sealed_bits: float, tokens: int, sealed: int) -> float:
    return (sealed_bits * sealed + 16 * EXACT) / tokens


class DeployedCase(EvalCase):
    def deployed(self, *options) -> dict[str, dict]:
        return self.rows("--context", str(CONTEXT), "--tokens", "1024", *options)


class Figures(DeployedCase):
    def test_deployed_is_what_is_meant_unless_told_otherwise(self) -> None:
        self.calibrate("a.kvq")
        options = ("--artifact", "a.kvq", "--baseline", "int4", "--context", "128")
        found, losses = self.evaluate(*options)
        self.assertEqual(found["mode"], "deployed")
        self.assertEqual([row["name"] for row in found["rows"]], ["f16", "int4", "nuq3-1%"])
        for row in found["rows"]:
            self.assertEqual(set(row), ROW_NAMES)
        self.assertEqual(self.evaluate(*options, "--mode", "deployed", "--backend", "cpu"), (found, losses))

    def test_closer_to_f16_than_when_every_token_is_quantized(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "3,2", "--q-norm", "off")
        options = ("--artifact", "3.kvq", "--artifact", "2.kvq", "--baseline", "q4_0,int3,int4")
        deployed, simulated = self.deployed(*options), self.deployed(*options, "--mode", "simulated")
        self.assertEqual(list(deployed), list(simulated))
        self.assertEqual(deployed["f16"], simulated["f16"])
        for name in list(deployed)[1:]:
            with self.subTest(name):
                self.assertTrue(0 < deployed[name]["kl_mean"] < simulated[name]["kl_mean"])
                self.assertGreater(deployed[name]["top1_agreement"], simulated[name]["top1_agreement"])

    def test_fewer_bits_are_further_from_f16(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "4,3,2", "--q-norm", "off")
        rows = self.deployed("--artifact", "4.kvq", "--artifact", "3.kvq", "--artifact", "2.kvq")
        for better, worse in (("nuq4-1%", "nuq3-1%"), ("nuq3-1%", "nuq2-1%")):
            self.assertLess(rows[better]["kl_mean"], rows[worse]["kl_mean"])
            for bits in ("bits_per_element", "bits_per_element_32k"):
                self.assertGreater(rows[better][bits], rows[worse][bits])

    def test_bits_of_baselines_count_what_stays_exact(self) -> None:
        rows = self.deployed("--baseline", "q8_0,kivi2,kivi4,int3")
        for name, bits in (("q8_0", 8.5), ("kivi2", 3), ("kivi4", 5), ("int3", 3.5)):
            with self.subTest(name):
                self.assertAlmostEqual(rows[name]["bits_per_element"], allocated_bits(bits, CONTEXT, SEALED))
                self.assertAlmostEqual(rows[name]["bits_per_element_32k"], allocated_bits(bits, LONG, LONG_SEALED))
        self.assertEqual([rows["f16"][name] for name in ("bits_per_element", "bits_per_element_32k")], [16, 16])

    def test_bits_of_an_artifact_are_all_that_its_cache_allocates(self) -> None:
        self.calibrate("a.kvq", "--outliers", "0", "--format", "int", "--bits", "4")
        row = self.deployed("--artifact", "a.kvq")["int4"]
        # Codes and a range for each value; ids of pages and tables come on top.
        for name, tokens, sealed, most in (("bits_per_element", CONTEXT, SEALED, 1.2),
                                           ("bits_per_element_32k", LONG, LONG_SEALED, 1.02)):
            least = allocated_bits(4 + 32 / 32 / 2, tokens, sealed)
            self.assertTrue(least < row[name] < most * least, (name, least, row[name]))

    def test_the_same_at_any_number_of_threads(self) -> None:
        self.calibrate("a.kvq")
        self.same_at_any_number_of_threads("--artifact", "a.kvq", "--unbounded", "--baseline", "kivi2", "--context",
                                           "300")

    def test_the_table_has_bits_at_the_context_and_at_32k(self) -> None:
        lines = self.succeed("eval", self.model, "--text", self.text, "--baseline", "int4", "--context", "256",
                             "--tokens", "512").splitlines()
        self.assertEqual(lines[0], "tiny llama: 2 windows of 256 tokens, 510 predictions, deployed")
        self.assertEqual(lines[1].split()[:4], ["cache", "bits", "at", "32K"])
        self.assertEqual([line.split()[:3] for line in lines[2:]],
                         [["f16", "16.00", "16.00"], ["int4", f"{allocated_bits(4.5, CONTEXT, SEALED):.2f}",
                                                      f"{allocated_bits(4.5, LONG, LONG_SEALED):.2f}"]])


class Choices(DeployedCase):
    def test_recent_pages_cost_bits(self) -> None:
        self.calibrate("a.kvq")
        options = ("--artifact", "a.kvq", "--baseline", "int4")
        plain, recent = self.deployed(*options), self.deployed(*options, "--recent-pages", "1")
        for less, more in list(zip(plain.values(), recent.values(), strict=True))[1:]:  # behind f16
            for bits in ("bits_per_element", "bits_per_element_32k"):
                self.assertGreater(more[bits], less[bits], less["name"])

    def test_until_a_page_is_complete_everything_is_exact(self) -> None:
        self.calibrate("a.kvq", "--bits", "2", "--q-norm", "off")
        rows = self.rows("--artifact", "a.kvq", "--baseline", "kivi2,int3", "--context", "64")
        for name in ("nuq2-1%", "kivi2", "int3"):
            self.assertLess(rows[name]["kl_mean"], 1e-4)

    def test_recent_pages_are_closer_to_f16_and_take_more_bits(self) -> None:
        self.calibrate("a.kvq", "--bits", "2", "--q-norm", "off")
        options = ("--artifact", "a.kvq", "--baseline", "int3")
        none, one, two, all_pages = (self.deployed(*options, "--recent-pages", pages) for pages in "0124")
        self.assertEqual(list(one), ["f16", "int3, 1 recent page", "nuq2-1%, 1 recent page"])
        for name in ("int3", "nuq2-1%"):
            rows = [none[name], one[name + ", 1 recent page"], two[name + ", 2 recent pages"]]
            for fewer, more in zip(rows, rows[1:]):
                self.assertGreater(fewer["kl_mean"], more["kl_mean"])
                self.assertLess(fewer["bits_per_element"], more["bits_per_element"])
            self.assertLess(all_pages[name + ", 4 recent pages"]["kl_mean"], 1e-4)

    def test_unbounded_is_a_row_beside_each_artifact(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "3,2", "--q-norm", "off")
        rows = self.deployed("--artifact", "3.kvq", "--artifact", "2.kvq", "--unbounded")
        self.assertEqual(list(rows),
                         ["f16", "nuq3-1%", "nuq3-1%, unbounded", "nuq2-1%", "nuq2-1%, unbounded"])
        self.assertLess(0, rows["nuq3-1%, unbounded"]["kl_mean"])
        self.assertLess(rows["nuq3-1%, unbounded"]["kl_mean"], rows["nuq2-1%, unbounded"]["kl_mean"])

    def test_without_outliers_packed_pages_are_what_is_simulated(self) -> None:
        self.calibrate("a.kvq", "--outliers", "0", "--sinks", "2")
        rows = self.deployed("--artifact", "a.kvq", "--unbounded", "--recent-pages", "1")
        packed, simulated = list(rows.values())[1:]
        self.assertEqual(packed["name"] + ", unbounded", simulated["name"])
        self.assertAlmostEqual(packed["kl_mean"] / simulated["kl_mean"], 1, delta=0.1)

    def test_with_bos_the_sink_is_bos(self) -> None:
        model = self.write_model("bos.gguf", "--add-bos")
        self.calibrate("a.kvq", model=model)
        found, _ = self.evaluate("--artifact", "a.kvq", "--context", "256", "--tokens", "512", model=model)
        self.assertEqual(found["predictions"], 512)
        self.assertLess(0, found["rows"][1]["kl_mean"])

    def test_keys_quantized_after_rope_are_refused(self) -> None:
        self.calibrate("a.kvq", "--keys", "post-rope")
        command = ("eval", self.model, "--text", self.text, "--artifact", "a.kvq", "--context", "64")
        self.expect_error(1, ["cpu: not supported", "keys quantized after RoPE"], *command)
        self.assertIn("post-RoPE keys", self.succeed(*command, "--mode", "simulated"))

    def test_backends_that_are_not_there_are_refused(self) -> None:
        self.expect_error(2, ["--backend", "abacus", "cpu-generic"], "eval", self.model, "--text", self.text,
                          "--backend", "abacus")

    def test_recent_pages_below_0_are_refused(self) -> None:
        self.expect_error(2, ["--recent-pages"], "eval", self.model, "--text", self.text, "--recent-pages", "-1")


if __name__ == "__main__":
    main()
