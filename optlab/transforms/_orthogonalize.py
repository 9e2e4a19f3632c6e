"""Muon's block: each matrix by (about) the nearest orthogonal one."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_choice, check_not_negative, check_positive
from optlab.transforms._matrices import matrix_leaves
from optlab.transforms._newton_schulz import newton_schulz, polar
from optlab.transforms._numerics import cast_like, widen


def orthogonalize(
    method: Literal["newton_schulz", "svd"] = "newton_schulz",
    *,
    steps: int = 5,
    eps: float = 1e-7,
    precision: Literal["default", "high", "highest"] = "highest",
) -> optax.GradientTransformationExtraArgs:
    """UVᵀ of every matrix G = UΣVᵀ: all singular values become 1, and the directions stay.

    Newton–Schulz comes near: with Keller Jordan's coefficients and five steps the singular values end between about 0.7
    and 1.2 (those below a thousandth of the largest stay smaller). Matrices of one shape, transposed or not, are done
    in one batch, in at least float32, whatever the dtype of the gradients.

    Under `by_role` a leaf may have any rank; alone, the extra argument `matrix_axes` of update says how a leaf of rank
    other than 2 is a matrix, and without it such a leaf is an error that names it.

    Source: Jordan et al. 2024, Muon (kellerjordan.github.io/posts/muon).

    Args:
        method: "newton_schulz", or "svd" for the exact UVᵀ, which is slow on accelerators.
        steps: how many Newton–Schulz steps; 5 as in the source.
        eps: added to the Frobenius norm that Newton–Schulz divides by: a matrix with a norm far below it becomes 0.
        precision: of the products in Newton–Schulz, as in `jax.default_matmul_precision`: "default" is TF32 on recent
            NVIDIA GPUs and bfloat16 on TPUs, "highest" float32 everywhere.
    """
    check_choice("method", method, ("newton_schulz", "svd"))
    check_choice("precision", precision, ("default", "high", "highest"))
    check_positive("steps", steps)
    check_not_negative("eps", eps)
    orthogonal = lambda X: polar(X) if method == "svd" else newton_schulz(X, steps, eps, precision)

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        matrix_axes: Any | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        leaves = matrix_leaves("orthogonalize", updates, matrix_axes)
        matrices = [axes.to_matrices(widen(x)) for x, axes in leaves]
        done = [
            axes.from_matrices(X, x.shape) for X, (x, axes) in zip(_by_shape(orthogonal, matrices), leaves, strict=True)
        ]
        return cast_like(jax.tree.unflatten(jax.tree.structure(updates), done), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _by_shape(f: Callable[[jax.Array], jax.Array], stacks: list[jax.Array]) -> list[jax.Array]:
    """f of every stack (N, m, n), in one call for all that have the same m ≤ n, where f(X) = f(Xᵀ)ᵀ."""
    wide = [X.mT if X.shape[-2] > X.shape[-1] else X for X in stacks]
    groups = defaultdict(list)
    for i, X in enumerate(wide):
        groups[X.shape[1:], X.dtype].append(i)
    for members in groups.values():
        ends = list(itertools.accumulate(len(wide[i]) for i in members))
        done = jnp.split(f(jnp.concatenate([wide[i] for i in members])), ends[:-1])
        for i, X in zip(members, done, strict=True):
            wide[i] = X
    return [Y.mT if X.shape[-2] > X.shape[-1] else Y for X, Y in zip(stacks, wide, strict=True)]
