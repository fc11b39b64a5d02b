#!/usr/bin/env python3
"""Plots what `kvquant bench attend --json` wrote: the time of a call against the time that reading its bytes takes at
the bandwidth of the same run; a panel for each shape, a line for each format. With --measure it runs the tool first.

Needs matplotlib (scripts/install_packages plot). The same report gives the same bytes.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

MEASURED = ("bench", "attend", "--context", "256,1K,4K,16K", "--formats", "nuq4,nuq4-1%,nuq3-1%,nuq2-1%", "--quiet")
MARKERS = "osD^vP*X<>"


def parts_of(name: str) -> dict[str, str]:
    """Of a case "32/8/128 8K, batch 1, 2 threads, nuq4"."""
    size, batch, threads, _ = name.split(", ")
    return {"shape": size.split()[0], "batch": batch, "threads": threads}


def read_cases(report: dict) -> list[dict]:
    """Each with its shape, its microseconds measured and attainable, and the label of its line: the format, and what
    else there are several of."""
    cases = []
    for case in report["cases"]:
        parts = {**parts_of(case["name"]), "isa": case["isa"]}
        gbps = report["bandwidth_gbps"][parts["threads"].split()[0]]
        cases.append({**parts, "format": case["format"], "attainable": case["bytes"] / gbps / 1e3,
                      "measured": 1e6 * case["seconds_per_call"]})
    if not cases:
        raise ValueError("no cases")
    varied = [it for it in ("batch", "threads", "isa") if len({case[it] for case in cases}) > 1]
    for case in cases:
        case["label"] = ", ".join([case["format"], *(case[it] for it in varied)])
    return cases


def draw_panel(axes, cases: list[dict], labels: list[str]) -> None:
    for index, label in enumerate(labels):
        line = sorted((case["attainable"], case["measured"]) for case in cases if case["label"] == label)
        axes.plot(*zip(*line), marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=1, label=label)
    times = [case[kind] for case in cases for kind in ("attainable", "measured")]
    ends = (min(times) / 1.5, max(times) * 1.5)
    axes.plot(ends, ends, color="gray", linestyle="--", label="the bandwidth")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", title=cases[0]["shape"],
             xlabel="µs to read the bytes")
    axes.grid(True, which="major", alpha=0.3)


def draw(report: dict, cases: list[dict]):
    """A figure of matplotlib."""
    from matplotlib import figure as figures

    shapes, labels = (list(dict.fromkeys(case[it] for case in cases)) for it in ("shape", "label"))
    bandwidth = ", ".join(f"{gbps:.1f} GB/s with {threads} thread{'s' if threads != '1' else ''}"
                          for threads, gbps in sorted(report["bandwidth_gbps"].items()))
    figure = figures.Figure(figsize=(1 + 3.4 * len(shapes), 4.6), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.1, 1, 0.9))  # the legend is below
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    for axes, shape in zip(panels, shapes):
        draw_panel(axes, [case for case in cases if case["shape"] == shape], labels)
    panels[0].set_ylabel("µs measured")
    figure.suptitle(f"Attention of one query, backend {report['backend']}: {bandwidth}", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=len(labels) + 1, fontsize=9)
    return figure


def plot(report: dict, output: pathlib.Path) -> None:
    cases = read_cases(report)
    import matplotlib

    # Text stays text, in the reader's font; names of parts, random otherwise, come from the salt.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvquant"}):
        draw(report, cases).savefig(output, format="svg", metadata={"Date": None, "Creator": None})


def measure(tool: pathlib.Path) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "attend.json")
        subprocess.run([tool.absolute(), *MEASURED, "--json", path], check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("json", type=pathlib.Path, nargs="?", help="what bench attend wrote")
    source.add_argument("--measure", type=pathlib.Path, metavar="KVQUANT", help="the tool; takes about two minutes")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    try:
        plot(measure(options.measure) if options.measure else json.loads(options.json.read_text(encoding="utf-8")),
             options.output)
    except ModuleNotFoundError as missing:
        print(f"roofline.py: {missing.name} is missing: scripts/install_packages plot, or Debian's python3-matplotlib",
              file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, KeyError, IndexError, subprocess.CalledProcessError) as failure:
        print(f"roofline.py: {options.measure or options.json}: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
