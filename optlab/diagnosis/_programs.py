"""What programs show: a graph of their operations, what a model ends in, what saturates, and mistakes in a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PASSED = ("reshape", "convert_element_type", "squeeze", "transpose", "copy", "broadcast_in_dim", "stop_gradient")
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LOOPS = ("scan", "while", "cond")
PRODUCTS = ("dot_general", "conv_general_dilated")
EXAMPLES = 37  # a prime number, so that no other axis is likely to have as many
BENT = 0.99  # of the largest value: there a tanh has a fiftieth of its steepest slope
KEYS = 8  # of fewer, one may well have nearly all attention


@dataclass(frozen=True, eq=False)
class Node:
    """An operation with what it takes.

    Attributes:
        name: of the operation; that of a root is what it is: "params", "labels" or "other".
        shape: of what comes out.
        inputs: what it takes.
        roots: the names of the roots that it depends on, and of parameters their numbers in the tree's order.
        is_zero: whether it is a literal 0.
        value: what comes out, where the program was run; None where it was only traced.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[Node, ...] = ()
    roots: frozenset[str | int] = frozenset()
    is_zero: bool = False
    value: Any = None

    @property
    def source(self) -> Node:
        """The operation that made the numbers, before they were reshaped, broadcast or converted."""
        node = self
        while node.name in PASSED and node.inputs:
            node = node.inputs[0]
        return node


def first_examples(batch: Any) -> Any:
    """The first `EXAMPLES` of a batch."""
    return jax.tree.map(lambda x: np.asarray(x)[:EXAMPLES], batch)


def nodes_of(loss: Any, *args: Any, is_run: bool = False) -> tuple[Node, list[Node]]:
    """The value of loss(*args), and the operations that make it, calls inlined.

    Args:
        loss: of a workload, with the last argument held.
        args: params, model_state, batch, key.
        is_run: whether each node has its value, too.
    """
    closed = jax.make_jaxpr(loss)(*args)
    named = jax.tree.leaves_with_path(args)
    roots = []
    for at, ((path, x), v) in enumerate(zip(named, closed.jaxpr.invars, strict=True)):
        name = _root(path)
        held: frozenset[str | int] = frozenset([name, at] if name == "params" else [name])
        roots.append(Node(name, v.aval.shape, (), held, value=x if is_run else None))
    found: list[Node] = []
    outs = _inline(closed.jaxpr, _consts(closed.jaxpr, closed.consts if is_run else ()), roots, found, is_run)
    return outs[0], found


def _root(path: Sequence[Any]) -> str:
    if path[0].idx == 0:
        return "params"
    return "labels" if path[0].idx == 2 and getattr(path[1], "key", None) == "labels" else "other"


def _consts(jaxpr: Any, values: Sequence[Any] = ()) -> list[Node]:
    held = values or [None] * len(jaxpr.constvars)
    return [Node("other", v.aval.shape, value=x) for v, x in zip(jaxpr.constvars, held, strict=True)]


