"""Small programs whose parameters are called p0, p1, …, so that no name helps, and what each parameter is there.

MECHANISMS is {name: Mechanism}. A mechanism's answers are one for each parameter: a role, or (role, stack, input,
output), or that with a view.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

B, T, W, F, H, K, V, E, L = 2, 5, 8, 12, 4, 3, 20, 6, 7


class Mechanism(NamedTuple):
    loss: Any
    shapes: tuple[tuple[int, ...], ...]
    answers: tuple[Any, ...]
    batch: tuple[Any, ...]

    @property
    def params(self):
        return {f"p{i}": jax.ShapeDtypeStruct(s, "float32") for i, s in enumerate(self.shapes)}

    def trees(self):
        return lambda params, *batch: self.loss([params[f"p{i}"] for i in range(len(self.shapes))], *batch)


MECHANISMS: dict[str, Mechanism] = {}
X = jax.ShapeDtypeStruct((B, T, W), "float32")
ROWS = jax.ShapeDtypeStruct((B, W), "float32")
IMAGES = jax.ShapeDtypeStruct((B, 6, 6, 3), "float32")
TOKENS = jax.ShapeDtypeStruct((B, T), "int32")
MATRIX = ("matrix", (), (0,), (1,))
TURNED = ("matrix", (), (1,), (0,))
HEAD = ("head", (), (0,), (1,))
STACKED = ("matrix", (0,), (1,), (2,))
CONV = ("conv", (), (0, 1, 2), (3,))


def mechanism(shapes, answers, *batch):
    def add(loss):
        assert len(shapes) == len(answers)
        assert loss.__name__ not in MECHANISMS
        MECHANISMS[loss.__name__] = Mechanism(loss, tuple(shapes), tuple(answers), batch or (X,))
        return loss

    return add


def norm(x, g=1.0):
    return g * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def attend(q, k, v):
    """(B, T, H, K) each."""
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), v)


# Products and their axes.


@mechanism([(W, F), (F,), (F, V), (V,)], [MATRIX, "vector", HEAD, "vector"])
def dense_with_biases(p, x):
    return jnp.sum((jnp.tanh(x @ p[0] + p[1]) @ p[2] + p[3]) ** 2)


@mechanism([(F, W), (V, F)], [TURNED, ("head", (), (1,), (0,))])
def dense_as_torch_has_it(p, x):
    return jnp.sum(jnp.tanh(x @ p[0].T) @ p[1].T)


@mechanism([(W, F), (F, W), (W, V)], [MATRIX, MATRIX, HEAD])
def a_residual_stream(p, x):
    return jnp.sum((x + jax.nn.gelu(x @ p[0]) @ p[1]) @ p[2])


@mechanism([(W, W), (W, F), (F, W), (W, V)], [MATRIX, MATRIX, MATRIX, HEAD])
def the_last_residual_branch_is_no_head(p, x):
    h = x @ p[0]
    h = h + jax.nn.relu(norm(h) @ p[1]) @ p[2]
    return jnp.sum(norm(h) @ p[3])


@mechanism(
    [(W, H, K), (W, H, K), (W, H, K), (H, K, W), (W, V)],
    [*[("matrix", (), (0,), (1, 2))] * 3, ("matrix", (), (0, 1), (2,)), HEAD],
)
def attention(p, x):
    q, k, v = (jnp.einsum("btw,whk->bthk", x, w) for w in p[:3])
    return jnp.sum((x + jnp.einsum("bthk,hkw->btw", attend(q, k, v), p[3])) @ p[4])


@mechanism(
    [(H, W, K), (H, W, K), (H, W, K), (H, K, W), (W, V)],
    [*[("matrix", (), (1,), (0, 2))] * 3, ("matrix", (), (0, 1), (2,)), HEAD],
)
def attention_whose_heads_come_first(p, x):
    q, k, v = (jnp.einsum("btw,hwk->bthk", x, w) for w in p[:3])
    return jnp.sum((x + jnp.einsum("bthk,hkw->btw", attend(q, k, v), p[3])) @ p[4])


FUSED = ("matrix", (1,), (0,), (2,), (W, 3, H * K))


@mechanism([(W, 3 * H * K), (H * K, W), (W, V)], [FUSED, MATRIX, HEAD])
def fused_queries_split(p, x):
    q, k, v = (y.reshape(B, T, H, K) for y in jnp.split(x @ p[0], 3, -1))
    return jnp.sum((x + attend(q, k, v).reshape(B, T, H * K) @ p[1]) @ p[2])


@mechanism([(W, 3 * H * K), (H * K, W), (W, V)], [FUSED, MATRIX, HEAD])
def fused_queries_reshaped(p, x):
    q, k, v = jnp.moveaxis((x @ p[0]).reshape(B, T, 3, H, K), 2, 0)
    return jnp.sum((x + attend(q, k, v).reshape(B, T, H * K) @ p[1]) @ p[2])


@mechanism([(W, H * 3 * K), (H * K, W), (W, V)], [("matrix", (2,), (0,), (1, 3), (W, H, 3, K)), MATRIX, HEAD])
def fused_queries_by_head(p, x):
    q, k, v = jnp.moveaxis((x @ p[0]).reshape(B, T, H, 3, K), 3, 0)
    return jnp.sum((x + attend(q, k, v).reshape(B, T, H * K) @ p[1]) @ p[2])


@mechanism([(W, 3 * H * K), (3 * H * K,), (H * K, W), (W, V)], [FUSED, "vector", MATRIX, HEAD])
def fused_queries_with_a_bias(p, x):
    q, k, v = (y.reshape(B, T, H, K) for y in jnp.split(x @ p[0] + p[1], 3, -1))
    return jnp.sum((x + attend(q, k, v).reshape(B, T, H * K) @ p[2]) @ p[3])


@mechanism([(3, W, H, K), (H, K, W), (W, V)], [("matrix", (0,), (1,), (2, 3)), ("matrix", (), (0, 1), (2,)), HEAD])
def fused_queries_along_an_axis(p, x):
    q, k, v = jnp.einsum("btw,swhk->sbthk", x, p[0])
    return jnp.sum((x + jnp.einsum("bthk,hkw->btw", attend(q, k, v), p[1])) @ p[2])


@mechanism([(W, 2 * F), (F, W), (W, V)], [("matrix", (1,), (0,), (2,), (W, 2, F)), MATRIX, HEAD])
def a_gated_unit(p, x):
    a, b = jnp.split(x @ p[0], 2, -1)
    return jnp.sum((x + (a * jax.nn.silu(b)) @ p[1]) @ p[2])


@mechanism([(W, 2 * F), (F, W), (W, V)], [("matrix", (2,), (0,), (1,), (W, F, 2)), MATRIX, HEAD])
def a_gated_unit_interleaved(p, x):
    y = x @ p[0]
    return jnp.sum((x + (y[..., ::2] * jax.nn.silu(y[..., 1::2])) @ p[1]) @ p[2])


@mechanism([(2, W, F), (F, W), (W, V)], [STACKED, MATRIX, HEAD])
def a_gated_unit_along_an_axis(p, x):
    a, b = x @ p[0][0], x @ p[0][1]
    return jnp.sum((x + (a * jax.nn.silu(b)) @ p[1]) @ p[2])


@mechanism(
    [(W, 6 * W), (W, W), (W, V), (W, W)], [("matrix", (1,), (0,), (2,), (W, 6, W)), MATRIX, HEAD, MATRIX], X, ROWS
)
def adaptive_norm_in_six(p, x, c):
    x = x @ p[3]
    a, b, g, *rest = (y[:, None] for y in jnp.split(jax.nn.silu(c) @ p[0], 6, -1))
    h = x + g * ((norm(x) * (1 + a) + b) @ p[1])
    d, e, f = rest
    return jnp.sum((h + f * (norm(h) * (1 + d) + e)) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def rotary_halves_are_not_apart(p, x):
    q = (x @ p[0]).reshape(B, T, 2, W // 2)
    a, b = jnp.split(q, 2, -1)
    angle = jnp.arange(T, dtype="float32")[:, None, None]
    q = jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
    return jnp.sum((x + jnp.tanh(q.reshape(B, T, W))) @ p[1])


@mechanism([(W, 7), (W, V)], [("matrix", (), (0,), (1,)), HEAD])
def unequal_parts_are_reported(p, x):
    y = x @ p[0]
    a, b = y[..., :4], y[..., 4:]
    return jnp.sum((x + (a.sum(-1) * b.prod(-1))[..., None]) @ p[1])


@mechanism([(W, V)], [HEAD])
def a_head_alone(p, x):
    return jnp.sum(jax.nn.log_softmax(x @ p[0]))


@mechanism([(W, F), (F, V), (F, 1)], [MATRIX, HEAD, HEAD])
def two_heads(p, x):
    h = jnp.tanh(x @ p[0])
    return jnp.sum(h @ p[1]) + jnp.sum((h @ p[2]) ** 2)


@mechanism([(W, E), (E, F), (F, V)], [MATRIX, MATRIX, HEAD])
def low_rank_in_two_products(p, x):
    return jnp.sum(jnp.tanh(x @ p[0] @ p[1]) @ p[2])


@mechanism([(W, E), (E, F), (F, V)], [MATRIX, MATRIX, HEAD])
def low_rank_multiplied_first(p, x):
    return jnp.sum(jnp.tanh(x @ (p[0] @ p[1])) @ p[2])


@mechanism([(W, F), (W, E), (E, F), (F, V)], [MATRIX, MATRIX, MATRIX, HEAD])
def a_low_rank_addition(p, x):
    return jnp.sum(jnp.tanh(x @ (p[0] + 0.1 * p[1] @ p[2])) @ p[3])


@mechanism([(W, F), (F,), (F, V)], [MATRIX, "vector", HEAD])
def weight_norm(p, x):
    w = p[1] * p[0] / jnp.linalg.norm(p[0], axis=0)
    return jnp.sum(jnp.tanh(x @ w) @ p[2])


@mechanism([(W, F), (F, V)], [MATRIX, HEAD])
def a_cast_and_a_standardized_weight(p, x):
    w = p[0].astype("bfloat16")
    w = (w - w.mean(0)) / (w.std(0) + 1e-3)
    return jnp.sum(jnp.tanh(x.astype("bfloat16") @ w) @ p[1].astype("bfloat16"))


@mechanism([(F, F), (F, F), (F, V)], [MATRIX, MATRIX, HEAD], jax.ShapeDtypeStruct((B, F), "float32"))
def a_spectral_norm(p, x):
    u = jnp.ones(F)
    for _ in range(2):
        u = p[0] @ u
        u = u / jnp.linalg.norm(u)
    return jnp.sum(jnp.tanh(jnp.tanh(x @ (p[0] / (u @ p[0] @ u))) @ p[1]) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def an_orthogonal_factor(p, x):
    q, _ = jnp.linalg.qr(p[0])
    return jnp.sum(jnp.tanh(x @ q) @ p[1])


@mechanism([(W,), (W, V)], ["vector", HEAD])
def a_gain(p, x):
    return jnp.sum(norm(x, p[0]) @ p[1])


@mechanism([(), (W, V)], ["scalar", HEAD])
def a_temperature(p, x):
    return jnp.sum(jnp.exp(p[0]) * (x @ p[1]))


@mechanism([(H,), (W, H, K), (W, V)], ["vector", ("matrix", (), (0,), (1, 2)), HEAD])
def a_gain_by_head(p, x):
    q = jnp.einsum("btw,whk->bthk", x, p[1]) * p[0][:, None]
    return jnp.sum((x + q.sum((2, 3))[..., None] ** 2) @ p[2])


@mechanism([(W, F), (F, V)], [MATRIX, HEAD])
def a_product_written_as_a_sum(p, x):
    return jnp.sum(jnp.tanh(jnp.sum(x[..., None] * p[0], -2)) @ p[1])


@mechanism([(2, 3), (4, 4), (12, V)], [MATRIX, MATRIX, HEAD])
def a_kronecker_product(p, x):
    return jnp.sum(jnp.tanh(x @ jnp.kron(p[0], p[1])) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def a_straight_through_estimator(p, x):
    return jnp.sum(jnp.tanh(x @ (p[0] + lax.stop_gradient(jnp.sign(p[0]) - p[0]))) @ p[1])


# Tables, positions, tokens.


@mechanism([(V, W), (W, V)], ["embedding", HEAD], TOKENS)
def a_table_and_a_head(p, tokens):
    return jnp.sum(jax.nn.log_softmax(p[0][tokens] @ p[1]))


@mechanism([(V, W)], ["embedding"], TOKENS)
def a_tied_table(p, tokens):
    return jnp.sum(jax.nn.log_softmax(jnp.tanh(p[0][tokens]) @ p[0].T))


@mechanism([(V, W), (W, V)], ["embedding", HEAD], TOKENS)
def a_table_by_one_hot(p, tokens):
    return jnp.sum(jax.nn.one_hot(tokens, V) @ p[0] @ p[1])


@mechanism([(V, W), (T, W), (W, V)], ["embedding", "embedding", HEAD], TOKENS)
def positions(p, tokens):
    return jnp.sum((p[0][tokens] + p[1]) @ p[2])


@mechanism([(V, W), (2 * T, W), (W, V)], ["embedding", "embedding", HEAD], TOKENS)
def positions_sliced(p, tokens):
    return jnp.sum((p[0][tokens] + p[1][:T]) @ p[2])


@mechanism([(V, W), (2 * T, W), (W, V)], ["embedding", "embedding", HEAD], TOKENS)
def positions_gathered(p, tokens):
    return jnp.sum((p[0][tokens] + p[1][jnp.arange(T)]) @ p[2])


@mechanism([(1, 1, W), (W, F), (F, V)], ["embedding", MATRIX, HEAD])
def a_class_token(p, x):
    x = jnp.concatenate([jnp.broadcast_to(p[0], (B, 1, W)), x], 1)
    return jnp.sum(jnp.tanh(x @ p[1]).mean(1) @ p[2])


@mechanism([(3, W), (W, F), (F, V)], ["embedding", MATRIX, HEAD])
def registers(p, x):
    x = jnp.concatenate([jnp.broadcast_to(p[0], (B, 3, W)), x], 1)
    return jnp.sum(jnp.tanh(x @ p[1]).mean(1) @ p[2])


# Convolutions.


@mechanism([(3, 3, 3, F), (F, V)], [CONV, HEAD], IMAGES)
def a_convolution(p, x):
    y = lax.conv_general_dilated(x, p[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jax.nn.relu(y).mean((1, 2)) @ p[1])


@mechanism([(F, 3, 3, 3), (F, V)], [("conv", (), (1, 2, 3), (0,)), HEAD], jax.ShapeDtypeStruct((B, 3, 6, 6), "float32"))
def a_convolution_as_torch_has_it(p, x):
    y = lax.conv_general_dilated(x, p[0], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jnp.sum(jax.nn.relu(y).mean((2, 3)) @ p[1])


@mechanism([(1, 1, 3, F), (F, V)], [CONV, HEAD], IMAGES)
def a_pointwise_convolution(p, x):
    y = lax.conv_general_dilated(x, p[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jax.nn.relu(y).mean((1, 2)) @ p[1])


GROUPED = ("conv", (3,), (0, 1, 2), (4,), (3, 3, 3, 2, F // 2))


@mechanism([(1, 1, 3, 6), (3, 3, 3, F), (F, V)], [CONV, GROUPED, HEAD], IMAGES)
def a_grouped_convolution(p, x):
    conv = lambda x, w, n: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=n
    )
    return jnp.sum(jax.nn.relu(conv(conv(x, p[0], 1), p[1], 2)).mean((1, 2)) @ p[2])


@mechanism([(1, 1, 3, 6), (3, 3, 1, 6), (6, V)], [CONV, ("conv", (3,), (0, 1, 2), ()), HEAD], IMAGES)
def a_depthwise_convolution(p, x):
    conv = lambda x, w, n: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=n
    )
    return jnp.sum(jax.nn.relu(conv(conv(x, p[0], 1), p[1], 6)).mean((1, 2)) @ p[2])


@mechanism([(3, 3, 3, V)], [("head", (), (0, 1, 2), (3,))], IMAGES)
def a_convolutional_head(p, x):
    return jnp.sum(lax.conv_general_dilated(x, p[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2)


@mechanism(
    [(4, 4, 3, W), (9, W), (W, F), (F, V)],
    [CONV, "embedding", MATRIX, HEAD],
    jax.ShapeDtypeStruct((B, 12, 12, 3), "float32"),
)
def patches_and_their_positions(p, x):
    y = lax.conv_general_dilated(x, p[0], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jnp.tanh((y.reshape(B, 9, W) + p[1]) @ p[2]).mean(1) @ p[3])


# Control flow.


@mechanism([(L, W, F), (L, F, W), (L, W), (W, V)], [STACKED, STACKED, "vector", HEAD])
def scanned_layers(p, x):
    def layer(x, w):
        return x + jnp.tanh(norm(x, w[2]) @ w[0]) @ w[1], None

    return jnp.sum(lax.scan(layer, x, tuple(p[:3]))[0] @ p[3])


@mechanism([(2, L, W, W), (W, V)], [("matrix", (0, 1), (2,), (3,)), HEAD])
def nested_scans(p, x):
    inner = lambda x, w: (x + jnp.tanh(x @ w), None)
    return jnp.sum(lax.scan(lambda x, w: (lax.scan(inner, x, w)[0], None), x, p[0])[0] @ p[1])


@mechanism([(L, W, W), (W, V)], [STACKED, HEAD])
def a_loop_that_looks_its_layer_up(p, x):
    body = lambda i, x: x + jnp.tanh(x @ lax.dynamic_index_in_dim(p[0], i, keepdims=False))
    return jnp.sum(lax.fori_loop(0, L, body, x) @ p[1])


@mechanism([(L, W, W), (W, V)], [STACKED, HEAD])
def layers_unrolled(p, x):
    for i in range(L):
        x = x + jnp.tanh(x @ p[0][i])
    return jnp.sum(x @ p[1])


@mechanism([(W, W), (W, W), (W, V)], [MATRIX, MATRIX, HEAD])
def a_recurrent_cell(p, x):
    cell = lambda h, x: ((h := jnp.tanh(x @ p[0] + h @ p[1])), h)
    return jnp.sum(lax.scan(cell, jnp.zeros((B, W)), jnp.moveaxis(x, 1, 0))[1] @ p[2])


@mechanism([(W, 4 * W), (W, 4 * W), (4 * W,), (W, V)], [*[("matrix", (1,), (0,), (2,), (W, 4, W))] * 2, "vector", HEAD])
def an_lstm(p, x):
    def cell(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p[0] + h @ p[1] + p[2], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((B, W))
    return jnp.sum(lax.scan(cell, (zero, zero), jnp.moveaxis(x, 1, 0))[1] @ p[3])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def a_while_loop(p, x):
    go = lambda c: (c[0] + jnp.tanh(c[0] @ p[0]), c[1] + 1)
    return jnp.sum(lax.while_loop(lambda c: c[1] < 3, go, (x, 0))[0] @ p[1])


@mechanism([(W, W), (W, W), (W, V)], [MATRIX, MATRIX, HEAD])
def a_choice(p, x):
    y = lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p[0]), lambda x: jnp.tanh(x @ p[1]), x)
    return jnp.sum((x + y) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def a_checkpointed_layer(p, x):
    return jnp.sum(jax.checkpoint(lambda x, w: x + jnp.tanh(x @ w))(x, p[0]) @ p[1])


@jax.custom_vjp
def _quadratic(x, w):
    return jnp.square(x @ w)


_quadratic.defvjp(lambda x, w: (_quadratic(x, w), (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))


@jax.custom_jvp
def _cubic(x, w):
    return (x @ w) ** 3


_cubic.defjvp(lambda primals, tangents: (_cubic(*primals), _cubic(*primals)))


@mechanism([(W, W), (W, W), (W, V)], [MATRIX, MATRIX, HEAD])
def custom_derivatives(p, x):
    return jnp.sum((x + _quadratic(x, p[0]) + _cubic(x, p[1])) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def a_jitted_layer(p, x):
    return jnp.sum(jax.jit(lambda x, w: x + jnp.tanh(x @ w))(x, p[0]) @ p[1])


@mechanism([(E, W, F), (W, V)], [("matrix", (), (1,), (0, 2)), HEAD])  # or heads: all read the same
def a_vmapped_ensemble(p, x):
    return jnp.sum((x + jax.vmap(lambda w: jnp.tanh(x @ w).sum(-1, keepdims=True))(p[0]).sum(0)) @ p[1])


@mechanism([(W,), (W, W), (W, V)], ["vector", MATRIX, HEAD])
def an_associative_scan(p, x):
    a = jnp.broadcast_to(jax.nn.sigmoid(p[0]), x.shape)
    combine = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
    _, h = lax.associative_scan(combine, (a, jnp.tanh(x @ p[1])), axis=1)
    return jnp.sum((x + h) @ p[2])


@mechanism([(W, W), (W, V)], [MATRIX, HEAD])
def a_gradient_in_the_loss(p, x):
    f = lambda x: jnp.sum(jnp.tanh(x @ p[0]) @ p[1])
    return f(x) + jnp.sum(jax.grad(f)(x) ** 2)


# Experts.


@mechanism([(W, E), (E, W, F), (E, F, W), (W, V)], [MATRIX, STACKED, STACKED, HEAD])
def experts_all_of_them(p, x):
    gates = jax.nn.softmax(x @ p[0])
    y = jnp.einsum("ebtf,efw->ebtw", jax.nn.relu(jnp.einsum("btw,ewf->ebtf", x, p[1])), p[2])
    return jnp.sum((x + jnp.einsum("ebtw,bte->btw", y, gates)) @ p[3])


@mechanism([(W, E), (E, W, F), (E, F, W), (W, V)], [MATRIX, STACKED, STACKED, HEAD])
def experts_looked_up(p, x):
    x = x.reshape(B * T, W)
    gate, index = lax.top_k(jax.nn.softmax(x @ p[0]), 1)
    w, u = p[1][index[:, 0]], p[2][index[:, 0]]
    y = jnp.einsum("nf,nfw->nw", jax.nn.relu(jnp.einsum("nw,nwf->nf", x, w)), u)
    return jnp.sum((x + gate * y) @ p[3])


@mechanism([(W, E), (E, W, F), (E, F, W), (W, V)], [MATRIX, STACKED, STACKED, HEAD])
def experts_by_ragged_products(p, x):
    x = x.reshape(B * T, W)
    gate, index = lax.top_k(jax.nn.softmax(x @ p[0]), 1)
    order = jnp.argsort(index[:, 0])
    sizes = jnp.bincount(index[:, 0], length=E)
    y = lax.ragged_dot(jax.nn.relu(lax.ragged_dot(x[order], p[1], sizes)), p[2], sizes)
    return jnp.sum((x + gate * y[jnp.argsort(order)]) @ p[3])


# More of what public models do.


@mechanism([(V, W), (32, H), (W, H * K), (H * K, W), (W, V)], ["embedding", "embedding", MATRIX, MATRIX, HEAD], TOKENS)
def relative_positions_from_a_table(p, tokens):
    x = p[0][tokens]
    q = (x @ p[2]).reshape(B, T, H, K)
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    bias = jnp.moveaxis(p[1][jnp.clip(distance, -16, 15) + 16], -1, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, q) + bias
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), q).reshape(B, T, H * K)
    return jnp.sum((x + y @ p[3]) @ p[4])


@mechanism([(W, F), (F, W), (W,), (W, V)], [MATRIX, MATRIX, "vector", HEAD])
def a_layer_scale(p, x):
    return jnp.sum((x + p[2] * (jax.nn.gelu(x @ p[0]) @ p[1])) @ p[3])


@mechanism([(T, F), (F, T), (W, V)], [MATRIX, MATRIX, HEAD])
def a_mixer_of_tokens(p, x):
    y = jax.nn.gelu(jnp.swapaxes(x, 1, 2) @ p[0]) @ p[1]
    return jnp.sum((x + jnp.swapaxes(y, 1, 2)) @ p[2])


@mechanism(
    [(W, 2, 2, K), (W, 2, K), (W, 2, K), (2, 2, K, W), (W, V)],
    [("matrix", (), (0,), (1, 2, 3)), *[("matrix", (), (0,), (1, 2))] * 2, ("matrix", (), (0, 1, 2), (3,)), HEAD],
)
def grouped_queries(p, x):
    q = jnp.einsum("btw,wghk->btghk", x, p[0])
    k, v = (jnp.einsum("btw,wgk->btgk", x, w) for w in p[1:3])
    y = jnp.einsum("bghts,bsgk->btghk", jax.nn.softmax(jnp.einsum("btghk,bsgk->bghts", q, k)), v)
    return jnp.sum((x + jnp.einsum("btghk,ghkw->btw", y, p[3])) @ p[4])


@mechanism([(W, F), (F, W), (W, V)], [MATRIX, MATRIX, HEAD])
def layers_that_share_their_weights(p, x):
    for _ in range(3):
        x = x + jax.nn.relu(norm(x) @ p[0]) @ p[1]
    return jnp.sum(x @ p[2])


@mechanism([(W, F), (V, F), (F, W)], [MATRIX, "embedding", HEAD])
def a_codebook(p, x):
    h = jnp.tanh(x @ p[0])
    distance = (h**2).sum(-1, keepdims=True) - 2 * h @ p[1].T + (p[1] ** 2).sum(-1)
    code = p[1][jnp.argmin(distance, -1)]
    return jnp.sum((h + lax.stop_gradient(code - h)) @ p[2]) + jnp.mean((code - lax.stop_gradient(h)) ** 2)


@mechanism([(W, F), (F, V), ()], [MATRIX, HEAD, "scalar"])
def a_cosine_classifier(p, x):
    unit = lambda x, axis: x / jnp.linalg.norm(x, axis=axis, keepdims=True)
    return jnp.sum(jax.nn.log_softmax(p[2] * unit(jnp.tanh(x @ p[0]), -1) @ unit(p[1], 0)))


@mechanism([(W, F), (2 * F, V)], [MATRIX, HEAD])
def fourier_features(p, x):
    y = x @ p[0]
    return jnp.sum(jnp.concatenate([jnp.sin(y), jnp.cos(y)], -1) @ p[1])


@mechanism([(W, F), (W, F), (F, F), (F, V)], [MATRIX, MATRIX, MATRIX, HEAD])
def a_skip_that_is_concatenated(p, x):
    y = jnp.concatenate([jnp.tanh(x @ p[0]), jnp.tanh(x @ p[1])], -1)
    a, b = jnp.split(y, 2, -1)
    return jnp.sum(jnp.tanh((a + b) @ p[2]) @ p[3])


@mechanism([(3, 3, 3, F), (F,), (F,), (F, V)], [CONV, "vector", "vector", HEAD], IMAGES)
def a_convolution_with_a_norm(p, x):
    y = lax.conv_general_dilated(x, p[0], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5) * p[1] + p[2]
    y = lax.reduce_window(jax.nn.relu(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    return jnp.sum(y.mean((1, 2)) @ p[3])


@mechanism([(3, 3, 3, F), (2, 2, 5, F)], [CONV, ("head", (), (0, 1, 3), (2,))], IMAGES)
def a_transposed_convolution(p, x):
    y = jax.nn.relu(lax.conv_general_dilated(x, p[0], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return jnp.sum(
        lax.conv_transpose(y, p[1], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True)
        ** 2
    )


@mechanism([(W,), (W, F), (F, V)], ["vector", MATRIX, HEAD], X, jax.ShapeDtypeStruct((B, T), "bool"))
def a_mask_token(p, x, mask):
    return jnp.sum(jnp.tanh(jnp.where(mask[..., None], p[0], x) @ p[1]) @ p[2])


@mechanism([(H, K, K), (W, H * K), (H * K, V)], [STACKED, MATRIX, HEAD])
def a_matrix_by_head(p, x):
    y = (x @ p[1]).reshape(B, T, H, K)
    return jnp.sum(jnp.tanh(jnp.einsum("bthk,hkl->bthl", y, p[0])).reshape(B, T, H * K) @ p[2])


@mechanism([(W, L, F), (F, L, W), (W, V)], [("matrix", (1,), (0,), (2,)), ("matrix", (1,), (0,), (2,)), HEAD])
def layers_scanned_along_the_second_axis(p, x):
    layer = lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None)
    return jnp.sum(lax.scan(layer, x, tuple(jnp.moveaxis(w, 1, 0) for w in p[:2]))[0] @ p[2])


@mechanism([(W, W), (W, W), (W, V)], [MATRIX, MATRIX, HEAD], X, X)
def two_towers(p, x, y):
    a, b = jnp.tanh(x @ p[0]), jnp.tanh(y @ p[1])
    return jnp.sum(jnp.einsum("btw,bsw->bts", a @ p[2], b @ p[2]))


@mechanism(
    [(W, 2 * F), (F, 4), (4,), (F, 2 * E + 5), (5, F), (F, E), (F,), (F, W), (W, V)],
    [("matrix", (1,), (0,), (2,), (W, 2, F)), "vector", "vector", MATRIX, MATRIX, "vector", "vector", MATRIX, HEAD],
)
def a_selective_state_space(p, x):
    """Mamba: the input and its gate, a causal filter, unequal parts Δ, B and C, and log A."""
    u, z = jnp.split(x @ p[0], 2, -1)
    padded = jnp.pad(u, ((0, 0), (3, 0), (0, 0)))
    u = jax.nn.silu(sum(padded[:, i : i + T] * p[1][:, i] for i in range(4)) + p[2].sum())
    d, b, c = jnp.split(u @ p[3], [5, 5 + E], -1)
    d = jax.nn.softplus(d @ p[4])
    a = jnp.exp(-jnp.exp(p[5]) * d[..., None])

    def step(h, t):
        a, d, b, c, u = t
        h = a * h + (d * u)[..., None] * b[:, None]
        return h, jnp.einsum("bfe,be->bf", h, c)

    _, y = lax.scan(step, jnp.zeros((B, F, E)), tuple(jnp.moveaxis(v, 1, 0) for v in (a, d, b, c, u)))
    y = (jnp.moveaxis(y, 0, 1) + p[6] * u) * jax.nn.silu(z)
    return jnp.sum((x + y @ p[7]) @ p[8])


@mechanism([(W, E), (E, W, F), (E, F, W), (W, V)], [MATRIX, STACKED, STACKED, HEAD])
def experts_by_dispatch(p, x):
    gates = jax.nn.softmax(x @ p[0])
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), E)
    h = jnp.einsum("bte,btw->ebtw", chosen, x)
    y = jax.vmap(lambda h, w, u: jax.nn.relu(h @ w) @ u)(h, p[1], p[2])
    return jnp.sum((x + jnp.einsum("ebtw,bte->btw", y, gates * chosen)) @ p[3])


@mechanism([(W, F), (F, V)], [MATRIX, HEAD])
def dropout_and_noise(p, x):
    h = jax.nn.relu(x @ p[0])
    keep = jax.random.bernoulli(jax.random.key(0), 0.9, h.shape)
    return jnp.sum(jnp.where(keep, h / 0.9, 0) @ p[1])


@mechanism([(W, W, 3), (W, W, 3), (W, V)], [("matrix", (2,), (0,), (1,)), ("matrix", (2,), (0,), (1,)), HEAD])
def a_fourier_operator(p, x):
    modes = jnp.fft.rfft(x, axis=1)
    modes = jnp.einsum("btw,wvt->btv", modes, p[0] + 1j * p[1])
    return jnp.sum((x + jnp.fft.irfft(modes, T, axis=1)) @ p[2])


@mechanism(
    [(V, W), (2, W), (T, W), (W, V), (V,)], ["embedding", "embedding", "embedding", HEAD, "vector"], TOKENS, TOKENS
)
def three_tables_and_a_bias(p, tokens, kinds):
    return jnp.sum((p[0][tokens] + jax.nn.one_hot(kinds, 2) @ p[1] + p[2][None]) @ p[3] + p[4])


@mechanism([(W, E + 3), (E, F), (3, F), (F, V)], [MATRIX, MATRIX, MATRIX, HEAD])
def a_compressed_latent(p, x):
    """Multi-head latent attention: one product gives a latent and a key of their own."""
    y = x @ p[0]
    return jnp.sum(jnp.tanh(y[..., :E] @ p[1] + y[..., E:] @ p[2]) @ p[3])


@mechanism([(3, W), (W, W), (W, W), (W, V)], ["embedding", MATRIX, MATRIX, HEAD])
def queries_that_are_learned(p, x):
    q = jnp.zeros((B, 3, W)) + p[0]
    y = jax.nn.softmax((q @ p[1]) @ jnp.swapaxes(x @ p[2], 1, 2)) @ x
    return jnp.sum((q + y) @ p[3])


@mechanism([(W, W), (W, W), (W, V)], [MATRIX, MATRIX, HEAD])
def a_neural_ode(p, x):
    f = lambda h: jnp.tanh(h @ p[0]) @ p[1]

    def step(carry):
        h, t = carry
        k = f(h)
        return h + 0.1 * f(h + 0.05 * k), t + 0.1

    return jnp.sum(lax.while_loop(lambda c: c[1] < 1, step, (x, 0.0))[0] @ p[2])


@mechanism([(W, 3 * W), (W, 3 * W), (3 * W,), (W, V)], [*[("matrix", (1,), (0,), (2,), (W, 3, W))] * 2, "vector", HEAD])
def a_gated_recurrent_unit(p, x):
    def cell(h, x):
        (a, b, c), (d, e, f) = jnp.split(x @ p[0] + p[2], 3, -1), jnp.split(h @ p[1], 3, -1)
        r, z = jax.nn.sigmoid(a + d), jax.nn.sigmoid(b + e)
        h = (1 - z) * jnp.tanh(c + r * f) + z * h
        return h, h

    return jnp.sum(lax.scan(cell, jnp.zeros((B, W)), jnp.moveaxis(x, 1, 0), reverse=True)[1] @ p[3])


@mechanism([(W, 1), (W, W), (W, V)], [MATRIX, MATRIX, HEAD])
def a_gate_of_one_number(p, x):
    return jnp.sum((x + jax.nn.sigmoid(x @ p[0]) * jnp.tanh(x @ p[1])) @ p[2])


# What a walk that forgets something gets wrong.

PARTS = ("matrix", (1,), (0,), (2,), (W, 2, F))
BY_HEAD = ("matrix", (), (0,), (1, 2))


@mechanism([(W, W), (W, W), (W, W), (W, W)], [MATRIX] * 4)
def a_trunk_without_a_head(p, x):
    x = x + jnp.tanh(x @ p[0]) @ p[1]
    return jnp.sum((x + jnp.tanh(x @ p[2]) @ p[3]) ** 2)


@mechanism([(W, 2 * F), (F, V)], [MATRIX, HEAD])
def parts_that_are_added_are_one(p, x):
    a, b = jnp.split(x @ p[0], 2, -1)
    return jnp.sum(jnp.tanh(a + b) @ p[1])


@mechanism([(W, 2 * F), (F, V)], [PARTS, HEAD])
def parts_that_are_added_behind_a_function_are_apart(p, x):
    a, b = jnp.split(x @ p[0], 2, -1)
    return jnp.sum((jnp.tanh(a) + b) @ p[1])


@mechanism([(W, 2 * F), (2 * F, V)], [MATRIX, HEAD])
def parts_that_are_concatenated_again_are_one(p, x):
    a, b = jnp.split(x @ p[0], 2, -1)
    return jnp.sum(jnp.tanh(jnp.concatenate([jnp.sin(b), a], -1)) @ p[1])


@mechanism([(W, 2 * F), (W, F), (2 * F, V)], [PARTS, MATRIX, HEAD])
def parts_that_are_concatenated_behind_a_gate_are_apart(p, x):
    a, b = jnp.split(x @ p[0], 2, -1)
    return jnp.sum(jnp.tanh(jnp.concatenate([a * (x @ p[1]), b], -1)) @ p[2])


@mechanism([(W, 2 * F), (2 * F, V)], [MATRIX, HEAD])
def rotary_pairs_that_are_neighbours(p, x):
    q = (x @ p[0]).reshape(B, T, F, 2)
    a, b = q[..., 0], q[..., 1]
    c, s = jnp.cos(jnp.arange(T))[:, None], jnp.sin(jnp.arange(T))[:, None]
    return jnp.sum(jnp.tanh(jnp.stack([a * c - b * s, b * c + a * s], -1).reshape(B, T, 2 * F)) @ p[1])


@mechanism([(L, W), (W, V)], ["vector", HEAD])
def a_scanned_shift(p, x):
    return jnp.sum(lax.scan(lambda x, b: (jnp.tanh(x + b), None), x, p[0])[0] @ p[1])


@mechanism([(W, F), (F, K), (K, F), (F, V)], [MATRIX, MATRIX, MATRIX, HEAD])
def three_weights_multiplied_first(p, x):
    return jnp.sum(jnp.tanh(x @ (p[0] @ p[1] @ p[2])) @ p[3])


@mechanism([(W,), (W, V)], ["vector", HEAD])
def a_gain_by_einsum(p, x):
    return jnp.sum(jnp.tanh(jnp.einsum("btw,w->btw", x, p[0])) @ p[1])


@mechanism([(W, 9 * 3 * F), (F, V)], [MATRIX, HEAD], IMAGES, ROWS)
def a_kernel_made_by_the_batch(p, x, c):
    kernel = jnp.mean(c @ p[0], 0).reshape(3, 3, 3, F)
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jnp.tanh(y) @ p[1])


@mechanism([(W, F), (F, V)], [MATRIX, HEAD], X, TOKENS)
def positions_picked_by_the_batch(p, x, tokens):
    y = jnp.take_along_axis(jnp.tanh(x @ p[0]), tokens[..., None] % T, 1)
    return jnp.sum(y @ p[1])


@mechanism([(W, F), (F,), (F, W), (W, V)], [MATRIX, "vector", MATRIX, HEAD])
def positions_through_layers(p, x):
    angles = jnp.sin(jnp.arange(T)[:, None] * jnp.arange(1.0, W + 1))
    return jnp.sum(jnp.tanh(x + jnp.tanh(angles @ p[0] + p[1]) @ p[2]) @ p[3])


@mechanism([(W, F), (F, V)], ["vector", HEAD])
def a_sum_behind_a_function_is_no_product(p, x):
    return jnp.sum(jnp.sum(jnp.tanh(x[..., None] * p[0]), -2) @ p[1])


def behind(name):
    """A bias of heads is no table of positions behind an operation that leaves its axes where they are."""
    operations = {
        "sort": lambda y: jnp.sort(y, 1),
        "cumsum": lambda y: jnp.cumsum(y, 1),
        "tile": lambda y: jnp.tile(y, (1, 2, 1, 1)),
        "top_k": lambda y: jnp.moveaxis(lax.top_k(jnp.moveaxis(y, 1, -1), 3)[0], -1, 1),
        "scatter": lambda y: jnp.zeros((B, T + 1, H, K)).at[:, 1:].set(y),
        "cond": lambda y: lax.cond(y[0, 0, 0, 0] > 0, lambda y: y, jnp.tanh, y),
        "pad": lambda y: jnp.pad(y, ((0, 0), (1, 0), (0, 0), (0, 0))),
        "roll": lambda y: jnp.roll(y, 1, 1),
    }

    def bias_of_heads(p, x):
        y = operations[name](jnp.einsum("btw,whk->bthk", x, p[0])) + p[1]
        return jnp.sum(jnp.einsum("bthk,hkv->btv", jnp.tanh(y), p[2]))

    bias_of_heads.__name__ += f"_behind_{name}"
    return bias_of_heads


for name in ("sort", "cumsum", "tile", "top_k", "scatter", "cond", "pad", "roll"):
    mechanism([(W, H, K), (H, K), (H, K, V)], [BY_HEAD, "vector", ("head", (), (0, 1), (2,))])(behind(name))


@mechanism([(W, E), (E, W, F), (F, V)], [MATRIX, STACKED, HEAD])
def experts_of_one_layer(p, x):
    gates = jax.nn.softmax(x @ p[0])
    return jnp.sum(jnp.tanh(jnp.einsum("bte,btef->btf", gates, jnp.einsum("btw,ewf->btef", x, p[1]))) @ p[2])


@mechanism(
    [(W, H, K), (W, K), (W, K), (H, K, W), (W, V)], [BY_HEAD, MATRIX, MATRIX, ("matrix", (), (0, 1), (2,)), HEAD]
)
def one_key_for_all_queries(p, x):
    q, k, v = jnp.einsum("btw,whk->bthk", x, p[0]), x @ p[1], x @ p[2]
    a = jax.nn.softmax(jnp.einsum("bthk,bsk->bhts", q, k))
    return jnp.sum(jnp.einsum("bthk,hkw->btw", jnp.einsum("bhts,bsk->bthk", a, v), p[3]) @ p[4])


@mechanism([(W, F), (F, V)], [MATRIX, HEAD], ROWS, jax.ShapeDtypeStruct((B, V), "float32"))
def a_step_of_learning_in_the_loss(p, x, y):
    loss = lambda w: jnp.mean((jnp.tanh(x @ w[0]) @ w[1] - y) ** 2)
    return loss([w - 0.1 * g for w, g in zip(p, jax.grad(loss)(p), strict=True)])


@mechanism(
    [(W, F), (F, V)],
    [MATRIX, HEAD],
    jax.ShapeDtypeStruct((3, B, W), "float32"),
    jax.ShapeDtypeStruct((3, B, V), "float32"),
)
def steps_of_learning_for_many_tasks(p, x, y):
    loss = lambda w, x, y: jnp.mean((jnp.tanh(x @ w[0]) @ w[1] - y) ** 2)

    def task(x, y):
        gradient = jax.grad(loss)(p, x, y)
        return loss([w - 0.1 * g for w, g in zip(p, gradient, strict=True)], x, y)

    return jnp.mean(jax.vmap(task)(x, y))


@mechanism([(K, W), (W, W), (W, F), (F, V)], [TURNED, MATRIX, MATRIX, HEAD])
def a_stream_that_starts_as_learned_queries(p, x):
    scores = jax.nn.softmax(jnp.einsum("qw,btw->bqt", p[0], x))
    y = p[0] + jnp.einsum("bqt,btw->bqw", scores, x @ p[1])
    return jnp.sum(jnp.tanh(y @ p[2]) @ p[3])


@mechanism([(T, W), (W, V)], ["vector", HEAD])
def a_gain_by_a_product_without_a_sum(p, x):
    y = lax.dot_general(x, p[0], (((), ()), ((1, 2), (0, 1))))
    return jnp.sum(jnp.tanh(jnp.moveaxis(y, -1, 0)) @ p[1])


@mechanism([(W, 2, H, K), (W, H, K), (H, K, V)], [("matrix", (1,), (0,), (2, 3)), BY_HEAD, ("head", (), (0, 1), (2,))])
def a_state_that_is_read_out(p, x):
    k, v = jnp.moveaxis(jnp.einsum("btw,wshk->btshk", x, p[0]), 2, 0)
    state, q = jnp.einsum("bthk,bthv->bhkv", k, v), jnp.einsum("bw,whk->bhk", x[:, -1], p[1])
    return jnp.sum(jnp.einsum("bhv,hvo->bo", jnp.einsum("bhk,bhkv->bhv", q, state), p[2]))


@mechanism([(L, V, W), (W, V)], [("embedding", (0,), (1,), (2,)), HEAD], X, TOKENS)
def a_table_in_every_layer(p, x, tokens):
    return jnp.sum(lax.scan(lambda x, table: (jnp.tanh(x + table[tokens]), None), x, p[0])[0] @ p[1])


@mechanism([(L, W, W), (L, W), (W, V)], [STACKED, "vector", HEAD])
def a_loop_that_looks_its_bias_up(p, x):
    return jnp.sum(lax.fori_loop(0, L, lambda i, x: jnp.tanh(x @ p[0][i]) + p[1][i], x) @ p[2])


@mechanism([(T, W), (W, V)], ["embedding", HEAD])
def a_state_that_is_learned(p, x):
    return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(h + x), None), p[0], x)[0] @ p[1])


@mechanism([(T, W), (W, V)], ["embedding", HEAD])
def a_choice_of_tokens(p, x):
    y = lax.cond(jnp.sum(x) > 0, lambda x: x, lambda x: jnp.broadcast_to(p[0], x.shape), x)
    return jnp.sum(jnp.tanh(y) @ p[1])


# Penalties on the parameters, added to the loss or taken from it: they say nothing of a role.


PENALTIES = {
    "squares": lambda p: sum(jnp.sum(w**2) for w in p),
    "one_square": lambda p: jnp.sum(p[1] ** 2),
    "magnitudes": lambda p: -jnp.sum(jnp.abs(p[2])),
    "orthogonality": lambda p: jnp.sum((p[1].T @ p[1] - jnp.eye(F)) ** 2),
    "volume": lambda p: -jnp.linalg.slogdet(p[1])[1],
    "a_row_each": lambda p: jnp.sum(jnp.sum(p[1] ** 2, axis=1)),
}


def penalized(name):
    def loss(p, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2]) + 1e-4 * PENALTIES[name](p)

    loss.__name__ = f"a_penalty_of_{name}"
    return loss


for _name in PENALTIES:
    mechanism([(W, F), (F, F), (F, V)], [MATRIX, MATRIX, HEAD])(penalized(_name))


# Rotary positions of a part of every head, which stands beside the rest again.


def turned(x):
    angle = jnp.arange(T, dtype="float32")[:, None, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def turned_in_pairs(x):
    angle = jnp.arange(T, dtype="float32")[:, None, None]
    a, b = x[..., ::2], x[..., 1::2]
    y = jnp.stack([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
    return y.reshape(x.shape)


TURNS_OF_A_PART = {
    "half": lambda x: jnp.concatenate([turned(x[..., :4]), x[..., 4:]], -1),
    "half_in_pairs": lambda x: jnp.concatenate([turned_in_pairs(x[..., :4]), x[..., 4:]], -1),
    "a_quarter": lambda x: jnp.concatenate([turned(x[..., :2]), x[..., 2:]], -1),
    "each_axis": lambda x: jnp.concatenate([turned(x[..., :4]), turned(x[..., 4:])], -1),
}


def rotary_of(name):
    def loss(p, x):
        q = TURNS_OF_A_PART[name]((x @ p[0]).reshape(B, T, 2, 8))
        q, k, v = q, *jnp.moveaxis((x @ p[1]).reshape(B, T, 2, 2, 8), 2, 0)
        k = TURNS_OF_A_PART[name](k)
        a = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        return jnp.sum(jnp.einsum("bhts,bshk->bthk", a, v).reshape(B, T, 16) @ p[2])

    loss.__name__ = f"rotary_of_{name}"
    return loss


for _name in TURNS_OF_A_PART:
    mechanism([(W, 16), (W, 32), (16, V)], [MATRIX, ("matrix", (1,), (0,), (2,), (W, 2, 16)), HEAD])(rotary_of(_name))
