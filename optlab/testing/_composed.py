"""Checks by composition: under JAX's transformations, inside optax's wrappers, in other kinds of trees, restored.

The updates must be those of the transform alone under `jax.jit`. Checks that need no compilation do without, which is
far faster for trees as small as these.
"""

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.testing._case import EXTRA_ARGS, UNKNOWN, Case, cast, gradient, named_leaves, stack, unstack
from optlab.testing._compare import require_same, require_structure, require_types
from optlab.testing._report import Skipped, check, require


@check("Python decides by values, or numbers are taken out of arrays: use jnp.where, lax.cond and jnp functions")
def jit(case: Case) -> None:
    """Updates under jit are those without."""
    if case.error:
        raise case.error
    require_same(case.play(case.tx, case.params, case.targets[:1]), case.plain.updates[:1], "without jit")


@check(
    "a part of the state that isn't an array changes, or an array's weak type: make arrays of a stated dtype in init"
)
def no_recompilation(case: Case) -> None:
    """Every step runs the same compiled program."""
    first, second = (
        {name for name, x in named_leaves(state) if getattr(x, "weak_type", False)} for state in case.plain.states[:2]
    )
    changed = sorted(first ^ second)
    why = f": {changed[0]!r} changes its weak type" if changed else ""
    require(case.traces_of_plain <= 1, f"{len(case.targets)} steps were compiled {case.traces_of_plain} times{why}")


@check("a scan's carry has to keep its structure, shapes and dtypes: so has the state")
def scan(case: Case) -> None:
    """Steps inside lax.scan."""

    def body(carry: Any, target: Any) -> Any:
        params, state, updates = case.step(case.tx, carry[0], carry[1], target)
        return (params, state), updates

    case.need_update()
    run = jax.jit(lambda params, targets: jax.lax.scan(body, (params, case.tx.init(params)), targets)[1])
    require_same(unstack(run(case.params, stack(case.targets))), case.plain.updates, "inside lax.scan")


@check("something is computed over a whole array, or an axis is counted from the wrong side, so that models mix")
def vmap(case: Case) -> None:
    """Two models under vmap are each moved as if alone."""
    params, targets, updates = case.other
    both = jax.jit(jax.vmap(lambda p, ts: case.play(case.tx, p, ts)))
    together = both(stack([case.params, params]), [stack(pair) for pair in zip(case.targets[:2], targets, strict=True)])
    for i, alone in enumerate((case.plain.updates[:2], updates)):
        require_same([jax.tree.map(lambda x, i=i: x[i], u) for u in together], alone, f"under vmap, for model {i + 1},")


@check("update_fn has no **extra_args, or refuses what it doesn't know: optax asks for both of whoever takes any")
def extra_args(case: Case) -> None:
    """Extra arguments for other members of a chain are ignored."""
    case.need_update()
    error = case.error_with(*EXTRA_ARGS[0]) and case.error_with(*EXTRA_ARGS[1])
    error = error or case.error_with(*case.extra_args, UNKNOWN)
    if error:
        raise error


@check("it isn't a GradientTransformation: make one of init_fn and update_fn")
def chain(case: Case) -> None:
    """Inside optax.chain, between others."""
    case.need_update()
    tx = optax.chain(optax.identity(), case.tx, optax.identity())
    require_same(case.play(tx, case.params, case.targets[:2]), case.plain.updates[:2], "inside optax.chain")


@check("it looks at leaves that aren't its own: it gets a tree with optax.MaskedNode() in their places")
def masked(case: Case) -> None:
    """Under optax.masked: its own leaves move as if alone, and the last one's gradient is unchanged."""
    case.need_update()
    tx = optax.masked(case.tx, _all_but_last(case, True, False), mask_compatible_extra_args=True)
    _require_part(case, tx, 1.0, "inside optax.masked")


@check("it looks at leaves that aren't its own: it gets a tree with optax.MaskedNode() in their places")
def partition(case: Case) -> None:
    """Under optax.partition: its own leaves move as if alone."""
    case.need_update()
    rules = {"moved": case.tx, "kept": optax.set_to_zero()}
    labels = _all_but_last(case, "moved", "kept")
    # Labels come from a function: optax would call labels that are callable, as an Equinox module is.
    tx = optax.partition(rules, lambda _: labels, mask_compatible_extra_args=True)
    _require_part(case, tx, 0.0, "inside optax.partition")


