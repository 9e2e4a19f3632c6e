import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.theory.attention import attention, causal_mask, cross_attention, mean_pool, self_attention

same = np.testing.assert_allclose
T, S, D = 5, 7, 4


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, float)


WEIGHTS = [(1, (D, 3)), (2, (D, 3)), (3, (D, 2))]


def matrices():
    return [normal(seed, *shape) for seed, shape in WEIGHTS]


def test_formula():
    Q, K, V = (np.asarray(normal(i, n, d)) for i, (n, d) in enumerate([(T, 3), (S, 3), (S, 2)]))
    e = np.exp(Q @ K.T / np.sqrt(3))
    output, weights = attention(Q, K, V)
    same(weights, e / e.sum(axis=1, keepdims=True), rtol=1e-12)
    same(output, np.asarray(weights) @ V, rtol=1e-12)
    same(weights.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_jaxs_own_attention_agrees(is_causal):
    Q, K, V = (normal(i, T, 8) for i in range(3))
    theirs = jax.nn.dot_product_attention(*(x[None, :, None] for x in (Q, K, V)), is_causal=is_causal)[0, :, 0]
    same(attention(Q, K, V, mask=causal_mask(T) if is_causal else None)[0], theirs, rtol=1e-6, atol=1e-7)


def test_nothing_later_is_looked_at_and_who_may_look_at_nothing_sees_nothing():
    Q = normal(0, T, 3)
    assert not np.triu(attention(Q, Q, Q, mask=causal_mask(T))[1], 1).any()
    output, weights = attention(Q, Q, Q, mask=jnp.zeros((T, T), bool).at[1:].set(True))
    same(output[0], 0)
    same(weights[0], 0)
    assert np.isfinite(jax.grad(lambda Q: attention(Q, Q, Q, mask=jnp.zeros((T, T), bool))[0].sum())(Q)).all()


def test_self_attention_is_equivariant_and_its_pool_invariant():
    x, order = normal(0, T, D), jax.random.permutation(jax.random.key(9), T)
    output, weights = self_attention(x, *matrices())
    turned, turned_weights = self_attention(x[order], *matrices())
    same(turned, output[order], rtol=1e-12)
    same(turned_weights, weights[order][:, order], rtol=1e-12)
    same(mean_pool(turned), mean_pool(output), rtol=1e-12)


def test_positions_or_a_mask_break_the_symmetry():
    x, order = normal(0, T, D), jnp.arange(T)[::-1]
    positions = normal(8, T, D)
    plain, turned = (self_attention(v + positions, *matrices())[0] for v in (x, x[order]))
    assert np.abs(turned - plain[order]).max() > 0.1
    plain, turned = (self_attention(v, *matrices(), mask=causal_mask(T))[0] for v in (x, x[order]))
    assert np.abs(turned - plain[order]).max() > 0.1


def test_cross_attention_does_not_see_the_order_of_its_references():
    x, references = normal(0, T, D), normal(5, S, D)
    output, weights = cross_attention(x, references, *matrices())
    assert weights.shape == (T, S)
    order = jax.random.permutation(jax.random.key(9), S)
    same(cross_attention(x, references[order], *matrices())[0], output, rtol=1e-12)
    same(cross_attention(x[::-1], references, *matrices())[0], output[::-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attention(np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 3))),
            "Q and K must have vectors of one width",
        ),
        (lambda: attention(np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 3))), "K and V must have as many rows"),
        (lambda: attention(np.ones(3), np.ones((4, 3)), np.ones((4, 3))), r"Q must be a matrix, got the shape \(3,\)"),
        (lambda: attention(*[np.ones((2, 3))] * 3, mask=np.ones((2, 3), bool)), r"mask must have the shape \(2, 2\)"),
        (lambda: self_attention(*[np.ones((2, 3))] * 4), "WQ must have 3 rows, one a feature"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
