"""What the process around a run asks of it: signals that end it, a profiler's trace of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

# JAX's preemption service waits for the number of one of the next calls, so that they are counted over all runs.
_calls = itertools.count(1)


@contextlib.contextmanager
def catch_signals(*, listen: bool) -> Iterator[Callable[[], str | None]]:
    """A function to be asked after every step: the name of the signal that asked for an end, if one did.

    From the third on signals end the process as they always do. Of several processes all are told the same at the same
    step: JAX's preemption service, which handles SIGTERM, agrees on one for them.
    """
    caught: list[str] = []
    is_alone = jax.process_count() == 1

    def asked() -> str | None:
        if is_alone:
            return caught[0] if caught else None
        is_agreed = multihost_utils.reached_preemption_sync_point(next(_calls))
        return (caught or ["SIGTERM"])[0] if is_agreed else None

    def handler(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        if len(caught) > 2:
            raise KeyboardInterrupt
        if not is_alone:
            os.kill(os.getpid(), signal.SIGTERM)

    if not listen or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    mine = (signal.SIGINT, signal.SIGUSR1, *([signal.SIGTERM] if is_alone else []))
    before = {s: signal.signal(s, handler) for s in mine}
    try:
        yield asked
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
