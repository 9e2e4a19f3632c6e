"""Roles and matrix axes of the trees that other people's models have."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import optlab
from optlab.roles import MatrixAxes, matrix_axes, read_names, roles

W, F, H, K = 10, 36, 3, 4  # width, feed-forward width, heads, width of a head; no two products are alike
A = H * K  # an attention's width
L, E, V = 5, 6, 96  # layers, experts, vocabulary


def shapes(tree):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), tree, is_leaf=lambda x: type(x) is tuple)


def initialized(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def found_in(params, **how):
    """{path: role, or (stack, input, output) for a matrix or convolution, with the view's shape where there is one}."""
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")
    found = {}
    for (keys, role), a in zip(
        jax.tree_util.tree_leaves_with_path(roles(params)), jax.tree.leaves(matrix_axes(params, **how)), strict=True
    ):
        axes = (a.stack, a.input, a.output) + ((a.view,) if a.view else ())
        found[path(keys)] = axes if role == "matrix" else role
    return found


def ending(found, *ends):
    """What was found for the paths with one of these ends, without repetition."""
    return {what for path, what in found.items() if path.endswith(ends)}


DENSE, TURNED = ((), (0,), (1,)), ((), (1,), (0,))
IN, OUT = ((), (0,), (1, 2)), ((), (0, 1), (2,))


# Trees by hand, as other libraries name and shape them.


def gpt2():
    """Hugging Face's, in Flax: its kernels are (out, in)."""
    norm = {"scale": (W,), "bias": (W,)}
    block = {
        "ln_1": norm,
        "attn": {
            "c_attn": {"kernel": (3 * W, W), "bias": (3 * W,)},
            "c_proj": {"kernel": (W, W), "bias": (W,)},
        },
        "ln_2": norm,
        "mlp": {"c_fc": {"kernel": (F, W), "bias": (F,)}, "c_proj": {"kernel": (W, F), "bias": (W,)}},
    }
    return {"wte": {"embedding": (V, W)}, "wpe": {"embedding": (7, W)}, "ln_f": norm, "h": {"0": block, "1": block}}


def test_gpt2():
    found = found_in(shapes({"transformer": gpt2()}))
    assert found["transformer/h/1/attn/c_attn/kernel"] == ((0,), (2,), (1,), (3, W, W))
    assert ending(found, "c_fc/kernel", "mlp/c_proj/kernel") == {TURNED}
    assert ending(found, "embedding") == {"embedding"}
    assert ending(found, "bias", "scale") == {"vector"}


def bert():
    dense = lambda i, o: {"kernel": (i, o), "bias": (o,)}
    norm = {"scale": (W,), "bias": (W,)}
    layer = {
        "attention": {
            "self": {name: dense(W, A) for name in ("query", "key", "value")},
            "output": {"dense": dense(A, W), "LayerNorm": norm},
        },
        "intermediate": {"dense": dense(W, F)},
        "output": {"dense": dense(F, W), "LayerNorm": norm},
    }
    names = {"word_embeddings": V, "position_embeddings": 7, "token_type_embeddings": 2}
    return {
        "bert": {
            "embeddings": {**{name: {"embedding": (n, W)} for name, n in names.items()}, "LayerNorm": norm},
            "encoder": {"layer": {"0": layer, "1": layer}},
            "pooler": {"dense": dense(W, W)},
        },
        "cls": {
            "predictions": {"bias": (V,), "transform": {"dense": dense(W, W)}, "decoder": {"kernel": (W, V)}},
            "seq_relationship": dense(W, 2),
        },
    }


def test_bert():
    found = found_in(shapes(bert()))
    assert ending(found, "decoder/kernel", "seq_relationship/kernel") == {"head"}  # by vocabularies of 96 and 2
    assert ending(found, "dense/kernel", "query/kernel") == {DENSE}
    assert ending(found, "embedding") == {"embedding"}
    assert ending(found, "bias", "scale") == {"vector"}


def llama():
    layer = {
        "input_layernorm": {"weight": (W,)},
        "self_attn": {n: {"kernel": (W, a)} for n, a in (("q_proj", A), ("k_proj", K), ("v_proj", K))}
        | {"o_proj": {"kernel": (A, W)}},
        "mlp": {"gate_proj": {"kernel": (W, F)}, "up_proj": {"kernel": (W, F)}, "down_proj": {"kernel": (F, W)}},
    }
    model = {"embed_tokens": {"embedding": (V, W)}, "layers": {"0": layer, "1": layer}, "norm": {"weight": (W,)}}
    return {"model": model, "lm_head": {"kernel": (W, V)}}


def test_llama():
    found = found_in(shapes(llama()))
    assert found["lm_head/kernel"] == "head"
    assert found["model/embed_tokens/embedding"] == "embedding"
    assert ending(found, "proj/kernel") == {DENSE}
    assert ending(found, "weight") == {"vector"}


def haiku(layers=""):
    stack = (L,) if layers else ()
    dense = lambda i, o: {"w": (*stack, i, o), "b": (*stack, o)}
    h = f"transformer/{layers}h0"
    return {
        **{f"{h}_attn/{name}": dense(W, A) for name in ("query", "key", "value")},
        f"{h}_attn/linear": dense(A, W),
        f"{h}_mlp/linear": dense(W, F),
        f"{h}_mlp/linear_1": dense(F, W),
        f"{h}_ln_1": {"scale": (*stack, W), "offset": (*stack, W)},
        "transformer/embed": {"embeddings": (V, W)},
        "transformer/linear": {"w": (W, V), "b": (V,)},
    }


def test_haiku():
    found = found_in(shapes(haiku()))
    assert found["transformer/linear/w"] == "head"
    assert found["transformer/embed/embeddings"] == "embedding"
    assert ending(found, "query/w", "linear_1/w") == {DENSE}
    assert ending(found, "/b", "scale", "offset") == {"vector"}
    found = found_in(shapes(haiku("__layer_stack_no_per_layer/")))
    assert ending(found, "query/w", "linear_1/w") == {((0,), (1,), (2,))}
    assert ending(found, "/b", "scale", "offset") == {"vector"}


def equinox(*stack):
    """Its weights are (out, in), and a convolution's bias is (out, 1, 1). Attribute paths, as its modules have."""
    linear = lambda i, o: {"weight": (*stack, o, i), "bias": (*stack, o)}
    attention = {f"{name}_proj": {"weight": (*stack, A, W)} for name in ("query", "key", "value")}
    return {
        "attention": attention | {"output_proj": {"weight": (*stack, W, A)}},
        "norm1": {"weight": (*stack, W), "bias": (*stack, W)},
        "mlp": {"layers": [linear(W, F), linear(F, W)]},
    }


def test_equinox():
    outside = {
        "embedding": {"weight": (V, W)},
        "head": {"weight": (V, W)},
        "conv": {"weight": (8, 3, 5, 5), "bias": (8, 1, 1)},
    }
    found = found_in(shapes({"layers": [equinox(), equinox()], **outside}))
    assert ending(found, "proj/weight", "mlp/layers/0/weight", "mlp/layers/1/weight") == {TURNED}
    assert ending(found, "norm1/weight", "bias") == {"vector"}
    assert [found[f"{name}/weight"] for name in outside] == ["embedding", "head", "conv"]
    assert matrix_axes(shapes(outside))["conv"]["weight"] == MatrixAxes((), (1, 2, 3), (0,))
    found = found_in(shapes({"layers": equinox(L), **outside}))
    assert ending(found, "proj/weight", "mlp/layers/0/weight", "mlp/layers/1/weight") == {((0,), (2,), (1,))}
    assert ending(found, "norm1/weight", "bias") == {"vector"}


def test_attributes_are_names():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Linear:
        weight: Any
        bias: Any

    found = found_in({"head": Linear(*shapes([(V, W), (V,)])), "layers": [Linear(*shapes([(F, W), (F,)]))]})
    assert found == {"head/weight": "head", "head/bias": "vector", "layers/0/weight": TURNED, "layers/0/bias": "vector"}


def t5x():
    """Layers are counted by the second axis."""
    block = {
        "pre_norm": {"scale": (W, L)},
        "self_attention": {n: {"kernel": (W, L, H, K)} for n in ("query", "key", "value")}
        | {"out": {"kernel": (H, L, K, W)}},
        "mlp": {"wi_0": {"kernel": (W, L, F)}, "wi_1": {"kernel": (W, L, F)}, "wo": {"kernel": (F, L, W)}},
    }
    decoder = {
        "layers": block,
        "relpos_bias": {"rel_embedding": (H, 32)},
        "decoder_norm": {"scale": (W,)},
        "logits_dense": {"kernel": (W, V)},
    }
    return {"token_embedder": {"embedding": (V, W)}, "decoder": decoder}


def test_layers_counted_by_the_second_axis():
    found = found_in(shapes(t5x()))
    assert ending(found, "query/kernel", "value/kernel") == {((1,), (0,), (2, 3))}
    assert ending(found, "out/kernel") == {((1,), (0, 2), (3,))}
    assert ending(found, "wi_0/kernel", "wo/kernel") == {((1,), (0,), (2,))}
    assert ending(found, "scale") == {"vector"}
    assert ending(found, "rel_embedding", "embedding") == {"embedding"}
    assert found["decoder/logits_dense/kernel"] == "head"


@pytest.mark.parametrize("layers", [(), (L,)])
def test_experts(layers):
    norm = {"norm": {"scale": (*layers, W)}}
    attention = {n: {"kernel": (*layers, W, H, K)} for n in ("query", "key", "value")} | {
        "out": {"kernel": (*layers, H, K, W)}
    }
    moe = {
        "gate": {"kernel": (*layers, W, E)},
        "wi": (*layers, E, W, F),
        "wo": (*layers, E, F, W),
        "shared": {"up": {"kernel": (*layers, W, F)}},
    }
    found = found_in(shapes({"layers": norm | {"MoeBlock_0": {"attention": attention, "moe": moe}}}))
    n = len(layers)
    count, last = tuple(range(n + 1)), ((n + 1,), (n + 2,))
    assert ending(found, "wi", "wo") == {(count, *last)}
    assert ending(found, "gate/kernel", "up/kernel") == {(count[:-1], (n,), (n + 1,))}
    assert ending(found, "query/kernel") == {(count[:-1], (n,), (n + 1, n + 2))}
    assert ending(found, "out/kernel") == {(count[:-1], (n, n + 1), (n + 2,))}


@pytest.mark.parametrize(
    ("tree", "axes"),
    [
        ({"experts": {"up": {"kernel": (E, W, F)}}}, ((0,), (1,), (2,))),
        ({"experts": {"up": {"kernel": (W, W, F), "bias": (W, F)}}}, ((0,), (1,), (2,))),  # as many as they are wide
        ({"ExpertMlp_0": {"Dense_0": {"kernel": (L, E, W, F)}}}, ((0, 1), (2,), (3,))),
        ({"moe": {"wi": {"kernel": (E, E, W, F)}}}, ((0, 1), (2,), (3,))),  # in as many layers: no window
        ({"VmapDense_0": {"kernel": (E, W, F)}}, ((0,), (1,), (2,))),
        ({"w1": (L, W, F), "b1": (L, F)}, ((0,), (1,), (2,))),
        ({"attention": {"wq": (W, H, K), "wk": (W, 1, K), "wv": (W, 1, K)}}, IN),
        ({"attention": {"attn_out_proj": {"kernel": (H, K, W)}}}, OUT),
        ({"attention": {"qkv": {"kernel": (W, 3 * A)}}}, DENSE),  # three parts of other sizes, with fewer keys
        ({"embed_stem/~/linear": {"w": (W, F)}}, DENSE),  # Haiku's names are paths
        ({"linear_pos": {"kernel": (W, W)}, "time_emb_proj": {"kernel": (F, W)}}, DENSE),
        ({"lora": {"b": (2, W)}}, DENSE),  # no bias: there is no kernel beside it
        ({"lora": {"w": (W, W), "a": (W, 2), "b": (2, W)}}, DENSE),  # nor of a kernel that isn't longer
        ({"lora": {"w": (L, W, W), "a": (L, W, 2), "b": (L, 2, W)}}, ((0,), (1,), (2,))),
        ({"w": (W, F), "a": (W, 2), "b": (F,)}, DENSE),
        ({"prenorm_mlp_0": {"w1": (W, F), "w2": (F, W)}}, DENSE),
        ({"query_norm": {"kernel": (W, H, K), "bias": (H, K)}}, IN),
        ({"mixer": {"kernel": (W, W, H, K), "bias": (H, K)}}, ((), (0, 1), (2, 3))),  # no window: the bias tells
        ({"head_0": {"query": {"kernel": (W, K)}, "key": {"kernel": (W, K)}}}, DENSE),  # a head of an attention
        ({"MultiHeadAttention_0": {f"Head_{h}": {"Dense_0": {"kernel": (W, K)}} for h in range(H)}}, DENSE),
    ],
)
def test_what_else_can_be_told(tree, axes):
    found = found_in(shapes(tree))
    assert {what for what in found.values() if what != "vector"} == {axes}


@pytest.mark.parametrize(
    ("tree", "role"),
    [
        ({"MAPHead_0": {"probe": (1, 1, W)}}, "vector"),
        ({"cls": (1, 1, W)}, "embedding"),
        ({"pos_proj": {"embedding": (V, W)}}, "embedding"),
        ({"register_tokens": (1, 4, W)}, "embedding"),
        ({"stem": {"kernel": (7, 7, 3, 8)}}, "conv"),
        ({"expert_0": {"Conv_0": {"kernel": (3, 3, W, F)}}}, "conv"),
        ({"attn": {n: {"kernel": (1, 1, W, W)} for n in ("q", "k", "v", "proj_out")}}, "conv"),
        ({"res_net/~/batchnorm": {"scale": (1, 1, 1, 8), "offset": (1, 1, 1, 8)}}, "vector"),
        ({"LMHead_0": {"Dense_0": {"kernel": (W, V)}}}, "head"),
        ({"q_head": {"kernel": (W, 4)}, "v_head": {"kernel": (W, 1)}}, "head"),  # neither queries nor values
        ({"logits_dense": {"kernel": (W, V)}}, "head"),
        ({"decoder_with_cross_attention": {"lm_head": {"kernel": (W, V)}}}, "head"),
        ({"GraphAttention_0": {"classifier": {"kernel": (W, V)}}}, "head"),
        ({"AttentionNet_0": {"Head_0": {"Dense_0": {"kernel": (W, V)}}}}, "head"),
        ({"head": {"kernel": (1, 1, W, V), "bias": (V,)}}, "head"),
        ({"conv_head": {"weight": (V, W, 3, 3)}}, "head"),
        ({"blocks": {"norm1": {"scale": (L, W)}, "bias_table": (L, W)}}, "vector"),
        ({"blocks": {"norm1": {"offset": (L, W)}}}, "vector"),
    ],
)
def test_other_roles(tree, role):
    assert {what for path, what in found_in(shapes(tree)).items() if not path.endswith("/bias")} == {role}


@pytest.mark.parametrize("name", ["MultiHead_0", "multi_head", "head_norm_proj"])
def test_no_head(name):
    assert found_in(shapes({name: {"kernel": (W, F)}})) == {f"{name}/kernel": DENSE}


@pytest.mark.parametrize(
    "tree",
    [
        {"mixer": {"kernel": (W, 3, H, K)}},
        {"mixer": {"kernel": (2, 2, 2, H, K)}},
        {"mixer": {"kernel": (H, K, W), "bias": (W,)}},
        {"attn": {"mix_einsum": {"w": (H, W, K)}}},  # an equation that isn't known
        {"attn": {"query": {"weight": (H, K, W)}}},
        {"gating_einsum": (2, W, F)},
        {"attn": {"query": {"kernel": (W, E, H, K)}}},  # layers, or groups of queries
        {"attn": {"qkv": {"kernel": (L, W, 3, H, K)}}},
        {"attn": {"query": {"kernel": (L, W, H, K)}, "key": {"kernel": (L, W, K)}, "out": {"kernel": (L, H, K, W)}}},
        {"blocks": {n: {"kernel": (L, W, H, K)} for n in ("query", "key", "value")}},  # as Flax scans, or as T5X
        {"blocks": {n: {"kernel": (W, L, H, K)} for n in ("query", "key", "value")}, "norm": {"scale": (W,)}},
        {"attn": {"query": {"kernel": (L, W, H, K)}} | {n: {"kernel": (L, W, K)} for n in ("key", "value")}},  # or GQA
        {"attn": {n: {"kernel": (L, A, A)} for n in "qkvo"} | {"lambdas": (L, 2)}},  # a stack, or heads
        {"ConvLocal_0": {"kernel": (8, 8, 144, 4)}},  # a window for every place
        {"pos_conv": {"weight_v": (W, 4, 16)}},  # PyTorch's weight norm: no values
        {"attn": {n: {"kernel": (W, H, K)} for n in ("query", "key", "value", "gate")} | {"w_out": (W, W)}},
        {"mlp": {"wi": {"kernel": (W, 2, F)}, "wo": {"kernel": (F, W)}, "gate": {"kernel": (W, W)}}},  # 2 of what
        {"mlp": {"wi": {"kernel": (W, 3, F)}, "wo": {"kernel": (F, W)}}},
    ],
)
def test_what_cant_be_told_is_an_error(tree):
    with pytest.raises(ValueError, match="names and shapes don't show roles what"):
        roles(shapes(tree))


GROUPED = {"query": (W, E, H, K), "key": (W, E, K), "value": (W, E, K), "out": (E, H, K, W)}


@pytest.mark.parametrize("names", [("query", "key", "value", "out"), ("query", "key"), ("query", "value", "out")])
@pytest.mark.parametrize("layers", [(), (L,)])
def test_queries_grouped_by_key(names, layers):
    """(width, groups, queries of a group, head width), whose width the neighbours show; a norm shows layers."""
    tree = {"attn": {name: {"kernel": (*layers, *GROUPED[name])} for name in names}, "norm": {"scale": (*layers, W)}}
    found = found_in(shapes({"blocks": tree}))
    n = len(layers)
    stack = tuple(range(n))
    assert ending(found, "query/kernel") == {(stack, (n,), (n + 1, n + 2, n + 3))}
    assert ending(found, "key/kernel", "value/kernel") == {(stack, (n,), (n + 1, n + 2))}
    assert ending(found, "out/kernel") <= {(stack, (n, n + 1, n + 2), (n + 3,))}


@pytest.mark.parametrize("layers", [(), (L,)])
def test_a_bias_shows_the_width_of_queries(layers):
    tree = shapes({"query": {"kernel": (*layers, W, E, K), "bias": (*layers, E, K)}})
    assert found_in(tree)["query/kernel"] == (
        tuple(range(len(layers))),
        (len(layers),),
        (len(layers) + 1, len(layers) + 2),
    )
    tree = shapes({"query": {"kernel": (W, E, H, K), "bias": (E, H, K)}})
    assert found_in(tree)["query/kernel"] == ((), (0,), (1, 2, 3))


def test_a_width_that_all_share_counts_no_layers():
    """Here by the second axis, as T5X's layers are counted."""
    tree = {"layers": {"norm": {"scale": (L, W)}, "mix": {"kernel": (L, W, W)}}, "input": {"kernel": (3, W)}}
    assert found_in(shapes(tree))["input/kernel"] == DENSE
    assert found_in(shapes(tree))["layers/mix/kernel"] == ((0,), (1,), (2,))


def test_a_norms_weight_is_in_layers_whatever_the_norm_is_called():
    norm = {"weight": (L, F), "bias": (L, F)}
    tree = {"blocks": [{"kernel": (L, W, F), "bias": (L, F)}, norm]}
    assert found_in(shapes(tree)) == {
        "blocks/0/kernel": ((0,), (1,), (2,)),
        **dict.fromkeys(("blocks/0/bias", "blocks/1/weight", "blocks/1/bias"), "vector"),
    }


def heads(tree):
    return [path for path, role in found_in(shapes(tree)).items() if role == "head"]


@pytest.mark.parametrize(
    ("inside", "last"),
    [
        ({"Dense_0": (W, F), "Dense_1": (F, F)}, ["Dense_1"]),
        ({f"Dense_{i}": (W, W) for i in range(11)}, ["Dense_10"]),
        ({"Dense_0": (W, F), "Dense_1": (F, W)}, ["Dense_1"]),
        ({"decoder": (W, V), "dense": (W, W)}, ["decoder"]),  # RoBERTa's
        ({"policy": (W, 4), "value": (W, 1)}, ["policy", "value"]),  # two heads
        ({"up": (W, F), "down": (F, W)}, ["down", "up"]),  # nothing shows which is the last
        ({"Conv_0": (3, 3, W, W), "Conv_1": (1, 1, W, V)}, ["Conv_1"]),
        ({"Conv_0": (3, 3, W, F), "Dense_0": (4 * F, V)}, ["Dense_0"]),
        ({"Dense_0": (W, F), "head": (F, V)}, ["head"]),
        ({"embed": (V, W), "Dense_0": (F, V)}, ["Dense_0"]),
    ],
)
def test_the_last_kernel_of_a_head_is_the_head(inside, last):
    tree = {"classifier": {name: {"kernel": shape} for name, shape in inside.items()}, "trunk": {"kernel": (W, W)}}
    assert heads(tree) == [f"classifier/{name}/kernel" for name in last]


@pytest.mark.parametrize(
    ("tree", "axes"),
    [
        ({"conv": {"kernel": (L, 3, 3, W, F), "bias": (L, F)}}, ((0,), (1, 2, 3), (4,))),
        ({"conv": {"kernel": (L, 3, 3, W, F)}, "norm": {"scale": (L, F)}}, ((0,), (1, 2, 3), (4,))),
        ({"conv": {"kernel": (L, 3, 3, W, F), "bias": (F,)}}, ((), (0, 1, 2, 3), (4,))),
        ({"conv_3d": {"kernel": (L, 3, 3, W, F)}}, ((), (0, 1, 2, 3), (4,))),
        ({"conv": {"kernel": (1, 3, 3, W, F)}}, ((), (0, 1, 2, 3), (4,))),
        ({"conv": {"kernel": (3, 3, 3, W, F)}}, ((), (0, 1, 2, 3), (4,))),
        ({"conv": {"weight": (F, W, 3, 3, 3)}}, ((), (1, 2, 3, 4), (0,))),
        ({"conv": {"kernel": (L, 3, W, F)}, "norm": {"scale": (L, F)}}, ((0,), (1, 2), (3,))),
        ({"conv": {"kernel": (3, 3, W, F)}, "norm": {"bias": (3, F)}}, ((0,), (1, 2), (3,))),
        ({"conv": {"kernel": (7, 3, W, F)}, "norm": {"scale": (F,)}}, ((), (0, 1, 2), (3,))),
        ({"conv": {"kernel": (7, 3, W, F)}, "norm": {"bias": (F,)}}, ((), (0, 1, 2), (3,))),
        ({"conv": {"kernel": (7, 3, W, F)}, "norm": {"scale": (W,)}}, ((), (0, 1, 2), (3,))),  # before it
        ({"conv": {"kernel": (L, 3, 3, W, F)}, "norm": {"scale": (F,)}}, ((), (0, 1, 2, 3), (4,))),
        ({"conv_2d": {"kernel": (7, 3, W, F)}}, ((), (0, 1, 2), (3,))),
        ({"conv": {"kernel": (1, 7, W, F)}}, ((), (0, 1, 2), (3,))),
        ({"conv": {"kernel": (3, 3, W, F)}}, ((), (0, 1, 2), (3,))),
        ({"conv": {"weight": (F, W, 1, 7), "bias": (F, 1, 1)}}, ((), (1, 2, 3), (0,))),
        ({"conv": {"kernel": (3, 3, F, W), "bias": (F,)}}, ((), (0, 1, 3), (2,))),  # transposed
        ({"conv": {"weight": (W, F, 3, 3), "bias": (F,)}}, ((), (0, 2, 3), (1,))),
        ({"conv": {"kernel": (3, 3, 1, F)}}, ((), (0, 1, 2), (3,))),
    ],
)
def test_stacked_convolutions_and_such_in_more_dimensions(tree, axes):
    tree = shapes({"block": tree})
    own = "weight" if "weight" in tree["block"].get("conv", {}) else "kernel"
    (layer,) = (name for name in tree["block"] if "conv" in name)
    assert roles(tree)["block"][layer][own] == "conv"
    assert matrix_axes(tree)["block"][layer][own] == MatrixAxes(*axes)


@pytest.mark.parametrize(
    ("own", "shape", "axes"),
    [
        ("kernel", (L, 3, 3, W, F), ((0,), (1, 2, 3), (4,))),
        ("weight", (L, F, W, 3, 3), ((0,), (2, 3, 4), (1,))),
        ("kernel", (L, 3, W, F), ((0,), (1, 2), (3,))),
        ("weight", (L, F, W, 3), ((0,), (2, 3), (1,))),
    ],
)
def test_what_may_be_a_stack_of_convolutions_is_an_error(own, shape, axes):
    tree = shapes({"conv": {own: shape}, "tail": {"norm": {"scale": (F,)}}})  # the last one, outside the stack
    with pytest.raises(ValueError, match=f"don't show roles what 'conv/{own}' of shape"):
        roles(tree)
    assert matrix_axes(tree, {"conv/*": ("conv", MatrixAxes(*axes))})["conv"] == {own: MatrixAxes(*axes)}
    assert roles(tree, {"conv/*": "conv"})["conv"] == {own: "conv"}


# Real modules.


class GroupedQueries(nn.Module):
    @nn.compact
    def __call__(self, x):
        into = lambda name, *shape: nn.DenseGeneral(shape, use_bias=False, name=name)(x)
        query, key, value = into("query", 2, 4, 8), into("key", 2, 8), into("value", 2, 8)
        weights = nn.softmax(jnp.einsum("bqkgh,blkh->bkgql", query, key))
        out = jnp.einsum("bkgql,blkh->bqkgh", weights, value)
        return nn.DenseGeneral(x.shape[-1], axis=(-3, -2, -1), use_bias=False, name="out")(out)


def test_linens_grouped_queries():
    found = found_in(initialized(GroupedQueries(), jnp.ones((1, 5, 32))))
    assert found["query/kernel"] == ((), (0,), (1, 2, 3))
    assert found["key/kernel"] == found["value/kernel"] == IN
    assert found["out/kernel"] == ((), (0, 1, 2), (3,))
    by_head = found_in(initialized(GroupedQueries(), jnp.ones((1, 5, 32))), per_head=True)
    assert by_head["query/kernel"] == ((1, 2), (0,), (3,))
    assert by_head["out/kernel"] == ((0, 1), (2,), (3,))


class Experts(nn.Module):
    bias: bool

    @nn.compact
    def __call__(self, x):
        mapped = {"in_axes": None, "variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": E}
        up = nn.vmap(nn.Dense, **mapped)(F, use_bias=self.bias)
        return nn.Dense(E, name="router")(x) @ jnp.ones((E, 1)) + up(x).sum((0, -1), keepdims=True)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_linens_mapped_experts(bias):
    found = found_in(initialized(Experts(bias), jnp.ones((2, W))))
    assert found["VmapDense_0/kernel"] == ((0,), (1,), (2,))
    assert found["router/kernel"] == DENSE
    assert ending(found, "bias") == {"vector"}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(H, qkv_features=A)(nn.LayerNorm()(x))
        return x + nn.Dense(W)(nn.Dense(F)(x)), None


@pytest.mark.parametrize("axis", [0, 1])
def test_linens_scan_along_either_axis(axis):
    scanned = nn.scan(Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=L)()
    params = initialized(scanned, jnp.ones((2, 3, W)), None)
    one = initialized(Block(), jnp.ones((2, 3, W)))
    found, single = found_in(params), jax.tree.leaves(matrix_axes(one))
    for (keys, x), a, whole in zip(
        jax.tree_util.tree_leaves_with_path(one), single, jax.tree.leaves(matrix_axes(params)), strict=True
    ):
        assert whole.stack == (axis,), keys
        assert whole.is_matrix == a.is_matrix
        shape = (*x.shape[:axis], L, *x.shape[axis:])
        if a.is_matrix:
            assert whole.fans(shape) == a.fans(x.shape)
    assert ending(found, "bias", "scale") == {"vector"}


def test_nnx_stacks():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(H, W, A, decode=False, rngs=rngs)
            self.experts = nnx.vmap(lambda r: nnx.Linear(W, F, rngs=r))(rngs.split(E))
            self.norm = nnx.RMSNorm(W, rngs=rngs)

    make = nnx.vmap(Layer)
    state = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0).split(L))), nnx.Param)
    found = found_in(state)
    assert found["attention/query/kernel"] == ((0,), (1,), (2, 3))
    assert found["attention/out/kernel"] == ((0,), (1, 2), (3,))
    assert found["experts/kernel"] == ((0, 1), (2,), (3,))
    assert ending(found, "bias", "scale") == {"vector"}


