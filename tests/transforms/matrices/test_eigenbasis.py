"""SOAP and Shampoo, held to their papers in float64, and divided over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab

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
            s[Q] = np.linalg.eigh(s[A])[1][:, ::-1]
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
    for A, P in (("L", "P_L"), ("R", "P_R")):
        if (t - 1) % every == 0 and len(s[A]) <= longest:
            sigma, Q = np.linalg.eigh(s[A])
            s[P] = (Q * (sigma + ridge * sigma[-1]) ** (-1 / 4 if both else -1 / 2)) @ Q.T
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
