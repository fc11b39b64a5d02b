"""What of a transformers model a cache has to do with: its sizes, its rotation, its attention modules."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from kvquant._core import Rope, Shape
from kvquant._errors import Error
from kvquant.models import rope_from_config

_SHAPED = ("rope_parameters", "layer_types", "sliding_window", "num_hidden_layers", "num_attention_heads",
           "num_key_value_heads", "head_dim", "hidden_size")
_HASHED_VALUES = 4096  # of each weight


@dataclass(frozen=True)
class Family:
    """Where the models of a `model_type` have their keys before RoPE."""

    key_module: str  # of an attention module, whose output they are
    heads_first: bool = False  # [batch, kv_heads, tokens, head_dim], not [batch, tokens, ...]


FAMILIES = {
    "llama": Family("k_proj"),
    "mistral": Family("k_proj"),
    "qwen2": Family("k_proj"),
    "qwen3": Family("k_norm"),
    "gemma2": Family("k_proj"),
    "gemma3_text": Family("k_norm", heads_first=True),
}


def refusal(code: str, text: str) -> Error:
    """An error of the library that begins in Python."""
    made = Error(text)
    made.code = code
    return made


def text_config(model: PreTrainedModel | PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the language model. Raises Error for one that is not known."""
    config = (model if isinstance(model, PreTrainedConfig) else model.config).get_text_config()
    if config.model_type not in FAMILIES:
        raise refusal("unsupported", f"model_type {config.model_type!r}, expected one of {', '.join(sorted(FAMILIES))}")
    if getattr(config, "use_bidirectional_attention", None):
        raise refusal("unsupported", "use_bidirectional_attention: tokens that see what comes after them")
    return config


def _rope(parameters: dict[str, Any], head_dim: int, pairing: str) -> Rope:
    """The rotation of transformers' `rope_parameters`."""
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise refusal("unsupported", f"rope_type {kind!r}: its frequencies change as a sequence grows, "
                                     "a cache of keys before RoPE needs them fixed")
    parameters = dict(parameters)
    if kind == "yarn":
        if parameters.get("truncate") is False:
            raise refusal("unsupported", "rope_type 'yarn' with truncate = False")
        scale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
        if parameters.get("attention_factor") is None and scale and all_dim and parameters["factor"] > 1:
            log = 0.1 * math.log(parameters["factor"])
            parameters["attention_factor"] = (scale * log + 1) / (all_dim * log + 1)
    try:
        rope = rope_from_config({"rope_parameters": parameters, "head_dim": head_dim})
    except ValueError as unknown:
        raise refusal("unsupported", str(unknown)) from None
    return with_pairing(rope, pairing)


def with_pairing(rope: Rope, pairing: str) -> Rope:
    """The same rotation with other channels paired."""
    return Rope(enabled=rope.enabled, pairing=pairing, theta=rope.theta, rotary_dim=rope.rotary_dim,
                scaling=rope.scaling, factor=rope.factor, original_context=rope.original_context,
                low_frequency_factor=rope.low_frequency_factor, high_frequency_factor=rope.high_frequency_factor,
                beta_fast=rope.beta_fast, beta_slow=rope.beta_slow, attention_factor=rope.attention_factor,
                frequency_factors=rope.frequency_factors)


def shape_of(model: PreTrainedModel | PreTrainedConfig, *, pairing: str = "half_split") -> Shape:
    """The shape of a transformers model, or of its configuration.

    pairing: "half_split" as transformers has it; "interleaved" for artifacts that are to serve the same `llama` model
    in GGUF, where the channels of a head come in another order. Raises Error ("unsupported") naming what cannot be.
    """
    config = text_config(model)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise refusal("unsupported", f"layers of {', '.join(unknown)}, expected full_attention or sliding_attention")
    parameters = config.rope_parameters
    by_kind = {kind: parameters.get(kind, parameters) for kind in ("full_attention", "sliding_attention")}
    ropes = {kind: _rope(by_kind[kind], head_dim, pairing) for kind in set(kinds)}
    local = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
    everywhere = ropes.get("full_attention", ropes.get("sliding_attention"))
    return Shape(layers, heads, getattr(config, "num_key_value_heads", None) or heads, head_dim, everywhere,
                 local_layers=local, window=int(window) if local else 0,
                 local_rope=ropes["sliding_attention"] if local else None)


def _rotary_dim(rope: Rope, head_dim: int) -> int:
    return rope.rotary_dim or head_dim


