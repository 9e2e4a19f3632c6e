import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optlab.roles import MatrixAxes, by_role, read_names
from optlab.transforms.matrices import _norms as norms

from ..runs import in_float64

LEAVES = {  # a shape, its axes, and the axes of the state of a neuron and of a matrix
    "dense": ((4, 6), MatrixAxes((), (0,), (1,)), (1, 6), (1, 1)),
    "torch's dense": ((6, 4), MatrixAxes((), (1,), (0,)), (6, 1), (1, 1)),
    "conv": ((2, 3, 4, 5), MatrixAxes((), (0, 1, 2), (3,)), (1, 1, 1, 5), (1, 1, 1, 1)),
    "out of heads": ((2, 3, 4), MatrixAxes((), (0, 1), (2,)), (1, 1, 4), (1, 1, 1)),
    "scanned into heads": ((3, 4, 2, 5), MatrixAxes((0,), (1,), (2, 3)), (3, 1, 2, 5), (3, 1, 1, 1)),
    "fused qkv": ((4, 18), MatrixAxes((1,), (0,), (2,), (4, 3, 6)), (1, 3, 6), (1, 3, 1)),
}
every_leaf = pytest.mark.parametrize(("shape", "axes", "neurons", "matrices"), LEAVES.values(), ids=LEAVES.keys())


def alone(tx, axes):
    """The transform under by_role, which tells it the axes of the only leaf."""
    return by_role({"default": tx}, lambda tree: read_names(tree, {"*": axes}))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@every_leaf
def test_neurons_by_their_own_average(shape, axes, neurons, matrices):
    """NorMuon's Algorithm 1, a mean over what comes into each neuron."""
    G = normal(5, *shape)
    view = G.reshape(5, *(axes.view or shape))
    square = np.mean(view**2, axis=tuple(a + 1 for a in axes.input), keepdims=True)
    tx = alone(norms.scale_by_neuron_rms(0.9, 1e-3), axes)

    def run(G):
        step = lambda state, g: tx.update(g, state)[::-1]
        state, u = jax.lax.scan(step, tx.init(G[0]), G)
        return jax.tree.leaves(state)[0], u

    v, got = in_float64(run)(G)
    assert v.shape == neurons
    expected, average = [], 0.0
    for o, s in zip(view, square, strict=True):
        average = 0.9 * average + 0.1 * s
        expected.append((o / (np.sqrt(average) + 1e-3)).reshape(shape))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(v, average, rtol=1e-12)


@every_leaf
def test_every_matrix_gets_its_root_mean_square(shape, axes, neurons, matrices):
    u = in_float64(
        lambda g: alone(norms.scale_to_rms(0.3), axes).update(g, alone(norms.scale_to_rms(), axes).init(g))[0]
    )
    over = axes.input + axes.output
    view = lambda x: x.reshape(axes.view or shape)
    g = normal(*shape)
    got = u(g)
    np.testing.assert_allclose(np.sqrt(np.mean(view(got) ** 2, axis=over)), 0.3, rtol=1e-12)
    ratio = view(got) / view(g)
    np.testing.assert_allclose(ratio, ratio.mean(axis=over, keepdims=True) * np.ones_like(ratio), rtol=1e-9)


@every_leaf
def test_every_matrix_stays_on_its_sphere(shape, axes, neurons, matrices):
    """Hyperball: W ← R·Normalize(W − ηR·Normalize(u))."""
    rate, W, us = 0.1, normal(*shape), normal(20, *shape, seed=1)
    over = axes.input + axes.output
    norm = lambda x: np.sqrt(np.sum(x**2, axis=over, keepdims=True))
    tx = alone(optax.chain(norms.scale_to_weight_norm(), optax.scale(-rate), norms.keep_weight_norm()), axes)

    def run(W, us):
        def step(carry, u):
            W, state = carry
            update, state = tx.update(u, state, W)
            return (W + update, state), W + update

        (_, state), path = jax.lax.scan(step, (W, tx.init(W)), us)
        return jax.tree.leaves(state)[0], path

    R, path = in_float64(run)(W, us)
    assert R.shape == matrices
    W = W.reshape(axes.view or shape)
    radius = norm(W)
    np.testing.assert_allclose(R, radius, rtol=1e-12)
    for u, got in zip(us, path, strict=True):
        u = u.reshape(W.shape)
        W = W - rate * radius * u / norm(u)
        W = radius * W / norm(W)
        np.testing.assert_allclose(got.reshape(W.shape), W, rtol=1e-10)
    np.testing.assert_allclose(norm(W), radius, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6))
