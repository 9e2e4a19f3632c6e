"""The walk through a program: each equation once, and loops until nothing changes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jcore

from optlab.roles._program._factors import Axes, Factor, Factors, cut, merged, reshaped, size_of
from optlab.roles._program._primitives import ALONG_AXES, CALLS, ELEMENTWISE, GATHERS, OF_MATRICES
from optlab.roles._program._uses import Uses
from optlab.roles._program._values import Use, Value, mapped, plain

TURNS = 8  # of a loop: what a turn learns of the one before it reaches its end long before


class Reader(Uses):
    """Walks a jaxpr, and holds what each value is to the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.shards: dict[tuple[int, Factor], Factor] = {}  # what a device holds of an axis: what counts the devices

    def read(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """The values that a jaxpr gives for these."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))

        def get(v: Any) -> Any:
            return env.get(v, Value()) if isinstance(v, jcore.Var) else Value()

        above = self.place
        for eqn in jaxpr.eqns:
            self.place, self.count = (*above, id(eqn)), 0
            for v, out in zip(eqn.outvars, self.equation(eqn, [get(v) for v in eqn.invars]), strict=True):
                has_gradient = jax.numpy.issubdtype(getattr(v.aval, "dtype", float), jax.numpy.inexact)
                env[v] = out if has_gradient or not out.up else out._replace(up=0, near=0)
        self.place = above
        return [get(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """The values that an equation gives."""
        name, p = eqn.primitive.name, eqn.params
        if name == "scan":
            return self.scan(p, ins)
        if name == "while":
            return self.while_loop(p, ins)
        if name == "cond":
            branches = [self.read(_open(branch), ins[1:]) for branch in p["branches"]]
            return [self.join(*values) for values in zip(*branches, strict=True)]
        if name == "shard_map":
            return self.shard_map(eqn, ins)
        inner = _open(p[CALLS[name]]) if CALLS.get(name) in p else None
        if inner is not None and len(inner.invars) == len(ins) and len(inner.outvars) == len(eqn.outvars):
            return self.read(inner, ins)
        if not any(v.views or v.scaled or v.lost for v in ins):
            return [plain(name, ins)] * len(eqn.outvars)
        return self.operation(name, p, ins, [v.aval.shape for v in eqn.invars], [v.aval.shape for v in eqn.outvars])

    # -- control flow

    def join(self, *values: Value) -> Value:
        """One of several values."""
        if all(v == values[0] for v in values):
            return values[0]
        out = plain("select_n", values)
        if out.is_data:
            values = tuple(self.as_token(v) if v.is_weight else v for v in values)
        same = {
            leaf: axes
            for leaf, axes in values[0].views.items()
            if not out.is_data or all(v.views.get(leaf) == axes for v in values)
        }
        return plain("select_n", values, same)._replace(lost=frozenset())

    def loop(self, body: Callable[[list[Value]], list[Value]], first: Sequence[Value]) -> list[Value]:
        """Products of one turn reach those of the next. Only the last reading stays in the log."""
        carry, uses, sums = list(first), len(self.log), len(self.sums)
        for _ in range(TURNS):
            del self.log[uses:], self.sums[sums:]
            new = [self.join(c, o) for c, o in zip(carry, body(carry)[: len(carry)], strict=True)]
            if new == carry:
                break
            carry = new
        for v, c in zip(first, carry, strict=True):
            if v.is_weight and c.is_data:
                self.as_token(v)
        return carry

    def scan(self, p: Any, ins: Sequence[Value]) -> list[Value]:
        consts, carried = _counts(p, len(ins))
        outs: list[Value] = []
        xs = [self.stacked(v, [0]).moved(lambda axes: axes[1:]) for v in ins[consts + carried :]]

        def body(carry: list[Value]) -> list[Value]:
            outs[:] = self.read(_open(p["jaxpr"]), [*ins[:consts], *carry, *xs])
            return outs

        carry = self.loop(body, ins[consts : consts + carried])
        return [*carry, *(v.moved(lambda axes: ((), *axes))._replace(scaled=()) for v in outs[carried:])]

    def while_loop(self, p: Any, ins: Sequence[Value]) -> list[Value]:
        of_cond, of_body = p["cond_nconsts"], p["body_nconsts"]
        consts, start = ins[of_cond : of_cond + of_body], ins[of_cond + of_body :]
        carry = self.loop(lambda carry: self.read(_open(p["body_jaxpr"]), [*consts, *carry]), start)
        self.read(_open(p["cond_jaxpr"]), [*ins[:of_cond], *carry])
        return carry

    def shard_map(self, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        """A program on one device's share of its operands."""
        inner = _open(eqn.params["jaxpr"])
        shares = [
            self.share(v, outer.aval.shape, var.aval.shape)
            for v, outer, var in zip(ins, eqn.invars, inner.invars, strict=True)
        ]
        outs = self.read(inner, shares)
        return [
            self.unshared(v, var.aval.shape, outer.aval.shape)
            for v, var, outer in zip(outs, inner.outvars, eqn.outvars, strict=True)
        ]

    def share(self, v: Value, shape: Sequence[int], mine: Sequence[int]) -> Value:
        views = {}
        for leaf, axes in v.views.items():
            parts = list(axes)
            for d, (n, m) in enumerate(zip(shape, mine, strict=True)):
                if n != m and parts[d]:
                    devices, each = cut(parts[d][0], n // m) if parts[d][0].size % (n // m) == 0 else (None, None)
                    parts[d] = merged((each, *parts[d][1:])) if each else ()
                    if devices and each and v.is_weight:
                        self.shards[leaf, each] = devices
                        self.log.append(Use("shard", leaf, stack=(devices, each)))
            views[leaf] = tuple(parts)
        return v._replace(views=views)

    def unshared(self, v: Value, mine: Sequence[int], shape: Sequence[int]) -> Value:
        """Back from `share` along the axes that are longer again."""
        views = {}
        for leaf, axes in v.views.items():
            devices = [self.shards.get((leaf, f[0])) if f else None for f in axes]
            whole = [merged((d, *f)) if d else () for d, f in zip(devices, axes, strict=True)]
            views[leaf] = tuple(f if m == n else w for f, w, m, n in zip(axes, whole, mine, shape, strict=True))
        return v._replace(views=views)

    # -- single operations

    def operation(
        self, name: str, p: Any, ins: list[Value], shapes: Sequence[Sequence[int]], outs: Sequence[Sequence[int]]
    ) -> list[Value]:
        """The results of a primitive without a program of its own, where a parameter goes in."""
        out = outs[0] if outs else ()
        if name == "dot_general":
            return [self.product(ins, shapes, *p["dimension_numbers"])]
        if name == "ragged_dot_general":
            return [self.ragged_product(ins, shapes, p["ragged_dot_dimension_numbers"])]
        if name == "conv_general_dilated":
            return [self.convolution(ins, p["dimension_numbers"], p["feature_group_count"])]
        if name == "gather":
            return [self.gather(p, ins, shapes, out)]
        if name == "dynamic_slice":
            sizes = p["slice_sizes"]

            def window(axes: Any) -> Any:
                return tuple(f if n == m else () for f, n, m in zip(axes, sizes, shapes[0], strict=True))

            looked = {d: n == 1 for d, (n, m) in enumerate(zip(sizes, shapes[0], strict=True)) if n < m}
            return [self.looked_up(name, ins[0], plain(name, ins[1:]), window, looked)]
        if name in ("slice", "split", "unstack"):
            return self.sliced(name, p, ins[0], shapes[0])
        if name == "sort":
            return [plain(name, ins, v.views) for v in ins]
        if name == "stack":
            at = p["axis"]
            ins = [v.moved(lambda axes: (*axes[:at], (), *axes[at:])) for v in ins]
            return [self.standing(name, ins, ins, len(out), None)]
        if name == "concatenate":
            return [self.standing(name, ins, ins, len(out), p["dimension"])]
        if name == "dynamic_update_slice" or name.startswith("scatter"):
            return [self.standing(name, [ins[0], ins[2 if name[0] == "s" else 1]], ins, len(out), None)]
        move = _movement(name, p, shapes[0], out, ins[0].is_weight)
        if move is not None:
            found = mapped(name, ins, move)
            return [self.summed(ins[0], p["axes"], found) if name == "reduce_sum" else found] * len(outs)
        if name in GATHERS and len(out) == len(shapes[0]):
            return [self.unshared(v, s, t) for v, s, t in zip(ins, shapes, outs, strict=True)]
        if name in ALONG_AXES:

            def kept(axes: Any) -> Any:
                return tuple(f if n == m else () for f, n, m in zip(axes, shapes[0], out, strict=True))

            return [mapped(name, ins, kept) if len(out) == len(shapes[0]) else self.unknown(name, ins)] * len(outs)
        if name in OF_MATRICES:

            def same(s: Any) -> Any:
                return {k: a for v, t in zip(ins, shapes, strict=True) if t == s for k, a in v.views.items()}

            return [plain(name, ins, same(s))._replace(level=0) for s in outs]
        if name not in ELEMENTWISE:
            return [self.unknown(name, ins)] * len(outs)
        if len(outs) > 1:
            return [self.elementwise(name, [v], [s], s) for v, s in zip(ins, shapes, strict=True)]
        return [self.elementwise(name, ins, shapes, out)]

    def gather(self, p: Any, ins: Sequence[Value], shapes: Sequence[Sequence[int]], out: Sequence[int]) -> Value:
        sizes, numbers, shape = p["slice_sizes"], p["dimension_numbers"], shapes[0]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        at = dict(zip(numbers.offset_dims, (d for d in range(len(sizes)) if d not in gone), strict=True))

        def is_kept(k: Any) -> bool:
            return k in at and sizes[at[k]] == shape[at[k]]

        def move(axes: Any) -> Any:
            return tuple(axes[at[k]] if is_kept(k) else () for k in range(len(out)))

        is_one = len(shapes[1]) == 1  # a counter's: it picks a layer
        looked = {d: is_one and sizes[d] == 1 for d in numbers.start_index_map if sizes[d] < shape[d]}
        return self.looked_up("gather", ins[0], ins[1], move, looked)

    def sliced(self, name: str, p: Any, v: Value, shape: Sequence[int]) -> list[Value]:
        """Parts of axes: along a tag they are cuts of a parameter's output."""
        outs = []
        for ranges in _ranges(name, p, shape):
            lost: set[tuple[int, Factor]] = set()
            within: set[tuple[int, Factor]] = set()
            views = {
                leaf: tuple(
                    self.part(v, leaf, f, n, *r, lost, within) for f, n, r in zip(axes, shape, ranges, strict=True)
                )
                for leaf, axes in v.views.items()
            }
            out = plain(name, [v], views)
            outs.append(out._replace(lost=out.lost | lost, within=out.within | within))
        if name == "unstack":

            def dropped(axes: Any) -> Any:
                return tuple(f for d, f in enumerate(axes) if d != p["axis"])

            return [mapped(name, [out], dropped) for out in outs]
        return outs

    def part(
        self,
        v: Value,
        leaf: int,
        factors: Factors,
        n: int,
        start: int,
        stop: int,
        step: int,
        lost: set[Any],
        within: set[Any],
    ) -> Factors:
        """The factors of start:stop:step of an axis of n; () where they are lost."""
        if (start, stop, step) == (0, n, 1):
            return factors
        if not factors or size_of(factors) != n:
            return ()
        first, inner, last = factors[0], size_of(factors[1:]), factors[-1]
        left: Factors
        if step > 1 and last.size == last.whole and last.size % step == 0 and start < step:  # every step-th
            piece = Factor(last.axis, last.stride, 1, start, step)
            outer, _ = cut(last, last.size // step)
            left = (*factors[:-1], outer) if outer else factors[:-1]
            lost.add((leaf, piece))
        elif step == 1 and not start % inner and not stop % inner:
            piece = first._replace(size=(stop - start) // inner, start=first.start + start // inner)
            left = (piece, *factors[1:])
        else:
            return ()
        if v.is_data:
            within.add((leaf, piece))
        if v.is_weight or v.level:
            self.log.append(Use("cut", leaf, cut=(piece.range, (piece.start, piece.size))))
        return left


def _open(jaxpr: Any) -> Any:
    """The jaxpr of a closed one."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _counts(p: Any, operands: int) -> tuple[int, int]:
    """The number of a scan's constants, and of its carried operands."""
    if "num_consts" in p:
        return p["num_consts"], p["num_carry"]
    consts, carried, _ = p["ft_in"].update(list(range(operands))).unpack()  # since JAX 0.12
    return len(list(consts)), len(list(carried))


def _ranges(name: str, p: Any, shape: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """(start, stop, step) along every axis, for each result."""
    if name == "slice":
        strides = p["strides"] or [1] * len(shape)
        return [list(zip(p["start_indices"], p["limit_indices"], strides, strict=True))]
    axis = p["axis"]
    sizes = p["sizes"] if name == "split" else [1] * shape[axis]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        [(end - n, end, 1) if d == axis else (0, m, 1) for d, m in enumerate(shape)]
        for end, n in zip(ends, sizes, strict=True)
    ]


def _movement(
    name: str, p: Any, shape: Sequence[int], out: Sequence[int], is_weight: bool
) -> Callable[[Axes], Axes] | None:
    """The function by which a primitive moves the axes of its first operand, if that is all it does."""
    if name == "transpose":
        return lambda axes: tuple(axes[d] for d in p["permutation"])
    if name == "squeeze":
        return lambda axes: tuple(f for d, f in enumerate(axes) if d not in p["dimensions"])
    if name == "reshape":
        return lambda axes: reshaped(axes, shape, out, is_weight=is_weight)
    if name == "broadcast_in_dim":
        source = {t: d for d, t in enumerate(p["broadcast_dimensions"])}

        def is_kept(t: Any) -> bool:
            return t in source and shape[source[t]] == out[t]

        return lambda axes: tuple(axes[source[t]] if is_kept(t) else () for t in range(len(out)))
    if name == "tile":
        if len(out) != len(shape):
            return lambda axes: ((),) * len(out)
        return lambda axes: tuple(f if n == m else () for f, n, m in zip(axes, shape, out, strict=True))
    if name == "pad":
        return lambda axes: axes
    if name in ("top_k", "approx_top_k"):
        return lambda axes: (*axes[:-1], ())
    if name.startswith(("reduce_", "arg")) and "axes" in p:
        return lambda axes: tuple(f for d, f in enumerate(axes) if d not in p["axes"])
    return None
