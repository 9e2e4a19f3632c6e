"""Changes of a config: what a run may continue under."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab.config import Config, ConfigError, covers, flatten, nearest


@dataclass(frozen=True)
class Change:
    """A key whose value differs. A side that doesn't have the key has None.

    Attributes:
        key: the config's key, such as optimizer.learning_rate.
        before: its value in the run's config.json.
        after: its value in the config that the run is to continue under.
        kind: "fixed", "noted" or "changeable".
    """

    key: str
    before: Any
    after: Any
    kind: str


def changes(
    run: Path,
    before: Config,
    after: Config,
    kind_of: Callable[[str, Config], str],
    allowed: Collection[str] = (),
) -> list[Change]:
    """Compares a run's config with the one that the run is to continue under.

    Args:
        run: the run's folder, for the message.
        before: the run's config.
        after: the other one, resolved.
        kind_of: what another value of a key means: "fixed", "noted" or "changeable"; see `optlab.experiment`.
        allowed: fixed keys that may differ all the same; "optimizer" includes its arguments.

    Raises:
        ConfigError: For a fixed key that differs and isn't allowed, and an allowed key that doesn't exist.
    """
    there, here = _flat(before), _flat(after)
    _check_names(allowed, {**there, **here})
    found = [
        Change(key, there.get(key), here.get(key), kind_of(key, after))
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
    """The values by key, in the form in which config.json returns them: a tuple is a list."""
    return json.loads(json.dumps(flatten(config), default=dataclasses.asdict))


def _check_names(names: Collection[str], known: Collection[str]) -> None:
    groups = {key.rpartition(".")[0] for key in known if "." in key}
    for name in names:
        if name not in {*known, *groups}:
            raise ConfigError(f"unknown key {name!r} in allow_change; {nearest(name, {*known, *groups})}")
