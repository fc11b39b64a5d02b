"""Artifacts of the authors of KVQuant as ours.

    python -m kvquant.convert QUANTIZERS.pickle --config config.json -o model.kvq

Their calibration (quant/llama_simquant.py --quantize --nuq) leaves a pickle: for each `…layers.N.self_attn.k_proj` and
`v_proj` the upper and lower thresholds, the centroids, and with --norm scale and offset of Q-Norm. Carried over are the
key channels' thresholds as ranges, and of both sides the centroids and Q-Norm. Not carried over are the values'
thresholds, which belong to the calibration's tokens (both libraries find a token's range when it comes), and what the pickle
does not say: the shape of the model, the fraction of outliers and the number of exact tokens have to be given. No
sensitivities are there, so the slots of a page go to the greatest residuals.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvquant._core import Artifact, Origin, Rope, Shape
from kvquant._errors import Error
from kvquant.authors_pickle import read_pickle
from kvquant.models import shape_from_config

Floats = NDArray[np.float32]

_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:\w+\.)*([kv])_proj$")


@dataclass(frozen=True)
class Side:
    """One projection's quantizer."""

    upper: Floats  # of keys [kv_channels], of values [calibration tokens]
    lower: Floats
    centroids: Floats  # [2**bits], rising
    norm_scale: float = 1.0
    norm_offset: float = 0.0

    @property
    def decoded(self) -> Floats:
        """[2**bits]: what the centroids read as."""
        return np.asarray(self.centroids.astype(np.float64) * self.norm_scale + self.norm_offset, np.float32)

    @property
    def q_norm(self) -> bool:
        return (self.norm_scale, self.norm_offset) != (1.0, 0.0)


@dataclass(frozen=True)
class Quantizers:
    """What one of their pickles holds, layer by layer."""

    keys: list[Side]
    values: list[Side]

    @property
    def bits(self) -> int:
        return len(self.keys[0].centroids).bit_length() - 1

    @property
    def channels(self) -> int:
        return len(self.keys[0].upper)


def _floats(name: str, what: str, value: Any) -> Floats:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.size == 0 or not np.isfinite(array.astype(np.float64)).all():
        raise ValueError(f"{name}: {what} of type {array.dtype} and shape {array.shape}, expected finite numbers")
    return array.astype(np.float32).reshape(-1)


def _side(name: str, entry: Any) -> Side:
    if isinstance(entry, Sequence) and len(entry) == 2:
        raise ValueError(f"{name}: thresholds without centroids, expected a calibration with --nuq")
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) not in (3, 5):
        raise ValueError(f"{name}: expected thresholds, centroids and perhaps a norm: a tuple of 3 or 5")
    upper, lower = _floats(name, "upper thresholds", entry[0]), _floats(name, "lower thresholds", entry[1])
    if upper.shape != lower.shape or (lower > upper).any():
        raise ValueError(f"{name}: {upper.size} upper and {lower.size} lower thresholds, expected as many and none below")
    if not isinstance(entry[2], Sequence) or len(entry[2]) != 1:
        raise ValueError(f"{name}: expected a list of one array of centroids")
    centroids = np.sort(_floats(name, "centroids", entry[2][0]))
    if centroids.size not in (4, 8, 16):
        raise ValueError(f"{name}: {centroids.size} centroids, expected 4, 8 or 16 (2, 3 or 4 bits)")
    if len(entry) == 3:
        return Side(upper, lower, centroids)
    scale, offset = _floats(name, "Q-Norm's scale", entry[3]), _floats(name, "Q-Norm's offset", entry[4])
    if scale.size != 1 or offset.size != 1 or scale[0] <= 0:
        raise ValueError(f"{name}: a Q-Norm of scale {scale} and offset {offset}, expected a number above 0 and a number")
    return Side(upper, lower, centroids, float(scale[0]), float(offset[0]))


def quantizers_from(pickled: Any) -> Quantizers:
    """From what `authors_pickle.read_pickle` read. ValueError naming the layer that is missing or differs."""
    if not isinstance(pickled, Mapping):
        raise ValueError("expected a dictionary of quantizers by the names of projections")
    sides: dict[str, dict[int, Side]] = {"k": {}, "v": {}}
    for name, entry in pickled.items():
        found = _NAME.search(str(name))
        if not found:
            raise ValueError(f"{name!r}: expected names such as model.layers.0.self_attn.k_proj")
        sides[found[2]][int(found[1])] = _side(str(name), entry)
    layers = max((len(of) for of in sides.values()), default=0)
    for side, of in sides.items():
        missing = sorted(set(range(layers)) - set(of))
        if missing or layers == 0:
            raise ValueError(f"no {side}_proj of layer {missing[0] if missing else 0}, expected one of every layer")
    both = [[sides[side][layer] for layer in range(layers)] for side in "kv"]
    for layer in range(layers):
        if {len(of[layer].centroids) for of in both} != {len(both[0][0].centroids)}:
            raise ValueError(f"layer {layer}: another number of centroids than layer 0's keys")
        if both[0][layer].upper.shape != both[0][0].upper.shape:
            raise ValueError(f"layer {layer}: {both[0][layer].upper.size} key channels, layer 0 has "
                             f"{both[0][0].upper.size}")
    return Quantizers(*both)


