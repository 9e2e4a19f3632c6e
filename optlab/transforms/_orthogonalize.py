"""Muon's block: each matrix by (about) the nearest orthogonal one."""

import functools
import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_choice, check_not_negative, is_count, known
from optlab._notes import note
from optlab.roles import MatrixAxes
from optlab.transforms._divide import Mesh, by_mesh, divide, on_auto_axes, on_explicit, placed_like
from optlab.transforms._matrices import check_real, matrix_leaves
from optlab.transforms._newton_schulz import (
    LARGEST,
    LEAST_IN_16_BITS,
    extremes,
    keller_jordan,
    newton_schulz,
    polar,
    polar_express,
)
from optlab.transforms._numerics import wide_dtype
from optlab.transforms._plan import Group, Matrices, Plan, Settings, make_plan


class OrthogonalizeState(NamedTuple):
    """note: the settings, to be read by `state.settings`; there is nothing in it that changes."""

    note: jax.tree_util.Partial

    @property
    def settings(self) -> Settings:
        return self.note()


def orthogonalize(
    method: Literal["newton_schulz", "polar_express", "svd"] = "newton_schulz",
    *,
    steps: int = 5,
    lower_bound: float = 1e-3,
    eps: float = 1e-7,
    dtype: Any | None = None,
    precision: Literal["default", "high", "highest"] | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """UVᵀ of every matrix G = UΣVᵀ: all singular values become 1, and the directions stay.

    Newton–Schulz comes near: with Keller Jordan's coefficients and five steps the singular values end between about 0.7
    and 1.2 (those below a thousandth of the largest stay smaller). Polar Express has other coefficients for every step,
    best for singular values of at least `lower_bound`. No singular value ends above 1.25, and none changes its sign.

    Unless `dtype` or `precision` is given, the platform that the program is compiled for decides what the products are
    computed in: float32 on a CPU; on a GPU and a TPU bfloat16, as in the published Muons, or on a GPU float16 where the
    Gram form saves work, which needs its bits. The norm is float32's everywhere, and what is below a hundredth of it
    is rounding in 16 bits. Matrices in float64 are computed in float64. `optax.contrib.muon` computes in the updates'
    own dtype at JAX's default precision, so that float32 is TF32 on recent NVIDIA GPUs: dtype="float32" with
    precision="default" does so here, and dtype="float32" alone gives a CPU's numbers on every platform, ten times
    slower.

    Matrices of one shape, transposed or not, are stacked and done together, in the Gram form where that is less work
    and exact enough: the *plan*, which depends on shapes, dtypes and settings alone (`optlab.explain` shows it, with
    what is done on which platform). Over
    a mesh the matrices of a stack are divided among the devices, with the same result: over the mesh that the leaves'
    types show, or the ambient one (`jax.set_mesh`), or `mesh`; under pmap and shard_map along the axes named in
    `axis_name`. Where none of them shows a mesh, every device does everything.

    Under `by_role` a leaf may have any rank; alone, the extra argument `matrix_axes` of update says how a leaf of rank
    other than 2 is a matrix, and without it such a leaf is an error that names it.

    Source: Jordan et al. 2024, Muon (kellerjordan.github.io/posts/muon); Amsel et al. 2025, Polar Express
    (arXiv 2505.16932).

    Args:
        method: "newton_schulz" (Keller Jordan's coefficients), "polar_express", or "svd" for the exact UVᵀ, which is
            slow on accelerators.
        steps: how many quintic steps; 5 as in the sources.
        lower_bound: the least singular value, as a share of the Frobenius norm, that Polar Express looks after. For one
            below 1e-4 products are computed in float32 on every platform.
        eps: added to the Frobenius norm that is divided by: a matrix with a norm far below it becomes 0.
        dtype: that the products are computed in: float32, bfloat16 or float16, on every platform; None as above, or
            at least float32 where `precision` is given.
        precision: of the products in Newton–Schulz, as in `jax.default_matmul_precision`: "default" is TF32 on recent
            NVIDIA GPUs and bfloat16 on TPUs, "highest" float32 everywhere. None is "highest" for products in float32.
        mesh: over which the work is divided, where the leaves' types don't show it.
        axis_name: mapped axes of pmap or shard_map along which all devices hold the same gradients (after their mean).

    Raises:
        ValueError: if the coefficients for so few steps leave a singular value above 1.25, or if products in 16 bits
            were asked for with a `lower_bound` below 1e-4.
    """
    check_choice("method", method, ("newton_schulz", "polar_express", "svd"))
    if precision is not None:
        check_choice("precision", precision, ("default", "high", "highest"))
    check_not_negative("eps", eps)
    if not is_count(steps):
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if not isinstance(lower_bound, numbers.Real) or not 1e-6 <= lower_bound < 1:
        raise ValueError(f"lower_bound must lie in [1e-6, 1), got {lower_bound!r}")
    if dtype is not None:
        dtype = str(jnp.dtype(dtype))
        check_choice("dtype", dtype, ("float32", "bfloat16", "float16"))
    if method == "svd" and dtype in ("bfloat16", "float16"):
        raise ValueError(f"method='svd' needs float32, got dtype={dtype!r}: leave dtype away")
    coefficients = {"newton_schulz": keller_jordan(steps), "polar_express": (), "svd": ()}[method]
    if method == "polar_express":
        coefficients = polar_express(steps, float(lower_bound))
        if (largest := extremes(coefficients)[1]) > LARGEST:
            raise ValueError(
                f"polar_express with steps={steps} and lower_bound={lower_bound:g} lets singular values end at "
                f"{largest:.2f}, above {LARGEST}: take more steps or a higher lower_bound"
            )
        if lower_bound < LEAST_IN_16_BITS:
            if dtype in ("bfloat16", "float16") or precision == "default":
                raise ValueError(
                    f"polar_express with lower_bound={lower_bound:g} isn't stable in 16 bits, in which a TPU computes "
                    f"with precision='default': take a lower_bound of at least {LEAST_IN_16_BITS:g}, or "
                    "dtype='float32' with precision='highest'"
                )
            precision = precision or "highest"  # so that no platform chooses 16 bits
    settings = Settings(method, coefficients, known("eps", eps), dtype, precision)
    axis_names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)

    def init_fn(params: optax.Params) -> OrthogonalizeState:
        del params
        return OrthogonalizeState(note(settings))

    def update_fn(
        updates: optax.Updates,
        state: OrthogonalizeState,
        params: optax.Params | None = None,
        *,
        matrix_axes: Any | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OrthogonalizeState]:
        del params, extra_args
        if method != "svd":
            check_real("orthogonalize by Newton–Schulz", updates)
        leaves = matrix_leaves("orthogonalize", updates, matrix_axes)
        arrays, axes = [x for x, _ in leaves], tuple(a for _, a in leaves)
        done = list(arrays)
        for members, on in by_mesh(arrays, mesh) if arrays else []:
            some = [arrays[i] for i in members], tuple(axes[i] for i in members)
            for i, x in zip(members, _orthogonal(*some, settings, on, axis_names), strict=True):
                done[i] = x
        return jax.tree.unflatten(jax.tree.structure(updates), done), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def plan_of(leaves: Sequence[jax.ShapeDtypeStruct | jax.Array], axes: Sequence[MatrixAxes], settings: Settings) -> Plan:
    """The plan for leaves of these shapes and dtypes, each seen as matrices along its axes."""
    matrices = []
    for x, a in zip(leaves, axes, strict=True):
        fan_in, fan_out = a.fans(x.shape)
        matrices.append(Matrices(x.size // max(1, fan_in * fan_out), fan_in, fan_out, str(x.dtype)))
    return make_plan(matrices, settings)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))  # for those who call update outside a jit
