#!/usr/bin/env python3
"""A toy runtime in NumPy, before and after: its own cache of floats, and the same layers on a quantized cache.

One argument changes. What is measured is how far the model's output moves, and how long a token takes.
"""

import time
from collections.abc import Callable

import kvquant
import numpy as np

shape = kvquant.Shape(layers=2, q_heads=8, kv_heads=2, head_dim=64)
HIDDEN, PROMPT, TOKENS = 256, 2000, 64
random = np.random.default_rng(0)
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def states(tokens: int) -> np.ndarray:
    """Hidden states, [tokens, HIDDEN]."""
    return random.standard_normal((tokens, HIDDEN)).astype(np.float32)


class Model:
    """Random weights, and blocks of the Llama kind without their feed-forward part."""

    def __init__(self) -> None:
        channels = {"k": shape.kv_heads, "v": shape.kv_heads, "q": shape.q_heads}
        self.layers = [{name: states(heads * shape.head_dim).T / 16 for name, heads in channels.items()}
                       | {"out": states(shape.q_heads * shape.head_dim) / 32} for _ in range(shape.layers)]

    # [doc:forward]
    def forward(self, x: np.ndarray, attend: Attend) -> np.ndarray:
        """`attend(layer, k, v, q)`: attention of each token over all up to it; k and q are before RoPE."""
        for layer, w in enumerate(self.layers):
            k, v, q = ((x @ w[name]).reshape(len(x), -1, shape.head_dim) for name in "kvq")
            x = x + attend(layer, k, v, q).reshape(len(x), -1) @ w["out"]
        return x
    # [/doc]


# [doc:before]
class PlainCache:
    """What the runtime had: keys after RoPE, and values, in floats."""

    def __init__(self) -> None:
        self.layers = [(np.zeros((0, shape.kv_heads, shape.head_dim), np.float32),) * 2 for _ in range(shape.layers)]

    def attend(self, layer: int, k: np.ndarray, v: np.ndarray, q: np.ndarray) -> np.ndarray:
        keys, values = self.layers[layer]
        first = len(keys)
        keys, values = np.concatenate([keys, shape.rope.rotate(k, first)]), np.concatenate([values, v])
        self.layers[layer] = keys, values
        keys, values = (np.repeat(x, shape.q_heads // shape.kv_heads, axis=1) for x in (keys, values))
        scores = np.einsum("qhd,thd->hqt", shape.rope.rotate(q, first), keys, optimize=True) / shape.head_dim**0.5
        scores[:, np.arange(first, len(keys))[:, None] < np.arange(len(keys))] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.einsum("hqt,thd->qhd", p / p.sum(axis=-1, keepdims=True), values, optimize=True)
# [/doc]


def calibrate(model: Model) -> kvquant.Artifact:
    text = states(PROMPT)
    # [doc:calibrate]
    calibrator = kvquant.Calibrator(shape, max_tokens=PROMPT)

    def read_with(observe: Callable[[int, np.ndarray, np.ndarray], None]) -> None:
        cache = PlainCache()

        def attend(layer: int, k: np.ndarray, v: np.ndarray, q: np.ndarray) -> np.ndarray:
            observe(layer, k, v)
            return cache.attend(layer, k, v, q)

        model.forward(text, attend)

    read_with(lambda layer, k, v: calibrator.observe_range(layer, k))
    calibrator.freeze_ranges()
    read_with(calibrator.observe)
    artifact = calibrator.fit("nuq4", weights="activation")  # with gradients of a loss: by sensitivity
    # [/doc]
    return artifact


def answer(model: Model, attend: Attend, prompt: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Hidden states of tokens that come one by one after a prompt, and the milliseconds that one takes."""
    model.forward(prompt, attend)
    start = time.perf_counter()
    out = [model.forward(token[None], attend) for token in tokens]
    return np.concatenate(out), (time.perf_counter() - start) * 1000 / len(tokens)


def main() -> None:
    model = Model()
    artifact = calibrate(model)
    prompt, tokens = states(PROMPT), states(TOKENS)
    exact, exact_ms = answer(model, PlainCache().attend, prompt, tokens)
    print(f"floats: a token takes {exact_ms:.2f} ms")
    # [doc:after]
    for cache in (kvquant.Cache.exact(shape, max_tokens=4096), kvquant.Cache(artifact, max_tokens=4096)):
        sequence = cache.open()
        found, ms = answer(model, sequence.append_and_attend, prompt, tokens)
        print(f"{cache.label}: a token takes {ms:.2f} ms, hidden states move by "
              f"{kvquant.eval.relative_error(exact, found):.5f}, {sequence.bytes()['total']} bytes")
        sequence.truncate(PROMPT)  # an answer is taken back
    # [/doc]


if __name__ == "__main__":
    main()
