"""Curvature in an optimizer's metric: what its steps see of a Hessian."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_decay, check_positive
from optlab.theory._arrays import check_all_finite, check_functions, count_numbers, known
from optlab.theory.adam import adam_state

Product: TypeAlias = Callable[[Any], Any]


def preconditioned(A: Product, inverse_root: Product) -> Product:
    """v -> P^(−½)AP^(−½)v, whose eigenvalues are those of P⁻¹A: the curvature that x ← x − ηP⁻¹∇f sees.

    Args:
        A: v -> Av.
        inverse_root: v -> P^(−½)v, as `adam_metric` or `muon_metric` gives it.
    """
    check_functions(A=A, inverse_root=inverse_root)
    return lambda v: inverse_root(A(inverse_root(v)))


def adam_metric(opt_state: Any, *, b2: float = 0.999, eps: float = 1e-8, bias_correction: bool = True) -> Product:
    """v -> v/√(√v̂ + ε), P = diag(√v̂ + ε), from an optimizer's state that holds one of Adam's.

    Source: Cohen et al. 2022 (arXiv 2207.14484), eq. 2.

    Args:
        opt_state: of any chain with `optlab.scale_by_adam` (or optax's) in it.
        b2: β₂, as it was given to it,
        eps: and ε,
        bias_correction: and whether v is corrected.

    Raises:
        ValueError: if there is no state of Adam's, or more than one, or one that has seen no gradient.
    """
    check_decay("b2", b2)
    check_positive("eps", eps)
    state = adam_state("adam_metric", opt_state)
    count, nu = known("count", state.count), state.nu
    if count is not None and not count.all():
        raise ValueError("adam_metric needs a state that has seen a gradient: update the optimizer at least once")
    if bias_correction:
        nu = optax.tree.bias_correction(nu, b2, state.count)
    return lambda v: jax.tree.map(lambda x, nu: x / jnp.sqrt(jnp.sqrt(nu) + eps), v, nu)


def muon_metric(momentum: Any) -> Product:
    """v -> v(MᵀM)^(−¼) for every matrix: Muon's update M(MᵀM)^(−½) is M in the metric P = (MᵀM)^(½) on the right.

    Where M is wider than high it is (MMᵀ)^(−¼)v, on the left: the update is the same. Singular values below rounding
    count as that. What isn't a matrix stays as it is.

    Args:
        momentum: a tree like the parameters, M (or the gradient, where there is none).

    Raises:
        ValueError: for a matrix that is 0 or not finite: its metric has no inverse.
    """
    count_numbers("momentum", momentum)
    for path, M in jax.tree_util.tree_leaves_with_path(momentum):
        name = f"momentum{jax.tree_util.keystr(path)}"
        check_all_finite(name, M)
        if jnp.ndim(M) == 2 and (values := known(name, M)) is not None and not values.any():
            raise ValueError(f"{name} must not be 0: its metric has no inverse")

    def root(M: jax.Array) -> jax.Array:
        """(MᵀM)^(−¼) of a matrix that isn't wide."""
        _, sigma, Vt = jnp.linalg.svd(M, full_matrices=False)
        least = jnp.finfo(sigma.dtype).eps * max(M.shape) * sigma[0]
        return (Vt.T / jnp.sqrt(jnp.maximum(sigma, least))[None]) @ Vt

    def of(M: Any) -> Product:
        if jnp.ndim(M) != 2:
            return lambda v: v
        is_wide = M.shape[0] < M.shape[1]
        R = root(M.T if is_wide else M)
        return lambda v: R @ v if is_wide else v @ R

    structure: Any = jax.tree.structure(momentum)
    maps = [of(M) for M in jax.tree.leaves(momentum)]

    def times(v: Any) -> Any:
        return jax.tree.unflatten(structure, [f(x) for f, x in zip(maps, structure.flatten_up_to(v), strict=True)])

    return times
