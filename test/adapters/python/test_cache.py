"""Caches and sequences: what is kept, what attention over it is, and what happens to pages."""

import gc
import pathlib
import subprocess
import sys

import kvquant
import numpy as np
import pytest
from conftest import SHAPE, TOKENS, Window, make_window
from kvquant import eval

PAGE = 64


def filled(cache: kvquant.Cache, window: Window, tokens: int = TOKENS) -> kvquant.Sequence:
    sequence = cache.open()
    for layer in range(cache.shape.layers):
        sequence.append(layer, window.k[layer][:tokens], window.v[layer][:tokens])
    return sequence


@pytest.fixture
def cache(artifact: kvquant.Artifact) -> kvquant.Cache:
    return kvquant.Cache(artifact, max_tokens=2048)


@pytest.mark.parametrize("format", ["nuq4", "nuq3", "nuq2", "nf3", "int8", "adaptive2.5", "f16"])
def test_attention_is_that_over_what_is_read(calibrator: kvquant.Calibrator, windows: list[Window], queries: np.ndarray,
                                             format: str) -> None:
    window, tokens = windows[0], TOKENS - 3  # sinks, two pages, and a tail
    for backend in kvquant.backends():
        artifact = calibrator.fit(format)
        if not artifact.supports(backend):
            assert artifact.missing(backend)
            continue
        with kvquant.Cache(artifact, backend, max_tokens=512, threads=2) as cache:
            sequence = filled(cache, window, tokens)
            for layer in range(SHAPE.layers):
                q = queries[:5]
                k, v = sequence.read(layer)
                expected = eval.exact_attention(q, k, v, SHAPE.rope)
                # Kernels that work in integers round queries and weights: the band of the C++ contract.
                assert eval.relative_error(expected, sequence.attend(layer, q)) < 0.02, backend


def test_attention_in_floats_is_exact_to_rounding(artifact: kvquant.Artifact, windows: list[Window],
                                                  queries: np.ndarray) -> None:
    sequence = filled(kvquant.Cache(artifact, "cpu-generic", max_tokens=512), windows[0])
    k, v = sequence.read(1)
    for options in ({}, {"window": 40}, {"softmax_scale": 0.05}):
        expected = eval.exact_attention(queries[:4], k, v, SHAPE.rope, sinks=1, **options)
        assert eval.relative_error(expected, sequence.attend(1, queries[:4], **options)) < 1e-5
    rotated = SHAPE.rope.rotate(queries[:4], TOKENS - 4)
    np.testing.assert_allclose(sequence.attend(1, rotated, rotated=True), sequence.attend(1, queries[:4]), rtol=1e-4,
                               atol=1e-5)


def test_sums_of_the_softmax_merge_halves(artifact: kvquant.Artifact, windows: list[Window],
                                          queries: np.ndarray) -> None:
    sequence = filled(kvquant.Cache(artifact, "cpu-generic", max_tokens=512), windows[0])
    out, greatest, total = sequence.attend(0, queries[:2], sums=True)
    assert greatest.shape == total.shape == (2, SHAPE.q_heads)
    np.testing.assert_array_equal(out, sequence.attend(0, queries[:2]))
    k, _ = sequence.read(0)
    turned_q, turned_k = eval.rotate(queries[:2], SHAPE.rope, TOKENS - 2), eval.rotate(k, SHAPE.rope)
    scores = np.einsum("qhd,thd->qht", turned_q, np.repeat(turned_k, 2, axis=1)) / np.sqrt(SHAPE.head_dim)
    scores[0, :, -1] = -np.inf
    np.testing.assert_allclose(greatest, scores.max(axis=2), rtol=1e-4)
    np.testing.assert_allclose(total, np.exp(scores - scores.max(axis=2, keepdims=True)).sum(axis=2), rtol=1e-3)


