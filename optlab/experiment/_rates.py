"""A config's optimizer as a function of its learning rates, for those who try many of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optlab.config import Component, Config, ConfigError, is_learning_rate
from optlab.experiment._build import is_flat, transformation
from optlab.experiment._components import filled, find

if TYPE_CHECKING:
    import optax


def rates_of(config: Config) -> dict[str, float]:
    """The learning rates that a resolved config sets, by their keys below "optimizer"."""
    return dict(_rates(config.optimizer, ""))


def optimizer_with(config: Config, rates: Mapping[str, Any]) -> optax.GradientTransformation:
    """Builds a resolved config's optimizer with other learning rates, without what clips its gradients.

    Args:
        config: the config.
        rates: by the keys of `rates_of` numbers, traced or not, or schedules.
    """
    part = functools.reduce(lambda part, key: _set(part, key.split("."), rates[key]), rates, config.optimizer)
    return transformation(config, "optimizer", part, None, {})


def schedule_of(config: Config) -> Callable[..., Any] | None:
    """The config's schedule as a function (peak, steps, …); None where it is constant.

    Raises:
        ConfigError: for one that isn't such a function.
    """
    part = config.schedule
    if is_flat(config):
        return None
    factory = find("schedule", part.name)
    names = {source: argument for argument, source in filled("schedule", factory).items()}
    if names.get("steps", "steps") != "steps" or "optimizer.learning_rate" not in names:
        raise ConfigError(f"schedule={part.name} has no peak and steps: take one of optlab.schedules")
    return functools.partial(factory, **part.arguments)


def clipping_of(config: Config) -> optax.GradientTransformation | None:
    """What the gradients go through before the optimizer; None for nothing."""
    import optax

    found = [] if config.clip_value is None else [optax.clip(config.clip_value)]
    found += [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*found) if found else None


def _rates(part: Component, prefix: str) -> Any:
    for name, value in part.arguments.items():
        if isinstance(value, Component):
            yield from _rates(value, f"{prefix}{name}.")
        elif is_learning_rate(name) and isinstance(value, int | float):
            yield prefix + name, float(value)


def _set(part: Component, path: list[str], value: Any) -> Component:
    new = value if len(path) == 1 else _set(part.arguments[path[0]], path[1:], value)
    return Component(part.name, {**part.arguments, path[0]: new})
