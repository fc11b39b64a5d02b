"""Calibration from arrays: the same statistics and artifacts as the tool's, merged, saved, refused."""

import os
import pathlib
import subprocess

import kvquant
import numpy as np
import pytest
from conftest import SHAPE, TOKENS, Window, calibrate, observe


def files_of(artifact: kvquant.Artifact, folder: pathlib.Path) -> bytes:
    artifact.save(folder / "of.kvq")
    return (folder / "of.kvq").read_bytes()


def test_what_the_tool_fits_to_our_statistics_is_ours(calibrator: kvquant.Calibrator, tmp_path: pathlib.Path) -> None:
    tool = os.environ.get("KVQUANT_TOOL")
    if not tool or not pathlib.Path(tool).exists():
        pytest.skip("the tool is not built")
    calibrator.save(tmp_path / "all.stats")
    command = [tool, "calibrate", "--from-stats", str(tmp_path / "all.stats"), "--quiet", "--q-norm", "off"]
    cases = {"nuq3": ["--bits", "3"], "nf4": ["--format", "nf", "--bits", "4"], "int8": ["--format", "int", "--bits", "8"],
             "adaptive2.5": ["--format", "adaptive", "--bits", "2.5"]}
    for format, options in cases.items():
        subprocess.run([*command, *options, "-o", str(tmp_path / "tool.kvq")], check=True)
        assert files_of(calibrator.fit(format), tmp_path) == (tmp_path / "tool.kvq").read_bytes(), format
    again = tmp_path / "again.stats"
    subprocess.run([*command, "--stats", str(again), "-o", str(tmp_path / "tool.kvq")], check=True)
    assert again.read_bytes() == (tmp_path / "all.stats").read_bytes()
    loaded = kvquant.Calibrator.load(again)
    assert loaded.shape == SHAPE and loaded.origin.model_name == "small" and loaded.ranges_frozen and loaded.adaptive
    assert files_of(loaded.fit("nuq3"), tmp_path) == files_of(calibrator.fit("nuq3"), tmp_path)


def test_parts_merge_to_the_whole(windows: list[Window], tmp_path: pathlib.Path) -> None:
    parts = [kvquant.Calibrator(SHAPE, max_tokens=4 * len(windows) * TOKENS,
                                origin=kvquant.Origin(model_hash="1", samples=1, text_hash=name)) for name in "abc"]
    for part, window in zip(parts, windows):
        for layer in range(SHAPE.layers):
            part.observe_range(layer, window.k[layer])
    for part in parts[1:]:
        parts[0].merge(part)
    parts[0].freeze_ranges()
    others = [kvquant.Calibrator(SHAPE, max_tokens=4 * len(windows) * TOKENS,
                                 origin=kvquant.Origin(model_hash="1", samples=1, text_hash=name)) for name in "bc"]
    observe(parts[0], windows[:1])
    for other, window in zip(others, windows[1:]):
        other.use_ranges_of(parts[0])
        observe(other, [window])
        parts[0].merge(other)
    merged, whole = parts[0].fit("nuq3"), calibrate(windows).fit("nuq3")
    assert (merged.origin.samples, merged.origin.text_hash) == (3, "a+b+c")
    for layer in range(SHAPE.layers):
        np.testing.assert_array_equal(merged.key_ranges(layer), whole.key_ranges(layer))
        for side in ("key", "value"):
            np.testing.assert_allclose(merged.levels(layer, side), whole.levels(layer, side), atol=0.02)


def test_what_cannot_be_merged(windows: list[Window]) -> None:
    calibrator = calibrate(windows[:1])
    with pytest.raises(kvquant.Error, match="themselves"):
        calibrator.merge(calibrator)
    with pytest.raises(kvquant.Error, match="other key ranges"):
        calibrator.merge(calibrate(windows[1:2]))
    with pytest.raises(kvquant.Error, match="other options"):
        calibrator.merge(calibrate(windows[:1], outliers=0.02))
    calibrator.origin = kvquant.Origin(model_name="b", model_hash="2")
    with pytest.raises(kvquant.Error, match='statistics of pre_rope keys of "" .*, expected those of .* "b"') as refused:
        calibrator.merge(calibrate(windows[:1]))
    assert refused.value.code == "bad_format"


def test_without_gradients_activations_decide(windows: list[Window]) -> None:
    calibrator = kvquant.Calibrator(SHAPE, max_tokens=2000)
    for window in windows:
        for layer in range(SHAPE.layers):
            calibrator.observe_range(layer, window.k[layer])
    calibrator.freeze_ranges()
    observe(calibrator, windows, gradients=False)
    assert calibrator.fit("nuq3", weights="activation").weights == "activation"
    with pytest.raises(kvquant.Error, match="without fisher weights"):
        calibrator.fit("nuq3")


