"""ReLU networks: what they are exactly, how far others get, and the claim that doesn't hold in two dimensions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optlab
from optlab.theory import approximation as ap

same = np.testing.assert_allclose


network = jax.jit(jax.vmap(ap.network, in_axes=(None, 0)))  # the layers are its arguments: one program a shape


def values(layers, x):
    return np.asarray(network(layers, jnp.asarray(x)))


@given(data=st.data(), count=st.sampled_from([1, 2, 6]))  # each a compilation
def test_every_piecewise_linear_function_is_a_network_exactly(data, count):
    with jax.enable_x64(True):
        numbers = st.floats(-3, 3)
        kinks = np.cumsum([data.draw(st.floats(0.1, 2)) for _ in range(count)]) - 2
        heights = np.array([data.draw(numbers) for _ in range(count)])
        left, right = data.draw(numbers), data.draw(numbers)
        x = np.linspace(-6, 12, 97)
        expected = np.interp(x, kinks, heights)
        expected += left * np.minimum(x - kinks[0], 0) + right * np.maximum(x - kinks[-1], 0)
        layers = ap.piecewise_linear(kinks, heights, left=left, right=right)
        same(values(layers, x), expected, atol=1e-11)
        assert layers[0][0].shape == (count + 1, 1)


def test_a_hat_is_three_relus():
    x = np.linspace(-1, 4, 101)
    layers = ap.hat(0.5, 1.0, 3.0)
    same(values(layers, x), np.interp(x, [0.5, 1, 3], [0, 1, 0]), atol=1e-14)
    assert layers[0][0].shape == (3, 1)


def test_the_error_falls_with_the_square_of_the_width_and_is_bounded_by_what_is_told():
    x = np.linspace(0, np.pi, 4001)
    errors = {w: np.abs(values(ap.interpolant(jnp.sin, w, 0.0, np.pi), x) - np.sin(x)).max() for w in (9, 17, 33)}
    for width, error in errors.items():
        assert error <= ap.interpolation_error(1.0, width, 0.0, np.pi)
        same(error, ap.interpolation_error(1.0, width, 0.0, np.pi), rtol=0.05)
    same(errors[9] / errors[17], 4, rtol=0.05)


def test_a_polynomial_activation_gets_no_further_however_wide():
    """With σ(z) = z² + z a network of any width fits |x| no better than the best parabola, and a ReLU one does."""
    x = np.linspace(-1, 1, 401)
    parabola = ap.best_error(lambda x: x ** jnp.arange(3), jnp.abs, x)
    assert parabola > 0.05
    for width in (4, 64):
        for_w, for_b = jax.random.split(jax.random.key(width))
        w, b = jax.random.normal(for_w, (width,), float), jax.random.normal(for_b, (width,), float)
        wide = lambda activation, w=w, b=b: lambda x: jnp.append(activation(w * x + b), 1.0)
        same(ap.best_error(wide(lambda z: z**2 + z), jnp.abs, x), parabola, rtol=1e-6)
    assert ap.best_error(wide(jax.nn.relu), jnp.abs, x) < 0.5 * parabola


def test_without_biases_there_are_two_slopes():
    x = np.linspace(-1, 1, 401)
    slopes = lambda x: jnp.stack([jax.nn.relu(x), jax.nn.relu(-x)])
    f = lambda x: 1 - jnp.abs(x)
    best = ap.best_error(slopes, f, x)
    assert best > 0.4
    w = jax.random.normal(jax.random.key(0), (64,), float)
    same(ap.best_error(lambda x: jax.nn.relu(w * x), f, x), best, rtol=1e-6)


def test_training_finds_no_better_than_the_best_error():
    """Adam on a network with a polynomial activation stays above the parabola's error."""
    x = jnp.linspace(-1, 1, 101)
    polynomial = lambda z: z**2
    keys = jax.random.split(jax.random.key(0), 2)
    start = [
        (jax.random.normal(keys[0], (16, 1), float), jnp.zeros(16)),
        (jax.random.normal(keys[1], (1, 16), float) / 4, jnp.zeros(1)),
    ]
    fit = lambda layers: jnp.mean((jax.vmap(lambda x: ap.network(layers, x, polynomial))(x) - jnp.abs(x)) ** 2)
    path = optlab.minimize(fit, optlab.adam(0.02), start, steps=400, record=None)
    best = ap.best_error(lambda x: x ** jnp.arange(3), jnp.abs, x)
    assert (1 - 1e-9) * best**2 <= path.values[-1] < 1.2 * best**2  # which it all but reaches


