"""The probe: exact numbers, the right leaves, no work on other steps, and not a bit of anything else changed."""

import contextlib
import functools
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab import probe, read_probes
from optlab._probe_state import METRICS, NORMS, SPECTRUM
from optlab.roles import MatrixAxes, read_names

SHAPES = {"dense": {"kernel": (6, 4), "bias": (4,)}, "conv_0": {"kernel": (3, 3, 2, 5)}, "gain": ()}


def tree(seed=0, scale=1.0, dtype=jnp.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(scale * rng.standard_normal(s), dtype), shapes, is_leaf=is_shape)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)] or [np.zeros(0)])


def matrices(tree):
    return [np.asarray(tree["dense"]["kernel"]), np.asarray(tree["conv_0"]["kernel"]).reshape(18, 5)]


def oracle(updates, params, grad, matrices=matrices):
    """All metrics of one update, in float64 NumPy."""
    u, theta, g = map(flat, (updates, params, grad))
    norm = np.linalg.norm
    sigmas = [np.linalg.svd(np.asarray(A, np.float64), compute_uv=False) for A in matrices(updates)]
    return {
        "update_norm": norm(u),
        "param_norm": norm(theta),
        "update_to_weight": norm(u) / norm(theta),
        "gradient_cosine": u @ g / (norm(u) * norm(g)),
        "sigma_max": max(s[0] for s in sigmas),
        "sigma_median": np.median(np.concatenate(sigmas)),
        "sigma_min": min(s[-1] for s in sigmas),
        "stable_rank": np.mean([np.sum(s**2) / s[0] ** 2 for s in sigmas]),
        "sigma_age": 0,
    }


def readings(updates, params=None, state=None, tx=None, **extra):
    """What one update leaves behind in the only probe."""
    tx = tx or probe("only")
    _, state = tx.update(updates, tx.init(updates) if state is None else state, params, **extra)
    return read_probes(state)["only"]


def assert_read(got, expected, rtol=2e-5):
    assert set(got) == {*METRICS, "sigma_age"}
    for metric, value in expected.items():
        np.testing.assert_allclose(got[metric], value, rtol=rtol, atol=rtol * 1e-2, err_msg=metric)


# The numbers.


@jax.jit
def measured(u, params, g):
    tx = probe("only")
    return read_probes(tx.update(u, tx.init(u), params, grad=g)[1])["only"]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scales=st.tuples(*[st.floats(-6, 6)] * 3))
def test_every_metric_is_the_formula(seed, scales):
    trees = [tree(seed + i, 10.0**s) for i, s in enumerate(scales)]
    got, expected = measured(*trees), oracle(*trees)
    assert set(got) == set(expected) == {*METRICS, "sigma_age"}
    for metric, value in expected.items():
        np.testing.assert_allclose(got[metric], value, rtol=2e-5, atol=1e-6 if metric == "gradient_cosine" else 0)


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e-16, 1e-13, 1e-11, 1e15, 1e17, 1e19, 1e25, 1e35])
def test_squares_neither_vanish_nor_overflow(scale):
    u, params, g = tree(0, scale), tree(1, scale), tree(2, scale)
    got, expected = measured(u, params, g), oracle(u, params, g)
    for metric in NORMS:
        np.testing.assert_allclose(got[metric], expected[metric], rtol=2e-5, err_msg=metric)


def test_in_float64_they_are_exact():
    with jax.enable_x64(True):
        u, params, g = (tree(i, 1e-3, jnp.float64) for i in range(3))
        got = readings(u, params, grad=g)
        assert_read(got, oracle(u, params, g), rtol=1e-12)
        assert got["update_norm"].dtype == jnp.float64


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), c=st.floats(-8, 8), sign=st.sampled_from([-1, 1]))
def test_cosine_and_stable_rank_know_no_scale(seed, c, sign):
    u, g = tree(seed), tree(seed + 1)
    got, scaled = measured(u, u, g), measured(jax.tree.map(lambda x: sign * 10.0**c * x, u), u, g)
    assert float(scaled["gradient_cosine"]) == pytest.approx(sign * float(got["gradient_cosine"]), abs=1e-6)
    assert float(scaled["stable_rank"]) == pytest.approx(float(got["stable_rank"]), rel=1e-5)


