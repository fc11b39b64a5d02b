"""kvquant report: a page of figures from the files that other commands wrote. Exit status: 0, 1 for bad input, 2 for bad
usage; errors are one line on stderr.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import calibration
import inputs
import memory
import page
import quality
import retrieval
import speed
from content import ReportError, Section, one_line

PARTS = (quality, retrieval, calibration, memory, speed)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"kvquant: report: {one_line(message)} (--help shows the usage)\n")


def parse_options() -> argparse.Namespace:
    parser = Parser(prog="kvquant report",
                    description="A page of figures from the files that other commands wrote: eval, task, inspect, "
                    "calibrate, plan, bench and generate (--json), and the samples of task (-o).")
    parser.add_argument("sources", nargs="+", type=pathlib.Path, metavar="PATH",
                        help="such a file, or a folder whose .json and .jsonl files are")
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="FILE.html", help="the page; needs matplotlib")
    parser.add_argument("--csv", type=pathlib.Path, metavar="DIR", help="a file of values for every figure")
    parser.add_argument("--text", action="store_true", help="the same as tables on standard output")
    options = parser.parse_args()
    if not (options.output or options.csv or options.text):
        parser.error("nothing to write, expected -o, --csv or --text")
    return options


def write_whole(path: pathlib.Path, content: str) -> None:
    """The file appears whole or not at all, with the rights of any new file."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(content)
        os.umask(mask := os.umask(0))
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as failure:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
        raise ReportError(f"{path}: cannot be written: {failure.strerror}") from None


def write_tables(folder: pathlib.Path, sections: list[Section]) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as failure:
        raise ReportError(f"{folder}: cannot be made: {failure.strerror}") from None
    for figure in (figure for section in sections for figure in section.figures):
        write_whole(folder / f"{figure.slug}.csv", figure.table.csv())


def refuse_input_as_output(options: argparse.Namespace) -> None:
    if options.output and options.output.exists():
        if not options.output.is_file():
            raise ReportError(f"{options.output}: cannot be written: not a regular file")
        if any(options.output.samefile(it) for it in inputs.find(options.sources)):
            raise ReportError(f"{options.output}: is read, expected another name for the page")


def report(options: argparse.Namespace) -> None:
    results = inputs.read_all(options.sources)
    refuse_input_as_output(options)
    sections = [part.section(results) for part in PARTS]
    written = page.html(sections, results) if options.output else ""
    if options.csv:
        write_tables(options.csv, sections)
    if options.output:
        write_whole(options.output, written)
    if options.text:
        print(page.text(sections))


def main() -> int:
    try:
        report(parse_options())
        sys.stdout.flush()
        return 0
    except ReportError as failure:
        problem = str(failure)
    except ModuleNotFoundError as missing:
        problem = (f"{missing.name} is missing for the plots: scripts/install_packages plot, or Debian's "
                   "python3-matplotlib; KVQUANT_PYTHON names another Python")
    except OSError:  # of standard output, the only one that is not named
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        problem = "standard output: cannot be written"
    print(f"kvquant: report: {one_line(problem)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