@pytest.mark.parametrize("name", ["gpt2_small", "vision_transformer", "resnet20", "mlp"])
def test_optlabs_models(name):
    models = pytest.importorskip("optlab.models")
    sizes = {"gpt2_small": {"vocabulary": V}, "vision_transformer": {"outputs": 10}}.get(name, {"outputs": 10})
    inputs = jnp.zeros((1, 4), int) if name == "gpt2_small" else jnp.zeros((1, 32, 32, 3))
    found = found_in(initialized(getattr(models, name)(**sizes), inputs))
    assert ending(found, "bias", "scale") == {"vector"}
    assert ending(found, "head/kernel") == (set() if name == "gpt2_small" else {"head"})
    hidden = {
        what for path, what in found.items() if path.endswith("kernel") and "head" not in path and "embed" not in path
    }
    assert hidden == ({"conv"} if name == "resnet20" else {DENSE})


# One attention, stored in many ways: the same matrices.

KERNELS = [np.random.default_rng(seed).normal(size=(W, H, K)).astype("float32") for seed in range(3)]
SQUARE = [np.random.default_rng(seed).normal(size=(A, A)).astype("float32") for seed in range(3)]


def matrices(name, kernel, own="kernel", bias=None, **how):
    """A kernel of that name in an attention as matrices."""
    tree = {"attention": {name: {own: kernel} | ({} if bias is None else {"bias": np.zeros(bias)})}}
    axes = matrix_axes(tree, **how)["attention"][name][own]
    np.testing.assert_array_equal(axes.from_matrices(axes.to_matrices(kernel), kernel.shape), kernel)
    return axes.to_matrices(kernel)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_fused_kernel_is_its_projections(per_head):
    parts = np.concatenate([matrices("query", kernel, per_head=per_head) for kernel in KERNELS])
    assert parts.shape == ((3 * H, W, K) if per_head else (3, W, A))
    for axis in (0, 1):
        np.testing.assert_array_equal(matrices("qkv", np.stack(KERNELS, axis), per_head=per_head), parts)
    for axis in (0, 1):
        two = matrices("kv", np.stack(KERNELS[:2], axis), per_head=per_head)
        np.testing.assert_array_equal(two, parts[: len(two)])


