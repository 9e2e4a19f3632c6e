"""Deterministic kernels on GPUs: the XLA flag that selects them, set before JAX starts its devices."""

from __future__ import annotations

import os
import sys

from optlab.config import ConfigError

# Reductions without atomic additions, and no autotuning, which chooses kernels by how fast they happen to be.
FLAG = "--xla_gpu_deterministic_ops=true"


def make_deterministic() -> None:
    """Sets the flag, which XLA reads when JAX starts its devices. It makes no difference on a CPU.

    Raises:
        ConfigError: if JAX has started GPUs without the flag.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags.split():
        return
    if "jax" in sys.modules:
        import jax
        from jax._src.xla_bridge import backends_are_initialized

        if backends_are_initialized():
            if jax.default_backend() == "gpu":
                raise ConfigError(
                    f"deterministic=true comes too late: JAX has its devices already; set XLA_FLAGS={FLAG}"
                )
            return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
