"""Residual networks of He et al. (arXiv 1512.03385), their plain twins, and the published sizes.

They follow torchvision rather than the paper in two things: wherever the shape changes the shortcut is a learned
projection (the paper's option B; its own 32×32 networks pad with zeros), and the 3×3 convolution of a bottleneck has
the stride.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from optlab.models.layers import (
    FloatName,
    Layer,
    NormName,
    check_count,
    check_float_names,
    check_images,
    check_name,
    make_norm,
)
from optlab.models.linear import at_least_float32, convolution, dense

StemName = Literal["small", "large"]


class ResidualBlock(nn.Module):
    """relu(F(x) + shortcut(x)), where F is two 3×3 convolutions, or 1×1, 3×3 and 1×1 as a bottleneck.

    Attributes:
        channels: channels of the output.
        stride: factor by which height and width shrink.
        bottleneck: whether F works in a quarter of the channels.
        residual: whether there is a shortcut; without it the block is one of the plain network.
        zero_gain: whether F's last gain starts at 0, so that the block starts as the identity (arXiv 1706.02677, 5.1).
        conv: makes a convolution from channels, side, stride and name.
        norm: makes a norm from a name.
    """

    channels: int
    _: dataclasses.KW_ONLY
    stride: int
    bottleneck: bool
    residual: bool
    zero_gain: bool
    conv: Callable[..., Layer]
    norm: Callable[..., Layer]

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        inner = self.channels // 4
        if self.bottleneck:
            plan = [(inner, 1, 1), (inner, 3, self.stride), (self.channels, 1, 1)]
        else:
            plan = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        y_BxHxWxC = x_BxHxWxC
        for i, (channels, side, stride) in enumerate(plan[:-1]):
            y_BxHxWxC = self.conv(channels, side, stride, name=f"conv_{i}")(y_BxHxWxC)
            y_BxHxWxC = nn.relu(self.norm(name=f"norm_{i}")(y_BxHxWxC))
        last = len(plan) - 1
        y_BxHxWxC = self.conv(*plan[-1], name=f"conv_{last}")(y_BxHxWxC)
        y_BxHxWxC = self.norm(name=f"norm_{last}", zero_gain=self.zero_gain)(y_BxHxWxC)
        return nn.relu(y_BxHxWxC + self._shortcut(x_BxHxWxC)) if self.residual else nn.relu(y_BxHxWxC)

    def _shortcut(self, x_BxHxWxC: jax.Array) -> jax.Array:
        if self.stride == 1 and x_BxHxWxC.shape[-1] == self.channels:
            return x_BxHxWxC
        return self.norm(name="norm_shortcut")(self.conv(self.channels, 1, self.stride, name="shortcut")(x_BxHxWxC))


class ResNet(nn.Module):
    """A residual network: images (B, height, width, channels) -> logits (B, outputs) in float32.

    Every stage after the first halves height and width and doubles the channels. `resnet20` and its siblings make the
    published sizes, and explain the attributes from `norm` on.

    Attributes:
        outputs: classes.
        stages: number of blocks in each stage.
        width: channels of the first stage's 3×3 convolutions; a bottleneck's output has four times as many.
        bottleneck: whether blocks are bottlenecks.
        stem: "small" is a 3×3 convolution; "large" is 7×7 with stride 2 and a 3×3 maximum with stride 2.

    Raises:
        ValueError: for an unknown name, a count below 1, or `zero_gain` where there is no gain or no shortcut.
    """

    outputs: int
    _: dataclasses.KW_ONLY
    stages: Sequence[int] = (3, 3, 3)
    width: int = 16
    bottleneck: bool = False
    stem: StemName = "small"
    norm: NormName = "batch"
    residual: bool = True
    zero_gain: bool = False
    axis_name: str | None = None
    dtype: FloatName = "float32"
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        self.stages = tuple(self.stages)
        check_count("outputs", self.outputs)
        check_count("the number of stages", len(self.stages))
        for blocks in self.stages:
            check_count("every number of blocks in stages", blocks)
        check_count("width", self.width)
        check_name("stem", self.stem, StemName)
        check_name("norm", self.norm, NormName)
        check_float_names(self.dtype, self.param_dtype)
        if self.zero_gain and self.norm == "none":
            raise ValueError("zero_gain needs a norm whose gain can start at 0, got norm='none'")
        if self.zero_gain and not self.residual:
            raise ValueError(
                "zero_gain needs a shortcut, got residual=False: a gain of 0 would leave nothing of the input"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(images_BxHxWxC)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # Each convolution is followed by one offset: the norm's, or its own where the norm has none.
        conv = functools.partial(_conv, use_bias=self.norm in ("rms", "none"), **types)
        norm = functools.partial(make_norm, self.norm, train=train, axis_name=self.axis_name, **types)
        large = self.stem == "large"
        x_BxHxWxC = conv(self.width, 7 if large else 3, 2 if large else 1, name="stem")(images_BxHxWxC)
        x_BxHxWxC = nn.relu(norm(name="norm_stem")(x_BxHxWxC))
        if large:
            x_BxHxWxC = nn.max_pool(x_BxHxWxC, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])
        for i, (channels, stride) in enumerate(self._blocks()):
            x_BxHxWxC = ResidualBlock(
                channels,
                stride=stride,
                bottleneck=self.bottleneck,
                residual=self.residual,
                zero_gain=self.zero_gain,
                conv=conv,
                norm=norm,
                name=f"block_{i}",
            )(x_BxHxWxC)
        return at_least_float32(dense(self.outputs, name="head", **types)(x_BxHxWxC.mean(axis=(1, 2))))

    def _blocks(self) -> list[tuple[int, int]]:
        """Lists channels and stride of every block."""
        first = self.width * (4 if self.bottleneck else 1)
        return [
            (first * 2**stage, 2 if stage > 0 and block == 0 else 1)
            for stage, blocks in enumerate(self.stages)
            for block in range(blocks)
        ]


def _conv(channels: int, side: int, stride: int, /, **settings: Any) -> nn.Conv:
    # With stride 2, "SAME" would pad one side alone, and so read other pixels than the published networks.
    padding = [(side // 2, side // 2)] * 2
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # arXiv 1502.01852, eq. 14
    return convolution(channels, (side, side), strides=stride, padding=padding, kernel_init=init, **settings)


def _published(depth: int, **structure: Any) -> Callable[..., ResNet]:
    """Makes the factory of one published size."""

    def build(
        outputs: int,
        *,
        norm: NormName = "batch",
        residual: bool = True,
        zero_gain: bool = False,
        axis_name: str | None = None,
        dtype: FloatName = "float32",
        param_dtype: FloatName = "float32",
    ) -> ResNet:
        return ResNet(
            outputs,
            **structure,
            norm=norm,
            residual=residual,
            zero_gain=zero_gain,
            axis_name=axis_name,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    size = "32×32" if structure["stem"] == "small" else "224×224"
    build.__doc__ = f"ResNet-{depth} for {size} images.{_FACTORY_DOC}"
    return build


_FACTORY_DOC = """

    Args:
        outputs: classes.
        norm: after each convolution: batch, layer (over the channels), rms or none.
        residual: whether blocks have shortcuts; without them it is the plain network, whose error rises with depth.
        zero_gain: whether the last gain of each block starts at 0, so that a block starts as the identity.
        axis_name: mapped axis that BatchNorm's statistics are averaged over; needed under pmap only.
        dtype: dtype of the computation: float32, bfloat16 or float64; logits are at least float32.
        param_dtype: dtype of the parameters: float32, bfloat16 or float64.

    Raises:
        ValueError: for an unknown name, or `zero_gain` where there is no gain or no shortcut.
    """


def _small(depth: int) -> Callable[..., ResNet]:
    """Makes a size of section 4.2: depth = 6n + 2, three stages of n blocks, 16, 32 and 64 channels."""
    return _published(depth, stages=((depth - 2) // 6,) * 3, width=16, bottleneck=False, stem="small")


def _large(depth: int, stages: Sequence[int], *, bottleneck: bool) -> Callable[..., ResNet]:
    """Makes a size of table 1: four stages, 64 to 512 channels, of basic blocks or bottlenecks."""
    return _published(depth, stages=stages, width=64, bottleneck=bottleneck, stem="large")


resnet20 = _small(20)
resnet32 = _small(32)
resnet44 = _small(44)
resnet56 = _small(56)
resnet110 = _small(110)
resnet18 = _large(18, (2, 2, 2, 2), bottleneck=False)
resnet34 = _large(34, (3, 4, 6, 3), bottleneck=False)
resnet50 = _large(50, (3, 4, 6, 3), bottleneck=True)
resnet101 = _large(101, (3, 4, 23, 3), bottleneck=True)
resnet152 = _large(152, (3, 8, 36, 3), bottleneck=True)