@pytest.mark.parametrize("head_width", [None, K])
def test_a_flat_fused_kernel_is_its_projections(head_width):
    how = {"per_head": True, "head_width": K} if head_width else {}
    parts = np.concatenate([matrices("query", kernel, **how) for kernel in SQUARE])
    assert parts.shape == ((3 * H, A, K) if head_width else (3, A, A))
    flat = np.concatenate(SQUARE, 1)
    np.testing.assert_array_equal(matrices("qkv", flat, **how), parts)
    np.testing.assert_array_equal(matrices("Wqkv", flat.T, "weight", **how), parts)
    np.testing.assert_array_equal(matrices("c_attn", flat.T, bias=(3 * A,), **how), parts)


def test_heads_out_of_flat_kernels():
    flat = [kernel.reshape(W, A) for kernel in KERNELS]
    heads = matrices("query", KERNELS[0], per_head=True)
    np.testing.assert_array_equal(matrices("q_proj", flat[0], per_head=True, head_width=K), heads)
    np.testing.assert_array_equal(matrices("query_proj", flat[0].T, "weight", per_head=True, head_width=K), heads)
    out = np.moveaxis(KERNELS[0], 0, 2)  # (heads, head width, width)
    heads = matrices("out", out, per_head=True)
    assert heads.shape == (H, K, W)
    np.testing.assert_array_equal(matrices("o_proj", out.reshape(A, W), per_head=True, head_width=K), heads)
    # GPT-NeoX interleaves the projections within each head: only by head is it split.
    neox = np.stack(KERNELS, 2).reshape(W, 3 * A)
    assert matrices("query_key_value", np.ones((A, 3 * A))).shape == (1, A, 3 * A)
    by_head = matrices("query_key_value", neox, per_head=True, head_width=K)
    np.testing.assert_array_equal(by_head, np.stack([k[:, h] for h in range(H) for k in KERNELS]))


