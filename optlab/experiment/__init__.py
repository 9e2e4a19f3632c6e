"""Names become objects: a config's components are found, checked and built into an experiment.

>>> from optlab.experiment import build
>>> experiment = build(optlab.config.load("configs/digits.py"))
>>> history = optlab.training.train(experiment.workload, experiment.tx, steps=experiment.config.steps)
"""

from optlab.experiment._build import Experiment, build
from optlab.experiment._components import explain_keys, filled, find, names_of_kind, resolve
from optlab.experiment._kinds import kind_of_change
from optlab.experiment._load import LoadedRun, load_run
from optlab.experiment._rates import clipping_of, optimizer_with, rates_of, schedule_of

__all__ = [
    "Experiment",
    "LoadedRun",
    "build",
    "clipping_of",
    "explain_keys",
    "filled",
    "find",
    "kind_of_change",
    "load_run",
    "names_of_kind",
    "optimizer_with",
    "rates_of",
    "resolve",
    "schedule_of",
]
