"""A small model's keys, values and squared gradients, and what is fitted to them."""

from __future__ import annotations

from dataclasses import dataclass

import kvquant
import numpy as np
import pytest
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SHAPE = kvquant.Shape(2, 4, 2, 32, kvquant.Rope(theta=10000.0))
WINDOWS, TOKENS = 3, 160


@dataclass
class Window:
    """[tokens, kv_heads, head_dim] of each layer."""

    k: list[Floats]
    v: list[Floats]
    k_squared: list[Floats]
    v_squared: list[Floats]


def read_back(artifact: kvquant.Artifact, k: object, v: object) -> tuple[Floats, Floats]:
    """What a new cache's first layer holds of tokens."""
    sequence = kvquant.Cache(artifact, max_tokens=512, threads=1).open()
    sequence.append(0, k, v)
    return sequence.read(0)


def make_window(random: np.random.Generator, tokens: int = TOKENS, shape: kvquant.Shape = SHAPE) -> Window:
    """Channels of different means and spreads, as keys have, and some outliers."""
    size = (tokens, shape.kv_heads, shape.head_dim)

    def normal(spread: float) -> Floats:
        scale = np.exp(np.linspace(-1, 1, shape.head_dim)) * spread
        x = random.standard_normal(size) * scale + np.linspace(-2, 2, shape.head_dim)
        x[random.random(size) < 0.003] *= 6
        return x.astype(np.float32)

    def squares() -> Floats:
        return (random.standard_normal(size) ** 2).astype(np.float32)

    layers = range(shape.layers)
    return Window([normal(2) for _ in layers], [normal(1) for _ in layers], [squares() for _ in layers],
                  [squares() for _ in layers])


def observe(calibrator: kvquant.Calibrator, windows: list[Window], gradients: bool = True) -> None:
    for window in windows:
        for layer, (k, v, kk, vv) in enumerate(zip(window.k, window.v, window.k_squared, window.v_squared)):
            if gradients:
                calibrator.observe(layer, k, v, kk, vv)
            else:
                calibrator.observe(layer, k, v)


def calibrate(windows: list[Window], **options: object) -> kvquant.Calibrator:
    calibrator = kvquant.Calibrator(SHAPE, max_tokens=4 * WINDOWS * TOKENS, **options)
    for window in windows:
        for layer in range(SHAPE.layers):
            calibrator.observe_range(layer, window.k[layer], window.v[layer])
    calibrator.freeze_ranges()
    observe(calibrator, windows)
    return calibrator


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def windows() -> list[Window]:
    random = np.random.default_rng(1)
    return [make_window(random) for _ in range(WINDOWS)]


@pytest.fixture(scope="session")
def calibrator(windows: list[Window]) -> kvquant.Calibrator:
    origin = kvquant.Origin(model_name="small", model_hash="1234", samples=WINDOWS, context=TOKENS)
    return calibrate(windows, adaptive=True, origin=origin)


@pytest.fixture(scope="session")
def artifact(calibrator: kvquant.Calibrator) -> kvquant.Artifact:
    return calibrator.fit("nuq3-1%")


@pytest.fixture
def queries(random: np.random.Generator) -> Floats:
    """[tokens, q_heads, head_dim]"""
    return random.standard_normal((TOKENS, SHAPE.q_heads, SHAPE.head_dim)).astype(np.float32)
