"""Momentum on a quadratic: its best rate, its frequency response, and the ball with friction that it becomes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab.theory._arrays import (
    as_numbers,
    check_all_decays,
    check_all_finite,
    check_all_not_negative,
    check_all_positive,
    check_ordered,
)


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
    check_all_positive("largest", largest)
    check_all_positive("smallest", smallest)
    L, mu = as_numbers(largest=largest, smallest=smallest)
    check_ordered(smallest=smallest, largest=largest, or_equal=True)
    root_L, root_mu = jnp.sqrt(L), jnp.sqrt(mu)
    rate = (root_L - root_mu) / (root_L + root_mu)
    return HeavyBall(4 / (root_L + root_mu) ** 2, rate**2, rate)


def frequency_response(decay: Any, omega: Any, *, nesterov: bool = False) -> jax.Array:
    """H(ω) = (1 − β)/(1 − βe^(−iω)): what the average m ← βm + (1 − β)g makes of gradients that swing like e^(iωt).

    A low-pass filter: |H(0)| = 1, |H(π)| = (1 − β)/(1 + β), the zigzag of a ravine. With Nesterov's combination
    u = βm + (1 − β)g it is βH + 1 − β, which lets more of the zigzag through and lags less. The heavy ball's,
    v ← βv + g, is H/(1 − β).

    Args:
        decay: β, in [0, 1), a number or of a shape that broadcasts with ω's.
        omega: angles a step (ω), any shape; π turns the sign at every step.
        nesterov: whether the update is Nesterov's combination.

    Returns:
        complex numbers of ω's shape: |H| is the gain, the angle of H the phase.
    """
    check_all_decays("decay", decay)
    check_all_finite("omega", omega)
    beta, omega = as_numbers(decay=decay, omega=omega)
    response = (1 - beta) / (1 - beta * jnp.exp(-1j * omega))
    return beta * response + 1 - beta if nesterov else response


def ball_with_friction(curvature: Any, x0: Any, times: Any, *, friction: Any) -> jax.Array:
    """x(τ) with ẍ + γẋ + hx = 0, x(0) = x₀, ẋ(0) = 0: what the heavy ball becomes in the limit of small steps.

    With η = δ² and β = 1 − γδ step t of `optlab.sgd(η, momentum=β)` stands at τ = tδ, to O(δ): the velocity's
    mass is 1, its friction γ = (1 − β)/√η. Source: Qian 1999, eq. 6.

    Args:
        curvature: h, positive, the second derivative of the quadratic ½hx²; any shape.
        x0: where the ball starts, of a shape that broadcasts with h's.
        times: τ, not negative, likewise,
        friction: and γ, not negative.
    """
    check_all_positive("curvature", curvature)
    check_all_finite("x0", x0)
    check_all_not_negative("times", times)
    check_all_not_negative("friction", friction)
    h, x0, tau, gamma = as_numbers(curvature=curvature, x0=x0, times=times, friction=friction)
    half, w = gamma / 2, jnp.sqrt(h)
    # x₀e^(−γτ/2)(C + ½γτS), C = cosh√z and S = sinh√z/√z at z = (γ²/4 − h)τ²: below 0 it swings, above it creeps.
    # Both are analytic in z, the square root isn't: near 0, at critical damping, their series has value and gradient.
    z = (half - w) * (half + w) * tau**2
    is_near = jnp.abs(z) < 1e-2
    near = jnp.where(is_near, z, 0)
    root = jnp.sqrt(jnp.where(is_near, 1, jnp.abs(half - w))) * jnp.sqrt(half + w)
    # Each exponential by itself: with much friction C alone overflows where the product is finite.
    fall, slow, fast = jnp.exp(-half * tau), jnp.exp(-h / (half + root) * tau), jnp.exp(-(half + root) * tau)
    swinging = fall * (jnp.cos(root * tau) + half / root * jnp.sin(root * tau))
    creeping = (slow + fast + half / root * (slow - fast)) / 2
    critical = fall * (_series(near, 0) + half * tau * _series(near, 1))
    return x0 * jnp.where(is_near, critical, jnp.where(half < w, swinging, creeping))


def _series(z: jax.Array, odd: int) -> jax.Array:
    """Σ zᵏ/(2k + odd)!: cosh√z, or with odd = 1 sinh√z/√z; to rounding for |z| up to 0.01."""
    return sum((z**k / math.factorial(2 * k + odd) for k in range(6)), jnp.zeros_like(z))
