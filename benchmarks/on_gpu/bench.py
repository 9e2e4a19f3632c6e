"""What a section's process has: a clock, turns with the process beside it, and a file of rows."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TextIO

from on_gpu.floors import Chip

TURNS = 5  # measured turns of every arm, after one that warms up
SECONDS = 0.12  # about how long a turn takes
SPARE = 8.0  # seconds before the deadline at which no new turn is begun

Advance = Callable[[], Any]  # does one step, perhaps without waiting for it
Wait = Callable[[], Any]  # waits for all steps so far
Make = Callable[[], tuple[Advance, Wait]]


@dataclass
class Bench:
    """One process' side of a section.

    Attributes:
        smoke: whether all sizes are toys, and the device a CPU.
        deadline: by `time.time()`; after it the process is killed.
        chip: whose published peaks the floors are computed from.
        rows: where each row is a line of JSON as soon as it is known.
        baton: (from, to) the driver, which lets one process measure at a time; None where there is no driver.
    """

    smoke: bool
    deadline: float
    chip: Chip
    rows: TextIO
    baton: tuple[TextIO, TextIO] | None = None
    failures: list[str] = field(default_factory=list)

    def size(self, full: Any, toy: Any) -> Any:
        """The one or the other."""
        return toy if self.smoke else full

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    def row(
        self,
        case: str,
        who: str,
        values: float | Sequence[float],
        unit: str,
        *,
        floor: float | None = None,
        predicted: float | None = None,
        goals: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Writes a row: the median of the values, in `unit`.

        Args:
            case: what was measured; rows of one case are compared.
            who: whose it is.
            values: every measured one.
            unit: "ms", or one of which more is better: "tokens/s", "images/s", "times".
            floor: the best that the chip's published peaks allow, in the same unit.
            predicted: what gpu_expectations.md says it should come to.
            goals: by whom it is held against (another `who`, or "floor", or "" for the value itself) the ratio to keep.
            note: a few words.
        """
        values = [values] if isinstance(values, int | float) else list(values)
        found: dict[str, Any] = {"case": case, "who": who, "unit": unit, "value": statistics.median(values)}
        found |= {"low": min(values), "high": max(values), "turns": len(values), "floor": floor}
        self._write(found | {"predicted": predicted, "goals": dict(goals or {}), "note": note})

    def failed(self, what: str, error: BaseException | str) -> None:
        """Writes a row that says why there is no other."""
        why = error if isinstance(error, str) else f"{type(error).__name__}: {first_line(error)}"
        self.failures.append(what)
        self._write({"case": what, "who": "", "failed": why})

    def _write(self, row: dict[str, Any]) -> None:
        print(json.dumps(row), file=self.rows, flush=True)
        print(f"{time.strftime('%H:%M:%S')} {row}", file=sys.stderr, flush=True)

    def take_turn(self, *, last: bool = False) -> None:
        """Waits until nobody else measures, or with `last` until all others have ended."""
        if self.baton is not None:
            came, said = self.baton
            print("last" if last else "ready", file=said, flush=True)
            if not came.readline():
                sys.exit("the driver is gone")

    def end_turn(self) -> None:
        """Lets others measure."""
        if self.baton is not None:
            print("done", file=self.baton[1], flush=True)

    def warm_up(self, arms: dict[str, Make]) -> None:
        """A step of each, which compiles what compiles at its first call, before any turn; who raises is left out."""
        for name, make in list(arms.items()):
            try:
                advance, wait = make()
                advance()
                wait()
            except Exception as error:
                self.failed(name, error)
                del arms[name]

    def measure(self, arms: Mapping[str, Make], *, turns: int | None = None) -> dict[str, list[float]]:
        """Seconds a step of every turn, by arm; the arms take turns with each other and with the process beside.

        An arm is a function that makes what it needs and gives (do a step, wait for all). What it made is dropped after
        its turn, so that one arm's memory is no other's. An arm that raises costs its own row alone.
        """
        left = {name: _Timer(make, self.size(SECONDS, 0.0)) for name, make in arms.items()}
        found: dict[str, list[float]] = {}
        for turn in range(1 + (turns or self.size(TURNS, 1))):
            if found and self.left < SPARE:
                break
            self.take_turn()
            for name, timer in list(left.items()):
                try:
                    seconds = timer()
                except Exception as error:
                    self.failed(name, error)
                    del left[name]
                else:
                    if turn:
                        found.setdefault(name, []).append(seconds)
            self.end_turn()
        return found

    def compiled(self, programs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The programs (functions that give a `jax.stages.Lowered`) compiled all at once, each in a thread."""
        lowered = {}
        for name, lower in programs.items():
            try:
                lowered[name] = lower()
            except Exception as error:
                self.failed(name, error)
        done = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            futures = {name: pool.submit(program.compile) for name, program in lowered.items()}
            for name, future in futures.items():
                try:
                    done[name] = future.result()
                except Exception as error:
                    self.failed(name, error)
        return done


class _Timer:
    """Seconds a step: as many steps as fill a turn, after two that don't count."""

    def __init__(self, make: Make, seconds: float):
        self.make, self.seconds, self.count = make, seconds, 0

    def __call__(self) -> float:
        advance, wait = self.make()
        advance()
        wait()
        if not self.count:
            began = time.perf_counter()
            advance()
            wait()
            self.count = max(3, min(1000, round(self.seconds / (time.perf_counter() - began)))) if self.seconds else 1
        began = time.perf_counter()
        for _ in range(self.count):
            advance()
        wait()
        return (time.perf_counter() - began) / self.count


def first_line(error: BaseException) -> str:
    """Of its message, not too long."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def milliseconds(values: Sequence[float]) -> list[float]:
    """From seconds."""
    return [1e3 * x for x in values]


def per_second(values: Sequence[float], count: float) -> list[float]:
    """How many of what a step does `count` of, from seconds a step."""
    return [count / x for x in values]
