"""Muon's block: each matrix by (about) the nearest orthogonal one."""

import functools
import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_choice, check_not_negative, is_count
from optlab.transforms._numerics import wide_dtype
from optlab.transforms.matrices._divide import Mesh
from optlab.transforms.matrices._leaves import check_real
from optlab.transforms.matrices._map import on_matrices
from optlab.transforms.matrices._newton_schulz import (
    LARGEST,
    Coefficients,
    extremes,
    flops,
    keller_jordan,
    newton_schulz,
    polar,
    polar_express,
    restarts,
)
from optlab.transforms.matrices._plan import Work


class Settings(NamedTuple):
    """What `orthogonalize` was asked for; its arguments say what each means.

    coefficients: of the quintics, one triple a step; empty for an SVD.
    dtype: the name of the working dtype, or None for at least float32.
    """

    method: str
    coefficients: Coefficients
    eps: float
    dtype: str | None
    precision: str

    @property
    def is_exact(self) -> bool:
        """Whether products are good enough for the Gram form, which TF32 and 16 bits make unstable."""
        return self.precision == "highest" and self.dtype in (None, "float32")


def orthogonalize(
    method: Literal["newton_schulz", "polar_express", "svd"] = "newton_schulz",
    *,
    steps: int = 5,
    lower_bound: float = 1e-3,
    eps: float = 1e-7,
    dtype: Any | None = None,
    precision: Literal["default", "high", "highest"] = "highest",
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """UVᵀ of every matrix G = UΣVᵀ: all singular values become 1, and the directions stay.

    Newton–Schulz comes near: with Keller Jordan's coefficients and five steps the singular values end between about 0.7
    and 1.2 (those below a thousandth of the largest stay smaller). Polar Express has other coefficients for every step,
    best for singular values of at least `lower_bound`. No singular value ends above 1.25, and none changes its sign.

    Matrices of one shape, transposed or not, are stacked and done together, in the Gram form where that is less work
    and exact enough: the *plan*, which depends on shapes, dtypes and settings alone (`optlab.explain` shows it). Over
    a mesh the matrices of a stack are divided among the devices, with the same result: over the mesh that the leaves'
    types show, or the ambient one (`jax.set_mesh`), or `mesh`; under pmap and shard_map along the axes named in
    `axis_name`. Where none of them shows a mesh, every device does everything.

    How a leaf is a matrix, `optlab.roles.layout_of` says: by_role's layout, or the extra argument `layout` of update,
    or that of `with layout:` around, or what its name and shape show. What is no matrix is an error that names it.

    Source: Jordan et al. 2024, Muon (kellerjordan.github.io/posts/muon); Amsel et al. 2025, Polar Express
    (arXiv 2505.16932).

    Args:
        method: "newton_schulz" (Keller Jordan's coefficients), "polar_express", or "svd" for the exact UVᵀ, which is
            slow on accelerators.
        steps: how many quintic steps; 5 as in the sources.
        lower_bound: the least singular value, as a share of the Frobenius norm, that Polar Express looks after.
        eps: added to the Frobenius norm that is divided by: a matrix with a norm far below it becomes 0.
        dtype: that the products are computed in: float32, bfloat16 or float16; None is at least float32.
        precision: of the products in Newton–Schulz, as in `jax.default_matmul_precision`: "default" is TF32 on recent
            NVIDIA GPUs and bfloat16 on TPUs, "highest" float32 everywhere.
        mesh: over which the work is divided, where the leaves' types don't show it.
        axis_name: mapped axes of pmap or shard_map along which all devices hold the same gradients (after their mean).

    Raises:
        ValueError: if the coefficients for so few steps leave a singular value above 1.25.
    """
    check_choice("method", method, ("newton_schulz", "polar_express", "svd"))
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
    settings = Settings(method, coefficients, eps, dtype, precision)
    describe = functools.partial(_work, settings=settings)

    def f(X: jax.Array) -> jax.Array:
        Y = X.astype(wide_dtype(X))
        if method == "svd":
            return polar(Y).astype(X.dtype)
        form, chunks, working = _recipe(X.shape[1:], str(X.dtype), settings)
        return newton_schulz(Y, coefficients, chunks, form, eps, working, precision).astype(X.dtype)

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        if method != "svd":
            check_real("orthogonalize by Newton–Schulz", updates)
        where = {"layout": extra_args.get("layout"), "mesh": mesh, "axis_name": axis_name}
        return on_matrices(f, updates, who="orthogonalize", describe=describe, **where), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _recipe(shape: tuple[int, int], dtype: str, settings: Settings) -> tuple[str, tuple[int, ...], str]:
    """(form, steps between restarts, dtype of the products) for matrices m ≤ n: the cheaper form that is exact."""
    working = settings.dtype or str(jnp.promote_types(dtype, jnp.float32))
    steps = (len(settings.coefficients),)
    if settings.method == "svd":
        return "svd", steps, working
    if settings.is_exact:
        restarted = restarts(len(settings.coefficients))
        if flops(shape, restarted, "gram") < flops(shape, steps, "standard"):
            return "gram", restarted, working
    return "standard", steps, working


def _work(shape: tuple[int, int], dtype: str, settings: Settings) -> Work:
    form, chunks, working = _recipe(shape, dtype, settings)
    steps = "+".join(map(str, chunks)) if form != "svd" else "-"
    return Work(form, steps, working, flops(shape, chunks, form))
