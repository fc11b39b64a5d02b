#!/usr/bin/env python3
"""Plots what `kvquant bench attend --json` wrote: the time of each case against the bytes that it reads, and the time
that reading them takes at the bandwidth of the same run. Usage: roofline.py JSON -o FILE.svg

Needs matplotlib (scripts/install_packages plot).
"""

import argparse
import json
import pathlib
import sys

MARKERS = "osD^vP*X<>"


def threads_of(name: str) -> int:
    """Of a case "32/8/128 8K, batch 1, 2 threads, nuq4"."""
    return int(name.split(", ")[2].split()[0])


def plot(found: dict, output: pathlib.Path) -> None:
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, in the reader's font
    from matplotlib import pyplot

    cases = found["cases"]
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for index, name in enumerate(dict.fromkeys(case["format"] for case in cases)):
        mine = [case for case in cases if case["format"] == name]
        axes.scatter([case["bytes"] for case in mine], [1e6 * case["seconds_per_call"] for case in mine],
                     marker=MARKERS[index % len(MARKERS)], s=30, label=name)
    ends = [min(case["bytes"] for case in cases) / 1.5, max(case["bytes"] for case in cases) * 1.5]
    for threads in sorted({threads_of(case["name"]) for case in cases}):
        gbps = found["bandwidth_gbps"][str(threads)]
        label = f"{gbps:.1f} GB/s, {threads} thread{'s' if threads > 1 else ''}"
        axes.plot(ends, [end / gbps / 1e3 for end in ends], "--" if threads > 1 else "-", color="gray", label=label)
    axes.set(xscale="log", yscale="log", xlabel="bytes of one call", ylabel="microseconds of one call",
             title=f"attention, backend {found['backend']}: nothing can lie below its line")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(output, format="svg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    try:
        found = json.loads(options.json.read_text(encoding="utf-8"))
        if not found["cases"] or "seconds_per_call" not in found["cases"][0]:
            raise ValueError("no cases of kvquant bench attend")
        plot(found, options.output)
    except ModuleNotFoundError as missing:
        print(f"roofline.py: {missing.name} is missing: scripts/install_packages plot, or Debian's python3-matplotlib",
              file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, KeyError) as failure:
        print(f"roofline.py: {options.json}: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
