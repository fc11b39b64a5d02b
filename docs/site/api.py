"""Doxygen's XML as pages of Markdown: one for each folder of headers, public symbols in the order of the headers."""

import html
import pathlib
import re
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from typing import Iterable, Iterator

FOLDERS = {
    "core": "Errors, views, numbers of 16 bits, executors.",
    "format": "Datatypes.",
    "pack": "Codes as bits.",
    "rope": "Rotary positions.",
    "quantize": "Quantizers of keys and values.",
    "calibrate": "Statistics, fitting, artifacts and their files.",
    "cache": "The paged cache, its pages and files.",
    "attend": "Attention: what it is asked, and what a backend is.",
    "reference": "What is right, in double precision.",
    "engine": "Any format and backend behind virtual calls.",
    "backends": "What the backends add.",
}


def folder_of(file: str) -> str:
    """The page that a header belongs to."""
    parts = file.split("/")
    if parts[0] == "backends":
        return "backends"
    return parts[1] if parts[0] == "kvquant" and len(parts) > 2 else "engine"


def prose(element: xml.Element | None) -> str:
    """A description as Markdown."""
    if element is None:
        return ""
    inner = (element.text or "") + "".join(prose_of_child(child) + (child.tail or "") for child in element)
    return re.sub(r"[ \n]+", " ", inner) if element.tag == "para" else inner.strip()


def prose_of_child(child: xml.Element) -> str:
    if child.tag == "computeroutput":
        return f"`{''.join(child.itertext())}`"
    if child.tag in ("itemizedlist", "orderedlist"):
        return "\n\n" + "\n".join(f"- {prose(item).strip()}" for item in child) + "\n\n"
    if child.tag == "para":
        return prose(child).strip() + "\n\n"
    if child.tag == "ndash":
        return "–"
    return prose(child)


