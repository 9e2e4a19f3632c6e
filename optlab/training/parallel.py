"""A step and the devices that it runs on: the mesh, the strategy, and the memory that it needs."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from optlab.config import StrategyName, find_strategy
from optlab.training.sharding import Rules
from optlab.training.strategies import DATA, MODEL, Parallel, Step, check_processes


class DeviceMemoryError(RuntimeError):
    """A step that needs more memory than a device has. The message says how much, and what takes less."""


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """The devices as a mesh of two axes, "data" and "model", as `parallelize` takes it.

    Args:
        data: devices that share the batch; None takes all that there are.
        model: devices that share each of the matrices.

    Raises:
        ValueError: if there aren't as many devices.
    """
    count = jax.device_count()
    if model < 1 or (data is not None and data < 1):
        raise ValueError(f"data={data} and model={model} must be at least 1")
    if data is None and count % model:
        raise ValueError(f"model={model} must divide the {count} devices")
    data = count // model if data is None else data
    if data * model > count:
        raise ValueError(
            f"data={data} times model={model} is more than the {count} devices that JAX sees "
            "(XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight)"
        )
    devices = jax.devices()[: data * model]
    check_processes(np.asarray(devices))
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parallelize(
    step: Step, strategy: StrategyName = "single", mesh: Mesh | None = None, *, rules: Rules | None = None
) -> Parallel:
    """Compiles a step for the devices.

    One step serves all strategies, and so does one state: each keeps it in its natural shapes, and a checkpoint of one
    is a checkpoint of all. `optlab.config.STRATEGIES` says what each does. Under pmap the step itself takes the mean
    over the axis "data" between the gradient and the update: `make_step(..., axis_name="data")`.

    Args:
        step: from `make_step`, or your own (state, batch) -> (state, metrics). State and batch are pytrees of arrays; a
            batch's leaves have the example as their first axis; metrics are the same on every device. Under zero1 and
            fsdp the parameters are found by the name `params` on the state's first level (an attribute or a key). Under
            pmap the step must make the same state and metrics on every device, which is checked after 1, 2, 4, 8 …
            steps.
        strategy: a name from that table.
        mesh: of Auto axes. The axis "model", if there is one, divides the matrices (tensor parallelism); all others
            share the batch. None is all devices along "data". Under pmap "data" is the only axis longer than 1.
        rules: where the axis "model" goes, by role or by path, as {"embedding": P("model", None), "*/up/kernel":
            P(None, "model")}; the first that matches wins, before what `optlab.training.sharding` does by itself. Each
            has to match a parameter; "single" has no axes, and takes none.

    Returns:
        (place_state, place_batch, step), and more: see `Parallel`.

    Raises:
        ValueError: for a strategy that there isn't, a mesh or rules that don't fit; at the first step for one with a
            mean over an axis that the strategy doesn't have, or under pmap without one.
    """
    chosen = find_strategy(strategy)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}: say make_mesh(data, model)")
    if mesh is None and chosen.axes:
        mesh = make_mesh()
    return chosen.load()(chosen, step, mesh, rules or {})


def check_memory(parallel: Parallel, state: Any, batch: Any = None) -> int:
    """The bytes that a step needs on a device, from the compiled program; it compiles, and computes nothing.

    Args:
        parallel: what `parallelize` gave.
        state: placed, or `parallel.shapes` of one.
        batch: placed; None asks what the state alone needs, and compiles nothing.

    Raises:
        DeviceMemoryError: if that is more than a device has.
    """
    held = memory_held(state)
    needed = held if batch is None else memory_needed(parallel, state, batch)
    limit = memory_of(jax.local_devices()[0])
    if limit is not None and needed > limit:
        needs, has = f"{needed / 2**30:.2f} GiB", f"{limit / 2**30:.2f} GiB"
        divide = "divide the state over the devices (strategy='fsdp')"
        if batch is None:
            raise DeviceMemoryError(
                f"the state alone needs {needs} on every device, which has {has}: {divide}, or take an "
                "optimizer that keeps less"
            )
        raise DeviceMemoryError(
            f"a step needs {needs} on every device, which has {has}: {held / 2**30:.2f} GiB for the "
            "state, the rest mostly for the batch's activations. Cut the batch into microbatches (accumulate=4), "
            f"compute activations twice (a model with remat=True), or {divide}"
        )
    return needed


def memory_needed(parallel: Parallel, state: Any, batch: Any) -> int:
    """The same without a check."""
    run: Any = parallel.step
    analysis = run.compile(state, batch).memory_analysis()
    if analysis is None:
        return 0
    sizes = ("argument", "output", "temp", "generated_code")
    return sum(getattr(analysis, f"{s}_size_in_bytes") for s in sizes) - analysis.alias_size_in_bytes


def memory_held(state: Any) -> int:
    """The bytes of a state, or of its shapes with their shardings, on a device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))


def memory_of(device: jax.Device) -> int | None:
    """Bytes: what the backend may use; a CPU's simulated devices share the machine's."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
