"""A training step as a pure function: state, batch → state, metrics."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab._checks import check_decay, is_count
from optlab.data import Batch
from optlab.training.guard import Guard, check_guard, guarded
from optlab.training.reductions import wide, with_norm
from optlab.training.state import TrainState
from optlab.training.workload import Loss, Metrics

DRAWS = 64  # of a loss whose noise can't be made even, to tell whether it is a mean

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    accumulate: int = 1,
    ema: float | Callable[[jax.Array], Any] | None = None,
    guard: Guard | None = "stop",
    spike: float | None = None,
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
        whole numbers in the model state stay each device's own, as right for a count of steps: one of examples has to
        be summed in the loss, by `jax.lax.psum`, if `train`.
      accumulate: microbatches that the batch is cut into, one after another; their mean is exact, weights included.
      ema: the moving average's decay d, ema ← d·ema + (1 − d)·params; a number, or a function of the steps made
        before, such as `optlab.schedules.tail_average`.
      guard: adds the metric "fault": 0, or one more than the index in `optlab.training.guard.FAULTS` of what is at
        fault: a loss, a gradient's norm, new parameters, moving average or model state that isn't finite, or a spike.
        "stop" does no more (the loop then ends the run); "skip" keeps the old state, all but the step's number, so that
        the optimizer's own counts and schedules don't go on either. It holds parameters and optimizer state twice.
      spike: a loss by more than so many standard deviations above the running mean of those before is at fault, too;
        adds the metric "loss_z", and needs `init_state(…, spike=True)`.

    Returns:
      step(state, batch) -> (state, metrics), metrics being (sum, weight) by name; "gradient_norm" is one of them.
      It refuses complex parameters.
    """
    if not is_count(accumulate):
        raise ValueError(f"accumulate must be a whole number of at least 1, got {accumulate!r}")
    check_guard(guard, spike)
    if ema is not None and not callable(ema):
        check_decay("ema", ema)
    tx = optax.with_extra_args_support(tx)
    is_taken = takes(tx.update)
    gradient = _mean_gradient(loss, axis_name, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_real(state.params)
        key = jax.random.fold_in(state.key, state.step)
        at = lambda params: gradient(params, state.model_state, batch, key)
        value, grads, model_state, metrics = at(state.params)
        grads, norm = with_norm(grads)
        value_fn = _with_gradient(lambda params: at(params)[:2])
        extra = {"value": value, "grad": grads, "value_fn": value_fn, "grad_fn": lambda params, _: at(params)[1]}
        extra = {name: x for name, x in extra.items() if is_taken(name)}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)

        average = state.ema
        if ema is not None:
            newest = _newest(ema, state.step)
            average = jax.tree.map(lambda a, p: a + (newest * (p - a)).astype(a.dtype), state.ema, params)
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=average
        )
        measured = {"gradient_norm": norm}
        if guard is not None:
            new, found = guarded(state, new, value, norm, guard=guard, spike=spike)
            measured |= found
        return new, metrics | {name: (x, jnp.ones(())) for name, x in measured.items()}

    return step


def _newest(ema: float | Callable[[jax.Array], Any], step: jax.Array) -> Any:
    """The newest parameters' weight in their average, 1 − d; a schedule may know it better than by the difference."""
    if not callable(ema):
        return 1 - ema
    return ema.newest(step) if hasattr(ema, "newest") else 1 - ema(step)


