"""The loop: batches in, steps out, and everything that a person or a disk gets to see."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from optlab._processes import is_first
from optlab.config import ConfigError, Stop, check
from optlab.data import Batches, Share, as_batches, check_splits, prefetch
from optlab.roles import layout_around
from optlab.runs import Checkpoints, MetricsFile, Observer, Record, StepLog, SummaryFile, read_metrics
from optlab.training.damaged import DamagedExamples
from optlab.training.guard import Guard, Skips
from optlab.training.identity import Identity, changed_keys, identity, with_settings
from optlab.training.judge import CONVERGED, INTERRUPTED, Judge
from optlab.training.measures import Measure, measuring
from optlab.training.parallel import DATA, Strategy, check_memory, parallelize
from optlab.training.process import Trace, catch_signals
from optlab.training.records import Records, packed, unless_small
from optlab.training.sharding import Rules
from optlab.training.state import TrainState, evaluation_params, init_state
from optlab.training.step import check_mean, make_step
from optlab.training.workload import Workload


@dataclass
class History:
    """What came of a run.

    Attributes:
      records: one {"step": …, "train/loss": …, "validation/…": …} a logged step of this call, ascending.
      state: the last TrainState.
      outcome: "finished", "stopped early", "gradient norm reached", or the name of the signal that interrupted it.
      best: step and value of the target's metric at its best.
      reached: the first evaluated step at which the target's value was reached, or None.
      skipped: the steps that the guard left out, those before a continued run's checkpoint included.
      saved: the last step that is saved; 0 if none is.
      start: the step that this call went on from. Where that is the last one already, nothing was trained, and the
        records are those of the calls before.
    """

    records: list[Record]
    state: TrainState
    outcome: str
    best: tuple[int, float] | None
    reached: int | None
    skipped: list[int]
    saved: int = 0
    start: int = 0

    @property
    def params(self) -> Any:
        """The parameters that the run is judged by (the moving average's, if there is one)."""
        return evaluation_params(self.state)

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric."""
        found = [(r["step"], r[name]) for r in self.records if name in r]
        if not found:
            known = sorted({n for r in self.records for n in r if n != "step"})
            raise KeyError(f"no metric {name!r} was logged; there are {', '.join(known)}")
        steps, values = zip(*found, strict=True)
        return np.asarray(steps), np.asarray(values)


def train(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    strategy: Strategy = "single",
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    seed: int = 0,
    accumulate: int = 1,
    ema: float | Callable[[jax.Array], Any] | None = None,
    guard: Guard | None = "stop",
    spike: float | None = None,
    skip_limit: int = 10,
    skip_log: StepLog | None = None,
    evaluate_every: int | None = None,
    log_every: int = 10,
    stop: Stop = Stop(),
    checkpoints: Checkpoints | None = None,
    allow_change: Collection[str] = (),
    observers: Sequence[Observer] = (),
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
    initial: tuple[Any, Any] | None = None,
    profile: str | Path | None = None,
    measure: Sequence[Measure] = (),
) -> History:
    """Trains a workload with an optax transformation.

    Args:
      workload: what is trained, on what.
      tx: any optax transformation that ends in the learning rate.
      steps: updates in all, those before a continued run's checkpoint included.
      strategy: how a step runs on the devices, see `parallelize`. Under pmap BatchNorm needs `axis_name="data"`,
        which isn't checked here: without it each device normalizes its own part of the batch.
      mesh: the devices, for every strategy but "single"; see `make_mesh`.
      rules: where the mesh's axis "model" goes, by role or path, see `parallelize`.
      seed: of the initialization, the order of the data and dropout.
      accumulate: microbatches that an update's gradient is averaged over.
      ema: decay of the weights' moving average, which is then what is evaluated; a number or a function of the step.
      guard: what becomes of a step whose loss, gradient, new parameters or model state aren't finite. "stop": the run
        ends with a NonFiniteError; "skip": the old state is kept, but for the step's number, and the run goes on with
        the next batch; None: it goes on with what came out, which is never saved.
      spike: the guard refuses a loss, too, that is more than so many standard deviations above the running mean.
      skip_limit: how many steps may be skipped in all of a run, continued or not, and how many damaged examples left
        out (`optlab.data.DamagedRecordError`); one more ends it with the error.
      skip_log: where each skipped step has a line with the reason and the examples of its batch, and each damaged
        example one.
      evaluate_every: steps between two evaluations on the validation split, by default a tenth of the run; the last
        step is always evaluated, there on the test split too.
      log_every: steps between two records; "train/loss" is the loss of that step's batch, "probe/<name>/<metric>" what
        a probe in `tx` measured in that step. A step in which one measured singular values has a record of its own.
      stop: when the run ends before its last step. Once a step's gradient norm is at most stop.gradient_norm it makes
        no update, and the run ends with the parameters that were tested; its record has the step's number all the same.
      checkpoints: where the state is saved; if there are any, the run continues from the latest. Ctrl-C and SIGTERM
        then end the run after the step, saved. What `tx`, the model and the loss compute is compared with what the
        checkpoint's run computed, constants (a learning rate, a schedule's steps) included; what they do in host
        callbacks isn't seen. A run that is over gives its records.
      allow_change: what may be otherwise than in the latest checkpoint's run, by the config's keys: "data", "seed",
        "batch_size", "accumulate", "ema", "target" (all of it, or "target.metric", …); and "optimizer", "model",
        "loss" and "initial", which are what was given here.
      observers: what is told of every record, such as `MetricsFile(path)` or `Progress()`; of several processes the
        first one's.
      schedules: functions of the step that are logged beside the metrics, such as {"learning_rate": schedule}.
      initial: (params, model_state) to start from instead of `workload.init`.
      profile: folder for a `jax.profiler` trace of ten steps.
      measure: what else is measured of the state every so many steps, in the step's program: "measure/<name>"; see
        `optlab.theory.measures`. A step in which one measured has a record of its own.

    Returns:
      the records, the last state, and how it ended.

    Raises:
      CheckpointError: if the latest checkpoint is another run's; it names what differs. Or as `Checkpoints`.
      NonFiniteError: see `guard`.
      ValueError: among others for a loss that isn't the mean it measures, where its parts are averaged.
    """
    for name, value in (
        ("steps", steps),
        ("log_every", log_every),
        ("skip_limit", skip_limit),
        ("evaluate_every", 1 if evaluate_every is None else evaluate_every),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not -(2**31) <= seed < 2**32:  # of a longer one JAX takes the last 32 bits
        raise ValueError(f"seed must lie in [-2**31, 2**32), got {seed}")
    check(stop, "stop.")
    axis_name = DATA if strategy == "pmap" else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(layout_around(functools.partial(workload.layout, axis_name)))
        key, init_key = jax.random.split(jax.random.key(seed))
        step = make_step(
            workload.loss, tx, axis_name=axis_name, accumulate=accumulate, ema=ema, guard=guard, spike=spike
        )
        step = measuring(step, workload.loss, measure, strategy)
        parallel = parallelize(unless_small(packed(step), stop.gradient_norm), strategy, mesh, rules=rules)

        def first(key: jax.Array, init_key: jax.Array, initial: tuple[Any, Any] | None) -> TrainState:
            params, model_state = initial if initial is not None else workload.init(init_key)
            return init_state(params, model_state, tx, key=key, ema=ema is not None, spike=spike is not None)

        check_memory(parallel, parallel.shapes(jax.eval_shape(first, key, init_key, initial)))
        state = parallel.place_state(first, key, init_key, initial)
        data = workload.data
        batches = as_batches(data.train, workload.batch_size, seed, workload.draw)
        if isinstance(batches, Batches):
            batches.check_steps(steps)
        check_splits(data.train, data.validation, data.test, seed=seed)
        judge = Judge(workload.target, stop)
        examples = (lambda t: batches.indices(t - 1)[0].tolist()) if isinstance(batches, Batches) else None
        skips = Skips(guard, skip_limit, skip_log, examples)
        damaged = DamagedExamples(workload, skip_limit, skip_log)
        about: Identity = {}
        earlier: list[Record] = []
        notes: Mapping[str, Any] = {}
        if checkpoints is not None:
            stack.enter_context(checkpoints.writing())
            about = identity(workload, tx, state, initial=initial, seed=seed, accumulate=accumulate, ema=ema, stop=stop)
            state, notes = _continued(checkpoints, state, judge, skips, damaged, about, allow_change)
            log = next((o.log for o in observers if isinstance(o, MetricsFile)), None)
            if log is None:
                own = MetricsFile(checkpoints.folder / "metrics.jsonl")
                log, observers = own.log, (own, *observers)
            summary = SummaryFile(log.path.parent, lambda: {**judge.summary(), **skips.dump(), **damaged.dump()})
            earlier = _already(checkpoints, log, summary, judge, int(state.step), steps) if notes else []
            if int(state.step) < steps:
                observers = (*observers, summary)
        start = saved = int(state.step)
        if judge.ended not in (None, "finished"):  # it stopped before its last step, and stays stopped
            return History(earlier, state, judge.ended, judge.best, judge.reached, skips.steps, start, start)
        if start > steps:
            raise ConfigError(f"steps must be at least {start}, which the run has behind it, got {steps}")
        records = Records(
            workload,
            parallel,
            batches,
            judge,
            skips,
            damaged,
            observers if is_first() else (),
            schedules or {},
            steps,
            log_every,
            evaluate_every or max(1, steps // 10),
        )
        records.check_names(state)
        shares = Share(batches, parallel.rows, workload.batch_size)
        asked = stack.enter_context(catch_signals(listen=checkpoints is not None))
        if skip_log is not None and is_first():
            skip_log.begin(start)
            stack.callback(skip_log.end)
        stack.enter_context(records.observed(start))
        records.check_lines(notes)
        if checkpoints is not None:
            stack.enter_context(checkpoints.writing())  # again: its end, a save's too, comes before the observers'
        trace = stack.enter_context(contextlib.closing(Trace(profile if is_first() else None, start, steps)))
        placed = _Placed(shares, parallel.place_batch, records.reading)
        stream = stack.enter_context(contextlib.closing(prefetch(placed, start, steps)))
        for t, batch in zip(range(start + 1, steps + 1), stream, strict=True):
            trace.at(t)
            if isinstance(batches, Batches) and t - 1 in batches.damaged:
                damaged.add(t, "train", batches.damaged.pop(t - 1))
            if t == start + 1:
                check_memory(parallel, state, batch)
                if accumulate > 1 or axis_name is not None:
                    check_mean(workload.loss, state, batch, accumulate)
            state, metrics = parallel.step(state, batch)
            records.push(t, metrics)
            ended = records.outcome_at(t, state)
            if not ended and (signal := asked()):
                ended = judge.ended = f"{INTERRUPTED}{signal}"
            best = judge.best and judge.best[0]
            is_saved = checkpoints is not None and (ended or t % checkpoints.every == 0 or t == best)
            if ended or is_saved:
                records.drain()
                damaged.settle()
                is_saved = records.is_savable(t, state) and is_saved
            # A step that tested the gradient and made no update may stand at a checkpoint that there is.
            if checkpoints is not None and is_saved and (made := int(state.step)) != saved:
                records.sync()
                told = {**judge.dump(), **skips.dump(), **damaged.dump(), **records.dump()}
                checkpoints.save(state, {**told, "run": about}, best=best)
                saved = made
            if ended:
                break
    found = records.all or earlier
    return History(found, state, judge.ended or "finished", judge.best, judge.reached, skips.steps, saved, start)


@dataclass(frozen=True)
class _Placed:
    """A run's batches, each on the devices before anybody else may take one."""

    shares: Share
    place: Callable[..., Any]
    reading: threading.Lock

    def batch(self, step: int) -> Any:
        with self.reading:
            return self.place(*self.shares.batch(step))