def test_sinks_and_tail_are_exact_and_pages_are_not(cache: kvquant.Cache, windows: list[Window]) -> None:
    window = windows[0]
    sequence = filled(cache, window)
    for layer in range(SHAPE.layers):
        for read, given in zip(sequence.read(layer), (window.k[layer], window.v[layer])):
            rounded = given.astype(np.float16).astype(np.float32)
            sealed = slice(1, 1 + 2 * PAGE)
            np.testing.assert_array_equal(read[0], rounded[0])
            np.testing.assert_array_equal(read[1 + 2 * PAGE :], rounded[1 + 2 * PAGE :])
            error = eval.relative_error(given[sealed], read[sealed])
            assert 0.01 < error < 0.3
    k, v = sequence.read(0, 60, 10)
    np.testing.assert_array_equal(k, sequence.read(0)[0][60:70])
    np.testing.assert_array_equal(v, sequence.read(0)[1][60:70])
    with pytest.raises(kvquant.Error, match="the sequence has 160") as refused:
        sequence.read(0, 100, 61)
    assert refused.value.code == "bad_value"


def test_pages_are_what_the_artifact_says_where_no_outlier_is(calibrator: kvquant.Calibrator,
                                                              windows: list[Window]) -> None:
    """Without outliers a page is the round trip of its tokens, rounded to binary16 first."""
    artifact = calibrator.fit("int8")
    window = windows[0]
    k, v = (x.astype(np.float16).astype(np.float32) for x in (window.k[0], window.v[0]))
    sequence = filled(kvquant.Cache(artifact, max_tokens=512, sinks=0), window)
    for read, rounded in zip(sequence.read(0, 0, PAGE), artifact.round_trip(0, k[:PAGE], v[:PAGE])):
        # A page has 1 % of slots, the round trip what lies beyond the ranges: most elements agree.
        assert (read == rounded).mean() > 0.98
        assert eval.relative_error(rounded, read) < 0.02


def test_bytes_do_not_depend_on_how_tokens_came(cache: kvquant.Cache, windows: list[Window]) -> None:
    whole, pieces = filled(cache, windows[0]), cache.open()
    for first in range(0, TOKENS, 37):
        for layer in range(SHAPE.layers):
            pieces.append(layer, windows[0].k[layer][first : first + 37], windows[0].v[layer][first : first + 37])
    for layer in range(SHAPE.layers):
        for a, b in zip(whole.read(layer), pieces.read(layer)):
            np.testing.assert_array_equal(a, b)


def test_append_and_attend_is_decoding(artifact: kvquant.Artifact, windows: list[Window],
                                       queries: np.ndarray) -> None:
    window = windows[0]
    for backend in kvquant.backends():
        if not artifact.supports(backend):
            continue
        cache = kvquant.Cache(artifact, backend, max_tokens=512)
        at_once, one_by_one = cache.open(), cache.open()
        all_at_once = at_once.append_and_attend(0, window.k[0], window.v[0], queries)
        steps = []
        for t in range(TOKENS):
            one_by_one.append(0, window.k[0][t : t + 1], window.v[0][t : t + 1])
            steps.append(one_by_one.attend(0, queries[t : t + 1])[0])
        # In integers, keys are turned in place of queries where many share a call.
        assert eval.relative_error(all_at_once, np.array(steps)) <= (0.02 if backend == "cpu" else 0)
    with pytest.raises(kvquant.Error, match="159 queries"):
        at_once.append_and_attend(0, window.k[0], window.v[0], queries[1:])
    assert at_once.tokens == TOKENS


def test_forks_share_pages_and_part(cache: kvquant.Cache, windows: list[Window], random: np.random.Generator) -> None:
    first = filled(cache, windows[0])
    pages, before = cache.bytes()["codes"], first.read(0)[0]
    second = first.fork()
    assert cache.bytes()["codes"] == pages and len(second) == TOKENS
    other = make_window(random, 70)
    second.append(0, other.k[0], other.v[0])
    np.testing.assert_array_equal(first.read(0)[0], before)
    sealed = 1 + 2 * PAGE  # the tail is sealed with what followed it
    np.testing.assert_array_equal(second.read(0, 0, sealed)[0], before[:sealed])
    assert (len(first), second.tokens) == (TOKENS, TOKENS + 70)


def test_truncate_and_drop(cache: kvquant.Cache, windows: list[Window]) -> None:
    sequence, window = filled(cache, windows[0]), windows[0]
    whole = sequence.read(0)[0]
    sequence.truncate(100)
    assert sequence.tokens == 100
    for layer in range(SHAPE.layers):
        sequence.append(layer, window.k[layer][100:], window.v[layer][100:])
    np.testing.assert_array_equal(sequence.read(0)[0], whole)
    sequence.drop(1, PAGE)
    np.testing.assert_array_equal(sequence.read(0)[0], np.delete(whole, np.s_[1 : 1 + PAGE], axis=0))
    for bad in ((2, PAGE), (1, 3), (1, 10 * PAGE)):
        with pytest.raises(kvquant.Error, match="."):
            sequence.drop(*bad)
    with pytest.raises(kvquant.Error) as refused:
        sequence.truncate(1000)
    assert refused.value.code == "bad_value"
    with pytest.raises(TypeError):
        sequence.truncate(-1)


