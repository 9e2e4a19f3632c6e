"""A training step as a pure function: state, batch → state, metrics."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optlab._checks import check_decay
from optlab._integers import is_count
from optlab._measure import Measure
from optlab._trees import complex_leaf
from optlab.config import nearest
from optlab.data import Batch
from optlab.training.guard import Guard, check_guard, guarded
from optlab.training.measures import measured
from optlab.training.reductions import wide, with_norm
from optlab.training.state import TrainState
from optlab.training.workload import Loss, Metrics

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
MeasuredStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics, Metrics]]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of a training step, as `make_step`, `train` and `assemble` take them.

    Attributes:
        accumulate: microbatches that the batch is cut into, one after another; their mean is exact, weights included.
        ema: the moving average's decay d, ema ← d·ema + (1 − d)·params; a number, or a function of the steps made
            before, such as `optlab.schedules.tail_average`. The average is then what is evaluated. None: no average.
        guard: what happens to a step at fault: one whose loss, gradient norm, new parameters, moving average or model
            state isn't finite, or whose loss is a spike. The step adds the metric "fault": 0, or one more than the
            index in `optlab.training.guard.FAULTS`. "stop": the loop ends the run with a NonFiniteError. "skip": the
            step keeps the old state, all but the step's number, so that the optimizer's own counts and schedules don't
            go on either; it holds parameters and optimizer state twice. None: the run goes on with what came out, which
            is never saved.
        spike: a loss by more than so many standard deviations above the running mean of those before is at fault, too;
            adds the metric "loss_z", and needs `init_state(…, spike=True)`.

    Raises:
        ValueError: for an impossible value.
    """

    accumulate: int = 1
    ema: float | Callable[[jax.Array], Any] | None = None
    guard: Guard | None = "stop"
    spike: float | None = None

    def __post_init__(self) -> None:
        if not is_count(self.accumulate):
            raise ValueError(f"accumulate must be a whole number of at least 1, got {self.accumulate!r}")
        check_guard(self.guard, self.spike)
        if self.ema is not None and not callable(self.ema):
            check_decay("ema", self.ema)

    @classmethod
    def of(cls, function: Callable[..., Any], keywords: Mapping[str, Any]) -> StepSettings:
        """The settings that a function got as its further keywords.

        Raises:
            TypeError: for another keyword; it names the nearest argument of the function.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        if unknown := [name for name in keywords if name not in names]:
            own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
            raise TypeError(f"{function.__name__}() has no argument {unknown[0]!r}; {nearest(unknown[0], own + names)}")
        return cls(**keywords)


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    **settings: Any,
) -> Step:
    """Makes the pure function that moves a state by one update.

    `tx.update` also gets those of `value=`, `grad=`, `value_fn=` and `grad_fn=` that it takes, so that L-BFGS, Polyak,
    MoMo, plateau rules and `optax.contrib.sam` work; in the opaque mode SAM is right with BatchNorm, too.

    Args:
        loss: (params, model_state, batch, key, train) -> (scalar, (model_state, metrics)), see `Workload`. Over devices
            (pmap) and microbatches its scalars are averaged by the weight of metrics["loss"], so that each has to be a
            mean by it: a summed loss would be another one there. `train` checks that, a step by itself can't.
        tx: any optax transformation that ends in the learning rate.
        axis_name: the mapped axis (pmap) over which gradients, metrics and model state are averaged before `tx.update`;
            whole numbers in the model state stay each device's own, as right for a count of steps: one of examples has
            to be summed in the loss, by `jax.lax.psum`, if `train`.
        **settings: those of `StepSettings`: accumulate, ema, guard, spike.

    Returns:
        step(state, batch) -> (state, metrics), metrics being (sum, weight) by name; "gradient_norm" is one of them.
        It refuses complex parameters.
    """
    whole = make_measured_step(loss, tx, StepSettings.of(make_step, settings), axis_name=axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics, _ = whole(state, batch)
        return new, metrics

    return step


def make_measured_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    settings: StepSettings,
    *,
    axis_name: str | None = None,
    measures: Sequence[Measure] = (),
) -> MeasuredStep:
    """Makes the same step, which also returns what is measured in it, by its names in the records."""
    tx = optax.with_extra_args_support(tx)
    is_taken = takes(tx.update)
    gradient = _mean_gradient(loss, axis_name, settings.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, Metrics]:
        _check_real(state.params)
        key = jax.random.fold_in(state.key, state.step)

        def at(params: Any) -> Any:
            return gradient(params, state.model_state, batch, key)

        value, grads, model_state, metrics = at(state.params)
        grads, norm = with_norm(grads)
        value_fn = _with_gradient(lambda params: at(params)[:2])
        extra = {"value": value, "grad": grads, "value_fn": value_fn, "grad_fn": lambda params, _: at(params)[1]}
        extra = {name: x for name, x in extra.items() if is_taken(name)}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=_averaged(settings.ema, state, params),
        )
        found = {"gradient_norm": norm}
        if settings.guard is not None:
            new, faults = guarded(state, new, value, norm, guard=settings.guard, spike=settings.spike)
            found |= faults
        metrics |= {name: (x, jnp.ones(())) for name, x in found.items()}
        taken = measured(measures, loss, state, batch, gradient=grads, after=new, tx=tx, axis_name=axis_name)
        return new, metrics, taken

    return step


def _averaged(ema: float | Callable[[jax.Array], Any] | None, state: TrainState, params: Any) -> Any:
    """The moving average with the newest parameters, whose weight is 1 − d; a schedule may know it more exactly."""
    if ema is None:
        return state.ema
    if not callable(ema):
        newest: Any = 1 - ema
    else:
        newest = ema.newest(state.step) if hasattr(ema, "newest") else 1 - ema(state.step)
    return jax.tree.map(lambda a, p: a + (newest * (p - a)).astype(a.dtype), state.ema, params)


def _check_real(params: Any) -> None:
    """Refuses complex parameters: JAX's gradient is the conjugate of steepest ascent, which rules would go uphill by.

    Turned round it would be right for rules and wrong for line searches, which take `grad` as JAX gives it.
    """
    if found := complex_leaf(params):
        name, dtype = found
        raise ValueError(
            f"the parameters must be real, and {name!r} is {dtype}: hold its real and its imaginary part, and put them "
            "together in the model"
        )


def make_evaluation(loss: Loss) -> Callable[[Any, Any, Batch, jax.Array], Metrics]:
    """(params, model_state, batch, key) -> metrics of the model in use: no dropout, running statistics."""

    def evaluate(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Metrics:
        try:
            return as_pairs(loss(params, model_state, batch, key, False)[1][1])
        except NameError as error:
            if "unbound axis name" not in str(error):
                raise
            raise ValueError(
                f"{error}: an evaluation has the whole batch and no such axis, so what the loss sums over the devices "
                "belongs under `if train`"
            ) from error

    return evaluate


def as_pairs(metrics: Any) -> Metrics:
    """A loss's metrics as numbers in at least float32; a weight may be a Python number."""
    if "loss" not in metrics:
        raise ValueError(f"the loss's metrics must hold 'loss' as (sum, weight), got the names {sorted(metrics)}")
    for name, pair in metrics.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"the loss's metric {name!r} must be (sum, weight), got a {type(pair).__name__}")
        if any(jnp.shape(x) for x in pair):
            raise ValueError(
                f"the loss's metric {name!r} must be (sum, weight) over the batch, two numbers, got the shapes "
                f"{jnp.shape(pair[0])} and {jnp.shape(pair[1])}"
            )
    return {name: (wide(jnp.asarray(a)), wide(jnp.asarray(b))) for name, (a, b) in metrics.items()}