def test_the_order_of_passes(windows: list[Window], tmp_path: pathlib.Path) -> None:
    calibrator, k, v = kvquant.Calibrator(SHAPE, max_tokens=2000), windows[0].k[0], windows[0].v[0]
    with pytest.raises(kvquant.Error, match="before freeze_ranges"):
        calibrator.observe(0, k, v)
    for early in (lambda: calibrator.fit(), lambda: calibrator.save(tmp_path / "a.stats")):
        with pytest.raises(kvquant.Error, match="not frozen"):
            early()
    assert not calibrator.ranges_frozen and not list(tmp_path.iterdir())
    for layer in range(SHAPE.layers):
        calibrator.observe_range(layer, k)
    calibrator.freeze_ranges()
    for late in (calibrator.freeze_ranges, lambda: calibrator.observe_range(0, k)):
        with pytest.raises(kvquant.Error, match="frozen"):
            late()


def test_bad_observations(windows: list[Window]) -> None:
    calibrator, k, v = calibrate(windows[:1]), windows[0].k[0], windows[0].v[0]
    nan = k.copy()
    nan[4, 1, 3] = np.nan
    with pytest.raises(kvquant.Error, match="layer 1, keys, channel 35, token 4 is nan") as refused:
        calibrator.observe(1, nan, v)
    assert refused.value.code == "bad_value"
    with pytest.raises(kvquant.Error, match="negative"):
        calibrator.observe(0, k, v, -np.ones_like(k), np.ones_like(v))
    with pytest.raises(kvquant.Error, match="layer 9, expected 0 to 1"):
        calibrator.observe(9, k, v)
    with pytest.raises(kvquant.Error, match="weights of 3 tokens"):
        calibrator.observe(0, k, v, np.ones_like(k)[:3], np.ones_like(v))
    with pytest.raises(TypeError, match="k_grad_squared: dtype float64"):
        calibrator.observe(0, k, v, np.ones(k.shape))
    with pytest.raises(ValueError, match=r"v: shape \(160, 2, 16\)"):
        calibrator.observe(0, k, v[:, :, :16])


@pytest.mark.parametrize(("format", "options", "kind", "said"), [
    ("nuq9", {}, kvquant.Error, "unknown format"),
    ("nuq3-2%", {}, kvquant.Error, "ranges that leave out 0.01"),
    ("nuq3", {"outliers": 0.0}, kvquant.Error, "ranges that leave out 0.01"),
    ("nuq3", {"bits": 3}, kvquant.Error, "nuq33"),
    ("adaptive9", {}, kvquant.Error, "1 to 4.5"),
    ("adaptive", {}, kvquant.Error, "expected the bits of an element after adaptive"),
    ("nuq3", {"weights": "mine"}, ValueError, 'weights: "mine", expected one of "fisher"'),
    ("nuq3", {"channel_levels": "mine"}, ValueError, 'expected one of "shared", "own"'),
])
def test_formats_that_are_none(calibrator: kvquant.Calibrator, format: str, options: dict, kind: type[Exception],
                               said: str) -> None:
    with pytest.raises(kind, match=said):
        calibrator.fit(format, **options)


def test_formats_by_name_and_by_parts(calibrator: kvquant.Calibrator, tmp_path: pathlib.Path) -> None:
    for name, family, bits, label in (("nuq3-1%", "nuq", 3, "nuq3-1%"), ("nf4", "nf", 4, "nf4-1%"),
                                      ("int8", "int", 8, "int8-1%")):
        by_name = calibrator.fit(name)
        assert by_name.label == label and by_name.outliers == (0.01, 0.01) and by_name.code_bits == (bits, bits)
        assert files_of(by_name, tmp_path) == files_of(calibrator.fit(family, bits=bits), tmp_path)
    for bits in (2.25, 3.0):
        adaptive = calibrator.fit("adaptive", bits=bits)
        assert adaptive.spec == "adaptive" and abs(adaptive.bits - bits) < 0.3
        assert files_of(adaptive, tmp_path) == files_of(calibrator.fit(f"adaptive{bits}-0.5%"), tmp_path)
        assert calibrator.fit("adaptive", bits=bits, outliers=0).outliers == (0, 0)
    assert calibrator.fit("nuq2", q_norm=True).q_norm
    assert calibrator.fit("f16").label == "f16"


def test_calibrators_that_cannot_be() -> None:
    for options, kind, said in (({"max_tokens": 0}, kvquant.Error, "max_tokens is 0"),
                                ({"max_tokens": 9, "outliers": 1.5}, kvquant.Error, "1.5"),
                                ({"max_tokens": 9, "outliers": "1 %"}, TypeError, "outliers: a str"),
                                ({"max_tokens": 9, "keys": "mine"}, ValueError, "keys: \"mine\""),
                                ({"max_tokens": 9, "sinks": -1}, kvquant.Error, "-1 sinks")):
        with pytest.raises(kind, match=said):
            kvquant.Calibrator(SHAPE, **options)
    adaptive = kvquant.Calibrator(SHAPE, max_tokens=9, adaptive=True)
    with pytest.raises(kvquant.Error, match="ranges of values are needed"):
        adaptive.observe_range(0, np.zeros((3, 64), np.float32))


def test_files_that_are_no_statistics(calibrator: kvquant.Calibrator, tmp_path: pathlib.Path) -> None:
    calibrator.fit("nuq3").save(tmp_path / "a.kvq")
    for wrong in (tmp_path / "a.kvq", tmp_path / "none", tmp_path):
        with pytest.raises(kvquant.Error) as refused:
            kvquant.Calibrator.load(wrong)
        assert refused.value.code == "bad_file"
