"""ResNets: published sizes, the formula in NumPy, the plain twin, and the identity at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import models
from optlab.models import ResNet, resnet20, resnet56

from .oracles import compiled, initialized, numpy_resnet, quick_jit, randomized

IMAGES = jnp.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
TINY = {"stages": (2, 1), "width": 4}


def shapes(model, side=8):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, side, side, 3)))


def parameters(model, side):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, side)["params"]))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.69), ("resnet34", 21.80), ("resnet50", 25.56), ("resnet101", 44.55), ("resnet152", 60.19)],
)
def test_parameters_for_224(name, millions):
    assert round(parameters(getattr(models, name)(1000), 224) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_parameters_for_32(name, millions):
    """Table 6 of the paper, whose shortcuts have no parameters: two projections add 2,752."""
    assert (parameters(getattr(models, name)(10), 32) - 2752) / 1e6 == pytest.approx(
        millions, abs=0.006 if millions < 1 else 0.05
    )


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("structure", [{}, {"bottleneck": True, "stem": "large"}], ids=["basic", "bottleneck"])
def test_network_is_its_formula(structure, residual):
    model = ResNet(3, **TINY, residual=residual, **structure)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3))
    variables = randomized(model, jnp.float32(images))
    expected = numpy_resnet(model, variables, images)
    np.testing.assert_allclose(compiled(model)(variables, jnp.float32(images)), expected, rtol=1e-4, atol=1e-4)


def test_shortcut_is_learned_only_where_shapes_differ():
    blocks = {name: block for name, block in shapes(resnet56(10), 32)["params"].items() if name.startswith("block")}
    assert len(blocks) == 27
    assert {name for name, block in blocks.items() if "shortcut" in block} == {"block_9", "block_18"}


def test_plain_twin_has_the_same_main_path():
    main_path = lambda block: {name: leaf for name, leaf in block.items() if "shortcut" not in name}
    residual, plain = shapes(resnet20(10))["params"], shapes(resnet20(10, residual=False))["params"]
    assert residual != plain
    assert {name: main_path(block) for name, block in residual.items()} == plain


def test_zero_gain_blocks_start_as_the_identity():
    """Two more blocks change nothing before the first step, and everything without `zero_gain`."""

    def logits(blocks, zero_gain):
        model = ResNet(3, stages=(blocks,), width=4, zero_gain=zero_gain)
        variables = initialized(model, IMAGES)
        return np.asarray(compiled(model, train=True, mutable="batch_stats")(variables, IMAGES)[0])

    np.testing.assert_array_equal(logits(1, True), logits(3, True))
    assert np.abs(logits(1, False) - logits(3, False)).max() > 1e-3


def test_only_the_last_gain_of_a_block_starts_at_zero():
    params = initialized(ResNet(3, **TINY, bottleneck=True, zero_gain=True), IMAGES)["params"]
    for name, block in params.items():
        gains = {norm: float(np.mean(p["scale"])) for norm, p in block.items() if norm.startswith("norm")}
        if name.startswith("block"):
            assert gains.pop("norm_2") == 0.0
        assert all(gain == 1.0 for gain in gains.values())


def test_statistics_move_in_training_only():
    model = ResNet(3, **TINY)
    variables = initialized(model, IMAGES)
    _, trained = compiled(model, train=True, mutable="batch_stats")(variables, IMAGES)
    _, evaluated = compiled(model, mutable="batch_stats")(variables, IMAGES)
    for old, new, same in zip(*map(jax.tree.leaves, (variables["batch_stats"], trained, evaluated)), strict=True):
        assert np.abs(new - old).max() > 0
        np.testing.assert_array_equal(same, old)


def test_mapped_devices_compute_what_one_does():
    """With `axis_name` the shards of a batch give the logits and statistics of the whole."""
    images = jnp.float32(np.random.default_rng(1).normal(size=(4, 2, 8, 8, 3)))
    one, many = ResNet(3, **TINY), ResNet(3, **TINY, axis_name="devices")
    variables = initialized(one, images[0])
    train = lambda model: lambda x: model.apply(variables, x, train=True, mutable="batch_stats")
    whole, state = quick_jit(train(one))(images.reshape(8, 8, 8, 3))
    parts, states = quick_jit(jax.vmap(train(many), axis_name="devices", out_axes=(0, None)))(images)
    np.testing.assert_allclose(parts.reshape(8, 3), whole, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states, state)


@pytest.mark.parametrize(("norm", "bias"), [("batch", False), ("layer", False), ("rms", True), ("none", True)])
def test_one_offset_behind_every_convolution(norm, bias):
    block = shapes(ResNet(3, **TINY, norm=norm))["params"]["block_0"]
    assert ("bias" in block["conv_0"]) == bias
    assert ("bias" in block.get("norm_0", {})) != bias


def test_convolutions_start_with_he_variance():
    params = initialized(ResNet(3, stages=(1,), width=64), IMAGES)["params"]
    assert np.var(params["block_0"]["conv_0"]["kernel"]) * 9 * 64 == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 0}, "outputs must be a whole number of at least 1, got 0"),
        ({"stages": ()}, "the number of stages must be a whole number of at least 1, got 0"),
        ({"stages": (2, 0)}, "every number of blocks in stages must be a whole number of at least 1, got 0"),
        ({"width": -1}, "width must be a whole number of at least 1, got -1"),
        ({"stem": "smal"}, "stem must be one of small, large, got 'smal': did you mean 'small'?"),
        ({"norm": "Layer"}, "norm must be one of batch, layer, rms, none, got 'Layer': did you mean 'layer'?"),
        ({"dtype": "bf16"}, "dtype must be one of float32, bfloat16, float64, got 'bf16'"),
        ({"zero_gain": True, "norm": "none"}, "zero_gain needs a norm whose gain can start at 0, got norm='none'"),
        ({"zero_gain": True, "residual": False}, "zero_gain needs a shortcut, got residual=False"),
    ],
)
def test_impossible_settings_are_refused_when_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"outputs": 3, **settings})


def test_images_without_channels_are_refused():
    with pytest.raises(
        ValueError, match=r"images must have the shape \(batch, height, width, channels\), got \(5, 8, 8\)"
    ):
        resnet20(10).init(jax.random.key(0), jnp.ones((5, 8, 8)))
