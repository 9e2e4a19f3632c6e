"""The step: exact means over microbatches and devices, averaging, extra arguments for rules that ask for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from optlab.training import StepSettings, Workload, evaluation_params, init_state, make_step, train


def loss(params, model_state, batch, key, train):
    """Weighted least squares with a running mean, and dropout when there is a rate."""
    outputs = batch["inputs"] @ params["w"]
    errors = (outputs - batch["labels"]) ** 2
    weight = batch["weight"]
    total, count = jnp.sum(errors * weight), jnp.sum(weight)
    model_state = {"seen": model_state["seen"] + count} if train else model_state
    return total / count, (model_state, {"loss": (total, count)})


def problem(examples=12, seed=0):
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.normal(size=3))}
    batch = {
        "inputs": rng.normal(size=(examples, 3)),
        "labels": rng.normal(size=examples),
        "weight": rng.uniform(0.1, 2.0, size=examples),
    }
    return params, {"seen": jnp.zeros(())}, batch


def oracle_gradient(w, batch):
    error = batch["inputs"] @ w - batch["labels"]
    return 2 * batch["inputs"].T @ (batch["weight"] * error) / batch["weight"].sum()


def states(tx, steps=3, **kwargs):
    params, model_state, batch = problem()
    state = init_state(params, model_state, tx, key=jax.random.key(0), ema="ema" in kwargs)
    step = jax.jit(make_step(loss, tx, **kwargs))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("accumulate", [1, 2, 3, 12])
def test_microbatches_of_unequal_weight_give_the_whole_batchs_gradient(accumulate):
    with jax.enable_x64(True):
        state, metrics = states(optax.sgd(0.1), accumulate=accumulate)
        params, _, batch = problem()
        w = np.asarray(params["w"])
        for _ in range(3):
            gradient = oracle_gradient(w, batch)
            w = w - 0.1 * gradient
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-12)
        np.testing.assert_allclose(metrics["gradient_norm"][0], np.linalg.norm(gradient), rtol=1e-12)
        np.testing.assert_allclose(metrics["loss"][1], batch["weight"].sum(), rtol=1e-12)
        np.testing.assert_allclose(state.model_state["seen"], 3 * batch["weight"].sum(), rtol=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_of_unequal_weight_give_the_whole_batchs_gradient(accumulate):
    with jax.enable_x64(True):
        params, model_state, batch = problem(24)
        tx = optax.sgd(0.1)
        state = init_state(params, model_state, tx, key=jax.random.key(0))
        step = make_step(loss, tx, axis_name="device", accumulate=accumulate)
        mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
        sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("device")), out_specs=P(), check_vma=False)
        state, metrics = jax.jit(sharded)(state, batch)
        expected = np.asarray(params["w"]) - 0.1 * oracle_gradient(np.asarray(params["w"]), batch)
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-12)
        np.testing.assert_allclose(metrics["loss"][1], batch["weight"].sum(), rtol=1e-12)


def test_what_devices_share_in_the_loss_counts_by_the_weight_of_each():
    """As with BatchNorm: each device's loss reads the mean of all, so that a gradient passes from one to another."""

    def centred(params, model_state, batch, key, train, *, axis=None):
        y = jnp.tanh(batch["inputs"] @ params["w"])
        mean = jnp.mean(y) if axis is None else jax.lax.pmean(jnp.mean(y), axis)
        total = jnp.sum(batch["weight"] * (y - mean - batch["labels"]) ** 2)
        weight = jnp.sum(batch["weight"])
        return total / weight, (model_state, {"loss": (total, weight)})

    with jax.enable_x64(True):
        params, model_state, batch = problem(24)
        tx = optax.sgd(0.1)
        state = init_state(params, model_state, tx, key=jax.random.key(0))
        expected, _ = make_step(centred, tx)(state, batch)
        step = make_step(functools.partial(centred, axis="device"), tx, axis_name="device")
        parts = jax.tree.map(lambda x: x.reshape(4, 6, *x.shape[1:]), batch)
        found, _ = jax.pmap(step, axis_name="device", in_axes=(None, 0), out_axes=None)(state, parts)
        np.testing.assert_allclose(found.params["w"], expected.params["w"], rtol=1e-12)


