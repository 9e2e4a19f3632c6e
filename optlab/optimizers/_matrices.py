"""Optimizers of matrices: hidden matrices and convolutions by a chain of blocks, and everything else by AdamW.

What makes them different is a line or two in a chain. Its parts can be others: what orthogonalizes, and what moves the
rest, are transformations that you make.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import optax

from optlab import transforms
from optlab.optimizers._coordinates import ScalarOrSchedule, adamw
from optlab.roles import LayoutLike, by_role

Method: TypeAlias = Literal["newton_schulz", "polar_express", "svd"]


def muon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    scale: Literal["rms", "spectral"] = "rms",
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    orthogonalizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Muon for hidden matrices and convolutions, θ ← θ − η(c·O(βm + g) + λθ), m ← βm + g; AdamW for everything else.

    O orthogonalizes. With scale="rms", c = 0.2·√max(fan_in, fan_out) gives its updates the size of Adam's, so that one
    learning rate can do for both rules (on small Transformers the best one was 5 to 16 times AdamW's); with "spectral",
    c = √max(1, fan_out / fan_in), rates near 0.02 are usual, and the rest needs a rate of its own. Not the same as
    `optax.contrib.muon`, which gives embeddings to Muon and attention and convolutions to Adam, and on a GPU computes
    in the parameters' dtype (float32's products in TF32), where this computes in 16 bits with a float32 norm, as Jordan
    et al. do.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); weight decay, "rms" and AdamW's β₁ = 0.9, β₂ = 0.95:
    Liu et al. 2025 (arXiv 2502.16982) and their code.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead, as above; else O(m) is taken.
        scale: the factor of the shape, "rms" or "spectral".
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        eps: added to AdamW's root (ε), if AdamW moves the rest.
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        orthogonalizer: what stands for O, such as `optlab.orthogonalize("polar_express", steps=6)`; None is
            `optlab.orthogonalize()`.
        method: shorthand for `orthogonalizer=optlab.orthogonalize(method)`.
        rest: what moves everything else, with its own learning rate and decay; None is AdamW with β₂ = 0.95 and the
            learning rate, decay and mu_dtype from above.
        layout: what each parameter is, and how it is a matrix: a `Layout`, or a function of the parameters that gives
            one, as in `by_role`; None is the layout around, or what names and shapes show.
        axis_name: for the orthogonalizer that is made here: axes of pmap or shard_map along which all devices hold the
            same gradients.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        _orthogonalizer(orthogonalizer, method, axis_name),
        transforms.scale_by_matrix_shape(scale),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )
    decay: dict[str, Any] = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_rest(hidden, rest or adamw(learning_rate, b2=0.95, eps=eps, mu_dtype=mu_dtype, **decay), layout)


def normuon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    orthogonalizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Muon whose neurons move alike: θ ← θ − η(0.2√(mn)·Ô / ‖Ô‖ + λθ), Ô = O / (√v + ε), v ← β₂v + (1 − β₂)·mean(O²).

    O is the orthogonalized momentum, as in `muon`, and v has a number for each neuron, the mean being over its inputs.
    The whole matrix keeps the size of Adam's updates, so that one learning rate does for both rules.

    Source: Li et al. 2025 (arXiv 2510.05491), Algorithm 1, with nesterov=False; their code has Nesterov's momentum.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        beta2: decay of the neurons' average of squares (β₂), in [0, 1).
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        eps: added to the roots of both rules (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that both rules' second moments are stored in; None is at least float32.
        orthogonalizer: what orthogonalizes, as in `muon`.
        method: shorthand for `orthogonalizer=optlab.orthogonalize(method)`.
        rest: what moves everything else, as in `muon`.
        layout: what each parameter is, and how it is a matrix, as in `muon`.
        axis_name: for the orthogonalizer that is made here, as in `muon`.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, style="ema", accumulator_dtype=mu_dtype),
        _orthogonalizer(orthogonalizer, method, axis_name),
        transforms.scale_by_neuron_rms(beta2, eps, nu_dtype=nu_dtype),
        transforms.scale_to_rms(),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )
    decay: dict[str, Any] = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    rest = rest or adamw(learning_rate, b2=0.95, eps=eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype, **decay)
    return _and_rest(hidden, rest, layout)


def adamuon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    orthogonalizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Muon with Adam's second moment: θ ← θ − η(0.2√(mn)·Ô / ‖Ô‖ + λθ), Ô = O / (√v + ε), v ← β₂v + (1 − β₂)O².

    O is what the signs of the momentum become when they are orthogonalized; the signs keep it steady, so that v says
    something. The whole matrix keeps the size of Adam's updates, so that one learning rate does for both rules.

    Source: Si et al. 2025 (arXiv 2507.11005), Algorithm 1, with β₂ = β and nesterov=False.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        beta2: decay of the average of squared updates (β₂), in [0, 1).
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        eps: added to the roots of both rules (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that both rules' second moments are stored in; None is at least float32.
        orthogonalizer: what orthogonalizes, as in `muon`.
        method: shorthand for `orthogonalizer=optlab.orthogonalize(method)`.
        rest: what moves everything else, as in `muon`.
        layout: what each parameter is, and how it is a matrix, as in `muon`.
        axis_name: for the orthogonalizer that is made here, as in `muon`.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        transforms.scale_by_sign(),
        _orthogonalizer(orthogonalizer, method, axis_name),
        transforms.scale_by_rms(beta2, eps, eps_in_sqrt=False, nu_dtype=nu_dtype),
        transforms.scale_to_rms(),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )
    decay: dict[str, Any] = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    rest = rest or adamw(learning_rate, b2=0.95, eps=eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype, **decay)
    return _and_rest(hidden, rest, layout)


def muonh(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    orthogonalizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Muon on a sphere: W ← R·(W − ηR·O / ‖O‖) / ‖W − ηR·O / ‖O‖‖, R = ‖W‖ at the start; AdamW for everything else.

    O is the orthogonalized momentum, as in `muon`. A matrix turns by about η (in radians) a step and never grows, so
    that it needs no decay. Rates near 0.01 are usual; the rest needs its own. A matrix that starts as 0, as LoRA's B,
    has no sphere: it moves by ηO at first, and by a share η of its own norm from then on.

    Source: Wen et al. 2026, Hyperball (arXiv 2606.16899).

    Args:
        learning_rate: the matrices' angle a step (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        eps: added to AdamW's root (ε), if AdamW moves the rest.
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        orthogonalizer: what orthogonalizes, as in `muon`.
        method: shorthand for `orthogonalizer=optlab.orthogonalize(method)`.
        rest: what moves everything else, as in `muon`; None is AdamW with β₂ = 0.95, no decay, and the same number for
            its learning rate.
        layout: what each parameter is, and how it is a matrix, as in `muon`.
        axis_name: for the orthogonalizer that is made here, as in `muon`.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        _orthogonalizer(orthogonalizer, method, axis_name),
        transforms.scale_to_weight_norm(),
        transforms.scale_by_learning_rate(learning_rate),
        transforms.keep_weight_norm(),
    )
    return _and_rest(
        hidden, rest or adamw(learning_rate, b2=0.95, eps=eps, mu_dtype=mu_dtype, weight_decay=0.0), layout
    )


def soap(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    every: int | None = None,
    max_precond_dim: int | None = None,
    weight_decay: ScalarOrSchedule = 0.01,
    decay_roles: Sequence[str] | None = None,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    factor_dtype: Any | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """SOAP for hidden matrices and convolutions, θ ← θ − η(Q_L·A(Q_LᵀGQ_R)·Q_Rᵀ + λθ), A Adam; AdamW for the rest.

    Q_L and Q_R are the eigenvectors of averages of GGᵀ and GᵀG, brought up to date every few steps. The first step only
    finds them; the others cost about four times Adam's memory, and six products for each matrix.

    Source: Vyas et al. 2024 (arXiv 2409.11321); see `scale_by_soap`. λ is their code's.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the averages of squares (β₂), in [0, 1).
        eps: added to the root (ε).
        every: steps from one basis to the next; None is 10.
        max_precond_dim: the longest axis that has a basis; None is 10,000.
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        mu_dtype: the dtype that both rules' momenta are stored in; None is at least float32, and under AdamW the
            parameters'.
        nu_dtype: the dtype that both rules' second moments are stored in; None is at least float32.
        factor_dtype: the dtype that averages of GGᵀ and GᵀG and their eigenvectors are stored in; None is at least
            float32.
        rest: what moves everything else, with its own learning rate and decay; None is AdamW with the settings above.
        layout: what each parameter is, and how it is a matrix, as in `muon`.
        axis_name: axes of pmap or shard_map along which all devices hold the same gradients.
    """
    adam: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    hidden = optax.chain(
        transforms.scale_by_soap(
            **adam,
            **_given(every=every, max_precond_dim=max_precond_dim),
            factor_dtype=factor_dtype,
            axis_name=axis_name,
        ),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )
    decay: dict[str, Any] = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_rest(hidden, rest or adamw(learning_rate, **adam, **decay), layout)


def shampoo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    every: int | None = None,
    max_precond_dim: int | None = None,
    weight_decay: ScalarOrSchedule = 0.01,
    decay_roles: Sequence[str] | None = None,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    factor_dtype: Any | None = None,
    rest: optax.GradientTransformation | None = None,
    layout: LayoutLike | None = None,
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Shampoo for hidden matrices and convolutions, θ ← θ − η(γL^-¼mR^-¼ + λθ), at the size of Adam's updates (γ).

    L and R are averages of GGᵀ and GᵀG, whose roots are brought up to date every few steps. AdamW moves the rest, and
    since γ gives the matrices' updates the size that its own would have, one learning rate does for both rules.

    Source: Gupta et al. 2018 (arXiv 1802.09568), Shi et al. 2023 (arXiv 2309.06497); see `scale_by_shampoo`.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the averages of squares (β₂), in [0, 1).
        eps: added to the root of Adam's update (ε).
        every: steps from one root to the next; None is 10.
        max_precond_dim: the longest axis that has a factor; None is 10,000.
        weight_decay: the decay (λ), as in `soap`.
        decay_roles: names of the roles that decay, as in `soap`.
        mu_dtype: as in `soap`.
        nu_dtype: as in `soap`.
        factor_dtype: the dtype that L, R and their roots are stored in; None is at least float32.
        rest: what moves everything else, as in `soap`.
        layout: what each parameter is, and how it is a matrix, as in `muon`.
        axis_name: as in `soap`.
    """
    adam: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    hidden = optax.chain(
        transforms.scale_by_shampoo(
            **adam,
            **_given(every=every, max_precond_dim=max_precond_dim),
            factor_dtype=factor_dtype,
            axis_name=axis_name,
        ),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )
    decay: dict[str, Any] = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_rest(hidden, rest or adamw(learning_rate, **adam, **decay), layout)


def _given(**counts: int | None) -> dict[str, Any]:
    """Those that aren't None: a default that is a number `optax.inject_hyperparams` would make an array of."""
    return {name: count for name, count in counts.items() if count is not None}


def _orthogonalizer(
    given: optax.GradientTransformation | None, method: Method | None, axis_name: str | Sequence[str]
) -> optax.GradientTransformation:
    if given is not None and method is not None:
        raise ValueError(f"method={method!r} is for the orthogonalizer that is made here: give yours alone, or method")
    if given is not None and axis_name:
        raise ValueError(
            f"axis_name={axis_name!r} is for the orthogonalizer that is made here: give it to yours, as in "
            f"orthogonalizer=optlab.orthogonalize(axis_name={axis_name!r})"
        )
    return transforms.orthogonalize(method or "newton_schulz", axis_name=axis_name) if given is None else given


def _and_rest(
    hidden: optax.GradientTransformation, rest: optax.GradientTransformation, layout: LayoutLike | None
) -> optax.GradientTransformationExtraArgs:
    """Matrices and convolutions by the one rule, everything else by the other."""
    return by_role({"matrix": hidden, "conv": hidden, "default": rest}, layout)
