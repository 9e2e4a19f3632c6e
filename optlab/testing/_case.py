"""One transform under test: parameters, targets, a training step, and the runs that several checks share."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.testing._report import Skipped

STEPS = 3
TRACES = 3  # of one update, to see whether they are the same
EXTRA_ARGS = (  # what update is given: the first that it takes
    ("value", "grad", "value_fn"),  # as optlab.training.make_step gives it
    ("value", "grad", "value_fn", "obj_fn"),  # sophia's name for value_fn; optax's line searches refuse it
    (),
)
UNKNOWN = "known_to_others"  # an extra argument that is meant for another transform
SIZES = (1.0, 3.0, 3.0, 3.0)  # of gradients, in long runs


class Run(NamedTuple):
    """updates: those of each step. states: those after each step, the initial one before them."""

    updates: list[Any]
    states: list[Any]


class Case:
    """A transform, the parameters that it moves, and how it moves them.

    Everything trains towards targets: ½Σ(θ − target)² with another target at every step, so that the gradient is
    θ − target, `value`, `grad`, `value_fn` and `obj_fn` agree, and a target θ gives exactly zero.
    """

    def __init__(
        self,
        tx: optax.GradientTransformation,
        params: Any | None = None,
        factory: Callable[..., optax.GradientTransformation] | None = None,
        hyperparams: Mapping[str, Any] | None = None,
        laws: Sequence[str] = (),
    ):
        self.tx, self.factory, self.hyperparams, self.laws = tx, factory, dict(hyperparams or {}), laws
        check_real(params)
        self.params = default_params() if params is None else jax.tree.map(representable, params)
        self.targets = [like(self.params, seed) for seed in range(1, STEPS + 1)]
        self.extra_args: tuple[str, ...] = EXTRA_ARGS[0]
        self.programs: list[Any] = []  # that tracing one update gave, from the very first use of `tx` on
        self.traces = self.traces_of_plain = 0  # how often the step was traced: ever, and in `plain`
        self.jitted = jax.jit(self._counted)

    def _counted(self, params: Any, state: Any, target: Any, size: float) -> Any:
        self.traces += 1
        return self.step(self.tx, params, state, target, size)

    @functools.cached_property
    def plain(self) -> Run:
        """The transform under `jax.jit`, for a few steps, from a state that was made outside."""
        self.need_update()
        before = self.traces
        run = self.run_jitted(self.params, self.targets)
        self.traces_of_plain = self.traces - before
        return run

    def need_update(self) -> None:
        """Raises Skipped where there is nothing to compare with: another check tells why."""
        if self.error:
            raise Skipped("see jit: not one update can be made")
        if not self.is_pure:
            raise Skipped("see pure: no two updates are the same")

    @functools.cached_property
    def error(self) -> Exception | None:
        """What stops a single update, traced as `jax.jit` does. Finds out which extra arguments there have to be.

        Whatever is asked of a transform, this comes first: a flag that its first use turns is still as it was made.
        """
        errors = []
        for self.extra_args in EXTRA_ARGS:
            error = self.error_with(*self.extra_args)
            if error is None:
                return None
            errors.append(error)
        return errors[0]

    def error_with(self, *extra_args: str) -> Exception | None:
        """What stops an update that gets these extra arguments."""
        update = lambda p, t: step(self.tx, p, self.tx.init(p), t, extra_args=extra_args)
        try:
            traced = jax.make_jaxpr(update)(self.params, self.targets[0])
        except Exception as error:  # whatever a stranger's transform raises
            return error
        if extra_args == self.extra_args:
            self.programs.append(program(traced))
        return None

    def step(self, tx: Any, params: Any, state: Any, target: Any, size: Any = 1.0) -> tuple[Any, Any, Any]:
        """One step of a transform, this one or one made of it."""
        return step(tx, params, state, target, size, extra_args=self.extra_args)

    def play(self, tx: Any, params: Any, targets: Sequence[Any]) -> list[Any]:
        """The updates of a few steps."""
        state, all_updates = tx.init(params), []
        for target in targets:
            params, state, updates = self.step(tx, params, state, target)
            all_updates.append(updates)
        return all_updates

    def run_jitted(self, params: Any, targets: Sequence[Any]) -> Run:
        run = Run([], [self.tx.init(params)])
        for target in targets:
            params, state, updates = self.jitted(params, run.states[-1], target, 1.0)
            run.updates.append(updates)
            run.states.append(state)
        return run

    @functools.cached_property
    def is_pure(self) -> bool:
        """Whether the update is the same program whenever it is traced, the first time as well."""
        errors = [self.error, *(self.error_with(*self.extra_args) for _ in range(TRACES - 1))]
        return not any(errors) and all(each == self.programs[0] for each in self.programs)

    @functools.cached_property
    def other(self) -> tuple[Any, list[Any], list[Any]]:
        """Another model: its parameters, and the targets and updates of two steps."""
        self.need_update()
        params, targets = like(self.params, 10), [like(self.params, seed) for seed in (11, 12)]
        return params, targets, self.run_jitted(params, targets).updates

    @functools.cached_property
    def is_random(self) -> bool:
        """Whether the update draws random numbers: those of another dtype are others."""
        return "random_" in str(self.traced())

    @functools.cached_property
    def abstract_state(self) -> Any:
        return jax.eval_shape(self.tx.init, self.params)

    def traced(self, **settings: Any) -> Any:
        """The jaxpr of one step, traced anew. It takes the leaves of the parameters, the state and the target."""
        fresh = lambda p, s, t: self.step(self.tx, p, s, t)
        return jax.make_jaxpr(fresh, **settings)(self.params, self.abstract_state, self.targets[0])

    def long_run(self, dtype: str, steps: int, size: float) -> Any:
        """The last update from gradients g, 3g, 3g, 3g, g, …, the parameters staying where they are.

        They have a variance, which some transforms divide by, and a sign that rounding can't turn.
        """
        self.need_update()
        params, target = cast(self.params, dtype), cast(self.targets[0], dtype)
        state, before = self.tx.init(params), self.traces
        for t in range(steps):
            _, state, updates = self.jitted(params, state, target, SIZES[t % 4] * size)
            if self.traces > before + 3:
                raise Skipped("see no_recompilation: so many steps would take too long")
        return updates


def program(jaxpr: Any) -> tuple[str, list[bytes]]:
    """A traced function as text without addresses, and its constants."""
    constants = [np.asarray(x).tobytes() for x in getattr(jaxpr, "consts", ())]
    return re.sub("0x[0-9a-f]+", "", str(jaxpr)), constants


def default_params() -> Any:
    """A matrix, a vector and a scalar, under the names that Flax would give them."""
    shapes = {"dense": {"bias": (6,), "kernel": (4, 6)}, "gain": ()}
    return like(jax.tree.map(lambda shape: np.zeros(shape), shapes, is_leaf=lambda x: isinstance(x, tuple)), 0)


def like(tree: Any, seed: int) -> Any:
    """A tree of normal numbers with the shapes of another."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: representable(rng.standard_normal(np.shape(x))), tree)


