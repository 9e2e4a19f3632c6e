"""Comparisons whose errors name the leaf, the step and the difference."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.testing._case import named_leaves
from optlab.testing._report import require

TOLERANCE = 1e-4  # of a leaf's largest entry: another program adds in another order, and three steps amplify that


def require_same(got: Sequence[Any], wanted: Sequence[Any], where: str) -> None:
    """Compares the updates of each step with the reference, leaf by leaf in the tree's order."""
    for t, (left, right) in enumerate(zip(got, wanted, strict=True), start=1):
        leaves, expected = named_leaves(left), jax.tree.leaves(right)
        require(len(leaves) == len(expected), f"{where} the update has {len(leaves)} leaves, not {len(expected)}")
        for (name, x), y in zip(leaves, expected, strict=True):
            x, y = (np.asarray(a, np.float64) for a in (x, y))
            require(x.shape == y.shape, f"{where} the update of {name!r} has shape {x.shape}, not {y.shape}")
            error, size = np.max(np.abs(x - y), initial=0.0), np.max(np.abs(y), initial=0.0)
            require(
                error <= TOLERANCE * size or np.array_equal(x, y, equal_nan=True),
                f"{where} the update of {name!r} in step {t} is off by {error:.1e}, its largest entry being {size:.1e}",
            )


def require_finite(updates: Any, where: str) -> None:
    for name, x in named_leaves(updates):
        require(jnp.all(jnp.isfinite(x)), f"{where} the update of {name!r} is {_worst(x)}")


def _worst(x: Any) -> str:
    return "NaN" if np.isnan(np.asarray(x, np.float64)).any() else "infinite"


def same_structure(left: Any, right: Any) -> bool:
    a: Any = jax.tree.structure(left)
    return a == jax.tree.structure(right)


def require_structure(got: Any, wanted: Any, what: str) -> None:
    if same_structure(got, wanted):
        return
    names, before = (dict(named_leaves(tree)) for tree in (got, wanted))
    differ = [f"{n!r} is new" for n in names if n not in before] + [f"{n!r} is gone" for n in before if n not in names]
    trees = f"{str(jax.tree.structure(got))[:200]}, not {str(jax.tree.structure(wanted))[:200]}"
    require(False, f"{what}: {', '.join(differ[:4]) or trees}")


def require_types(got: Any, wanted: Any, what: str) -> None:
    """Compares shapes and dtypes, leaf by leaf."""
    for (name, x), y in zip(named_leaves(got), jax.tree.leaves(wanted), strict=True):
        kind, other = (f"{jnp.result_type(a)}{list(np.shape(a))}" for a in (x, y))
        require(kind == other, f"{what} {name or 'itself'!r} is {kind}, not {other}")
