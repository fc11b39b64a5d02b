#!/usr/bin/env python3
"""kvquant plan: memory of models and caches, formats within a budget."""

import csv

from tool_case import KV_HEADS, LAYERS, ToolCase, main

PARTS = ["codes", "value_ranges", "slots", "padding", "sinks", "tail", "tables", "page_table", "slack"]


class Memory(ToolCase):
    def test_a_table_for_people(self) -> None:
        text = self.succeed("plan", "--model", "llama-7b", "--context", "128K", "--device", "a100-80g")
        self.assertIn("llama-7b: 32 layers, 32 KV heads x 128, weights 12.6 GiB\n", text)
        self.assertIn("batch 1 x 131072 tokens, 1 device a100-80g of 80.0 GiB, 2039 GB/s\n", text)
        rows = {words[0]: words for words in map(str.split, text.splitlines()) if words}
        self.assertEqual(rows["nuq3-1%"][1:8], ["3.51", "14.0", "GiB", "13.3", "GiB", "26.7", "GiB"])
        self.assertIn("of those that fit, most bits: f16; cheapest: adaptive2\n", text)
        self.assertNotIn("not served", text)
        text = self.succeed("plan", "--model", "llama-7b", "--context", "128K", "--device", "a100-80g", "--format",
                            "nuq4/nuq2,nuq3")
        self.assertIn("not served by the CUDA backend for this model, and counted as the CPU's pages: nuq4/nuq2\n", text)

    def test_what_files_say(self) -> None:
        table = self.folder / "rows.csv"
        found = self.succeed_json("plan", "--model", "llama-3-8b", "--context", "1M", "--bits", "3,2", "--batch", "2",
                                  "--device", "h100-80g", "--devices", "2", "--csv", table)
        self.assertEqual((found["context"], found["batch"], found["devices"]), (1 << 20, 2, 2))
        self.assertEqual([row["format"] for row in found["rows"]], ["nuq3-1%", "nuq2-1%"])
        for row in found["rows"]:
            self.assertEqual(row["cache"], sum(row[part] for part in PARTS))
            self.assertEqual(row["total"], row["cache"] + row["weights"] + row["activations"])
            self.assertEqual(row["fits"], row["total"] <= found["device"]["memory"])
            self.assertAlmostEqual(row["tokens_per_second"], 2 * found["device"]["bandwidth"] / row["read_by_a_step"])
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([{name: str(value) for name, value in row.items() if name == "fits"} | {"total": row["total"]}
                          for row in rows], [{"fits": str(row["fits"]).lower(), "total": str(row["total"])}
                                             for row in found["rows"]])

    def test_the_longest_context_fits(self) -> None:
        plan = ["plan", "--model", "mistral-7b", "--format", "nuq4-1%", "--device", "rtx-4090"]
        longest = self.succeed_json(*plan)["rows"][0]["longest_context"]
        for tokens, fits in [(longest, True), (longest + 1, False)]:
            self.assertEqual(self.succeed_json(*plan, "--context", str(tokens))["rows"][0]["fits"], fits)

    def test_a_models_own_file(self) -> None:
        found = self.succeed_json("plan", self.model, "--context", "200", "--format", "f16")
        row = found["rows"][0]
        token = 2 * LAYERS * KV_HEADS * 32 * 2
        self.assertEqual((row["codes"], row["sinks"], row["tail"]), (192 * token, token, 7 * token))
        self.assertLess(found["weight_bytes"], self.model.stat().st_size)
        self.assertGreater(found["weight_bytes"], 0.9 * self.model.stat().st_size)

    def test_this_machine(self) -> None:
        found = self.succeed_json("plan", self.model, "--context", "1K", "--bits", "2", "--device", "cpu")
        self.assertTrue(found["rows"][0]["fits"] and found["rows"][0]["served"])
        self.assertGreater(found["device"]["bandwidth"], 1e8)

    def test_outliers_are_for_formats_that_name_none(self) -> None:
        found = self.succeed_json("plan", "--model", "llama-7b", "--format", "nuq4,nuq3-1%/nuq2", "--outliers", "0.02",
                                  "--bits", "2")
        self.assertEqual([row["format"] for row in found["rows"]], ["nuq4-2%", "nuq3-1%/nuq2-2%", "nuq2-2%"])


