"""Programs as they are written with Linen, NNX, Equinox and Haiku, and optlab's own models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optlab
from optlab import models
from optlab.roles import MatrixAxes, read_names, read_program

X = jnp.ones((2, 5, 8))


def axes_of(layout):
    """{path: (role, axes)} of what is a matrix."""
    return {path: (r.role, r.axes) for path, r in layout.readings.items() if r.role in ("matrix", "conv", "head")}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.MultiHeadDotProductAttention(2, qkv_features=6, name="first")(nn.LayerNorm()(x))
        x = x + nn.Dropout(0.1, deterministic=False)(h)
        return x + nn.Dense(8, name="back")(nn.gelu(nn.Dense(12, name="out")(nn.LayerNorm()(x)))), None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=3
        )
        return nn.Dense(4, name="middle")(stack(name="blocks")(x, None)[0])


def test_linen_scanned_rematerialized_with_names_that_mislead():
    model, key = Linen(), jax.random.key(0)
    params = jax.eval_shape(model.init, {"params": key, "dropout": key}, X)["params"]
    layout = read_program(lambda p, x, key: model.apply({"params": p}, x, rngs={"dropout": key}), params, X, key)
    into = ("matrix", MatrixAxes((0,), (1,), (2, 3)))
    assert axes_of(layout) == {
        **{f"blocks/first/{name}/kernel": into for name in ("query", "key", "value")},
        "blocks/first/out/kernel": ("matrix", MatrixAxes((0,), (1, 2), (3,))),
        **{f"blocks/{name}/kernel": ("matrix", MatrixAxes((0,), (1,), (2,))) for name in ("out", "back")},
        "middle/kernel": ("head", MatrixAxes((), (0,), (1,))),
    }


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.first = nnx.Linear(8, 12, rngs=rngs)
        self.second = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(self.norm(x))))


@pytest.mark.parametrize("pure", [False, True])
def test_nnx_by_its_state_or_its_pure_dict(pure):
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    state = nnx.to_pure_dict(params) if pure else params

    def loss(p, x):
        p = nnx.State(jax.tree.map(nnx.Param, p)) if pure else p
        return nnx.merge(graph, p, rest, copy=True)(x)

    layout = read_program(loss, state, X)
    assert {path: r.role for path, r in layout.readings.items() if "kernel" in path} == {
        "first/kernel": "matrix",
        "second/kernel": "head",
    }
    assert layout["norm/scale"].role == "vector"
    assert layout.of(params) == layout  # a variable's value is found by its path


def test_equinox_whole_modules_with_functions_for_leaves_or_filtered_ones():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(8, 4, 12, 2, key=jax.random.key(0))
    whole = read_program(lambda m, x: jax.vmap(m)(x), model, X[0])
    arrays, static = eqx.partition(model, eqx.is_array)
    filtered = read_program(lambda a, x: jax.vmap(eqx.combine(a, static))(x), arrays, X[0])
    assert whole == filtered
    turned = MatrixAxes((), (1,), (0,))
    expected = {"layers/0/weight": ("matrix", turned), "layers/1/weight": ("matrix", turned)}
    assert axes_of(whole) == {**expected, "layers/2/weight": ("head", turned)}
    tx = optlab.muon(0.1, layout=whole)
    updates, _ = tx.update(arrays, tx.init(arrays), arrays)
    assert jax.tree.structure(updates) == jax.tree.structure(arrays)


def test_haiku():
    hk = pytest.importorskip("haiku")
    net = hk.transform(lambda x: hk.nets.MLP([12, 4])(hk.LayerNorm(-1, True, True)(x)))
    params = jax.eval_shape(net.init, jax.random.key(0), X)
    layout = read_program(lambda p, x: net.apply(p, None, x), params, X)
    assert {path: r.role for path, r in layout.readings.items() if path.endswith("/w")} == {
        "mlp/~/linear_0/w": "matrix",
        "mlp/~/linear_1/w": "head",
    }


TOKENS = jnp.zeros((2, 8), int)
OWN = {
    "mlp": (models.mlp(10), jnp.zeros((2, 8, 8))),
    "transformer": (models.transformer(64, width=16, heads=2, depth=2, length=16), TOKENS),
    "untied": (models.transformer(64, width=16, heads=2, depth=2, length=16, tied=False), TOKENS),
    "scanned": (models.transformer(64, width=16, heads=2, depth=2, length=16, scan=True), TOKENS),
    "vision": (models.vision_transformer(10, depth=2, width=16, heads=2), jnp.zeros((2, 8, 8, 3))),
    "resnet20": (models.resnet20(10), jnp.zeros((2, 32, 32, 3))),
}


@pytest.mark.parametrize("name", OWN)
def test_optlabs_own_models_say_by_their_names_what_the_program_does(name):
    model, x = OWN[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    rest = {kind: tree for kind, tree in variables.items() if kind != "params"}
    layout = read_program(lambda p, rest, x: model.apply({"params": p, **rest}, x), variables["params"], rest, x)
    names = read_names(variables["params"])
    differ = {
        path
        for path in layout
        if (layout[path].role, axes_of(layout).get(path)) != (names[path].role, axes_of(names).get(path))
    }
    assert differ == ({"embedding/kernel"} if name == "vision" else set())  # patches are continuous
