"""Reads the pickles of the authors of KVQuant (github.com/SqueezeAILab/KVQuant, quant/llama_simquant.py) without
executing anything of them.

A pickle names functions that its reader is to call. This reader calls none of them: each of the few names that arrays and
tensors need stands for a function of this module, and any other name is refused. Tensors come without torch.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of arrays: what NumPy calls its types, without the order of bytes.
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
#: Of tensors: the name of a storage and NumPy's type for it. bfloat16 is taken as the upper half of float32.
_STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
             "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
             "ByteStorage": "<u1", "BoolStorage": "<b1"}
#: How torch begins a file that is no zip archive, and its version.
_TORCH_MAGIC, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001


def _refuse(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(what)


class _Type:
    """Stands for numpy.dtype: a name, and an order of bytes that may follow."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or name.lstrip("<|=") not in _NUMBERS:
            raise _refuse(f"an array of type {name!r}, expected plain numbers")
        self.name, self.order = name.lstrip("<|="), "<"

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise _refuse(f"an array in the order of bytes {order!r}")
        self.order = ">" if order == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.name)


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _refuse(f"a shape of {shape!r}, expected a tuple of sizes")
    return shape


def _array(data: object, kind: object, shape: object, fortran: bool) -> NDArray[Any]:
    if not isinstance(data, (bytes, bytearray)) or not isinstance(kind, _Type):
        raise _refuse("an array without bytes or without a type")
    sizes, dtype = _sizes(shape), kind.numpy()
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise _refuse(f"an array of shape {sizes} and type {dtype} with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if fortran else "C")


class _Array:
    """Stands for an array that is being put together."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse("an array in a form that is not known")
        _, shape, kind, fortran, data = state
        self.value = _array(data, kind, shape, bool(fortran))


class _Storage:
    """A tensor's numbers in a row."""

    __slots__ = ("values", "bfloat16")

    def __init__(self, values: NDArray[Any], bfloat16: bool) -> None:
        self.values, self.bfloat16 = values, bfloat16


def _frombuffer(data: object, kind: object, shape: object, order: object, *_: object) -> NDArray[Any]:
    return _array(data, kind, shape, order == "F")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: object, data: object) -> NDArray[Any]:
    return _array(data, kind, (), False)


def _encode(characters: object, encoding: object = "latin1") -> bytes:
    if not isinstance(characters, str) or encoding not in ("latin1", "latin-1"):
        raise _refuse("bytes in an encoding other than latin1")
    return characters.encode("latin1")


def _no_bytes(*contents: object) -> bytes:
    """How protocols below 3 write bytes that are empty."""
    if contents:
        raise _refuse("bytes by a call")
    return b""


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> NDArray[Any]:
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise _refuse("a tensor without its numbers")
    sizes, steps = _sizes(size), _sizes(stride)
    if len(sizes) != len(steps):
        raise _refuse(f"a tensor of shape {sizes} with strides {steps}")
    last = offset + sum((n - 1) * step for n, step in zip(sizes, steps))
    if 0 not in sizes and (last >= len(storage.values) or math.prod(sizes) > len(storage.values)):
        raise _refuse(f"a tensor of shape {sizes} that reaches beyond its {len(storage.values)} numbers")
    values = storage.values[offset:]
    strided = np.lib.stride_tricks.as_strided(values, sizes, [step * values.itemsize for step in steps],
                                              writeable=False)
    if storage.bfloat16:
        return (np.ascontiguousarray(strided).astype(np.uint32) << 16).view(np.float32).reshape(sizes)
    return np.array(strided)


