"""The Transformer's two ends against NumPy; causality, symmetry, and the forms that have to agree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optlab.models import LanguageModel, MultiHeadAttention, Transformer, gpt2_small, transformer, vision_transformer
from optlab.models.transformer import split_into_patches

from .oracles import compiled, float64, initialized, numpy_body, quick_jit, randomized

RNG = np.random.default_rng(0)
TINY = {"length": 8, "width": 12, "depth": 2, "heads": 3}
LLAMA = {"position": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "tied": False, "qk_norm": True}
TOKENS = jnp.asarray(RNG.integers(0, 11, size=(2, 6)))
IMAGES = jnp.float32(RNG.normal(size=(2, 6, 4, 3)))


def test_gpt2_small_has_its_published_parameters():
    model = gpt2_small()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 124_439_808
    assert set(shapes) == {"embedding", "position", "body"}
    assert shapes["embedding"]["embedding"].shape == (50257, 768)
    assert shapes["position"].shape == (1024, 768)


def test_gpt2_like_model_is_its_formula():
    model = transformer(11, **TINY)
    variables = randomized(model, TOKENS)
    p = float64(variables["params"])
    x = p["embedding"]["embedding"][TOKENS] + p["position"][:6]
    expected = numpy_body(p["body"], x, 3, causal=True) @ p["embedding"]["embedding"].T
    np.testing.assert_allclose(compiled(model)(variables, TOKENS), expected, atol=1e-4)


def test_logits_of_a_tied_head_are_float32_too():
    model = transformer(11, **TINY, dtype="bfloat16")
    assert jax.eval_shape(model.apply, randomized(model, TOKENS), TOKENS).dtype == jnp.float32


def test_llama_like_model_is_its_formula():
    model = transformer(11, **TINY, **LLAMA)
    variables = randomized(model, TOKENS)
    p = float64(variables["params"])
    x = numpy_body(p["body"], p["embedding"]["embedding"][TOKENS], 3, "swiglu", causal=True, rotary=True, qk_norm=True)
    np.testing.assert_allclose(compiled(model)(variables, TOKENS), x @ p["head"]["kernel"], atol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_without_biases_there_are_none(norm, activation):
    model = transformer(11, **TINY, norm=norm, activation=activation, tied=False, bias=False)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    assert not any("bias" in jax.tree_util.keystr(path) for path, _ in leaves)


def test_vision_transformer_is_its_formula():
    model = vision_transformer(5, patch=2, width=12, depth=2, heads=3)
    variables = randomized(model, IMAGES)
    p, images = float64(variables["params"]), np.asarray(IMAGES, np.float64)
    patches = [images[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2, 4) for j in (0, 2)]
    x = np.stack(patches, 1) @ p["embedding"]["kernel"] + p["embedding"]["bias"] + p["position"]
    expected = numpy_body(p["body"], x, 3).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(compiled(model)(variables, IMAGES), expected, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(position=st.sampled_from(["learned", "rotary", "none"]), t=st.integers(0, 4), change=st.integers(1, 10))
def test_a_token_sees_none_after_it(position, t, change):
    model = transformer(11, **TINY, position=position)
    variables = randomized(model, TOKENS)
    other = TOKENS.at[:, t + 1].set((TOKENS[:, t + 1] + change) % 11)
    before, after = compiled(model)(variables, TOKENS), compiled(model)(variables, other)
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    assert np.abs(before[:, t + 1 :] - after[:, t + 1 :]).max() > 1e-4


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(7)))
def test_the_body_without_positions_is_permutation_equivariant(order):
    """Permuted tokens give permuted outputs, whose mean is the same (C9)."""
    body = Transformer(12, depth=2, heads=3)
    x = jnp.float32(RNG.normal(size=(2, 7, 12)))
    variables = randomized(body, x)
    out, permuted = compiled(body)(variables, x), compiled(body)(variables, x[:, np.array(order)])
    np.testing.assert_allclose(permuted, out[:, np.array(order)], atol=2e-5)
    np.testing.assert_allclose(permuted.mean(1), out.mean(1), atol=2e-5)


@pytest.mark.parametrize("position", ["learned", "rotary", "none"])
def test_the_order_of_patches_matters_only_through_positions(position):
    model = vision_transformer(5, patch=2, width=12, depth=2, heads=3, position=position)
    variables = randomized(model, IMAGES)
    upside_down = jnp.concatenate([IMAGES[:, 4:], IMAGES[:, 2:4], IMAGES[:, :2]], axis=1)
    difference = np.abs(compiled(model)(variables, upside_down) - compiled(model)(variables, IMAGES)).max()
    assert difference < 2e-5 if position == "none" else difference > 1e-3


def test_rotary_language_model_has_no_position_table_and_no_longest_sequence():
    model = transformer(11, **TINY, position="rotary")
    assert "position" not in jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert compiled(model)(randomized(model, TOKENS), jnp.zeros((1, 20), int)).shape == (1, 20, 11)


def stacked(params, depth=2):
    """The parameters of the unrolled model as those of the scanned one."""
    body = dict(params["body"])
    blocks = [body.pop(f"block_{i}") for i in range(depth)]
    return {**params, "body": {**body, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}


def value_and_gradient(model):
    return jax.value_and_grad(lambda p: (model.apply({"params": p}, TOKENS) ** 2).mean())


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scan_over_layers_equals_the_unrolled_layers(remat):
    unrolled, scanned = transformer(11, **TINY, **LLAMA), transformer(11, **TINY, **LLAMA, scan=True, remat=remat)
    params = randomized(unrolled, TOKENS)["params"]
    assert jax.tree.map(np.shape, stacked(params)) == jax.tree.map(np.shape, randomized(scanned, TOKENS)["params"])
    value, gradient = quick_jit(value_and_gradient(unrolled))(params)
    scan_value, scan_gradient = quick_jit(value_and_gradient(scanned))(stacked(params))
    np.testing.assert_allclose(scan_value, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), scan_gradient, stacked(gradient))


def test_scan_draws_every_layer_anew():
    blocks = initialized(transformer(11, **TINY, scan=True), TOKENS)["params"]["body"]["blocks"]
    first, second = blocks["attention"]["query"]["kernel"]
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_every_layer_drops_other_numbers(scan):
    """Each of two blocks adds 1 to a residual stream of 0: with one mask it would end with two values, not three."""
    body = Transformer(64, depth=2, heads=2, dropout=0.5, scan=scan)
    x = jnp.zeros((1, 1, 64))
    ones = ("['down']['bias']", "['norm_final']['scale']")
    fill = lambda path, a: jnp.full(a.shape, float(jax.tree_util.keystr(path).endswith(ones)))
    variables = jax.tree_util.tree_map_with_path(fill, randomized(body, x))
    out = compiled(body, train=True)(variables, x, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(np.round(np.asarray(out), 4))) == 3


@pytest.mark.parametrize("place", ["embedding", "out", "down"])
@pytest.mark.parametrize("end", ["language", "vision"])
def test_dropout_is_in_three_places_in_training_only(end, place):
    """Only one place adds to the residual stream, so that only its dropout can change the logits."""
    model = transformer(11, **TINY, tied=False, dropout=0.5)
    model = model if end == "language" else vision_transformer(5, patch=2, width=12, depth=2, heads=3, dropout=0.5)
    inputs = TOKENS if end == "language" else IMAGES
    kept = re.compile(rf"\['({place}|head|norm_final)'\]")
    mask = lambda path, a: a * bool(kept.search(jax.tree_util.keystr(path)))
    variables = jax.tree_util.tree_map_with_path(mask, randomized(model, inputs))
    variables["params"]["body"]["norm_final"]["bias"] *= 0
    first, second = ({"dropout": jax.random.key(seed)} for seed in (0, 1))
    train, evaluate = compiled(model, train=True), compiled(model)
    assert np.abs(train(variables, inputs, rngs=first) - train(variables, inputs, rngs=second)).max() > 1e-2
    np.testing.assert_array_equal(evaluate(variables, inputs, rngs=first), evaluate(variables, inputs, rngs=second))


def test_remat_changes_no_value_and_recomputes():
    plain, remat = transformer(11, **TINY), transformer(11, **TINY, remat=True)
    params = randomized(plain, TOKENS)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(randomized(remat, TOKENS)["params"])
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    once, again = (quick_jit(value_and_gradient(model))(params) for model in (plain, remat))
    jax.tree.map(same, once, again)
    gelus = lambda model: str(jax.make_jaxpr(value_and_gradient(model))(params)).count(" tanh ")
    assert (gelus(plain), gelus(remat)) == (2, 4)


@pytest.mark.parametrize("scan", [False, True])
def test_attention_weights_of_every_layer_can_be_had(scan):
    model = transformer(11, **TINY, scan=scan)
    _, state = compiled(model, mutable="intermediates")(randomized(model, TOKENS), TOKENS)
    leaves = jax.tree.leaves(state["intermediates"])
    assert [leaf.shape for leaf in leaves] == ([(2, 2, 3, 6, 6)] if scan else [(2, 3, 6, 6)] * 2)
    for leaf in leaves:
        np.testing.assert_allclose(leaf.sum(-1), 1.0, rtol=1e-5)


def test_qk_norm_bounds_the_attention_logits():
    """With gains of 1, queries and keys have length √K: logits lie within ±√K, logarithms of weights within 2√K."""
    x = jnp.float32(RNG.normal(size=(1, 6, 12)))

    def spread(qk_norm):
        model = MultiHeadAttention(12, heads=3, qk_norm=qk_norm)
        variables = initialized(model, x)
        variables["params"]["query"]["kernel"] *= 1e5
        _, state = compiled(model, mutable="intermediates")(variables, x)
        logs = np.log(np.maximum(state["intermediates"]["attention_weights"][0], 1e-30))
        return np.ptp(logs, axis=-1).max()

    assert spread(True) < 2 * np.sqrt(4) + 1e-3
    assert spread(False) > 10 * np.sqrt(4)


def test_matrices_start_as_in_gpt2():
    """Standard deviations are 0.02, and 0.02/√(2·depth) where they write to the residual stream: here 0.02/2."""
    params = initialized(transformer(500, length=300, width=96, depth=2, heads=3, tied=False), TOKENS)["params"]
    block = params["body"]["block_1"]
    layers = {**block["attention"], **block["feed_forward"], "head": params["head"]}
    matrices = {name: layer["kernel"] for name, layer in layers.items()}
    matrices |= {"embedding": params["embedding"]["embedding"], "position": params["position"]}
    assert len(matrices) == 9
    for name, matrix in matrices.items():
        assert np.std(matrix) == pytest.approx(0.02 / 2 if name in ("out", "down") else 0.02, rel=0.05), name


@pytest.mark.parametrize(
    ("activation", "hidden", "expected"), [("gelu", None, 48), ("swiglu", None, 32), ("gelu", 7, 7), ("swiglu", 7, 7)]
)
def test_hidden_width(activation, hidden, expected):
    model = transformer(11, **TINY, activation=activation, hidden=hidden)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert params["body"]["block_0"]["feed_forward"]["up"]["kernel"].shape == (12, expected)


def test_patches_are_read_row_by_row():
    image = jnp.arange(16).reshape(1, 4, 4, 1)
    patches = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    np.testing.assert_array_equal(split_into_patches(image, 2)[0], patches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 384, "heads": 5}, r"heads must divide width \(384\), got 5"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"heads": 0}, "heads must be a whole number of at least 1, got 0"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"hidden": 0}, "hidden must be a whole number of at least 1, got 0"),
        (
            {"width": 12, "heads": 4, "position": "rotary"},
            "the width of a head must be even, got width 12 / heads 4 = 3",
        ),
        ({"position": "rotery"}, "position must be one of learned, rotary, none, got 'rotery': did you mean 'rotary'?"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'$"),
        ({"activation": "swiglue"}, "activation must be one of .*, got 'swiglue': did you mean 'swiglu'?"),
        ({"dropout": 1}, r"dropout must lie in \[0, 1\), got 1"),
        (
            {"dtype": "bfloat"},
            "dtype must be one of float32, bfloat16, float64, got 'bfloat': did you mean 'bfloat16'?",
        ),
        ({"param_dtype": "double"}, "param_dtype must be one of float32, bfloat16, float64, got 'double'"),
    ],
)
@pytest.mark.parametrize("make", [transformer, vision_transformer])
def test_impossible_settings_are_refused_when_it_is_made(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(10, **settings)


def test_other_impossible_models_are_refused():
    with pytest.raises(ValueError, match="vocabulary must be a whole number of at least 1, got 0"):
        transformer(0)
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        gpt2_small(length=0)
    with pytest.raises(ValueError, match="the body of a language model must be causal, got causal=False"):
        LanguageModel(10, body=Transformer(12, depth=1, heads=3))
    with pytest.raises(ValueError, match="outputs must be a whole number of at least 1, got 0"):
        vision_transformer(0)
    with pytest.raises(ValueError, match="patch must be a whole number of at least 1, got 0"):
        vision_transformer(10, patch=0)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a sequence may have at most length \(8\) tokens, got 9"):
        transformer(11, **TINY).init(jax.random.key(0), jnp.zeros((1, 9), int))
    with pytest.raises(ValueError, match=r"patch must divide the image's height and width \(6×4\), got 4"):
        vision_transformer(10, patch=4).init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"images must have the shape .*, got \(2, 64\)"):
        vision_transformer(10).init(jax.random.key(0), jnp.ones((2, 64)))
