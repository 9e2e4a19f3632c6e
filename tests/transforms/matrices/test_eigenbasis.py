"""SOAP and Shampoo, held to their papers in float64, and divided over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab.roles import MatrixAxes, read_names

BLOCKS = {"soap": optlab.scale_by_soap, "shampoo": optlab.scale_by_shampoo}
every_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)


# The oracles: of one matrix, (G, state) -> update.


def soap(G, s, b1=0.95, b2=0.95, eps=1e-8, every=10, longest=10_000):
    """Vyas et al. 2024, Algorithm 3, after a first step that finds the eigenvectors, which stay in order."""
    m, n = G.shape
    if not s:
        s |= {"t": 0, "M": np.zeros_like(G), "V": np.zeros_like(G), "Q_L": np.eye(m), "Q_R": np.eye(n)}
        s |= {"L": np.zeros((m, m)), "R": np.zeros((n, n))}
    Q_L, Q_R, t = s["Q_L"], s["Q_R"], s["t"]
    N = np.zeros_like(G)
    if t > 0:
        s["M"] = b1 * s["M"] + (1 - b1) * G
        s["V"] = b2 * s["V"] + (1 - b2) * (Q_L.T @ G @ Q_R) ** 2
        M_hat, V_hat = s["M"] / (1 - b1**t), s["V"] / (1 - b2**t)
        N = Q_L @ ((Q_L.T @ M_hat @ Q_R) / (np.sqrt(V_hat) + eps)) @ Q_R.T
    s["L"] = b2 * s["L"] + (1 - b2) * G @ G.T
    s["R"] = b2 * s["R"] + (1 - b2) * G.T @ G
    for A, Q, axis in (("L", "Q_L", 0), ("R", "Q_R", 1)):
        if len(s[A]) > longest:
            continue
        if t == 0:
            sigma, s[Q] = np.linalg.eigh(s[A])
            rank = np.sum(sigma > 1e-14 * sigma[-1])  # what is left of the space is completed by e₁, e₂, …
            s[Q] = np.linalg.qr(np.concatenate([s[Q][:, ::-1][:, :rank], np.eye(len(s[A]))[:, : len(s[A]) - rank]], 1))[
                0
            ]
        elif t % every == 0:
            order = np.argsort(-np.diag(s[Q].T @ s[A] @ s[Q]))
            s["V"] = s["V"].take(order, axis)
            s[Q] = np.linalg.qr(s[A] @ s[Q][:, order])[0]
    s["t"] += 1
    return N


def shampoo(G, s, b1=0.9, b2=0.999, eps=1e-8, ridge=1e-6, every=10, longest=10_000):
    """Gupta et al. 2018, Algorithm 1, with averages and grafting by Shi et al. 2023."""
    m, n = G.shape
    if not s:
        s |= {
            "t": 0,
            "M": 0.0,
            "V": 0.0,
            "L": np.zeros((m, m)),
            "R": np.zeros((n, n)),
            "P_L": np.eye(m),
            "P_R": np.eye(n),
        }
    s["t"] += 1
    t, both = s["t"], m <= longest and n <= longest
    s["M"], s["V"] = b1 * s["M"] + (1 - b1) * G, b2 * s["V"] + (1 - b2) * G**2
    s["L"] = b2 * s["L"] + (1 - b2) * G @ G.T
    s["R"] = b2 * s["R"] + (1 - b2) * G.T @ G
    for A, root in (("L", "P_L"), ("R", "P_R")):
        if (t - 1) % every == 0 and len(s[A]) <= longest:
            sigma, Q = np.linalg.eigh(s[A])
            s[root] = (Q * (sigma + ridge * sigma[-1]) ** (-1 / 4 if both else -1 / 2)) @ Q.T
    M_hat = s["M"] / (1 - b1**t)
    U = s["P_L"] @ M_hat @ s["P_R"]
    graft = M_hat / (np.sqrt(s["V"] / (1 - b2**t)) + eps)
    return U * np.linalg.norm(graft) / np.linalg.norm(U)


ORACLES = {"soap": soap, "shampoo": shampoo}


def gradients(steps, shape, seed=0):
    """Of another scale along each row and column, and never singular: G is far from low rank in every step."""
    rng = np.random.default_rng(seed)
    m, n = shape
    left, right = (np.linalg.qr(rng.standard_normal((k, k)))[0] * np.geomspace(1, 0.1, k) for k in (m, n))
    return left @ rng.standard_normal((steps, m, n)) @ right.T


def updates(tx, grads):
    """What `tx` makes of the gradients (T, m, n) in float64, one after another."""

    def step(state, g):
        u, state = tx.update({"w": g}, state)
        return state, u["w"]

    with jax.enable_x64(True):
        grads = jnp.asarray(grads)
        run = jax.jit(lambda grads: jax.lax.scan(step, tx.init({"w": grads[0]}), grads)[1])
        return np.asarray(run(grads))


@pytest.mark.parametrize("settings", [{}, {"every": 3, "b2": 0.9}], ids=["defaults", "often"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_papers_algorithm_for_a_hundred_steps(name, settings):
    grads, state = gradients(100, (6, 6)), {}
    expected = np.stack([ORACLES[name](G, state, **settings) for G in grads])
    found = updates(BLOCKS[name](**settings), grads)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert np.abs(expected[1:]).mean() > 0.1


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["wide", "tall"])
@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_matrix_that_is_no_square(name, shape):
    grads, state = gradients(40, shape), {}
    expected = np.stack([ORACLES[name](G, state) for G in grads])
    np.testing.assert_allclose(updates(BLOCKS[name](), grads), expected, rtol=1e-5, atol=1e-7)


def test_a_singular_first_gradient_leaves_no_choice():
    """Of rank two, in both orders of its rows, which only the last bits of its products notice."""
    rng = np.random.default_rng(0)
    G = (rng.standard_normal((5, 2)) @ rng.standard_normal((2, 7))).astype(np.float32)
    tx = optlab.scale_by_soap()
    bases = [tx.update({"w": jnp.asarray(x)}, tx.init({"w": jnp.asarray(x)}))[1].right["w"][0] for x in (G, G[::-1])]
    np.testing.assert_allclose(np.abs(bases[0]), np.abs(bases[1]), atol=1e-4)
    np.testing.assert_allclose(bases[0].T @ bases[0], np.eye(7), atol=1e-5)
    np.testing.assert_allclose(G @ bases[0][:, 2:], 0, atol=1e-5)


@pytest.mark.parametrize("longest", [5, 3], ids=["one side", "neither"])
@pytest.mark.parametrize("name", BLOCKS)
def test_axes_that_are_too_long_have_no_factor(name, longest):
    grads, state, tx = gradients(40, (4, 9)), {}, BLOCKS[name](max_precond_dim=longest)
    expected = np.stack([ORACLES[name](G, state, longest=longest) for G in grads])
    np.testing.assert_allclose(updates(tx, grads), expected, rtol=1e-6, atol=1e-8)
    kept = jax.tree.map(jnp.shape, tx.init({"w": jnp.ones((4, 9))})[3:])
    one = {"w": (1, 4, 4)} if longest == 5 else {"w": None}
    assert kept == (one, {"w": None}, one, {"w": None})


@every_block
def test_convolutions_heads_and_stacks_are_the_matrices_that_they_are(block):
    axes = {
        "conv": ((2, 2, 2, 8), MatrixAxes((), (0, 1, 2), (3,))),
        "heads": ((8, 2, 4), MatrixAxes((), (0,), (1, 2))),
        "scanned": ((3, 8, 8), MatrixAxes((0,), (1,), (2,))),
    }
    grads = gradients(15, (8, 8), seed=1)
    as_leaf = {
        name: lambda G, a=a, s=s: a.from_matrices(jnp.stack([G] * (s[0] if a.stack else 1)), s)
        for name, (s, a) in axes.items()
    }

    def step(state, g):
        u, state = tx.update({name: f(g) for name, f in as_leaf.items()}, state)
        return state, {name: a.to_matrices(u[name])[-1] for name, (_, a) in axes.items()}

    with jax.enable_x64(True):
        params = {name: jnp.zeros(shape) for name, (shape, _) in axes.items()}
        with read_names(params, overrides={name: ("matrix", a) for name, (_, a) in axes.items()}):
            tx = block(every=4)
            found = jax.jit(lambda gs: jax.lax.scan(step, tx.init(params), gs)[1])(jnp.asarray(grads))
    expected = updates(block(every=4), grads)
    for name in axes:
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-8)


def test_soap_of_a_pytorch_package():
    """Which keeps the first gradient, orders by eigenvalues, and decomposes in float32."""
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("pytorch_optimizer")
    grads = gradients(100, (6, 6))
    weight = torch.nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    theirs = peer.SOAP([weight], lr=1.0, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10)
    found = []
    for G in grads:
        before = weight.detach().clone()
        weight.grad = torch.from_numpy(G)
        theirs.step()
        found.append((before - weight.detach()).numpy())
    np.testing.assert_allclose(updates(optlab.scale_by_soap(), grads), np.stack(found), rtol=1e-3, atol=1e-3)


SHAPES = [(16, 16)] * 8 + [(8, 16)] * 4 + [(16, 8)] * 4


@pytest.mark.thinned
@every_block
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("spec", [P(), P("x"), P(None, "x")], ids=["replicated", "rows", "columns"])
def test_divided_over_eight_devices_the_updates_are_the_same(block, kind, spec):
    """Though the eigenvectors of what is singular, as half of these at first, hang on the last bit."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    rng = np.random.default_rng(0)
    grads = [[jnp.asarray(rng.standard_normal(s), jnp.float32) for s in SHAPES] for _ in range(5)]
    tx = block(every=3)

    def run(grads):
        state, found, update = jax.jit(tx.init)(grads[0]), [], jax.jit(tx.update)
        for g in grads:
            u, state = update(g, state)
            found.append(u)
        return found

    with jax.set_mesh(mesh):
        many = run([jax.device_put(g, NamedSharding(mesh, spec)) for g in grads])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), many, run(grads))


