"""The size of a matrix's update by the matrix's shape."""

import math
from typing import Any, Literal

import jax
import optax

from optlab._checks import check_choice
from optlab.transforms._numerics import cast_like, widen
from optlab.transforms.matrices._leaves import matrix_leaves


def scale_by_matrix_shape(scale: Literal["rms", "spectral"] = "rms") -> optax.GradientTransformationExtraArgs:
    """Orthogonal updates times a factor of their shape, so that one learning rate fits all.

    "rms" is 0.2·√max(fan_in, fan_out), which gives an orthogonal update the root mean square 0.2 that Adam's updates
    have about, so that AdamW's learning rates and decays may carry over (Liu et al. 2025, arXiv 2502.16982, section
    2.2; `optlab.muon` says what was measured).
    "spectral" is √max(1, fan_out / fan_in): the change of the layer's output keeps its size (Jordan et al. 2024,
    after Yang et al. 2023, arXiv 2310.17813).

    The same leaves as in `orthogonalize` are accepted.

    Args:
        scale: which factor, "rms" or "spectral".
    """
    check_choice("scale", scale, ("rms", "spectral"))

    def factor(fan_in: int, fan_out: int) -> float:
        return 0.2 * math.sqrt(max(fan_in, fan_out)) if scale == "rms" else math.sqrt(max(1, fan_out / max(1, fan_in)))

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        leaves = matrix_leaves("scale_by_matrix_shape", updates, extra_args)
        factors = [factor(*axes.fans(x.shape)) for x, axes in leaves]
        scaled = [x if c == 1 else c * widen(x) for (x, _), c in zip(leaves, factors, strict=True)]
        return cast_like(jax.tree.unflatten(jax.tree.structure(updates), scaled), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
