"""`freeze`: parameters that stay as they are."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optlab.roles._paths import matches, paths_of

TRAINED, FROZEN = "trained", "frozen"


def freeze(tx: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformationExtraArgs:
    """Moves all parameters by a transformation, but those whose path matches a pattern: these stay as they are.

    No momentum, decay or clipping sees what is frozen, and there is no state for it. The gradient is computed all the
    same. In a config: `freeze=[hidden_0/*]`.

    Args:
        tx: moves the others.
        patterns: paths or patterns of paths, such as "hidden_0/*" or "block_*/norm_*/scale".

    Raises:
        ValueError: for what is no list; at init for a pattern that matches no parameter; it names the nearest path.
    """
    if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
        raise ValueError(f"patterns must be a list of paths, such as ['hidden_0/*'], got {patterns!r}")

    def labels(tree: Any) -> Any:
        paths = list(paths_of(tree))
        frozen = matches(dict.fromkeys(patterns, FROZEN), paths, "freeze:")
        return jax.tree.unflatten(jax.tree.structure(tree), [frozen.get(path, TRAINED) for path in paths])

    return optax.partition({TRAINED: tx, FROZEN: optax.set_to_zero()}, labels, mask_compatible_extra_args=True)
