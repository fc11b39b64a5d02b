#!/usr/bin/env python3
"""kvquant task: what it writes, what it makes of it, and runs that were stopped. The tiny models know nothing: what they
answer is as good as any."""

import json
import pathlib
import signal
import subprocess
import time

from tool_case import KVQUANT, ToolCase, main

CONTEXT = 512  # of the tiny models, in bytes
LINE = {"sample", "cache", "task", "length", "index", "prompt_tokens"}
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


class TaskCase(ToolCase):
    def task(self, name: str, *options: str | pathlib.Path, model: pathlib.Path | None = None) -> tuple[list, dict]:
        """The lines behind the header, and the JSON."""
        results = self.folder / "r.jsonl"
        results.unlink(missing_ok=True)
        found = self.succeed_json("task", model or self.model, name, "-o", results, *options)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        self.assertEqual(lines[0]["task"], name)
        return lines[1:], found

    def rows(self, found: dict, *members: str) -> dict:
        return {tuple(row.get(it) for it in members): row for row in found["rows"]}


class Answers(TaskCase):
    def test_passkey(self) -> None:
        self.calibrate("a.kvq")
        lines, found = self.task("passkey", "--lengths", "300,450", "--samples", "2", "--depths", "100,0", "--artifact",
                                 "a.kvq", "--baseline", "q4_0")
        self.assertEqual(len(lines), 2 * 2 * 2 * 3)
        self.assertEqual(len({(line["sample"], line["cache"]) for line in lines}), len(lines))
        for line in lines:
            self.assertEqual(set(line), LINE | {"depth", "chance", "expected", "answer", "metric", "score"})
            self.assertEqual(line["score"], float(line["expected"][0] in line["answer"]))
            self.assertLessEqual(line["prompt_tokens"] + 16, line["length"])
        rows = self.rows(found, "length", "depth", "cache")
        self.assertEqual(len(rows), 2 * 3 * 3)
        self.assertEqual([rows[300, None, "nuq3-1%"]["samples"], rows[450, 100, "q4_0"]["samples"]], [4, 2])
        self.assertTrue(all(row["f16_at_chance"] for row in rows.values()))

    def test_tables_draw_no_conclusion_from_chance(self) -> None:
        self.calibrate("a.kvq")
        common = ("--lengths", "400", "--samples", "1", "--artifact", "a.kvq")
        said = self.succeed("task", self.model, "passkey", *common, "--depths", "0,50").splitlines()
        self.assertEqual(said[0], "tiny llama: passkey, 2 samples")
        self.assertEqual(said[1].split(), ["cache", "length", "0", "%", "50", "%", "all", "Δ", "±", "SE"])
        self.assertEqual([line.split()[:2] for line in said[2:4]], [["f16", "400"], ["nuq3-1%", "400"]])
        for line in said[2:4]:
            self.assertTrue(line.endswith("f16 at chance"), line)
        self.assertEqual(said[6].split(), ["0", "%", "··", "··"])
        said = self.succeed("task", self.model, "ruler", *common, "--tasks", "niah-single-1").splitlines()
        self.assertEqual(said[2].split(), ["niah-single-1", "400", "1", "0.0", "*", "0.0", "*"])
        self.assertEqual(said[3], "* 1 of 1: f16 cannot be told from a guess, so this says nothing of other caches")

    def test_two_runs_write_the_same(self) -> None:
        self.calibrate("a.kvq")
        options = ("--lengths", "450", "--samples", "2", "--artifact", "a.kvq", "--tasks", "niah-single-1,qa,niah-single-2",
                   "--documents", self.documents())
        lines, found = self.task("ruler", *options)
        self.assertEqual({line["task"] for line in lines}, {"niah-single-1", "qa", "niah-single-2"})
        self.assertEqual(self.task("ruler", *options), (lines, found))
        others, _ = self.task("ruler", *options, "--seed", "1")
        self.assertNotEqual([line["expected"] for line in lines], [line["expected"] for line in others])

    def documents(self) -> pathlib.Path:
        path = self.folder / "d.jsonl"
        path.write_text("".join(json.dumps({"context": f"House {i} is blue.", "question": "Which house?",
                                            "answers": [str(i)]}) + "\n" for i in range(40)))
        return path

    def test_prompts_use_the_chat_template_unless_told_otherwise(self) -> None:
        model = self.write_model("chat.gguf", "--chat-template", CHAT_TEMPLATE)
        (self.folder / "l.jsonl").write_text(
            json.dumps({"context": "c", "input": "i", "answers": ["a"], "dataset": "mine"}) + "\n")
        (self.folder / "form").write_text("{context}{input}")
        options = ("--data", "l.jsonl", "--template", "form")
        self.assertEqual(self.task("longbench", *options, model=model)[0][0]["prompt_tokens"], len("<user>ci</>"))
        self.assertEqual(self.task("longbench", *options, "--raw", model=model)[0][0]["prompt_tokens"], 2)


