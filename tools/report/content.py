"""What a report is made of: sections of figures, and the table behind each figure."""

import csv
import dataclasses
import io
import unicodedata
from typing import Any, Callable, Optional

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class ReportError(Exception):
    """One line: which file, what was wrong, what was expected."""


def size_name(count: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    power = 0
    while abs(count) >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.{0 if power == 0 else 1}f} {UNITS[power]}"


@dataclasses.dataclass(frozen=True)
class Column:
    name: str
    show: Any = ""  # a format specification, or a function of the value

    def cell(self, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return self.show(value) if callable(self.show) else format(value, self.show)


@dataclasses.dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[list[Any]]
    most_shown: Optional[int] = None  # on the page and on a terminal; files have all

    def cells(self) -> list[list[str]]:
        return [[column.cell(value) for column, value in zip(self.columns, row)] for row in self.rows[:self.most_shown]]

    def left_out(self) -> str:
        hidden = len(self.rows) - len(self.cells())
        return f"{hidden} more rows: --csv has all" if hidden else ""

    def is_numeric(self, index: int) -> bool:
        return all(isinstance(row[index], (int, float, type(None))) for row in self.rows)

    def csv(self) -> str:
        """Numbers as exact as they are in the files."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(column.name for column in self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return out.getvalue()

    def text(self) -> str:
        lines = [[column.name for column in self.columns], *self.cells()]
        lines = [[one_line(cell) for cell in line] for line in lines]
        widths = [max(width_of(line[i]) for line in lines) for i in range(len(self.columns))]
        right = [self.is_numeric(i) for i in range(len(self.columns))]
        out = ["  ".join(pad(cell, *how) for cell, *how in zip(line, widths, right)).rstrip() for line in lines]
        return "\n".join(out + ([self.left_out()] if self.left_out() else []))


def one_line(text: str) -> str:
    """Names and answers may hold any character; a terminal gets none that moves its cursor."""
    return "".join(" " if unicodedata.category(it)[0] == "C" else it for it in text)


def width_of(text: str) -> int:
    """Columns of a terminal."""
    return sum(0 if unicodedata.combining(it) else 2 if unicodedata.east_asian_width(it) in "WF" else 1 for it in text)


def pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if right else text + space


@dataclasses.dataclass(frozen=True)
class Figure:
    slug: str  # of its file of values and of its place in the page
    title: str
    caption: str  # how it was got
    table: Table
    draw: Optional[Callable[[], Any]] = None  # a figure of matplotlib; none: the table says all


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    about: str
    filled_by: str  # the command whose files it needs
    figures: list[Figure]


def percent(digits: int) -> Callable[[float], str]:
    """Shows a share."""
    return lambda share: f"{100 * share:.{digits}f}"


def numbered(slug: str, index: int) -> str:
    return slug if index == 0 else f"{slug}-{index + 1}"
