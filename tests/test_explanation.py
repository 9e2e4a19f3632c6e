"""What `optlab._explanation.explain` reads from a state's shapes."""

import functools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab._explanation import COLUMNS, explain
from optlab.roles import MatrixAxes, read_names
from optlab.transforms.matrices import on_matrices


def shapes(tree, dtype="float32"):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, dtype), tree, is_leaf=lambda x: type(x) is tuple)


PARAMS = shapes(
    {
        "embedding": {"embedding": (96, 12)},
        "blocks": {
            "norm": {"scale": (5, 12)},
            "attention": {"query": {"kernel": (5, 12, 3, 4)}, "out": {"kernel": (5, 3, 4, 12)}},
            "up": {"kernel": (5, 12, 48), "bias": (5, 48)},
        },
        "conv": {"kernel": (3, 3, 3, 8)},
        "head": {"kernel": (12, 96)},
    }
)
RULES = {
    "embedding/embedding": ("embedding", "default", None),
    "blocks/norm/scale": ("vector", "default", None),
    "blocks/attention/query/kernel": ("matrix", "matrix", (5, 12, 12)),
    "blocks/attention/out/kernel": ("matrix", "matrix", (5, 12, 12)),
    "blocks/up/kernel": ("matrix", "matrix", (5, 12, 48)),
    "blocks/up/bias": ("vector", "default", None),
    "conv/kernel": ("conv", "conv", (1, 27, 8)),
    "head/kernel": ("head", "default", None),
}


def bytes_of(tx, params=PARAMS):
    state = jax.eval_shape(tx.init, params)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def by_path(found):
    return {row.path: row for row in found.rows}


def moved(found):
    return {row.path: (row.role, row.rule, row.matrices) for row in found.rows}


def hidden(momentum=True):
    return optax.chain(*[optlab.momentum(0.9)] * momentum, optlab.orthogonalize(), optax.scale(-1e-3))


def test_a_row_for_every_parameter():
    found = explain(optlab.muon(1e-3), PARAMS)
    assert moved(found) == RULES
    assert [row.rule for row in found.rows] == ["matrix"] * 3 + ["conv"] + ["default"] * 4  # most work first
    rows = by_path(found)
    assert rows["blocks/up/kernel"].state_bytes == 4 * 5 * 12 * 48  # a momentum
    assert rows["head/kernel"].state_bytes == 8 * 12 * 96  # Adam's two
    assert rows["head/kernel"].shape == (12, 96)
    assert not any(row.is_said for row in found.rows)


def test_the_work_is_the_plans():
    found = explain(optlab.muon(1e-3), PARAMS, devices=8)
    (name, plan), (other, of_conv) = found.plans
    assert {name, other} == {"matrix", "conv"}
    if name == "conv":
        plan, of_conv = of_conv, plan
    (squares, wide), rows = (works.cpu for works in plan.works), by_path(found)
    assert plan.groups[0].shape == (12, 12)
    assert rows["blocks/attention/query/kernel"].flops == rows["blocks/attention/out/kernel"].flops == 5 * squares.flops
    assert rows["blocks/up/kernel"].flops == 5 * wide.flops
    assert found.flops == sum(row.flops for row in found.rows) == plan.flops + of_conv.flops
    # Ten squares on eight devices are two for the busiest, and five others are one.
    assert found.flops_per_device == 2 * squares.flops + wide.flops + of_conv.flops
    assert explain(optlab.muon(1e-3), PARAMS, devices={"x": 4, "y": 2}).flops_per_device == found.flops_per_device
    assert explain(optlab.muon(1e-3), PARAMS).flops_per_device == found.flops


