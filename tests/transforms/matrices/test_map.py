"""`on_matrices`: any function of a stack, with what belongs to each matrix, on one device and on many."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.roles import MatrixAxes, read_names
from optlab.transforms.matrices import on_matrices, stacks_of

AXES = {
    "dense": ((3, 5), MatrixAxes((), (0,), (1,))),
    "tall": ((5, 3), MatrixAxes((), (0,), (1,))),
    "torch's": ((3, 5), MatrixAxes((), (1,), (0,))),
    "conv": ((2, 2, 3, 5), MatrixAxes((), (0, 1, 2), (3,))),
    "heads": ((6, 2, 4), MatrixAxes((), (0,), (1, 2))),
    "scanned": ((3, 5, 2, 4), MatrixAxes((0,), (1,), (2, 3))),
    "fused": ((4, 18), MatrixAxes((1,), (0,), (2,), (4, 3, 6))),
}
SHAPES = {name: shape for name, (shape, _) in AXES.items()}


def normal(shapes, seed=0):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s), jnp.float32), shapes, is_leaf=is_shape)


TREE = normal(SHAPES)
LAYOUT = read_names(TREE, overrides={name: ("matrix", axes) for name, (_, axes) in AXES.items()})


def same(left, right, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}), left, right
    )


def by_hand(f, x, axes):
    """f of each matrix (fan_in, fan_out), one after another."""
    return axes.from_matrices(jnp.stack([f(X) for X in axes.to_matrices(x)]), x.shape)


def test_every_matrix_is_done_as_by_hand():
    cube = lambda X: X @ X.mT @ X
    expected = {name: by_hand(cube, TREE[name], axes) for name, (_, axes) in AXES.items()}
    same(on_matrices(cube, TREE, layout=LAYOUT), expected)


def test_what_isnt_to_be_turned_isnt():
    """A function of rows and columns that is another one of the transpose."""
    by_row = lambda X: jnp.cumsum(X, axis=-2)
    expected = {name: by_hand(by_row, TREE[name], axes) for name, (_, axes) in AXES.items()}
    same(on_matrices(by_row, TREE, layout=LAYOUT, turned=False), expected)


def states(seed=1):
    """For each matrix its number, a vector as long as it is wide, and nothing."""
    sizes = {name: stacks_of(TREE[name], axes) for name, (_, axes) in AXES.items()}
    counts, start = {}, 0.0
    for name, (count, _, _) in sizes.items():
        counts[name], start = jnp.arange(start, start + count), start + count
    vectors = normal({name: (count, n) for name, (count, _, n) in sizes.items()}, seed)
    return counts, {name: {"v": v, "none": None} for name, v in vectors.items()}


def step(X, M, number, v, scale):
    """Two trees and two states, all of them needed, and all of them changed."""
    M = M + number[:, None, None] * X
    return scale * M, M - X, number + jnp.sum(X**2, (-2, -1)), {"v": v["v"] + jnp.sum(X, -2), "none": None}


def test_trees_states_and_what_is_shared():
    numbers, vectors = states()
    M = normal(SHAPES, 2)
    U, M_new, numbers_new, vectors_new = on_matrices(
        step, TREE, M, states=[numbers, vectors], shared=[jnp.float32(3)], layout=LAYOUT
    )
    for name, (_, axes) in AXES.items():
        turn = lambda X: X.mT if X.shape[-2] > X.shape[-1] else X
        x, m = (turn(axes.to_matrices(tree[name])) for tree in (TREE, M))
        u, m, number, vector = step(x, m, numbers[name], vectors[name], 3)
        same(turn(axes.to_matrices(U[name])), u)
        same(turn(axes.to_matrices(M_new[name])), m)
        same((numbers_new[name], vectors_new[name]), (number, vector), rtol=1e-4)


@pytest.mark.thinned
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("ambient", [True, False])
def test_over_a_mesh_all_are_as_on_one_device(kind, ambient):
    """Five matrices of one shape on four devices. Where types show it, each result is where its own operand was."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(getattr(AxisType, kind),) * 2, devices=jax.devices()[:4])
    shapes, specs = [(4, 8)] * 4 + [(8, 4)], [P("a"), P(None, "a"), P("b", "a"), P(), P("a", "b")]
    place = lambda xs, specs: [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(xs, specs, strict=True)]
    X, M, numbers = normal(shapes), normal(shapes, 1), [jnp.full(1, i, jnp.float32) for i in range(5)]
    vectors = [{"v": v, "none": None} for v in normal([(1, 8)] * 5, 2)]
    run = jax.jit(lambda *trees: on_matrices(step, *trees[:2], states=trees[2:], shared=[jnp.float32(3)]))
    expected = run(X, M, numbers, vectors)
    moved = lambda vs: [{"v": v, "none": None} for v in place([v["v"] for v in vs], [P(None, "b")] * 5)]
    placed = place(X, specs), place(M, specs[::-1]), place(numbers, [P()] * 5), moved(vectors)
    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        found = run(*placed)
    same(found, expected, rtol=1e-4)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(placed) if kind == "Explicit" else [], strict=False):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), (x.sharding, y.sharding)


