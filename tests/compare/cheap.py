"""What the comparison's tests share: a workload of milliseconds, and an executor that trains nothing."""

import math
from typing import ClassVar

import numpy as np

from optlab.compare import log_uniform
from optlab.compare.points import seed_of
from optlab.compare.trials import Result
from optlab.config import Target
from optlab.data import arrays
from optlab.models import mlp
from optlab.training import Workload, accuracy

RATES = {"learning_rate": log_uniform(1e-4, 1e-1)}


def tiny(target=None, **settings):
    """64 training examples in the plane, a network of four neurons."""
    inputs = np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
    labels = (inputs.sum(axis=1) > 0).astype(np.int32)
    settings = {"batch_size": 16, "metrics": {"accuracy": accuracy}, **settings}
    data = arrays(inputs, labels, validation=1 / 6, test=1 / 6)
    return Workload.from_model(mlp(2, widths=[4]), data, target=target or Target(), **settings)


class Pretended:
    """An executor: the loss is a basin around 10^-2.5 and a little noise of the seed; `trained` is what was asked."""

    trained: ClassVar[list] = []
    stop_after = math.inf
    width = 4

    def __init__(self, workload, contender, evaluate_every, expected):
        self.contender = contender

    def has_loop(self, trial):
        return True

    def laps(self, trial, steps, *, is_evaluated=False):
        return lambda: 0.05 * steps

    def __call__(self, trials):
        for trial in trials:
            if len(Pretended.trained) >= Pretended.stop_after:
                raise KeyboardInterrupt
            Pretended.trained.append(trial.id)
            yield [pretended(trial)]


def pretended(trial, shift=0.0):
    rate = trial.values.get("learning_rate", 10**-2.5)
    noise = seed_of(trial.seed) / 2**31 - 0.5
    loss = 0.1 + (math.log10(rate) + 2.5) ** 2 + 0.02 * noise + shift
    curve = {"step": [5, 10], "train/loss": [1.0, loss], "validation/loss": [1.0, loss]}
    return Result(trial, curve, {"test/loss": loss + 0.01} if trial.is_final else {}, seconds=0.5, pace=0.05)


def played(study, shifts=None, change=lambda result: result):
    """Results of the pretended basin, by contender shifted."""
    found = {}
    for t in study.all_trials(found):
        found[t.id] = change(pretended(t, (shifts or {}).get(t.contender, 0.0)))
    return found
