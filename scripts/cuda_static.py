#!/usr/bin/env python3
"""What can be said of the CUDA kernels without a GPU: registers, spills and machine instructions from ptxas and the
disassembler, traffic and instructions from the emulated device, and times modelled from both.

Usage: cuda_static.py BUILD [-o PAGE.md]. BUILD is a build with the tool, the tests and nvcc. The disassembler is the
first nvdisasm in PATH, else that of PyPI, installed below BUILD.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
DISASSEMBLER = "nvidia-cuda-nvdisasm==13.2.51"
HEAD_DIMS, BITS = (64, 80, 96, 128, 256), ("by_width", 2, 3, 4, 16)
LANES = 32
SLAB_TOKENS = 16
REGISTERS, MOST_WARPS = 65536, {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}  # of a multiprocessor
RESERVED_SHARED = 1024  # of each block

# Shape, and the column that it fills: queries of a KV head.
SHAPES = {"32/32/128": "MHA", "32/8/128": "GQA-4"}
CONTEXT = "4K"
FORMATS = ("nuq4", "nuq4-1%", "nuq3", "nuq3-1%", "nuq2-1%", "adaptive3", "adaptive2.5-0.5%")


@dataclasses.dataclass(frozen=True)
class Gpu:
    name: str
    architecture: int
    bytes_per_second: float
    multiprocessors: int
    clock: float

    def instructions_per_second(self) -> float:
        """Of threads: four warps of a multiprocessor issue one instruction each."""
        return 4 * LANES * self.multiprocessors * self.clock


# Peak bandwidths, multiprocessors and clocks of NVIDIA's data sheets (A100 SXM 40 GB, H100 SXM).
GPUS = (Gpu("A100", 80, 1555e9, 108, 1.41e9), Gpu("H100", 90, 3350e9, 132, 1.75e9))


@dataclasses.dataclass
class Kernel:
    """As ptxas makes it for one architecture."""

    registers: int = 0
    spilled_bytes: int = 0
    ptx: int = 0      # instructions
    machine: int = 0  # instructions
    main_loop: float | None = None  # instructions an element


def run(*command: str | pathlib.Path, **options) -> str:
    """Standard output and error; a command that fails ends the script with them."""
    done = subprocess.run([str(it) for it in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **options)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def find_disassembler(work: pathlib.Path) -> str:
    if found := shutil.which("nvdisasm"):
        return found
    place = work / "disassembler"
    if not place.exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", place, DISASSEMBLER)
    return str(next(place.rglob("bin/nvdisasm")))


@functools.cache
def kernel_name(symbol: str) -> str | None:
    """"attend_kernel<3, 128, 4>"; none for what is no kernel of ours."""
    found = re.search(r"(\w+_kernel(?:<[^(]*>)?)\(", run("c++filt", symbol) if symbol.startswith("_Z") else symbol)
    return found and found[1].replace("kvquant::", "")


def main_loop(listing: list[str], labels: dict[str, int]) -> int | None:
    """Instructions of the loop over slabs: the smallest with products of matrices that also copies pages
    to shared memory. Without blocks that a branch may skip if they do not touch memory, or loop: what masks the first and
    last tokens, new maxima, and slots beyond those that come with a slab."""
    loops = [(start, end) for end, text in enumerate(listing)
             if (start := labels.get(target_of(text), len(listing))) <= end
             and sum("HMMA" in it for it in listing[start:end + 1]) >= 8
             and any("LDGSTS" in it for it in listing[start:end + 1])]
    if not loops:
        return None
    start, end = min(loops, key=lambda it: it[1] - it[0])
    skipped: set[int] = set()
    for at in range(start, end):
        to = labels.get(target_of(listing[at]), -1)
        block = range(at + 1, to)
        loops_within = any(at < labels.get(target_of(listing[i]), -1) <= i for i in block)
        if at < to <= end and not any(re.search("HMMA" if loops_within else "HMMA|LDG|STS", listing[i]) for i in block):
            skipped |= set(block)
    return end + 1 - start - len(skipped)


def elements_of(kernel: str) -> int:
    """Of the cache, a lane, in a slab of 16 tokens: keys and values."""
    return 2 * SLAB_TOKENS * int(kernel.split(",")[1]) // LANES


def target_of(text: str) -> str:
    found = re.search(r"\bBRA\S*\s.*?(\.L_x_\d+)", text)
    return found[1] if found else ""


def disassemble(disassembler: str, cubin: pathlib.Path, kernels: dict[str, Kernel]) -> None:
    name, listing, labels = None, [], {}

    def finish() -> None:
        if name in kernels:
            kernels[name].machine = sum(not it.startswith("NOP") for it in listing)
            length = main_loop(listing, labels)
            if length is not None:
                kernels[name].main_loop = length / elements_of(name)

    for line in run(disassembler, "-c", cubin).splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            finish()
            name, listing, labels = kernel_name(section[1]), [], {}
        elif label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(listing)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            listing.append(instruction[1])
    finish()


def ptx_lengths(text: str) -> dict[str, int]:
    """Instructions of each kernel: lines that end in a semicolon and are no directive."""
    lengths = {}
    for part in re.split(r"\.entry ", text)[1:]:
        lengths[kernel_name(part[:part.index("(")])] = sum(
            ";" in line and not line.lstrip().startswith((".", "//")) for line in part.splitlines())
    return lengths


def compile_source(source: pathlib.Path, work: pathlib.Path, nvcc: str, disassembler: str) -> dict:
    """Kernels by (architecture, name), all from one PTX, as a driver would make them."""
    ptx = work / (source.stem + ".ptx")
    run(nvcc, "-std=c++20", "-O3", f"-I{ROOT}", f"-I{ROOT / 'include'}", "-arch=compute_80", "-ptx", source, "-o", ptx)
    lengths = ptx_lengths(ptx.read_text())
    ptxas, found = pathlib.Path(nvcc).with_name("ptxas"), {}
    for architecture in ARCHITECTURES:
        cubin, kernels = work / f"{source.stem}.{architecture}.cubin", {}
        said = run(ptxas, f"-arch=sm_{architecture}", "-O3", "-v", ptx, "-o", cubin)
        for part in said.split("Compiling entry function '")[1:]:
            stores, loads = (int(re.search(rf"(\d+) bytes spill {it}", part)[1]) for it in ("stores", "loads"))
            name = kernel_name(part.split("'")[0])
            kernels[name] = Kernel(int(re.search(r"Used (\d+) registers", part)[1]), stores + loads, lengths[name])
        disassemble(disassembler, cubin, kernels)
        found.update({(architecture, name): it for name, it in kernels.items()})
    return found


def compile_all(build: pathlib.Path, work: pathlib.Path, nvcc: str, disassembler: str) -> dict:
    generated = build / "backends" / "cuda"
    sources = [generated / f"attend_{bits}_{head_dim}.cu" for bits in BITS for head_dim in HEAD_DIMS]
    sources += [ROOT / "backends" / "cuda" / "launch" / f"{name}.cu" for name in ("merge", "seal")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda it: compile_source(it, work, nvcc, disassembler), sources)
        return {key: kernel for part in parts for key, kernel in part.items()}


def code_bits(format_name: str) -> int:
    """As the kernels have it: 0 where channels have widths of their own."""
    return 16 if format_name == "f16" else 0 if format_name.startswith("adaptive") else int(format_name[3])


def count_launches(build: pathlib.Path, work: pathlib.Path, shape: str) -> dict:
    """Of each format: the counts of one call of attention on the emulated device, and the bytes of its pages."""
    counts = {}
    for format_name in ("f16", *FORMATS):
        stats, report = work / "stats.jsonl", work / "report.json"
        stats.unlink(missing_ok=True)
        run(build / "tools" / "kvquant", "bench", "attend", "--backend", "cuda", "--shape", shape, "--context", CONTEXT,
            "--formats", "nuq2" if format_name == "f16" else format_name, "--seconds", "0", "--working-set", "0",
            "--quiet", "--json", report,
            env={**os.environ, "PTXRUN_ARCH": "80", "PTXRUN_STATS": str(stats), "PTXRUN_THREADS": str(os.cpu_count()),
                 "LD_LIBRARY_PATH": str(build / "subprojects" / "ptxrun")})
        bits = code_bits(format_name)
        launches = [json.loads(line) for line in stats.read_text().splitlines()]
        wanted = [it for it in launches if (kernel_name(it["kernel"]) or "").startswith(f"attend_kernel<{bits},")]
        case = next(it for it in json.loads(report.read_text())["cases"] if it["format"] == format_name)
        counts[format_name] = {"launch": wanted[-1], "kernel": kernel_name(wanted[-1]["kernel"]), "bytes": case["bytes"],
                               "merge": next(it for it in reversed(launches) if "merge_kernel" in it["kernel"])}
    return counts


def resident_warps(kernel: Kernel, launch: dict, architecture: int) -> int:
    """Warps that a multiprocessor holds: by registers, by shared memory, by its own limit."""
    shared = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}[architecture] * 1024
    warps = launch["block"][0] // LANES
    registers = -(-kernel.registers // 8) * 8 * LANES * warps
    blocks = min(REGISTERS // registers, shared // (launch["shared_bytes"] + RESERVED_SHARED),
                 MOST_WARPS[architecture] // warps)
    return blocks * warps


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def compiled_page(kernels: dict) -> str:
    names = sorted({name for _, name in kernels}, key=lambda it: [int(x) if x.isdigit() else x
                                                                 for x in re.split(r"(\d+)", it)])
    rows, spills = [], []
    for name in names:
        of = [kernels[architecture, name] for architecture in ARCHITECTURES]
        rows.append([f"`{name}`", *(f"{it.registers}" + (f" ({it.spilled_bytes})" if it.spilled_bytes else "")
                                    for it in of)])
        spills += [f"{name} on sm_{at}" for at, it in zip(ARCHITECTURES, of) if it.spilled_bytes]
    verdict = f"{len(spills)} of {len(names) * len(ARCHITECTURES)} spill." if spills else "None spills."
    return (f"Registers of a thread, and in brackets the bytes that are spilled. {verdict}\n\n"
            + table(["kernel", *(f"sm_{it}" for it in ARCHITECTURES)], rows))


def loop_page(kernels: dict) -> str:
    rows = []
    for bits in (16, 4, 3, 2):
        for head_dim, sparse in itertools.product((64, 128), (0, 1)):
            name = f"attend_kernel<{bits}, {head_dim}, {sparse}>"
            if name not in {of for _, of in kernels}:
                continue
            loops = [kernels[architecture, name].main_loop for architecture in ARCHITECTURES]
            rows.append([f"`{name}`", *(f"{it:.2f}" if it else "?" for it in loops)])
    return table(["kernel", *(f"sm_{it}" for it in ARCHITECTURES)], rows)


def dynamic_page(kernels: dict, shape: str, counts: dict) -> tuple[str, str]:
    q_heads, kv_heads, head_dim = map(int, shape.split("/"))
    elements = 2 * kv_heads * head_dim * int(CONTEXT[:-1]) * 1024
    counted, modelled = [], []
    for name, it in counts.items():
        launch, loads = it["launch"], it["launch"]["global"]["load"]
        shared, read = launch["shared"], launch["global"]["unique_bytes_read"]
        executed = (launch["thread_insts"] + it["merge"]["thread_insts"]) / elements
        atomics = launch["global"]["atomic"]["requests"] + it["merge"]["global"]["atomic"]["requests"]
        counted.append([name, f"`{it['kernel']}`", launch["block"][0] // LANES, launch["shared_bytes"],
                        resident_warps(kernels[80, it["kernel"]], launch, 80), f"{executed:.2f}",
                        f"{32 * loads['sectors'] / loads['useful_bytes']:.3f}",
                        f"{shared['wavefronts'] / shared['requests']:.2f}", atomics, f"{read / it['bytes']:.3f}"])
        row = [name, f"{8 * it['bytes'] / elements:.3f}"]
        for gpu in GPUS:
            kernel = kernels[gpu.architecture, it["kernel"]]
            machine = executed * kernel.machine / kernel.ptx
            seconds_of_bytes = it["bytes"] / gpu.bytes_per_second
            seconds_of_issue = machine * elements / gpu.instructions_per_second()
            row += [f"{machine:.2f}", f"{1e6 * seconds_of_bytes:.1f}", f"{1e6 * seconds_of_issue:.1f}",
                    f"{max(1, seconds_of_issue / seconds_of_bytes):.2f}"]
        modelled.append(row)
    header = ["format", "kernel", "warps of a block", "its shared bytes", "resident warps, sm_80",
              "PTX instructions of threads an element", "sectors / needed", "wavefronts / request", "atomics",
              "DRAM bytes / page bytes"]
    columns = [f"{gpu.name}: {it}" for gpu in GPUS for it in ("instructions", "bytes us", "issue us", "max / bytes")]
    return table(header, counted), table(["format", "bits", *columns], modelled)


PAGE = """# The CUDA kernels without a GPU

