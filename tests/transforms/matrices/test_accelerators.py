"""What a GPU and a TPU are given, run on a CPU, or lowered for them: certificates, the program, its memory."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab.transforms.matrices import _newton_schulz as ns

RECIPES = {
    "standard, bfloat16": (ns.Recipe("standard", (5,), "bfloat16", "default"), (16, 16)),
    "wide standard, bfloat16": (ns.Recipe("standard", (5,), "bfloat16", "default"), (16, 64)),
    "gram, float16": (ns.Recipe("gram", (1, 2, 2), "float16", "default"), (16, 64)),
    "standard, float16": (ns.Recipe("standard", (5,), "float16", "default"), (16, 16)),
}
SETS = {f"keller_jordan {t}": ns.keller_jordan(t) for t in (1, 2, 3, 4, 5, 6, 8, 10)} | {
    f"polar_express {t} {lower:g}": ns.polar_express(t, lower)
    for t in range(3, 11)
    for lower in (ns.LEAST_IN_16_BITS, 3e-4, 1e-3, 1e-2, 0.1, 0.5)
    if ns.extremes(ns.polar_express(t, lower))[1] <= ns.LARGEST
}
# The largest singular value above that of exact arithmetic, as measured: 0.022 in bfloat16, 0.011 in float16.
ROUNDING = {"bfloat16": 0.03, "float16": 0.015}


def spectra(m, levels):
    """Decaying, of rank one, flat, and two levels: every level that a step could make too large."""
    k = np.arange(1, m + 1)
    two = [np.where(k <= top, 1.0, s) for top in (1, m // 4, m // 2) for s in np.geomspace(1e-3, 1, levels)]
    return np.array([k**-0.5, 1 / k, 1 / k**2, np.eye(m)[0], np.geomspace(1, 1e-7, m), *two])


def hard(m, n, levels=40):
    """Matrices of these spectra in random directions, (spectra, m, n), their singular values and vectors."""
    rng = np.random.default_rng(0)
    U, V = np.linalg.qr(rng.standard_normal((m, m)))[0], np.linalg.qr(rng.standard_normal((n, m)))[0]
    S = spectra(m, levels)
    return (U * S[:, None]) @ V.T, S / np.linalg.norm(S, axis=1, keepdims=True), U, V


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.slow
def test_accelerators_recipes_are_certified(name):
    """Of all coefficients: none of the singular values ends above the limit or changes its sign."""
    recipe, shape = RECIPES[name]
    X, S, U, V = hard(*shape)
    assert X.size <= ns.CACHE  # done operation by operation, without a compilation for each set
    for which, coefficients in SETS.items():
        steps = len(coefficients)
        chunks = ns.restarts(steps, ns.GRAM_STEPS["float16"]) if recipe.form == "gram" else (steps,)
        recipes = ns.Recipes(*3 * (recipe._replace(chunks=chunks),))
        Y = np.asarray(ns.newton_schulz(jnp.asarray(X, jnp.float32), coefficients, recipes, 1e-7), np.float64)
        assert np.isfinite(Y).all(), which
        largest = np.linalg.norm(Y, 2, axis=(1, 2)).max()
        assert largest <= min(ns.LARGEST, ns.extremes(coefficients)[1] + ROUNDING[recipe.dtype]), (which, largest)
        along = np.einsum("ji,sjk,ki->si", U, Y, V)  # uᵢᵀYvᵢ
        assert (along[S > 0.01] > 0).all(), which


def test_polar_express_for_tiny_singular_values_is_not_stable_in_bfloat16():
    """Why it is refused."""
    X, recipe = hard(16, 16, levels=60)[0], ns.Recipe("standard", (8,), "bfloat16", "default")
    Y = ns.newton_schulz(jnp.asarray(X, jnp.float32), ns.polar_express(8, 1e-5), ns.Recipes(*3 * (recipe,)), 1e-7)
    assert not jnp.abs(Y).max() < 10


@pytest.fixture(params=["gpu", "tpu"])
def accelerator(request, monkeypatch):
    """The accelerator's branch, on the CPU."""
    take = lambda X, branches: branches.get(request.param, branches["default"])(X)
    monkeypatch.setattr(ns, "_by_platform", take)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.mark.thinned
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_updates_keep_their_dtype_and_are_the_cpus_to_rounding(accelerator, method, dtype):
    rng = np.random.default_rng(0)
    shapes = {"square": (12, 12), "wide": (12, 40), "tall": (40, 12)}
    G = {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    tx, exact = optlab.orthogonalize(method), optlab.orthogonalize(method, dtype="float32")
    got, expected = (jax.jit(lambda G, tx=tx: tx.update(G, tx.init(G))[0])(G) for tx in (tx, exact))
    for name, Y in got.items():
        assert Y.dtype == dtype
        difference = np.linalg.norm(np.float64(Y) - np.float64(expected[name]), 2)
        assert 1e-5 < difference < 0.3, name


def test_float64_is_computed_in_float64(accelerator):
    with jax.enable_x64(True):
        G = jnp.asarray(np.random.default_rng(0).standard_normal((6, 20)))
        tx = optlab.orthogonalize(eps=0.0)
        U, s, Vt = np.linalg.svd(G, full_matrices=False)
        s = s / np.linalg.norm(s)
        for a, b, c in ns.keller_jordan(5):
            s = a * s + b * s**3 + c * s**5
        np.testing.assert_allclose(tx.update(G, tx.init(G))[0], (U * s) @ Vt, atol=1e-9)


def test_the_norm_is_taken_in_float32(accelerator):
    """In 16 bits the squares of 1e-5 are 0, those of 1e4 infinite, and 1024 equal ones add up to 256 in bfloat16."""
    ones = np.ones((32, 32), np.float32)
    tx = optlab.orthogonalize(eps=0.0)
    for scale in (1e-5, 1.0, 1e4):
        Y = tx.update(jnp.asarray(scale * ones), tx.init(ones))[0]
        np.testing.assert_allclose(np.linalg.norm(Y, 2), 0.696, atol=0.02)  # where five steps take the value 1


@pytest.mark.thinned
@pytest.mark.parametrize("count", [7, 8, 9])
def test_parts_of_a_stack_are_the_whole(accelerator, count, monkeypatch):
    """Three matrices a part; of seven and eight the last part begins within the one before it."""
    X = jnp.asarray(np.random.default_rng(0).standard_normal((count, 4, 6)), jnp.float32)
    recipes = ns.Recipes(*3 * (ns.Recipe("standard", (5,), "float32", "highest"),))
    whole = ns.newton_schulz(X, ns.keller_jordan(5), recipes, 1e-7)
    monkeypatch.setattr(ns, "CACHE", 0)
    monkeypatch.setattr(ns, "PART", 3 * 24)
    in_parts = jax.jit(lambda X: ns.newton_schulz(X, ns.keller_jordan(5), recipes, 1e-7))
    assert "while" in in_parts.lower(X).as_text()
    np.testing.assert_allclose(in_parts(X), whole, atol=1e-5)


def products(program):
    """How often each (dtype, precision) occurs among the products of a lowered program."""
    pattern = r"dot_general.*?precision = \[(\w+), \w+\].*?-> tensor<(?:\d+x)*(\w+)>"
    return Counter((dtype, precision) for precision, dtype in re.findall(pattern, program))


def lowered(update, platform, *arguments):
    return products(jax.jit(update).trace(*arguments).lower(lowering_platforms=(platform,)).as_text())


def gradients(count=8):
    return [jnp.ones((8, 8))] * count + [jnp.ones((8, 32))] * count


def update_of(tx, **extra):
    return lambda G: tx.update(G, tx.init(G), **extra)[0]


EXPECTED = {
    "cpu": {("f32", "HIGHEST")},
    "cuda": {("bf16", "DEFAULT"), ("f16", "DEFAULT")},
    "rocm": {("bf16", "DEFAULT"), ("f16", "DEFAULT")},
    "tpu": {("bf16", "DEFAULT")},
}


@pytest.mark.parametrize("platform", EXPECTED)
def test_a_platforms_program_has_that_platforms_products_and_no_others(platform):
    update = update_of(optlab.orthogonalize())
    assert set(lowered(update, platform, gradients())) == EXPECTED[platform]
    large = [jnp.ones((256, 256))] * 4, jnp.ones((3, 2))
    assert len(lowered(update, platform, large)) == len(set(EXPECTED[platform]) - {("f16", "DEFAULT")})
    asked = update_of(optlab.orthogonalize(dtype="float32"))
    assert set(lowered(asked, platform, gradients())) == {("f32", "HIGHEST")}


def by_vmap(update):
    return jax.vmap(update), jax.tree.map(lambda x: jnp.stack([x, x]), gradients())


def by_scan(update):
    return lambda G: jax.lax.scan(lambda G, _: (update(G), None), G, None, length=2)[0], gradients()


def by_shard_map(update):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P()), gradients()


