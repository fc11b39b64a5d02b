"""What `inspect` and `calibrate` say of artifacts and statistics: where errors lie, where bits went, how values are
spread and where codebooks put their levels."""

import math
import pathlib
from typing import Any, Optional

import plots
from content import Column, Figure, Section, Table, numbered
from inputs import Result, sources_of

SIDES = ("key", "value")
WIDTHS = ("1 bit", "2 bits", "3 bits", "4 bits")
VALUES_BEHIND = " The values behind them are in statistics (kvquant calibrate --stats)."
MOST_LAYERS = 4  # of a figure with a panel for each


def origin_of(result: Result) -> dict:
    return result.content["origin"] if result.kind == "statistics" else result.content["info"]["origin"]


def same_calibration(result: Result) -> tuple:
    it = origin_of(result)
    return tuple(it[name] for name in ("model_hash", "text_hash", "samples", "context", "seed"))


def groups_of(results: list[Result]) -> list[list[Result]]:
    """Artifacts and statistics of one calibration stand together."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(same_calibration(result), []).append(result)
    return list(groups.values())


def bits_of(info: dict, side: str) -> Optional[float]:
    """Of the codes, where channels have widths of their own."""
    bits = info.get(f"{side}_token_bits", 0)
    return bits / info["shape"]["head_dim"] if bits else None


def labels_of(artifacts: list[Result]) -> list[str]:
    """Told apart by their files where their names are alike."""
    names = [it.content["label"] for it in artifacts]
    return [f"{name} ({it.name})" if names.count(name) > 1 else name for name, it in zip(names, artifacts)]


def decibels(book: dict) -> Optional[float]:
    return 10 * math.log10(book["objective"] / book["mass"]) if book["objective"] > 0 and book["mass"] > 0 else None


def caption_of(results: list[Result]) -> str:
    it = origin_of(results[0])
    return (f"{it['model_name']}, calibrated on {it['samples']} windows of {it['context']} tokens, seed {it['seed']} "
            f"({sources_of(results)}).")


def draw_by_layer(lines: dict[str, dict[str, list[Optional[float]]]], ylabel: str, log: bool = False) -> Any:
    """Lines by name, of each side a panel; of every layer a value, or none."""
    figure, axes = plots.panels(1, 2, 4.2, 3.5, sharey=True)
    for panel, side in zip(axes[0], SIDES):
        for index, (name, sides) in enumerate(lines.items()):
            shown = [(layer, value) for layer, value in enumerate(sides[side])
                     if value is not None and (value > 0 or not log)]
            if shown:
                panel.plot(*zip(*shown), marker=plots.marker(index), markersize=3.5, label=name)
        panel.set(title=f"{side}s", xlabel="layer", yscale="log" if log else "linear")
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel(ylabel)
    plots.legend_below(figure, axes[0][0])
    return figure


def by_layer_table(lines: dict[str, dict[str, list[Optional[float]]]], show: str) -> Table:
    names = [(name, side) for name in lines for side in SIDES]
    layers = max(len(lines[name][side]) for name, side in names)
    return Table([Column("layer"), *(Column(f"{name}, {side}s", show) for name, side in names)],
                 [[layer, *(at(lines[name][side], layer) for name, side in names)] for layer in range(layers)])


def at(values: list, index: int) -> Any:
    return values[index] if index < len(values) else None


def books(result: Result, value_of: Any) -> dict[str, list[Optional[float]]]:
    return {side: [value_of(layer[side]) for layer in result.content["layers"]] for side in SIDES}


def error_figure(artifacts: list[Result], index: int) -> Figure:
    lines = {name: books(it, decibels) for name, it in zip(labels_of(artifacts), artifacts)}
    return Figure(
        numbered("error-by-layer", index), "Error of quantization by layer",
        f"{caption_of(artifacts)} Squared error over the calibration values by the weights of the fit, outliers aside, "
        "over their mass; of adaptive over the spread of each channel. Lower is better; one format is to be compared "
        "across layers, not with others of another measure.", by_layer_table(lines, ".2f"),
        lambda: draw_by_layer(lines, "error, dB"))


def sensitivity_figure(group: list[Result], index: int) -> Optional[Figure]:
    """One of the group will do: all have seen the same gradients."""
    it = next((it for it in group if all("sensitivity" in layer[side] for layer in it.content["layers"] for side in SIDES)),
              None)
    if it is None:
        return None
    lines = {"sensitivity": books(it, lambda side: side["sensitivity"])}
    if not any(value for side in SIDES for value in lines["sensitivity"][side]):
        return None
    return Figure(
        numbered("sensitivity-by-layer", index), "Sensitivity by layer",
        f"{caption_of([it])} Squared gradient of the loss by keys and values, summed over tokens and channels: the higher, "
        "the dearer is an error of one size.", by_layer_table(lines, ".4g"),
        lambda: draw_by_layer(lines, "Σ F", log=True))


def draw_widths(shares: dict[str, dict[str, list[float]]]) -> Any:
    """Of every layer a bar of the shares of widths."""
    figure, axes = plots.panels(1, 2, 4.2, 3.0, sharey=True)
    for panel, side in zip(axes[0], SIDES):
        layers = range(len(shares[WIDTHS[0]][side]))
        below = [0.0] * len(layers)
        for index, width in enumerate(WIDTHS):
            panel.bar(layers, shares[width][side], width=0.85, bottom=below, color=plots.color(index), label=width)
            below = [a + b for a, b in zip(below, shares[width][side])]
        panel.set(title=f"{side}s", xlabel="layer", ylim=(0, 100))
        panel.grid(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel("channels, %")
    plots.legend_below(figure, axes[0][0])
    return figure


def widths_figure(name: str, it: Result, index: int) -> Figure:
    def share(layer: dict, side: str, bits: int) -> float:
        widths = layer[f"{side}_widths"]
        return 100 * sum(it == bits for it in widths) / max(len(widths), 1)

    shares = {width: {side: [share(layer, side, bits) for layer in it.content["layers"]] for side in SIDES}
              for bits, width in enumerate(WIDTHS, 1)}
    return Figure(numbered("widths-by-layer", index), f"Where the bits of {name} went",
                  f"{caption_of([it])} Share of the channels that have codes of so many bits.",
                  by_layer_table(shares, ".1f"), lambda: draw_widths(shares))


def chosen_layers(count: int) -> list[int]:
    """Evenly from the first to the last."""
    most = min(count, MOST_LAYERS)
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def draw_histogram(panel: Any, seen: dict) -> float:
    """As densities over [−1, 1]. Returns how high the panel is: peaks of the weights are cut where values would vanish."""
    highest = 0.0
    for index, (name, member) in enumerate((("values", "histogram"), ("values by their weight F", "fisher_histogram"))):
        masses = seen[member]
        if (total := sum(masses)) > 0:
            edges = [2 * i / len(masses) - 1 for i in range(len(masses) + 1)]
            density = [mass / total * len(masses) / 2 for mass in masses]
            panel.stairs(density, edges, fill=index == 0, label=name, alpha=0.3 if index == 0 else 1,
                         color=plots.LIGHT["muted"] if index == 0 else plots.LIGHT["ink"])
            highest = max(density) if highest == 0 else min(max(highest, *density), 3 * highest)
    return highest or 1.0


def draw_levels(panel: Any, books_of: dict[str, list[float]], top: float) -> None:
    """A row of ticks for each codebook, below the histogram."""
    step = 0.09 * top
    for index, (name, levels) in enumerate(books_of.items()):
        panel.plot(levels, [-step * (index + 1)] * len(levels), linestyle="none", marker="|", markersize=7,
                   markeredgewidth=1.6, color=plots.color(index), label=name)
    panel.set(ylim=(-step * (len(books_of) + 0.7), 1.05 * top), xlim=(-1.05, 1.05))


def draw_spread(statistics: Optional[Result], coded: dict[str, Result], layers: list[int]) -> Any:
    figure, axes = plots.panels(2, len(layers), 2.2, 2.0, sharex=True)
    for row, side in zip(axes, SIDES):
        for panel, layer in zip(row, layers):
            top = 1.0
            if statistics is not None:
                top = draw_histogram(panel, statistics.content["layers"][layer][side])
            draw_levels(panel, {name: it.content["layers"][layer][side]["levels"] for name, it in coded.items()
                                if "levels" in it.content["layers"][layer][side]}, top)
            panel.set(yticks=[], title=f"{side}s of layer {layer}")
            panel.grid(False)
            panel.spines["left"].set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel("normalised value")
    plots.legend_below(figure, axes[0][0])
    return figure


def spread_table(statistics: Optional[Result], coded: dict[str, Result], layers: list[int]) -> Table:
    rows: list[list] = []
    for layer in layers:
        for side in SIDES:
            for name, it in coded.items():
                rows += [[layer, side, name, "level", level, None]
                         for level in it.content["layers"][layer][side].get("levels", [])]
            if statistics is not None:
                seen = statistics.content["layers"][layer][side]
                for name, member in (("values", "histogram"), ("weights F", "fisher_histogram")):
                    count = len(seen[member])
                    rows += [[layer, side, name, "bin", (2 * i + 1) / count - 1, mass]
                             for i, mass in enumerate(seen[member])]
    return Table([Column("layer"), Column("side"), Column("of"), Column("what"), Column("at", "+.4f"),
                  Column("mass", ".6g")], rows, 64)


def spread_figure(group: list[Result], index: int) -> Optional[Figure]:
    statistics = next((it for it in group if it.kind == "statistics"), None)
    artifacts = [it for it in group if it.kind == "artifact"]
    coded = {name: it for name, it in zip(labels_of(artifacts), artifacts)
             if any("levels" in layer[side] for layer in it.content["layers"] for side in SIDES)}
    used = [*([statistics] if statistics else []), *coded.values()]
    if not used:
        return None
    layers = chosen_layers(min(len(it.content["layers"]) for it in used))
    return Figure(
        numbered("codebooks", index), "Values and the levels of codebooks" if statistics else "The levels of codebooks",
        f"{caption_of(used)} Each channel's keys, each token's values are normalised by their range; outliers lie outside."
        + (" Peaks of more than three times the values' are cut." if statistics else VALUES_BEHIND),
        spread_table(statistics, coded, layers), lambda: draw_spread(statistics, coded, layers))


def artifacts_table(artifacts: list[Result]) -> Figure:
    rows = []
    for name, it in zip(labels_of(artifacts), artifacts):
        info = it.content["info"]
        shape = info["shape"]
        rows.append([name, it.name, it.content["hash"], info["origin"]["model_name"],
                     shape["layers"], shape["kv_heads"], shape["head_dim"], bits_of(info, "key"),
                     bits_of(info, "value"), info["weights"], info["q_norm"], info["sinks"]])
    return Figure("artifacts", "Artifacts", f"{sources_of(artifacts)}.",
                  Table([Column("artifact"), Column("file"), Column("hash"), Column("model"), Column("layers"),
                         Column("KV heads"), Column("channels of a head"), Column("bits of a key", ".3f"), Column("of a value", ".3f"), Column("weights"),
                         Column("Q-Norm"), Column("sinks")], rows))


def calibrated_table(results: list[Result]) -> Figure:
    rows = [[pathlib.PurePath(row["path"]).name, row["spec"], row["key_error_db"], row["value_error_db"], row["q_norm"],
             row["hash"]] for it in results for row in it.content["rows"]]
    return Figure("calibrations", "What calibration fitted", f"{sources_of(results)}.",
                  Table([Column("artifact"), Column("format"), Column("keys, dB", ".2f"), Column("values, dB", ".2f"),
                         Column("Q-Norm"), Column("hash")], rows))


def section(results: list[Result]) -> Section:
    of = {kind: [it for it in results if it.kind == kind] for kind in ("artifact", "statistics", "calibrate")}
    figures: list[Optional[Figure]] = []
    for index, group in enumerate(groups_of(of["artifact"] + of["statistics"])):
        artifacts = [it for it in group if it.kind == "artifact"]
        figures.append(sensitivity_figure(group, index))
        if artifacts:
            figures.append(error_figure(artifacts, index))
        figures.append(spread_figure(group, index))
    adaptive = [it for it in of["artifact"] if all({"key_widths", "value_widths"} <= set(layer)
                                                   for layer in it.content["layers"])]
    figures += [widths_figure(name, it, index) for index, (name, it) in enumerate(zip(labels_of(adaptive), adaptive))]
    figures += [artifacts_table(of["artifact"])] if of["artifact"] else []
    figures += [calibrated_table(of["calibrate"])] if of["calibrate"] else []
    return Section("Calibration", "Where a model is sensitive, and what was fitted to it.",
                   "kvquant inspect FILE.kvq --json inspect.json, of artifacts and of calibrate's statistics (--stats)",
                   [it for it in figures if it])
