"""The models' formulas in float64 NumPy, with the models' own parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


# A test's arrays are tiny: all the time goes into compiling, which is up to eight times faster without optimization.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@functools.cache
def compiled(model, **arguments):
    """`model.apply` with these arguments, compiled once for equal models."""
    return quick_jit(functools.partial(model.apply, **arguments))


def initialized(model, inputs):
    """The variables that a model starts with."""
    return quick_jit(model.init)(jax.random.key(0), inputs)


def randomized(model, inputs):
    """The model's variables with every leaf drawn anew, so that biases of 0 and gains of 1 hide nothing."""
    rng = np.random.default_rng(0)
    # Variances have to be positive.
    draw = lambda path, a: rng.uniform(0.5, 2, a.shape) if path[-1].key == "var" else rng.normal(size=a.shape) / 2
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return jax.tree.map(jnp.float32, jax.tree_util.tree_map_with_path(draw, shapes))


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_rotate(x):
    """Pair (j, j + K/2) as one complex number, turned by exp(i·t·10000^(−2j/K))."""
    T, K = x.shape[1], x.shape[3]
    turn = np.exp(1j * np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(K // 2) / K))
    z = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * turn[None, :, None]
    return np.concatenate([z.real, z.imag], -1)


def numpy_attention(p, x, heads, *, causal=False, rotary=False, qk_norm=False):
    """Multi-head self-attention, head by head, with the parameters `p` of a MultiHeadAttention: output and weights."""
    B, T, D = x.shape
    project = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0)
    q, k, v = (project(name, x).reshape(B, T, heads, D // heads) for name in ("query", "key", "value"))
    if qk_norm:
        rms = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        q, k = rms(q) * p["norm_query"]["scale"], rms(k) * p["norm_key"]["scale"]
    if rotary:
        q, k = numpy_rotate(q), numpy_rotate(k)
    mixed, weights = np.zeros_like(q), np.zeros((B, heads, T, T))
    for h in range(heads):
        scores = q[:, :, h] @ k[:, :, h].swapaxes(1, 2) / np.sqrt(D // heads)
        if causal:
            scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights[:, h] = softmax(scores)
        mixed[:, :, h] = weights[:, h] @ v[:, :, h]
    return project("out", mixed.reshape(B, T, D)), weights


def numpy_norm(p, x):
    x = x - x.mean(-1, keepdims=True) if "bias" in p else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p.get("bias", 0)


def numpy_body(p, x, heads, activation="gelu", **attention):
    """Pre-norm blocks and the last norm, with the parameters of a Transformer (LayerNorms where norms have biases)."""
    for i in range(sum(name.startswith("block") for name in p)):
        b = p[f"block_{i}"]
        linear = lambda name, x, p=b["feed_forward"]: x @ p[name]["kernel"] + p[name].get("bias", 0)
        x = x + numpy_attention(b["attention"], numpy_norm(b["norm_attention"], x), heads, **attention)[0]
        h = numpy_norm(b["norm_feed_forward"], x)
        up = linear("up", h)
        gated = FORMULAS["silu"](linear("gate", h)) * up if activation == "swiglu" else FORMULAS[activation](up)
        x = x + linear("down", gated)
    return numpy_norm(p["norm_final"], x)


def numpy_conv(p, x, stride):
    """A convolution with symmetric padding, pixel shift by pixel shift."""
    w = p["kernel"]
    side = w.shape[0]
    x = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    last = x.shape[1] - side
    windows = lambda i, j: x[:, i : i + last + 1 : stride, j : j + last + 1 : stride]
    return sum(windows(i, j) @ w[i, j] for i in range(side) for j in range(side)) + p.get("bias", 0)


def numpy_pool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    side = (x.shape[1] - 3) // 2 + 1
    return np.max([x[:, i:, j:][:, ::2, ::2][:, :side, :side] for i in range(3) for j in range(3)], axis=0)


def numpy_resnet(model, variables, x):
    """The network in evaluation: relu(F(x) + shortcut(x)) block by block, with stride 2 where a stage begins."""
    params, stats = float64(variables["params"]), float64(variables["batch_stats"])

    def norm(p, s, x):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    relu = lambda x: np.maximum(x, 0)
    large = model.stem == "large"
    x = relu(norm(params["norm_stem"], stats["norm_stem"], numpy_conv(params["stem"], x, 2 if large else 1)))
    x = numpy_pool(x) if large else x
    starts = np.cumsum(model.stages)[:-1]
    convs = 3 if model.bottleneck else 2
    for block in range(sum(model.stages)):
        p, s, y = params[f"block_{block}"], stats[f"block_{block}"], x
        stride = 2 if block in starts else 1
        for i in range(convs):
            y = norm(p[f"norm_{i}"], s[f"norm_{i}"], numpy_conv(p[f"conv_{i}"], y, stride if i == convs - 2 else 1))
            y = relu(y) if i < convs - 1 else y
        if "shortcut" in p:
            x = norm(p["norm_shortcut"], s["norm_shortcut"], numpy_conv(p["shortcut"], x, stride))
        x = relu(y + x if model.residual else y)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
