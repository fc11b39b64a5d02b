"""Calibration of a transformers model: the two passes of `kvquant calibrate`, through autograd."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence as Numbers
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from kvquant._core import Artifact, Calibrator, Origin, Shape
from kvquant.hf._model import (
    FAMILIES,
    attention_modules,
    channel_order,
    hook_keys,
    model_hash as fingerprint,
    refusal,
    require_rotation,
    shape_of,
    text_config,
    token_rows,
)
from kvquant.hf._windows import as_one_text, choose_windows, text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kvquant.typing import Array

Observe = Callable[[int, torch.Tensor, torch.Tensor], None]  # layer, keys before RoPE, values, as the model has them
_SIDES = ("keys", "values")


class _Watched:
    """The keys and values of a model while it runs, and their gradients."""

    def __init__(self, model: PreTrainedModel, shape: Shape) -> None:
        self.model, self.shape = model, shape
        self.modules = attention_modules(model)
        self._order = channel_order(shape)
        self._heads_first = FAMILIES[text_config(model).model_type].heads_first

    @contextlib.contextmanager
    def hooks(self, use: Observe) -> Iterator[None]:
        """Calls use(layer, keys, values) in every forward, once for each layer."""
        keys: dict[int, torch.Tensor] = {}
        values: dict[int, torch.Tensor] = {}

        def see(mine: dict[int, torch.Tensor], layer: int, x: torch.Tensor) -> None:
            mine[layer] = x
            if layer in keys and layer in values:
                use(layer, keys.pop(layer), values.pop(layer))

        def value_hook(layer: int) -> Callable[..., None]:
            return lambda module, arguments, output: see(values, layer, output)

        handles = hook_keys(self.model, self.modules, lambda layer, x: see(keys, layer, x))
        handles += [it.v_proj.register_forward_hook(value_hook(layer)) for layer, it in enumerate(self.modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, side: str, x: torch.Tensor) -> Array:
        """[tokens, kv_heads, head_dim] of one window, as the artifact has its channels."""
        of_keys = side == "keys"
        rows = token_rows(x, self.shape, self._heads_first and of_keys)[0]
        rows = rows.detach().to(device="cpu", dtype=torch.float32)
        return (rows[..., self._order] if of_keys and self._order is not None else rows).contiguous()


@contextlib.contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation, without gradients of weights, but with those of all that comes of the embeddings."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    training = model.training
    for weight in learning:
        weight.requires_grad_(False)
    model.eval()
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, output: output.requires_grad_() if torch.is_grad_enabled() else output)
    try:
        yield
    finally:
        handle.remove()
        model.train(training)
        for weight in learning:
            weight.requires_grad_(True)


def _run(model: PreTrainedModel, window: Numbers[int]) -> torch.Tensor:
    """Logits [tokens, vocabulary]."""
    ids = torch.tensor([list(window)], device=model.get_input_embeddings().weight.device)
    return model(input_ids=ids, use_cache=False).logits[0]


def _loss(logits: torch.Tensor, window: Numbers[int]) -> torch.Tensor:
    """The mean cross-entropy of a window's predictions, in nats."""
    targets = torch.tensor(list(window)[1:], device=logits.device)
    return torch.nn.functional.cross_entropy(logits[:-1].float(), targets)


