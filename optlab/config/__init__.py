"""Configs: frozen dataclasses that describe a run, its named components, and the overrides of the command line.

Only the standard library is imported here, so that a misspelt key is refused before JAX starts. `optlab.experiment`
turns names into objects.
"""

from optlab._messages import nearest
from optlab.config._files import load, slug, to_json
from optlab.config._overrides import override, text_of
from optlab.config._schema import (
    Checkpoint,
    Component,
    Config,
    Log,
    MeshShape,
    Stop,
    Target,
    check,
    component,
    covers,
    flatten,
    keys,
)
from optlab.config._strategies import STRATEGIES, Strategy, StrategyName, find_strategy
from optlab.config._values import ConfigError, accepts, describe, is_learning_rate, parse

__all__ = [
    "STRATEGIES",
    "Checkpoint",
    "Component",
    "Config",
    "ConfigError",
    "Log",
    "MeshShape",
    "Stop",
    "Strategy",
    "StrategyName",
    "Target",
    "accepts",
    "check",
    "component",
    "covers",
    "describe",
    "find_strategy",
    "flatten",
    "is_learning_rate",
    "keys",
    "load",
    "nearest",
    "override",
    "parse",
    "slug",
    "text_of",
    "to_json",
]
