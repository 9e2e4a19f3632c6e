"""The study: every contender is tuned anew several times under one budget, and its winners are trained afresh.

The repetition is the whole tuning. Seeds of one winner say how noisy its runs are, not how lucky its tuning was: AdamW
against itself, tuned once each, comes out as different in 12 to 93 % of cases (benchmarks/results/comparison_trust.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import jax
import numpy as np
import optax

from optlab._messages import nearest
from optlab.compare._arguments import check_kinds, check_names, named
from optlab.compare._errors import StudyError, first_line
from optlab.compare.choosing import open_to
from optlab.compare.contenders import Contender, contend
from optlab.compare.points import Choice, Design, Interval, Space, check_design, draw, seed_of
from optlab.compare.population import Population
from optlab.compare.runs import Runs
from optlab.compare.trials import Result, Trial
from optlab.data import as_batches, fingerprint
from optlab.roles import layout_around
from optlab.training import Workload, init_state, make_evaluation, make_step
from optlab.training.program import program, programs

Executor: TypeAlias = Literal["population", "series", "runs"]
EXECUTORS: dict[str, Callable[..., Population | Runs]] = {
    "population": Population,
    "series": functools.partial(Population, is_stacked=False),
    "runs": Runs,
}


@dataclass(frozen=True)
class Study:
    """The contenders, and how often they are compared. Make one with `make_study`, which checks it.

    Attributes:
        workload: what is trained.
        contenders: by name; the first is the baseline.
        trials: points of each contender in each study.
        studies: how often every contender is tuned anew.
        seeds: trainings of each point; the best mean wins.
        finals: fresh trainings of each winner.
        seed: of all the others.
        design: how the points are drawn.
        is_paired: whether all contenders' runs have the same initializations and data orders.
        evaluate_every: steps between two evaluations.
        executors: by contender its executor, and why it is that one ("" if it was asked for). "series" is one program
            for all trials, which it trains in turn; "" is to be measured before the first trial, see `decided`.
        widened: for each round of further trials, by contender the space that they are drawn from; None is its own.
    """

    workload: Workload
    contenders: Mapping[str, Contender]
    trials: Mapping[str, int]
    studies: int
    seeds: int
    finals: int
    seed: int
    design: Design
    is_paired: bool
    evaluate_every: int
    executors: Mapping[str, tuple[str, str]]
    widened: Sequence[Mapping[str, Space | None]] = ()
    _drawn: dict[tuple[str, int], dict[int | str, dict[str, Any]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def baseline(self) -> str:
        return next(iter(self.contenders))

    @property
    def steps(self) -> int:
        return self.contenders[self.baseline].steps

    @property
    def measure(self) -> str:
        """The metric by which contenders are compared: the target's, on the test split if there is one."""
        name = self.workload.target.metric.partition("/")[2]
        return f"{'validation' if self.workload.data.test is None else 'test'}/{name}"

    def budget(self, contender: str) -> int:
        """The number of points of a tuning."""
        return self.trials[contender] * (1 + len(self.widened))

    def executor(self, contender: str) -> Population | Runs:
        """The executor that trains the trials of one contender."""
        return EXECUTORS[self.executors[contender][0]](*self.task(contender))

    def task(self, contender: str) -> tuple[Workload, Contender, int, int]:
        """The arguments of an executor of its trials."""
        return self.workload, self.contenders[contender], self.evaluate_every, self.studies * self.finals

    def points(self, contender: str, study: int) -> dict[int | str, dict[str, Any]]:
        """The points of one contender's tuning: its own in every study, so that luck in drawing them counts as luck.

        Those of its space are numbered; one of a widened space is named after that.
        """
        if (contender, study) not in self._drawn:
            self._drawn[contender, study] = self._draw(contender, study)
        return self._drawn[contender, study]

    def _draw(self, contender: str, study: int) -> dict[int | str, dict[str, Any]]:
        count, rounds = self.trials[contender], [spaces[contender] for spaces in self.widened]
        words, space = ("points", contender, study), self.contenders[contender].space
        own = count * (1 + rounds.count(None))
        found: dict[int | str, dict[str, Any]] = dict(
            enumerate(draw(space, own, design=self.design, seed=seed_of(self.seed, *words)))
        )
        for beyond in rounds:
            if beyond is not None:
                name = ",".join(f"{k}={x}" for k, x in beyond.items() if x != space[k]).replace(" ", "")
                drawn = draw(beyond, count, seed=seed_of(self.seed, *words, name))
                found |= {f"{name}:{i}": values for i, values in enumerate(drawn)}
        return found

    def searched(self, contender: str) -> Space:
        """Everything that the rounds of a contender's tuning cover."""
        found = dict(self.contenders[contender].space)
        for beyond in (spaces[contender] or {} for spaces in self.widened):
            for key, piece in beyond.items():
                inner = found[key]
                if isinstance(inner, Interval) and isinstance(piece, Interval):
                    bounds = min(inner.low, piece.low), max(inner.high, piece.high)
                    found[key] = Interval(*bounds, inner.is_log)
        return found

    def searches(self, contender: str, study: int) -> list[Trial]:
        """The trials of one contender's tuning."""
        return [
            self._trial(contender, study, point, repeat, False, values)
            for point, values in self.points(contender, study).items()
            for repeat in range(self.seeds)
        ]

    def finals_of(self, contender: str, study: int, results: Mapping[str, Result]) -> list[Trial]:
        """The fresh trainings of the winner, once its tuning is finished."""
        point = self.winner(contender, study, results)
        values = self.points(contender, study)[point]
        return [self._trial(contender, study, point, repeat, True, values) for repeat in range(self.finals)]

    def all_trials(self, results: Mapping[str, Result]) -> Iterator[Trial]:
        """All trials; those of a tuning must have their results by the time that its winner's follow."""
        for contender in self.contenders:
            for study in range(self.studies):
                yield from self.searches(contender, study)
                yield from self.finals_of(contender, study, results)

    def winner(self, contender: str, study: int, results: Mapping[str, Result]) -> int | str:
        """The point with the best mean of the target's metric at the end; one that diverged comes after all others."""
        target = self.workload.target
        found: dict[int | str, list[float]] = {}
        for trial in self.searches(contender, study):
            found.setdefault(trial.point, []).append(results[trial.id].last(target.metric))

        def rank(point: int | str) -> tuple[int, float]:
            whole = [v for v in found[point] if math.isfinite(v)]
            mean = float(np.mean(whole)) if whole else -math.inf
            return len(whole), -mean if target.mode == "min" else mean

        return max(found, key=rank)

    def _trial(
        self, contender: str, study: int, point: int | str, repeat: int, is_final: bool, values: Mapping[str, Any]
    ) -> Trial:
        what = ("final",) if is_final else ("search", point)
        seed = seed_of(self.seed, *what, study, repeat, *(() if self.is_paired else (contender,)))
        return Trial(contender, study, point, repeat, is_final, values, seed)

    def state_bytes(self, contender: str) -> int:
        """Of the optimizer's state of one run."""
        found = self.contenders[contender]
        with layout_around(functools.cache(self.workload.layout)):
            state = _first(self.workload, found.make(found.middle))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))

    def about(self) -> dict[str, Any]:
        """The study's identity, as JSON data: a folder's trials are those of one study."""
        data, target = self.workload.data, self.workload.target
        held_out = {name: getattr(data, name) for name in ("validation", "test")}
        return {
            "workload": self.workload.name,
            "jax": jax.__version__,
            "data": fingerprint(data.train),
            **{name: None if split is None else fingerprint(split) for name, split in held_out.items()},
            "batch_size": self.workload.batch_size,
            "draw": self.workload.draw,
            "target": {"metric": target.metric, "mode": target.mode},
            "steps": self.steps,
            "evaluate_every": self.evaluate_every,
            "seed": self.seed,
            "design": self.design,
            "paired": self.is_paired,
            "programs": _programs(self.workload),
            "contenders": {name: _described(self.workload, c) for name, c in self.contenders.items()},
        }