def test_which_kernels_have_heads():
    """Attention's alone; GPT-2's two c_proj differ by where they stand."""
    found = found_in(shapes(gpt2()), per_head=True, head_width=5)
    assert found["h/0/attn/c_attn/kernel"] == ((0, 1), (3,), (2,), (3, 2, 5, W))
    assert found["h/0/attn/c_proj/kernel"] == ((0,), (1,), (2,), (2, 5, W))
    assert ending(found, "c_fc/kernel", "mlp/c_proj/kernel") == {TURNED}
    found = found_in(shapes(bert()), per_head=True, head_width=K)
    assert ending(found, "query/kernel") == {((1,), (0,), (2,), (W, H, K))}
    assert ending(found, "attention/output/dense/kernel") == {((0,), (1,), (2,), (H, K, W))}
    assert ending(found, "0/output/dense/kernel", "pooler/dense/kernel") == {DENSE}
    found = found_in(shapes(llama()), per_head=True, head_width=K)
    assert ending(found, "k_proj/kernel") == {((1,), (0,), (2,), (W, 1, K))}  # one head of keys, three of queries
    assert ending(found, "gate_proj/kernel", "down_proj/kernel") == {DENSE}
    found = found_in(
        shapes({"attention": {"in_proj": {"kernel": (W, A)}, "out_proj": {"kernel": (A, W)}}}),
        per_head=True,
        head_width=K,
    )
    assert found == {"attention/in_proj/kernel": DENSE, "attention/out_proj/kernel": ((0,), (1,), (2,), (H, K, W))}
    found = found_in(shapes(t5x()), per_head=True)
    assert ending(found, "query/kernel") == {((1, 2), (0,), (3,))}
    assert ending(found, "out/kernel") == {((1, 0), (2,), (3,))}
    assert ending(found, "wo/kernel") == {((1,), (0,), (2,))}


