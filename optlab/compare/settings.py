"""A comparison as a config says it: the baseline's run, and those that are compared with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optlab.compare.points import Design, Space
from optlab.config import Component, Config, ConfigError, accepts, describe, flatten, nearest, override, parse

# Of a run's keys those that a comparison takes over; any other must be as a run has it by default.
USED = {"data", "model", "loss", "metrics", "optimizer", "schedule", "steps", "batch_size", "draw", "clip_norm",
        "clip_value", "seed", "evaluate_every", "target"}  # fmt: skip


# The keys of a comparison that the command line can override, and their kinds.
HINTS: dict[str, Any] = {
    "trials": int | None, "studies": int, "seeds": int, "finals": int, "design": Design, "paired": bool, "widen": bool,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison. `configs/compare_*.py` return one from `get_config()`.

    Attributes:
        baseline: an ordinary run, whose optimizer is what the others are compared with.
        contenders: the others' optimizers, by their names.
        spaces: by contender (the baseline by its optimizer's name) what is searched; without one the learning rate.
        trials: points of each contender in each study; None is 8, or a grid's own number.
        studies: how often every contender is tuned anew.
        seeds: trainings of each point.
        finals: fresh trainings of each winner.
        design: "sobol" or "grid".
        paired: whether all contenders share initializations and data orders.
        widen: whether the search goes on where best values lie at the edge of a space.

    Raises:
        ConfigError: for a value of another kind, and a key of the baseline that a comparison doesn't use.
    """

    baseline: Config
    contenders: Mapping[str, Component]
    spaces: Mapping[str, Space] = field(default_factory=dict)
    trials: int | None = None
    studies: int = 5
    seeds: int = 1
    finals: int = 1
    design: Design = "sobol"
    paired: bool = False
    widen: bool = False

    def __post_init__(self) -> None:
        for key, hint in HINTS.items():
            if not accepts(value := getattr(self, key), hint):
                raise ConfigError(f"{key} must be {describe(hint)}, got {value!r}")
        for name, part in self.contenders.items():
            if not isinstance(part, Component):
                raise ConfigError(f'contender {name!r} must be component("adam", …), got {part!r}')
        bare = Config(**{k: getattr(self.baseline, k) for k in ("data", "model", "optimizer", "steps")})
        said, default = flatten(self.baseline), flatten(bare)
        for key, value in said.items():
            if key.partition(".")[0] not in USED and value != default[key]:
                raise ConfigError(f"a comparison doesn't use {key}, got {value!r}: leave it as it is by default")
        if self.baseline.optimizer.name in self.contenders:
            raise ConfigError(f"{self.baseline.optimizer.name} is the baseline already: name the contender otherwise")

    @property
    def everyone(self) -> dict[str, Component]:
        """All contenders by name, the baseline first."""
        return {self.baseline.optimizer.name: self.baseline.optimizer, **self.contenders}


def overridden(comparison: Comparison, assignments: Sequence[str]) -> Comparison:
    """A comparison with `key=value` strings applied: its own keys, such as `studies=2`, and the baseline's run's.

    Raises:
        ConfigError: as `optlab.config.override`.
    """
    own: dict[str, Any] = {}
    others = []
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key not in HINTS:
            others.append(assignment)
            continue
        own[key] = parse(text, HINTS[key])
        if not accepts(own[key], HINTS[key]):
            raise ConfigError(f"{key} must be {describe(HINTS[key])}, got {text!r}")
    if bad := [a for a in others if a.partition(".")[0] in ("contenders", "spaces")]:
        raise ConfigError(f"{bad[0].partition('=')[0]} can be said in the config's file alone")
    try:
        baseline = override(comparison.baseline, others)
    except ConfigError as error:
        key = str(error).partition("'")[2].partition("'")[0]
        if "unknown key" in str(error) and (close := nearest(key, HINTS)).startswith("did"):
            raise ConfigError(f"unknown key {key!r}; {close}") from error
        raise
    return dataclasses.replace(comparison, baseline=baseline, **own)