def test_axes_of_ones_own_are_seen():
    heads = functools.partial(read_names, per_head=True)
    tx = optlab.by_role({"matrix": hidden(), "default": optax.sgd(0.1)}, heads)
    rows = by_path(explain(tx, PARAMS))
    assert rows["blocks/attention/query/kernel"].matrices == (15, 12, 4)
    assert rows["blocks/attention/out/kernel"].matrices == (15, 4, 12)
    assert rows["blocks/up/kernel"].matrices == (5, 12, 48)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.chain(tx, optax.ema(0.9)),
        lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(0.5),
        lambda tx: optax.partition({"all": tx}, lambda params: jax.tree.map(lambda _: "all", params)),
    ],
    ids=["MultiSteps", "clip", "ema", "masked", "apply_if_finite", "inject_hyperparams", "partition"],
)
def test_by_role_is_found_wherever_it_stands(wrap):
    tx = wrap(optlab.muon(1e-3))
    found = explain(tx, PARAMS)
    rules = {row.path: row.rule.removeprefix("all/") for row in found.rows}
    assert rules == {path: key for path, (_, key, _) in RULES.items()}
    assert found.state_bytes == bytes_of(tx)
    assert found.untraced is None
    plain = by_path(explain(optlab.muon(1e-3), PARAMS))
    extra = 4 if isinstance(tx, optax.MultiSteps) else 0  # the sum of the gradients
    for row in found.rows:
        assert row.state_bytes >= plain[row.path].state_bytes + extra * math.prod(row.shape)
        assert row.flops == plain[row.path].flops


@pytest.mark.parametrize(
    "tx",
    [
        optlab.adamw(1e-3),
        optax.adamw(1e-3),
        optax.lbfgs(),
        optax.sgd(0.1),
        optax.adafactor(1e-3),
        optax.noisy_sgd(0.1, key=0),
    ],
    ids=["adamw", "optax.adamw", "lbfgs", "sgd", "adafactor", "noisy_sgd"],
)
def test_what_cant_be_seen_is_opaque(tx):
    found = explain(tx, PARAMS)
    assert {row.rule for row in found.rows} == {"(opaque)"}
    assert {row.path: row.role for row in found.rows} == {path: role for path, (role, _, _) in RULES.items()}
    assert found.state_bytes == bytes_of(tx)
    assert not found.plans
    assert found.untraced is None
    assert "can't be seen" in str(found)
    assert "matrices of the rule" not in str(found)


@pytest.mark.parametrize("whole", [optlab.muon(1e-3), optax.sgd(0.1)], ids=["muon", "without state"])
def test_what_is_frozen_is_named(whole):
    rules = {row.path: row.rule for row in explain(optlab.freeze(whole, ["blocks/*"]), PARAMS).rows}
    assert {path for path, rule in rules.items() if rule == "(frozen)"} == {p for p in rules if p.startswith("blocks/")}


@pytest.mark.parametrize(("tx", "each"), [(optax.adamw(1e-3), 8), (optax.lbfgs(memory_size=7), 4 * (2 * 7 + 3))])
def test_state_bytes_of_opaque_rules_by_their_paths(tx, each):
    """L-BFGS keeps differences of seven parameters and gradients, the last of both, and a line search's gradient."""
    for row in explain(tx, PARAMS).rows:
        assert row.state_bytes == each * math.prod(row.shape), row.path


def test_optaxs_muon_is_opaque_but_its_partition_shows():
    tx = optax.contrib.muon(1e-3)
    found = explain(tx, PARAMS)
    rules = {row.path: row.rule for row in found.rows}
    assert rules["embedding/embedding"] == rules["blocks/norm/scale"] == "muon (opaque)"
    assert rules["blocks/up/kernel"] == rules["conv/kernel"] == "adam (opaque)"
    assert found.state_bytes == bytes_of(tx)


@pytest.mark.parametrize(
    ("name", "arguments", "wrong", "count"),
    [
        ("transformer", {"scan": True}, 19, 21),
        ("transformer", {}, 3, 37),
        ("vision_transformer", {"scan": True}, 19, 23),
        ("resnet20", {}, 22, 65),
    ],
)
def test_how_many_parameters_optaxs_muon_routes_otherwise(name, arguments, wrong, count):
    """Hidden matrices and convolutions to Muon, the rest to Adam: as the README tells it, for our own models."""
    models = pytest.importorskip("optlab.models")
    tokens = name == "transformer"
    sizes = {"width": 16, "heads": 2, "depth": 2} if "transformer" in name else {}
    sizes |= {"vocabulary": 64, "tied": False} if tokens else {"outputs": 10}
    inputs = jnp.zeros((1, 4), int) if tokens else jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(getattr(models, name)(**sizes, **arguments).init, jax.random.key(0), inputs)["params"]
    is_muons = lambda row: row.rule.startswith("muon")
    theirs = explain(optax.contrib.muon(1e-3), params).rows
    assert sum(is_muons(row) != (row.role in ("matrix", "conv")) for row in theirs) == wrong
    ours = explain(optlab.muon(1e-3), params).rows
    assert all(bool(row.flops) == (row.role in ("matrix", "conv")) for row in ours)
    assert len(ours) == len(theirs) == count


