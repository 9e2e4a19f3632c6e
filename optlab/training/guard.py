"""The guard: which steps count, decided on the device; which were left out, kept count of on the host."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from optlab._processes import is_first
from optlab.runs import Record, StepLog
from optlab.training.reductions import with_finite
from optlab.training.state import LossStatistics, TrainState

Guard: TypeAlias = Literal["stop", "skip"]
GUARDS = ("stop", "skip", None)
FAULTS = ("loss", "gradient", "spike", "parameters", "ema", "model_state")  # the metric "fault" counts them from 1

# The loss's running mean and variance look back 1 / (1 − DECAY) accepted steps, and are trusted once they have so many.
DECAY, WARMUP = 0.98, 50
ROUNDING = 1e-5  # of the mean: by so little a loss may always rise


class GuardError(RuntimeError):
    """A step that the guard refuses. The message names the step, the value and what to try."""


class NonFiniteError(GuardError):
    """The loss, the gradient, the parameters or the model's state stopped being numbers."""


class LossSpikeError(GuardError):
    """The loss rose far above its running mean."""


# On the device.


def check_guard(guard: Guard | None, spike: float | None) -> None:
    """Raises a ValueError for an unknown policy."""
    if guard not in GUARDS:
        raise ValueError(f"guard must be 'stop', 'skip' or None, got {guard!r}")
    if spike is not None and not spike > 0:
        raise ValueError(f"spike must be above 0, got {spike}")
    if spike is not None and guard is None:
        raise ValueError(f"spike={spike:g} needs guard='stop' or 'skip': without a guard nothing would come of it")


