import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

import optlab
from optlab.roles import Labels, MatrixAxes, matrix_axes, read_names, roles

MATRIX, CONV = MatrixAxes((), (0,), (1,)), MatrixAxes((), (0, 1, 2), (3,))
INTO_HEADS, OUT_OF_HEADS = MatrixAxes((), (0,), (1, 2)), MatrixAxes((), (0, 1), (2,))
VECTOR = MatrixAxes()


def stacked(axes: MatrixAxes) -> MatrixAxes:
    """The axes of the same leaf with one axis more in front, that counts layers."""
    later = [tuple(a + 1 for a in group) for group in (axes.stack, axes.input, axes.output)]
    return MatrixAxes((0, *later[0]), *later[1:])


def shapes(tree):
    """A tree of arrays by their shapes; nothing is computed."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, "float32"), tree, is_leaf=lambda x: isinstance(x, tuple)
    )


def initialized(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def told(params):
    """{path: (role, axes)}."""
    path = lambda p: jax.tree_util.keystr(p, simple=True, separator="/").removesuffix("/value")
    leaves = jax.tree_util.tree_leaves_with_path(roles(params))
    return {path(p): (role, axes) for (p, role), axes in zip(leaves, jax.tree.leaves(matrix_axes(params)), strict=True)}


# Flax's own layers.


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.Conv(8, (1, 1), use_bias=False, name="shortcut")(x)
        x = nn.Conv(8, (3,), name="conv_along")(x)
        return nn.Dense(10, name="head")(nn.Dense(16)(x.mean((1, 2))))


class Block(nn.Module):
    bias: bool = True
    norm: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm(use_bias=self.bias)(x) if self.norm else x
        h = nn.MultiHeadDotProductAttention(4, qkv_features=24, use_bias=self.bias, name="attention")(h)
        return x + nn.Dense(12, use_bias=self.bias, name="down")(nn.Dense(48, use_bias=self.bias, name="up")(h)), None


class Lm(nn.Module):
    scan: bool = False
    bias: bool = True
    depth: int = 3

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(48, 12)(tokens) + self.param("position", nn.initializers.zeros, (5, 12))[None]
        if self.scan:
            x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)(
                self.bias, name="blocks"
            )(x, None)
        else:
            for i in range(self.depth):
                x, _ = Block(self.bias, name=f"block_{i}")(x)
        return nn.Dense(48, use_bias=False)(nn.LayerNorm()(x))


def test_a_convolutional_net():
    got = told(initialized(Cnn(), jnp.ones((1, 8, 8, 3))) | {"temperature": jnp.float32(1)})
    assert got["Conv_0/kernel"] == got["shortcut/kernel"] == ("conv", CONV)
    assert got["conv_along/kernel"] == ("conv", MatrixAxes((), (0, 1), (2,)))
    assert got["Dense_0/kernel"] == ("matrix", MATRIX)
    assert got["head/kernel"] == ("head", MATRIX)
    assert {got[p] for p in got if p.endswith(("bias", "scale"))} == {("vector", VECTOR)}
    assert got["temperature"] == ("scalar", VECTOR)


@pytest.mark.parametrize("bias", [True, False])
def test_a_transformer_and_its_scanned_twin(bias):
    tokens = jnp.zeros((1, 5), int)
    block = {
        **{f"attention/{name}/kernel": ("matrix", INTO_HEADS) for name in ("query", "key", "value")},
        "attention/out/kernel": ("matrix", OUT_OF_HEADS),
        "up/kernel": ("matrix", MATRIX),  # as wide as the vocabulary, and no head
        "down/kernel": ("matrix", MATRIX),
        "LayerNorm_0/scale": ("vector", VECTOR),
    }
    rest = {
        "Embed_0/embedding": ("embedding", MATRIX),
        "position": ("embedding", MATRIX),
        "Dense_0/kernel": ("head", MATRIX),  # by its width, outside the blocks
        "LayerNorm_0/scale": ("vector", VECTOR),
    }
    got = told(initialized(Lm(bias=bias), tokens))
    assert rest.items() <= got.items()
    for i in range(3):
        assert {f"block_{i}/{path}": what for path, what in block.items()}.items() <= got.items()
    got = told(initialized(Lm(scan=True, bias=bias), tokens))
    assert rest.items() <= got.items()
    assert {f"blocks/{path}": (role, stacked(axes)) for path, (role, axes) in block.items()}.items() <= got.items()
    assert all(role == "vector" for path, (role, _) in got.items() if path.endswith("bias"))


def test_a_single_block_is_numbered_too():
    assert told(initialized(Lm(depth=1), jnp.zeros((1, 5), int)))["block_0/up/kernel"] == ("matrix", MATRIX)


def test_a_scanned_block_without_gains_and_biases():
    block = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(bias=False, norm=False)
    got = told(
        {
            "blocks": {
                "mlp": {k: v for k, v in initialized(block, jnp.ones((1, 5, 12)), None).items() if k != "attention"}
            }
        }
    )
    assert got == {f"blocks/mlp/{name}/kernel": ("matrix", stacked(MATRIX)) for name in ("up", "down")}


def test_an_ensemble_of_whole_models():
    tokens = jnp.zeros((1, 5), int)
    one = initialized(Lm(), tokens)
    many = jax.eval_shape(
        jax.vmap(lambda key: Lm().init(key, tokens)["params"]), jax.random.split(jax.random.key(0), 7)
    )
    assert told(many) == {path: (role, stacked(axes)) for path, (role, axes) in told(one).items()}


def test_an_nnx_model_its_state_and_its_pure_dict():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(11, 6, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=rngs)
            self.conv = nnx.Conv(6, 6, (3, 3), rngs=rngs)
            self.norm = nnx.LayerNorm(6, rngs=rngs)
            self.head = nnx.Linear(6, 11, rngs=rngs)

    state = nnx.state(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), nnx.Param)
    got = told(state)
    assert got == told(nnx.to_pure_dict(state))
    assert got["attention/value/kernel"] == ("matrix", INTO_HEADS)  # this value is a layer, not a variable's
    assert got["attention/out/kernel"] == ("matrix", OUT_OF_HEADS)
    assert got["layers/1/kernel"] == ("matrix", MATRIX)
    assert got["conv/kernel"] == ("conv", CONV)
    assert got["embed/embedding"] == ("embedding", MATRIX)
    assert got["head/kernel"] == ("head", MATRIX)


@pytest.mark.parametrize("scan", [False, True])
def test_optlabs_own_models(scan):
    models = pytest.importorskip("optlab.models")
    got = told(
        initialized(models.transformer(64, width=16, heads=2, depth=2, tied=False, scan=scan), jnp.zeros((1, 4), int))
    )
    assert {path.rsplit("/")[-2] for path, (role, _) in got.items() if role == "head"} == {"head"}
    assert {path for path, (role, _) in got.items() if role == "embedding"} == {"embedding/embedding", "position"}
    matrices = {path: axes for path, (role, axes) in got.items() if role == "matrix"}
    assert len(matrices) == (6 if scan else 12)
    assert set(matrices.values()) == {stacked(MATRIX) if scan else MATRIX}
    got = told(initialized(models.resnet20(10), jnp.zeros((1, 32, 32, 3))))
    assert sum(role == "conv" for role, _ in got.values()) == 21
    assert sum(role == "head" for role, _ in got.values()) == 1


# Names and shapes alone.


@pytest.mark.parametrize(
    ("tree", "role", "axes"),
    [
        ({"attention": {"qkv": {"kernel": (12, 3, 4, 6)}}}, "matrix", MatrixAxes((1,), (0,), (2, 3))),
        (
            {"attention": {"qkv": {"kernel": (12, 3, 4, 6), "bias": (3, 4, 6)}}},
            "matrix",
            MatrixAxes((1,), (0,), (2, 3)),
        ),
        ({"attention": {"o_proj": {"kernel": (4, 6, 12)}}}, "matrix", OUT_OF_HEADS),
        ({"attention": {"q_proj": {"kernel": (12, 12)}}}, "matrix", MATRIX),
        ({"anything": {"kernel": (12, 4, 6), "bias": (4, 6)}}, "matrix", INTO_HEADS),
        ({"lm_head": {"kernel": (12, 48)}}, "head", MATRIX),
        ({"unembedding": {"kernel": (12, 48)}}, "head", MATRIX),
        ({"value_head": {"Dense_0": {"kernel": (12, 1)}}}, "head", MATRIX),
        ({"wte": {"embedding": (48, 12)}}, "embedding", MATRIX),
        ({"embedding": {"kernel": (12, 16)}}, "embedding", MATRIX),
        ({"patch_embedding": {"kernel": (4, 4, 3, 16)}}, "conv", CONV),
        ({"pos_embedding": (1, 64, 16)}, "embedding", OUT_OF_HEADS),
        ({"conv_3d": {"kernel": (3, 3, 3, 4, 8)}}, "conv", MatrixAxes((), (0, 1, 2, 3), (4,))),
        ([(3, 4)], "matrix", MATRIX),
        ([(3,)], "vector", VECTOR),
        ((), "scalar", VECTOR),
    ],
)
def test_names_and_shapes(tree, role, axes):
    (got,) = (what for path, what in told(shapes(tree)).items() if not path.endswith("bias"))
    assert got == (role, axes)


@pytest.mark.parametrize(
    ("tree", "path", "what"),
    [
        ({"query": {"kernel": (4, 4, 6), "bias": (4, 6)}}, "query/kernel", ("matrix", INTO_HEADS)),
        ({"query": {"kernel": (12, 4, 6)}, "key": {"kernel": (12, 2, 6)}}, "query/kernel", ("matrix", INTO_HEADS)),
        ({"conv_0": {"kernel": (3, 4, 8)}, "conv_1": {"kernel": (3, 8, 8)}}, "conv_1/kernel", ("conv", OUT_OF_HEADS)),
        ({"norm": {"scale": (12,)}, "up": {"kernel": (12, 48)}}, "up/kernel", ("matrix", MATRIX)),
    ],
)
def test_neighbours_of_one_length_are_no_stack(tree, path, what):
    assert told(shapes(tree))[path] == what


@pytest.mark.parametrize(
    ("tree", "heads"),
    [
        ({"e": {"embedding": (256, 64)}, "Dense_0": {"kernel": (64, 256)}}, ["Dense_0/kernel"]),
        ({"e": {"embedding": (256, 64)}, "Block_0": {"Dense_0": {"kernel": (64, 256)}}}, []),
        ({"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "b": {"kernel": (256, 64)}}, []),  # goes on
        ({"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "b": {"kernel": (64, 256)}}, []),  # repeated
        ({"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "head": {"kernel": (64, 9)}}, ["head/kernel"]),
        (  # a head that gives one number stands beside others
            {"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "value_head": {"kernel": (64, 1)}},
            ["a/kernel", "value_head/kernel"],
        ),
        ({"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "b": {"kernel": (256, 256)}}, ["b/kernel"]),
        ({"e": {"embedding": (256, 64)}, "a": {"kernel": (64, 256)}, "norm": {"scale": (256,)}}, []),  # a hidden width
        ({"e": {"embedding": (256, 256)}, "a": {"kernel": (256, 256)}, "norm": {"scale": (256,)}}, ["a/kernel"]),
        (  # an embedding of token types has a vocabulary too
            {
                "e": {"embedding": (256, 64)},
                "f": {"embedding": (2, 64)},
                "a": {"kernel": (64, 256)},
                "b": {"kernel": (64, 2)},
            },
            ["a/kernel", "b/kernel"],
        ),
        (
            {"e": {"embedding": (256, 64)}, "h0_mlp": {"a": {"kernel": (64, 256)}}, "b": {"kernel": (64, 256)}},
            ["b/kernel"],
        ),
        ({"embed": {"weight": (256, 64)}, "a": {"weight": (256, 64)}}, ["a/weight"]),  # (out, in)
        ({"Lm_0": {"e": {"embedding": (256, 64)}, "Dense_0": {"kernel": (64, 256)}}}, ["Lm_0/Dense_0/kernel"]),
        ({"time_embedding": {"linear_2": {"kernel": (256, 256)}}, "time_emb_proj": {"kernel": (256, 64)}}, []),
        (
            {
                "e": {"embedding": (65, 64)},
                "Block_0": {"MultiHeadAttention_0": {"Head_0": {"Dense_0": {"kernel": (64, 16)}}}},
                "Dense_0": {"kernel": (64, 65)},
            },
            ["Dense_0/kernel"],
        ),
        ({"wpe": {"embedding": (256, 64)}, "Dense_0": {"kernel": (64, 256)}}, []),  # positions are no vocabulary
        ({"Dense_0": {"kernel": (8, 16)}, "Dense_1": {"kernel": (16, 10)}}, []),
    ],
)
def test_which_kernel_is_the_head(tree, heads):
    assert [path for path, (role, _) in told(shapes(tree)).items() if role == "head"] == heads


def test_what_cant_be_told_is_named_and_can_be_said():
    tree = shapes({"mixer": {"w": (4, 5, 6)}, "bias": (3,)})
    with pytest.raises(ValueError, match=r"roles what 'mixer/w' of shape \(4, 5, 6\) is\. Pass the program") as error:
        roles(tree)
    said = str(error.value).partition("Or say it: ")[2]
    names = {"role": "matrix", "stack": (0,), "input": (1,), "output": (2,)}
    given = eval(f"dict({said})", {"functools": functools, "optlab": optlab, **names})
    state = jax.eval_shape(optlab.by_role(RULES, **given).init, tree)
    assert state.labels.rows[1] == ("mixer/w", "matrix", "matrix")
    assert MatrixAxes(*state.labels.axes[1]) == MatrixAxes((0,), (1,), (2,))
    assert roles(tree, {"mixer/*": "matrix"}) == {"mixer": {"w": "matrix"}, "bias": "vector"}
    assert matrix_axes(tree)["mixer"]["w"] == VECTOR
    assert matrix_axes(tree, {"mixer/*": INTO_HEADS, "mixer/w": CONV})["mixer"]["w"] == INTO_HEADS
    with pytest.raises(ValueError, match=r"what 'a' of shape \(4, 5, 6\) is and 2 more\. Pass the"):
        roles(shapes(dict.fromkeys("abc", (4, 5, 6)) | {"d": (3,)}))
    with pytest.raises(ValueError, match="override 'mixr/w' matches no parameter: the nearest path is 'mixer/w'"):
        roles(tree, {"mixr/w": "matrix"})


# by_role.

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 4))}}
RULES = {"matrix": optax.scale(-1.0), "default": optax.scale(-2.0)}


def moved(tx, params=PARAMS, **extra_args):
    update, _ = tx.update(params, tx.init(params), params, **extra_args)
    return jax.tree.map(lambda x: float(x.ravel()[0]), update)


def test_each_role_is_moved_by_its_rule():
    assert moved(optlab.by_role(RULES)) == {"dense": {"kernel": -1, "bias": -2}, "head": {"kernel": -2}}
    assert moved(optlab.by_role({"head": optax.scale(-3.0), **RULES}))["head"]["kernel"] == -3


@pytest.mark.parametrize("as_function", [True, False])
def test_roles_of_ones_own(as_function):
    own = read_names(PARAMS).override({"dense/*": "mine", "head/kernel": "matrix"})
    tx = optlab.by_role({"mine": optax.scale(5.0), **RULES}, (lambda params: own) if as_function else own)
    assert moved(tx) == {"dense": {"kernel": 5, "bias": 5}, "head": {"kernel": -1}}


def test_labels_can_be_read_from_shapes():
    state = jax.eval_shape(optlab.by_role(RULES).init, PARAMS)
    assert str(state.labels).splitlines() == [
        "dense/bias: vector, moved by 'default'",
        "dense/kernel: matrix, moved by 'matrix'",
        "head/kernel: head, moved by 'default'",
    ]
    assert not jax.tree.leaves(state.labels)
    assert state.labels == Labels(state.labels.rows, state.labels.axes) != Labels(state.labels.rows)


def test_rules_are_told_roles_and_axes_of_what_they_see():
    seen = {}

    def update_fn(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
    params = {"attention": {"query": {"kernel": jnp.ones((6, 2, 3)), "bias": jnp.ones((2, 3))}}}
    moved(optlab.by_role({"matrix": spy, "default": optax.identity()}), params, grad=params, value=1.0)
    layout = seen["layout"].of(seen["grad"])
    query = layout.matrix_axes["attention"]["query"]
    assert query["kernel"] == INTO_HEADS
    assert query["bias"] == optax.MaskedNode()
    assert layout.roles["attention"]["query"]["kernel"] == "matrix"
    assert seen["value"] == 1.0
    own = read_names(params, {"attention/query/kernel": OUT_OF_HEADS})
    moved(optlab.by_role({"matrix": spy, "default": optax.identity()}, own), params)
    assert seen["layout"]["attention/query/kernel"].axes == OUT_OF_HEADS


NESTED = {
    "embed": {"embedding": jnp.ones((100, 16))},
    "block_0": {"Dense_0": {"kernel": jnp.ones((16, 64))}},
    "Dense_0": {"kernel": jnp.ones((16, 100))},
}
SCANNED = {
    "layers": {"norm": {"scale": jnp.ones((4, 16))}, "mix": {"kernel": jnp.ones((4, 16, 16))}},
    "input": {"kernel": jnp.ones((3, 16))},
}
FIRST = {"Dense_0/kernel": "matrix", "block_0/*": "head"}


def rules_of(tx, params, around="default"):
    """{path: the innermost rule that moves it}, of a by_role with another as its rule `around`."""
    state = jax.eval_shape(tx.init, params)
    inner = state.rules.inner_states[around].inner_state
    return {path: rule for labels in (state.labels, inner.labels) for path, _, rule in labels.rows}


def test_a_by_role_within_another_has_the_roles_of_the_whole_tree():
    within = lambda first, rest="default", own=None: optlab.by_role(
        {first: optax.sgd(1.0), rest: optlab.by_role(RULES)}, own and read_names(NESTED, own)
    )
    assert rules_of(within("embedding"), NESTED) == {
        "embed/embedding": "embedding",
        "block_0/Dense_0/kernel": "matrix",
        "Dense_0/kernel": "default",  # a head, as the embedding's vocabulary shows
    }
    assert rules_of(within("vector"), SCANNED) == {
        "layers/norm/scale": "vector",
        "layers/mix/kernel": "matrix",  # in layers, as the norm shows
        "input/kernel": "matrix",
    }
    given = rules_of(within("embedding", own=FIRST), NESTED)
    assert (given["block_0/Dense_0/kernel"], given["Dense_0/kernel"]) == ("default", "matrix")
    # A role of one's own says nothing of what is inside.
    given = rules_of(
        within("frozen", "mine", {"embed/*": "frozen", "block_0/*": "mine", "Dense_0/*": "mine"}), NESTED, "mine"
    )
    assert (given["block_0/Dense_0/kernel"], given["Dense_0/kernel"]) == ("matrix", "default")


def test_a_by_role_within_another_moves_what_it_labels():
    """Three deep; the updates agree with the labels."""
    rules = {"embedding": optax.scale(-5.0), "default": optlab.by_role({"default": optlab.by_role(RULES)})}
    assert moved(optlab.by_role(rules), NESTED) == {
        "embed": {"embedding": -5},
        "block_0": {"Dense_0": {"kernel": -1}},
        "Dense_0": {"kernel": -2},
    }


def test_a_by_role_within_another_keeps_roles_of_its_own():
    own = optlab.by_role(RULES, lambda tree: read_names(tree, {"*": "matrix"}))
    tx = optlab.by_role({"embedding": optax.sgd(1.0), "default": own}, read_names(NESTED, FIRST))
    given = rules_of(tx, NESTED)
    assert given["block_0/Dense_0/kernel"] == given["Dense_0/kernel"] == "matrix"


def test_a_by_role_within_another_keeps_matrix_axes_of_its_own():
    params = {"query": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), "float32")}}
    by_head = functools.partial(read_names, per_head=True)
    orthogonal = {"matrix": optlab.orthogonalize(), "default": optax.identity()}
    alone, whole = optlab.by_role(orthogonal, by_head), optlab.by_role(orthogonal)
    got, want, other = (
        tx.update(params, tx.init(params))[0]["query"]["kernel"]
        for tx in (optlab.by_role({"default": alone}), alone, whole)
    )
    np.testing.assert_array_equal(got, want)
    assert not np.allclose(got, other)


def test_what_cant_be_told_is_an_error_within_roles_of_ones_own():
    tree = {"mixer": {"w": jnp.ones((4, 5, 6))}, "embed": jnp.ones((3, 4))}
    tx = optlab.by_role(
        {"mine": optlab.by_role(RULES), "default": optax.sgd(1.0)},
        read_names(tree, {"mixer/*": "mine", "embed": "head"}),
    )
    with pytest.raises(ValueError, match="don't show by_role what 'mixer/w'"):
        tx.init(tree)


def test_the_state_survives_what_optax_and_flax_do_to_states():
    tx = optlab.by_role({"matrix": optax.trace(0.9), "default": optax.adam(0.1)})
    state = tx.init(PARAMS)
    doubled = optax.tree_map_params(tx, lambda x: 2 * x + 1, state)
    assert (jax.tree.leaves(doubled.rules)[1] == 1).all()
    assert tx.update(PARAMS, doubled, PARAMS)[1].labels.rows == state.labels.rows
    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    assert restored.labels.rows == state.labels.rows
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("rules", "own", "message"),
    [
        ({"matrx": RULES["matrix"]}, None, "by_role knows no role 'matrx': did you mean 'matrix'"),
        (
            {"matrix": RULES["matrix"]},
            None,
            "no rule that moves 'dense/bias': add one for its role 'vector', or a 'default'",
        ),
        (
            {"mime": RULES["matrix"], **RULES},
            {"*": "mine"},
            "knows no role 'mime': did you mean 'mine'",
        ),
        (RULES, {"dense/*": "matrx"}, "knows no role 'matrx': did you mean 'matrix'"),
    ],
)
def test_by_role_refuses(rules, own, message):
    with pytest.raises(ValueError, match=message):
        optlab.by_role(rules, own and read_names(PARAMS, own)).init(PARAMS)


def test_an_unknown_role_is_refused_before_there_are_parameters():
    with pytest.raises(ValueError, match="did you mean 'conv'"):
        optlab.by_role({"convs": RULES["matrix"]})
