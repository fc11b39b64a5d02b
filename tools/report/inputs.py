"""Reads the files of the other commands: which command wrote each, and whether all that a report needs is in it."""

import dataclasses
import json
import pathlib
from typing import Any, Iterator

from content import ReportError

LARGEST = 1e300  # what is beyond has no place in a plot
NUMBER, TEXT, FLAG = "a number", "a string", "true or false"
MAYBE = "a number or null"  # what is not finite is written as null
TYPES = {NUMBER: (int, float), TEXT: str, FLAG: bool, MAYBE: (int, float, type(None))}
JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number",
              float: "a number", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class Kind:
    command: str
    marks: dict[str, Any]  # members that no other command's files have; of None any value will do
    shape: dict[str, Any]  # a member whose name ends with ? may be missing


@dataclasses.dataclass(frozen=True)
class Result:
    name: str  # of the file, without its folder
    kind: str
    content: dict[str, Any]
    lines: tuple[dict[str, Any], ...] = ()  # of a task's samples


ORIGIN = {"model_name": TEXT, "model_hash": TEXT, "text_hash": TEXT, "samples": NUMBER, "context": NUMBER, "seed": NUMBER}
SHAPE = {"layers": NUMBER, "kv_heads": NUMBER, "head_dim": NUMBER}
BOOK = {"objective": NUMBER, "mass": NUMBER, "outlier_rate": NUMBER, "levels?": [NUMBER], "sensitivity?": NUMBER}
SEEN = {"values": NUMBER, "outliers": NUMBER, "sensitivity": NUMBER, "histogram": [NUMBER], "fisher_histogram": [NUMBER]}
SOLUTION = {"bits_per_element": NUMBER, "bytes": NUMBER, "loss": NUMBER, "layers": [{"keys": TEXT, "values": TEXT}]}
TASK = {"task": TEXT, "model": TEXT, "caches": [{"name": TEXT, "hash": TEXT}], "seed": NUMBER}