def test_what_was_said_is_marked():
    said = functools.partial(read_names, overrides={"head/*": "matrix", "conv/kernel": "vector"})
    found = explain(optlab.by_role({"matrix": hidden(), "default": optax.adam(0.1)}, said), PARAMS)
    rows = by_path(found)
    assert {row.path for row in found.rows if row.is_said} == {"head/kernel", "conv/kernel"}
    assert (rows["head/kernel"].role, rows["head/kernel"].guess, rows["head/kernel"].rule) == (
        "matrix",
        "head",
        "matrix",
    )
    assert rows["head/kernel"].matrices == (1, 12, 96)
    assert rows["head/kernel"].cells()[2] == "matrix*"
    assert "conv/kernel (conv)" in found.summary()
    assert "head/kernel (head)" in found.summary()


def test_what_cant_be_told_but_was_said():
    params = shapes({"mixer": (4, 5, 6)})
    said = functools.partial(read_names, overrides={"mixer": MatrixAxes((0,), (1,), (2,))})
    found = explain(optlab.by_role({"matrix": hidden()}, said), params)
    (row,) = found.rows
    assert (row.role, row.guess, row.matrices) == ("matrix", None, (4, 5, 6))
    assert "mixer (nothing)" in found.summary()
    (row,) = explain(optax.sgd(0.1), params).rows
    assert (row.role, row.rule, row.is_said) == (None, "(opaque)", False)
    assert row.cells()[2] == "?"


def test_a_rule_inside_a_rule():
    inner = optlab.by_role({"embedding": optax.adam(0.1), "default": optax.sgd(0.1, momentum=0.9)})
    found = explain(optlab.by_role({"matrix": hidden(), "conv": hidden(), "default": inner}), PARAMS)
    rules = {row.path: row.rule for row in found.rows}
    assert rules["embedding/embedding"] == "default/embedding"
    assert rules["head/kernel"] == "default/default"
    assert rules["conv/kernel"] == "conv"
    assert by_path(found)["embedding/embedding"].state_bytes == 8 * 96 * 12


def test_a_rule_inside_a_rule_sees_the_outer_ones_axes():
    """Alone the query's kernel says (width, heads, head width): its neighbours show the stack."""
    params = shapes({"blocks": {"query": {"kernel": (4, 12, 12)}, "norm": {"scale": (4, 12)}}})
    inner = optlab.by_role({"matrix": hidden()})
    rows = by_path(explain(optlab.by_role({"matrix": inner, "default": optax.sgd(0.1)}), params))
    assert rows["blocks/query/kernel"].matrices == (4, 12, 12)


def test_two_by_roles_in_a_row():
    decay = optlab.by_role({"matrix": optax.add_decayed_weights(0.1), "default": optax.identity()})
    found = explain(optax.chain(decay, optlab.by_role({"matrix": hidden(), "default": optax.identity()})), PARAMS)
    assert by_path(found)["blocks/up/kernel"].rule == "matrix + matrix"
    assert by_path(found)["conv/kernel"].rule == "default + default"
    assert found.flops > 0


def test_a_partition_and_a_by_role_in_a_row():
    """The partition can't tell how a leaf of rank 3 is a matrix; by_role can."""
    everything = lambda params: jax.tree.map(lambda _: "all", params)
    by_role = optlab.by_role({"matrix": hidden(), "conv": hidden(), "default": optax.identity()})
    rows = by_path(explain(optax.chain(optax.partition({"all": optax.trace(0.9)}, everything), by_role), PARAMS))
    assert rows["blocks/up/kernel"].rule == "all (opaque) + matrix"
    assert rows["blocks/up/kernel"].matrices == (5, 12, 48)


