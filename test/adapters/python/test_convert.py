"""The authors' pickles: converted with what they mean, and refused, unexecuted, where they are something else."""

import json
import os
import pathlib
import pickle
import pickletools
import subprocess
import sys

import authors_pickles
import kvquant
import numpy as np
import pytest
from authors_pickles import Tensor, dumps, quantizers
from conftest import SHAPE, Window
from kvquant import authors_pickle, convert


def written(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    path = folder / "quantizers.pickle"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("bits", "norm", "dtype"), [(3, False, np.float64), (2, True, np.float32), (4, True, np.float16)])
def test_a_pickle_becomes_an_artifact(tmp_path: pathlib.Path, windows: list[Window], protocol: int, bits: int, norm: bool,
                                      dtype: type) -> None:
    given = quantizers(SHAPE.layers, SHAPE.kv_channels, bits, norm, dtype)
    read = convert.read(written(tmp_path, dumps(given, protocol)))
    artifact = convert.to_artifact(read, SHAPE, int8_levels=False, origin=kvquant.Origin(model_hash="1234"))
    assert artifact.spec == f"nuq{bits}" and artifact.q_norm == norm and artifact.weights == "fisher-unscaled"
    for layer in range(SHAPE.layers):
        upper, lower, (centroids,), *norms = given[f"model.layers.{layer}.self_attn.k_proj"]
        ranges = np.stack([lower.values[0], upper.values[0]], axis=1).astype(np.float32).astype(np.float16)
        np.testing.assert_array_equal(artifact.key_ranges(layer), ranges.astype(np.float32))
        for side, (centers,) in (("key", [centroids]), ("value", given[f"model.layers.{layer}.self_attn.v_proj"][2:3][0])):
            rising = np.sort(centers.ravel())
            np.testing.assert_array_equal(artifact.levels(layer, side, encode=True), rising)
            expected = (rising.astype(np.float64) * 1.05 - 0.01) if norm else rising
            np.testing.assert_allclose(artifact.levels(layer, side), expected, rtol=1e-6)
        assert len(norms) == (2 if norm else 0)
    cache = kvquant.Cache(artifact, "cpu-float", max_tokens=512)
    sequence = cache.open()
    out = sequence.append_and_attend(0, windows[0].k[0], windows[0].v[0], np.ones((160, 4, 32), np.float32))
    assert np.isfinite(out).all()


def test_codes_are_found_as_the_authors_find_them(tmp_path: pathlib.Path, windows: list[Window]) -> None:
    """quant_fn_nuq_recon without outliers: shift, divide, nearest centroid, norm, multiply, shift back."""
    given = quantizers(SHAPE.layers, SHAPE.kv_channels, 3, norm=True)
    artifact = convert.to_artifact(convert.read(written(tmp_path, dumps(given))), SHAPE, outliers=0, int8_levels=False)
    k, v = windows[0].k[0].reshape(-1, 64), windows[0].v[0].reshape(-1, 64)
    upper, lower, (centroids,), *_ = given["model.layers.0.self_attn.k_proj"]
    high, low = (x.values.astype(np.float16).astype(np.float64) for x in (upper, lower))
    offset, scale = (high + low) / 2, (high - low) / 2
    nearest = centroids.ravel()[np.abs(((k - offset) / scale)[..., None] - centroids.ravel()).argmin(axis=-1)]
    expected = (nearest * 1.05 - 0.01) * scale + offset
    agree = np.isclose(artifact.round_trip(0, k, v)[0], expected, atol=1e-4)
    assert agree.mean() > 0.999


def test_the_command_says_what_it_does(tmp_path: pathlib.Path) -> None:
    source = written(tmp_path, dumps(quantizers(2, 64, 3)))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                                  "hidden_size": 128, "rope_theta": 5000.0,
                                  "rope_scaling": {"type": "linear", "factor": 2.0}}), encoding="utf-8")

    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "kvquant.convert", str(source), "-o", str(tmp_path / "a.kvq"),
                               *options], capture_output=True, text=True, check=False)

    done = run("--config", str(config), "--model-hash", "12", "--outliers", "0.02", "--sinks", "0")
    assert done.returncode == 0, done.stderr
    assert "nuq3-2%, 0 sinks, weights fisher-unscaled, 2 layers x 2 KV heads x 32" in done.stdout
    assert "not carried over: 600 thresholds of the calibration tokens' values" in done.stdout
    artifact = kvquant.load(tmp_path / "a.kvq")
    assert artifact.shape == kvquant.Shape(2, 4, 2, 32, kvquant.Rope(theta=5000.0, scaling="linear", factor=2.0))
    assert artifact.hash in done.stdout and artifact.origin.model_hash == "12" and artifact.outliers == (0.02, 0.02)
    assert run("--head-dim", "16", "--q-heads", "8", "--weights", "none").returncode == 0
    assert kvquant.load(tmp_path / "a.kvq").shape == kvquant.Shape(2, 8, 4, 16)
    (tmp_path / "a.kvq").unlink()
    for options, said in (((), "expected --config, or --head-dim"), (("--head-dim", "60"), "no divisor of 64"),
                          (("--config", str(tmp_path / "none")), "none")):
        failed = run(*options)
        assert failed.returncode == 1 and said in failed.stderr and failed.stderr.count("\n") == 1
    assert not (tmp_path / "a.kvq").exists()


