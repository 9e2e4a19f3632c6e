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
TRACES = 3  # of one update, which must be the same
EXTRA_ARGS = (  # of update: the first of these that it accepts
    ("value", "grad", "value_fn"),  # those of optlab.training.make_step
    ("value", "grad", "value_fn", "obj_fn"),  # sophia's name for value_fn; optax's line searches refuse it
    (),
)
UNKNOWN = "known_to_others"  # an extra argument for another transform
SIZES = (1.0, 3.0, 3.0, 3.0)  # of gradients, in long runs


class Run(NamedTuple):
    """Updates of each step, and the states: the initial one, then those after each step."""

    updates: list[Any]
    states: list[Any]


class Case:
    """A transform under test, its parameters, and the runs that checks share.

    Every run minimizes ½Σ(θ − target)² with another target at each step. So the gradient is θ − target, `value`,
    `grad`, `value_fn` and `obj_fn` agree, and the target θ gives exactly zero.
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
        self.programs: list[Any] = []  # traces of one update, from the very first use of `tx` on
        self.traces = self.traces_of_plain = 0  # number of traces of the step: in all, and in `plain`
        self.jitted = jax.jit(self._counted)

    def _counted(self, params: Any, state: Any, target: Any, size: float) -> Any:
        self.traces += 1
        return self.step(self.tx, params, state, target, size)

    @functools.cached_property
    def plain(self) -> Run:
        """Reference run: a few steps under `jax.jit`, from a state made outside."""
        self.need_update()
        before = self.traces
        run = self.run_jitted(self.params, self.targets)
        self.traces_of_plain = self.traces - before
        return run

    def need_update(self) -> None:
        """Raises Skipped where no update can be compared; another check reports why."""
        if self.error:
            raise Skipped("see jit: not one update can be made")
        if not self.is_pure:
            raise Skipped("see pure: no two updates are the same")

    @functools.cached_property
    def error(self) -> Exception | None:
        """Error of a single update, traced as by `jax.jit`, or None. Finds the extra arguments that update accepts.

        This is the transform's very first use, so that a flag which that use turns is seen.
        """
        errors = []
        for self.extra_args in EXTRA_ARGS:
            error = self.error_with(*self.extra_args)
            if error is None:
                return None
            errors.append(error)
        return errors[0]

    def error_with(self, *extra_args: str) -> Exception | None:
        """Returns the error of an update with these extra arguments, or None."""

        def update(params: Any, target: Any) -> Any:
            return step(self.tx, params, self.tx.init(params), target, extra_args=extra_args)

        try:
            traced = jax.make_jaxpr(update)(self.params, self.targets[0])
        except Exception as error:  # whatever a stranger's transform raises
            return error
        if extra_args == self.extra_args:
            self.programs.append(program(traced))
        return None

    def step(self, tx: Any, params: Any, state: Any, target: Any, size: Any = 1.0) -> tuple[Any, Any, Any]:
        """Takes one step of a transform, this one or one made of it."""
        return step(tx, params, state, target, size, extra_args=self.extra_args)

    def play(self, tx: Any, params: Any, targets: Sequence[Any]) -> list[Any]:
        """Returns the updates of a few steps."""
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
        """True if every trace of the update, the first one too, gives the same program."""
        errors = [self.error, *(self.error_with(*self.extra_args) for _ in range(TRACES - 1))]
        return not any(errors) and all(each == self.programs[0] for each in self.programs)

    @functools.cached_property
    def other(self) -> tuple[Any, list[Any], list[Any]]:
        """Parameters of another model, with the targets and updates of two steps."""
        self.need_update()
        params, targets = like(self.params, 10), [like(self.params, seed) for seed in (11, 12)]
        return params, targets, self.run_jitted(params, targets).updates

    @functools.cached_property
    def is_random(self) -> bool:
        """True if the update draws random numbers, which differ between dtypes."""
        return "random_" in str(self.traced())

    @functools.cached_property
    def abstract_state(self) -> Any:
        return jax.eval_shape(self.tx.init, self.params)

    def traced(self, **settings: Any) -> Any:
        """Traces one step anew. Its jaxpr takes the leaves of the parameters, the state and the target."""

        def fresh(params: Any, state: Any, target: Any) -> Any:
            return self.step(self.tx, params, state, target)

        return jax.make_jaxpr(fresh, **settings)(self.params, self.abstract_state, self.targets[0])

    def long_run(self, dtype: str, steps: int, size: float) -> Any:
        """Returns the last update from gradients g, 3g, 3g, 3g, g, …, with the parameters held fixed.

        These gradients have a variance, which some transforms divide by, and a sign that rounding can't change.
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
    """Returns a traced function as text without addresses, and its constants."""
    constants = [np.asarray(x).tobytes() for x in getattr(jaxpr, "consts", ())]
    return re.sub("0x[0-9a-f]+", "", str(jaxpr)), constants


def default_params() -> Any:
    """Makes a matrix, a vector and a scalar, named as by Flax."""
    shapes = {"dense": {"bias": (6,), "kernel": (4, 6)}, "gain": ()}
    return like(jax.tree.map(lambda shape: np.zeros(shape), shapes, is_leaf=lambda x: isinstance(x, tuple)), 0)


def like(tree: Any, seed: int) -> Any:
    """Makes a tree of normal numbers with the shapes of another tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: representable(rng.standard_normal(np.shape(x))), tree)


def check_real(params: Any) -> None:
    """Refuses arrays that `representable` would turn into real ones."""
    for name, x in named_leaves(params):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(f"params must be floating-point arrays, and {name!r} is {jnp.result_type(x)}")


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def representable(x: Any) -> jax.Array:
    """Rounds float32 to values that bfloat16 and float16 hold too, so that training starts the same in each dtype."""
    return jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)


def objective(params: Any, target: Any, size: Any = 1.0) -> jax.Array:
    """Computes ½ · size · Σ(θ − target)² in float32."""
    squares = jax.tree.map(lambda p, t: jnp.sum(jnp.square((p - t).astype(jnp.float32))), params, target)
    return 0.5 * size * sum(jax.tree.leaves(squares), jnp.zeros((), jnp.float32))


def gradient(params: Any, target: Any, size: Any, extra_args: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Returns the gradient, and the extra arguments of an update by these names."""

    def value_fn(params: Any) -> jax.Array:
        return objective(params, target, size)

    value, grads = jax.value_and_grad(value_fn)(params)
    known = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn, UNKNOWN: value}
    return grads, {name: known[name] for name in extra_args}


def step(
    tx: Any, params: Any, state: Any, target: Any, size: Any = 1.0, *, extra_args: Sequence[str]
) -> tuple[Any, Any, Any]:
    """Takes one step of training as `optlab.training.make_step` does: (params, state, updates)."""
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
    """Returns an error's message on one line."""
    return " ".join(str(error).split())[:200]
