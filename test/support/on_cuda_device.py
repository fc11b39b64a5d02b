#!/usr/bin/env python3
"""Runs a program on a CUDA device: a real one where there is one, else the emulated one, which checks every access.

KVQUANT_CUDA_DEVICE chooses: gpu, emulated, or none (exits with 77, skipped). Usage: on_cuda_device.py EMULATOR PROGRAM
[ARGUMENT...], where EMULATOR is the folder of the runtime that takes the place of CUDA's.
"""

import os
import shutil
import subprocess
import sys

SKIPPED = 77
DEVICES = ("gpu", "emulated", "none")
EMULATED = {"PTXRUN_CHECK": "race,init,async", "PTXRUN_ARCH": "80", "PTXRUN_THREADS": "2"}


def has_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def main() -> int:
    emulator, *command = sys.argv[1:]
    device = os.environ.get("KVQUANT_CUDA_DEVICE") or ("gpu" if has_gpu() else "emulated")
    if device not in DEVICES:
        print(f"KVQUANT_CUDA_DEVICE is {device!r}, expected one of {', '.join(DEVICES)}")
        return 1
    if device == "none":
        print("skipped: KVQUANT_CUDA_DEVICE is none")
        return SKIPPED
    environment = dict(os.environ)
    if device == "emulated":
        before = os.environ.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = emulator + (":" + before if before else "")
        environment = EMULATED | environment
    print(f"on the {device} device", flush=True)
    return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
