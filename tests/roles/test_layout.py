"""`Layout`, and how blocks ask for it: the same answer at init, at update, alone and under by_role."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.roles import Layout, LayoutError, MatrixAxes, layout_around, layout_of, read_names, read_program
from optlab.transforms import scale_by_neuron_rms

PARAMS = {"a": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}, "b": {"kernel": jnp.ones((6, 3))}}
TURNED = MatrixAxes((), (1,), (0,))


def loss(p, x):
    return jnp.sum(jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"][None]) @ p["b"]["kernel"])


LAYOUT = read_program(loss, PARAMS, jnp.ones((2, 4)))


# By path, by value.


def test_it_gives_trees_like_the_parameters():
    assert LAYOUT.roles == {"a": {"kernel": "matrix", "bias": "vector"}, "b": {"kernel": "head"}}
    assert LAYOUT.matrix_axes["a"] == {"kernel": MatrixAxes((), (0,), (1,)), "bias": MatrixAxes()}
    assert (len(LAYOUT), list(LAYOUT)) == (3, ["a/bias", "a/kernel", "b/kernel"])


def test_it_is_static_hashable_and_equal_by_value_in_any_order():
    again = read_program(loss, {"b": PARAMS["b"], "a": PARAMS["a"]}, jnp.ones((2, 4)))
    assert again == LAYOUT
    assert hash(again) == hash(LAYOUT)
    assert Layout(dict(reversed(LAYOUT.readings.items())), LAYOUT.structure) == LAYOUT
    assert LAYOUT.override({"a/kernel": TURNED}) != LAYOUT
    assert jax.tree.leaves(LAYOUT) == []
    assert jax.jit(lambda layout: layout)(LAYOUT) == LAYOUT


def test_some_leaves_in_another_order_masked_or_missing():
    some = {"b": {"kernel": PARAMS["b"]["kernel"]}, "a": {"kernel": optax.MaskedNode(), "bias": None}}
    assert LAYOUT.of(some).roles == {"b": {"kernel": "head"}, "a": {"kernel": optax.MaskedNode(), "bias": None}}


@jax.tree_util.register_pytree_node_class
class Named:
    """A leaf in a wrapper's node, as haliax.NamedArray."""

    def __init__(self, array):
        self.array = array

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Parts(NamedTuple):
    """As optax.contrib.split_real_and_imaginary splits a complex leaf."""

    real: jax.Array
    imaginary: jax.Array


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: jax.tree.map(Named, tree),
        lambda tree: {"params": tree},
        lambda tree: jax.tree.map(lambda x: Parts(x, x), tree),
    ],
)
def test_wrapped_leaves_are_found(wrap):
    found = LAYOUT.of(wrap(PARAMS)).readings
    roles = lambda end: {r.role for path, r in found.items() if end in path}
    assert [roles("a/kernel"), roles("a/bias"), roles("b/kernel")] == [{"matrix"}, {"vector"}, {"head"}]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"kernle": jnp.ones((4, 6))}}, r"no parameter 'a/kernle' of shape \(4, 6\): the nearest .* 'a/kernel'"),
        ({"a": {"kernel": jnp.ones((6, 4))}}, r"'a/kernel' has the shape \(6, 4\), and .* it has \(4, 6\)"),
        (jnp.ones(45), "one array of shape .45,. without a name, as optax.flatten makes: put flatten inside"),
    ],
)
def test_what_it_doesnt_hold_is_refused_by_name(tree, message):
    with pytest.raises(LayoutError, match=message):
        LAYOUT.of(tree)


def test_overrides_by_path_and_pattern():
    given = LAYOUT.override({"b/kernel": "matrix", "*/kernel": ("mine", TURNED)})
    assert (given["b/kernel"].role, given["b/kernel"].axes) == ("matrix", MatrixAxes((), (0,), (1,)))
    assert (given["a/kernel"].role, given["a/kernel"].axes) == ("mine", TURNED)
    with pytest.raises(ValueError, match="override 'a/kernle' matches no parameter: the nearest path is 'a/kernel'"):
        LAYOUT.override({"a/kernle": "matrix"})


