"""Attention as a plain function: (Q, K, V) -> output and weights, alone, over itself and over references.

Letters in shapes: T queries, S keys, d their width, e the values'. Use `jax.vmap` for batches and heads.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optlab.theory._arrays import as_matrix, check_count

__all__ = ["attention", "causal_mask", "cross_attention", "mean_pool", "self_attention"]


def attention(Q: Any, K: Any, V: Any, *, mask: Any | None = None) -> tuple[jax.Array, jax.Array]:
    """softmax(QKᵀ/√d)V and the weights, each row of which sums to 1. Vaswani et al. 2017 (arXiv 1706.03762), eq. 1.

    Without the root the logits' variance grows like d, and the softmax saturates. An output doesn't depend on the
    order of the keys, if the values have the same one.

    Args:
        Q: queries, (T, d).
        K: keys, (S, d).
        V: values, (S, e).
        mask: (T, S), True where a query may look; a row without any has weights 0 and output 0.

    Returns:
        (T, e) and (T, S).
    """
    Q, K, V = as_matrix("Q", Q), as_matrix("K", K), as_matrix("V", V)
    if Q.shape[1] != K.shape[1]:
        raise ValueError(f"Q and K must have vectors of one width, got the shapes {Q.shape} and {K.shape}")
    if K.shape[0] != V.shape[0]:
        raise ValueError(f"K and V must have as many rows, got the shapes {K.shape} and {V.shape}")
    logits = Q @ K.T / jnp.sqrt(jnp.asarray(Q.shape[1], Q.dtype))
    if mask is None:
        weights = jax.nn.softmax(logits, axis=1)
    else:
        if not hasattr(mask, "dtype") or not jnp.issubdtype(mask.dtype, jnp.bool_):
            raise ValueError(f"mask must be an array of booleans, True where a query may look, got {mask!r}")
        mask = jnp.asarray(mask)
        if mask.shape != logits.shape:
            raise ValueError(f"mask must have the shape {logits.shape}, one entry a query and key, got {mask.shape}")
        weights = jax.nn.softmax(logits, axis=1, where=mask)
        weights = jnp.where(mask.any(axis=1, keepdims=True), weights, 0)
    return weights @ V, weights


def self_attention(x: Any, WQ: Any, WK: Any, WV: Any, *, mask: Any | None = None) -> tuple[jax.Array, jax.Array]:
    """`attention` of x over itself: Q = xWQ, K = xWK, V = xWV.

    Without positions or a mask it is permutation equivariant, f(Px) = Pf(x), and its `mean_pool` is invariant: what
    the order of the tokens means has to be put into x.

    Args:
        x: tokens, (T, D).
        WQ: (D, d).
        WK: (D, d).
        WV: (D, e).
        mask: (T, T), as in `attention`.
    """
    return cross_attention(x, x, WQ, WK, WV, mask=mask)


def cross_attention(
    x: Any, references: Any, WQ: Any, WK: Any, WV: Any, *, mask: Any | None = None
) -> tuple[jax.Array, jax.Array]:
    """`attention` of x over separate references: Q = xWQ, K = references·WK, V = references·WV.

    It is equivariant in the order of x and invariant in that of the references.

    Args:
        x: tokens, (T, D).
        references: what they look at, (S, D').
        WQ: (D, d).
        WK: (D', d).
        WV: (D', e).
        mask: (T, S), as in `attention`.
    """
    x, references = as_matrix("x", x), as_matrix("references", references)
    projections = []
    for name, W, rows in (("WQ", WQ, x), ("WK", WK, references), ("WV", WV, references)):
        W = as_matrix(name, W)
        if W.shape[0] != rows.shape[1]:
            raise ValueError(f"{name} must have {rows.shape[1]} rows, one a feature, got the shape {W.shape}")
        projections.append(rows @ W)
    return attention(*projections, mask=mask)


def causal_mask(tokens: int) -> jax.Array:
    """(T, T), True where the key isn't later than the query.

    Args:
        tokens: T.
    """
    check_count("tokens", tokens)
    return jnp.tril(jnp.ones((tokens, tokens), bool))


def mean_pool(x: Any) -> jax.Array:
    """The mean over the tokens, (e,): invariant in their order.

    Args:
        x: tokens, (T, e).
    """
    return jnp.mean(as_matrix("x", x), axis=0)
