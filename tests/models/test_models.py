"""What all models share: the call, the types, the names, and factories that a config can fill."""

import inspect
import json
import pickle
import re
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import models

from .oracles import compiled, initialized

FACTORIES = {name: getattr(models, name) for name in models.__all__ if inspect.isfunction(getattr(models, name))}
del FACTORIES["attention_weights"]
TOKENS = jnp.arange(12).reshape(2, 6)
IMAGES = jnp.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
SMALL = {"width": 12, "depth": 2, "heads": 3}
# What a config says, as it comes out of JSON, and an input.
MODELS = {
    "mlp": ('{"outputs": 3, "widths": [8, 8], "norm": "batch", "dropout": 0.1}', IMAGES),
    "ResNet": ('{"outputs": 3, "stages": [1, 1], "width": 4}', IMAGES),
    "transformer": (json.dumps({"vocabulary": 12, **SMALL, "length": 6, "dropout": 0.1, "tied": False}), TOKENS),
    "vision_transformer": (json.dumps({"outputs": 3, **SMALL, "dropout": 0.1}), IMAGES),
}


def build(name, **settings):
    text, inputs = MODELS[name]
    return getattr(models, name)(**json.loads(text), **settings), inputs


def trained(model, variables, inputs):
    rngs = {"dropout": jax.random.key(1)}
    return compiled(model, train=True, mutable="batch_stats")(variables, inputs, rngs=rngs)[0]


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_parameters_are_float32_whatever_is_computed_in(name, dtype):
    model, inputs = build(name, dtype=dtype)
    variables = initialized(model, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    logits = trained(model, variables, inputs)
    assert logits.dtype == jnp.float32
    assert logits.shape == ((2, 6, 12) if name == "transformer" else (2, 3))
    single = trained(build(name)[0], variables, inputs)
    error = np.abs(logits - single).max() / np.abs(single).max()
    assert error == 0 if dtype == "float32" else 0 < error < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_matrix_products_of_bfloat16_models_are_bfloat16(name):
    model, inputs = build(name, dtype="bfloat16")
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    program = jax.jit(model.apply).lower(variables, inputs).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).* : \((.*)\) ->", program)
    assert products
    assert all(operand.endswith("xbf16>") for operands in products for operand in operands.split(", "))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_of_their_own_dtype(name):
    model, inputs = build(name, param_dtype="bfloat16")
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", MODELS)
def test_final_layer_is_the_head(name):
    model, inputs = build(name)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    assert params["head"]["kernel"].shape[1] == (12 if name == "transformer" else 3)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_argument_is_explained_and_has_a_name(name):
    """`optlab show` reads the explanations, and positional arguments after the first would have no key."""
    factory = FACTORIES[name]
    lines = inspect.getdoc(factory).split("Args:\n")[1].splitlines()
    first, *others = inspect.signature(factory).parameters.values()
    assert first.name in ("outputs", "vocabulary")
    for parameter in (first, *others):
        assert sum(line.strip().startswith(f"{parameter.name}: ") for line in lines) == 1, parameter
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(parameter.default is not inspect.Parameter.empty for parameter in others)


@pytest.mark.parametrize(
    ("factory", "kind"),
    [("mlp", "MLP"), ("resnet20", "ResNet"), ("transformer", "Transformer"), ("vision_transformer", "Transformer")],
)
def test_factory_and_class_have_the_same_defaults(factory, kind):
    fields = {
        n: f.default for n, f in getattr(models, kind).__dataclass_fields__.items() if n not in ("parent", "name")
    }
    arguments = {n: p.default for n, p in inspect.signature(FACTORIES[factory]).parameters.items()}
    shared = (fields.keys() & arguments.keys()) - {"outputs", "width", "depth", "heads"}
    assert len(shared) >= 6
    assert {n: fields[n] for n in shared} == {n: arguments[n] for n in shared}


def another(value, hint):
    """A value of that type other than this one."""
    if isinstance(value, bool):
        return not value
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    others = {int: lambda: 2 * value, float: lambda: value + 0.5, tuple: lambda: (7, *value)}
    return others[type(value)]() if type(value) in others else "devices" if hint == str | None else 24


@pytest.mark.parametrize("name", FACTORIES)
def test_every_argument_reaches_the_model(name):
    """Under its own name where the model, or its body, has an attribute of that name."""
    factory = FACTORIES[name]
    hints = typing.get_type_hints(factory)
    first, *others = inspect.signature(factory).parameters.values()
    default = factory(12)
    for parameter in others:
        value = another(parameter.default, hints[parameter.name])
        model = factory(12, **{parameter.name: value})
        assert model != default, parameter
        holder = model if hasattr(model, parameter.name) else getattr(model, "body", model)
        assert getattr(holder, parameter.name, value) == value, parameter
    assert getattr(factory(24), first.name) == 24


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_are_found_by_name(name):
    """Also the ones made by a function: pickle finds what stands in its module under its own name."""
    factory = FACTORIES[name]
    assert factory.__name__ == name
    assert pickle.loads(pickle.dumps(factory)) is factory


def test_models_are_values():
    """Equal settings make equal, hashable models, which is what jit caches by."""
    for name in MODELS:
        assert build(name)[0] == build(name)[0]
        assert hash(build(name)[0]) == hash(build(name)[0])


def test_missing_flax_is_an_error_that_names_the_install_line():
    program = "import sys; sys.modules['flax'] = None; import optlab.models"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "optlab.models needs flax: pip install -e '.[train]'" in result.stderr
