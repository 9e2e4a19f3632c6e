"""Muon and its kin, held to the algorithms of their papers, which have a row for each output: (out, in)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab._explanation import explain
from optlab.optimizers import adamuon, muon, muonh, normuon
from optlab.roles import MatrixAxes, read_names

RATE = 0.02
FAMILY = {"muon": muon, "normuon": normuon, "adamuon": adamuon, "muonh": muonh}
every_kin = pytest.mark.parametrize("optimizer", FAMILY.values(), ids=FAMILY.keys())
MIXED = {
    "embedding": {"embedding": (8, 4)},
    "block_0": {"dense": {"kernel": (4, 6), "bias": (6,)}, "conv": {"kernel": (2, 2, 3, 5)}},
    "head": {"kernel": (4, 8)},
}


def mixed(seed=0, shapes=MIXED):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


# The oracles. Each is a step (W, G, state) -> (W, state) of one matrix (out, in), and the state a dict.


def newton_schulz(X):
    """Keller Jordan's quintic, five times, by the singular values."""
    U, sigma, Vt = np.linalg.svd(X, full_matrices=False)
    sigma = sigma / (np.linalg.norm(X) + 1e-7)
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return (U * sigma) @ Vt


def muon_step(W, G, s, nesterov, scale="rms", decay=0.1):
    """Jordan et al. 2024; decay and the factor of Liu et al. 2025, section 2.2."""
    s["M"] = 0.95 * s["M"] + G
    O = newton_schulz(G + 0.95 * s["M"] if nesterov else s["M"])
    m, n = W.shape
    factor = 0.2 * np.sqrt(max(m, n)) if scale == "rms" else np.sqrt(max(1, m / n))
    return W - RATE * (factor * O + decay * W)


def normuon_step(W, G, s, nesterov, decay=0.1):
    """Li et al. 2025, Algorithm 1."""
    s["M"] = 0.95 * s["M"] + 0.05 * G
    O = newton_schulz(0.95 * s["M"] + 0.05 * G if nesterov else s["M"])
    s["v"] = 0.95 * s["v"] + 0.05 * np.mean(O * O, axis=1)
    O_hat = O / (np.sqrt(s["v"])[:, None] + 1e-8)
    rate = 0.2 * RATE * np.sqrt(W.size) / np.linalg.norm(O_hat)
    return W - RATE * decay * W - rate * O_hat


def adamuon_step(W, G, s, nesterov, decay=0.1):
    """Si et al. 2025, Algorithm 1."""
    s["M"] = 0.95 * s["M"] + G
    O = newton_schulz(np.sign(G + 0.95 * s["M"] if nesterov else s["M"]))
    s["V"] = 0.95 * s["V"] + 0.05 * O * O
    O_hat = O / (np.sqrt(s["V"]) + 1e-8)
    gamma = 0.2 * np.sqrt(W.size) / np.linalg.norm(O_hat)
    return W - RATE * (gamma * O_hat + decay * W)


def muonh_step(W, G, s, nesterov, decay=0.0):
    """Wen et al. 2026: W ← R·Normalize(W − ηR·Normalize(u)), u being Muon's update."""
    s["M"], s["R"] = 0.95 * s["M"] + G, s["R"] or np.linalg.norm(W)
    O = newton_schulz(G + 0.95 * s["M"] if nesterov else s["M"])
    moved = W - RATE * s["R"] * O / np.linalg.norm(O)
    return s["R"] * moved / np.linalg.norm(moved)


def adamw_step(theta, g, s, t, decay):
    s["m"], s["v"] = 0.9 * s["m"] + 0.1 * g, 0.95 * s["v"] + 0.05 * g**2
    m, v = s["m"] / (1 - 0.9**t), s["v"] / (1 - 0.95**t)
    return theta - RATE * (m / (np.sqrt(v) + 1e-8) + decay * theta)


STEPS = {muon: muon_step, normuon: normuon_step, adamuon: adamuon_step, muonh: muonh_step}


