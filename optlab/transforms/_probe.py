"""A probe: measures what passes at its place in a chain, and changes nothing."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optlab._checks import check_positive
from optlab._integers import is_count
from optlab._notes import note
from optlab._probe_state import METRICS, NORMS, SPECTRUM, ProbeState
from optlab._trees import is_absent
from optlab.roles import LayoutError, MatrixAxes, layout_of
from optlab.roles._paths import paths_of


def probe(
    name: str, *, every: int | None = 100, per: Literal["parameter"] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Measures the updates u that pass here; `optlab.read_probes(state)` gives by name what it measured last.

    It returns the very updates that it got. In a compiled step the compiler may round around a probe as it wouldn't
    without: where u is a product that is then added to something, the two are one operation (FMA) or two.

    At every update, over all leaves, in at least float32:

    - "update_norm": ‖u‖.
    - "param_norm": ‖θ‖, if update gets the parameters.
    - "update_to_weight": ‖u‖ / ‖θ‖, and 0 where θ = 0.
    - "gradient_cosine": ⟨u, g⟩ / (‖u‖‖g‖), and 0 where u or g is; −1 is steepest descent, once the learning rate has
      turned the sign. g is update's extra argument `grad`, which optlab's training step passes; without it, or if it
      has another structure than u (as in `optax.flatten`), there is no cosine.

    At the first update and at every k-th, over all matrices, each of a stack by itself:

    - "sigma_max", "sigma_median", "sigma_min": of their singular values, min(m, n) of each.
    - "stable_rank": the mean of ‖A‖²_F / σ²_max, from 1 to min(m, n); 0 for a matrix of zeros.

    `optlab.roles.layout_of` says how leaves are matrices; those that are none are left out. The singular values are
    those of an SVD of every matrix, on every device: where that takes long, choose a large k or None.

    Under by_role, `optax.partition` or `optax.masked` it sees the rule's own parameters; under pmap or shard_map, what
    the device holds; in a population under vmap, all members compute singular values when one of them is due.

    Args:
        name: what it is read and logged by; a state holds one probe of a name.
        every: updates from one measurement of singular values to the next (k); None measures none.
        per: "parameter" measures each parameter by itself, whose path is then part of the names; None all together.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a string that isn't empty, got {name!r}")
    is_scalar = isinstance(every, jax.Array) and every.shape == () and jnp.issubdtype(every.dtype, jnp.integer)
    if not (every is None or is_count(every) or is_scalar):
        raise ValueError(f"every must be a whole number of at least 1, or None, got {every!r}")
    if every is not None:
        check_positive("every", every)
    if per not in (None, "parameter"):
        raise ValueError(f"per must be 'parameter', or None for all together, got {per!r}")

    def init_fn(params: optax.Params) -> ProbeState:
        dtype = jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(params))).dtype
        paths = None if per is None else tuple(paths_of(params))
        never = jnp.zeros(len(METRICS) if paths is None else (len(paths), len(METRICS)), jnp.int32)
        said = name if paths is None else (name, paths)
        return ProbeState(note(said), jnp.zeros([], jnp.int32), never.astype(dtype), never)

    def update_fn(
        updates: optax.Updates,
        state: ProbeState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProbeState]:
        count, dtype, split = optax.safe_increment(state.count), state.values.dtype, len(NORMS)
        seen = lax.stop_gradient(updates)
        trees = [_widened(seen, tree) for tree in (updates, params, grad)]
        matrices = {} if every is None else _matrices(seen, extra_args)
        every_leaf = range(len(trees[0] or []))
        rows = [list(every_leaf)] if per is None else [[i] for i in every_leaf]
        if not rows:
            return updates, state._replace(count=count)
        found = [_norms(*(tree and [tree[i] for i in row] for tree in trees)) for row in rows]
        norms, norms_at = _stacked(found, count, dtype)
        old, old_at = (x.reshape(len(rows), len(METRICS))[:, split:] for x in (state.values, state.measured))
        groups = [[matrices[i] for i in row if i in matrices] for row in rows]
        if any(groups):
            due = (count == 1) | (count % every == 0)
            axes = [[a for _, a in group] for group in groups]
            leaves = [x for group in groups for x, _ in group]
            old = _if_due(functools.partial(_spectra, axes=axes, dtype=dtype))(due, old, leaves)
            old_at = jnp.where(due & np.array([[bool(group)] for group in groups]), count, old_at)
        values, measured = jnp.concatenate([norms, old], axis=1), jnp.concatenate([norms_at, old_at], axis=1)
        shape = state.values.shape
        return updates, ProbeState(state.note, count, values.reshape(shape), measured.reshape(shape))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norms(u: Any, theta: Any | None, g: Any | None) -> dict[str, jax.Array]:
    """Those of `NORMS` that can be measured of some leaves; None stands for what isn't known."""
    found = {"update_norm": _norm(u)}
    if theta is not None:
        found["param_norm"] = _norm(theta)
        found["update_to_weight"] = _quotient(found["update_norm"], found["param_norm"])
    if g is not None:
        u, g = ([_quotient(a, norm) for a in x] for x, norm in ((u, found["update_norm"]), (g, _norm(g))))
        found["gradient_cosine"] = _dot(u, g)
    return found