def test_a_fused_kernel_makes_an_attention_whatever_it_is_called():
    tree = shapes({"mixer": {"qkv": {"kernel": (A, 3 * A)}, "proj": {"kernel": (A, A)}, "up": {"kernel": (A, F)}}})
    found = found_in(tree, per_head=True, head_width=K)
    assert found["mixer/proj/kernel"] == ((0,), (1,), (2,), (H, K, A))
    assert found["mixer/up/kernel"] == DENSE


def test_a_convolution_isnt_split():
    for how in ({}, {"per_head": True}):
        (axes,) = jax.tree.leaves(matrix_axes(shapes({"attn": {"qkv": {"kernel": (3, 3, W, 3 * W)}}}), **how))
        assert axes == MatrixAxes((), (0, 1, 2), (3,))


def test_heads_that_cant_be_told():
    tree = shapes({"attention": {n: {"kernel": (W, A)} for n in ("query", "key")}})
    with pytest.raises(ValueError, match=r"can't infer the heads of 'attention/key/kernel' from its shape \(10, 12\)"):
        matrix_axes(tree, per_head=True)
    with pytest.raises(ValueError, match=r"head_width must divide the 12 of 'attention/key/kernel'.*got 5"):
        matrix_axes(tree, per_head=True, head_width=5)
    with pytest.raises(ValueError, match="head_width is for per_head=True, got head_width=4 alone"):
        matrix_axes(tree, head_width=4)
    own = {"*/kernel": MatrixAxes((), (0,), (1,))}
    assert matrix_axes(tree, own, per_head=True)["attention"]["key"]["kernel"] == own["*/kernel"]


