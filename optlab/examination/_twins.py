"""Twins of a run: the same for a tenth of its steps, but for one thing each. Three of them are one program."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.data import Batch, as_batches, evaluation_batches
from optlab.diagnosis._rules_of_twins import Twins
from optlab.examination._patient import JUDGED, Patient
from optlab.training import StepSettings, TrainState, assemble, evaluation_params, make_evaluation, make_step

FACTORS = (1.0, 0.5, 2.0)  # of the learning rate
SHARE = 10  # of the run's steps
LATE = 0.8  # of the run: from there on its schedule has little left, and twins start anew


def raise_twins(patient: Patient, steps: int) -> Twins:
    """Trains the twins of a run.

    They go on from its latest checkpoint, or start anew where that is near the end, isn't finite, or isn't there. The
    learning rate is multiplied behind the optimizer, whose update is proportional to it.

    Args:
        patient: the run.
        steps: the run's.
    """
    count, workload = max(10, math.ceil(steps / SHARE)), patient.workload
    is_usable = 0 < int(patient.latest.step) < LATE * steps and _is_finite(patient.latest.params)
    start = patient.latest if is_usable else patient.first
    at = int(start.step)
    feed = patient.batches

    def stepped(state: TrainState, factor: Any, batch: Batch) -> TrainState:
        tx = optax.chain(patient.tx, optax.scale(factor))
        wrapped = dataclasses.replace(state, opt_state=(state.opt_state, optax.ScaleState()), ema=None, losses=None)
        new = make_step(workload.loss, tx, guard=None)(wrapped, batch)[0]
        return dataclasses.replace(new, opt_state=new.opt_state[0])

    judged = _judge(patient)
    bare = dataclasses.replace(start, ema=None, losses=None)
    together = jax.jit(jax.vmap(stepped, in_axes=(0, 0, None)))
    alone = jax.jit(stepped)
    other_seed = (patient.seed + 1) % 2**32
    other = assemble(workload, patient.tx, StepSettings(guard=None), seed=other_seed).place_state()
    if is_usable:  # another order of the data, and other dropout
        other = dataclasses.replace(bare, key=other.key)
    other_feed = as_batches(workload.data.train, workload.batch_size, other_seed, workload.draw)
    before, seed_before = judged(bare), judged(other)
    three, large = jax.tree.map(lambda x: jnp.stack([x] * len(FACTORS)), bare), bare
    with patient.assembly.layout():
        for t in range(at, at + count):
            three = together(three, jnp.asarray(FACTORS), feed.batch(t))
            other = alone(other, 1.0, other_feed.batch(t))
            large = alone(large, 1.0, _joined(feed.batch(at + 2 * (t - at)), feed.batch(at + 2 * (t - at) + 1)))
    same, half, double = (judged(jax.tree.map(lambda x, i=i: x[i], three)) for i in range(len(FACTORS)))
    return Twins(at, count, before, same, half, double, judged(other), judged(large), seed_before)


def _judge(patient: Patient) -> Any:
    """The mean loss of a state on held-out examples, or without such on training examples."""
    data, evaluate = patient.workload.data, jax.jit(make_evaluation(patient.workload.loss))
    held_out = data.validation
    if held_out is not None and len(held_out):
        size = min(len(held_out), JUDGED)
        batch = next(evaluation_batches(held_out, size))
    else:
        batch = patient.batches.batch(0)

    def judged(state: TrainState) -> float:
        total, weight = evaluate(evaluation_params(state), state.model_state, batch, state.key)["loss"]
        return float(total) / float(weight) if float(weight) else math.nan

    return judged


def _joined(a: Batch, b: Batch) -> Batch:
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)


def _is_finite(params: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(params))
