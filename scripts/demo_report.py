#!/usr/bin/env python3
"""Reads the figures of `kvquant eval --json` aloud, in one paragraph. Usage: demo_report.py RESULT.json BASELINE..."""

import json
import math
import pathlib
import sys
import textwrap

WIDTH = 100
ACCEPTABLE_PERCENT = 5.0
WHAT_IS_MEASURED = {
    "simulated": "All of this is simulated: every token is quantized before it is read, the current one included, where a "
                 "deployed cache keeps the latest tokens exact.",
    "deployed": "Calibrated caches are packed pages, read as in decoding: the first token and a query's own page of 64 are "
                "exact; the others are rounded in the same windows. Bits are all that is allocated, at 32K tokens.",
}


def finite(row: dict) -> bool:
    return all(isinstance(row[key], (int, float)) and math.isfinite(row[key])
               for key in ("perplexity", "delta_percent", "delta_nll", "delta_nll_se", "bits_per_element_32k"))


def cost(row: dict) -> str:
    return (f"{row['delta_percent']:+.1f} % perplexity ({row['delta_nll']:+.4f} ± {row['delta_nll_se']:.4f} nats a token) "
            f"at {row['bits_per_element_32k']:.2f} bits")


def verdict(row: dict, other: dict) -> str:
    """How `row` stands against `other`; a difference within two standard errors is none."""
    margin = 2 * math.hypot(row["delta_nll_se"], other["delta_nll_se"])
    difference = row["delta_nll"] - other["delta_nll"]
    if abs(difference) <= margin:
        return "no different within the error from"
    return "better than" if difference < 0 else "worse than"


def dearest_peer(row: dict, baselines: list[dict]) -> dict | None:
    """The baseline that spends at least as many bits as `row`, and least more; f16 is what all are measured against."""
    peers = [b for b in baselines if row["bits_per_element_32k"] <= b["bits_per_element_32k"] < 16]
    return min(peers, key=lambda b: b["bits_per_element_32k"], default=None)


def sentence(row: dict, baselines: list[dict]) -> str:
    peer = dearest_peer(row, baselines)
    against = f", {verdict(row, peer)} {peer['name']} ({cost(peer)})" if peer else ""
    agreement = f"; the likeliest next token is the same {100 * row['top1_agreement']:.1f} % of the time"
    return f"{row['name']} costs {cost(row)}{against}{agreement}."


def conclusion(ours: list[dict]) -> str:
    good = [row for row in ours if row["delta_percent"] <= ACCEPTABLE_PERCENT]
    if not good:
        return f"None of the calibrated caches stays within {ACCEPTABLE_PERCENT:g} % of f16."
    least = min(good, key=lambda row: row["bits_per_element_32k"])
    return (f"{least['name']} is the smallest that stays within {ACCEPTABLE_PERCENT:g} % of f16, "
            f"{16 / least['bits_per_element_32k']:.1f} times smaller than it.")


def paragraph(result: dict, baseline_names: list[str]) -> str:
    lost = [row["name"] for row in result["rows"] if not finite(row)]
    rows = [row for row in result["rows"] if finite(row)]
    exact = next(row for row in rows if row["name"] == "f16")
    baselines = [row for row in rows if row["name"].split()[0] in baseline_names and row is not exact]
    ours = [row for row in rows if row not in baselines and row is not exact]
    ours.sort(key=lambda row: -row["bits_per_element_32k"])
    parts = [f"With its cache in f16, {result['model']} reads this text at perplexity {exact['perplexity']:.2f} "
             f"({result['predictions']:,} predictions)."]
    parts += [sentence(row, baselines) for row in ours]
    if ours:
        parts.append(conclusion(ours))
    if lost:
        parts.append(f"No finite perplexity: {', '.join(lost)}.")
    parts.append(WHAT_IS_MEASURED[result["mode"]])
    return textwrap.fill(" ".join(parts), WIDTH)


def main() -> int:
    print(paragraph(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
