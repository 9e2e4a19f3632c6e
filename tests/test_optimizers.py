import inspect
import itertools

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
NAMES = optimizers.__all__
every_optimizer = pytest.mark.parametrize("optimizer", [getattr(optimizers, name) for name in NAMES], ids=NAMES)
KINDS = ("lion", "adamw", "muon", "shampoo")  # one of each kind, of which the suite is; the others are slow
every_kind = pytest.mark.parametrize(
    "optimizer",
    [pytest.param(getattr(optimizers, n), marks=[] if n in KINDS else pytest.mark.slow, id=n) for n in NAMES],
)
MIXED = {
    "embedding": {"embedding": (8, 4)},
    "block_0": {"dense": {"kernel": (4, 6), "bias": (6,)}, "conv": {"kernel": (2, 2, 3, 5)}},
    "head": {"kernel": (4, 8)},
}
sign = np.sign
GRADIENT, START, H = ravine()


def mixed(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), MIXED, is_leaf=lambda x: isinstance(x, tuple)
    )


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


def nadam_oracle(g, theta, m, v, t):
    """Dozat 2016, Algorithm 2, with a constant β₁."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    m_bar = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return m_bar / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def adamw_oracle(g, theta, m, v, t):
    u, m, v = adam_oracle(g, m, v, t)
    return u + 0.3 * theta, m, v


FORMULAS = {
    "A1 sgd": (optlab.sgd(RATE), lambda g, th, m, v, t: (g, m, v)),
    "A3 average form": (
        optax.chain(optlab.momentum(0.9, style="ema"), optax.scale(-RATE)),
        lambda g, th, m, v, t: (0.9 * m + 0.1 * g, 0.9 * m + 0.1 * g, v),
    ),
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
    "A11 adam without correction": (
        optlab.adam(RATE, eps=1e-3, bias_correction=False),
        lambda g, th, m, v, t: (
            (0.9 * m + 0.1 * g) / (np.sqrt(0.999 * v + 0.001 * g**2) + 1e-3),
            0.9 * m + 0.1 * g,
            0.999 * v + 0.001 * g**2,
        ),
    ),
    "A12 adam": (optlab.adam(RATE), lambda g, th, m, v, t: adam_oracle(g, m, v, t)),
    "nadam": (optimizers.nadam(RATE), nadam_oracle),
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
        ("nadam", {"eps_root": 1e-4}),
    ],
)
def test_optaxs_path(name, settings_):
    rate = optlab.schedules.warmup_cosine(RATE, 100)
    ours, theirs = (iterates(getattr(m, name)(rate, **settings_), GRADIENT, START) for m in (optimizers, optax))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(optax, name)])
def test_optaxs_arguments_and_defaults(name):
    ours = inspect.signature(getattr(optimizers, name)).parameters
    theirs = dict(inspect.signature(getattr(optax, name)).parameters)
    if name == "nadam":
        del theirs["nesterov"]  # without which it isn't NAdam
    for parameter in theirs.values():
        assert ours[parameter.name].default == parameter.default
    assert next(iter(ours)) == "learning_rate"
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[1:])


# Laws.


def test_a_batchs_gradient_is_unbiased_and_its_variance_falls_as_one_over_the_batch():  # A1
    """Over all batches with replacement of 4 examples; a batch of one, of two, and the full one."""
    rng = np.random.default_rng(0)
    X, y, w = rng.standard_normal((4, 3)), rng.standard_normal(4), rng.standard_normal(3)
    gradients = X * (X @ w - y)[:, None]  # of ½(xᵀw − y)², an example a row
    step = lambda rows: updates(optlab.sgd(RATE), gradients[list(rows)].mean(axis=0)[None])[0]
    one, two = (np.stack([step(rows) for rows in itertools.product(range(4), repeat=b)]) for b in (1, 2))
    full = step(range(4))
    for batches in (one, two):
        np.testing.assert_allclose(batches.mean(axis=0), full, rtol=1e-9)
    np.testing.assert_allclose(two.var(axis=0), one.var(axis=0) / 2, rtol=1e-9)


def test_l2_in_least_squares_is_ridge_regression():  # A18
    rng = np.random.default_rng(0)
    X, y, decay = rng.standard_normal((8, 3)), rng.standard_normal(8), 0.5
    ridge = np.linalg.solve(X.T @ X + decay * np.eye(3), X.T @ y)
    end = iterates(optlab.sgd(0.05, weight_decay=decay), lambda w: X.T @ (X @ w - y), np.zeros(3), 1000)[-1]
    np.testing.assert_allclose(end, ridge, rtol=1e-9)


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


# Wrappers of optax's.


def test_schedule_free_averages_what_sgd_does():
    """Defazio et al. 2024 (arXiv 2405.15682): y = (1 − β)z + βx, z ← z − γ∇L(y), x ← (1 − c)x + cz with c = 1/t."""
    x = z = y = START
    path = [START]
    for t in range(1, 101):
        z = z - RATE * GRADIENT(y)
        x = (1 - 1 / t) * x + z / t
        y = 0.1 * z + 0.9 * x
        path.append(y)
    tx = optax.contrib.schedule_free(optlab.sgd(RATE), RATE, b1=0.9)
    np.testing.assert_allclose(iterates(tx, GRADIENT, START), np.stack(path), rtol=1e-8, atol=1e-10)


def test_sam_steps_from_where_the_loss_is_worst():
    """Foret et al. 2021 (arXiv 2010.01412), equation 2: θ ← θ − η∇L(θ + ρ∇L(θ) / ‖∇L(θ)‖), here with momentum."""
    rho, theta, v, path = 0.1, START, 0.0, []
    for _ in range(50):
        g = GRADIENT(theta)
        v = 0.9 * v + GRADIENT(theta + rho * g / np.linalg.norm(g))
        path.append(theta)
        theta = theta - RATE * v
    climb = optax.chain(optax.contrib.normalize(), optlab.sgd(rho))
    tx = optax.contrib.sam(optlab.sgd(RATE, momentum=0.9), climb)
    np.testing.assert_allclose(iterates(tx, GRADIENT, START)[:-1:2], np.stack(path), rtol=1e-8, atol=1e-10)


@pytest.mark.thinned
@every_kind
@pytest.mark.parametrize("wrapper", ["schedule_free", "sam"])
def test_under_schedule_free_and_sam(optimizer, wrapper):
    target, start = mixed(), mixed(1)
    gradient = lambda theta: jax.tree.map(jnp.subtract, theta, target)
    loss = lambda theta: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(theta)))
    if wrapper == "sam":
        tx = optax.contrib.sam(optimizer(0.02), optax.chain(optax.contrib.normalize(), optlab.sgd(0.1)))
    else:
        tx = optax.contrib.schedule_free(optimizer(0.02), 0.02)

    @jax.jit
    def run(theta):
        def step(carry, _):
            theta, state = carry
            update, state = tx.update(gradient(theta), state, theta)
            return (optax.apply_updates(theta, update), state), None

        return jax.lax.scan(step, (theta, tx.init(theta)), None, 40)[0]

    theta, state = run(start)
    if wrapper == "schedule_free":
        theta = optax.contrib.schedule_free_eval_params(state, theta)
    assert loss(theta) < loss(start)


# What every optimizer keeps.


@every_optimizer
def test_it_is_one_chain_of_visible_blocks(optimizer):
    source = inspect.getsource(optimizer)
    body = source[source.index('"""', source.index('"""') + 3) + 3 :].strip().splitlines()
    assert "optax.chain(" in source
    assert len(body) <= (13 if "_and_rest" in source else 10)
    assert isinstance(optimizer(0.1).init(mixed()), tuple)


@pytest.mark.thinned
@every_kind
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
    if optimizer is optimizers.muonh:  # a matrix that starts as 0 stays 0
        start = jax.tree.map(lambda x: x.astype(dtype), mixed(1))
    theta, _ = run(start)
    assert jax.tree.map(lambda x: x.dtype, theta) == jax.tree.map(lambda x: x.dtype, start)
    assert loss(theta) < 0.8 * loss(start)


@every_kind
def test_a_traced_learning_rate_makes_a_population(optimizer):
    theta, g = mixed(), mixed(1)

    def step(rate):
        tx = optimizer(rate)
        return tx.update(g, tx.init(theta), theta)[0]

    rates = jnp.array([0.1, 0.01])
    many = jax.jit(jax.vmap(step))(rates)
    for i, rate in enumerate((0.1, 0.01)):
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5 * jnp.abs(y).max()),
            many,
            jax.jit(lambda rate=rate: step(rate))(),
        )


@every_kind
def test_a_schedule_is_followed(optimizer):
    theta, g = mixed(), mixed(1)
    tx, constant = optimizer(optlab.schedules.linear_to_zero(0.1, 2)), optimizer(0.1)
    state, constant_state = tx.init(theta), constant.init(theta)
    for rate in (0.1, 0.05, 0.0):
        update, state = tx.update(g, state, theta)
        expected, _ = optimizer(rate).update(g, constant_state, theta)
        _, constant_state = constant.update(g, constant_state, theta)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), update, expected)


@every_kind
def test_inside_inject_hyperparams_and_tree_map_params(optimizer):
    theta, g = mixed(), mixed(1)
    tx = optax.inject_hyperparams(optimizer)(learning_rate=0.1)
    state = tx.init(theta)
    update, after = jax.jit(tx.update)(g, state, theta)
    bare = optimizer(0.1)
    expected, _ = bare.update(g, bare.init(theta), theta)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), update, expected)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    doubled = optax.tree_map_params(bare, lambda x: 2 * x, bare.init(theta))
    assert jax.tree.structure(doubled) == jax.tree.structure(bare.init(theta))


@every_kind
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


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "decay_roles" in inspect.signature(getattr(optimizers, name)).parameters]
)
def test_roles_are_a_plain_list(name):
    theta, zero = mixed(), jax.tree.map(jnp.zeros_like, mixed())
    tx = getattr(optimizers, name)(0.1, weight_decay=0.5, decay_roles=["embedding"])
    update, _ = tx.update(zero, tx.init(theta), theta)
    moved = jax.tree.map(lambda x: bool(jnp.any(x != 0)), update)
    assert moved == jax.tree.map(lambda _: False, theta) | {"embedding": {"embedding": True}}
    with pytest.raises(ValueError, match="no role 'kernels': did you mean"):
        getattr(optimizers, name)(0.1, decay_roles=["kernels"])


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
    ],
)
def test_optimizers_refuse(name, settings_, message):
    with pytest.raises(ValueError, match=message):
        getattr(optimizers, name)(0.1, **settings_)
