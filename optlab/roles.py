"""What each parameter is to the model, how it is a matrix, and `by_role`: which rule moves it."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from optlab import _telling
from optlab._axes_at_init import axes_told, roles_told, tell
from optlab._matrix_axes import MatrixAxes
from optlab._notes import note
from optlab._parameters import Parameter, read
from optlab._trees import matched

__all__ = ["ROLES", "ByRoleState", "Labels", "MatrixAxes", "by_role", "matrix_axes", "roles"]

ROLES = ("matrix", "conv", "embedding", "head", "vector", "scalar")


def roles(params: Any, overrides: Mapping[str, str] | None = None) -> Any:
    """The role of every parameter: a tree like `params` of "matrix", "conv", "embedding", "head", "vector" or "scalar".

    Rank 0 is a scalar; rank 1, and every bias and gain, a vector. Rank 2 is a matrix, unless its name says embedding
    or head, or it is the only kernel outside the blocks that is as wide as the embedding's vocabulary. Rank 3 and more
    is a stack of layers (`nn.scan`, `nn.vmap`) or of experts, an attention projection or a convolution; what is called
    a convolution and has a square window, or a norm beside it, is a single one's.

    Args:
        params: the parameters, or anything of the same structure that has shapes.
        overrides: roles by path, as {"block_*/mixer": "matrix"}; the first match wins, before every other rule.

    Raises:
        ValueError: where a parameter of rank 3 or more can't be told, with its path and what to do.
    """
    parameters = read(params)
    told = _match(overrides or {}, parameters)
    found = [told.get(p.path) or role for p, role in zip(parameters, _telling.roles(parameters), strict=True)]
    _check_told(parameters, found)
    return jax.tree.unflatten(jax.tree.structure(params), found)


def _check_told(parameters: list[Parameter], found: list[str | None]) -> None:
    unknown = [p for p, role in zip(parameters, found, strict=True) if role is None]
    if not unknown:
        return
    p, more = unknown[0], f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    stack = tuple(range(len(p.shape)))[:-2]
    said, when, axes = "matrix", "if it is a matrix", MatrixAxes(stack, (len(stack),), (len(stack) + 1,))
    if p.may_be_stacked_convs:
        said, when, axes = "conv", "if it is a stack of them", _telling.stacked_convs(p)
    elif p.may_be_stacked_queries:
        when, axes = "if it is a stack of layers", MatrixAxes((0,), (1,), tuple(range(2, len(p.shape))))
    raise ValueError(
        f"roles can't tell what {p.path!r} of shape {p.shape} is{more}. Tell by_role or muon: "
        f"roles=partial(optlab.roles.roles, overrides={{{p.path!r}: {said!r}}}) and, {when}, which "
        f"axes are stacked, input and output: matrix_axes=partial(optlab.roles.matrix_axes, overrides="
        f"{{{p.path!r}: MatrixAxes({axes.stack}, {axes.input}, {axes.output})}})"
    )


def matrix_axes(
    params: Any,
    overrides: Mapping[str, MatrixAxes] | None = None,
    *,
    per_head: bool = False,
    head_width: int | None = None,
) -> Any:
    """How every parameter is seen as a matrix: a tree like `params` of `MatrixAxes`, empty for what is none.

    A fused kernel of queries, keys and values is three matrices where its shape shows the three: (width, 3, heads, head
    width), (3, width, heads, head width), (width, 3·width).

    Args:
        params: the parameters, or anything of the same structure that has shapes.
        overrides: axes by path, as {"block_*/mixer": MatrixAxes((), (0,), (1, 2))}; the first match wins.
        per_head: whether each head's query, key, value and output projection is a matrix of its own.
        head_width: with `per_head`, the width of a head in kernels (width, heads·head width), which don't show it.

    Raises:
        ValueError: with `per_head`, where heads can't be told.
    """
    if head_width is not None and not per_head:
        raise ValueError(f"head_width is for per_head=True, got head_width={head_width} alone")
    parameters = read(params)
    told = _match(overrides or {}, parameters)
    find = (lambda p: _telling.by_head(p, head_width)) if per_head else _telling.axes
    found = [told.get(p.path) or find(p) for p in parameters]
    return jax.tree.unflatten(jax.tree.structure(params), found)


@jax.tree_util.register_static
class Labels(NamedTuple):
    """What `by_role` decided: (path, role, key of the rule) of every parameter, in the tree's order.

    A pytree node without leaves, so it passes through jit, `jax.eval_shape` and checkpoints. `optax.tree_map_params`
    makes a state without parameters and compares: no labels are therefore equal to any. The parameters' matrix axes
    (`MatrixAxes(*axes[i])`; plain tuples, which Flax can serialize) are there to be read; an update finds them anew, so
    they make no difference between states.
    """

    rows: tuple[tuple[str, str, str], ...]
    axes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and (self.rows == other.rows or not self.rows or not other.rows)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(Labels)

    def __str__(self) -> str:
        return "\n".join(f"{path}: {role}, moved by {rule!r}" for path, role, rule in self.rows)


class ByRoleState(NamedTuple):
    """note: what was decided, to be read by `print(state.labels)`. rules: the rules' states by key."""

    note: jax.tree_util.Partial
    rules: optax.PartitionState

    @property
    def labels(self) -> Labels:
        return self.note()


_found_roles, _found_axes = roles, matrix_axes  # by_role's arguments have their names


