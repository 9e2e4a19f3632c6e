import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from transforms.runs import in_float64, iterates, ravine, scan_iterates, updates

import optlab
from optlab import optimizers

RATE = 0.01  # a hundred steps don't reach the minimum, around which rounding would grow
NAMES = ["sgd", "signsgd", "signum", "softsign_sgd", "adagrad", "rmsprop", "adam", "adam_l2", "adamw", "lion", "muon"]
every_optimizer = pytest.mark.parametrize("optimizer", [getattr(optlab, name) for name in NAMES], ids=NAMES)
sign = np.sign
GRADIENT, START, H = ravine()


# Each is its formula. A state (θ, m, v, t) goes through one step, written from the definition.


def oracle(update, start, gradient, steps=100):
    theta, m, v, path = start, 0.0, 0.0, [start]
    for t in range(1, steps + 1):
        u, m, v = update(gradient(theta), theta, m, v, t)
        theta = theta - RATE * u
        path.append(theta)
    return np.stack(path)


def adam_oracle(g, m, v, t, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v


def adamw_oracle(g, theta, m, v, t):
    u, m, v = adam_oracle(g, m, v, t)
    return u + 0.3 * theta, m, v


FORMULAS = {
    "A1 sgd": (optlab.sgd(RATE), lambda g, th, m, v, t: (g, m, v)),
    "A4 sgd heavy ball": (optlab.sgd(RATE, momentum=0.9), lambda g, th, m, v, t: (0.9 * m + g, 0.9 * m + g, v)),
    "A5 sgd nesterov": (
        optlab.sgd(RATE, momentum=0.9, nesterov=True),
        lambda g, th, m, v, t: (0.9 * (0.9 * m + g) + g, 0.9 * m + g, v),
    ),
    "A18 sgd decay": (optlab.sgd(RATE, weight_decay=0.3), lambda g, th, m, v, t: (g + 0.3 * th, m, v)),
    "A7 signsgd": (optlab.signsgd(RATE), lambda g, th, m, v, t: (sign(g), m, v)),
    "A7 signum": (optlab.signum(RATE), lambda g, th, m, v, t: (sign(0.9 * m + 0.1 * g), 0.9 * m + 0.1 * g, v)),
    "A8 softsign": (optlab.softsign_sgd(RATE, eps=0.1), lambda g, th, m, v, t: (g / (abs(g) + 0.1), m, v)),
    "A8 softsign momentum": (
        optlab.softsign_sgd(RATE, momentum=0.5, eps=0.1),
        lambda g, th, m, v, t: ((m + g) / 2 / (abs(m + g) / 2 + 0.1), (m + g) / 2, v),
    ),
    "A9 adagrad of the paper": (
        optlab.adagrad(RATE, initial_accumulator_value=0.0, eps_in_sqrt=False),
        lambda g, th, m, v, t: (g / (np.sqrt(v + g**2) + 1e-7), m, v + g**2),
    ),
    "A10 rmsprop": (
        optlab.rmsprop(RATE, eps=1e-3),
        lambda g, th, m, v, t: (g / np.sqrt(0.9 * v + 0.1 * g**2 + 1e-3), m, 0.9 * v + 0.1 * g**2),
    ),
    "A10 rmsprop outside": (
        optlab.rmsprop(RATE, eps=1e-3, eps_in_sqrt=False),
        lambda g, th, m, v, t: (g / (np.sqrt(0.9 * v + 0.1 * g**2) + 1e-3), m, 0.9 * v + 0.1 * g**2),
    ),
    "A12 adam": (optlab.adam(RATE), lambda g, th, m, v, t: adam_oracle(g, m, v, t)),
    "A16 adam_l2": (optlab.adam_l2(RATE, weight_decay=0.3), lambda g, th, m, v, t: adam_oracle(g + 0.3 * th, m, v, t)),
    "A17 adamw": (optlab.adamw(RATE, weight_decay=0.3), adamw_oracle),
    "A19 lion": (
        optlab.lion(RATE, weight_decay=0.3),
        lambda g, th, m, v, t: (sign(0.9 * m + 0.1 * g) + 0.3 * th, 0.99 * m + 0.01 * g, v),
    ),
}


@pytest.mark.parametrize(("tx", "update"), FORMULAS.values(), ids=FORMULAS.keys())
def test_formula(tx, update):
    expected = oracle(update, START, GRADIENT)
    np.testing.assert_allclose(iterates(tx, GRADIENT, START), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "settings_"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("signum", {}),
        ("adagrad", {}),
        ("rmsprop", {}),
        ("rmsprop", {"momentum": 0.9, "nesterov": True, "bias_correction": True}),
        ("rmsprop", {"centered": True, "eps": 1e-3, "eps_in_sqrt": False, "initial_scale": 1.0}),
        ("adam", {}),
        ("adam", {"nesterov": True, "eps_root": 1e-4}),
        ("adamw", {}),
        ("adamw", {"weight_decay": 0.1, "nesterov": True, "mask": lambda tree: jax.tree.map(lambda _: True, tree)}),
        ("lion", {}),
    ],
)
def test_optaxs_path(name, settings_):
    rate = optlab.schedules.warmup_cosine(RATE, 100)
    ours, theirs = (iterates(getattr(m, name)(rate, **settings_), GRADIENT, START) for m in (optlab, optax))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(optax, name)])
