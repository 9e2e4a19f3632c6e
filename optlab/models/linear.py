"""Products, lookups and sums of parameters, whose gradients are summed in at least float32.

A parameter's gradient is a sum over the batch, and over the devices that share it. Flax casts a parameter to bfloat16
before its use, and so sums the gradient in bfloat16; the layers here sum it in float32. They still multiply two
bfloat16 arrays, except for the gradient of a convolution's kernel, for which not every backend has a float32 result.
Computation in float32 or float64 uses Flax's own layers.

Gradients of the bfloat16 layers can be differentiated once more in reverse mode only, not by `jax.jvp`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_IMAGES = ("NHWC", "HWIO", "NHWC")


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dense(features: int, *, dtype: str, **settings: Any) -> nn.Dense:
    """Makes an `nn.Dense`."""
    if dtype != "bfloat16":
        return nn.Dense(features, dtype=dtype, **settings)
    return _Dense(features, dtype=dtype, promote_dtype=_promoted, dot_general=_product, **settings)


def convolution(features: int, kernel_size: tuple[int, int], *, dtype: str, **settings: Any) -> nn.Conv:
    """Makes an `nn.Conv` of images, without groups and dilation."""
    if dtype != "bfloat16":
        return nn.Conv(features, kernel_size, dtype=dtype, **settings)
    settings |= {"promote_dtype": _promoted, "conv_general_dilated": _filtered}
    return _Conv(features, kernel_size, dtype=dtype, **settings)


def embed(num_embeddings: int, features: int, *, dtype: str, **settings: Any) -> nn.Embed:
    """Makes an `nn.Embed`."""
    return (_Embed if dtype == "bfloat16" else nn.Embed)(num_embeddings, features, dtype=dtype, **settings)


def shifted(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns x + parameter in the dtype of x."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) + parameter.astype(wide)).astype(x.dtype)


class _Dense(nn.Dense):
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return super().__call__(inputs).astype(self.dtype)  # the bias was added in float32


class _Conv(nn.Conv):
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return super().__call__(inputs).astype(self.dtype)


class _Embed(nn.Embed):
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return jnp.take(at_least_float32(self.embedding), inputs, axis=0).astype(self.dtype)

    def attend(self, query: jax.Array) -> jax.Array:
        return _product(query.astype(self.dtype), self.embedding.T)


def _promoted(*arrays: jax.Array | None, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts the inputs to the dtype and the bias to at least float32; the kernel is cast when it is multiplied."""
    inputs, kernel, bias = arrays
    return [jnp.asarray(inputs, dtype), kernel, None if bias is None else at_least_float32(bias)]


def _product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    return _multiplied(x, _varying_as(x, kernel))


def _filtered(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_: Any) -> jax.Array:
    return _convolved(x, _varying_as(x, kernel), strides, padding)


def _varying_as(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Marks the kernel as varying over shard_map's devices, so that its gradient is summed over them."""
    of_x, of_kernel = (jax.typeof(each).manual_axis_type.varying for each in (x, kernel))
    return lax.pcast(kernel, tuple(of_x - of_kernel), to="varying")


@jax.custom_vjp
def _multiplied(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies over the last axis of x, in the dtype of x."""
    return lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


def _multiplied_forward(x: jax.Array, kernel: jax.Array) -> Any:
    return _multiplied(x, kernel), (x, kernel)


def _multiplied_backward(saved: Any, gradient: jax.Array) -> Any:
    x, kernel = saved
    last, batch = gradient.ndim - 1, tuple(range(gradient.ndim - 1))
    of_x = lax.dot_general(gradient, kernel.astype(x.dtype), (((last,), (1,)), ((), ())))
    product = partial(lax.dot_general, dimension_numbers=((batch, batch), ((), ())), preferred_element_type=jnp.float32)

    def widened(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return product(at_least_float32(x), at_least_float32(gradient))

    # XLA for the CPU compiles some of these products of two bfloat16 arrays, and then can't run them (jax 0.10.2).
    of_kernel = lax.platform_dependent(x, gradient, cpu=widened, default=product)
    return of_x, of_kernel.astype(kernel.dtype)


_multiplied.defvjp(_multiplied_forward, _multiplied_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    """Convolves images x with the kernel, in the dtype of x."""
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), strides, padding, dimension_numbers=_IMAGES)


def _convolved_forward(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> Any:
    return _convolved(x, kernel, strides, padding), (x, kernel)


def _convolved_backward(strides: Any, padding: Any, saved: Any, gradient: jax.Array) -> Any:
    x, kernel = saved
    filtered = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=_IMAGES)
    (of_x,) = jax.vjp(lambda x: filtered(x, kernel.astype(x.dtype)), x)[1](gradient)
    (of_kernel,) = jax.vjp(lambda kernel: filtered(at_least_float32(x), kernel), at_least_float32(kernel))[1](
        at_least_float32(gradient)
    )
    return of_x, of_kernel.astype(kernel.dtype)


_convolved.defvjp(_convolved_forward, _convolved_backward)