class Comparisons(TaskCase):
    def test_needles_of_fewer_bits_are_further_from_f16(self) -> None:
        self.calibrate("{bits}.kvq", "--bits", "4,2", "--q-norm", "off")
        lines, found = self.task("needle-kl", "--lengths", "450", "--samples", "3", "--artifact", "4.kvq", "--artifact",
                                 "2.kvq", "--baseline", "q8_0,int3")
        for line in lines:
            self.assertEqual(set(line), LINE | {"depth", "chance", "answer_tokens", "kl", "kl_max", "nll",
                                                "top1_agreement"})
            self.assertEqual(line["answer_tokens"], len(" 12345"))
            self.assertTrue(line["kl"] <= line["kl_max"])
        rows = self.rows(found, "depth", "cache")
        kl = {cache: row["kl"] for (depth, cache), row in rows.items() if depth is None}
        self.assertEqual(kl["f16"], 0)
        self.assertTrue(0 < kl["q8_0"] < kl["int3"] and 0 < kl["nuq4-1%"] < kl["nuq2-1%"], kl)
        self.assertTrue(rows[None, "f16"]["f16_at_chance"])

    def test_drift_is_where_generation_parts(self) -> None:
        """What teacher forcing says of the first divergence is what both caches write by themselves."""
        self.calibrate("a.kvq", "--bits", "2", "--q-norm", "off")
        prompt = self.text.read_text()[:150]
        for sampling in ((), ("--temperature", "1", "--top-k", "20")):
            lines, found = self.task("drift", "--lengths", "200", "--prompt", prompt, "--artifact", "a.kvq", "--seed",
                                     "5", *sampling)
            written = {}
            for name, artifact in (("f16", ()), ("nuq2-1%", ("--artifact", "a.kvq"))):
                self.succeed("generate", self.model, "--prompt", prompt, "--max-tokens", "200", "--seed", "5", *artifact,
                             *sampling, "--quiet", "--json", "g.json")
                written[name] = json.loads((self.folder / "g.json").read_text())["ids"]
            of_f16, of_artifact = lines
            self.assertEqual(of_f16["ids"], written["f16"])
            self.assertIsNone(of_f16["first_divergence"])
            self.assertEqual((of_f16["kl"], of_f16["agreement"]), (0, 1))
            differs = [a != b for a, b in zip(written["f16"], written["nuq2-1%"], strict=True)]
            self.assertEqual(of_artifact["first_divergence"], differs.index(True))
            self.assertTrue(of_artifact["kl"] > 0 and of_artifact["agreement"] < 1)
            self.assertEqual(sum(it["tokens"] for it in of_artifact["buckets"]), 200)
            self.assertEqual(self.rows(found, "cache")["nuq2-1%",]["first_divergences"],
                             [of_artifact["first_divergence"]])

    def test_drift_never_ends(self) -> None:
        prompt = "alpha beta"
        lines, _ = self.task("drift", "--lengths", "50", "--prompt", prompt)
        end = lines[0]["ids"][3]
        model = self.write_model("ends.gguf", "--eos", str(end))
        lines, _ = self.task("drift", "--lengths", "50", "--prompt", prompt, model=model)
        self.assertEqual(len(lines[0]["ids"]), 50)
        self.assertNotIn(end, lines[0]["ids"])

    def test_drift_has_a_table_of_positions(self) -> None:
        self.calibrate("a.kvq")
        said = self.succeed("task", self.model, "drift", "--lengths", "160", "--samples", "2", "--artifact",
                            "a.kvq").splitlines()
        self.assertEqual(said[0], "tiny llama: drift, 2 samples")
        self.assertIn("KL 0+  KL 20+", said[1])
        self.assertEqual(said[2].split()[:3], ["f16", "never", "100.0"])


