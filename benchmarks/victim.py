"""The run that `faults.py` does things to: a small one, in a process of its own that tells what it is doing.

The process is forked from one that has imported JAX and touched no device, so that a life costs its steps and little
more. It writes a line, a mark, into a pipe when it enters or leaves what may be hit: a save, its commit, the removal of
older steps, a line of metrics.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import matplotlib.pyplot  # noqa: F401 - imported once, before the fork
import numpy as np
import optax
import sklearn.datasets  # noqa: F401
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

from optlab.data import arrays
from optlab.models import mlp
from optlab.runs import _storage as storage
from optlab.training import Checkpoints, MetricsFile, StepLog, Workload, make_mesh, train

STEPS, EVERY, DEVICES = 60, 5, 8
CACHE = tempfile.mkdtemp(prefix="optlab-faults-cache-")  # programs compiled once serve all lives
LONGEST = 120.0  # seconds of a life


@dataclass(frozen=True)
class Blow:
    """A signal, sent a while after the n-th time that a mark was seen; `hold` has the process sleep so long there."""

    number: int = signal.SIGKILL
    mark: str = "start"
    count: int = 1
    delay: float = 0.0
    hold: float = 0.0


@dataclass(frozen=True)
class Life:
    """What was seen of a process. `code` is its exit code, or minus the number of the signal that ended it."""

    code: int
    marks: tuple[str, ...]
    text: str

    @property
    def start(self) -> int | None:
        """The step that it went on from."""
        return next((int(m.split()[1]) for m in self.marks if m.startswith("start ")), None)

    @property
    def end(self) -> dict[str, Any]:
        """What it said last, if it came to an end of its own."""
        return next((json.loads(m[4:]) for m in self.marks if m.startswith("end ")), {})

    @property
    def inside(self) -> set[str]:
        """What it was in the middle of."""
        words = [m.split()[0] for m in self.marks]
        return {w for w in ("save", "commit", "check", "removal", "line") if words.count(w) > words.count(f"/{w}")}


class Process:
    """A forked process that runs a function."""

    def __init__(self, run: Callable[[], Any], blows: Sequence[Blow] = ()):
        self.blows, self.marks, self.due = list(blows), [], []
        reading, writing = os.pipe()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(reading)
                os.setpgid(0, 0)
                os.dup2(self.output.fileno(), 1)
                os.dup2(self.output.fileno(), 2)
                _prepare(writing, self.blows)
                code = run() or 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        self.pipe = reading

    def wait_for(self, mark: str) -> None:
        """Returns once the mark was seen, or the process has ended."""
        while not any(m.split()[0] == mark for m in self.marks) and self._look():
            pass

    def wait(self) -> Life:
        """Deals the blows, and waits for the end."""
        until = time.monotonic() + LONGEST
        while self._look():
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                raise RuntimeError(f"a life hung; its last marks: {self.marks[-5:]}\n{self._text()}")
        os.close(self.pipe)
        status = os.waitpid(self.pid, 0)[1]
        return Life(os.waitstatus_to_exitcode(status), tuple(self.marks), self._text())

    def _look(self) -> bool:
        """Takes the marks that are there; False once the process has closed the pipe."""
        now = time.monotonic()
        for item in [x for x in self.due if x[0] <= now]:
            self.due.remove(item)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, item[1])
        wait = min([x[0] - now for x in self.due], default=1.0)
        if not select.select([self.pipe], [], [], max(0.0, wait))[0]:
            return True
        if not (data := os.read(self.pipe, 1 << 16)):
            return False
        for mark in data.decode().splitlines():  # a write of one mark is never divided
            self.marks.append(mark)
            for blow in self.blows:
                word = mark.split()[0]
                if word == blow.mark and sum(m.split()[0] == word for m in self.marks) == blow.count:
                    self.due.append((time.monotonic() + blow.delay, blow.number))
        return True

    def _text(self) -> str:
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


def live(run: Callable[[], Any], *blows: Blow) -> Life:
    """One life of a process."""
    return Process(run, blows).wait()


# Inside the process.

_pipe = -1
_blows: list[Blow] = []
_seen: collections.Counter[str] = collections.Counter()


def mark(text: str) -> None:
    os.write(_pipe, f"{text}\n".encode())
    _seen[word := text.split()[0]] += 1
    for blow in _blows:
        if (word, _seen[word]) == (blow.mark, blow.count):
            time.sleep(blow.hold)


@contextlib.contextmanager
def _inside(word: str) -> Iterator[None]:
    mark(word)
    yield
    mark(f"/{word}")


def _prepare(pipe: int, blows: Sequence[Blow]) -> None:
    """Settings of this process, and marks where it may be hit."""
    global _pipe
    _pipe = pipe
    _blows[:] = blows
    jax.config.update("jax_compilation_cache_dir", CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    save_async, finalize, rmtree = ocp.save_async, AtomicRenameTemporaryPath.finalize, shutil.rmtree
    verify, begin = storage.verify_share, StepLog.begin

    def saving(*arguments: Any, **settings: Any) -> Any:
        mark("save")
        return save_async(*arguments, **settings)

    async def finalizing(*arguments: Any, **settings: Any) -> Any:
        with _inside("commit"):
            result = await finalize(*arguments, **settings)
        mark("/save")
        return result

    def removing(*arguments: Any, **settings: Any) -> Any:
        with _inside("removal"):
            return rmtree(*arguments, **settings)

    def verifying(*arguments: Any) -> None:
        with _inside("check"):
            verify(*arguments)

    def beginning(self: StepLog, start: int) -> None:
        begin(self, start)
        self._file = Halves(self._file)

    ocp.save_async, AtomicRenameTemporaryPath.finalize, shutil.rmtree = saving, finalizing, removing
    storage.verify_share, StepLog.begin = verifying, beginning


class Halves:
    """A file whose lines are written in two halves: a kill may come between."""

    def __init__(self, file: IO[str]):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, line: str) -> int:
        self.file.write(line[: len(line) // 2])
        self.file.flush()
        with _inside("line"):
            return self.file.write(line[len(line) // 2 :])


class Told:
    """An observer that marks the beginning and every step."""

    def begin(self, start: int, steps: int) -> None:
        mark(f"start {start}")

    def record(self, record: dict[str, float]) -> None:
        mark(f"step {record['step']}")

    def end(self, outcome: str) -> None:
        mark(f"over {outcome}")


class Slow:
    """A split whose batches take a while, and which does something at a step of one's choice."""

    def __init__(self, split: Any, *, seconds: float = 0.0, at: int | None = None, do: Callable[[Any], Any] = id):
        self.split, self.seconds, self.at, self.do, self.calls = split, seconds, at, do, 0

    def __len__(self) -> int:
        return len(self.split)

    def take(self, indices: np.ndarray, *rest: Any) -> Any:
        batch = self.split.take(indices, *rest)
        if rest:
            self.calls += 1
            time.sleep(self.seconds)
            if self.calls == self.at:
                return self.do(batch) or batch
        return batch


