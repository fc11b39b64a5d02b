"""kvquant: keys and values of language models in 4, 3 or 2 bits, with formats fitted to the model.

`load` reads an artifact, `Calibrator` makes one from a model's keys, values and gradients, and `Cache` stores sequences
by it. `kvquant.eval` has errors and exact attention to compare with; `python -m kvquant.convert` reads artifacts of the
authors of KVQuant. Keys are given before RoPE throughout.
"""

from pathlib import Path

from kvquant import eval
from kvquant._core import (
    Artifact,
    Cache,
    Calibrator,
    Origin,
    Rope,
    Sequence,
    Shape,
    __version__,
    backends,
    default_backend,
    formats,
)
from kvquant._errors import Error

__all__ = [
    "Artifact",
    "Cache",
    "Calibrator",
    "Error",
    "Origin",
    "Rope",
    "Sequence",
    "Shape",
    "__version__",
    "backends",
    "default_backend",
    "eval",
    "formats",
    "load",
]


def load(path: str | Path) -> Artifact:
    """Reads an artifact file: what `kvquant calibrate` or `Artifact.save` wrote."""
    return Artifact.load(path)
