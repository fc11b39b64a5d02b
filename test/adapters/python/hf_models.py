"""Tiny random models of transformers, one of each type that kvquant.hf knows, and tokens for them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

torch.set_num_threads(1)  # models are tiny
VOCABULARY, WINDOW = 97, 40
# What models call their cache: another name in later versions.
CACHE = next(name for name in ("cache", "past_key_values")
             if name in inspect.signature(transformers.LlamaModel.forward).parameters)
_COMMON = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
           "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 3, "max_position_embeddings": 512,
           "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
           "attn_implementation": "eager"}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama3": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "yarn": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-sliding": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {**_MIXED, "attn_logit_softcapping": None, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3TextConfig", {**_MIXED, "query_pre_attn_scalar": 24, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
}
KINDS = sorted(_CONFIGS)


def tiny_config(kind: str, **changes: Any) -> transformers.PreTrainedConfig:
    name, own = _CONFIGS[kind]
    return getattr(transformers, name)(**{**_COMMON, **own, **changes})


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """In evaluation, in float32."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    for name, weight in model.named_parameters():  # norms begin as ones, which would hide where keys are taken
        if name.endswith("norm.weight"):
            weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


def tokens(count: int, rows: int = 1, seed: int = 5) -> torch.Tensor:
    """[rows, count]"""
    return torch.randint(3, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))


def logits_of(model: PreTrainedModel, ids: torch.Tensor, **choices: Any) -> torch.Tensor:
    """[rows, tokens, vocabulary] without a cache of ours."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **choices).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|"""
    return float((a - b).norm() / b.norm())
