"""The live line: step, loss, metric, learning rate, examples a second, time left; plain lines without a terminal."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from optlab.runs import Record


class _Console(Console):
    """A console whose reader may leave (`optlab train … | head`): the run goes on without a word."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class Progress:
    """An observer that shows a run on the terminal.

    Args:
        batch_size: examples an update, for the examples a second.
        metric: the metric that is shown beside the losses, such as validation/accuracy.
        console: where to write; by default standard output.
    """

    def __init__(self, *, batch_size: int, metric: str | None = None, console: Console | None = None):
        self.batch_size, self.metric = batch_size, metric
        self.console = console or _Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.seen: Record = {}
        self.live: Live | None = None
        self.last: tuple[float, float] | None = None  # step and time of the record before
        self.all, self.training = (0.0, 0.0), (0.0, 0.0)  # (steps, seconds); training's without evaluations

    def begin(self, start: int, steps: int) -> None:
        self.start, self.steps, self.clock = start, steps, time.monotonic()
        if start == steps:  # the run is over already
            return
        if start:
            self.console.print(f"continuing after step {start}")
        if self.console.is_terminal:
            self.live = Live(Text("compiling …"), console=self.console, refresh_per_second=8, transient=True)
            self.live.start()

    def record(self, record: Record) -> None:
        self.seen |= record
        now = time.monotonic()
        is_evaluated = any(name.startswith("validation/") for name in record)
        if self.last is not None:  # the first record's time holds the compilation
            steps, seconds = record["step"] - self.last[0], now - self.last[1]
            self.all = (self.all[0] + steps, self.all[1] + seconds)
            if not is_evaluated:
                self.training = (self.training[0] + steps, self.training[1] + seconds)
        self.last = (record["step"], now)
        line = self._line(record["step"])
        if self.live is not None:
            if is_evaluated:
                self.console.print(line)  # above the live line, where it stays
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif is_evaluated or now - self.clock > 10:
            self.clock = now
            self.console.print(line)

    def end(self, outcome: str) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self, step: float) -> str:
        """As much as a terminal's width has room for: what comes last is left out first."""
        parts = [f"step {step:>{len(str(self.steps))}.0f}/{self.steps}"]
        shown = ["train/loss", "validation/loss", *([self.metric] if self.metric else []), "learning_rate"]
        parts += [
            f"{name.replace('learning_rate', 'lr')} {self.seen[name]:.4g}"
            for name in dict.fromkeys(shown)
            if name in self.seen
        ]
        if self.all[1] > 0:
            parts.append(f"{_clock((self.steps - step) * self.all[1] / self.all[0])} left")
            steps, seconds = self.training if self.training[1] > 0 else self.all
            parts.append(f"{steps / seconds * self.batch_size:,.0f} examples/s")
        if self.live is not None:
            while len(parts) > 1 and len("  ".join(parts)) > self.console.width:
                parts.pop()
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
