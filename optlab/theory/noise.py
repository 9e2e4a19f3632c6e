"""The noise of mini-batch gradients: measured example by example, its scale, and what it predicts for the batch size.

Losses here are a workload's, (params, model_state, batch, key, train) -> (scalar, …); `of_examples` makes one of a
plain function of (params, batch). Nothing of optlab.training is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy import stats

from optlab._checks import check_key
from optlab.theory._arrays import (
    as_numbers,
    check_all_not_negative,
    check_all_positive,
    check_count,
    check_functions,
    check_ordered,
    check_whole,
    count_numbers,
)

__all__ = [
    "GradientNoise",
    "examples_to_target",
    "gradient_noise",
    "gradient_variance",
    "noise_scale",
    "of_examples",
    "per_example_gradients",
    "steps_to_target",
    "uphill_share",
]

Loss = Callable[..., tuple[jax.Array, Any]]
AT_A_TIME = 16  # examples whose gradients are made by one vmap
MICROBATCHES = 8  # that a batch is cut into for `noise_scale`: enough for a variance, and no dearer than the gradient


def of_examples(loss: Callable[[Any, Any], jax.Array]) -> Loss:
    """A workload's loss from a plain function.

    Args:
        loss: (params, batch) -> scalar, the mean over the batch.

    Returns:
        (params, model_state, batch, key, train) -> (scalar, (model_state, {})).
    """
    check_functions(loss=loss)
    return lambda params, model_state, batch, key, train: (loss(params, batch), (model_state, {}))


def per_example_gradients(loss: Loss, params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
    """The gradient of every example's own loss, a tree like the parameters with an axis of length B in front, by vmap.

    16 examples are done at a time, which stay in a CPU's cache: it takes less time than all at once.

    Each example is a batch of one, in training mode; their mean is the batch's gradient where the loss is a mean over
    examples of equal weight and no example sees another, as they do in BatchNorm. B times the parameters are held.

    Args:
        loss: a workload's.
        params: where.
        model_state: as the loss takes it.
        batch: a tree of arrays whose first axis is the example.
        key: a JAX random key; each example has one of its own (dropout).
    """
    check_functions(loss=loss)
    count_numbers("params", params)
    check_key(key)
    size = _examples(batch)

    def one(example: Any, key: jax.Array) -> Any:
        alone = jax.tree.map(lambda x: x[None], example)
        return jax.grad(lambda p: loss(p, model_state, alone, key, True)[0])(params)

    pairs = (jax.tree.map(jnp.asarray, batch), jax.random.split(key, size))
    return lax.map(lambda pair: one(*pair), pairs, batch_size=min(AT_A_TIME, size))


class GradientNoise(NamedTuple):
    """Noise statistics of per-example gradients; see `gradient_noise`."""

    signal: jax.Array  # |G|², the squared norm of the true gradient, without bias (it can come out negative)
    variance: jax.Array  # tr Σ, the trace of the covariance of one example's gradient, without bias
    scale: jax.Array  # tr Σ/|G|²: the simple noise scale, in examples


def gradient_noise(gradients: Any) -> GradientNoise:
    """The gradient noise scale B = tr Σ/|G|² from independent gradients.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), eq. 2.9.

    Args:
        gradients: of n examples, as `per_example_gradients` gives them, n at least 2.
    """
    n = _examples(gradients)
    if n < 2:
        raise ValueError(f"gradients must be of two examples or more, got {n}")
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
    squares = sum((jnp.sum(jnp.square(jnp.abs(g - m[None]))) for g, m in _pairs(gradients, mean)), jnp.zeros(()))
    return _noise(optax.tree.norm(mean, squared=True), squares / (n - 1), n, 1)


def gradient_variance(variance: Any, batch_size: Any, *, examples: Any | None = None) -> jax.Array:
    """tr Σ/B: E‖g_B − ∇L‖² of the mean over a batch, which is unbiased; without replacement times (N − B)/(N − 1).

    Args:
        variance: tr Σ, over the N examples divided by N, where they are all there are.
        batch_size: B, from 1, and at most N where that is given.
        examples: N, of which the batch is drawn without replacement; None is with replacement.
    """
    check_all_not_negative("variance", variance)
    check_whole("batch_size", batch_size, least=1)
    if examples is None:
        trace, B = as_numbers(variance=variance, batch_size=batch_size)
        return trace / B
    check_whole("examples", examples, least=1)
    trace, B, N = as_numbers(variance=variance, batch_size=batch_size, examples=examples)
    check_ordered(batch_size=batch_size, examples=examples, or_equal=True)
    return trace / B * (N - B) / jnp.maximum(N - 1, 1)  # of one example the batch is the whole


def noise_scale(loss: Loss, params: Any, model_state: Any, batch: Any, key: jax.Array) -> GradientNoise:
    """`gradient_noise` for little: the batch is cut into 8 parts, and their gradients' variance is a part's.

    It costs one gradient of the batch, where per-example gradients hold the parameters B times. McCandlish et al. 2018,
    appendix A.1, with 8 batches in the place of two. Over steps average signal and variance, not their quotient.

    Args:
        loss: a workload's.
        params: where.
        model_state: as the loss takes it.
        batch: a tree of arrays; 2, 4 or 8 parts, as divide its examples.
        key: a JAX random key.
    """
    check_functions(loss=loss)
    count_numbers("params", params)
    check_key(key)
    size = _examples(batch)
    parts = next((n for n in (MICROBATCHES, 4, 2) if size % n == 0), None)
    if parts is None:
        raise ValueError(f"batch must have an even number of examples, to be cut into parts, got {size}")
    cut = jax.tree.map(lambda x: jnp.asarray(x).reshape(parts, -1, *jnp.shape(x)[1:]), batch)

    def one(carry: Any, item: Any) -> Any:
        (total, squares), (part, key) = carry, item
        g = jax.grad(lambda p: loss(p, model_state, part, key, True)[0])(params)
        return (jax.tree.map(jnp.add, total, g), squares + optax.tree.norm(g, squared=True)), None

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.result_type(float, *jax.tree.leaves(params))))
    (total, squares), _ = lax.scan(one, zero, (cut, jax.random.split(key, parts)))
    of_mean = optax.tree.norm(total, squared=True) / parts**2
    return _noise(of_mean, (squares - parts * of_mean) / (parts - 1), parts, size // parts)


def steps_to_target(batch_size: Any, *, scale: Any, least: Any) -> jax.Array:
    """S = S_min(1 + B_noise/B): the steps to a target against the batch size. McCandlish et al. 2018, eq. 2.11.

    Args:
        batch_size: B.
        scale: B_noise, not negative, see `gradient_noise`.
        least: S_min, the steps with the whole gradient.
    """
    check_whole("batch_size", batch_size, least=1)
    check_all_not_negative("scale", scale)
    check_all_not_negative("least", least)
    B, scale, least = as_numbers(batch_size=batch_size, scale=scale, least=least)
    return least * (1 + scale / B)


def examples_to_target(batch_size: Any, *, scale: Any, least: Any) -> jax.Array:
    """E = S·B = E_min(1 + B/B_noise), E_min = S_min·B_noise: the examples to a target.

    Source: see `steps_to_target`.

    Args:
        batch_size: B.
        scale: B_noise, not negative.
        least: S_min.
    """
    steps = steps_to_target(batch_size, scale=scale, least=least)
    return steps * jnp.asarray(batch_size, steps.dtype)


def uphill_share(
    signal: Any, variance: Any, batch_size: Any, *, learning_rate: Any, curvature: Any, size: int
) -> np.ndarray:
    """The share of SGD's steps that raise the loss, although the gradient is unbiased: near 0 far off, more close by.

    On a quadratic of curvature h in d directions, with Gaussian noise alike in all of them, w − ηg with g = G + ξ
    changes the loss by −ηG·g + ½η²h‖g‖². It rises if ‖ξ − c‖ > r, c = G(1/(ηh) − 1), r = ‖G‖/(ηh), and ‖ξ − c‖² is a
    noncentral χ² in units of tr Σ/(Bd): exact. SciPy computes it, which can't be traced; from a mean of 10⁷ on, where
    SciPy's series fails, Sankaran's normal approximation does, which agrees there to ten digits.

    Source: Sankaran 1963, Biometrika 50.

    Args:
        signal: ‖G‖², of the true gradient; h²·distance².
        variance: tr Σ, of one example's gradient, positive.
        batch_size: B.
        learning_rate: η, positive.
        curvature: h, positive.
        size: d.
    """
    check_count("size", size)
    check_all_not_negative("signal", signal)
    check_whole("batch_size", batch_size, least=1)
    positive = {"variance": variance, "learning_rate": learning_rate, "curvature": curvature}
    for name, value in positive.items():
        check_all_positive(name, value)
    as_numbers(signal=signal, batch_size=batch_size, **positive)  # that their shapes broadcast
    rate = np.maximum(np.asarray(learning_rate, np.float64) * curvature, 1e-50)  # below, the limit has been reached
    ratio = np.asarray(signal, np.float64) / (np.asarray(variance, np.float64) / (np.asarray(batch_size) * size))
    center, over = ratio * (1 / rate - 1) ** 2, ratio * (2 / rate - 1)
    is_large = center + size >= 1e7
    exact = stats.ncx2.sf(np.where(is_large, 1, center + over), size, np.where(is_large, 1, center))
    return np.where(is_large, _far_tail(over, size, center), exact)


def _far_tail(over: np.ndarray, size: int, center: np.ndarray) -> np.ndarray:
    """P(χ²_d(λ) > λ + over) for a large mean d + λ; `over` is given, since the difference would be lost in rounding."""
    mean, second, third = size + center, size + 2 * center, size + 3 * center
    power, p = 1 - 2 / 3 * (mean / second) * (third / second), second / mean / mean
    m = (power - 1) * (1 - 3 * power)
    with np.errstate(divide="ignore"):  # at 0 the share is 1
        grown = np.expm1(power * np.log1p((over - size) / mean))
    shift = power * p * (power - 1 - 0.5 * (2 - power) * m * p)
    return np.asarray(stats.norm.sf((grown - shift) / (power * np.sqrt(2 * p) * (1 + 0.5 * m * p))))


def _noise(of_mean: jax.Array, variance: jax.Array, n: int, batch_size: int) -> GradientNoise:
    """From ‖mean of n gradients‖² and the variance of one, each of `batch_size` examples."""
    signal = of_mean - variance / n
    return GradientNoise(signal, variance * batch_size, variance * batch_size / signal)


def _examples(batch: Any) -> int:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or not shapes[0]:
        raise ValueError(f"a batch's arrays must have one first axis, the example, got the shapes {shapes}")
    if not shapes[0][0]:
        raise ValueError(f"a batch must hold an example at least, got the shapes {shapes}")
    return shapes[0][0]


def _pairs(tree: Any, other: Any) -> list[tuple[jax.Array, jax.Array]]:
    return list(zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