def frequencies(rope: Rope, head_dim: int) -> tuple[NDArray[np.float64], float]:
    """Radians per token of every pair, and what multiplies the rotated channels."""
    pairs = np.arange(_rotary_dim(rope, head_dim) // 2)
    split = rope.pairing == "half_split"
    first, second = (pairs, pairs + len(pairs)) if split else (2 * pairs, 2 * pairs + 1)
    unit = np.zeros((1, 1, head_dim), dtype=np.float32)
    unit[..., first] = 1
    turned = rope.rotate(unit, 1)[0, 0].astype(np.float64)
    return np.arctan2(turned[second], turned[first]), float(np.hypot(turned[first], turned[second]).mean())


def same_rotation(a: Rope, b: Rope, head_dim: int) -> bool:
    """Whether both turn by the same angles, however that is said and whichever channels are paired."""
    if a.enabled != b.enabled or _rotary_dim(a, head_dim) != _rotary_dim(b, head_dim):
        return False
    (angles, factor), (others, other_factor) = frequencies(a, head_dim), frequencies(b, head_dim)
    return bool(np.allclose(angles, others, rtol=1e-4, atol=0)) and math.isclose(factor, other_factor, rel_tol=1e-4)


def require_rotation(model: PreTrainedModel, shape: Shape) -> None:
    """Raises Error unless the model's own tables of frequencies are those of the shape."""
    found = 0
    for name, module in model.named_modules():
        for prefix in ("", "full_attention_", "sliding_attention_"):
            table = getattr(module, prefix + "inv_freq", None)
            if not isinstance(table, torch.Tensor):
                continue
            found += 1
            rope = shape.local_rope if prefix == "sliding_attention_" else shape.rope
            angles, factor = frequencies(rope, shape.head_dim)
            theirs = table.detach().double().cpu().numpy()
            scaling = float(getattr(module, prefix + "attention_scaling", 1.0))
            if theirs.shape != angles.shape or not np.allclose(theirs, angles, rtol=1e-4, atol=0) \
                    or not math.isclose(factor, scaling, rel_tol=1e-4):
                raise refusal("unsupported", f"{name}: its {prefix}inv_freq are not those of the configuration's "
                                             "rope_parameters; were they rounded, by half() or bfloat16()?")
    if found == 0:
        raise refusal("unsupported", "a model without inv_freq: its rotation cannot be checked")


def channel_order(shape: Shape) -> torch.Tensor | None:
    """Channels of a head as the shape has them, by their numbers in transformers; None where they are the same."""
    if shape.rope.pairing == "half_split" or not shape.rope.enabled:
        return None
    rotary = _rotary_dim(shape.rope, shape.head_dim)
    pairs = torch.arange(rotary).reshape(2, rotary // 2).T.reshape(-1)
    return torch.cat([pairs, torch.arange(rotary, shape.head_dim)])


def attention_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The attention module of every layer."""
    config = text_config(model)
    key_module = FAMILIES[config.model_type].key_module
    found: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        if all(hasattr(module, name) for name in ("layer_idx", "q_proj", "v_proj", key_module)):
            if found.setdefault(module.layer_idx, module) is not module:
                raise refusal("unsupported", f"two attention modules of layer {module.layer_idx}")
    if sorted(found) != list(range(config.num_hidden_layers)):
        raise refusal("unsupported", f"attention modules with {key_module} in layers {sorted(found)}, expected in "
                                     f"{config.num_hidden_layers} layers")
    return [found[layer] for layer in range(config.num_hidden_layers)]


def hook_keys(model: PreTrainedModel, modules: list[torch.nn.Module],
              use: Callable[[int, torch.Tensor], None]) -> list[torch.utils.hooks.RemovableHandle]:
    """Calls use(layer, keys before RoPE), the tensor that the model goes on with, in every forward."""
    family = FAMILIES[text_config(model).model_type]

    def hook(layer: int) -> Callable[..., None]:
        return lambda module, arguments, output: use(layer, output)

    return [getattr(module, family.key_module).register_forward_hook(hook(layer))
            for layer, module in enumerate(modules)]


def token_rows(x: torch.Tensor, shape: Shape, heads_first: bool) -> torch.Tensor:
    """[batch, tokens, kv_heads, head_dim] from what a projection or a norm gives."""
    if heads_first:
        return x.transpose(1, 2)
    return x.reshape(x.shape[0], x.shape[1], shape.kv_heads, shape.head_dim)


def _samples(weight: torch.Tensor) -> bytes:
    flat = weight.detach().reshape(-1)
    step = max(1, flat.numel() // _HASHED_VALUES)
    return flat[::step].to(device="cpu", dtype=torch.float32).numpy().astype("<f4").tobytes()


def model_hash(model: PreTrainedModel) -> str:
    """A fingerprint: of the configuration's sizes and rotation, and of the names, sizes and some 4096 values, evenly
    spaced, of every weight below the head; 16 hexadecimal digits.

    The same on every device and in every dtype that holds the weights exactly. It is not the hash of a model's file.
    """
    config = text_config(model)
    first = attention_modules(model)[0]
    decoder = next(module for module in model.modules()
                   if any(layer is not None and first in layer.modules() for layer in getattr(module, "layers", [])))
    hashed = hashlib.sha256()
    sizes = {name: getattr(config, name, None) for name in _SHAPED}
    hashed.update(json.dumps([config.model_type, sizes], sort_keys=True, default=str).encode())
    for name, weight in sorted(decoder.named_parameters()):
        hashed.update(f"{name} {tuple(weight.shape)}\n".encode())
        hashed.update(_samples(weight))
    return hashed.hexdigest()[:16]
