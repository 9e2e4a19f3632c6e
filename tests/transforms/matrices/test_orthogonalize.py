import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab
from optlab.roles import MatrixAxes, read_names

SHAPES = [(4, 4), (3, 8), (8, 3)]


def matrix(m, n, seed=0, singular_values=None):
    rng = np.random.default_rng(seed)
    U, sigma, Vt = np.linalg.svd(rng.standard_normal((m, n)), full_matrices=False)
    return (U * (sigma if singular_values is None else singular_values)) @ Vt


def orthogonal(tree, axes=None, **settings_):
    tx = optlab.orthogonalize(**settings_)
    with jax.enable_x64(True):
        tree = jax.tree.map(jnp.asarray, tree)
        return jax.tree.map(np.asarray, tx.update(tree, tx.init(tree), layout=read_names(tree, axes))[0])


def by_svd(X):
    U, _, Vt = np.linalg.svd(X, full_matrices=False)
    return U @ Vt


def newton_schulz_on_singular_values(X, steps=5):
    """The definition: the odd polynomial aσ + bσ³ + cσ⁵ of every singular value, iterated."""
    U, sigma, Vt = np.linalg.svd(X, full_matrices=False)
    sigma = sigma / np.linalg.norm(sigma)
    for _ in range(steps):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return (U * sigma) @ Vt


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_exact(shape):  # A21
    X = matrix(*shape)
    Y = orthogonal(X, method="svd")
    np.testing.assert_allclose(Y, by_svd(X), atol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(Y, compute_uv=False), 1, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape, steps):  # A20
    X = matrix(*shape)
    expected = newton_schulz_on_singular_values(X, steps)
    np.testing.assert_allclose(orthogonal(X, steps=steps, eps=0.0), expected, atol=1e-10)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([*SHAPES, (16, 16), (5, 40)]))
def test_singular_values_end_near_one_where_they_arent_tiny(seed, shape):
    spectrum = np.geomspace(1, 0.05, min(shape))
    sigma = np.linalg.svd(orthogonal(matrix(*shape, seed, spectrum)), compute_uv=False)
    assert sigma.max() < 1.25
    assert sigma.min() > 0.65


@pytest.mark.parametrize("method", ["newton_schulz", pytest.param("svd", marks=pytest.mark.slow)])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30), shape=st.sampled_from(SHAPES))
def test_laws(method, seed, exponent, shape):
    m, n = shape
    X, P, Q = matrix(m, n, seed), by_svd(matrix(m, m, seed + 1)), by_svd(matrix(n, n, seed + 2))
    f = lambda X: orthogonal(X, method=method, eps=0.0)
    np.testing.assert_allclose(f(10.0**exponent * X), f(X), atol=1e-8)  # the scale is forgotten
    np.testing.assert_allclose(f(P @ X @ Q), P @ f(X) @ Q, atol=1e-8)  # rotations go through
    np.testing.assert_allclose(f(X.T), f(X).T, atol=1e-12)


def test_a_norm_beyond_float16_is_summed_in_float32():
    ones = jnp.ones((300, 300), jnp.float16)  # 90,000 squares; the largest number is 65,504
    tx = optlab.orthogonalize()
    update = np.float64(tx.update(ones, tx.init(ones))[0])
    np.testing.assert_allclose(np.linalg.norm(update, 2), 0.7, atol=0.02)  # where five steps take the value 1


@pytest.mark.thinned
@pytest.mark.parametrize("method", ["newton_schulz", "svd"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1.0, 1e4, 1e30])
def test_zero_rank_one_and_badly_scaled_matrices_stay_finite(method, dtype, scale):
    top = float(jnp.finfo(dtype).max)
    tree = {
        "zero": np.zeros((3, 5)),
        "rank one": np.outer(np.arange(1.0, 5), np.ones(6)),
        "one entry": np.eye(4) * np.array([1.0, 0, 0, 0]),
        "wide range": np.diag([1.0, 1e-4, 1e-8]),
    }
    tree = {name: jnp.asarray(np.clip(scale * X, 0, top), dtype) for name, X in tree.items()}
    tx = optlab.orthogonalize(method, eps=1e-45)
    update, _ = tx.update(tree, tx.init(tree))
    assert all(jnp.isfinite(x).all() and x.dtype == dtype for x in jax.tree.leaves(update))
    np.testing.assert_array_equal(update["zero"], 0)
    if tree["rank one"][0, 0] >= jnp.finfo(dtype).tiny:
        np.testing.assert_allclose(np.linalg.norm(np.float64(update["rank one"]), 2), 1, atol=0.35)
        sigma = np.linalg.svd(np.float64(update["rank one"]), compute_uv=False)
        assert sigma[1] < 0.05


def test_a_matrix_far_below_eps_is_taken_for_zero():
    assert np.abs(orthogonal(1e-13 * matrix(4, 4), eps=1e-7)).max() < 0.01


