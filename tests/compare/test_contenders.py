"""A contender: what it makes of values, and what it refuses."""

import functools

import jax.numpy as jnp
import optax
import pytest

import optlab
from optlab.compare import StudyError, choice, log_uniform, uniform
from optlab.compare.contenders import contend, is_ours

LR = {"learning_rate": log_uniform(1e-3, 1e-1)}


def made(what, space=None, schedule=None, steps=10, **kwargs):
    return contend("mine", what, space=space, schedule=schedule, steps=steps, **kwargs)


def first_update(contender, values, steps=1):
    """The update of a parameter with gradient 1 after so many steps."""
    tx = contender.make(values)
    params = jnp.ones(())
    state = tx.init(params)
    for _ in range(steps):
        update, state = tx.update(jnp.ones(()), state, params)
    return float(update)


def test_values_are_the_factorys_arguments():
    assert first_update(made("sgd", LR), {"learning_rate": 0.25}) == -0.25


def test_a_schedule_shapes_the_rate():
    contender = made("sgd", LR, optlab.schedules.linear_to_zero)
    assert first_update(contender, {"learning_rate": 0.5}, steps=6) == pytest.approx(-0.25)


def test_a_schedules_argument_can_be_searched():
    space = {**LR, "schedule.end": uniform(0, 1)}
    contender = made("sgd", space, optlab.schedules.cosine)
    values = {"learning_rate": 0.5, "schedule.end": 0.5}
    assert first_update(contender, values, steps=11) == pytest.approx(-0.25)


def test_a_rate_that_a_partial_fixed_has_the_schedule_too():
    fixed = functools.partial(optlab.sgd, learning_rate=0.5)
    assert first_update(made(fixed, {}, optlab.schedules.linear_to_zero), {}, steps=6) == pytest.approx(-0.25)


def test_gradients_go_through_what_stands_before():
    contender = made("sgd", LR, before=optax.clip(0.1))
    assert first_update(contender, {"learning_rate": 1.0}) == pytest.approx(-0.1)


def test_ours_have_spaces_by_name_and_by_factory():
    assert made("lion").space == made(optlab.lion).space == made(functools.partial(optlab.lion, b1=0.8)).space
    assert made("lion").space["learning_rate"].high < made("sgd").space["learning_rate"].high


def test_what_a_partial_fixes_is_not_searched():
    assert made(functools.partial(optlab.adamw, learning_rate=1e-3)).space == {}


def test_another_factory_of_that_name_is_another_one():
    def lion(learning_rate):
        return optax.sgd(learning_rate)

    assert made(lion).space["learning_rate"].high == 1.0


@pytest.mark.parametrize(
    ("what", "space", "message"),
    [
        (
            "adamw",
            {"learning_rat": LR["learning_rate"]},
            "'learning_rat', which adamw doesn't take; did you mean 'learn",
        ),
        ("adamw", {**LR, "schedule.end": uniform(0, 1)}, "'schedule.end', which adamw doesn't take"),
        ("adamw", {"learning_rate": 1e-3}, r"must say log_uniform\(low, high\), .* for learning_rate, got 0.001"),
        ("adamw", {"b1": uniform(0.8, 0.9)}, "needs learning_rate: say it in its space"),
        ("adamw", {"learning_rate": uniform(-1, 1)}, "learning_rate of at least 0"),
        ("adamw", {**LR, "b1": choice(1.5)}, r"can't be made at learning_rate=0.01, b1=1.5: b1 must lie in \[0, 1\)"),
        ("adamww", LR, "unknown optimizer 'adamww'; did you mean 'adamw'"),
        (optlab.adamw(1e-3), LR, "must be an optimizer's factory or its name, got GradientTransformationExtraArgs"),
        (lambda learning_rate: None, LR, "must make an optax.GradientTransformation, got NoneType"),
        (lambda rate: optax.sgd(rate), None, "has no learning_rate to search: say its space"),
        (functools.partial(optlab.sgd, learning_rate=1.0), LR, "learning_rate of 'mine' is searched, and set to 1.0"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(what, space, message):
    with pytest.raises(StudyError, match=message) as error:
        made(what, space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", 3, "a" * 61])
def test_a_name_has_no_slashes_and_is_short(name):
    with pytest.raises(StudyError, match="must be at most 60 characters without slashes"):
        contend(name, "adam", space=None, schedule=None, steps=1)


def test_ours_are_told_from_others_of_their_names():
    exec("def adam(learning_rate): pass", without_module := {})
    assert is_ours(optlab.sgd)
    assert is_ours(functools.partial(optlab.adamw, weight_decay=0.1))
    assert not is_ours(optax.adam)
    assert not is_ours(without_module["adam"])