def test_by_role_moves_heads_as_if_they_were_kernels_of_their_own():
    heads = functools.partial(read_names, per_head=True)
    whole = {"attention": {"query": {"kernel": jnp.asarray(KERNELS[0])}}}
    apart = [jnp.asarray(KERNELS[0][:, h]) for h in range(H)]
    rules = {"matrix": optlab.orthogonalize(), "default": optax.identity()}
    by_head, by_kernel = optlab.by_role(rules, heads), optlab.by_role(rules)
    got, _ = by_head.update(whole, by_head.init(whole))
    want, _ = by_kernel.update(apart, by_kernel.init(apart))
    np.testing.assert_allclose(got["attention"]["query"]["kernel"], np.stack(want, 1), atol=1e-5)


@given(st.permutations(range(4)), st.integers(0, 2), st.integers(1, 2), st.booleans(), st.booleans())
def test_any_axes_there_and_back(order, stack, inputs, split, stacked):
    x = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    end = min(stack + inputs, 3)
    axes = MatrixAxes(tuple(order[:stack]), tuple(order[stack:end]), tuple(order[end:]))
    count = x.size // np.prod(axes.fans(x.shape))
    if split:  # an axis of the output, in halves
        axes, count = axes.with_split(x.shape, axes.output[0], 2), 2 * count
    if stacked and len(axes.input) > 1:
        axes, count = axes.with_stacked(axes.input[0]), count * (axes.view or x.shape)[axes.input[0]]
    matrices = axes.to_matrices(x)
    assert matrices.shape == (count, *axes.fans(x.shape))
    assert sorted(axes.stack + axes.input + axes.output) == list(range(len(axes.view or x.shape)))
    np.testing.assert_array_equal(axes.from_matrices(matrices, x.shape), x)