def guarded(
    old: TrainState, new: TrainState, value: jax.Array, norm: jax.Array, *, guard: Guard, spike: float | None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step that may have gone wrong, and what the guard measured.

    Args:
        old: the state before the step.
        new: the state after it.
        value: the loss, the same on every device.
        norm: the gradient's.
        guard: "skip" keeps everything of `old` but the step's number if anything is at fault; nothing of what went
            wrong gets into the state, which for a moment is there twice.
        spike: by how many standard deviations the loss may lie above its running mean.

    Returns:
        (state, {"fault": 0 or one more than the index in `FAULTS`, with `spike` also "loss_z": how many standard
        deviations above its mean the loss lies}).
    """
    measured: dict[str, jax.Array] = {}
    losses, is_calm = old.losses, jnp.asarray(True)
    if spike is not None:
        if losses is None:
            raise ValueError("spike needs a state that keeps the loss's statistics: init_state(…, spike=True)")
        measured["loss_z"] = _z_score(losses, value)
        losses, is_calm = _updated(losses, value), ~(measured["loss_z"] > spike)
    params, is_params_finite = with_finite(new.params)
    ema, is_ema_finite = with_finite(new.ema)
    still = jax.tree.map(_is_still_finite, new.model_state, old.model_state)
    is_state_finite = jnp.all(jnp.stack([jnp.asarray(True), *jax.tree.leaves(still)]))
    checks = (jnp.isfinite(value), jnp.isfinite(norm), is_calm, is_params_finite, is_ema_finite, is_state_finite)
    is_fine = jnp.stack(checks)
    is_accepted = jnp.all(is_fine)
    measured["fault"] = jnp.where(is_accepted, 0, 1 + jnp.argmin(is_fine)).astype(jnp.float32)  # the first that isn't

    def choose(ours: Any, theirs: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), ours, theirs)

    state = dataclasses.replace(new, params=params, ema=ema, losses=choose(losses, old.losses))
    if guard == "skip":
        state = dataclasses.replace(choose(state, old), step=new.step)
    return state, measured


def _is_still_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """True if every number that was finite is; a model may keep infinities of its own."""
    if not jnp.issubdtype(jnp.asarray(new).dtype, jnp.inexact):
        return jnp.asarray(True)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def _z_score(losses: LossStatistics, value: jax.Array) -> jax.Array:
    """(value − mean) / standard deviation, as ZClip (arXiv 2504.02507) for gradients' norms; 0 in the warm-up."""
    spread = jnp.sqrt(losses.variance) + ROUNDING * jnp.abs(losses.mean)
    z = (value.astype(losses.mean.dtype) - losses.mean) / jnp.maximum(spread, jnp.finfo(spread.dtype).tiny)
    return jnp.where(losses.accepted >= WARMUP, z, 0)


def _updated(losses: LossStatistics, value: jax.Array) -> LossStatistics:
    """Plain mean and variance over the first steps, then exponential ones (Welford's recursion)."""
    weight = jnp.maximum(1 - DECAY, 1 / (losses.accepted + 1).astype(losses.mean.dtype))
    distance = value.astype(losses.mean.dtype) - losses.mean
    return LossStatistics(
        losses.accepted + 1,
        losses.mean + weight * distance,
        (1 - weight) * (losses.variance + weight * jnp.square(distance)),
    )


# On the host, late.


@dataclass
class Skips:
    """The steps that a run left out: counted over all of its calls, logged, and bounded.

    Attributes:
        guard: what a fault does.
        limit: how many there may be.
        log: where each has a line.
        examples: step -> the examples of its batch, if they are known.
        steps: those that were left out, ascending.
    """

    guard: Guard | None
    limit: int
    log: StepLog | None = None
    examples: Callable[[int], list[int]] | None = None
    steps: list[int] = field(default_factory=list)

    def __call__(self, values: Record) -> Record:
        """Takes a step's values, and returns its record.

        Raises:
            GuardError: if the step is at fault and isn't to be skipped, or too many were.
        """
        step, fault = int(values["step"]), int(values.pop("train/fault", 0))
        if not fault:
            return values
        why = _reason(FAULTS[fault - 1], values)
        refused = _spiked if FAULTS[fault - 1] == "spike" else not_finite
        if self.guard == "stop":
            raise refused(f"step {step}: {why}; guard='skip' would leave it out")
        self.steps.append(step)
        self._log(step, why, values)
        if len(self.steps) > self.limit:
            named = ", ".join(map(str, self.steps[-20:]))
            raise refused(f"more than skip_limit={self.limit} steps were skipped, {named}; at the last one {why}")
        return {"skipped": 1.0, **{name: value for name, value in values.items() if math.isfinite(value)}}

    def _log(self, step: int, why: str, values: Record) -> None:
        if not is_first():
            return
        print(f"optlab: step {step} is skipped, {len(self.steps)} of at most {self.limit}: {why}", file=sys.stderr)
        if self.log is not None:
            entry = {name: _as_json(values.get(f"train/{name}", math.nan)) for name in ("loss", "gradient_norm")}
            examples = {} if self.examples is None else {"examples": self.examples(step)}
            self.log.add({"step": step, "why": why, **entry, **examples})

    @contextlib.contextmanager
    def logged(self, start: int) -> Iterator[None]:
        """Keeps the log open, from the step that the run starts at."""
        if self.log is None or not is_first():
            yield
            return
        self.log.begin(start)
        try:
            yield
        finally:
            self.log.end()

    def updates(self, step: int) -> int:
        """The number of updates made before a step, counted from 1: the optimizer's own counts agree with it."""
        return step - 1 - sum(skipped < step for skipped in self.steps)

    def dump(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint."""
        return {"skipped": self.steps}

    def load(self, notes: Mapping[str, Any]) -> None:
        """The inverse of dump."""
        self.steps = list(notes["skipped"])


def _reason(fault: str, values: Record) -> str:
    loss, norm = values.get("train/loss", math.nan), values["train/gradient_norm"]  # no loss where no example counts
    if fault == "loss" and math.isfinite(loss):
        return f"the loss that is differentiated isn't finite (the metric is {loss:g})"
    if fault == "gradient" and math.isinf(norm):
        return f"the gradient's norm is inf, by an infinite entry or one whose square overflows (the loss is {loss:g})"
    if fault == "spike":
        z = values["train/loss_z"]
        return f"the loss is {loss:g}, which is {z:.3g} standard deviations above the mean of those before"
    return {
        "loss": f"the loss is {loss:g} and the gradient's norm {norm:g}",
        "gradient": f"the gradient's norm is {norm:g} and the loss {loss:g}",
        "parameters": f"the update made parameters that aren't finite (the gradient's norm is {norm:g})",
        "ema": "the weights' moving average isn't finite any more",
        "model_state": "the model's state (running statistics) isn't finite any more",
    }[fault]


def _as_json(value: float) -> float | str:
    """JSON has no number that isn't finite; float() takes its name."""
    return value if math.isfinite(value) else str(value)


def not_finite(what: str) -> NonFiniteError:
    return NonFiniteError(
        f"{what}. Lower the learning rate, warm it up or clip the gradients (clip_norm=1), "
        "and look for bad values in the data"
    )


def _spiked(what: str) -> LossSpikeError:
    return LossSpikeError(
        f"{what}. Lower the learning rate, look at the batch's examples, or allow more (a higher spike)"
    )
