"""Multi-head attention, computed by XLA or by cuDNN.

Letters in shapes: B batch, T tokens (S, where keys are counted apart from queries), D width, H heads,
K width of a head.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from optlab.models.layers import INIT_STD, FloatName, check_float_names, check_heads, check_name, make_norm, rotate
from optlab.models.linear import dense

AttentionName = Literal["auto", "xla", "cudnn"]


def attention_weights(query_BxTxHxK: jax.Array, key_BxSxHxK: jax.Array, *, causal: bool = False) -> jax.Array:
    """Computes the weights softmax(QKᵀ/√K) of scaled dot-product attention (arXiv 1706.03762, eq. 1), to look at them.

    The models call `jax.nn.dot_product_attention`, which returns the weights times V; only in float64 do they build
    this matrix.

    Args:
        query_BxTxHxK: queries.
        key_BxSxHxK: keys.
        causal: whether token t sees the tokens up to t only.

    Returns:
        weights_BxHxTxS in at least float32; the weights of each query, its row, sum to 1.
    """
    T, S, K = query_BxTxHxK.shape[1], key_BxSxHxK.shape[1], query_BxTxHxK.shape[3]
    wide = jnp.promote_types(query_BxTxHxK.dtype, jnp.float32)
    scores_BxHxTxS = jnp.einsum("BTHK,BSHK->BHTS", query_BxTxHxK, key_BxSxHxK, preferred_element_type=wide)
    scores_BxHxTxS = scores_BxHxTxS / math.sqrt(K)
    if causal:
        seen = jnp.tril(jnp.ones((1, 1, T, S), bool))
        scores_BxHxTxS = jnp.where(seen, scores_BxHxTxS, -jnp.inf)
    return jax.nn.softmax(scores_BxHxTxS, axis=-1)


def attend(
    query_BxTxHxK: jax.Array,
    key_BxSxHxK: jax.Array,
    value_BxSxHxK: jax.Array,
    *,
    causal: bool,
    implementation: AttentionName,
) -> jax.Array:
    """Computes the weights times V, by JAX's own function except in float64, where JAX's softmax is in float32."""
    chosen = _chosen(implementation, query_BxTxHxK)
    if query_BxTxHxK.dtype == jnp.float64:
        weights_BxHxTxS = attention_weights(query_BxTxHxK, key_BxSxHxK, causal=causal)
        return jnp.einsum("BHTS,BSHK->BTHK", weights_BxHxTxS, value_BxSxHxK)
    heads = query_BxTxHxK, key_BxSxHxK, value_BxSxHxK
    return jax.nn.dot_product_attention(*heads, is_causal=causal, implementation=chosen)


def _chosen(implementation: AttentionName, query_BxTxHxK: jax.Array) -> Literal["xla", "cudnn"]:
    """Chooses while tracing: `lax.platform_dependent` would keep the residuals of both, T² numbers for each head."""
    if implementation == "xla":
        return "xla"
    device = _device()
    missing = _missing(device, query_BxTxHxK)
    if not missing:
        return "cudnn"
    if implementation == "cudnn":
        raise ValueError(f"attention='cudnn' needs {missing}: take 'auto', which then takes XLA's, or 'xla'")
    if _is_cuda(device):
        warnings.warn(f"XLA's attention is taken, as cuDNN's needs {missing}; 'xla' asks for it", stacklevel=2)
    return "xla"


def _missing(device: Any, query_BxTxHxK: jax.Array) -> str:
    """Names the first requirement of cuDNN's attention that isn't met here; "" if all are."""
    K = query_BxTxHxK.shape[-1]
    if not _is_cuda(device) or float(device.compute_capability) < 8:
        return f"an NVIDIA GPU of compute capability 8.0 or more, and the device is {device.device_kind!r}"
    if query_BxTxHxK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype='bfloat16', and is given {query_BxTxHxK.dtype}"
    if K % 8 or K > 128:
        return f"heads whose width is a multiple of 8, 128 at most, and width / heads is {K}"
    if jax.typeof(query_BxTxHxK).sharding.mesh.explicit_axes:
        return "a mesh whose axes are Auto, and these are Explicit"
    return ""


def _device() -> Any:
    """Returns a device that programs are compiled for by default."""
    config: Any = jax.config
    default = config.jax_default_device
    if default is None or isinstance(default, str):
        return jax.local_devices(backend=default)[0]
    return default


def _is_cuda(device: Any) -> bool:
    """Returns whether a device is NVIDIA's, whose capability is a version; AMD's is a name such as gfx942."""
    return device.platform == "gpu" and device.compute_capability.replace(".", "").isdigit()


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention with an output projection (arXiv 1706.03762, section 3.2.2): x_BxTxD -> x_BxTxD.

    Query, key and value are three matrices (D, D), so that a rule for matrices, such as Muon, sees each by itself.
    `model.apply(variables, inputs, mutable=["intermediates"])` also returns the weights, as `attention_weights` (a
    tuple of one array BxHxTxT); otherwise they are never computed.

    Attributes:
        width: D, of the input and of the output.
        heads: H; each is D / H wide.
        causal: whether token t sees the tokens up to t only.
        rotary: whether queries and keys are rotated by their position.
        qk_norm: whether each head's queries and keys pass an RMSNorm (arXiv 2302.05442, section 2, there a LayerNorm).
        bias: whether the four projections have biases.
        out_std: standard deviation that the output projection starts with.
        implementation: computes the weights times V: "xla", "cudnn" (fused, on NVIDIA GPUs, in 16 bits), or "auto":
            cuDNN where it is available.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: if the heads don't divide the width, or leave each an odd width under rotary positions; when called,
            for "cudnn" where it isn't available.
    """

    width: int
    _: dataclasses.KW_ONLY
    heads: int
    causal: bool = False
    rotary: bool = False
    qk_norm: bool = False
    bias: bool = True
    out_std: float = INIT_STD
    implementation: AttentionName = "auto"
    dtype: FloatName = "float32"
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.rotary)
        check_name("implementation", self.implementation, AttentionName)
        check_float_names(self.dtype, self.param_dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        query_BxTxHxK, key_BxTxHxK = self._prepared("query", x_BxTxD), self._prepared("key", x_BxTxD)
        value_BxTxHxK = self._heads("value", x_BxTxD)
        if self.is_mutable_collection("intermediates"):
            weights_BxHxTxT = attention_weights(query_BxTxHxK, key_BxTxHxK, causal=self.causal)
            self.sow("intermediates", "attention_weights", weights_BxHxTxT)
        heads = query_BxTxHxK, key_BxTxHxK, value_BxTxHxK
        mixed_BxTxHxK = attend(*heads, causal=self.causal, implementation=self.implementation)
        return self._dense("out", self.out_std)(mixed_BxTxHxK.reshape(x_BxTxD.shape))

    def _dense(self, name: str, std: float = INIT_STD) -> nn.Dense:
        return dense(
            self.width,
            use_bias=self.bias,
            kernel_init=nn.initializers.normal(std),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _heads(self, name: str, x_BxTxD: jax.Array) -> jax.Array:
        B, T, D = x_BxTxD.shape
        return self._dense(name)(x_BxTxD).reshape(B, T, self.heads, D // self.heads)

    def _prepared(self, name: str, x_BxTxD: jax.Array) -> jax.Array:
        x_BxTxHxK = self._heads(name, x_BxTxD)
        if self.qk_norm:
            x_BxTxHxK = make_norm("rms", name=f"norm_{name}", dtype=self.dtype, param_dtype=self.param_dtype)(x_BxTxHxK)
        return rotate(x_BxTxHxK) if self.rotary else x_BxTxHxK
