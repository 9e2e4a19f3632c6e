"""`Layout`: the role and the matrix axes of every parameter, by path."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from jax.tree_util import PyTreeDef

from optlab._messages import aligned, closest, meant
from optlab.roles._axes import MatrixAxes
from optlab.roles._paths import PatternError, matches, paths_of, pattern_over_layers

ROLES = ("matrix", "conv", "embedding", "head", "vector", "scalar")
Override: TypeAlias = str | MatrixAxes | tuple[str, MatrixAxes]


def check_overrides(overrides: Mapping[str, Override], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks a workload's roles before any block asks for them: an optimizer without roles never does.

    Args:
        overrides: by path or pattern, as `Layout.override` takes them.
        shapes: of all parameters, by path.

    Raises:
        PatternError: for what matches no parameter, can't be of the one that it matches, or is a misspelt role. A role
            of one's own is taken.
    """
    for path, by in matches(overrides, list(shapes), "roles:").items():
        try:
            role = Reading(shapes[path], None).overridden(path, by).role
        except ValueError as error:
            raise PatternError(f"roles: {error}") from error
        if role not in ROLES and (found := meant(role or "", ROLES)):
            raise PatternError(f"roles: {path} has the role {role!r}, which no rule knows: did you mean {found[0]!r}?")


class LayoutError(ValueError):
    """A layout doesn't hold a parameter that it is asked for, or doesn't know what it is."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A parameter's role and matrix axes, and what they were inferred from.

    Attributes:
        shape: its shape.
        role: one of `ROLES`, or a name of one's own that an override gave; None where nothing shows it.
        axes: how it is a matrix.
        is_input: whether no product of a parameter lies before it. Only a program shows that.
        uses: how the program uses it, as {"dot", "add"}; empty where it doesn't, and where names were read.
        parts: the unequal parts that the program takes its output apart in, as (64, 64, 8).
        found: the role before any override.
    """

    shape: tuple[int, ...]
    role: str | None
    axes: MatrixAxes = MatrixAxes()
    is_input: bool = False
    uses: frozenset[str] = frozenset()
    parts: tuple[int, ...] = ()
    found: str | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        return self.axes.stack

    @property
    def input(self) -> tuple[int, ...]:
        return self.axes.input

    @property
    def output(self) -> tuple[int, ...]:
        return self.axes.output

    @property
    def view(self) -> tuple[int, ...]:
        return self.axes.view

    def overridden(self, path: str, by: Override) -> "Reading":
        """The same, of the parameter at this path, with another role, other axes, or both.

        Raises:
            ValueError: for what is neither, and for axes that aren't the parameter's.
        """
        role, axes = (
            (by, None) if isinstance(by, str) else (None, by) if isinstance(by, MatrixAxes) else _pair(path, by)
        )
        if axes is not None:
            axes.check(path, self.shape)
        if role is None:
            role = self.role if self.role not in (None, "vector", "scalar") else "matrix"
        if axes is None:
            axes = self.axes
            if role == "matrix" and not (axes.is_matrix or axes.stack) and len(self.shape) == 2:
                axes = MatrixAxes((), (0,), (1,))
        return dataclasses.replace(self, role=role, axes=axes)


