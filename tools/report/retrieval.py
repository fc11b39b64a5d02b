"""What `task` measured: retrieval by length and depth, scores of tasks, drift along a text."""

import math
from typing import Any, Callable, Optional

import plots
from content import Column, Figure, Section, Table, numbered, percent
from inputs import TASKS, Result, sources_of

EXACT = "f16"
MOST_ANSWERS = 20


def is_same_run(table: Result, samples: Result) -> bool:
    """The table's file has what the header of the samples has, but for the mark of its format."""
    header = {name: value for name, value in samples.content.items() if name != "kvquant_results"}
    return {name: value for name, value in table.content.items() if name != "rows"} == header


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rows_of_samples(samples: Result) -> list[dict]:
    """Of a run without its table: the means by task, length and cache, by depth too and over all."""
    drift = samples.content["task"] == "drift"
    groups: dict[tuple, list[dict]] = {}
    for line in samples.lines:
        for depth in dict.fromkeys((None, line.get("depth"))):
            groups.setdefault((line["task"], line["length"], line["cache"], depth), []).append(line)
    rows = []
    for (task, length, cache, depth), lines in groups.items():
        row: dict[str, Any] = {"task": task, "length": length, "cache": cache, "samples": len(lines)}
        if depth is not None:
            row["depth"] = depth
        row.update({name: mean([line[name] for line in lines])
                    for name in ("score", "kl", "top1_agreement", "agreement") if name in lines[0]})
        if drift:
            buckets: dict[float, list[float]] = {}
            for bucket in (bucket for line in lines for bucket in line["buckets"]):
                buckets.setdefault(bucket["first"], []).append(bucket["kl"])
            row["buckets"] = [{"first": first, "kl": mean(values)} for first, values in buckets.items()]
        rows.append(row)
    return rows


class Run:
    """A table, or the samples of a run that has none."""

    def __init__(self, result: Result) -> None:
        self.result, self.task = result, result.content["task"]
        self.rows = rows_of_samples(result) if result.kind == "samples" else result.content["rows"]
        self.caches = [it["name"] for it in result.content["caches"]]

    def caption(self) -> str:
        it = self.result.content
        most = max((row["samples"] for row in self.rows if "depth" not in row), default=0)
        note = ""
        if self.result.kind == "samples":
            note = (" From the samples alone, as far as the run has come: whether f16 beats a guess is in the table of a "
                    "run that ended (--json).")
        return (f"{it['model']}, task {self.task}, seed {it['seed']}, {most} sample{'s' if most != 1 else ''} of each "
                f"length ({sources_of([self.result])}).{note}")

    def chance_note(self) -> str:
        lengths = sorted({row["length"] for row in self.over_depths() if row.get("f16_at_chance")})
        return (f" At {', '.join(map(str, lengths))} tokens f16 cannot be told from a guess, which says nothing of other "
                "caches." if lengths else "")

    def place(self) -> int:
        """On the page, what is easily understood first."""
        return TASKS.index(self.task)

    def over_depths(self) -> list[dict]:
        return [row for row in self.rows if "depth" not in row]

    def by_depth(self) -> list[dict]:
        return [row for row in self.rows if "depth" in row]


def cells_of(run: Run, cache: str, member: str) -> dict[tuple[str, str], float]:
    return {(str(row["length"]), f"{row['depth']} %"): row[member] for row in run.by_depth() if row["cache"] == cache}


def draw_heat(run: Run, member: str, caches: list[str], strength: Callable[[float], float],
              name: Callable[[float], str]) -> Any:
    lengths = [str(it) for it in sorted({row["length"] for row in run.by_depth()})]
    depths = [f"{it} %" for it in sorted({row["depth"] for row in run.by_depth()})]
    columns = min(len(caches), 5)
    figure, axes = plots.panels(math.ceil(len(caches) / columns), columns, max(1.75, 0.5 + 0.45 * len(lengths)),
                                0.8 + 0.28 * len(depths), sharex=True, sharey=True)
    flat = list(axes.flat)
    for panel, cache in zip(flat, caches):
        cells = cells_of(run, cache, member)
        plots.heat(panel, lengths, depths, {at: strength(value) for at, value in cells.items()},
                   {at: name(value) for at, value in cells.items()})
        panel.set_title(cache)
    for panel in flat[len(caches):]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel("depth")
    figure.supxlabel("prompt, tokens", fontsize=9.5)
    return figure


def heat_figure(run: Run, index: int) -> Figure:
    if run.task == "needle-kl":
        caches = [it for it in run.caches if it != EXACT]
        return Figure(
            numbered("needle-kl", index), "KL at the hidden number, by length and depth",
            f"{run.caption()} Nats, mean over the tokens of the right answer; colour by the logarithm, from 0.001 to 1."
            + run.chance_note(), needle_table(run),
            lambda: draw_heat(run, "kl", caches, lambda kl: math.log10(max(kl, 1e-9)) / 3 + 1, lambda kl: f"{kl:.2g}"))
    return Figure(
        numbered(run.task, index), "Hidden numbers that were told, by length and depth",
        f"{run.caption()} Share of the answers that are right, %. At 100 % the number stands in front of the question, "
        f"maybe among the latest tokens, which are exact.{run.chance_note()}", score_table(run),
        lambda: draw_heat(run, "score", run.caches, lambda score: score, lambda score: f"{100 * score:.0f}"))


