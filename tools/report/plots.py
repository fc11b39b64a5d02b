"""Figures of matplotlib as SVG that takes its colours from the page, so that light and dark readers see them well."""

import html
import io
import math
import re
import warnings
from typing import Any, Iterable, Sequence

# By the name of the page's variable: colours in light and in dark. Plots are drawn in the light ones, which stand for the
# variables: no two are alike.
COLORS = {
    "ink": ("#1b1b1a", "#e9e8e4"),
    "muted": ("#63625e", "#a3a19a"),
    "grid": ("#dddcd6", "#3a3a38"),
    "s0": ("#0b62a4", "#6fb5f5"),
    "s1": ("#bb4a06", "#f2995c"),
    "s2": ("#18793f", "#63cf8e"),
    "s3": ("#96368a", "#e08bd0"),
    "s4": ("#7d6300", "#d9bb4a"),
    "s5": ("#0c7c7c", "#5fd3d0"),
    "s6": ("#ae2420", "#f08a82"),
    "s7": ("#5552cc", "#a9a8ff"),
}
LIGHT = {name: light for name, (light, _) in COLORS.items()}
SERIES = [LIGHT[f"s{index}"] for index in range(8)]
MARKERS = "osD^vP*X<>"

STYLE = {
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "text.parse_math": False,  # names of files may hold any character
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.size": 9.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
}


def color(index: int) -> str:
    return SERIES[index % len(SERIES)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def panels(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Any, Any]:
    """A figure and its axes [rows][columns]; width and height are those of a panel, in inches."""
    from matplotlib import figure as figures

    figure = figures.Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def legend_below(figure: Any, axes: Any) -> None:
    """Of all panels, which have the same lines, in a place of its own that constrained layout leaves free. Its columns are
    as wide as the longest name, in inches about."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return  # the title says it
    width, height = figure.get_size_inches()
    columns = min(len(labels), max(1, int(width / (0.65 + 0.075 * max(map(len, labels))))))
    share = (0.1 + 0.2 * math.ceil(len(labels) / columns)) / height
    figure.legend(handles, labels, loc="lower center", ncols=columns)
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))


def heat(axes: Any, columns: Sequence[str], rows: Sequence[str], strengths: dict[tuple[str, str], float],
         labels: dict[tuple[str, str], str]) -> None:
    """Cells by (column, row), strengths from 0 to 1: as much of one colour as keeps the text on it readable."""
    from matplotlib import patches

    strongest, weakest = 0.55, 0.03
    for x, column in enumerate(columns):
        for y, row in enumerate(rows):
            if (strength := strengths.get((column, row))) is None:
                continue
            axes.add_patch(patches.Rectangle((x - 0.5, y - 0.5), 1, 1, linewidth=0, facecolor=LIGHT["s0"],
                                             alpha=weakest + (strongest - weakest) * min(max(strength, 0), 1)))
            axes.text(x, y, labels[column, row], ha="center", va="center", fontsize=8.5)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xticks=range(len(columns)),
             yticks=range(len(rows)), xticklabels=columns, yticklabels=rows)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def log_ticks(axes: Any, which: str, name: Any, places: Iterable[float]) -> None:
    """Ticks at these places alone, called by `name`."""
    axis = getattr(axes, f"{which}axis")
    places = sorted(set(places))
    axis.set_ticks(places, [name(place) for place in places])
    axis.set_ticks([], minor=True)


def plain_logarithms(figure: Any) -> None:
    """Axes by logarithms are written without formulas; those of less than two decades name what lies between, too."""
    from matplotlib import ticker

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not isinstance(axis.get_major_formatter(), ticker.LogFormatter):
            continue
        low, high = sorted(axis.get_view_interval())
        is_short = high < 100 * low
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _, shown=is_short: f"{value:g}" if shown and f"{value:e}"[0] in "25" else "")


def to_svg(draw: Any, slug: str, title: str) -> str:
    """The element alone, with ids of its own in a page that has others; the same figure gives the same bytes."""
    import matplotlib
    from cycler import cycler

    # Names of parts are random otherwise.
    style = {**STYLE, "axes.prop_cycle": cycler(color=SERIES), "svg.hashsalt": slug}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that matplotlib's own font has not
        figure, out = draw(), io.StringIO()
        plain_logarithms(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return adapt(out.getvalue(), slug, title)


def adapt(svg: str, slug: str, title: str) -> str:
    body = svg[svg.index("<svg"):].rstrip()
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', body)
    width = float(box[1]) / 72
    start = (f'<svg {box[0]} role="img" aria-label="{html.escape(title)}" '
             f'style="max-width: {width:.2f}in; min-width: {min(width, 5.5):.2f}in" '
             'xmlns:xlink="http://www.w3.org/1999/xlink">')
    body = start + body[body.index(">") + 1:]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", body)
    for name, (light, _) in COLORS.items():
        body = body.replace(light, f"var(--{name})")
    return body
