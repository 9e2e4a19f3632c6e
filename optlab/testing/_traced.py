"""Checks by tracing: purity, the types of states and updates, trees without leaves. Nothing is compiled."""

from typing import Any

import jax
import optax

from optlab.testing._case import Case, cast, gradient, message, program
from optlab.testing._compare import require_structure, require_types, same_structure
from optlab.testing._report import Skipped, check, require

USUAL_AXES = """
    batch batches data dp ddp fsdp zero shard shards sharded replica replicas replicate rep worker workers
    device devices dev host hosts node nodes process processes proc core cores chip chips tpu gpu gpus num_devices
    model models mp tp tensor mdl stage stages pipe pipeline pp expert experts ep seq sequence context cp sp
    population ensemble ens member members seed seeds sample samples client clients agent agents env envs task tasks
    mesh axis axis_name batch_axis data_axis pmap pmap_axis vmap vmap_axis xmap parallel data_parallel model_parallel
    ax0 ax1 a b d i j k m n p r x y z rows columns row col
"""
AXIS_NAMES = tuple(USUAL_AXES.split())


@check("the update reads or writes something outside its arguments, as a counter in its closure: put it into the state")
def pure(case: Case) -> None:
    """Every trace of the update, from its first use on, is the same program."""
    if case.error:
        case.need_update()
    require(case.is_pure, "traced again, the update is another program")


@check("update_fn writes into a dict or list that it was given: make a new one, as jax.tree.map does")
def inputs_unchanged(case: Case) -> None:
    """Gradients, state and parameters are the same after the update."""
    case.need_update()

    def update(params: Any, state: Any, target: Any) -> None:
        grads, extra_args = gradient(params, target, 1.0, case.extra_args)
        given = {"gradients": grads, "state": state, "parameters": params}
        before: dict[str, Any] = {name: jax.tree.flatten(tree) for name, tree in given.items()}
        optax.with_extra_args_support(case.tx).update(grads, state, params, **extra_args)
        for name, tree in given.items():
            leaves, structure = jax.tree.flatten(tree)
            same = structure == before[name][1] and all(map(lambda x, y: x is y, leaves, before[name][0]))
            require(same, f"the {name} are others after the update")

    jax.eval_shape(update, case.params, case.abstract_state, case.targets[0])


@check("a collective, such as lax.pmean, is in the update: average the gradients before it, where the axis is known")
def axis_names(case: Case) -> None:
    """The update uses no mapped axis: devices may hold replicas or different models."""
    error = case.error
    require(not isinstance(error, NameError), f"outside of any map it fails: {message(error)}" if error else "")
    case.need_update()
    alone, along = program(case.traced()), lambda *names: case.traced(axis_env=[(name, 2) for name in names])
    if program(along(*AXIS_NAMES)) != alone:
        found = [name for name in AXIS_NAMES if program(along(name)) != alone]
        require(False, f"along a mapped axis called {' or '.join(map(repr, found))} the update is another program")


@check("the state isn't made the same by init and update: give init every part that there will be")
def state_keeps_structure(case: Case) -> None:
    """init and update give states of one structure."""
    for before, after in _states(case):
        require_structure(after, before, "after an update the state has another structure")


@check("what is computed is stored as it is: cast it to the dtype that the state had")
def state_keeps_dtypes(case: Case) -> None:
    """init and update give states of the same shapes and dtypes."""
    for before, after in _states(case):
        if not same_structure(before, after):
            raise Skipped("see state_keeps_structure: there is no leaf for every leaf")
        require_types(after, before, "after an update the state's leaf")


@check("the update isn't cast back to the gradients' dtype")
def updates_keep_dtypes(case: Case) -> None:
    """Updates have the structure, shapes and dtypes of the gradients."""
    case.need_update()
    for dtype in ("float32", "bfloat16", "float16"):
        params = cast(case.params, dtype)
        updates = jax.eval_shape(lambda p: case.step(case.tx, p, case.tx.init(p), p)[2], params)
        require_structure(updates, params, "the updates' structure isn't the gradients'")
        require_types(updates, params, f"with gradients in {dtype} the update of")


@check("it expects at least one leaf: a sum, a maximum or a concatenation over the leaves needs a start")
def empty_tree(case: Case) -> None:
    """A tree without leaves is accepted: optax.partition passes one to a rule that moves nothing."""
    case.need_update()
    for tree in ({}, (), {"nothing": None, "masked": optax.MaskedNode()}):
        updates = jax.eval_shape(lambda p: case.step(case.tx, p, case.tx.init(p), p)[2], tree)
        require_structure(updates, tree, "the updates' structure isn't the gradients'")


def _states(case: Case) -> list[tuple[Any, Any]]:
    """Returns (before, after) of two updates in every dtype, the first from init's state."""
    case.need_update()
    pairs = []
    for dtype in ("float32", "bfloat16", "float16"):
        params = cast(case.params, dtype)
        states = [jax.eval_shape(case.tx.init, params)]
        for _ in range(2):
            states.append(jax.eval_shape(lambda p, s: case.step(case.tx, p, s, p)[1], params, states[-1]))
            pairs.append((states[-2], states[-1]))
    return pairs
