"""A parameter's name, shape and neighbours, as far as they say what it is.

Linen's dicts, an `nnx.State`, `nnx.to_pure_dict`, Haiku's and Equinox's names, plain dicts and lists (in which ranks 0,
1 and 2 can be read). Kernels are (in, out), as Flax has them; what is called "weight" is (out, in), as in Equinox and
PyTorch; a bias beside it shows it better.
"""

import itertools
import math
from functools import cached_property
from typing import TypeAlias

from optlab.roles._axes import MatrixAxes
from optlab.roles._names._words import (
    EMBEDDINGS,
    EXPERTS,
    FUSED,
    GAINS,
    INTO_HEADS,
    KERNELS,
    NORMS,
    OUT_OF_HEADS,
    PATCHES,
    POSITIONS,
    PROJECTIONS,
    TOKENS,
    TRANSFORMED,
    VECTORS,
    has,
    says_head,
    words,
)

Shape: TypeAlias = tuple[int, ...]


class Parameter:
    """A leaf of the parameters' tree while its role is inferred. What depends on names alone is kept."""

    def __init__(self, path: str, names: tuple[str, ...], shape: Shape) -> None:
        self.path, self.names, self.shape = path, names, shape
        self.own = names[-1] if names else ""
        self.kind = self.own.lower().rstrip("_0123456789")  # without a number: "w" of "w1"
        self.number = self.own[len(self.kind) :]
        self.layer = names[:-1] if self.own in KERNELS else names  # the path of the layer that it is the kernel of
        self.layer_name = self.layer[-1] if self.layer else ""
        self.beside: dict[tuple[str, str], Parameter] = {}  # the arrays of its layer, by kind and number
        self.module = Module()  # the layers beside its own
        self.stack: tuple[int, ...] = ()  # the axes that count layers
        self.rest, self.one_shape = tuple(range(len(shape))), shape  # the others, and the shape in a single layer
        self.is_turned = False  # (out, in), as a bias shows that belongs to no kernel
        self.axes = MatrixAxes()  # once they are inferred

    def count_layers(self, axis: int) -> None:
        """By this axis of `rest`."""
        self.stack = (*self.stack, self.rest[axis])
        self.rest = (*self.rest[:axis], *self.rest[axis + 1 :])
        self.one_shape = tuple(self.shape[a] for a in self.rest)

    @property
    def fans(self) -> tuple[int, int]:
        return self.axes.fans(self.shape)

    @cached_property
    def is_bias(self) -> bool:
        """Of the kernel beside it; gating_b is that of gating_w."""
        kernel = next((self.beside[k, self.number].shape for k in KERNELS if (k, self.number) in self.beside), ())
        named = self.kind == "bias" or (self.kind == "b" and _is_bias_of(self.shape, kernel))
        return named or (self.own.endswith("_b") and (self.kind[:-1] + "w", self.number) in self.beside)

    @cached_property
    def bias(self) -> Shape | None:
        """The shape of the bias beside a kernel."""
        beside = [self.beside.get((kind, self.number)) for kind in ("bias", "b")]
        return next((b.shape for b in beside if b and b.is_bias), None) if self.kind in KERNELS else None

    @property
    def one_bias(self) -> Shape:
        """The shape of a single layer's bias, () if there is none."""
        bias = tuple(n for a, n in enumerate(self.bias or ()) if a not in self.stack)
        return bias[:1] if set(bias[1:]) == {1} else bias  # Equinox' convolutions have (out, 1, 1)

    @property
    def has_bias_by_group(self) -> bool:
        """True if a bias (groups, out) shows that a kernel (groups, in, out) is a matrix for each group."""
        bias = tuple(n for n in self.bias or () if n != 1)
        return len(self.shape) == 3 and not self.stack and bias == self.shape[::2] != self.shape[1:]

    @cached_property
    def of_norm(self) -> bool:
        """True if it is a norm's gain or bias, which a single layer has as vectors."""
        scope = self.names[-2] if len(self.names) > 1 else ""
        named = (has(scope, NORMS) and not has(scope, {"mlp"})) or "norm" in scope.lower()
        in_norm = named and (self.own == "kernel" or ("kernel", "") not in self.beside)
        return has(self.own, GAINS) or (in_norm and self.own.lower() in {"weight", "w", *VECTORS})

    @property
    def _is_called_table(self) -> bool:
        return words(self.own)[-1:] == ("table",) and len(self.one_shape) > 1

    @property
    def is_vector(self) -> bool:
        """By its name at any rank, or because it is as long as it is big: a probe is (1, 1, width)."""
        named = self.is_bias or self.of_norm or (has(self.own, VECTORS) and not self._is_called_table)
        if named or len(self.one_shape) == 1:
            return True
        is_long = len(self.one_shape) > 2 > sum(n != 1 for n in self.one_shape)
        return is_long and self.kind not in KERNELS and not self.is_embedding

    @property
    def is_embedding(self) -> bool:
        """By its own name at any rank (a class token is (1, 1, width)), by its layer's name at rank 2."""

        def named(name: str) -> bool:
            return ("embed" in name.lower() or has(name, EMBEDDINGS)) and not has(name, PROJECTIONS)

        if named(self.own) or has(self.own, TOKENS) or self._is_called_table:
            return True
        is_long = len(self.one_shape) == 2 and self.one_shape[0] > 64 * self.one_shape[1]  # a vocabulary
        return len(self.one_shape) == 2 and (named(self.layer_name) or (is_long and "embed" in self.layer_name.lower()))

    @property
    def of_positions(self) -> bool:
        return has(" ".join(self.names[-2:]), POSITIONS)

    @property
    def is_conv(self) -> bool:
        """By its layer's name, or because its window is square: a bias of several axes is a projection's, and experts
        may be as many as layers."""
        rank = len(self.one_shape)
        if rank > 3 and any(name in PATCHES for name in self.names[:-1]):
            return True
        if "local" in self.layer_name.lower():  # a window for every place: Linen's ConvLocal
            return False
        square = rank == 4 and self.window is not None and self.kind in KERNELS and len(self.one_bias) < 2
        return rank > 2 and ("conv" in self.layer_name.lower() or (square and not self._names_experts))

    @property
    def window(self) -> slice | None:
        """The place of a square window in the shape of what may be a single convolution: the smaller of two squares.

        PyTorch's and Equinox's "weight" has it behind, (out, in, height, width), and a few Flax models' in front.
        """
        front, back = self.one_shape[:2], self.one_shape[2:]
        if self.kind != "weight":
            return slice(0, 2) if front[0] == front[1] else None
        squares = [side for side in (front, back) if len(side) == 2 and side[0] == side[1]]
        if not squares or (len(squares) == 2 and front == back):
            return None
        return slice(0, 2) if min(squares) == front else slice(2, 4)

    @property
    def _has_channels_in_front(self) -> bool:
        return self.kind == "weight" and not (len(self.one_shape) == 4 and self.window == slice(0, 2))

    @property
    def channels(self) -> tuple[int, int]:
        """The axes of a convolution's input and output, which a transposed one's bias shows to be exchanged."""
        into, out = self.rest[1::-1] if self._has_channels_in_front else self.rest[-2:]
        bias = math.prod(self.one_bias)
        return (out, into) if self.one_bias and self.shape[into] == bias != self.shape[out] else (into, out)

    @property
    def may_be_stacked_convs(self) -> bool:
        """True if it is a convolution, or else a stack of those with a dimension less: nothing shows which.

        A window (H, W) that isn't square may be a stack of (W,), and (D, H, H) one of (H, H), unless a norm of a single
        layer that fits stands beside it.
        """
        rank, name = len(self.shape), self.layer_name.lower()
        if not self.is_conv or self.stack or self.bias or rank not in (4, 5) or f"{rank - 2}d" in name:
            return False
        window = self.shape[2:] if self._has_channels_in_front else self.shape[:-2]
        if any(has(scope, TRANSFORMED) for scope in self.names):
            return True
        if any(self.shape[a] in self.module.norms for a in self.channels):
            return False
        return self.shape[0] != 1 and window[0] != window[1] and window[1:] == window[-1:] * (rank - 3)

    @cached_property
    def head_scope(self) -> tuple[str, ...]:
        """The path of the innermost module around it, or layer, that is called a head; () if there is none. What lies
        inside an attention is an attention's head."""
        if self.layer in (("out",), ("output",)) and not self.module.has_queries:  # the whole model's
            return self.layer
        ends = [i for i, name in enumerate(self.layer, 1) if says_head(name)]
        if not ends:
            return ()
        called, around = self.layer[ends[-1] - 1], self.layer[: ends[-1] - 1]
        is_attentions = any(words(name)[-1:] in (("attention",), ("attn",)) for name in around)
        return () if is_attentions and words(called) in (("head",), ("heads",)) else self.layer[: ends[-1]]

    @cached_property
    def projections(self) -> int:
        """The number of projections in a fused kernel, 0 if it is none."""
        name = self.layer_name
        if words(name) in (("dense",), ("linear",)) and len(self.layer) > 1:
            name = self.layer[-2]  # QKV_0/Dense_0
        if name == "c_attn" or {"query", "key", "value"} <= set(words(name)):
            return 3
        return next((n for fused, n in FUSED.items() if fused in words(name)), 0)

    @cached_property
    def into_heads(self) -> bool:
        """True if it makes queries, keys or values; a value head makes none."""
        named = (has(self.layer_name, INTO_HEADS) or self.projections > 0) and "weight" not in words(self.layer_name)
        return named and not says_head(self.layer_name)

    @property
    def attends(self) -> bool:
        """True if it belongs to an attention, by its neighbours or by a name near above it."""
        return self.module.has_queries or any("attention" in n.lower() or "attn" in words(n) for n in self.layer[-3:-1])

    @cached_property
    def out_of_heads(self) -> bool:
        """True if it puts the heads together; outside an attention a stack of experts' "wo" doesn't."""
        name = self.layer_name if self.module.has_queries else " ".join(self.layer[-2:])
        if self.into_heads or has(name, {"in"}):
            return False
        if self.attends:
            return has(name, {*OUT_OF_HEADS, "proj"})
        return has(self.layer_name, OUT_OF_HEADS) and not self._is_under_experts

    @property
    def may_be_stacked_queries(self) -> bool:
        """True if it makes queries, keys or values, of one layer or of many: nothing shows which."""
        return self.into_heads and not self.stack and self.module.has_unclear_queries

    @cached_property
    def _names_experts(self) -> bool:
        return any(part in name.lower() for name in self.names for part in EXPERTS)

    @property
    def _is_under_experts(self) -> bool:
        return self._names_experts or any(has(name, TRANSFORMED) for name in self.names)

    @property
    def is_expert(self) -> bool:
        """True if all but its last two axes count experts, or layers that nothing else shows."""
        if len(self.one_shape) < 3 or self.is_vector or self.is_embedding:
            return False
        if self.layer_name == "linear" and self.module.named("gating_einsum"):  # Gemma's
            return True
        return self._is_under_experts and not (self.is_conv or self.into_heads or self.out_of_heads)


