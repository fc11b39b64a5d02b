#!/usr/bin/env python3
"""kvquant calibrate: one pass for several widths, statistics that are kept and merged, reproducibility, the choices."""

import hashlib
import itertools
import json
import pathlib

from tool_case import KV_HEADS, LAYERS, ToolCase, main, random_text, read_safetensors

KV_CHANNELS = KV_HEADS * 32
WEIGHTS = ("fisher", "fisher-unscaled", "activation", "none")


class CalibrateCase(ToolCase):
    def described(self, path: pathlib.Path) -> dict:
        """What the artifact says of itself, read without the tool."""
        return json.loads(read_safetensors(path)[0]["description"])

    def bytes_of(self, *options: str | pathlib.Path) -> bytes:
        return self.calibrate("bytes.kvq", *options).read_bytes()


class DataFree(CalibrateCase):
    def written(self, output: str, *options: str) -> bytes:
        self.succeed("calibrate", self.model, "--data-free", "--samples", "3",
                     "--context", "64", "--quiet", "-o", output, *options)
        return (self.folder / output).read_bytes()

    def test_the_text_is_the_models_own(self) -> None:
        first = self.written("a.kvq")
        origin = self.described(self.folder / "a.kvq")["info"]["origin"]
        self.assertEqual((origin["text_hash"], origin["samples"], origin["context"], origin["seed"]),
                         ("written by the model", 3, 64, 0))
        self.assertEqual(self.written("b.kvq"), first)
        self.written("c.kvq", "--seed", "5")
        levels = [read_safetensors(self.folder / name)[1]["key.levels"] for name in ("a.kvq", "c.kvq")]
        self.assertNotEqual(*levels)
        self.assertRegex(self.succeed("inspect", "a.kvq"), "text hash +written by the model")

    def test_what_cannot_be(self) -> None:
        self.expect_error(1, ["no.gguf", "no BOS token"], "calibrate", self.write_model("no.gguf", "--no-bos"),
                          "--data-free", "-o", "a.kvq")
        self.expect_error(1, ["2048 tokens", "512, the model's context"], "calibrate", self.model, "--data-free", "-o",
                          "a.kvq")
        for options in ([], ["--data-free", "--text", self.text], ["--data-free", "--remove", "x"]):
            self.assertNotEqual(self.run_tool("calibrate", self.model, "-o", "a.kvq", *options).returncode, 0)


