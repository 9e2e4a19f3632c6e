"""A run folder as one object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optlab.config import load
from optlab.runs._curves import plot_curves
from optlab.runs._listing import checkpoint_folder, saved_steps
from optlab.runs._metrics import as_columns, read_metrics
from optlab.runs._place import run_place
from optlab.runs._summary import read_summary

if TYPE_CHECKING:
    import numpy as np

    from optlab.config import Config


class Run:
    """A run's folder. Nothing is read before it is asked for, and only `params` imports JAX.

    >>> run = Run("runs/digits")
    >>> run.summary["outcome"], run.metrics()["train/loss"][-1]

    Args:
        folder: such as runs/digits; of a run without a config, the folder of its checkpoints will do.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = run_place(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder; name a run's, such as runs/digits")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def config(self) -> Config:
        """The run's config, complete with every default.

        Raises:
            ConfigError: If the folder has no config.json, or it doesn't hold a config.
        """
        return load(self.folder / "config.json")

    def metrics(self) -> dict[str, np.ndarray]:
        """The logged metrics as columns by name, one row a logged step.

        Returns:
            "step" (integers, ascending), "examples" and "epoch" (drawn so far; absent where the data makes its own
            batches), "seconds" (training time so far, over all calls: without compilation, evaluations and checkpoints)
            and every metric (float64); NaN where a step has no value of a metric. Empty if nothing was logged.
        """
        return as_columns(read_metrics(self.folder)) if (self.folder / "metrics.jsonl").exists() else {}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The run's end: outcome, seconds, best evaluation, target, last record; see `SummaryFile`.

        None while the run goes on, and after a kill.
        """
        return read_summary(self.folder)

    @property
    def checkpoints(self) -> list[int]:
        """The steps that are saved, ascending."""
        return saved_steps(checkpoint_folder(self.folder))

    def params(self, step: int | Literal["best"] | None = None, *, collection: str = "params") -> Any:
        """Loads the parameters of a checkpoint: nested dicts of arrays. See `optlab.runs.load_params`.

        Args:
            step: the checkpoint's step; "best": the best one by the target's metric; None: the latest.
            collection: "params", "ema" or "model_state".
        """
        from optlab.runs import load_params

        return load_params(self.folder, step=step, collection=collection)

    def curves(self) -> Path:
        """Draws the metrics as curves.png in the folder, and returns its path."""
        return plot_curves(self.folder)