def _orthogonal(
    leaves: list[jax.Array],
    axes: tuple[MatrixAxes, ...],
    settings: Settings,
    mesh: Mesh | None,
    axis_names: tuple[str, ...],
) -> list[jax.Array]:
    """All leaves, by the plan, each placed as it was."""
    plan, leaves = plan_of(leaves, axes, settings), on_explicit(leaves, mesh)

    def f(leaves: list[jax.Array]) -> list[jax.Array]:
        done = list(leaves)
        for group in plan.groups:
            on_side = [_is_tall(leaves[i], axes[i]) for i in group.members]
            stacks = [axes[i].to_matrices(leaves[i]) for i in group.members]
            stacks = [X.mT if flip else X for X, flip in zip(stacks, on_side, strict=True)]
            work = functools.partial(_of_stack, group=group, settings=settings)
            stack = divide(work, jnp.concatenate(stacks), mesh, axis_names)
            for i, flip, Y in zip(group.members, on_side, jnp.split(stack, group.starts[1:]), strict=True):
                done[i] = axes[i].from_matrices(Y.mT if flip else Y, leaves[i].shape)
        return [placed_like(y, x) for y, x in zip(done, leaves, strict=True)] if mesh is not None else done

    return on_auto_axes(f, mesh, leaves)(leaves)


def _is_tall(x: jax.Array, axes: MatrixAxes) -> bool:
    fan_in, fan_out = axes.fans(x.shape)
    return fan_in > fan_out


def _of_stack(X: jax.Array, group: Group, settings: Settings) -> jax.Array:
    """A stack (N, m, n) of the group's matrices, some or all of them; in its dtype."""
    if settings.method == "svd":
        return polar(X.astype(wide_dtype(X))).astype(X.dtype)
    return newton_schulz(X, settings.coefficients, group.recipes, settings.eps)