def test_each_parameter_is_measured_by_itself():
    u, params, g = tree(0), tree(1), tree(2)
    found = readings(u, params, tx=probe("only", per="parameter"), grad=g)
    named = [dict(zip(found, jax.tree.leaves(t), strict=True)) for t in (u, params, g)]
    assert list(found) == ["conv_0/kernel", "dense/bias", "dense/kernel", "gain"]
    for path, got in found.items():
        x, theta, grad = (t[path] for t in named)
        sigmas = {"dense/kernel": lambda x: [x], "conv_0/kernel": lambda x: [np.reshape(x, (18, 5))]}
        expected = oracle(x, theta, grad, sigmas.get(path, lambda x: [np.eye(1)]))
        if path not in sigmas:
            expected |= dict.fromkeys((*SPECTRUM, "sigma_age"), np.nan)
        assert_read(got, expected)


def test_a_step_of_gradient_descent_is_eta_long_and_points_downhill():
    params, g = tree(1), tree(2)
    tx = optax.chain(optax.sgd(0.25), probe("only"))
    got = readings(g, params, tx=tx, grad=g)
    assert float(got["update_norm"]) == pytest.approx(0.25 * np.linalg.norm(flat(g)), rel=1e-6)
    assert float(got["gradient_cosine"]) == pytest.approx(-1, abs=1e-6)


def test_each_matrix_of_a_stack_counts():
    stack = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    got = readings(x := {"x": jnp.asarray(stack)}, layout=read_names(x, {"x": MatrixAxes((0,), (1,), (2,))}))
    assert_read(got | {"sigma_age": 0}, {m: oracle({"x": stack}, stack, stack, lambda t: t["x"])[m] for m in SPECTRUM})


