#!/usr/bin/env python3
"""Runs faults.cu in each of its modes and looks for what must be said: of errors, in statistics and in profiles.

Usage: check_faults.py PROGRAM, with the emulated runtime in LD_LIBRARY_PATH
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv.pop(1)
SOURCE = pathlib.Path(__file__).with_name("faults.cu").read_text(encoding="utf-8").splitlines()


def place(text: str) -> str:
    """A pattern for the place of the only line of faults.cu that holds `text`."""
    (line,) = [number for number, line in enumerate(SOURCE, 1) if text in line]
    return rf"faults\.cu:{line}\b"


# (mode, checks that are on, pattern of the message)
FAULTS = [
    ("oob", "", "out-of-bounds global write of 4 bytes.*byte 256 of an allocation of 256"),
    ("oob", "", place("p[threadIdx.x + n] = 1")),
    ("oob", "", r"block \(0,0,0\), thread \(24,0,0\)"),
    ("oob_shared", "", "out-of-bounds shared read"),
    ("misaligned", "", "misaligned write"),
    ("race", "race", "race on shared memory"),
    ("async_wait", "async",
     "shared read at 0x[0-9a-f]* before the end of an asynchronous copy.*group not waited for"),
    ("async_overwrite", "async", "shared write .*by this thread, not committed"),
    ("async_overwrite", "async", r"cuda_pipeline_helpers\.h:[0-9]*, inlined at .*faults\.cu:[0-9]* by this thread"),
    ("async_barrier", "race", "race on shared memory.*read without a barrier after a write"),
    ("async_barrier", "async", "asynchronous copy.*by warp [01], lane 31, group not waited for"),
    ("async_refill", "race", "race on shared memory"),
    ("async_ldmatrix", "async", "before the end of an asynchronous copy.*by this thread, not committed"),
    ("async_mbarrier_early", "async", "before the end of an asynchronous copy"),
    ("uninit_shared", "init", "uninitialised shared memory"),
    ("uninit_global", "init", "uninitialised global memory"),
    ("deadlock", "", "deadlock"),
    ("assert", "", "assertion .n == 3. failed"),
    ("trap", "", "trap"),
    ("loop", "", "instruction limit"),
    ("config", "", "invalid configuration"),
]

# (mode, checks that are on)
FAULTLESS = [
    ("no_race", "race,init"),
    ("race", ""),
    ("async_ok", "async,race,init"),
    ("async_wait_all", "async,race,init"),
    ("async_mbarrier", "async,race,init"),
    ("async_wait", ""),
    ("init_global", "init"),
    ("uninit_global", "initwarn"),
]

# (mode, part of the statistics)
STATISTICS = [
    ("init_global", '"unique_bytes_read":256,"unique_bytes_written":256'),
    ("traffic", '"load":{"requests":1,"sectors":32,"useful_bytes":128,"efficiency":0.1250},'
                '"store":{"requests":1,"sectors":4,"useful_bytes":128,"efficiency":1.0000}'),
    ("traffic", '"unique_bytes_read":1024,"unique_bytes_written":128'),
    ("traffic", '"shared":{"requests":4,"wavefronts":68,"by_kind":{"load":{"requests":2,"wavefronts":34},'
                '"store":{"requests":2,"wavefronts":34}}}'),
]

# (file, pattern) of the profile of mode `traffic`
PROFILES = [
    ("profile.json", r'"source":"[^"]*' + place("32 sectors") + '","warp_insts":[0-9]*,"thread_insts":[0-9]*,'
                     '"shared_wavefronts":32,"global_sectors":32}'),
    ("profile.json", '"text":"st.shared.u64[^}]*"shared_wavefronts":2,"global_sectors":0}'),
    ("profile.json", '"shared_wavefronts":68,"global_sectors":36,"ptx_lines"'),
    ("profile.txt", "(?m) total$"),
    ("profile.txt", r"PTX [0-9]*: ld\.global\.f32.* faults\.cu:"),
]


def run(mode: str, **variables: str) -> tuple[int, str]:
    """Exit status, and all that was said."""
    done = subprocess.run([PROGRAM, mode], env={**os.environ, **variables}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


class Faults(unittest.TestCase):
    def test_each_fault_is_reported(self) -> None:
        for mode, checks, message in FAULTS:
            with self.subTest(mode=mode, checks=checks, message=message):
                status, said = run(mode, PTXRUN_CHECK=checks, PTXRUN_MAX_INSTS="1000000")
                self.assertEqual(status, 1, said)
                self.assertRegex(said, message)

    def test_no_check_complains_without_reason(self) -> None:
        for mode, checks in FAULTLESS:
            with self.subTest(mode=mode, checks=checks):
                status, said = run(mode, PTXRUN_CHECK=checks)
                self.assertEqual(status, 0, said)


class Counts(unittest.TestCase):
    def written(self, mode: str, variable: str, name: str) -> str:
        """What a run in `mode` writes to the file that `variable` names."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, name)
            status, said = run(mode, **{variable: str(file)})
            self.assertEqual(status, 0, said)
            return file.read_text(encoding="utf-8")

    def test_statistics(self) -> None:
        for mode, part in STATISTICS:
            with self.subTest(mode=mode, part=part):
                self.assertIn(part, self.written(mode, "PTXRUN_STATS", "statistics.json"))

    def test_profiles(self) -> None:
        for name, pattern in PROFILES:
            with self.subTest(name=name, pattern=pattern):
                self.assertRegex(self.written("traffic", "PTXRUN_PROFILE", name), pattern)

    def test_lines_of_a_profile_sum_to_the_launch(self) -> None:
        (launch,) = map(json.loads, self.written("traffic", "PTXRUN_PROFILE", "profile.json").splitlines())
        for what in ("warp_insts", "thread_insts", "shared_wavefronts", "global_sectors"):
            for lines in ("ptx_lines", "source_lines"):
                with self.subTest(what=what, lines=lines):
                    self.assertEqual(sum(line[what] for line in launch[lines]), launch[what])


if __name__ == "__main__":
    unittest.main()