class OnePass(CalibrateCase):
    def test_several_widths_are_what_each_alone_is(self) -> None:
        self.calibrate("all-{bits}.kvq", "--bits", "4,3,2")
        for bits in "432":
            alone = self.calibrate(f"alone-{bits}.kvq", "--bits", bits)
            self.assertEqual(alone.read_bytes(), (self.folder / f"all-{bits}.kvq").read_bytes(), bits)

    def test_the_artifact_holds_ranges_and_rising_levels(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "4,3,2", "--q-norm", "off")
        for bits in (4, 3, 2):
            _, tensors = read_safetensors(self.folder / f"{bits}.kvq")
            shape, ranges = tensors["key.ranges"]
            self.assertEqual(shape, [LAYERS, 2 * KV_CHANNELS])
            self.assertTrue(all(low < high for low, high in zip(ranges[::2], ranges[1::2])))
            for side in ("key", "value"):
                shape, levels = tensors[side + ".levels"]
                self.assertEqual(shape, [LAYERS, 2**bits])
                self.assertEqual(tensors[side + ".decode_levels"], (shape, levels))
                for at in range(0, len(levels), 2**bits):
                    layer = levels[at:at + 2**bits]
                    self.assertEqual(sorted(set(layer)), list(layer))
                    self.assertTrue(-1 <= layer[0] < 0 < layer[-1] <= 1)

    def test_where_it_comes_from_is_kept(self) -> None:
        info = self.described(self.calibrate("a.kvq", "--seed", "7", "--outliers", "0.02", "--sinks", "3"))["info"]
        origin = info["origin"]
        self.assertEqual((origin["model_name"], origin["samples"], origin["context"], origin["seed"]),
                         ("tiny llama", 3, 64, 7))
        self.assertEqual((info["outlier_fraction_k"], info["outlier_fraction_v"], info["sinks"]), (0.02, 0.02, 3))
        shape = info["shape"]
        self.assertEqual([shape[it] for it in ("layers", "q_heads", "kv_heads", "head_dim")], [LAYERS, 6, KV_HEADS, 32])

    def test_json_and_table(self) -> None:
        command = ["calibrate", self.model, "--text", self.text, "--samples", "2", "--context", "32", "--bits", "4,2",
                   "-o", "a{bits}.kvq", "--q-norm", "on"]
        rows = self.succeed_json(*command)["rows"]
        self.assertEqual([(row["path"], row["spec"], row["q_norm"]) for row in rows],
                         [("a4.kvq", "nuq4", True), ("a2.kvq", "nuq2", True)])
        self.assertEqual([row["hash"] for row in rows],
                         [read_safetensors(self.folder / row["path"])[0]["hash"] for row in rows])
        for side in ("key_error_db", "value_error_db"):
            self.assertTrue(rows[0][side] < rows[1][side] - 6 < 0, rows)
        lines = self.succeed(*command).splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["artifact", "a4.kvq", "a2.kvq"])

    def test_without_a_name_the_artifact_is_called_after_model_and_format(self) -> None:
        self.succeed("calibrate", self.model, "--text", self.text, "--samples", "1", "--context", "32", "--bits", "3,2",
                     "--format", "nf", "--quiet")
        self.assertEqual(sorted(path.name for path in self.folder.glob("*.kvq")), ["model-nf2.kvq", "model-nf3.kvq"])

    def test_a_format_may_name_its_width(self) -> None:
        self.assertEqual(self.described(self.calibrate("a.kvq", "--format", "nuq2"))["info"]["spec"], "nuq2")
        info = self.described(self.calibrate("b.kvq", "--format", "f16"))["info"]
        self.assertEqual(info["spec"], "f16")
        self.calibrate("d.kvq", "--format", "adaptive2.5", "--outliers", "0")
        self.calibrate("e.kvq", "--format", "adaptive", "--bits", "2.5", "--outliers", "0")
        self.assertEqual((self.folder / "d.kvq").read_bytes(), (self.folder / "e.kvq").read_bytes())
        self.expect_error(1, ["--format nuq2-1%", "--outliers"], "calibrate", self.model, "--text", self.text,
                          "--format", "nuq2-1%", "-o", "c.kvq")
        self.expect_error(1, ["--format nuq2", "expected nuq beside --bits"], "calibrate", self.model, "--text",
                          self.text, "--format", "nuq2", "--bits", "3", "-o", "c.kvq")

    def test_bos_starts_every_window_within_its_length(self) -> None:
        model = self.write_model("bos.gguf", "--add-bos")
        self.text.write_text("x" * 63)
        self.calibrate("a.kvq", model=model)
        self.text.write_text("x" * 62)
        self.expect_error(1, ["text.txt", "62 tokens", "window of 63"], "calibrate", model, "--text", self.text,
                          "--context", "64", "-o", "b.kvq")

    def test_f16_has_no_outliers(self) -> None:
        artifact = self.calibrate("a.kvq", "--format", "f", "--bits", "16", "--outliers", "0.02")
        info = self.described(artifact)["info"]
        self.assertEqual((info["spec"], info["outlier_fraction_k"], info["outlier_fraction_v"]), ("f16", 0, 0))
        rows = self.succeed_json("eval", self.model, "--text", self.text, "--artifact", artifact, "--context",
                                 "64")["rows"]
        self.assertEqual([row["name"] for row in rows], ["f16", "f16"])

    def test_a_name_that_is_not_utf8_is_no_obstacle(self) -> None:
        model = self.write_model("odd.gguf", "--name", b"caf\xe9".decode("utf-8", "surrogateescape"))
        artifact = self.calibrate("a.kvq", model=model)
        self.assertEqual(self.described(artifact)["info"]["origin"]["model_name"], "caf\ufffd")
        rows = self.succeed_json("eval", model, "--text", self.text, "--artifact", artifact, "--context", "64")["rows"]
        self.assertEqual([row["name"] for row in rows], ["f16", "nuq3-1%"])