class Resuming(TaskCase):
    def setUp(self) -> None:
        super().setUp()
        self.calibrate("a.kvq")

    def command(self, name: str, *options: str) -> list[str]:
        return [KVQUANT, "task", str(self.model), name, "-o", "r.jsonl", "--artifact", "a.kvq", "--quiet", *options]

    def finish(self, command: list[str]) -> bytes:
        subprocess.run(command, cwd=self.folder, check=True, timeout=100)
        return (self.folder / "r.jsonl").read_bytes()

    def test_killed_again_and_again(self) -> None:
        command = self.command("passkey", "--lengths", "300,400", "--samples", "6")
        whole = self.finish(command)
        results = self.folder / "r.jsonl"
        results.unlink()
        killed = 0
        for lines in (3, 8, 15):
            process = subprocess.Popen(command, cwd=self.folder)
            while process.poll() is None and (not results.exists() or results.read_bytes().count(b"\n") < lines):
                time.sleep(0.001)
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.assertTrue(whole.startswith(results.read_bytes()))
        self.assertGreater(killed, 0)
        self.assertEqual(self.finish(command), whole)
        self.assertEqual(self.finish(command), whole)  # there is nothing left to do

    def test_cut_anywhere(self) -> None:
        for name, *options in (["passkey", "--lengths", "300", "--samples", "1", "--baseline", "int4"],
                               ["needle-kl", "--lengths", "300", "--samples", "1", "--baseline", "int4"],
                               ["ruler", "--lengths", "450", "--samples", "2", "--tasks", "niah-single-2"],
                               ["drift", "--lengths", "100", "--samples", "1", "--temperature", "1"]):
            command = self.command(name, *options)
            whole = self.finish(command)
            for part in (0.3, 0.98):
                (self.folder / "r.jsonl").write_bytes(whole[:int(part * len(whole))])
                self.assertEqual(self.finish(command), whole, (name, part))
            (self.folder / "r.jsonl").unlink()

    def test_other_runs_are_refused(self) -> None:
        common = ("task", self.model, "passkey", "-o", "r.jsonl", "--lengths", "300")
        self.succeed(*common, "--samples", "1", "--artifact", "a.kvq")
        self.expect_error(1, ["r.jsonl", '"seed" is 0 there and 1 here'], *common, "--samples", "1", "--artifact",
                          "a.kvq", "--seed", "1")
        self.expect_error(1, ["r.jsonl", '"caches"'], *common, "--samples", "1")
        self.expect_error(1, ["r.jsonl", '"samples" is 1 there and 2 here'], *common, "--samples", "2", "--artifact", "a.kvq")
        self.calibrate("a.kvq", "--seed", "1")
        self.expect_error(1, ["r.jsonl", '"caches"', '"hash"'], *common, "--samples", "1", "--artifact", "a.kvq")
        other = self.write_model("other.gguf", "--seed", "2")
        (self.folder / "r.jsonl").unlink()
        self.succeed(*common, "--samples", "1")
        self.expect_error(1, ["r.jsonl", '"model_hash"'], "task", other, *common[2:], "--samples", "1")

    def test_files_of_anything_else_stay(self) -> None:
        for content in ("my diary", "my diary\n", "{}\n"):
            (self.folder / "r.jsonl").write_text(content)
            self.expect_error(1, ["r.jsonl"], "task", self.model, "passkey", "--lengths", "300", "-o", "r.jsonl")


class LongBench(TaskCase):
    def write(self, *records: dict) -> pathlib.Path:
        path = self.folder / "l.jsonl"
        common = {"context": "The cat sat on the mat.", "input": "Who sat?", "answers": ["The cat"], "length": 6,
                  "all_classes": None, "language": "en", "_id": "1"}
        path.write_text("".join(json.dumps(common | it) + "\n" for it in records))
        return path

    def test_datasets_have_rows_of_their_own(self) -> None:
        self.calibrate("a.kvq")
        data = self.write({"dataset": "qasper"}, {"dataset": "qasper", "input": "On what?"}, {"dataset": "lcc"},
                          {"dataset": "trec", "answers": ["A"], "all_classes": ["A", "B"]},
                          {"dataset": "hotpotqa", "context": "long " * 300})
        lines, found = self.task("longbench", "--data", data, "--lengths", "300", "--artifact", "a.kvq")
        self.assertEqual({line["task"]: line["metric"] for line in lines},
                         {"qasper": "token-f1", "lcc": "edit-similarity", "trec": "classification",
                          "hotpotqa": "token-f1"})
        self.assertEqual(len(lines), 2 * 5)
        cut = [line for line in lines if line["task"] == "hotpotqa"][0]
        self.assertTrue(300 - 32 - 2 <= cut["prompt_tokens"] <= 300 - 32)
        rows = self.rows(found, "task", "cache")
        self.assertEqual(rows["trec", "f16"]["chance"], 0.5)
        self.assertEqual(rows["qasper", "nuq3-1%"]["samples"], 2)
        said = self.succeed("task", self.model, "longbench", "--data", data, "--samples", "1")
        self.assertEqual([line.split()[:3] for line in said.splitlines()[2:6]],
                         [[name, str(CONTEXT), "1"] for name in ("hotpotqa", "lcc", "qasper", "trec")])

    def test_choices(self) -> None:
        data = self.write({"dataset": "mine"})
        lines, _ = self.task("longbench", "--data", data, "--metric", "rouge-l", "--max-tokens", "3")
        self.assertEqual(lines[0]["metric"], "rouge-l")
        self.assertLessEqual(len(lines[0]["answer"]), 3)


