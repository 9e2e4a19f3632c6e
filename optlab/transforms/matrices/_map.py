"""`on_matrices`: a function of a stack of matrices, mapped over every matrix of a tree."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from optlab.roles import Layout, MatrixAxes
from optlab.transforms.matrices._divide import Mesh, by_mesh, divide, on_auto_axes, on_explicit, placed_like
from optlab.transforms.matrices._leaves import matrix_leaves
from optlab.transforms.matrices._plan import Group, Matrices, Plan, Work, Works, flops_of, make_groups

Shape: TypeAlias = tuple[int, int]
Describe: TypeAlias = Callable[[Shape, str], Work | Works]
Keys: TypeAlias = tuple[Any, ...]  # the way to a leaf of a tree


def on_matrices(
    f: Callable[..., Any],
    *trees: Any,
    layout: Layout | None = None,
    who: str = "on_matrices",
    states: Sequence[Any] = (),
    shared: Sequence[Any] = (),
    turned: bool = True,
    describe: Describe | None = None,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = (),
) -> Any:
    """f, a function of stacks of matrices, mapped over all matrices of a tree.

    Matrices of one shape are stacked, and f is called on the stacks, once for each shape:

        on_matrices(f, tree)                     # f(X) -> Y, X and Y of shape (N, m, n)
        on_matrices(f, tree, other, states=[s])  # f(X, X', S) -> (Y, Y', S')

    f gives back as many stacks as it is given, each in the shape of its own, and nothing in one matrix may depend on
    another. Over a mesh the stacks are divided among the devices (f then sees a part of one, which may hold matrices of
    zeros), with the same result: over the mesh that the types of the first tree's leaves show, or the ambient one
    (`jax.set_mesh`), or `mesh`; under pmap and shard_map along the axes named in `axis_name`. Where none of them shows
    a mesh, every device does everything. Each result is placed as its operand is. `optlab.explain` shows what is
    done together, and counts it.

    Args:
        f: the function. Its identity is what compiled code is remembered by: make it once, not in every update.
        trees: of one structure, whose leaves are seen as matrices.
        layout: how each leaf is a matrix: the extra argument `layout` of update; None is `optlab.roles.layout_of`.
        who: asks, for the error that names a leaf that is no matrix.
        states: trees of that structure with what belongs to a leaf's matrices, one by one, in each leaf's place: an
            array (count, …), a tree of them, or None. They are divided likewise.
        shared: what f needs whole, such as the step's number: arrays, given to f behind the states.
        turned: whether f(Xᵀ) = f(X)ᵀ, so that tall matrices may be turned to lie beside the wide ones, and m ≤ n.
            States and all that f sees are of the turned matrix, see `stacks_of`.
        describe: how f does a matrix of that shape and dtype, for `optlab.explain`; None counts f's products.
        mesh: over which the work is divided, where the leaves' types don't show it.
        axis_name: mapped axes of pmap or shard_map along which all devices hold the same trees and states.

    Returns:
        A tree for each of the trees and states: a tuple of them, or the tree if there is one alone.

    Raises:
        ValueError: where a leaf is no matrix; it names the leaf.
    """
    first, structure = jax.tree.flatten(trees[0])
    columns = [structure.flatten_up_to(tree) for tree in (*trees, *states)]  # type: ignore[attr-defined]
    axes = tuple(a for _, a in matrix_leaves(who, trees[0], {"layout": layout}))
    call = _Call(f, axes, len(trees), turned, (axis_name,) if isinstance(axis_name, str) else tuple(axis_name))
    if (heard := _listening.get()) is not None:
        keys = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(trees[0])]
        done = _only_reported(call, columns, tuple(shared), describe, keys, heard)
    else:
        done = [list(column) for column in columns]
        for members, on in by_mesh(first, mesh) if first else []:
            some = call._replace(axes=tuple(axes[i] for i in members))
            results = _called([[column[i] for i in members] for column in columns], tuple(shared), some, on)
            for column, result in zip(done, results, strict=True):
                for i, x in zip(members, result, strict=True):
                    column[i] = x
    results = tuple(jax.tree.unflatten(structure, column) for column in done)
    return results if len(results) > 1 else results[0]


def stacks_of(x: Any, axes: MatrixAxes, turned: bool = True) -> tuple[int, int, int]:
    """(count, m, n) of a leaf as the function of `on_matrices` sees it: what its states have to fit."""
    fan_in, fan_out = axes.fans(x.shape)
    sides = sorted((fan_in, fan_out)) if turned else (fan_in, fan_out)
    return (x.size // max(1, fan_in * fan_out), *sides)


class _Call(NamedTuple):
    """The static part of a call, by the arguments of `on_matrices`; trees is their number."""

    f: Callable[..., Any]
    axes: tuple[MatrixAxes, ...]
    trees: int
    turned: bool
    axis_names: tuple[str, ...]

    def is_turned(self, x: Any, axes: MatrixAxes) -> bool:
        fan_in, fan_out = axes.fans(x.shape)
        return self.turned and fan_in > fan_out

    def groups(self, columns: Sequence[Sequence[Any]]) -> tuple[Group, ...]:
        """Of one shape, and of one dtype in every tree and state."""
        kinds = [tuple(map(_kind, row)) for row in zip(*columns, strict=True)]
        shapes = [stacks_of(x, a, self.turned) for x, a in zip(columns[0], self.axes, strict=True)]
        leaves = zip(columns[0], shapes, kinds, strict=True)
        return make_groups([Matrices(count, (m, n), str(x.dtype), kind) for x, (count, m, n), kind in leaves])

    def stacks(self, column: Sequence[Any], group: Group, is_tree: bool) -> Any:
        """Of the members of a group, from a tree's or a state's column."""
        if not is_tree:
            return jax.tree.map(lambda *xs: jnp.concatenate(xs), *(column[i] for i in group.members))
        matrices = [self.axes[i].to_matrices(column[i]) for i in group.members]
        turned = [self.is_turned(column[i], self.axes[i]) for i in group.members]
        return jnp.concatenate([X.mT if t else X for X, t in zip(matrices, turned, strict=True)])

    def apart(self, done: Any, column: Sequence[Any], group: Group, is_tree: bool) -> list[Any]:
        """Back from `stacks`: what belongs to each of the members, in its shape."""
        if not is_tree:
            parts, structure = jax.tree.flatten(done)
            rows = zip(*(jnp.split(x, group.starts[1:]) for x in parts), strict=True)
            return [jax.tree.unflatten(structure, row) for row in rows] if parts else [done] * len(group.members)
        back = []
        for i, Y in zip(group.members, jnp.split(done, group.starts[1:]), strict=True):
            Y = Y.mT if self.is_turned(column[i], self.axes[i]) else Y
            back.append(self.axes[i].from_matrices(Y, column[i].shape))
        return back

    def apply(self, stacks: Sequence[Any], shared: Sequence[Any]) -> list[Any]:
        done = self.f(*stacks, *shared)
        done = list(done) if isinstance(done, tuple) else [done]
        if len(done) != len(stacks):
            raise ValueError(
                f"on_matrices wants a stack back for each of the {len(stacks)} trees and states, got {len(done)} from "
                f"{_name(self.f)}"
            )
        return done


@functools.partial(jax.jit, static_argnums=(2, 3))  # for those who call update outside a jit
def _called(columns: list[list[Any]], shared: tuple[Any, ...], call: _Call, mesh: Mesh | None) -> list[list[Any]]:
    """All leaves of all trees and states, by the groups, each placed as it was."""
    columns, shared = on_explicit((columns, shared), mesh)
    is_tree = [i < call.trees for i in range(len(columns))]

    def f(columns: list[list[Any]], shared: tuple[Any, ...]) -> list[list[Any]]:
        done = [list(column) for column in columns]
        for group in call.groups(columns):
            stacks = [call.stacks(column, group, kind) for column, kind in zip(columns, is_tree, strict=True)]
            results = divide(call.apply, stacks, mesh, call.axis_names, shared)
            for i, result in enumerate(results):
                parts = call.apart(result, columns[i], group, is_tree[i])
                for member, x in zip(group.members, parts, strict=True):
                    done[i][member] = x
        return jax.tree.map(placed_like, done, columns) if mesh is not None else done

    return on_auto_axes(f, mesh, columns)(columns, shared)


def _kind(x: Any) -> Hashable:
    """The structure and dtypes, which are equal in what is stacked."""
    leaves, structure = jax.tree.flatten(x)
    return (structure, *(str(leaf.dtype) for leaf in leaves))


def _name(f: Any) -> str:
    return getattr(inspect.unwrap(getattr(f, "func", f)), "__name__", "f")


class Report(NamedTuple):
    """A call of `on_matrices`: the function, the plan, and the way to each leaf with its (count, fan_in, fan_out)."""

    f: Callable[..., Any]
    plan: Plan
    leaves: tuple[tuple[Keys, tuple[int, int, int]], ...]


_listening: ContextVar[list[Report] | None] = ContextVar("where calls of on_matrices are reported", default=None)


@contextlib.contextmanager
def reported() -> Iterator[list[Report]]:
    """Within, calls of `on_matrices` report here and compute nothing: what they give has the right shapes alone."""
    reports: list[Report] = []
    token = _listening.set(reports)
    try:
        yield reports
    finally:
        _listening.reset(token)


def _only_reported(
    call: _Call,
    columns: list[list[Any]],
    shared: tuple[Any, ...],
    describe: Describe | None,
    keys: Sequence[Keys],
    heard: list[Report],
) -> list[list[Any]]:
    """Zeros in place of what is computed."""
    done, groups, works = [list(column) for column in columns], call.groups(columns), []
    for group in groups:
        one = [_one_of(column[group.members[0]], group, i < call.trees) for i, column in enumerate(columns)]
        program, results = jax.make_jaxpr(call.apply, return_shape=True)(one, shared)
        of_products = Work(_name(call.f), "-", group.dtype, flops_of(program.jaxpr))
        said = describe(group.shape, group.dtype) if describe else of_products
        works.append(said if isinstance(said, Works) else Works(*3 * (said,)))
        for column, result in zip(done, results, strict=True):
            for i in group.members:
                column[i] = jax.tree.map(lambda x, y: jnp.zeros_like(x, dtype=y.dtype), column[i], result)
    sizes = [stacks_of(x, a, turned=False) for x, a in zip(columns[0], call.axes, strict=True)]
    heard.append(Report(call.f, Plan(groups, tuple(works)), tuple(zip(keys, sizes, strict=True))))
    return done


def _one_of(x: Any, group: Group, is_tree: bool) -> Any:
    """Shapes of a stack of one."""
    if is_tree:
        return jax.ShapeDtypeStruct((1, *group.shape), x.dtype)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
