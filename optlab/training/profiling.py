"""A profile of a few steps of a run."""

from __future__ import annotations

from pathlib import Path

import jax


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