def _observe_gradients(watched: _Watched, statistics: Calibrator, window: Numbers[int]) -> None:
    """One window of the second pass. A layer's statistics are taken as soon as its gradients are there."""
    waiting: dict[tuple[int, str], tuple[torch.Tensor, Array]] = {}
    done: set[int] = set()

    def take(layer: int, side: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
        waiting[layer, side] = (x, watched.rows(side, gradient.float().square()))
        if all((layer, it) in waiting for it in _SIDES):
            (k, k_squared), (v, v_squared) = (waiting.pop((layer, it)) for it in _SIDES)
            statistics.observe(layer, watched.rows("keys", k), watched.rows("values", v), k_squared, v_squared)
            done.add(layer)

    def watch(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for side, x in zip(_SIDES, (keys, values), strict=True):
            x.register_hook(lambda gradient, side=side, x=x.detach(): take(layer, side, x, gradient))

    with torch.enable_grad(), watched.hooks(watch):
        loss = _loss(_run(watched.model, window), window)
        if not math.isfinite(loss.item()):
            raise refusal("bad_value", f"the loss of a window is {loss.item()}")
        loss.backward()
    if len(done) != watched.shape.layers:
        raise refusal("unsupported", f"gradients came to {len(done)} of {watched.shape.layers} layers")


def _require_calibratable(model: PreTrainedModel, gradients: bool) -> None:
    if text_config(model)._attn_implementation == "kvquant":
        raise refusal("bad_value", "the model is attached to an artifact: detach() it before it is calibrated")
    if gradients and any(weight.dtype == torch.float16 for weight in model.parameters()):
        raise refusal("unsupported", "a model in float16, where gradients vanish; load it in bfloat16 or float32")


def collect(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None,
            texts: str | Iterable[str] | None = None, *, samples: int = 16, context: int = 2048, seed: int = 0,
            windows: Iterable[Numbers[int]] | None = None, outliers: float | tuple[float, float] = 0.01,
            sinks: int = 1, adaptive: bool = False, gradients: bool = True, ranges_of: Calibrator | None = None,
            max_tokens: int | None = None, pairing: str = "half_split", model_hash: str | None = None,
            progress: Callable[[int, int], None] | None = None) -> Calibrator:
    """Statistics of a model's keys and values, from which `fit` makes artifacts; `merge` adds those of other runs.

    Windows are chosen from texts as `kvquant calibrate` does (samples, context, seed), or given as lists of token ids.
    Each is run twice: for the ranges of channels, then backwards from the mean cross-entropy, with weights frozen.
    gradients: False saves the way back, and leaves fit(weights="activation" or "none"). ranges_of: others' ranges in
    place of the first pass, for statistics that are to be merged; max_tokens: of all of them together, where there are
    others. pairing, model_hash: as of `shape_of` and `attach`, for artifacts that serve the same model elsewhere.
    progress: called with windows done and windows in all, passes counted one by one.
    """
    _require_calibratable(model, gradients)
    shape = shape_of(model, pairing=pairing)
    require_rotation(model, shape_of(model))
    text = as_one_text(texts) if texts is not None else None
    if windows is not None:
        chosen = [list(window) for window in windows]
    elif tokenizer is not None and text is not None:
        chosen = choose_windows(tokenizer, text, samples=samples, context=context, seed=seed)
    else:
        raise ValueError("collect: expected a tokenizer and texts, or windows")
    shortest = min((len(window) for window in chosen), default=0)
    if shortest < sinks + 2:
        raise ValueError(f"windows: {len(chosen)}, the shortest of {shortest} tokens, expected {sinks + 2} tokens or "
                         "more: the sinks, one to learn from and one to predict")
    origin = Origin(model_name=text_config(model).name_or_path or type(model).__name__,
                    model_hash=model_hash or fingerprint(model), text_hash=text_hash(text) if text is not None else "",
                    samples=len(chosen), context=max(len(window) for window in chosen), seed=seed)
    room = max_tokens if max_tokens is not None else sum(len(window) for window in chosen)
    statistics = Calibrator(shape, max_tokens=room, outliers=outliers, sinks=sinks, adaptive=adaptive, origin=origin)
    _gather(_Watched(model, shape), statistics, chosen, gradients, ranges_of, progress or (lambda *counts: None))
    return statistics


def _gather(watched: _Watched, statistics: Calibrator, windows: list[list[int]], gradients: bool,
            ranges_of: Calibrator | None, progress: Callable[[int, int], None]) -> None:
    """Both passes."""
    passes = 2 if ranges_of is None else 1

    def rows_of(keys: torch.Tensor, values: torch.Tensor) -> tuple[Array, Array]:
        return watched.rows("keys", keys), watched.rows("values", values)

    with _frozen(watched.model):
        if ranges_of is not None:
            statistics.use_ranges_of(ranges_of)
        else:
            with torch.no_grad(), watched.hooks(
                    lambda layer, k, v: statistics.observe_range(layer, *rows_of(k, v))):
                for done, window in enumerate(windows, 1):
                    _run(watched.model, window)
                    progress(done, passes * len(windows))
            statistics.freeze_ranges()
        for done, window in enumerate(windows, 1):
            if gradients:
                _observe_gradients(watched, statistics, window)
            else:
                with torch.no_grad(), watched.hooks(lambda layer, k, v: statistics.observe(layer, *rows_of(k, v))):
                    _run(watched.model, window)
            progress((passes - 1) * len(windows) + done, passes * len(windows))


def calibrate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None,
              texts: str | Iterable[str] | None = None, *, format: str = "nuq3", bits: float | None = None,
              weights: str = "fisher", q_norm: bool = False, int8_levels: bool = True, channel_levels: str = "shared",
              **choices: Any) -> Artifact:
    """An artifact for a model, as `kvquant calibrate` makes it from a GGUF file.

    format to channel_levels as of `Calibrator.fit`, choices as of `collect`. The artifact belongs to the model of
    `model_hash`; `save` it.
    """
    statistics = collect(model, tokenizer, texts, adaptive=format.startswith("adaptive"),
                         gradients=weights.startswith("fisher"), **choices)
    return statistics.fit(format, bits=bits, weights=weights, q_norm=q_norm, int8_levels=int8_levels,
                          channel_levels=channel_levels)
