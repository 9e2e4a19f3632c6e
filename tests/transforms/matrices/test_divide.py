"""The work divided over any mesh: the same updates as on one device, and no matrix done twice."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab.roles import MatrixAxes, read_names

MESHES = {"8": ((8,), ("x",)), "4×2": ((4, 2), ("x", "y")), "3": ((3,), ("gpu",))}
EACH = {  # one sharding for all matrices, by what it shards: rows, columns, both
    "replicated": lambda names: P(),
    "rows": lambda names: P(names[0]),
    "columns": lambda names: P(None, names[-1]),
    "both": lambda names: P(names[0], names[-1]) if len(names) > 1 else P(None, names),
}
AXES = {
    "dense": MatrixAxes((), (0,), (1,)),
    "heads": MatrixAxes((), (0,), (1, 2)),
    "conv": MatrixAxes((), (0, 1, 2), (3,)),
}


def make_mesh(name, kind):
    shape, names = MESHES[name]
    count = int(np.prod(shape))
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=jax.devices()[:count])


def tree(seed=0):
    """Six matrices of one shape, some lying on their side, a projection into heads, convolutions, and a loner."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {
        "dense": [normal(24, 48) for _ in range(4)] + [normal(48, 24) for _ in range(2)] + [normal(24, 24)],
        "heads": [normal(24, 24, 24)],
        "conv": [normal(2, 2, 24, 24) for _ in range(2)],
    }
    return params, {name: [AXES[name]] * len(leaves) for name, leaves in params.items()}


def update(params, axes, **settings):
    tx = optlab.orthogonalize(**settings)
    layout = read_names(params, {f"{name}/*": kind for name, (kind, *_) in axes.items()} if axes else None)
    return tx.update(params, tx.init(params), layout=layout)[0]


def same(left, right, atol=1e-5):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol)


@pytest.mark.thinned
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("sharding", EACH)
@pytest.mark.parametrize("mesh", MESHES)
def test_any_mesh_gives_the_updates_of_one_device(mesh, sharding, kind):
    params, axes = tree()
    names, devices = MESHES[mesh][1], make_mesh(mesh, kind)
    last_two = lambda x: P(*(None,) * (x.ndim - 2), *EACH[sharding](names))
    place = lambda x: jax.device_put(x, NamedSharding(devices, last_two(x)))
    placed = jax.tree.map(place, params)
    got = jax.jit(lambda g: update(g, axes))(placed)
    same(got, update(params, axes))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(placed), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), (x.sharding, y.sharding)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_mixed_shardings_and_an_eager_call(kind):
    params, axes = tree()
    devices = make_mesh("4×2", kind)
    specs = [P(), P("x"), P("y"), P(None, "x"), P("x", "y"), P("y", "x"), P(("x", "y"))]
    params["dense"] = [
        jax.device_put(x, NamedSharding(devices, spec)) for x, spec in zip(params["dense"], specs, strict=True)
    ]
    params["heads"] = [jax.device_put(params["heads"][0], NamedSharding(devices, P(None, "x")))]
    params["conv"] = [jax.device_put(x, NamedSharding(devices, P(None, None, "x", "y"))) for x in params["conv"]]
    expected = update(*tree())
    same(jax.jit(lambda g: update(g, axes))(params), expected)
    same(update(params, axes), expected)


@pytest.mark.thinned
@pytest.mark.parametrize("aspect", [1, 4])
@pytest.mark.parametrize(
    "spectrum", [np.ones(48), 1 / np.arange(1, 49), np.geomspace(1, 1e-7, 48)], ids=["flat", "slow", "fast"]
)
def test_six_matrices_on_eight_devices_and_on_three_whatever_their_spectrum(spectrum, aspect):
    rng = np.random.default_rng(0)
    basis = lambda n: np.linalg.qr(rng.standard_normal((n, 48)))[0]
    params = [jnp.asarray((basis(48) * spectrum) @ basis(48 * aspect).T, jnp.float32) for _ in range(6)]
    expected = jax.jit(lambda g: update(g, None))(params)
    for mesh in ("8", "3"):
        devices = make_mesh(mesh, AxisType.Auto)
        for spec in (P(), P(MESHES[mesh][1][0])):
            placed = jax.device_put(params, NamedSharding(devices, spec))
            same(jax.jit(lambda g: update(g, None))(placed), expected)


@pytest.mark.thinned
@pytest.mark.parametrize("where", ["plain", "auto", "explicit", "some explicit"])
@pytest.mark.parametrize("given", ["auto", "explicit"])
@pytest.mark.parametrize("how", ["mesh=", "ambient"])
def test_leaves_that_do_not_show_the_mesh(where, given, how):
    """On one device or on an Auto mesh, all or some of them, while an Explicit mesh is given or ambient."""
    if how == "ambient" and given == "auto" and "explicit" in where:
        pytest.skip("JAX refuses even to multiply them")
    params, axes = tree()
    kinds = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    if where != "plain":
        mesh = make_mesh("8", kinds[where.split()[-1]])
        every = 2 if where == "some explicit" else 1
        put = lambda i, x: x if i % every else jax.device_put(x, NamedSharding(mesh, P()))
        params = {name: [put(i, x) for i, x in enumerate(leaves)] for name, leaves in params.items()}
    mesh, expected = make_mesh("8", kinds[given]), update(*tree())
    if how == "mesh=":
        same(jax.jit(lambda g: update(g, axes, mesh=mesh))(params), expected)
        same(update(params, axes, mesh=mesh), expected)
    else:
        with jax.set_mesh(mesh):
            same(jax.jit(lambda g: update(g, axes))(params), expected)
            same(update(params, axes), expected)


