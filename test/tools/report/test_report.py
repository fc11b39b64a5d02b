#!/usr/bin/env python3
"""kvquant report on small files: what it takes and refuses, its tables, its page."""

import csv
import json
import re
import sys
import unittest

import report_case
from report_case import (ADAPTIVE, ARTIFACT, ATTEND, DRAWN, DRIFT, EVAL, FILES, LISTED, PASSKEY, SAMPLES, SKIPPED,
                         ReportCase, changed)

SECTIONS = ("Quality", "Retrieval and long texts", "Calibration", "Memory", "Speed")


class Inputs(ReportCase):
    def refuse(self, said: list[str], content: object) -> None:
        path = self.write("odd", content)
        self.expect_error(1, ["found/odd.json: ", *said], "found", "-o", "r.html")
        path.unlink()

    def test_usage(self) -> None:
        self.write_all()
        for said, *words in (["PATH"], ["nothing to write", "found"], ["--bad", "found", "--text", "--bad"]):
            self.expect_error(2, [said, "--help"], *words)
        self.assertIn("usage: kvquant report", self.succeed("--help"))

    def test_no_files(self) -> None:
        (self.found / "notes.txt").write_text("no result")
        self.expect_error(1, ["found: no .json or .jsonl file"], "found", "--text")
        self.expect_error(1, ["nowhere: cannot be read: No such file"], "nowhere", "--text")

    def test_files_that_no_command_wrote(self) -> None:
        for content in ([], 3, {}, {"rows": []}, {"ids": [1, 2]}, {"kind": "else"}):
            self.refuse(["no file that a report knows, expected one that kvquant "], content)
        for text, said in (("", "is no JSON"), ("{", "is no JSON"), ("[" * 100000, "is no JSON"), ('{"a": NaN}', "NaN")):
            (self.found / "odd.json").write_text(text)
            self.expect_error(1, ["found/odd.json: ", said], "found", "--text")
        (self.found / "odd.json").write_bytes(b'"\xff"')
        self.expect_error(1, ["found/odd.json: is no UTF-8"], "found", "--text")

    def test_members_that_are_missing_or_something_else(self) -> None:
        self.refuse(['no member "model"'], changed(EVAL, "model", gone=True))
        self.refuse(['rows[1]: no member "kl_mean"'], changed(EVAL, "rows", 1, "kl_mean", gone=True))
        self.refuse(["rows[1].perplexity is a string, expected a number or null"],
                    changed(EVAL, "rows", 1, "perplexity", to="low"))
        self.refuse(["rows[1].bits_per_element is null, expected a number"],
                    changed(EVAL, "rows", 1, "bits_per_element", to=None))
        self.refuse(["rows is an object, expected a list"], changed(EVAL, "rows", to={}))
        self.refuse(["rows[0].perplexity is 1e+301, expected less"], changed(EVAL, "rows", 0, "perplexity", to=1e301))
        self.refuse(['rows[0]: no member "score"'], changed(PASSKEY, "rows", 0, "score", gone=True))
        self.refuse(['task is "../up", expected passkey, '], changed(PASSKEY, "task", to="../up"))
        self.refuse(['rows[0]: no member "buckets"'], changed(DRIFT, "rows", 0, "buckets", gone=True))
        self.refuse(["layers[1].key is a list, expected an object"], changed(ARTIFACT, "layers", 1, "key", to=[]))
        self.refuse(["bandwidth_gbps.1 is a string"], changed(ATTEND, "bandwidth_gbps", "1", to="fast"))

    def test_names_of_cases(self) -> None:
        self.write("odd", changed(ATTEND, "cases", 0, "name", to="fast"))
        self.expect_error(1, ["odd.json: expected cases and bandwidths as kvquant bench attend names them"], "found",
                          "--text")

    def test_samples(self) -> None:
        for lines, said in (([], "is empty"), ([{"task": "passkey"}], "no file that a report knows"),
                            ([PASSKEY], "first line is no header"),
                            ([changed(SAMPLES[0], "kvquant_results", to=2), SAMPLES[1]], "no file that a report knows"),
                            ([SAMPLES[0], {"sample": "a"}], 'line 2: no member "cache"')):
            self.write_samples(lines)
            self.expect_error(1, ["found/passkey.jsonl: ", said], "found", "--text")

    def test_the_page_is_no_input(self) -> None:
        path = self.write("eval", EVAL)
        self.expect_error(1, ["is read, expected another name"], "found", "-o", "found/eval.json")
        self.expect_error(1, ["not a regular file"], "found", "-o", "found")
        self.assertEqual(json.loads(path.read_text()), EVAL)

    def test_places_that_cannot_be_written(self) -> None:
        self.write("eval", EVAL)
        self.expect_error(1, ["found/eval.json: cannot be made"], "found", "--csv", "found/eval.json")


