#!/usr/bin/env python3
"""The documentation as one searchable site: the pages of docs/, the API reference from the headers' comments, and every
source file that a page links to. Doxygen's warnings, links that lead nowhere and anything that would be fetched from
elsewhere are errors.

Usage: build.py OUTPUT (by scripts/docs)
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import Iterator
from urllib.parse import unquote, urlsplit

import api
import doxygen_filter

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
FENCED = re.compile(r"(^```.*?^```\n?)", re.DOTALL | re.MULTILINE)
LANGUAGES = {".cpp": "cpp", ".hpp": "cpp", ".c": "c", ".h": "c", ".py": "python"}


def title_of(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()


class Stage:
    """The folder that mkdocs reads. A page keeps its path under docs/; those of the root move into it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.sources: dict[str, str] = {}  # path in the project -> page in the stage, of source files that are linked

    def place_of(self, path: str) -> str:
        """Where a file of the project lies in the stage."""
        if path in OF_THE_ROOT:
            return OF_THE_ROOT[path]
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        self.sources[path] = f"source/{path}.md"
        return self.sources[path]

    def add_page(self, path: str) -> None:
        own = ROOT / path
        place = self.place_of(path)

        def moved(found: re.Match[str]) -> str:
            target = os.path.normpath(own.parent / found[1])
            if not os.path.isfile(target):
                return found[0]
            return os.path.relpath(self.place_of(os.path.relpath(target, ROOT)), os.path.dirname(place) or ".")
        parts = FENCED.split(own.read_text(encoding="utf-8"))
        text = "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)
        self.write(place, text)

    def add_sources(self) -> None:
        for path, place in self.sources.items():
            source = ROOT / path
            text, language = source.read_text(encoding="utf-8"), LANGUAGES.get(source.suffix, "text")
            self.write(place, f"# {path}\n\n`````{language}\n{text.rstrip()}\n`````\n")

    def write(self, place: str, text: str) -> None:
        to = self.folder / place
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")


def run_doxygen(work: pathlib.Path) -> None:
    """XML of the headers, in `work`/xml. Fails for whatever is not documented."""
    headers = work / "headers"
    for folder in ("include", "backends", "engines"):
        for path in (ROOT / folder).rglob("*.hpp"):
            to = headers / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(doxygen_filter.filtered(path.read_text(encoding="utf-8")), encoding="utf-8")
    config = (HERE / "Doxyfile").read_text(encoding="utf-8") + f"\nOUTPUT_DIRECTORY = {work}\n"
    done = subprocess.run(["doxygen", "-"], input=config, cwd=headers, text=True, capture_output=True)
    if done.returncode != 0 or done.stderr:
        sys.exit("Doxygen:\n" + done.stderr.replace(f"{headers}/", ""))


def navigation(stage: Stage, api_pages: list[str]) -> str:
    """mkdocs' `nav`: guides by number, then the rest of docs/ by what it is."""
    def entry(place: str, title: str | None = None) -> str:
        name = title if title is not None else title_of(stage.folder / place)
        return f"    - \"{name}\": {place}\n"
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    guides = [it for it in pages if it[0].isdigit()]
    formats = [it for it in pages if it.endswith("_format.md") and it not in guides]
    project = ["design.md", "versioning.md"]
    tool = ["benchmarks.md", "plan.md", "report.md", "tasks.md"]
    interfaces = [it for it in pages if it not in guides + formats + project + tool]
    results = sorted((f"results/{it.name}" for it in (ROOT / "docs" / "results").glob("*.md")), reverse=True)
    sections = {
        "Guides": [entry("index.md", "Overview"),
                   *(entry(it, f"{int(it[:2])} {title_of(stage.folder / it)}") for it in guides)],
        "Tool": [entry(it) for it in tool],
        "Interfaces": [entry(it) for it in interfaces],
        "Files": [entry(it) for it in formats],
        "API": [entry(f"api/{it}", None if it != "index.md" else "Overview") for it in api_pages],
        "Results": [entry(it) for it in results],
        "Project": [entry(it) for it in project] + [entry("contributing.md"), entry("changelog.md")],
        "Sources": [entry(place) for _, place in sorted(stage.sources.items())],
    }
    return "nav:\n" + "".join(f"  - {name}:\n" + "".join(entries) for name, entries in sections.items() if entries)


class Page(HTMLParser):
    """What a page of the site names: its anchors, its links, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[it] for it in ("id", "name") if it in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img") and "src" in given:
            self.fetched.append(given["src"])
        elif tag == "link" and "href" in given and given.get("rel") != "canonical":
            self.fetched.append(given["href"])


def faults_of(site: pathlib.Path) -> Iterator[str]:
    """Links and files that are not there, and what would come from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site)
        if path.name == "404.html":
            continue
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched:
                    yield f"{where}: fetches {link}"
                continue
            target = path if not parts.path else pathlib.Path(os.path.normpath(path.parent / unquote(parts.path)))
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{where}: a link to {link}, which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{where}: a link to {link}, which has no such anchor"


def build(output: pathlib.Path) -> str:
    """Builds the site; returns what there is to say of it."""
    work = output.parent / f"{output.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    stage = Stage(work / "pages")
    for path in [*OF_THE_ROOT, *sorted(str(it.relative_to(ROOT)) for it in (ROOT / "docs").rglob("*.md"))]:
        stage.add_page(path)
    stage.add_sources()
    for picture in (ROOT / "docs").rglob("*.svg"):
        shutil.copy(picture, stage.folder / picture.relative_to(ROOT / "docs"))
    shutil.copy(HERE / "site.css", stage.folder)
    run_doxygen(work)
    api_pages = api.write(work / "xml", stage.folder / "api")
    config = (HERE / "mkdocs.yml").read_text(encoding="utf-8")
    config += f"docs_dir: {stage.folder}\nsite_dir: {work / 'site'}\n" + navigation(stage, api_pages)
    (work / "mkdocs.yml").write_text(config, encoding="utf-8")
    subprocess.run(["mkdocs", "build", "--quiet", "--strict", "-f", str(work / "mkdocs.yml")], check=True)
    if found := list(faults_of(work / "site")):
        sys.exit("\n".join(found))
    shutil.rmtree(output, ignore_errors=True)
    (work / "site").rename(output)
    return f"{len(list(output.rglob('*.html')))} pages in {output}"


if __name__ == "__main__":
    print(build(pathlib.Path(sys.argv[1]).resolve()))