def flat(tree):
    """{path: NumPy array}."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}


def oracle(step, decay, start, gradient, steps, **settings):
    """The path of the tree: Flax's kernels (in…, out) are turned into the papers' matrices (out, in) and back."""
    theta, states = dict(start), {path: dict.fromkeys(["M", "v", "V", "R", "m"], 0.0) for path in start}
    rows = lambda kernel: kernel.reshape(-1, kernel.shape[-1]).T
    for t in range(1, steps + 1):
        for path, x in theta.items():
            g, s = gradient(path, x), states[path]
            if "block_0" in path and "kernel" in path:
                theta[path] = step(rows(x), rows(g), s, decay=decay, **settings).T.reshape(x.shape)
            else:
                theta[path] = adamw_step(x, g, s, t, decay)
    return theta


def path_of(tx, gradient, start, steps):
    """Where θ ← θ + tx(gradient(θ)) ends."""

    def step(carry, _):
        theta, state = carry
        update, state = tx.update(gradient(theta), state, theta)
        return (optax.apply_updates(theta, update), state), None

    return jax.lax.scan(step, (start, tx.init(start)), None, steps)[0][0]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (muon, {"nesterov": True}),
        (muon, {"nesterov": False, "scale": "spectral"}),
        (normuon, {"nesterov": True}),
        (normuon, {"nesterov": False}),
        (adamuon, {"nesterov": True}),
        (adamuon, {"nesterov": False}),
        (muonh, {"nesterov": True}),
        (muonh, {"nesterov": False}),
    ],
)
def test_the_papers_algorithm_for_a_hundred_steps(optimizer, settings):  # A20, A22
    decay = 0.0 if optimizer is muonh else 0.1
    with jax.enable_x64(True):
        start, target, curvature = mixed(0), mixed(1), jax.tree.map(lambda x: jnp.exp(x / 2), mixed(2))
        gradient = lambda theta: jax.tree.map(lambda c, x, y: c * (x - y), curvature, theta, target)
        end = jax.jit(lambda theta: path_of(optimizer(RATE, **settings), gradient, theta, 100))(start)
        c, y, begin = flat(curvature), flat(target), flat(start)
        expected = oracle(STEPS[optimizer], decay, begin, lambda p, x: c[p] * (x - y[p]), 100, **settings)
        for path, x in flat(end).items():
            np.testing.assert_allclose(x, expected[path], rtol=1e-6, atol=1e-8, err_msg=path)
            assert np.abs(x - begin[path]).max() > 0.05


def first(tx, g, theta):
    """The first update."""
    return jax.jit(lambda g, theta: tx.update(g, tx.init(theta), theta)[0])(g, theta)


# What is meant by a matrix.

LAYER = {"attention": {"query": {"kernel": (4, 2, 3), "bias": (2, 3)}, "out": {"kernel": (2, 3, 4), "bias": (4,)}}}
LAYER |= {"dense": {"kernel": (4, 6), "bias": (6,)}, "conv": {"kernel": (2, 2, 3, 5), "bias": (5,)}}


@every_kin
def test_scanned_layers_are_moved_as_they_are_one_by_one(optimizer):
    """Under `nn.scan` a leaf is a stack: no mean, norm or orthogonal matrix goes across its layers."""
    with jax.enable_x64(True):
        layers, gradients = ([mixed(seed + i, LAYER) for i in range(3)] for seed in (0, 3))
        stack = lambda trees: {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *trees)}
        apart = lambda trees: {f"block_{i}": tree for i, tree in enumerate(trees)}
        scanned = first(optimizer(RATE), stack(gradients), stack(layers))["blocks"]
        one_by_one = first(optimizer(RATE), apart(gradients), apart(layers))
        for i in range(3):
            jax.tree.map(
                lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-9, atol=1e-12),
                scanned,
                one_by_one[f"block_{i}"],
            )


@pytest.mark.thinned
@every_kin
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_leaves_are_moved_as_on_one_device(optimizer, kind):
    """Rows, columns and stacks over a mesh: means and norms go across its devices."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(getattr(jax.sharding.AxisType, kind),) * 2)
    shapes = {"block_0": {"dense": {"kernel": (4, 6)}, "conv": {"kernel": (2, 2, 4, 6)}}, "block_1": {"kernel": (4, 6)}}
    specs = {"block_0": {"dense": {"kernel": P("a", "b")}, "conv": {"kernel": P(None, None, "b", "a")}}}
    specs |= {"block_1": {"kernel": P(None, "a")}}
    theta, gradient = mixed(0, shapes), lambda theta: jax.tree.map(lambda x: jnp.sin(100 * x), theta)
    place = lambda tree: jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)
    end = jax.jit(lambda theta: path_of(optimizer(RATE), gradient, theta, 2))
    with jax.set_mesh(mesh):
        sharded = end(place(theta))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), sharded, end(theta))