class Reproducible(CalibrateCase):
    def test_byte_for_byte_at_any_number_of_threads(self) -> None:
        found = {self.bytes_of("--bits", "2", "--threads", threads) for threads in ("1", "2", "3", "1")}
        self.assertEqual(len(found), 1)

    def test_the_statistics_too(self) -> None:
        for threads in ("1", "2"):
            self.calibrate("a.kvq", "--stats", threads + ".stats", "--threads", threads)
        self.assertEqual((self.folder / "1.stats").read_bytes(), (self.folder / "2.stats").read_bytes())

    def test_another_seed_is_another_calibration(self) -> None:
        levels = []
        for seed in ("0", "1"):
            levels.append(read_safetensors(self.calibrate("a.kvq", "--seed", seed))[1]["value.levels"])
        self.assertNotEqual(levels[0], levels[1])

    def test_the_place_of_the_files_leaves_no_trace(self) -> None:
        before = self.bytes_of()
        (self.folder / "sub").mkdir()
        self.text = self.text.rename(self.folder / "sub" / "other.txt")
        self.model = self.model.rename(self.folder / "sub" / "other.gguf")
        self.assertEqual(self.bytes_of(), before)


class Statistics(CalibrateCase):
    def refit(self, output: str, *statistics: str, options: tuple[str, ...] = ()) -> pathlib.Path:
        self.succeed("calibrate", "--from-stats", *statistics, "-o", output, "--quiet", *options)
        return self.folder / output

    def test_fitted_again_without_the_model_they_give_the_same_bytes(self) -> None:
        # The choice of Q-Norm at 2 bits asks the model; without it, it is off.
        options = ("--bits", "4,3,2", "--q-norm", "off")
        self.calibrate("first-{bits}.kvq", *options, "--stats", "s.stats")
        self.model.unlink()
        self.text.unlink()
        self.refit("again-{bits}.kvq", "s.stats", options=options)
        for bits in "432":
            self.assertEqual((self.folder / f"again-{bits}.kvq").read_bytes(),
                             (self.folder / f"first-{bits}.kvq").read_bytes(), bits)

    def test_other_formats_and_weights_come_from_the_same_pass(self) -> None:
        self.calibrate("fisher.kvq", "--stats", "s.stats")
        for options in (("--format", "nf"), ("--format", "int", "--bits", "8"), ("--weights", "activation"),
                        ("--q-norm", "on")):
            with self.subTest(options):
                self.calibrate("direct.kvq", *options)
                direct, refit = self.folder / "direct.kvq", self.refit("refit.kvq", "s.stats", options=options)
                self.assertEqual(self.described(refit), self.described(direct))
                tensors, expected = read_safetensors(refit)[1], read_safetensors(direct)[1]
                self.assertEqual(tensors.keys(), expected.keys())
                for name in tensors.keys() - {"key.sensitivity", "value.sensitivity"}:  # a pass for activation has none
                    self.assertEqual(tensors[name], expected[name], name)

    def test_merged_statistics_hold_both(self) -> None:
        other_text = self.folder / "other.txt"
        other_text.write_text(random_text(500, seed=2))
        none = ("--weights", "none")
        self.calibrate("1.kvq", *none, "--stats", "1.stats")
        self.text = other_text
        # Another number of windows may be merged.
        self.calibrate("2.kvq", *none, "--stats", "2.stats", "--ranges", "1.stats", samples=2)
        merged = self.refit("merged.kvq", "1.stats", "2.stats", options=(*none, "--stats", "merged.stats"))
        one, two, both = (self.described(self.folder / name) for name in ("1.kvq", "2.kvq", "merged.kvq"))
        for layer, side in itertools.product(range(LAYERS), ("key", "value")):
            masses = [it["layers"][layer][side]["mass"] for it in (one, two, both)]
            self.assertEqual(masses[0] + masses[1], masses[2])  # counts, as the weights are 1
            self.assertTrue(0 < masses[1] < masses[0])
        self.assertEqual(both["info"]["origin"]["samples"], 5)
        self.assertEqual(both["info"]["origin"]["text_hash"],
                         one["info"]["origin"]["text_hash"] + "+" + two["info"]["origin"]["text_hash"])
        self.assertEqual(read_safetensors(merged)[1]["key.ranges"],
                         read_safetensors(self.folder / "1.kvq")[1]["key.ranges"])
        self.assertEqual(self.refit("kept.kvq", "merged.stats", options=none).read_bytes(), merged.read_bytes())

    def test_merging_what_does_not_belong_together_is_refused(self) -> None:
        self.calibrate("a.kvq", "--stats", "1.stats")
        self.calibrate("a.kvq", "--stats", "2.stats", "--seed", "1")
        self.calibrate("a.kvq", "--stats", "3.stats", "--sinks", "2")
        self.calibrate("a.kvq", "--stats", "4.stats", model=self.write_model("other.gguf", "--seed", "2"))
        self.calibrate("a.kvq", "--stats", "5.stats", "--keys", "post-rope")
        for other, said in (("2.stats", "key ranges"), ("3.stats", "other options"), ("4.stats", "tiny llama"),
                            ("5.stats", "post_rope")):
            self.expect_error(1, [other, said], "calibrate", "--from-stats", "1.stats", other, "-o", "b.kvq")

    def test_ranges_that_could_not_be_merged_are_refused_at_once(self) -> None:
        self.calibrate("a.kvq", "--stats", "1.stats")
        command = ("calibrate", self.model, "--text", self.text, "--context", "64", "--ranges", "1.stats", "-o",
                   "b.kvq")
        self.expect_error(1, ["1.stats", "0.01 outliers and 1 sinks", "expected 0.01 and 2"], *command, "--sinks", "2")
        self.expect_error(1, ["1.stats", "expected post_rope"], *command, "--keys", "post-rope")
        other = self.write_model("other.gguf", "--seed", "2", "--name", "another")
        self.expect_error(1, ["1.stats", '"tiny llama"', '"another"'], "calibrate", other, *command[2:])

    def test_weights_that_the_pass_did_not_see_are_refused(self) -> None:
        self.calibrate("a.kvq", "--weights", "none", "--stats", "s.stats")
        self.expect_error(1, ["fisher"], "calibrate", "--from-stats", "s.stats", "-o", "b.kvq")

    def test_options_of_the_pass_cannot_be_changed_afterwards(self) -> None:
        self.calibrate("a.kvq", "--stats", "s.stats")
        for option, value in (("--outliers", "0.02"), ("--sinks", "2"), ("--keys", "post-rope"), ("--samples", "2"),
                              ("--text", str(self.text)), ("--seed", "2")):
            self.expect_error(2, [option, "--from-stats"], "calibrate", "--from-stats", "s.stats", option, value)


