"""The loop: batches in, steps out, and what is shown and saved along the way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from optlab._measure import Measure
from optlab._processes import is_first
from optlab.config import Stop, StrategyName
from optlab.data import prefetch
from optlab.runs import Checkpoints, Observer, StepLog
from optlab.training.arguments import check_arguments, check_counts
from optlab.training.assembly import assemble
from optlab.training.damaged import DamagedExamples
from optlab.training.evaluation import Evaluator, Labels
from optlab.training.feed import Feed
from optlab.training.first_steps import FirstSteps
from optlab.training.folder import RunFolder
from optlab.training.guard import Skips
from optlab.training.history import History
from optlab.training.identity import identity
from optlab.training.judge import Judge
from optlab.training.ledger import Ledger
from optlab.training.mistakes import check_keywords
from optlab.training.profiling import Trace
from optlab.training.records import Records
from optlab.training.saving import Saver
from optlab.training.sharding import Rules
from optlab.training.signals import catch_signals
from optlab.training.step import StepSettings
from optlab.training.workload import Workload


class StepsError(ValueError):
    """The checkpoint that a run continues from has more steps behind it than the run is to have in all."""


def train(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    run: str | Path | None = None,
    strategy: StrategyName = "single",
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    seed: int = 0,
    skip_limit: int = 10,
    skip_log: StepLog | None = None,
    evaluate_every: int | None = None,
    evaluate_batches: int | None = None,
    log_every: int = 10,
    stop: Stop = Stop(),
    checkpoints: Checkpoints | None = None,
    allow_change: Collection[str] = (),
    observers: Sequence[Observer] = (),
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
    initial: tuple[Any, Any] | None = None,
    profile: str | Path | None = None,
    measure: Sequence[Measure] = (),
    **settings: Any,
) -> History:
    """Trains a workload with an optax transformation.

    Args:
        workload: what is trained, on what.
        tx: any optax transformation that ends in the learning rate.
        steps: updates in all, those before a continued run's checkpoint included.
        run: a folder for everything of the run, such as "runs/mine": metrics.jsonl, summary.json, curves.png and
            checkpoints. The same call again continues the run, or shows the summary of one that is over; another run's
            folder is refused. `optlab.runs.Run` reads it. On a terminal the run's progress is shown, and its summary
            at the end.
        strategy: how a step runs on the devices, see `parallelize`. Under pmap BatchNorm needs `axis_name="data"`,
            which isn't checked here: without it each device normalizes its own part of the batch.
        mesh: the devices, for every strategy but "single"; see `make_mesh`.
        rules: where the mesh's axis "model" goes, by role or path, see `parallelize`.
        seed: of the initialization, the order of the data and dropout; a whole number in [0, 2**32).
        skip_limit: how many steps may be skipped in all of a run, continued or not, and how many damaged examples left
            out (`optlab.data.DamagedRecordError`); one more ends it with the error.
        skip_log: a file with a line for each skipped step, with the reason and the examples of its batch, and for each
            damaged example.
        evaluate_every: steps between two evaluations on the validation split, by default a tenth of the run; the last
            step is always evaluated, there on the test split too.
        evaluate_batches: of the validation split in each evaluation, evenly spaced and always the same ones; None is
            the whole split. The best step, the target and `stop` are judged on them; the last record has the whole.
        log_every: steps between two records; "examples" and "epoch" count what was drawn so far (absent where the data
            makes its own batches), "seconds" is the training time so far, over all calls: without compilation,
            evaluations and checkpoints, with waiting for data. "train/loss" is the loss of that step's batch,
            "probe/<name>/<metric>" what a probe in `tx` measured in that step. A step in which one measured singular
            values has a record of its own.
        stop: when the run ends before its last step. Once a step's gradient norm is at most stop.gradient_norm it makes
            no update, and the run ends with the parameters that were tested; its record has the step's number all the
            same.
        checkpoints: where the state is saved; if there are any, the run continues from the latest. With `run` they are
            made in its folder. Ctrl-C and SIGTERM then end the run after the step, saved. What `tx`, the model and the
            loss compute is compared with what the checkpoint's run computed, constants (a learning rate, a schedule's
            steps) included; what they do in host callbacks isn't seen. A run that is over gives its records.
        allow_change: settings that may differ from the latest checkpoint's run, by the config's keys: "data", "seed",
            "batch_size", "accumulate", "ema", "evaluate_batches", "target" (all of it, or "target.metric", …); and
            "optimizer", "model", "loss" and "initial" for the arguments.
        observers: they get every record, such as `MetricsFile(path)`, and a `StateObserver` the state of every
            evaluated step; in several processes, the first one's do.
        schedules: functions of the step that are logged beside the metrics, such as {"learning_rate": schedule}; None
            logs the learning rates of optlab's optimizers, optax's schedules and those of `optax.inject_hyperparams`.
        initial: (params, model_state) to start from instead of `workload.init`.
        profile: folder for a `jax.profiler` trace of ten steps.
        measure: measurements in the step's program, every so many steps, logged as "measure/<name>"; see `Measure`, and
            `optlab.theory.measures` for some. A step in which one is made has a record of its own.
        **settings: the step's, those of `StepSettings`: accumulate, ema, guard, spike.

    Returns:
        The records, the last state, and how it ended.

    Raises:
        PlaceError: if `run` is the folder of something else.
        CheckpointError: if the latest checkpoint is another run's; it names what differs. Or as `Checkpoints`.
        NonFiniteError: see `guard`.
        StepsError: if `steps` is below the latest checkpoint's.
        ValueError: among others for a loss that isn't the mean it measures, where its parts are averaged.
    """
    check_arguments(
        workload,
        tx,
        seed=seed,
        stop=stop,
        checkpoints=checkpoints,
        observers=observers,
        schedules=schedules,
        measure=measure,
        allow_change=allow_change,
    )
    check_keywords(settings, workload)
    check_counts(steps=steps, log_every=log_every, skip_limit=skip_limit)
    evaluate_every = max(1, steps // 10) if evaluate_every is None else evaluate_every
    check_counts(evaluate_every=evaluate_every)
    if evaluate_batches is not None:
        check_counts(evaluate_batches=evaluate_batches)
    given, judge = StepSettings.of(train, settings), Judge(workload.target, stop)
    began = time.monotonic()
    folder = RunFolder(run, workload, checkpoints=checkpoints, skip_log=skip_log, observers=observers)
    checkpoints, skip_log, observers = folder.checkpoints, folder.skip_log, folder.observers
    assembly = assemble(
        workload, tx, given, strategy, mesh=mesh, rules=rules, seed=seed, initial=initial, stop=stop, measure=measure
    )
    with contextlib.ExitStack() as stack:
        feed = Feed(workload, assembly.parallel, seed=seed, steps=steps)
        skips = Skips(given.guard, skip_limit, skip_log, feed.examples)
        ledger = Ledger(judge, skips, DamagedExamples(workload, skip_limit, skip_log))
        evaluator = Evaluator(workload, assembly.parallel, ledger.damaged, Labels(workload.loss, assembly.shapes()))
        evaluator.check_target(workload.target, is_needed=stop.patience is not None)
        state = assembly.place_state()
        saver = Saver(checkpoints, ledger)
        if checkpoints is not None:
            stack.enter_context(checkpoints.writing())
            with assembly.layout():
                about = identity(
                    workload,
                    tx,
                    state,
                    initial=initial,
                    seed=seed,
                    settings=given,
                    stop=stop,
                    evaluate_batches=evaluate_batches,
                )
            state = saver.restore(state, about, allow_change)
            folder.claim({"workload": workload.name, "steps": steps, "seed": seed, "strategy": strategy})
        start = int(state.step)
        observers, earlier = saver.with_files(observers, start, steps)
        if judge.ended_early:
            return folder.concluded(History.of(earlier, state, ledger, saver, start, time.monotonic() - began))
        if start > steps:
            raise StepsError(f"steps must be at least {start}, which the run has behind it, got {steps}")
        records = Records(
            feed,
            evaluator,
            ledger,
            observers=observers if is_first() else (),
            schedules=assembly.schedules() if schedules is None else schedules,
            steps=steps,
            log_every=log_every,
            evaluate_every=evaluate_every,
            evaluate_batches=evaluate_batches,
        )
        asked = stack.enter_context(catch_signals(listen=checkpoints is not None))
        stack.enter_context(skips.logged(start))
        stack.enter_context(records.observed(start))
        saver.check_lines(records)
        if checkpoints is not None:
            stack.enter_context(checkpoints.writing())  # again: its end, a save's too, comes before the observers'
        trace = stack.enter_context(contextlib.closing(Trace(profile if is_first() else None, start, steps)))
        stream = stack.enter_context(contextlib.closing(prefetch(feed, start, steps)))
        first_steps = FirstSteps(assembly, tx, state) if start == 0 else None
        for t, batch in zip(range(start + 1, steps + 1), stream, strict=True):
            trace.at(t)
            if damaged := feed.damaged(t):
                ledger.damaged.add(t, "train", damaged)
            if t == start + 1:
                assembly.check(state, batch)
            state, metrics = assembly.parallel.step(state, batch)
            if t == start + 1:
                ledger.clock.start()  # the call returns once it is compiled
            records.push(t, metrics)
            if first_steps is not None:
                first_steps.after(t, state, batch, records)
            outcome = records.outcome_at(t, state) or judge.interrupted(asked())
            saver.after(t, state, outcome, records)
            if outcome:
                break
    return folder.concluded(History.of(records.all or earlier, state, ledger, saver, start, time.monotonic() - began))