def test_leaves_of_one_shape_are_one_batch():
    """576 matrices must compile like a few: products are counted in the program."""
    tree = {f"layer_{i}": {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))} for i in range(24)}
    tx = optlab.orthogonalize()
    program = jax.jit(lambda g: tx.update(g, tx.init(g))[0]).lower(tree)
    assert program.as_text().count("dot_general") <= 18
    mixed = {"a": matrix(3, 5, 1), "b": [matrix(5, 3, 2), matrix(4, 4, 3)], "c": matrix(3, 5, 4)}
    jax.tree.map(np.testing.assert_allclose, orthogonal(mixed), jax.tree.map(orthogonal, mixed))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (MatrixAxes((), (0, 1, 2), (3,)), (2, 2, 3, 5)),
        (MatrixAxes((), (0,), (1, 2)), (6, 2, 4)),
        (MatrixAxes((0,), (1, 2), (3,)), (3, 2, 4, 6)),
        (MatrixAxes((1,), (2,), (0,)), (4, 3, 5)),
    ],
)
def test_axes_say_how_a_leaf_is_a_matrix(axes, shape):
    X = np.random.default_rng(0).standard_normal(shape)
    order = axes.stack + axes.input + axes.output
    as_matrices = X.transpose(order).reshape(-1, *axes.fans(shape))
    expected = np.stack([by_svd(A) for A in as_matrices]).reshape(X.transpose(order).shape).transpose(np.argsort(order))
    np.testing.assert_allclose(orthogonal({"w": X}, {"w": axes}, method="svd")["w"], expected, atol=1e-12)


@pytest.mark.parametrize("block", [optlab.orthogonalize, optlab.scale_by_matrix_shape])
@pytest.mark.parametrize("axes", [None, {"conv/kernel": MatrixAxes()}])
def test_what_is_no_matrix_is_named(block, axes):
    tree = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}} if axes else {"conv": {"bias": jnp.ones(4)}}
    tx = block()
    with pytest.raises(ValueError, match=r"'conv/(kernel|bias)' of shape \(.*4,?\) isn't one: let by_role route"):
        tx.update(tree, tx.init(tree), layout=read_names(tree, axes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "qr"}, "method must be one of 'newton_schulz', 'polar_express', 'svd', got 'qr'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, r"steps must be a whole number of at least 1, got 2\.5"),
        ({"steps": "5"}, "steps must be a whole number of at least 1, got '5'"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"eps": -1.0}, r"eps must not be negative, got -1\.0"),
        ({"lower_bound": 0.0}, r"lower_bound must lie in \[1e-6, 1\), got 0.0"),
        ({"lower_bound": None}, r"lower_bound must lie in \[1e-6, 1\), got None"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        ({"method": "svd", "dtype": "bfloat16"}, "method='svd' needs float32, got dtype='bfloat16'"),
        ({"method": "polar_express", "steps": 9, "lower_bound": 1e-5, "dtype": "bfloat16"}, "isn't stable in 16 bits"),
        ({"method": "polar_express", "steps": 9, "lower_bound": 1e-5, "dtype": "float16"}, "isn't stable in 16 bits"),
        ({"method": "polar_express", "steps": 10, "lower_bound": 1e-5, "precision": "default"}, "at least 0.0001, or"),
        ({"precision": "tf32"}, "precision must be one of 'default', 'high', 'highest', got 'tf32'"),
    ],
)
def test_orthogonalize_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optlab.orthogonalize(**arguments)


@pytest.mark.thinned
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express", "svd"])
@pytest.mark.parametrize("empty", [(0, 5), (5, 0), (0, 4, 4), (2, 0, 3)])
def test_a_leaf_without_entries_goes_through_and_changes_no_other(method, empty):
    axes = MatrixAxes(tuple(range(len(empty) - 2)), (-2 + len(empty),), (-1 + len(empty),))
    matrix_axes = {"empty": axes, "w": MatrixAxes((), (0,), (1,))}
    tree = {"empty": np.zeros(empty), "w": matrix(4, 4)}
    done = orthogonal(tree, matrix_axes, method=method)
    assert done["empty"].shape == empty
    np.testing.assert_array_equal(done["w"], orthogonal({"w": tree["w"]}, method=method)["w"])
    assert orthogonal({"empty": tree["empty"]}, {"empty": axes}, method=method)["empty"].shape == empty


def test_the_optimizers_and_explain_take_leaves_without_entries():
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in (("in", (0, 5)), ("out", (5, 0)), ("w", (4, 4)))}
    for factory in (optlab.muon, optlab.normuon, optlab.adamuon, optlab.muonh):
        tx = factory(0.1)
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params), factory
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((updates, state))), factory
        assert optlab.explain(tx, params).flops == optlab.explain(tx, {"w": params["w"]}).flops > 0


def test_complex_matrices_need_the_svd():
    G = {"w": {"kernel": jnp.asarray(matrix(3, 4) + 1j * matrix(3, 4, 1))}}
    for method in ("newton_schulz", "polar_express"):
        tx = optlab.orthogonalize(method)
        with pytest.raises(ValueError, match="needs real matrices, and 'w/kernel' is complex64: take method='svd'"):
            tx.update(G, tx.init(G))
    tx = optlab.orthogonalize("svd")
    done = tx.update(G, tx.init(G))[0]["w"]["kernel"]
    np.testing.assert_allclose(done, by_svd(G["w"]["kernel"]), atol=1e-5)