def by_role(
    rules: Mapping[str, optax.GradientTransformation],
    roles: Callable[[Any], Any] | Any | None = None,
    matrix_axes: Callable[[Any], Any] | Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Each parameter is moved by the rule of its role, as by `optax.partition`; the rule "default" moves the rest.

    A rule sees its own parameters only. So the roles and the matrix axes are found on the whole tree here, and given
    to the rules as the extra arguments `roles` and `matrix_axes`: trees of strings, and of `MatrixAxes`. A rule that is
    a `by_role` itself, as `muon` is, has them from here too, unless it has `roles` or `matrix_axes` of its own.

    Args:
        rules: a transform for each role, and "default" for the roles that aren't named.
        roles: the roles of the parameters: a tree (or prefix) of strings, or a function of the parameters that gives
            one; None is `optlab.roles.roles`.
        matrix_axes: the same for the matrix axes; None is `optlab.roles.matrix_axes`.

    Raises:
        ValueError: here if a rule's key is no role and there are no `roles` of your own; at init if it isn't among
            those either, or a parameter has no rule, or a role of your own that no rule has.
    """
    if isinstance(roles, str):
        raise ValueError(f"roles must be a tree of role names or a function that gives one, got the string {roles!r}")
    find_roles = _found_roles if roles is None else roles
    find_axes = _found_axes if matrix_axes is None else matrix_axes
    if roles is None:
        check_roles("by_role", rules, (*ROLES, "default"))

    def route(labels: Labels, tree: Any) -> optax.GradientTransformationExtraArgs:
        keys = jax.tree.unflatten(jax.tree.structure(tree), [key for _, _, key in labels.rows])
        return optax.partition(rules, lambda _: keys, mask_compatible_extra_args=True)  # optax calls what can be called

    def init_fn(params: optax.Params) -> ByRoleState:
        told = axes_told(params)  # by the by_role around this one, which sees more
        labels = _label(params, find_roles if roles is not None or told is None else _roles_from_around, rules)
        axes = _resolve(find_axes, params) if matrix_axes is not None or told is None else told
        with tell(_roles_within(params, labels), axes):
            inner = route(labels, params).init(params)
        plain = tuple(dataclasses.astuple(a) for a in jax.tree.leaves(axes))
        return ByRoleState(note(labels._replace(axes=plain)), inner)

    def update_fn(
        updates: optax.Updates, state: ByRoleState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ByRoleState]:
        params = matched(updates, params)
        labels = state.labels if state.labels.rows else _label(updates, find_roles, rules)
        if matrix_axes is not None or "matrix_axes" not in extra_args:
            extra_args["matrix_axes"] = _resolve(find_axes, updates)
        extra_args["roles"] = jax.tree.unflatten(jax.tree.structure(updates), [role for _, role, _ in labels.rows])
        updates, inner = route(labels, updates).update(updates, state.rules, params, **extra_args)
        return updates, ByRoleState(note(labels), inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_roles(what: str, names: Iterable[str], known: tuple[str, ...] = ROLES) -> None:
    """Raises ValueError if one of the names is not among the known ones, and names the nearest.

    Args:
        what: who asks, the start of the message.
        names: the names to be checked.
        known: the names that there are.
    """
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1, 0)[0]
            raise ValueError(f"{what} knows no role {name!r}: did you mean {nearest!r}? Known: {', '.join(known)}")


def _label(params: Any, find_roles: Any, rules: Mapping[str, Any]) -> Labels:
    parameters, found = read(params), jax.tree.leaves(_resolve(find_roles, params))
    if parameters:
        check_roles("by_role", rules, tuple(dict.fromkeys([*found, *ROLES, "default"])))
        check_roles("by_role", found, tuple(dict.fromkeys([*rules, *ROLES])))
    rows = [(p.path, role, role if role in rules else "default") for p, role in zip(parameters, found, strict=True)]
    for path, role, key in rows:
        if key not in rules:
            raise ValueError(f"by_role has no rule that moves {path!r}: add one for its role {role!r}, or a 'default'")
    return Labels(tuple(rows))


def _roles_from_around(params: Any) -> Any:
    """A tree of the roles that the by_role around this one tells."""
    told = roles_told(params) or []
    _check_told(read(params), told)
    return jax.tree.unflatten(jax.tree.structure(params), told)


def _roles_within(params: Any, labels: Labels) -> list[str | None]:
    """What a by_role among the rules is told: in place of roles of one's own, what names and shapes tell."""
    found = [role for _, role, _ in labels.rows]
    if set(found) <= set(ROLES):
        return list(found)
    known = roles_told(params) or _telling.roles(read(params))
    return [role if role in ROLES else other for role, other in zip(found, known, strict=True)]


def _resolve(find: Any, params: Any) -> Any:
    """A function that gives a tree, a tree or a prefix of one, as a tree with a value for every leaf of `params`."""
    if not jax.tree.leaves(params):
        return params
    # A tree may be callable, as every Equinox module is: what has roles or axes for leaves is one all the same.
    is_tree = any(isinstance(x, (str, MatrixAxes)) for x in jax.tree.leaves(find))
    return jax.tree.broadcast(find(params) if callable(find) and not is_tree else find, params)


def _match(overrides: Mapping[str, Any], parameters: list[Parameter]) -> dict[str, Any]:
    """What the overrides say, by path."""
    paths = [p.path for p in parameters]
    for pattern in overrides:
        if paths and not fnmatch.filter(paths, pattern):
            nearest = difflib.get_close_matches(pattern, paths, 1, 0)[0]
            raise ValueError(f"the override {pattern!r} matches no parameter: the nearest path is {nearest!r}")
    return {path: overrides[p] for p in reversed(list(overrides)) for path in fnmatch.filter(paths, p)}
