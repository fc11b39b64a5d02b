"""Which tokens a model is calibrated on: the windows that `kvquant calibrate` chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK = (1 << 64) - 1


def mersenne_twister_64(seed: int) -> Iterator[int]:
    """The numbers of C++'s std::mt19937_64 (Nishimura and Matsumoto)."""
    size, middle, upper = 312, 156, 0xFFFFFFFF80000000
    state = [seed & _MASK]
    for i in range(1, size):
        state.append((6364136223846793005 * (state[-1] ^ (state[-1] >> 62)) + i) & _MASK)
    while True:
        for i in range(size):
            mixed = (state[i] & upper) | (state[(i + 1) % size] & ~upper & _MASK)
            state[i] = state[(i + middle) % size] ^ (mixed >> 1) ^ (0xB5026F5AA96619E9 if mixed & 1 else 0)
        for x in state:
            x ^= (x >> 29) & 0x5555555555555555
            x ^= (x << 17) & 0x71D67FFFEDA60000
            x ^= (x << 37) & 0xFFF7EEE000000000
            yield x ^ (x >> 43)


def as_one_text(texts: str | Iterable[str]) -> str:
    """Several texts with an empty line between them."""
    return texts if isinstance(texts, str) else "\n\n".join(texts)


def text_hash(text: str) -> str:
    """For provenance."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose_windows(tokenizer: PreTrainedTokenizerBase, texts: str | Iterable[str], *, samples: int = 16,
                   context: int = 2048, seed: int = 0) -> list[list[int]]:
    """Windows of `context` tokens with random starts, each with a BOS first where the tokenizer puts one.

    Of one text they are those of `kvquant calibrate` with the same --samples, --context and --seed.
    """
    if samples < 1 or context < 2:
        raise ValueError(f"{samples} windows of {context} tokens, expected 1 or more of 2 or more")
    ids = tokenizer(as_one_text(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    begins = tokenizer("a")["input_ids"][:1]
    bos = begins if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id] else []
    length = context - len(bos)
    if len(ids) < length:
        raise ValueError(f"texts: {len(ids)} tokens, expected at least one window of {length}")
    random = mersenne_twister_64(seed)
    starts = [next(random) % (len(ids) - length + 1) for _ in range(samples)]
    return [bos + ids[start:start + length] for start in starts]