Written by `scripts/cuda_static.py`, from a build with CUDA {cuda}. Nothing here is a time that was measured; those are in
the [figures of a GPU](2026-11-26-cuda-attention.md). Template arguments of `attend_kernel` are bits, channels of a head, and
whether there are outliers; 0 bits: channels have widths of their own.

## Registers

{compiled}
## Machine instructions of the loop over slabs

For each element of the cache (a channel of a key or of a value). Counted in the disassembly of ptxas's code: the loop that
holds the products of matrices, without the blocks that mask tokens, take a new maximum over, or see to slots beyond those
that come with a slab, which run for few slabs. Where channels have widths of their own the loop branches by them: see the instructions of PTX
that were executed, below.

{loops}
## One call of attention on the emulated device

Context {context}, batch 1, executed from the PTX that nvcc embeds; both kernels, sinks and tail included. *Sectors* are of
loads from global memory, 32 bytes each, for every byte that was asked for; *wavefronts* of shared memory count two for
accesses of 8 bytes a lane and four for 16, which is no conflict. *DRAM bytes* are all sectors touched at least once.

{dynamic}
## Modelled times

What the counts come to if nothing else held a GPU back: **modelled**, not measured. Machine instructions are those of PTX
that were executed, times the ratio of both in the kernel's code; *issue us* is what they take with every slot of every
multiprocessor used, *bytes us* the time of the page bytes at the peak bandwidth.

{modelled}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "docs" / "results" / "cuda_static.md")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        sys.exit("nvcc is neither in PATH nor in /usr/local/cuda/bin")
    work = options.build.resolve() / "cuda_static"
    work.mkdir(exist_ok=True)
    kernels = compile_all(options.build.resolve(), work, nvcc, find_disassembler(work))
    dynamic, modelled = [], []
    for shape, name in SHAPES.items():
        counted, times = dynamic_page(kernels, shape, count_launches(options.build.resolve(), work, shape))
        dynamic.append(f"{shape} ({name}):\n\n{counted}")
        modelled.append(f"{shape} ({name}):\n\n{times}")
    options.output.write_text(PAGE.format(
        cuda=re.search(r"release ([\d.]+)", run(nvcc, "--version"))[1], compiled=compiled_page(kernels),
        loops=loop_page(kernels), context=CONTEXT, dynamic="\n".join(dynamic), modelled="\n".join(modelled)),
        encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
