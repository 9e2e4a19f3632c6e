"""What programs show: a graph of their operations, what a model ends in, and two mistakes in a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

PASSED = ("reshape", "convert_element_type", "squeeze", "transpose", "copy", "broadcast_in_dim", "stop_gradient")
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LOOPS = ("scan", "while", "cond")
EXAMPLES = 37  # a prime number, so that no other axis is likely to have as many


@dataclass(frozen=True, eq=False)
class Node:
    """An operation with what it takes; a root has the name of what it is: "params", "labels" or "other"."""

    name: str
    shape: tuple[int, ...]
    inputs: tuple[Node, ...] = ()
    roots: frozenset[str] = frozenset()
    is_zero: bool = False

    @property
    def source(self) -> Node:
        """The operation that made the numbers, before they were reshaped, broadcast or converted."""
        node = self
        while node.name in PASSED and node.inputs:
            node = node.inputs[0]
        return node


def nodes_of(loss: Any, params: Any, model_state: Any, batch: Any, key: Any) -> list[Node]:
    """The operations of loss(params, model_state, batch, key, True) for `EXAMPLES` examples, calls inlined."""
    few = jax.tree.map(lambda x: np.asarray(x)[:EXAMPLES], batch)
    args = (params, model_state, few, key)
    closed = jax.make_jaxpr(lambda *a: loss(*a, True)[0])(*args)
    names = [_root(path) for path, _ in jax.tree.leaves_with_path(args)]
    found: list[Node] = []
    consts = [Node("other", v.aval.shape) for v in closed.jaxpr.constvars]
    roots = [Node(n, v.aval.shape, (), frozenset([n])) for n, v in zip(names, closed.jaxpr.invars, strict=True)]
    _inline(closed.jaxpr, consts, roots, found)
    return found


def _root(path: Sequence[Any]) -> str:
    if path[0].idx == 0:
        return "params"
    return "labels" if path[0].idx == 2 and getattr(path[1], "key", None) == "labels" else "other"


def _inline(jaxpr: Any, consts: list[Node], inputs: list[Node], found: list[Node]) -> list[Node]:
    made = dict(zip((id(v) for v in (*jaxpr.constvars, *jaxpr.invars)), (*consts, *inputs), strict=True))

    def read(v: Any) -> Node:
        if hasattr(v, "val"):
            return Node("literal", np.shape(v.val), is_zero=not np.any(np.asarray(v.val)))
        return made[id(v)]

    for eqn in jaxpr.eqns:
        taken, name = [read(v) for v in eqn.invars], eqn.primitive.name
        inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
        body: Any = getattr(inner, "jaxpr", inner)
        if hasattr(body, "eqns") and name not in LOOPS and len(body.invars) == len(taken):
            held = [Node("other", v.aval.shape) for v in body.constvars]
            outs = _inline(body, held, taken, found)
        else:
            roots = frozenset().union(*(x.roots for x in taken))
            outs = [Node(name, getattr(v.aval, "shape", ()), tuple(taken), roots) for v in eqn.outvars]
            found += outs
        made.update(zip(map(id, eqn.outvars), outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def last_operation(jaxpr: Any) -> str | None:
    """The nonlinearity that a program's first output ends in, or None."""
    consts, inputs = ([Node("other", v.aval.shape) for v in variables] for variables in (jaxpr.constvars, jaxpr.invars))
    return nonlinearity(_inline(jaxpr, consts, inputs, [])[0])


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
        if node.name != "log":
            continue
        total = node.inputs[0].source
        total = total.inputs[0].source if total.name == "abs" else total  # logsumexp takes signs, too
        if total.name != "reduce_sum":
            continue
        if (power := total.inputs[0].source).name != "exp" or (shifted := power.inputs[0].source).name != "sub":
            continue
        if (found := nonlinearity(shifted.inputs[0])) is not None:
            return found
    return None


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
