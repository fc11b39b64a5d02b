"""What the tests of the report share: small files of every command, and a Python that can plot.
A module is run as: MODULE FOLDER_OF_THE_PROGRAM [TEST...]
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SKIPPED = 77
PROGRAM = sys.argv[1]
ORIGIN = {"model_name": "tiny", "model_hash": "ab", "text_hash": "cd", "samples": 2, "context": 64, "seed": 0}


def eval_row(name: str, bits: float, nll: float, kl: float) -> dict:
    return {"name": name, "perplexity": 20 * 2.718281828 ** nll, "delta_percent": 100 * nll, "delta_nll": nll,
            "delta_nll_se": nll / 10, "kl_mean": kl, "kl_p999": 30 * kl, "top1_agreement": 1 - kl,
            "bits_per_element": bits + 1, "bits_per_element_32k": bits}


EVAL = {"model": "tiny", "model_hash": "ab", "text": "folder/text.txt", "text_hash": "ef", "mode": "deployed",
        "context": 64, "predictions": 630,
        "rows": [eval_row("f16", 16, 0, 0), eval_row("nuq3-1%", 3.66, 0.02, 0.01), eval_row("nuq2-1%", 2.66, 0.3, 0.2),
                 {**eval_row("int2", 2.1, 5, 3), "perplexity": None, "delta_percent": None}]}

CACHES = [{"name": name, "hash": ""} for name in ("f16", "nuq2-1%")]
HEADER = {"task": "passkey", "model": "tiny", "caches": CACHES, "seed": 0}


def passkey_row(cache: str, score: float, **more: int) -> dict:
    return {"task": "passkey", "length": 512, "cache": cache, "samples": 2, "score": score, "delta": score - 1,
            "delta_se": 0.25, "f16_at_chance": False, **more}


PASSKEY = {**HEADER, "rows": [
    passkey_row("f16", 1), passkey_row("nuq2-1%", 0.75),
    *(passkey_row(cache, score, depth=depth) for cache, depth, score in (
        ("f16", 0, 1), ("f16", 100, 1), ("nuq2-1%", 0, 0.5), ("nuq2-1%", 100, 1)))]}
SAMPLES = [{**HEADER, "kvquant_results": 1},
           *({"sample": f"passkey/512/{depth}/0", "cache": cache, "task": "passkey", "length": 512, "depth": depth,
              "score": score, "answer": answer, "expected": ["12345"]} for cache, depth, score, answer in (
                  ("f16", 0, 1, " 12345"), ("f16", 100, 1, " 12345"), ("nuq2-1%", 0, 0, " 1<b>&$x$\u2028"),
                  ("nuq2-1%", 100, 1, " 12345")))]
NEEDLE = {**HEADER, "task": "needle-kl", "rows": [
    {"task": "passkey", "length": 512, "cache": cache, "samples": 1, "kl": kl, "kl_se": 0.1, "delta_nll": kl,
     "delta_nll_se": 0.1, "top1_agreement": 1, "f16_at_chance": False, **depth}
    for cache, kl in (("f16", 0), ("nuq2-1%", 0.2)) for depth in ({}, {"depth": 0}, {"depth": 50})]}
RULER = {**HEADER, "task": "ruler", "rows": [
    {**passkey_row(cache, score), "task": task, "f16_at_chance": task == "vt"}
    for task in ("niah-single-1", "vt") for cache, score in (("f16", 0.9), ("nuq2-1%", 0.4))]}
DRIFT = {**HEADER, "task": "drift", "rows": [
    {"task": "drift", "length": 256, "cache": cache, "samples": 1, "kl": kl, "agreement": 0.9,
     "buckets": [{"first": 0, "kl": kl}, {"first": 128, "kl": 2 * kl}]} for cache, kl in (("f16", 0), ("nuq2-1%", 0.1))]}

BOOK = {"objective": 0.5, "mass": 40, "outlier_rate": 0.01, "levels": [-0.8, -0.2, 0.3, 0.9], "sensitivity": 0.25}
ARTIFACT = {"kind": "artifact", "hash": "01", "label": "nuq2-1%",
            "info": {"spec": "nuq2", "shape": {"layers": 2, "kv_heads": 2, "head_dim": 32}, "origin": ORIGIN,
                     "weights": "fisher", "sinks": 1, "q_norm": False},
            "layers": [{"key": BOOK, "value": BOOK}] * 2}
WIDE = {key: value for key, value in BOOK.items() if key != "levels"}
ADAPTIVE = {**ARTIFACT, "label": "adaptive 2", "info": {**ARTIFACT["info"], "spec": "adaptive", "key_token_bits": 64,
                                                        "value_token_bits": 64},
            "layers": [{"key": WIDE, "value": WIDE, "key_widths": [1, 3, 2, 2], "value_widths": [2, 2, 4, 1]}] * 2}
SEEN = {"values": 100, "outliers": 1, "sensitivity": 0.25, "histogram": [9, 50, 30, 10], "fisher_histogram": [1, 2, 3, 0]}
STATISTICS = {"kind": "statistics", "origin": ORIGIN, "layers": [{"key": SEEN, "value": SEEN}] * 2}
CALIBRATE = {"rows": [{"path": "folder/a.kvq", "spec": "nuq2", "key_error_db": -17.5, "value_error_db": None,
                       "q_norm": False, "hash": "01"}]}


def plan(context: int) -> dict:
    rows = [{"format": name, "bits_per_element": bits, "weights": 1 << 30, "cache": context * bits * 4096,
             "activations": 1 << 20, "total": (1 << 30) + (1 << 20) + context * bits * 4096, "fits": True,
             "longest_context": 1 << 20, "tokens_per_second": 12.5} for name, bits in (("f16", 16), ("nuq2-1%", 3))]
    return {"model": "tiny", "weight_bytes": 1 << 30, "context": context, "batch": 1, "devices": 1, "rows": rows,
            "device": {"name": "a100-80g", "memory": 80 << 30, "bandwidth": 2e12}}


SOLUTION = {"bits_per_element": 2.5, "bytes": 1 << 20, "loss": 0.02, "layers": [{"keys": "nuq2", "values": "nuq3"}] * 2}
SOLVE = {"model": "tiny", "context": 8192, "batch": 1, "devices": 1, "budget": 1 << 21,
         "rows": [{"format": f"nuq{bits}", "bits_per_element": bits, "bytes": bits << 19, "loss": 0.1 / bits ** 2,
                   "pareto": bits != 3, "loss_sides_apart": 0.1 / bits ** 2, "loss_layers_apart": 0.09 / bits ** 2}
                  for bits in (2, 3, 4)], "solutions": {"makeable": SOLUTION, "layers_apart": SOLUTION}}
ATTEND = {"backend": "cpu", "bandwidth_gbps": {"1": 10.0}, "cases": [
    {"name": f"8/2/64 {context}, batch 1, 1 thread, {name}", "isa": "avx2", "format": name, "bytes": size,
     "seconds_per_call": size / 5e9, "gbps": 5.0, "share_of_bandwidth": 0.5, "ratio_to_f16": 1.5,
     "ns_per_token_layer": 12.5}
    for context, factor in (("1K", 1), ("4K", 4)) for name, size in (("f16", factor << 20), ("nuq2-1%", factor << 17))]}
SEAL = {"backend": "cpu", "cases": [{"name": "8/2/64, nuq2", "gbps": 0.5, "ratio_to_f16": 0.2, "ratio_to_copy": 0.01}]}
GENERATE = {"model": "tiny", "cache": "nuq2-1%", "prompt_tokens": 20, "prompt_tokens_per_second": 100.0,
            "tokens_per_second": 30.0, "cache_tokens": 50, "cache_bytes": 1 << 20, "f16_bytes": 1 << 22}

FILES = {"eval": EVAL, "passkey": PASSKEY, "needle": NEEDLE, "ruler": RULER, "drift": DRIFT, "artifact": ARTIFACT,
         "adaptive": ADAPTIVE, "statistics": STATISTICS, "calibrate": CALIBRATE, "plan-1": plan(8192),
         "plan-2": plan(65536), "solve": SOLVE, "attend": ATTEND, "seal": SEAL, "generate": GENERATE}
# Figures that are drawn, and those that are a table alone.
DRAWN = ["codebooks", "drift", "error-by-layer", "kl", "memory", "needle-kl", "passkey", "perplexity",
         "predicted-loss", "roofline", "ruler", "sealing", "sensitivity-by-layer", "widths-by-layer"]
LISTED = ["artifacts", "calibrations", "generation", "passkey-answers", "within-budget"]


def plotting_python() -> str | None:
    """This one, or the system's, which has what the system's packages install."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([python, "-c", "import matplotlib"], capture_output=True).returncode == 0:
                return python
        except OSError:
            pass
    return None


