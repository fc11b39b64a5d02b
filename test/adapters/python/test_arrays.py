"""What may be given as keys, values, queries and results, and what is said of everything else."""

import re

import kvquant
import numpy as np
import pytest
from conftest import SHAPE, Window, read_back


@pytest.fixture
def sequence(artifact: kvquant.Artifact) -> kvquant.Sequence:
    return kvquant.Cache(artifact, max_tokens=512, threads=1).open()


def test_shapes_by_heads_and_by_channels_are_the_same(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    k, v = windows[0].k[0], windows[0].v[0]
    by_heads, by_channels = read_back(artifact, k, v), read_back(artifact, k.reshape(len(k), -1), v.reshape(len(v), -1))
    for a, b in zip(by_heads, by_channels):
        np.testing.assert_array_equal(a, b)


def test_rows_apart_are_read_in_place(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    k, v = windows[0].k[0], windows[0].v[0]
    both = np.concatenate([k, v], axis=1)  # rows of keys, then values
    strided = read_back(artifact, both[:, : SHAPE.kv_heads], both[:, SHAPE.kv_heads :])
    every_second = read_back(artifact, np.repeat(k, 2, axis=0)[::2], np.repeat(v, 2, axis=0)[::2])
    for a, b, c in zip(read_back(artifact, k, v), strided, every_second):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_binary16_is_what_binary32_of_it_is(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    k, v = windows[0].k[0].astype(np.float16), windows[0].v[0].astype(np.float16)
    for a, b in zip(read_back(artifact, k, v), read_back(artifact, k.astype(np.float32), v.astype(np.float32))):
        np.testing.assert_array_equal(a, b)


def test_read_only_arrays_and_memoryviews_can_be_read(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    k, v = windows[0].k[0].copy(), windows[0].v[0].copy()
    k.flags.writeable = False
    for a, b in zip(read_back(artifact, k, memoryview(v)), read_back(artifact, windows[0].k[0], v)):
        np.testing.assert_array_equal(a, b)


def test_no_tokens_are_as_good_as_some(sequence: kvquant.Sequence) -> None:
    nothing = np.zeros((0, SHAPE.kv_channels), np.float32)
    sequence.append(0, nothing, nothing)
    assert sequence.tokens == 0


GOOD = np.zeros((5, SHAPE.kv_heads, SHAPE.head_dim), np.float32)


@pytest.mark.parametrize(("bad", "kind", "said"), [
    (GOOD.astype(np.float64), TypeError, "k: dtype float64, expected float32, float16 or bfloat16"),
    (GOOD.astype(np.int32), TypeError, "k: dtype int32"),
    (GOOD.astype(np.complex64), TypeError, "k: dtype complex64"),
    (GOOD.astype(">f4"), TypeError, "k: a ndarray|k: a numpy.ndarray"),
    ([[1.0, 2.0]], TypeError, "k: a list, expected an array"),
    (None, TypeError, "NoneType"),
    (GOOD[0], ValueError, r"k: shape \(2, 32\), expected \(rows, 2, 32\) or \(rows, 64\)"),
    (GOOD[:, :1], ValueError, r"k: shape \(5, 1, 32\)"),
    (GOOD[None], ValueError, r"k: shape \(1, 5, 2, 32\)"),
    (GOOD[:, :, ::-1], ValueError, r"k: shape \(5, 2, 32\) with strides \(64, 32, -1\)"),
    (GOOD[::-1], ValueError, r"strides \(-64, 32, 1\) in elements, expected the 64 channels of a row side by side"),
    (GOOD.transpose(1, 0, 2).copy().transpose(1, 0, 2), ValueError, r"strides \(32, 160, 1\)"),
    (np.zeros((5, 2, 64), np.float32)[:, :, ::2], ValueError, r"strides \(128, 64, 2\)"),
    (np.broadcast_to(GOOD[:1], GOOD.shape), ValueError, r"strides \(0, 32, 1\)"),
    (np.frombuffer(b"\0" * (4 * GOOD.size + 1), np.uint8)[1:].view(np.float32).reshape(GOOD.shape), ValueError,
     "no multiple of 4"),
])
def test_other_arrays_are_refused(sequence: kvquant.Sequence, bad: object, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        sequence.append(0, bad, GOOD)
    assert sequence.tokens == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_what_binary16_cannot_hold_is_refused(sequence: kvquant.Sequence, value: float) -> None:
    bad = GOOD.copy()
    bad[3, 1, 7] = value
    with pytest.raises(kvquant.Error, match="token 3, channel 39|channel 39.*token 3") as refused:
        sequence.append(0, GOOD, bad)
    assert refused.value.code == "bad_value"
    assert isinstance(refused.value, RuntimeError)
    assert sequence.tokens == 0


def test_results_go_where_they_are_wanted(sequence: kvquant.Sequence, windows: list[Window],
                                          queries: np.ndarray) -> None:
    sequence.append(0, windows[0].k[0], windows[0].v[0])
    q = queries[:3]
    new = sequence.attend(0, q)
    assert new.dtype == np.float32 and new.shape == q.shape
    assert sequence.attend(0, q.reshape(3, -1)).shape == (3, SHAPE.q_heads * SHAPE.head_dim)
    out = np.full((3, 2, SHAPE.q_heads, SHAPE.head_dim), 7, np.float32)
    assert sequence.attend(0, q, out[:, 1]).base is out
    np.testing.assert_array_equal(out[:, 1], new)
    assert (out[:, 0] == 7).all()


@pytest.mark.parametrize(("change", "kind", "said"), [
    (lambda out: out.astype(np.float16), TypeError, "out: dtype float16, expected float32"),
    (lambda out: out[:2], ValueError, "out: 2 rows, expected 3"),
    (lambda out: out[:, :1], ValueError, "out: shape"),
    (lambda out: out.setflags(write=False) or out, TypeError, "out: a .*that can be written"),
    (lambda out: "nowhere", TypeError, "out: a str"),
])
def test_results_go_nowhere_else(sequence: kvquant.Sequence, windows: list[Window], queries: np.ndarray, change: object,
                                 kind: type[Exception], said: str) -> None:
    sequence.append(0, windows[0].k[0], windows[0].v[0])
    with pytest.raises(kind, match=said):
        sequence.attend(0, queries[:3], change(np.zeros_like(queries[:3])))


def test_every_complaint_names_its_argument(sequence: kvquant.Sequence) -> None:
    for arguments, name in (((0, GOOD, 3), "v"), ((0, 3, GOOD), "k")):
        with pytest.raises(TypeError, match=re.escape(f"{name}: a int")):
            sequence.append(*arguments)
    with pytest.raises(IndexError, match="layer 2, expected 0 to 1"):
        sequence.append(2, GOOD, GOOD)
    with pytest.raises(IndexError, match="layer -1"):
        sequence.attend(-1, GOOD)
