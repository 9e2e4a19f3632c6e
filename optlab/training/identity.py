"""Settings and programs that identify a run: saved with each checkpoint, and compared on resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab._processes import is_first, once, together
from optlab.config import Config, Stop, covers, flatten, keys
from optlab.data import fingerprint
from optlab.runs import CheckpointError
from optlab.runs._fingerprints import fingerprints
from optlab.training.program import are_other, described, program, programs
from optlab.training.state import TrainState
from optlab.training.step import StepSettings
from optlab.training.workload import Workload

Identity = dict[str, Any]
INJECTED = "hyperparameter "
# What isn't a config's key by itself, under the name by which it may change; "" begins such names.
PROGRAMS = {"model": "model", "loss": "loss", "loss.training": "loss", "optimizer": "optimizer", INJECTED: "optimizer"}
OTHERS = {**PROGRAMS, "initial": "initial", "ema.function": "ema"}


def identity(
    workload: Workload,
    tx: optax.GradientTransformation,
    first: TrainState,
    *,
    initial: Any,
    seed: int,
    settings: StepSettings,
    stop: Stop,
    evaluate_batches: int | None,
) -> Identity:
    """Identifies a run: its settings by the config's keys, as JSON data, and a fingerprint of every data split.

    It also holds digests of what model, loss and optimizer compute (`optlab.training.program`), and fingerprints of the
    hyperparameters in the optimizer's first state and of the initial parameters, if they were given.

    Raises:
        CheckpointError: if the data of several processes aren't the same.
    """
    held_out = {f"data.{name}": getattr(workload.data, name) for name in ("validation", "test")}
    found = {
        "data": fingerprint(workload.data.train),
        **{name: None if split is None else fingerprint(split) for name, split in held_out.items()},
        "seed": seed,
        "batch_size": workload.batch_size,
        "draw": workload.draw,
        "accumulate": settings.accumulate,
        "ema": "a function" if callable(settings.ema) else settings.ema,
        **flatten(workload.target, "target."),
        **flatten(stop, "stop."),
        "evaluate_batches": evaluate_batches,
        **fingerprints({name: x for name, x in _named(first.opt_state) if name.startswith(INJECTED)}),
        **programs(workload, tx, first),
        "initial": None if initial is None else _digest(initial),
    }
    if callable(settings.ema):
        found["ema.function"] = {**program(settings.ema, first.step), "made": found["optimizer"]["made"]}
    found = json.loads(json.dumps(found, default=float))  # a number of NumPy's is one, too
    with together(CheckpointError):
        if differ := _differing(once(lambda: found), found):
            raise CheckpointError(f"the processes aren't one run: {_listed(differ, 'in process 0')}")
    return found


def changed_keys(path: Path, saved: Mapping[str, Any], here: Identity, allowed: Collection[str]) -> set[str]:
    """Compares a checkpoint's run with this one, and returns the keys that differ.

    Args:
        path: the checkpoint's.
        saved: its run's identity.
        here: this run's.
        allowed: keys that may differ although they are fixed.

    Raises:
        CheckpointError: for a fixed key that differs and isn't allowed; it names each with both values.
    """
    table, differ = keys(Config), _differing(saved, here)
    names = {k: _name(k) for k in differ}
    fixed = {k for k, name in names.items() if name != k or (name in table and table[name][1]["change"] == "fixed")}
    fixed |= differ.keys() & OTHERS.keys()
    refused = {k: v for k, v in differ.items() if k in fixed and not covers(allowed, names[k])}
    once_each = tuple(dict.fromkeys(names[k] for k in refused))
    with together(CheckpointError):
        if refused:
            raise CheckpointError(
                f"{path} is of another run: {_listed(refused, 'there')}; name another folder, or go on all the same: "
                f"allow_change={once_each}"
            )
    if is_first():
        _say_what_goes_on(path, saved, here, {k: v for k, v in differ.items() if k in OTHERS})
    return set(differ)


def _name(key: str) -> str:
    """The name by which a key may change."""
    if key.startswith("data."):
        return "data"
    return PROGRAMS[INJECTED] if key.startswith(INJECTED) else OTHERS.get(key, key)


def _say_what_goes_on(path: Path, saved: Mapping[str, Any], here: Identity, changed: Mapping[str, Any]) -> None:
    """Prints which programs differ from here on, or that they can't be compared."""
    if changed:
        print(f"optlab: {path} goes on with another {_listed(changed, 'there')}", file=sys.stderr)
    there, now = (next((run[k]["made"] for k in run if isinstance(run[k], dict)), None) for run in (saved, here))
    if None not in (there, now) and there != now:
        print(
            f"optlab: {path} was made with {there}, here is {now}: whether model, loss and optimizer are the same "
            "isn't compared",
            file=sys.stderr,
        )


def _digest(initial: Any) -> str:
    """A digest of all leaves and their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(initial)
    prints = fingerprints({jax.tree_util.keystr(path): jnp.asarray(x) for path, x in leaves})
    return hashlib.sha256(json.dumps(prints).encode()).hexdigest()[:16]


def with_settings(state: TrainState, first: TrainState, changed: Collection[str]) -> TrainState:
    """Applies this run's settings to a restored state: what `changed_keys` returned is taken from the first state.

    All other hyperparameters of the optimizer keep their restored values: a rule of the user's may have moved them.
    """
    key = first.key if "seed" in changed else state.key
    here = dict(_named(first.opt_state))
    leaves = [here[name] if name in changed else x for name, x in _named(state.opt_state)]
    opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
    return dataclasses.replace(state, key=key, opt_state=opt_state)


def _named(opt_state: Any) -> list[tuple[str, jax.Array]]:
    """Every leaf with its path; that of a hyperparameter of `optax.inject_hyperparams` begins with `INJECTED`."""
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(opt_state):
        is_injected = any(getattr(k, "name", None) == "hyperparams" for k in path)
        found.append(((INJECTED if is_injected else "") + jax.tree_util.keystr(path, simple=True, separator="/"), x))
    return found


def _differing(saved: Mapping[str, Any], here: Identity) -> dict[str, tuple[Any, Any]]:
    def is_other(k: str) -> bool:
        if isinstance(saved[k], dict) and isinstance(here[k], dict):
            return are_other(saved[k], here[k])
        if k == "initial" and here[k] is None:  # a run that is continued doesn't start from anything
            return False
        return saved[k] != here[k]

    return {k: (saved[k], here[k]) for k in saved if k in here and is_other(k)}


def _listed(differ: Mapping[str, tuple[Any, Any]], where: str) -> str:
    """Lists each key with both values; programs that share a name are listed once."""
    found: dict[str, str] = {}
    for k, (saved, here) in differ.items():
        if isinstance(saved, dict):
            there, now = described(saved, here)
            found.setdefault(_name(k), f"{_name(k)} ({there} {where}, {now} here)")
        else:
            found[k] = f"{k} ({saved!r} {where}, {here!r} here)"
    return ", ".join(found.values())
