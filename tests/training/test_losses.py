"""Losses against float64 oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from optlab.models import linear
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


@pytest.mark.thinned
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropys_derivatives_are_the_formulas(dtype, smoothing):
    """The gradient softmax − target and the Hessian diag(p) − ppᵀ, in every mode, to float32's rounding."""
    logits = jnp.asarray(5 * RNG.normal(size=(3, 7)), dtype)
    labels, v = np.array([2, 0, 6]), jnp.asarray(RNG.normal(size=(3, 7)), dtype)
    loss = lambda x: cross_entropy(x, {"labels": labels}, label_smoothing=smoothing).sum()
    exact, along = np.float64(logits), np.float64(v)
    p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    gradient = p - (np.eye(7)[labels] * (1 - smoothing) + smoothing / 7)
    tolerance = {"atol": 2e-6 if dtype == "float32" else 1e-2}
    slope = lambda x: jax.jvp(loss, (x,), (v,))[1]
    of_gradient = lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1]
    modes = jax.jit(lambda x: (jax.grad(loss)(x), slope(x), of_gradient(x), jax.grad(slope)(x)))
    found, derivative, *hessians = modes(logits)
    np.testing.assert_allclose(np.float64(found), gradient, **tolerance)
    np.testing.assert_allclose(derivative, (gradient * along).sum(), rtol=3e-2)
    hessian = p * along - p * (p * along).sum(-1, keepdims=True)
    for found in hessians:
        np.testing.assert_allclose(np.float64(found), hessian, **tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_holds_float32_logits_once(smoothing):
    """The head of a language model in bfloat16 with its loss: 1.5 times the logits' bytes in float32 on a CPU, which
    casts their gradient to float32 to multiply; optax's own loss is at 2.0."""
    B, T, D, V = 2, 128, 32, 8192
    model = nn.Sequential([linear.dense(V, use_bias=False, dtype="bfloat16"), linear.at_least_float32])
    x, labels = jax.ShapeDtypeStruct((B, T, D), "bfloat16"), jax.ShapeDtypeStruct((B, T), "int32")
    params = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, x, labels):
        logits = model.apply(params, x)
        return cross_entropy(logits, {"labels": labels}, label_smoothing=smoothing).mean()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.7 * 4 * B * T * V


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


def test_squared_error_of_complex_numbers_is_a_distance():
    outputs = jax.numpy.asarray([[1 + 2j, 3j], [1.0, 2.0]], "complex64")
    found = squared_error(outputs, {"labels": np.zeros((2, 2))})
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, [14.0, 5.0])


def test_squared_error_refuses_what_would_broadcast():
    with pytest.raises(ValueError, match=r"labels of the outputs' shape \(5, 2\), got \(5,\)"):
        squared_error(jax.numpy.zeros((5, 2)), {"labels": np.zeros(5)})


def test_accuracy_counts_the_largest():
    outputs = jax.numpy.asarray([[0.0, 1.0], [2.0, 1.0]])
    assert accuracy(outputs, {"labels": np.array([1, 1])}).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_outputs_without_an_axis_are_a_value_an_example(shape):
    outputs, labels = np.arange(5.0), RNG.normal(size=shape)
    found = squared_error(jax.numpy.asarray(outputs), {"labels": labels})
    np.testing.assert_allclose(found, (outputs - labels.reshape(5)) ** 2, rtol=1e-5)


def test_squares_of_half_precision_do_not_overflow():
    found = squared_error(jax.numpy.full((2, 1), 400, jax.numpy.float16), {"labels": np.zeros(2, np.int8)})
    assert found.tolist() == [160000.0, 160000.0]


@pytest.mark.parametrize("labels", [(3, 2), (6,), (1, 6)])
def test_squared_error_refuses_as_many_labels_in_another_order(labels):
    with pytest.raises(ValueError, match=r"labels of the outputs' shape \(2, 3\)"):
        squared_error(jax.numpy.zeros((2, 3)), {"labels": np.zeros(labels)})


@pytest.mark.parametrize("measure", [cross_entropy, accuracy])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 1), int), r"needs labels of shape \(4,\), .* got \(4, 1\)"),
        (np.zeros((4, 3), int), r"labels of shape \(4,\), .*one-hot"),
        (np.zeros(4), "whole numbers from 0 on, got float32"),
        (np.array([0, 1, -1, 2]), r"labels from 0 to 2, .* got -1 at \[2\] and 0 more"),
        (np.array([0, 3, 255, 2], np.uint8), r"got 3 at \[1\] and 1 more outside; what only pads needs weight 0"),
        (jax.numpy.array([-100, 1, 2, 0]), r"got -100 at \[0\]"),
    ],
)
def test_labels_that_are_no_classes_are_refused(measure, labels, message):
    with pytest.raises(ValueError, match=f"{measure.__name__}.*{message}"):
        measure(jax.numpy.zeros((4, 3)), {"labels": labels})


@pytest.mark.parametrize("measure", [cross_entropy, accuracy])
@pytest.mark.parametrize(("dtype", "outside"), [("int32", -1), ("int8", -1), ("uint8", 255), ("uint32", 2**32 - 1)])
def test_inside_a_program_they_are_nan_but_where_they_do_not_count(measure, dtype, outside):
    outputs = jax.numpy.asarray(RNG.normal(size=(3, 200)))
    labels = np.array([outside, 1, outside]).astype(dtype)
    found = jax.jit(measure)(outputs, {"labels": labels, "weight": np.array([0.0, 1.0, 1.0])})
    assert np.isnan(found).tolist() == [False, False, True]


def test_a_label_that_only_pads_has_no_gradient():
    batch = {"labels": np.array([1, -1]), "weight": np.array([1.0, 0.0])}
    loss = lambda outputs, batch: (cross_entropy(outputs, batch) * batch["weight"]).sum()
    gradient = jax.jit(jax.grad(loss))(jax.numpy.zeros((2, 4)), batch)
    assert gradient[1].tolist() == [0.0] * 4
    assert np.isfinite(gradient).all()