def _inline(jaxpr: Any, consts: list[Node], inputs: list[Node], found: list[Node], is_run: bool = False) -> list[Node]:
    made = dict(zip((id(v) for v in (*jaxpr.constvars, *jaxpr.invars)), (*consts, *inputs), strict=True))

    def read(v: Any) -> Node:
        if hasattr(v, "val"):
            return Node("literal", np.shape(v.val), is_zero=not np.any(np.asarray(v.val)), value=v.val)
        return made[id(v)]

    for eqn in jaxpr.eqns:
        taken, name = [read(v) for v in eqn.invars], eqn.primitive.name
        inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
        body: Any = getattr(inner, "jaxpr", inner)
        if hasattr(body, "eqns") and name not in LOOPS and len(body.invars) == len(taken):
            held = _consts(body, getattr(inner, "consts", ()) if is_run else ())
            outs = _inline(body, held, taken, found, is_run)
        else:
            roots = frozenset().union(*(x.roots for x in taken))
            values = _values(eqn, [x.value for x in taken]) if is_run else [None] * len(eqn.outvars)
            outs = [
                Node(name, getattr(v.aval, "shape", ()), tuple(taken), roots, value=x)
                for v, x in zip(eqn.outvars, values, strict=True)
            ]
            found += outs
        made.update(zip(map(id, eqn.outvars), outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _values(eqn: Any, taken: list[Any]) -> list[Any]:
    value = eqn.primitive.bind(*taken, **eqn.primitive.get_bind_params(eqn.params))
    return list(value) if eqn.primitive.multiple_results else [value]


def last_operation(jaxpr: Any) -> str | None:
    """The nonlinearity that a program's first output ends in, or None."""
    inputs = [Node("other", v.aval.shape) for v in jaxpr.invars]
    return nonlinearity(_inline(jaxpr, _consts(jaxpr), inputs, [])[0])


def nonlinearity(node: Node) -> str | None:
    """What made a node's numbers: "softmax", "logistic", "tanh", "relu", or None for anything else."""
    x = node.source
    if x.name in ("logistic", "tanh"):
        return x.name
    if x.name == "div" and x.inputs[0].source.name == "exp":
        return "softmax"
    return "relu" if x.name == "max" and any(i.source.is_zero for i in x.inputs) else None


def bounded_logits(nodes: Sequence[Node]) -> str | None:
    """The nonlinearity whose values a log-softmax takes as logits; None where there is no such."""
    for node in nodes:
        if (total := _normalizer(node)) is not None:
            shifted = total.inputs[0].source.inputs[0].source
            if (found := nonlinearity(shifted.inputs[0])) is not None:
                return found
    return None


def _normalizer(node: Node) -> Node | None:
    """The sum of shifted exponentials whose logarithm a node is; None where it is no such."""
    if node.name != "log":
        return None
    total = node.inputs[0].source
    total = total.inputs[0].source if total.name == "abs" else total  # logsumexp takes signs, too
    if total.name != "reduce_sum" or (power := total.inputs[0].source).name != "exp":
        return None
    return total if power.inputs[0].source.name == "sub" else None


def crossed(nodes: Sequence[Node]) -> bool:
    """True if outputs (N, 1) and labels (N,) are subtracted to (N, N): every output from every label."""
    return any(
        node.name == "sub" and node.shape == (EXAMPLES, EXAMPLES) and sorted(_sides(node)) == [False, True]
        for node in nodes
    )


def _sides(node: Node) -> Iterator[bool]:
    """Of each operand that has one number an example: whether it depends on parameters; labels don't."""
    for x in node.inputs:
        if int(np.prod(x.source.shape)) == EXAMPLES and ("params" in x.roots or "labels" in x.roots):
            yield "params" in x.roots


def outputs_of(nodes: Sequence[Node]) -> Node | None:
    """The outputs, one row an example: what depends on parameters alone where labels first meet it; None: not seen."""
    for node in nodes:
        if not {"params", "labels"} <= node.roots:
            continue
        for x in node.inputs:
            made = x.source
            if "params" in made.roots and made.shape[:1] == (EXAMPLES,):
                return made
        return None
    return None


def bends(nodes: Sequence[Node]) -> list[tuple[str, Node]]:
    """The units and the attention of a model: each tanh, logistic, ReLU or softmax of parameters that a product takes.

    "logits" is the sum of exponentials in a log-softmax, of which the largest is 1. A tanh or a logistic that
    multiplies (a gate, or a part of GELU and SiLU) isn't a unit; what loops hold isn't seen.
    """
    found: dict[int, tuple[str, Node]] = {}
    for node in nodes:
        total = _normalizer(node)
        if total is not None and "params" in total.roots and total.inputs[0].source.shape[-1] >= KEYS:
            found[id(total)] = ("logits", total)
        for x in node.inputs if node.name in PRODUCTS else ():
            kind, made = nonlinearity(x), x.source
            is_seen = kind in ("tanh", "logistic", "relu") or (kind == "softmax" and made.shape[-1] >= KEYS)
            if is_seen and "params" in made.roots:
                found[id(made)] = (str(kind), made)
    return list(found.values())


@dataclass(frozen=True)
class Reading:
    """What a program does with numbers.

    Attributes:
        saturation: how saturated the most saturated layer of each kind of `bends` is: of tanh and logistic the share of
            values next to a bound, of ReLU the share of units that are 0 for all examples, of a softmax the mean of its
            largest values.
        loss: the value.
        outputs: as `outputs_of` has them; None where they aren't seen.
    """

    saturation: Mapping[str, float]
    loss: float
    outputs: np.ndarray | None


def read_numbers(loss: Any, *states: tuple[Any, ...]) -> list[Reading]:
    """Runs the program of a loss at several states, by one compilation.

    Args:
        loss: as of `nodes_of`,
        states: and the arguments, likewise.
    """
    kinds = [kind for kind, _ in bends(nodes_of(loss, *states[0])[1])]

    @jax.jit
    def measured(*args: Any) -> Any:
        value, nodes = nodes_of(loss, *args, is_run=True)
        outputs, shares = outputs_of(nodes), [_saturation(kind, x.value) for kind, x in bends(nodes)]
        return shares, value.value, None if outputs is None else outputs.value

    found = []
    for args in states:
        shares, value, outputs = measured(*args)
        most = {name: max(float(x) for k, x in zip(kinds, shares, strict=True) if k == name) for name in kinds}
        found.append(Reading(most, float(value), None if outputs is None else np.asarray(outputs, np.float64)))
    return found


def _saturation(kind: str, values: Any) -> Any:
    if kind == "softmax":
        return values.max(axis=-1).mean()
    if kind == "logits":
        return (1 / values).mean()
    if kind == "relu":
        return jnp.mean(jnp.all(values <= 0, axis=tuple(range(values.ndim - 1))))
    return jnp.mean(jnp.abs(2 * values - 1 if kind == "logistic" else values) > BENT)
