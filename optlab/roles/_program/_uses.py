"""The log of `read_program`: an entry where a parameter meets an activation, in a product, a lookup or a sum."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optlab.roles._program._factors import Axes, Factor, Factors, cut, factors_in
from optlab.roles._program._primitives import ADDS
from optlab.roles._program._values import Use, Value, mapped, plain, together

Dims = Sequence[int]


class Uses:
    """The log of uses, and the products by which one parameter lies behind another.

    Attributes:
        log: every use, in the program's order.
        sums: (near, near) of two activations that are added: a residual branch and its stream.
        feeds: of each product, those upstream of it, as bits.
    """

    def __init__(self) -> None:
        self.log: list[Use] = []
        self.sums: list[tuple[int, int]] = []
        self.own: dict[int, int] = {}  # the products of each parameter, as bits
        self.feeds: list[int] = []
        self.bits: dict[tuple[Any, int], int] = {}  # of each product, by its place: a loop's turns find it again
        self.place: tuple[int, ...] = ()
        self.count = 0  # of products at this place

    def new_product(self, up: int) -> int:
        """The bit of a product at this place, with these upstream."""
        self.count += 1
        index = self.bits.setdefault((self.place, self.count), len(self.feeds))
        self.feeds[index : index + 1] = [up]
        return 1 << index

    def used(self, out: Value, up: int, uses: Iterable[Use]) -> Value:
        """The result of a product of an activation, which has these products upstream, with a weight."""
        bit = self.new_product(up)
        for use in uses:
            self.log.append(use._replace(product=bit.bit_length() - 1, is_input=up == 0))
            self.own[use.leaf] = self.own.get(use.leaf, 0) | bit
        return out._replace(
            is_data=True,
            up=out.up | bit,
            near=bit,
            level=2,
            is_onehot=False,
            maybe=(),
            lost=frozenset(),
            within=frozenset(),
        )

    def as_activation(self, v: Value) -> Value:
        """A weight that turned out an activation: its products with constants were uses."""
        for uses in v.maybe:
            v = self.used(v, v.up, uses)
        return v

    def as_token(self, v: Value) -> Value:
        """A weight that stands as an activation from here on."""
        self.log += [Use("token", leaf) for leaf in v.views]
        return v._replace(is_data=True, up=v.up | self.new_product(v.up), level=0, maybe=())

    def stacked(self, v: Value, dims: Dims) -> Value:
        """Its parameters, if it is a weight, are counted along these axes."""
        if v.is_weight:
            self.log += [Use("stack", leaf, stack=axes[d]) for leaf, axes in v.views.items() for d in dims]
        return v

    def unknown(self, name: str, ins: Sequence[Value]) -> Value:
        """The result of a primitive that isn't known; nor are the parameters that go into it from here on."""
        self.log += [Use("unknown", leaf, name=name) for v in ins if v.is_weight for leaf in v.views]
        return plain(name, ins)._replace(level=0)

    # -- products

    def product(
        self, ins: Sequence[Value], shapes: Sequence[Dims], contract: Sequence[Dims], batch: Sequence[Dims]
    ) -> Value:
        """A dot_general."""
        free = [[d for d in range(len(s)) if d not in contract[i] and d not in batch[i]] for i, s in enumerate(shapes)]
        ins = ins[:2]
        if all(v.is_weight for v in ins):  # an axis that no parameter made is the batch's
            bare = [any(shapes[i][d] > 1 and not ins[i].has_axis(d) for d in free[i]) for i in (0, 1)]
            ins = [
                self.as_activation(v) if v.maybe else self.as_token(v) if is_bare else v
                for v, is_bare in zip(ins, bare, strict=True)
            ]
        out = plain("dot_general", ins, _views_of_product(ins, batch, free))
        for i, w in enumerate(ins):
            x = ins[1 - i]
            uses = [
                Use("dot", leaf, input=_group(a, contract[i]), output=_group(a, free[i]), stack=_group(a, batch[i]))
                for leaf, a in w.views.items()
            ]
            if not out.is_data and x.is_weight:
                self.log += [Use("inner", u.leaf, stack=u.input, name=("output", "input")[i]) for u in uses]
            if w.is_data and x.is_data and not free[1 - i]:
                self.log += [Use("expert", u.leaf, stack=u.input) for u in uses if _is_mixture(u)]
            if not w.is_weight or x.is_weight:
                continue
            if not contract[i]:  # elementwise

                def axes(use: Any) -> Any:
                    return frozenset(f.axis for f in (*use.output, *use.stack))

                self.log += [Use("mul", use.leaf, axes=axes(use)) for use in uses]
                return out
            if not x.is_data:  # a constant: this is a lookup, or it will be an activation
                self.log += [Use("const", use.leaf, stack=use.input) for use in uses]
                is_many = any(shapes[1 - i][d] > 1 for d in free[1 - i])
                return out._replace(maybe=(*w.maybe, tuple(uses)) if is_many else w.maybe)
            if x.is_onehot and not x.up:
                self.log += [Use("table", leaf) for leaf in w.views]
                return out._replace(up=self.new_product(0), near=0, level=0, is_onehot=False)
            for d, e in zip(batch[i], batch[1 - i], strict=True):
                if w.has_axis(d):  # experts' outputs, taken one by one by the next layer of experts
                    self.log += [Use("expert", leaf, stack=a[e]) for leaf, a in x.views.items() if a[e]]
            return self.used(out, x.up | w.up, uses)
        return out._replace(level=0) if out.is_data else out

    def ragged_product(self, ins: Sequence[Value], shapes: Sequence[Dims], numbers: Any) -> Value:
        """A product with one matrix for each group of rows: the groups are the stack."""
        groups = numbers.rhs_group_dimensions
        kept = [d for d in range(len(shapes[1])) if d not in groups]
        w = self.stacked(ins[1], groups).moved(lambda a: tuple(a[d] for d in kept))
        (left, right), (left_batch, right_batch) = numbers.dot_dimension_numbers

        def place(dims: Any) -> Any:
            return tuple(kept.index(d) for d in dims)

        one = [shapes[0], [shapes[1][d] for d in kept]]
        return self.product([ins[0], w], one, (left, place(right)), (left_batch, place(right_batch)))

    def convolution(self, ins: Sequence[Value], spec: Any, groups: int) -> Value:
        x, w = (self.as_token(ins[0]) if ins[0].is_weight else ins[0]), ins[1]
        o, i, *window = spec.rhs_spec
        channel = spec.out_spec[1]
        tags = {leaf: tuple(a[o] if d == channel else () for d in range(len(a))) for leaf, a in w.views.items()}
        out = plain("dot_general", [x, w], tags)
        if not w.is_weight:
            return out._replace(views={}, level=0)
        uses = []
        for leaf, a in w.views.items():
            by_group, each = _first(a[o], groups)
            uses.append(Use("conv", leaf, input=_group(a, [*window, i]), output=each, stack=by_group))
        return self.used(out, x.up | w.up, uses)

    def summed(self, v: Value, dims: Dims, out: Value) -> Value:
        """A sum over axes; a product, where x[..., None]·w is summed."""
        for leaf, axes in v.scaled:
            gone, left = (_group(axes, [d for d in range(len(axes)) if (d in dims) == is_gone]) for is_gone in (1, 0))
            if gone and left and not any(v.has_axis(d) for d, f in enumerate(axes) if f and d not in dims):
                return self.used(out, v.up, [Use("dot", leaf, input=gone, output=left)])
        return out

    # -- lookups

    def looked_up(
        self, name: str, v: Value, index: Value, move: Callable[[Axes], Axes], one_of: Mapping[int, bool]
    ) -> Value:
        """A gather: `one_of` holds the axes that are looked into, and whether a single position is taken."""
        if not v.is_weight:
            return mapped(name, [v, index], move)._replace(level=0)
        if index.is_data and not index.is_seen:
            self.log += [Use("table", leaf) for leaf in v.views]
            return mapped(name, [v], move)._replace(is_data=True, up=v.up | self.new_product(0), level=0)
        for leaf, axes in v.views.items():
            for d, is_one in one_of.items():
                kind = "route" if index.is_data else "stack" if is_one else "index"
                self.log.append(Use(kind, leaf, stack=axes[d]))
        return mapped(name, [v], move)

    # -- sums and the like

    def standing(
        self, name: str, operands: Sequence[Value], ins: Sequence[Value], rank: int, apart: int | None
    ) -> Value:
        """concatenate, where, scatter: a weight beside an activation is a token; along `apart` no view is left."""
        is_mixed = any(v.is_data for v in operands)
        operands = [self.as_token(v) if is_mixed and v.is_weight else v for v in operands]
        self.rejoin(name, operands)
        views = {
            leaf: tuple(() if is_mixed and d == apart else f for d, f in enumerate(axes))
            for leaf, axes in together(operands).items()
            if len(axes) == rank
        }
        return plain(name, [*operands, *(v for v in ins if not v.views)], views)

    def elementwise(self, name: str, ins: Sequence[Value], shapes: Sequence[Dims], out: Dims) -> Value:
        def fits(s: Any) -> bool:
            return len(s) == len(out) and all(m in (1, n) for m, n in zip(s, out, strict=True))

        def spread(v: Any, s: Any) -> Any:
            # a number needs no axes to fit
            return v.moved(lambda _: ((),) * len(out)) if s == () else v

        fit = [spread(v, s) if s == () or fits(s) else v._replace(views={}) for v, s in zip(ins, shapes, strict=True)]
        if name == "select_n" and any(v.is_weight for v in ins[1:]):
            if any(v.is_data for v in ins[1:]):
                return self.standing(name, ins[1:], ins, len(out), None)
            is_bare = any(n > 1 and not any(v.has_axis(d) for v in fit[1:]) for d, n in enumerate(out))
            if fit[0].is_data and not ins[0].is_onehot and is_bare:  # one weight or another, by the batch
                fit = [fit[0], *(self.as_token(v) if v.is_weight else v for v in fit[1:])]
        if name in ADDS:
            self.rejoin(name, fit)
        is_sum = name in ("add", "add_any")
        is_sum_of_weights = is_sum and not any(v.is_data for v in fit)
        if is_sum_of_weights and any(v.maybe for v in fit) and fit[0].views.keys().isdisjoint(fit[1].views):
            fit = [self.as_activation(v) for v in fit]  # it has a bias
        acts = [v for v in fit if v.is_data]
        if not acts:
            return self._among_weights(name, fit, out)
        if (is_sum or name == "sub") and (stepped := self._stepped(name, fit, acts, out)):
            return stepped
        for v in fit:
            for leaf, axes in v.views.items() if v.is_weight else ():
                self._met(name, leaf, axes, acts)
        if is_sum and len(acts) == 2 and out and acts[0].near and acts[1].near:
            self.sums.append((acts[0].near, acts[1].near))
        scaled = self._scaled(name, fit, acts, out)
        found = plain(name, [v if v.is_data else v._replace(views={}) for v in fit], together(acts))
        return found._replace(is_seen=any(v.is_seen for v in ins), scaled=scaled)

    def _stepped(self, name: str, ins: Sequence[Value], acts: Sequence[Value], out: Dims) -> Value | None:
        """A weight after a step along its own gradient, as in MAML: a weight again. Its uses so far were training.

        Tasks side by side give it an axis more. A sum with one more may be a residual stream that starts as a weight.
        One without axes is a penalty that is added to the loss.
        """

        def has_axes(v: Any) -> bool:
            return any(v.has_axis(d) for d in range(len(out)))

        def is_whole(v: Any) -> bool:
            return has_axes(v) and (name == "sub" or all(n == 1 or v.has_axis(d) for d, n in enumerate(out)))

        weights = [v for v in ins if v.is_weight and is_whole(v)]
        if len(weights) != 1 or not any(self.own.get(leaf, 0) & acts[0].up for leaf in weights[0].views):
            return None
        self.log += [Use("step", leaf, product=len(self.feeds)) for leaf in weights[0].views]
        return weights[0]._replace(is_seen=True)

    def _among_weights(self, name: str, ins: Sequence[Value], out: Dims) -> Value:
        """A combination of weights: one with fewer axes than the fullest is its gain or bias."""
        spans = [sum(v.has_axis(d) for d in range(len(out))) for v in ins]
        full = [v if n == max(spans) else v._replace(views={}) for v, n in zip(ins, spans, strict=True)]
        for v, n in zip(ins, spans, strict=True):
            for leaf, axes in v.views.items() if n < max(spans) else ():
                if not any(leaf in w.views for w in full):
                    self._met(name, leaf, axes, ())
        return plain(name, full, together(full))._replace(is_seen=True)

    def _met(self, name: str, leaf: int, axes: Axes, acts: Sequence[Value]) -> None:
        is_loose = bool(acts) and any(f and not any(v.has_axis(d) for v in acts) for d, f in enumerate(axes))
        there = frozenset(f.axis for f in factors_in(axes))
        self.log.append(Use("add" if name in ADDS else "mul", leaf, axes=there, is_loose=is_loose))

    def _scaled(
        self, name: str, fit: Sequence[Value], acts: Sequence[Value], out: Dims
    ) -> tuple[tuple[int, Axes], ...]:
        """The weights that the result is multiplied by along axes that no parameter made."""
        is_kept = name in ("add", "sub", "convert_element_type") or (
            name == "mul" and sum(bool(v.scaled) for v in acts) < 2
        )
        if not is_kept:
            return ()
        kept = tuple(s for v in acts for s in v.scaled)
        if name != "mul":
            return kept
        bare = {d for d in range(len(out)) if not any(v.has_axis(d) for v in acts)}
        new = ((leaf, axes) for v in fit if v.is_weight for leaf, axes in v.views.items())
        return kept + tuple((leaf, axes) for leaf, axes in new if any(axes[d] for d in bare))

    def rejoin(self, name: str, ins: Sequence[Value]) -> None:
        """Parts of one product's output that are added or concatenated again weren't apart."""
        is_beside = name in ("concatenate", "stack")
        least = 1 if is_beside else 2
        parts = [
            {(leaf, f) for leaf, a in v.views.items() for f in factors_in(a) if f.size < f.whole} | v.lost
            if v.level >= least
            else set[tuple[int, Factor]]()
            for v in ins
        ]
        if is_beside:  # what a rotation made of a part stands beside the others again
            parts = [some | v.within for some, v in zip(parts, ins, strict=True)]
        for i, some in enumerate(parts):
            for leaf, f in some:
                for other, g in (part for more in parts[i + 1 :] for part in more):
                    if leaf == other and f.range == g.range and f.start != g.start:
                        self.log += [Use("whole", leaf, cut=(h.range, (h.start, h.size))) for h in (f, g)]