class Choices(CalibrateCase):
    def test_every_combination_is_what_it_says_and_differs_from_the_others(self) -> None:
        combinations = itertools.product(("nuq", "nf", "int"), WEIGHTS, ("pre-rope", "post-rope"),
                                         ("on", "off", "auto"))
        digests: dict[str, tuple] = {}
        for chosen in combinations:
            form, weights, keys, q_norm = chosen
            path = self.calibrate("a.kvq", "--bits", "2", "--format", form, "--weights", weights, "--keys", keys,
                                  "--q-norm", q_norm)
            info = self.described(path)["info"]
            self.assertEqual((info["spec"], info["weights"], info["keys"]),
                             (form + "2", weights, keys.replace("-", "_")), chosen)
            if q_norm != "auto" or form != "nuq":  # fixed levels have no moments to restore
                self.assertEqual(info["q_norm"], (form, q_norm) == ("nuq", "on"), chosen)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            same_by_right = form != "nuq" or q_norm == "auto"
            self.assertTrue(same_by_right or digest not in digests, (chosen, digests.get(digest)))
            digests[digest] = chosen
        # nuq with and without Q-Norm; nf and int where it means nothing.
        self.assertEqual(len(digests), 4 * 2 * (2 + 1 + 1))

    def test_auto_takes_q_norm_where_it_lowers_the_loss(self) -> None:
        losses = {}
        for choice in ("on", "off", "auto"):
            path = self.calibrate(f"{choice}.kvq", "--bits", "2", "--q-norm", choice)
            losses[choice] = path.read_bytes()
        self.assertIn(losses["auto"], (losses["on"], losses["off"]))
        at_3_bits = self.described(self.calibrate("a.kvq", "--bits", "3"))["info"]
        self.assertFalse(at_3_bits["q_norm"])

    def test_q_norm_restores_moments_by_moving_the_levels_that_codes_read_as(self) -> None:
        book = read_safetensors(self.calibrate("a.kvq", "--bits", "2", "--q-norm", "on", "--levels", "float"))
        layers = json.loads(book[0]["description"])["layers"]
        for side in ("key", "value"):
            encode, decode = book[1][side + ".levels"][1], book[1][side + ".decode_levels"][1]
            for at, (before, after) in enumerate(zip(encode, decode)):
                scale, offset = layers[at // 4][side]["q_norm"]
                self.assertAlmostEqual(after, scale * before + offset, delta=1e-6)
                self.assertGreater(scale, 1)  # rounding to means shrinks the spread

    def test_levels_are_on_a_grid_of_integers_unless_they_are_to_stay_as_fitted(self) -> None:
        self.calibrate("int8-{bits}.kvq", "--bits", "4,3,2", "--q-norm", "on", "--stats", "s.stats")
        for bits in (4, 3, 2):
            options = ("--bits", str(bits), "--q-norm", "on", "--levels")
            fitted = read_safetensors(self.calibrate("float.kvq", *options, "float"))[1]
            chosen = read_safetensors(self.calibrate("chosen.kvq", *options, "int8"))[1]
            self.succeed("calibrate", "--from-stats", "s.stats", "-o", "again.kvq", "--quiet", *options, "float")
            self.assertEqual(read_safetensors(self.folder / "again.kvq")[1], fitted)
            snapped = read_safetensors(self.folder / f"int8-{bits}.kvq")[1]
            self.assertEqual(snapped, chosen)
            for side, limit in (("key", 63), ("value", 127)):
                self.assertEqual(snapped[side + ".levels"], fitted[side + ".levels"])
                for layer in range(LAYERS):
                    part = slice(layer * 2**bits, (layer + 1) * 2**bits)
                    before, after = (it[side + ".decode_levels"][1][part] for it in (fitted, snapped))
                    step = max(map(abs, before)) / limit
                    for old, new in zip(before, after):
                        self.assertAlmostEqual(new, step * round(old / step), delta=1e-6)
                    self.assertNotEqual(before, after)

    def test_adaptive_widths_are_those_of_the_budget(self) -> None:
        self.calibrate("a{bits}.kvq", "--format", "adaptive", "--bits", "4,2.5,2", "--outliers", "0", "--stats", "s.stats")
        for bits, form in ((4, "4"), (2.5, "2.5"), (2, "2")):
            path = self.folder / f"a{form}.kvq"
            info, tensors = self.described(path)["info"], read_safetensors(path)[1]
            self.assertEqual((info["spec"], info["outlier_fraction_k"]), ("adaptive", 0))
            self.assertEqual(info["key_token_bits"] + info["value_token_bits"], 2 * 32 * bits)
            for side in ("key", "value"):
                shape, widths = tensors[side + ".widths"]
                self.assertEqual(shape, [LAYERS, KV_CHANNELS])
                for first in range(0, len(widths), 32):
                    self.assertEqual(sum(widths[first:first + 32]), info[side + "_token_bits"])
        self.succeed("calibrate", "--from-stats", "s.stats", "--format", "adaptive", "--bits", "2.5", "--outliers", "0",
                     "-o", "again.kvq", "--quiet")
        self.assertEqual((self.folder / "again.kvq").read_bytes(), (self.folder / "a2.5.kvq").read_bytes())

    def test_adaptive_outliers_come_out_of_the_budget(self) -> None:
        info = self.described(self.calibrate("a.kvq", "--format", "adaptive", "--bits", "3"))["info"]
        # 10 slots of 32 bits leave 91 bits a token on either side
        self.assertEqual(info["key_token_bits"] + info["value_token_bits"], 2 * 88)
        self.assertEqual(info["outlier_fraction_k"], 16 / 2048)
        self.expect_error(1, ["1.1 bits", "expected at least 1"], "calibrate", self.model, "--text", self.text,
                          "--samples", "2", "--context", "64", "--format", "adaptive", "--bits", "1.1", "--outliers",
                          "0.01", "-o", "b.kvq", "--quiet")

    def test_eval_counts_what_lies_beyond_the_calibration(self) -> None:
        self.calibrate("a.kvq", "--format", "adaptive", "--bits", "3")
        command = ("eval", self.model, "--context", "256", "--artifact", "a.kvq", "--text")
        alike = self.succeed_json(*command, self.text)["rows"]
        self.assertNotIn("clamped_keys", alike[0])
        other = self.folder / "other.txt"
        other.write_text("".join(chr(33 + i * 7 % 90) for i in range(600)))
        unlike = self.succeed_json(*command, other)["rows"][1]
        self.assertLess(alike[1]["clamped_values"], unlike["clamped_values"])
        self.assertIn("lie beyond what its calibration saw", self.succeed(*command, other))

    def test_adaptive_needs_statistics_of_channels(self) -> None:
        self.calibrate("a.kvq", "--stats", "s.stats")
        self.expect_error(1, ["the keys of each channel"], "calibrate", "--from-stats", "s.stats", "--format",
                          "adaptive", "-o", "b.kvq")

    def test_levels_of_channels_their_own_are_no_worse(self) -> None:
        rows = [self.succeed_json("calibrate", self.model, "--text", self.text, "--samples", "3", "--context", "64",
                                  "--format", "adaptive", "--bits", "2", "--channel-levels", which, "-o",
                                  which + ".kvq")["rows"][0] for which in ("shared", "own")]
        self.assertLess(rows[1]["value_error_db"], rows[0]["value_error_db"])

    def test_every_width_of_every_family(self) -> None:
        for form, widths in (("nuq", "4,3,2"), ("nf", "4,3,2"), ("int", "8,7,6,5,4,3,2"),
                             ("adaptive", "4,3,2.5,2,1.5")):
            self.calibrate(form + "{bits}.kvq", "--format", form, "--bits", widths)
            artifacts = [word for bits in widths.split(",") for word in ("--artifact", f"{form}{bits}.kvq")]
            rows = self.succeed_json("eval", self.model, "--text", self.text, "--context", "64", *artifacts)["rows"][1:]
            divergences = [row["kl_mean"] for row in rows]
            self.assertEqual(sorted(divergences), divergences, form)


if __name__ == "__main__":
    main()
