"""Digests of what functions compute: a run's loss, initialization and optimizer, compared with a checkpoint's.

The function is traced, never run. Every value's digest is made of the primitive that gives it, its parameters and the
digests of what it is given, constants by their bits. So names, order and dead code make no difference, neither do the
process and its hash seed. JAX's version does: a digest is compared with those that were made alike alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._trees import shapes_of
from optlab.runs._fingerprints import fingerprints
from optlab.training.state import TrainState
from optlab.training.workload import Workload

Program = dict[str, Any]  # JSON data: "digest", "numbers" (its floating constants), "made" (how)
SHOWN = 40  # numbers that are kept of a program

_PACKAGES = ("jax", "optax", "flax", "optlab-jax")
_UNMAPPED = re.compile("unbound axis name|is no mapped axis here")  # JAX's words, and those of our matrices' blocks
# Calls of a part, which is read as if it stood there; and what only says where an array lies.
_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)
_PLACES = ("sharding_constraint", "optimization_barrier", "copy", "copy_p", "device_put", "mesh_cast", "reshard")
# Parameters of primitives that say how something is compiled, named or placed.
_HOW = re.compile(
    "name|inline|keep_unused|compiler_options_kvs|donated_invars|.*sharding.*|.*layouts?|.*mesh|debug.*|.*thunk"
)


def programs(workload: Workload, tx: optax.GradientTransformation, first: TrainState) -> dict[str, Program]:
    """Digests a run's programs: "model" (its initialization), "loss", "loss.training" (its gradient), "optimizer".

    Each is traced as on one device. One that needs a mapped axis (BatchNorm's, under pmap) is left out.
    """
    batch = workload.example()
    params, model_state, opt_state = shapes_of((first.params, first.model_state, first.opt_state))
    batch = shapes_of(batch)
    arguments = (params, model_state, batch, first.key)

    def loss(train: bool, params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        value, (model_state, _) = workload.loss(params, model_state, batch, key, train)
        return value, model_state

    traced: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "model": (workload.init, (first.key,)),
        "loss": (functools.partial(loss, False), arguments),
        "loss.training": (jax.value_and_grad(functools.partial(loss, True), has_aux=True), arguments),
        "optimizer": (_updates(tx), (params, opt_state)),
    }
    made = _made(batch)
    found = {}
    for name, (function, inputs) in traced.items():
        try:
            found[name] = {**program(function, *inputs), "made": made}
        except (NameError, ValueError) as error:
            if not _UNMAPPED.search(str(error)):
                raise
    return found


def program(function: Callable[..., Any], *arguments: Any) -> Program:
    """The digest of a function of such arguments, and its floating constants."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    reader = _Reader()
    values = reader.read(closed.jaxpr, closed.consts, _symbols(closed.jaxpr.invars))
    digest = _hash(str(jax.tree.structure(out)), *values)
    return {"digest": digest, "numbers": list(reader.numbers)[:SHOWN]}


def are_other(a: Program, b: Program) -> bool:
    """True if two programs differ; those made with other versions or settings can't be compared, and don't."""
    return a["made"] == b["made"] and a["digest"] != b["digest"]


def described(a: Program, b: Program) -> tuple[str, str]:
    """Describes each of two programs by the constants that only it has, or by its digest where there are none."""
    there, here = (", ".join(f"{n:g}" for n in x["numbers"] if n not in y["numbers"]) for x, y in ((a, b), (b, a)))
    if there and here:
        return there, here
    return _summary(a, there), _summary(b, here)


def _summary(program: Program, numbers: str) -> str:
    return f"program {program['digest'][:8]}" + (f" with {numbers}" if numbers else "")


def _updates(tx: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    """An optimizer's beginning and its update, with a plain function in the loss's place."""
    tx = optax.with_extra_args_support(tx)

    def value_fn(params: Any) -> jax.Array:
        return sum((abs(x * x).sum() for x in jax.tree.leaves(params)), jnp.zeros(()))

    def both(params: Any, opt_state: Any) -> Any:
        from optlab.training.step import takes

        taken = takes(tx.update)
        extra = {"value": value_fn(params), "grad": params, "value_fn": value_fn, "grad_fn": lambda params, _: params}
        extra = {name: x for name, x in extra.items() if taken(name)}
        return tx.init(params), tx.update(params, opt_state, params, **extra)

    return both


def _made(batch: Any) -> str:
    config: Any = jax.config
    settings = (config.jax_enable_x64, config.jax_default_matmul_precision, jax.default_backend())
    shapes = [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch)]
    return f"{', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}, {settings}, {' '.join(shapes)}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _symbols(variables: Sequence[Any]) -> list[str]:
    """An input stands for itself: its place, dtype and shape."""
    return [
        f"{i} {v.aval.dtype}{v.aval.shape}" if hasattr(v.aval, "shape") else str(i) for i, v in enumerate(variables)
    ]


class _Reader:
    """Reads one program, and collects the floating numbers that it holds."""

    def __init__(self) -> None:
        self.numbers: dict[float, None] = {}
        self.constants: dict[int, tuple[Any, str]] = {}

    def read(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[str]) -> list[str]:
        """The digests of the outputs, from those of the inputs."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.constvars, map(self._constant, constants), strict=True)

        def value(atom: Any) -> str:
            return self._constant(atom.val) if hasattr(atom, "val") else values[atom]

        for equation in _live(jaxpr):
            values |= zip(equation.outvars, self._outputs(equation, [value(x) for x in equation.invars]), strict=True)
        return [value(x) for x in jaxpr.outvars]

    def _outputs(self, equation: Any, inputs: list[str]) -> Sequence[str]:
        name, parameters = equation.primitive.name, equation.params
        if name in _PLACES and len(inputs) == len(equation.outvars):
            return inputs
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if name in _CALLS and inner is not None:
            part = getattr(inner, "jaxpr", inner)
            if len(part.invars) == len(inputs):
                return self.read(part, getattr(inner, "consts", ()), inputs)
        stated = (f"{key}={self._text(x)}" for key, x in sorted(parameters.items()) if not _HOW.fullmatch(key))
        whole = _hash(name, *stated, *inputs)
        return [f"{whole}/{i}" for i in range(len(equation.outvars))]

    def _text(self, x: Any) -> str:
        """A primitive's parameter, without addresses."""
        if hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns"):
            part = getattr(x, "jaxpr", x)
            return _hash(*self.read(part, getattr(x, "consts", ()), _symbols(part.invars)))
        if isinstance(x, Mapping):
            return str(sorted((str(key), self._text(v)) for key, v in x.items()))
        if isinstance(x, set | frozenset):
            return str(sorted(map(self._text, x)))
        if isinstance(x, list | tuple):
            return f"({' '.join(map(self._text, x))})"
        if isinstance(x, np.ndarray | jax.Array):
            return self._constant(x)
        if callable(x) and not isinstance(x, type):
            return f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', type(x).__name__)}"
        return re.sub(r" at 0x[0-9a-f]+", "", repr(x))

    def _constant(self, x: Any) -> str:
        if id(x) not in self.constants:
            self.constants[id(x)] = (x, self._bits(x))  # with what it is of, so that no other gets its id
        return self.constants[id(x)][1]

    def _bits(self, x: Any) -> str:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return f"key {self._bits(jax.random.key_data(x))}"
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return f"{x.dtype}{x.shape} {fingerprints({'x': x})['x']}"
        array = np.asarray(x)
        if array.size == 1 and jnp.issubdtype(array.dtype, np.floating) and (number := float(array.reshape(()))):
            self.numbers[float(f"{number:.6g}")] = None
        bits = hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"", digest_size=16)
        return f"{array.dtype}{array.shape} {bits.hexdigest()}"


def _live(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    needed, found = _variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            found.append(equation)
            needed |= _variables(equation.invars)
    return found[::-1]


def _variables(atoms: Sequence[Any]) -> set[Any]:
    """Those that aren't literal constants."""
    return {atom for atom in atoms if not hasattr(atom, "val")}
