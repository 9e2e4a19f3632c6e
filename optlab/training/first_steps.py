"""The first steps of an optimizer: one that goes uphill, bursts, or moves nothing.

A run that is well pays nothing for it but a look at its first losses. Only where the loss jumps or keeps rising is an
update compiled and compared with the gradient.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.runs._fingerprints import fingerprints
from optlab.training.assembly import Assembly
from optlab.training.guard import GuardError
from optlab.training.records import Records
from optlab.training.state import TrainState
from optlab.training.step import takes

WATCHED = 3  # losses: without a learning rate the second is far above the first, or the third is
JUMP, BURST = 1.25, 10.0  # times the first loss: from the first on it is looked into, from the second on reported
TREND, SIGNIFICANT = 10, 2.0  # losses whose trend is looked into, and the standard deviations that noise seldom exceeds
AT_A_JUMP, OVER_A_TREND = 0.01, 0.1  # the least cosine that is uphill: a slow rise alone is weaker evidence
ON_HOST = 64 * 2**20  # bytes of parameters that are compared on the host; copying them costs no compilation


class UphillError(GuardError):
    """The optimizer's updates point along the gradient, not against it."""


class FirstSteps:
    """Looks at the first steps of a run.

    Args:
        assembly: the run's.
        tx: its optimizer.
        state: its first one.
    """

    def __init__(self, assembly: Assembly, tx: optax.GradientTransformation, state: TrainState):
        self.assembly, self.tx = assembly, tx
        self.start: dict[str, Any] | None = _bits(state.params)
        self.losses: list[float] = []
        self.first_batch: Any = None
        self.is_compared = False

    def after(self, t: int, state: TrainState, batch: Any, records: Records) -> None:
        """Looks at the run after step t, if there is something to see.

        Args:
            t: the step.
            state: after it.
            batch: its own, placed.
            records: the run's.

        Raises:
            UphillError: if the loss rose, and the optimizer goes uphill.
        """
        if t > WATCHED:
            self.first_batch = None
        if t <= TREND:
            records.drain()
            self._check_jump(t, records, state, batch)
            if t in (TREND, records.steps) and _is_rising(self.losses):
                self._check_cosine(f"step {t}: the loss", self.losses, state, batch, least=OVER_A_TREND)
        elif not self.is_compared and (t == TREND + 1 or records.is_evaluated(t - 1)):  # no new evaluation else
            self._check_evaluations(t, state, batch, records)
        is_last = t == records.steps
        if self.start is not None and records.is_evaluated(t) and (t > 1 or is_last):  # a warm-up may start at rate 0
            records.drain()
            self._check_moved(records, state)

    def _check_jump(self, t: int, records: Records, state: TrainState, batch: Any) -> None:
        """Compares the loss of one of the first steps with the first one's."""
        loss = records.latest.get("train/loss")
        if loss is None or not np.isfinite(loss):  # nothing counted; and what isn't finite is the guard's
            return
        self.losses.append(loss)
        if t == 1:
            self.first_batch = batch
        first, rise = self.losses[0], loss - self.losses[0]
        if t > WATCHED or rise <= (JUMP - 1) * abs(first):
            return
        self._check_cosine(f"step {t}: the loss", self.losses, state, batch, least=AT_A_JUMP)
        if rise > BURST * abs(first) and self.first_batch is not None:
            self._check_burst(t, state, records)

    def _check_burst(self, t: int, state: TrainState, records: Records) -> None:
        """Reports that the first batch's own loss has burst: another batch's may be ten times as large by chance."""
        if self.assembly.parallel.strategy.axis_name is not None:  # the loss may be one under that axis alone
            return
        first, loss_of = self.losses[0], self.assembly.workload.loss
        with self.assembly.layout():
            again = jax.jit(lambda s, b: loss_of(s.params, s.model_state, b, s.key, True)[0])
            loss = float(again(state, self.first_batch))
        if loss - first > BURST * abs(first):
            rose = _rose("the loss of the first batch", [first, loss])
            records.report(f"step {t}: {rose}: the learning rate is too large, or there is none in tx")
            self.first_batch = None  # once

    def _check_evaluations(self, t: int, state: TrainState, batch: Any, records: Records) -> None:
        """Compares the validation losses of two evaluations, once: they show a rise that batches hide."""
        losses = [r["validation/loss"] for r in records.all if "validation/loss" in r]
        if len(losses) < 2:
            return
        self.is_compared = True
        if losses[-1] > losses[0]:
            self._check_cosine(f"step {t}: the validation loss", losses, state, batch, least=OVER_A_TREND)

    def _check_cosine(self, what: str, losses: Sequence[float], state: TrainState, batch: Any, *, least: float) -> None:
        """Raises UphillError if the updates point along the gradient, by more than the cosine `least`."""
        cosine = self._cosine(state, batch)
        if cosine > least:
            raise UphillError(
                f"{_rose(what, losses)}, and tx goes uphill (cosine {cosine:.2f} of its update with the gradient); end "
                "it in a learning rate above 0, which turns the sign: optax.chain(tx, "
                "optlab.scale_by_learning_rate(1e-3))"
            )

    def _check_moved(self, records: Records, state: TrainState) -> None:
        """Reports that no parameter has changed since the first step."""
        record = records.latest
        start, self.start = self.start, None
        if _is_collecting(state.opt_state):
            return
        if _bits(state.params) != start:
            return
        has_gradient = record.get("train/gradient_norm", 1.0) != 0
        step = int(record["step"])
        why = "the learning rate is 0, or all are frozen" if has_gradient else "the loss doesn't depend on them"
        why += ", or the first step moves nothing by design" if step == 1 and has_gradient else ""
        records.report(f"step {step}: no parameter has changed so far: {why}")

    def _cosine(self, state: TrainState, batch: Any) -> float:
        """Between the gradient and what a fresh optimizer makes of it twice; NaN where that isn't known."""
        if self.assembly.parallel.strategy.axis_name is not None:  # the loss may be one under that axis alone
            return np.nan
        with self.assembly.layout():
            return float(self._cosine_of(state, batch))

    @functools.cached_property
    def _cosine_of(self) -> Callable[[TrainState, Any], jax.Array]:
        """The cosine as a function of the state and the batch, compiled once however often the loss jumps.

        The optimizer moves twice, since the updates of SAM go uphill and back in turn.
        """
        loss, tx = self.assembly.workload.loss, optax.with_extra_args_support(self.tx)
        is_taken = takes(tx.update)

        def cosine(state: TrainState, batch: Any) -> jax.Array:
            value_fn = lambda params: loss(params, state.model_state, batch, state.key, True)[0]
            value, grads = jax.value_and_grad(value_fn)(state.params)
            known = {"value": value, "grad": grads, "value_fn": value_fn}
            known["grad_fn"] = lambda params, _: jax.grad(value_fn)(params)
            extra = {name: x for name, x in known.items() if is_taken(name)}
            params, opt_state = state.params, tx.init(state.params)
            for _ in range(2):
                updates, opt_state = tx.update(grads, opt_state, params, **extra)
                params = optax.apply_updates(params, updates)
            moved = jax.tree.map(jnp.subtract, params, state.params)
            dot = optax.tree.vdot
            return dot(moved, grads) / jnp.sqrt(dot(moved, moved) * dot(grads, grads))

        return jax.jit(cosine)


def _is_rising(losses: Sequence[float]) -> bool:
    """True if losses rise by more than noise: Mann and Kendall's test, which counts the pairs that rise."""
    n = len(losses)
    if n < 2:
        return False
    excess = sum(int(np.sign(late - early)) for early, late in itertools.combinations(losses, 2))
    return excess > SIGNIFICANT * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def _rose(what: str, losses: Sequence[float]) -> str:
    return f"{what} rose from {losses[0]:.4g} to {losses[-1]:.4g}"


def _bits(params: Any) -> dict[str, Any]:
    """A value that changes with any bit of the parameters: bytes on this process' first device, or fingerprints."""
    leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(params))}
    if sum(x.nbytes for x in leaves.values()) > ON_HOST:
        return dict(fingerprints(leaves))
    return {name: np.asarray(x.addressable_data(0)).tobytes() for name, x in leaves.items()}


def _is_collecting(opt_state: Any) -> bool:
    """True if an `optax.MultiSteps` has made no update yet."""
    is_one = lambda x: isinstance(x, optax.MultiStepsState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]
    return any(int(x.gradient_step) == 0 for x in found)
