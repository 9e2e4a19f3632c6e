"""Checks on many devices, where updates must equal those of one: meshes with Auto and Explicit axes, and pmap."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.testing._case import Case, stack
from optlab.testing._compare import require_same
from optlab.testing._report import Skipped, check


@check("the result depends on where the arrays are: compute by shapes and values, and let the compiler divide the work")
def auto_mesh(case: Case) -> None:
    """Parameters over a mesh with Auto axes, which the compiler divides."""
    _on_mesh(case, AxisType.Auto, "on a mesh with Auto axes")


@check("an operation doesn't say where its result is to be (jax.sharding.auto_axes helps), or looks at the sharding")
def explicit_mesh(case: Case) -> None:
    """Parameters over a mesh with Explicit axes, which stand in the arrays' types."""
    _on_mesh(case, AxisType.Explicit, "on a mesh with Explicit axes")


@check("each device's model is its own under pmap: the update has to look at no other device")
def pmap(case: Case) -> None:
    """Two devices train two models under pmap, each as if alone."""
    devices = _devices(2)
    params, targets, updates = case.other
    run = jax.pmap(lambda p, ts: case.play(case.tx, p, ts), axis_name="population", devices=devices)
    together = run(stack([case.params, params]), [stack(pair) for pair in zip(case.targets[:2], targets, strict=True)])
    for i, alone in enumerate((case.plain.updates[:2], updates)):
        require_same([jax.tree.map(lambda x, i=i: x[i], u) for u in together], alone, f"under pmap, for model {i + 1},")


def _on_mesh(case: Case, kind: AxisType, where: str) -> None:
    case.need_update()
    devices = _devices(2)
    shape = (2, 2) if len(devices) >= 4 else (2, 1)
    mesh = jax.make_mesh(shape, ("rows", "columns"), (kind,) * 2, devices=devices[: shape[0] * shape[1]])

    def place(x: jax.Array) -> jax.Array:
        """Divides an array over the rows and columns of the mesh, where its lengths can be divided."""
        spec = [name if n % size == 0 else None for n, name, size in zip(x.shape, mesh.axis_names, shape, strict=False)]
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        params, targets = jax.tree.map(place, (case.params, case.targets[:2]))
        updates = jax.jit(lambda p, ts: case.play(case.tx, p, ts))(params, targets)
    require_same(updates, case.plain.updates[:2], where)


def _devices(least: int) -> list[jax.Device]:
    devices = jax.devices()
    if len(devices) < least:
        raise Skipped(f"needs {least} devices: jax.config.update('jax_num_cpu_devices', 8) simulates them")
    return devices
