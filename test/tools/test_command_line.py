#!/usr/bin/env python3
"""What all subcommands share: usage, help, --quiet, and a progress bar on terminals alone."""

import os
import pty
import subprocess

from tool_case import KVQUANT, ToolCase, main

SUBCOMMANDS = ("bench attend", "bench seal", "calibrate", "eval", "generate", "inspect", "plan", "task", "tokenize")


class Usage(ToolCase):
    def test_version(self) -> None:
        self.assertRegex(self.succeed("--version"), r"\A\d+\.\d+\.\d+\n\Z")

    def test_help(self) -> None:
        said = self.succeed("--help")
        for name in SUBCOMMANDS:
            self.assertIn(name.split()[0], said)
            self.assertIn("--json", self.succeed(*name.split(), "--help"))

    def test_bad_usage(self) -> None:
        text = ("--text", self.text)
        for said, *words in (
                ["subcommand"], ["--quiet", "--quiet"], ["nothing", "nothing"],
                ["MODEL", "eval", *text], ["--text", "eval", self.model], ["MODEL", "tokenize", *text],
                ["--text", "tokenize", self.model], ["FILE", "inspect"], ["MODEL", "calibrate"],
                ["--text", "calibrate", self.model], ["--bitz", "calibrate", self.model, *text, "--bitz", "3"],
                ["--json", "eval", self.model, *text, "--json"],
                ["--threads", "eval", self.model, *text, "--threads", "-1"],
                ["--context", "eval", self.model, *text, "--context", "1"],
                ["--context", "eval", self.model, *text, "--context", "many"],
                ["--tokens", "eval", self.model, *text, "--tokens", "-5"],
                ["--mode", "eval", self.model, *text, "--mode", "dreamt"],
                ["q5_k", "eval", self.model, *text, "--baseline", "f16,q5_k"],
                ["nuq9", "calibrate", self.model, *text, "--bits", "9"],
                ["nuq0", "calibrate", self.model, *text, "--bits", "4,0"],
                ["three", "calibrate", self.model, *text, "--bits", "three"],
                ["gguf3", "calibrate", self.model, *text, "--format", "gguf"],
                ["{bits}", "calibrate", self.model, *text, "--bits", "4,3", "-o", "a.kvq"],
                ["--weights", "calibrate", self.model, *text, "--weights", "heavy"],
                ["--keys", "calibrate", self.model, *text, "--keys", "lost"],
                ["--q-norm", "calibrate", self.model, *text, "--q-norm", "maybe"],
                ["--outliers", "calibrate", self.model, *text, "--outliers", "0.6"],
                ["--samples", "calibrate", self.model, *text, "--samples", "0"],
                ["at most 62", "calibrate", self.model, *text, "--context", "64", "--sinks", "63"],
                ["--from-stats", "calibrate", self.model, "--from-stats", "s.stats"],
                ["unexpected.txt", "inspect", self.model, "unexpected.txt"]):
            with self.subTest(said=said, words=words):
                self.expect_error(2, [said, "--help"], *words)

    def test_options_may_stand_before_the_model(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "4,3")
        self.assertEqual(self.succeed("calibrate", "--bits", "3", self.model, "--text", self.text, "--samples", "1",
                                      "--context", "16", "--quiet"), "")
        found = self.succeed_json("eval", "--baseline", "q8_0,int4", "--artifact", "4.kvq", "--artifact", "3.kvq",
                                  self.model, "--text", self.text, "--context", "64")
        self.assertEqual([row["name"] for row in found["rows"]], ["f16", "q8_0", "int4", "nuq4-1%", "nuq3-1%"])

    def test_quiet_says_nothing(self) -> None:
        self.calibrate("a.kvq", "--stats", "s.stats")  # is quiet, and checked to succeed
        text = ("--text", self.text)
        for words in (["calibrate", self.model, *text, "--samples", "1", "--context", "16"],
                      ["calibrate", "--from-stats", "s.stats"], ["eval", self.model, *text, "--context", "64"],
                      ["tokenize", self.model, *text], ["inspect", self.model, "--tensors"], ["inspect", "a.kvq"],
                      ["inspect", "s.stats"], ["plan", self.model],
                      ["plan", "--solve", "--artifact", "a.kvq", "--budget", "1GiB"]):
            self.assertEqual(self.succeed(*words, "--quiet"), "", words)
            self.assertNotEqual(self.succeed(*words), "", words)

    def test_an_output_that_cannot_be_written_fails(self) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run([KVQUANT, "inspect", str(self.model)], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual((done.returncode, done.stderr), (1, "kvquant: standard output: cannot be written\n"))


class Progress(ToolCase):
    def on_terminal(self, *words) -> tuple[int, str]:
        """Exit status, and what a terminal at standard error is sent."""
        ours, theirs = pty.openpty()
        tool = subprocess.Popen([KVQUANT, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=theirs, cwd=self.folder)
        os.close(theirs)
        sent = b""
        try:
            while part := os.read(ours, 4096):
                sent += part
        except OSError:  # Linux reports a terminal without writers so
            pass
        os.close(ours)
        return tool.wait(timeout=60), sent.decode()

    def check_bar(self, label: str, steps: list[int], *words) -> None:
        status, sent = self.on_terminal(*words)
        self.assertEqual(status, 0, sent)
        cleared = "\r\x1b[K"
        self.assertTrue(sent.startswith(cleared) and sent.endswith(cleared), repr(sent))
        bars = sent.split(cleared)[1:-1]
        self.assertEqual(len(bars), len(steps))
        for bar, step in zip(bars, steps):
            left = r", \d\d:\d\d left" if step else ""
            filled = 30 * step // steps[-1]
            percent = f"{100 * step / steps[-1]:.0f}"
            self.assertRegex(bar, rf"^{label} \[#{{{filled}}}\.{{{30 - filled}}}\] +{percent} %{left}$")
        self.assertRegex(bars[-1], "100 %, 00:00 left$")

    def test_eval_steps_by_window_and_row(self) -> None:
        self.check_bar("evaluating", list(range(5)), "eval", self.model, "--text", self.text, "--context", "64",
                       "--tokens", "128", "--baseline", "int4")

    def test_calibrate_counts_a_pass_with_gradients_as_three(self) -> None:
        self.check_bar("calibrating", [0, 1, 2, 5, 8], "calibrate", self.model, "--text", self.text, "--samples", "2",
                       "--context", "64")

    def test_quiet_draws_nothing(self) -> None:
        sent = self.on_terminal("eval", self.model, "--text", self.text, "--context", "64", "--quiet")
        self.assertEqual(sent, (0, ""))

    def test_an_error_stands_on_a_line_of_its_own(self) -> None:
        status, sent = self.on_terminal("eval", self.model, "--text", "absent.txt")
        self.assertEqual((status, sent), (1, "kvquant: absent.txt: No such file or directory\r\n"))


if __name__ == "__main__":
    main()
