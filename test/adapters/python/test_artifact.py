"""Artifacts: what they say, what they do to a model's tokens, and codebooks from elsewhere."""

import pathlib

import kvquant
import numpy as np
import pytest
from conftest import SHAPE, TOKENS, Window
from kvquant import eval


def test_an_artifact_says_what_it_is(artifact: kvquant.Artifact, tmp_path: pathlib.Path) -> None:
    assert (artifact.spec, artifact.label, artifact.sinks, artifact.keys) == ("nuq3", "nuq3-1%", 1, "pre_rope")
    assert (artifact.origin.model_name, artifact.origin.samples, artifact.origin.context) == ("small", 3, TOKENS)
    assert artifact.shape == SHAPE and "nuq3-1%" in repr(artifact)
    assert artifact.weights == "fisher" and not artifact.q_norm
    assert 3.5 < artifact.bits < 4.5 and artifact.code_bits == (3, 3)
    artifact.save(tmp_path / "a.kvq")
    loaded = kvquant.load(tmp_path / "a.kvq")
    assert loaded.hash == artifact.hash != ""
    for layer in range(SHAPE.layers):
        ranges = loaded.key_ranges(layer)
        assert ranges.shape == (SHAPE.kv_channels, 2) and (ranges[:, 0] < ranges[:, 1]).all()
        np.testing.assert_array_equal(ranges, artifact.key_ranges(layer))
        for side in ("key", "value"):
            levels = loaded.levels(layer, side)
            assert levels.shape == (8,) and (np.diff(levels) > 0).all()
            assert loaded.sensitivity(layer, side).shape == (SHAPE.kv_channels,)
            assert loaded.widths(layer, side).size == 0
    with pytest.raises(ValueError, match='side: "both", expected one of "key", "value"'):
        artifact.levels(0, "both")
    with pytest.raises(IndexError, match="layer 2"):
        artifact.key_ranges(2)


def test_files_that_are_no_artifacts(artifact: kvquant.Artifact, calibrator: kvquant.Calibrator,
                                     tmp_path: pathlib.Path) -> None:
    artifact.save(tmp_path / "a.kvq")
    whole = (tmp_path / "a.kvq").read_bytes()
    calibrator.save(tmp_path / "all.stats")
    for name, content in {"cut": whole[:-1], "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "empty": b"",
                          "statistics": (tmp_path / "all.stats").read_bytes(), "pickle": b"\x80\x04N."}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kvquant.Error, match=name) as refused:
            kvquant.load(tmp_path / name)
        assert refused.value.code == "bad_file"
    with pytest.raises(kvquant.Error):
        artifact.save(tmp_path / "no" / "folder.kvq")


def test_a_foreign_artifact_is_refused(artifact: kvquant.Artifact) -> None:
    artifact.require_made_for("by another name", "1234", SHAPE)
    with pytest.raises(kvquant.Error, match='made for "small".*the model is "large"') as refused:
        artifact.require_made_for("large", "5678", SHAPE)
    assert refused.value.code == "bad_format"


def test_more_bits_lose_less(calibrator: kvquant.Calibrator, windows: list[Window]) -> None:
    k, v = windows[0].k[1], windows[0].v[1]
    errors = []
    for format in ("nuq2", "nuq3", "nuq4", "int8", "f16"):
        rounded = calibrator.fit(format).round_trip(1, k, v)
        assert all(x.shape == k.shape and x.dtype == np.float32 for x in rounded)
        errors.append([eval.decibels(x, y) for x, y in zip((k, v), rounded)])
    assert (np.diff(np.array(errors), axis=0) < -4).all()
    given = k.copy()
    calibrator.fit("nuq2").round_trip(1, given, v)
    np.testing.assert_array_equal(given, k)
    flat = calibrator.fit("nuq3").round_trip(1, k.reshape(TOKENS, -1), v.reshape(TOKENS, -1))
    np.testing.assert_array_equal(flat[0].reshape(k.shape), calibrator.fit("nuq3").round_trip(1, k, v)[0])


