"""What kvquant.hf reads of a transformers model."""

from __future__ import annotations

import kvquant
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import kvquant.hf
from hf_models import KINDS, WINDOW, tiny, tiny_config
from kvquant.hf._model import frequencies, require_rotation
from kvquant.hf._windows import mersenne_twister_64


@pytest.mark.parametrize("kind", KINDS)
def test_shape_has_the_models_rotation(kind: str) -> None:
    model = tiny(kind)
    shape = kvquant.hf.shape_of(model)
    assert (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim) == (3, 4, 2, 32)
    assert shape == kvquant.hf.shape_of(model.config)
    require_rotation(model, shape)
    local = {"mistral": [0, 1, 2], "qwen2-sliding": [1, 2], "gemma2": [0, 2], "gemma3": [0, 2]}.get(kind, [])
    assert list(shape.local_layers) == local and shape.window == (WINDOW if local else 0)


def test_gemma3s_layers_turn_by_their_own_frequencies() -> None:
    shape = kvquant.hf.shape_of(tiny("gemma3"))
    pairs = np.arange(16) / 16
    np.testing.assert_allclose(frequencies(shape.rope_of(1), 32)[0], 1e6 ** -pairs / 8, rtol=1e-5)
    np.testing.assert_allclose(frequencies(shape.rope_of(0), 32)[0], 1e4 ** -pairs, rtol=1e-5)


def test_yarns_attention_factor_is_transformers() -> None:
    both = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
            "mscale": 1.0, "mscale_all_dim": 0.5}
    for parameters in (both, {**both, "attention_factor": 1.25}, {k: v for k, v in both.items() if "mscale" not in k}):
        model = tiny("llama", rope_parameters=parameters)
        require_rotation(model, kvquant.hf.shape_of(model))


@pytest.mark.parametrize(("kind", "changes", "text"), [
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
     "'dynamic': its frequencies"),
    ("yarn", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": False,
                                  "original_max_position_embeddings": 128}}, "truncate = False"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
])
def test_what_a_cache_cannot_hold_is_named(kind: str, changes: dict[str, object], text: str) -> None:
    with pytest.raises(kvquant.Error, match=text) as raised:
        kvquant.hf.shape_of(tiny_config(kind, **changes))
    assert raised.value.code == "unsupported"


def test_other_types_of_models_are_refused() -> None:
    import transformers

    with pytest.raises(kvquant.Error, match="model_type 'gpt2', expected one of gemma2, gemma3_text, llama"):
        kvquant.hf.shape_of(transformers.GPT2Config())


def test_the_models_own_frequencies_are_checked() -> None:
    model = tiny("llama")
    shape = kvquant.hf.shape_of(model)
    model.model.rotary_emb.inv_freq *= 1.01
    with pytest.raises(kvquant.Error, match="model.rotary_emb: its inv_freq"):
        require_rotation(model, shape)


def test_hash_tells_models_apart() -> None:
    model = tiny("llama")
    same = kvquant.hf.model_hash(model)
    assert len(same) == 16 and same == kvquant.hf.model_hash(tiny("llama"))
    assert same == kvquant.hf.model_hash(model.model)  # without its head
    assert same != kvquant.hf.model_hash(tiny("llama3"))
    model.model.layers[2].self_attn.q_proj.bias = None
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight *= 1.001
    assert same != kvquant.hf.model_hash(model)


def test_random_numbers_are_cpps() -> None:
    numbers = mersenne_twister_64(5489)
    for _ in range(9999):
        next(numbers)
    assert next(numbers) == 9981545732273789042  # what the C++ standard requires, [rand.predef]


class Words:
    """A tokenizer of numbers."""

    def __init__(self, bos: int | None) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str, add_special_tokens: bool = True, **others: object) -> dict[str, list[int]]:
        begins = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": begins + [int(word) if word.isdigit() else 7 for word in text.split()]}


def test_windows() -> None:
    text = " ".join(str(i) for i in range(100))
    windows = kvquant.hf.choose_windows(Words(None), text, samples=5, context=10)
    first = next(mersenne_twister_64(0)) % 91
    assert windows[0] == list(range(first, first + 10))
    assert len(windows) == 5 and all(len(window) == 10 for window in windows) and windows[0] != windows[1]
    with_bos = kvquant.hf.choose_windows(Words(1), text, samples=2, context=10, seed=4)
    assert all(window[0] == 1 and len(window) == 10 for window in with_bos)
    assert kvquant.hf.choose_windows(Words(None), ["1 2", "3"], samples=1, context=3) == [[1, 2, 3]]
    with pytest.raises(ValueError, match="3 tokens, expected at least one window of 4"):
        kvquant.hf.choose_windows(Words(None), "1 2 3", samples=1, context=4)
