"""How a step runs on the devices. This file alone knows how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Step = Callable[[Any, Any], tuple[Any, Any]]
STRATEGIES = ("single",)


class Parallel(NamedTuple):
    """How a state and a batch get to the devices, and the compiled step, which gives the state's buffers away."""

    place_state: Callable[[Any], Any]
    place_batch: Callable[[Any], Any]
    step: Step


def parallelize(step: Step, strategy: str = "single") -> Parallel:
    """Compiles a step for the devices.

    Args:
      step: from `make_step`, or your own (state, batch) -> (state, metrics).
      strategy: "single": one device, JAX's default.

    Returns:
      (place_state, place_batch, step).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    return Parallel(jax.device_put, jax.device_put, jax.jit(step, donate_argnums=0))
