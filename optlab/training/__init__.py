"""Training: a workload, a pure step, a loop, checkpoints that it continues from."""

# ruff: noqa: E402
from optlab._extras import need

need("optlab.training", "flax", "orbax", "rich", "matplotlib")

from optlab._measure import Measure
from optlab.runs import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    MetricsFile,
    Observer,
    StateObserver,
    StepLog,
    TensorBoard,
    WeightsAndBiases,
    load_params,
    plot_curves,
    read_metrics,
)
from optlab.training.assembly import Assembly, assemble
from optlab.training.first_steps import UphillError
from optlab.training.guard import GuardError, LossSpikeError, NonFiniteError
from optlab.training.history import History
from optlab.training.loop import train
from optlab.training.losses import accuracy, cross_entropy, squared_error
from optlab.training.parallel import DeviceMemoryError, check_memory, make_mesh, parallelize
from optlab.training.progress import Progress
from optlab.training.state import TrainState, evaluation_params, init_state
from optlab.training.step import StepSettings, make_evaluation, make_step
from optlab.training.strategies import Parallel
from optlab.training.workload import Workload

__all__ = [
    "Assembly",
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "DeviceMemoryError",
    "GuardError",
    "History",
    "LossSpikeError",
    "Measure",
    "MetricsFile",
    "NonFiniteError",
    "Observer",
    "Parallel",
    "Progress",
    "StateObserver",
    "StepLog",
    "StepSettings",
    "TensorBoard",
    "TrainState",
    "UphillError",
    "WeightsAndBiases",
    "Workload",
    "accuracy",
    "assemble",
    "check_memory",
    "cross_entropy",
    "evaluation_params",
    "init_state",
    "load_params",
    "make_evaluation",
    "make_mesh",
    "make_step",
    "parallelize",
    "plot_curves",
    "read_metrics",
    "squared_error",
    "train",
]
