"""kvquant.hf.calibrate: gradients of keys and values, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Callable

import kvquant
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import kvquant.hf
from hf_models import logits_of, tiny, tokens
from transformers import PreTrainedModel

KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
SINKS = 1


def loss_with(model: PreTrainedModel, ids: torch.Tensor, layer: int, side: str,
              change: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The mean cross-entropy of a window with a layer's keys before RoPE, or values, changed: [tokens, heads, dim]."""
    attention = model.model.layers[layer].self_attn
    normed = hasattr(attention, "k_norm")
    source = attention.v_proj if side == "value" else attention.k_norm if normed else attention.k_proj
    heads_first = side == "key" and model.config.model_type == "gemma3_text"

    def hook(module: object, arguments: object, output: torch.Tensor) -> torch.Tensor:
        rows = output.transpose(1, 2) if heads_first else output
        changed = change(rows.reshape(1, -1, 2, 32)[0]).reshape(rows.shape)
        return changed.transpose(1, 2) if heads_first else changed

    handle = source.register_forward_hook(hook)
    try:
        logits = logits_of(model, ids)[0].double()
    finally:
        handle.remove()
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_sensitivity_is_the_sum_of_squared_derivatives(kind: str) -> None:
    """Of a few channels, against differences of the loss, token by token."""
    model = tiny(kind).double()
    ids = tokens(10)
    made = kvquant.hf.calibrate(tiny(kind), windows=ids.tolist(), format="nuq3", sinks=SINKS)
    step = 1e-2  # norms are in single precision
    for layer, side, channel in [(0, "key", 37), (2, "value", 2)]:
        derivatives = []
        for token in range(SINKS, ids.shape[1]):
            def change(x: torch.Tensor, by: float, token: int = token, channel: int = channel) -> torch.Tensor:
                x = x.clone()
                x[token, channel // 32, channel % 32] += by
                return x

            up, down = (loss_with(model, ids, layer, side, lambda x, by=by: change(x, by)) for by in (step, -step))
            derivatives.append((up - down) / (2 * step))
        expected = float(np.square(derivatives).sum())
        assert made.sensitivity(layer, side)[channel] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_are_those_of_keys_before_rope(kind: str) -> None:
    model = tiny(kind)
    ids = tokens(64)
    seen: dict[int, torch.Tensor] = {}

    def look(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def keep(x: torch.Tensor) -> torch.Tensor:
            seen[layer] = x.clone()
            return x
        return keep

    made = kvquant.hf.calibrate(model, windows=ids.tolist(), format="nuq4", outliers=0.0, weights="none")
    for layer in range(3):
        loss_with(model, ids, layer, "key", look(layer))
        rows = seen[layer][SINKS:].reshape(-1, 64).numpy()
        ranges = made.key_ranges(layer)
        np.testing.assert_allclose(ranges[:, 0], rows.min(axis=0), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(ranges[:, 1], rows.max(axis=0), rtol=2e-3, atol=1e-3)


def test_the_model_is_as_it_was() -> None:
    model = tiny("llama").train()
    model.model.norm.weight.requires_grad_(False)
    ids = tokens(40, rows=2)
    kvquant.hf.calibrate(model, windows=ids.tolist())
    assert model.training and not model.model.norm.weight.requires_grad
    assert model.lm_head.weight.requires_grad and all(weight.grad is None for weight in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    model, windows = tiny("qwen3"), tokens(80, rows=4).tolist()
    whole = kvquant.hf.collect(model, windows=windows)
    parts = [kvquant.hf.collect(model, windows=windows[i:i + 2], ranges_of=whole, max_tokens=320) for i in (0, 2)]
    parts[0].merge(parts[1])
    a, b = whole.fit("nuq3"), parts[0].fit("nuq3")
    for layer in range(3):
        for side in ("key", "value"):
            np.testing.assert_allclose(a.sensitivity(layer, side), b.sensitivity(layer, side), rtol=1e-5)
            np.testing.assert_allclose(a.levels(layer, side), b.levels(layer, side), atol=1e-4)


def test_an_interleaved_artifact_has_the_channels_of_gguf() -> None:
    model, windows = tiny("llama"), tokens(60, rows=2).tolist()
    split = kvquant.hf.calibrate(model, windows=windows)
    interleaved = kvquant.hf.calibrate(model, windows=windows, pairing="interleaved")
    assert (split.shape.rope.pairing, interleaved.shape.rope.pairing) == ("half_split", "interleaved")
    order = np.arange(64).reshape(2, 2, 16).transpose(0, 2, 1).reshape(-1)
    for layer in range(3):
        np.testing.assert_array_equal(interleaved.key_ranges(layer), split.key_ranges(layer)[order])
        np.testing.assert_array_equal(interleaved.sensitivity(layer, "key"), split.sensitivity(layer, "key")[order])
        np.testing.assert_array_equal(interleaved.sensitivity(layer, "value"), split.sensitivity(layer, "value"))


def test_formats_and_provenance(tmp_path: object) -> None:
    model, windows = tiny("llama"), tokens(80, rows=2).tolist()
    steps: list[tuple[int, int]] = []
    made = kvquant.hf.calibrate(model, windows=windows, format="adaptive", bits=2.5, model_hash="abc",
                                progress=lambda done, all_of_them: steps.append((done, all_of_them)))
    assert made.spec == "adaptive" and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    origin = made.origin
    assert (origin.model_hash, origin.samples, origin.context) == ("abc", 2, 80)
    plain = kvquant.hf.calibrate(model, windows=windows, format="nuq2", weights="activation", outliers=0.02)
    assert plain.weights == "activation" and plain.outliers == (0.02, 0.02)
    assert plain.origin.model_hash == kvquant.hf.model_hash(model)


def test_what_cannot_be_calibrated_is_refused() -> None:
    model = tiny("llama")
    for choices, text in [({}, "expected a tokenizer and texts, or windows"),
                          ({"windows": [[1, 2]]}, "expected 3 tokens"), ({"windows": []}, "windows: 0")]:
        with pytest.raises(ValueError, match=text):
            kvquant.hf.collect(model, **choices)
    with pytest.raises(kvquant.Error, match="float16"):
        kvquant.hf.collect(tiny("llama").half(), windows=[[1, 2, 3, 4]])
    with kvquant.hf.attach(model, kvquant.Artifact.exact(kvquant.hf.shape_of(model))):
        with pytest.raises(kvquant.Error, match="detach.. it before"):
            kvquant.hf.collect(model, windows=[[1, 2, 3, 4]])
    assert all(weight.requires_grad for weight in model.parameters())