def nearest(x: np.ndarray, levels: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    return decoded[np.abs(x[..., None] - levels).argmin(axis=-1)]


@pytest.mark.parametrize("q_norm", [False, True])
def test_the_round_trip_is_the_papers(calibrator: kvquant.Calibrator, windows: list[Window], q_norm: bool) -> None:
    """Section 3 of the paper in NumPy: keys by channel, values by token, what lies beyond the ranges exact."""
    artifact = calibrator.fit("nuq3", q_norm=q_norm)
    k, v = windows[0].k[0].reshape(TOKENS, -1), windows[0].v[0].reshape(TOKENS, -1)
    k_hat, v_hat = artifact.round_trip(0, k, v)
    low, high = artifact.key_ranges(0).T.astype(np.float64)
    scale, zero = (high - low) / 2, (high + low) / 2
    dense = nearest((k - zero) / scale, artifact.levels(0, "key", encode=True), artifact.levels(0, "key")) * scale + zero
    outside = (k < low) | (k > high)
    assert 0.002 < outside.mean() < 0.05
    np.testing.assert_allclose(k_hat[~outside], dense[~outside], atol=1e-4)
    np.testing.assert_allclose(k_hat[outside], k[outside], atol=2e-2)
    # 1 % of 64 channels is less than one a side: every value is dense.
    low, high = (f(v, axis=1, keepdims=True).astype(np.float16).astype(np.float64) for f in (np.min, np.max))
    scale, zero = (high - low) / 2, (high + low) / 2
    dense = nearest((v - zero) / scale, artifact.levels(0, "value", encode=True), artifact.levels(0, "value"))
    agree = np.isclose(v_hat, dense * scale + zero, atol=1e-4)
    assert agree.mean() > 0.999  # but for ties that float and double settle otherwise


def test_codebooks_from_elsewhere(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    ranges = np.stack([artifact.key_ranges(layer) for layer in range(2)])
    keys, values = (np.stack([artifact.levels(layer, side) for layer in range(2)]) for side in ("key", "value"))
    made = kvquant.Artifact.from_codebooks(SHAPE, 3, ranges, keys, values, origin=artifact.origin)
    assert made.label == "nuq3-1%" and made.hash
    for a, b in zip(made.round_trip(1, windows[0].k[1], windows[0].v[1]),
                    artifact.round_trip(1, windows[0].k[1], windows[0].v[1])):
        np.testing.assert_array_equal(a, b)
    for changed, said in ((lambda: (ranges[:1], keys, values), r"key_ranges: shape \(1, 64, 2\), expected \(2, 64, 2\)"),
                          (lambda: (ranges, keys[:, :4], values), r"key_levels: shape \(2, 4\), expected \(2, 8\)"),
                          (lambda: (ranges, keys, values[:, ::-1]), "contiguous")):
        with pytest.raises(ValueError, match=said):
            kvquant.Artifact.from_codebooks(SHAPE, 3, *changed())
    for changed in ((ranges[:, :, ::-1].copy(), keys, values), (ranges, keys[:, ::-1].copy(), values),
                    (np.full_like(ranges, np.nan), keys, values), (ranges, np.full_like(keys, np.nan), values)):
        with pytest.raises(kvquant.Error):
            kvquant.Artifact.from_codebooks(SHAPE, 3, *changed)
    with pytest.raises(ValueError, match="bits: 5, expected 2, 3 or 4"):
        kvquant.Artifact.from_codebooks(SHAPE, 5, ranges, keys, values)


def test_shapes_and_rotations() -> None:
    rope = kvquant.Rope(pairing="interleaved", scaling="llama3", factor=8, original_context=8192, theta=500000.0)
    assert (rope.pairing, rope.scaling, rope.factor, rope.theta) == ("interleaved", "llama3", 8, 500000.0)
    assert rope == kvquant.Rope(pairing="interleaved", scaling="llama3", factor=8, original_context=8192, theta=5e5)
    assert rope != kvquant.Rope() and "interleaved" in repr(rope)
    shape = kvquant.Shape(4, 8, 2, 64, rope, local_layers=[0, 2], window=128, local_rope=kvquant.Rope(pairing="interleaved"))
    assert shape.rope_of(0).theta == 10000 and shape.rope_of(1) == rope and shape.window == 128
    assert shape.kv_channels == 128 and shape.local_layers == [0, 2]
    for arguments in ((0, 1, 1, 16), (1, 3, 2, 16), (1, 1, 1, 0), (1 << 20, 1, 1, 16)):
        with pytest.raises(kvquant.Error, match="model shape"):
            kvquant.Shape(*arguments)
    with pytest.raises(kvquant.Error, match="theta"):
        kvquant.Shape(1, 1, 1, 16, kvquant.Rope(theta=-1))
    with pytest.raises(ValueError, match='pairing: "half", expected one of "half_split", "interleaved"'):
        kvquant.Rope(pairing="half")


@pytest.mark.parametrize("options", [{}, {"pairing": "interleaved"}, {"rotary_dim": 16}, {"enabled": False},
                                     {"scaling": "yarn", "factor": 4.0, "original_context": 32}])
def test_rotations_turn_and_turn_back(options: dict, random: np.random.Generator) -> None:
    rope = kvquant.Rope(**options)
    x = random.standard_normal((9, 3, 32)).astype(np.float32)
    turned = rope.rotate(x, 1000)
    np.testing.assert_allclose(turned, eval.rotate(x, rope, 1000), atol=1e-5)
    np.testing.assert_allclose(rope.rotate(turned, 1000, inverse=True), x, atol=1e-5)
    if options.get("enabled", True):
        assert not np.allclose(turned, x)
    for bad, kind in ((x[0], ValueError), (x.astype(np.float64), TypeError), (3, ValueError)):
        with pytest.raises(kind):
            rope.rotate(bad)
