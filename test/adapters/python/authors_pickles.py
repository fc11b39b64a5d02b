"""Pickles as the authors' quant/llama_simquant.py leaves them, made without torch: under its names stand our own."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {np.dtype("f8"): "DoubleStorage", np.dtype("f4"): "FloatStorage", np.dtype("f2"): "HalfStorage"}


def _named(module: str, name: str, kind: str = "function") -> Any:
    """What pickles as `module.name`."""
    made: Any = (lambda *_: None) if kind == "function" else type(name, (), {})
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    return made


_rebuild_tensor = _named("torch._utils", "_rebuild_tensor_v2")
_load_from_bytes = _named("torch.storage", "_load_from_bytes")
_classes = {name: _named("torch", name, "class") for name in (*STORAGES.values(), "BFloat16Storage")}


@contextlib.contextmanager
def torch_names() -> Iterator[None]:
    """Modules of torch's names, so that pickle finds there what it is to name."""
    fakes = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.storage")}
    fakes["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor
    fakes["torch.storage"]._load_from_bytes = _load_from_bytes
    for name, made in _classes.items():
        setattr(fakes["torch"], name, made)
    kept = {name: sys.modules.get(name) for name in fakes}
    sys.modules.update(fakes)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _StorageReference:
    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, it: Any) -> Any:
        if isinstance(it, _StorageReference):
            return ("storage", _classes[it.kind], "94000000000000", "cpu", it.count, None)
        return None


def storage_bytes(raw: bytes, kind: str, count: int, said: int | None = None) -> bytes:
    """A storage in torch's form before zip archives; `said`: another size than it has."""
    stream = io.BytesIO()
    for header in (MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": True}):
        pickle.dump(header, stream, protocol=2)
    _StoragePickler(stream, protocol=2).dump(_StorageReference(kind, count))
    pickle.dump(["94000000000000"], stream, protocol=2)
    stream.write(struct.pack("<q", count if said is None else said) + raw)
    return stream.getvalue()


class Tensor:
    """Pickles as torch's Tensor does."""

    def __init__(self, values: Any, kind: str | None = None, **wrong: Any) -> None:
        self.values, self.wrong = np.asarray(values), wrong
        self.kind = kind or STORAGES[self.values.dtype]

    def __reduce__(self) -> Any:
        shape = self.values.shape
        strides = tuple(stride // self.values.itemsize for stride in self.values.strides)
        storage = _Storage(self.values.tobytes(), self.kind, self.values.size, self.wrong.get("said"))
        return (_rebuild_tensor, (storage, self.wrong.get("offset", 0), self.wrong.get("shape", shape),
                                  self.wrong.get("strides", strides), False, OrderedDict()))


class _Storage:
    def __init__(self, raw: bytes, kind: str, count: int, said: int | None) -> None:
        self.bytes = storage_bytes(raw, kind, count, said)

    def __reduce__(self) -> Any:
        return (_load_from_bytes, (self.bytes,))


def dumps(value: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> bytes:
    with torch_names():
        return pickle.dumps(value, protocol=protocol)


def quantizers(layers: int, channels: int, bits: int, norm: bool = False, dtype: type = np.float64) -> dict[str, Any]:
    """As `llama_calibration` returns them: thresholds as tensors (keys [1, channels], values [tokens, 1]), centroids as
    KMeans of scikit-learn leaves them, in no order."""
    random, made = np.random.default_rng(5), {}
    for layer in range(layers):
        for projection in ("k_proj", "v_proj"):
            size = (1, channels) if projection == "k_proj" else (300, 1)
            lower = random.standard_normal(size) - 3
            upper = lower + 2 + 4 * random.random(size)
            centers = random.permutation(np.linspace(-0.9, 0.9, 2**bits)).astype(np.float32)[:, None]
            centers += 0.01 * random.standard_normal(centers.shape).astype(np.float32)
            entry = (Tensor(upper.astype(dtype)), Tensor(lower.astype(dtype)), [centers])
            if norm:
                entry += (Tensor(np.float64(1.05)), Tensor(np.float64(-0.01)))
            made[f"model.layers.{layer}.self_attn.{projection}"] = entry
    return made
