"""The base of all strategies: placing states and batches, and a bound on the steps in flight."""

from __future__ import annotations

import abc
import collections
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.config import Strategy
from optlab.training.handover import owned
from optlab.training.sharding import Rules, check_rules, specs

Step = Callable[[Any, Any], tuple[Any, Any]]
DATA, MODEL = "data", "model"

# More than 16 programs with collectives in flight on simulated devices can deadlock (jax 0.10.2).
IN_FLIGHT = 8
# Random numbers for every kernel are one big program that runs once: optimizing it took ResNet-20 16 s on a CPU, not 2.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Program(Protocol):
    """A compiled step."""

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]: ...

    def compile(self, state: Any, batch: Any) -> Any:
        """Compiles the step for such arguments and returns JAX's `Compiled`; nothing runs."""


class Parallel(abc.ABC):
    """A step on its devices, as `parallelize` returns it; unpacked it is (place_state, place_batch, step).

    Attributes:
        strategy: the row of the table of strategies.
        mesh: the devices, or None for "single".
        replicated: the sharding of what is the same everywhere; None for "single".
        step: the compiled step. It gives the state's buffers away, and waits while many steps are in flight.
    """

    strategy: Strategy
    mesh: Mesh | None
    replicated: NamedSharding | None
    step: Bounded

    @property
    def compiles_shapes(self) -> bool:
        """True if the step can be compiled for a state's shapes; else it takes a state that is placed."""
        return True

    @abc.abstractmethod
    def place_state(self, state: Any, *arguments: Any) -> Any:
        """Copies a state to where it belongs, since the step gives its buffers away; or makes one there.

        Args:
            state: the state; or a function of `arguments` that returns one, which is compiled.
            *arguments: the function's.
        """

    @abc.abstractmethod
    def place_batch(self, batch: Any, examples: int | None = None) -> Any:
        """Copies a batch to the devices, its examples divided among those that share the batch.

        Args:
            batch: in one of several processes, the rows that `rows` names.
            examples: how many the whole batch has, needed with several processes: one that can't be divided evenly goes
                whole to all devices. Without that number it is divided.
        """

    @abc.abstractmethod
    def rows(self, examples: int) -> slice:
        """The rows that this process has to read of a batch of so many examples."""

    @abc.abstractmethod
    def shapes(self, state: Any) -> Any:
        """A state's shapes and dtypes with the sharding that `place_state` gives each leaf; nothing is made."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.place_state, self.place_batch, self.step))


class OnMesh(Parallel):
    """A step on the devices of a mesh. Subclasses choose what is divided, and compile the step.

    The axis "model" divides matrices where the mesh has one; all other axes share the batch.
    """

    mesh: Mesh
    replicated: NamedSharding

    def __init__(self, strategy: Strategy, step: Step, mesh: Mesh, rules: Rules):
        _check_mesh(mesh, strategy)
        check_rules(rules, mesh, MODEL)
        self.strategy, self.mesh, self.rules = strategy, mesh, rules
        self.data = tuple(a for a in mesh.axis_names if a != MODEL)
        self.count = mesh.size // mesh.shape.get(MODEL, 1)  # devices that share the batch
        self.replicated, self.spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(self.data))
        self.step = Bounded(self.program(step), mesh.size)

    @abc.abstractmethod
    def program(self, step: Step) -> Program:
        """The step, to be compiled when its first arguments come."""

    def divides(self, part: str) -> bool:
        """True if the devices that share the batch divide this part of a state, by its name on the first level."""
        return False

    def shardings(self, state: Any) -> Any:
        """A tree like the state, of shardings."""
        found = specs(state, self.mesh, self.divides, self.data, MODEL, self.rules)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), found)

    def shapes(self, state: Any) -> Any:
        return jax.tree.map(shape, state, self.shardings(state))

    def place_state(self, state: Any, *arguments: Any) -> Any:
        if callable(state):
            return make(state, arguments, self.shardings)
        state = jax.tree.map(lambda x: x if hasattr(x, "shape") else jnp.asarray(x), state)  # Flax's step is an int
        if jax.process_count() > 1:
            return make(lambda x: jax.tree.map(jnp.copy, x), (state,), self.shardings)
        own = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, state)
        # A copy of our own: on the same device device_put would return its source all the same.
        return jax.device_put(own, self.shardings(state), may_alias=False)

    def place_batch(self, batch: Any, examples: int | None = None) -> Any:
        _check_batch(batch)
        if jax.process_count() == 1:
            examples = len(jax.tree.leaves(batch)[0])
        sharding = self.replicated if examples is not None and examples % self.count else self.spread
        if jax.process_count() == 1:
            return jax.device_put(owned(batch), sharding)

        def put(x: Any) -> jax.Array:
            whole = None if examples is None else (examples, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, np.asarray(x), whole)

        return jax.tree.map(put, owned(batch))

    def rows(self, examples: int) -> slice:
        if jax.process_count() == 1 or examples % self.count:
            return slice(examples)
        mine = [index[0] for index in self.spread.addressable_devices_indices_map((examples,)).values() if index]
        bounds = [i.indices(examples) for i in mine]
        return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


class Bounded:
    """A program that waits for its oldest run when as many are in flight as simulated devices can bear."""

    def __init__(self, program: Program, devices: int):
        self.program, self.is_bounded = program, devices > 1
        self.in_flight: collections.deque[Any] = collections.deque()

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        _check_there(state)
        state, metrics = self.program(state, batch)
        if self.is_bounded and not jax.tree.leaves(metrics):  # the next step gives all else away: nothing to wait for
            jax.block_until_ready(state)
        elif self.is_bounded:
            self.in_flight.append(metrics)
            if len(self.in_flight) > IN_FLIGHT:
                jax.block_until_ready(self.in_flight.popleft())
        return state, metrics

    def compile(self, state: Any, batch: Any) -> Any:
        return self.program.compile(state, batch)


def without_axis(step: Step, strategy: Strategy) -> Step:
    """The step, for a strategy under which no axis has a name."""

    def named(state: Any, batch: Any) -> tuple[Any, Any]:
        try:
            return step(state, batch)
        except NameError as error:
            if not is_of_axis(error):
                raise
            raise ValueError(
                f"{error}: strategy={strategy.name!r} has the whole batch and no such axis, so make_step(...) without "
                "axis_name (a model's axis_name too), or strategy='pmap'"
            ) from error

    return named


def is_of_axis(error: NameError) -> bool:
    """True if JAX raised it for an axis that has no such name."""
    return "unbound axis name" in str(error)


def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, in a place of its own."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


# Making a state where it belongs.


def make(function: Callable[..., Any], arguments: tuple[Any, ...], where: Callable[[Any], Any] | None) -> Any:
    """Compiles function(*arguments) so that every leaf is made where it belongs, and runs it.

    Args:
        function: returns a state.
        arguments: its arguments.
        where: a state's shapes -> a tree of shardings; None leaves it to JAX.
    """
    if jax.process_count() > 1:  # what every process has the same of may go to all devices
        arguments = jax.tree.map(_on_host, arguments)
        function = _from_host(function)
    options = _QUICK if jax.default_backend() == "cpu" else None
    shardings = None if where is None else where(jax.eval_shape(function, *arguments))
    return jax.jit(function, out_shardings=shardings, compiler_options=options)(*arguments)


@dataclass(frozen=True)
class _Key:
    """A random key's numbers on the host."""

    data: Any  # np.ndarray
    implementation: Any