KINDS = {
    "eval": Kind("kvquant eval --json", {"mode": None, "predictions": None, "rows": None}, {
        "model": TEXT, "model_hash": TEXT, "text": TEXT, "text_hash": TEXT, "mode": TEXT, "context": NUMBER,
        "predictions": NUMBER,
        "rows": [{"name": TEXT, "perplexity": MAYBE, "delta_percent": MAYBE, "delta_nll": MAYBE, "delta_nll_se": MAYBE,
                  "kl_mean": MAYBE, "kl_p999": MAYBE, "top1_agreement": NUMBER, "bits_per_element": NUMBER,
                  "bits_per_element_32k": NUMBER, "clamped_keys?": NUMBER, "clamped_values?": NUMBER}]}),
    "samples": Kind("kvquant task -o", {"kvquant_results": 1}, {**TASK}),
    "task": Kind("kvquant task --json", {"task": None, "caches": None, "rows": None}, {
        **TASK, "rows": [{"task": TEXT, "length": NUMBER, "cache": TEXT, "samples": NUMBER, "depth?": NUMBER}]}),
    "plan": Kind("kvquant plan --json", {"weight_bytes": None, "rows": None}, {
        "model": TEXT, "weight_bytes": NUMBER, "context": NUMBER, "batch": NUMBER, "devices": NUMBER,
        "device?": {"name": TEXT, "memory": NUMBER, "bandwidth": NUMBER},
        "rows": [{"format": TEXT, "bits_per_element": NUMBER, "weights": NUMBER, "cache": NUMBER, "activations": NUMBER,
                  "total": NUMBER, "fits?": FLAG, "longest_context?": NUMBER, "tokens_per_second?": NUMBER}]}),
    "solve": Kind("kvquant plan --solve --json", {"budget": None, "solutions": None}, {
        "model": TEXT, "context": NUMBER, "batch": NUMBER, "devices": NUMBER, "budget": NUMBER,
        "rows": [{"format": TEXT, "bits_per_element": NUMBER, "bytes": NUMBER, "loss": NUMBER, "pareto": FLAG,
                  "loss_sides_apart": NUMBER, "loss_layers_apart": NUMBER}],
        "solutions": {"makeable?": SOLUTION, "sides_apart?": SOLUTION, "layers_apart?": SOLUTION}}),
    "artifact": Kind("kvquant inspect --json", {"kind": "artifact"}, {
        "hash": TEXT, "label": TEXT,
        "info": {"spec": TEXT, "shape": SHAPE, "origin": ORIGIN, "weights": TEXT, "sinks": NUMBER, "q_norm": FLAG,
                 "key_token_bits?": NUMBER, "value_token_bits?": NUMBER},
        "layers": [{"key": BOOK, "value": BOOK, "key_widths?": [NUMBER], "value_widths?": [NUMBER]}]}),
    "statistics": Kind("kvquant inspect --json", {"kind": "statistics"}, {
        "origin": ORIGIN, "layers": [{"key": SEEN, "value": SEEN}]}),
    "gguf": Kind("kvquant inspect --json", {"kind": "gguf"}, {"hash": TEXT, "metadata": {}, "tensors": []}),
    "sequence": Kind("kvquant inspect --json", {"kind": "sequence"}, {
        "bytes": NUMBER, "info": {"spec": TEXT, "tokens": NUMBER, "sealed": NUMBER}}),
    "calibrate": Kind("kvquant calibrate --json", {"rows.spec": None}, {
        "rows": [{"path": TEXT, "spec": TEXT, "key_error_db": MAYBE, "value_error_db": MAYBE, "q_norm": FLAG,
                  "hash": TEXT}]}),
    "attend": Kind("kvquant bench attend --json", {"bandwidth_gbps": None, "cases": None}, {
        "backend": TEXT, "bandwidth_gbps": {"*": NUMBER},
        "cases": [{"name": TEXT, "isa": TEXT, "format": TEXT, "seconds_per_call": NUMBER, "gbps": NUMBER, "bytes": NUMBER,
                   "share_of_bandwidth": NUMBER, "ratio_to_f16": NUMBER, "ns_per_token_layer": NUMBER}]}),
    "seal": Kind("kvquant bench seal --json", {"backend": None, "cases": None}, {
        "backend": TEXT, "cases": [{"name": TEXT, "gbps": NUMBER, "ratio_to_f16": NUMBER, "ratio_to_copy": NUMBER}]}),
    "generate": Kind("kvquant generate --json", {"cache_bytes": None, "f16_bytes": None}, {
        "model": TEXT, "cache": TEXT, "prompt_tokens": NUMBER, "prompt_tokens_per_second": NUMBER,
        "tokens_per_second": NUMBER, "cache_tokens": NUMBER, "cache_bytes": NUMBER, "f16_bytes": NUMBER}),
}
TASKS = ("passkey", "needle-kl", "ruler", "longbench", "drift")
SAMPLE = {"sample": TEXT, "cache": TEXT, "task": TEXT, "length": NUMBER, "depth?": NUMBER}
# What rows and samples of a task have besides, by the kind of task.
TASK_ROWS = {
    "needle-kl": {"kl": NUMBER, "kl_se": NUMBER, "delta_nll": NUMBER, "delta_nll_se": NUMBER, "top1_agreement": NUMBER,
                  "f16_at_chance": FLAG},
    "drift": {"kl": NUMBER, "agreement": NUMBER, "buckets": [{"first": NUMBER, "kl": NUMBER}]},
    None: {"score": NUMBER, "delta": NUMBER, "delta_se": NUMBER, "f16_at_chance": FLAG},
}
TASK_SAMPLES = {
    "needle-kl": {"kl": NUMBER, "top1_agreement": NUMBER},
    "drift": {"kl": NUMBER, "agreement": NUMBER, "buckets": [{"first": NUMBER, "kl": NUMBER}]},
    None: {"score": NUMBER, "answer": TEXT, "expected": [TEXT]},
}


def of_task(shapes: dict, task: str) -> dict:
    if task not in TASKS:
        raise ReportError(f"task is {json.dumps(task)}, expected {', '.join(TASKS)}")
    return shapes.get(task, shapes[None])