def _pair(path: str, by: Any) -> tuple[str, MatrixAxes]:
    is_pair = isinstance(by, tuple) and len(by) == 2 and isinstance(by[0], str) and isinstance(by[1], MatrixAxes)
    if not is_pair:
        raise ValueError(
            f"{path}: an override must be a role, MatrixAxes(stack, input, output), or (role, axes), got {by!r}"
        )
    return by


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The role and the matrix axes of every parameter, by path. Print it to see the table.

    Made by `read_program` from the program that uses the parameters, or by `read_names` from their names and shapes.
    Static: a pytree node without leaves, hashable, equal to what has equal readings. Within `with layout:` every
    transformation that has no layout of its own takes this one, at init and while an update is traced.

    Attributes:
        readings: what is known of each parameter, by its path, as "block_0/dense/kernel".
        structure: of the tree of parameters, for `roles` and `matrix_axes`.
        source: where it was read from, "program" or "names".
    """

    readings: Mapping[str, Reading]
    structure: PyTreeDef
    source: str = "names"

    @property
    def roles(self) -> Any:
        """A tree like the parameters of their roles."""
        return jax.tree.unflatten(self.structure, [r.role for r in self.readings.values()])

    @property
    def matrix_axes(self) -> Any:
        """A tree like the parameters of their `MatrixAxes`, empty for what is no matrix."""
        return jax.tree.unflatten(self.structure, [r.axes for r in self.readings.values()])

    def override(self, overrides: Mapping[str, Override]) -> "Layout":
        """The same with what you know better.

        Args:
            overrides: a role, `MatrixAxes`, or (role, axes), by path or pattern, as {"block_*/mixer": "matrix"}; the
                first match wins. A role may be a name of your own, if a rule of `by_role` has it.

        Raises:
            ValueError: for what matches no parameter, or can't be of the one that it matches.
        """
        given = matches(overrides, list(self.readings))
        new = {path: r.overridden(path, given[path]) if path in given else r for path, r in self.readings.items()}
        return dataclasses.replace(self, readings=new)

    def split(self, parts: Mapping[str, int], *, side: Literal["input", "output"] = "output") -> "Layout":
        """The same with matrices taken apart: by head, or fused ones whose parts aren't equal, by a divisor of them.

        Args:
            parts: how many equal parts a matrix has, by path or pattern, as {"block_*/query/kernel": heads}.
            side: which side is taken apart; an attention's output kernel has its heads on the input's.

        Raises:
            ValueError: for what matches no parameter, is no matrix, or isn't so many equal parts long.
        """
        given = matches(parts, list(self.readings))
        new = dict(self.readings)
        for path, count in given.items():
            new[path] = dataclasses.replace(new[path], axes=_split(path, new[path], count, side))
        return dataclasses.replace(self, readings=new)

    def of(self, tree: Any) -> "Layout":
        """The layout of this tree's leaves, found by path: in any order, some of them or all, wrapped or not.

        A tree may also hold the parameters under a name more, such as {"params": …}.

        Raises:
            LayoutError: for a leaf that this layout doesn't hold, or has another shape; it names the leaf.
        """
        leaves = paths_of(tree)
        keys = {path: (path.split("/"), list(names)) for path, (names, _) in leaves.items()}
        above = next((n for n in range(_shared(list(keys.values())) + 1) if self._holds(keys.values(), n)), 0)
        found = {
            path: self._reading(["/".join(names[above:]) for names in keys[path]], path, x)
            for path, (_, x) in leaves.items()
        }
        return Layout(found, jax.tree.structure(tree), self.source)

    def _holds(self, keys: Iterable[Sequence[list[str]]], above: int) -> bool:
        return all(any("/".join(names[above:]) in self.readings for names in either) for either in keys)

    def _reading(self, keys: Sequence[str], path: str, x: Any) -> Reading:
        shape = getattr(x, "shape", None)
        if shape is None:  # a number, or what no gradient comes to
            return Reading((), "scalar")
        key = next((key for key in keys if key in self.readings), None)
        if key is None and not path:
            raise LayoutError(
                f"the layout of {len(self)} parameters has none that is one array of shape {shape} without a name, as "
                "optax.flatten makes: put flatten inside, around what moves every coordinate by itself"
            )
        if key is None:
            found = closest(keys[-1], self.readings)
            near = f"the nearest that it has is {found!r}" if found is not None else "it has none"
            raise LayoutError(f"the layout has no parameter {path!r} of shape {shape}: {near}")
        reading = self.readings[key]
        if reading.shape != tuple(shape):
            raise LayoutError(f"{path!r} has the shape {shape}, and the layout was read where it has {reading.shape}")
        return reading

    def check_known(self, who: str) -> None:
        """Raises LayoutError if a parameter's role is unknown, and names the parameter and the way out."""
        unknown = {path: r for path, r in self.readings.items() if r.role is None}
        if not unknown:
            return
        path, reading = next(iter(unknown.items()))
        if not path:
            raise LayoutError(
                f"{who} can't infer what one array of shape {reading.shape} without a name is. If optax.flatten made "
                "it of a tree, put flatten inside, around what moves every coordinate by itself; if not, give a layout="
            )
        pattern = pattern_over_layers(path, unknown, self.readings)
        alike = [p for p in unknown if pattern_over_layers(p, unknown, self.readings) == pattern]
        more = f" and {len(unknown) - len(alike)} more" if len(unknown) > len(alike) else ""
        if self.source == "program":
            used = (
                f"is used in a way that shows none: {', '.join(sorted(reading.uses))}" if reading.uses else "is unused"
            )
            raise LayoutError(
                f"{who} needs a role for {pattern!r} of shape {reading.shape}{more}, which {used} in the program. Say "
                f"it: layout.override({{{pattern!r}: role}}), or (role, optlab.roles.MatrixAxes(stack, input, output))"
            )
        raise LayoutError(
            f"names and shapes don't show {who} what {pattern!r} of shape {reading.shape} is{more}. Pass the program: "
            "layout=optlab.roles.read_program(loss, params, batch), whose loss may be any function of the parameters. "
            "Or say it: layout=functools.partial(optlab.roles.read_names, overrides="
            f"{{{pattern!r}: (role, optlab.roles.MatrixAxes(stack, input, output))}})"
        )

    def __getitem__(self, path: str) -> Reading:
        return self.readings[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.readings)

    def __len__(self) -> int:
        return len(self.readings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.readings == other.readings

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self.readings.items()))

    def __enter__(self) -> "Layout":
        _around.set((*_around.get(), _Around(lambda: self)))
        return self

    def __exit__(self, *error: object) -> None:
        _around.set(_around.get()[:-1])

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("parameter", "shape", "role", "stack", "input", "output", "")]
        for path, r in self.readings.items():
            axes = ["×".join(str((r.view or r.shape)[a]) for a in group) for group in (r.stack, r.input, r.output)]
            notes = ["input layer"] if r.is_input else []
            notes += [f"seen as {'×'.join(map(str, r.view))}"] if r.view else []
            notes += [f"parts of {', '.join(map(str, r.parts))}"] if r.parts else []
            notes += [] if r.role is not None else [f"unknown: {', '.join(sorted(r.uses)) or 'unused'}"]
            shape = "×".join(map(str, r.shape))
            rows.append((path, shape, r.role or "?", *(axes if r.axes.is_matrix else ["", "", ""]), "; ".join(notes)))
        return aligned(rows)

    def __repr__(self) -> str:
        return f"<Layout of {len(self.readings)} parameters, read from the {self.source}>"


