"""Stacks of matrices divided over devices: each does its share, and the results travel back to where they belong.

The stack, not the matrix, is spread over the mesh, so that every device works on whole matrices and the numbers are
those of one device.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Mesh: TypeAlias = jax.sharding.Mesh | jax.sharding.AbstractMesh
OnStacks: TypeAlias = Callable[[Any, Any], Any]  # f(stacks, shared), all stacks of one length
ANY = P.UNCONSTRAINED  # the compiler's choice: what the neighbours have


def axes_to_divide(count: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that leave a device the fewest of `count` matrices, and of those the fewest devices.

    Fewer devices mean less padding and less traffic.
    """
    choices = itertools.chain.from_iterable(itertools.combinations(sizes, r) for r in range(len(sizes) + 1))
    return min(choices, key=lambda axes: (share(count, axes, sizes), math.prod(sizes[a] for a in axes)))


def share(count: int, axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    """The number of matrices on each device, the padding included: ⌈count / devices⌉."""
    return -(-count // math.prod(sizes[a] for a in axes))


def visible_mesh(arrays: Sequence[jax.Array], mesh: Mesh | None) -> Mesh | None:
    """The mesh that was given, else the one that the arrays' types show, else the ambient one, if there is any."""
    shown = [jax.typeof(x).sharding.mesh for x in arrays]
    known = [m for m in (mesh, *shown, jax.sharding.get_abstract_mesh()) if m is not None and not m.empty]
    return known[0] if known else None


def on_auto_axes(f: Callable[..., Any], mesh: Mesh | None, like: Any) -> Callable[..., Any]:
    """f, which gives a tree of arrays in the shapes of `like`, on Explicit axes: within, the compiler places them."""
    explicit = mesh.explicit_axes if mesh is not None else ()
    if not explicit:
        return f
    places = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    return jax.sharding.auto_axes(f, axes=explicit, out_sharding=places)


def by_mesh(arrays: Sequence[jax.Array], mesh: Mesh | None) -> list[tuple[list[int], Mesh | None]]:
    """Groups of arrays (by their place) that are divided together, each with its mesh.

    Where all that is seen is Auto, all of them. Arrays whose types show an Explicit mesh stay on theirs, each kind by
    itself; the others go to the ambient one if that is Explicit, else over `mesh` as if it were Auto.
    """
    ambient, shown = jax.sharding.get_abstract_mesh(), [jax.typeof(x).sharding.mesh for x in arrays]

    def is_explicit(m: Any) -> bool:
        return m is not None and bool(m.explicit_axes)

    if not any(map(is_explicit, [mesh, ambient, *shown])):
        return [(list(range(len(arrays))), visible_mesh(arrays, mesh))]
    kinds = {m: [i for i, s in enumerate(shown) if s == m] for m in dict.fromkeys(filter(is_explicit, shown))}
    if rest := [i for i, s in enumerate(shown) if not is_explicit(s)]:
        if is_explicit(ambient):
            kinds[ambient] = sorted([*kinds.get(ambient, []), *rest])
        else:
            others = [arrays[i] for i in rest]
            return [*((v, k) for k, v in kinds.items()), (rest, visible_mesh(others, _auto(mesh)))]
    return [(v, k) for k, v in kinds.items()]


def _auto(mesh: Mesh | None) -> Mesh | None:
    if isinstance(mesh, jax.sharding.Mesh) and mesh.explicit_axes:
        return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return mesh


def on_explicit(arrays: Any, mesh: Mesh | None) -> Any:
    """A tree of arrays; on an Explicit mesh those whose types don't show it yet are put there, whole."""
    if mesh is None or not mesh.explicit_axes:
        return arrays

    def shows(x: Any) -> bool:
        return bool(jax.typeof(x).sharding.mesh.explicit_axes)

    whole = NamedSharding(mesh, P()) if jax.sharding.get_abstract_mesh().empty else P()
    return jax.tree.map(lambda x: x if shows(x) else jax.sharding.reshard(x, whole), arrays)


@functools.partial(jax.jit, static_argnums=(1, 2))
def reshaped(x: jax.Array, shape: tuple[int, ...], sharding: jax.sharding.NamedSharding | None = None) -> jax.Array:
    """x in another shape, on Explicit axes too, where it has `sharding` then, or is whole on every device."""
    mesh = jax.typeof(x).sharding.mesh
    if x.shape == shape or not mesh.explicit_axes:
        return x.reshape(shape)
    sharding = NamedSharding(mesh, P(*[None] * len(shape))) if sharding is None else sharding
    return jax.sharding.auto_axes(lambda x: x.reshape(shape), axes=mesh.explicit_axes, out_sharding=sharding)(x)


def divide(f: OnStacks, stacks: Any, mesh: Mesh | None, axis_name: Sequence[str] = (), shared: Any = ()) -> Any:
    """f(stacks, shared), f mapping stacks of one length matrix by matrix, each device doing its share.

    Args:
        f: what is done to stacks of any length. It gives a tree like `stacks`, each array in the shape of its own.
        stacks: a tree of arrays (N, …).
        mesh: the mesh over which they are divided, or None.
        axis_name: axes of pmap or shard_map along which the devices are known to hold the same stacks. Axes of
            shard_map that show this in their types are found without.
        shared: a tree of arrays that f needs whole.
    """
    mapped, arrays = jax.sharding.get_abstract_mesh(), jax.tree.leaves((stacks, shared))
    manual = {a: mapped.shape[a] for a in mapped.manual_axes if a in axis_name or _shows_equal(arrays, a)}
    manual |= {a: _size_of(a) for a in axis_name if a not in manual}
    free = {} if mesh is None else {a: mesh.shape[a] for a in mesh.axis_names if a not in mapped.manual_axes}
    size = len(arrays[0])
    axes = axes_to_divide(size, {**manual, **free})
    count = math.prod({**manual, **free}[a] for a in axes)

    def pad(x: Any) -> Any:
        return jnp.pad(x, ((0, -size % count), *((0, 0),) * (x.ndim - 1))) if size % count else x

    if mesh is not None and free:
        f = _over_mesh(f, mesh, tuple(a for a in axes if a in free))
    if any(a in manual for a in axes):
        f = _over_mapped(f, tuple(a for a in axes if a in manual))
    done = f(jax.tree.map(pad, stacks), shared)
    return jax.tree.map(lambda x: x[:size], done) if size % count else done


def _size_of(axis: str) -> int:
    try:
        return lax.axis_size(axis)
    except NameError:
        raise ValueError(
            f"axis_name={axis!r} is no mapped axis here: name an axis of the pmap or shard_map that the update runs "
            "under, or leave it away"
        ) from None


def _shows_equal(arrays: Sequence[jax.Array], axis: str) -> bool:
    """True if the types show that all devices along a mapped axis hold the same. Without tracking nothing varies."""

    def varies(x: Any) -> bool:
        return axis in jax.typeof(x).manual_axis_type.varying

    return varies(lax.axis_index(axis)) and not any(map(varies, arrays))


def _over_mapped(f: OnStacks, axes: tuple[str, ...]) -> OnStacks:
    """Inside pmap or shard_map: take my share, and gather everyone's."""

    def mine(x: jax.Array) -> jax.Array:
        size = len(x) // lax.axis_size(axes)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size)

    def everyones(x: Any) -> Any:
        return lax.all_gather(x, axes, tiled=True, to="invarying")

    return lambda stacks, shared: jax.tree.map(everyones, f(jax.tree.map(mine, stacks), shared))


def _over_mesh(f: OnStacks, mesh: Mesh, axes: tuple[str, ...]) -> OnStacks:
    """Under jit: the stacks' axis goes over the mesh, a mesh axis at a time (fewest bytes), and back likewise."""
    hops = [axes[::-1][:k] for k in range(len(axes) + 1)]

    def divided(stacks: Any, shared: Any) -> Any:
        ambient = jax.sharding.get_abstract_mesh()  # knows which axes are Auto by now
        on = mesh if ambient.empty else ambient

        def put(tree: Any, hop: tuple[str, ...], rest: Any = ANY) -> Any:
            def spec(x: Any) -> Any:
                return NamedSharding(on, P(hop or None, *(rest,) * (x.ndim - 1)))

            return jax.tree.map(lambda x: lax.with_sharding_constraint(x, spec(x)), tree)

        if not axes:  # too few to divide: whole matrices on every device
            return jax.tree.map(placed_like, f(put(stacks, (), None), shared), stacks)
        done = stacks
        for hop in hops:
            done = put(done, hop)
        local = P(hops[-1])
        done = jax.shard_map(f, mesh=on, in_specs=(local, P()), out_specs=local, axis_names=set(axes), check_vma=False)(
            done, shared
        )
        for hop in reversed(hops):
            done = put(done, hop)
        return jax.tree.map(placed_like, done, stacks)

    return divided


def placed_like(y: jax.Array, x: jax.Array) -> jax.Array:
    """y. A choice between the two costs nothing, and makes the partitioner place y like x."""
    return jnp.where(True, y, x.astype(y.dtype))
