"""Momentum on a quadratic: its best rate, its frequency response, and the ball with friction that it becomes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab._checks import is_number
from optlab.theory._arrays import as_floats, check_all_decays, check_all_not_negative, check_all_positive


class HeavyBall(NamedTuple):
    """The best heavy ball of a quadratic; see `heavy_ball`."""

    learning_rate: jax.Array  # η = 4/(√L + √μ)²
    momentum: jax.Array  # β = ((√κ − 1)/(√κ + 1))²
    rate: jax.Array  # (√κ − 1)/(√κ + 1) a step


def heavy_ball(largest: Any, smallest: Any) -> HeavyBall:
    """The learning rate and momentum with which `optlab.sgd(η, momentum=β)` is fastest on a quadratic.

    v ← βv + ∇f, x ← x − ηv. The error shrinks like t·ρᵗ with ρ = (√κ − 1)/(√κ + 1), κ = L/μ, where gradient descent at
    its best has (κ − 1)/(κ + 1). Source: Polyak 1964; Recht and Wilson's lecture notes; Lessard et al. 2016, Table 1.

    Args:
        largest: the largest eigenvalue of the Hessian (L); of ‖Xw − y‖² it is 2σ²max.
        smallest: the smallest (μ), positive.
    """
    check_all_positive("smallest", smallest)
    if is_number(largest) and is_number(smallest) and largest < smallest:
        raise ValueError(f"largest must be at least smallest ({smallest}), got {largest}")
    root_L, root_mu = jnp.sqrt(as_floats(largest)), jnp.sqrt(as_floats(smallest))
    rate = (root_L - root_mu) / (root_L + root_mu)
    return HeavyBall(4 / (root_L + root_mu) ** 2, rate**2, rate)


def frequency_response(decay: Any, omega: Any, *, nesterov: bool = False) -> jax.Array:
    """H(ω) = (1 − β)/(1 − βe^(−iω)): what the average m ← βm + (1 − β)g makes of gradients that swing like e^(iωt).

    A low-pass filter: |H(0)| = 1, |H(π)| = (1 − β)/(1 + β), the zigzag of a ravine. With Nesterov's combination
    u = βm + (1 − β)g it is βH + 1 − β, which lets more of the zigzag through and lags less. The heavy ball's,
    v ← βv + g, is H/(1 − β).

    Args:
        decay: β, in [0, 1).
        omega: angles a step (ω), any shape; π turns the sign at every step.
        nesterov: whether the update is Nesterov's combination.

    Returns:
        complex numbers of ω's shape: |H| is the gain, the angle of H the phase.
    """
    check_all_decays("decay", decay)
    response = (1 - decay) / (1 - decay * jnp.exp(-1j * as_floats(omega)))
    return decay * response + 1 - decay if nesterov else response


def ball_with_friction(curvature: Any, x0: Any, times: Any, *, friction: Any) -> jax.Array:
    """x(τ) with ẍ + γẋ + hx = 0, x(0) = x₀, ẋ(0) = 0: what the heavy ball becomes in the limit of small steps.

    With η = δ² and β = 1 − γδ step t of `optlab.sgd(η, momentum=β)` stands at τ = tδ, to O(δ): the velocity's
    mass is 1, its friction γ = (1 − β)/√η. Source: Qian 1999, eq. 6.

    Args:
        curvature: h, positive, the second derivative of the quadratic ½hx²; any shape.
        x0: where the ball starts, of h's shape or a number.
        times: τ, of a shape that broadcasts with h's.
        friction: γ.
    """
    check_all_positive("curvature", curvature)
    check_all_not_negative("friction", friction)
    h, tau = as_floats(curvature), as_floats(times)
    half = as_floats(friction) / 2
    # Two roots −γ/2 ± √(γ²/4 − h), complex ones where it swings; where they meet (1 + γτ/2)e^(−γτ/2).
    root = jnp.sqrt((half**2 - h).astype(complex))
    is_critical = root == 0
    safe = jnp.where(is_critical, 1, root)
    # Each root has its own exponential: cosh alone overflows where the product with e^(−γτ/2) is finite.
    slow, fast = jnp.exp((safe - half) * tau), jnp.exp((-safe - half) * tau)
    swinging = (slow + fast) / 2 + half * (slow - fast) / (2 * safe)
    return x0 * jnp.where(is_critical, (1 + half * tau) * jnp.exp(-half * tau), swinging).real