def test_under_pmap_along_a_named_axis():
    X, numbers = normal([(4, 8)] * 6), [jnp.full(1, i, jnp.float32) for i in range(6)]
    f = lambda X, number: (number[:, None, None] * X, number + jnp.max(X, (-2, -1)))
    run = lambda X, numbers: on_matrices(f, X, states=[numbers], axis_name="i")
    replicas = jax.tree.map(lambda x: jnp.stack([x] * 4), (X, numbers))
    mapped = jax.pmap(run, axis_name="i", devices=jax.devices()[:4])
    assert "all_gather" in str(jax.make_jaxpr(mapped)(*replicas))
    same(jax.tree.map(lambda x: x[2], mapped(*replicas)), on_matrices(f, X, states=[numbers]))


def test_the_work_and_the_states_are_divided():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    X, A = [jnp.ones((16, 32))] * 16, [jnp.ones((1, 16, 16))] * 16
    f = lambda X, A: (A @ X, A @ A + X @ X.mT)
    flops = lambda *trees: (
        jax.jit(lambda X, A: on_matrices(f, X, states=[A])).lower(*trees).compile().cost_analysis()["flops"]
    )
    assert flops(*jax.device_put((X, A), NamedSharding(mesh, P()))) <= 1.1 / 8 * flops(X, A)


def test_states_of_two_dtypes_are_not_mixed():
    X = normal([(3, 5), (3, 5)])
    kept = [jnp.ones((1, 3), jnp.bfloat16), jnp.ones((1, 3), jnp.float32)]
    _, new = on_matrices(lambda X, s: (X, s), X, states=[kept])
    assert [x.dtype for x in new] == ["bfloat16", "float32"]


def test_leaves_without_entries_and_masked_ones_go_through():
    X = {"w": jnp.ones((2, 3)), "empty": jnp.ones((0, 3))}
    new, kept = on_matrices(lambda X, s: (2 * X, s + 1), X, states=[{"w": jnp.zeros(1), "empty": jnp.zeros(0)}])
    assert jax.tree.map(jnp.shape, (new, kept)) == ({"w": (2, 3), "empty": (0, 3)}, {"w": (1,), "empty": (0,)})
    same(new["w"], 2 * X["w"])
    assert on_matrices(lambda X: X, {}) == {}


def test_it_compiles_once_for_a_function_outside_a_jit():
    traced = []

    def f(X):
        traced.append(X.shape)
        return 2 * X

    for seed in range(3):
        on_matrices(f, normal([(3, 5), (5, 3)], seed))
    assert traced == [(2, 3, 5)]


def test_what_cant_be_mapped_is_refused():
    with pytest.raises(ValueError, match=r"^shrink moves matrices, and 'bias' of shape \(3,\) isn't one"):
        on_matrices(lambda X: X, {"bias": jnp.ones(3)}, who="shrink")
    with pytest.raises(ValueError, match="a stack back for each of the 2 trees and states, got 1 from <lambda>"):
        on_matrices(lambda X, s: X, [jnp.ones((3, 5))], states=[[jnp.ones(1)]])