@pytest.mark.thinned
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("make", [optax.lbfgs, lambda: optax.polyak_sgd(1.0), lambda: optax.contrib.momo(0.1)])
def test_rules_that_ask_for_value_and_gradient_get_them(make, accumulate):
    with jax.enable_x64(True):
        _, metrics = states(make(), steps=10, accumulate=accumulate)
        params, _, batch = problem()
        assert metrics["loss"][0] / metrics["loss"][1] < loss(params, {"seen": 0}, batch, None, False)[0]


@pytest.mark.parametrize("opaque_mode", [False, True])
def test_sam_takes_the_gradient_at_the_point_that_is_worst_nearby(opaque_mode):
    """Two steps of the transparent mode, of which the first only looks there, are one of the opaque mode."""
    rate, radius = 0.1, 0.5
    with jax.enable_x64(True):
        params, model_state, batch = problem()
        worst = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
        tx = optax.contrib.sam(optax.sgd(rate), worst, opaque_mode=opaque_mode)
        step = jax.jit(make_step(loss, tx))
        state = init_state(params, model_state, tx, key=jax.random.key(0))
        for _ in range(1 if opaque_mode else 2):
            state, _ = step(state, batch)
        slope = jax.grad(lambda params: loss(params, model_state, batch, None, True)[0])
        there = jax.tree.map(lambda p, g: p + radius * g / optax.global_norm(slope(params)), params, slope(params))
        for p, g, found in zip(*map(jax.tree.leaves, (params, slope(there), state.params)), strict=True):
            np.testing.assert_allclose(found, p - rate * g, rtol=1e-12)


def test_lbfgs_with_microbatches_walks_lbfgss_own_path():
    with jax.enable_x64(True):
        whole, parts = (states(optax.lbfgs(), steps=8, accumulate=n)[0] for n in (1, 4))
        np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-8)


def test_the_moving_average_is_the_formula():
    with jax.enable_x64(True):
        params, _, batch = problem()
        w = average = np.asarray(params["w"])
        for _ in range(3):
            w = w - 0.1 * oracle_gradient(w, batch)
            average = 0.9 * average + 0.1 * w
        state, _ = states(optax.sgd(0.1), ema=0.9)
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-12)


def test_the_tail_average_is_the_mean_of_the_last_iterates():
    from optlab.schedules import tail_average

    with jax.enable_x64(True):
        params, _, batch = problem()
        w, iterates = np.asarray(params["w"]), []
        for _ in range(6):
            w = w - 0.1 * oracle_gradient(w, batch)
            iterates.append(w)
        state, _ = states(optax.sgd(0.1), steps=6, ema=tail_average(2))
        np.testing.assert_allclose(state.ema["w"], np.mean(iterates[2:], axis=0), rtol=1e-7)


def test_the_tail_average_takes_its_share_after_ten_million_steps():
    from optlab.schedules import tail_average

    params, model_state, batch = problem()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    tx = optax.sgd(0.0)
    state = init_state(params, model_state, tx, key=jax.random.key(0), ema=True)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = dataclasses.replace(state, step=jnp.int32(10**7), ema=zero)
    new, _ = jax.jit(make_step(loss, tx, ema=tail_average(0)))(state, batch)
    jax.tree.map(lambda a, p: np.testing.assert_allclose(a, p / (10**7 + 1), rtol=1e-6), new.ema, params)


