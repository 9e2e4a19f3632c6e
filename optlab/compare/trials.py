"""A trial, and what came of it: plain data, kept by the driver alone, one JSON line each."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optlab.compare._errors import StudyError
from optlab.config import Target

TRIALS, ABOUT = "trials.jsonl", "study.json"


@dataclass(frozen=True)
class Trial:
    """One setting of hyperparameters, trained once.

    Attributes:
        contender: its name.
        study: the repetition that it belongs to, from 0.
        point: which of the study's points: its number, or its name in a widened space.
        repeat: which training of that point.
        is_final: whether it is the winner, trained afresh for the test split.
        values: the hyperparameters.
        seed: of initialization, data order and dropout.
    """

    contender: str
    study: int
    point: int | str
    repeat: int
    is_final: bool
    values: Mapping[str, Any]
    seed: int

    @property
    def id(self) -> str:
        """The same whenever the study is made: what is finished under it isn't trained again."""
        return f"{self.contender}/{self.study}/{'final' if self.is_final else 'search'}/{self.point}/{self.repeat}"


@dataclass(frozen=True)
class Result:
    """The result of a trial.

    Attributes:
        trial: which one.
        curve: the evaluations: "step", "train/loss" (of that step's batch) and "validation/…", lists of one length.
        test: "test/…" at the end, of a final one.
        diverged: None, or which step failed and why; the curve ends before it.
        seconds: of training. In a population, its share of the population's.
        pace: seconds a step, evaluations included and compilation left out; NaN where there is one evaluation alone.
        executor: "population" or "runs".
    """

    trial: Trial
    curve: Mapping[str, Sequence[float]]
    test: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None
    seconds: float = math.nan
    pace: float = math.nan
    executor: str = "runs"

    def last(self, metric: str) -> float:
        """A metric at the end; NaN if the trial diverged, or doesn't have it."""
        if self.diverged is not None:
            return math.nan
        values = self.curve.get(metric, ())
        return float(values[-1]) if len(values) else float(self.test.get(metric, math.nan))

    def reached(self, target: Target) -> int | None:
        """The first evaluated step at which the target was reached."""
        values = zip(self.curve["step"], self.curve.get(target.metric, ()), strict=False)
        return next((int(step) for step, value in values if target.reached(value)), None)


def pace(seconds: Sequence[float]) -> float:
    """Of the parts of a run, in seconds a step: their median without the first one, which compiles."""
    return statistics.median(seconds[1:]) if len(seconds) > 1 else math.nan


def as_line(result: Result) -> str:
    """As a line of JSON."""
    tree = dataclasses.asdict(result)
    return json.dumps({"id": result.trial.id, **plain(tree)}, allow_nan=False) + "\n"


def from_line(line: str) -> Result:
    """The inverse of `as_line`."""
    tree = json.loads(line)
    tree.pop("id")
    numbers = {key: _numbers(tree[key]) for key in ("curve", "test", "seconds", "pace")}
    return Result(**{**tree, **numbers, "trial": Trial(**tree["trial"])})


class Ledger:
    """The finished trials of a study in its folder, by their ids. The driver alone writes, and a kill loses no line.

    Args:
        folder: the study's; None keeps nothing on the disk.
        about: what the study is, JSON data: a folder that holds another one is refused. Under "contenders" there may be
            more than there were.

    Raises:
        StudyError: it names what differs.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]):
        self.folder = None if folder is None else Path(folder).expanduser()
        self.results: dict[str, Result] = {}
        if self.folder is None:
            return
        about, self.results = kept(self.folder, about)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / ABOUT, json.dumps(about, indent=2) + "\n")
        replace_text(self.folder / TRIALS, "".join(map(as_line, self.results.values())))

    def add(self, results: Iterable[Result]) -> None:
        """Keeps finished trials; when it returns they outlive the machine."""
        new = [r for r in results if r.trial.id not in self.results]
        self.results |= {r.trial.id: r for r in new}
        if self.folder is None or not new:
            return
        with (self.folder / TRIALS).open("a") as file:
            file.writelines(map(as_line, new))
            file.flush()
            os.fsync(file.fileno())


def kept(folder: Path, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Result]]:
    """The identity of a folder's study with these contenders, and its finished trials; writes nothing.

    Raises:
        StudyError: as `Ledger`.
    """
    about = json.loads(json.dumps(about))
    if (folder / ABOUT).exists():
        return _merged(folder, json.loads((folder / ABOUT).read_text()), about), _read(folder / TRIALS)
    if (folder / TRIALS).exists():
        raise StudyError(f"{folder} has {TRIALS} and no {ABOUT}: name another folder")
    return dict(about), {}


def _read(file: Path) -> dict[str, Result]:
    """The lines on the disk, without a last one that a kill cut off."""
    lines = file.read_text().split("\n") if file.exists() else []
    found: dict[str, Result] = {}
    for number, line in enumerate(lines, 1):
        try:
            result = from_line(line) if line else None
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                continue
            raise StudyError(f"line {number} of {file} can't be read ({error}): delete it, or mend it") from error
        if result is not None:
            found[result.trial.id] = result
    return found


def _merged(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Saves the study's identity anew, with contenders that it didn't have."""
    flat = [_flat({**about, "contenders": {}}) for about in (there, here)]
    both = there["contenders"].keys() & here["contenders"].keys()
    for part, about in zip(flat, (there, here), strict=True):
        part |= _flat({name: about["contenders"][name] for name in both})
    differ = [k for k in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(k) != flat[1].get(k)]
    if differ:
        shown = ", ".join(f"{k} ({flat[0].get(k)} there, {flat[1].get(k)} here)" for k in differ[:4])
        rest = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise StudyError(f"{folder} holds another study: {shown}{rest}; name another folder")
    return {**here, "contenders": {**there["contenders"], **here["contenders"]}}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def replace_text(file: Path, text: str) -> None:
    """Writes a whole file; a kill leaves the old one or the new one."""
    part = file.with_suffix(".part")
    with part.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(part, file)


def plain(tree: Any) -> Any:
    """JSON data, with what isn't finite as a string: JSON has no number for it."""
    if isinstance(tree, Mapping):
        return {k: plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(v) for v in tree]
    return repr(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _numbers(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_numbers(v) for v in tree]
    return float(tree) if tree in ("nan", "inf", "-inf") else tree
