#!/usr/bin/env python3
"""Files that are not what they should be, and places that cannot be written: one line says so, and nothing is left."""

import os
import pathlib
import random
import resource
import signal
import unittest

from tool_case import ToolCase, main


class Inputs(ToolCase):
    def commands(self, model: str | pathlib.Path, text: str | pathlib.Path) -> list[list]:
        return [["tokenize", model, "--text", text],
                ["eval", model, "--text", text, "--context", "64", "--json", "e.json"],
                ["calibrate", model, "--text", text, "--context", "64", "-o", "a.kvq", "--stats", "s.stats"]]

    def test_missing_files_and_folders(self) -> None:
        for name, said in (("absent", "No such file"), (".", "file")):
            for words in self.commands(name, self.text) + self.commands(self.model, name):
                self.expect_error(1, [f"{name}: ", said], *words)
            for words in (["inspect", name], ["calibrate", "--from-stats", name, "-o", "a.kvq"],
                          ["eval", self.model, "--text", self.text, "--artifact", name],
                          ["calibrate", self.model, "--text", self.text, "--ranges", name, "--context", "64"]):
                self.expect_error(1, [f"{name}: ", said], *words)

    def test_a_pipe_is_not_waited_for(self) -> None:
        os.mkfifo(self.folder / "pipe")
        for words in self.commands("pipe", self.text) + self.commands(self.model, "pipe"):
            self.expect_error(1, ["pipe: ", "file"], *words)

    def test_empty_and_short_texts(self) -> None:
        self.text.write_bytes(b"")
        for words in self.commands(self.model, self.text):
            self.expect_error(1, ["text.txt: the text is empty"], *words)
        self.text.write_text("x" * 63)
        for words in self.commands(self.model, self.text)[1:]:
            self.expect_error(1, ["text.txt: 63 tokens", "window of 64", "--context"], *words)
        self.expect_error(1, ["20 tokens", "window of 63"], "eval", self.model, "--text", self.text, "--context", "63",
                          "--tokens", "20")

    def test_names_that_are_empty(self) -> None:
        for words in [*self.commands("", self.text)[:2], ["inspect", ""]]:
            self.expect_error(1, ["No such file"], *words)

    def test_names_with_line_breaks_stay_on_the_line(self) -> None:
        self.expect_error(1, ["no such: No such file"], "inspect", "no\nsuch")

    def test_weights_that_are_not_finite(self) -> None:
        for tensor in ("token_embd.weight", "blk.1.attn_k.weight", "output_norm.weight"):
            model = self.write_model("nan.gguf", "--nan", tensor)
            for words in self.commands(model, self.text)[1:]:
                self.expect_error(1, ["nan.gguf", f'"{tensor}"', "nan", "expected finite"], *words)

    def test_missing_tensors(self) -> None:
        model = self.write_model("less.gguf", "--drop", "blk.1.ffn_up.weight")
        for words in self.commands(model, self.text)[1:]:
            self.expect_error(1, ["less.gguf", '"blk.1.ffn_up.weight" is missing'], *words)

    def test_unknown_architectures(self) -> None:
        model = self.write_model("other.gguf", "--architecture", "mamba")
        for words in self.commands(model, self.text)[1:]:
            self.expect_error(1, ["other.gguf", '"mamba"', "expected one of llama, qwen2, gemma3"], *words)