def test_the_key_of_a_step_depends_on_the_step_alone():
    def noisy(params, model_state, batch, key, train):
        value = jax.random.normal(key)
        return value + 0 * params["w"].sum(), (model_state, {"loss": (value, jnp.ones(()))})

    params, _, batch = problem()
    tx = optax.sgd(0.1)
    first = init_state(params, {}, tx, key=jax.random.key(0))
    step = jax.jit(make_step(noisy, tx))
    second, drawn = step(first, batch)
    third, drawn_next = step(second, batch)
    assert drawn["loss"][0] != drawn_next["loss"][0]
    assert jax.random.key_data(third.key).tolist() == jax.random.key_data(first.key).tolist()
    assert step(second, batch)[1]["loss"][0] == drawn_next["loss"][0]


def test_what_is_not_finite_is_flagged():
    def broken(params, model_state, batch, key, train):
        value = params["w"].sum() * batch["scale"][0]
        return value, (model_state, {"loss": (value, jnp.ones(()))})

    tx = optax.sgd(0.1)
    state = init_state({"w": jnp.ones(2)}, {}, tx, key=jax.random.key(0))
    step = make_step(broken, tx)
    assert step(state, {"scale": jnp.ones(1)})[1]["fault"][0] == 0
    assert step(state, {"scale": jnp.full(1, jnp.nan)})[1]["fault"][0] == 1
    assert "fault" not in make_step(broken, tx, guard=None)(state, {"scale": jnp.ones(1)})[1]


