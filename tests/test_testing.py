"""The kit catches what it is there for: planted bugs, each by name, and nothing in transforms that are right."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import optlab
from optlab import testing
from optlab.testing import CHECKS, ContractError, check_transform
from optlab.testing._case import Case
from optlab.testing._report import Skipped


def scale(c, tree):
    """c · tree, in the tree's dtypes."""
    return jax.tree.map(lambda x: jnp.asarray(c * x, x.dtype), tree)


def stateless(update):
    """A transform from a function of gradients and parameters."""
    return stateful(lambda params: optax.EmptyState(), lambda g, state, params: (update(g, params), state))


def stateful(init, update):
    return optax.GradientTransformation(init, lambda g, state, params=None: update(g, state, params))


# The fifteen of the contract. Each is SGD or momentum or Adam with one thing wrong.


def state_dtype_drifts():
    """Momentum is computed in float32, and stays there."""

    def update(g, m, params):
        m = jax.tree.map(lambda m, g: 0.9 * m.astype("float32") + g, m, g)
        return jax.tree.map(lambda m, g: m.astype(g.dtype), m, g), m

    return stateful(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def params_ignored(learning_rate, weight_decay=0.1):
    return stateless(lambda g, params: scale(-learning_rate, g))


def decays_if_it_can(learning_rate, weight_decay=0.1):
    """Without parameters it goes on without decay."""
    decay = lambda g, p: -learning_rate * (g + weight_decay * p)
    return stateless(lambda g, params: scale(-learning_rate, g) if params is None else jax.tree.map(decay, g, params))


def python_counter():
    calls = []

    def update(g, params):
        calls.append(None)
        return scale(1 / len(calls), g)

    return stateless(update)


def first_call_flag():
    """Momentum that its first call starts from the gradient, whichever call that is."""
    is_first = [True]

    def update(g, m, params):
        m, is_first[0] = (g if is_first[0] else m), False
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        return m, m

    return stateful(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def counted_warmup():
    """Full steps from the second call on: the counter is there, and no longer seen."""
    calls = []

    def update(g, params):
        calls.append(None)
        return scale(min(1.0, len(calls) / 2), g)

    return stateless(update)


def update_cast_to_float32():
    return stateless(lambda g, params: jax.tree.map(lambda x: -0.1 * x.astype("float32"), g))


def nan_on_zero_gradients():
    return stateless(lambda g, params: jax.tree.map(lambda x: x / jnp.abs(x), g))


def adam(b2, power=0, wide=True):
    """Adam without momentum; the bias correction's power is t + `power`, and `wide` keeps v in float32."""
    wide_dtype = lambda x: jnp.float32 if wide else x.dtype

    def init(params):
        return jnp.zeros([], jnp.int32), jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), params)

    def update(g, state, params):
        t, v = state[0] + 1, jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g.astype(v.dtype) ** 2, state[1], g)
        unbiased = lambda v: v / (1 - jnp.asarray(b2, v.dtype) ** (t + power)).astype(v.dtype)
        return jax.tree.map(lambda g, v: (g / (jnp.sqrt(unbiased(v)) + 1e-6)).astype(g.dtype), g, v), (t, v)

    return stateful(init, update)


def state_grows():
    return stateful(lambda params: (), lambda g, state, params: (g, (*state, jnp.zeros([]))))


@jax.tree_util.register_static
class Count(NamedTuple):
    count: int = 0


def recompiles_each_step():
    """The count is a static part of the state."""
    update = lambda g, state, params: (scale(1 / (1 + state.count), g), Count(state.count + 1))
    return stateful(lambda params: Count(), update)


def mutates_its_input():
    def update(g, params):
        if isinstance(g, dict):
            for name in g:
                g[name] = scale(-0.1, g[name])
            return g
        return scale(-0.1, g)

    return stateless(update)


def breaks_on_an_empty_tree():
    largest = lambda g: functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(g)])
    return stateless(lambda g, params: scale(1 / (largest(g).astype("float32") + 1e-3), g))


def breaks_on_a_list_tree():
    return stateless(lambda g, params: {name: scale(-0.1, x) for name, x in g.items()})


def hard_coded_axis_name():
    return stateless(lambda g, params: lax.pmean(g, "batch"))


