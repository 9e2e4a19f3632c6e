"""Checks of a study's arguments: each error names the argument, its value and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optlab._integers import check_seed, is_count
from optlab._messages import nearest
from optlab.compare._errors import StudyError


def named(contenders: Any) -> dict[str, Any]:
    """Returns the contenders by name; those of a list are names of optimizers.

    Raises:
        StudyError: if they are neither a dict nor a list of names, two have one name, or there are fewer than two.
    """
    if isinstance(contenders, Mapping):
        found = dict(contenders)
    else:
        if isinstance(contenders, str) or not isinstance(contenders, Sequence):
            raise StudyError(f"contenders must be a dict, or a list of names, got {contenders!r}")
        for name in contenders:
            if not isinstance(name, str):
                raise StudyError(f"contenders in a list must be names, got {name!r}: give a dict, {{'mine': factory}}")
            if list(contenders).count(name) > 1:
                raise StudyError(f"contenders has {name!r} twice: give a dict, with a name for each")
        found = dict(zip(contenders, contenders, strict=True))
    if len(found) < 2:
        raise StudyError(f"a comparison needs at least two contenders, got {', '.join(map(str, found)) or 'none'}")
    return found


def check_names(contenders: Mapping[str, Any], baseline: Any, spaces: Any) -> None:
    """Refuses a baseline, or a space, of no contender."""
    if not (spaces is None or isinstance(spaces, Mapping)):
        raise StudyError(f"spaces must be a dict of search spaces by contender, got {spaces!r}")
    if not (baseline is None or isinstance(baseline, str)) or baseline not in {None, *contenders}:
        raise StudyError(f"baseline={baseline!r} is no contender; {nearest(str(baseline), contenders)}")
    if unknown := [name for name in spaces or {} if name not in contenders]:
        raise StudyError(f"spaces has {unknown[0]!r}, which is no contender; {nearest(str(unknown[0]), contenders)}")


def check_flags(**values: Any) -> None:
    """Refuses what is neither True nor False, by its argument's name: "no" would count as yes."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise StudyError(f"{name} must be True or False, got {value!r}")


def check_folder(folder: Any) -> None:
    """Refuses what is no path; "" would be the working directory."""
    if not (folder is None or (isinstance(folder, str) and folder) or isinstance(folder, Path)):
        raise StudyError(f"folder must be a path, or None to keep nothing, got {folder!r}")


def check_kinds(
    *,
    counts: Mapping[str, Any],
    steps: Any,
    evaluate_every: Any,
    schedule: Any,
    before: Any,
    paired: Any,
    seed: Any,
    choices: Mapping[str, tuple[Any, Sequence[str]]],
) -> None:
    """Refuses arguments of another kind than `make_study` takes.

    Args:
        counts: numbers of at least 1, by name.
        steps: of a run, a number of at least 1.
        evaluate_every: a number of at most `steps`.
        schedule: a function, or None.
        before: a transformation, or None.
        paired: True or False.
        seed: a seed.
        choices: by name the value, and what it may be.
    """
    for name, value in {"steps": steps, **counts}.items():
        if not is_count(value):
            raise StudyError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not is_count(evaluate_every) or evaluate_every > steps:
        raise StudyError(f"evaluate_every must be a whole number in [1, {steps}], got {evaluate_every!r}")
    for name, (value, known) in choices.items():
        if value not in known:
            raise StudyError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    check_flags(paired=paired)
    if not (schedule is None or callable(schedule)):
        raise StudyError(f"schedule must be a function (peak, steps, …), or None for a constant rate, got {schedule!r}")
    if not (before is None or (hasattr(before, "init") and hasattr(before, "update"))):
        raise StudyError(f"before must be an optax transformation, or None, got {before!r}")
    try:
        check_seed(seed)
    except (TypeError, ValueError) as error:
        raise StudyError(str(error)) from None
