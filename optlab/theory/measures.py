"""Measurements along training: `train(workload, tx, …, measure=[sharpness(every=50), noise_scale(every=50)])`.

Each is computed inside the step's program every so many steps, of the state before the step and of its batch, and
logged as "measure/<name>": in metrics.jsonl, TensorBoard and the curves. In a config: `measure=[sharpness,noise_scale]`
and `measure_every=50`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab._checks import check_decay
from optlab._extras import need
from optlab._measure import Measure
from optlab._rates import adam_settings
from optlab._trees import norm
from optlab.theory import adam, curvature, noise
from optlab.theory._arrays import check_count

__all__ = ["Measure", "agreement", "noise_scale", "norms", "sharpness"]

Numbers = dict[str, jax.Array]


def sharpness(every: int = 50, *, examples: int | None = 32, matvecs: int = 5) -> Measure:
    """Logs "sharpness", the largest eigenvalue of the Hessian of the training loss, by Lanczos from the gradient.

    It is compared with 2/η, see `curvature.edge_of_stability`. Of few examples it is larger than of the whole loss, as
    a maximum of noisy things is; `examples=None` takes the whole batch. Lanczos finds it from below: on the digits' MLP
    four products come to 1 %, five to 0.1 %. There, every 50 steps, it costs 0.08 of the time of training: the
    products, and the gradient that Lanczos starts from (benchmarks/theory.py).

    Args:
        every: steps from one measurement to the next.
        examples: how many of the batch, the first ones; None is all.
        matvecs: products with the Hessian.
    """
    need("theory.measures.sharpness", "matfree", extra="theory")
    if examples is not None:
        check_count("examples", examples)
    check_count("matvecs", matvecs)

    def measure(state: Any, batch: Any, *, loss: Callable[..., Any]) -> Numbers:
        some = jax.tree.map(lambda x: x[:examples], batch)
        key = jax.random.fold_in(state.key, state.step)
        f = lambda params: loss(params, state.model_state, some, key, True)[0]
        product, start = curvature.hessian(f, state.params), jax.grad(f)(state.params)
        return {"sharpness": curvature.largest_eigenvalue(product, start, matvecs=matvecs)}

    return Measure(measure, every)


def noise_scale(every: int = 50) -> Measure:
    """Logs "noise_scale", tr Σ/|G|² in examples, and its parts "gradient_signal" |G|² and "gradient_variance" tr Σ.

    By the gradients of 8 parts of the batch, see `noise.noise_scale`. A single one is noisy: average signal and
    variance over steps, and divide then. Every 50 steps it costs 0.02 of the time of training: about one more gradient
    of the batch (benchmarks/theory.py).

    Args:
        every: steps from one measurement to the next.
    """

    def measure(state: Any, batch: Any, *, loss: Callable[..., Any]) -> Numbers:
        key = jax.random.fold_in(state.key, state.step)
        found = noise.noise_scale(loss, state.params, state.model_state, batch, key)
        return {"noise_scale": found.scale, "gradient_signal": found.signal, "gradient_variance": found.variance}

    return Measure(measure, every)


def agreement(
    every: int = 50, *, b1: float | None = None, b2: float | None = None, bias_correction: bool | None = None
) -> Measure:
    """Logs "agreement", the mean over all coordinates of Adam's |m̂|/√v̂, see `adam.agreement`.

    Adam's settings are read from the optimizer. One that hides them (`optax.inject_hyperparams`) needs b1 and b2 here.

    Args:
        every: steps from one measurement to the next.
        b1: β₁, as it was given to Adam,
        b2: β₂,
        bias_correction: and whether it corrects m and v; None reads each from the optimizer.
    """
    said = {"b1": b1, "b2": b2, "bias_correction": bias_correction}
    said = {name: value for name, value in said.items() if value is not None}
    for name in said.keys() & {"b1", "b2"}:
        check_decay(name, said[name])

    def measure(state: Any, batch: Any, *, tx: Any) -> Numbers:
        adam.adam_state("agreement", state.opt_state)
        known = adam_settings(tx.update)
        is_one = bool(known) and all(settings == known[0] for settings in known)
        if not is_one and not {"b1", "b2"} <= said.keys():
            raise ValueError("agreement can't read b1 and b2 of this optimizer: pass both to it, agreement(b1=…, b2=…)")
        return {"agreement": adam.mean_agreement(state.opt_state, **{**(known[0] if is_one else {}), **said})}

    return Measure(measure, every)


def norms(every: int = 50) -> Measure:
    """Logs ‖·‖₂ of every parameter, of its gradient and of its update, as "parameter_norm/<path>" and so on.

    The gradient is the step's own. A parameter that an optimizer leaves alone has an update norm of 0.

    Args:
        every: steps from one measurement to the next.
    """

    def measure(state: Any, batch: Any, *, gradient: Any, after: Any) -> Numbers:
        update = jax.tree.map(lambda new, old: _wide(new) - _wide(old), after.params, state.params)
        trees = {"parameter": state.params, "gradient": gradient, "update": update}
        return {
            f"{name}_norm/{jax.tree_util.keystr(path, simple=True, separator='/')}": norm(x)
            for name, tree in trees.items()
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    return Measure(measure, every)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