jax.tree_util.register_dataclass(_Key, ["data"], ["implementation"])


def _on_host(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:  # it is everywhere already
        return x
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _Key(np.asarray(jax.random.key_data(x)), jax.random.key_impl(x))
    return np.asarray(x)


def _from_host(function: Callable[..., Any]) -> Callable[..., Any]:
    def back(x: Any) -> Any:
        return jax.random.wrap_key_data(x.data, impl=x.implementation) if isinstance(x, _Key) else x

    return lambda *arguments: function(*jax.tree.map(back, arguments, is_leaf=lambda x: isinstance(x, _Key)))


# Checks.


def check_processes(devices: np.ndarray) -> None:
    """Raises a ValueError unless every process has one of the devices."""
    if left := set(range(jax.process_count())) - {d.process_index for d in devices.flat}:
        raise ValueError(f"the mesh's {devices.size} devices must be of every process: none is of {sorted(left)}")


def check_placed(state: Any, devices: Collection[jax.Device]) -> None:
    """Raises a ValueError unless every leaf of a state is on all of the devices."""

    def is_elsewhere(x: Any) -> bool:
        return getattr(getattr(x, "sharding", None), "device_set", None) != devices

    if any(map(is_elsewhere, jax.tree.leaves(state))):
        raise ValueError(
            f"the state's {_first(is_elsewhere, state)} isn't on the mesh's {len(devices)} devices: say "
            "place_state(state) first"
        )


def _check_mesh(mesh: Mesh, strategy: Strategy) -> None:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the mesh's axes must be Auto, got {mesh.axis_types}: jax.make_mesh(…, axis_types=(AxisType.Auto,) * n), "
            "or optlab.training.make_mesh"
        )
    check_processes(mesh.devices)
    others = {a: n for a, n in mesh.shape.items() if a != DATA and n > 1}
    if strategy.axes == (DATA,) and (others or DATA not in mesh.shape):
        raise ValueError(
            f"strategy={strategy.name!r} has one axis, {DATA!r}, got {dict(mesh.shape)}: say strategy='jit'"
        )


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
    """Refuses buffers that were given away: simulated devices that read one end the process without a word."""
    if any(map(_is_gone, jax.tree.leaves(state))):
        raise ValueError(
            f"the state's {_first(_is_gone, state)} was given away to an earlier step: go on with the state that step "
            "returned, or keep a copy (place_state makes one)"
        )


def _is_gone(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_deleted()


def _first(test: Callable[[Any], bool], tree: Any) -> str:
    """The name of the first leaf of which that is true."""
    path = next(path for path, x in jax.tree_util.tree_leaves_with_path(tree) if test(x))
    return repr(jax.tree_util.keystr(path, simple=True, separator="/"))
