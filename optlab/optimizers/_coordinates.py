"""Optimizers that move every coordinate by itself."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import optax

from optlab import transforms
from optlab._checks import check_choice, check_decay
from optlab.transforms._numerics import check_holds, check_state_dtypes, check_wide, computed_wide

ScalarOrSchedule: TypeAlias = float | optax.Schedule
Mask: TypeAlias = Any | Callable[[optax.Params], Any]


def sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: float | None = None,
    nesterov: bool | float = False,
    accumulator_dtype: Any | None = None,
    weight_decay: ScalarOrSchedule | None = None,
    decay_roles: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηg, or with momentum θ ← θ − ηv, v ← βv + g. Weight decay is an L2 penalty: g + λθ in g's place.

    Args:
        learning_rate: step size (η), a number or a schedule.
        momentum: how much of the heavy ball's velocity stays (β), in [0, 1); None keeps no state.
        nesterov: whether the momentum looks one step ahead; or the coefficient of v in it, see `momentum`.
        accumulator_dtype: the dtype that the velocity is stored in; None takes the parameters'.
        weight_decay: the penalty's factor (λ), a number or a schedule; None is no penalty.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
    """
    velocity = optax.identity()
    if momentum is not None:
        velocity = transforms.momentum(momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype)
    return optax.chain(
        transforms.decay_weights(weight_decay, roles=decay_roles),
        velocity,
        transforms.scale_by_learning_rate(learning_rate),
    )


