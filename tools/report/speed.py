"""What `bench` and `generate` timed."""

from typing import Any

import plots
import roofline
from content import Column, Figure, ReportError, Section, Table, numbered, percent, size_name
from inputs import Result, sources_of

MOST_PANELS = 12  # of a sweep the table says more


def read_cases(result: Result) -> dict[str, list[dict]]:
    """By panel: what is alike but for context and format."""
    try:
        cases = roofline.read_cases(result.content)
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as failure:
        raise ReportError(f"{result.name}: expected cases and bandwidths as kvquant bench attend names them: "
                          f"{type(failure).__name__}: {failure}") from None
    varied = [it for it in ("shape", "batch", "threads", "isa") if len({case[it] for case in cases}) > 1] or ["shape"]
    by_panel: dict[str, list[dict]] = {}
    for case in cases:
        by_panel.setdefault(", ".join(case[it] for it in varied), []).append({**case, "label": case["format"]})
    return by_panel


def draw_roofline(by_panel: dict[str, list[dict]]) -> Any:
    columns = min(len(by_panel), 2 if len(by_panel) % 2 == 0 else 3)
    figure, axes = plots.panels(-(-len(by_panel) // columns), columns, 3.5 if columns > 1 else 5, 3.5)
    labels = list(dict.fromkeys(case["format"] for cases in by_panel.values() for case in cases))
    for panel, (name, cases) in zip(axes.flat, by_panel.items()):
        roofline.draw_panel(panel, cases, labels)
        panel.set_title(name)
    for panel in axes.flat[len(by_panel):]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel("µs measured")
    plots.legend_below(figure, axes[0][0])
    return figure


def attend_figure(result: Result, index: int) -> Figure:
    by_panel = read_cases(result)
    bandwidth = ", ".join(f"{gbps:.1f} GB/s with {threads} thread{'s' if threads != '1' else ''}"
                          for threads, gbps in sorted(result.content["bandwidth_gbps"].items()))
    return Figure(
        numbered("roofline", index), "Attention against the memory's bandwidth",
        f"Decode attention of one query, backend {result.content['backend']}, {bandwidth} ({sources_of([result])}): the "
        "time of a call against the time in which the same run reads its bytes. On the dashed line a kernel is as fast "
        "as memory.",
        Table([Column("case"), Column("instructions"), Column("ns/token/layer", ".1f"), Column("bytes", size_name),
               Column("GB/s", ".2f"), Column("of the bandwidth, %", percent(1)), Column("x f16", ".2f")],
              [[it["name"], it["isa"], it["ns_per_token_layer"], it["bytes"], it["gbps"], it["share_of_bandwidth"],
                it["ratio_to_f16"]] for it in result.content["cases"]]),
        (lambda: draw_roofline(by_panel)) if len(by_panel) <= MOST_PANELS else None)


def draw_seal(result: Result) -> Any:
    cases = result.content["cases"]
    figure, axes = plots.panels(1, 1, 7.4, 0.8 + 0.3 * len(cases))
    axes = axes[0][0]
    axes.barh(range(len(cases)), [it["gbps"] for it in cases], height=0.6)
    axes.set(yticks=range(len(cases)), yticklabels=[it["name"] for it in cases], ylim=(len(cases) - 0.4, -0.6),
             xlabel="GB of binary16 a second")
    axes.grid(False, axis="y")
    return figure


def seal_figure(result: Result, index: int) -> Figure:
    cases = result.content["cases"]
    return Figure(
        numbered("sealing", index), "Sealing of pages",
        f"Keys and values in binary16 that one thread appends as whole pages, backend {result.content['backend']} "
        f"({sources_of([result])}).",
        Table([Column("case"), Column("GB/s", ".3f"), Column("x f16", ".2f"), Column("of a copy", ".4f")],
              [[it["name"], it["gbps"], it["ratio_to_f16"], it["ratio_to_copy"]] for it in cases]),
        (lambda: draw_seal(result)) if cases else None)


def generate_figure(results: list[Result]) -> Figure:
    found = [result.content for result in results]
    return Figure(
        "generation", "Generation", f"{sources_of(results)}.",
        Table([Column("model"), Column("cache"), Column("prompt, tokens"), Column("prompt, tokens/s", ".1f"),
               Column("answer, tokens/s", ".1f"), Column("tokens in the cache"), Column("cache", size_name),
               Column("in f16", size_name)],
              [[it["model"], it["cache"], it["prompt_tokens"], it["prompt_tokens_per_second"], it["tokens_per_second"],
                it["cache_tokens"], it["cache_bytes"], it["f16_bytes"]] for it in found]))


def section(results: list[Result]) -> Section:
    of = {kind: [it for it in results if it.kind == kind] for kind in ("attend", "seal", "generate")}
    figures = [attend_figure(it, index) for index, it in enumerate(of["attend"])]
    figures += [seal_figure(it, index) for index, it in enumerate(of["seal"])]
    figures += [generate_figure(of["generate"])] if of["generate"] else []
    return Section("Speed", "How near the kernels come to what memory allows. Times are of the machine that ran them.",
                   "kvquant bench attend --json attend.json", figures)
