"""A model is in training while it is trained, by whatever name it is told so; or it is refused by that name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from optlab.data import arrays
from optlab.training import Workload

X = np.ones((40, 4), np.float32)
DATA = arrays(X, np.zeros((40, 4), np.float32))


def error(outputs, batch):
    """The outputs' mean: 0 where everything was dropped."""
    return outputs.mean(-1)


def outputs(model, train):
    """What comes out in training, or not, and whether the running statistics moved."""
    work = Workload.from_model(model, DATA, loss=error)
    params, state = work.init(jax.random.key(0))
    batch = {"inputs": 1 + np.arange(8.0)[:, None] * X[:8], "labels": X[:8]}
    value, (after, _) = work.loss(params, state, batch, jax.random.key(1), train)
    leaves = zip(*map(jax.tree.leaves, (state, after)), strict=True)
    return float(value), any((a != b).any() for a, b in leaves if jnp.issubdtype(a.dtype, jnp.floating))


NAMES = {
    **dict.fromkeys(
        ["train", "training", "is_training", "isTraining", "train_mode", "enable_dropout", "dropout"], True
    ),
    **dict.fromkeys(["deterministic", "use_running_average", "inference", "eval_mode", "is_eval", "testing"], False),
}


def linen(name, in_training, default):
    """One with such an argument."""
    namespace = {"nn": nn}
    exec(
        "@nn.compact\n"
        f"def __call__(self, x, {name}={default}):\n"
        f"    train = {name} is {in_training}\n"
        "    x = nn.BatchNorm(use_running_average=not train)(x)\n"
        "    return nn.Dropout(1.0, deterministic=not train)(x) + 0 * nn.Dense(4)(x)",
        namespace,
    )
    return type("Told", (nn.Module,), {"__call__": namespace["__call__"]})()


@pytest.mark.parametrize("name", list(NAMES))
@pytest.mark.parametrize("is_default_training", [False, True])
def test_an_argument_of_a_linen_module_is_set(name, is_default_training):
    model = linen(name, NAMES[name], NAMES[name] is is_default_training)
    assert outputs(model, True) == (0.0, True)
    value, moved = outputs(model, False)
    assert value > 0.5
    assert not moved


class Field(nn.Module):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=self.deterministic)(x)
        return nn.Dropout(1.0, deterministic=self.deterministic)(x)


class Merged(nn.Module):
    """As Flax's own layers: a field or an argument, never both."""

    training: bool | None = None

    @nn.compact
    def __call__(self, x, training=None, **kwargs):
        train = nn.merge_param("training", self.training, training)
        return nn.Dropout(1.0, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(x))


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic, use_running_average=True):
        return nn.Dropout(1.0)(nn.BatchNorm()(x, use_running_average=use_running_average), deterministic=deterministic)


@pytest.mark.parametrize("model", [Field(), Field(deterministic=False), Merged(), Two()])
def test_a_field_and_several_arguments_are_set(model):
    assert outputs(model, True) == (0.0, True)
    assert outputs(model, False)[0] > 0.5


class Newer(nnx.Module):
    """By an attribute of its own, beside Flax's, in a module below."""

    def __init__(self, rngs, name):
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(1.0, rngs=rngs)
        setattr(self, name, not NAMES[name])
        self.name = name

    def __call__(self, x):
        x = self.dropout(self.norm(x))
        return x if getattr(self, self.name) is NAMES[self.name] else x + 10