def signsgd(learning_rate: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η sign(g). It chatters around a minimum with an amplitude ∝ η. Bernstein et al. 2018 (arXiv 1802.04434).

    Args:
        learning_rate: step size (η), a number or a schedule.
    """
    return optax.chain(transforms.scale_by_sign(), transforms.scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: ScalarOrSchedule, *, beta: float = 0.9, accumulator_dtype: Any | None = None
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η sign(m), m ← βm + (1 − β)g. Bernstein et al. 2018 (arXiv 1802.04434).

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: decay of the average (β), in [0, 1).
        accumulator_dtype: the dtype that m is stored in; None takes the parameters'.
    """
    return optax.chain(
        transforms.momentum(beta, style="ema", accumulator_dtype=accumulator_dtype),
        transforms.scale_by_sign(),
        transforms.scale_by_learning_rate(learning_rate),
    )


def softsign_sgd(
    learning_rate: ScalarOrSchedule, *, momentum: float = 0.0, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηm / (|m| + ε), m ← βm + (1 − β)g: with β = 0 it is Adam with β₁ = β₂ = 0, with ε → 0 signum.

    Args:
        learning_rate: step size (η), a number or a schedule.
        momentum: decay of the average (β), in [0, 1).
        eps: the size of an average that counts as small (ε), positive.
    """
    return optax.chain(
        transforms.momentum(momentum, style="ema"),
        transforms.scale_by_softsign(eps),
        transforms.scale_by_learning_rate(learning_rate),
    )


def adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    eps_in_sqrt: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηg / √(s + ε), s ← s + g². Duchi, Hazan and Singer 2011.

    Args:
        learning_rate: step size (η), a number or a schedule.
        initial_accumulator_value: s before the first step; the paper starts at 0.
        eps: added to the denominator (ε).
        eps_in_sqrt: whether ε stands inside the root; the paper and torch add it outside.
    """
    return optax.chain(
        transforms.scale_by_adagrad(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt),
        transforms.scale_by_learning_rate(learning_rate),
    )


def rmsprop(
    learning_rate: ScalarOrSchedule,
    *,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηg / √(v + ε), v ← ρv + (1 − ρ)g². Tieleman and Hinton 2012, lecture 6.5.

    Args:
        learning_rate: step size (η), a number or a schedule.
        decay: decay of the average of squared gradients (ρ), in [0, 1).
        eps: added to the denominator (ε).
        initial_scale: v before the first step.
        eps_in_sqrt: whether ε stands inside the root; the lecture and torch add it outside.
        centered: whether the variance of the gradients takes the place of their mean square.
        momentum: how much of a heavy ball stays, in [0, 1); it gathers what the learning rate has scaled. None is none.
        nesterov: whether the momentum looks one step ahead.
        bias_correction: whether v is divided by the sum of its weights, 1 − ρᵗ.
    """
    return optax.chain(
        transforms.scale_by_rms(decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered=centered),
        transforms.scale_by_learning_rate(learning_rate),
        optax.identity() if momentum is None else transforms.momentum(momentum, nesterov=nesterov),
    )


def adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any | None = None,
    nesterov: bool = False,
    bias_correction: bool = True,
    start: Literal["zero", "first_gradient"] = "zero",
    nu_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηm̂ / (√v̂ + ε). Kingma and Ba 2015 (arXiv 1412.6980); see `scale_by_adam`.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε).
        eps_root: added inside the root; eps=0 leaves it there alone, m̂ / √(v̂ + ε).
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        nesterov: whether m looks one step ahead (NAdam).
        bias_correction: whether m̂ and v̂ are used; False uses m and v as they are.
        start: m and v before the first step: "zero", or the "first_gradient" and its square, which needs
            bias_correction=False.
        nu_dtype: the dtype that v is stored in; None is at least float32.
    """
    moments = transforms.scale_by_adam(
        b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, bias_correction=bias_correction, start=start,
        nu_dtype=nu_dtype,
    )  # fmt: skip
    return optax.chain(moments, transforms.scale_by_learning_rate(learning_rate))


def nadam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any | None = None,
    nu_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηm̄ / (√v̂ + ε), m̄ = β₁m / (1 − β₁ᵗ⁺¹) + (1 − β₁)g / (1 − β₁ᵗ): Adam that looks one step ahead. Dozat 2016.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε).
        eps_root: added inside the root, for whoever differentiates through the update.
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        nu_dtype: the dtype that v is stored in; None is at least float32.
    """
    return optax.chain(
        transforms.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=True, nu_dtype=nu_dtype),
        transforms.scale_by_learning_rate(learning_rate),
    )


def adam_l2(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay_roles: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on the loss with the penalty ½λ‖θ‖²: g + λθ in g's place, so that weights with large gradients shrink less.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε).
        weight_decay: the penalty's factor (λ), a number or a schedule.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
    """
    return optax.chain(
        transforms.decay_weights(weight_decay, roles=decay_roles),
        transforms.scale_by_adam(b1, b2, eps),
        transforms.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    nesterov: bool = False,
    decay_roles: Sequence[str] | None = None,
    nu_dtype: Any | None = None,
    decay: Literal["beside_step", "after_step"] = "beside_step",
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η(m̂ / (√v̂ + ε) + λθ): every weight shrinks by the same factor. Loshchilov and Hutter 2019 (1711.05101).

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε).
        eps_root: added inside the root, for whoever differentiates through the update.
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        weight_decay: the decay (λ), a number or a schedule, times the learning rate.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        nesterov: whether m looks one step ahead (NAdamW).
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        nu_dtype: the dtype that v is stored in; None is at least float32.
        decay: "beside_step" as above, or "after_step" (1 − ηλ)(θ − ηm̂ / (√v̂ + ε)): the two part by η²λm̂ / (√v̂ + ε).
    """
    check_choice("decay", decay, ("beside_step", "after_step"))
    moments = transforms.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, nu_dtype=nu_dtype)
    rate = transforms.scale_by_learning_rate(learning_rate)
    if decay == "after_step":
        after = transforms.decay_after_step(_product(learning_rate, weight_decay), mask=mask, roles=decay_roles)
        return optax.chain(moments, rate, after)
    return optax.chain(moments, transforms.decay_weights(weight_decay, mask=mask, roles=decay_roles), rate)


def lion(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: Any | None = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask | None = None,
    decay_roles: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η(sign(β₁m + (1 − β₁)g) + λθ), m ← β₂m + (1 − β₂)g. Chen et al. 2023 (arXiv 2302.06675).

    Args:
        learning_rate: step size (η), a number or a schedule; the paper advises a third to a tenth of AdamW's.
            Tune it: here the best one was between 1/16 of AdamW's and twice AdamW's (`benchmarks/lr_range.py`).
        b1: weight of m against g in the update (β₁), in [0, 1).
        b2: decay of the average of gradients (β₂), in [0, 1).
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        weight_decay: the decay (λ), a number or a schedule, times the learning rate.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
    """
    return optax.chain(
        _scale_by_lion(b1, b2, mu_dtype),
        transforms.decay_weights(weight_decay, mask=mask, roles=decay_roles),
        transforms.scale_by_learning_rate(learning_rate),
    )


def _scale_by_lion(b1: float, b2: float, mu_dtype: Any | None) -> optax.GradientTransformationExtraArgs:
    """optax's, computed in at least float32."""
    check_wide(b1=b1, b2=b2)
    check_state_dtypes(mu_dtype=mu_dtype)
    check_decay("b1", b1)
    check_decay("b2", b2)
    direction = computed_wide(optax.scale_by_lion(b1, b2, mu_dtype))

    def init_fn(params: optax.Params) -> optax.OptState:
        check_holds(params, "mu_dtype", mu_dtype)
        return direction.init(params)

    return direction._replace(init=init_fn)


def _product(a: ScalarOrSchedule, b: ScalarOrSchedule | None) -> ScalarOrSchedule | None:
    """a·b of numbers and schedules; without b there is none."""
    if b is None:
        return None
    if not callable(a) and not callable(b):
        return a * b

    def at(x: Any, count: Any) -> Any:
        return x(count) if callable(x) else x

    return lambda count: at(a, count) * at(b, count)
