"""The page: one HTML file that loads nothing. And the same facts for a terminal."""

import re
from html import escape

import plots
from content import Figure, Section, Table
from inputs import KINDS, Result

TITLE = "KV cache report"
LONG_CELL = 24  # characters
CSS = """
:root { color-scheme: light dark; --paper: #fdfdfb; --sans: system-ui, "Segoe UI", Roboto, sans-serif; LIGHT }
@media (prefers-color-scheme: dark) { :root { --paper: #171716; DARK } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans); margin: 0 auto; max-width: 60rem;
  padding: 1.5rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { border-top: 1px solid var(--grid); font-size: 1.3rem; margin: 2.6rem 0 .2rem; padding-top: 1.2rem; }
h3 { font-size: 1.05rem; margin: 0 0 .4rem; }
p { margin: .3rem 0 .8rem; }
nav a { margin-right: 1rem; }
a { color: var(--s0); }
figure { margin: 1.6rem 0; }
figcaption, .about, .missing, summary { color: var(--muted); font-size: .9rem; }
svg { display: block; height: auto; margin: .4rem 0; width: 100%; }
details { margin-top: .4rem; }
summary { cursor: pointer; }
.whole { white-space: nowrap; }
.scroll, .plot { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--grid); padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top; }
th { color: var(--muted); font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
code { font-size: .88em; overflow-wrap: anywhere; }
@media print { details:not([open]) { display: none; } }
"""


def variables(which: int) -> str:
    return " ".join(f"--{name}: {both[which]};" for name, both in plots.COLORS.items())


def cell_html(cell: str, kind: str) -> str:
    """What is short stays on one line."""
    return f"<td{kind or ('' if len(cell) > LONG_CELL else ' class=whole')}>{escape(cell)}</td>"


def table_html(table: Table) -> str:
    kinds = [' class="number"' if table.is_numeric(i) else "" for i in range(len(table.columns))]
    head = "".join(f'<th scope="col"{kind}>{escape(column.name)}</th>' for column, kind in zip(table.columns, kinds))
    body = "\n".join("<tr>" + "".join(map(cell_html, row, kinds)) + "</tr>" for row in table.cells())
    more = f"<p class=\"about\">{escape(table.left_out())}</p>" if table.left_out() else ""
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table>{more}</div>'


def caption_html(caption: str) -> str:
    """Options are not broken at their hyphens."""
    return re.sub(r"--?[a-z]+\b", lambda option: f'<span class="whole">{option[0]}</span>', escape(caption))


def figure_html(figure: Figure) -> str:
    table = table_html(figure.table)
    if figure.draw:
        table = f"<details><summary>The numbers</summary>{table}</details>"
    plot = f'<div class="plot">{plots.to_svg(figure.draw, figure.slug, figure.title)}</div>' if figure.draw else ""
    return (f'<figure id="{figure.slug}"><h3>{escape(figure.title)}</h3>\n{plot}\n'
            f"<figcaption>{caption_html(figure.caption)}</figcaption>\n{table}</figure>")


def section_html(section: Section) -> str:
    return "\n".join([f'<h2 id="{slug_of(section)}">{escape(section.title)}</h2>',
                      f'<p class="about">{escape(section.about)}</p>', *map(figure_html, section.figures)])


def slug_of(section: Section) -> str:
    return "section-" + section.title.split()[0].lower()


def missing_html(sections: list[Section]) -> str:
    items = "\n".join(f"<li>{escape(it.title)}: <code>{escape(it.filled_by)}</code></li>" for it in sections)
    return ('<h2>Not in this report</h2>\n<p class="about">These commands would fill it.</p>\n'
            f'<ul class="missing">{items}</ul>')


def sources_html(results: list[Result]) -> str:
    rows = "\n".join(f"<tr><td><code>{escape(it.name)}</code></td><td>{escape(KINDS[it.kind].command)}</td></tr>"
                     for it in results)
    head = '<tr><th scope="col">file</th><th scope="col">written by</th></tr>'
    return f'<h2>Files</h2>\n<div class="scroll"><table>\n{head}\n{rows}\n</table></div>'


def models_of(results: list[Result]) -> str:
    """Of files that name one."""
    contents = [it.content for it in results]
    names = [it.get("model") or it.get("info", {}).get("origin", {}).get("model_name") for it in contents]
    return ", ".join(dict.fromkeys(name for name in names if isinstance(name, str)))


def html(sections: list[Section], results: list[Result]) -> str:
    full = [it for it in sections if it.figures]
    empty = [it for it in sections if not it.figures]
    css = CSS.replace("LIGHT", variables(0)).replace("DARK", variables(1))
    links = "".join(f'<a href="#{slug_of(it)}">{escape(it.title)}</a>' for it in full)
    parts = [*map(section_html, full), *([missing_html(empty)] if empty else []), sources_html(results)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{TITLE}</title>
<style>{css}</style>
</head>
<body>
<h1>{TITLE}</h1>
<p class="about">{escape(models_of(results))}</p>
<nav>{links}</nav>
""" + "\n".join(parts) + "\n</body>\n</html>\n"


def text(sections: list[Section]) -> str:
    lines = []
    for section in sections:
        if not section.figures:
            lines.append(f"No {section.title[0].lower() + section.title[1:]}: {section.filled_by}\n")
            continue
        lines.append(f"{section.title}\n{'=' * len(section.title)}\n")
        for figure in section.figures:
            lines += [figure.title, figure.caption, "", figure.table.text(), ""]
    return "\n".join(lines)