def test_one_name_at_two_depths():
    params = shapes({"kernel": (3, 4), "dense": {"kernel": (5, 6)}})
    assert {row.path: row.state_bytes for row in explain(optax.trace(0.9), params).rows} == {
        "kernel": 48,
        "dense/kernel": 120,
    }


MATRICES = shapes({"a": (4, 6), "b": (6, 8)})


def test_orthogonalize_without_by_role():
    found = explain(hidden(), MATRICES)
    assert {(row.rule, row.matrices) for row in found.rows} == {("(opaque)", (1, 4, 6)), ("(opaque)", (1, 6, 8))}
    assert found.untraced is None
    assert found.flops == sum(row.flops for row in found.rows) > 0
    labels = {"a": "moved", "b": "still"}
    found = explain(optax.partition({"moved": hidden(), "still": optax.set_to_zero()}, labels), MATRICES)
    assert {row.path: (row.rule, row.matrices) for row in found.rows} == {
        "a": ("moved (opaque)", (1, 4, 6)),
        "b": ("(frozen)", None),
    }


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(hidden(), {"a": True, "b": False}),
        optax.chain(optlab.orthogonalize(), optlab.by_role({"default": optax.sgd(0.1)})),
        optax.partition({"m": optlab.orthogonalize(), "n": optax.sgd(0.1)}, {"a": "m", "b": "n"}),
        optlab.by_role({"matrix": optax.chain(hidden(), optlab.by_role({"default": optax.sgd(0.1)}))}),
    ],
    ids=["masked", "beside by_role", "partition", "around by_role"],
)
def test_whatever_an_update_does_with_matrices_is_counted(tx):
    alone = explain(hidden(), MATRICES)
    found, expected = by_path(explain(tx, MATRICES)), by_path(alone)
    assert found["a"].flops == expected["a"].flops > 0
    assert found["b"].flops in (0, expected["b"].flops)


def test_a_block_of_ones_own_is_counted():
    """By the products of its function, once however often it is traced."""
    gram = lambda X: (X @ X.mT) @ X
    mine = optax.stateless(lambda updates, params: on_matrices(gram, updates))
    for tx in (mine, optax.MultiSteps(mine, 2), optax.apply_if_finite(mine, 3)):
        found = explain(tx, {"w": jax.ShapeDtypeStruct((4, 6), "float32")})
        (_, plan), (row,) = found.plans[0], found.rows
        assert row.flops == plan.flops == 4 * 4 * 4 * 6
        assert (row.matrices, plan.works[0].cpu.form) == ((1, 4, 6), "<lambda>")


def test_a_scan_counts_every_turn_and_a_cond_the_dearest_branch():
    def f(X):
        X = jax.lax.scan(lambda X, _: (X @ X, None), X, None, 3)[0]
        return jax.lax.cond(X[0, 0, 0] > 0, lambda X: X @ X @ X, lambda X: jnp.linalg.eigh(X)[1], X)

    params = {"w": jax.ShapeDtypeStruct((5, 5), "float32")}
    found = explain(optax.stateless(lambda updates, params: on_matrices(f, updates)), params)
    assert found.flops == 3 * 2 * 5**3 + 9 * 5**3


def test_an_axis_that_only_the_step_has_needs_not_be_there():
    tx = optlab.orthogonalize(axis_name="data")
    assert explain(tx, MATRICES).flops == explain(optlab.orthogonalize(), MATRICES).flops


def test_what_cant_be_traced_is_said():
    def update(updates, state, params=None, *, obj_fn, **extra_args):
        return updates, state

    found = explain(optax.GradientTransformationExtraArgs(optax.init_empty_state, update), PARAMS)
    assert "obj_fn" in found.untraced
    assert "aren't counted: an update can't be traced from shapes" in str(found)


def test_every_byte_is_somebodys():
    for tx in (optlab.muon(1e-3), optax.adafactor(1e-3), optax.lbfgs(), optax.noisy_sgd(0.1, key=0)):
        found = explain(tx, PARAMS)
        of_none = found.state_bytes - sum(row.state_bytes for row in found.rows)
        assert 0 <= of_none < 2000, tx
    adam = explain(optax.adam(0.1), PARAMS)
    assert adam.state_bytes - sum(row.state_bytes for row in adam.rows) == 4  # the count