class Solve(ToolCase):
    def setUp(self) -> None:
        super().setUp()
        self.statistics = self.folder / "stats"
        self.artifact = self.calibrate("a-{bits}.kvq", "--format", "adaptive", "--bits", "3,2", "--outliers", "0",
                                       "--stats", self.statistics).parent

    def test_from_statistics(self) -> None:
        table = self.folder / "curve.csv"
        found = self.succeed_json("plan", "--solve", "--from-stats", self.statistics, "--budget", "160KiB", "--context",
                                  "1000", "--csv", table)
        names = [row["format"] for row in found["rows"]]
        for name in ["nuq2", "nuq4", "adaptive1.5", "adaptive2.5-0.5%", "f16"]:
            self.assertIn(name, names)
        best = found["solutions"]
        self.assertLessEqual(max(it["bytes"] for it in best.values()), 160 << 10)
        self.assertLessEqual(best["layers_apart"]["loss"], best["makeable"]["loss"] * (1 + 1e-12))
        self.assertEqual(len(best["layers_apart"]["layers"]), LAYERS)
        fitting = [row for row in found["rows"] if row["bytes"] <= 160 << 10]
        self.assertEqual(best["makeable"]["loss"], min(row["loss"] for row in fitting))
        with open(table, newline="") as file:
            self.assertEqual([row["format"] for row in csv.DictReader(file)], names)

    def test_the_same_twice_whatever_the_threads(self) -> None:
        plan = ["plan", "--solve", "--from-stats", self.statistics, "--budget", "160KiB", "--context", "1000"]
        self.assertEqual(self.succeed_json(*plan, "--threads", "1"), self.succeed_json(*plan, "--threads", "3"))

    def test_from_artifacts(self) -> None:
        text = self.succeed("plan", "--solve", "--artifact", "a-3.kvq", "--artifact", "a-2.kvq", "--budget", "1MiB",
                            "--context", "1000")
        rows = [words for words in map(str.split, text.splitlines()) if words]
        two, three = sorted((words for words in rows if words[0].startswith("adaptive") and words[3] == "KiB"),
                            key=lambda words: float(words[1]))
        self.assertGreater(float(two[5]), float(three[5]))
        self.assertIn("can be made today: no calibration: f16", text)

    def test_what_a_device_does_not_serve_is_nothing_to_make(self) -> None:
        found = self.succeed_json("plan", "--solve", "--artifact", "a-3.kvq", "--budget", "1MiB", "--device", "h200",
                                  "--context", "1000")  # heads of 32 channels
        self.assertEqual(found["rows"], [])
        self.assertEqual(set(found["solutions"]), {"sides_apart", "layers_apart"})

    def test_the_command_for_what_was_found(self) -> None:
        small = self.succeed("plan", "--solve", "--artifact", "a-3.kvq", "--artifact", "a-2.kvq", "--budget", "180KiB",
                             "--context", "1000")
        self.assertIn("kvquant calibrate MODEL --format adaptive --bits 3 --outliers 0\n", small)

    def test_budgets_that_hold_nothing(self) -> None:
        self.expect_error(1, ["budget of 1024 bytes", "adaptive2"], "plan", "--solve", "--artifact",
                          "a-2.kvq", "--budget", "1KiB")

    def test_sources_of_other_calibrations(self) -> None:
        self.calibrate("other.kvq", "--seed", "9")
        self.expect_error(1, ["other.kvq", "seed 9", "seed 0"], "plan", "--solve", "--artifact", "a-2.kvq",
                          "--artifact", "other.kvq", "--budget", "1MiB")
        self.calibrate("plain.kvq", "--weights", "none")
        self.expect_error(1, ["plain.kvq", "none weights", "fisher"], "plan", "--solve", "--artifact", "plain.kvq",
                          "--budget", "1MiB")


class Refusals(ToolCase):
    def test_usage(self) -> None:
        for said, words in [
            (["MODEL or --model"], []),
            (["MODEL or --model"], [self.model, "--model", "llama-7b"]),
            (["\"0\" tokens", "131072"], ["--model", "llama-7b", "--context", "0"]),
            (["\"-5\" tokens"], ["--model", "llama-7b", "--context=-5"]),
            (["\"99999999999999999999\" tokens", "2^40"], ["--model", "llama-7b", "--context", "99999999999999999999"]),
            (["nuq9", "nuq4"], ["--model", "llama-7b", "--format", "nuq9"]),
            (["--batch"], ["--model", "llama-7b", "--batch", "0"]),
            (["--devices"], ["--model", "llama-7b", "--devices", "0"]),
            (["--weight-bits"], [self.model, "--weight-bits", "4"]),
            (["--solve"], ["--model", "llama-7b", "--budget", "1GiB"]),
            (["--artifact or --from-stats"], ["--solve", "--budget", "1GiB"]),
            (["--budget"], ["--solve", "--artifact", "a.kvq"]),
            (["\"2 apples\" bytes", "2GiB"], ["--solve", "--artifact", "a.kvq", "--budget", "2 apples"]),
        ]:
            self.expect_error(2, said, "plan", *words)

    def test_what_is_not_known(self) -> None:
        self.expect_error(1, ["\"llama-8b\"", "llama-3-8b"], "plan", "--model", "llama-8b")
        self.expect_error(1, ["\"a100\"", "a100-80g"], "plan", "--model", "llama-7b", "--device", "a100")
        self.expect_error(1, ["max_tokens", "8589934528"], "plan", "--model", "llama-7b", "--context", "1048576M")
        self.expect_error(1, [str(self.text)], "plan", self.text)

    def test_outputs(self) -> None:
        self.expect_error(1, ["model.gguf", "read or written already"], "plan", "model.gguf", "--csv", "model.gguf")


if __name__ == "__main__":
    main()
