"""`read_program`: the layout that the program shows that uses the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab.roles._layout import Layout
from optlab.roles._paths import paths_of


def read_program(loss: Callable[..., Any], params: Any, *batch: Any) -> Layout:
    """Infers each parameter's role and matrix axes from the program that uses it; no name is read.

    The program is traced to a jaxpr, which is walked once, and nothing is computed. A parameter is followed from value
    to value, through casts, reshapes and whatever is elementwise among parameters, to where it meets an activation:

    - in a product (`dot_general`, a convolution) the contracted axes are its input, the free ones its output, and those
      of a batch, a scan or a counter its stack;
    - by a lookup with indices of the batch (a gather, a one-hot product) it is an embedding, and also where its rows
      stand as tokens, or are added along an axis that no parameter made (positions);
    - elementwise it is a vector.

    What the program takes apart into k equal parts after the product is k matrices (queries, keys and values; gates),
    unless the parts come together again with nothing between that mixes them (rotary embeddings). Unequal parts are
    reported as `parts`. What the batch weighs and sums up, as a gate does experts, is as many matrices. A matrix is a
    head if no other product lies between it and the loss, and it isn't added to a stream that others read; `is_input`
    is one that no product lies before. A grouped convolution is a stack by group; a depthwise one has no matrix. A
    parameter that steps along its own gradient within the program, as in MAML, is read from its uses after the last
    step. Where a parameter goes into a primitive that isn't known here, or a kernel (Pallas, a custom call), its role
    is None.

    Args:
        loss: a function of the parameters and the batch, which gives a scalar or any tree: every output counts.
        params: the parameters. Arrays or `jax.ShapeDtypeStruct`s; leaves that are no arrays, such as an Equinox
            module's functions, are passed to `loss` and left out.
        *batch: what else the loss takes, likewise arrays or shapes. Batches of 2 or more examples show most. A function
            of the parameters alone, as `optlab.minimize` takes, has no activation, so it shows little: leave its layout
            to names and shapes, or give one by `read_names` with overrides.

    Raises:
        ValueError: if two parameters have one path.
    """
    # The reader is imported here: it needs jax.extend, and would be a third of what importing an optimizer costs.
    from optlab.roles._program._conclusions import read_jaxpr

    arrays = jax.tree.map(lambda x: x if _is_array(x) else None, params)

    def program(arrays: Any, *batch: Any) -> Any:
        return loss(jax.tree.map(lambda x, array: x if array is None else array, params, arrays), *batch)

    closed = jax.make_jaxpr(program)(arrays, *batch)
    readings = read_jaxpr(closed.jaxpr, [tuple(jnp.shape(x)) for x in jax.tree.leaves(arrays)])
    return Layout(dict(zip(paths_of(arrays), readings, strict=True)), jax.tree.structure(arrays), "program")


def _is_array(x: Any) -> bool:
    return (hasattr(x, "shape") and hasattr(x, "dtype")) or isinstance(x, int | float | complex)