# What was told wrongly, or not at all, on public models.

GEMMA = {
    "attn": {
        "q_einsum": {"w": (H, W, K)},
        "kv_einsum": {"w": (2, E, W, K)},
        "attn_vec_einsum": {"w": (H, K, W)},
    },
    "mlp": {"gating_einsum": (2, W, F), "linear": (F, W)},
    "turned": {"gating_einsum": (2, F, W), "linear": (F, W)},
}


@pytest.mark.parametrize(
    ("tree", "want"),
    [
        ({"TalkingHeads_0": {"Dense_0": {"kernel": (H, H)}}}, {"TalkingHeads_0/Dense_0/kernel": DENSE}),
        ({"router_logits": {"w": (W, E)}}, {"router_logits/w": DENSE}),
        ({"QKV_0": {"Dense_0": {"kernel": (W, 3 * W)}}}, {"QKV_0/Dense_0/kernel": ((1,), (0,), (2,), (W, 3, W))}),
        ({"fc1": {"weight": (F, W, 1, 1), "bias": (F, 1, 1)}}, {"fc1/weight": "conv"}),
        ({"up": {"weight": (3, 3, W, F)}}, {"up/weight": "conv"}),
        ({"cpb_mlp_ln1": {"weight": (F, 2), "bias": (F,)}}, {"cpb_mlp_ln1/weight": TURNED}),
        ({"attention": {"gating_w": (W, H, K), "gating_b": (H, K)}}, {"attention/gating_b": "vector"}),
        ({"gate": {"w": (E, W, W), "b": (E, W)}}, {"gate/w": ((0,), (1,), (2,))}),
        ({"ffw_up": {"w": (2, W, F), "b": (2, 1, 1, F)}}, {"ffw_up/w": ((0,), (1,), (2,)), "ffw_up/b": "vector"}),
        ({"lstm": {"linear": {"w": (W, 4 * F)}}}, {"lstm/linear/w": ((1,), (0,), (2,), (W, 4, F))}),
        ({"gru": {"weight_hh": (3 * W, W)}}, {"gru/weight_hh": ((0,), (2,), (1,), (3, W, W))}),
        ({"relative_position_bias_table": (49, H)}, {"relative_position_bias_table": "embedding"}),
        ({"embeddings_project": {"kernel": (W, F)}}, {"embeddings_project/kernel": DENSE}),
        ({"embed_linear": {"w": (9000, W)}}, {"embed_linear/w": "embedding"}),
        (GEMMA, {"attn/q_einsum/w": ((), (1,), (0, 2)), "attn/attn_vec_einsum/w": OUT}),
        (GEMMA, {"attn/kv_einsum/w": ((0,), (2,), (1, 3))}),
        (GEMMA, {"mlp/gating_einsum": ((0,), (1,), (2,)), "turned/gating_einsum": ((0,), (2,), (1,))}),
    ],
)
def test_kinds_that_were_read_wrongly(tree, want):
    assert want.items() <= found_in(shapes(tree)).items()


def test_a_window_in_front_shows_where_the_channels_are():
    axes = matrix_axes(shapes({"a": {"weight": (3, 3, W, F)}, "b": {"weight": (F, W, 3, 3)}}))
    assert axes["a"]["weight"] == MatrixAxes((), (0, 1, 2), (3,))
    assert axes["b"]["weight"] == MatrixAxes((), (1, 2, 3), (0,))


def test_a_head_is_what_nothing_else_takes_in_outside_of_repeated_modules():
    block = {"a": {"kernel": (W, 24)}, "b": {"kernel": (24, W)}}
    net = {"conv": {"kernel": (3, 3, 3, W)}, "block_0": block, "block_1": block, "Dense_0": {"kernel": (W, 7)}}
    found = found_in(shapes(net))
    assert {path for path, what in found.items() if what == "head"} == {"Dense_0/kernel"}