def _stacked(found: Sequence[Mapping[str, jax.Array]], count: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The values of `NORMS` and the update that measured each, both (rows, 4)."""
    zero = jnp.zeros([])
    values = [jnp.stack([row.get(metric, zero).astype(dtype) for metric in NORMS]) for row in found]
    at = [jnp.stack([count if metric in row else jnp.zeros_like(count) for metric in NORMS]) for row in found]
    return jnp.stack(values), jnp.stack(at)


def _widened(updates: Any, tree: Any | None) -> list[jax.Array] | None:
    """The leaves of `tree` beside those of `updates`, in at least float32; None if the two don't match."""
    try:
        pairs = _pairs(updates, tree)
    except ValueError:
        return None
    if not all(jax.tree_util.all_leaves([x]) and jnp.shape(x) == jnp.shape(u) for u, x in pairs):
        return None
    return [_wide(lax.stop_gradient(x)) for _, x in pairs]


def _pairs(updates: Any, tree: Any) -> list[tuple[jax.Array, Any]]:
    """(leaf, what `tree` has in its place) for every leaf of `updates`, absent ones left out."""
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_absent)
    beside = jax.tree_util.PyTreeDef.flatten_up_to(structure, tree)
    return [(u, x) for u, x in zip(leaves, beside, strict=True) if not is_absent(u)]


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _dot(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> jax.Array:
    return sum((jnp.sum((a * b.conj()).real) for a, b in zip(x, y, strict=True)), jnp.zeros([]))


def _norm(x: Sequence[jax.Array]) -> jax.Array:
    """√Σx², relative to the largest entry: squares neither vanish nor overflow."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(a), initial=0.0) for a in x])) if x else jnp.zeros([])
    x = [_quotient(a, largest) for a in x]
    return largest * jnp.sqrt(_dot(x, x))


def _quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


# Singular values.


def _matrices(updates: Any, extra_args: Mapping[str, Any]) -> dict[int, tuple[jax.Array, MatrixAxes]]:
    """The leaves that are matrices or stacks of them, with their axes; none, where the layout doesn't hold them."""
    try:
        readings = layout_of(updates, extra_args).readings.values()
    except LayoutError:
        return {}
    pairs = [(x, r.axes) for x, r in zip(jax.tree.leaves(updates), readings, strict=True)]
    return {i: (x, axes) for i, (x, axes) in enumerate(pairs) if axes.is_matrix and x.size}


def _if_due(measure: Callable[[list[jax.Array]], jax.Array]) -> Callable[..., jax.Array]:
    """(due, old, leaves) -> measure(leaves) if it is due, else old, without computing it.

    Plain vmap would make a choice between two results of the condition, both of which are computed; here a population
    measures if one of its members is due.
    """

    @jax.custom_batching.custom_vmap
    def choose(due: jax.Array, old: jax.Array, leaves: list[jax.Array]) -> jax.Array:
        varying = frozenset[str]().union(*map(_varying, leaves)) - _varying(old)
        old = lax.pcast(old, tuple(varying), to="varying")  # under shard_map both branches must be of one type
        return lax.cond(due, measure, lambda _: old, leaves)

    @choose.def_vmap
    def choose_for_all(size: int, batched: Any, *args: Any) -> tuple[jax.Array, bool]:
        def spread(x: Any, is_batched: Any) -> Any:
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        due, old, leaves = jax.tree.map(spread, args, tuple(batched))
        new = _if_due(jax.vmap(measure))(jnp.any(due), old, leaves)
        return jnp.where(due.reshape(size, *[1] * (old.ndim - 1)), new, old), True

    return choose


def _varying(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _spectra(leaves: Sequence[jax.Array], axes: Sequence[Sequence[MatrixAxes]], dtype: Any) -> jax.Array:
    """The values of `SPECTRUM` for every group of leaves, (groups, 4); zeros for a group without any."""
    rest = iter(leaves)
    rows = [_spectrum([next(rest) for _ in some], some, dtype) if some else jnp.zeros(4, dtype) for some in axes]
    return jnp.stack(rows)


def _spectrum(leaves: Sequence[jax.Array], axes: Sequence[MatrixAxes], dtype: Any) -> jax.Array:
    """The values of `SPECTRUM`, shape (4,)."""
    sigmas = [_singular_values(x, a) for x, a in zip(leaves, axes, strict=True)]
    every = jnp.concatenate([jnp.ravel(s) for s in sigmas])
    ranks = jnp.concatenate([jnp.sum(_quotient(s, jnp.broadcast_to(s[:, :1], s.shape)) ** 2, axis=1) for s in sigmas])
    found = {
        "sigma_max": jnp.max(every),
        "sigma_median": jnp.median(every),
        "sigma_min": jnp.min(every),
        "stable_rank": jnp.mean(ranks),
    }
    return jnp.stack([found[metric].astype(dtype) for metric in SPECTRUM])


def _singular_values(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """(stack, min(m, n)), falling."""
    placed = jax.typeof(x).sharding
    if any(placed.spec):  # spread over Explicit axes; over others the compiler gathers it
        x = jax.sharding.reshard(x, NamedSharding(placed.mesh, P()))
    return jnp.linalg.svd(axes.to_matrices(_wide(x)), compute_uv=False)
