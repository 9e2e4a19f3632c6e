"""Trees of others: that can be called, with leaves that have no gradient, in boxes that say how they are sharded."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab import optimizers
from optlab.roles import read_names
from optlab.testing import check_transform

EVERY = {name: getattr(optimizers, name) for name in optimizers.__all__}
KINDS = ["sgd", "adamw", "lion", "muon", "shampoo", "soap"]  # the other optimizers' states are made of the same blocks'
everyone = pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=[] if name in KINDS else pytest.mark.slow) for name, make in EVERY.items()],
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    """As every Equinox module: a tree of arrays that can be called."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


MODEL = Dense(jnp.linspace(0.1, 1, 12).reshape(4, 3), jnp.ones(4))
PLAIN = {"weight": MODEL.weight, "bias": MODEL.bias}
as_dict = lambda model: {"weight": model.weight, "bias": model.bias}


def same(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), left, right)


def first(tx, params):
    return tx.update(params, tx.init(params), params)[0]


# Trees that can be called.


@everyone
def test_a_model_that_can_be_called_is_moved(make):
    same(as_dict(first(make(0.1), MODEL)), first(make(0.1), PLAIN))


@pytest.mark.parametrize("mask", [Dense(True, False), lambda p: Dense(True, False)])
def test_a_callable_tree_is_a_mask(mask):
    plain = first(optlab.adamw(0.1, weight_decay=0.5, mask={"weight": True, "bias": False}), PLAIN)
    same(as_dict(first(optlab.adamw(0.1, weight_decay=0.5, mask=mask), MODEL)), plain)


@pytest.mark.parametrize("layout", [read_names(MODEL), read_names, jax.tree_util.Partial(read_names)])
def test_a_callable_tree_has_a_layout(layout):
    rules = {"matrix": optlab.orthogonalize("svd"), "default": optax.sgd(1.0)}
    tx = optlab.by_role(rules, layout)
    same(as_dict(first(tx, MODEL)), first(optlab.by_role(rules), PLAIN))


@pytest.mark.slow
def test_a_callable_tree_keeps_the_contract():
    model = Dense(np.ones((4, 3)), np.ones(4))
    check_transform(optlab.lion, {"learning_rate": 0.1}, params=model, skip=["bfloat16", "float16"]).check()


def test_explain_reads_a_callable_tree():
    assert {row.path for row in optlab.explain(optlab.muon(0.1), MODEL).rows} == {"weight", "bias"}


def test_a_schedule_may_be_an_object():
    class Constant:
        def __call__(self, step):
            return 0.1

    same(first(optlab.sgd(Constant(), weight_decay=Constant()), PLAIN), first(optlab.sgd(0.1, weight_decay=0.1), PLAIN))


# Leaves that have no gradient.

EXTRAS = {"function": jax.nn.relu, "key": jax.random.key(0), "count": jnp.arange(3), "name": "dense", "none": None}


@pytest.mark.thinned
@pytest.mark.parametrize("absent", [None, optax.MaskedNode()])
@everyone
def test_a_whole_model_may_come_as_the_parameters(make, absent):
    tx, grads = make(0.1), {"layer": PLAIN, **dict.fromkeys(EXTRAS, absent)}
    state, model = tx.init(grads), {"layer": PLAIN, **EXTRAS}
    if absent is not None:
        model["none"] = optax.MaskedNode()
    got, after = tx.update(grads, state, model)
    expected, _ = tx.update(grads, state, grads)
    same(got, expected)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "tx",
    [
        optlab.decay_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optlab.decay_weights(0.1, roles=["matrix"], cautious=True),
        optlab.cautious(optlab.decay_weights(0.1)),
        optlab.by_role({"matrix": optlab.muonh(0.1), "default": optlab.adamw(0.1, decay_roles=["vector"])}),
        optlab.probe("u"),
    ],
)
def test_what_has_no_gradient_is_passed_over(tx):
    grads = {"layer": PLAIN, "activation": None}
    got = tx.update(grads, tx.init(grads), {"layer": PLAIN, "activation": jax.nn.relu})
    expected = tx.update(grads, tx.init(grads), grads)
    same(got[0], expected[0])
    same(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]))  # the probe's norm of the parameters


# Boxes.