def test_optaxs_arguments_and_defaults(name):
    ours = inspect.signature(getattr(optlab, name)).parameters
    for parameter in inspect.signature(getattr(optax, name)).parameters.values():
        assert ours[parameter.name].default == parameter.default
    assert next(iter(ours)) == "learning_rate"
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[1:])


# Laws.


def test_gradient_descent_with_a_stopping_rule():  # A2
    tx = optlab.sgd(1.0)
    norm = lambda theta: jnp.linalg.norm(GRADIENT(theta))
    step = lambda c: (optax.apply_updates(c[0], tx.update(GRADIENT(c[0]), tx.init(START))[0]), c[1] + 1)
    with jax.enable_x64(True):
        theta, steps = jax.lax.while_loop(lambda c: (norm(c[0]) > 1e-3) & (c[1] < 10**4), step, (jnp.asarray(START), 0))
        path = [START]
        for _ in range(int(steps)):
            path.append(path[-1] - GRADIENT(path[-1]))
        assert norm(theta) <= 1e-3 < norm(path[-2])
        np.testing.assert_allclose(theta, path[-1], rtol=1e-9)


penalized = in_float64(
    lambda rate, decay: scan_iterates(optlab.sgd(rate), lambda theta: GRADIENT(theta) + decay * theta, START, 30)
)
shrunk = in_float64(lambda rate, decay: scan_iterates(optlab.sgd(rate, weight_decay=decay), GRADIENT, START, 30))


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(1e-3, 0.5), decay=st.floats(1e-3, 1))
def test_l2_and_decay_are_the_same_for_sgd(rate, decay):  # A18
    np.testing.assert_allclose(penalized(rate, decay), shrunk(rate, decay), rtol=1e-9, atol=1e-12)
    one_step = (1 - rate * decay) * START - rate * GRADIENT(START)
    np.testing.assert_allclose(shrunk(rate, decay)[1], one_step, rtol=1e-9)


def test_l2_inside_adam_shrinks_what_has_large_gradients_less():  # A16, A17
    sizes = np.array([0.1, 1.0, 10.0])
    noise = sizes * (-1.0) ** np.arange(400)[:, None]  # gradients of three sizes that cancel
    shrinking = lambda f: updates(f(1.0, weight_decay=0.0), noise)[-1] - updates(f(1.0, weight_decay=1e-3), noise)[-1]
    np.testing.assert_allclose(shrinking(optlab.adamw), 1e-3, rtol=1e-9)
    np.testing.assert_allclose(shrinking(optlab.adam_l2), 1e-3 / sizes, rtol=0.02)


def test_adamw_doesnt_minimize_the_penalized_loss():  # A17
    gradient, start, H = ravine(size=2)
    decay = 0.3
    ridge = np.linalg.solve(H + decay * np.eye(2), H @ start - gradient(start))
    rate = optlab.schedules.cosine(0.01, 4000)
    ends = {f: iterates(f(rate, weight_decay=decay), gradient, start, 4000)[-1] for f in (optlab.adamw, optlab.adam_l2)}
    np.testing.assert_allclose(ends[optlab.adam_l2], ridge, atol=1e-3)
    assert np.abs(ends[optlab.adamw] - ridge).max() > 0.05


def test_a_normalized_step_of_the_gradients_length_is_gradient_descent():  # A25
    normalized = optax.chain(optax.normalize_by_update_norm(eps=0.0), optax.scale(-RATE))
    with jax.enable_x64(True):
        theta = jnp.asarray(START)
        for expected in iterates(optlab.sgd(RATE), GRADIENT, START, 30)[1:]:
            g = GRADIENT(theta)
            direction, _ = normalized.update(g, normalized.init(g))
            theta = theta + jnp.linalg.norm(g) * direction
            np.testing.assert_allclose(theta, expected, rtol=1e-9)


