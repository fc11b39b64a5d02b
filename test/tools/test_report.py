#!/usr/bin/env python3
"""kvquant report: takes what the other commands write today. What the program itself does is tested in report/."""

import os

from tool_case import LAYERS, ToolCase, main


class Report(ToolCase):
    def write_files_of_all_commands(self) -> None:
        found = self.folder / "found"
        found.mkdir()

        def write(name: str, *words: object) -> None:
            self.succeed(*words, "--quiet", "--json", found / f"{name}.json")

        self.calibrate("a.kvq", "--stats", "s.stats", "--json", str(found / "calibrate.json"))
        self.calibrate("b.kvq", "--format", "adaptive", "--bits", "2.5")
        write("eval", "eval", self.model, "--text", self.text, "--context", "64", "--artifact", "a.kvq")
        for name in ("a.kvq", "b.kvq", "s.stats", self.model):
            write(f"inspect-{os.path.basename(name)}", "inspect", name)
        write("passkey", "task", self.model, "passkey", "--lengths", "300", "--samples", "1", "--depths", "0,100",
              "--artifact", "a.kvq", "-o", found / "passkey.jsonl")
        write("plan", "plan", self.model, "--context", "4K")
        write("solve", "plan", "--solve", "--artifact", "a.kvq", "--budget", "1GiB")
        write("attend", "bench", "attend", "--shape", "2/1/32", "--context", "256", "--formats", "nuq3", "--seconds", "0",
              "--working-set", "0")
        write("seal", "bench", "seal", "--shape", "2/1/32", "--formats", "nuq3", "--seconds", "0")
        write("generate", "generate", self.model, "--artifact", "a.kvq", "--prompt", "alpha", "--max-tokens", "4")

    def test_takes_what_commands_write(self) -> None:
        self.write_files_of_all_commands()
        said = self.succeed("report", "found", "--text", "--csv", "csv")
        for title in ("Perplexity against bits", "Sensitivity by layer", "Values and the levels of codebooks",
                      "Where the bits of adaptive 2.5", "Predicted loss against memory", "Sealing of pages", "Generation",
                      "Hidden numbers that were told"):
            self.assertIn(f"\n{title}", said)
        for name in ("perplexity", "codebooks", "memory", "roofline", "generation"):
            self.assertTrue((self.folder / "csv" / f"{name}.csv").is_file(), name)
        self.assertEqual(len((self.folder / "csv" / "sensitivity-by-layer.csv").read_text().splitlines()), 1 + LAYERS)

    def test_is_a_command_like_the_others(self) -> None:
        self.assertIn("report", self.succeed("--help"))
        self.assertIn("usage: kvquant report", self.succeed("report", "--help"))
        self.expect_error(2, ["report: nothing to write", "--help"], "report", self.folder)
        self.expect_error(1, ["report: ", "no .json"], "report", self.folder, "--text")

    def test_python_can_be_chosen(self) -> None:
        self.expect_error(1, ["report: nowhere/python cannot be run", "KVQUANT_PYTHON"], "report", self.folder, "--text",
                          env={**os.environ, "KVQUANT_PYTHON": "nowhere/python"})


if __name__ == "__main__":
    main()
