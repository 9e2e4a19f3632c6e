"""Certificates: every set of coefficients, number of steps, form and dtype that can be had keeps what is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.transforms.matrices import _newton_schulz as ns

SETS = {
    **{f"keller_jordan {t}": ns.keller_jordan(t) for t in range(1, 11)},
    **{
        f"polar_express {t} {lower:g}": ns.polar_express(t, lower)
        for t in range(1, 11)
        for lower in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5)
        if ns.extremes(ns.polar_express(t, lower))[1] <= ns.LARGEST
    },
}
PUBLISHED = [  # arXiv 2505.16932, the list for a lower bound of 1e-3, before the safety factor
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]


def spectra(m):
    """Singular values of hard cases: flat, decaying slowly and fast, rank one, a gap."""
    return {
        "flat": np.ones(m),
        "slow": 1.0 / np.arange(1, m + 1),
        "fast": np.geomspace(1, 1e-7, m),
        "rank one": np.eye(m)[0],
        "gap": np.where(np.arange(m) < m // 4, 1.0, 1e-3),
        "random": np.linspace(1, 0.01, m),
    }


def matrices(m, n, seed=0):
    """A stack of one matrix a spectrum, (spectra, m, n), and their singular vectors."""
    rng = np.random.default_rng(seed)
    U, V = np.linalg.qr(rng.standard_normal((m, m)))[0], np.linalg.qr(rng.standard_normal((n, m)))[0]
    return np.stack([(U * s) @ V.T for s in spectra(m).values()]), U, V


def everywhere(X, coefficients, eps, *recipe):
    """One recipe on every platform."""
    return ns.newton_schulz(X, coefficients, ns.Recipes(*3 * (ns.Recipe(*recipe),)), eps)


@pytest.mark.parametrize("name", SETS)
def test_no_singular_value_is_reversed_and_none_ends_above_the_limit(name):
    """On a grid of its own, finer than any wave of the composition."""
    x = np.geomspace(1e-15, 1, 300_001)
    y = x
    for a, b, c in SETS[name]:
        y = a * y + b * y**3 + c * y**5
    assert (y > 0).all()
    assert y.max() <= ns.LARGEST + 1e-3


def test_polar_express_is_the_published_one():
    mine = np.array(ns.polar_express(7, 1e-3))
    safe = np.array(PUBLISHED) / [[ns.SAFETY, ns.SAFETY**3, ns.SAFETY**5]]
    np.testing.assert_allclose(mine[:6], safe[:6], rtol=1e-6)
    np.testing.assert_allclose(mine[6], PUBLISHED[6], rtol=1e-5)


@pytest.mark.parametrize("lower", [1e-3, 0.1, 0.5])
def test_the_first_quintic_is_the_best_one(lower):
    """The error of the best approximation is equal at four points, with alternating signs (Chebyshev)."""
    lower = max(lower, ns.CUSHION)
    a, b, c = ns._best_quintic(lower, 1.0)
    x = np.linspace(lower, 1, 100_001)
    error = a * x + b * x**3 + c * x**5 - 1
    extrema = [error[0], *[e for e, l, r in zip(error[1:-1], error, error[2:], strict=False) if (e - l) * (e - r) > 0]]
    extrema.append(error[-1])
    assert len(extrema) == 4
    np.testing.assert_allclose(extrema, np.max(np.abs(error)) * np.array([-1, 1, -1, 1]), rtol=1e-6)


@pytest.mark.parametrize(("steps", "lower"), [(1, 1e-3), (2, 1e-3), (3, 1e-4)])
def test_too_few_steps_are_refused(steps, lower):
    with pytest.raises(ValueError, match=r"above 1\.25: take more steps or a higher lower_bound"):
        optlab.orthogonalize("polar_express", steps=steps, lower_bound=lower)


@pytest.mark.thinned
@pytest.mark.parametrize(
    "types",
    [
        ("float32", None, "highest"),  # of the leaf, of the products, and their precision
        ("bfloat16", None, "highest"),
        ("float16", None, "highest"),
        ("float32", "bfloat16", "default"),
        ("bfloat16", "bfloat16", "default"),
        ("float16", "float16", "default"),
        ("float32", None, "default"),
    ],
)
@pytest.mark.parametrize("shape", [(16, 16), (16, 64)])
@pytest.mark.parametrize(
    "how",
    [("newton_schulz", 1), ("newton_schulz", 5), ("newton_schulz", 8), ("polar_express", 5), ("polar_express", 8)],
)
def test_every_combination_is_certified(how, shape, types):
    """In the dtype that it ships in: the singular vectors stay, none is reversed, and none grows above the limit."""
    (method, steps), (leaf, working, precision) = how, types
    X, U, V = matrices(*shape)
    arguments = {"lower_bound": 1e-4} if (method, steps) == ("polar_express", 8) else {}
    tx = optlab.orthogonalize(method, steps=steps, dtype=working, precision=precision, **arguments)
    leaves = [jnp.asarray(x, leaf) for x in X]
    got, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(leaves)
    for name, Y in zip(spectra(shape[0]), got, strict=True):
        Y = np.asarray(Y, np.float64)
        assert np.isfinite(Y).all(), name
        assert np.linalg.norm(Y, 2) <= ns.LARGEST, name
        along = np.einsum("ji,jk,ki->i", U, Y, V)  # uᵢᵀYvᵢ
        certain = spectra(shape[0])[name] / np.linalg.norm(spectra(shape[0])[name]) > 0.02  # above the leaf's rounding
        assert (along[certain] > 0).all(), name


@pytest.mark.thinned
@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize("coefficients", ["keller_jordan", "polar_express"])
def test_the_gram_form_is_the_standard_form(steps, coefficients):
    """In float64 to rounding; in float32 nearly, on every spectrum."""
    pieces = ns.keller_jordan(steps) if coefficients == "keller_jordan" else ns.polar_express(steps, 1e-2)
    X, _, _ = matrices(24, 96)
    chunks = {"standard": (steps,), "gram": ns.restarts(steps, 3)}
    run = lambda X, form: everywhere(X, pieces, 0.0, form, chunks[form], str(X.dtype), "highest")
    with jax.enable_x64(True):
        exact = np.asarray(run(jnp.asarray(X), "standard"))
        np.testing.assert_allclose(run(jnp.asarray(X), "gram"), exact, atol=1e-9)
    np.testing.assert_allclose(run(jnp.asarray(X, jnp.float32), "gram"), exact, atol=2e-3)


def test_large_matrices_are_done_one_by_one_alike():
    """On a CPU a stack of large matrices is a loop; the result is the batched one's."""
    X = np.random.default_rng(0).standard_normal((5, 256, 512)).astype(np.float32)
    run = lambda X: everywhere(X, ns.keller_jordan(5), 1e-7, "standard", (5,), "float32", "highest")
    np.testing.assert_allclose(run(jnp.asarray(X)), np.stack([run(jnp.asarray(x[None]))[0] for x in X]), atol=1e-5)