def _already(
    checkpoints: Checkpoints, log: StepLog, summary: SummaryFile, judge: Judge, start: int, steps: int
) -> list[Record]:
    """The records of a run that is over, which is said; of one that goes on none. Their file may be gone."""
    if start != steps and judge.ended in (None, "finished"):
        return []
    if is_first():
        print(
            f"optlab: the run in {checkpoints.folder} is {judge.ended or 'finished'} already, at step {start}: "
            "nothing is trained, these are its records; name another folder for another run",
            file=sys.stderr,
        )
    last = start + (judge.ended == CONVERGED)  # the step that tested the gradient and made no update
    records = [r for r in read_metrics(log.path) if r["step"] <= last] if log.path.exists() else []
    if is_first():
        summary.restore(judge.ended or "finished", start, steps, records)
    return records


def _continued(
    checkpoints: Checkpoints,
    first: TrainState,
    judge: Judge,
    skips: Skips,
    damaged: DamagedExamples,
    about: Identity,
    allow_change: Collection[str],
) -> tuple[TrainState, Mapping[str, Any]]:
    """The state of the latest checkpoint and its notes, held against this run; without any the first one and none."""
    saved = checkpoints.restore_latest(first, optional=("losses", "ema"))  # whether the average may go, the keys tell
    if saved is None:
        return first, {}
    state, notes = saved
    path = checkpoints.folder / str(int(state.step))
    changed = changed_keys(path, notes.get("run", {}), about, allow_change)
    about["initial"] = about["initial"] or notes.get("run", {}).get("initial")
    judge.load(notes, changed)
    skips.load(notes)
    damaged.load(notes)
    return with_settings(state, first, changed), notes