@pytest.mark.parametrize(
    ("params", "path"),
    [
        (jnp.ones((3, 4)), ""),
        ([jnp.ones((3, 4)), jnp.ones(())], "0"),
        ((jnp.ones((3, 4)), {}), "0"),
        (nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param), "kernel"),
        ({"count": jnp.ones((3, 4))}, "count"),
    ],
    ids=["array", "list", "tuple", "nnx.State", "a name of optax's"],
)
def test_trees_of_any_kind(params, path):
    found = explain(
        optax.chain(optax.adam(0.1), optlab.by_role({"matrix": hidden(), "default": optax.identity()})), params
    )
    row = by_path(found)[path]
    assert (row.state_bytes, row.rule, row.matrices) == (12 * 12, "matrix", (1, 3, 4))


def test_no_parameters_and_no_state():
    assert explain(optax.sgd(0.1), {}).rows == ()
    assert "no bytes" in str(explain(optax.sgd(0.1), PARAMS))
    str(explain(optlab.muon(1e-3), {}))


def test_bfloat16_and_its_plan():
    params = shapes({"up": {"kernel": (8, 32)}}, "bfloat16")
    found = explain(optlab.by_role({"matrix": hidden()}), params)
    assert found.rows[0].state_bytes == 2 * 8 * 32
    assert found.plans[0][1].groups[0].dtype == "bfloat16"


def test_a_sharded_state_is_less_on_each_device():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    place = lambda shape, *spec: jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(*spec)))
    with jax.set_mesh(mesh):
        found = explain(optax.trace(0.9), {"a": place((8, 4), "x"), "b": place((4, 4))}, devices=mesh.shape)
    assert found.state_bytes == 4 * (32 + 16)
    assert found.state_bytes_per_device == 4 * (8 + 16)


def test_it_can_be_printed():
    text = str(explain(optlab.muon(1e-3), PARAMS, devices=8))
    lines = text.splitlines()
    assert lines[0].split() == list(COLUMNS)
    cells = next(line for line in lines if line.startswith("blocks/up/kernel")).split()
    assert cells[:7] == ["blocks/up/kernel", "5×12×48", "matrix", "matrix", "5", "of", "12×48"]
    assert cells[7:9] == ["11.25", "KiB"]
    assert any(line.split()[:2] == ["default", "4"] and "1 embedding, 1 head" in line for line in lines)
    total = next(line for line in lines if line.startswith("all"))
    assert total.split()[1:3] == ["8", f"{sum(math.prod(x.shape) for x in jax.tree.leaves(PARAMS)):,}"]
    assert "Each of 8 devices: " in text
    assert "The matrices of the rule 'matrix' are done by this plan:\nmatrices  shape" in text
    assert "*" not in text
    assert "One device: " in str(explain(optlab.muon(1e-3), PARAMS))


@pytest.mark.parametrize("devices", [0, 2.5, {"x": 4, "y": 0}])
def test_less_than_one_device_is_refused(devices):
    with pytest.raises(ValueError, match=rf"devices must be whole .* mesh\.shape, got {re.escape(str(devices))}"):
        explain(optax.sgd(0.1), PARAMS, devices=devices)


def test_a_factory_is_no_transformation():
    with pytest.raises(TypeError, match=r"explain takes a transformation, got muon: .* must be called"):
        explain(optlab.muon, PARAMS)


def test_what_update_would_refuse_is_refused():
    said = functools.partial(read_names, overrides={"blocks/up/bias": "matrix"})
    with pytest.raises(
        ValueError, match=r"orthogonalize moves matrices, and 'blocks/up/bias' of shape \(5, 48\) isn't one"
    ):
        explain(optlab.by_role({"matrix": hidden(), "default": optax.sgd(0.1)}, said), PARAMS)
    with pytest.raises(ValueError, match="don't show by_role what 'mixer'"):
        explain(optlab.muon(0.1), shapes({"mixer": (4, 5, 6)}))


def test_it_needs_jax_and_optax_alone():
    code = "import sys, optlab._explanation; print(*{'flax', 'orbax', 'chex', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
