"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases, each an observer of the loop."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from optlab._extras import need

Record = dict[str, float]


class Observer(Protocol):
    """What the loop tells of a run. Yours may do anything; it is called from the loop's thread."""

    def begin(self, start: int, steps: int) -> None:
        """Called once before the first step: `start` updates were made earlier, the run ends after `steps`."""

    def record(self, record: Record) -> None:
        """Called with {"step": …, "train/loss": …, …}, steps ascending, each once."""

    def end(self, outcome: str) -> None:
        """Called once at the end, also after an error: "finished", "interrupted", …, or the error's name."""


class StepLog:
    """A file of JSON lines, each with its "step"; any thread may add one.

    A continued run first drops the lines after the step that it continues from: they are computed again.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()

    def begin(self, start: int) -> None:
        kept = [entry for entry in read_metrics(self.path) if entry["step"] <= start] if self.path.exists() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text("".join(_line(entry) for entry in kept))
        os.replace(part, self.path)
        self._file = self.path.open("a")

    def add(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.write(_line(entry))
            self._file.flush()

    def end(self) -> None:
        self._file.close()


class MetricsFile:
    """metrics.jsonl: one line a logged step, unique by step; see `StepLog`."""

    def __init__(self, path: str | Path):
        self._log = StepLog(path)

    def begin(self, start: int, steps: int) -> None:
        self._log.begin(start)

    def record(self, record: Record) -> None:
        self._log.add(record)

    def end(self, outcome: str) -> None:
        self._log.end()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def read_metrics(path: str | Path) -> list[Record]:
    """The records of a metrics.jsonl, or of the run folder that holds one. A line cut off by a kill ends the list."""
    path = Path(path)
    records: list[Record] = []
    for line in (path / "metrics.jsonl" if path.is_dir() else path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class TensorBoard:
    """Event files beside metrics.jsonl. A continued run purges what was logged after the step it continues from."""

    def __init__(self, folder: str | Path):
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
    """The same numbers in a project of Weights & Biases; a continued run goes on in the same one.

    Args:
      project: the project's name.
      folder: the run's folder: its name is the run's, its path the run's identity.
      config: what is shown as the run's config.
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