def _split(path: str, reading: Reading, count: int, side: str) -> MatrixAxes:
    axes, shape = reading.axes, reading.view or reading.shape
    sides = axes.output if side == "output" else axes.input
    if not axes.is_matrix or count < 1 or shape[sides[0]] % count:
        raise ValueError(f"{path!r} of shape {reading.shape} has no {side} that is {count} equal parts long: {axes}")
    is_counted = len(sides) > 1 and shape[sides[0]] == count  # (heads, head width)
    return axes.with_stacked(sides[0]) if is_counted else axes.with_split(reading.shape, sides[0], count)


class _Around(NamedTuple):
    """A `with` statement around: how its layout is read, and whether it is for want of another alone."""

    read: Callable[[], Layout]
    is_default: bool = False


_around: ContextVar[tuple[_Around, ...]] = ContextVar("the `with` statements around", default=())


@contextlib.contextmanager
def layout_around(read: Callable[[], Layout]) -> Iterator[None]:
    """As `with read():`, unless there is a `with layout:` around already.

    The layout is read when the first block asks for it, once, or never: an optimizer without roles needs none.
    """
    before = _around.get()
    if not before or before[-1].is_default:
        _around.set((*before, _Around(functools.cache(read), is_default=True)))
    try:
        yield
    finally:
        _around.set(before)


def around() -> Layout | None:
    """The layout of the innermost `with` statement around, if there is one."""
    statements = _around.get()
    return statements[-1].read() if statements else None


def _shared(keys: list[tuple[list[str], list[str]]]) -> int:
    """The number of first names that all have in common, the last of each not counted."""
    paths = [path for path, _ in keys]
    least = min((len(path) - 1 for path in paths), default=0)
    return next((n for n in range(least) if len({path[n] for path in paths}) > 1), least)