def test_a_state_shares_no_buffer_with_what_it_was_made_of():
    params, model_state, _ = problem()
    state = init_state(params, model_state, optax.lbfgs(), key=jax.random.key(0), ema=True)
    pointers = [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    assert len(set(pointers)) == len(pointers)
    jax.jit(make_step(loss, optax.lbfgs(), ema=0.5), donate_argnums=0)(state, problem()[2])
    assert np.isfinite(params["w"]).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"guard": "skipp"}, "guard must be 'stop', 'skip' or None, got 'skipp'"),
        ({"spike": 0.0}, "spike must be above 0, got 0.0"),
        ({"spike": 4.0, "guard": None}, "spike=4 needs guard='stop' or 'skip'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_step(loss, optax.sgd(0.1), **kwargs)


def test_microbatches_must_divide_the_batch():
    params, model_state, batch = problem(12)
    state = init_state(params, model_state, optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match="accumulate must divide the batch's 12 examples, got 5"):
        make_step(loss, optax.sgd(0.1), accumulate=5)(state, batch)


def test_a_loss_without_its_sum_is_refused():
    bare = lambda params, model_state, batch, key, train: (params["w"].sum(), (model_state, {"accuracy": (1.0, 1.0)}))
    state = init_state({"w": jnp.ones(2)}, {}, optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"must hold 'loss' as \(sum, weight\), got the names \['accuracy'\]"):
        make_step(bare, optax.sgd(0.1))(state, {})


def test_a_metric_without_a_weight_is_refused():
    bare = lambda params, model_state, batch, key, train: (params["w"].sum(), (model_state, {"loss": 1.0}))
    state = init_state({"w": jnp.ones(2)}, {}, optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"metric 'loss' must be \(sum, weight\), got a float"):
        make_step(bare, optax.sgd(0.1))(state, {})


def steep(params, model_state, batch, key, train):
    """A mean of float16 whose gradient is 500, and whose sum over a batch would overflow."""
    values = batch["inputs"] @ params["w"]
    return values.mean(), ({"mean": values.mean()}, {"loss": (values.astype(jnp.float32).sum(), values.size)})


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 4), (4, 1), (4, 2)])
def test_means_of_half_precision_do_not_overflow(devices, accumulate):
    params = {"w": jnp.ones(2, jnp.float16)}
    state = init_state(params, {"mean": jnp.zeros((), jnp.float16)}, optax.sgd(1e-3), key=jax.random.key(0))
    mapped = make_step(steep, optax.sgd(1e-3), axis_name="device", accumulate=accumulate)
    mesh = jax.make_mesh((devices,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    step = jax.shard_map(mapped, mesh=mesh, in_specs=(P(), P("device")), out_specs=P(), check_vma=False)
    state, metrics = jax.jit(step)(state, {"inputs": jnp.full((4096, 2), 15000, jnp.float16)})
    assert state.params["w"].tolist() == pytest.approx([-14, -14], rel=1e-3)
    assert (state.model_state["mean"], state.params["w"].dtype) == (30000.0, jnp.float16)
    assert metrics["loss"][0] / metrics["loss"][1] == 30000


def test_microbatches_of_a_bfloat16_model_are_summed_in_float32():
    """257 ones would be 256 in bfloat16."""
    model = lambda params, batch: (batch["inputs"] * params["w"]).mean()
    own = lambda p, s, b, k, t: (model(p, b), (s, {"loss": (model(p, b), jnp.asarray(True))}))
    state = init_state({"w": jnp.ones((), jnp.bfloat16)}, {}, optax.sgd(1.0), key=jax.random.key(0))
    state, metrics = jax.jit(make_step(own, optax.sgd(1.0), accumulate=512))(state, {"inputs": np.ones(512)})
    assert state.params["w"] == 0
    assert metrics["loss"][1] == 512


def test_the_moving_average_of_a_bfloat16_model_moves():
    """By a thousandth a step, which bfloat16 would round away."""
    own = lambda p, s, b, k, t: (-p["w"].astype(jnp.float32), (s, {"loss": (0.0, 1)}))
    state = init_state({"w": jnp.ones((), jnp.bfloat16)}, {}, optax.sgd(1.0), key=jax.random.key(0), ema=True)
    state, _ = jax.jit(make_step(own, optax.sgd(1.0), ema=0.999))(state, {"inputs": np.ones(1)})
    assert state.ema["w"] == pytest.approx(1.001, rel=1e-6)
    assert evaluation_params(state)["w"].dtype == jnp.bfloat16


def test_sums_that_are_no_numbers_are_refused():
    own = lambda p, s, b, k, t: (p["w"], (s, {"loss": (b["inputs"], b["inputs"])}))
    state = init_state({"w": jnp.ones(())}, {}, optax.sgd(1.0), key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"'loss' must be \(sum, weight\) over the batch, .* the shapes \(3,\) and \(3,\)"
    ):
        make_step(own, optax.sgd(1.0))(state, {"inputs": np.ones(3)})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_complex_parameters_are_refused_by_name(accumulate):
    """Their gradient by JAX is the conjugate of steepest ascent: a step along it makes the loss larger."""

    def distance(params, model_state, batch, key, train):
        values = jnp.abs(batch["inputs"] @ params["w"] - batch["labels"]) ** 2
        return jnp.mean(values), (model_state, {"loss": (jnp.sum(values), values.size)})

    params, tx = {"b": jnp.zeros(1), "w": jnp.zeros(2, "complex64")}, optax.sgd(0.1)
    state = init_state(params, {}, tx, key=jax.random.key(0))
    with pytest.raises(ValueError, match="the parameters must be real, and 'w' is complex64"):
        make_step(distance, tx, accumulate=accumulate)(state, {"inputs": np.ones((4, 2)), "labels": np.ones(4) * 1j})


def test_settings_are_said_by_keyword_and_a_misspelt_one_names_the_nearest():
    with pytest.raises(TypeError, match=r"make_step\(\) has no argument 'acumulate'; did you mean 'accumulate'\?"):
        make_step(loss, optax.sgd(0.1), acumulate=2)
    with pytest.raises(TypeError, match=r"train\(\) has no argument 'log_evry'; did you mean 'log_every'\?"):
        train(Workload.digits(), optax.sgd(0.1), steps=5, log_evry=2)
    with pytest.raises(ValueError, match="accumulate must be a whole number of at least 1, got 0"):
        StepSettings(accumulate=0)
