"""In other people's projects: Flax's two train states and optax's wrappers, beside the same update done by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state

import optlab

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((16, 6, 6, 2)).astype(np.float32)
LABELS = np.arange(16) % 3


# The updates by hand, in float64, leaf by leaf.


def adamw_by_hand(theta, g, memory, t, eta, decay=1e-4, b1=0.9, b2=0.999, eps=1e-8):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    direction = memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)
    return theta - eta * (direction + decay * theta)


def muon_by_hand(theta, g, memory, t, eta, decay=0.1, beta=0.95):
    """Matrices and convolutions (the last axis is the output) by Newton–Schulz, the rest by AdamW."""
    if theta.ndim < 2:
        return adamw_by_hand(theta, g, memory, t, eta, decay, b2=0.95)
    memory["m"] = beta * memory.get("m", 0) + g
    X = (beta * memory["m"] + g).reshape(-1, g.shape[-1])
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return theta - eta * (0.2 * np.sqrt(max(X.shape)) * X.reshape(g.shape) + decay * theta)


def sign_or_adamw_by_hand(theta, g, memory, t, eta):
    return theta - eta * np.sign(g) if theta.ndim == 2 else adamw_by_hand(theta, g, memory, t, eta, decay=0)


def sign_or_adamw(eta):
    rest = optax.chain(optlab.scale_by_adam(), optax.scale(-eta))
    return optlab.by_role({"matrix": optlab.signsgd(eta), "default": rest})


OPTIMIZERS = {
    "adamw": (optlab.adamw, adamw_by_hand),
    "muon": (optlab.muon, muon_by_hand),
    "by_role": (sign_or_adamw, sign_or_adamw_by_hand),
}
every_optimizer = pytest.mark.parametrize(("make", "by_hand"), OPTIMIZERS.values(), ids=OPTIMIZERS)


class ByHand:
    """A rule by hand for all leaves of a tree, each with its own memory."""

    def __init__(self, rule, **settings):
        self.rule, self.settings, self.memories, self.t = rule, settings, {}, 0

    def __call__(self, params, grads, **settings):
        self.t += 1
        leaf = lambda path, theta, g: self.rule(
            np.asarray(theta, np.float64), np.asarray(g, np.float64), self.memories.setdefault(str(path), {}), self.t,
            **self.settings, **settings,
        )  # fmt: skip
        return jax.tree_util.tree_map_with_path(leaf, params, grads)


def assert_close(left, right, atol=2e-5):
    assert len(jax.tree.leaves(left)) == len(jax.tree.leaves(right))
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)


# Flax Linen.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(3)(nn.relu(nn.LayerNorm()(nn.Dense(8)(x.reshape(len(x), -1)))))


@every_optimizer
def test_a_plain_linen_train_state(make, by_hand):
    model = Linen()
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=make(0.01))

    @jax.jit
    def gradient(state):
        def loss(params):
            logits = state.apply_fn({"params": params}, IMAGES)
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

        return jax.value_and_grad(loss)(state.params)

    apply, losses, hand = (
        jax.jit(lambda state, grads: state.apply_gradients(grads=grads)),
        [],
        ByHand(by_hand, eta=0.01),
    )
    for _ in range(15):
        value, grads = gradient(state)
        expected = hand(state.params, grads)
        state = apply(state, grads)
        assert_close(state.params, expected)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    assert state.step == 15


# Flax NNX.


class Model(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(144, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))


@every_optimizer
def test_an_nnx_optimizer_with_convolution_and_batch_norm(make, by_hand):
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(0.01), wrt=nnx.Param)

    @nnx.jit
    def gradient(model):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(IMAGES), LABELS).mean()

        return nnx.value_and_grad(loss)(model)

    apply = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    pure = lambda tree: nnx.to_pure_dict(tree)
    losses, hand = [], ByHand(by_hand, eta=0.01)
    for _ in range(15):
        value, grads = gradient(model)
        expected = hand(pure(nnx.state(model, nnx.Param)), pure(grads))
        running = pure(nnx.state(model, nnx.BatchStat))
        apply(model, optimizer, grads)
        assert_close(pure(nnx.state(model, nnx.Param)), expected)
        assert_close(pure(nnx.state(model, nnx.BatchStat)), running, atol=0)  # the optimizer leaves them alone
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    assert np.any(np.asarray(model.norm.mean[...]) != 0)


# Chains of optax's wrappers and ours.

PARAMS = {
    "dense": {
        "kernel": jnp.asarray(RNG.standard_normal((5, 4)), jnp.float32),
        "bias": jnp.asarray(RNG.standard_normal(4), jnp.float32),
    }
}
GRADS = [jax.tree.map(lambda x, c=c: jnp.sin(c * x), PARAMS) for c in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
ETA = 0.01


def path(tx, grads=GRADS):
    """The parameters after each update, for gradients that are given."""
    update, params, state, found = jax.jit(tx.update), PARAMS, tx.init(PARAMS), []
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def path_by_hand(rule, grads=GRADS, **settings):
    hand, params, found = ByHand(rule, **settings), PARAMS, []
    for g in grads:
        params = hand(params, g)
        found.append(params)
    return found


RULES = {"adamw": OPTIMIZERS["adamw"], "muon": OPTIMIZERS["muon"]}
every_rule = pytest.mark.parametrize(("make", "by_hand"), RULES.values(), ids=RULES)


@every_rule
def test_after_clipping(make, by_hand):
    norm = lambda g: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(g)))
    clipped = [jax.tree.map(lambda x, g=g: x / max(1, norm(g) / 0.5), g) for g in GRADS]
    tx = optax.chain(optax.clip_by_global_norm(0.5), make(ETA))
    assert_close(path(tx), path_by_hand(by_hand, clipped, eta=ETA))


@every_rule
def test_in_multisteps_it_moves_every_second_time_by_the_mean(make, by_hand):
    means = [jax.tree.map(lambda x, y: (x + y) / 2, *GRADS[i : i + 2]) for i in (0, 2, 4)]
    found = path(optax.MultiSteps(make(ETA), 2))
    assert_close(found[1::2], path_by_hand(by_hand, means, eta=ETA))
    assert_close(found[0::2], [PARAMS, *found[1:-1:2]], atol=0)


@every_rule
def test_masked_it_leaves_the_rest_to_others(make, by_hand):
    mask = {"dense": {"kernel": True, "bias": False}}
    rest = optax.masked(optax.scale(-0.5), {"dense": {"kernel": False, "bias": True}})
    found, theta = path(optax.chain(optax.masked(make(ETA), mask), rest)), np.asarray(PARAMS["dense"]["bias"])
    expected = path_by_hand(by_hand, eta=ETA)
    for t, params in enumerate(found):
        theta = theta - 0.5 * GRADS[t]["dense"]["bias"]
        assert_close(params["dense"], {"kernel": expected[t]["dense"]["kernel"], "bias": theta})


@every_rule
def test_injected_its_learning_rate_follows_a_schedule(make, by_hand):
    schedule = lambda t: 0.02 / (t + 1.0)
    hand, params, expected = ByHand(by_hand), PARAMS, []
    for t, g in enumerate(GRADS):
        params = hand(params, g, eta=schedule(t))
        expected.append(params)
    assert_close(path(optax.inject_hyperparams(make)(learning_rate=schedule)), expected)
    assert_close(path(make(schedule)), expected)


@every_rule
def test_a_step_that_is_not_finite_is_skipped(make, by_hand):
    broken = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
    found = path(optax.apply_if_finite(make(ETA), 3), [GRADS[0], broken, *GRADS[1:]])
    expected = path_by_hand(by_hand, eta=ETA)
    assert_close(found, [expected[0], expected[0], *expected[1:]])


@every_rule
def test_lookahead_pulls_every_third_step_halfway_back(make, by_hand):
    tx = optax.lookahead(make(ETA), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state, update = tx.init(params), jax.jit(tx.update)
    hand, fast, slow = ByHand(by_hand, eta=ETA), PARAMS, PARAMS
    for t, g in enumerate(GRADS, start=1):
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        fast = hand(fast, g)
        if t % 3 == 0:
            fast = slow = jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)
        assert_close([params.fast, params.slow], [fast, slow])


@every_rule
def test_schedule_free_answers_with_the_mean_of_the_base_rules_iterates(make, by_hand):
    """y = (1 − β)z + βx; z is moved by the base rule with the gradient at y, x is the mean of the z (constant rate)."""
    beta, hand = 0.9, ByHand(by_hand, eta=ETA, decay=0)
    tx = optax.contrib.schedule_free(make(ETA, weight_decay=0), ETA, b1=beta)
    update, y, state, z, x = jax.jit(tx.update), PARAMS, tx.init(PARAMS), PARAMS, PARAMS
    for t, g in enumerate(GRADS, start=1):
        updates, state = update(g, state, y)
        y = optax.apply_updates(y, updates)
        z = hand(z, g)
        x = jax.tree.map(lambda x, z, t=t: x + (z - x) / t, x, z)
        assert_close(y, jax.tree.map(lambda x, z: (1 - beta) * z + beta * x, x, z))
        assert_close(optax.contrib.schedule_free_eval_params(state, y), x)


def test_blocks_of_both_in_one_chain():
    """optax's clip, ema and schedule around our sign and decay: θ ← θ − ηₜ(m + λθ), m ← 0.8m + 0.2·sign(clip(g))."""
    tx = optax.chain(
        optax.clip(0.5),
        optlab.scale_by_sign(),
        optax.ema(0.8, debias=False),
        optlab.decay_weights(0.1),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 6)),
    )

    def rule(theta, g, memory, t):
        memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * np.sign(np.clip(g, -0.5, 0.5))
        return theta - 0.1 * (1 - (t - 1) / 6) * (memory["m"] + 0.1 * theta)

    assert_close(path(tx), path_by_hand(rule))


