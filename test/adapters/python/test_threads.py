"""Threads: Python's lock is free while the library computes, and no use from several threads goes wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import kvquant
import numpy as np
from conftest import SHAPE, TOKENS, Window, calibrate


def test_two_threads_on_two_sequences(artifact: kvquant.Artifact, windows: list[Window], queries: np.ndarray) -> None:
    cache = kvquant.Cache(artifact, max_tokens=8192, threads=2)

    def decode(index: int) -> list[np.ndarray]:
        window, sequence = windows[index % len(windows)], cache.open()
        return [sequence.append_and_attend(layer, window.k[layer][t : t + 5], window.v[layer][t : t + 5],
                                           queries[t : t + 5])
                for t in range(0, TOKENS, 5) for layer in range(SHAPE.layers)]

    alone = [decode(index) for index in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for index, answers in enumerate(pool.map(decode, range(8))):
            for a, b in zip(answers, alone[index % 3]):
                np.testing.assert_array_equal(a, b)


def test_one_sequence_waits_for_itself(artifact: kvquant.Artifact, windows: list[Window], queries: np.ndarray) -> None:
    cache = kvquant.Cache(artifact, max_tokens=8192)
    shared, window = cache.open(), windows[0]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda t: shared.append(0, window.k[0][t : t + 1], window.v[0][t : t + 1]), range(TOKENS)))
        assert shared.tokens == TOKENS
        batch = [(shared, queries[:1]), (shared, queries[1:2])]
        for answers in pool.map(lambda _: cache.attend(0, batch), range(50)):
            np.testing.assert_array_equal(answers[0], shared.attend(0, queries[:1]))


def test_closing_waits_for_calls(artifact: kvquant.Artifact, windows: list[Window], queries: np.ndarray) -> None:
    cache, window = kvquant.Cache(artifact, max_tokens=8192), windows[0]
    started = threading.Barrier(4)

    def work() -> str:
        sequence = cache.open()
        started.wait()
        try:
            for _ in range(10_000):
                sequence.append_and_attend(0, window.k[0][:8], window.v[0][:8], queries[:8])
                sequence.truncate(0)
        except ValueError as failure:
            return str(failure)
        return "never closed"

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work) for _ in range(3)]
        started.wait()
        time.sleep(0.05)
        cache.close()
        assert {worker.result() for worker in workers} == {"the cache is closed"}


def test_python_runs_while_attention_does(windows: list[Window]) -> None:
    shape = kvquant.Shape(1, 32, 8, 64)
    cache = kvquant.Cache.exact(shape, "cpu-generic", max_tokens=4096, threads=1)
    sequence = cache.open()
    x = np.ones((4096, 8, 64), np.float32)
    sequence.append(0, x, x)
    q, counted, running = np.ones((16, 32, 64), np.float32), 0, threading.Event()

    def attend() -> None:
        for _ in range(4):
            sequence.attend(0, q)
        running.set()

    worker = threading.Thread(target=attend)
    worker.start()
    while not running.is_set():
        counted += 1
        time.sleep(0.001)
    worker.join()
    assert counted >= 5  # a held lock would let this thread run between the calls alone


def test_layers_are_observed_from_several_threads(windows: list[Window]) -> None:
    expected = calibrate(windows).fit("nuq3")
    calibrator = kvquant.Calibrator(SHAPE, max_tokens=2000)

    def of_layer(layer: int) -> None:
        for window in windows:
            calibrator.observe(layer, window.k[layer], window.v[layer], window.k_squared[layer],
                               window.v_squared[layer])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda layer: [calibrator.observe_range(layer, w.k[layer]) for w in windows], range(2)))
        calibrator.freeze_ranges()
        list(pool.map(of_layer, range(2)))
    for layer in range(2):
        for side in ("key", "value"):
            np.testing.assert_array_equal(calibrator.fit("nuq3").levels(layer, side), expected.levels(layer, side))
