"""The package itself: its stubs, its docstrings, its names."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import kvquant
import pytest
from kvquant import _core

FOLDER = pathlib.Path(kvquant.__file__).parent


def public(module: object) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def test_stubs_have_every_name_and_signature() -> None:
    stub = ast.parse((FOLDER / "_core.pyi").read_text(encoding="utf-8"))
    classes = {node.name: {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
               for node in stub.body if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    for name in public(_core):
        it = getattr(_core, name)
        if isinstance(it, type):
            assert set(public(it)) <= classes[name], name
        else:
            assert name in functions
    for node in ast.walk(stub):
        if isinstance(node, ast.FunctionDef) and node.name not in ("__eq__",):
            assert node.returns is not None, node.name
            assert all(argument.annotation for argument in node.args.args if argument.arg != "self"), node.name
    assert (FOLDER / "py.typed").exists()


def test_what_arrays_are_given_to_says_their_shape() -> None:
    stub = ast.parse((FOLDER / "_core.pyi").read_text(encoding="utf-8"))
    with_arrays = [node for node in ast.walk(stub) if isinstance(node, ast.FunctionDef) and
                   any(argument.annotation and "Array" in ast.unparse(argument.annotation) for argument in node.args.args)]
    assert len(with_arrays) > 8
    for node in with_arrays:
        doc = ast.get_docstring(node) or ""
        assert "[" in doc or "Shapes as for" in doc or "several sequences" in doc, node.name


def public_modules() -> Iterator[ModuleType]:
    for it in pkgutil.iter_modules([str(FOLDER)]):
        if not it.name.startswith("_"):
            try:
                yield importlib.import_module(f"kvquant.{it.name}")
            except ImportError as missing:
                assert it.name == "hf" and missing.name in ("torch", "transformers")


def test_everything_public_has_a_docstring() -> None:
    modules = list(public_modules())
    assert len(modules) >= 4
    for module in [kvquant, *modules]:
        assert module.__doc__, module
        for name in public(module):
            it = getattr(module, name)
            if inspect.isfunction(it) or inspect.isclass(it) and it.__module__.startswith("kvquant"):
                assert it.__doc__, f"{module.__name__}.{name}"


def test_names() -> None:
    assert set(kvquant.__all__) <= set(vars(kvquant))
    assert kvquant.default_backend() in kvquant.backends()
    assert {"nuq3", "nf4", "int8", "adaptive", "f16"} <= set(kvquant.formats())
    assert kvquant.__version__.count(".") == 2
    error = kvquant.Error("what")
    assert error.code == "" and isinstance(error, RuntimeError)


def test_unknown_backends_are_named(artifact: kvquant.Artifact) -> None:
    with pytest.raises(kvquant.Error, match='backend "gpu", expected one of cpu') as refused:
        artifact.supports("gpu")
    assert refused.value.code == "unsupported"
