"""What a cache costs, in plain NumPy and double precision: errors, exact attention, distances of predictions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from kvquant._core import Rope, Sequence

Doubles = NDArray[np.float64]


def _doubles(x: ArrayLike, name: str) -> Doubles:
    out = np.asarray(x, dtype=np.float64)
    if not np.isfinite(out).all():
        raise ValueError(f"{name}: holds a number that is not finite")
    return out


def relative_error(x: ArrayLike, x_hat: ArrayLike) -> float:
    """|x_hat - x| / |x|, of all elements; 0 where both are zero."""
    exact, rounded = _doubles(x, "x"), _doubles(x_hat, "x_hat")
    if exact.shape != rounded.shape:
        raise ValueError(f"x of shape {exact.shape}, x_hat of {rounded.shape}, expected the same")
    error, norm = float(np.linalg.norm(rounded - exact)), float(np.linalg.norm(exact))
    return 0.0 if error == 0 else error / norm if norm > 0 else math.inf


def decibels(x: ArrayLike, x_hat: ArrayLike) -> float:
    """The power of the error relative to x, in dB: about -6 for each bit that a code has."""
    error = relative_error(x, x_hat)
    return 20 * math.log10(error) if error > 0 else -math.inf


def rotate(x: ArrayLike, rope: Rope, first_position: int = 0) -> Doubles:
    """x [tokens, heads, head_dim], turned to positions from first_position on, in double precision."""
    out = np.array(x, dtype=np.float64)
    if out.ndim != 3:
        raise ValueError(f"x of shape {out.shape}, expected (tokens, heads, head_dim)")
    if not rope.enabled:
        return out
    # What one unit turns into at a position gives cosine and sine of every pair.
    rotary = rope.rotary_dim or out.shape[2]
    pairs = np.arange(rotary // 2)
    first, second = (pairs, pairs + rotary // 2) if rope.pairing == "half_split" else (2 * pairs, 2 * pairs + 1)
    unit = np.zeros((out.shape[0], 1, out.shape[2]), dtype=np.float32)
    unit[:, :, first] = 1
    turned = rope.rotate(unit, first_position).astype(np.float64)
    cos, sin = turned[:, :, first], turned[:, :, second]
    a, b = out[:, :, first].copy(), out[:, :, second].copy()
    out[:, :, first], out[:, :, second] = a * cos - b * sin, a * sin + b * cos
    return out


def exact_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, rope: Rope, *, rotated: bool = False, window: int = 0, sinks: int = 0,
                    softmax_scale: float = 0.0) -> Doubles:
    """Causal attention of the last tokens over given keys and values.

    q [queries, q_heads, head_dim], k (before RoPE) and v [tokens, kv_heads, head_dim]; query i stands at position
    tokens - queries + i. `rotated`: q is after RoPE already. `window`: latest tokens that a query sees, 0 for all;
    the first `sinks` are seen too. `softmax_scale`: 0 for 1 / sqrt(head_dim). Returns [queries, q_heads, head_dim].
    """
    queries, keys, values = _doubles(q, "q"), _doubles(k, "k"), _doubles(v, "v")
    if queries.ndim != 3 or keys.ndim != 3 or keys.shape != values.shape or queries.shape[2] != keys.shape[2]:
        raise ValueError(f"q {queries.shape}, k {keys.shape}, v {values.shape}, expected (queries, q_heads, head_dim) "
                         "and (tokens, kv_heads, head_dim) twice")
    if queries.shape[1] % keys.shape[1] != 0 or len(queries) > len(keys):
        raise ValueError(f"{queries.shape[1]} heads and {len(queries)} queries, expected a multiple of {keys.shape[1]} "
                         f"heads and at most {len(keys)} queries")
    first = len(keys) - len(queries)
    group = queries.shape[1] // keys.shape[1]
    turned_k = np.repeat(rotate(keys, rope), group, axis=1)
    turned_q = queries if rotated else rotate(queries, rope, first)
    scores = np.einsum("qhd,thd->hqt", turned_q, turned_k) * (softmax_scale or 1 / math.sqrt(keys.shape[2]))
    position, token = np.arange(first, len(keys))[:, None], np.arange(len(keys))[None, :]
    hidden = token > position
    if window > 0:
        hidden |= (token + window <= position) & (token >= sinks)
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hqt,thd->qhd", weights, np.repeat(values, group, axis=1))


def attention_error(sequence: Sequence, layer: int, q: ArrayLike, k: ArrayLike, v: ArrayLike, rope: Rope) -> float:
    """How far attention over a sequence is from attention over the exact k and v that it was given: |error| / |exact|.

    Shapes as for `exact_attention`, q before RoPE.
    """
    exact = exact_attention(q, k, v, rope)
    return relative_error(exact, sequence.attend(layer, np.ascontiguousarray(q, dtype=np.float32)))


def _log_softmax(logits: ArrayLike, name: str) -> Doubles:
    x = _doubles(logits, name)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl_divergence(logits: ArrayLike, logits_hat: ArrayLike) -> Doubles:
    """KL(p || p_hat) of the predictions that logits [..., vocabulary] stand for, in nats, one for each: [...]."""
    exact, other = _log_softmax(logits, "logits"), _log_softmax(logits_hat, "logits_hat")
    if exact.shape != other.shape:
        raise ValueError(f"logits of shape {exact.shape} and {other.shape}, expected the same")
    return (np.exp(exact) * (exact - other)).sum(axis=-1)


def top1_agreement(logits: ArrayLike, logits_hat: ArrayLike) -> float:
    """The fraction of predictions [..., vocabulary] whose most likely token is the same."""
    exact, other = _doubles(logits, "logits"), _doubles(logits_hat, "logits_hat")
    if exact.shape != other.shape:
        raise ValueError(f"logits of shape {exact.shape} and {other.shape}, expected the same")
    return float((exact.argmax(axis=-1) == other.argmax(axis=-1)).mean())


def negative_log_likelihood(logits: ArrayLike, targets: ArrayLike) -> Doubles:
    """-log p(target) in nats: logits [tokens, vocabulary], targets [tokens]. Its mean's exponential is the perplexity."""
    log_p, ids = _log_softmax(logits, "logits"), np.asarray(targets)
    if log_p.ndim != 2 or ids.shape != log_p.shape[:1]:
        raise ValueError(f"logits {log_p.shape}, targets {ids.shape}, expected (tokens, vocabulary) and (tokens,)")
    return -log_p[np.arange(len(ids)), ids]