def _is_bias_of(bias: Shape, kernel: Shape) -> bool:
    """True if what is called "b" has a bias's shape: LoRA's "b" beside "w" is a matrix."""
    bias = tuple(n for n in bias if n != 1) if len(bias) >= len(kernel) else bias
    if len(bias) == 1 or not kernel:
        return bool(kernel)
    fits = bias == kernel[-len(bias) :] or any(n == m for n, m in zip(bias[:2], kernel, strict=False))
    return len(bias) < len(kernel) and (fits or sum(n != 1 for n in bias) < 2)


class Module:
    """Layers beside each other, and what they show together once the stacks are known.

    Attributes:
        members: their parameters.
        inside: the arrays of layers within it.
        model_norms: the lengths of all norms' gains and biases of single layers.
    """

    def __init__(self) -> None:
        self.members: list[Parameter] = []
        self.inside: list[Parameter] = []
        self.model_norms: set[int] = set()

    def named(self, layer: str) -> Parameter | None:
        return next((p for p in self.members if p.layer_name == layer), None)

    @cached_property
    def norms(self) -> set[int]:
        """The lengths of the norms' arrays of a single layer in it."""
        return {p.shape[0] for p in self.inside if p.of_norm and len(p.shape) == 1}

    @cached_property
    def has_queries(self) -> bool:
        """True if it makes two or more of queries, keys and values."""
        return sum({p.layer_name: max(1, p.projections) for p in self.members if p.into_heads}.values()) > 1

    @cached_property
    def holds_gates(self) -> "Parameter | None":
        """A kernel that holds a gate and what it gates, (width, 2, hidden width), as MaxText's wi: the only other one
        leads back."""
        kernels = [p for p in self.members if p.own in KERNELS and not p.is_vector]
        for p, other in itertools.permutations(kernels, 2) if len(kernels) == 2 else ():
            shape, is_attentions = p.one_shape, self.has_queries or p.into_heads or other.into_heads
            leads_back = len(shape) == 3 and shape[1] == 2 and other.one_shape == shape[:1:-1] + shape[:1]
            if leads_back and not is_attentions and not p.is_conv:
                return p
        return None

    # What a key or value, or better the output's kernel, says of an attention's width.

    @cached_property
    def _into(self) -> set[int]:
        return {p.one_shape[0] for p in self.members if self.has_queries and p.into_heads and 1 < len(p.one_shape) < 4}

    @cached_property
    def _out(self) -> set[int]:
        return {p.one_shape[-1] for p in self.members if self.has_queries and p.out_of_heads and len(p.one_shape) > 1}

    @property
    def widths(self) -> set[int]:
        """Of the model, as the attention's other kernels show."""
        return self._out or self._into

    @cached_property
    def has_unclear_queries(self) -> bool:
        """True if what isn't stacked for certain may be all the same.

        A query of rank 4 may be one of grouped queries or a stack of plain ones (with keys of rank 3 of multi-query
        attention), if neither the output shows the width nor a norm is as wide as the first axis. Those of rank 3 may
        be a stack of matrices, if the output gives another width than all of them take.
        """
        plain = [p for p in self.members if p.into_heads and not (p.is_conv or p.projections or p.bias)]
        is_long = self.has_queries and any(len(p.one_shape) > 3 for p in plain)
        is_shown = self._out or (self._into and self._into <= self.model_norms)
        is_foreign = bool(self._out and self._into) and self._out.isdisjoint(self._into)
        return (is_long and not is_shown) or is_foreign