# Muon.

MIXED = {
    "embedding": {"embedding": (8, 4)},
    "block_0": {"dense": {"kernel": (4, 6), "bias": (6,)}, "conv": {"kernel": (2, 2, 3, 5)}},
    "head": {"kernel": (4, 8)},
}


def mixed(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), MIXED, is_leaf=lambda x: isinstance(x, tuple)
    )


def newton_schulz(X):
    U, sigma, Vt = np.linalg.svd(X, full_matrices=False)
    sigma = sigma / (np.linalg.norm(X) + 1e-7)
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return (U * sigma) @ Vt


@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize("adam_rate", [None, 0.01])
def test_muon_formula(scale, adam_rate):  # A20, A22
    with jax.enable_x64(True):
        theta, tx = mixed(), optlab.muon(RATE, scale=scale, adam_learning_rate=adam_rate)
        state, adamw = tx.init(theta), optax.adamw(adam_rate or RATE, b2=0.95, weight_decay=0.1)
        adam_state, M = adamw.init(theta), jax.tree.map(jnp.zeros_like, theta)
        for t in range(3):
            g = mixed(t + 1)
            update, state = tx.update(g, state, theta)
            expected, adam_state = adamw.update(g, adam_state, theta)
            M = jax.tree.map(lambda m, g: 0.95 * m + g, M, g)
            for name, fan_in, fan_out in (("dense", 4, 6), ("conv", 12, 5)):
                G, m, p = (np.asarray(x["block_0"][name]["kernel"]) for x in (g, M, theta))
                O = newton_schulz((G + 0.95 * m).reshape(fan_in, fan_out)).reshape(G.shape)
                factor = 0.2 * max(fan_in, fan_out) ** 0.5 if scale == "rms" else max(1, fan_out / fan_in) ** 0.5
                expected["block_0"][name]["kernel"] = -RATE * (factor * O + 0.1 * p)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9), update, expected)
            theta = optax.apply_updates(theta, update)


def test_muon_decays_the_roles_that_it_is_told():
    theta, zero = mixed(), jax.tree.map(jnp.zeros_like, mixed())
    tx = optlab.muon(RATE, weight_decay=0.5, decay_roles=["matrix", "head"])
    update, _ = tx.update(zero, tx.init(theta), theta)
    decayed = {"dense": RATE * 0.5, "head": RATE * 0.5}
    np.testing.assert_allclose(
        update["block_0"]["dense"]["kernel"], -decayed["dense"] * theta["block_0"]["dense"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(update["head"]["kernel"], -decayed["head"] * theta["head"]["kernel"], rtol=1e-6)
    for still in (
        update["embedding"]["embedding"],
        update["block_0"]["conv"]["kernel"],
        update["block_0"]["dense"]["bias"],
    ):
        np.testing.assert_array_equal(still, 0)


def test_muon_moves_by_roles_of_ones_own():
    theta, g = mixed(), mixed(1)
    tx = optlab.muon(RATE, roles=lambda params: jax.tree.map(lambda _: "vector", params))
    rest = optax.adamw(RATE, b2=0.95, weight_decay=0.1)
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5)
    jax.tree.map(same, tx.update(g, tx.init(theta), theta)[0], rest.update(g, rest.init(theta), theta)[0])


# What every optimizer keeps.


@every_optimizer
def test_it_is_one_chain_of_visible_blocks(optimizer):
    source = inspect.getsource(optimizer)
    body = source[source.index('"""', source.index('"""') + 3) + 3 :].strip().splitlines()
    assert "return optax.chain(" in source
    assert len(body) <= (20 if optimizer is optlab.muon else 10)
    assert isinstance(optimizer(0.1).init(mixed()), tuple)


@every_optimizer
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_trains_in_every_precision_under_jit(optimizer, dtype):
    target = jax.tree.map(lambda x: x.astype(dtype), mixed())
    tx = optimizer(0.02 if optimizer is not optlab.sgd else 0.3)
    loss = lambda theta: sum(
        jnp.mean((x - y).astype("float32") ** 2) for x, y in zip(*map(jax.tree.leaves, (theta, target)), strict=True)
    )

    @jax.jit
    def run(theta):
        def step(carry, _):
            theta, state = carry
            update, state = tx.update(jax.grad(loss)(theta), state, theta)
            return (optax.apply_updates(theta, update), state), None

        return jax.lax.scan(step, (theta, tx.init(theta)), None, 60)[0]

    start = jax.tree.map(jnp.zeros_like, target)
    theta, _ = run(start)
    assert jax.tree.map(lambda x: x.dtype, theta) == jax.tree.map(lambda x: x.dtype, start)
    assert loss(theta) < 0.8 * loss(start)


@every_optimizer
def test_a_traced_learning_rate_makes_a_population(optimizer):
    theta, g = mixed(), mixed(1)

    def step(rate):
        tx = optimizer(rate)
        return tx.update(g, tx.init(theta), theta)[0]

    rates = jnp.array([0.1, 0.01])
    many = jax.jit(jax.vmap(step))(rates)
    for i, rate in enumerate((0.1, 0.01)):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-7), many, step(rate))