class BrokenModels(ToolCase):
    def evaluated(self) -> list:
        return ["eval", "broken.gguf", "--text", self.text, "--context", "64", "--tokens", "64"]

    def test_truncated_anywhere(self) -> None:
        whole = self.model.read_bytes()
        chosen = random.Random(1)
        lengths = [*range(0, 40, 3), *(chosen.randrange(40, 12000) for _ in range(30)),
                   *(chosen.randrange(12000, len(whole)) for _ in range(10)), len(whole) - 1]
        for length in lengths:
            (self.folder / "broken.gguf").write_bytes(whole[:length])
            self.expect_error(1, ["broken.gguf"], *self.evaluated())

    def test_wrong_magic(self) -> None:
        for magic in (b"GGML", b"FUGG", b"\x7fELF"):
            (self.folder / "broken.gguf").write_bytes(magic + self.model.read_bytes()[4:])
            self.expect_error(1, ["broken.gguf", "GGUF"], *self.evaluated())

    def test_a_flipped_bit_in_the_header_is_an_error_or_harmless(self) -> None:
        whole = self.model.read_bytes()
        chosen = random.Random(2)
        header = whole.index(b"blk.1.ffn_down.weight") + 64
        refused = 0
        for at in [*range(0, 24), *(chosen.randrange(24, header) for _ in range(150))]:
            broken = bytearray(whole)
            broken[at] ^= 1 << chosen.randrange(8)
            (self.folder / "broken.gguf").write_bytes(broken)
            done = self.run_tool(*self.evaluated())
            self.assertIn(done.returncode, (0, 1), (at, done.stderr))
            if done.returncode == 1:
                refused += 1
                self.assertRegex(done.stderr, r"\Akvquant: [^\n]+\n\Z", at)
                self.assertEqual(done.stdout, "", at)
        self.assertGreater(refused, 24)


class Artifacts(ToolCase):
    def setUp(self) -> None:
        super().setUp()
        self.calibrate("a.kvq", "--stats", "s.stats")

    def evaluated(self, artifact: str, model: pathlib.Path | None = None) -> list:
        return ["eval", model or self.model, "--text", self.text, "--artifact", artifact, "--context", "64", "--json",
                "e.json"]

    def test_of_another_model(self) -> None:
        other = self.write_model("other.gguf", "--name", "another", "--seed", "2")
        self.expect_error(1, ["a.kvq", '"tiny llama"', '"another"', "hash"], *self.evaluated("a.kvq", other))
        narrow = self.write_model("narrow.gguf", "--head-dim", "16")
        self.expect_error(1, ["a.kvq", "2 KV heads x 32", "2 KV heads x 16"], *self.evaluated("a.kvq", narrow))

    def test_statistics_are_no_artifact_and_an_artifact_is_no_statistics(self) -> None:
        self.expect_error(1, ["s.stats", "kvquant-artifact", "kvquant-statistics"], *self.evaluated("s.stats"))
        for option in ("--from-stats", "--ranges"):
            model = [self.model, "--text", self.text, "--context", "64"] if option == "--ranges" else []
            self.expect_error(1, ["a.kvq", "kvquant-statistics", "kvquant-artifact"], "calibrate", *model, option,
                              "a.kvq", "-o", "b.kvq")
        self.expect_error(1, ["model.gguf"], *self.evaluated("model.gguf"))
        self.expect_error(1, ["model.gguf"], "calibrate", "--from-stats", self.model, "-o", "b.kvq")

    def test_truncated_anywhere(self) -> None:
        chosen = random.Random(3)
        refit = ["calibrate", "-o", "b.kvq", "--from-stats", "broken"]
        for name, command in (("a.kvq", self.evaluated("broken")), ("s.stats", refit)):
            whole = (self.folder / name).read_bytes()
            for length in [0, 7, 8, 9, *(chosen.randrange(10, len(whole)) for _ in range(30)), len(whole) - 1]:
                (self.folder / "broken").write_bytes(whole[:length])
                self.expect_error(1, ["broken"], *command)
            (self.folder / "broken").write_bytes(whole + b"\0")
            self.expect_error(1, ["broken"], *command)

    def test_any_flipped_bit_is_found(self) -> None:
        chosen = random.Random(4)
        whole = (self.folder / "a.kvq").read_bytes()
        for at in [*range(8), *(chosen.randrange(8, len(whole)) for _ in range(250))]:
            broken = bytearray(whole)
            broken[at] ^= 1 << chosen.randrange(8)
            (self.folder / "broken").write_bytes(broken)
            self.expect_error(1, ["broken"], "inspect", "broken")

    def test_told_before_the_weights_are_read(self) -> None:
        broken = self.write_model("nan.gguf", "--nan", "token_embd.weight")
        self.expect_error(1, ["a.kvq", "made for"], *self.evaluated("a.kvq", broken))
        self.expect_error(1, ["absent.kvq"], *self.evaluated("absent.kvq", broken))


