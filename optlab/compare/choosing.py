"""The executor of trials that nobody asked one for: the faster of two, measured once on a few steps."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from optlab.compare._errors import first_line
from optlab.compare.contenders import Contender
from optlab.compare.population import CONVOLUTION, Population, Program, static_values
from optlab.compare.trials import Trial, replace_text
from optlab.roles import layout_around
from optlab.training import Workload

if TYPE_CHECKING:
    from optlab.compare.study import Study

CHOICES = "executors.json"
OPEN, BRANCHES = "", "its step branches"  # of an executor that is to be measured, and why by itself
STEPS, LAPS, SECONDS = 20, 5, 2.0  # timed at most: with fewer, what surrounds a step weighs more than in training
Paces = Mapping[str, float]  # by executor, seconds a step and trial


def open_to(workload: Workload, contender: Contender) -> tuple[str, str]:
    """The one executor that these trials can have and why, or `OPEN` and whether it is measured by itself.

    Traces, and computes nothing.
    """
    try:
        with layout_around(functools.cache(workload.layout)):
            program = Program(workload, contender, static_values(contender, contender.middle))

            def pair(tree: Any) -> Any:
                return jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), tree)

            traced, _, batch = program.shapes()
            seeds = jax.ShapeDtypeStruct((2,), jnp.uint32)
            stacked = jax.vmap(program.step, in_axes=(0, 0, None), axis_size=2)
            jax.eval_shape(stacked, pair(traced), jax.eval_shape(program.started, pair(traced), seeds), batch)
            step = program.traced
    except Exception as error:  # whatever a factory does with a value that has none yet
        return "runs", f"it can't be traced: {first_line(error)}"
    if jax.default_backend() == "cpu" and CONVOLUTION in step:
        # Compiling one of ResNet-20 and a step of it take minutes: too dear to be measured.
        return "series", "side by side, convolutions are several times slower on a CPU"
    return OPEN, BRANCHES if " cond[" in step else ""


def race(
    workload: Workload, contender: Contender, evaluate_every: int, expected: int
) -> tuple[dict[str, float], dict[str, Population]]:
    """The paces of trials side by side and in turn, by executor, and both with what they compiled.

    Their laps take turns, so that a machine that slows down slows both, and the best lap counts.
    """
    steps = min(STEPS, evaluate_every, contender.steps)
    made = {
        name: Population(workload, contender, evaluate_every, expected, is_stacked=name == "population")
        for name in ("series", "population")
    }
    laps = {name: population.laps(_middle(contender), steps) for name, population in made.items()}
    for lap in laps.values():
        lap()  # compiles
    best = dict.fromkeys(made, math.inf)
    began, count = time.monotonic(), 0
    while not count or (count < LAPS and time.monotonic() - began < SECONDS):
        best = {name: min(best[name], lap() / steps) for name, lap in laps.items()}
        count += 1
    return best, made


def decided(study: Study, measure: Callable[[Study, str], Paces], folder: Path | None, *, keep: bool = True) -> Study:
    """The study with an executor for every contender.

    Contenders of one workload share a measurement. One whose step branches has its own: side by side, all branches are
    computed for all trials.

    Args:
        study: some of whose executors may be `OPEN`.
        measure: (study, contender) -> its paces.
        folder: the study's: what an earlier call measured there on these devices holds.
        keep: whether what is measured is written there.
    """
    paces, shared = _known(folder), None
    executors, were = dict(study.executors), dict(paces)
    for name, (executor, how) in study.executors.items():
        if executor != OPEN:
            continue
        if name not in paces:
            paces[name] = measure(study, name) if how == BRANCHES or shared is None else paces[shared]
        if how != BRANCHES:
            shared = shared or name
        executors[name] = _faster(paces[name])
    if keep and folder is not None and paces != were:
        replace_text(folder / CHOICES, json.dumps({"devices": _devices(), "seconds": paces}, indent=2) + "\n")
    return dataclasses.replace(study, executors=executors)


def _faster(paces: Paces) -> tuple[str, str]:
    """The executor with the better pace, and what was measured."""
    best, other = sorted(paces, key=paces.__getitem__)
    words = {"population": "side by side", "series": "in turn"}
    mine, its = (f"{1000 * paces[name]:.3g} ms" for name in (best, other))
    return best, f"measured: {mine} a step and trial {words[best]}, {its} {words[other]}"


def _known(folder: Path | None) -> dict[str, Paces]:
    """What was measured in a study's folder, if on these devices."""
    file = None if folder is None else folder / CHOICES
    if file is None or not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        return dict(found["seconds"]) if found["devices"] == _devices() else {}
    except (ValueError, KeyError, TypeError):  # a file of another kind: measured anew, and replaced
        return {}


def _devices() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} × {devices[0].device_kind}"


def _middle(contender: Contender) -> Trial:
    return Trial(contender.name, 0, 0, 0, False, contender.middle, 0)
