"""What the process around a run asks of it: signals that end it, a profiler's trace of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def catch_signals(*, listen: bool) -> Iterator[list[str]]:
    """The names of the signals that asked for an end. From the third on they end the process as they always do."""
    caught: list[str] = []
    if not listen or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        if len(caught) > 2:
            raise KeyboardInterrupt

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for s, old in before.items():
            signal.signal(s, old)


class Trace:
    """A profiler's trace of ten steps, from the fifth on, when everything is compiled."""

    def __init__(self, folder: str | Path | None, start: int, steps: int):
        self.folder, self.first = folder, min(start + 5, steps)
        self.running = False

    def at(self, t: int) -> None:
        if self.folder is not None and t == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif t == self.first + 10:
            self.close()

    def close(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
