"""Checks of what is given to a workload and to `train`: each error names the line that would work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from optlab._integers import is_count
from optlab._messages import nearest
from optlab.config import Target
from optlab.roles._layout import check_overrides
from optlab.roles._paths import paths_of

LOSSES = ("cross_entropy", "squared_error")


def check_workload(init: Any, loss: Any, batch_size: Any, target: Any) -> None:
    """Refuses what can't be a `Workload`'s.

    Raises:
        TypeError: for what is no function, and no Target.
        ValueError: for another batch size than a number of examples.
    """
    for name, value, form in (
        ("init", init, "key -> (params, model_state)"),
        ("loss", loss, "(params, model_state, batch, key, train) -> (scalar, (model_state, metrics))"),
    ):
        if not callable(value):
            raise TypeError(f"{name} must be a function {form}, got {value!r}; Workload.from_model takes a model")
    if not is_count(batch_size):
        raise ValueError(f"batch_size must be a number of examples, 1 or more, got {batch_size!r}")
    if not isinstance(target, Target):
        raise TypeError(f"target must be an optlab.config.Target, such as Target(metric='train/loss'), got {target!r}")


def check_model(model: Any, loss: Any, metrics: Any) -> None:
    """Refuses what can't be `Workload.from_model`'s.

    Raises:
        TypeError: for a class of Linen's, an Equinox module, and what is no function of (outputs, batch).
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TypeError(f"model must be a module, got its class {model.__name__}: say {model.__name__}(…)")
    if any(base.__module__.startswith("equinox") for base in type(model).__mro__):
        raise TypeError(
            f"model must be a Linen module or a function rngs -> nnx.Module, got Equinox's {type(model).__name__}: say "
            "Workload(name, data, init, loss) with two functions, init(key) -> (model, {})"
        )
    if not (metrics is None or isinstance(metrics, Mapping)):
        raise TypeError(
            f"metrics must be a dict of functions by name, got {metrics!r}: say "
            "metrics={'accuracy': optlab.training.accuracy}"
        )
    for name, function in {"loss": loss, **(metrics or {})}.items():
        _check_measure(name, function)


def checked_init(init: Any) -> Any:
    """The function init, which refuses parameters that are functions.

    Raises:
        TypeError: by the function; it names the first one.
    """

    def checked(key: Any) -> Any:
        params, model_state = init(key)
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            if callable(x) and not hasattr(x, "dtype"):
                raise TypeError(
                    f"init must return parameters that are arrays, got a function at {jax.tree_util.keystr(path)}: of "
                    "an Equinox module return eqx.partition(model, eqx.is_array)[0], and eqx.combine them in the loss"
                )
        return params, model_state

    return checked


def check_roles(init: Any, roles: Mapping[str, Any]) -> None:
    """Refuses a workload's roles that match no parameter, or are misspelt.

    Raises:
        PatternError: names the nearest path or role.
    """
    if roles:
        params, _ = jax.eval_shape(checked_init(init), jax.random.key(0))
        check_overrides(roles, {path: x.shape for path, (_, x) in paths_of(params).items()})


def check_keywords(settings: Mapping[str, Any], workload: Any) -> None:
    """Refuses keywords of other libraries' loops, before `StepSettings` names the nearest of ours.

    Raises:
        TypeError: for `epochs`, and a learning rate.
    """
    if "epochs" in settings:
        size = len(workload.data.train) if hasattr(workload.data.train, "__len__") else None
        epoch = f": an epoch is {size / workload.batch_size:g} steps" if size else ""
        raise TypeError(f"train() has no argument 'epochs': say steps=…{epoch}")
    for name in ("lr", "learning_rate"):
        if name in settings:
            raise TypeError(
                f"train() has no argument {name!r}: it is the optimizer's, as in optlab.adamw({settings[name]!r})"
            )


def _check_measure(name: str, function: Any) -> None:
    if isinstance(function, str):
        known = LOSSES if name == "loss" else (*LOSSES, "accuracy")
        raise TypeError(
            f"{name} must be a function (outputs, batch) -> values, such as optlab.training.{known[-1]}, got "
            f"{function!r}; {nearest(function, known)}"
        )
    if not callable(function):
        raise TypeError(f"{name} must be a function (outputs, batch) -> values, got {function!r}")
    if str(getattr(function, "__module__", "")).startswith("optax"):
        called = getattr(function, "__name__", "f")
        raise TypeError(
            f"{name} is called with (outputs, batch), and optax's {called} takes labels: say "
            f"{name}=lambda outputs, batch: optax.{called}(outputs, batch['labels'])"
        )
