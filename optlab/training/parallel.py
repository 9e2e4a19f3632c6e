"""How a step runs on the devices. This file alone knows how many there are."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from optlab.runs._fingerprints import fingerprint
from optlab.training.handover import owned
from optlab.training.sharding import Rules, check_rules, specs

Step = Callable[[Any, Any], tuple[Any, Any]]
Strategy: TypeAlias = Literal["single", "pmap", "jit", "zero1", "fsdp"]
STRATEGIES = ("single", "pmap", "jit", "zero1", "fsdp")
DATA, MODEL = "data", "model"

# More simulated devices' collectives in flight than 16 can deadlock (jax 0.10.2); the loop has as many at most.
IN_FLIGHT = 8
# Random numbers for every kernel are one big program that runs once: optimizing it took ResNet-20 16 s on a CPU, not 2.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
    _check_processes(np.asarray(devices))
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


@dataclass(frozen=True)
class Parallel:
    """What `parallelize` gives; unpacked it is (place_state, place_batch, step).

    Attributes:
      place_state: gets a state to where it belongs, as a copy of its own (the step gives its buffers away); or makes
        one there: `place_state(function, *arguments)` compiles the function.
      place_batch: gets a batch to the devices, examples divided among those that share the batch. In one of several
        processes it takes the rows that `rows` names, and how many examples the whole batch has: one that can't be
        divided evenly goes whole to all. Without that number it is divided.
      step: the compiled step. It gives the state's buffers away, and waits while many steps are in flight.
      mesh: the devices, or None for "single".
      rows: of a batch of so many examples the slice that this process has to read.
      replicated: the sharding of what is the same everywhere; None for "single".
      shapes: a state's shapes and dtypes with the sharding that `place_state` gives each leaf; nothing is made.
    """

    place_state: Callable[..., Any]
    place_batch: Callable[..., Any]
    step: Step
    mesh: Mesh | None
    rows: Callable[[int], slice]
    replicated: NamedSharding | None
    shapes: Callable[[Any], Any]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.place_state, self.place_batch, self.step))


def parallelize(
    step: Step, strategy: Strategy = "single", mesh: Mesh | None = None, *, rules: Rules | None = None
) -> Parallel:
    """Compiles a step for the devices.

    One step serves all strategies, and so does one state: each keeps it in its natural shapes, and a checkpoint of one
    is a checkpoint of all.

        single  one device, JAX's default.
        pmap    every device has the state and runs the step on its part of the batch. The step itself takes the mean
                over the axis "data" between the gradient and the update: `make_step(..., axis_name="data")`.
        jit     the same as one program of the whole batch, divided by the compiler (`NamedSharding`).
        zero1   jit, with the optimizer's state and the moving average divided over the devices as well.
        fsdp    zero1, with the parameters divided too.

    Args:
      step: from `make_step`, or your own (state, batch) -> (state, metrics). State and batch are pytrees of arrays; a
        batch's leaves have the example as their first axis; metrics are the same on every device. Under zero1 and fsdp
        the state's first level tells the parameters by the name `params` (an attribute or a key). Under pmap the step
        must make the same state and metrics on every device, which is checked after 1, 2, 4, 8 … steps.
      strategy: one of those above.
      mesh: of Auto axes. The axis "model", if there is one, divides the matrices (tensor parallelism); all others
        share the batch. None is all devices along "data". Under pmap "data" is the only axis longer than 1.
      rules: where the axis "model" goes, by role or by path, as {"embedding": P("model", None), "*/up/kernel":
        P(None, "model")}; the first that matches wins, before what `optlab.training.sharding` does by itself. Each has
        to match a parameter; "single" has no axes, and takes none.

    Returns:
      (place_state, place_batch, step), and more: see `Parallel`.

    Raises:
      ValueError: for a strategy that there isn't, a mesh or rules that don't fit; at the first step for one with a mean
        over an axis that the strategy doesn't have, or under pmap without one.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}: say make_mesh(data, model)")
    if strategy == "single":
        if rules:
            raise ValueError(f"strategy='single' divides nothing, got rules for {', '.join(rules)}: say strategy='jit'")
        if jax.process_count() > 1:
            raise ValueError(f"strategy='single' is one process, here are {jax.process_count()}: say strategy='jit'")
        if mesh is not None and mesh.size > 1:
            raise ValueError(f"strategy='single' is one device, got a mesh of {mesh.size}: say strategy='jit'")
        device = SingleDeviceSharding(jax.local_devices()[0])
        put = lambda tree: jax.device_put(tree, device, may_alias=False)
        place = lambda state, *arguments: _make(state, arguments, None) if callable(state) else put(state)
        put_batch = lambda batch, examples=None: jax.device_put(owned(batch))
        shapes = lambda state: jax.tree.map(lambda x: _shape(x, device), state)
        return Parallel(
            place, put_batch, _Bounded(_Single(_without_axis(step, strategy)), 1), None, slice, None, shapes
        )
    mesh = make_mesh() if mesh is None else mesh
    _check_mesh(mesh, strategy)
    check_rules(rules or {}, mesh, MODEL)
    data = tuple(a for a in mesh.axis_names if a != MODEL)
    replicated = NamedSharding(mesh, P())
    where = lambda state: jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(state, mesh, strategy, data, MODEL, rules or {})
    )

    def place_state(state: Any, *arguments: Any) -> Any:
        if not callable(state):
            state = jax.tree.map(lambda x: x if hasattr(x, "shape") else jnp.asarray(x), state)  # Flax's step is an int
            if jax.process_count() == 1:
                own = lambda x: x.copy() if isinstance(x, jax.Array) else x  # a device's copy would alias its source
                return jax.device_put(jax.tree.map(own, state), where(state), may_alias=False)
            state, arguments = (lambda x: jax.tree.map(jnp.copy, x)), (state,)
        return _make(state, arguments, where)

    count = mesh.size // mesh.shape.get(MODEL, 1)
    spread = NamedSharding(mesh, P(data))

    def rows(examples: int) -> slice:
        if jax.process_count() == 1 or examples % count:
            return slice(examples)
        mine = [index[0] for index in spread.addressable_devices_indices_map((examples,)).values() if index]
        bounds = [i.indices(examples) for i in mine]
        return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def place_batch(batch: Any, examples: int | None = None) -> Any:
        _check_batch(batch)
        if jax.process_count() == 1:
            examples = len(jax.tree.leaves(batch)[0])
        sharding = replicated if examples is not None and examples % count else spread
        if jax.process_count() == 1:
            return jax.device_put(owned(batch), sharding)
        shape = lambda x: None if examples is None else (examples, *x.shape[1:])
        put = lambda x: jax.make_array_from_process_local_data(sharding, x, shape(x))
        return jax.tree.map(lambda x: put(np.asarray(x)), owned(batch))

    run = _Pmapped(step, mesh) if strategy == "pmap" else _Jitted(_without_axis(step, strategy), mesh, strategy)
    shapes = lambda state: jax.tree.map(_shape, state, where(state))
    return Parallel(place_state, place_batch, _Bounded(run, mesh.size), mesh, rows, replicated, shapes)


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
        gib = lambda n: f"{n / 2**30:.2f} GiB"
        divide = "divide the state over the devices (strategy='fsdp')"
        if batch is None:
            raise DeviceMemoryError(
                f"the state alone needs {gib(needed)} on every device, which has {gib(limit)}: {divide}, or take an "
                "optimizer that keeps less"
            )
        raise DeviceMemoryError(
            f"a step needs {gib(needed)} on every device, which has {gib(limit)}: {gib(held)} for the "
            "state, the rest mostly for the batch's activations. Cut the batch into microbatches (accumulate=4), "
            f"compute activations twice (remat=True of the model), or {divide}"
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


def _shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _check_processes(devices: np.ndarray) -> None:
    if left := set(range(jax.process_count())) - {d.process_index for d in devices.flat}:
        raise ValueError(f"the mesh's {devices.size} devices must be of every process: none is of {sorted(left)}")


def _check_mesh(mesh: Mesh, strategy: str) -> None:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the mesh's axes must be Auto, got {mesh.axis_types}: jax.make_mesh(…, axis_types=(AxisType.Auto,) * n), "
            "or optlab.training.make_mesh"
        )
    _check_processes(mesh.devices)
    others = {a: n for a, n in mesh.shape.items() if a != DATA and n > 1}
    if strategy == "pmap" and (others or DATA not in mesh.shape):
        raise ValueError(f"strategy='pmap' has one axis, 'data', got {dict(mesh.shape)}: say strategy='jit'")