def _storage_of_bytes(data: object) -> _Storage:
    """What torch's _load_from_bytes would load: a file of one storage, in the form before zip archives."""
    if not isinstance(data, (bytes, bytearray)):
        raise _refuse("a tensor's storage that is not bytes")
    stream = io.BytesIO(data)
    parts = [_Reader(stream).load() for _ in range(3)]
    if parts[0] != _TORCH_MAGIC or parts[1] != _TORCH_VERSION:
        raise _refuse("a tensor's storage in a form that is not known")
    reader = _Reader(stream)
    described, keys = reader.load(), _Reader(stream).load()
    if not isinstance(described, _Described) or keys != [described.key]:
        raise _refuse("a tensor's storage that is not one storage")
    header = stream.read(8)
    if len(header) != 8 or struct.unpack("<q", header)[0] != described.count:
        raise _refuse("a tensor's storage of another size than it says")
    dtype = np.dtype(_STORAGES[described.kind])
    raw = stream.read(described.count * dtype.itemsize)
    if len(raw) != described.count * dtype.itemsize:
        raise _refuse("a tensor's storage that is cut short")
    return _Storage(np.frombuffer(raw, dtype), described.kind == "BFloat16Storage")


class _Described:
    """What stands in a pickle for a storage whose numbers follow."""

    __slots__ = ("kind", "key", "count")

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


class _Name:
    """A name that a pickle may use. It has no attributes to be set and no state to be given."""

    __slots__ = ("_call", "storage")

    def __init__(self, call: Callable[..., Any] | None, storage: str = "") -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "storage", storage)

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise _refuse("a call of what is no function")
        return self._call(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise _refuse("an attribute of a function is set")

    def __setstate__(self, state: object) -> None:
        raise _refuse("a function is given a state")


def _ordered(*pairs: Any) -> OrderedDict[Any, Any]:
    if pairs not in ((), ([],)):
        raise _refuse("a tensor with hooks")
    return OrderedDict()


def _names() -> dict[tuple[str, str], Callable[[], _Name]]:
    calls: dict[tuple[str, str], Callable[..., Any] | None] = {
        ("numpy", "dtype"): _Type,
        ("numpy", "ndarray"): None,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): _no_bytes,
        ("collections", "OrderedDict"): _ordered,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[(core + ".multiarray", "_reconstruct")] = _reconstruct
        calls[(core + ".multiarray", "scalar")] = _scalar
        calls[(core + ".numeric", "_frombuffer")] = _frombuffer
    named: dict[tuple[str, str], Callable[[], _Name]] = {
        key: lambda call=call: _Name(call) for key, call in calls.items()}
    for storage in _STORAGES:
        named[("torch", storage)] = lambda storage=storage: _Name(None, storage)
    return named


_NAMES = _names()


class _Reader(pickle.Unpickler):
    """Knows the names above and no others."""

    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get((module, name))
        if known is None:
            raise _refuse(f"names {module}.{name}, which arrays and tensors do not need")
        return known()

    def persistent_load(self, pid: Any) -> _Described:
        match pid:
            case ("storage", _Name(storage=kind), str(key), _, int(count), *_) if kind in _STORAGES and count >= 0:
                return _Described(kind, key, count)
        raise _refuse(f"refers to {type(pid).__name__} outside of itself")


def _plain(value: Any) -> Any:
    """The same with the arrays in it finished."""
    match value:
        case _Array():
            if value.value is None:
                raise _refuse("an array without its numbers")
            return value.value
        case tuple():
            return tuple(_plain(it) for it in value)
        case list():
            return [_plain(it) for it in value]
        case dict():
            return {key: _plain(it) for key, it in value.items()}
        case np.ndarray() | str() | int() | float() | None:
            return value
    raise _refuse(f"holds {type(value).__name__}, expected arrays, tensors, numbers and containers of them")


def read_pickle(path: str | Path) -> Any:
    """The arrays and containers of a pickle; tensors as NumPy arrays.

    ValueError naming the file and what was refused: nothing that a pickle says is executed.
    """
    try:
        with open(path, "rb") as file:
            return _plain(_Reader(file).load())
    except OSError:
        raise
    except Exception as failure:  # a pickle can make its reader raise anything
        raise ValueError(f"{path}: refused: {failure or type(failure).__name__}") from None