def check_real(params: Any) -> None:
    """Refuses what `representable` would make a real number of."""
    for name, x in named_leaves(params):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(f"params must be floating-point arrays, and {name!r} is {jnp.result_type(x)}")


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def representable(x: Any) -> jax.Array:
    """In float32, rounded to what bfloat16 and float16 can hold: in every dtype training starts from the same."""
    return jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)


def objective(params: Any, target: Any, size: Any = 1.0) -> jax.Array:
    """½ · size · Σ(θ − target)², in float32."""
    squares = jax.tree.map(lambda p, t: jnp.sum(jnp.square((p - t).astype(jnp.float32))), params, target)
    return 0.5 * size * sum(jax.tree.leaves(squares), jnp.zeros((), jnp.float32))


def gradient(params: Any, target: Any, size: Any, extra_args: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The gradient, and the extra arguments of those names, for an update."""
    value_fn = lambda params: objective(params, target, size)
    value, grads = jax.value_and_grad(value_fn)(params)
    known = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn, UNKNOWN: value}
    return grads, {name: known[name] for name in extra_args}


def step(
    tx: Any, params: Any, state: Any, target: Any, size: Any = 1.0, *, extra_args: Sequence[str]
) -> tuple[Any, Any, Any]:
    """One step of training, as `optlab.training.make_step` makes it: (params, state, updates)."""
    grads, given = gradient(params, target, size, extra_args)
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **given)
    return optax.apply_updates(params, updates), state, updates


def stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def unstack(tree: Any) -> list[Any]:
    leaves = [list(np.asarray(x)) for x in jax.tree.leaves(tree)]
    return [jax.tree.unflatten(jax.tree.structure(tree), row) for row in zip(*leaves, strict=True)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in named]


def message(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200]