def code(text: str) -> str:
    """A type or a list of parameters as this project writes them."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<=[\w:]) ?< ", "<", text)
    text = re.sub(r" >", ">", text)
    text = re.sub(r" ([&*]+)(?=[\w.])", r"\1 ", text)
    text = re.sub(r"(\w) ?=(?=[\w{])", r"\1 = ", text)
    return re.sub(r" ([&*]+)(?=[,)>]|$)", r"\1", text).replace("( ", "(").replace("constexpr constexpr", "constexpr")


def text_of(element: xml.Element | None) -> str:
    return "" if element is None else "".join(element.itertext()).strip()


@dataclass
class Symbol:
    """Anything public: a type, a concept, a function, a variable."""

    name: str
    kind: str
    file: str
    line: int
    signature: str
    text: str
    members: list["Symbol"] = field(default_factory=list)

    @property
    def short(self) -> str:
        return self.name.rsplit("::", 1)[-1] if "operator" not in self.name else self.name.split("::")[-1]


def template_of(element: xml.Element) -> str:
    parameters = element.find("templateparamlist")
    if parameters is None:
        return ""
    names = []
    for it in parameters.iter("param"):
        kind, name, default = (text_of(it.find(part)) for part in ("type", "declname", "defval"))
        names.append(code(f"{kind} {name}".strip()) + (f" = {code(default)}" if default else ""))
    return f"template <{', '.join(names)}>\n"


def wrapped(start: str, arguments: str, columns: int = 100) -> str:
    """A declaration in lines, its parameters below each other where one line does not hold them."""
    if len(start) + len(arguments) <= columns:
        return start + arguments
    indent = " " * (len(start) + 1 if len(start) < columns // 2 else 4)
    lines, depth, word = [start], 0, ""
    for character in arguments:
        depth += (character in "(<{[") - (character in ")>}]")
        word += character
        if (character == "," and depth == 1) or character == ";":
            if len(lines[-1]) + len(word) > columns and lines[-1].strip() != start:
                lines.append(indent)
                word = word.lstrip()
            lines[-1] += word
            word = ""
    return "\n".join(lines)


def signature_of(member: xml.Element) -> str:
    kind, name, kept = member.get("kind"), text_of(member.find("name")), text_of(member.find("type"))
    value = text_of(member.find("initializer"))
    if kind == "define":
        parameters = ", ".join(text_of(it) for it in member.iter("defname"))
        return f"#define {name}" + (f"({parameters})" if parameters else "")
    if kind == "enum":
        values = [text_of(it.find("name")) for it in member.iter("enumvalue")]
        return f"enum class {name} {{ {', '.join(values)} }};"
    if kind == "typedef":
        return template_of(member) + f"using {name} = {code(kept)};"
    if kind == "function":
        explicit = "explicit " if member.get("explicit") == "yes" else ""
        static = "static " if member.get("static") == "yes" else ""
        virtual = "virtual " if member.get("virt") in ("virtual", "pure-virtual") else ""
        returned = code(kept) + " " if kept else ""
        arguments = code(text_of(member.find("argsstring")))
        return template_of(member) + wrapped(f"{explicit}{static}{virtual}{returned}{name}", f"{arguments};")
    static = "static " if member.get("static") == "yes" and not kept.startswith("static") else ""
    value = code(value) if len(value) < 60 and "\n" not in value else ""
    extents = text_of(member.find("argsstring"))
    return template_of(member) + f"{static}{code(kept)} {name}{extents}{' ' + value if value else ''};"


def description_of(element: xml.Element) -> str:
    parts = (prose(element.find(part)) for part in ("briefdescription", "detaileddescription"))
    return "\n\n".join(filter(None, parts))


def member_symbol(member: xml.Element, scope: str) -> Symbol:
    where = member.find("location")
    text = description_of(member)
    if member.get("kind") == "enum":
        rows = [f"| `{text_of(it.find('name'))}` | {description_of(it)} |" for it in member.iter("enumvalue")]
        if any(description_of(it) for it in member.iter("enumvalue")):
            text += "\n\n| value | |\n|---|---|\n" + "\n".join(rows)
    name = text_of(member.find("name"))
    return Symbol(f"{scope}::{name}" if scope else name, member.get("kind", ""), where.get("file", ""),
                  int(where.get("line", "0")), signature_of(member), text)


def is_shown(member: xml.Element) -> bool:
    return member.get("prot") == "public" and bool(description_of(member))


def compound_symbol(compound: xml.Element) -> Symbol:
    name, kind = text_of(compound.find("compoundname")), compound.get("kind", "")
    where = compound.find("location")
    if kind == "concept":
        body = text_of(compound.find("initializer"))
        signature = re.sub(r"concept \S+ =\s*", f"concept {name.rsplit('::', 1)[-1]} = ", body) + ";"
        members: list[Symbol] = []
    else:
        bases = ", ".join(code(text_of(it)) for it in compound.iter("basecompoundref"))
        signature = template_of(compound) + f"{kind} {name.rsplit('::', 1)[-1]}{' : ' + bases if bases else ''};"
        members = [member_symbol(it, name) for it in compound.iter("memberdef") if is_shown(it)]
        members.sort(key=lambda it: it.line)
    return Symbol(name, kind, where.get("file", ""), int(where.get("line", "0")), signature, description_of(compound),
                  members)


def read(folder: pathlib.Path) -> tuple[list[Symbol], dict[str, str]]:
    """All public symbols, and what each header says of itself."""
    symbols, headers = [], {}
    for path in sorted(folder.glob("*.xml")):
        compound = xml.parse(path).getroot().find("compounddef")
        if compound is None:
            continue
        kind, name = compound.get("kind"), text_of(compound.find("compoundname"))
        if kind == "file":
            headers[compound.find("location").get("file", "")] = description_of(compound)
            symbols += [member_symbol(it, "") for it in compound.iter("memberdef")
                        if it.get("kind") == "define" and is_shown(it)]
        elif name.startswith("kvquant") and "detail" not in name.split("::"):
            if kind == "namespace":
                symbols += [member_symbol(it, name) for it in compound.iter("memberdef") if is_shown(it)]
            elif kind in ("struct", "class", "concept") and compound.get("prot", "public") == "public":
                symbols.append(compound_symbol(compound))
    if silent := [it.name for it in symbols if not it.text]:  # Doxygen asks for no text of concepts
        raise SystemExit(f"not documented: {', '.join(silent)}")
    return sorted(symbols, key=lambda it: (it.file, it.line)), headers


def anchor_of(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name.removeprefix("kvquant::")).strip("-").lower()


class Linker:
    """Names in text that are symbols lead to them."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        self.targets: dict[str, str] = {}
        for symbol in symbols:
            page = folder_of(symbol.file)
            for it in [symbol, *symbol.members]:
                target = f"{page}.md#{anchor_of(it.name)}"
                full = it.name.removeprefix("kvquant::")
                self.targets.setdefault(full, target)

    def link(self, text: str) -> str:
        def replace(found: re.Match[str]) -> str:
            target = self.targets.get(re.sub(r"\(.*\)$", "", found[1]))
            return f"[`{found[1]}`]({target})" if target else found[0]
        return re.sub(r"(?<!\[)`([^`]+)`", replace, text)


