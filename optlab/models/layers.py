"""Parts of the models: norms and activations by name, rotary positions, the feed-forward layer, checks of settings.

Letters in shapes: B batch, T tokens, D width, H heads, K width of a head, F hidden width of the feed-forward layer.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from optlab._messages import meant
from optlab.models.linear import at_least_float32, dense

NormName = Literal["batch", "layer", "rms", "none"]
ActivationName = Literal["relu", "sigmoid", "tanh", "gelu", "silu"]
FeedForwardName = Literal[ActivationName, "swiglu"]
FloatName = Literal["float32", "bfloat16", "float64"]
Layer = Callable[[jax.Array], jax.Array]

INIT_STD = 0.02  # GPT-2's, for every matrix of a Transformer
NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0  # arXiv 2104.09864, section 3.3

_ACTIVATIONS: dict[str, Layer] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "gelu": nn.gelu,  # the tanh approximation, as in GPT-2
    "silu": nn.silu,
}


def check_name(what: str, value: str, names: Any) -> None:
    """Raises a ValueError with the nearest right name, unless `value` is one of the strings of the Literal `names`."""
    choices = get_args(names)
    if value not in choices:
        close = meant(str(value), choices)
        hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"{what} must be one of {', '.join(choices)}, got {value!r}{hint}")


def check_count(what: str, value: int) -> None:
    """Raises a ValueError unless `value` is a whole number of at least 1."""
    try:
        right = operator.index(value) >= 1
    except TypeError:
        right = False
    if not right:
        raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")


def check_dropout(rate: float) -> None:
    """Raises a ValueError unless the dropout rate lies in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {rate}")


def check_float_names(dtype: str, param_dtype: str) -> None:
    """Raises a ValueError unless both are names of float types that the models compute in."""
    check_name("dtype", dtype, FloatName)
    check_name("param_dtype", param_dtype, FloatName)
    if "float64" in (dtype, param_dtype) and jax.dtypes.canonicalize_dtype("float64") != jnp.dtype("float64"):
        raise ValueError("float64 needs jax.config.update('jax_enable_x64', True), or JAX_ENABLE_X64=1")


def check_heads(width: int, heads: int, rotary: bool) -> None:
    """Raises a ValueError unless the heads divide the width, and evenly enough for rotary positions."""
    check_count("width", width)
    check_count("heads", heads)
    if width % heads:
        raise ValueError(f"heads must divide width ({width}), got {heads}")
    if rotary and width // heads % 2:
        each = f"width {width} / heads {heads} = {width // heads}"
        raise ValueError(f"rotary positions turn pairs of numbers: the width of a head must be even, got {each}")


def check_images(images: jax.Array) -> None:
    """Raises a ValueError unless `images` has the four axes (batch, height, width, channels)."""
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (batch, height, width, channels), got {images.shape}")


def activation(name: ActivationName) -> Layer:
    """Returns the elementwise nonlinearity of a name."""
    return _ACTIVATIONS[name]


def make_norm(
    kind: NormName,
    *,
    name: str,
    train: bool = False,
    bias: bool = True,
    zero_gain: bool = False,
    axis_name: str | None = None,
    dtype: FloatName = "float32",
    param_dtype: FloatName = "float32",
) -> Layer:
    """Makes a normalization layer inside a compact method; statistics are computed in at least float32.

    Args:
        kind: "batch" (arXiv 1502.03167), "layer" (1607.06450), "rms" (1910.07467, no bias) or "none" (does nothing).
        name: name of the layer in the tree of parameters.
        train: whether BatchNorm uses the batch's statistics and updates the running ones; else it uses the latter.
        bias: whether an offset is learned beside the gain.
        zero_gain: whether the gain starts at 0 instead of 1.
        axis_name: mapped axis (pmap, shard_map) that BatchNorm's statistics are averaged over; None under jit.
        dtype: dtype of the output.
        param_dtype: dtype of gain and bias.
    """
    settings: dict[str, Any] = {
        "name": name,
        "epsilon": NORM_EPSILON,
        "scale_init": nn.initializers.zeros_init() if zero_gain else nn.initializers.ones_init(),
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    if kind == "batch":
        # 0.9 of the old running mean is kept, which torch calls momentum = 0.1.
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, use_bias=bias, axis_name=axis_name, **settings)
    if kind == "layer":
        return nn.LayerNorm(use_bias=bias, **settings)
    if kind == "rms":
        return nn.RMSNorm(**settings)
    return lambda x: x


def rotate(x_BxTxHxK: jax.Array) -> jax.Array:
    """Rotary positions: turns the pair (j, j + K/2) of the token at position t by the angle t·10000^(−2j/K).

    The product of a rotated query and a rotated key then depends on their distance only (arXiv 2104.09864, eq. 34).
    """
    T, K = x_BxTxHxK.shape[1], x_BxTxHxK.shape[3]
    frequencies = ROTARY_BASE ** (-2.0 * jnp.arange(K // 2) / K)
    angles = jnp.arange(T)[None, :, None, None] * frequencies[None, None, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(at_least_float32(x_BxTxHxK), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxTxHxK.dtype)


class FeedForward(nn.Module):
    """σ(xW)V, or SwiGLU's (silu(xG) ⊙ xW)V (arXiv 2002.05202): x_BxTxD -> x_BxTxD.

    Attributes:
        width: D, of the input and of the output.
        hidden: F.
        activation: an activation, or "swiglu".
        bias: whether the matrices have biases.
        out_std: standard deviation that the last matrix starts with.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """

    width: int
    _: dataclasses.KW_ONLY
    hidden: int
    activation: FeedForwardName
    bias: bool
    out_std: float
    dtype: FloatName
    param_dtype: FloatName

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        linear = functools.partial(dense, use_bias=self.bias, dtype=self.dtype, param_dtype=self.param_dtype)
        up_BxTxF = linear(self.hidden, kernel_init=nn.initializers.normal(INIT_STD), name="up")(x_BxTxD)
        if self.activation == "swiglu":
            gate_BxTxF = linear(self.hidden, kernel_init=nn.initializers.normal(INIT_STD), name="gate")(x_BxTxD)
            hidden_BxTxF = nn.silu(gate_BxTxF) * up_BxTxF
        else:
            hidden_BxTxF = activation(self.activation)(up_BxTxF)
        return linear(self.width, kernel_init=nn.initializers.normal(self.out_std), name="down")(hidden_BxTxF)
