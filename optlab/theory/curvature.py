"""Curvature without the matrix: the largest eigenvalues, the trace and the density of a Hessian, by its products.

A product is any function v -> Av of trees like the parameters: `hessian(f, params)`, `gauss_newton(…)`, a plain
symmetric matrix by `product(A)`, each of them seen in an optimizer's metric by `preconditioned`. Lanczos and the trace
estimators are matfree's. With parameters of 16 bits the products are of 16 bits, and all else is in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optlab._checks import check_key
from optlab._extras import need
from optlab.theory._arrays import (
    as_numbers,
    as_vector,
    check_all_decays,
    check_all_not_negative,
    check_all_positive,
    check_count,
    check_functions,
    check_ordered,
    check_symmetric,
    check_whole,
    count_numbers,
)
from optlab.theory._lanczos import lanczos, normal, tridiagonal, widened
from optlab.theory._metrics import Product, adam_metric, muon_metric, preconditioned

__all__ = [
    "Density",
    "Eigenpairs",
    "adam_metric",
    "check_product",
    "density",
    "edge_of_sgd",
    "edge_of_stability",
    "eigenvalues",
    "gauss_newton",
    "hessian",
    "largest_eigenvalue",
    "muon_metric",
    "preconditioned",
    "product",
    "trace",
]


def hessian(f: Callable[[Any], jax.Array], params: Any) -> Product:
    """v -> ∇²f(θ)v, by a jvp of the gradient: about the cost of two gradients. Pearlmutter 1994.

    Args:
        f: θ -> scalar.
        params: θ.
    """
    check_functions(f=f)
    return lambda v: jax.jvp(jax.grad(f), (params,), (v,))[1]


def gauss_newton(outputs: Callable[[Any], Any], loss: Callable[[Any], jax.Array], params: Any) -> Product:
    """v -> Jᵀ∇²loss·Jv, the Hessian of loss(outputs(θ)) without the outputs' own curvature. Schraudolph 2002.

    Positive semi-definite where the loss is convex in the outputs.

    Args:
        outputs: θ -> what the loss is of.
        loss: outputs -> scalar.
        params: θ.
    """
    check_functions(outputs=outputs, loss=loss)
    at = outputs(params)
    of_loss = hessian(loss, at)

    def times(v: Any) -> Any:
        slope = jax.jvp(outputs, (params,), (v,))[1]
        return jax.vjp(outputs, params)[1](of_loss(slope))[0]

    return times


def product(A: Any) -> Product:
    """v -> Av of a matrix.

    Args:
        A: symmetric, (d, d).

    Raises:
        ValueError: if it isn't symmetric.
    """
    A = check_symmetric("A", A)
    return lambda v: A @ as_vector("v", v, len(A))


def check_product(A: Product, like: Any, *, key: jax.Array) -> None:
    """Refuses a product that isn't symmetric, ⟨u, Av⟩ ≠ ⟨Au, v⟩ at random u and v; for Lanczos it would be silent.

    Args:
        A: the product.
        like: a tree of the parameters' shapes.
        key: a JAX random key.

    Raises:
        ValueError: naming both numbers.
    """
    check_functions(A=A)
    check_key(key)
    count_numbers("like", like)
    precision = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(like))).eps)
    A, like = widened(A, like)
    u, v = (normal(k, like) for k in jax.random.split(key))
    left, right = (float(optax.tree.vdot(a, b)) for a, b in ((u, A(v)), (A(u), v)))
    size = float(optax.tree.norm(u) * optax.tree.norm(A(v)))
    if not abs(left - right) <= min(1e3 * precision, 0.05) * size:
        raise ValueError(
            f"the product must be that of a symmetric matrix, but ⟨u, Av⟩ is {left:.6g} and ⟨Au, v⟩ {right:.6g}"
        )


# The spectrum.


class Eigenpairs(NamedTuple):
    """The largest eigenvalues and their vectors; see `eigenvalues`."""

    values: jax.Array  # (k,), falling
    vectors: Any  # a tree like the parameters with an axis of length k in front, each of norm 1
    residuals: jax.Array  # (k,), ‖Av − λv‖: an eigenvalue lies at most that far from λ


def eigenvalues(A: Product, like: Any, k: int = 1, *, key: jax.Array, matvecs: int = 32) -> Eigenpairs:
    """The k largest eigenvalues (not by magnitude) and their vectors, by Lanczos from a random start.

    All `matvecs` Lanczos vectors are held, each as large as the parameters, and orthogonalized anew. Of an eigenvalue
    that is there several times one is found; what isn't found at all is NaN. The smallest are those of −A.

    Args:
        A: v -> Av, of a symmetric matrix.
        like: a tree of the parameters' shapes and dtypes.
        k: how many.
        key: a JAX random key.
        matvecs: products; more for more accuracy. At most the number of parameters.
    """
    check_functions(A=A)
    check_key(key)
    size = count_numbers("like", like)
    check_count("k", k)
    if k > size:
        raise ValueError(f"k must be at most the number of parameters ({size}), got {k}")
    check_count("matvecs", matvecs, least=k)
    A, like = widened(A, like)
    values, vectors = lanczos(A, normal(key, like), min(matvecs, size))
    values, vectors = values[::-1][:k], jax.tree.map(lambda v: v[::-1][:k], vectors)

    def residual(value: jax.Array, vector: Any) -> jax.Array:
        return optax.tree.norm(optax.tree.add_scale(A(vector), -value, vector))

    return Eigenpairs(values, vectors, jax.lax.map(lambda pair: residual(*pair), (values, vectors)))


def largest_eigenvalue(A: Product, start: Any, *, matvecs: int = 16) -> jax.Array:
    """The largest eigenvalue of a symmetric matrix by a few steps of Lanczos: from below, and from the start given.

    Args:
        A: v -> Av.
        start: where Lanczos starts, a tree like the parameters. A gradient is a good one: it has most of its length
            along the sharpest directions (Gur-Ari, Roberts and Dyer 2018, arXiv 1812.04754). Where it is 0, as at a
            minimum, a fixed vector is taken in its place.
        matvecs: products.
    """
    check_functions(A=A)
    check_count("matvecs", matvecs)
    size = count_numbers("start", start)
    A, start = widened(A, start)
    flat, unravel = ravel_pytree(start)
    flat = jnp.where(jnp.all(flat == 0), jnp.cos(jnp.arange(1, size + 1)).astype(flat.dtype), flat)
    return lanczos(A, unravel(flat), min(matvecs, size))[0][-1]


def trace(A: Product, like: Any, *, key: jax.Array, samples: int = 64) -> tuple[jax.Array, jax.Array]:
    """The trace and its standard error, from E[vᵀAv] over random signs. Hutchinson 1989.

    Args:
        A: v -> Av.
        like: a tree of the parameters' shapes and dtypes.
        key: a JAX random key.
        samples: products, two at least.
    """
    need("theory.curvature", "matfree", extra="theory")
    from matfree import stochtrace

    check_functions(A=A)
    check_key(key)
    check_count("samples", samples, least=2)
    count_numbers("like", like)
    A, like = widened(A, like)
    sampler = stochtrace.sampler_signs(like, num=samples)
    mean, error = stochtrace.estimator_monte_carlo_mean_and_sem(stochtrace.monte_carlo_trace(), sampler)(A, key)
    return mean, error * (samples / (samples - 1)) ** 0.5  # matfree divides by the number of samples


class Density(NamedTuple):
    """The distribution of the eigenvalues; see `density`."""

    nodes: jax.Array  # (probes, matvecs), places
    weights: jax.Array  # (probes, matvecs), the share of all eigenvalues at each; they sum to 1


def density(A: Product, like: Any, *, key: jax.Array, matvecs: int = 64, probes: int = 4) -> Density:
    """The eigenvalues' density as weighted points, by stochastic Lanczos quadrature.

    Σ weights·g(nodes) estimates the mean of g over all eigenvalues: with g(λ) = λ the trace over d, with a Gaussian
    about x the smoothed density at x. Source: Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159), Algorithm 1.

    Args:
        A: v -> Av.
        like: a tree of the parameters' shapes and dtypes.
        key: a JAX random key.
        matvecs: products for each probe.
        probes: random starts.
    """
    check_functions(A=A)
    check_key(key)
    check_count("matvecs", matvecs)
    check_count("probes", probes)
    size = count_numbers("like", like)
    A, like = widened(A, like)

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        T, _ = tridiagonal(A, normal(key, like), min(matvecs, size))
        nodes, vectors = jnp.linalg.eigh(T)
        return nodes, vectors[0] ** 2  # 0 for what isn't there

    nodes, weights = jax.lax.map(probe, jax.random.split(key, probes))
    return Density(jnp.where(weights > 0, nodes, 0), weights / probes)


def edge_of_stability(learning_rate: Any, *, momentum: Any = 0.0, nesterov: bool = False) -> jax.Array:
    """2/η, or (2 + 2β)/η with the heavy ball: the sharpness beyond which full-batch descent isn't stable.

    Training drives the sharpness up to it and stays there. With Nesterov's momentum it is (2 + 2β)/(η(1 + 2β)). For
    Adam's heavy ball in its average form the η is η(1 − β₁), and the sharpness the preconditioned one: at
    β₁ = 0.9 it is 38/η. Source: Cohen et al. 2021 (arXiv 2103.00065), eq. 1 and section 2; for Adam 2022
    (arXiv 2207.14484).

    Args:
        learning_rate: η of `optlab.sgd`.
        momentum: β.
        nesterov: whether it is Nesterov's.
    """
    check_all_positive("learning_rate", learning_rate)
    check_all_decays("momentum", momentum)
    rate, beta = as_numbers(learning_rate=learning_rate, momentum=momentum)
    edge = (2 + 2 * beta) / rate
    return edge / (1 + 2 * beta) if nesterov else edge


def edge_of_sgd(learning_rate: Any, batch_size: Any, *, examples: int, spread: Any) -> jax.Array:
    """2/(η(1 + c²(N − B)/(B(N − 1)))): the sharpest minimum that SGD stays in, the flatter the smaller the batch.

    In one dimension, where the examples' own curvatures are aᵢ with the mean a and the standard deviation c·a: a step
    with a batch drawn without replacement multiplies E[x²] by (1 − ηa)² + η²(ca)²(N − B)/(B(N − 1)), which is below 1
    up to there. B = N is 2/η. Source: Wu, Ma and E 2018, How SGD Selects the Global Minima
    in Over-parameterized Learning; for several dimensions they have sufficient conditions.

    Args:
        learning_rate: η.
        batch_size: B, from 1 to N.
        examples: N.
        spread: c, the curvatures' standard deviation over their mean.
    """
    check_all_positive("learning_rate", learning_rate)
    check_whole("batch_size", batch_size, least=1)
    check_count("examples", examples)
    check_ordered(batch_size=batch_size, examples=examples, or_equal=True)
    check_all_not_negative("spread", spread)
    rate, B, c = as_numbers(learning_rate=learning_rate, batch_size=batch_size, spread=spread)
    return 2 / (rate * (1 + c**2 * (examples - B) / (B * max(examples - 1, 1))))