# Two dimensions.


def test_two_hidden_layers_are_the_maximum_of_two_and_nothing():
    x = np.random.default_rng(0).normal(size=(500, 2))
    same(values(ap.largest(), x), np.maximum(0, x.max(axis=1)), atol=1e-14)


def test_one_hidden_layer_bends_by_the_same_amount_all_along_a_line():
    rng = np.random.default_rng(0)
    layers = [
        (jnp.asarray(rng.normal(size=(5, 2))), jnp.asarray(rng.normal(size=5))),
        (jnp.asarray(rng.normal(size=(1, 5))), jnp.zeros(1)),
    ]
    (W, b), (a, _) = layers
    normal = W[0] / jnp.linalg.norm(W[0])
    along = jnp.array([-normal[1], normal[0]])
    foot = -b[0] * W[0] / jnp.sum(W[0] ** 2)
    bends = [
        ap.bend(functools.partial(ap.network, layers), foot + t * along, normal, step=1e-5)
        for t in (-50, -3.3, 2.1, 70)
    ]
    same(bends, np.full(4, a[0, 0] * np.linalg.norm(W[0])), rtol=1e-6)


def test_so_it_is_not_the_maximum_which_bends_along_rays():
    """x₁ = x₂ is a bend of max(0, x₁, x₂) on one side of 0, and none on the other."""
    normal = jnp.array([1.0, -1.0]) / jnp.sqrt(2)
    f = functools.partial(ap.network, ap.largest())
    same(ap.bend(f, jnp.array([2.0, 2.0]), normal), np.sqrt(2), rtol=1e-9)
    same(ap.bend(f, jnp.array([-2.0, -2.0]), normal), 0, atol=1e-9)


# Depth.


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_depth_folds_as_many_pieces_as_width_would_have_to_lay_side_by_side(depth):
    deep = functools.partial(ap.network, ap.sawtooth(depth))
    assert ap.count_pieces(deep, 0.0, 1.0, cells=2**depth) == 2**depth
    kinks = np.arange(2**depth + 1) / 2**depth
    shallow = ap.piecewise_linear(kinks, np.arange(2**depth + 1) % 2)
    x = np.linspace(0, 1, 777)
    same(values(ap.sawtooth(depth), x), values(shallow, x), atol=1e-9)
    told = ap.widths_of_sawtooth(depth)
    assert told["deep"] == sum(len(b) for _, b in ap.sawtooth(depth)[:-1])
    assert told["shallow"] == 2**depth  # bends inside (0, 1), and one unit for the first slope


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ap.piecewise_linear([0.0, 0.0], [1.0, 2.0]), r"kinks must ascend, got \[0.0, 0.0\]"),
        (lambda: ap.piecewise_linear([0.0, 1.0], [1.0]), "values must have the shape"),
        (lambda: ap.hat(1.0, 0.0, 2.0), r"top must be above left \(1.0\), got 0.0"),
        (lambda: ap.interpolant(jnp.sin, 1, 0.0, 1.0), "width must be a whole number of at least 2, got 1"),
        (lambda: ap.sawtooth(0), "depth must be a whole number of at least 1, got 0"),
        (lambda: ap.network(ap.largest(), 1.0), r"x must have the shape \(2,\), as the first layer's inputs"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
