"""What `eval` measured: perplexity and KL divergence against bits."""

import math
import pathlib
import re
from typing import Any

import plots
from content import Column, Figure, Section, Table, numbered, percent
from inputs import Result, sources_of

SETTING = ("model", "model_hash", "text_hash", "mode", "context", "predictions")
EXACT = "f16"
MODES = {"deployed": "read from packed pages as in decoding", "simulated": "every token quantized before it is read"}
BITS = "bits at 32K"


def settings_of(results: list[Result]) -> list[list[Result]]:
    """Files whose rows can be compared with one another stand together."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.content[name] for name in SETTING), []).append(result)
    return list(groups.values())


def rows_of(results: list[Result]) -> list[dict]:
    """Of all files, each row once; caches of one name that measured differently get numbers."""
    found: dict[str, list[dict]] = {}
    for result in results:
        for row in result.content["rows"]:
            if row not in (alike := found.setdefault(row["name"], [])):
                alike.append(row)
    rows = [{**row, "label": name + (f" #{index + 1}" if index else "")}
            for name, alike in found.items() for index, row in enumerate(alike)]
    return sorted(rows, key=lambda row: -row["bits_per_element_32k"])


def family_of(name: str) -> tuple[str, str]:
    """Of a cache the name without its width, which joins it with others to a line, and the width."""
    found = re.match(r"([A-Za-z_]+) ?(\d+(?:\.\d+)?)", name)
    return (found[1] + name[found.end():], found[2]) if found else (name, "")


def families_of(rows: list[dict], needed: str) -> dict[str, list[dict]]:
    """Rows that can be drawn, by family."""
    families: dict[str, list[dict]] = {}
    for row in rows:
        if row["name"] != EXACT and row[needed] is not None:
            families.setdefault(family_of(row["name"])[0], []).append(row)
    return families


def excess_position(excess: float) -> float:
    """Where a difference from f16 stands: even around 0, by its logarithm far from it."""
    return math.asinh(excess)


def excess_ticks(axes: Any, perplexity: float, most: float) -> None:
    places = (0, 1, 3, 10, 30, 100, 300, 1000)
    ticks = [it for before, it in zip((0, *places), places) if before <= most]
    labels = [f"{perplexity * (1 + it / 100):.2f}  {'f16' if it == 0 else f'+{it} %'}" for it in ticks]
    axes.set_yticks([excess_position(it) for it in ticks], labels)


def annotate(axes: Any, row: dict, x: float, y: float, color: str) -> None:
    axes.annotate(family_of(row["name"])[1], (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8, color=color)


def draw_perplexity(rows: list[dict]) -> Any:
    figure, axes = plots.panels(1, 1, 7.4, 4.2)
    axes = axes[0][0]
    exact = next((row["perplexity"] for row in rows if row["name"] == EXACT), None)
    most = 0.0
    for index, (family, members) in enumerate(families_of(rows, "delta_percent").items()):
        x = [row["bits_per_element_32k"] for row in members]
        y = [excess_position(row["delta_percent"]) for row in members]
        # A standard error in nats is about as many hundredths of the perplexity.
        bars = [[abs(excess_position(row["delta_percent"] + sign * percent_error(row)) - at)
                 for row, at in zip(members, y)] for sign in (-1, 1)]
        axes.errorbar(x, y, bars, marker=plots.marker(index), label=family, capsize=2)
        for row, *at in zip(members, x, y):
            annotate(axes, row, *at, plots.color(index))
        most = max(most, *(row["delta_percent"] for row in members))
    axes.axhline(0, color=plots.LIGHT["muted"], linestyle="--", linewidth=1)
    if exact is not None:
        excess_ticks(axes, exact, most)
    axes.set(xlabel="bits an element at 32K tokens, all that is allocated", ylabel="perplexity")
    plots.legend_below(figure, axes)
    return figure


def percent_error(row: dict) -> float:
    return (100 + row["delta_percent"]) * (row["delta_nll_se"] or 0)


def draw_kl(rows: list[dict]) -> Any:
    figure, axes = plots.panels(1, 2, 4.2, 3.9, sharex=True)
    for panel, member, title in zip(axes[0], ("kl_mean", "kl_p999"), ("mean", "99.9 % of the tokens are below")):
        for index, (family, members) in enumerate(families_of(rows, "kl_mean").items()):
            shown = [(row["bits_per_element_32k"], row[member], row) for row in members if row[member]]
            panel.plot([it[0] for it in shown], [it[1] for it in shown], marker=plots.marker(index), label=family)
            for x, y, row in shown:
                annotate(panel, row, x, y, plots.color(index))
        panel.set(yscale="log", title=title, xlabel="bits an element at 32K tokens")
    axes[0][0].set_ylabel("KL(f16 ‖ cache), nats")
    plots.legend_below(figure, axes[0][0])
    return figure


def perplexity_table(rows: list[dict]) -> Table:
    return Table(
        [Column("cache"), Column("bits", ".2f"), Column(BITS, ".2f"), Column("perplexity", ".3f"), Column("Δ %", "+.2f"),
         Column("ΔNLL", "+.4f"), Column("± SE", ".4f")],
        [[row["label"], row["bits_per_element"], row["bits_per_element_32k"], row["perplexity"], row["delta_percent"],
          row["delta_nll"], row["delta_nll_se"]] for row in rows])


def kl_table(rows: list[dict]) -> Table:
    return Table(
        [Column("cache"), Column(BITS, ".2f"), Column("KL mean", ".5f"), Column("KL 99.9 %", ".3f"),
         Column("same first choice, %", percent(2)), Column("keys beyond the calibration, %", percent(2)),
         Column("values, %", percent(2))],
        [[row["label"], row["bits_per_element_32k"], row["kl_mean"], row["kl_p999"], row["top1_agreement"],
          row.get("clamped_keys"), row.get("clamped_values")] for row in rows])


def caption_of(results: list[Result]) -> str:
    it = results[0].content
    return (f"{it['model']}, {pathlib.PurePath(it['text']).name} in windows of {it['context']} tokens, "
            f"{it['predictions']:,} predictions, {it['mode']}: {MODES.get(it['mode'], '')} "
            f"({sources_of(results)}).")


def figures_of(results: list[Result], index: int) -> list[Figure]:
    rows, caption = rows_of(results), caption_of(results)
    return [
        Figure(numbered("perplexity", index), "Perplexity against bits",
               f"{caption} Points carry the width of their codes, bars are standard errors.",
               perplexity_table(rows), lambda: draw_perplexity(rows)),
        Figure(numbered("kl", index), "How far the next token's distribution moves", caption, kl_table(rows),
               lambda: draw_kl(rows))]


def section(results: list[Result]) -> Section:
    groups = settings_of([result for result in results if result.kind == "eval"])
    return Section("Quality", "What a cache of fewer bits costs in prediction, token by token against a cache in f16.",
                   "kvquant eval MODEL.gguf --text FILE --artifact FILE.kvq --json eval.json",
                   [figure for index, group in enumerate(groups) for figure in figures_of(group, index)])