class Told(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.inner = Newer(rngs, "is_training")

    def __call__(self, x, *, training=False):
        return self.inner(self.norm(x, use_running_average=not training))


@pytest.mark.parametrize(
    "make", [*(functools.partial(Newer, name=name) for name in ("is_training", "training", "inference", "train")), Told]
)
def test_attributes_and_arguments_of_an_nnx_module_are_set(make):
    assert outputs(make, True) == (0.0, True)
    assert outputs(make, False)[0] > 5


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(4)(x) + (0 if train else 1)


class Forwards(nn.Module):
    @nn.compact
    def __call__(self, x, **kwargs):
        return Inner()(x, **kwargs)


REFUSED = {
    "dropout": (nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=True)]), "layers_1 has deterministic=True"),
    "norm": (nn.Sequential([nn.BatchNorm(use_running_average=True)]), "layers_0 has use_running_average=True"),
    "keywords": (Forwards(), "Inner_0 has train=False, and the model's own call has no argument that would choose"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_layer_that_acts_as_in_evaluation_is_refused_where_nothing_chooses(name):
    model, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        outputs(model, True)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train=False):
        return self.dropout(self.norm(x, use_running_average=not train), deterministic=not train)


class Layers(nnx.Module):
    """An NNX module that calls what is inside it in some way, and has no mode to choose."""

    def __init__(self, rngs, call):
        self.layers, self.call = nnx.List([Layer(rngs)]), call

    def __call__(self, x):
        return self.call(self.layers[0], x)


NNX_REFUSED = {
    "default": (lambda layer, x: layer(x), True, "Layer has train=False"),
    "dropout": (lambda layer, x: layer.dropout(x, deterministic=True), True, "Dropout has deterministic=True"),
    "norm": (lambda layer, x: layer.norm(x, use_running_average=True), True, "BatchNorm has use_running_average=True"),
    "noise": (lambda layer, x: layer.dropout(x, deterministic=False), False, "Dropout has deterministic=False"),
}


@pytest.mark.parametrize("name", list(NNX_REFUSED))
def test_a_layer_of_an_nnx_module_in_the_other_mode_is_refused_where_nothing_chooses(name):
    call, train, message = NNX_REFUSED[name]
    calls = [vars(kind)["__call__"] for kind in (Layer, nnx.Dropout, nnx.BatchNorm)]
    with pytest.raises(TypeError, match=f"{message}, and the model's own call has no argument that would choose"):
        outputs(functools.partial(Layers, call=call), train)
    assert calls == [vars(kind)["__call__"] for kind in (Layer, nnx.Dropout, nnx.BatchNorm)]


def test_layers_of_an_nnx_module_that_follow_its_attributes_are_as_they_were():
    make = functools.partial(Layers, call=lambda layer, x: layer.dropout(layer.norm(x)) + 1)
    assert outputs(make, True)[1]
    assert outputs(make, False)[0] > 1


@pytest.mark.parametrize("model", [nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False)])])
def test_noise_in_evaluation_is_refused_where_nothing_chooses(model):
    with pytest.raises(TypeError, match="in evaluation layers_1 has deterministic=False"):
        outputs(model, False)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("mode='train'", "argument mode='train' chooses a mode by a word: say def __call__"),
        ("phase='eval'", "argument phase='eval' chooses a mode by a word"),
        ("deterministic=0.5", "argument deterministic=0.5 must be True or False"),
        ("train=False, /", "argument train can be given by its place alone"),
    ],
)
def test_what_cannot_be_set_is_refused(signature, message):
    namespace = {}
    exec(f"def __call__(self, x, {signature}): return x", namespace)
    for kind in (nn.Module, nnx.Module):
        model = type("Odd", (kind,), {"__call__": namespace["__call__"]})
        with pytest.raises(TypeError, match=message):
            Workload.from_model(model() if kind is nn.Module else lambda rngs, model=model: model(), DATA)


def test_models_without_a_mode_are_as_they_were():
    class Options(nn.Module):
        use_dropout: bool = True

        @nn.compact
        def __call__(self, x, dropout=0.0, interpolation="bilinear", mask=None):
            return nn.Dense(4)(nn.Dropout(0.0, deterministic=True)(x))

    for model in (
        Options(),
        nn.Sequential([nn.Dense(4), nn.relu]),
        nn.MultiHeadDotProductAttention(2, deterministic=True),
    ):
        assert np.isfinite(outputs(model, True)[0])
