"""Kinds of keys: the effect of another value on a run that continues."""

from __future__ import annotations

from optlab.config import Config, is_learning_rate, keys
from optlab.experiment._components import filled, find


def kind_of_change(key: str, config: Config) -> str:
    """Returns whether a key is "fixed", "noted" or "changeable" when a run continues, by the schema.

    An argument is of its component's kind. But the optimizer's learning rates are noted, and so is `steps` if the
    schedule doesn't depend on it.
    """
    component, _, argument = key.partition(".")
    if component == "optimizer" and is_learning_rate(argument):
        return "noted"
    if key == "steps" and "steps" not in filled("schedule", find("schedule", config.schedule.name)).values():
        return "noted"
    table = keys(Config)
    return table[key if key in table else component][1]["change"]
