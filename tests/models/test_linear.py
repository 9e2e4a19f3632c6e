"""Gradients of bfloat16 layers are sums in float32, here of 256 and fifteen ones: bfloat16 knows 270 and 272."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from optlab.models.linear import convolution, dense, embed, shifted
from optlab.training import make_mesh

WEIGHTS = np.float32([256] + [1] * 15)
RNG = np.random.default_rng(0)
ONES, ZEROS = nn.initializers.ones_init(), nn.initializers.zeros_init()
IMAGE = {"strides": 2, "padding": [(1, 1), (1, 1)], "kernel_init": ONES}


class Shift(nn.Module):
    dtype: str
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return shifted(
            x.astype(self.dtype), self.param("position", ZEROS, x.shape[1:], jnp.dtype(self.param_dtype))[None]
        )


class Embedded(nn.Module):
    """As a table; as a head, with `attend`."""

    dtype: str
    param_dtype: str = "float32"
    method: str = "__call__"

    @nn.compact
    def __call__(self, x):
        module = embed(4, 3, dtype=self.dtype, param_dtype=self.param_dtype, embedding_init=ONES, name="table")
        return getattr(module, self.method)(x)


LAYERS = {
    "dense": (lambda **types: dense(3, kernel_init=ONES, **types), np.ones((16, 3, 2), np.float32)),
    "convolution": (lambda **types: convolution(3, (3, 3), **IMAGE, **types), np.ones((16, 2, 2, 2), np.float32)),
    "table": (Embedded, np.ones((16, 1), int)),
    "head": (lambda **types: Embedded(method="attend", **types), np.ones((16, 2, 3), np.float32)),
    "shifted": (Shift, np.ones((16, 3), np.float32)),
}


def gradient(make, x, **types):
    """Of the sum of all outputs, examples weighted, with the batch on eight devices or on one."""
    layer = make(**types)
    params = jax.jit(layer.init)(jax.random.key(0), x)

    def loss(params, x, weights):
        outputs = layer.apply(params, x)
        return jnp.sum(outputs.astype(jnp.float32).reshape(16, -1).sum(1) * weights)

    found = []
    for count in (1, 8):
        spread = jax.NamedSharding(make_mesh(count), P("data"))
        found.append(jax.jit(jax.grad(loss))(params, *jax.device_put((x, WEIGHTS), spread)))
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_parameters_gradient_is_summed_in_float32_over_the_batch_and_the_devices(name):
    for one, exact in zip(
        gradient(*LAYERS[name], dtype="bfloat16"), gradient(*LAYERS[name], dtype="float32"), strict=True
    ):
        assert any((np.asarray(x) % 271 == 0).all() and np.any(x) for x in jax.tree.leaves(exact))
        jax.tree.map(np.testing.assert_array_equal, one, exact)
    narrow = gradient(*LAYERS[name], dtype="bfloat16", param_dtype="bfloat16")[1]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), narrow, exact)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_products_and_sums_behind_a_gradient_are_float32_in_the_program_for_any_compiler(platform):
    for name, (make, x) in LAYERS.items():
        layer = make(dtype="bfloat16")
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        loss = lambda params: jnp.sum(layer.apply(params, x).astype(jnp.float32))  # noqa: B023
        program = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(platform,)).as_text()
        found = re.findall(r"stablehlo\.(dot_general|convolution|reduce)\(?.*: \((.*)\) -> (.*)", program)
        found += re.findall(r"(scatter)\".*?\n\s*}\) : \((.*?)\) -> (\S+)", program, re.DOTALL)
        assert found, name
        assert not [line for line in found if "bf16" in line[2]], name
        if name in ("dense", "head") and platform != "cpu":  # tensor cores take two bfloat16 arrays
            assert "f32" not in next(operands for kind, operands, _ in found if kind == "dot_general")


@pytest.mark.parametrize(
    ("ours", "flax", "settings", "x"),
    [
        (dense, nn.Dense, {"features": 5}, RNG.normal(size=(4, 3, 2))),
        (convolution, nn.Conv, {"features": 5, "kernel_size": (3, 3), **IMAGE}, RNG.normal(size=(4, 5, 5, 2))),
        (embed, nn.Embed, {"num_embeddings": 5, "features": 3}, np.arange(4)),
    ],
)
def test_float32_and_float64_layers_are_flaxs_own_and_bfloat16_layers_give_flaxs_bits(ours, flax, settings, x):
    for dtype in ("float32", "float64"):
        assert ours(**settings, dtype=dtype) == flax(**settings, dtype=dtype)
    results = [
        jax.jit(make(**settings, dtype="bfloat16").init_with_output)(jax.random.key(0), x) for make in (flax, ours)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][0].dtype == jnp.bfloat16


def test_second_derivatives_in_reverse():
    x, v = RNG.normal(size=(2, 16, 4))

    def product(dtype):  # the curvature's with v
        layer = dense(4, dtype=dtype)
        params = jax.jit(layer.init)(jax.random.key(0), x)
        slope = jax.grad(lambda params: jnp.sum(jnp.tanh(layer.apply(params, x).astype(jnp.float32))))
        along = lambda params: jnp.sum(slope(params)["params"]["kernel"] * v[:4])
        return jax.jit(jax.grad(along))(params)["params"]["kernel"]

    exact = product("float32")
    np.testing.assert_allclose(product("bfloat16"), exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.parametrize("name", LAYERS)
def test_shard_map_that_tracks_what_varies_sums_over_the_devices_too(name):
    make, x = LAYERS[name]
    layer = make(dtype="bfloat16")
    params = jax.jit(layer.init)(jax.random.key(0), x)
    gradient = jax.grad(lambda params, x: jnp.sum(layer.apply(params, x).astype(jnp.float32)))
    mapped = jax.shard_map(gradient, mesh=make_mesh(8), in_specs=(P(), P("data")), out_specs=P())
    jax.tree.map(np.testing.assert_array_equal, jax.jit(mapped)(params, x), jax.jit(gradient)(params, x))
