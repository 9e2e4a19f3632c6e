"""`MatrixAxes`: how an array of any rank is seen as a matrix, or as a stack of matrices."""

import dataclasses
import math
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """A view of a leaf as a matrix, or a stack of them. Every axis of the leaf is in one of the first three tuples.

    A dense kernel: ((), (0,), (1,)). A convolution (H, W, in, out): ((), (0, 1, 2), (3,)). A query, key or value kernel
    (width, heads, head width): ((), (0,), (1, 2)), or by head ((1,), (0,), (2,)). An attention's output kernel (heads,
    head width, width): ((), (0, 1), (2,)). Under `nn.scan` the first axis is in `stack`. What is no matrix has no input
    and no output.

    A class of its own, not a NamedTuple, so that a tree of them has the structure of the parameters' tree.

    Attributes:
        stack: the axes that count matrices.
        input: the axes that together are a matrix's input.
        output: the axes that together are its output.
        view: the shape that the leaf is reshaped to first, whose axes are meant: a fused kernel (width, 3·width) is
            three matrices by ((1,), (0,), (2,), (width, 3, width)). Empty is the leaf's own shape.
    """

    stack: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    view: tuple[int, ...] = ()

    @property
    def is_matrix(self) -> bool:
        return bool(self.input and self.output)

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Refuses axes that can't be of the leaf at this path, of this shape.

        Raises:
            ValueError: it names both.
        """
        if self.view and math.prod(self.view) != math.prod(shape):
            raise ValueError(f"{path}: {self} doesn't fit the shape {shape}: the view has another number of elements")
        rank = len(self.view or shape)
        if (self.stack or self.is_matrix) and sorted(self.stack + self.input + self.output) != list(range(rank)):
            raise ValueError(f"{path}: {self} must name each of the axes 0 to {rank - 1} of {self.view or shape} once")

    def fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(fan_in, fan_out) of a leaf of this shape."""
        shape = self.view or shape
        return math.prod(shape[a] for a in self.input), math.prod(shape[a] for a in self.output)

    def to_matrices(self, x: jax.Array) -> jax.Array:
        """The leaf as matrices of shape (stack, fan_in, fan_out)."""
        viewed = x.reshape(self.view) if self.view else x
        return _transposed(viewed, self.stack + self.input + self.output).reshape(-1, *self.fans(x.shape))

    def from_matrices(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Back from `to_matrices` to the leaf's own shape."""
        order, viewed = self.stack + self.input + self.output, self.view or shape
        x = _transposed(matrices.reshape([viewed[a] for a in order]), [order.index(a) for a in range(len(order))])
        return x.reshape(shape) if self.view else x

    def with_stacked(self, axis: int) -> "MatrixAxes":
        """The same with an axis of the input or the output in the stack."""

        def rest(side: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a for a in side if a != axis)

        return MatrixAxes((*self.stack, axis), rest(self.input), rest(self.output), self.view)

    def with_split(self, shape: tuple[int, ...], axis: int, parts: int) -> "MatrixAxes":
        """The same with an axis seen as (parts, the rest) and the parts in the stack; the leaf has this shape."""
        shape = self.view or shape

        def later(side: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a + (a >= axis) for a in side)

        view = (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])
        return MatrixAxes((*later(self.stack), axis), later(self.input), later(self.output), view)


def _transposed(x: jax.Array, order: Sequence[int]) -> jax.Array:
    # A transposition that changes nothing would be traced hundreds of times.
    return x if list(order) == list(range(x.ndim)) else x.transpose(order)
