"""Observers that keep a run's numbers: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optlab._extras import need

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, float]
# How far the run was, in every record; what else a record holds was measured. "seconds" is the training time so far,
# over all calls: compilation, evaluations and checkpoints aren't counted, waiting for data is.
COUNTS = ("step", "examples", "epoch", "seconds")


class Observer(Protocol):
    """An object that the loop calls from its own thread. It may do anything."""

    def begin(self, start: int, steps: int) -> None:
        """Called once before the first step: `start` updates were made earlier, the run ends after `steps`."""

    def record(self, record: Record) -> None:
        """Called with {"step": …, "train/loss": …, …}, steps ascending, each once."""

    def end(self, outcome: str) -> None:
        """Called once at the end, also after an error: "finished", "interrupted by SIGTERM", …, or the error's name."""


class StateObserver(Observer, Protocol):
    """An observer that also sees the state, at every step that is evaluated."""

    def evaluated(self, record: Record, state: Any) -> None:
        """Called after `record` with the evaluated record and the `TrainState` that it is about.

        The next step takes the state's arrays over: copy what is to stay.
        """


class StepLog:
    """A file of JSON lines, each with its "step". Any thread may add a line.

    A continued run first drops the lines after the step that it continues from: they are computed again.

    Args:
        path: the file.
        is_ascending: whether every line is of a later step than the ones before it.

    Attributes:
        lines: how many lines the file holds, from `begin` on.
    """

    def __init__(self, path: str | Path, *, is_ascending: bool = False):
        self.path, self.is_ascending = Path(path), is_ascending
        self.lines = 0
        self._lock = threading.Lock()

    def begin(self, start: int) -> None:
        """Opens the file, without the lines after `start`.

        Damaged lines are kept in a copy of the file, and so are all lines if the run starts from 0; stderr reports it.
        """
        entries, damaged = _read(self.path, self.is_ascending) if self.path.exists() else ([], {})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lost = [_damage(self.path, damaged)] if damaged else []
        if entries and not start:
            lost.append(
                f"no checkpoint to continue from: {self.path} starts again from step 0, without its {len(entries)} "
                f"lines up to step {max(entry['step'] for entry in entries)}"
            )
        if lost:
            aside = self.path.with_name(f"{'damaged' if damaged else 'earlier'}-{time.time_ns()}-{self.path.name}")
            shutil.copyfile(self.path, aside)
            print(f"optlab: {'; '.join(lost)}; {aside.name} is a copy with them", file=sys.stderr)
        kept = [entry for entry in entries if entry["step"] <= start]
        self.lines = len(kept)
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            file.writelines(_line(entry) for entry in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)  # a kill leaves the old file or the new one
        self._file = self.path.open("a")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes a line.

        Raises:
            FileNotFoundError: If the file was deleted or replaced.
        """
        with self._lock:
            self._file.write(_line(entry))
            self._file.flush()
            self.lines += 1
            if not self._is_in_place():
                raise FileNotFoundError(f"{self.path} was deleted or replaced while the run wrote to it")

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Returns once every line so far would survive a crash of the machine, not only of the process."""
        os.fsync(self._file.fileno())

    def end(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricsFile:
    """metrics.jsonl: one line a logged step, unique by step; see `StepLog`."""

    def __init__(self, path: str | Path):
        self.log = StepLog(path, is_ascending=True)

    def begin(self, start: int, steps: int) -> None:
        if start and not self.log.path.exists():
            print(f"optlab: {self.log.path} isn't there; it begins after step {start}", file=sys.stderr)
        self.log.begin(start)

    def record(self, record: Record) -> None:
        self.log.add(record)

    def end(self, outcome: str) -> None:
        self.log.end()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def read_metrics(path: str | Path) -> list[Record]:
    """Reads the records of a metrics.jsonl, or of the run folder that holds one. A cut last line is left out.

    Warns:
        UserWarning: For other lines that can't be read, or that aren't of a later step than those before. They are left
            out, too.
    """
    path = Path(path)
    file = path / "metrics.jsonl" if path.is_dir() else path
    records, damaged = _read(file, is_ascending=True)
    if damaged:
        warnings.warn(_damage(file, damaged), stacklevel=2)
    return records


def without_seconds(records: Sequence[Record]) -> list[Record]:
    """The records without the one number that isn't a function of the run's settings: what two runs are compared by."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def as_columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Records as columns by name, one row a record; see `Run.metrics`."""
    import numpy as np

    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: np.array([record.get(name, np.nan) for record in records], np.float64) for name in names}
    return columns if not records else {**columns, "step": columns["step"].astype(np.int64)}


def _read(path: Path, is_ascending: bool) -> tuple[list[Any], dict[str, list[int]]]:
    """(entries, numbers of the damaged lines by their fault); a last line that a kill cut off is no damage."""
    entries: list[Any] = []
    damaged: dict[str, list[int]] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            is_whole = type(entry["step"]) is int
        except (ValueError, TypeError, KeyError):
            is_whole = False
        if is_whole and is_ascending and entries and entry["step"] <= entries[-1]["step"]:
            damaged.setdefault("isn't of a later step than those before", []).append(number)
        elif is_whole:
            entries.append(entry)
        elif number < len(lines) or not line.startswith(b"{") or b"\0" in line:
            damaged.setdefault("can't be read", []).append(number)
    return entries, damaged


def _damage(path: Path, damaged: Mapping[str, list[int]]) -> str:
    """A message that names up to ten lines of each fault."""
    return f"{path}: {'; '.join(f'what was line {_named(numbers)} {fault}' for fault, numbers in damaged.items())}"


def _named(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return ", ".join(map(str, numbers[:10])) + more


class TensorBoard:
    """Event files beside metrics.jsonl. A continued run purges the events after the step that it continues from."""

    def __init__(self, folder: str | Path):
        need("log.tensorboard", "tensorboardX")
        self.folder = Path(folder)

    def begin(self, start: int, steps: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=start + 1 if start else None, flush_secs=10)

    def record(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def end(self, outcome: str) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Logs to a project of Weights & Biases. A continued run goes on in the same run there.

    Args:
        project: the project's name.
        folder: the run's folder: its name names the run, its path identifies it.
        config: shown as the run's config.
    """

    def __init__(self, project: str, *, folder: str | Path, config: Mapping[str, Any]):
        need("log.wandb", "wandb", extra="wandb")
        self.project, self.folder, self.config = project, Path(folder).absolute(), dict(config)

    def begin(self, start: int, steps: int) -> None:
        import wandb

        identity = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=self.project,
            name=self.folder.name,
            id=identity,
            config=self.config,
            dir=self.folder,
            resume="allow",
        )

    def record(self, record: Record) -> None:
        self._run.log({k: v for k, v in record.items() if k != "step"}, step=int(record["step"]))

    def end(self, outcome: str) -> None:
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