@check("MultiSteps puts the state through lax.cond and jnp.where: it has to consist of arrays that keep their dtypes")
def multi_steps(case: Case) -> None:
    """Under optax.MultiSteps: two equal gradients are one step, and between the steps nothing moves."""
    case.need_update()
    steps = optax.MultiSteps(case.tx, every_k_schedule=2)  # type: ignore[arg-type]
    tx = optax.GradientTransformationExtraArgs(steps.init, steps.update)  # type: ignore[arg-type]
    targets = [target for target in case.targets[:2] for _ in range(2)]
    updates = jax.jit(lambda p, ts: case.play(tx, p, ts))(case.params, targets)
    still = [jax.tree.map(jnp.zeros_like, case.params)] * 2
    require_same(updates[::2], still, "inside optax.MultiSteps, between two steps,")
    require_same(updates[1::2], case.plain.updates[:2], "inside optax.MultiSteps")


@check(
    "the factory takes its numbers for Python's, as float(rate) or `if rate`: compute by jnp, check only what is Python"
)
def inject_hyperparams(case: Case) -> None:
    """From optax.inject_hyperparams: numbers of the factory are arrays in the state."""
    tx = _injected(case)
    state = tx.init(case.params)
    _, after, updates = jax.jit(lambda s: case.step(tx, case.params, s, case.targets[0]))(state)
    require_same([updates], case.plain.updates[:1], "from optax.inject_hyperparams")
    require_structure(after, state, "from optax.inject_hyperparams the state changes its structure")
    require_types(after, state, "from optax.inject_hyperparams the state's leaf")


@check("an array in float32 times an update in 16 bits is in float32: cast the update at the end")
def wide_hyperparams(case: Case) -> None:
    """A learning rate that is an array in float32 keeps updates in bfloat16."""
    tx = _injected(case)
    params = cast(case.params, "bfloat16")
    state = jax.eval_shape(tx.init, params)
    _, after, updates = jax.eval_shape(lambda p, s: case.step(tx, p, s, p), params, state)
    where = "with gradients in bfloat16 and hyperparameters in float32"
    require_types(updates, params, f"{where} the update of")
    require_types(after, state, f"{where} the state's leaf")


def _injected(case: Case) -> optax.GradientTransformationExtraArgs:
    numbers = [name for name, x in case.hyperparams.items() if isinstance(x, float)]
    if case.factory is None or not numbers:
        raise Skipped("needs a factory and hyperparams that are Python floats")
    case.need_update()
    static = [name for name in inspect.signature(case.factory).parameters if name not in numbers]
    return optax.inject_hyperparams(case.factory, static, jnp.float32)(**case.hyperparams)


@check("the tree is taken for a dict of arrays: go through it by jax.tree.map and jax.tree.leaves alone")
def nested_tree(case: Case) -> None:
    """A dict in a dict."""
    _in_tree(case, lambda tree: {"outer": {"inner": tree}}, "in a dict of dicts")


@check("the tree is taken for a dict: go through it by jax.tree.map and jax.tree.leaves alone")
def list_tree(case: Case) -> None:
    """A list."""
    _in_tree(case, lambda tree: [tree], "in a list")


@check("the tree is taken for a dict, or tuples for something of its own: use jax.tree.map and jax.tree.leaves alone")
def tuple_tree(case: Case) -> None:
    """A tuple."""
    _in_tree(case, lambda tree: (tree,), "in a tuple")


@check("leaves of an nnx.State have paths that end in `value`, and its nodes are no dicts: use jax.tree.map")
def nnx_state(case: Case) -> None:
    """The state of a Flax NNX model."""
    if importlib.util.find_spec("flax") is None:
        raise Skipped("needs flax")
    from flax import nnx

    _in_tree(case, lambda tree: nnx.State({"outer": jax.tree.map(nnx.Param, tree)}), "in an nnx.State")