def changed(**entries: object) -> dict:
    return {**quantizers(2, 64, 3), **{name.replace("_at_", ".self_attn.").replace("L", "model.layers."): entry
                                       for name, entry in entries.items()}}


GOOD = quantizers(1, 64, 3)["model.layers.0.self_attn.k_proj"]


@pytest.mark.parametrize(("content", "said"), [
    ([1, 2], "expected a dictionary"),
    ({}, "no k_proj of layer 0"),
    ({"model.layers.0.mlp": GOOD}, "expected names such as"),
    ({"model.layers.0.self_attn.k_proj": GOOD}, "no v_proj of layer 0"),
    (changed(L1_at_k_proj=GOOD[:2]), "thresholds without centroids, expected a calibration with --nuq"),
    (changed(L1_at_k_proj=GOOD[:1]), "expected thresholds, centroids and perhaps a norm"),
    (changed(L1_at_k_proj=(GOOD[1], GOOD[0], GOOD[2])), "expected as many and none below"),
    (changed(L1_at_k_proj=(*GOOD[:2], [np.zeros((5, 1))])), "5 centroids, expected 4, 8 or 16"),
    (changed(L1_at_k_proj=(*GOOD[:2], [np.full((8, 1), np.nan)])), "expected finite numbers"),
    (changed(L1_at_k_proj=(*GOOD[:2], np.zeros(8))), "expected a list of one array of centroids"),
    (changed(L1_at_k_proj=(*GOOD, Tensor(np.float64(-1)), Tensor(np.float64(0)))), "expected a number above 0"),
    (changed(L1_at_k_proj=(Tensor(np.ones(32)), Tensor(np.zeros(32)), GOOD[2])), "32 key channels, layer 0 has 64"),
    (changed(L1_at_v_proj=(*GOOD[:2], [np.zeros((4, 1))])), "another number of centroids"),
    (changed(L3_at_k_proj=GOOD, L3_at_v_proj=GOOD), "no k_proj of layer 2"),
])
def test_pickles_of_something_else(tmp_path: pathlib.Path, content: object, said: str) -> None:
    path = written(tmp_path, dumps(content))
    with pytest.raises(ValueError, match=said) as refused:
        convert.read(path)
    assert str(path) in str(refused.value)


def test_a_shape_that_is_not_the_pickles(tmp_path: pathlib.Path) -> None:
    read = convert.read(written(tmp_path, dumps(quantizers(2, 32, 3))))
    with pytest.raises(ValueError, match="2 layers x 32 channels, the shape has 2 x 64"):
        convert.to_artifact(read, SHAPE)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


class Builds(Calls):
    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.call = (function, arguments, state)


def hostile(marker: str) -> dict[str, bytes]:
    touch = f"open({marker!r}, 'w').close()"
    shell = f"touch '{marker}'"
    nested = authors_pickles.Tensor(np.zeros(4))
    bytes_of = pickle.dumps(Calls(os.system, shell), protocol=2)
    nested.__class__ = type("Nested", (), {"__reduce__": lambda _: (authors_pickles._load_from_bytes, (bytes_of,))})
    rebuild = authors_pickles._rebuild_tensor
    dtype = np.dtype("f4")
    return {
        "os.system": dumps(Calls(os.system, shell)),
        "eval": dumps({"model.layers.0.self_attn.k_proj": Calls(eval, touch)}),
        "exec": dumps([Calls(exec, touch)]),
        "getattr": dumps(Calls(getattr, "", "join")),
        "subprocess": dumps(Calls(subprocess.check_output, ["touch", marker])),
        "builtins by the old name": f"c__builtin__\neval\n(S{touch!r}\ntR.".encode(),
        "a name of numpy that is not wanted": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        "a name behind a name": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.tofile\x93.",
        "inside of a tensor's storage": dumps(nested),
        "an array of objects": pickle.dumps(np.array([Calls(eval, touch)], dtype=object)),
        "a type of objects": dumps(Calls(np.dtype, "O8", False, True)),
        "a type with fields": dumps(np.zeros(2, [("a", "f4")])),
        "a state for a function": dumps(Builds(rebuild, (), {"__code__": 1})),
        "a state for a class": b"cnumpy\nndarray\n}S'x'\nI1\nsb.",
        "a call of a class": b"cnumpy\nndarray\n(I3\ntR.",
        "an instance by NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "a state for a type": dumps(Builds(np.dtype, ("f4",), "nothing")),
        "an array of too few bytes": dumps(Builds(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"),
                                                  (1, (9,), dtype, False, b"1234"))) if hasattr(np, "_core") else b".",
        "an unfinished array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nI0\ntR.",
        "something outside": b"\x80\x02X\x03\x00\x00\x00abcQ.",
        "a tensor beyond its numbers": dumps(Tensor(np.zeros(4), shape=(5,))),
        "a tensor of many strides": dumps(Tensor(np.zeros(4), shape=(1 << 40, 1 << 40), strides=(0, 0))),
        "a tensor from before its numbers": dumps(Tensor(np.zeros(4), offset=-1)),
        "a tensor that says another size": dumps(Tensor(np.zeros(4), said=3)),
        "a tensor cut short": dumps(Tensor(np.zeros(4)))[:-30],
        "nothing": b"",
        "no pickle": b"PK\x03\x04 a zip archive",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "a very deep list": b"(" * 100_000 + b"." ,
        "an extension": b"\x80\x02\x82\x01.",
        "a set": pickle.dumps({1, 2}),
        "an object of ours": pickle.dumps(pathlib.PurePosixPath("a")),
    }


