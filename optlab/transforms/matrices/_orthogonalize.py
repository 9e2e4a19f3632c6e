"""Muon's block: each matrix by (about) the nearest orthogonal one."""

import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_choice, check_not_negative, known
from optlab._integers import is_count
from optlab.transforms._numerics import wide_dtype
from optlab.transforms.matrices._divide import Mesh
from optlab.transforms.matrices._leaves import check_real
from optlab.transforms.matrices._map import on_matrices
from optlab.transforms.matrices._newton_schulz import (
    GRAM_STEPS,
    LARGEST,
    LEAST_IN_16_BITS,
    Coefficients,
    Recipe,
    Recipes,
    extremes,
    flops,
    keller_jordan,
    newton_schulz,
    polar,
    polar_express,
    restarts,
)
from optlab.transforms.matrices._plan import Work, Works


class Settings(NamedTuple):
    """The settings of `orthogonalize`; its arguments say what each means.

    coefficients: of the quintics, one triple a step; empty for an SVD.
    dtype: the name of the working dtype, or None.
    precision: of the products, or None. Where both are None, the platform decides.
    """

    method: str
    coefficients: Coefficients
    eps: float
    dtype: str | None
    precision: str | None


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
    eps = known("eps", eps)
    settings = Settings(method, coefficients, eps, dtype, precision)

    def f(X: jax.Array) -> jax.Array:
        if method == "svd":
            return polar(X.astype(wide_dtype(X))).astype(X.dtype)
        return newton_schulz(X, coefficients, _recipes(X.shape[1:], str(X.dtype), settings), eps)

    def describe(shape: tuple[int, int], dtype: str) -> Works:
        return Works(*(_work(shape, recipe) for recipe in _recipes(shape, dtype, settings)))

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        if method != "svd":
            check_real("orthogonalize by Newton–Schulz", updates, "take method='svd', which can do it, or ")
        done = on_matrices(
            f,
            updates,
            layout=extra_args.get("layout"),
            who="orthogonalize",
            describe=describe,
            mesh=mesh,
            axis_name=axis_name,
        )
        return done, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _recipes(shape: tuple[int, int], dtype: str, settings: Settings) -> Recipes:
    """The platforms differ only where neither dtype nor precision was asked for, and the leaves aren't float64."""
    wide, steps = str(jnp.promote_types(dtype, jnp.float32)), len(settings.coefficients)
    if settings.method == "svd":
        return Recipes(*3 * (Recipe("svd", (steps,), wide, "highest"),))
    if settings.dtype is None and settings.precision is None and wide == "float32":
        cpu, half = _cheapest(shape, steps, "float32", "highest"), Recipe("standard", (steps,), "bfloat16", "default")
        # A TPU multiplies in bfloat16 alone; a GPU as fast in float16, which has the bits that the Gram form needs.
        gram = _cheapest(shape, steps, "float16", "default")
        return Recipes(cpu, gram if gram.form == "gram" else half, half)
    working = settings.dtype or wide
    precision = settings.precision or ("default" if is_half(working) else "highest")
    return Recipes(*3 * (_cheapest(shape, steps, working, precision),))


def _cheapest(shape: tuple[int, int], steps: int, dtype: str, precision: str) -> Recipe:
    """In the Gram form where that is less work and the products are exact enough; TF32's aren't on every platform."""
    standard = Recipe("standard", (steps,), dtype, precision)
    if dtype not in GRAM_STEPS or (precision != "highest" and dtype != "float16"):
        return standard
    gram = Recipe("gram", restarts(steps, GRAM_STEPS[dtype]), dtype, precision)
    return gram if flops(shape, gram.chunks, "gram") < flops(shape, standard.chunks, "standard") else standard


def is_half(dtype: str) -> bool:
    """True if a floating-point dtype has 16 bits."""
    return dtype in ("bfloat16", "float16")


def _work(shape: tuple[int, int], recipe: Recipe) -> Work:
    steps = "+".join(map(str, recipe.chunks)) if recipe.form != "svd" else "-"
    return Work(recipe.form, steps, _computed_in(recipe), flops(shape, recipe.chunks, recipe.form))


def _computed_in(recipe: Recipe) -> str:
    """The dtype, and the precision where it makes of float32 something else."""
    return (
        recipe.dtype
        if recipe.precision == "highest" or is_half(recipe.dtype)
        else f"{recipe.dtype}, {recipe.precision}"
    )
