#!/usr/bin/env python3
"""kvquant inspect: GGUF files, artifacts, statistics, sequences."""

import pathlib

from tool_case import KV_HEADS, LAYERS, ToolCase, main, read_safetensors

SEQUENCES = pathlib.Path(__file__).parents[1] / "fuzz" / "corpus" / "sequence"  # of a cache of 1 layer, 1 head x 16


class Inspect(ToolCase):
    def lines(self, *words) -> list[list[str]]:
        return [line.split() for line in self.succeed("inspect", *words).splitlines()]

    def test_a_model(self) -> None:
        lines = self.lines(self.model)
        self.assertEqual(lines[0], ["GGUF", "version", "3,", "0.5", "MiB"])
        self.assertIn(["general.name", "tiny", "llama"], lines)
        self.assertIn(["llama.attention.head_count_kv", str(KV_HEADS)], lines)
        self.assertIn(["tokenizer.ggml.tokens", "[256", "values]"], lines)
        self.assertEqual(lines[-1], ["tensors", "of", "F32", "21,", "0.5", "MiB"])

    def test_a_models_tensors(self) -> None:
        listed = self.lines(self.model, "--tensors")
        self.assertIn(["blk.1.attn_k.weight", "F32", "64", "x", "64"], listed)
        self.assertIn(["output_norm.weight", "F32", "64"], listed)
        self.assertEqual(len(listed), len(self.lines(self.model)) + 3 + 9 * LAYERS)

    def test_a_model_as_json(self) -> None:
        found = self.succeed_json("inspect", self.model)
        self.assertEqual((found["kind"], found["version"]), ("gguf", 3))
        self.assertEqual(found["metadata"]["llama.block_count"], str(LAYERS))
        self.assertEqual(len(found["tensors"]), 3 + 9 * LAYERS)
        self.assertIn({"name": "blk.0.ffn_down.weight", "type": "F32", "shape": [96, 64]}, found["tensors"])

    def test_the_hash_is_of_the_whole_file(self) -> None:
        before = self.succeed_json("inspect", self.model)["hash"]
        content = bytearray(self.model.read_bytes())
        content[-1] ^= 1
        self.model.write_bytes(content)
        self.assertNotEqual(self.succeed_json("inspect", self.model)["hash"], before)

    def test_an_artifact(self) -> None:
        artifact = self.calibrate("a.kvq", "--bits", "2", "--q-norm", "on", "--seed", "5", "--outliers", "0.02")
        lines = self.lines(artifact)
        digest = read_safetensors(artifact)[0]["hash"]
        self.assertEqual(lines[:2], [["artifact", "nuq2"], ["hash", digest]])
        for expected in ("model tiny llama", "calibrated on 3 windows x 64 tokens, seed 5", "weights fisher",
                         "outliers 0.02 of keys, 0.02 of values", "sinks 1", "Q-Norm on", "levels int8 of keys, int8 of values",
                         f"shape {LAYERS} layers, 6 query heads, {KV_HEADS} KV heads x 32"):
            self.assertIn(expected.split(), lines)
        self.assertEqual([line[0] for line in lines[-1 - LAYERS:]], ["layer", "0", "1"])

    def test_an_artifact_as_json(self) -> None:
        artifact = self.calibrate("a.kvq")
        found = self.succeed_json("inspect", artifact)
        self.assertEqual((found["key_levels"], found["value_levels"]), ("int8", "int8"))
        self.assertEqual((found["kind"], found["hash"]), ("artifact", read_safetensors(artifact)[0]["hash"]))
        self.assertEqual((found["info"]["spec"], found["info"]["origin"]["model_hash"]),
                         ("nuq3", self.succeed_json("inspect", self.model)["hash"]))
        self.assertEqual(len(found["layers"]), LAYERS)
        for layer in found["layers"]:
            for side in ("key", "value"):
                self.assertTrue(0 < layer[side]["objective"] < layer[side]["mass"])
                self.assertEqual((len(layer[side]["levels"]), layer[side]["levels"]),
                                 (8, sorted(layer[side]["levels"])))
        self.assertEqual(found["label"], "nuq3-1%")
        tensors = read_safetensors(artifact)[1]
        _, sensitivity = tensors["value.sensitivity"]
        self.assertAlmostEqual(found["layers"][1]["value"]["sensitivity"], sum(sensitivity[KV_HEADS * 32:]), places=12)

    def test_levels_are_int8_float_or_fixed(self) -> None:
        for options, expected in ((("--levels", "int8"), "int8"), (("--levels", "float"), "float"),
                                  (("--format", "nf"), "fixed"), (("--format", "int"), "fixed")):
            found = self.succeed_json("inspect", self.calibrate("a.kvq", *options))
            self.assertEqual((found["key_levels"], found["value_levels"]), (expected, expected), options)

    def test_adaptive_shows_its_bits_and_where_they_went(self) -> None:
        path = self.calibrate("a.kvq", "--format", "adaptive", "--bits", "2.5", "--outliers", "0")
        lines, found = self.lines(path), self.succeed_json("inspect", path)
        key, value = (found["info"][side + "_token_bits"] / 32 for side in ("key", "value"))
        self.assertEqual(key + value, 2 * 2.5)
        for expected in ("artifact adaptive", f"bits of a key {key:.3f}, of which {key:.3f} in codes of 1 to 4 bits",
                         f"bits of a value {value:.3f}, of which {value:.3f} in codes of 1 to 4 bits",
                         "levels int8 of keys, int8 of values"):
            self.assertIn(expected.split(), lines)
        maps = lines[-LAYERS:]
        for layer, (number, *bars) in enumerate(maps):
            self.assertEqual((int(number), len(bars)), (layer, 2 * KV_HEADS))
            self.assertTrue(set("".join(bars)) <= set("▁▂▃▄▅▆█"))
        widths = found["layers"][0]["value_widths"]
        self.assertEqual((len(widths), sum(widths)), (KV_HEADS * 32, value * KV_HEADS * 32))

    def test_statistics(self) -> None:
        self.calibrate("a.kvq", "--stats", "s.stats")
        lines = self.lines("s.stats")
        values = 3 * (64 - 1) * KV_HEADS * 32  # the sink of each window is not learned from
        for expected in (f"statistics {LAYERS} layers x {KV_HEADS * 32} channels, 4096 bins", "model tiny llama",
                         "outliers 0.01 of keys, 0.01 of values", f"values seen per layer {values}"):
            self.assertIn(expected.split(), lines)

    def test_statistics_as_json(self) -> None:
        self.calibrate("a.kvq", "--stats", "s.stats", "--seed", "9")
        found = self.succeed_json("inspect", "s.stats")
        self.assertEqual((found["kind"], found["origin"]["seed"], found["options"]["kv_channels"]),
                         ("statistics", 9, KV_HEADS * 32))
        self.assertEqual(len(found["layers"]), LAYERS)
        for side in (layer[side] for layer in found["layers"] for side in ("key", "value")):
            self.assertEqual(side["values"], 3 * (64 - 1) * KV_HEADS * 32)
            self.assertEqual((len(side["histogram"]), sum(side["histogram"])), (64, side["values"] - side["outliers"]))
            self.assertGreater(sum(side["fisher_histogram"]), 0)

    def test_a_sequence(self) -> None:
        lines = self.lines(SEQUENCES / "page.kvs")
        self.assertEqual(lines[0], ["sequence", "nuq2"])
        for expected in ("tokens 69: 2 sinks, 64 in pages, 3 in the tail", "bytes 1472",
                         "shape 1 layers, 1 KV heads x 16", "slots of a page 16 of keys, 16 of values",
                         "model hash 0123", "artifact hash 4567"):
            self.assertIn(expected.split(), lines)

    def test_a_sequence_as_json(self) -> None:
        found = self.succeed_json("inspect", SEQUENCES / "reopened.kvs")
        self.assertEqual((found["kind"], found["bytes"]), ("sequence", 2688))
        self.assertEqual(found["info"], {"spec": "nuq2", "model_hash": "0123", "artifact_hash": "4567", "layers": 1,
                                         "kv_heads": 1, "head_dim": 16, "sinks": 2, "tail_tokens": 8, "tokens": 100,
                                         "sealed": 90, "k_bits": 2, "v_bits": 2, "k_slots": 16, "v_slots": 16})

    def test_a_broken_sequence(self) -> None:
        whole = (SEQUENCES / "page.kvs").read_bytes()
        version, description = whole[:8] + b"\3" + whole[9:], whole.replace(b'"layers":1', b'"layers":2')
        for said, content in (("8 bytes, too short", whole[:8]), ("its start promises", whole[:-1]),
                              ("its start promises", whole[:40]), ("version 3, expected 1 or 2", version),
                              ("checksum", description), ("checksum", whole[:-1] + b"\1")):
            path = self.folder / "broken.kvs"
            path.write_bytes(content)
            self.expect_error(1, ["broken.kvs: ", said], "inspect", path)

    def test_long_and_odd_strings_stay_on_their_line(self) -> None:
        model = self.write_model("odd.gguf", "--name", "a\nb\x1b[2J" + "é" * 80)
        lines = self.succeed("inspect", model).splitlines()
        self.assertEqual(len(lines), len(self.lines(self.model)))
        (name,) = (line for line in lines if line.startswith("general.name"))
        self.assertRegex(name, r"^general.name +a b \[2Jé+…$")
        self.assertEqual(self.succeed_json("inspect", model)["metadata"]["general.name"][-2:], "é…")

    def test_a_name_that_is_not_utf8(self) -> None:
        model = self.write_model("odd.gguf", "--name", b"caf\xe9".decode("utf-8", "surrogateescape"))
        self.assertEqual(self.succeed_json("inspect", model)["metadata"]["general.name"], "caf\ufffd")

    def test_anything_else_is_refused(self) -> None:
        for name, content in (("empty", b""), ("short", b"GG"), ("text", b"just a text, no more"),
                              ("zeros", bytes(100)),
                              ("other", b"\x2e" + bytes(7) + b'{"__metadata__":{"format":"pt","kind":"model"}}')):
            path = self.folder / name
            path.write_bytes(content)
            self.expect_error(1, [name], "inspect", path)


if __name__ == "__main__":
    main()
