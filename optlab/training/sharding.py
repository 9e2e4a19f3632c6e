"""The place of each leaf of a state on a mesh."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optlab._messages import meant
from optlab.roles import ROLES, layout_of

Rules: TypeAlias = Mapping[str, P]

# Kernels that read what the one before them divided, by their module's name: they are divided by their inputs, so that
# a pair of matrices needs one exchange (Shoeybi et al. 2019, arXiv 1909.08053, section 3).
READERS = ("out", "out_proj", "proj", "down", "down_proj", "o_proj", "wo", "fc2", "c_proj")
MODEL_PARTS = ("params", "model_state", "batch_stats")  # of a state, Flax's too: what isn't the optimizer's


def check_rules(rules: Rules, mesh: Mesh, model: str) -> None:
    """Raises a ValueError unless every rule is a PartitionSpec of axes that the mesh has."""
    for pattern, spec in rules.items():
        if not isinstance(spec, P):
            raise ValueError(f"the rule for {pattern!r} must be a jax.sharding.PartitionSpec, got {spec!r}")
        if list(spec).count(model) > 1:
            raise ValueError(f"the rule {spec} for {pattern!r} may name the axis {model!r} once alone")
        if model in spec and model not in mesh.shape:
            has = f"the mesh has no such axis, but {dict(mesh.shape)}: optlab.training.make_mesh(data, model)"
            raise ValueError(f"the rule {spec} for {pattern!r}: {has}")


def specs(
    state: Any, mesh: Mesh, divides: Callable[[str], bool], data: tuple[str, ...], model: str, rules: Rules
) -> Any:
    """A tree like `state` of PartitionSpecs.

    Along the axis "model" matrices are divided by their outputs, those in `READERS` by their inputs, embeddings by
    their vocabulary; what the optimizer keeps of a parameter's shape goes where the parameter goes.

    Args:
        state: arrays or their shapes.
        mesh: the devices.
        divides: name of a part of the state, on its first level -> whether the data axes divide it: each leaf along its
            longest axis that they divide, where there is one.
        data: the axes that share the batch.
        model: the axis that divides matrices, if the mesh has it.
        rules: where that axis goes, by role or path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    on_model = _model_specs(state, mesh.shape.get(model, 1), model, rules)
    count = math.prod(mesh.shape[a] for a in data)
    found = []
    for path, x in leaves:
        first = jax.tree_util.keystr(path[:1], simple=True)
        spec = on_model.get(_name(path[1:]), {}).get(x.shape, P()) if first in ("params", "ema") else P()
        if first not in ("ema", *MODEL_PARTS):
            spec = _of_parameter(_name(path), x.shape, on_model)
        found.append(_spread(x, spec, data, count) if count > 1 and divides(first) else spec)
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _of_parameter(name: str, shape: tuple[int, ...], on_model: Mapping[str, Mapping[tuple[int, ...], P]]) -> P:
    """The spec of the parameter whose path this one's ends with, if it has the same shape."""
    parts = name.split("/")
    for start in range(len(parts)):
        found = on_model.get("/".join(parts[start:]), {})
        if shape in found:
            return found[shape]
    return P()


