"""`optlab.minimize` to the letter of the stopping rule, for any transformation, tree and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

RATES = np.array([1.0, 10.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def ravine(x):
    return 0.5 * jnp.sum(RATES * x**2)


def descent(lr, steps):
    """Gradient descent by hand: iterates, values, norms."""
    xs = [np.ones(2)]
    for _ in range(steps):
        xs.append(xs[-1] - lr * RATES * xs[-1])
    xs = np.array(xs)
    return xs, 0.5 * (RATES * xs**2).sum(1), np.linalg.norm(RATES * xs, axis=1)


def test_every_iterate_value_and_norm_is_kept():
    path = optlab.minimize(ravine, optlab.sgd(0.05), jnp.ones(2), steps=30)
    xs, values, norms = descent(0.05, 30)
    np.testing.assert_allclose(path.x, xs, rtol=1e-13)
    np.testing.assert_allclose(path.values, values, rtol=1e-13)
    np.testing.assert_allclose(path.gradient_norms, norms, rtol=1e-13)
    np.testing.assert_allclose(path.final, xs[-1], rtol=1e-13)
    assert path.steps == 30


def test_no_update_is_made_once_the_gradient_is_small():
    xs, _, norms = descent(0.05, 500)
    needed = int(np.argmax(norms <= 1e-3))
    path = optlab.minimize(ravine, optlab.sgd(0.05), jnp.ones(2), steps=500, tolerance=1e-3)
    assert path.steps == needed
    np.testing.assert_allclose(path.final, xs[needed], rtol=1e-12)
    assert path.gradient_norms[needed - 1] > 1e-3 >= path.gradient_norms[needed] == path.gradient_norms[-1]
    np.testing.assert_array_equal(path.x[needed:], np.broadcast_to(path.final, (501 - needed, 2)))


@pytest.mark.parametrize("start", [0.0, 1e-5])
def test_a_start_that_is_good_enough_stays_as_it_is(start):
    path = optlab.minimize(ravine, optlab.sgd(0.05), jnp.full(2, start), steps=9, tolerance=1e-3)
    assert path.steps == 0
    np.testing.assert_array_equal(path.x, np.full((10, 2), start))


def test_a_tolerance_that_is_never_reached_changes_nothing():
    free, bound = (optlab.minimize(ravine, optlab.adam(0.1), jnp.ones(2), steps=20, tolerance=t) for t in (None, 0.0))
    jax.tree.map(np.testing.assert_array_equal, free, bound)


def test_no_steps_evaluate_the_start():
    for tolerance in (None, 1e-3):
        path = optlab.minimize(ravine, optlab.sgd(0.1), jnp.ones(2), steps=0, tolerance=tolerance)
        assert path.values.shape == (1,)
        assert path.steps == 0


def test_the_gradient_of_a_noisy_function_has_a_key_of_its_own_each_time():
    noisy = lambda x, key: ravine(x) + x @ jax.random.normal(key, (2,))
    key = jax.random.key(3)
    path = optlab.minimize(noisy, optlab.sgd(0.05), jnp.ones(2), steps=5, key=key)
    x = jnp.ones(2)
    for t in range(5):
        x = x - 0.05 * jax.grad(noisy)(x, jax.random.fold_in(key, t))
    np.testing.assert_allclose(path.final, x, rtol=1e-13)


def test_it_maps_over_starts_seeds_and_hyperparameters():
    noisy = lambda x, key: ravine(x) + x @ jax.random.normal(key, (2,))
    rates, keys, starts = jnp.array([0.01, 0.05]), jax.random.split(jax.random.key(0), 2), jnp.eye(2)
    run = lambda lr, key, x0: optlab.minimize(noisy, optlab.sgd(lr), x0, steps=7, key=key)
    many = jax.vmap(run)(rates, keys, starts)
    for i in range(2):
        one = run(rates[i], keys[i], starts[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12), many, one)


def test_each_mapped_start_stops_by_itself():
    run = lambda x0: optlab.minimize(ravine, optlab.sgd(0.05), x0, steps=400, tolerance=1e-3)
    starts = jnp.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    many = jax.vmap(run)(starts)
    assert [int(n) for n in many.steps] == [int(run(x0).steps) for x0 in starts]
    assert len(set(many.steps.tolist())) == 3


def test_any_tree_and_what_is_recorded_of_it():
    f = lambda p: jnp.sum(p["w"] ** 2) + p["b"] ** 2
    path = optlab.minimize(f, optlab.adam(0.1), {"w": jnp.ones((2, 3)), "b": 1.0}, steps=4, record=lambda p: p["b"])
    assert path.x.shape == (5,)
    assert path.final["w"].shape == (2, 3)
    assert optlab.minimize(f, optlab.sgd(0.1), {"w": jnp.ones(2), "b": 1.0}, steps=4, record=None).x is None


def test_rules_that_ask_for_the_function_get_it():
    path = optlab.minimize(ravine, optax.lbfgs(), jnp.ones(2), steps=20, tolerance=1e-10)
    assert path.steps < 10
    assert path.gradient_norms[-1] <= 1e-10


def test_complex_numbers_go_downhill():
    f = lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)
    path = optlab.minimize(f, optlab.sgd(0.25), jnp.zeros(1, complex), steps=60)
    np.testing.assert_allclose(path.final, [1 + 2j], atol=1e-12)


def test_it_is_differentiable_in_a_hyperparameter():
    end = lambda lr: optlab.minimize(ravine, optlab.sgd(lr), jnp.ones(2), steps=3).values[-1]
    exact = jax.grad(lambda lr: 0.5 * jnp.sum(RATES * (1 - lr * RATES) ** 6))(0.02)
    np.testing.assert_allclose(jax.grad(end)(0.02), exact, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x0": jnp.arange(2)}, ValueError, "x0 must be floating-point numbers, got int32: write 1.0 for 1"),
        ({"x0": {"a": jnp.arange(2)}}, ValueError, r"x0\['a'\] must be floating-point"),
        ({"f": lambda x: x}, ValueError, r"f must return one real number, got float64\[2\]"),
        ({"f": lambda x, key: x.sum()}, TypeError, r"f doesn't take \(x\): missing .*'key'.* key=jax.random.key"),
        ({"key": jax.random.key(0)}, TypeError, r"f doesn't take \(x, key\): too many"),
        ({"steps": -1}, ValueError, "steps must be a whole number of at least 0, got -1"),
        ({"tolerance": -1e-3}, ValueError, "tolerance must not be negative, got -0.001"),
    ],
)
def test_what_cannot_work_is_named(arguments, error, message):
    given = {"f": ravine, "tx": optlab.sgd(0.1), "x0": jnp.ones(2), "steps": 3, **arguments}
    with pytest.raises(error, match=message):
        optlab.minimize(given.pop("f"), given.pop("tx"), given.pop("x0"), **given)


def test_one_dimension_is_drawn_on_the_graph_and_two_on_level_lines():
    one = optlab.minimize(lambda x: (x - 2) ** 2, optlab.sgd(0.1), 0.0, steps=9).plot()
    graph, line = one.lines
    np.testing.assert_allclose(graph.get_ydata(), (np.asarray(graph.get_xdata()) - 2) ** 2)
    assert len(line.get_xdata()) == 10
    run = lambda x0: optlab.minimize(ravine, optlab.sgd(0.05), x0, steps=9)
    two = jax.vmap(run)(jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])).plot()
    assert len(two.lines) == 3
    assert len(two.collections) == 1


def test_a_pair_of_leaves_is_drawn_too_and_a_noisy_function_when_told_what_on():
    noisy = lambda p, key: (p["w"] - 2) ** 2 + p["b"] ** 2 + p["w"] * jax.random.normal(key)
    path = optlab.minimize(noisy, optlab.sgd(0.1), {"w": 0.0, "b": 1.0}, steps=9, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"noisy: give plot\(f=…\)"):
        path.plot()
    path.plot(lambda p: (p["w"] - 2) ** 2 + p["b"] ** 2)


def test_a_picture_that_cannot_be_drawn_is_named():
    f = lambda x: jnp.sum(x**2)
    with pytest.raises(ValueError, match="one or two dimensions, and x has 3"):
        optlab.minimize(f, optlab.sgd(0.1), jnp.ones(3), steps=2).plot()
    with pytest.raises(ValueError, match="needs the iterates themselves"):
        optlab.minimize(f, optlab.sgd(0.1), jnp.ones(2), steps=2, record=None).plot()
    with pytest.raises(ValueError, match="needs the iterates themselves"):
        optlab.minimize(f, optlab.sgd(0.1), jnp.ones(2), steps=2, record=lambda x: x * 100).plot()
    with pytest.raises(ValueError, match="no point at which f is finite"):
        optlab.minimize(f, optlab.sgd(0.1), jnp.full(2, jnp.nan), steps=2).plot()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [4.0, 59.0])
def test_a_path_that_diverged_is_drawn_where_f_is_finite(dtype, factor):
    """x is multiplied by −factor in every step, to the dtype's end or to infinity and NaN."""
    rate = (1 + factor) / 2
    path = optlab.minimize(lambda x: jnp.sum(x**2), optlab.sgd(rate), jnp.array([-2.0, 0.5], dtype), steps=260)
    (line,) = (ax := path.plot()).lines
    assert np.isfinite(line.get_xydata()).all()
    assert 5 < len(line.get_xdata()) < 261
    assert len(ax.collections) == 1


@pytest.mark.parametrize("slope", [1e-22, 1e20, 1e38])
def test_the_gradients_norm_is_right_where_its_squares_vanish_or_overflow(slope):
    f = lambda x: jnp.sum(x * np.float32([3, 0, -4])) * np.float32(slope / 4)
    path = optlab.minimize(f, optlab.sgd(0.0), jnp.ones(3, jnp.float32), steps=2, tolerance=slope / 2)
    np.testing.assert_allclose(path.gradient_norms, 1.25 * slope, rtol=1e-6)
    assert path.steps == 2