def guessed_axis_name(name="batch"):
    """The mean along an axis of that name, if there is one: a population of models then mixes."""

    def update(g, params):
        try:
            return lax.pmean(g, name)
        except NameError:
            return g

    return stateless(update)


def nan_on_zero_parameters():
    """Relative to every entry, and back."""
    return stateless(lambda g, params: jax.tree.map(lambda g, p: g / jnp.abs(p) * jnp.abs(p), g, params))


def depends_on_sharding():
    """A thousandth more for every axis of the array that is sharded."""
    sharded = lambda x: sum(name is not None for name in jax.typeof(x).sharding.spec)
    return stateless(lambda g, params: jax.tree.map(lambda x: x * (1 + 1e-3 * sharded(x)), g))


def depends_on_the_ambient_mesh():
    return stateless(lambda g, params: scale(1.0 if jax.sharding.get_abstract_mesh().empty else 0.5, g))


def lost_on_a_round_trip():
    """Two leaves have the same path: the second overwrites the first when they are saved by name."""

    def update(g, state, params):
        total = state["m/old"] + 1
        return scale(1 / total, g), {"m/old": total, "m": {"old": state["m"]["old"] + 2}}

    return stateful(lambda params: {"m/old": jnp.zeros([]), "m": {"old": jnp.zeros([])}}, update)


# What else can go wrong: with these every check has something that it catches.


def needs_all_leaves():
    def update(g, params):
        _, kernel, _ = jax.tree.leaves(g)
        return scale(1 / (1 + jnp.max(jnp.abs(kernel))), g)

    return stateless(update)


def decides_by_values():
    return stateless(lambda g, params: g if jnp.sum(jax.tree.leaves(g)[0]) > 0 else scale(0.5, g))


def weak_type_drifts():
    return stateful(lambda params: jnp.asarray(0.0), lambda g, count, params: (g, count + jnp.ones([])))


def count_becomes_a_float():
    return stateful(lambda params: jnp.zeros([], int), lambda g, count, params: (g, count + 1.0))