def test_sequences_go_to_files_and_back(cache: kvquant.Cache, artifact: kvquant.Artifact,
                                        calibrator: kvquant.Calibrator, windows: list[Window],
                                        tmp_path: pathlib.Path) -> None:
    sequence, file = filled(cache, windows[0]), tmp_path / "chat.kvs"
    sequence.save(file)
    loaded = kvquant.Cache(artifact, "cpu-generic", max_tokens=512).load(file)
    for layer in range(SHAPE.layers):
        for a, b in zip(sequence.read(layer), loaded.read(layer)):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(kvquant.Error, match="a sequence of another cache") as refused:
        kvquant.Cache(calibrator.fit("nuq2"), max_tokens=512).load(file)
    assert refused.value.code == "bad_format"
    for broken in (b"", b"KVQ", file.read_bytes()[:-1]):
        (tmp_path / "broken.kvs").write_bytes(broken)
        with pytest.raises(kvquant.Error) as refused:
            cache.load(tmp_path / "broken.kvs")
        assert refused.value.code == "bad_file"


def test_a_batch_is_each_by_itself(cache: kvquant.Cache, artifact: kvquant.Artifact, windows: list[Window],
                                   queries: np.ndarray) -> None:
    sequences = [filled(cache, window, 100 + i) for i, window in enumerate(windows)]
    batch = [(sequence, queries[i : i + 1]) for i, sequence in enumerate(sequences)] + [(sequences[0], queries[9:12])]
    outs = [np.zeros_like(q) for _, q in batch]
    assert all(a is b for a, b in zip(cache.attend(1, batch, outs), outs))
    for (sequence, q), out, new in zip(batch, outs, cache.attend(1, batch)):
        np.testing.assert_array_equal(out, sequence.attend(1, q))
        np.testing.assert_array_equal(out, new)
    assert cache.attend(1, []) == []
    stranger = filled(kvquant.Cache(artifact, max_tokens=512), windows[0])
    with pytest.raises(ValueError, match="sequence 1 is one of another cache"):
        cache.attend(1, [batch[0], (stranger, queries[:1])])
    with pytest.raises(ValueError, match="out: 1 arrays, expected 2"):
        cache.attend(1, batch[:2], outs[:1])
    with pytest.raises(TypeError):
        cache.attend(1, [(1, queries[:1])])


