"""Muon and its kin: hidden matrices and convolutions by orthogonal updates, and AdamW for everything else.

What makes them different is a line or two in a chain; the rest of each is arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import optax

from optlab import transforms
from optlab.optimizers._coordinates import ScalarOrSchedule, adamw, scale_by_learning_rate
from optlab.roles import by_role

Method: TypeAlias = Literal["newton_schulz", "polar_express", "svd"]
Mesh: TypeAlias = jax.sharding.Mesh | jax.sharding.AbstractMesh
PerParameter: TypeAlias = Any | Callable[[optax.Params], Any]  # a tree, or a function that makes one


def muon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    scale: Literal["rms", "spectral"] = "rms",
    method: Method = "newton_schulz",
    steps: int | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    roles: PerParameter | None = None,
    matrix_axes: PerParameter | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for hidden matrices and convolutions, θ ← θ − η(c·O(βm + g) + λθ), m ← βm + g; AdamW for everything else.

    O orthogonalizes. With scale="rms", c = 0.2·√max(fan_in, fan_out) gives its updates the size of Adam's, so that one
    learning rate, AdamW's, does for both rules; with "spectral", c = √max(1, fan_out / fan_in), rates near 0.02 are
    usual, and AdamW's has to be set apart. Not the same as `optax.contrib.muon`, which gives embeddings to Muon and
    attention and convolutions to Adam, and on a GPU computes in the parameters' dtype (float32's products in TF32),
    where this computes in 16 bits with a float32 norm, as Jordan et al. do.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); weight decay, "rms" and AdamW's β₁ = 0.9, β₂ = 0.95:
    Liu et al. 2025 (arXiv 2502.16982) and their code.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead, as above; else O(m) is taken.
        scale: the factor of the shape, "rms" or "spectral".
        method: how matrices are orthogonalized, as in `optlab.orthogonalize`.
        steps: how many steps of the method; None is 5.
        dtype: that the method's products are computed in; None is float32 on a CPU and 16 bits on a GPU or TPU, as
            `optlab.orthogonalize` says.
        mesh: over which the method's work is divided, where the gradients' types don't show it.
        axis_name: axes of pmap or shard_map along which all devices hold the same gradients.
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        adam_learning_rate: AdamW's own learning rate, a number or a schedule; None is the same as Muon's.
        b1: AdamW's decay of the average of gradients (β₁), in [0, 1).
        b2: AdamW's decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to AdamW's root (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that AdamW's second moment is stored in; None is at least float32.
        roles: what each parameter is, if not what `optlab.roles.roles` says: a tree, or a function of the parameters.
        matrix_axes: how each is a matrix, if not as `optlab.roles.matrix_axes` says: likewise a tree or a function.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        _orthogonalize(method, steps, dtype, mesh, axis_name),
        transforms.scale_by_matrix_shape(scale),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        scale_by_learning_rate(learning_rate),
    )
    adam = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    decay = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_adamw(hidden, roles, matrix_axes, learning_rate, adam_learning_rate, **adam, **decay)


def normuon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    method: Method = "newton_schulz",
    steps: int | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    roles: PerParameter | None = None,
    matrix_axes: PerParameter | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon whose neurons move alike: θ ← θ − η(0.2√(mn)·Ô / ‖Ô‖ + λθ), Ô = O / (√v + ε), v ← β₂v + (1 − β₂)·mean(O²).

    O is the orthogonalized momentum, as in `muon`, and v has a number for each neuron, the mean being over its inputs.
    The whole matrix keeps the size of Adam's updates, so that one learning rate does for both rules.

    Source: Li et al. 2025 (arXiv 2510.05491), Algorithm 1, which is had by nesterov=False; their code has Nesterov's
    momentum.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        beta2: decay of the neurons' average of squares (β₂), in [0, 1).
        method: how matrices are orthogonalized, as in `optlab.orthogonalize`.
        steps: how many steps of the method; None is 5.
        dtype: that the method's products are computed in; None is float32 on a CPU and 16 bits on a GPU or TPU, as
            `optlab.orthogonalize` says.
        mesh: over which the method's work is divided, where the gradients' types don't show it.
        axis_name: axes of pmap or shard_map along which all devices hold the same gradients.
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        adam_learning_rate: AdamW's own learning rate, a number or a schedule; None is the same as Muon's.
        b1: AdamW's decay of the average of gradients (β₁), in [0, 1).
        b2: AdamW's decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the roots of both rules (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that second moments are stored in; None is at least float32.
        roles: what each parameter is, if not what `optlab.roles.roles` says: a tree, or a function of the parameters.
        matrix_axes: how each is a matrix, if not as `optlab.roles.matrix_axes` says: likewise a tree or a function.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, style="ema", accumulator_dtype=mu_dtype),
        _orthogonalize(method, steps, dtype, mesh, axis_name),
        transforms.scale_by_neuron_rms(beta2, eps, nu_dtype=nu_dtype),
        transforms.scale_to_rms(),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        scale_by_learning_rate(learning_rate),
    )
    adam = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    decay = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_adamw(hidden, roles, matrix_axes, learning_rate, adam_learning_rate, **adam, **decay)


def adamuon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    method: Method = "newton_schulz",
    steps: int | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    roles: PerParameter | None = None,
    matrix_axes: PerParameter | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon with Adam's second moment: θ ← θ − η(0.2√(mn)·Ô / ‖Ô‖ + λθ), Ô = O / (√v + ε), v ← β₂v + (1 − β₂)O².

    O is what the signs of the momentum become when they are orthogonalized; the signs keep it steady, so that v says
    something. The whole matrix keeps the size of Adam's updates, so that one learning rate does for both rules.

    Source: Si et al. 2025 (arXiv 2507.11005), Algorithm 1, with β₂ = β, which is had by nesterov=False.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        beta2: decay of the average of squared updates (β₂), in [0, 1).
        method: how matrices are orthogonalized, as in `optlab.orthogonalize`.
        steps: how many steps of the method; None is 5.
        dtype: that the method's products are computed in; None is float32 on a CPU and 16 bits on a GPU or TPU, as
            `optlab.orthogonalize` says.
        mesh: over which the method's work is divided, where the gradients' types don't show it.
        axis_name: axes of pmap or shard_map along which all devices hold the same gradients.
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        adam_learning_rate: AdamW's own learning rate, a number or a schedule; None is the same as Muon's.
        b1: AdamW's decay of the average of gradients (β₁), in [0, 1).
        b2: AdamW's decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the roots of both rules (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that second moments are stored in; None is at least float32.
        roles: what each parameter is, if not what `optlab.roles.roles` says: a tree, or a function of the parameters.
        matrix_axes: how each is a matrix, if not as `optlab.roles.matrix_axes` says: likewise a tree or a function.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        transforms.scale_by_sign(),
        _orthogonalize(method, steps, dtype, mesh, axis_name),
        transforms.scale_by_rms(beta2, eps, eps_in_sqrt=False, nu_dtype=nu_dtype),
        transforms.scale_to_rms(),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        scale_by_learning_rate(learning_rate),
    )
    adam = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    decay = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_adamw(hidden, roles, matrix_axes, learning_rate, adam_learning_rate, **adam, **decay)


def muonh(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    method: Method = "newton_schulz",
    steps: int | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
    weight_decay: ScalarOrSchedule | None = None,
    decay_roles: Sequence[str] | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
    roles: PerParameter | None = None,
    matrix_axes: PerParameter | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon on a sphere: W ← R·(W − ηR·O / ‖O‖) / ‖W − ηR·O / ‖O‖‖, R = ‖W‖ at the start; AdamW for everything else.

    O is the orthogonalized momentum, as in `muon`. A matrix turns by about η (in radians) a step and never grows, so
    that it needs no decay. Rates near 0.01 are usual; AdamW's has to be set apart. One that starts as 0, as LoRA's B,
    has no sphere: it moves by ηO at first, and by a share η of its own norm from then on.

    Source: Wen et al. 2026, Hyperball (arXiv 2606.16899).

    Args:
        learning_rate: the matrices' angle a step (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead.
        method: how matrices are orthogonalized, as in `optlab.orthogonalize`.
        steps: how many steps of the method; None is 5.
        dtype: that the method's products are computed in; None is float32 on a CPU and 16 bits on a GPU or TPU, as
            `optlab.orthogonalize` says.
        mesh: over which the method's work is divided, where the gradients' types don't show it.
        axis_name: axes of pmap or shard_map along which all devices hold the same gradients.
        weight_decay: AdamW's decay (λ), a number or a schedule, times its learning rate; None is none. The matrices
            have none in any case.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        adam_learning_rate: AdamW's learning rate, a number or a schedule; None is the same number.
        b1: AdamW's decay of the average of gradients (β₁), in [0, 1).
        b2: AdamW's decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to AdamW's root (ε).
        mu_dtype: the dtype that both rules' momenta are stored in; None takes the parameters'.
        nu_dtype: the dtype that AdamW's second moment is stored in; None is at least float32.
        roles: what each parameter is, if not what `optlab.roles.roles` says: a tree, or a function of the parameters.
        matrix_axes: how each is a matrix, if not as `optlab.roles.matrix_axes` says: likewise a tree or a function.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov, accumulator_dtype=mu_dtype),
        _orthogonalize(method, steps, dtype, mesh, axis_name),
        transforms.scale_to_weight_norm(),
        scale_by_learning_rate(learning_rate),
        transforms.keep_weight_norm(),
    )
    adam = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    decay = {"weight_decay": weight_decay, "decay_roles": decay_roles}
    return _and_adamw(hidden, roles, matrix_axes, learning_rate, adam_learning_rate, **adam, **decay)


def _orthogonalize(
    method: Method, steps: int | None, dtype: Any | None, mesh: Mesh | None, axis_name: str | Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """5 steps unless they are given: a default that is a number `optax.inject_hyperparams` would make an array of."""
    steps = 5 if steps is None else steps
    return transforms.orthogonalize(method, steps=steps, dtype=dtype, mesh=mesh, axis_name=axis_name)


def _and_adamw(
    hidden: optax.GradientTransformation,
    roles: PerParameter | None,
    matrix_axes: PerParameter | None,
    learning_rate: ScalarOrSchedule,
    adam_learning_rate: ScalarOrSchedule | None,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """Matrices and convolutions by the one rule, everything else by AdamW."""
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    return by_role({"matrix": hidden, "conv": hidden, "default": adamw(rate, **settings)}, roles, matrix_axes)
