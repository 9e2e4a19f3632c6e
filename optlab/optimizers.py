"""The named optimizers: each is one visible chain of blocks that ends in the learning rate.

Where a name is optax's, its arguments, defaults and numbers are optax's, and what is added is a new argument. The
learning rate is a number, a schedule, or a traced scalar. Weight decay is for all parameters, or for the roles named in
`decay_roles` (see `optlab.roles`). What differs between here, torch and the papers:

=============  =================================  ==========================  =========================================
what           here, as in optax if it has it     torch                       paper
=============  =================================  ==========================  =========================================
sgd            heavy ball, v ← βv + g             the same                    often the average βm + (1 − β)g:
                                                                              `momentum(β, style="ema")`
sgd decay      L2, λθ joins g; λ = 0 (new)        the same
signum         sign of the average                has none                    the same
softsign_sgd   x / (|x| + ε) (optax has none)     has none
adagrad        s starts at 0.1, g/√(s + 1e-7)     at 0, g/(√s + 1e-10)        at 0, g/(√s + ε): eps_in_sqrt=False,
                                                                              initial_accumulator_value=0
rmsprop        ρ = 0.9, g/√(v + 1e-8)             ρ = 0.99, g/(√v + 1e-8)     ρ = 0.9, g/(√v + ε): eps_in_sqrt=False
               momentum after the learning rate   before it                   before it
adam           ε = 1e-8 outside the root          the same                    the same
adam_l2        λ = 1e-4 (optax has none)          Adam(weight_decay=0)
adamw          λ = 1e-4, times the rate           λ = 1e-2, times the rate    times the schedule's factor alone
lion           λ = 1e-3                           has none                    3 to 10 times AdamW's
muon           λ = 0.1; scale="rms",              λ = 0.1; √max(1, out/in);   "rms" 2502.16982, "spectral" Jordan 2024
               0.2·√max(in, out); AdamW within    matrices only
=============  =================================  ==========================  =========================================

In 16 bits the numbers are not optax's: the blocks compute in float32, and keep second moments in it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import optax

from optlab import transforms
from optlab._checks import check_decay, check_not_negative
from optlab.roles import by_role
from optlab.transforms._numerics import computed_wide

__all__ = [
    "adagrad",
    "adam",
    "adam_l2",
    "adamw",
    "lion",
    "muon",
    "rmsprop",
    "sgd",
    "signsgd",
    "signum",
    "softsign_sgd",
]

ScalarOrSchedule: TypeAlias = float | optax.Schedule
Mask: TypeAlias = Any | Callable[[optax.Params], Any]


def sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay_roles: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηg, or with momentum θ ← θ − ηv, v ← βv + g. Weight decay is an L2 penalty: g + λθ in g's place.

    Args:
        learning_rate: step size (η), a number or a schedule.
        momentum: how much of the heavy ball's velocity stays (β), in [0, 1); None keeps no state.
        nesterov: whether the momentum looks one step ahead.
        accumulator_dtype: the dtype that the velocity is stored in; None takes the parameters'.
        weight_decay: the penalty's factor (λ), a number or a schedule.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
    """
    velocity = optax.identity()
    if momentum is not None:
        velocity = transforms.momentum(momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype)
    return optax.chain(
        transforms.decay_weights(weight_decay, roles=decay_roles),
        velocity,
        _scale_by_learning_rate(learning_rate),
    )


def signsgd(learning_rate: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η sign(g). It chatters around a minimum with an amplitude ∝ η. Bernstein et al. 2018 (arXiv 1802.04434).

    Args:
        learning_rate: step size (η), a number or a schedule.
    """
    return optax.chain(transforms.scale_by_sign(), _scale_by_learning_rate(learning_rate))


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
        _scale_by_learning_rate(learning_rate),
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
        _scale_by_learning_rate(learning_rate),
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
        _scale_by_learning_rate(learning_rate),
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
        _scale_by_learning_rate(learning_rate),
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
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − ηm̂ / (√v̂ + ε). Kingma and Ba 2015 (arXiv 1412.6980); see `scale_by_adam`.

    Args:
        learning_rate: step size (η), a number or a schedule.
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε).
        eps_root: added inside the root, for whoever differentiates through the update.
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        nesterov: whether m looks one step ahead (NAdam).
        bias_correction: whether m̂ and v̂ are used; False uses m and v as they are.
    """
    return optax.chain(
        transforms.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, bias_correction=bias_correction),
        _scale_by_learning_rate(learning_rate),
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
        _scale_by_learning_rate(learning_rate),
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
    """
    return optax.chain(
        transforms.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        transforms.decay_weights(weight_decay, mask=mask, roles=decay_roles),
        _scale_by_learning_rate(learning_rate),
    )


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
        learning_rate: step size (η), a number or a schedule; about a tenth of AdamW's.
        b1: weight of m against g in the update (β₁), in [0, 1).
        b2: decay of the average of gradients (β₂), in [0, 1).
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        weight_decay: the decay (λ), a number or a schedule, times the learning rate.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
    """
    check_decay("b1", b1)
    check_decay("b2", b2)
    return optax.chain(
        computed_wide(optax.scale_by_lion(b1, b2, mu_dtype)),
        transforms.decay_weights(weight_decay, mask=mask, roles=decay_roles),
        _scale_by_learning_rate(learning_rate),
    )


def muon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    scale: Literal["rms", "spectral"] = "rms",
    weight_decay: ScalarOrSchedule = 0.1,
    decay_roles: Sequence[str] | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    roles: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for hidden matrices and convolutions, θ ← θ − η(c·NS(βm + g) + λθ), m ← βm + g; AdamW for everything else.

    NS orthogonalizes. With scale="rms", c = 0.2·√max(fan_in, fan_out) gives its updates the size of Adam's, so that one
    learning rate, AdamW's, does for both rules; with "spectral", c = √max(1, fan_out / fan_in), rates near 0.02 are
    usual, and AdamW's has to be set apart. Not the same as `optax.contrib.muon`, which gives embeddings to Muon and
    attention and convolutions to Adam.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); weight decay, "rms" and AdamW's β₁ = 0.9, β₂ = 0.95:
    Liu et al. 2025 (arXiv 2502.16982) and their code.

    Args:
        learning_rate: step size (η), a number or a schedule.
        beta: how much of the momentum stays (β), in [0, 1).
        nesterov: whether the momentum looks one step ahead, as above; else NS(m) is taken.
        scale: the factor of the shape, "rms" or "spectral".
        weight_decay: the decay (λ) under both rules, a number or a schedule, times the learning rate.
        decay_roles: names of the roles that decay, as ["matrix", "conv"]; None is all.
        adam_learning_rate: AdamW's own learning rate, a number or a schedule; None is the same as Muon's.
        b1: AdamW's decay of the average of gradients (β₁), in [0, 1).
        b2: AdamW's decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to AdamW's root (ε).
        roles: what each parameter is, if not what `optlab.roles.roles` says: a tree, or a function of the parameters.
    """
    hidden = optax.chain(
        transforms.momentum(beta, nesterov=nesterov),
        transforms.orthogonalize(),
        transforms.scale_by_matrix_shape(scale),
        transforms.decay_weights(weight_decay, roles=decay_roles),
        _scale_by_learning_rate(learning_rate),
    )
    rest = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        decay_roles=decay_roles,
    )
    return optax.chain(by_role({"matrix": hidden, "conv": hidden, "default": rest}, roles))


def _scale_by_learning_rate(learning_rate: ScalarOrSchedule) -> optax.GradientTransformation:
    check_not_negative("learning_rate", learning_rate)
    return optax.scale_by_learning_rate(learning_rate)