@every_optimizer
def test_a_schedule_is_followed(optimizer):
    theta, g = mixed(), mixed(1)
    tx, constant = optimizer(optlab.schedules.linear_to_zero(0.1, 2)), optimizer(0.1)
    state, constant_state = tx.init(theta), constant.init(theta)
    for factor in (1.0, 0.5, 0.0):
        update, state = tx.update(g, state, theta)
        expected, constant_state = constant.update(g, constant_state, theta)
        jax.tree.map(
            lambda x, y, f=factor: np.testing.assert_allclose(x, f * y, rtol=1e-5, atol=1e-9), update, expected
        )


@every_optimizer
def test_inside_inject_hyperparams_and_tree_map_params(optimizer):
    theta, g = mixed(), mixed(1)
    tx = optax.inject_hyperparams(optimizer)(learning_rate=0.1)
    state = tx.init(theta)
    update, after = jax.jit(tx.update)(g, state, theta)
    bare = optimizer(0.1)
    expected, _ = bare.update(g, bare.init(theta), theta)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), update, expected)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    doubled = optax.tree_map_params(bare, lambda x: 2 * x, bare.init(theta))
    assert jax.tree.structure(doubled) == jax.tree.structure(bare.init(theta))


@every_optimizer
def test_inside_an_nnx_optimizer(optimizer):
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
    state = nnx.Optimizer(model, optimizer(0.01), wrt=nnx.Param)
    x, y = jax.random.normal(jax.random.key(0), (32, 4)), jnp.ones((32, 2))
    loss = lambda model: jnp.mean((model(x) - y) ** 2)

    @nnx.jit
    def step(model, state):
        state.update(model, nnx.grad(loss)(model))

    before = loss(model)
    for _ in range(20):
        step(model, state)
    assert loss(model) < before


@pytest.mark.parametrize("name", ["sgd", "adam_l2", "adamw", "lion", "muon"])
def test_roles_are_a_plain_list(name):
    theta, zero = mixed(), jax.tree.map(jnp.zeros_like, mixed())
    tx = getattr(optlab, name)(0.1, weight_decay=0.5, decay_roles=["embedding"])
    update, _ = tx.update(zero, tx.init(theta), theta)
    moved = jax.tree.map(lambda x: bool(jnp.any(x != 0)), update)
    assert moved == jax.tree.map(lambda _: False, theta) | {"embedding": {"embedding": True}}
    with pytest.raises(ValueError, match="no role 'kernels': did you mean"):
        getattr(optlab, name)(0.1, decay_roles=["kernels"])


@every_optimizer
def test_a_negative_learning_rate_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"learning_rate must not be negative, got -0\.1"):
        optimizer(-0.1)


@pytest.mark.parametrize(
    ("name", "settings_", "message"),
    [
        ("sgd", {"momentum": 1.5}, r"decay must lie in \[0, 1\), got 1\.5"),
        ("lion", {"b2": 1.0}, r"b2 must lie in \[0, 1\), got 1\.0"),
        ("adamw", {"mask": {}, "decay_roles": ["matrix"]}, "takes a mask or roles, got both"),
        ("muon", {"scale": "shape"}, "scale must be one of 'rms', 'spectral', got 'shape'"),
        ("muon", {"adam_learning_rate": -1.0}, r"learning_rate must not be negative, got -1\.0"),
    ],
)
def test_optimizers_refuse(name, settings_, message):
    with pytest.raises(ValueError, match=message):
        getattr(optimizers, name)(0.1, **settings_)