def read(path: str | Path) -> Quantizers:
    """One of their pickles; nothing that it says is executed. ValueError naming the file and what is wrong."""
    pickled = read_pickle(path)
    try:
        return quantizers_from(pickled)
    except ValueError as failure:
        raise ValueError(f"{path}: {failure}") from None


def to_artifact(quantizers: Quantizers, shape: Shape, *, outliers: float | tuple[float, float] = 0.01, sinks: int = 1,
                int8_levels: bool = True, weights: str = "fisher-unscaled", origin: Origin | None = None) -> Artifact:
    """The same as an artifact of ours.

    `shape` is that of their model; `outliers` (1 - --sparsity-threshold) and `sinks` (--first_few_fp16) those of their
    calibration. `int8_levels` rounds what codes read as to a grid that integers hold, which the fastest kernels want; with
    False they are theirs to the bit. `weights` is what is told of the fit: "fisher-unscaled" as their code has it, "none"
    without --fisher.
    """
    if (shape.layers, shape.kv_channels) != (len(quantizers.keys), quantizers.channels):
        raise ValueError(f"quantizers of {len(quantizers.keys)} layers x {quantizers.channels} channels, the shape has "
                         f"{shape.layers} x {shape.kv_channels}")

    def stacked(sides: list[Side], name: str) -> Floats:
        return np.stack([getattr(side, name) for side in sides])

    def decoded(sides: list[Side]) -> Floats | None:
        return stacked(sides, "decoded") if any(side.q_norm for side in sides) else None

    ranges = np.stack([stacked(quantizers.keys, "lower"), stacked(quantizers.keys, "upper")], axis=-1)
    return Artifact.from_codebooks(shape, quantizers.bits, ranges, stacked(quantizers.keys, "centroids"),
                                   stacked(quantizers.values, "centroids"), key_decode_levels=decoded(quantizers.keys),
                                   value_decode_levels=decoded(quantizers.values), outliers=outliers, sinks=sinks,
                                   int8_levels=int8_levels, weights=weights, origin=origin or Origin())


def _shape(options: argparse.Namespace, quantizers: Quantizers) -> Shape:
    if options.config is not None:
        return shape_from_config(options.config)
    if options.head_dim is None:
        raise ValueError("expected --config, or --head-dim with --q-heads and --theta where they differ from Llama's")
    kv_heads, rest = divmod(quantizers.channels, options.head_dim)
    if rest:
        raise ValueError(f"--head-dim {options.head_dim}: no divisor of {quantizers.channels} key channels")
    rope = Rope(theta=options.theta, scaling="none" if options.linear_factor == 1 else "linear",
                factor=options.linear_factor)
    return Shape(len(quantizers.keys), options.q_heads or kv_heads, kv_heads, options.head_dim, rope)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvquant.convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pickle", type=Path, metavar="QUANTIZERS.pickle")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="artifact to write")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the model's config.json (Hugging Face)")
    parser.add_argument("--head-dim", type=int, metavar="N", help="channels of a head, where there is no --config")
    parser.add_argument("--q-heads", type=int, metavar="N", help="as many as KV heads if not given")
    parser.add_argument("--theta", type=float, default=10000.0, metavar="X", help="base of the rotation: %(default)s")
    parser.add_argument("--linear-factor", type=float, default=1.0, metavar="X",
                        help="linear scaling of positions (their --maxseqlen beyond the model's own): %(default)s")
    parser.add_argument("--outliers", type=float, default=0.01, metavar="X",
                        help="fraction kept sparse, 1 - their --sparsity-threshold; 0 without --include_sparse: %(default)s")
    parser.add_argument("--sinks", type=int, default=1, metavar="N",
                        help="first tokens kept exact, their --first_few_fp16: %(default)s")
    parser.add_argument("--weights", default="fisher-unscaled", choices=["fisher-unscaled", "none"],
                        help="none where they calibrated without --fisher: %(default)s")
    parser.add_argument("--levels", default="int8", choices=["int8", "float"],
                        help="what codes read as: rounded so that integers hold it, or to the bit: %(default)s")
    parser.add_argument("--model-name", default="", metavar="TEXT")
    parser.add_argument("--model-hash", default="", metavar="TEXT", help="what identifies the model to its runtime")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        quantizers = read(options.pickle)
        artifact = to_artifact(quantizers, _shape(options, quantizers), outliers=options.outliers, sinks=options.sinks,
                               int8_levels=options.levels == "int8", weights=options.weights,
                               origin=Origin(model_name=options.model_name, model_hash=options.model_hash))
        artifact.save(options.output)
    except (Error, ValueError, OSError) as failure:
        print(f"kvquant.convert: {failure}", file=sys.stderr)
        return 1
    dropped = sum(side.upper.size for side in quantizers.values)
    print(f"{options.output}: {artifact.label}, {artifact.shape.layers} layers x {artifact.shape.kv_heads} KV heads x "
          f"{artifact.shape.head_dim}, Q-Norm {'on' if artifact.q_norm else 'off'}, hash {artifact.hash}")
    print(f"not carried over: {dropped} thresholds of the calibration tokens' values; a token's range is found online")
    return 0


if __name__ == "__main__":
    sys.exit(main())
