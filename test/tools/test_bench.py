#!/usr/bin/env python3
"""kvquant bench: what it says and refuses; that its figures are right is for the measurement to check."""

import json
import os

from tool_case import ToolCase, main

# One round of small cases whose bytes need not leave the machine's caches.
BRIEF = ("--seconds", "0", "--shape", "2/1/32")
WARM = (*BRIEF, "--working-set", "0")
MEMBERS = {"name", "isa", "format", "ns_per_token_layer", "seconds_per_call", "gbps", "share_of_bandwidth",
           "ratio_to_f16", "bytes", "error"}
ISAS = ("avx512", "avx2", "portable")


class Attend(ToolCase):
    def test_the_table(self) -> None:
        lines = self.succeed("bench", "attend", *WARM, "--context", "64,1K", "--formats", "nuq4,nuq3-1%").splitlines()
        self.assertRegex(lines[0], r"^1 thread read \d+\.\d GB/s$")
        self.assertEqual(lines[1].split(), "case ns/token/layer MB GB/s bandwidth % x f16 error".split())
        self.assertEqual([line.split("  ")[0] for line in lines[2:]],
                         [f"2/1/32 {context}, batch 1, 1 thread, {name}" for context in ("64", "1K")
                          for name in (self.baseline(), "nuq4", "nuq3-1%")])

    def baseline(self) -> str:
        found = self.succeed_json("bench", "attend", *WARM, "--context", "64", "--formats", "nuq2")
        return found["cases"][0]["format"]

    def test_json(self) -> None:
        found = self.succeed_json("bench", "attend", *WARM, "--shape", "3/3/16", "--context", "128", "--formats",
                                  "nuq4,nuq2-1%", "--batch", "1,3", "--threads", "1,2")
        cases = {case["name"]: case for case in found["cases"]}
        self.assertEqual(len(cases), 2 * 2 * 2 * 3)
        self.assertEqual(set(found["bandwidth_gbps"]), {"1", "2"})
        self.assertEqual(found["skipped"], [])
        self.assertEqual(found["slower_than_f16"],
                         [f"{name}, {case['isa']}" for name, case in cases.items() if case["ratio_to_f16"] < 1])
        self.assertEqual(len({case["isa"] for case in cases.values()}), 1)
        for case in cases.values():
            self.assertEqual(set(case), MEMBERS)
            self.assertTrue(0 <= case["error"] < 2e-2, case)
            self.assertAlmostEqual(case["gbps"] * case["seconds_per_call"] * 1e9 / case["bytes"], 1)

    def test_bytes_and_times_are_those_of_the_case(self) -> None:
        found = self.succeed_json("bench", "attend", *WARM, "--context", "128", "--formats", "nuq4", "--batch", "1,3")
        cases = {case["name"]: case for case in found["cases"]}
        one, three = (cases[f"2/1/32 128, batch {batch}, 1 thread, nuq4"] for batch in (1, 3))
        # Two pages of 64 tokens x 32 channels: codes of both sides and a range for each token; 41 exact tokens.
        self.assertEqual(one["bytes"], 2 * (2 * 64 * 32 // 2 + 64 * 4) + 41 * 32 * 2 * 2)
        self.assertEqual(three["bytes"], 3 * one["bytes"])
        for batch, case in ((1, one), (3, three)):
            per_token = case["seconds_per_call"] * 1e9 / (batch * (128 + 41))
            self.assertAlmostEqual(case["ns_per_token_layer"] / per_token, 1)

    def test_the_baseline_is_its_own_measure(self) -> None:
        found = self.succeed_json("bench", "attend", *WARM, "--context", "64", "--formats", "nuq4")
        self.assertEqual([case["ratio_to_f16"] for case in found["cases"]][0], 1)

    def best_isa(self) -> str:
        found = self.succeed_json("bench", "attend", *WARM, "--context", "64", "--formats", "nuq2")
        return found["cases"][0]["isa"]

    def sweep(self, *options: str) -> tuple[list[str], dict]:
        """Lines and JSON of a brief sweep."""
        path = self.folder / "sweep.json"
        said = self.succeed("bench", "attend", "--sweep", *WARM, *options, "--json", path).splitlines()
        return said, json.loads(path.read_text())

    def test_a_sweep_shows_the_ratio_of_every_case_and_ends_with_the_verdict(self) -> None:
        said, found = self.sweep()
        cases = {f"{case['name']}, {case['isa']}": case["ratio_to_f16"] for case in found["cases"]
                 if case["format"] != "f16"}
        isas = {case["isa"] for case in found["cases"]}
        self.assertGreaterEqual(isas, {self.best_isa()})
        self.assertEqual(set(cases), {f"2/1/32 {context}, batch 1, 1 thread, {name}, {isa}"
                                      for context in ("256", "512", "1K", "2K", "4K", "8K", "16K", "32K")
                                      for name in ("nuq4", "nuq4-1%", "nuq3-1%", "nuq2-1%", "adaptive3") for isa in isas})
        self.assertEqual(said[1].split(), "case x f16".split())
        self.assertEqual([line.rsplit(maxsplit=1) for line in said[2:2 + len(cases)]],
                         [[name, f"{ratio:.2f}"] for name, ratio in cases.items()])
        slower = [name for name, ratio in cases.items() if ratio < 1]
        self.assertEqual(found["slower_than_f16"], slower)
        verdict = [*(f"slower than f16: {name}" for name in slower),
                   f"{len(slower)} of {len(cases)} cases are slower than f16"]
        if not slower:
            least = min(cases, key=cases.get)
            verdict = [f"faster than f16 in all {len(cases)} cases, least ratio {cases[least]:.2f} at {least}"]
        self.assertEqual(said[2 + len(cases):], verdict)

    def test_a_sweep_of_what_is_asked_for(self) -> None:
        _, found = self.sweep("--formats", "nuq3", "--isa", "avx2")
        self.assertEqual([(case["format"], case["isa"]) for case in found["cases"]],
                         [("f16", "avx2"), ("nuq3", "avx2")] * 8)

    def test_a_sweep_of_nothing(self) -> None:
        said = self.succeed("bench", "attend", "--sweep", "--shape", "512/512/128", "--working-set", str(1 << 40))
        self.assertEqual(said.splitlines()[-1], "0 of 0 cases are slower than f16")

    def test_what_does_not_fit_is_skipped(self) -> None:
        said = self.succeed("bench", "attend", *BRIEF, "--context", "16384K", "--working-set", str(1 << 40))
        self.assertRegex(said, r"skipped: 2/1/32 16384K, batch 1, 1 thread: needs \d+ MiB, more than 60 % of the \d+ MiB")

    def test_an_isa_can_be_named(self) -> None:
        command = ("bench", "attend", *WARM, "--context", "64", "--formats", "nuq4", "--json", "a.json")
        for options, environment in ((("--isa", "portable"), {}), ((), {"KVQUANT_ISA": "portable"})):
            self.succeed(*command, *options, env={**os.environ, **environment})
            found = json.loads((self.folder / "a.json").read_text())
            self.assertEqual([case["isa"] for case in found["cases"]], ["portable"] * 2)

    def test_refusals(self) -> None:
        for said, *words in (
                ["subcommand"], ["--shape", "attend", "--shape", "32/8"], ["q_heads is 32", "attend", "--shape", "32/5/128"],
                ["32/8/128/1", "attend", "--shape", "32/8/128/1"], ["head_dim", "attend", "--shape", "4/2/24"],
                ["q_heads", "attend", "--shape", "0/2/32"], ["\"8G\"", "attend", "--context", "8G"],
                ["\"100\"", "attend", "--context", "64,100"], ["\"0\"", "attend", "--context", "0"],
                ["\"99999K\"", "attend", "--context", "99999K"], ["\"nuq5\"", "attend", "--formats", "nuq4,nuq5"],
                ["\"nuq3-0%\"", "attend", "--formats", "nuq3-0%"], ["\"nuq3-1\"", "attend", "--formats", "nuq3-1"],
                ["\"nuq3-50%\"", "seal", "--formats", "nuq3-50%"], ["--batch", "attend", "--batch", "0"],
                ["--threads", "attend", "--threads", "1,many"], ["--isa", "attend", "--isa", "sse9"],
                ["--isa", "seal", "--isa", "AVX2"], ["--seconds", "attend", "--seconds", "-1"],
                ["--sweep", "attend", "--sweep", "--context", "64"], ["absent", "seal", "absent"]):
            with self.subTest(said=said, words=words):
                self.expect_error(2, [said, "--help"], "bench", *words)

    def test_an_output_that_cannot_be_written(self) -> None:
        self.expect_error(1, ["absent/a.json"], "bench", "attend", *WARM, "--json", "absent/a.json")

    def test_help(self) -> None:
        for name in ("attend", "seal"):
            said = self.succeed("bench", name, "--help")
            for option in ("--isa", *ISAS):
                self.assertIn(option, said)


class Seal(ToolCase):
    def test_the_table(self) -> None:
        lines = self.succeed("bench", "seal", *BRIEF, "--formats", "nuq4,nuq3-1%").splitlines()
        self.assertEqual(lines[0].split(), "format GB/s x f16 of a copy error".split())
        self.assertEqual([line.split("  ")[0] for line in lines[2:]], ["2/1/32, nuq4", "2/1/32, nuq3-1%"])

    def test_json(self) -> None:
        found = self.succeed_json("bench", "seal", *BRIEF, "--formats", "nuq2,nuq4-1%")
        self.assertEqual([case["name"] for case in found["cases"]][1:], ["2/1/32, nuq2", "2/1/32, nuq4-1%"])
        for case in found["cases"]:
            self.assertEqual(set(case), {"name", "gbps", "ratio_to_f16", "ratio_to_copy", "error"})
            self.assertTrue(case["gbps"] > 0 and case["ratio_to_copy"] > 0 and case["error"] < 0.5, case)
        two, four = found["cases"][1:]
        self.assertGreater(two["error"], 2 * four["error"])


class Million(ToolCase):
    def command(self, artifact: str, *options: str) -> tuple:
        return ("bench", "million", self.model, "--artifact", self.folder / artifact, "--text", self.text, "--tokens",
                "1K", "--windows", "2", "--context", "64", "--steps", "2", *options)

    def test_a_long_sequence_is_the_references(self) -> None:
        self.calibrate("a.kvq")
        found = self.succeed_json(*self.command("a.kvq"))
        self.assertEqual(found["tokens"], 1024)
        self.assertTrue(0 < found["error"] < 2e-2, found)
        self.assertTrue(0 < found["cache_bytes"] < found["f16_bytes"], found)
        self.assertAlmostEqual(found["bits"] / 16, found["cache_bytes"] / found["f16_bytes"])
        self.assertAlmostEqual(found["gbps"] * 1e9 * found["attend_seconds"] / found["cache_bytes"], 1)
        self.assertGreater(found["step_seconds"], 0)
        lines = self.succeed(*self.command("a.kvq")).splitlines()
        self.assertEqual(lines[0].split(), ["tokens", "1024"])

    def test_exact_pages_are_exact(self) -> None:
        self.calibrate("f.kvq", "--format", "f16")
        found = self.succeed_json(*self.command("f.kvq"))
        self.assertLess(found["error"], 1e-4)

    def test_what_it_refuses(self) -> None:
        self.calibrate("a.kvq")
        whole = ("bench", "million", self.model, "--artifact", self.folder / "a.kvq", "--text", self.text)
        self.expect_error(2, ["--tokens", "multiple of 64"], *whole, "--tokens", "1000")
        self.expect_error(2, ["--tokens"], *whole, "--tokens", "64,128")
        self.expect_error(2, ["--artifact"], "bench", "million", self.model, "--text", self.text)
        self.expect_error(1, ["text.txt", "window of 1000000"], *whole, "--context", "1000000")
        other = self.write_model("other.gguf", "--seed", "2")
        self.expect_error(1, ["a.kvq", "made for"], "bench", "million", other, "--artifact", self.folder / "a.kvq", "--text",
                          self.text)


if __name__ == "__main__":
    main()
