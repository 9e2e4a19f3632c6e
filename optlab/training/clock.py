"""The time that training takes, without what a researcher wouldn't count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """A stopwatch of the training steps: compilation, evaluations and checkpoints aren't counted, waiting for data is.

    Attributes:
        before: seconds until it was last stopped, those of the calls before a continued run's checkpoint included.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The training time so far."""
        return self.before if self._since is None else self.before + time.monotonic() - self._since

    def start(self) -> None:
        """Starts it, or lets it run on."""
        self.before, self._since = self.seconds, time.monotonic()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops it for a while; the devices must have nothing left to do."""
        self.before, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()