def _check_batch(batch: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"a batch must hold arrays, got {batch!r}")
    for path, x in leaves:
        if np.ndim(x) == 0 or np.shape(x)[0] == 0:
            name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(x)
            raise ValueError(
                f"the batch's {name!r} must have the examples as its first axis, got the shape {shape}: "
                "np.full(examples, value) says a number for each"
            )


def _check_there(state: Any) -> None:
    """Simulated devices that read a buffer that was given away end the process, with nothing said."""
    is_gone = lambda x: isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_deleted()
    if any(map(is_gone, jax.tree.leaves(state))):
        raise ValueError(
            f"the state's {_first(is_gone, state)} was given away to an earlier step: go on with the state that step "
            "returned, or keep a copy (place_state makes one)"
        )


def _check_placed(state: Any, devices: Collection[jax.Device]) -> None:
    is_elsewhere = lambda x: getattr(getattr(x, "sharding", None), "device_set", None) != devices
    if any(map(is_elsewhere, jax.tree.leaves(state))):
        raise ValueError(
            f"the state's {_first(is_elsewhere, state)} isn't on the mesh's {len(devices)} devices: say "
            "place_state(state) first"
        )


def _first(test: Callable[[Any], bool], tree: Any) -> str:
    """The name of the first leaf of which that is true."""
    path = next(path for path, x in jax.tree_util.tree_leaves_with_path(tree) if test(x))
    return repr(jax.tree_util.keystr(path, simple=True, separator="/"))


