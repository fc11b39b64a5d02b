"""Attention of a transformers model over packed pages."""

from __future__ import annotations

import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from kvquant._core import Artifact, Cache, Shape
from kvquant.hf._cache import KVQuantCache
from kvquant.hf._model import (
    FAMILIES,
    attention_modules,
    channel_order,
    hook_keys,
    model_hash as fingerprint,
    refusal,
    require_rotation,
    same_rotation,
    shape_of,
    text_config,
    token_rows,
)

_NAME = "kvquant"  # of the attention function
_attached: weakref.WeakKeyDictionary[torch.nn.Module, tuple[weakref.ref[Attached], int]] = weakref.WeakKeyDictionary()


class _Pending(threading.local):
    """What a thread's forward has shown of the layer that attends next."""

    def __init__(self) -> None:
        self.layer = -1
        self.keys: torch.Tensor | None = None
        self.cache: KVQuantCache | None = None


class Attached:
    """A model that attends over caches of an artifact, until `detach`. Made by `attach`."""

    def __init__(self, model: PreTrainedModel, artifact: Artifact) -> None:
        self.model = model
        self.artifact = artifact
        self.shape = artifact.shape
        self._config = text_config(model)
        self._heads_first = FAMILIES[self._config.model_type].heads_first
        self._order = channel_order(self.shape)
        self._pending = _Pending()
        self._modules = attention_modules(model)
        for layer, module in enumerate(self._modules):
            if module in _attached:
                raise refusal("bad_value", "the model is attached already; detach() it first")
        self._implementation = self._config._attn_implementation
        model.set_attn_implementation(_NAME)
        self._hooks = hook_keys(model, self._modules, self._see_keys)
        for layer, module in enumerate(self._modules):
            _attached[module] = (weakref.ref(self), layer)

    def cache(self, *, max_tokens: int, backend: str | None = None, max_sequences: int = 0, sinks: int | None = None,
              recent_pages: int = 0, rewind_tokens: int = 64, threads: int = 0) -> KVQuantCache:
        """An empty cache for `generate(..., past_key_values=...)`.

        max_tokens: that it has room for, of all rows of a batch together. The others as of kvquant.Cache.
        """
        self._require_attached()
        return KVQuantCache(self, Cache(self.artifact, backend, max_tokens=max_tokens, max_sequences=max_sequences,
                                        sinks=sinks, recent_pages=recent_pages, rewind_tokens=rewind_tokens,
                                        threads=threads))

    def detach(self) -> None:
        """Gives the model back as it was. Caches that were made cannot be used with it any longer."""
        for hook in self._hooks:
            hook.remove()
        for module in self._modules:
            _attached.pop(module, None)
        if self._modules:
            self.model.set_attn_implementation(self._implementation)
        self._hooks, self._modules = [], []

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<kvquant.hf.Attached {self.artifact.label} to {type(self.model).__name__}>"

    def _require_attached(self) -> None:
        if not self._modules:
            raise refusal("bad_value", "the model was detached")

    def _see_keys(self, layer: int, keys: torch.Tensor) -> None:
        self._pending.layer, self._pending.keys, self._pending.cache = layer, keys, None

    def expect(self, cache: KVQuantCache, layer: int) -> None:
        """The layer's attention is to go to that cache."""
        self._require_attached()
        if self._pending.layer != layer:
            raise refusal("bad_value", f"the cache is of a model that is attached, layer {layer} is of another")
        self._pending.cache = cache

    def attend(self, layer: int, query: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
               positions: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """[batch, tokens, q_heads, head_dim] of query (after RoPE), value [batch, heads, tokens, head_dim]."""
        pending, cache = self._pending, self._pending.cache
        if cache is None or pending.keys is None or pending.layer != layer:
            raise refusal("unsupported", "the model is attached to an artifact and was called without its cache: pass "
                                         "past_key_values=attached.cache(max_tokens=...), or detach() it first")
        keys = self._ordered(token_rows(pending.keys, self.shape, self._heads_first))
        pending.keys = pending.cache = None
        out = cache.append_and_attend(layer, keys, _on_cpu(value.transpose(1, 2)), self._ordered(query.transpose(1, 2)),
                                      attention_mask, positions, scaling)
        return out.to(device=query.device, dtype=query.dtype)

    def _ordered(self, x: torch.Tensor) -> torch.Tensor:
        x = _on_cpu(x)
        return x if self._order is None else x[..., self._order].contiguous()


def _on_cpu(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
               **choices: Any) -> tuple[torch.Tensor, None]:
    """What transformers calls for an attention module."""
    reference, layer = _attached.get(module, (None, -1))
    attached = reference() if reference is not None else None
    if attached is None:
        raise refusal("bad_value", "attn_implementation='kvquant' without an artifact: kvquant.hf.attach sets it")
    if torch.compiler.is_compiling():
        raise refusal("unsupported", "a compiled model: attention over packed pages runs outside of torch")
    if torch.is_grad_enabled() and query.requires_grad:
        raise refusal("unsupported", "gradients: attention over packed pages has none, call it under torch.no_grad()")
    if choices.get("output_attentions"):
        raise refusal("unsupported", "output_attentions: attention over packed pages does not keep its weights")
    if dropout > 0 or choices.get("softcap") is not None or choices.get("is_causal") is False:
        raise refusal("unsupported", "attention with dropout, with softcap or over tokens to come")
    shape = attached.shape
    window = shape.window if layer in shape.local_layers else None
    if "sliding_window" in choices and choices["sliding_window"] != window:
        raise refusal("bad_shape", f"layer {layer}: sliding_window is {choices['sliding_window']}, "
                                   f"of the artifact {window}")
    out = attached.attend(layer, query, value, attention_mask, choices.get("position_ids"),
                          scaling if scaling is not None else shape.head_dim ** -0.5)
    return out, None


def _mask(*, attention_mask: torch.Tensor | None = None, use_vmap: bool = False, **choices: Any) -> torch.Tensor | None:
    """What transformers calls for a mask: which columns are padding, the rest attention knows."""
    if use_vmap:
        raise refusal("unsupported", "a mask function of the model's own: attention is causal, over the layer's window")
    return attention_mask


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)