def small(
    folder: Path,
    *,
    strategy: str = "single",
    devices: int = DEVICES,
    steps: int = STEPS,
    widths: Sequence[int] = (8,),
    tx: optax.GradientTransformation | None = None,
    wrap: Callable[[Any], Any] = lambda split: split,
    batch_size: int = 16,
    every: int = EVERY,
    **settings: Any,
) -> int:
    """Trains, tells how it ended, and gives the exit code."""
    jax.config.update("jax_num_cpu_devices", devices)
    rng = np.random.default_rng(0)
    data = arrays(rng.normal(size=(100, 6)), rng.integers(0, 3, 100))
    data = type(data)(**{**vars(data), "train": wrap(data.train)})
    history = train(
        Workload.from_model(mlp(outputs=3, widths=widths), data, batch_size=batch_size),
        optax.adam(0.01) if tx is None else tx,
        steps=steps,
        strategy=strategy,
        mesh=None if strategy == "single" else make_mesh(),
        ema=0.9,
        log_every=1,
        evaluate_every=20,
        checkpoints=Checkpoints(folder / "checkpoints", every=every),
        observers=[Told(), MetricsFile(folder / "metrics.jsonl")],
        skip_log=StepLog(folder / "skipped.jsonl"),
        **settings,
    )
    step = int(history.state.step)
    mark("end " + json.dumps({"outcome": history.outcome, "step": step, "print": print_of(folder, step)}))
    return 0


def print_of(folder: Path, step: int) -> str:
    """A hash of the fingerprints of what was saved at a step."""
    return hashlib.sha256(json.dumps(Checkpoints(folder / "checkpoints").contents(step)).encode()).hexdigest()[:16]


def command(folder: Path, *words: str) -> int:
    """`optlab …` in a folder."""
    from optlab.commands import main

    os.chdir(folder)
    return main(words)