def _mean_gradient(loss: Loss, axis_name: str | None, accumulate: int) -> Callable[..., Any]:
    """(params, model_state, batch, key) -> (value, gradient, model_state, metrics), over microbatches and devices."""
    is_parted = accumulate > 1 or axis_name is not None

    def weighted(*arguments: Any) -> Any:
        """The loss times its weight, by which it is differentiated: BatchNorm lets it reach devices of another weight.

        The weight is a share of the largest device's, which the gradient is multiplied by later and in float32: in
        float16 it would overflow as a sum.
        """
        value, (model_state, metrics) = loss(*arguments)
        metrics = as_pairs(metrics)
        if not is_parted:
            return value, (model_state, metrics, None)
        weight = lax.stop_gradient(metrics["loss"][1])
        largest = weight if axis_name is None else lax.pmax(weight, axis_name)
        largest = jnp.where(largest > 0, largest, 1)
        return wide(value) * (weight / largest), (model_state, metrics, largest)

    value_and_grad = jax.value_and_grad(weighted, has_aux=True)

    def one(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        (value, (model_state, metrics, largest)), grads = value_and_grad(params, model_state, batch, key, True)
        terms = (value, grads)
        if largest is not None:
            terms = jax.tree.map(lambda x: wide(x) * largest.astype(wide(x).dtype), terms)
        return terms, model_state, metrics

    def many(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        """The same, microbatch after microbatch."""

        def body(carry: Any, item: Any) -> Any:
            sums, model_state, metrics = carry
            index, micro = item
            terms, model_state, new = one(params, model_state, micro, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, sums, terms), model_state, jax.tree.map(jnp.add, metrics, new)), None

        examples = len(jax.tree.leaves(batch)[0])
        if examples % accumulate:
            raise ValueError(f"accumulate must divide the batch's {examples} examples, got {accumulate}")
        # Every accumulate-th example: a device that holds a part of the batch has a part of each microbatch.
        micros = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(one, params, model_state, jax.tree.map(lambda x: x[0], micros), key)

        def zeros(tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

        carry = (zeros(shapes[0]), model_state, zeros(shapes[2]))
        return lax.scan(body, carry, (jnp.arange(accumulate), micros))[0]

    def gradient(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        terms, model_state, metrics = (one if accumulate == 1 else many)(params, model_state, batch, key)
        if axis_name is not None:
            terms, metrics = lax.psum((terms, metrics), axis_name)

            def is_float(x: Any) -> bool:
                return jnp.issubdtype(x.dtype, jnp.inexact)

            def mean(x: Any) -> Any:
                return lax.pmean(wide(x), axis_name).astype(x.dtype)

            model_state = jax.tree.map(lambda x: mean(x) if is_float(x) else x, model_state)
        if is_parted:  # Σ weight · gradient / Σ weight, and 0 where no example counts
            weight = metrics["loss"][1]
            weight = jnp.where(weight == 0, 1, weight)
            value, grads = jax.tree.map(lambda x: x / weight.astype(x.dtype), terms)
            terms = value, jax.tree.map(lambda x, p: x.astype(p.dtype), grads, params)
        return (*terms, model_state, metrics)

    return gradient


def takes(function: Callable[..., Any]) -> Callable[[str], bool]:
    """True if an update takes the argument of that name: SAM's refuses what it doesn't name, L-BFGS's refuses SAM's."""
    arguments = inspect.signature(function).parameters
    takes_any = any(a.kind == inspect.Parameter.VAR_KEYWORD for a in arguments.values())
    return lambda name: name in arguments or (takes_any and name != "grad_fn")


def _with_gradient(value_and_gradient: Callable[[Any], tuple[jax.Array, Any]]) -> Callable[[Any], jax.Array]:
    """A function of the parameters with the given gradient: right where autodiff can't see the other devices."""
    value = jax.custom_vjp(lambda params: value_and_gradient(params)[0])
    value.defvjp(value_and_gradient, lambda grads, cotangent: (jax.tree.map(lambda g: cotangent * g, grads),))
    return value
