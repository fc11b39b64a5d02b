"""Shapes of models from what describes them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvquant._core import Rope, Shape

_SCALINGS = {"linear": "linear", "llama3": "llama3", "yarn": "yarn"}


def rope_from_config(config: Mapping[str, Any]) -> Rope:
    """The rotation that a Hugging Face configuration describes. ValueError naming what is not known of it."""
    # Newer configurations have all in rope_parameters, older ones theta beside rope_scaling.
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    choices: dict[str, Any] = {"theta": float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)}
    partial = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        choices["rotary_dim"] = int(head_dim_of(config) * partial)
    if kind != "default":
        if kind not in _SCALINGS:
            raise ValueError(f"rope_scaling: type {kind!r}, expected one of default, {', '.join(_SCALINGS)}")
        choices |= {"scaling": _SCALINGS[kind], "factor": float(scaling["factor"])}
    if kind in ("llama3", "yarn"):
        context = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        choices["original_context"] = int(context)
    if kind == "llama3":
        choices["low_frequency_factor"] = float(scaling["low_freq_factor"])
        choices["high_frequency_factor"] = float(scaling["high_freq_factor"])
    if kind == "yarn":
        choices["beta_fast"] = float(scaling.get("beta_fast") or 32)
        choices["beta_slow"] = float(scaling.get("beta_slow") or 1)
        choices["attention_factor"] = float(scaling.get("attention_factor") or 0)
    return Rope(**choices)


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Channels of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def shape_from_config(config: Mapping[str, Any] | str | Path) -> Shape:
    """The shape of a Llama-like model from its Hugging Face config.json, a path of it or what it holds.

    ValueError for models with layers that see a window alone, or a rotation that is not known.
    """
    if isinstance(config, (str, Path)):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
        assert isinstance(config, Mapping)
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ValueError(f"sliding_window of {config['sliding_window']} tokens, expected a model whose layers see all")
    try:
        heads = int(config["num_attention_heads"])
        return Shape(int(config["num_hidden_layers"]), heads, int(config.get("num_key_value_heads") or heads),
                     head_dim_of(config), rope_from_config(config))
    except KeyError as missing:
        raise ValueError(f"config: has no {missing}, expected a Llama-like model's config.json") from None
