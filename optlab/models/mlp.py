"""Multilayer perceptrons: the shallow network of the approximation theorems, and its deep form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from optlab.models.layers import (
    ActivationName,
    FloatName,
    NormName,
    activation,
    check_count,
    check_dropout,
    check_float_names,
    check_name,
    make_norm,
)
from optlab.models.linear import at_least_float32, dense


class MLP(nn.Module):
    """A multilayer perceptron, h ← σ(norm(Wᵀh + b)) for every width, then a linear head.

    Inputs (B, ...) -> logits (B, outputs) in float32. The input is flattened. With one width n it is the shallow
    network Σᵢ aᵢ σ(wᵢᵀx + bᵢ), plus an offset. The attributes are the arguments of `mlp`, which explains them.
    """

    outputs: int
    _: dataclasses.KW_ONLY
    widths: Sequence[int] = (128, 128)
    activation: ActivationName = "relu"
    norm: NormName = "none"
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: FloatName = "float32"
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        self.widths = tuple(self.widths)
        check_count("outputs", self.outputs)
        for width in self.widths:
            check_count("every width in widths", width)
        check_name("activation", self.activation, ActivationName)
        check_name("norm", self.norm, NormName)
        check_dropout(self.dropout)
        check_float_names(self.dtype, self.param_dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(make_norm, self.norm, train=train, axis_name=self.axis_name, **types)
        # He's gain of 2 makes up for the half that a rectifier sets to 0 (arXiv 1502.01852, eq. 10).
        rectifies = self.activation in ("relu", "gelu", "silu")
        kernel_init = nn.initializers.he_normal() if rectifies else nn.initializers.lecun_normal()
        x_BxD = inputs.reshape(inputs.shape[0], -1)
        for i, width in enumerate(self.widths):
            x_BxD = dense(width, kernel_init=kernel_init, name=f"hidden_{i}", **types)(x_BxD)
            x_BxD = activation(self.activation)(norm(name=f"norm_{i}")(x_BxD))
            x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        return at_least_float32(dense(self.outputs, name="head", **types)(x_BxD))


def mlp(
    outputs: int,
    *,
    widths: Sequence[int] = (128, 128),
    activation: ActivationName = "relu",
    norm: NormName = "none",
    dropout: float = 0.0,
    axis_name: str | None = None,
    dtype: FloatName = "float32",
    param_dtype: FloatName = "float32",
) -> MLP:
    """Makes a multilayer perceptron; one width is the shallow network, many a deep one, none a linear model.

    Args:
        outputs: size of the output: the number of classes, or of regression targets.
        widths: units of each hidden layer, from the input on.
        activation: relu, sigmoid, tanh, gelu or silu.
        norm: before each activation: batch, layer, rms or none.
        dropout: share of each hidden layer's activations that a training step leaves out.
        axis_name: mapped axis that BatchNorm's statistics are averaged over; needed under pmap only.
        dtype: dtype of the computation: float32, bfloat16 or float64; logits are at least float32.
        param_dtype: dtype of the parameters: float32, bfloat16 or float64.

    Raises:
        ValueError: for an unknown name, or an impossible width, number of outputs or dropout rate.
    """
    return MLP(
        outputs,
        widths=widths,
        activation=activation,
        norm=norm,
        dropout=dropout,
        axis_name=axis_name,
        dtype=dtype,
        param_dtype=param_dtype,
    )
