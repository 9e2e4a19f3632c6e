"""Losses against float64 oracles."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.training import accuracy, cross_entropy, squared_error

RNG = np.random.default_rng(0)


@given(st.floats(0, 0.9), st.integers(0, 2**31))
def test_cross_entropy_is_the_formula(smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, labels = 5 * rng.normal(size=(2, 3, 7)), rng.integers(0, 7, size=(2, 3))
    target = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    with jax.enable_x64(True):
        found = cross_entropy(jax.numpy.asarray(logits), {"labels": labels}, label_smoothing=smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(-1), rtol=1e-10, atol=1e-12)


def test_logits_in_half_precision_are_judged_in_single():
    logits = jax.numpy.full((1, 4), 8.0, jax.numpy.bfloat16)
    loss = cross_entropy(logits, {"labels": np.array([1])})
    assert loss.dtype == np.float32
    assert loss[0] == pytest.approx(np.log(4), rel=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_squared_error_takes_labels_with_and_without_an_axis(shape):
    outputs, labels = RNG.normal(size=(5, 1)), RNG.normal(size=shape)
    found = squared_error(jax.numpy.asarray(outputs), {"labels": labels})
    np.testing.assert_allclose(found, (outputs[:, 0] - labels.reshape(5)) ** 2, rtol=1e-5)


def test_squared_error_refuses_what_would_broadcast():
    with pytest.raises(ValueError, match=r"labels of the outputs' shape \(5, 2\), got \(5,\)"):
        squared_error(jax.numpy.zeros((5, 2)), {"labels": np.zeros(5)})


def test_accuracy_counts_the_largest():
    outputs = jax.numpy.asarray([[0.0, 1.0], [2.0, 1.0]])
    assert accuracy(outputs, {"labels": np.array([1, 1])}).tolist() == [1.0, 0.0]
