#!/usr/bin/env python3
"""What docs/python.md shows, run as a test: a format on arrays of one's own, a calibration, caches, errors, threads.

Usage: walkthrough.py FOLDER, where it leaves its files.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kvquant
import numpy as np

# [doc:shape]
shape = kvquant.Shape(layers=2, q_heads=8, kv_heads=4, head_dim=64, rope=kvquant.Rope(theta=500000.0))
# [/doc]

TOKENS = 300
random = np.random.default_rng(0)


def tensors(heads: int, tokens: int = TOKENS) -> np.ndarray:
    """[tokens, heads, head_dim]: stands for what a model computes."""
    spread = np.exp(np.linspace(-1, 1, shape.head_dim))
    return (random.standard_normal((tokens, heads, shape.head_dim)) * spread).astype(np.float32)


def windows() -> Iterator[list[tuple[np.ndarray, ...]]]:
    """Of four windows of a text and each layer: keys before RoPE, values, and the loss's gradients of both."""
    for _ in range(4):
        yield [tuple(tensors(shape.kv_heads) for _ in range(4)) for _ in range(shape.layers)]


def calibrate(folder: Path) -> kvquant.Artifact:
    my_windows = list(windows())
    # [doc:calibrate]
    calibrator = kvquant.Calibrator(shape, max_tokens=len(my_windows) * TOKENS,
                                    origin=kvquant.Origin(model_name="mine", model_hash="0123"))
    for window in my_windows:
        for layer, (k, v, k_grad, v_grad) in enumerate(window):
            calibrator.observe_range(layer, k)
    calibrator.freeze_ranges()
    for window in my_windows:
        for layer, (k, v, k_grad, v_grad) in enumerate(window):
            calibrator.observe(layer, k, v, k_grad**2, v_grad**2)
    calibrator.save(folder / "mine.stats")  # for another fit, or to be merged
    artifact = calibrator.fit("nuq3-1%")
    artifact.save(folder / "mine.kvq")
    # [/doc]
    return artifact


def merge(folder: Path) -> None:
    # [doc:merge]
    first = kvquant.Calibrator.load(folder / "mine.stats")
    second = kvquant.Calibrator(shape, max_tokens=first.max_tokens, origin=first.origin)
    second.use_ranges_of(first)  # on another machine, over other windows
    for window in windows():
        for layer, (k, v, k_grad, v_grad) in enumerate(window):
            second.observe(layer, k, v, k_grad**2, v_grad**2)
    first.merge(second)
    # [/doc]
    assert first.fit("nuq3").origin.model_hash == "0123"


def quantize(folder: Path) -> None:
    k, v = tensors(shape.kv_heads), tensors(shape.kv_heads)
    # [doc:quantize]
    artifact = kvquant.load(folder / "mine.kvq")
    k_hat, v_hat = artifact.round_trip(0, k, v)  # [tokens, kv_heads, head_dim], or [tokens, channels]
    print(f"{artifact.label}: {artifact.bits:.2f} bits, keys off by {kvquant.eval.relative_error(k, k_hat):.1%}, "
          f"values by {kvquant.eval.relative_error(v, v_hat):.1%}")
    # [/doc]


def decode(artifact: kvquant.Artifact, folder: Path) -> None:
    prompt = [(tensors(shape.kv_heads), tensors(shape.kv_heads)) for _ in range(shape.layers)]
    k, v, q = tensors(shape.kv_heads, 1), tensors(shape.kv_heads, 1), tensors(shape.q_heads, 1)
    # [doc:cache]
    cache = kvquant.Cache(artifact, max_tokens=100_000)
    chat = cache.open()
    for layer, (prompt_k, prompt_v) in enumerate(prompt):  # keys before RoPE
        chat.append(layer, prompt_k, prompt_v)
    for layer in range(shape.layers):  # then token by token; queries before RoPE too
        attended = chat.append_and_attend(layer, k, v, q)  # [1, q_heads, head_dim]
    other = chat.fork()  # shares the pages
    other.truncate(200)
    chat.save(folder / "chat.kvs")
    # [/doc]
    assert attended.shape == (1, shape.q_heads, shape.head_dim)
    # [doc:batch]
    for layer in range(shape.layers):
        first, second = cache.attend(layer, [(chat, q), (other, q)])
    kept_k, kept_v = chat.read(layer=0)  # what attention reads: [tokens, kv_heads, head_dim]
    print(f"{chat.tokens} tokens in {chat.bytes()['total']} bytes")
    # [/doc]
    assert kept_k.shape == kept_v.shape == (TOKENS + 1, shape.kv_heads, shape.head_dim)
    assert first.shape == second.shape == q.shape


def refuse(artifact: kvquant.Artifact) -> list[str]:
    k = tensors(shape.kv_heads)
    said = []
    # [doc:errors]
    sequence = kvquant.Cache(artifact, max_tokens=1000).open()
    for wrong in (k.astype(np.float64), k[:, :, ::2], k * 1e6):
        try:
            sequence.append(0, wrong, k)
        except (TypeError, ValueError) as failure:  # an array of another kind or shape
            said.append(str(failure))
        except kvquant.Error as failure:  # numbers that no cache can hold
            said.append(f"{failure.code}: {failure}")
    # [/doc]
    return said


def threads(artifact: kvquant.Artifact) -> None:
    k, v, q = tensors(shape.kv_heads), tensors(shape.kv_heads), tensors(shape.q_heads)
    # [doc:threads]
    cache = kvquant.Cache(artifact, max_tokens=100_000, threads=2)

    def serve(_: int) -> np.ndarray:
        with cache.open() as sequence:
            return sequence.append_and_attend(0, k, v, q)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(serve, range(8)))
    # [/doc]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def main(folder: Path) -> None:
    artifact = calibrate(folder)
    merge(folder)
    quantize(folder)
    decode(artifact, folder)
    print("\n".join(refuse(artifact)))
    threads(artifact)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
