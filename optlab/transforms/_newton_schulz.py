"""Orthogonalization of a stack of matrices: all singular values to about one (Newton–Schulz), or to one (SVD)."""

import jax
import jax.numpy as jnp

KELLER_JORDAN = (
    3.4445,
    -4.7750,
    2.0315,
)  # steepest at 0, so that small singular values grow fast; they end in about 0.7…1.2


def newton_schulz(X: jax.Array, steps: int, eps: float, precision: str) -> jax.Array:
    """X (N, m, n) with X ← aX + bAX + cA²X, A = XXᵀ, iterated; at its best with m ≤ n.

    Source: Jordan 2024, kellerjordan.github.io/posts/muon.
    """
    a, b, c = KELLER_JORDAN
    product = lambda Y, Z: jnp.matmul(Y, Z, precision=precision)
    X = _normalize(X, eps)
    for _ in range(steps):
        A = product(X, X.mT)
        X = a * X + product(b * A + c * product(A, A), X)
    return X


def polar(X: jax.Array) -> jax.Array:
    """UVᵀ of X = UΣVᵀ, (N, m, n); directions whose singular value is zero to rounding stay zero."""
    X = _normalize(X, 0.0)
    U, sigma, Vt = jnp.linalg.svd(X, full_matrices=False)
    rounding = max(X.shape[-2:]) * jnp.finfo(X.dtype).eps
    sign = jnp.where(sigma > rounding * sigma[..., :1], 1.0, 0.0).astype(X.dtype)
    return jnp.matmul(U * sign[..., None, :], Vt, precision="highest")


def _normalize(X: jax.Array, eps: float) -> jax.Array:
    """X / (‖X‖ + ε) in the Frobenius norm, without overflow or underflow of the squares; zero stays zero."""
    scale = jnp.max(jnp.abs(X), axis=(-2, -1), keepdims=True)
    scale = jnp.maximum(scale, jnp.finfo(X.dtype).tiny)
    X = X / scale
    norm = jnp.sqrt(jnp.sum(X * X, axis=(-2, -1), keepdims=True))
    return X / jnp.maximum(norm + eps / scale, 1e-3)  # norm is at least 1 but for a matrix of zeros
