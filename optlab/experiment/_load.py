"""A run's model, restored from its folder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optlab.config import Config, ConfigError, MeshShape
from optlab.experiment._build import Experiment, build, build_model
from optlab.runs import Run
from optlab.runs._folder import load_anchored, places
from optlab.runs._place import run_place

if TYPE_CHECKING:
    import optax

    from optlab.training import TrainState, Workload


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run, restored from a checkpoint on the first device; `print` shows it in a few lines.

    Attributes:
        config: the run's config, on one device; None for a run that Python's `train` made.
        model: a Linen module, or a function `rngs -> nnx.Module`, as the config's model factory returns it; None
            likewise.
        workload: the run's data, loss, metrics and target.
        state: the saved state.
        params: the parameters that evaluations use (the moving average's, if there is one), in the model's form.
        predict: compiled function that maps inputs, as the data's batches hold them, to the model's outputs; None for a
            workload that is made of two functions.
    """

    config: Config | None
    model: Any
    workload: Workload
    state: TrainState
    params: Any
    predict: Callable[[Any], Any] | None

    def __repr__(self) -> str:
        import jax

        leaves = jax.tree.leaves(self.params)
        count = sum(leaf.size for leaf in leaves)
        model = self.config.model.name if self.config else "of Python's train"
        return (
            f"a run, restored from step {int(self.state.step)}\n"
            f"  model       {model}, {count:,} numbers in {len(leaves)} parameters\n"
            "  holds       config, model, workload, state, params, predict"
        )


def load_run(
    folder: str | Path,
    *,
    workload: Workload | None = None,
    tx: optax.GradientTransformation | None = None,
    step: int | Literal["best"] | None = None,
) -> LoadedRun:
    """Loads a run: its model, its parameters and a function that predicts.

    A run of a config needs its folder alone; it loads the data set too, which fixes the model's shapes.

    >>> run = optlab.load_run("runs/digits", step="best")
    >>> logits = run.predict(images)

    Args:
        folder: the run's folder.
        workload: what was trained; for a run that Python's `train` made, and only for such a run.
        tx: the optimizer, likewise.
        step: the checkpoint's step; "best" for the best one by the target's metric; None for the latest.

    Raises:
        FileNotFoundError: if there is no such folder.
        ConfigError: if it is the checkpoints' folder of a run, has no config.json, or its config can't be built here.
        TypeError: if only one of workload and tx is given.
        CheckpointError: if there is no such checkpoint, or it is of another model.
    """
    if (workload is None) != (tx is None):
        raise TypeError("workload and tx are given together, for a run that Python's train made")
    if workload is not None and tx is not None:
        return _restored(Run(folder).folder, None, None, workload, tx, step)
    _refuse_part(run_place(folder))
    experiment = rebuilt(folder)
    model = build_model(experiment.config, experiment.workload.data)
    return _restored(Path(folder), experiment.config, model, experiment.workload, experiment.tx, step)


def rebuilt(folder: str | Path) -> Experiment:
    """Builds what a run's config describes, on one device.

    Raises:
        ConfigError: if there is no config.json, or it can't be built here.
    """
    file = Run(folder).folder / "config.json"
    sys.path += [place for place in places(file) if place not in sys.path]  # for functions that the config names
    return build(replace(load_anchored(file), strategy="single", mesh=MeshShape(), accumulate=1))


def _refuse_part(folder: Path) -> None:
    """Refuses a run's folder of checkpoints, and one checkpoint in it, where the run itself is meant."""
    for run in folder.parents[:2]:
        if folder.relative_to(run).parts[0] == "checkpoints" and (run / "config.json").is_file():
            raise ConfigError(f"{folder} is a part of a run, and the run's folder is meant: say {run}")


def _restored(
    folder: Path,
    config: Config | None,
    model: Any,
    workload: Workload,
    tx: optax.GradientTransformation,
    step: int | Literal["best"] | None,
) -> LoadedRun:
    import jax

    from optlab.training import Checkpoints, StepSettings, assemble, evaluation_params

    checkpoints = Checkpoints.of(folder)
    found = checkpoints.find(step)
    has_average = any(leaf["path"][0] == "ema" for leaf in checkpoints.contents(found))
    like = assemble(workload, tx, StepSettings(ema=0.0 if has_average else None)).shapes()
    state = checkpoints.restore(like, found)
    params, apply = evaluation_params(state), workload.apply
    if apply is None:
        return LoadedRun(config, model, workload, state, params, None)
    outputs = jax.jit(lambda params, inputs: apply(params, state.model_state, inputs, state.key, False)[0])
    return LoadedRun(config, model, workload, state, params, _predictor(functools.partial(outputs, params), workload))


def _predictor(outputs: Callable[[Any], Any], workload: Workload) -> Callable[[Any], Any]:
    """Names the data's shape where inputs of another one fail: a model may also take them, such as a shorter text."""

    def predict(inputs: Any) -> Any:
        try:
            return outputs(inputs)
        except Exception as error:
            own = workload.example()["inputs"]
            found, shape = getattr(inputs, "shape", None), getattr(own, "shape", None)
            if found is None or shape is None or found[1:] == shape[1:]:
                raise
            wanted = ", ".join(("B", *map(str, shape[1:])))
            raise ValueError(f"the model can't take inputs of shape {found}; the run's data has ({wanted})") from error

    return predict
