"""A run's model, restored from its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optlab.config import Config, MeshShape
from optlab.experiment._build import build, build_model
from optlab.runs import Run
from optlab.runs._folder import load_anchored, places

if TYPE_CHECKING:
    from optlab.training import TrainState, Workload


@dataclass(frozen=True)
class LoadedRun:
    """A run, restored from a checkpoint on the first device.

    Attributes:
        config: the run's config, on one device.
        model: a Linen module, or a function `rngs -> nnx.Module`, as the config's model factory returns it.
        workload: the run's data, loss, metrics and target.
        state: the saved state.
        params: the parameters that evaluations use (the moving average's, if there is one), in the model's form.
        predict: compiled function that maps inputs, as the data's batches hold them, to the model's outputs.
    """

    config: Config
    model: Any
    workload: Workload
    state: TrainState
    params: Any
    predict: Callable[[Any], Any]


def load_run(folder: str | Path, *, step: int | Literal["best"] | None = None) -> LoadedRun:
    """Loads a run of `optlab train`: its model, its parameters and a function that predicts.

    It loads the data set too, which fixes the model's shapes.

    >>> run = optlab.load_run("runs/digits", step="best")
    >>> logits = run.predict(images)

    Args:
        folder: the run's folder.
        step: the checkpoint's step; "best" for the best one by the target's metric; None for the latest.

    Raises:
        FileNotFoundError: if there is no such folder.
        ConfigError: if it has no config.json, or its config can't be built here.
        CheckpointError: if there is no such checkpoint, or it is of another model.
    """
    import jax

    from optlab.training import Checkpoints, assemble, evaluation_params
    from optlab.training.workload import as_functions

    file = Run(folder).folder / "config.json"
    sys.path += [place for place in places(file) if place not in sys.path]  # for functions that the config names
    config = replace(load_anchored(file), strategy="single", mesh=MeshShape(), accumulate=1)
    experiment = build(config)
    workload = experiment.workload
    model = build_model(experiment.config, workload.data)
    like = assemble(workload, experiment.tx, experiment.settings).shapes()
    checkpoints = Checkpoints.of(folder)
    state = checkpoints.restore(like, checkpoints.find(step), optional=("losses", "ema"))
    params, (_, apply) = evaluation_params(state), as_functions(model, workload.data)
    outputs = jax.jit(lambda params, inputs: apply(params, state.model_state, inputs, state.key, False)[0])
    return LoadedRun(experiment.config, model, workload, state, params, lambda inputs: outputs(params, inputs))