def _check_real(params: Any) -> None:
    """Refuses complex parameters: JAX's gradient is the conjugate of steepest ascent, which rules would go uphill by.

    Turned round it would be right for rules and wrong for line searches, which take `grad` as JAX gives it.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the parameters must be real, and {name!r} is {x.dtype}: hold its real and its imaginary part, and "
                "put them together in the model"
            )


def make_evaluation(loss: Loss) -> Callable[[Any, Any, Batch, jax.Array], Metrics]:
    """(params, model_state, batch, key) -> metrics of the model in use: no dropout, running statistics."""

    def evaluate(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Metrics:
        try:
            return _pairs(loss(params, model_state, batch, key, False)[1][1])
        except NameError as error:
            if "unbound axis name" not in str(error):
                raise
            raise ValueError(
                f"{error}: an evaluation has the whole batch and no such axis, so what the loss sums over the devices "
                "belongs under `if train`"
            ) from error

    return evaluate


def check_mean(loss: Loss, state: TrainState, batch: Batch, accumulate: int) -> None:
    """Refuses a loss whose value of a batch isn't the mean of its values of two halves, by their weights.

    Two microbatches are looked at, since the whole batch may be too large for a device. What the loss draws is the same
    for all examples here, so that the halves see what the whole batch sees. Where it makes keys of its own of what it
    is given, they see other noise all the same: then it has to be a mean over many draws.
    """
    some = lambda x: x.reshape(-1, accumulate, *x.shape[1:])[:, :2].reshape(-1, *x.shape[1:])

    def is_off(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
        tolerance = max(tolerance, 8 * float(jnp.finfo(a.dtype).eps))
        return abs(float(a) - float(b)) > tolerance * max(abs(float(a)), abs(float(b)))

    def both(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def measured(batch: Batch) -> tuple[jax.Array, jax.Array]:
            value, (_, metrics) = loss(params, model_state, batch, key, False)
            return value, _pairs(metrics)["loss"][1]

        batch = jax.tree.map(some, batch)
        (a, of_a), (b, of_b) = (measured(jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in (0, 1))
        return measured(batch)[0], (a * of_a + b * of_b) / (of_a + of_b)

    def evenly(params: Any, model_state: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        key, model_state = _even_keys(model_state)
        return both(params, model_state, batch, key)

    def turned(params: Any, model_state: Any, batch: Batch) -> jax.Array:
        key, model_state = _even_keys(model_state)
        batch = jax.tree.map(lambda x: some(x)[::-1], batch)
        return loss(params, model_state, batch, key, False)[0]

    if len(jax.tree.leaves(batch)[0]) < 2 * accumulate:
        return
    given = (state.params, state.model_state, batch)
    try:
        value, mean = jax.jit(evenly)(*given)
    except NotImplementedError:  # jax.random.poisson draws from JAX's own generator alone, which can't be compared
        return
    if not is_off(value, mean):
        return
    if is_off(value, jax.jit(turned)(*given), 1e-4):  # an example's noise depends on its place all the same
        draw = jax.jit(both)
        off = np.array([float(a) - float(b) for a, b in (draw(*given, jax.random.key(i)) for i in range(DRAWS))])
        if abs(off.mean()) < 5 * off.std(ddof=1) / np.sqrt(DRAWS):
            return
    raise ValueError(
        f"the loss must be a mean: of a batch it is {float(value):.6g}, the mean of its halves by the weight of "
        f"its metric 'loss' is {float(mean):.6g}, and so it would be averaged over devices (pmap) and "
        "microbatches (accumulate). Return sum / weight"
    )


def _even_keys(model_state: Any) -> tuple[jax.Array, Any]:
    """A key, and a model's own, whose draws are the same number in every place of an array, however many there are.

    The number changes with every split or fold of the key, so that what draws until it accepts comes to an end.
    """
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    even = lambda x: jnp.broadcast_to(jax.random.key(0, impl=_EVEN), x.shape) if is_key(x) else x
    return jax.random.key(0, impl=_EVEN), jax.tree.map(even, model_state)


def _next(data: jax.Array) -> jax.Array:
    return jax.extend.random.threefry_2x32(data, data + jnp.asarray([1, 2], jnp.uint32))


def _even_bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    words = _next(data)
    word = words[0] if width <= 32 else words[0].astype(jnp.uint64) << 32 | words[1].astype(jnp.uint64)
    return jnp.broadcast_to(word.astype(jnp.dtype(f"uint{width}")), shape)


_EVEN: Any = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.asarray([0, 1], jnp.uint32),
    split=lambda data, shape: jnp.broadcast_to(_next(data), (*shape, 2)),
    random_bits=_even_bits,
    fold_in=lambda data, number: _next(data),
    name="optlab_even",
    tag="even",
)


def _pairs(metrics: Any) -> Metrics:
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
        metrics = _pairs(metrics)
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
        zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
        carry = (zeros(shapes[0]), model_state, zeros(shapes[2]))
        return lax.scan(body, carry, (jnp.arange(accumulate), micros))[0]

    def gradient(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        terms, model_state, metrics = (one if accumulate == 1 else many)(params, model_state, batch, key)
        if axis_name is not None:
            terms, metrics = lax.psum((terms, metrics), axis_name)
            is_float = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
            mean = lambda x: lax.pmean(wide(x), axis_name).astype(x.dtype)
            model_state = jax.tree.map(lambda x: mean(x) if is_float(x) else x, model_state)
        if is_parted:  # Σ weight · gradient / Σ weight, and 0 where no example counts
            weight = metrics["loss"][1]
            weight = jnp.where(weight == 0, 1, weight)
            value, grads = jax.tree.map(lambda x: x / weight.astype(x.dtype), terms)
            terms = value, jax.tree.map(lambda x, p: x.astype(p.dtype), grads, params)
        return (*terms, model_state, metrics)

    return gradient


def takes(function: Callable[..., Any]) -> Callable[[str], bool]:
    """Whether an update takes the argument of that name: SAM's refuses what it doesn't name, L-BFGS's refuses SAM's."""
    arguments = inspect.signature(function).parameters
    takes_any = any(a.kind == inspect.Parameter.VAR_KEYWORD for a in arguments.values())
    return lambda name: name in arguments or (takes_any and name != "grad_fn")


def _with_gradient(value_and_gradient: Callable[[Any], tuple[jax.Array, Any]]) -> Callable[[Any], jax.Array]:
    """A function of the parameters with the given gradient: right where autodiff can't see the other devices."""
    value = jax.custom_vjp(lambda params: value_and_gradient(params)[0])
    value.defvjp(value_and_gradient, lambda grads, cotangent: (jax.tree.map(lambda g: cotangent * g, grads),))
    return value