WRAPPERS = {
    "clip": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "ema": lambda tx: optax.chain(tx, optax.ema(0.5)),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.05),
    "lookahead": lambda tx: optax.lookahead(tx, 5, 0.5),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda c: optax.chain(tx, optax.scale(c)))(c=1.0),
    "masked": lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_loss_goes_down_in_every_wrapper(wrap):
    tx, x = wrap(optlab.muon(0.05)), jnp.asarray(RNG.standard_normal((32, 5)), jnp.float32)
    model = lambda p: x @ p["dense"]["kernel"] + p["dense"]["bias"][None]
    target = model(PARAMS) + 1
    is_pair = wrap is WRAPPERS["lookahead"]
    loss = lambda p: jnp.mean(jnp.square(model(p) - target))

    @jax.jit
    def losses(params):
        def step(carry, _):
            params, state = carry
            value, g = jax.value_and_grad(loss)(params.fast if is_pair else params)
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=60)[1]

    found = losses(optax.LookaheadParams.init_synced(PARAMS) if is_pair else PARAMS)
    assert found[-1] < 0.3 * found[0]


@pytest.mark.parametrize("optimizer", [optlab.adamw, optlab.muon, optlab.normuon, optlab.muonh])
def test_a_state_passes_through_flax_serialization(optimizer):
    params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    tx = optimizer(1e-2)
    _, state = tx.update(params, tx.init(params), params)
    back = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