@pytest.mark.thinned
@every_kin
@pytest.mark.parametrize("spec", [P("a", None), P(None, "a")])
def test_a_fused_kernel_on_an_explicit_mesh(optimizer, spec):
    """Its three matrices are cut across the devices' boundaries; what comes back is placed as it was."""
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:4])
    params = {"attention": {"qkv": {"kernel": jax.random.normal(jax.random.key(0), (8, 24))}}}
    grads = jax.tree.map(jnp.cos, params)
    move = jax.jit(lambda p, g: (lambda tx: tx.update(g, tx.init(p), p)[0])(optimizer(RATE)))
    placed = jax.device_put((params, grads), NamedSharding(mesh, spec))
    update = move(*placed)["attention"]["qkv"]["kernel"]
    assert update.sharding.spec == spec
    np.testing.assert_allclose(update, move(params, grads)["attention"]["qkv"]["kernel"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [normuon, adamuon])
def test_the_updates_of_matrices_have_the_size_of_adams(optimizer):
    theta, g = mixed(), mixed(1)
    update = first(optimizer(1.0, weight_decay=0.0), g, theta)
    for name in ("dense", "conv"):
        rms = jnp.sqrt(jnp.mean(update["block_0"][name]["kernel"] ** 2))
        np.testing.assert_allclose(rms, 0.2, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muonh_keeps_the_norm_of_every_matrix_and_turns_it_by_the_rate(dtype):
    theta = jax.tree.map(lambda x: x.astype(dtype), mixed())
    g, tx = jax.tree.map(lambda x: x.astype(dtype), mixed(1)), muonh(RATE)
    end = jax.jit(lambda theta: path_of(tx, lambda _: g, theta, 100))(theta)
    once = optax.apply_updates(theta, first(tx, g, theta))
    for name in ("dense", "conv"):
        W, W_once, W_end = (np.float64(x["block_0"][name]["kernel"]) for x in (theta, once, end))
        rtol = 1e-5 if dtype == "float32" else 3e-3  # what rounding the weights themselves takes away
        np.testing.assert_allclose(np.linalg.norm(W_end), np.linalg.norm(W), rtol=rtol)
        cosine = np.sum(W * W_once) / np.linalg.norm(W) / np.linalg.norm(W_once)
        assert np.arccos(cosine) <= 1.1 * RATE
        assert np.linalg.norm(W_end - W) > 0.5


# Options.


@every_kin
def test_the_orthogonalizer_may_be_another(optimizer):
    tx = optimizer(RATE, orthogonalizer=optlab.orthogonalize("polar_express", steps=6, dtype="bfloat16"))
    works = [work for _, plan in explain(tx, mixed()).plans for works in plan.works for work in works]
    assert {(work.steps, work.dtype) for work in works} == {("6", "bfloat16")}
    theta, g = mixed(), mixed(1)
    none = first(optimizer(RATE, orthogonalizer=optax.set_to_zero()), g, theta)
    differ = jax.tree.map(lambda x, y: bool(jnp.abs(x - y).max() > 1e-3), none, first(optimizer(RATE), g, theta))
    assert differ.pop("block_0")["dense"] == {"kernel": True, "bias": False}
    assert not any(jax.tree.leaves(differ))


@every_kin
def test_method_is_short_for_an_orthogonalizer(optimizer):
    theta, g = mixed(), mixed(1)
    short, long = ({"method": "svd"}, {"orthogonalizer": optlab.orthogonalize("svd")})
    jax.tree.map(np.testing.assert_array_equal, *(first(optimizer(RATE, **how), g, theta) for how in (short, long)))
    with pytest.raises(ValueError, match="method='svd' is for the orthogonalizer that is made here"):
        optimizer(RATE, **short, **long)


@every_kin
def test_axis_name_reaches_the_orthogonalizer(optimizer):
    """Four devices with the same gradients, by name, take a matrix each; the updates are those of one device."""
    shapes = {f"block_{i}": {"kernel": (4, 6)} for i in range(4)}
    theta, g = mixed(0, shapes), mixed(1, shapes)
    step = lambda **settings: lambda theta, g: first(optimizer(RATE, **settings), g, theta)
    copies = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 4), tree)
    by_name = jax.pmap(step(axis_name="devices"), axis_name="devices")
    assert "all_gather" in str(jax.make_jaxpr(by_name)(copies(theta), copies(g)))
    one = jax.jit(step())(theta, g)
    same = lambda x, y: np.testing.assert_allclose(x[3], y, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, by_name(copies(theta), copies(g)), one)
    with pytest.raises(ValueError, match=r"axis_name='data' is for the orthogonalizer that is made here: give it to"):
        optimizer(RATE, axis_name="data", orthogonalizer=optlab.orthogonalize())