def _require_shape(model: PreTrainedModel, artifact: Artifact) -> None:
    """Raises Error unless the artifact's shape is the model's, whichever channels it pairs."""
    theirs = shape_of(model)
    mine = artifact.shape

    def sizes(shape: Shape) -> tuple[Any, ...]:
        return (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim, list(shape.local_layers), shape.window)

    if sizes(mine) != sizes(theirs):
        raise refusal("bad_format", f"the artifact is of {mine!r}, the model of {theirs!r}")
    pairs = [(mine.rope, theirs.rope)] + ([(mine.local_rope, theirs.local_rope)] if mine.local_layers else [])
    for ours, models in pairs:
        if not same_rotation(ours, models, mine.head_dim):
            raise refusal("bad_format", f"the artifact's keys are rotated by {ours!r}, the model's by {models!r}")
    require_rotation(model, theirs)


def attach(model: PreTrainedModel, artifact: Artifact | str | Path, *, model_hash: str | None = None) -> Attached:
    """Lets a model attend over packed pages: its attention function is kvquant's, and its keys are taken before RoPE.

    artifact: one, or its path. model_hash: what the artifact says of its model, where that is not
    `kvquant.hf.model_hash` of this one: an artifact of `kvquant calibrate` has its GGUF file's, which `kvquant inspect`
    tells. Raises Error for an artifact of another model, and naming what of the model is not supported.

    Use it as a context manager, or call `detach`. A model on a GPU works, with a warning: its keys, values and queries
    go to the CPU, where the pages are, and the outputs back.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.load(artifact)
    config = text_config(model)
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is not None:
        raise refusal("unsupported", f"attn_logit_softcapping of {cap}: kvquant's attention caps no scores")
    if artifact.keys != "pre_rope":
        raise refusal("unsupported", f"an artifact of keys {artifact.keys}, expected pre_rope")
    _require_shape(model, artifact)
    if artifact.spec != "f16":
        made_for, this = artifact.origin.model_hash, model_hash or fingerprint(model)
        if made_for != this:
            raise refusal("bad_format", f"the artifact was made for the model of hash {made_for!r} "
                                        f"({artifact.origin.model_name!r}), this one's is {this!r}; where both are "
                                        "one model in two formats, pass the artifact's as model_hash")
    if any(weight.device.type != "cpu" for weight in model.parameters()):
        warnings.warn("the model is on an accelerator, kvquant's pages are in the CPU's memory: keys, values and "
                      "queries are copied there in every layer", stacklevel=2)
    return Attached(model, artifact)