def _views_of_product(ins: Sequence[Value], batch: Sequence[Dims], free: Sequence[Dims]) -> dict[int, Axes]:
    """The axes of a dot_general: the batch's, those left of the first, those left of the second."""
    views: dict[int, Axes] = {}
    for i, v in enumerate(ins):
        for leaf, axes in v.views.items():
            mine = (*(axes[d] for d in batch[i]), *(axes[d] if k == i else () for k in (0, 1) for d in free[k]))
            views[leaf] = tuple(a or b for a, b in zip(views[leaf], mine, strict=True)) if leaf in views else mine
    return views


def _is_mixture(use: Use) -> bool:
    """True if the batch sums over one axis of what a parameter made and leaves another: a gate's, over experts."""
    left = {f.axis for f in use.output}
    return bool(left) and left.isdisjoint(f.axis for f in use.input)


def _group(axes: Axes, dims: Iterable[int]) -> Factors:
    return tuple(f for d in dims for f in axes[d])


def _first(factors: Factors, count: int) -> tuple[Factors, Factors]:
    """The factors that count the first `count` parts of an axis, and the rest."""
    if count == 1 or not factors:
        return (), factors
    f, *rest = factors
    if f.size == count:
        return (f,), tuple(rest)
    outer, inner = cut(f, count) if f.size % count == 0 else (None, None)
    return ((outer,), (inner, *rest)) if outer and inner else ((), factors)
