"""A transformers cache whose rows are sequences of a kvquant.Cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Numbers
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import CacheLayerMixin

from kvquant._core import Cache, Sequence
from kvquant.hf._model import refusal

if TYPE_CHECKING:
    from kvquant.hf._attach import Attached


class _Layer(CacheLayerMixin):
    """Counts what one layer has been given; the tokens themselves are in the cache's sequences."""

    is_sliding = False  # masks are none of its business: attention knows which layers are local
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0  # of input_ids, padding included
        self.lengths: list[int] = []  # tokens of each row

    def lazy_initialization(self, *arguments: Any, **choices: Any) -> None:
        raise refusal("unsupported", "kvquant's layers are initialised by the first forward alone")

    def update(self, *arguments: Any, **choices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise refusal("unsupported", "kvquant's layers are updated through the cache alone")

    def get_mask_sizes(self, query_length: int | torch.Tensor, *others: Any) -> tuple[int, int]:
        if isinstance(query_length, torch.Tensor):  # positions, in earlier versions
            query_length = query_length.shape[0]
        return self.columns + query_length, 0

    def get_seq_length(self, *others: Any) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions


class KVQuantCache(TransformersCache):
    """What `generate` takes as its cache; made by `Attached.cache`, for one batch at a time.

    `packed` is the kvquant.Cache that holds the tokens, `rows` are its sequences, one for each row of the batch from
    the first forward on. Padding on the left is never stored.
    """

    def __init__(self, attached: Attached, packed: Cache) -> None:
        super().__init__(layers=[_Layer() for _ in range(attached.shape.layers)])
        self.attached = attached
        self.packed = packed
        self.rows: list[Sequence] = []

    def __repr__(self) -> str:
        return f"<KVQuantCache {self.packed.label}, {len(self.rows)} rows of {self.get_seq_length()} tokens>"

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first forward."""
        return len(self.rows) or -1

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *arguments: Any,
               **choices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Tells attention, which comes next, where the layer's tokens are to go."""
        self.attached.expect(self, layer_idx)
        return key_states, value_states

    def append_and_attend(self, layer: int, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor,
                          attention_mask: torch.Tensor | None, positions: torch.Tensor | None,
                          softmax_scale: float) -> torch.Tensor:
        """Attention of new columns as if they came one by one.

        keys (before RoPE), values [batch, columns, kv_heads, head_dim] and queries (after RoPE) [batch, columns,
        q_heads, head_dim], float32 on the CPU; returns what queries are like, zero where there is padding.
        """
        batch, columns = queries.shape[:2]
        self._open_rows(batch)
        counted = self.layers[layer]
        new = _new_tokens(counted, columns, _padding(attention_mask, batch, counted.columns + columns))
        _require_positions(positions, counted.lengths, new, columns)
        if layer == 0:  # nothing runs out half-way through the layers
            for row, count in zip(self.rows, new, strict=True):
                row.reserve(count)
        out = torch.zeros_like(queries)
        if columns == 1:
            self._decode(layer, keys, values, queries, new, out, softmax_scale)
        else:
            for i, count in enumerate(new):
                if count > 0:
                    self.rows[i].append_and_attend(layer, keys[i, -count:], values[i, -count:], queries[i, -count:],
                                                   out[i, -count:], rotated=True, softmax_scale=softmax_scale)
        counted.columns += columns
        counted.lengths = [length + count for length, count in zip(counted.lengths, new, strict=True)]
        return out

    def _decode(self, layer: int, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor, new: list[int],
                out: torch.Tensor, softmax_scale: float) -> None:
        """One column: all rows attend together."""
        rows = [i for i, count in enumerate(new) if count > 0]
        for i in rows:
            self.rows[i].append(layer, keys[i], values[i])
        self.packed.attend(layer, [(self.rows[i], queries[i]) for i in rows], [out[i] for i in rows], rotated=True,
                           softmax_scale=softmax_scale)

    def _open_rows(self, batch: int) -> None:
        if not self.rows:
            self.rows = [self.packed.open() for _ in range(batch)]
            for layer in self.layers:
                layer.lengths = [0] * batch
        if len(self.rows) != batch:
            raise refusal("bad_shape", f"a batch of {batch} rows in a cache of {len(self.rows)}; reset() empties it")

    def _select(self, indices: Numbers[int]) -> None:
        """Row i becomes what row indices[i] is. Rows that are taken more than once share their pages."""
        if not self.rows:
            return
        taken: set[int] = set()
        chosen = []
        for i in indices:
            chosen.append(self.rows[i].fork() if i in taken else self.rows[i])
            taken.add(i)
        for i, row in enumerate(self.rows):
            if i not in taken:
                row.close()
        self.rows = chosen
        for layer in self.layers:
            layer.lengths = [layer.lengths[i] for i in indices]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: rows go on from others' tokens."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._select([i for i in range(len(self.rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows: numbers, or a bool for each row."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().reshape(-1)
        self._select(indices.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last columns: a negative number of them, or, as in earlier versions, how many to keep.

        A cut that falls into a sealed page re-opens it: its first tokens go on being read quantized.
        """
        width = self.get_seq_length()
        gone = -tokens_to_remove if tokens_to_remove <= 0 else width - tokens_to_remove
        if gone > width:
            raise refusal("bad_value", f"crop: {gone} of {width} columns")
        if gone <= 0:
            return
        kept = [max(0, length - gone) for length in self.layers[0].lengths]
        for row, length in zip(self.rows, kept, strict=True):
            row.truncate(length)
        for layer in self.layers:
            layer.columns, layer.lengths = width - gone, list(kept)

    def reset(self) -> None:
        """Empties it, for another batch."""
        for row in self.rows:
            row.close()
        self.rows = []
        for layer in self.layers:
            layer.columns, layer.lengths = 0, []

    def fork(self) -> KVQuantCache:
        """Another cache with the same tokens, which shares their pages: one prompt, many answers."""
        other = KVQuantCache(self.attached, self.packed)
        other.rows = [row.fork() for row in self.rows]
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            theirs.columns, theirs.lengths = mine.columns, list(mine.lengths)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> KVQuantCache:
        return self.fork()

    def close(self) -> None:
        """Frees all memory, that of forks too."""
        self.packed.close()

    def __enter__(self) -> KVQuantCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _refuse(*arguments: Any, **choices: Any) -> None:
    raise refusal("unsupported", "kvquant's cache stays on the CPU and holds attention alone")


for _name in ("early_initialization", "offload", "prefetch", "update_conv_state", "update_recurrent_state",
              "update_indexer"):
    setattr(KVQuantCache, _name, _refuse)


def _padding(attention_mask: torch.Tensor | None, batch: int, width: int) -> list[int]:
    """Columns on the left of each row that are none of its tokens."""
    if attention_mask is None:
        return [0] * batch
    if attention_mask.ndim != 2:
        raise refusal("unsupported", f"attention_mask of shape {tuple(attention_mask.shape)}, expected "
                                     "(batch, columns): attention is causal, over the layer's window")
    if tuple(attention_mask.shape) != (batch, width):
        raise refusal("bad_shape", f"attention_mask of shape {tuple(attention_mask.shape)}, expected {(batch, width)}: "
                                   "of all columns so far and the new ones")
    real = attention_mask.detach().to("cpu", torch.bool)
    padding = width - real.sum(dim=1)
    if bool((real != (torch.arange(width)[None, :] >= padding[:, None])).any()):
        raise refusal("unsupported", "attention_mask: zeros between or behind tokens, expected padding on the left "
                                     "alone (tokenizer.padding_side = 'left')")
    return [int(count) for count in padding]


def _new_tokens(layer: _Layer, columns: int, padding: list[int]) -> list[int]:
    """How many of the new columns are tokens, of each row."""
    for row, (length, pad) in enumerate(zip(layer.lengths, padding, strict=True)):
        expected = max(0, layer.columns - pad)
        if length != expected:
            raise refusal("bad_value", f"attention_mask: row {row} has {expected} tokens in the {layer.columns} "
                                       f"columns so far, the cache was given {length}")
    return [min(columns, layer.columns + columns - pad) if pad < layer.columns + columns else 0 for pad in padding]


def _require_positions(positions: torch.Tensor | None, lengths: list[int], new: list[int], columns: int) -> None:
    """The queries' rotation has to be that of the positions at which the cache stores their tokens."""
    if positions is None:
        return
    given = positions.detach().to("cpu").expand(len(lengths), columns)
    for row, (length, count) in enumerate(zip(lengths, new, strict=True)):
        if count > 0 and not torch.equal(given[row, columns - count:], torch.arange(length, length + count)):
            raise refusal("unsupported", f"position_ids: row {row} goes on at {int(given[row, columns - count])}, "
                                         f"expected {length} and rising: padding has none, as generate() counts them")