def draw_scores(run: Run) -> Any:
    rows = run.over_depths()
    places = list(dict.fromkeys((row["task"], row["length"]) for row in rows))
    at_chance = {(row["task"], row["length"]) for row in rows if row.get("f16_at_chance")}
    figure, axes = plots.panels(1, 1, 7.4, 0.9 + 0.3 * len(places))
    axes = axes[0][0]
    for index, cache in enumerate(run.caches):
        own = [row for row in rows if row["cache"] == cache]
        offset = 0.5 * (index / max(len(run.caches) - 1, 1) - 0.5)
        axes.plot([100 * row["score"] for row in own],
                  [places.index((row["task"], row["length"])) + offset for row in own], linestyle="none",
                  marker=plots.marker(index), label=cache)
    axes.set(yticks=range(len(places)), ylim=(len(places) - 0.4, -0.6), xlim=(-3, 103), xlabel="score, %",
             yticklabels=[f"{task}, {length}{' *' if (task, length) in at_chance else ''}" for task, length in places])
    plots.legend_below(figure, axes)
    return figure


def draw_drift(run: Run) -> Any:
    figure, axes = plots.panels(1, 1, 7.4, 3.6)
    axes = axes[0][0]
    for index, row in enumerate(row for row in run.over_depths() if row["cache"] != EXACT):
        shown = [(bucket["first"], bucket["kl"]) for bucket in row["buckets"] if bucket["kl"] > 0]
        if shown:
            axes.plot(*zip(*shown), marker=plots.marker(index), label=row["cache"])
    axes.set(yscale="log", xlabel="position in the text, tokens", ylabel="KL(f16 ‖ cache), nats")
    plots.legend_below(figure, axes)
    return figure


def base_columns(run: Run) -> tuple[list[Column], Callable[[dict], list]]:
    has_depth = bool(run.by_depth())
    columns = [Column("task"), Column("length"), *([Column("depth", lambda it: f"{it} %")] if has_depth else []),
               Column("cache"), Column("samples")]
    return columns, lambda row: [row["task"], row["length"], *([row.get("depth")] if has_depth else []), row["cache"],
                                 row["samples"]]


def score_table(run: Run) -> Table:
    columns, start = base_columns(run)
    return Table([*columns, Column("score, %", percent(1)), Column("Δ", lambda it: f"{100 * it:+.1f}"),
                  Column("± SE", percent(1)), Column("f16 at chance")],
                 [[*start(row), row["score"], row.get("delta"), row.get("delta_se"), row.get("f16_at_chance")]
                  for row in run.rows])


def needle_table(run: Run) -> Table:
    columns, start = base_columns(run)
    return Table([*columns, Column("KL", ".5f"), Column("± SE", ".5f"), Column("ΔNLL", "+.3f"), Column("ΔNLL ± SE", ".3f"),
                  Column("same first choice, %", percent(1)), Column("f16 at chance")],
                 [[*start(row), row["kl"], row.get("kl_se"), row.get("delta_nll"), row.get("delta_nll_se"),
                   row["top1_agreement"], row.get("f16_at_chance")] for row in run.rows])


def drift_table(run: Run) -> Table:
    rows = run.over_depths()
    first = sorted({bucket["first"] for row in rows for bucket in row["buckets"]})
    by_first = [{bucket["first"]: bucket["kl"] for bucket in row["buckets"]} for row in rows]
    return Table([Column("cache"), Column("length"), Column("samples"), Column("same first choice, %", percent(1)),
                  Column("KL", ".4f"), *(Column(f"KL {it}+", ".4f") for it in first)],
                 [[row["cache"], row["length"], row["samples"], row["agreement"], row["kl"],
                   *map(kl.get, first)] for row, kl in zip(rows, by_first)])


def figure_of(run: Run, index: int) -> Figure:
    if run.task == "drift":
        return Figure(numbered("drift", index), "Drift along a text that f16 wrote", run.caption(), drift_table(run),
                      lambda: draw_drift(run))
    if run.by_depth():
        return heat_figure(run, index)
    starred = " * f16 cannot be told from a guess there, which says nothing of other caches."
    return Figure(numbered(run.task, index), f"Scores of {run.task}",
                  run.caption() + (starred if any(row.get("f16_at_chance") for row in run.rows) else ""),
                  score_table(run), lambda: draw_scores(run))


def lost_answers(samples: Result, index: int) -> Optional[Figure]:
    """What other caches said where f16 was right."""
    exact = {line["sample"]: line for line in samples.lines if line["cache"] == EXACT}
    lost = [[line["sample"], line["cache"], ", ".join(line["expected"]), exact[line["sample"]]["answer"].strip(),
             line["answer"].strip()] for line in samples.lines
            if line["sample"] in exact and line["score"] < exact[line["sample"]]["score"]]
    if not lost:
        return None
    return Figure(numbered(f"{samples.content['task']}-answers", index), "Answers that f16 gave and others did not",
                  f"{samples.content['model']} ({sources_of([samples])}).",
                  Table([Column("sample"), Column("cache"), Column("expected"), Column("f16"), Column("this cache")], lost,
                        MOST_ANSWERS))


def section(results: list[Result]) -> Section:
    tables = [result for result in results if result.kind == "task" and result.content["rows"]]
    samples = [result for result in results if result.kind == "samples" and result.lines]
    alone = [it for it in samples if not any(is_same_run(table, it) for table in tables)]
    figures: list[Figure] = []
    seen: dict[str, int] = {}
    for run in sorted(map(Run, tables + alone), key=lambda it: it.place()):
        index = seen[run.task] = seen.get(run.task, -1) + 1
        figures.append(figure_of(run, index))
        own = next((it for it in samples if it is run.result or is_same_run(run.result, it)), None)
        if own and run.task not in ("needle-kl", "drift"):
            figures += [figure for figure in [lost_answers(own, index)] if figure]
    return Section("Retrieval and long texts", "What a cache has forgotten, which perplexity hides.",
                   "kvquant task MODEL.gguf passkey --artifact FILE.kvq --json passkey.json -o passkey.jsonl", figures)
