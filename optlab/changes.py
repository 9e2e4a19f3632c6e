"""What may change when a run is continued: every key of a config is fixed, noted or changeable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab.config import Config, ConfigError, covers, flatten, keys, nearest
from optlab.experiment import filled, find, is_rate


@dataclass(frozen=True)
class Change:
    """A key whose value isn't what it was; where it wasn't there, or isn't any more, the value is None."""

    key: str
    before: Any
    after: Any
    kind: str


def kind_of_change(key: str, config: Config) -> str:
    """What another value of a key means: "fixed", "noted" or "changeable", as the key itself says in the config.

    An argument is its component's kind, apart from the optimizer's learning rates, which are noted; so is `steps` where
    the schedule doesn't depend on it.
    """
    component, _, argument = key.partition(".")
    if component == "optimizer" and is_rate(argument):
        return "noted"
    if key == "steps" and "steps" not in filled("schedule", find("schedule", config.schedule.name)).values():
        return "noted"
    table = keys(Config)
    return table[key if key in table else component][1]["change"]


def changes(run: Path, before: Config, after: Config, allowed: Collection[str] = ()) -> list[Change]:
    """What a run's config says otherwise than before.

    Args:
      run: its folder, for the message.
      before: the run's.
      after: the one that it is to go on under, resolved.
      allowed: fixed keys that may differ all the same; "optimizer" is its arguments, too.

    Raises:
      ConfigError: for a fixed key that differs and isn't allowed, and an allowed one that there isn't.
    """
    there, here = _flat(before), _flat(after)
    _check_names(allowed, {**there, **here})
    found = [
        Change(key, there.get(key), here.get(key), kind_of_change(key, after))
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    ]
    refused = [c for c in found if c.kind == "fixed" and not covers(allowed, c.key)]
    if refused:
        differ = ", ".join(f"{c.key} ({c.before!r} there, {c.after!r} here)" for c in refused)
        names = [c.key for c in refused]
        shortest = [name for name in names if not covers(set(names) - {name}, name)]
        raise ConfigError(
            f"{run} holds a run of another config: {differ}; name another folder, or go on all the same: "
            f"allow_change={tuple(shortest)}"
        )
    return found


def _flat(config: Config) -> dict[str, Any]:
    """As config.json gives it back: a tuple is a list."""
    return json.loads(json.dumps(flatten(config), default=dataclasses.asdict))


def _check_names(names: Collection[str], known: Collection[str]) -> None:
    groups = {key.rpartition(".")[0] for key in known if "." in key}
    for name in names:
        if name not in {*known, *groups}:
            raise ConfigError(f"unknown key {name!r} in allow_change; {nearest(name, {*known, *groups})}")
