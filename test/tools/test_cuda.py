#!/usr/bin/env python3
"""--backend cuda: the figures of the CPU on a device, and what is said where there is none."""

import os

from eval_case import EvalCase
from tool_case import ToolCase, main

BRIEF = ("bench", "attend", "--backend", "cuda", "--seconds", "0", "--working-set", "0", "--shape", "4/2/64",
         "--context", "128", "--formats", "nuq3-1%,adaptive3")
NO_DEVICE = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


class Bench(ToolCase):
    def test_the_table(self) -> None:
        lines = self.succeed(*BRIEF, "--batch", "2").splitlines()
        self.assertRegex(lines[0], r"^copies on the device move \d+\.\d GB/s$")
        self.assertEqual([line.split("  ")[0] for line in lines[2:]],
                         [f"4/2/64 128, batch 2, {name}" for name in ("f16", "nuq3-1%", "adaptive3")])

    def test_json(self) -> None:
        found = self.succeed_json(*BRIEF)
        self.assertEqual(found["backend"], "cuda")
        self.assertEqual(set(found["bandwidth_gbps"]), {"0"})
        for case in found["cases"]:
            self.assertRegex(case["isa"], r"^sm_\d+$")
            self.assertTrue(0 <= case["error"] < 2e-3, case)

    def test_refusals(self) -> None:
        self.expect_error(2, ["--threads", "--help"], *BRIEF, "--threads", "2")
        self.expect_error(1, ["CUDA backend", "head_dim 32"], *BRIEF, "--shape", "4/2/32")


class Model(EvalCase):
    def setUp(self) -> None:
        super().setUp()
        self.model = self.write_model("model.gguf", "--head-dim", "64")

    def test_losses_are_those_of_the_cpu(self) -> None:
        artifacts = [self.calibrate(f"{bits}.kvq", "--bits", bits) for bits in "234"]
        artifacts.append(self.calibrate("adaptive.kvq", "--format", "adaptive", "--bits", "3"))
        options = [word for path in artifacts for word in ("--artifact", path)] + ["--context", "192", "--tokens", "192"]
        device, cpu = (self.evaluate(*options, "--backend", name)[1] for name in ("cuda", "cpu-float"))
        for of_device, of_cpu, f16 in zip(device[1:], cpu[1:], device[:1] * len(artifacts), strict=True):
            apart, quantized = (max(abs(a - b) for a, b in zip(of_device, it)) for it in (of_cpu, f16))
            self.assertLess(apart, quantized / 10)
            self.assertGreater(quantized, 0)

    def test_text(self) -> None:
        self.calibrate("a.kvq", "--bits", "4")
        options = ("generate", self.model, "--prompt", self.text.read_text()[:100], "--max-tokens", "8", "--quiet",
                   "--artifact", "a.kvq", "--backend")
        self.assertEqual(self.succeed(*options, "cuda"), self.succeed(*options, "cpu-float"))


class NoDevice(ToolCase):
    def test_a_device_is_asked_for(self) -> None:
        model = self.write_model("model.gguf", "--head-dim", "64")
        self.calibrate("a.kvq", model=model)
        for words in (BRIEF, ("generate", model, "--prompt", "a", "--artifact", "a.kvq", "--backend", "cuda"),
                      ("eval", model, "--text", self.text, "--artifact", "a.kvq", "--backend", "cuda")):
            self.expect_error(1, ["CUDA device"], *words, env=NO_DEVICE)


if __name__ == "__main__":
    main()
