"""Dtypes, roots and signs in which nothing is lost: of 16 bits, of complex numbers, at zero.

State may be stored in 16 bits, but nothing is computed in them: in bfloat16 a decay of 0.999 is 1, and in float16 an
epsilon of 1e-8 is 0, so that zero gradients give 0 / 0.

A complex coordinate is one coordinate: its size is |x|, its sign the phase x / |x|, and two of them agree where
Re(x·ȳ) > 0. As in optax, gradients are to be those of steepest ascent, the conjugates of what `jax.grad` gives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab._trees import complex_leaf


def wide_dtype(x: Any) -> Any:
    """The dtype that `x` is computed in: its own, but at least float32. Integers stay integers."""
    dtype = jnp.result_type(x)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def widen(tree: Any) -> Any:
    """The tree with every leaf in at least float32."""
    return jax.tree.map(lambda x: _in_dtype(x, wide_dtype(x)), tree)


def squares_like(tree: Any, value: Any, dtype: Any | None = None) -> Any:
    """A tree of the same shapes filled with `value`, in `dtype` or at least float32: where sums of |x|² are kept."""

    def real(x: Any) -> Any:
        return jnp.finfo(x).dtype if jnp.issubdtype(x, jnp.complexfloating) else x

    return jax.tree.map(lambda x: jnp.full_like(x, value, dtype or real(wide_dtype(x))), tree)


def check_holds(tree: Any, name: str, dtype: Any | None) -> None:
    """Refuses a real dtype for averages of complex leaves: it would lose their imaginary part."""
    if dtype is None or jnp.issubdtype(dtype, jnp.complexfloating):
        return
    if found := complex_leaf(tree):
        where, kind = found
        raise ValueError(
            f"{name}={jnp.dtype(dtype).name!r} can't hold what belongs to {where!r}, which is {kind}: take a complex "
            "dtype, or leave it away"
        )


def cast_like(tree: Any, *targets: Any) -> Any:
    """The tree with every leaf in the dtype of the target's leaf; of several targets, in what can hold them all."""
    return jax.tree.map(lambda x, *y: _in_dtype(x, jnp.result_type(*map(jnp.result_type, y))), tree, *targets)


def _in_dtype(x: Any, dtype: Any) -> jax.Array:
    """In float16 what is finite stays so: a sum of gradients of 4000 is beyond its 65504."""
    if isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type:
        return x  # an operation that is left out needn't be traced
    if dtype == jnp.float16 and jnp.issubdtype(jnp.result_type(x), jnp.floating):
        largest = float(jnp.finfo(dtype).max)
        x = jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)
    return jnp.asarray(x, dtype)


def add_scaled(y: jax.Array, a: Any, x: jax.Array) -> jax.Array:
    """y + ax. Where no dtype changes by lax's own operations, which take half of jnp's time to trace."""
    if type(a) not in (int, float) or x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.inexact):
        return y + a * x
    return lax.add(y, lax.mul(x, np.asarray(a, x.dtype)))


def abs_square(x: jax.Array) -> jax.Array:
    """|x|², of complex numbers, too."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def agreement(x: jax.Array, y: jax.Array) -> jax.Array:
    """Re(x·ȳ), coordinate by coordinate, of their signs: in 16 bits the product itself may round to 0."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return (jnp.sign(x) * jnp.sign(y).conj()).real
    return jnp.sign(x) * jnp.sign(y)


@jax.custom_jvp
def roots(tree: Any) -> Any:
    """√x of every leaf, with the derivative 0 at 0: √(g²) has all slopes from −1 to 1 there, and JAX's rule gives NaN.

    One call for a whole tree, since each costs time to trace; the compiled program is that of `jnp.sqrt`.
    """
    return jax.tree.map(jnp.sqrt, tree)


@roots.defjvp
def _roots_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    found = roots(*primals)
    return found, jax.tree.map(lambda s, dx: dx / (2 * jnp.where(s > 0, s, jnp.inf)), found, *tangents)


def check_state_dtypes(**dtypes: Any) -> None:
    """Refuses to store moments as anything but floating-point numbers: in integers most of them are 0."""
    for name, dtype in dtypes.items():
        try:
            is_float = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
        except TypeError:
            is_float = False
        if not is_float:
            raise ValueError(f"{name} must be a floating-point dtype, such as 'float32' or 'bfloat16', got {dtype!r}")


def check_wide(**values: Any) -> None:
    """Refuses hyperparameters that come as arrays of 16 bits: what is lost there no wider arithmetic brings back.

    `optax.inject_hyperparams` makes them so when all parameters have 16 bits.
    """
    for name, value in values.items():
        dtype = getattr(value, "dtype", jnp.float32)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{name} must be a number or at least float32, got {dtype}, in which 0.999 or 1e-8 rounds to "
                "1 or 0: to optax.inject_hyperparams give hyperparam_dtype=jnp.float32"
            )


def computed_wide(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """One of optax's transforms that use no parameters, in at least float32; state and updates keep their dtypes."""
    tx = optax.with_extra_args_support(tx)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        new_updates, new_state = tx.update(widen(updates), widen(state), params, **extra_args)
        return cast_like(new_updates, updates), cast_like(new_state, state)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)