class BadInput(TaskCase):
    def test_usage(self) -> None:
        for said, *words in (["NAME", self.model], ["poetry", self.model, "poetry"],
                             ["--data", self.model, "passkey", "--data", "x"],
                             ["drift", self.model, "ruler", "--temperature", "1"],
                             ["--lengths", self.model, "passkey", "--lengths", "0"],
                             ["--lengths", self.model, "passkey", "--lengths", "many"],
                             ["--depths", self.model, "passkey", "--depths", "101"],
                             ["--samples", self.model, "passkey", "--samples", "0"],
                             ["niah-single-9", self.model, "ruler", "--tasks", "niah-single-9"],
                             ["--metric", self.model, "longbench", "--metric", "bleu"],
                             ["q5_k", self.model, "passkey", "--baseline", "q5_k"]):
            with self.subTest(said=said, words=words):
                self.expect_error(2, [said, "--help"], "task", *words)

    def test_lengths(self) -> None:
        for name in ("passkey", "ruler", "needle-kl", "drift"):
            self.expect_error(1, ["a length of 1024 tokens", f"expected {CONTEXT}", "context"], "task", self.model, name,
                              "--lengths", "300,1k")
        self.expect_error(1, ["passkey: a length that leaves 84 tokens"], "task", self.model, "passkey", "--lengths",
                          "100")
        self.expect_error(1, ["cwe: a length that leaves"], "task", self.model, "ruler", "--lengths", "500", "--tasks",
                          "cwe")
        self.expect_error(1, ["drift: 2 lengths", "expected one"], "task", self.model, "drift", "--lengths", "10,20")
        self.expect_error(1, ["drift/500/0: a prompt of", "and 500 to answer", "context"], "task", self.model, "drift",
                          "--lengths", "500", "--samples", "1")
        self.expect_error(1, ["drift: 9 samples of 8 prompts"], "task", self.model, "drift", "--lengths", "10",
                          "--samples", "9")

    def test_data(self) -> None:
        good = json.dumps({"context": "c", "input": "i", "answers": ["a"], "dataset": "trec", "_id": "7"}) + "\n"
        for content, said in (("", "the text is empty"), ("\n", "no lines"), (good + good[:30], "line 2: no JSON"),
                              (good + "\n[]\n", "line 3: expected a JSON object"),
                              (good + '{"context": "c"}\n', 'line 2: expected "input"'),
                              (good, 'trec "7": no "all_classes"')):
            (self.folder / "l.jsonl").write_text(content)
            self.expect_error(1, [said], "task", self.model, "longbench", "--data", "l.jsonl")
        self.expect_error(1, ["no questions", "--data"], "task", self.model, "longbench")
        self.expect_error(1, ["absent.jsonl"], "task", self.model, "longbench", "--data", "absent.jsonl")
        self.expect_error(1, ["no documents", "--documents"], "task", self.model, "ruler", "--tasks", "qa")

    def test_caches(self) -> None:
        self.calibrate("a.kvq")
        command = ("task", self.model, "passkey", "--lengths", "300", "--samples", "1")
        self.expect_error(1, ["a.kvq: a second cache"], *command, *3 * ("--artifact", "a.kvq"))
        other = self.write_model("other.gguf", "--seed", "2")
        self.expect_error(1, ["a.kvq", "made for"], "task", other, *command[2:], "--artifact", "a.kvq")

    def test_outputs(self) -> None:
        broken = self.write_model("nan.gguf", "--nan", "token_embd.weight")
        for place, said in (("absent/r", "No such file"), ("text.txt", "another name"), (".", "not a regular file")):
            self.expect_error(1, [place, said], "task", broken, "passkey", "--text", "text.txt", "-o", place)


if __name__ == "__main__":
    main()