@pytest.mark.parametrize("form", ["standard", "gram"])
@pytest.mark.parametrize("rows", [24, 25])
def test_symmetric_products_in_blocks_are_the_whole_ones(form, rows, monkeypatch):
    """On a CPU, of large matrices; here of small ones, an odd number of rows among them, in float64."""
    X, coefficients, chunks = matrices(rows, 60)[0], ns.keller_jordan(5), {"standard": (5,), "gram": (2, 3)}[form]
    run = lambda: everywhere(jnp.asarray(X), coefficients, 0.0, form, chunks, "float64", "highest")
    with jax.enable_x64(True):
        whole = np.asarray(run())
        monkeypatch.setattr(ns, "CACHE", rows * 60)
        monkeypatch.setattr(ns, "BLOCKS_FROM", rows)
        in_blocks = run()
    np.testing.assert_allclose(in_blocks, whole, atol=1e-12)
    U, sigma, Vt = np.linalg.svd(X, full_matrices=False)
    y = sigma / np.linalg.norm(sigma, axis=-1, keepdims=True)
    for a, b, c in coefficients:
        y = a * y + b * y**3 + c * y**5
    np.testing.assert_allclose(in_blocks, (U * y[:, None]) @ Vt, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "most", "chunks"),
    [
        (1, 3, (1,)),
        (3, 3, (3,)),
        (4, 3, (2, 2)),
        (5, 3, (2, 3)),
        (7, 3, (2, 2, 3)),
        (5, 2, (1, 2, 2)),
        (8, 2, (2,) * 4),
    ],
)
def test_restarts_are_so_many_steps_apart(steps, most, chunks):
    assert ns.restarts(steps, most) == chunks


def test_costs_are_those_of_the_forms():
    """In units of 2m³ for an aspect a: standard 10a + 5, Gram with one restart 4a + 14 (shared/facts.md)."""
    for a in (1, 2, 4):
        assert ns.flops((8, 8 * a), (5,), "standard") == 2 * 8**3 * (10 * a + 5)
        assert ns.flops((8, 8 * a), (2, 3), "gram") == 2 * 8**3 * (4 * a + 14)
