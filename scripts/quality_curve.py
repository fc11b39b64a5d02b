#!/usr/bin/env python3
"""Plots what `kvquant eval --json` wrote: loss of quality against bits per element, a line for each family of formats.
Several reports are of the same model, text and windows, and become one picture.

Needs matplotlib (scripts/install_packages plot). The same reports give the same bytes.
"""

import argparse
import json
import pathlib
import re
import sys

MARKERS = "osD^vP*X<>"
SAME = ("model", "text_hash", "mode", "context", "predictions")
# "nuq3-1%, Q-Norm": the width is what the line runs over; "adaptive 2.5-0.39%": the bits.
FAMILY = re.compile(r"(?P<name>[a-z]+)(?: ?[\d.]+)?(?P<blocks>_0)?(?:-(?P<slots>[\d./%]+))?")
# Names that FAMILY alone would join.
FAMILIES = {"kivi": "KIVI", "q_0": "q8_0, q4_0", "int": "per token"}


def family_of(name: str) -> str:
    """"adaptive" and "adaptive, slots" are lines of their own, however many slots there are."""
    found = FAMILY.match(name)
    if not found:
        raise ValueError(f'a row named "{name}"')
    family = found["name"] + (found["blocks"] or "")
    family = FAMILIES.get(family, family)
    if not found["slots"]:
        return family
    return f"{family}, slots" if family == "adaptive" else f"{family}, {found['slots']} outliers"


def read_points(reports: list[dict]) -> list[dict]:
    """Each row but f16 once: its family, bits, Δ perplexity in per cent with its standard error, and mean KL."""
    if not reports:
        raise ValueError("no reports")
    for report in reports[1:]:
        for key in SAME:
            if report[key] != reports[0][key]:
                raise ValueError(f"{key} is {report[key]} in one report and {reports[0][key]} in another")
    rows = {row["name"]: row for report in reports for row in report["rows"] if row["name"] != "f16"}
    if not rows:
        raise ValueError("no rows besides f16")
    return [{"family": family_of(name), "bits": row["bits_per_element_32k"], "delta": row["delta_percent"],
             "error": 100 * row["delta_nll_se"], "kl": row["kl_mean"]} for name, row in rows.items()]


def draw(report: dict, points: list[dict]):
    """A figure of matplotlib."""
    from matplotlib import figure as figures

    families = list(dict.fromkeys(point["family"] for point in points))
    figure = figures.Figure(figsize=(10, 5.2), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.1, 1, 0.9))  # the legend is below
    panels = figure.subplots(1, 2)
    for index, family in enumerate(families):
        line = sorted((point["bits"], point["delta"], point["error"], point["kl"]) for point in points
                      if point["family"] == family)
        bits, delta, error, kl = zip(*line)
        style = {"marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1, "label": family}
        panels[0].errorbar(bits, delta, yerr=error, elinewidth=0.5, **style)
        panels[1].plot(bits, kl, **style)
    panels[0].set(ylabel="Δ perplexity, %", yscale="symlog", xlabel="bits per element")
    panels[1].set(ylabel="mean KL, nats", yscale="log", xlabel="bits per element")
    for axes in panels:
        axes.grid(True, which="major", alpha=0.3)
    figure.suptitle(f"{report['model']}: {report['predictions']} predictions, windows of {report['context']} tokens",
                    fontsize=11)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="lower center", ncols=(len(families) + 1) // 2,
                  fontsize=9)
    return figure


def plot(reports: list[dict], output: pathlib.Path) -> None:
    points = read_points(reports)
    import matplotlib

    # Text stays text, in the reader's font; names of parts, random otherwise, come from the salt.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvquant"}):
        draw(reports[0], points).savefig(output, format="svg", metadata={"Date": None, "Creator": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=pathlib.Path, nargs="+", help="what eval wrote")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    try:
        plot([json.loads(path.read_text(encoding="utf-8")) for path in options.json], options.output)
    except ModuleNotFoundError as missing:
        print(f"quality_curve.py: {missing.name} is missing: scripts/install_packages plot, or Debian's "
              "python3-matplotlib", file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, KeyError) as failure:
        print(f"quality_curve.py: {', '.join(map(str, options.json))}: {type(failure).__name__}: {failure}",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
