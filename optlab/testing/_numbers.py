"""Checks of numbers: zero gradients, 16 bits, and the laws that a transform may claim."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from optlab.testing._case import Case, cast, named_leaves
from optlab.testing._compare import require_finite, require_same
from optlab.testing._report import Skipped, check, require

OFF = 0.1  # of an update's norm; momentum with decay 0.95 in bfloat16 stops 4 % short, which is allowed


@check("0 / 0: add an epsilon where it can't vanish (1e-8 is 0 in float16), or compute in float32")
def zero_gradients(case: Case) -> None:
    """Zero gradients give finite updates in every dtype, as do the gradients after them; zero parameters too."""
    case.need_update()
    for dtype in ("float32", "bfloat16", "float16"):
        params, target = cast(case.params, dtype), cast(case.targets[0], dtype)
        state = case.tx.init(params)
        for when, at in (("of", params), ("of two", params), ("after two", target), ("among", params)):
            _, state, updates = case.jitted(params, state, at, 1.0)
            require_finite(updates, f"{when} zero gradients in {dtype}")
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates = case.jitted(zeros, case.tx.init(zeros), zeros, 1.0)[2]
        require_finite(updates, f"of zero gradients and zero parameters in {dtype}")


@check("it divides by the parameters or their norm: jnp.where(norm == 0, …), or an epsilon where it can't vanish")
def zero_parameters(case: Case) -> None:
    """Parameters that are all zero, as biases start, get finite updates, in every dtype."""
    case.need_update()
    for dtype in ("float32", "bfloat16", "float16"):
        params, target = cast(jax.tree.map(jnp.zeros_like, case.params), dtype), cast(case.targets[0], dtype)
        updates = case.jitted(params, case.tx.init(params), target, 1.0)[2]
        require_finite(updates, f"of zero parameters in {dtype}")


@check("state or arithmetic in bfloat16, where 0.999 is 1: keep sums of squares in float32, and compute in it")
def bfloat16(case: Case) -> None:
    """Three thousand gradients in bfloat16 give the update of float32.

    By then an average with decay 0.999 has converged; kept in bfloat16 it stops half way.
    """
    _low_precision(case, "bfloat16", 3000, 1.0)


@check("state or arithmetic in float16, where 1e-8 is 0 and squares of small gradients are too: use float32 for them")
def float16(case: Case) -> None:
    """Three hundred gradients in float16, a thousandth in size, give the update of float32."""
    _low_precision(case, "float16", 300, 2.0**-10)


@check("update_fn doesn't use params, or goes on without them: add the decay from them, and raise if they are None")
def weight_decay(case: Case) -> None:
    """Law of every factory that takes `weight_decay`: it moves parameters without a gradient, and needs them."""
    case.need_update()
    tx = case.tx
    if case.factory is not None and "weight_decay" in inspect.signature(case.factory).parameters:
        tx = case.factory(**{**case.hyperparams, "weight_decay": case.hyperparams.get("weight_decay") or 0.1})
    elif "weight_decay" not in case.laws:
        raise Skipped("it isn't claimed: laws=['weight_decay'], or a factory that takes weight_decay")
    mirrored = jax.tree.map(jnp.negative, case.params)
    updates = [case.step(tx, p, tx.init(case.params), p)[2] for p in (case.params, mirrored)]
    for u in updates:
        require_finite(u, "with zero gradients")
    differ = [not jnp.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, updates), strict=True)]
    require(any(differ), "with zero gradients the updates of parameters and of their negatives are the same")
    try:
        tx.update(jax.tree.map(jnp.zeros_like, case.params), tx.init(case.params))
    except Exception:  # as it should, with whatever it raises
        return
    require(False, "an update without params is made all the same")


@check("the power in 1 − βᵗ is off by one, or the count grows at the wrong place: t is 1 in the first step")
def bias_correction(case: Case) -> None:
    """Law, if claimed: equal gradients give equal updates from the first step on."""
    if "bias_correction" not in case.laws:
        raise Skipped("it isn't claimed: laws=['bias_correction']")
    state, updates = case.plain.states[0], []
    for _ in range(5):
        _, state, u = case.jitted(case.params, state, case.targets[0], 1.0)
        updates.append(u)
    require_same(updates[1:], updates[:1] * 4, "of equal gradients, after the first,")


def _low_precision(case: Case, dtype: str, steps: int, size: float) -> None:
    case.need_update()
    if case.is_random:
        raise Skipped("it draws random numbers, and those of another dtype are others")
    updates, wanted = (case.long_run(kind, steps, size) for kind in (dtype, "float32"))
    if not all(jnp.all(jnp.isfinite(y)) for y in jax.tree.leaves(wanted)):
        raise Skipped(f"in float32 it isn't finite after {steps} gradients either, with parameters that stay in place")
    where = f"after {steps} gradients of size {size:.0e} in {dtype}"
    require_finite(updates, where)
    for (name, x), y in zip(named_leaves(updates), jax.tree.leaves(wanted), strict=True):
        y = np.asarray(y.astype(dtype), np.float64)
        if np.isfinite(y).all():
            error, norm = np.linalg.norm(np.asarray(x, np.float64) - y), np.linalg.norm(y)
            off = error / norm if norm else error
            require(off <= OFF, f"{where} the update of {name!r} is {off:.0%} of its norm away from float32's")