def by_pmap(update):
    return jax.pmap(update, axis_name="x"), jax.tree.map(lambda x: jnp.stack([x] * 8), gradients())


def by_mesh(kind, update):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    return update, jax.device_put(gradients(), NamedSharding(mesh, P(None, "x")))


WAYS = {
    "vmap": by_vmap,
    "scan": by_scan,
    "shard_map": by_shard_map,
    "pmap": by_pmap,
    "Auto": partial(by_mesh, AxisType.Auto),
    "Explicit": partial(by_mesh, AxisType.Explicit),
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_called_the_program_is_the_platforms(way, platform):
    axis_name = "x" if way == "pmap" else ()
    f, G = WAYS[way](update_of(optlab.orthogonalize(axis_name=axis_name)))
    assert set(lowered(f, platform, G)) == EXPECTED[platform]


def gpt(layers, width):
    """The hidden matrices of a GPT, as shapes."""
    shapes = layers * [*[(width, width)] * 4, (width, 4 * width), (4 * width, width)]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def memory(update, *arguments):
    """(temporaries of the compiled update, bytes of the matrices)"""
    compiled = jax.jit(update, donate_argnums=1).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes, sum(x.size * 4 for x in arguments[0])


@pytest.mark.thinned
@pytest.mark.parametrize(("layers", "width", "limit"), [(12, 768, 2.5), (24, 2048, 1.25)])
def test_memory_of_an_update_is_bounded(accelerator, layers, width, limit):
    """GPT-2 small, and 1.3B parameters: the temporaries of the accelerator's program as compiled for a CPU, which needs
    more of them, as it casts 16 bits to float32 to multiply."""
    tx = optax.chain(optlab.momentum(0.95, nesterov=True), optlab.orthogonalize(), optax.scale_by_learning_rate(0.1))
    G = gpt(layers, width)
    temporaries, matrices = memory(lambda G, state: tx.update(G, state), G, jax.eval_shape(tx.init, G))
    assert temporaries <= limit * matrices, temporaries / matrices
