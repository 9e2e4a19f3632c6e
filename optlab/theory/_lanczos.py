"""Lanczos on trees: what an eigenvalue is read from."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optlab._extras import need
from optlab.theory._metrics import Product


def normal(key: jax.Array, like: Any) -> Any:
    return optax.tree.random_like(key, jax.tree.map(jnp.asarray, like))


def widened(A: Product, like: Any) -> tuple[Product, Any]:
    """A and a tree like its argument in at least float32: products of 16 bits stay so, their sums and roots do not.

    Args:
        A: v -> Av.
        like: a tree of the dtypes that A takes.
    """
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(like)]

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)

    def times(v: Any) -> Any:
        leaves, structure = jax.tree.flatten(v)
        narrow = [x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)]
        return wide(A(jax.tree.unflatten(structure, narrow)))

    return times, wide(like)


def tridiagonal(A: Product, start: Any, matvecs: int) -> tuple[jax.Array, Any]:
    """T (matvecs, matvecs) and the Lanczos vectors, a tree with one more axis in front.

    Once the Krylov space is exhausted (a Hessian of low rank) the next vector is rounding: neither it nor what T holds
    from there on means anything, and both are replaced, T by values far below its eigenvalues.
    """
    need("theory.curvature", "matfree", extra="theory")
    from matfree import decomp

    flat, unravel = ravel_pytree(start)

    def times(v: jax.Array) -> jax.Array:
        turned = A(unravel(v))
        shapes, wanted = ([jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (turned, start))
        if shapes != wanted:
            raise ValueError(f"the product must return arrays of its argument's shapes, {wanted}, got {shapes}")
        return ravel_pytree(turned)[0]

    Q, H, *_ = decomp.hessenberg(matvecs, custom_vjp=False, reortho="full")(times, flat)
    size = jnp.sqrt(jnp.cumsum(jnp.sum(jnp.square(H), axis=0)))[:-1]  # of the columns so far
    is_new = jnp.diagonal(H, -1) > 1e3 * jnp.finfo(H.dtype).eps * size
    is_there = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(is_new).astype(bool)]) | jnp.isnan(H[0, 0])
    T = jnp.where(is_there[:, None] & is_there[None], (H + H.T) / 2, 0)
    below = -2 * jnp.linalg.norm(T) - 1
    return T + jnp.diag(jnp.where(is_there, 0, below)), jax.vmap(unravel)(jnp.where(is_there[:, None], Q, 0))


def lanczos(A: Product, start: Any, matvecs: int) -> tuple[jax.Array, Any]:
    """Ritz values, rising, and vectors; NaN where the Krylov space had ended."""
    T, vectors = tridiagonal(A, start, matvecs)
    values, of_T = jnp.linalg.eigh(T)
    turned = jax.tree.map(lambda v: jnp.tensordot(of_T.T.astype(v.dtype), v, 1), vectors)
    norms = jax.vmap(optax.tree.norm)(turned)
    return jnp.where(norms > 0.5, values, jnp.nan), turned
