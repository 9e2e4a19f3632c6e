"""Updates of matrices brought to a size: that of their neurons, their own, or that of the weights that they move.

All accept the leaves that `orthogonalize` accepts, and treat each matrix of a stack by itself.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_decay, check_not_negative, check_positive
from optlab._trees import matched
from optlab.roles import MatrixAxes
from optlab.transforms._numerics import abs_square, cast_like, check_state_dtypes, check_wide, roots, widen
from optlab.transforms.matrices._divide import reshaped
from optlab.transforms.matrices._leaves import matrix_leaves


class ScaleByNeuronRmsState(NamedTuple):
    """nu: v, shaped as the parameters, but with length 1 along input axes."""

    nu: optax.Updates


def scale_by_neuron_rms(
    decay: float = 0.95, eps: float = 1e-8, *, nu_dtype: Any | None = None
) -> optax.GradientTransformationExtraArgs:
    """u / (√v + ε), v ← βv + (1 − β)·mean(u²) for every neuron, the mean being over its inputs.

    NorMuon's second moment, to stand behind `orthogonalize`, whose updates move some neurons further than others. A
    neuron is an output: a row in the paper, a column of Flax's kernels, which are (in, out). How large the whole update
    is doesn't matter if `scale_to_rms` follows.

    Source: Li et al. 2025, NorMuon (arXiv 2510.05491), Algorithm 1.

    Args:
        decay: decay of the average of squares (β), in [0, 1).
        eps: added to the root (ε).
        nu_dtype: the dtype that v is stored in; None is at least float32.
    """
    check_wide(decay=decay, eps=eps)
    check_state_dtypes(nu_dtype=nu_dtype)
    check_decay("decay", decay)
    check_not_negative("eps", eps)
    who = "scale_by_neuron_rms"

    def init_fn(params: optax.Params) -> ScaleByNeuronRmsState:
        leaves, axes = _views(who, params, {})
        v = [jnp.zeros_like(_mean_square(x, a), dtype=nu_dtype) for x, a in zip(leaves, axes, strict=True)]
        return ScaleByNeuronRmsState(_unboxed(params, v))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByNeuronRmsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByNeuronRmsState]:
        del params
        leaves, axes = _views(who, updates, extra_args)
        squares, before = list(map(_mean_square, leaves, axes)), jax.tree.leaves(state.nu)
        _check_shapes(who, squares, before)
        v = optax.tree.update_moment(squares, widen(before), decay, 1)
        scaled = [u / (root + eps) for u, root in zip(leaves, roots(v), strict=True)]
        nu = jax.tree.unflatten(jax.tree.structure(state.nu), cast_like(v, before))
        return _like(updates, scaled), ScaleByNeuronRmsState(nu)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_to_rms(rms: float = 0.2) -> optax.GradientTransformationExtraArgs:
    """u·ρ√(mn) / ‖u‖ for every matrix (m, n): its root mean square becomes ρ. Where u is 0 it stays 0.

    Source: 0.2 is about what Adam's updates have, so that its learning rates carry over (Liu et al. 2025, arXiv
    2502.16982, section 2.2); so in NorMuon (arXiv 2510.05491) and AdaMuon (arXiv 2507.11005).

    Args:
        rms: the root mean square of every matrix (ρ), positive.
    """
    check_wide(rms=rms)
    check_positive("rms", rms)

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        leaves, axes = _views("scale_to_rms", updates, extra_args)
        size = [rms * math.sqrt(math.prod(a.fans(x.shape))) for x, a in zip(leaves, axes, strict=True)]
        scaled = [s * _unit(u, n) for s, u, n in zip(size, leaves, _norms(leaves, axes), strict=True)]
        return _like(updates, scaled), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def scale_to_weight_norm() -> optax.GradientTransformationExtraArgs:
    """u·‖W‖ / ‖u‖ for every matrix W, in Frobenius' norm: the learning rate becomes a share of the weights.

    Where u is 0 it stays 0. A matrix that is 0 has no size that an update could be a share of: there u stays as it is,
    as in LARS, so that LoRA's B leaves 0.

    Source: Wen et al. 2026, Hyperball (arXiv 2606.16899); per layer in LARS, You et al. 2017 (arXiv 1708.03888).
    """

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        params = _check_params("scale_to_weight_norm", updates, params)
        leaves, axes = _views("scale_to_weight_norm", updates, extra_args)
        sizes, norms = (_norms(x, axes) for x in (_views("scale_to_weight_norm", params, extra_args)[0], leaves))
        scaled = [jnp.where(s > 0, s * _unit(u, n), u) for u, s, n in zip(leaves, sizes, norms, strict=True)]
        return _like(updates, scaled, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


class KeepWeightNormState(NamedTuple):
    """norm: R, Frobenius' norm of every matrix when it was initialized; length 1 along its input and output axes."""

    norm: optax.Params