def without_batching():
    halve = lambda x: jax.pure_callback(
        lambda x: np.asarray(0.5 * x, x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x
    )
    return stateless(lambda g, params: jax.tree.map(halve, g))


class Overridden(optax.GradientTransformationExtraArgs):
    """Its update isn't the tuple's, and the tuple's is what optax.chain takes."""

    update = property(lambda self: lambda g, state, params=None, **extra_args: (scale(0.5, g), state))


def strict_about_extra_args():
    update = lambda g, state, params=None, *, value, grad, value_fn: (g, state)
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def takes_pythons_numbers(learning_rate):
    rate = float(learning_rate)
    return stateless(lambda g, params: scale(-rate, g))


def rate_widens(learning_rate):
    return stateless(lambda g, params: jax.tree.map(lambda x: -learning_rate * x, g))


def knows_a_name():
    return stateless(lambda g, params: scale(0.5 if "dense" in g else 1.0, g))


def tuples_are_leaves():
    halve = lambda x: 0.5 * x
    return stateless(lambda g, params: jax.tree.map(halve, g, is_leaf=lambda x: isinstance(x, tuple)))


def dicts_only():
    plain = lambda x: {name: plain(y) for name, y in x.items()} if hasattr(x, "items") else x
    return stateless(lambda g, params: plain(g))


def keeps_the_parameters():
    return stateful(lambda params: params, lambda g, start, params: (g, start))


def gives_its_own_array_away():
    start = jnp.ones([])
    return stateful(lambda params: start, lambda g, c, params: (scale(c, g), c))


def mean_over_manual_axes():
    def update(g, params):
        axes = jax.sharding.get_abstract_mesh().manual_axes
        return lax.pmean(g, axes) if axes else g

    return stateless(update)


PLANTED = {  # what is wrong: the transform, the check that names it, and checks that fail as a consequence
    "state dtype drifts": (state_dtype_drifts(), "state_keeps_dtypes", ""),
    "params ignored when decay needs them": (params_ignored, "weight_decay", ""),
    "Python counter in the closure": (python_counter(), "pure", ""),
    "update cast to float32": (update_cast_to_float32(), "updates_keep_dtypes", ""),
    "NaN on zero gradients": (nan_on_zero_gradients(), "zero_gradients", ""),
    "b2 rounded to 1": (adam(0.999, wide=False), "bfloat16", "float16 zero_gradients"),
    "wrong bias-correction exponent": (adam(0.99, power=1), "bias_correction", ""),
    "state grows": (state_grows(), "state_keeps_structure", "checkpoint multi_steps no_recompilation scan"),
    "recompiles each step": (
        recompiles_each_step(),
        "no_recompilation",
        "checkpoint multi_steps scan state_keeps_structure",
    ),
    "mutates its input": (mutates_its_input(), "inputs_unchanged", ""),
    "breaks on an empty tree": (breaks_on_an_empty_tree(), "empty_tree", ""),
    "breaks on a list tree": (breaks_on_a_list_tree(), "list_tree", "empty_tree nnx_state tuple_tree"),
    "hard-coded axis name": (hard_coded_axis_name(), "axis_names", "jit"),
    "result depends on sharding": (depends_on_sharding(), "explicit_mesh", ""),
    "state lost on a checkpoint round trip": (lost_on_a_round_trip(), "checkpoint", ""),
}
OTHERS = {
    "jit": decides_by_values(),
    "no_recompilation": weak_type_drifts(),
    "scan": count_becomes_a_float(),
    "vmap": without_batching(),
    "chain": Overridden(*optax.identity()),
    "extra_args": strict_about_extra_args(),
    "masked": needs_all_leaves(),
    "partition": needs_all_leaves(),
    "multi_steps": state_grows(),
    "inject_hyperparams": takes_pythons_numbers,
    "wide_hyperparams": rate_widens,
    "nested_tree": knows_a_name(),
    "tuple_tree": tuples_are_leaves(),
    "nnx_state": dicts_only(),
    "donated_buffers": keeps_the_parameters(),
    "checkpoint": recompiles_each_step(),
    "auto_mesh": depends_on_the_ambient_mesh(),
    "pmap": mean_over_manual_axes(),
    "axis_names": guessed_axis_name(),
    "float16": adam(0.9, wide=False),
    "zero_parameters": nan_on_zero_parameters(),
    "weight_decay": decays_if_it_can,
}


WHOLE = ["Python counter in the closure", "b2 rounded to 1", "hard-coded axis name"]  # the other reports take longer


@pytest.mark.parametrize("bug", [bug if bug in WHOLE else pytest.param(bug, marks=pytest.mark.slow) for bug in PLANTED])
def test_a_planted_bug_is_caught_by_name(bug):
    transform, check, consequences = PLANTED[bug]
    hyperparams = {"learning_rate": 0.5} if transform is params_ignored else None
    laws = ["bias_correction"] if check == "bias_correction" else []
    with pytest.raises(ContractError, match=f"\n  {check}: ") as caught:
        check_transform(transform, hyperparams, laws=laws).check()
    report = caught.value.report
    assert set(report.failures) == {check, *consequences.split()}
    assert not set(report.skipped) & {check}


ALONE = [(check, transform) for transform, check, _ in PLANTED.values()]


@pytest.mark.parametrize(
    ("check", "transform"), [*ALONE, *OTHERS.items(), ("donated_buffers", gives_its_own_array_away())]
)
def test_every_check_catches_something(check, transform):
    hyperparams = {} if hasattr(transform, "update") else {"learning_rate": 0.5}
    factory = transform if hyperparams else None
    laws = [check] if check == "bias_correction" else []
    with pytest.raises(Exception) as caught:  # noqa: PT011  # what it is depends on the bug
        CHECKS[check](Case(factory(**hyperparams) if factory else transform, None, factory, hyperparams, laws))
    assert not caught.errisinstance(Skipped)


@pytest.mark.parametrize("make", [python_counter, first_call_flag, counted_warmup])
@pytest.mark.parametrize("as_factory", [False, True])
def test_what_a_transform_keeps_outside_its_state_is_seen_from_its_first_use_on(make, as_factory):
    report = check_transform(make if as_factory else make())
    assert set(report.failures) == {"pure"}


OTHER_AXES = ["data", "dp", "fsdp", "tp", "devices", "hosts", "seq", "ensemble", "i"]


@pytest.mark.parametrize("axis", ["batch", *(pytest.param(axis, marks=pytest.mark.slow) for axis in OTHER_AXES)])
def test_a_guessed_axis_is_named(axis):
    with pytest.raises(AssertionError, match=f"a mapped axis called '{axis}' the update is another program"):
        CHECKS["axis_names"](Case(guessed_axis_name(axis)))


def test_an_update_that_divides_by_parameters_is_caught_by_name():
    report = check_transform(nan_on_zero_parameters())
    assert set(report.failures) == {"zero_parameters", "zero_gradients"}
    assert report.failures["zero_gradients"].seen.startswith("of zero gradients and zero parameters in float32")


def test_gradients_and_parameters_that_are_both_zero_are_tried():
    """A trust ratio with an epsilon that the parameters scale."""
    ratio = lambda g, p: g * jnp.linalg.norm(p) / (jnp.linalg.norm(g) + 1e-3 * jnp.linalg.norm(p))
    report = check_transform(stateless(lambda g, params: jax.tree.map(ratio, g, params)))
    seen = "of zero gradients and zero parameters in float32 the update of 'dense/bias' is NaN"
    assert {name: failure.seen for name, failure in report.failures.items()} == {"zero_gradients": seen}


def test_no_check_is_without_a_bug():
    assert {check for _, check, _ in PLANTED.values()} | set(OTHERS) == set(CHECKS)


# Right transforms pass, whatever they need.


@pytest.mark.parametrize(
    ("transform", "skipped"),
    [
        (optax.identity(), set()),
        pytest.param(optlab.adam(0.1), set(), marks=pytest.mark.slow),
        pytest.param(optax.polyak_sgd(0.1), set(), marks=pytest.mark.slow),
        pytest.param(optax.add_noise(0.1, 0.5, key=0), {"bfloat16", "float16"}, marks=pytest.mark.slow),
    ],
    ids=["stateless", "a chain", "it needs the loss", "it draws random numbers"],
)
def test_what_is_right_passes(transform, skipped):
    report = check_transform(transform).check()
    assert set(report.skipped) == skipped | {
        "inject_hyperparams",
        "wide_hyperparams",
        "weight_decay",
        "bias_correction",
    }
    assert set(report.passed) | set(report.skipped) == set(CHECKS)


@pytest.mark.slow
def test_a_loss_of_all_parameters_cant_be_given_to_a_part():
    report = check_transform(optax.scale_by_backtracking_linesearch(3))
    assert {"masked", "partition"} <= set(report.skipped)
    assert {"jit", "scan", "vmap", "multi_steps"} <= set(report.passed)


# The report.


def test_the_report_says_what_was_seen_and_why():
    report = check_transform(nan_on_zero_gradients(), skip=["pmap"])
    (failure,) = report.failed
    assert (failure.check, failure.seen) == (
        "zero_gradients",
        "of zero gradients in float32 the update of 'dense/bias' is NaN",
    )
    head, *lines = str(report).splitlines()
    assert head == f"transform: {len(report.passed)} hold, 1 fail, {len(report.skipped)} skipped"
    table = dict(line.split(maxsplit=1) for line in lines)
    assert table.keys() >= set(CHECKS)
    assert re.match("fails +of zero gradients in float32", table["zero_gradients"])
    assert (table["jit"], table["pmap"].split(maxsplit=1)) == ("holds", ["skipped", "asked for"])
    assert lines[-2:] == ["likely causes:", f"  zero_gradients: {failure.cause}"]


def test_meshes_need_devices(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None])
    for check in ("auto_mesh", "explicit_mesh", "pmap"):
        with pytest.raises(Skipped, match="needs 2 devices"):
            CHECKS[check](Case(optax.identity()))


def test_nnx_states_need_flax(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Skipped, match="needs flax"):
        CHECKS["nnx_state"](Case(optax.identity()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ["jitt"]}, "each of skip must be one of 'jit'.*got 'jitt'"),
        ({"laws": ["decay"]}, "each of laws must be one of 'weight_decay', 'bias_correction', got 'decay'"),
        ({"skip": "jit"}, r"skip must be a list of names, got the string 'jit': write \['jit'\]"),
        ({"hyperparams": {"decay": 0.9}}, "hyperparams are for a factory, and a transform was given"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_transform(optax.identity(), **arguments)


def test_checks_are_listed_with_what_they_ask():
    for name, check in CHECKS.items():
        assert check.__name__ == name
        assert check.__doc__
    assert set(testing.LAWS) < set(CHECKS)


def test_importing_it_needs_no_flax():
    code = (
        "import sys, optlab.testing; assert not {'flax', 'orbax', 'chex'} & {m.partition('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