@pytest.mark.parametrize("name", sorted(hostile("")))
def test_hostile_pickles_execute_nothing(tmp_path: pathlib.Path, name: str) -> None:
    marker = tmp_path / "executed"
    path = written(tmp_path, hostile(str(marker))[name])
    with pytest.raises(ValueError, match="refused") as refused:
        authors_pickle.read_pickle(path)
    assert str(path) in str(refused.value)
    assert not marker.exists()


def test_the_hostile_ones_would_have_executed(tmp_path: pathlib.Path) -> None:
    """The markers mark: without the restriction they are made."""
    marker = tmp_path / "executed"
    pickle.loads(hostile(str(marker))["os.system"])
    assert marker.exists()
    assert any(code.name == "REDUCE" for code, _, _ in pickletools.genops(hostile("x")["eval"]))


@pytest.mark.parametrize("values", [np.zeros((3, 4)), np.arange(6, dtype=np.int64), np.array(3.5), np.zeros(0),
                                    np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.arange(5, dtype=">f4"),
                                    np.array([True, False])])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_every_kind_are_read(tmp_path: pathlib.Path, values: np.ndarray, protocol: int) -> None:
    content = pickle.dumps({"a": values, "b": (values[..., None], 1.5, None)}, protocol=protocol)
    read = authors_pickle.read_pickle(written(tmp_path, content))
    np.testing.assert_array_equal(read["a"], values)
    np.testing.assert_array_equal(read["b"][0], values[..., None])


def test_tensors_of_every_kind_are_read(tmp_path: pathlib.Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    upper_half = Tensor((x.view(np.uint32) >> 16).astype(np.uint16), kind="BFloat16Storage")
    part = Tensor(x, offset=1, shape=(2, 3), strides=(6, 2))
    read = authors_pickle.read_pickle(written(tmp_path, dumps([Tensor(x), part, upper_half, Tensor(x.astype("f8"))])))
    np.testing.assert_array_equal(read[0], x)
    np.testing.assert_array_equal(read[1], x.ravel()[1:].reshape(-1)[[0, 2, 4, 6, 8, 10]].reshape(2, 3))
    np.testing.assert_array_equal(read[2], x)
    np.testing.assert_array_equal(read[3], x)


def test_real_tensors(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(24.0).reshape(4, 6)
    content = {"a": x, "b": x.T, "c": x[1:, 2].half(), "d": torch.tensor(2.5, dtype=torch.float64), "e": x.bfloat16()}
    read = authors_pickle.read_pickle(written(tmp_path, pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)))
    for name, tensor in content.items():
        np.testing.assert_array_equal(read[name], tensor.float().numpy())


@pytest.mark.parametrize(("config", "said"), [
    ({}, "has no"),
    ({"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 16, "rope_scaling": {"type": "dynamic", "factor": 2}},
     "type 'dynamic', expected one of"),
    ({"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 16, "sliding_window": 99}, "sliding_window of 99"),
])
def test_configurations_that_are_not_known(config: dict, said: str) -> None:
    from kvquant.models import shape_from_config

    with pytest.raises(ValueError, match=said):
        shape_from_config(config)


def test_configurations() -> None:
    from kvquant.models import shape_from_config

    llama = {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 2048,
             "head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 131072,
             "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192}}
    shape = shape_from_config(llama)
    assert shape == kvquant.Shape(16, 32, 8, 64, kvquant.Rope(theta=5e5, scaling="llama3", factor=32,
                                                              original_context=8192))
    newer = {**llama, "rope_parameters": {**llama["rope_scaling"], "rope_theta": 500000.0}}
    del newer["rope_theta"], newer["rope_scaling"]
    assert shape_from_config(newer) == shape
    yarn = {**llama, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}
    assert shape_from_config(yarn).rope.scaling == "yarn"