@every_kin
def test_dtypes_of_the_states(optimizer):
    theta = jax.tree.map(lambda x: x.astype("bfloat16"), mixed())
    types = lambda **settings: {str(x.dtype) for x in jax.tree.leaves(optimizer(RATE, **settings).init(theta))}
    assert types() == {"int32", "bfloat16", "float32"}  # momenta as the parameters, second moments and radii wide
    assert types(mu_dtype="float32") == {"int32", "float32"}
    if optimizer in (normuon, adamuon):
        assert types(nu_dtype="bfloat16") == {"int32", "bfloat16"}


@every_kin
def test_the_rest_may_be_another(optimizer):
    theta, g = mixed(), mixed(1)
    rest = optax.adamw(0.5, b2=0.95, weight_decay=0.1)
    update, alone, plain = (first(tx, g, theta) for tx in (optimizer(RATE, rest=rest), rest, optimizer(RATE)))
    np.testing.assert_allclose(update["embedding"]["embedding"], alone["embedding"]["embedding"], rtol=1e-5)
    kernel = lambda tree: tree["block_0"]["dense"]["kernel"]
    np.testing.assert_allclose(kernel(update), kernel(plain), rtol=1e-4, atol=1e-7)


@every_kin
def test_the_rest_is_adamw_at_the_same_rate_and_decay(optimizer):
    theta, g = mixed(), mixed(1)
    decay = {} if optimizer is muonh else {"weight_decay": 0.3}
    rest = optlab.adamw(RATE, b2=0.95, weight_decay=decay.get("weight_decay", 0.0))
    by_default, alone = (first(tx, g, theta) for tx in (optimizer(RATE, **decay), rest))
    for path in ("['embedding']['embedding']", "['head']['kernel']", "['block_0']['dense']['bias']"):
        np.testing.assert_allclose(flat(by_default)[path], flat(alone)[path], rtol=1e-6)


def test_muon_decays_the_roles_that_it_is_told():
    theta, zero = mixed(), jax.tree.map(jnp.zeros_like, mixed())
    update = first(muon(RATE, weight_decay=0.5, decay_roles=["matrix", "head"]), zero, theta)
    for path in ("['block_0']['dense']['kernel']", "['head']['kernel']"):
        np.testing.assert_allclose(flat(update)[path], -RATE * 0.5 * flat(theta)[path], rtol=1e-6)
    for path in ("['embedding']['embedding']", "['block_0']['conv']['kernel']", "['block_0']['dense']['bias']"):
        np.testing.assert_array_equal(flat(update)[path], 0)


@every_kin
def test_roles_of_ones_own(optimizer):
    theta, g = mixed(), mixed(1)
    rest = optax.adamw(RATE, b2=0.95, weight_decay=0.1)
    tx = optimizer(RATE, layout=lambda params: read_names(params, {"*": "vector"}), rest=rest)
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5)
    jax.tree.map(same, first(tx, g, theta), first(rest, g, theta))


@every_kin
def test_matrix_axes_of_ones_own(optimizer):
    """Kernels as torch keeps them, (out, in): the transposed updates."""
    theta, g = ({"kernel": x["block_0"]["dense"]["kernel"]} for x in (mixed(), mixed(1)))
    turned = lambda tree: jax.tree.map(jnp.transpose, tree)
    torchs = optimizer(RATE, layout=lambda params: read_names(params, {"*": MatrixAxes((), (1,), (0,))}))
    expected = turned(first(optimizer(RATE), g, theta))
    np.testing.assert_allclose(
        first(torchs, turned(g), turned(theta))["kernel"], expected["kernel"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        (muon, {"scale": "shape"}, "scale must be one of 'rms', 'spectral', got 'shape'"),
        (muon, {"weight_decay": -1.0}, r"weight_decay must not be negative, got -1\.0"),
        (normuon, {"beta2": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        (adamuon, {"decay_roles": ["kernels"]}, "no role 'kernels': did you mean"),
        (muonh, {"beta": 1.5}, r"decay must lie in \[0, 1\), got 1\.5"),
    ],
)
def test_kin_refuse(optimizer, settings, message):
    with pytest.raises(ValueError, match=message):
        optimizer(RATE, **settings)