def test_sizes_dont_see_the_updates_size(scale):
    u, W = normal(4, 6), normal(4, 6, seed=1)
    for tx in (norms.scale_to_rms(), norms.scale_to_weight_norm()):
        first = lambda u, tx=tx: np.asarray(tx.update(jnp.asarray(u), tx.init(W), jnp.asarray(W))[0])
        np.testing.assert_allclose(first(np.float32(scale * u)), first(np.float32(u)), rtol=1e-4)


@pytest.mark.parametrize("tx", [norms.scale_to_rms(), norms.scale_to_weight_norm(), norms.keep_weight_norm()])
def test_zeros_stay_zeros(tx):
    zero = jnp.zeros((4, 6))
    for W in (zero, jnp.ones((4, 6))):
        np.testing.assert_array_equal(tx.update(zero, tx.init(W), W)[0], 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_matrix_that_starts_as_zero_moves(compiled):
    """It has no size of its own and no sphere; the other matrix of the stack stays on its own."""
    W, axes = np.stack([np.zeros((4, 3)), normal(4, 3)]), MatrixAxes((0,), (1,), (2,))
    W, u = jnp.float32(W), jnp.float32(normal(2, 4, 3, seed=1))
    for tx in (norms.scale_to_weight_norm(), norms.keep_weight_norm()):
        tx = alone(tx, axes)
        init, update = (jax.jit(tx.init), jax.jit(tx.update)) if compiled else (tx.init, tx.update)
        moved = update(u, init(W), W)[0]
        np.testing.assert_array_equal(moved[0], u[0])
        assert not np.allclose(moved[1], u[1])
    np.testing.assert_allclose(np.linalg.norm(W[1] + moved[1]), np.linalg.norm(W[1]), rtol=1e-5)


def test_other_axes_at_update_than_at_init_are_refused():
    g = jnp.ones((4, 4))
    layout = read_names([g], {"0": MatrixAxes((), (1,), (0,))})
    for tx in (norms.scale_by_neuron_rms(),):
        with pytest.raises(ValueError, match=r"initialized for other matrix axes: its state has shape \(1, 4\)"):
            tx.update([g], tx.init([g]), [g], layout=layout)


def test_leaves_that_are_no_matrices_are_refused():
    with pytest.raises(ValueError, match=r"scale_by_neuron_rms moves matrices, and 'b' of shape \(3,\) isn't one"):
        norms.scale_by_neuron_rms().init({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match="scale_to_rms moves matrices"):
        norms.scale_to_rms().update({"b": jnp.ones(3)}, optax.EmptyState())


@pytest.mark.parametrize("factory", [norms.scale_to_weight_norm, norms.keep_weight_norm])
def test_without_the_weights_there_is_an_error(factory):
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, params\)"):
        factory().update(jnp.ones((2, 2)), factory().init(jnp.ones((2, 2))))


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (norms.scale_by_neuron_rms, {"decay": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        (norms.scale_by_neuron_rms, {"eps": -1.0}, r"eps must not be negative, got -1\.0"),
        (norms.scale_to_rms, {"rms": 0.0}, r"rms must be positive, got 0\.0"),
    ],
)
def test_norms_refuse(factory, arguments, message):
    with pytest.raises(ValueError, match=message):
        factory(**arguments)
