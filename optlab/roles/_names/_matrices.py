"""A parameter's matrix axes and role, as its name, shape and neighbours show them."""

import functools

from optlab.roles._axes import MatrixAxes
from optlab.roles._names._parameter import Parameter
from optlab.roles._names._words import CELLS, INTO_HEADS, KERNELS, has, words


def axes(p: Parameter) -> MatrixAxes:
    """A parameter's matrix axes, the projections that a fused kernel holds in the stack; whole, not by head."""
    rest, fused = p.rest, p.projections
    if len(rest) < 2 or p.is_vector:
        return MatrixAxes(p.stack)
    if p.is_conv:
        out = p.channels[1]
        return MatrixAxes(p.stack, tuple(a for a in rest if a != out), (out,))
    if p.is_expert:
        stack, rest = p.stack + rest[:-2], rest[-2:]
    elif fused in p.one_shape[:2] and len(rest) > 2:
        part = rest[p.one_shape.index(fused)]
        stack, rest = (*p.stack, part), tuple(a for a in rest if a != part)
    elif p.module.holds_gates is p:
        stack, rest = (*p.stack, rest[1]), (rest[0], rest[2])
    else:
        stack = p.stack
    if p.kind in KERNELS and p.has_bias_by_group:
        return MatrixAxes((*p.stack, rest[0]), (rest[1],), (rest[2],))
    if has(p.layer_name, {"einsum"}) and len(rest) > 2:
        return _einsum(p, stack, rest) or MatrixAxes(p.stack)
    count, first = _outputs(p, [p.shape[a] for a in rest])
    if not count:
        return MatrixAxes(p.stack)
    inputs, outputs = (rest[count:], rest[:count]) if first else (rest[:-count], rest[-count:])
    found = MatrixAxes(stack, inputs, outputs)
    fan_in, fan_out = found.fans(p.shape)
    if cells := _gates(p):
        return found.with_split(p.shape, found.output[0], cells)
    # BLOOM's and GPT-NeoX's query_key_value is (width, heads · 3 · head width): only by head can it be split.
    if fused and len(p.one_shape) == 2 and fan_out == fused * fan_in and "query" not in words(p.layer_name):
        return found.with_split(p.shape, found.output[0], fused)
    return found


def _gates(p: Parameter) -> int:
    """The number of a recurrent cell's gates in one kernel, as Haiku's lstm/linear/w and Equinox's lstm/weight_hh."""
    cell = next((w for name in p.names[-3:-1] for w in words(name) if w in CELLS), None)
    is_one = p.kind in ("weight_ih", "weight_hh") or (p.own == "w" and p.layer_name == "linear")
    if cell is None or not is_one or len(p.one_shape) != 2:
        return 0
    return CELLS[cell] if max(p.one_shape) % CELLS[cell] == 0 else 0


def _einsum(p: Parameter, stack: tuple[int, ...], rest: tuple[int, ...]) -> MatrixAxes | None:
    """Gemma's: queries (heads, width, head width), keys and values (2, heads, width, head width), and back."""
    if p.layer_name == "attn_vec_einsum" and len(rest) == 3:
        return MatrixAxes(p.stack, rest[:-1], rest[-1:])
    if p.layer_name == "gating_einsum":  # (2, width, hidden width), or turned, as the layer behind it shows
        sides, behind = tuple(p.shape[a] for a in rest[-2:]), p.module.named("linear")
        if behind is None or sides[0] == sides[1] or sorted(sides) != sorted(behind.one_shape[-2:]):
            return None
        into, out = rest[:-3:-1] if sides == behind.one_shape[-2:] else rest[-2:]
        return MatrixAxes((*stack, *rest[:-2]), (into,), (out,))
    if len(rest) != 3 or not (p.projections or has(p.layer_name, INTO_HEADS)):
        return None
    return MatrixAxes(stack, (rest[1],), (rest[0], rest[2]))


def _outputs(p: Parameter, shape: list[int]) -> tuple[int, bool]:
    """The number of output axes in this shape, and whether they come first. A bias shows it better than the name."""
    rank, first = (
        len(shape),
        p.kind == "weight" or p.is_turned or p.kind in ("weight_ih", "weight_hh") or p.own[:2] in ("B_", "C_"),
    )
    bias = list(p.one_bias[len(p.one_shape) - rank :]) if p.is_expert else list(p.one_bias)
    if bias and len(bias) < rank and bias in (shape[: len(bias)], shape[-len(bias) :]):
        alike = shape[: len(bias)] == shape[-len(bias) :]
        return len(bias), first if alike else shape[: len(bias)] == bias
    if rank == 2:
        return 1, first
    if first or has(p.layer_name, {"einsum"}):  # Gemma's heads come first, and others' where their equation says
        return 0, False
    if p.is_embedding or p.out_of_heads:
        return 1, False
    if p.may_be_stacked_queries:
        return 0, False
    grouped = rank > 3  # (width, groups, queries of a group, head width), or a stack that nothing shows
    return (rank - 1 if p.into_heads and (not grouped or shape[0] in p.module.widths) else 0), False


def by_head(p: Parameter, head_width: int | None) -> MatrixAxes:
    """As `axes`, but each head's projection is a matrix of its own.

    Raises:
        ValueError: where the heads of an attention's kernel can't be inferred, or don't divide it.
    """
    found = p.axes
    if not found.is_matrix or p.is_conv or not (p.into_heads or p.out_of_heads) or p.is_expert:
        return found
    side = found.output if p.into_heads else found.input
    if len(side) > 1:
        return functools.reduce(MatrixAxes.with_stacked, side[:-1], found)  # (heads, head width), (groups, heads, …)
    if not p.attends:
        return found
    length = (found.view or p.shape)[side[0]]
    if head_width is None:
        raise ValueError(
            f"per_head=True can't infer the heads of {p.path!r} from its shape {p.shape}: say head_width= (the width "
            "of a head), or its axes by overrides"
        )
    if length % head_width:
        raise ValueError(f"head_width must divide the {length} of {p.path!r}, of shape {p.shape}, got {head_width}")
    return found.with_split(p.shape, side[0], length // head_width)


def role(p: Parameter) -> str | None:
    """The role of what is no head; None where nothing shows it."""
    rank = len(p.one_shape)
    if rank == 0:
        return "scalar"
    if p.is_vector:
        return "vector" if p.names else None  # optax.flatten makes one array without a name of a tree
    if p.is_embedding:
        return "embedding"
    if p.is_conv:
        return None if p.may_be_stacked_convs else "conv"
    if rank == 2 or p.is_expert:
        return "matrix"
    is_shown = p.into_heads or p.out_of_heads or p.module.holds_gates is p or p.has_bias_by_group
    is_matrix = p.axes.is_matrix and (is_shown or has(p.layer_name, {"einsum"}))
    return "matrix" if is_matrix or len(p.axes.output) > 1 else None