def test_an_explicit_mesh_that_is_given_divides_the_work():
    params, axes = [jnp.ones((24, 48))] * 8, None
    mesh = make_mesh("8", AxisType.Explicit)
    program = compiled(lambda g: update(g, axes, mesh=mesh), params)
    assert program.cost_analysis()["flops"] < compiled(lambda g: update(g, axes), params).cost_analysis()["flops"] / 6


def compiled(f, *arguments):
    return jax.jit(f).lower(*arguments).compile()


def collectives(program):
    """How many of each kind a compiled program has."""
    found = re.findall(r" (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)(?:-start)?\(", program)
    return collections.Counter(found)


@pytest.mark.thinned
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("sharding", ["replicated", "rows", "columns"])
def test_work_is_divided_and_travels_once_each_way(sharding, kind):
    devices = make_mesh("8", kind)
    params = [jnp.ones((32, 64)) for _ in range(16)]
    place = NamedSharding(devices, EACH[sharding](("x",)))
    one = compiled(lambda g: update(g, None), params)
    many = compiled(lambda g: update(g, None), jax.device_put(params, place))
    assert many.cost_analysis()["flops"] <= 1.05 / 8 * one.cost_analysis()["flops"]
    exchanges = collectives(many.as_text())
    assert sum(exchanges.values()) == (1 if sharding == "replicated" else 2), exchanges


def test_an_ambient_mesh_or_one_that_is_given_divides_the_work():
    devices = make_mesh("8", AxisType.Auto)
    params = [jnp.asarray(np.random.default_rng(i).standard_normal((16, 16)), jnp.float32) for i in range(8)]
    one = compiled(lambda g: update(g, None), params).cost_analysis()["flops"]
    replicated = jax.device_put(params, NamedSharding(devices, P()))
    with jax.set_mesh(devices):
        ambient = compiled(lambda g: update(g, None), params)
        same(jax.jit(lambda g: update(g, None))(params), update(params, None))
    given = compiled(lambda g: update(g, None, mesh=devices), replicated)
    for program in (ambient, given):
        assert program.cost_analysis()["flops"] <= 1.1 / 8 * one
    same(jax.jit(lambda g: update(g, None, mesh=devices))(replicated), update(params, None))


def test_under_pmap_named_axes_divide_and_unnamed_ones_are_never_guessed():
    params = [jnp.asarray(np.random.default_rng(i).standard_normal((16, 16)), jnp.float32) for i in range(6)]
    expected = update(params, None)
    replicas = jax.tree.map(lambda x: jnp.stack([x] * 4), params)
    divided = jax.pmap(lambda g: update(g, None, axis_name="i"), axis_name="i", devices=jax.devices()[:4])
    same(jax.tree.map(lambda x: x[3], divided(replicas)), expected)
    assert "all-gather" in divided.lower(replicas).compile().as_text()
    population = jax.tree.map(lambda x: jnp.stack([x, 2 * x, x.T, x @ x]), params)
    alone = jax.pmap(lambda g: update(g, None), axis_name="i", devices=jax.devices()[:4])
    got = alone(population)
    for i in range(4):
        same([x[i] for x in got], update([x[i] for x in population], None))


@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map_replicas_are_divided_where_types_show_them(check_vma):
    devices = make_mesh("8", AxisType.Auto)
    params = [jnp.asarray(np.random.default_rng(i).standard_normal((16, 16)), jnp.float32) for i in range(8)]
    expected = update(params, None)

    def mapped(spec, **settings):
        return jax.shard_map(
            lambda g: update(g, None, **settings), mesh=devices, in_specs=spec, out_specs=spec, check_vma=check_vma
        )

    replicas = mapped(P())
    same(jax.jit(replicas)(params), expected)
    one = compiled(lambda g: update(g, None), params).cost_analysis()["flops"]
    named = compiled(mapped(P(), axis_name="x"), params)
    assert named.cost_analysis()["flops"] <= 1.1 / 8 * one
    if check_vma:
        assert compiled(replicas, params).cost_analysis()["flops"] <= 1.1 / 8 * one
    stacked = [jnp.concatenate([x * (k + 1) if k % 2 else x.T for k in range(8)]) for x in params]
    population = jax.jit(mapped(P("x")))(stacked)
    for x, y in zip(population, stacked, strict=True):
        same(list(np.split(np.asarray(x), 8)), update(list(jnp.split(y, 8)), None))


def test_an_axis_that_is_not_mapped_is_refused():
    with pytest.raises(ValueError, match="axis_name='data'"):
        jax.jit(lambda g: update(g, None, axis_name="data"))([jnp.ones((4, 4))])
