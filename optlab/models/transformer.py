"""Pre-norm Transformers: one body, used in a causal language model and in an encoder over image patches.

Letters in shapes: B batch, T tokens or patches, D width, V vocabulary, L length of the context.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from optlab.models.attention import AttentionName, MultiHeadAttention
from optlab.models.layers import (
    INIT_STD,
    FeedForward,
    FeedForwardName,
    FloatName,
    Layer,
    check_count,
    check_dropout,
    check_float_names,
    check_heads,
    check_images,
    check_name,
    make_norm,
)
from optlab.models.linear import at_least_float32, dense, embed, shifted

PositionName = Literal["learned", "rotary", "none"]
TokenNormName = Literal["layer", "rms"]  # not BatchNorm, whose statistics would show a token those after it


class Block(nn.Module):
    """A block: x ← x + attention(norm(x)), then x ← x + feed_forward(norm(x)); x_BxTxD -> x_BxTxD.

    Attributes:
        attention: makes the attention from a name.
        feed_forward: makes the feed-forward layer from a name.
        norm: makes a norm from a name.
        dropout: share of each sum's second term that training sets to 0.
        train: whether it is training; an attribute, so that remat and scan need not pass it on.
    """

    attention: Callable[..., Layer]
    feed_forward: Callable[..., Layer]
    norm: Callable[..., Layer]
    _: dataclasses.KW_ONLY
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        dropout = nn.Dropout(self.dropout, deterministic=not self.train)
        attention, feed_forward = self.attention(name="attention"), self.feed_forward(name="feed_forward")
        x_BxTxD = x_BxTxD + dropout(attention(self.norm(name="norm_attention")(x_BxTxD)))
        return x_BxTxD + dropout(feed_forward(self.norm(name="norm_feed_forward")(x_BxTxD)))


class Transformer(nn.Module):
    """The body: `depth` blocks and a last norm, x_BxTxD -> x_BxTxD in the compute dtype.

    Rotary positions are its only ones; without them, and not causal, it is permutation equivariant. Blocks are
    `block_0`, `block_1`, …, or with `scan` one stack `blocks` whose leaves have the layer as their first axis. Matrices
    start as in GPT-2: with a standard deviation of 0.02, or 0.02/√(2·depth) where they write to the residual stream.
    `transformer` explains the attributes.

    Raises:
        ValueError: for an unknown name, or an impossible width, depth, number of heads, hidden width or dropout rate.
    """

    width: int
    _: dataclasses.KW_ONLY
    depth: int
    heads: int
    causal: bool = False
    hidden: int | None = None
    activation: FeedForwardName = "gelu"
    norm: TokenNormName = "layer"
    rotary: bool = False
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    attention: AttentionName = "auto"
    remat: bool = False
    scan: bool = False
    dtype: FloatName = "float32"
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.rotary)
        check_count("depth", self.depth)
        if self.hidden is not None:
            check_count("hidden", self.hidden)
        check_name("activation", self.activation, FeedForwardName)
        check_name("norm", self.norm, TokenNormName)
        check_dropout(self.dropout)
        check_name("attention", self.attention, AttentionName)
        check_float_names(self.dtype, self.param_dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, *, train: bool = False) -> jax.Array:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        writer: dict[str, Any] = {"bias": self.bias, "out_std": INIT_STD / math.sqrt(2 * self.depth), **types}
        attention = functools.partial(
            MultiHeadAttention,
            self.width,
            heads=self.heads,
            causal=self.causal,
            rotary=self.rotary,
            qk_norm=self.qk_norm,
            implementation=self.attention,
            **writer,
        )
        feed_forward = functools.partial(
            FeedForward, self.width, hidden=self._hidden(), activation=self.activation, **writer
        )
        norm = functools.partial(make_norm, self.norm, bias=self.bias, **types)
        # Inside the loop of a scan XLA can't merge the recomputation with the first computation anyway.
        kind = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        block = functools.partial(kind, attention, feed_forward, norm, dropout=self.dropout, train=train)
        if self.scan:
            x_BxTxD = _scan(block(name="blocks"), self.depth, x_BxTxD)
        else:
            for i in range(self.depth):
                x_BxTxD = block(name=f"block_{i}")(x_BxTxD)
        return norm(name="norm_final")(x_BxTxD)

    def _hidden(self) -> int:
        if self.hidden is not None:
            return self.hidden
        # Three matrices of 8/3·D hold as many numbers as two of 4·D; rounded up to a multiple of 8.
        return 8 * math.ceil(self.width / 3) if self.activation == "swiglu" else 4 * self.width


def _scan(block: Block, depth: int, x_BxTxD: jax.Array) -> jax.Array:
    """Applies `depth` copies of the block, one after another, each with its own slice of the stacked parameters."""
    layers = nn.scan(
        lambda block, x_BxTxD, _: (block(x_BxTxD), None),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )
    return layers(block, x_BxTxD, None)[0]


class LanguageModel(nn.Module):
    """A decoder-only language model: tokens (B, T) -> logits (B, T, V) in float32 for the token that follows each.

    Attributes:
        vocabulary: V.
        body: the blocks, causal.
        length: the most tokens of a sequence, the rows of the learned positions; None: no learned positions.
        tied: whether the embedding is also the head.

    Raises:
        ValueError: for a count below 1, a body that isn't causal, or (when called) a sequence longer than `length`.
    """

    vocabulary: int
    _: dataclasses.KW_ONLY
    body: Transformer
    length: int | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        check_count("vocabulary", self.vocabulary)
        if self.length is not None:
            check_count("length", self.length)
        if not self.body.causal:
            raise ValueError("the body of a language model must be causal, got causal=False: it would see the answer")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array, *, train: bool = False) -> jax.Array:
        init = nn.initializers.normal(INIT_STD)
        types: dict[str, Any] = {"dtype": self.body.dtype, "param_dtype": self.body.param_dtype}
        embedding = embed(self.vocabulary, self.body.width, embedding_init=init, name="embedding", **types)
        x_BxTxD = embedding(tokens_BxT)
        if self.length is not None:
            T = tokens_BxT.shape[1]
            if self.length < T:
                raise ValueError(f"a sequence may have at most length ({self.length}) tokens, got {T}")
            shape = (self.length, self.body.width)
            position_LxD = self.param("position", init, shape, jnp.dtype(self.body.param_dtype))
            x_BxTxD = shifted(x_BxTxD, position_LxD[None, :T])
        x_BxTxD = nn.Dropout(self.body.dropout, deterministic=not train)(x_BxTxD)
        x_BxTxD = self.body(x_BxTxD, train=train)
        if self.tied:
            return at_least_float32(embedding.attend(x_BxTxD))
        head = dense(self.vocabulary, use_bias=False, kernel_init=init, name="head", **types)
        return at_least_float32(head(x_BxTxD))


class VisionTransformer(nn.Module):
    """An encoder over image patches: images (B, height, width, channels) -> logits (B, outputs) in float32.

    The patches are embedded by one matrix, row by row (arXiv 2010.11929), and pooled by their mean instead of a class
    token (arXiv 2205.01580). Without positions their order doesn't matter.

    Attributes:
        outputs: number of classes.
        body: the blocks.
        patch: side of a patch in pixels.
        learned_position: whether a learned position is added to each patch, which fixes the image size.

    Raises:
        ValueError: for a count below 1, or (when called) for images that patches don't fill.
    """

    outputs: int
    _: dataclasses.KW_ONLY
    body: Transformer
    patch: int
    learned_position: bool = True

    def __post_init__(self) -> None:
        check_count("outputs", self.outputs)
        check_count("patch", self.patch)
        super().__post_init__()

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(images_BxHxWxC)
        types: dict[str, Any] = {"dtype": self.body.dtype, "param_dtype": self.body.param_dtype}
        x_BxTxD = dense(self.body.width, name="embedding", **types)(split_into_patches(images_BxHxWxC, self.patch))
        if self.learned_position:
            init = nn.initializers.normal(INIT_STD)
            position_TxD = self.param("position", init, x_BxTxD.shape[1:], jnp.dtype(self.body.param_dtype))
            x_BxTxD = shifted(x_BxTxD, position_TxD[None])
        x_BxTxD = nn.Dropout(self.body.dropout, deterministic=not train)(x_BxTxD)
        x_BxTxD = self.body(x_BxTxD, train=train)
        return at_least_float32(dense(self.outputs, name="head", **types)(x_BxTxD.mean(axis=1)))


def split_into_patches(images_BxHxWxC: jax.Array, side: int) -> jax.Array:
    """Cuts images (B, height, width, C) into patches (B, T, side²·C), row by row.

    Raises:
        ValueError: if `side` doesn't divide height and width.
    """
    B, H, W, C = images_BxHxWxC.shape
    if H % side or W % side:
        raise ValueError(f"patch must divide the image's height and width ({H}×{W}), got {side}")
    split = images_BxHxWxC.reshape(B, H // side, side, W // side, side, C)
    return split.swapaxes(2, 3).reshape(B, (H // side) * (W // side), side * side * C)


def transformer(
    vocabulary: int,
    *,
    length: int = 256,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    hidden: int | None = None,
    position: PositionName = "learned",
    norm: TokenNormName = "layer",
    activation: FeedForwardName = "gelu",
    qk_norm: bool = False,
    bias: bool = True,
    tied: bool = True,
    dropout: float = 0.0,
    attention: AttentionName = "auto",
    remat: bool = False,
    scan: bool = False,
    dtype: FloatName = "float32",
    param_dtype: FloatName = "float32",
) -> LanguageModel:
    """Makes a causal language model: by default a small GPT-2.

    With position="rotary", norm="rms", activation="swiglu", bias=False and tied=False it is a small Llama.

    Args:
        vocabulary: number of different tokens.
        length: the most tokens of a sequence; read by learned positions only.
        width: size of a token's vector between the layers.
        depth: number of blocks, each of attention and a feed-forward layer.
        heads: number of attention heads; it must divide the width.
        hidden: width of the feed-forward layers; none: 4 times the width, or 8/3 times for swiglu's three matrices.
        position: encoding of the order: learned (a vector each), rotary (queries and keys are turned) or none.
        norm: before attention, before the feed-forward layer and at the end: layer or rms.
        activation: of the feed-forward layers: swiglu, gelu, silu, relu, tanh or sigmoid.
        qk_norm: whether queries and keys are normalized in each head, which keeps the attention's logits small.
        bias: whether linear layers and LayerNorms have biases.
        tied: whether the embedding is also the head, as in GPT-2.
        dropout: share of the embedding and of each layer's output that training sets to 0; not of attention weights.
        attention: implementation: xla, cudnn (on an NVIDIA GPU, in bfloat16; its gradient can't be differentiated) or
            auto: cudnn where it is available.
        remat: whether a block's activations are recomputed in the backward pass: less memory, more time.
        scan: whether the layers are one loop over stacked parameters, which compiles faster.
        dtype: dtype of the computation: float32, bfloat16 or float64; logits are at least float32.
        param_dtype: dtype of the parameters: float32, bfloat16 or float64.

    Raises:
        ValueError: for an unknown name, or an impossible size, such as heads that don't divide the width.
    """
    check_name("position", position, PositionName)
    body = Transformer(
        width,
        depth=depth,
        heads=heads,
        causal=True,
        hidden=hidden,
        activation=activation,
        norm=norm,
        rotary=position == "rotary",
        qk_norm=qk_norm,
        bias=bias,
        dropout=dropout,
        attention=attention,
        remat=remat,
        scan=scan,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return LanguageModel(vocabulary, body=body, length=length if position == "learned" else None, tied=tied)


def gpt2_small(
    vocabulary: int = 50257,
    *,
    length: int = 1024,
    dropout: float = 0.0,
    attention: AttentionName = "auto",
    remat: bool = False,
    scan: bool = False,
    dtype: FloatName = "float32",
    param_dtype: FloatName = "float32",
) -> LanguageModel:
    """Makes GPT-2 small (Radford et al. 2019): 124,439,808 parameters with its own vocabulary and length.

    Args:
        vocabulary: number of different tokens.
        length: the most tokens of a sequence.
        dropout: share of the embedding and of each layer's output that training sets to 0; GPT-2 had 0.1.
        attention: implementation: xla, cudnn (on an NVIDIA GPU, in bfloat16; its gradient can't be differentiated) or
            auto: cudnn where it is available.
        remat: whether a block's activations are recomputed in the backward pass: less memory, more time.
        scan: whether the layers are one loop over stacked parameters, which compiles faster.
        dtype: dtype of the computation: float32, bfloat16 or float64; logits are at least float32.
        param_dtype: dtype of the parameters: float32, bfloat16 or float64.

    Raises:
        ValueError: for an unknown dtype, or an impossible vocabulary, length or dropout rate.
    """
    return transformer(
        vocabulary,
        length=length,
        width=768,
        depth=12,
        heads=12,
        dropout=dropout,
        attention=attention,
        remat=remat,
        scan=scan,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def vision_transformer(
    outputs: int,
    *,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    hidden: int | None = None,
    position: PositionName = "learned",
    norm: TokenNormName = "layer",
    activation: FeedForwardName = "gelu",
    qk_norm: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    attention: AttentionName = "auto",
    remat: bool = False,
    scan: bool = False,
    dtype: FloatName = "float32",
    param_dtype: FloatName = "float32",
) -> VisionTransformer:
    """Makes an encoder over image patches with a mean pool; by default as wide as ViT-Tiny, and half as deep.

    Args:
        outputs: number of classes.
        patch: side of a patch in pixels; it must divide the images' height and width.
        width: size of a patch's vector between the layers.
        depth: number of blocks, each of attention and a feed-forward layer.
        heads: number of attention heads; it must divide the width.
        hidden: width of the feed-forward layers; none: 4 times the width, or 8/3 times for swiglu's three matrices.
        position: encoding of the order: learned (a vector for each patch), rotary (by the patch's number) or none.
        norm: before attention, before the feed-forward layer and at the end: layer or rms.
        activation: of the feed-forward layers: swiglu, gelu, silu, relu, tanh or sigmoid.
        qk_norm: whether queries and keys are normalized in each head, which keeps the attention's logits small.
        bias: whether linear layers and LayerNorms have biases; the patch embedding and the head always have one.
        dropout: share of the embedding and of each layer's output that training sets to 0; not of attention weights.
        attention: implementation: xla, cudnn (on an NVIDIA GPU, in bfloat16; its gradient can't be differentiated) or
            auto: cudnn where it is available.
        remat: whether a block's activations are recomputed in the backward pass: less memory, more time.
        scan: whether the layers are one loop over stacked parameters, which compiles faster.
        dtype: dtype of the computation: float32, bfloat16 or float64; logits are at least float32.
        param_dtype: dtype of the parameters: float32, bfloat16 or float64.

    Raises:
        ValueError: for an unknown name, or an impossible size, such as heads that don't divide the width.
    """
    check_name("position", position, PositionName)
    body = Transformer(
        width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        activation=activation,
        norm=norm,
        rotary=position == "rotary",
        qk_norm=qk_norm,
        bias=bias,
        dropout=dropout,
        attention=attention,
        remat=remat,
        scan=scan,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return VisionTransformer(outputs, body=body, patch=patch, learned_position=position == "learned")
