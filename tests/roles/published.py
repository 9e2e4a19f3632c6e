"""Ten published models, written down small from their papers, with parameters called p0, p1, … .

PUBLISHED is {name: Mechanism}, as in `mechanisms`: what each parameter is, in the order in which it is named.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .mechanisms import (
    CONV,
    HEAD,
    IMAGES,
    MATRIX,
    MECHANISMS,
    STACKED,
    TOKENS,
    B,
    E,
    F,
    H,
    K,
    T,
    V,
    W,
    attend,
    mechanism,
    norm,
)

EARLIER = set(MECHANISMS)
A = H * K  # the attention's width
BOTH = [MATRIX, MATRIX]


def layer_norm(x, g, b):
    x = x - x.mean(-1, keepdims=True)
    return g * x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) + b


def heads(x):
    return x.reshape(*x.shape[:-1], H, K)


def joined(x):
    return x.reshape(*x.shape[:-2], A)


def conv(x, w, stride=1, groups=1, padding="SAME"):
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def rotated(x):
    """Rotary positions (arXiv 2104.09864)."""
    a, b = jnp.split(x, 2, -1)
    angle = jnp.arange(x.shape[1], dtype="float32")[:, None, None]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


@mechanism(
    [(V, W), (T, W), (W,), (W,), (W, 3 * A), (3 * A,), (A, W), (W,), (W,), (W,), (W, F), (F,), (F, W), (W,)],
    [
        "embedding",
        "embedding",
        "vector",
        "vector",
        ("matrix", (1,), (0,), (2,), (W, 3, A)),
        "vector",
        MATRIX,
        "vector",
        "vector",
        "vector",
        MATRIX,
        "vector",
        MATRIX,
        "vector",
    ],
    TOKENS,
)
def gpt2(p, tokens):
    """Radford et al. 2019, Language models are unsupervised multitask learners; github.com/openai/gpt-2."""
    x = p[0][tokens] + p[1]
    q, k, v = map(heads, jnp.split(layer_norm(x, p[2], p[3]) @ p[4] + p[5], 3, -1))
    x = x + joined(attend(q, k, v)) @ p[6] + p[7]
    x = x + jax.nn.gelu(layer_norm(x, p[8], p[9]) @ p[10] + p[11]) @ p[12] + p[13]
    return jnp.sum(jax.nn.log_softmax(x @ p[0].T))


@mechanism(
    [(V, W), (2, W), (2, W, 16), *[(2, W, 8)] * 2, (2, 16, W), (2, W), *[(2, W, F)] * 2, (2, F, W), (W,), (W, V)],
    ["embedding", "vector", STACKED, STACKED, STACKED, STACKED, "vector", STACKED, STACKED, STACKED, "vector", HEAD],
    TOKENS,
)
def llama(p, tokens):
    """Touvron et al. 2023 (arXiv 2302.13971, 2307.09288): rotary, grouped queries, SwiGLU, scanned over two layers."""

    def layer(x, w):
        g, q, k, v, o, h, gate, up, down = w
        y = norm(x, g)
        q, k, v = (z.reshape(B, T, -1, 4) for z in (y @ q, y @ k, y @ v))
        k, v = (jnp.repeat(z, 2, 2) for z in (rotated(k), v))
        x = x + attend(rotated(q), k, v).reshape(B, T, -1) @ o
        y = norm(x, h)
        return x + (jax.nn.silu(y @ gate) * (y @ up)) @ down, None

    x, _ = lax.scan(layer, p[0][tokens], tuple(p[1:10]))
    return jnp.sum(jax.nn.log_softmax(norm(x, p[10]) @ p[11]))


@mechanism(
    [(2, 2, 3, W), (W,), (1, 1, W), (1, 10, W), (W, A), (W, A), (W, A), (A, W), (W, F), (F, W), (W, V), (V,)],
    [CONV, "vector", "embedding", "embedding", *[MATRIX] * 3, MATRIX, *BOTH, HEAD, "vector"],
    IMAGES,
)
def vision_transformer(p, images):
    """Dosovitskiy et al. 2021 (arXiv 2010.11929)."""
    x = conv(images, p[0], 2, padding="VALID").reshape(B, 9, W) + p[1]
    x = jnp.concatenate([jnp.broadcast_to(p[2], (B, 1, W)), x], 1) + p[3]
    x = x + joined(attend(*(heads(norm(x) @ w) for w in p[4:7]))) @ p[7]
    x = x + jax.nn.gelu(norm(x) @ p[8]) @ p[9]
    return jnp.sum(jax.nn.log_softmax(norm(x)[:, 0] @ p[10] + p[11]))


@mechanism(
    [(12, W), (8, W), (W, W), (V, W), (W, 6 * W), (W, 3 * A), (A, W), (W, F), (F, W), (W, 2 * W), (W, 12)],
    [
        MATRIX,
        MATRIX,
        MATRIX,
        "embedding",
        ("matrix", (1,), (0,), (2,), (W, 6, W)),
        ("matrix", (1,), (0,), (2,), (W, 3, A)),
        MATRIX,
        *BOTH,
        ("matrix", (1,), (0,), (2,), (W, 2, W)),
        HEAD,
    ],
    jax.ShapeDtypeStruct((B, T, 12), "float32"),
    jax.ShapeDtypeStruct((B,), "float32"),
    jax.ShapeDtypeStruct((B,), "int32"),
)
def diffusion_transformer(p, patches, t, label):
    """Peebles and Xie 2023 (arXiv 2212.09748): adaLN-Zero."""
    angle = t[:, None] * jnp.exp(-jnp.arange(4.0))
    c = jax.nn.silu(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1) @ p[1]) @ p[2] + p[3][label]
    x = patches @ p[0]
    a, b, g, d, e, f = (y[:, None] for y in jnp.split(jax.nn.silu(c) @ p[4], 6, -1))
    q, k, v = map(heads, jnp.split((norm(x) * (1 + a) + b) @ p[5], 3, -1))
    x = x + g * (joined(attend(q, k, v)) @ p[6])
    x = x + f * (jax.nn.gelu((norm(x) * (1 + d) + e) @ p[7]) @ p[8])
    shift, scale = (y[:, None] for y in jnp.split(jax.nn.silu(c) @ p[9], 2, -1))
    return jnp.mean(((norm(x) * (1 + scale) + shift) @ p[10] - patches) ** 2)


@mechanism(
    [(3, 3, 3, W), (1, 1, W, 4), (4,), (4,), (3, 3, 4, 4), (1, 1, 4, F), (1, 1, W, F), (F, V), (V,)],
    [CONV, CONV, "vector", "vector", CONV, CONV, CONV, HEAD, "vector"],
    IMAGES,
)
def residual_network(p, images):
    """He et al. 2016 (arXiv 1512.03385): a bottleneck with a projected shortcut."""
    x = jax.nn.relu(conv(images, p[0]))
    y = conv(x, p[1])
    y = jax.nn.relu((y - y.mean((0, 1, 2))) * lax.rsqrt(y.var((0, 1, 2)) + 1e-5) * p[2] + p[3])
    x = jax.nn.relu(conv(jax.nn.relu(conv(y, p[4], 2)), p[5]) + conv(x, p[6], 2))
    return jnp.sum(jax.nn.log_softmax(x.mean((1, 2)) @ p[7] + p[8]))


@mechanism(
    [(2, 2, 3, W), (7, 7, 1, W), (W,), (W,), (W, F), (F, W), (W,), (W, V)],
    [CONV, ("conv", (3,), (0, 1, 2), ()), "vector", "vector", *BOTH, "vector", HEAD],
    IMAGES,
)
def convnext(p, images):
    """Liu et al. 2022 (arXiv 2201.03545)."""
    x = conv(images, p[0], 2, padding="VALID")
    y = layer_norm(conv(x, p[1], groups=W), p[2], p[3])
    x = x + p[6] * (jax.nn.gelu(y @ p[4]) @ p[5])
    return jnp.sum(jax.nn.log_softmax(x.mean((1, 2)) @ p[7]))


@mechanism([(2, 2, 3, W), (9, F), (F, 9), (W, F), (F, W), (W, V)], [CONV, *BOTH, *BOTH, HEAD], IMAGES)
def mlp_mixer(p, images):
    """Tolstikhin et al. 2021 (arXiv 2105.01601)."""
    x = conv(images, p[0], 2, padding="VALID").reshape(B, 9, W)
    x = x + jnp.swapaxes(jax.nn.gelu(jnp.swapaxes(norm(x), 1, 2) @ p[1]) @ p[2], 1, 2)
    x = x + jax.nn.gelu(norm(x) @ p[3]) @ p[4]
    return jnp.sum(jax.nn.log_softmax(x.mean(1) @ p[5]))


@mechanism(
    [(V, W), (32, H), (W, A), (W, A), (W, A), (A, W), (W, F), (F, W), (W, A), (W, A), (W, A), (A, W)],
    ["embedding", "embedding", *[MATRIX] * 10],
    TOKENS,
    TOKENS,
)
def t5(p, source, target):
    """Raffel et al. 2020 (arXiv 1910.10683): an encoder with relative positions, a decoder that attends to it."""
    x = p[0][source]
    distance = jnp.clip(jnp.arange(T)[:, None] - jnp.arange(T)[None], -16, 15) + 16
    q, k, v = (heads(norm(x) @ w) for w in p[2:5])
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + jnp.moveaxis(p[1][distance], -1, 0)
    x = x + joined(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)) @ p[5]
    x = norm(x + jax.nn.relu(norm(x) @ p[6]) @ p[7])
    y = p[0][target]
    y = y + joined(attend(heads(norm(y) @ p[8]), heads(x @ p[9]), heads(x @ p[10]))) @ p[11]
    return jnp.sum(jax.nn.log_softmax(norm(y) * W**-0.5 @ p[0].T))


@mechanism(
    [(V, W), (W, E), (E, W, F), (E, W, F), (E, F, W), (W, V)],
    ["embedding", MATRIX, STACKED, STACKED, STACKED, HEAD],
    TOKENS,
)
def mixtral(p, tokens):
    """Jiang et al. 2024 (arXiv 2401.04088): two experts of several, each a gated unit."""
    x = p[0][tokens].reshape(B * T, W)
    gates, chosen = lax.top_k(x @ p[1], 2)
    weight = jnp.sum(jax.nn.one_hot(chosen, E) * jax.nn.softmax(gates)[..., None], 1)
    expert = lambda gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down
    x = x + jnp.einsum("enw,ne->nw", jax.vmap(expert)(p[2], p[3], p[4]), weight)
    return jnp.sum(jax.nn.log_softmax(norm(x) @ p[5]))


@mechanism(
    [(3, 3, 3, W), (3, 3, W, F), (2, 2, F, W), (3, 3, 2 * W, W), (1, 1, W, 2)],
    [CONV, CONV, CONV, CONV, ("head", (), (0, 1, 2), (3,))],
    IMAGES,
)
def u_net(p, images):
    """Ronneberger et al. 2015 (arXiv 1505.04597)."""
    top = jax.nn.relu(conv(images, p[0]))
    pooled = lax.reduce_window(top, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    low = jax.nn.relu(conv(pooled, p[1]))
    up = lax.conv_transpose(low, p[2], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(conv(jnp.concatenate([top, up], -1), p[3]))
    return jnp.sum(jax.nn.log_softmax(conv(x, p[4])))


PUBLISHED = {name: MECHANISMS.pop(name) for name in list(MECHANISMS) if name not in EARLIER}
