"""What `plan` says of memory: against context, by its parts, and the loss that a budget leaves."""

import math
from typing import Any

import plots
from content import UNITS, Column, Figure, Section, Table, numbered, size_name
from inputs import Result, sources_of

PARTS = ("weights", "cache", "activations")
SOLUTIONS = {"makeable": "can be made today", "sides_apart": "keys and values apart", "layers_apart": "layers apart too"}


def request_of(result: Result) -> tuple:
    it = result.content
    device = it.get("device", {})
    return (it["model"], it["weight_bytes"], it["batch"], it["devices"], device.get("name"), device.get("memory"))


def groups_of(results: list[Result]) -> list[list[Result]]:
    """Files that ask the same, but for the context, rising."""
    groups: dict[tuple, list[Result]] = {}
    for result in sorted(results, key=lambda it: it.content["context"]):
        groups.setdefault(request_of(result), []).append(result)
    return list(groups.values())


def context_name(tokens: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def size_ticks(axes: Any, which: str, least: float, most: float) -> None:
    """At powers of two, as many as there is room for."""
    powers = [1 << power for power in range(64) if least / 2 <= 1 << power <= most * 2]
    step = max(1, -(-len(powers) // 7))
    plots.log_ticks(axes, which, lambda it: size_name(it).replace(".0 ", " "), powers[::step])


def draw_device(line: Any, result: Result, scale: int = 1) -> None:
    if device := result.content.get("device"):
        line(device["memory"] / scale, color=plots.LIGHT["ink"], linestyle="--", linewidth=1, label=device["name"])


def draw_contexts(group: list[Result]) -> Any:
    figure, axes = plots.panels(1, 1, 7.4, 4.2)
    axes = axes[0][0]
    formats = dict.fromkeys(row["format"] for it in group for row in it.content["rows"])
    totals = []
    for index, name in enumerate(formats):
        line = [(it.content["context"], row["total"]) for it in group for row in it.content["rows"] if row["format"] == name]
        axes.plot(*zip(*line), marker=plots.marker(index), label=name)
        totals += [total for _, total in line]
    axes.set(xscale="log", yscale="log", xlabel="context of each sequence, tokens", ylabel="weights, cache, activations")
    draw_device(axes.axhline, group[0])
    plots.log_ticks(axes, "x", context_name, [it.content["context"] for it in group])
    size_ticks(axes, "y", min(totals), max(totals))
    plots.legend_below(figure, axes)
    return figure


def draw_parts(result: Result) -> Any:
    rows = result.content["rows"]
    figure, axes = plots.panels(1, 1, 7.4, 1.1 + 0.32 * len(rows))
    axes = axes[0][0]
    unit = UNITS[min(int(math.log(max(1, *(row["total"] for row in rows)), 1024)), len(UNITS) - 1)]
    scale = 1024 ** UNITS.index(unit)
    left = [0.0] * len(rows)
    for index, part in enumerate(PARTS):
        sizes = [row[part] / scale for row in rows]
        axes.barh(range(len(rows)), sizes, left=left, height=0.6, color=plots.color(index), label=part)
        left = [a + b for a, b in zip(left, sizes)]
    draw_device(axes.axvline, result, scale)
    axes.set(yticks=range(len(rows)), yticklabels=[row["format"] for row in rows], ylim=(len(rows) - 0.4, -0.6),
             xlabel=unit)
    axes.grid(False, axis="y")
    plots.legend_below(figure, axes)
    return figure


def memory_table(group: list[Result]) -> Table:
    columns = [Column("context", context_name), Column("format"), Column("bits", ".2f"),
               *(Column(part, size_name) for part in PARTS), Column("total", size_name)]
    rows = [[it.content["context"], row["format"], row["bits_per_element"], *(row[part] for part in PARTS), row["total"]]
            for it in group for row in it.content["rows"]]
    if "device" in group[0].content:
        columns += [Column("fits"), Column("longest context", ",d"), Column("tokens/s at most", ".1f")]
        more = [[row.get("fits"), row.get("longest_context"), row.get("tokens_per_second")]
                for it in group for row in it.content["rows"]]
        rows = [row + other for row, other in zip(rows, more)]
    return Table(columns, rows)


def memory_figure(group: list[Result], index: int) -> Figure:
    it = group[0].content
    on = f", {it['devices']} x {it['device']['name']} of {size_name(it['device']['memory'])}" if "device" in it else ""
    shared = ", of each device" if it["devices"] > 1 else ""
    caption = (f"{it['model']}, {it['batch']} sequence{'s' if it['batch'] > 1 else ''}{on}{shared}; computed, not measured "
               f"({sources_of(group)}).")
    contexts = {result.content["context"] for result in group if result.content["rows"]}
    if len(contexts) > 1:
        return Figure(numbered("memory", index), "Memory against context", caption, memory_table(group),
                      lambda: draw_contexts(group))
    return Figure(numbered("memory", index), f"Memory at {context_name(it['context'])} tokens",
                  f"{caption} Files of several contexts (--context) draw lines.", memory_table(group),
                  (lambda: draw_parts(group[0])) if it["rows"] else None)


def draw_losses(result: Result) -> Any:
    it = result.content
    figure, axes = plots.panels(1, 1, 7.4, 4.0)
    axes = axes[0][0]
    rows = sorted(it["rows"], key=lambda row: row["bytes"])
    frontier = [row for row in rows if row["pareto"]]
    others = [row for row in rows if not row["pareto"] and row["loss"] > 0]
    if others:
        axes.plot([row["bytes"] for row in others], [row["loss"] for row in others], linestyle="none", marker=".",
                  color=plots.LIGHT["muted"], label="other formats")
    for index, (member, name) in enumerate((("loss", "formats that nothing beats"),
                                            ("loss_layers_apart", "if layers could differ"))):
        line = [(row["bytes"], row[member]) for row in frontier if row[member] > 0]
        axes.plot([x for x, _ in line], [y for _, y in line], marker="o" if index == 0 else "", markersize=4,
                  linestyle="-" if index == 0 else ":", color=plots.color(index), label=name)
    axes.axvline(it["budget"], color=plots.LIGHT["ink"], linestyle="--", linewidth=1, label="the budget")
    axes.set(yscale="log", xscale="log", xlabel="cache", ylabel="predicted loss, nats a window")
    sizes = [row["bytes"] for row in rows if row["loss"] > 0] + [it["budget"]]
    size_ticks(axes, "x", min(sizes), max(sizes))
    plots.legend_below(figure, axes)
    return figure


def loss_figures(result: Result, index: int) -> list[Figure]:
    it = result.content
    caption = (f"{it['model']}, {it['batch']} x {it['context']} tokens, {size_name(it['budget'])} for the cache; predicted "
               f"from calibration, half the sum of F d² ({sources_of([result])}).")
    curve = Table([Column("format"), Column("bits", ".2f"), Column("cache", size_name), Column("loss", ".4g"),
                   Column("nothing beats it"), Column("keys and values apart", ".4g"), Column("layers apart too", ".4g")],
                  [[row["format"], row["bits_per_element"], row["bytes"], row["loss"], row["pareto"],
                    row["loss_sides_apart"], row["loss_layers_apart"]] for row in it["rows"]])
    figures = [Figure(numbered("predicted-loss", index), "Predicted loss against memory", caption, curve,
                      (lambda: draw_losses(result)) if it["rows"] else None)]
    solutions = [(name, it["solutions"][key]) for key, name in SOLUTIONS.items() if key in it["solutions"]]
    rows = [[name, found["bits_per_element"], found["bytes"], found["loss"],
             ", ".join(dict.fromkeys(f"{layer['keys']}/{layer['values']}" for layer in found["layers"]))]
            for name, found in solutions]
    if rows:
        figures.append(Figure(
            numbered("within-budget", index), "Least loss within the budget", caption,
            Table([Column("of formats that"), Column("bits", ".2f"), Column("cache", size_name), Column("loss", ".4g"),
                   Column("keys/values")], rows)))
    return figures


def section(results: list[Result]) -> Section:
    figures = [memory_figure(group, index)
               for index, group in enumerate(groups_of([it for it in results if it.kind == "plan"]))]
    for index, result in enumerate(it for it in results if it.kind == "solve"):
        figures += loss_figures(result, index)
    return Section("Memory", "What weights and cache take, and what fewer bytes are predicted to cost.",
                   "kvquant plan MODEL.gguf --context 32K --json plan.json, for some contexts; with --solve for losses",
                   figures)