class Outputs(ToolCase):
    def commands(self, output: str, model: pathlib.Path | None = None) -> list[list]:
        with_text = [model or self.model, "--text", self.text]
        calibrate = ["calibrate", *with_text, "--samples", "1", "--context", "64"]
        evaluate = ["eval", *with_text, "--context", "64"]
        return [[*calibrate, "-o", output], [*calibrate, "-o", "a.kvq", "--stats", output],
                [*calibrate, "-o", "a.kvq", "--json", output], [*evaluate, "--json", output],
                [*evaluate, "--dump-nll", output], ["tokenize", *with_text, "--json", output],
                ["inspect", with_text[0], "--json", output]]

    def test_folders_that_are_not_there_told_before_the_weights_are_read(self) -> None:
        broken = self.write_model("nan.gguf", "--nan", "token_embd.weight")
        for place, said in (("absent/out", "No such file or directory"), ("text.txt/out", "Not a directory"),
                            (".", "not a regular file"), ("/dev/null", "not a regular file")):
            for words in self.commands(place, broken):
                self.expect_error(1, [f"{place}: ", said], *words)

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_folders_without_permission(self) -> None:
        locked = self.folder / "locked"
        locked.mkdir(mode=0o500)
        for words in self.commands("locked/out"):
            self.expect_error(1, ["locked/out: ", "Permission denied"], *words)

    def test_an_input_is_not_overwritten(self) -> None:
        for name in ("model.gguf", "./text.txt"):
            for words in self.commands(name):
                if words[0] != "inspect" or name == "model.gguf":
                    self.expect_error(1, [name, "another name"], *words)

    def test_two_outputs_need_two_names(self) -> None:
        calibrate = ["calibrate", self.model, "--text", self.text, "--context", "64"]
        self.expect_error(1, ["a.kvq", "another name"], *calibrate, "-o", "a.kvq", "--stats", "a.kvq")
        self.expect_error(1, ["a3.kvq", "another name"], *calibrate, "-o", "a{bits}.kvq", "--bits", "3,3")
        self.expect_error(1, ["e.out", "another name"], "eval", self.model, "--text", self.text, "--context", "64",
                          "--json", "e.out", "--dump-nll", "./e.out")

    def test_a_full_disk_leaves_what_was_there(self) -> None:
        """No file may grow beyond 1000 bytes, which stands for a disk without space."""
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        self.calibrate("kept.kvq", "--stats", "kept.stats")
        calibrate = ["calibrate", self.model, "--text", self.text, "--samples", "1", "--context", "64", "--seed", "1"]
        evaluate = ["eval", self.model, "--text", self.text, "--context", "500"]
        for name, *words in (["kept.kvq", *calibrate, "-o", "kept.kvq"], ["new.kvq", *calibrate, "-o", "new.kvq"],
                             ["kept.stats", *calibrate, "-o", "new.kvq", "--stats", "kept.stats"],
                             ["new.npy", *evaluate, "--dump-nll", "new.npy"],
                             ["kept.kvq", *evaluate, "--baseline", "q8_0,q4_0,int4,int3", "--json", "kept.kvq"],
                             ["new.json", "tokenize", self.model, "--text", self.text, "--json", "new.json"]):
            self.expect_error(1, [f"{name}: cannot be written", "File too large"], *words, preexec_fn=limit)


if __name__ == "__main__":
    main()