def _spread(x: Any, spec: P, axes: tuple[str, ...], count: int) -> P:
    """The spec with the data axes on the longest free axis that they divide."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return spec
    entries = [*spec, *[None] * (x.ndim - len(spec))]
    free = [i for i in range(x.ndim) if entries[i] is None and x.shape[i] and x.shape[i] % count == 0]
    if not free:
        return spec
    entries[max(free, key=lambda i: x.shape[i])] = axes
    return P(*entries)


def _model_specs(state: Any, count: int, model: str, rules: Rules) -> dict[str, dict[tuple[int, ...], P]]:
    """{path of a parameter: {its shape: its spec}} of those that the axis "model" divides."""
    params = _field(state, "params")
    if params is None and rules:
        raise ValueError(f"rules are for the parameters, and the state has no 'params': got {', '.join(rules)}")
    if params is None or (count == 1 and not rules):
        return {}
    layout = layout_of(params)
    layout.check_known('a mesh\'s axis "model"')
    readings = [(r.role or "", r.axes) for r in layout.readings.values()]
    leaves = [(leaf, *r) for leaf, r in zip(jax.tree_util.tree_leaves_with_path(params), readings, strict=True)]
    _check_used(rules, {_name(path): role for (path, _), role, _ in leaves})
    found: dict[str, dict[tuple[int, ...], P]] = {}
    of_bias: dict[Any, P] = {}
    for (path, x), role, axes in sorted(leaves, key=lambda leaf: leaf[1] == "vector"):
        spec = _rule(_name(path), role, rules)
        if spec is None:
            spec = of_bias.get((_module(path), x.shape)) or _by_role(x, path, role, axes, count, model)
        _check_divides(_name(path), x.shape, spec, model, count)
        if spec != P():
            found[_name(path)] = {x.shape: spec}
            of_bias |= _of_bias(_module(path), x.shape, spec, axes)
    return found


def _module(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the parameter's own name, behind which an nnx.State has one more."""
    return path[: -2 if path[-1] == jax.tree_util.GetAttrKey("value") else -1]


def _of_bias(module: Any, shape: tuple[int, ...], spec: P, axes: Any) -> dict[Any, P]:
    """{(module, shape of a bias that is added to what this kernel gives): its spec}"""
    if not axes.is_matrix or axes.view:
        return {}
    kept = [i for i in range(len(shape)) if i not in axes.input]
    entries = [spec[i] if i < len(spec) else None for i in kept]
    return {(module, tuple(shape[i] for i in kept)): P(*entries)} if any(entries) else {}


def _check_used(rules: Rules, roles_of: Mapping[str, str]) -> None:
    for pattern in rules:
        if not any(_fits(pattern, name, role) for name, role in roles_of.items()):
            wanted = pattern.strip("*/")
            depth = wanted.count("/") + 1
            names = sorted({*("/".join(name.split("/")[-depth:]) for name in roles_of), *roles_of.values()})
            near = meant(wanted, names) or names
            raise ValueError(
                f"the rule for {pattern!r} fits no parameter and no role here; there are {', '.join(near)}"
            )


def _field(state: Any, name: str) -> Any:
    return state.get(name) if isinstance(state, Mapping) else getattr(state, name, None)


def _rule(name: str, role: str, rules: Rules) -> P | None:
    for pattern, spec in rules.items():
        if _fits(pattern, name, role):
            return spec
    return None


def _fits(pattern: str, name: str, role: str) -> bool:
    return role == pattern if pattern in ROLES else fnmatch.fnmatchcase(name, pattern)


def _by_role(x: Any, path: tuple[Any, ...], role: str, axes: Any, count: int, model: str) -> P:
    if role == "embedding":
        candidates: tuple[int, ...] = (x.ndim - 2, x.ndim - 1)
    elif role in ("matrix", "conv", "head") and axes.is_matrix and not axes.view:
        modules = [jax.tree_util.keystr((k,), simple=True) for k in path]
        candidates = axes.input if any(m in READERS for m in modules) else axes.output
    else:
        return P()
    for i in candidates:
        if x.shape[i] % count == 0:
            return P(*[model if j == i else None for j in range(i + 1)])
    return P()


def _check_divides(name: str, shape: tuple[int, ...], spec: P, model: str, count: int) -> None:
    if len(spec) > len(shape):
        raise ValueError(f"the rule {spec} for {name!r} has more axes than its shape {shape}")
    for size, entry in zip(shape, spec, strict=False):
        if entry not in (None, model):
            raise ValueError(f"the rule {spec} for {name!r} may name the axis {model!r} alone")
        if entry == model and size % count:
            raise ValueError(f"the rule {spec} for {name!r}: {model}={count} must divide {size} of shape {shape}")