class Tables(ReportCase):
    def csv(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / "csv" / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def test_a_file_for_every_figure(self) -> None:
        self.write_all()
        self.assertEqual(self.succeed("found", "--csv", "csv"), "")
        self.assertEqual(sorted(path.stem for path in (self.folder / "csv").iterdir()), sorted(DRAWN + LISTED))
        rows = self.csv("perplexity")
        self.assertEqual([row["cache"] for row in rows], ["f16", "nuq3-1%", "nuq2-1%", "int2"])
        self.assertEqual((float(rows[1]["perplexity"]), rows[3]["perplexity"]), (EVAL["rows"][1]["perplexity"], ""))
        self.assertEqual([(row["cache"], row["depth"], row["score, %"]) for row in self.csv("passkey")][-2:],
                         [("nuq2-1%", "0", "0.5"), ("nuq2-1%", "100", "1")])
        self.assertEqual([row["context"] for row in self.csv("memory")], ["8192"] * 2 + ["65536"] * 2)
        self.assertEqual(self.csv("widths-by-layer")[0]["2 bits, keys"], "50.0")
        self.assertEqual({row["of"] for row in self.csv("codebooks")}, {"nuq2-1%", "values", "weights F"})

    def test_on_a_terminal(self) -> None:
        self.write("eval", EVAL)
        said = self.succeed("found", "--text")
        self.assertRegex(said, r"(?m)^nuq3-1% +4\.66 +3\.66 +20\.404 +\+2\.00 +\+0\.0200 +0\.0020$")
        self.assertIn("tiny, text.txt in windows of 64 tokens, 630 predictions, deployed", said)
        for title, command in (("Retrieval", "task"), ("Calibration", "inspect"), ("Memory", "plan"), ("Speed", "bench")):
            self.assertRegex(said, rf"(?m)^No {title.lower()}.*: kvquant {command} ")

    def test_control_characters_do_not_reach_a_terminal(self) -> None:
        self.write("eval", changed(EVAL, "rows", 1, "name", to="a\x1b[2J\nb"))
        self.assertIn("a [2J b", self.succeed("found", "--text"))

    def test_rows_of_several_files_stand_together(self) -> None:
        self.write("eval", EVAL)
        self.write("again", changed(EVAL, "rows", 1, "kl_mean", to=0.011))
        self.write("other", changed(EVAL, "text_hash", to="other"))
        self.succeed("found", "--csv", "csv")
        self.assertEqual([row["cache"] for row in self.csv("kl")], ["f16", "nuq3-1%", "nuq3-1% #2", "nuq2-1%", "int2"])
        self.assertEqual(len(self.csv("kl-2")), 4)

    def test_samples_of_a_run_without_its_table(self) -> None:
        self.write_samples(SAMPLES, torn='{"sample": "passk')
        self.assertIn("whether f16 beats a guess is in the table", self.succeed("found", "--text", "--csv", "csv"))
        self.assertEqual([(row["cache"], row["depth"], row["score, %"], row["Δ"]) for row in self.csv("passkey")],
                         [("f16", "", "1.0", ""), ("f16", "0", "1.0", ""), ("f16", "100", "1.0", ""),
                          ("nuq2-1%", "", "0.5", ""), ("nuq2-1%", "0", "0.0", ""), ("nuq2-1%", "100", "1.0", "")])
        self.assertEqual([(row["f16"], row["this cache"]) for row in self.csv("passkey-answers")],
                         [("12345", "1<b>&$x$")])

    def test_says_where_f16_is_at_chance(self) -> None:
        self.write("passkey", PASSKEY)
        self.write("ruler", FILES["ruler"])
        said = self.succeed("found", "--text")
        self.assertIn("* f16 cannot be told from a guess there", said)
        self.assertNotIn("At 512 tokens f16", said)
        self.write("passkey", changed(PASSKEY, "rows", 0, "f16_at_chance", to=True))
        self.assertIn("At 512 tokens f16 cannot be told from a guess", self.succeed("found", "--text"))

    def test_long_tables_are_whole_in_files(self) -> None:
        self.write("passkey", PASSKEY)
        self.write_samples([*SAMPLES, *({**line, "sample": f"{line['sample']}/{i}"} for i in range(30)
                                        for line in SAMPLES[1:])])
        self.assertIn("11 more rows: --csv has all", self.succeed("found", "--text", "--csv", "csv"))
        self.assertEqual(len(self.csv("passkey-answers")), 31)

    def test_artifacts_of_one_name_are_told_apart(self) -> None:
        for name in ("a", "b"):
            self.write(name, ADAPTIVE)
        self.succeed("found", "--csv", "csv")
        self.assertEqual([row["artifact"] for row in self.csv("artifacts")], ["adaptive 2 (a.json)", "adaptive 2 (b.json)"])


class Page(ReportCase):
    def page(self, *sources: str) -> str:
        self.assertEqual(self.succeed(*(sources or ["found"]), "-o", "r.html", python=PYTHON), "")
        return (self.folder / "r.html").read_text(encoding="utf-8")

    def test_all_of_it(self) -> None:
        self.write_all()
        page = self.page()
        self.assertEqual(sorted(re.findall(r'<figure id="([^"]+)">', page)), sorted(DRAWN + LISTED))
        self.assertEqual(len(re.findall("<svg ", page)), len(DRAWN))
        self.assertEqual(page.count("<details>"), len(DRAWN))
        for title in SECTIONS:
            self.assertIn(f">{title}</h2>", page)
        for name in FILES:
            self.assertIn(f"<code>{name}.json</code>", page)
        self.assertNotIn("Not in this report", page)
        self.assertIn("1&lt;b&gt;&amp;$x$", page)

    def test_is_alone_and_takes_its_colors_from_the_page(self) -> None:
        self.write_all()
        page = self.page()
        self.assertEqual(re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)[^)]*\)|@import|<script', page), [])
        ids = re.findall(r'\bid="([^"]+)"', page)
        self.assertEqual(len(ids), len(set(ids)))
        for pointed in re.findall(r'(?:href="|url\()#([^")]+)', page):
            self.assertIn(pointed, ids)
        drawn = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
        self.assertEqual(set(re.findall(r"#[0-9a-f]{6}\b", drawn)), {"#808080"})  # the roofline's line, seen on both

    def test_the_same_files_give_the_same_bytes(self) -> None:
        self.write_all()
        first = self.page()
        self.assertEqual(self.page(), first)
        self.assertEqual([path.name for path in self.folder.iterdir() if path.name != "found"], ["r.html"])

    def test_what_is_missing_is_left_out_and_said(self) -> None:
        path = self.write("plan", FILES["plan-1"])
        page = self.page(str(path))
        self.assertEqual(re.findall(r'<figure id="([^"]+)">', page), ["memory"])
        self.assertIn("Memory at 8K tokens", page)
        for command in ("eval", "task", "inspect", "bench"):
            self.assertIn(f"<code>kvquant {command} ", page)

    def test_codebooks_without_values_and_values_without_codebooks(self) -> None:
        for names, title in ((["artifact"], "The levels of codebooks"), (["statistics"], "Values and the levels")):
            paths = [str(self.write(name, FILES[name])) for name in names]
            page = self.page(*paths)
            self.assertIn(title, page)
            self.assertIn('<figure id="codebooks">', page)

    def test_names_with_any_character(self) -> None:
        odd = 'a$\\frac{b$ & <i>"日本'
        self.write("eval", changed(changed(EVAL, "rows", 1, "name", to=odd), "model", to=odd))
        self.write("artifact", changed(ARTIFACT, "label", to=odd))
        self.write("ruler", changed(FILES["ruler"], "rows", 0, "task", to=odd))
        page = self.page()
        self.assertNotIn("<i>", page)
        self.assertIn("a$\\frac{b$ &amp; &lt;i&gt;&quot;日本", page)


if __name__ == "__main__":
    PYTHON = report_case.plotting_python()
    if "Page" in sys.argv[2:] and PYTHON is None:
        print("skipped: no Python with matplotlib (scripts/install_packages plot)")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
