"""The helpers in NumPy, against figures by hand."""

import math

import kvquant
import numpy as np
import pytest
from kvquant import eval


def test_relative_errors() -> None:
    assert eval.relative_error([3.0, 4.0], [3.0, 4.0]) == 0
    assert eval.relative_error([3.0, 4.0], [3.0, 3.0]) == pytest.approx(0.2)
    assert eval.decibels([3.0, 4.0], [3.0, 3.5]) == pytest.approx(-20)
    assert eval.relative_error([0.0], [0.0]) == 0 and eval.relative_error([0.0], [1.0]) == math.inf
    with pytest.raises(ValueError, match="expected the same"):
        eval.relative_error([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="x_hat: holds a number that is not finite"):
        eval.relative_error([1.0], [math.nan])


def test_exact_attention_of_two_tokens() -> None:
    rope = kvquant.Rope(enabled=False)
    k = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    v = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    q = np.array([[[0.0, math.sqrt(2) * math.log(3)]]])  # the second token three times as likely
    np.testing.assert_allclose(eval.exact_attention(q, k, v, rope)[0, 0], [2.5, 3.5])
    both = eval.exact_attention(np.concatenate([q, q]), k, v, rope)
    np.testing.assert_allclose(both[0, 0], [1.0, 2.0])  # sees the first alone
    np.testing.assert_allclose(eval.exact_attention(q, k, v, rope, window=1)[0, 0], [3.0, 4.0])
    np.testing.assert_allclose(eval.exact_attention(q, k, v, rope, window=1, sinks=1)[0, 0], [2.5, 3.5])
    np.testing.assert_allclose(eval.exact_attention(q, k, v, rope, softmax_scale=1e-9)[0, 0], [2.0, 3.0])
    for bad in ((q[0], k, v), (q, k, v[:1]), (np.zeros((3, 1, 2)), k, v)):
        with pytest.raises(ValueError, match="expected"):
            eval.exact_attention(*bad, rope)


def test_a_rotation_depends_on_the_distance() -> None:
    rope, x = kvquant.Rope(), np.random.default_rng(0).standard_normal((1, 1, 32))
    dots = [float((eval.rotate(x, rope, p + 5) * eval.rotate(x, rope, p)).sum()) for p in (0, 70, 3000)]
    np.testing.assert_allclose(dots, dots[0], rtol=1e-5)


def test_distances_of_predictions() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]])) + 3.0
    np.testing.assert_allclose(eval.kl_divergence(logits, other), [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0],
                               atol=1e-12)
    assert eval.top1_agreement(logits, other) == 0.5
    np.testing.assert_allclose(eval.negative_log_likelihood(logits, [0, 1]), [math.log(2), math.log(10)])
    with pytest.raises(ValueError, match="expected"):
        eval.negative_log_likelihood(logits, [0])
