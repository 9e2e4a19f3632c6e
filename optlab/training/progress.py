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
        about: printed before the first step.
        console: where to write; by default standard output.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        metric: str | None = None,
        about: str | None = None,
        console: Console | None = None,
    ):
        self.batch_size, self.metric, self.about = batch_size, metric, about
        self.console = console or _Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.seen: Record = {}
        self.live: Live | None = None
        self.first: tuple[float, float, float] | None = None  # step, time and training seconds of the first record

    def begin(self, start: int, steps: int) -> None:
        self.start, self.steps, self.clock = start, steps, time.monotonic()
        if start == steps:  # the run is over already
            return
        if self.about:
            self.console.print(self.about)
        if start:
            self.console.print(f"continuing after step {start}")
        if self.console.is_terminal:
            self.live = Live(Text("compiling …"), console=self.console, refresh_per_second=8, transient=True)
            self.live.start()

    def record(self, record: Record) -> None:
        self.seen |= record
        now = time.monotonic()
        is_evaluated = any(name.startswith("validation/") for name in record)
        here = (record["step"], now, record["seconds"])
        if self.first is None:  # what was before it holds the compilation
            self.first = here
        line = self._line(*(b - a for a, b in zip(self.first, here, strict=True)))
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

    def _line(self, steps: float, seconds: float, training: float) -> str:
        """As much as a terminal's width has room for: what comes last is left out first.

        Args:
            steps: since the first record,
            seconds: and the time that they took,
            training: and without evaluations and checkpoints.
        """
        step = self.seen["step"]
        parts = [f"step {step:>{len(str(self.steps))}.0f}/{self.steps}"]
        values = {n: f"{n.replace('learning_rate', 'lr')} {v:.4g}" for n, v in self.seen.items()}
        parts += [values.pop(n) for n in ("train/loss", self.metric) if n in values]
        if steps and training > 0:
            parts.append(f"{_clock((self.steps - step) * seconds / steps)} left")
            parts.append(f"{steps / training * self.batch_size:,.0f} examples/s")
        parts += [values[n] for n in ("validation/loss", "learning_rate") if n in values]
        if self.live is not None:
            while len(parts) > 1 and len("  ".join(parts)) > self.console.width:
                parts.pop()
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