def test_matrix_axes_are_those_that_are_told():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    for axes, A in ((((), (0, 1), (2,)), x.reshape(6, 4)), (((), (1,), (0, 2)), x.transpose(1, 0, 2).reshape(3, 8))):
        got = readings([x], layout=read_names([x], {"0": MatrixAxes(*axes)}))
        assert float(got["sigma_min"]) == pytest.approx(np.linalg.svd(A, compute_uv=False)[-1], rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_measured_in_32(dtype):
    u = {
        "w": jnp.full((300, 300), 100, dtype)
    }  # the sum of squares is 9e8, past float16; counting, bfloat16 stops at 256
    tx = probe("only")
    state = tx.init(u)
    out, after = jax.jit(tx.update)(u, state, u)
    got = read_probes(after)["only"]
    assert float(got["update_norm"]) == pytest.approx(30_000, rel=1e-6)
    assert float(got["sigma_max"]) == pytest.approx(30_000, rel=1e-5)
    assert out["w"].dtype == dtype
    assert [x.dtype for x in after[1:]] == [x.dtype for x in state[1:]]
    assert after.values.dtype == jnp.float32


# Nothing there, or nothing to divide by.


def test_zeros_give_zeros_and_finite_ratios():
    zero, ones = jax.tree.map(jnp.zeros_like, tree()), tree()
    got = readings(zero, zero, grad=zero)
    assert all(float(got[metric]) == 0 for metric in METRICS)
    assert float(readings(ones, zero, grad=zero)["update_to_weight"]) == 0
    assert float(readings(ones, ones, grad=zero)["gradient_cosine"]) == 0
    assert float(readings(zero, ones, grad=ones)["gradient_cosine"]) == 0


def test_what_is_not_finite_is_not_hidden():
    nan = jax.tree.map(lambda x: x * jnp.nan, tree())
    got = readings(nan, tree(), grad=tree())
    assert all(np.isnan(got[metric]) for metric in ("update_norm", "update_to_weight", "gradient_cosine", "sigma_max"))
    assert np.isnan(readings(tree(), nan)["update_to_weight"])


def test_what_is_not_passed_is_not_measured():
    got = readings(tree())
    assert [m for m in METRICS if np.isnan(got[m])] == ["param_norm", "update_to_weight", "gradient_cosine"]
    tx = probe("only")
    _, state = tx.update(tree(), tx.init(tree()), tree(), grad=tree())
    again = readings(tree(), state=state)  # the value before is not passed off as the new one
    assert [m for m in METRICS if np.isnan(again[m])] == ["param_norm", "update_to_weight", "gradient_cosine"]


def test_a_gradient_of_another_structure_is_no_gradient():
    g = tree()
    got = readings(g, g, tx=optax.flatten(probe("only")), grad=g)
    assert float(got["update_norm"]) == pytest.approx(np.linalg.norm(flat(g)), rel=1e-6)
    assert np.isnan(got["gradient_cosine"])
    routed = readings(g, g, tx=optlab.by_role({"default": optax.flatten(probe("only"))}), grad=g)
    assert np.isnan(routed["sigma_max"])
    for other in ({"dense": g["dense"]}, {**g, "gain": {"of": g["gain"]}}, jax.tree.map(lambda x: x[None], g), None):
        assert np.isnan(readings(g, g, grad=other)["gradient_cosine"])


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": None}])
def test_empty_trees(empty):
    tx = probe("only")
    out, state = jax.jit(tx.update)(empty, tx.init(empty), empty)
    assert out == empty
    assert float(read_probes(state)["only"]["update_norm"]) == 0
    assert np.isnan(read_probes(state)["only"]["sigma_max"])


def test_leaves_that_are_no_matrices_have_no_singular_values():
    none = {"bias": jnp.ones(3), "mixer": jnp.ones((2, 3, 4)), "gain": jnp.ones(()), "kernel": jnp.ones((0, 3))}
    got = readings(none, none)
    assert all(np.isnan(got[m]) for m in (*SPECTRUM, "sigma_age"))
    assert float(got["update_norm"]) == pytest.approx(np.sqrt(28))


# When singular values are measured, and what that costs at other steps.


def run(tx, steps, make=lambda t: tree(t)):
    """The readings after each of the updates."""
    state, update, found = tx.init(tree()), jax.jit(tx.update), []
    for t in range(1, steps + 1):
        state = update(make(t), state)[1]
        found.append(jax.tree.map(float, read_probes(state)["only"]))
    return found


@pytest.mark.parametrize(("every", "at"), [(3, [1, 1, 3, 3, 3, 6, 6]), (1, [1, 2, 3, 4, 5, 6, 7]), (100, [1] * 7)])
def test_singular_values_are_of_the_first_update_and_every_kth(every, at):
    for t, (got, measured) in enumerate(zip(run(probe("only", every=every), 7), at, strict=True), start=1):
        then, now = (oracle(tree(i), tree(i), tree(i)) for i in (measured, t))
        assert_read(got | {"sigma_age": 0}, {m: then[m] for m in SPECTRUM} | {"update_norm": now["update_norm"]})
        assert got["sigma_age"] == t - measured


def test_every_none_measures_none():
    assert all(np.isnan(got[m]) for got in run(probe("only", every=None), 2) for m in (*SPECTRUM, "sigma_age"))
    assert "svd" not in str(jax.make_jaxpr(update_of(probe("only", every=None)))(tree()))


def update_of(tx):
    return lambda g: tx.update(g, tx.init(g), g, grad=g)


def primitives(jaxpr, inside=False):
    """(name, whether it stands in a branch of a condition) of every primitive."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner, inside or eqn.primitive.name == "cond")


@pytest.mark.parametrize("populations", [0, 1, 2])
def test_the_singular_values_stand_behind_a_condition_that_stays_one(populations):
    """Under plain vmap a condition becomes a choice, and everybody pays at every step."""
    tx, g = probe("only", every=5), tree()
    update, init = tx.update, tx.init
    for _ in range(populations):
        g, update, init = jax.tree.map(lambda x: jnp.stack([x] * 3), g), jax.vmap(update), jax.vmap(init)
    compiled = jax.jit(update).lower(g, init(g), g).compile().as_text()
    blocks = compiled.split("\n\n")
    assert any("gesdd" in block for block in blocks)
    assert not any("gesdd" in block for block in blocks if "ENTRY" in block)
    assert compiled.count(" conditional(") == 1
    found = list(primitives(jax.make_jaxpr(update)(g, init(g), g).jaxpr))
    assert ("svd", True) in found
    assert ("svd", False) not in found


def test_members_of_a_population_keep_their_own_rhythm():
    tx, g = probe("only", every=3), tree()
    states = [tx.init(g)]
    for t in (1, 2):
        states.append(tx.update(tree(t), states[-1])[1])
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    many = jax.tree.map(lambda *x: jnp.stack(x), *[tree(10 + i) for i in range(3)])
    got = read_probes(jax.jit(jax.vmap(tx.update))(many, together)[1])["only"]
    for i, (seed, age) in enumerate([(10, 0), (1, 1), (12, 0)]):
        assert_read({m: x[i] for m, x in got.items()}, {m: oracle(*[tree(seed)] * 3)[m] for m in SPECTRUM})
        assert got["sigma_age"][i] == age


# It changes nothing.


def test_the_updates_are_the_very_same_objects():
    u = tree()
    out, _ = probe("a").update(u, probe("a").init(u), u, grad=u)
    assert out is u


CHAINS = {
    "adamw": lambda p: optax.chain(p("a"), optlab.scale_by_adam(), p("b"), optlab.decay_weights(0.1), p("c")),
    "muon": lambda p: optlab.by_role(
        {
            "matrix": optax.chain(p("a"), optlab.momentum(0.9), p("b"), optlab.orthogonalize(), p("c")),
            "default": optax.chain(p("d"), optlab.scale_by_adam(b2=0.95), p("e")),
        }
    ),
    "clipped": lambda p: optax.chain(p("a"), optax.clip_by_global_norm(0.1), p("b"), optax.trace(0.9), p("c")),
}


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_a_chain_with_probes_takes_the_path_of_one_without(make, dtype):
    """Bit for bit, unless the compiler joins products and sums: those it may join otherwise, around a probe."""

    def path(tx, options):
        @functools.partial(jax.jit, compiler_options=options)
        def step(params, state, g):
            updates, state = tx.update(g, state, params, grad=g)
            return optax.apply_updates(params, jax.tree.map(lambda u: -0.1 * u, updates)), state

        params = tree(dtype=dtype)
        state = tx.init(params)
        for t in range(4):
            params, state = step(params, state, tree(t, dtype=dtype))
        return params

    bits = lambda params: [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]
    probed, plain = make(functools.partial(probe, every=2)), make(lambda _: optax.identity())
    joining_none = {"xla_backend_optimization_level": 0}
    if version("jaxlib").startswith("0.10."):  # whose earlier emitters, which conftest asks for, join them all the same
        joining_none["xla_cpu_use_fusion_emitters"] = True
    assert bits(path(probed, joining_none)) == bits(path(plain, joining_none))
    rtol = 1e-5 if dtype == jnp.float32 else 0.02
    close = lambda x, y: np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=rtol, atol=rtol / 10)
    jax.tree.map(close, path(probed, None), path(plain, None))


def test_derivatives_pass_as_if_it_were_not_there():
    def after(eta, *probes):
        tx = optax.chain(*probes, optax.scale(-eta), *probes)
        theta, state = jnp.ones((3, 2)), tx.init(jnp.ones((3, 2)))
        step = lambda carry, _: (lambda u, s: ((carry[0] + u, s), None))(*tx.update(2 * carry[0], carry[1], carry[0]))
        return jnp.sum(jax.lax.scan(step, (theta, state), length=3)[0][0] ** 2)

    for derive in (jax.grad, jax.jacfwd):
        assert float(derive(after)(0.1)) == float(derive(lambda eta: after(eta, probe("x", every=2)))(0.1))


# Where it stands, and how it is found.


def test_under_by_role_it_sees_its_rules_parameters_and_convolutions_as_matrices():
    u, params, g = tree(0), tree(1), tree(2)
    tx = optlab.by_role({"default": probe("rest"), "conv": probe("conv"), "matrix": probe("dense", every=None)})
    _, state = jax.jit(lambda u, s, p, g: tx.update(u, s, p, grad=g))(u, tx.init(params), params, g)
    found = read_probes(state)
    parts = {
        "conv": lambda t: t["conv_0"],
        "dense": lambda t: t["dense"]["kernel"],
        "rest": lambda t: (t["dense"]["bias"], t["gain"]),
    }
    for name, part in parts.items():
        expected = oracle(part(u), part(params), part(g), lambda t: [np.eye(2)])
        assert_read(found[name], {metric: expected[metric] for metric in NORMS})
    assert float(found["conv"]["sigma_min"]) == pytest.approx(oracle(u, u, u, lambda t: matrices(t)[1:])["sigma_min"])
    assert np.isnan(found["rest"]["sigma_max"])


@pytest.mark.parametrize(
    "mask",
    [
        {"dense": {"kernel": True, "bias": False}, "conv_0": {"kernel": False}, "gain": False},
        {"dense": True, "conv_0": False, "gain": False},
    ],
    ids=["leaves", "prefix"],
)
def test_masked_it_sees_what_the_mask_lets_through(mask):
    u, params, g = tree(0), tree(1), tree(2)
    part = lambda t: [x for x in jax.tree.leaves(t["dense"]) if x.ndim == 2 or mask["dense"] is True]
    tx = optax.masked(probe("only"), mask)
    got = readings(u, params, tx=tx, grad=g)
    assert_read(got, oracle(*map(part, (u, params, g)), lambda t: [x for x in t if x.ndim == 2]))


WRAPPERS = {
    "chain": lambda p: optax.chain(optax.scale(2.0), optax.chain(p)),
    "by_role": lambda p: optlab.by_role({"default": p}),
    "partition": lambda p: optax.partition({"x": p}, lambda t: jax.tree.map(lambda _: "x", t)),
    "masked": lambda p: optax.masked(p, True),
    "MultiSteps": lambda p: optax.MultiSteps(p, 1),
    "inject_hyperparams": lambda p: optax.inject_hyperparams(lambda eta: optax.chain(p, optax.scale(eta)))(eta=0.1),
    "apply_if_finite": lambda p: optax.apply_if_finite(p, 3),
    "conditionally_mask": lambda p: optax.conditionally_mask(p, lambda step: step < 9),
    "schedule_free": lambda p: optax.contrib.schedule_free(optax.chain(p, optax.sgd(0.1)), 0.1),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_it_is_found_by_name_wherever_it_is_wrapped(wrap):
    tx, params = wrap(probe("inner")), tree()
    update = lambda g, s, p: tx.update(g, s, p, **({"grad": g} if wrap is not WRAPPERS["schedule_free"] else {}))
    _, state = jax.jit(update)(tree(1), tx.init(params), params)
    assert list(read_probes(state)) == ["inner"]
    assert float(read_probes(state)["inner"]["param_norm"]) == pytest.approx(np.linalg.norm(flat(params)), rel=1e-6)


def test_injected_as_a_factory_it_measures_in_its_rhythm():
    tx = optax.inject_hyperparams(probe)(name="only", every=2)
    assert [got["sigma_age"] for got in run(tx, 4)] == [0, 0, 1, 0]


def test_it_is_found_in_the_train_states_of_flax():
    params = tree()
    tx = optax.chain(probe("before"), optax.sgd(0.1), probe("after"))
    linen = train_state.TrainState.create(apply_fn=None, params=params, tx=tx).apply_gradients(grads=params)
    assert list(read_probes(linen)) == ["before", "after"]

    class Model(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(params["dense"]["kernel"])

    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m.kernel[...] ** 2))(model))
    for state in (optimizer, optimizer.opt_state):
        after = read_probes(state)["after"]
        assert float(after["update_to_weight"]) == pytest.approx(0.2, rel=1e-6)
        assert np.isfinite(after["sigma_min"])


def test_two_probes_of_one_name_are_named():
    rule = optax.chain(probe("hidden"), optax.identity())
    tx = optlab.by_role({"matrix": rule, "conv": rule, "default": optax.identity()})
    state = tx.init(tree())
    with pytest.raises(ValueError, match=r"two probes are named 'hidden', at '.*conv.*' and '.*matrix.*'"):
        read_probes(state)
    assert read_probes(optlab.adamw(0.1).init(tree())) == {}


def test_readings_pass_through_a_scan_with_one_structure():
    tx = probe("only", every=2)

    def body(state, g):
        state = tx.update(g, state)[1]
        return state, read_probes(state)["only"]

    grads = jax.tree.map(lambda *x: jnp.stack(x), *[tree(t) for t in range(1, 5)])
    _, scanned = jax.jit(lambda: jax.lax.scan(body, tx.init(tree()), grads))()
    for t, got in enumerate(run(tx, 4)):
        assert_read({m: x[t] for m, x in scanned.items()}, got)


def test_the_state_is_arrays_and_a_name_that_compares():
    params, tx = tree(), probe("only")
    state = tx.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert jax.tree.structure(state) == jax.tree.structure(probe("only").init(params))
    assert jax.tree.structure(state) != jax.tree.structure(probe("other").init(params))
    update = jax.jit(tx.update)
    for _ in range(3):
        _, state = update(params, state)
    assert update._cache_size() == 1
    mapped = optax.tree_map_params(tx, lambda x: x, state)
    back = serialization.from_bytes(tx.init(params), serialization.to_bytes(mapped))
    assert_read(read_probes(back)["only"], jax.tree.map(float, read_probes(state)["only"]))


# Meshes.

SHARDED = {
    "dense": {"kernel": P("x", "y"), "bias": P("y")},
    "conv_0": {"kernel": P(None, None, "y", None)},
    "gain": P(),
}
WIDE = {"dense": {"kernel": (8, 4), "bias": (4,)}, "conv_0": {"kernel": (3, 3, 2, 5)}, "gain": ()}


@pytest.mark.thinned
@pytest.mark.parametrize("ambient", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_spread_over_a_mesh_it_measures_the_whole(kind, ambient):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    whole = [tree(i, shapes=WIDE) for i in range(3)]
    u, params, g = (jax.tree.map(place, t, SHARDED) for t in whole)
    tx = probe("only")

    @jax.jit
    def step(u, state, params, g):
        out, state = tx.update(u, state, params, grad=g)
        return jax.lax.scan(lambda s, _: (tx.update(u, s, params, grad=g)[1], None), state, length=2)[0], out

    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        state, out = step(u, tx.init(params), params, g)
        alone = jax.jit(lambda u, s: tx.update(u, s)[1]).lower(u, tx.init(u)).compile().as_text()
        got = jax.tree.map(float, read_probes(state)["only"])
    assert_read(got | {"sigma_age": 0}, oracle(*whole))
    assert got["sigma_age"] == 2
    assert jax.tree.map(lambda x: x.sharding, out) == jax.tree.map(lambda x: x.sharding, u)
    assert not any("all-gather" in block for block in alone.split("\n\n") if "ENTRY" in block)  # only when it is due


@pytest.mark.parametrize("check", [False, True])
def test_under_shard_map_it_measures_what_the_device_holds(check):
    tx, many = probe("only", every=2), jax.tree.map(lambda *x: jnp.stack(x), *[tree(i) for i in range(8)])

    def step(g):
        mine = jax.tree.map(lambda x: x[0], g)
        state = tx.update(mine, tx.init(mine), mine, grad=mine)[1]
        return jax.tree.map(lambda x: x[None], state)

    mesh = jax.make_mesh((8,), ("device",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=check)
    for state in (jax.jit(mapped)(many), jax.pmap(lambda g: tx.update(g, tx.init(g), g, grad=g)[1])(many)):
        for i in range(8):
            assert_read({m: x[i] for m, x in read_probes(state)["only"].items()}, oracle(*[tree(i)] * 3))


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name must be a string that isn't empty, got ''"),
        ({"name": 10}, "name must be a string that isn't empty, got 10"),
        ({"name": "x", "every": 0}, "every must be a whole number of at least 1, or None, got 0"),
        ({"name": "x", "every": 2.5}, "every must be a whole number of at least 1, or None, got 2.5"),
        ({"name": "x", "every": True}, "every must be a whole number of at least 1, or None, got True"),
        ({"name": "x", "every": "a"}, "every must be a whole number of at least 1, or None, got 'a'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        probe(**arguments)