def _make(function: Callable[..., Any], arguments: tuple[Any, ...], where: Callable[[Any], Any] | None) -> Any:
    """function(*arguments), compiled so that every leaf is made where it belongs."""
    if jax.process_count() > 1:  # what every process has the same of may go to all devices
        arguments = jax.tree.map(_on_host, arguments)
        function = _from_host(function)
    options = _QUICK if jax.default_backend() == "cpu" else None
    shardings = None if where is None else where(jax.eval_shape(function, *arguments))
    return jax.jit(function, out_shardings=shardings, compiler_options=options)(*arguments)


@dataclass(frozen=True)
class _Key:
    """A random key's numbers on the host."""

    data: np.ndarray
    implementation: Any


jax.tree_util.register_dataclass(_Key, ["data"], ["implementation"])


def _on_host(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:  # it is everywhere already
        return x
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _Key(np.asarray(jax.random.key_data(x)), jax.random.key_impl(x))
    return np.asarray(x)


def _from_host(function: Callable[..., Any]) -> Callable[..., Any]:
    is_key = lambda x: isinstance(x, _Key)
    back = lambda x: jax.random.wrap_key_data(x.data, impl=x.implementation) if is_key(x) else x
    return lambda *arguments: function(*jax.tree.map(back, arguments, is_leaf=is_key))


def _without_axis(step: Step, strategy: Strategy) -> Step:
    """The step, for a strategy under which no axis has a name."""

    def named(state: Any, batch: Any) -> tuple[Any, Any]:
        try:
            return step(state, batch)
        except NameError as error:
            if not _is_of_axis(error):
                raise
            raise ValueError(
                f"{error}: strategy={strategy!r} has the whole batch and no such axis, so make_step(...) without "
                "axis_name (a model's axis_name too), or strategy='pmap'"
            ) from error

    return named


def _is_of_axis(error: NameError) -> bool:
    return "unbound axis name" in str(error)


class _Bounded:
    """A compiled step that waits for the oldest one when as many are in flight as simulated devices can bear."""

    def __init__(self, run: Any, devices: int):
        self.run, self.is_bounded = run, devices > 1
        self.in_flight: collections.deque[Any] = collections.deque()

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        _check_there(state)
        state, metrics = self.run(state, batch)
        if self.is_bounded and not jax.tree.leaves(metrics):  # the next step gives all else away: nothing to wait for
            jax.block_until_ready(state)
        elif self.is_bounded:
            self.in_flight.append(metrics)
            if len(self.in_flight) > IN_FLIGHT:
                jax.block_until_ready(self.in_flight.popleft())
        return state, metrics

    def compile(self, state: Any, batch: Any) -> Any:
        return self.run.compile(state, batch)


class _Single:
    """The step on one device."""

    def __init__(self, step: Step):
        self.run = jax.jit(step, donate_argnums=0)

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        return self.run(state, batch)

    def compile(self, state: Any, batch: Any) -> Any:
        return self.run.lower(state, batch).compile()


class _Jitted:
    """The step as one program over the mesh; a new state is placed like the old one."""

    def __init__(self, step: Step, mesh: Mesh, strategy: Strategy):
        def on_mesh(state: Any, batch: Any) -> tuple[Any, Any]:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for what looks for a mesh: orthogonalize
                return step(state, batch)

        self.on_mesh, self.replicated = on_mesh, NamedSharding(mesh, P())
        self.is_fsdp, self.count = strategy == "fsdp" and mesh.size > 1, mesh.size // mesh.shape.get(MODEL, 1)
        self.compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        if self.is_fsdp:
            self._check_divided(batch)
        return self._for(state)(state, batch)

    def compile(self, state: Any, batch: Any) -> Any:
        return self._for(state).lower(state, batch).compile()

    def _check_divided(self, batch: Any) -> None:
        """A whole batch beside divided parameters came to wrong gradients on 3 × 2 devices (jax 0.10.2)."""
        examples = len(jax.tree.leaves(batch)[0])
        if examples % self.count:
            raise ValueError(
                f"strategy='fsdp' needs a batch that the {self.count} devices which share it divide, got {examples}"
            )

    def _for(self, state: Any) -> Any:
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: getattr(x, "sharding", None), state))
        if (key := (structure, tuple(leaves))) not in self.compiled:
            _check_placed(state, self.replicated.device_set)
            like = jax.tree.unflatten(structure, leaves)
            self.compiled[key] = jax.jit(self.on_mesh, donate_argnums=0, out_shardings=(like, self.replicated))
        return self.compiled[key]