@check("init puts an array into the state that is the parameters', its factory's or there twice: copy it by jnp.array")
def donated_buffers(case: Case) -> None:
    """A step whose parameters and state are donated."""
    case.need_update()
    params = jax.tree.map(jnp.array, case.params)
    state, again = case.tx.init(params), case.tx.init(params)
    trees = {"the parameters": params, "the state": state, "the state of another init": again}
    seen: dict[int, str] = {}
    for owner, (name, x) in ((owner, leaf) for owner, tree in trees.items() for leaf in named_leaves(tree)):
        if isinstance(x, jax.Array) and x.size:
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            place = (jax.random.key_data(x) if is_key else x).unsafe_buffer_pointer()
            require(place not in seen, f"{name!r} of {owner} shares its memory with {seen.get(place)}")
            seen[place] = f"{name!r} of {owner}"
    take = jax.jit(lambda p, s, t: case.step(case.tx, p, s, t), donate_argnums=(0, 1))
    updates = []
    for target in case.targets:
        params, state, u = take(params, state, target)
        updates.append(u)
    require_same(updates, case.plain.updates, "with donated buffers")


@check("something of the state isn't in its leaves, or two leaves share a name: keep all that changes in named arrays")
def checkpoint(case: Case) -> None:
    """A state saved as NumPy arrays by path, and restored into init's structure, continues the run."""
    state = case.plain.states[1]
    saved = {name: _save(x) for name, x in named_leaves(state)}
    require(len(saved) == len(jax.tree.leaves(state)), "two leaves of the state have the same path")
    empty = jax.eval_shape(case.tx.init, case.params)
    missing = [name for name, _ in named_leaves(empty) if name not in saved]
    require(not missing, f"the state after a step has no {missing[:1]}")
    require(len(saved) == len(jax.tree.leaves(empty)), "the state after a step has more leaves than init's")
    read = [_read(name, *saved[name], like) for name, like in named_leaves(empty)]
    restored = jax.tree.unflatten(jax.tree.structure(empty), read)
    moved = optax.apply_updates(case.params, case.plain.updates[0])
    _, _, updates = case.jitted(moved, restored, case.targets[1], 1.0)
    require_same([updates], case.plain.updates[1:2], "after a checkpoint")


def _all_but_last(case: Case, own: Any, other: Any) -> Any:
    leaves, structure = jax.tree.flatten(case.params)
    if len(leaves) < 2:
        raise Skipped("needs params with at least two leaves")
    return jax.tree.unflatten(structure, [own] * (len(leaves) - 1) + [other])


def _require_part(case: Case, tx: Any, of_last: float, where: str) -> None:
    """Requires that all leaves but the last move as if alone, and the last by its gradient times `of_last`.

    The loss, and so `value`, is that of all leaves.
    """
    names = [name for name in case.extra_args if name in ("value", "grad")]
    if case.error_with(*names) is not None:
        raise Skipped("it needs the loss as a function of all parameters, and would be given a part of them")
    structure, params, wanted = jax.tree.structure(case.params), case.params, []

    def drop(tree: Any) -> Any:
        return jax.tree.unflatten(structure, [*jax.tree.leaves(tree)[:-1], optax.MaskedNode()])

    alone = optax.with_extra_args_support(case.tx)
    state = alone.init(drop(params))
    for target in case.targets[:2]:
        grads, given = gradient(params, target, 1.0, names)
        given |= {"grad": drop(grads)} if "grad" in given else {}
        updates, state = alone.update(drop(grads), state, drop(params), **given)
        updates = [*jax.tree.leaves(updates), of_last * jax.tree.leaves(grads)[-1]]
        wanted.append(jax.tree.unflatten(structure, updates))
        params = optax.apply_updates(params, wanted[-1])
    require_same(case.play(tx, case.params, case.targets[:2]), wanted, where)


def _in_tree(case: Case, wrap: Callable[[Any], Any], where: str) -> None:
    """Takes one step with the parameters in another container; without jit, which would only take longer."""
    case.need_update()
    params = wrap(case.params)
    updates = case.play(case.tx, params, [wrap(case.targets[0])])
    require_structure(updates[0], params, f"{where} the updates' structure isn't the gradients'")
    require_same(updates, case.plain.updates[:1], where)


def _save(x: Any) -> tuple[np.ndarray, str | None]:
    """Converts a leaf to an array, with the implementation of a random key if it is one."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x)), str(jax.random.key_impl(x))
    return np.asarray(x), None


def _read(name: str, saved: np.ndarray, key: str | None, like: Any) -> Any:
    x = jax.random.wrap_key_data(jnp.asarray(saved), impl=key) if key else jnp.asarray(saved)
    kind, wanted = (f"{a.dtype}{list(a.shape)}" for a in (x, like))
    require(kind == wanted, f"{name!r} of the state is {kind}, and {wanted} in the structure that init gives")
    return x