class ReportCase(unittest.TestCase):
    """A temporary folder, and in it `found` for files of other commands."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.found = self.folder / "found"
        self.found.mkdir()

    def write(self, name: str, content: object) -> pathlib.Path:
        path = self.found / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def write_samples(self, lines: list[dict], torn: str = "") -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (self.found / "passkey.jsonl").write_text(text + torn, encoding="utf-8")

    def write_all(self) -> None:
        for name, content in FILES.items():
            self.write(name, content)
        self.write_samples(SAMPLES)

    def run_report(self, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-B", PROGRAM, *words], capture_output=True, text=True, cwd=self.folder,
                              stdin=subprocess.DEVNULL, timeout=100)

    def succeed(self, *words: str, **how: str) -> str:
        done = self.run_report(*words, **how)
        self.assertEqual((done.returncode, done.stderr), (0, ""), words)
        return done.stdout

    def expect_error(self, status: int, said: list[str], *words: str) -> None:
        """One line on stderr that holds all of `said`, and nothing else is written."""
        before = sorted(self.folder.rglob("*"))
        done = self.run_report(*words)
        self.assertEqual((done.returncode, done.stdout), (status, ""), done.stderr)
        self.assertRegex(done.stderr, r"\Akvquant: report: [^\n]+\n\Z")
        for part in said:
            self.assertIn(part, done.stderr)
        self.assertEqual(sorted(self.folder.rglob("*")), before)


def changed(content: dict, *path: object, to: object = None, gone: bool = False) -> dict:
    """A copy in which one member is another, or gone."""
    content = json.loads(json.dumps(content))
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    if gone:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return content