MESH = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
FAMILY = [
    "normuon",
    "muon",
    "adamuon",
    "muonh",
    "adamw",
    "adagrad",
    "lion",
]  # normuon with the first names: its state is longer where these cut


@pytest.mark.thinned
@pytest.mark.parametrize("boxed", [nn.with_partitioning, nn.with_logical_partitioning])
@pytest.mark.parametrize("names", [("x", None), (None, "x")])
@pytest.mark.parametrize("name", FAMILY)
def test_linens_boxes_shard_a_state(name, names, boxed):
    """A state of another shape than the parameter's isn't sharded as the parameter is."""
    model, tx = nn.Dense(16, kernel_init=boxed(nn.initializers.lecun_normal(), names)), getattr(optlab, name)(0.1)

    def init(key):
        params = model.init(key, jnp.ones((2, 8)))["params"]
        return params, tx.init(params)

    specs = nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0)))
    shardings = jax.tree.map(lambda s: NamedSharding(MESH, s), specs, is_leaf=lambda x: isinstance(x, P))
    params, state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    got, after = jax.jit(tx.update)(params, state, params)
    plain = nn.unbox(params)
    expected = jax.jit(tx.update)(plain, tx.init(plain), plain)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), nn.unbox(got), expected)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.thinned
@pytest.mark.parametrize("names", [("x", None), (None, "x")])
@pytest.mark.parametrize("name", FAMILY)
def test_nnx_variables_shard_a_state(name, names):
    with jax.set_mesh(MESH):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), names)
        model = nnx.Linear(8, 16, kernel_init=init, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, getattr(optlab, name)(0.1), wrt=nnx.Param)
        before = model.kernel[...]
        for _ in range(2):
            optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 8))) ** 2).mean())(model))
    assert not np.allclose(model.kernel[...], before)


# What optax and Flax do to states.


@everyone
def test_optax_reads_and_sets_a_hyperparameter(make):
    # A kernel of ones is parallel to its update, of which a sphere leaves rounding alone.
    params = {"dense": {"kernel": jnp.eye(4, 6) + 0.5, "bias": jnp.ones(6)}}
    make_probed = lambda learning_rate: optax.chain(optlab.probe("learning_rate"), make(learning_rate))
    tx = optax.inject_hyperparams(make_probed)(learning_rate=0.1)
    state = optax.tree_utils.tree_set(tx.init(params), learning_rate=jnp.float32(0.05))
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == pytest.approx(0.05)
    got, after = jax.jit(tx.update)(params, state, params)
    same(jax.tree.map(jnp.shape, got), jax.tree.map(jnp.shape, params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), got, first(make(0.05), params))
    assert optlab.read_probes(after).keys() == {"learning_rate"}
    back = serialization.from_bytes(tx.init(params), serialization.to_bytes(after))
    assert jax.tree.structure(back) == jax.tree.structure(after)


def test_settings_that_are_noted_are_found_by_nobody():
    state = optax.inject_hyperparams(optlab.muon)(0.1, weight_decay=0.2).init({"kernel": jnp.ones((4, 6))})
    assert float(optax.tree_utils.tree_get(state, "weight_decay")) == pytest.approx(0.2)
    assert optax.tree_utils.tree_get(state, "steps") is None
    assert optax.tree_utils.tree_get(state, "rows") is None


def test_notes_are_equal_to_their_equals():
    structure = lambda tx: jax.tree.structure(tx.init(PLAIN))
    assert structure(optlab.probe("a")) == structure(optlab.probe("a")) != structure(optlab.probe("b"))
    assert hash(structure(optlab.probe("a"))) == hash(structure(optlab.probe("a")))


@pytest.mark.parametrize("make", [optlab.sgd, optlab.adam, optlab.signum, optlab.rmsprop, optlab.adagrad])
def test_what_needs_no_parameters_needs_none_when_it_is_injected(make):
    grads = {"a": jnp.array([1.0, jnp.inf, 0.0])}
    tx, bare = optax.inject_hyperparams(make)(learning_rate=0.1), make(0.1)
    got, expected = tx.update(grads, tx.init(grads))[0], bare.update(grads, bare.init(grads))[0]
    np.testing.assert_allclose(got["a"], expected["a"], rtol=1e-5)
