"""Curvature in an optimizer's metric: what its steps see of a Hessian."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_decay, check_not_negative
from optlab._trees import is_absent
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


def adam_metric(
    opt_state: Any, *, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, bias_correction: bool = True
) -> Product:
    """v -> v/√(√(v̂ + ε_root) + ε), P = diag(√(v̂ + ε_root) + ε), from an optimizer's state that holds one of Adam's.

    What Adam doesn't move, such as Muon's matrices beside Adam's rest, stays as it is: of such an optimizer apply this
    metric and Muon's one after the other. Source: Cohen et al. 2022 (arXiv 2207.14484), eq. 2.

    Args:
        opt_state: of any chain with `optlab.scale_by_adam` (or optax's) in it.
        b2: β₂, as it was given to it,
        eps: ε,
        eps_root: ε_root,
        bias_correction: and whether v is corrected.

    Raises:
        ValueError: if there is no state of Adam's, or more than one, or one that has seen no gradient.
    """
    check_decay("b2", b2)
    check_not_negative("eps", eps)
    check_not_negative("eps_root", eps_root)
    if not eps + eps_root > 0:
        raise ValueError("eps or eps_root must be positive: where no gradient has been the metric has no inverse else")
    state = adam_state("adam_metric", opt_state)
    count, nu = known("count", state.count), state.nu
    if count is not None and not count.all():
        raise ValueError("adam_metric needs a state that has seen a gradient: update the optimizer at least once")
    if bias_correction:
        nu = optax.tree.bias_correction(nu, b2, state.count)
    P = jax.tree.map(lambda nu: jnp.sqrt(nu + eps_root) + eps, nu)
    return lambda v: _by_leaf(lambda x, p: (x / jnp.sqrt(p)).astype(x.dtype), v, P)


def muon_metric(momentum: Any) -> Product:
    """v -> v(MᵀM)^(−¼) for every matrix: Muon's update M(MᵀM)^(−½) is M in the metric P = (MᵀM)^(½) on the right.

    Where M is wider than high it is (MMᵀ)^(−¼)v, on the left: the update is the same. Singular values below rounding
    count as that. What isn't a matrix stays as it is, and so does what the momentum lacks (None, optax.MaskedNode).

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
        wide = M.astype(jnp.promote_types(M.dtype, jnp.float32))
        _, sigma, Vt = jnp.linalg.svd(wide, full_matrices=False)
        least = jnp.finfo(sigma.dtype).eps * max(M.shape) * sigma[0]
        return (Vt.T / jnp.sqrt(jnp.maximum(sigma, least))[None]) @ Vt

    def factor(M: jax.Array) -> Any:
        return root(M.T if M.shape[0] < M.shape[1] else M) if jnp.ndim(M) == 2 else None

    def turned(x: jax.Array, R: Any) -> jax.Array:
        return (R @ x if x.shape[0] < x.shape[1] else x @ R).astype(x.dtype)

    roots = jax.tree.map(factor, momentum)
    return lambda v: _by_leaf(turned, v, roots)


def _by_leaf(function: Callable[[Any, Any], Any], v: Any, other: Any) -> Any:
    """function(x, y) for the leaves x of v and y of the other tree; x itself where that has None or a MaskedNode."""
    return jax.tree.map(lambda y, x: x if is_absent(y) else function(x, y), other, v, is_leaf=is_absent)