def test_a_path_is_exact_even_if_it_looks_like_a_pattern():
    tree = {"[0]": jnp.ones((2, 3)), "0": jnp.ones((2, 3))}
    assert read_names(tree, {"[0]": "vector"}).roles == {"[0]": "vector", "0": "matrix"}


def test_matrices_are_split_on_request():
    tree = {"q": jnp.ones((8, 4, 3)), "o": jnp.ones((4, 3, 8)), "qkv": jnp.ones((8, 18))}
    axes = {"q": MatrixAxes((), (0,), (1, 2)), "o": MatrixAxes((), (0, 1), (2,)), "qkv": MatrixAxes((), (0,), (1,))}
    whole = read_names(tree, axes)
    by_head = whole.split({"q": 4, "qkv": 6}).split({"o": 4}, side="input")
    assert by_head["q"].axes == MatrixAxes((1,), (0,), (2,))
    assert by_head["o"].axes == MatrixAxes((0,), (1,), (2,))
    assert by_head["qkv"].axes == MatrixAxes((1,), (0,), (2,), (8, 6, 3))
    with pytest.raises(ValueError, match=r"'qkv' of shape \(8, 18\) has no output that is 5 equal parts long"):
        whole.split({"qkv": 5})


def test_it_prints_as_a_table():
    lines = str(LAYOUT).splitlines()
    assert lines[0].split() == ["parameter", "shape", "role", "stack", "input", "output"]
    assert lines[2].split() == ["a/kernel", "4×6", "matrix", "4", "6", "input", "layer"]


def test_an_error_names_the_pattern_over_layers_and_the_program_first():
    tree = {f"layers_{i}": {"proj": {"kernel": jnp.ones((2, 3, 4, 5))}} for i in range(3)} | {"x": jnp.ones((2, 3, 4))}
    with pytest.raises(
        LayoutError, match=r"'layers_\*/proj/kernel' of shape .* and 1 more\. Pass the program: layout="
    ):
        optlab.roles.roles(tree)


# The one way to ask.


def test_it_is_asked_for_by_extra_argument_then_around_then_names():
    turned = LAYOUT.override({"a/kernel": TURNED})
    assert layout_of(PARAMS) == read_names(PARAMS)
    with LAYOUT:
        assert layout_of(PARAMS) == LAYOUT
        assert layout_of(PARAMS, {"layout": turned}) == turned
        with turned:
            assert layout_of(PARAMS) == turned
        assert layout_of(PARAMS) == LAYOUT
    assert layout_of(PARAMS) == read_names(PARAMS)


def test_a_layout_for_want_of_another_is_read_once_or_never():
    reads = []
    read = lambda: reads.append(1) or LAYOUT
    with layout_around(read):
        assert not reads
        assert layout_of(PARAMS) == layout_of(PARAMS) == LAYOUT
        assert len(reads) == 1
    turned = LAYOUT.override({"a/kernel": TURNED})
    with turned, layout_around(read):
        assert layout_of(PARAMS) == turned
    with layout_around(lambda: turned), layout_around(read):
        assert layout_of(PARAMS) == LAYOUT


def test_names_count_for_what_the_program_doesnt_use():
    params = PARAMS | {"aside": {"kernel": jnp.ones((5, 7))}}
    layout = read_program(loss, params, jnp.ones((2, 4)))
    assert layout["aside/kernel"].role is None
    with layout:
        assert layout_of(params)["aside/kernel"].role == "matrix"


SVD = {"matrix": optlab.orthogonalize("svd"), "head": optlab.orthogonalize("svd"), "default": optax.identity()}