def keep_weight_norm() -> optax.GradientTransformationExtraArgs:
    """R·(W + u) / ‖W + u‖ − W, with R = ‖W‖ at the start: every matrix stays on the sphere that it started on.

    To stand behind the learning rate, at the end of a chain. It takes weight decay's place: along the radius nothing
    moves. A matrix that starts as 0 has no sphere, and moves by u.

    Source: Wen et al. 2026, Hyperball (arXiv 2606.16899).
    """
    who = "keep_weight_norm"

    def init_fn(params: optax.Params) -> KeepWeightNormState:
        leaves, axes = _views(who, params, {})
        return KeepWeightNormState(_unboxed(params, _norms(leaves, axes)))

    def update_fn(
        updates: optax.Updates,
        state: KeepWeightNormState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, KeepWeightNormState]:
        params = _check_params(who, updates, params)
        (leaves, axes), (weights, _) = _views(who, updates, extra_args), _views(who, params, extra_args)
        moved = [W + u for W, u in zip(weights, leaves, strict=True)]
        norms, radii = _norms(moved, axes), jax.tree.leaves(state.norm)
        _check_shapes(who, norms, radii)
        back = [jnp.where(R > 0, _unit(R, n), 1) for R, n in zip(radii, norms, strict=True)]
        kept = [b * u + (b - 1) * W for b, u, W in zip(back, leaves, weights, strict=True)]  # u = 0 gives 0 exactly
        return _like(updates, kept, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _mean_square(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Of every neuron; 0 if it has no input."""
    return jnp.sum(abs_square(x), axis=axes.input, keepdims=True) / max(1, axes.fans(x.shape)[0])


def _norms(arrays: list[jax.Array], axes: list[MatrixAxes]) -> list[jax.Array]:
    """Of every matrix of every array."""
    sizes = [jnp.sum(abs_square(x), axis=a.input + a.output, keepdims=True) for x, a in zip(arrays, axes, strict=True)]
    return roots(sizes)


def _unit(x: jax.Array, length: jax.Array) -> jax.Array:
    return x / jnp.where(length > 0, length, 1)


def _views(who: str, tree: Any, extra_args: Mapping[str, Any]) -> tuple[list[jax.Array], list[MatrixAxes]]:
    """The leaves in at least float32, in the shapes that their axes are meant in, and the axes."""
    leaves = [(reshaped(x, a.view or x.shape), a) for x, a in matrix_leaves(who, widen(tree), extra_args)]
    return [x for x, _ in leaves], [a for _, a in leaves]


def _like(updates: Any, views: list[jax.Array], *params: Any) -> Any:
    """Back from `_views`, in the updates' shapes, and in their dtypes, or those of parameters that are wider."""

    def back(u: Any, x: Any, *p: Any) -> Any:
        return reshaped(x, u.shape, jax.typeof(u).sharding).astype(jnp.result_type(u.dtype, *p))

    types = [[p.dtype for p in jax.tree.leaves(tree)] for tree in params]
    leaves = [back(u, x, *p) for u, x, *p in zip(jax.tree.leaves(updates), views, *types, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(updates), leaves)


def _unboxed(params: Any, values: list[jax.Array]) -> Any:
    """A tree like the parameters, but of bare values: what boxes say of a sharding fits the parameters' shapes alone.

    Linen's boxes and NNX's variables are recognized by what both have, ways to add and to remove an axis.
    """

    def is_box(x: Any) -> bool:
        return hasattr(x, "add_axis") and hasattr(x, "remove_axis")

    rest = iter(values)

    def bare(x: Any) -> Any:
        # a masked one is an empty box
        return next(rest) if jax.tree.leaves(x) else x

    return jax.tree.map(bare, params, is_leaf=is_box)


def _check_params(who: str, updates: Any, params: Any | None) -> Any:
    """The parameters that have updates."""
    if params is None:
        raise ValueError(f"{who} needs the parameters: call update(updates, state, params)")
    return matched(updates, params)


def _check_shapes(who: str, new: Any, kept: Any) -> None:
    """Broadcasting would hide it."""
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(kept), strict=True):
        if x.shape != y.shape:
            raise ValueError(
                f"{who} was initialized for other matrix axes: its state has shape {y.shape}, and update's axes want "
                f"{x.shape}; give both the same layout"
            )