def fields_table(fields: list[Symbol], linker: Linker) -> str:
    rows = "".join(f"| <a id=\"{anchor_of(it.name)}\"></a>`{it.signature.rstrip(';').replace('|', chr(92) + '|')}` | "
                   f"{linker.link(it.text).replace('|', chr(92) + '|')} |\n" for it in fields)
    return f"\n| | |\n|---|---|\n{rows}"


def runs(members: list[Symbol]) -> Iterator[list[Symbol]]:
    """Fields that follow each other, and members that share their text."""
    run: list[Symbol] = []
    for it in members:
        fits = run and ((it.kind == run[-1].kind == "variable") or (it.kind != "variable" and it.text == run[-1].text))
        if run and not fits:
            yield run
            run = []
        run.append(it)
    if run:
        yield run


def member_text(members: list[Symbol], linker: Linker) -> Iterator[str]:
    for run in runs(members):
        if run[0].kind == "variable":
            yield fields_table(run, linker)
            continue
        names = list(dict.fromkeys(it.short for it in run))
        extra = "".join(f'<a id="{anchor_of(it.name)}"></a>' for it in run[1:] if it.short != run[0].short)
        signatures = "\n".join(it.signature for it in run)
        heading = f"#### {', '.join(names)} {{ #{anchor_of(run[0].name)} }}"
        yield f"{heading}\n{extra}\n```cpp\n{signatures}\n```\n\n{linker.link(run[0].text)}\n"


def overloads(symbols: list[Symbol]) -> list[list[Symbol]]:
    """Overloads of one header together."""
    groups: dict[tuple[str, str], list[Symbol]] = {}
    for it in symbols:
        groups.setdefault((it.file, it.name), []).append(it)
    return list(groups.values())


def with_own_anchors(text: str) -> str:
    """Of headings with the same anchor, overloads say, all but the first get a number."""
    seen: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        seen[found[1]] = seen.get(found[1], 0) + 1
        return found[0] if seen[found[1]] == 1 else f"{{ #{found[1]}-{seen[found[1]]} }}"
    return re.sub(r"\{ #([\w-]+) \}", numbered, text)


def page(folder: str, symbols: list[Symbol], headers: dict[str, str], linker: Linker) -> str:
    out = [f"# {folder}\n\n{FOLDERS[folder]}\n"]
    files = sorted({it for it in headers if folder_of(it) == folder} & {it.file for it in symbols})
    for file in files:
        out.append(f"\n## {file.rsplit('/', 1)[-1]} {{ #{anchor_of(file)} }}\n\n`#include \"{file}\"`"
                   f"{{ .where }}\n\n{linker.link(headers[file])}\n")
        for group in overloads([it for it in symbols if it.file == file]):
            first = group[0]
            signatures = "\n\n".join(it.signature for it in group)
            texts = list(dict.fromkeys(linker.link(it.text) for it in group))
            name = first.name.removeprefix("kvquant::")
            heading = f"### {name} {{ #{anchor_of(first.name)} }}"
            out.append(f"\n{heading}\n\n```cpp\n{signatures}\n```\n\n" + "\n\n".join(texts) + "\n")
            out += member_text([member for it in group for member in it.members], linker)
    return with_own_anchors("\n".join(out))


def write(xml_folder: pathlib.Path, to: pathlib.Path) -> list[str]:
    """Writes the pages; returns their names in order."""
    symbols, headers = read(xml_folder)
    linker = Linker(symbols)
    to.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder, what in FOLDERS.items():
        own = [it for it in symbols if folder_of(it.file) == folder]
        (to / f"{folder}.md").write_text(page(folder, own, headers, linker), encoding="utf-8")
        rows.append(f"| [{folder}]({folder}.md) | {what} | {len(own)} |")
    text = ("# API\n\nEvery public symbol, from the comments of the headers; `kvquant::detail` is not public. A page's "
            "headers include those of pages above it alone.\n\n| page | | symbols |\n|---|---|---|\n")
    (to / "index.md").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    return ["index.md", *(f"{folder}.md" for folder in FOLDERS)]