@pytest.mark.parametrize("way", ["argument", "around", "function", "update"])
def test_by_role_takes_a_layout(way):
    params = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype="float32")).reshape(x.shape), PARAMS)
    tx = optlab.by_role(SVD, {"argument": LAYOUT, "function": lambda _: LAYOUT}.get(way))
    extra = {"layout": LAYOUT} if way == "update" else {}
    with LAYOUT if way in ("around", "update") else read_names(PARAMS):
        updates, state = tx.update(params, tx.init(params), params, **extra)
    assert [role for _, role, _ in state.labels.rows] == ["vector", "matrix", "head"]
    assert float(jnp.linalg.norm(updates["b"]["kernel"], 2)) == pytest.approx(1, abs=1e-5)


def test_a_rule_for_input_layers():
    tx = optlab.by_role({"input": optax.scale(5.0), "matrix": optax.scale(3.0), "default": optax.scale(2.0)}, LAYOUT)
    assert tx.init(PARAMS).labels.rows[1] == ("a/kernel", "matrix", "input")


def test_by_role_refuses_what_is_no_layout():
    with pytest.raises(ValueError, match=r"layout must be an optlab.roles.Layout, or a function .* got 'matrix'"):
        optlab.muon(0.1, layout="matrix")
    with pytest.raises(ValueError, match=r"layout must give an optlab.roles.Layout of the parameters, got"):
        optlab.muon(0.1, layout=lambda params: params).init(PARAMS)


# The five faults that this ends.


def test_a_block_sees_the_same_at_init_at_update_and_alone():
    """scale_by_neuron_rms initialized along (out, in) by the name "weight", and refused its first update."""
    params = {"weight": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), "float32")}
    tx = scale_by_neuron_rms()
    alone = tx.update(params, tx.init(params), params)[0]
    within = optlab.by_role({"matrix": tx})
    under = within.update(params, within.init(params), params)[0]
    np.testing.assert_array_equal(alone["weight"], under["weight"])
    kernels = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}}
    tx.update(kernels, tx.init(kernels), kernels)


def test_a_factor_of_the_shape_is_the_same_alone_and_under_by_role():
    params = {"weight": jnp.ones((16, 4))}  # (out, in)
    tx = optlab.scale_by_matrix_shape("spectral")
    within = optlab.by_role({"matrix": tx})
    assert float(tx.update(params, tx.init(params))[0]["weight"][0, 0]) == 2
    assert float(within.update(params, within.init(params))[0]["weight"][0, 0]) == 2


@pytest.mark.parametrize(
    "around", [lambda tx: tx, lambda tx: optlab.by_role({"matrix": tx, "default": optax.sgd(1.0)})]
)
def test_a_flattened_muon_is_refused_by_name(around):
    with pytest.raises(LayoutError, match=r"optax\.flatten ma.*put flatten inside"):
        around(optax.flatten(optlab.muon(0.1))).init(PARAMS)


def test_roles_on_a_flattened_tree_decay_all_of_it_and_say_so():
    tx, zero = optax.flatten(optlab.decay_weights(0.5, roles=["matrix"])), jax.tree.map(jnp.zeros_like, PARAMS)
    with pytest.warns(UserWarning, match="it decays whole"):
        updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    assert {float(x.ravel()[0]) for x in jax.tree.leaves(updates)} == {0.5}


@pytest.mark.parametrize("override", [{"b/kernel": "matrix"}, {"a/kernel": TURNED}])
def test_a_state_made_under_another_layout_is_refused_by_name(override):
    rules = {"matrix": optax.sgd(1.0), "default": optax.sgd(2.0)}
    old, new = optlab.by_role(rules, LAYOUT), optlab.by_role(rules, LAYOUT.override(override))
    (path,) = override
    update = jax.jit(lambda state, layout: optlab.by_role(rules, layout).update(PARAMS, state, PARAMS))
    update(old.init(PARAMS), LAYOUT)
    for refused in (lambda: new.update(PARAMS, old.init(PARAMS), PARAMS), lambda: update(new.init(PARAMS), LAYOUT)):
        with pytest.raises(LayoutError, match=f"state was made under another layout: '{path}' was"):
            refused()