class _Pmapped:
    """The step on every device, each with its part of the batch; state and metrics keep their shapes."""

    def __init__(self, step: Step, mesh: Mesh):
        self.count, self.calls = mesh.shape[DATA], 0
        self.compiled: dict[Any, Any] = {}
        devices = list(mesh.devices.flat)
        settings: dict[str, Any] = {"axis_name": DATA, "in_axes": (None, 0), "out_axes": None, "devices": devices}
        self.run = jax.pmap(step, donate_argnums=0, **settings)
        # What pmap is made of, and can be traced with shapes alone, those of several processes' arrays too.
        self.mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P(), check_vma=False)
        fingerprints = lambda leaves: [fingerprint(_bits(x))[None] for x in leaves]
        on_each = jax.shard_map(fingerprints, mesh=mesh, in_specs=P(), out_specs=P(DATA), check_vma=False)
        self.fingerprints = jax.jit(on_each, out_shardings=NamedSharding(mesh, P()))  # every process sees all
        self.divided = jax.jit(
            lambda batch: jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch),
            out_shardings=NamedSharding(mesh, P(DATA)),
        )

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = self.compile(state, batch)(state, self._parts(batch))
        self.calls += 1
        if self.calls.bit_count() == 1:  # after 1, 2, 4, 8 … steps: with a learning rate of 0 a fault shows late
            self._check_equal(new, metrics)
        return new, metrics

    def compile(self, state: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten((state, batch))
        shapes = (structure, *((x.shape, x.dtype) for x in leaves))
        if shapes not in self.compiled:  # kept here, since pmap's own cache isn't filled by compile()
            parts = self._parts(batch)
            self._check_mean(state, batch)
            self.compiled[shapes] = self.run.lower(state, parts).compile()
        return self.compiled[shapes]

    def _parts(self, batch: Any) -> Any:
        examples = len(jax.tree.leaves(batch)[0])
        if examples % self.count:
            raise ValueError(f"strategy='pmap' needs a batch that its {self.count} devices divide, got {examples}")
        return self.divided(batch)

    def _check_mean(self, state: Any, batch: Any) -> None:
        advice = f"make_step(..., axis_name={DATA!r}), or jax.lax.pmean(gradients, {DATA!r}) in a step of your own"
        try:
            # Shapes alone: arrays would show a mesh, which in pmap is not to be seen.
            state, batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
            jaxpr = jax.make_jaxpr(self.mapped)(state, batch)
        except NameError as error:
            if not _is_of_axis(error):
                raise
            raise ValueError(f"{error}: strategy='pmap' has the axis {DATA!r}, so {advice}") from error
        if not _reduces(jaxpr.jaxpr, DATA):
            raise ValueError(
                f"strategy='pmap' needs a step that takes the mean over the devices, and this one never does: {advice}"
            )

    def _check_equal(self, state: Any, metrics: Any) -> None:
        leaves = jax.tree_util.tree_leaves_with_path((state, metrics))
        for ((which, *path), _), found in zip(leaves, self.fingerprints([x for _, x in leaves]), strict=True):
            if (np.asarray(found) != np.asarray(found)[0]).any():
                name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
                things, what = (("states", "goes into the state"), ("metrics", "is measured"))[which.idx]
                raise ValueError(
                    f"after {self.calls} steps under strategy='pmap' the devices' {things} differ in {name!r}: "
                    f"whatever {what} must be averaged over the axis {DATA!r} first, as gradients by jax.lax.pmean"
                )


def _bits(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _reduces(jaxpr: Any, axis: str) -> bool:
    """Whether a program sums or gathers over an axis anywhere."""
    for equation in jaxpr.eqns:
        axes = equation.params.get("axes", equation.params.get("axis_name", ()))
        axes = axes if isinstance(axes, tuple | list) else (axes,)
        if axis in axes and any(word in equation.primitive.name for word in ("psum", "gather", "reduce", "pmax")):
            return True
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: _as_jaxpr(x) is not None):
            if (found := _as_jaxpr(inner)) is not None and _reduces(found, axis):
                return True
    return False


def _as_jaxpr(x: Any) -> Any:
    x = getattr(x, "jaxpr", x)
    return x if hasattr(x, "eqns") else None
