#!/usr/bin/env python3
"""Millions of instructions a second for each kernel of bench.cu, whose times come from one run and counts from another.

Usage: bench.py PROGRAM, with the emulated runtime in LD_LIBRARY_PATH
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile


def run(program: str, **variables: str) -> list[str]:
    return subprocess.run([program], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True,
                          check=True).stdout.splitlines()


def main() -> None:
    milliseconds = dict(line.split() for line in run(sys.argv[1])[:-1])
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "statistics.json")
        run(sys.argv[1], PTXRUN_STATS=str(file))
        launches = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    print("kernel      M thread insts/s  M warp insts/s  active lanes        ms")
    for launch in launches:
        name = launch["kernel"].split("(")[0]
        ms = float(milliseconds[name])
        print(f"{name:11} {launch['thread_insts'] / ms / 1e3:16.0f} {launch['warp_insts'] / ms / 1e3:15.1f} "
              f"{launch['avg_active_lanes']:13.1f} {ms:9.1f}")


if __name__ == "__main__":
    main()