@pytest.mark.thinned
@every_block
@pytest.mark.parametrize("spec", [P(), P("x")], ids=["replicated", "rows"])
def test_each_of_eight_devices_has_an_eighth_of_the_work(block, spec, monkeypatch):
    """As on an accelerator: the loop that a CPU goes through is counted once by XLA, however long it is."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **other: default(*args))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx, params = block(every=3), [jnp.ones((16, 16))] * 8 + [jnp.ones((16, 32))] * 8
    flops = lambda params: jax.jit(tx.update).lower(params, tx.init(params)).compile().cost_analysis()["flops"]
    assert flops(jax.device_put(params, NamedSharding(mesh, spec))) <= 1.1 / 8 * flops(params)


@every_block
def test_nothing_is_decomposed_between_the_refreshes(block):
    """But under vmap over states, where a `cond` is a choice between results."""
    params, tx = {"w": jnp.ones((4, 6))}, block()
    state = tx.init(params)
    alone = jax.make_jaxpr(tx.update)(params, state)
    assert decompositions(alone.jaxpr) == set()
    stacked = jax.tree.map(lambda x: x[None], (params, state))
    assert "eigh" in decompositions(jax.make_jaxpr(jax.vmap(tx.update))(*stacked).jaxpr)


def decompositions(jaxpr):
    """Which of them a program makes without asking; the choice of the platform is no question."""
    found = {e.primitive.name for e in jaxpr.eqns} & {"eigh", "qr"}
    platforms = {id(e.outvars[0]) for e in jaxpr.eqns if e.primitive.name == "platform_index"}
    for e in jaxpr.eqns:
        if e.primitive.name != "cond" or id(e.invars[0]) in platforms:
            inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(e.params.values()))]
            found |= set().union(*(decompositions(x) for x in inner if hasattr(x, "eqns")))
    return found


@pytest.mark.thinned
@every_block
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_of_the_states(block, dtype):
    params = {"w": jnp.ones((4, 6), dtype)}
    types = lambda **settings: [x.dtype.name for x in jax.tree.leaves(block(**settings).init(params))]
    assert types() == ["int32", *["float32"] * 6]
    narrow = {"mu_dtype": "bfloat16", "nu_dtype": "bfloat16", "factor_dtype": "bfloat16"}
    assert types(**narrow) == ["int32", *["bfloat16"] * 6]
    tx = block(**narrow)
    u, state = jax.jit(tx.update)(params, tx.init(params))
    assert u["w"].dtype == dtype
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, tx.init(params))


@every_block
def test_with_states_in_bfloat16_the_updates_are_nearly_the_same(block):
    grads = gradients(30, (6, 6))
    narrow = block(mu_dtype="bfloat16", nu_dtype="bfloat16", factor_dtype="bfloat16", b2=0.9)
    wide, narrow = updates(block(b2=0.9), grads)[5:], updates(narrow, grads)[5:]
    cosines = np.sum(wide * narrow, (1, 2)) / np.linalg.norm(wide, axis=(1, 2)) / np.linalg.norm(narrow, axis=(1, 2))
    assert cosines.min() > 0.9


def test_the_eigenvectors_signs_make_no_difference():
    grads, tx = [{"w": jnp.asarray(G, jnp.float32)} for G in gradients(14, (4, 4))], optlab.scale_by_soap(every=5)
    _, state = tx.update(grads[0], tx.init(grads[0]))
    signs = jnp.array([1.0, -1, -1, 1])[None, None, :]
    other = state._replace(left={"w": signs * state.left["w"]}, right={"w": -signs * state.right["w"]})
    update = jax.jit(tx.update)
    for g in grads[1:]:
        u, state = update(g, state)
        v, other = update(g, other)
        np.testing.assert_allclose(u["w"], v["w"], rtol=1e-3, atol=1e-4)


@pytest.mark.thinned
@every_block
@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e15])
def test_zero_and_badly_scaled_gradients_stay_finite(block, scale):
    grads, tx = [{"w": scale * jnp.asarray(G, jnp.float32)} for G in gradients(4, (4, 6))], block(every=2)
    state, update = tx.init(grads[0]), jax.jit(tx.update)
    for g in grads:
        u, state = update(g, state)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((u, state)))
    assert (jnp.abs(u["w"]).max() > 0) == (scale > 0)


@every_block
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\), got 1\.0"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\), got -0\.1"),
        ({"eps": -1.0}, r"eps must not be negative, got -1\.0"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"max_precond_dim": 2.5}, r"max_precond_dim must be a whole number of at least 1, got 2\.5"),
        ({"factor_dtype": "int8"}, "factor_dtype must be a floating-point dtype"),
    ],
)
def test_refused(block, arguments, message):
    with pytest.raises(ValueError, match=message):
        block(**arguments)


def test_shampoo_needs_a_ridge():
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        optlab.scale_by_shampoo(ridge=0)


@every_block
def test_complex_matrices_are_refused(block):
    params = {"w": jnp.ones((2, 3), complex)}
    tx = block()
    with pytest.raises(ValueError, match=r"needs real matrices, and 'w' is complex64: let another rule move it"):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_injected_hyperparameters_reach_every_device(kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    static = ("every", "max_precond_dim", "mu_dtype", "nu_dtype", "factor_dtype", "mesh", "axis_name")
    tx = optax.inject_hyperparams(optlab.scale_by_soap, static, jnp.float32)(b1=0.5, b2=0.8)
    first, then = ([jnp.asarray(G, jnp.float32) for G in gradients(8, (8, 8), seed)] for seed in (0, 1))
    place = lambda grads: jax.device_put(grads, NamedSharding(mesh, P("x")))
    with jax.set_mesh(mesh):
        _, state = jax.jit(lambda g: tx.update(g, tx.init(g)))(place(first))
        found, _ = jax.jit(tx.update)(place(then), state)
    plain = optlab.scale_by_soap(0.5, 0.8)
    expected, _ = plain.update(then, plain.update(first, plain.init(first))[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), found, expected)