def kernels(**shapes_):
    return {name: {"kernel": shape} for name, shape in shapes_.items()}


@pytest.mark.parametrize(
    ("tree", "want"),
    [
        # A chain of numbered layers is a model, however short.
        (kernels(Dense_0=(17, F), Dense_1=(F, W), Dense_2=(W, 4)), ["Dense_2"]),
        ({"layers": [{"kernel": s} for s in ((17, F), (F, W), (W, 4))]}, ["layers/2"]),
        (kernels(Dense_0=(V, F), Dense_1=(F, W), Dense_2=(W, F), Dense_3=(F, V)), ["Dense_3"]),  # an autoencoder
        (kernels(**{f"Dense_{i}": (W, W) for i in range(10)}, Dense_10=(W, 4)), ["Dense_10"]),
        (kernels(Dense_0=(W, F), Dense_1=(F, V)), []),  # a part of a model, maybe
        (kernels(Dense_0=(W, F), Dense_1=(F, W), Dense_2=(W, W)), []),
        (kernels(Dense_0=(17, F), Dense_1=(F, W), Dense_2=(F, 4)), []),  # no chain
        ({"embed": {"embedding": (V, W)}} | kernels(Dense_0=(W, F), Dense_1=(F, A), Dense_2=(A, W)), []),  # tied
        # A decoder gives what the encoder takes in.
        ({"encoder": kernels(a=(V, F), b=(F, W)), "decoder": kernels(a=(W, F), b=(F, V))}, ["decoder/b"]),
        ({"encoder": kernels(a=(V, F), b=(F, W)), "decoder": kernels(a=(W, A), b=(A, V))}, ["decoder/b"]),
        ({"embed": {"embedding": (V, W)}, "encoder": kernels(a=(W, F)), "decoder": kernels(a=(F, W))}, []),
        ({"stem": {"kernel": (3, W)}, "encoder": kernels(a=(W, F)), "decoder": kernels(a=(F, W))}, []),
        # A vocabulary as large as the model is wide.
        (
            {"lm": {"embed": {"embeddings": (W, W)}, "linear": {"w": (W, W)}}, "net": {"up": {"w": (W, W)}}},
            ["lm/linear"],
        ),
        ({"lm": {"embed": {"embeddings": (W, W)}} | kernels(a=(W, W), b=(W, W)), "net": kernels(up=(W, F))}, []),
    ],
)
def test_heads_that_the_order_of_layers_shows(tree, want):
    assert [path.rsplit("/", 1)[0] for path in heads(tree)] == want


SHARD = {f"layer_{i}": kernels(up=(W, F), down=(F, W)) for i in range(2)}


@pytest.mark.parametrize(
    ("tree", "want"),
    [
        ({"embed_shard": kernels(linear=(V, W)), "proj_shard": kernels(linear=(W, V))}, ["embed_shard/linear"]),
        ({"patch_embed": kernels(linear=(V, W)), "pred": kernels(linear=(W, V))}, []),  # of pixels
        ({"embed_shard": kernels(linear=(V, W)), "proj_shard": kernels(linear=(F, V))}, []),
        ({"time_embed": kernels(a=(W, F), b=(F, W))}, []),
        ({"wte": (V, W), "embed_mlp": kernels(linear=(A, W)), "up": {"kernel": (W, A)}}, []),  # another table
    ],
)
def test_a_linear_layer_embeds_the_vocabulary_that_the_head_gives(tree, want):
    found = found_in(shapes(tree | SHARD))
    assert [path for path, what in found.items() if what == "embedding" and path != "wte"] == [
        f"{path}/kernel" for path in want
    ]
    assert not want or found["proj_shard/linear/kernel"] == "head"


def layers_with_bias(*shapes_):
    return {"layers": [{"c_res": s, "bias": bias} for s, bias in shapes_]}


@pytest.mark.parametrize(
    ("tree", "axes"),
    [
        (layers_with_bias(((8, 2), (8,)), ((8, 8), (8,)), ((1, 8), (1,))), TURNED),
        (layers_with_bias(((2, 8), (8,)), ((8, 8), (8,)), ((8, 1), (1,))), DENSE),
        (layers_with_bias(((8, 8), (8,)), ((8, 8), (8,))), DENSE),  # nothing shows it
        (layers_with_bias(((8, 2), (8,)), ((8, 3), (3,))), DENSE),  # no order fits both
        ({"a": {"lora": (8, 2), "kernel": (3, 8), "bias": (8,)}}, DENSE),  # the kernel's bias
    ],
)
def test_a_bias_shows_which_way_bare_matrices_stand(tree, axes):
    assert ending(found_in(shapes(tree)), "c_res", "lora", "kernel") == {axes}


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_gates_in_one_kernel_are_apart_where_the_other_leads_back(axis):
    stacked = lambda *s: s if axis is None else (*s[:axis], L, *s[axis:])
    mlp = {"wi": {"kernel": stacked(W, 2, F)}, "wo": {"kernel": stacked(F, W)}, "norm": {"scale": stacked(W)}}
    axes = matrix_axes(shapes({"layers": {"mlp": mlp} | {"norm": {"scale": stacked(W)}}}))["layers"]["mlp"]
    found = axes["wi"]["kernel"]
    assert found.fans(stacked(W, 2, F)) == (W, F)
    assert [stacked(W, 2, F)[a] for a in found.stack] == ([2] if axis is None else [L, 2])


def test_names_are_read_once():
    """Every block asks for the layout of the same tree, at init and at each trace."""
    tree = shapes({"layers": [{"kernel": (W, F), "bias": (F,)} for _ in range(3)]})
    first = read_names(tree)
    before = optlab.roles._names._inferred.cache_info()
    second = read_names(jax.tree.map(lambda x: jnp.zeros(x.shape), tree))
    after = optlab.roles._names._inferred.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert second == first
    assert read_names({"layers": tree["layers"][:2]}) != first  # other paths
    assert read_names(tree, {"layers/0/kernel": "head"})["layers/0/kernel"].role == "head"
    assert read_names(tree) == first