def test_labels_are_equal_to_their_equals_only():
    states = [optlab.by_role(SVD, LAYOUT.override({"a/kernel": role})).init(PARAMS) for role in ("matrix", "head")]
    empty = optlab.by_role(SVD).init({})
    labels = [state.labels for state in (*states, empty)]
    assert all((a == b) == (i == j) for i, a in enumerate(labels) for j, b in enumerate(labels))
    assert len({jax.tree.structure(x) for x in labels}) == 3


@pytest.mark.parametrize(
    "grads", [{"a": {"kernel": jnp.ones((4, 6)), "bias": None}, "b": PARAMS["b"]}, {"a": PARAMS["a"]}]
)
def test_other_leaves_than_the_states_are_named(grads):
    tx = optlab.muon(0.1)
    missing = "a/bias" if "b" in grads else "b/kernel"
    with pytest.raises(LayoutError, match=f"the state was made for '{missing}' too"):
        tx.update(grads, tx.init(PARAMS))


def test_optaxs_walks_pass_over_what_is_noted():
    tx = optax.inject_hyperparams(optlab.muon)(learning_rate=0.1)
    state = optax.tree_utils.tree_set(tx.init(PARAMS), learning_rate=0.5)
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == 0.5
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    ranks = jax.tree.map(lambda x: x.ndim, PARAMS)
    specs = optax.tree_map_params(tx, lambda _, spec: spec, state, ranks, is_leaf=is_masked)
    assert jax.tree.leaves(specs)


# Where the program is at hand.


def test_train_reads_the_program(tmp_path):
    """Names alone would move a matrix that is called "embedding" by AdamW."""
    from optlab.training import Workload, train

    workload = Workload.digits()

    def init(key):
        params, model_state = workload.init(key)
        return {
            "embedding": params["hidden_0"],
            "rest": {k: v for k, v in params.items() if k != "hidden_0"},
        }, model_state

    def renamed(params, *rest):
        return workload.loss({**params["rest"], "hidden_0": params["embedding"]}, *rest)

    mine = Workload("mine", workload.data, init, renamed)
    assert mine.layout()["embedding/kernel"].role == "matrix"
    assert read_names(jax.eval_shape(init, jax.random.key(0))[0])["embedding/kernel"].role == "embedding"
    labels = lambda history: next(
        x
        for x in jax.tree.leaves(history.state.opt_state, is_leaf=lambda x: isinstance(x, optlab.roles.Labels))
        if isinstance(x, optlab.roles.Labels)
    )
    history = train(mine, optlab.muon(1e-3), steps=1)
    assert ("embedding/kernel", "matrix", "matrix") in labels(history).rows
    with mine.layout().override({"embedding/kernel": "embedding"}):
        history = train(mine, optlab.muon(1e-3), steps=1)
    assert ("embedding/kernel", "embedding", "default") in labels(history).rows


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (MatrixAxes((), (0,), (3,)), "must name each of the axes 0 to 1"),
        (MatrixAxes((0,), (0,), (1,)), "must name each of the axes 0 to 1"),
        (MatrixAxes((), (0,), (1,), (4, 5)), "the view has another number of elements"),
        (None, "must be a role, MatrixAxes"),
        (("matrix", MatrixAxes((), (0,), (1,)), 3), "must be a role, MatrixAxes"),
        (("matrix", "rows"), "must be a role, MatrixAxes"),
    ],
)
def test_an_override_that_cant_be_is_named(by, says):
    layout = read_names({"dense": {"kernel": jnp.ones((4, 8))}})
    with pytest.raises(ValueError, match=rf"dense/kernel: .*{says}"):
        layout.override({"dense/kernel": by})
