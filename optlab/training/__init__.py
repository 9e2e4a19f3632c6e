"""Training: a workload, a pure step, a loop, checkpoints that it continues from."""

# ruff: noqa: E402
from optlab._extras import need

need("optlab.training", "flax", "orbax", "rich", "matplotlib")

from optlab.runs import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    MetricsFile,
    Observer,
    StepLog,
    TensorBoard,
    WeightsAndBiases,
    load_params,
    plot_curves,
    read_metrics,
)
from optlab.training.guard import GuardError, LossSpikeError, NonFiniteError
from optlab.training.loop import History, train
from optlab.training.losses import accuracy, cross_entropy, squared_error
from optlab.training.measures import Measure
from optlab.training.parallel import DeviceMemoryError, Parallel, check_memory, make_mesh, parallelize
from optlab.training.progress import Progress
from optlab.training.state import TrainState, evaluation_params, init_state
from optlab.training.step import make_evaluation, make_step
from optlab.training.workload import Workload

__all__ = [
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
    "StepLog",
    "TensorBoard",
    "TrainState",
    "WeightsAndBiases",
    "Workload",
    "accuracy",
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
