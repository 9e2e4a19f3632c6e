"""Checks of the contract that every gradient transformation should keep, for transforms of your own too.

from optlab.testing import check_transform

print(check_transform(my_optimizer, {"learning_rate": 0.1}))  # a table of what holds and what doesn't

def test_my_optimizer():
    check_transform(my_optimizer, {"learning_rate": 0.1}).check()
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from optlab._checks import check_choice
from optlab.testing import _composed, _devices, _numbers, _traced  # noqa: F401  # each registers its checks
from optlab.testing._case import Case, message
from optlab.testing._report import CAUSES, CHECKS, LAWS, ContractError, Failure, Report, Skipped

__all__ = ["CHECKS", "LAWS", "ContractError", "Failure", "Report", "check_transform"]


def check_transform(
    transform: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    hyperparams: Mapping[str, Any] | None = None,
    *,
    params: Any | None = None,
    laws: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Report:
    """Runs every check of `CHECKS` on a transform, in some seconds, most of them for compilation.

    The transform minimizes ½Σ(θ − target)² for a few steps, with a new target at each. `update` gets the extra
    arguments of `optlab.training.make_step`: `value`, `grad` and `value_fn` (and `obj_fn`, the same function). The
    updates under `jax.jit` are the reference: those under scan, vmap, optax's wrappers, other trees and meshes must
    agree to 1e-4 of a leaf's largest entry, and those in bfloat16 and float16 to a tenth of the norm of float32's.
    Meshes and pmap need two devices (better four), `nnx.State` needs Flax.

    Args:
        transform: a transform, or a factory of transforms.
        hyperparams: arguments of the factory; those that are floats are injected by optax.inject_hyperparams too.
        params: parameters in float32; None for a matrix, a vector and a scalar. A transform of matrices alone needs a
            tree of matrices.
        laws: the `LAWS` that the transform claims to keep: "bias_correction" (equal gradients give equal updates),
            "weight_decay" (claimed by every factory that takes `weight_decay`).
        skip: names of checks to leave out.

    Returns:
        report of the checks that passed, failed and were skipped, with the reasons. `print` shows it as a table, and
        its `check()` raises a ContractError if one failed.
    """
    for name, given, known in (("laws", laws, LAWS), ("skip", skip, tuple(CHECKS))):
        if isinstance(given, str):
            raise ValueError(f"{name} must be a list of names, got the string {given!r}: write [{given!r}]")
        for each in given:
            check_choice(f"each of {name}", each, known)
    is_transform = hasattr(transform, "init") and hasattr(transform, "update")
    if is_transform and hyperparams:
        raise ValueError("hyperparams are for a factory, and a transform was given: pass the function that makes it")
    factory: Any = None if is_transform else transform
    tx = transform if factory is None else factory(**(hyperparams or {}))
    case = Case(tx, params, factory, hyperparams, laws)  # type: ignore[arg-type]
    passed, failed, skipped = [], [], {name: "asked for" for name in skip}
    for name, function in CHECKS.items():
        if name in skip:
            continue
        try:
            function(case)
            passed.append(name)
        except Skipped as reason:
            skipped[name] = str(reason)
        except Exception as error:  # whatever a stranger's transform raises
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failed.append(Failure(name, kind + message(error), CAUSES[name]))
    return Report(_name(transform), tuple(passed), tuple(failed), skipped)


def _name(transform: Any) -> str:
    inner = getattr(transform, "func", transform)  # of a functools.partial
    return str(getattr(inner, "__name__", "transform"))