def check(value: Any, expected: Any, where: str) -> None:
    """Of objects only the named members (`*`: all), of lists every item."""
    def refuse(wanted: str) -> None:
        raise ReportError(f"{where} is {JSON_NAMES[type(value)]}, expected {wanted}")

    if isinstance(expected, dict):
        if not isinstance(value, dict):
            refuse("an object")
        named = {**dict.fromkeys(value, expected["*"])} if "*" in expected else expected
        for name, inner in named.items():
            member = name.rstrip("?")
            if member in value:
                check(value[member], inner, f"{where}.{member}" if where else member)
            elif member == name:
                raise ReportError(f"{where + ': ' if where else ''}no member \"{name}\"")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            refuse("a list")
        for index, item in enumerate(value if expected else []):
            check(item, expected[0], f"{where}[{index}]")
    elif not isinstance(value, TYPES[expected]) or isinstance(value, bool) != (expected == FLAG):
        refuse(expected)
    elif expected in (NUMBER, MAYBE) and value is not None and not abs(value) < LARGEST:
        raise ReportError(f"{where} is {value:.3g}, expected less than {LARGEST:g}")


def bears(content: dict, mark: str, value: Any) -> bool:
    """`rows.spec`: a member of the first of the rows."""
    member, _, inner = mark.partition(".")
    if inner:
        rows = content.get(member)
        return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and inner in rows[0]
    return member in content and (value is None or content[member] == value)


def kind_of(content: Any) -> str:
    if isinstance(content, dict):
        for name, kind in KINDS.items():
            if all(bears(content, *mark) for mark in kind.marks.items()):
                return name
    commands = sorted({kind.command.split(" -")[0].removeprefix("kvquant ") for kind in KINDS.values()})
    raise ReportError(f"no file that a report knows, expected one that kvquant {', '.join(commands)} wrote (--json, or -o "
                      "of task)")


def parse(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ReportError(f"holds {word}, expected a number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as failure:
        raise ReportError(f"is no JSON: {failure}") from None


def read_samples(text: str) -> tuple[dict, tuple[dict, ...]]:
    """A header and a line for each sample; a last line that was cut off is left out, as `kvquant task` does."""
    whole = text.split("\n")[:-1]  # texts may hold what else ends lines
    if not whole:
        raise ReportError("is empty, expected a header and samples")
    header = parse(whole[0])
    if kind_of(header) != "samples":
        raise ReportError("its first line is no header of results, expected a file of kvquant task -o")
    check(header, KINDS["samples"].shape, "")
    shape = {**SAMPLE, **of_task(TASK_SAMPLES, header["task"])}
    lines = tuple(map(parse, whole[1:]))
    for number, line in enumerate(lines, 2):
        check(line, shape, f"line {number}")
    return header, lines


def read(path: pathlib.Path) -> Result:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return Result(path.name, "samples", *read_samples(text))
        content = parse(text)
        kind = kind_of(content)
        check(content, KINDS[kind].shape, "")
        if kind == "task":
            check(content["rows"], [of_task(TASK_ROWS, content["task"])], "rows")
        return Result(path.name, kind, content)
    except OSError as failure:
        raise ReportError(f"{path}: cannot be read: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: is no UTF-8, expected JSON") from None
    except ReportError as failure:
        raise ReportError(f"{path}: {failure}") from None


def sources_of(results: list[Result]) -> str:
    """Commands, and the files that each wrote."""
    names: dict[str, list[str]] = {}
    for result in results:
        names.setdefault(KINDS[result.kind].command, []).append(result.name)
    return "; ".join(f"{command}: {', '.join(files)}" for command, files in names.items())


def find(sources: list[pathlib.Path]) -> Iterator[pathlib.Path]:
    """The files, and of folders what ends with .json or .jsonl, by name."""
    for source in sources:
        if source.is_dir():
            yield from sorted(it for it in source.iterdir() if it.suffix in (".json", ".jsonl") and it.is_file())
        else:
            yield source


def read_all(sources: list[pathlib.Path]) -> list[Result]:
    """Files of one name in several folders are told apart by their paths."""
    paths = list(find(sources))
    names = [path.name for path in paths]
    results = [dataclasses.replace(read(path), name=path.name if names.count(path.name) == 1 else str(path))
               for path in paths]
    if not results:
        raise ReportError(f"{', '.join(map(str, sources))}: no .json or .jsonl file there, expected what the other commands "
                          "write")
    return results