def test_a_full_cache_leaves_sequences_as_they_were(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    cache = kvquant.Cache(artifact, max_tokens=2 * SHAPE.layers * PAGE)
    sequence, other = filled(cache, windows[0]), cache.open()
    before = sequence.read(0)[0]
    with pytest.raises(kvquant.Error) as full:
        for _ in range(9):
            other.append(0, windows[1].k[0], windows[1].v[0])
    assert full.value.code == "out_of_pages"
    np.testing.assert_array_equal(sequence.read(0)[0], before)


def test_what_is_closed_is_refused_and_what_is_open_lives(artifact: kvquant.Artifact, windows: list[Window],
                                                          queries: np.ndarray) -> None:
    cache = kvquant.Cache(artifact, max_tokens=512)
    first, second = filled(cache, windows[0], 70), filled(cache, windows[1], 70)
    with first:
        first.attend(0, queries[:1])
    for use in (lambda: first.tokens, lambda: first.attend(0, queries[:1]), first.fork, lambda: first.read(0),
                lambda: cache.attend(0, [(second, queries[:1]), (first, queries[:1])])):
        with pytest.raises(ValueError, match="the sequence is closed"):
            use()
    first.close()  # again
    assert second.attend(0, queries[:1]).shape == (1, SHAPE.q_heads, SHAPE.head_dim)
    with cache:
        assert not cache.closed
    assert cache.closed and "closed" in repr(cache)
    for use in (cache.open, cache.bytes, lambda: second.tokens, lambda: cache.attend(0, [])):
        with pytest.raises(ValueError, match="the cache is closed"):
            use()
    cache.close()
    second.close()
    # A sequence keeps its cache alive.
    lonely = filled(kvquant.Cache(artifact, max_tokens=512), windows[0], 70)
    gc.collect()
    assert lonely.attend(0, queries[:1]).shape == (1, SHAPE.q_heads, SHAPE.head_dim)


def test_exact_caches_need_no_calibration(windows: list[Window], queries: np.ndarray) -> None:
    cache = kvquant.Cache.exact(SHAPE, max_tokens=512)
    assert cache.spec == "f16"
    sequence, window = filled(cache, windows[0]), windows[0]
    assert eval.attention_error(sequence, 0, queries[:3], window.k[0], window.v[0], SHAPE.rope) < 2e-3
    np.testing.assert_array_equal(sequence.read(1)[0], window.k[1].astype(np.float16).astype(np.float32))


def test_bytes_say_where_memory_goes(cache: kvquant.Cache, windows: list[Window]) -> None:
    sequence = filled(cache, windows[0])
    for report in (cache.bytes(), sequence.bytes()):
        assert report["total"] == sum(size for part, size in report.items() if part != "total")
    assert sequence.bytes()["sinks"] == SHAPE.layers * 2 * SHAPE.kv_channels * 2
    assert sequence.bytes()["codes"] == SHAPE.layers * 2 * 2 * PAGE * SHAPE.kv_channels * 3 // 8


def test_adaptive_counts_what_lies_beyond(calibrator: kvquant.Calibrator, windows: list[Window]) -> None:
    cache = kvquant.Cache(calibrator.fit("adaptive3"), max_tokens=512)
    window = windows[0]
    cache.open().append(0, window.k[0], window.v[0])
    assert cache.clamps()["keys"] == 2 * PAGE * SHAPE.kv_channels and cache.clamps()["clamped_keys"] == 0
    cache.open().append(0, 3 * window.k[0], window.v[0])
    assert cache.clamps()["clamped_keys"] > 0


@pytest.mark.parametrize(("arguments", "options", "kind", "said"), [
    (("nobody",), {}, kvquant.Error, "expected one of cpu"),
    ((), {"max_tokens": -1}, TypeError, "max_tokens"),
    ((), {"recent_pages": -1}, kvquant.Error, "-1"),
    ((), {"sinks": -1}, kvquant.Error, "-1"),
    ((), {"max_tokens": 2**62}, (kvquant.Error, MemoryError), "."),
])
def test_caches_that_cannot_be(artifact: kvquant.Artifact, arguments: tuple, options: dict, kind: type[Exception],
                               said: str) -> None:
    with pytest.raises(kind, match=said):
        kvquant.Cache(artifact, *arguments, **{"max_tokens": 512, **options})


def test_artifacts_come_by_path(artifact: kvquant.Artifact, tmp_path: pathlib.Path) -> None:
    artifact.save(tmp_path / "a.kvq")
    assert kvquant.Cache(str(tmp_path / "a.kvq"), max_tokens=64).label == "nuq3-1%"
    assert kvquant.Cache(tmp_path / "a.kvq", max_tokens=64).shape == SHAPE
    with pytest.raises(kvquant.Error, match="b.kvq: No such file") as refused:
        kvquant.Cache(tmp_path / "b.kvq", max_tokens=64)
    assert refused.value.code == "bad_file"
    with pytest.raises(TypeError, match="artifact: a int, expected an Artifact"):
        kvquant.Cache(3, max_tokens=64)


def test_nothing_is_left_behind(tmp_path: pathlib.Path) -> None:
    """nanobind says at exit which objects were never freed."""
    program = """
import kvquant, numpy as np
shape = kvquant.Shape(1, 2, 2, 32)
cache = kvquant.Cache.exact(shape, max_tokens=256)
sequence = cache.open()
x = np.ones((70, 2, 32), np.float32)
for bad in (x[0], x.astype(int), None, 1e9 * x):
    try:
        sequence.append(0, x, bad)
    except (TypeError, ValueError, kvquant.Error):
        pass
out = sequence.append_and_attend(0, x, x, x)
k, v = sequence.fork().read(0)
del sequence, cache
assert out.sum() and k.sum() and v.sum()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