def make_study(
    contenders: Mapping[str, Any] | Sequence[str],
    workload: Workload,
    *,
    steps: int,
    trials: int | None = None,
    studies: int = 5,
    seeds: int = 1,
    finals: int = 1,
    spaces: Mapping[str, Space] | None = None,
    schedule: Callable[..., Any] | None = None,
    before: optax.GradientTransformation | None = None,
    baseline: str | None = None,
    design: Design = "sobol",
    paired: bool = False,
    seed: int = 0,
    evaluate_every: int | None = None,
    executor: Executor | None = None,
) -> Study:
    """A checked study; nothing is trained. The arguments are those of `optlab.compare`.

    Raises:
        StudyError: for whatever can't work, by name.
    """
    contenders = named(contenders)
    check_names(contenders, baseline, spaces)
    counts = {"studies": studies, "seeds": seeds, "finals": finals, **({} if trials is None else {"trials": trials})}
    choices = {"design": (design, get_args(Design)), "executor": (executor, (*EXECUTORS, None))}
    check_kinds(
        counts=counts, steps=steps, evaluate_every=1 if evaluate_every is None else evaluate_every, schedule=schedule,
        before=before, paired=paired, seed=seed, choices=choices,
    )  # fmt: skip
    evaluate_every = max(1, steps // 20) if evaluate_every is None else evaluate_every
    _check_workload(workload)
    made = {
        name: contend(name, what, space=(spaces or {}).get(name), schedule=schedule, steps=steps, before=before)
        for name, what in contenders.items()
    }
    first = baseline or next(iter(made))
    made = {first: made[first], **made}
    points = {name: check_design(name, c.space, trials, design) for name, c in made.items()}
    return Study(
        workload, made, points, studies, seeds, finals, seed, design, paired, evaluate_every,
        {name: _executor(workload, c, executor) for name, c in made.items()},
    )  # fmt: skip


def _check_workload(workload: Workload) -> None:
    if not isinstance(workload, Workload):
        raise StudyError(f"workload must be an optlab.training.Workload, got {type(workload).__name__}")
    metric, validation = workload.target.metric, workload.data.validation
    if validation is None or not len(validation) or not metric.startswith("validation/"):
        raise StudyError(
            f"a comparison chooses by the validation split: target.metric is {metric}, and the data have "
            f"{0 if validation is None else len(validation)} validation examples"
        )
    try:
        as_batches(workload.data.train, workload.batch_size, 0, workload.draw).batch(0)
    except Exception as error:  # whatever a user's data raise
        raise StudyError(f"{workload.name} has no batches to train on: {first_line(error)}") from error
    if metric != "validation/loss":  # which there always is
        state = _first(workload, optax.identity())
        names = jax.eval_shape(
            make_evaluation(workload.loss), state.params, state.model_state, workload.example(), state.key
        )
        known = [f"validation/{name}" for name in names]
        if metric not in known:
            raise StudyError(f"target.metric={metric} isn't measured; {nearest(metric, known)}")


def _executor(workload: Workload, contender: Contender, asked: Executor | None) -> tuple[str, str]:
    only, reason = (asked, "") if asked == "runs" else open_to(workload, contender)
    if only == "runs":
        _check_trains(workload, contender)
    if asked not in (None, only) and only == "runs":
        raise StudyError(f"contender {contender.name!r} can't be trained by one program: {reason}; say executor='runs'")
    return (only, reason) if asked is None else (asked, "")


def _check_trains(workload: Workload, contender: Contender) -> None:
    """Refuses a contender of which not even one training can be traced, in the middle of its space."""
    tx = contender.make(contender.middle)
    try:
        with layout_around(functools.cache(workload.layout)):
            jax.eval_shape(make_step(workload.loss, tx), _first(workload, tx), workload.example())
    except Exception as error:  # whatever a user's optimizer raises
        raise StudyError(f"contender {contender.name!r} can't train {workload.name}: {first_line(error)}") from error


def _programs(workload: Workload) -> dict[str, str]:
    """The digests of how the model begins, of what is minimized and of what is measured."""
    state = _first(workload, optax.identity())
    found = programs(workload, optax.identity(), state)
    measured = program(make_evaluation(workload.loss), state.params, state.model_state, workload.example(), state.key)
    parts: dict[str, Any] = {name: found[name] for name in ("model", "loss") if name in found}
    parts["evaluation"] = measured
    return {name: part["digest"] for name, part in parts.items()}


def _described(workload: Workload, contender: Contender) -> dict[str, Any]:
    """A contender's space, and the digests of a training step: in the middle of it, and at every other choice there."""

    def digest(**values: Any) -> str:
        tx = contender.make({**contender.middle, **values})
        return program(make_step(workload.loss, tx), _first(workload, tx), workload.example())["digest"]

    # A choice of numbers with a decimal point is traced: it can't choose between programs.
    kinds = {name: x.values for name, x in contender.space.items() if isinstance(x, Choice) and not x.is_traced}
    others = [(name, v) for name, values in kinds.items() for v in values if repr(v) != repr(contender.middle[name])]
    with layout_around(functools.cache(workload.layout)):
        steps = {"step": digest(), **{f"step, {name}={v!r}": digest(**{name: v}) for name, v in others}}
    return {"space": {name: str(found) for name, found in contender.space.items()}, **steps}


def _first(workload: Workload, tx: optax.GradientTransformation) -> Any:
    return jax.eval_shape(lambda key: init_state(*workload.init(key), tx, key=key), jax.random.key(0))
