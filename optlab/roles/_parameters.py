"""A parameter's name, shape and neighbours, as far as they say what it is.

Linen's dicts, an `nnx.State`, `nnx.to_pure_dict`, Haiku's and Equinox's names, plain dicts and lists (in which ranks 0,
1 and 2 can be read). Kernels are (in, out), as Flax has them; what is called "weight" is (out, in), as in Equinox and
PyTorch; a bias beside it shows it better. Names are compared word by word: "o_proj" has the words o and proj.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict
from functools import cached_property
from typing import Any, TypeAlias

Leaves: TypeAlias = tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...]  # (path, names, shape) of each

KERNELS = {"kernel", "weight", "w"}  # a layer's own array: the layer's name stands before it
TABLES = {*KERNELS, "embedding", "embeddings"}  # which have rank 2 at least in a single layer
GAINS = {"scale", "gain", "gamma"}
VECTORS = {*GAINS, "bias", "beta", "offset"}
NORMS = {"ln", "bn", "gn"}  # and whatever has "norm" in it
POSITIONS = {"position", "positions", "pos", "wpe"}
EMBEDDINGS = {*POSITIONS, "wte", "emb", "posemb"}  # and whatever has "embed" in it
PROJECTIONS = {"proj", "project", "projection", "linear", "dense", "fc"}  # even of an embedding: time_emb_proj
TOKENS = {"cls", "token", "tokens"}  # of bare arrays: a layer called token_mixing is none
HEADS = {"unembed", "unembedding", "logits", "classifier"}  # and what ends in "head", but no "multi_head"
NO_HEADS = {"multi", "pre", "map", "router", "talking"}  # whose heads are an attention's, or give no output
FUSED = {"qkv": 3, "wqkv": 3, "kv": 2, "wkv": 2}  # how many projections one kernel holds; GPT-2's "c_attn" too
INTO_HEADS = {"query", "key", "value", "q", "k", "v", "wq", "wk", "wv", "gating", *FUSED}  # (width, heads, head width)
OUT_OF_HEADS = {"out", "output", "o", "wo"}  # (heads, head width, width)
EXPERTS = ("expert", "moe")  # in any name above
CELLS = {"lstm": 4, "gru": 3}  # gates in one kernel
PATCHES = ("patch_embed", "patch_embedding")  # convolutions, in any name above
TRANSFORMED = {"vmap", "scan"}  # Linen's names for what it stacks: VmapDense_0, ScanBlock_0


@functools.cache
def words(name: str) -> tuple[str, ...]:
    """The words of a name in small letters: attn, out of "attn_out", and lm, head of "LMHead_0"."""
    return tuple(w.lower() for w in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))


def has(name: str, wanted: set[str]) -> bool:
    """Whether one of the name's words is wanted."""
    return not wanted.isdisjoint(words(name))


@dataclasses.dataclass(eq=False)
class Parameter:
    """A leaf of the parameters' tree while its role is inferred. What depends on names alone is kept."""

    path: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None = None  # the shape of the bias beside a kernel
    is_bias: bool = False  # of the kernel beside it
    beside_kernel: bool = False  # in a layer of its own that has one
    stack: tuple[int, ...] = ()  # axes that count layers
    widths: frozenset[int] = frozenset()  # of the model, as the attention's other kernels show
    beside_queries: bool = False  # in the scope of an attention's queries, keys and values, or one of them
    linear: tuple[int, ...] = ()  # the shape of a single layer's "linear" beside Gemma's gating_einsum
    is_gated: bool = False  # such a "linear"
    holds_gates: bool = False  # (width, 2, hidden width) before a kernel (hidden width, width)
    is_turned: bool = False  # (out, in), as a bias beside it shows that belongs to no kernel
    norms: frozenset[int] = frozenset()  # the lengths of those of a single layer beside it
    may_be_stacked_queries: bool = False  # or keys or values, of one layer or of many: nothing shows which

    @cached_property
    def own(self) -> str:
        return self.names[-1] if self.names else ""

    @cached_property
    def kind(self) -> str:
        """Its own name without a number: "w" of "w1"."""
        return self.own.lower().rstrip("_0123456789")

    @cached_property
    def layer(self) -> tuple[str, ...]:
        """The path of the layer that it is the kernel of; its own path where it isn't called a kernel."""
        return self.names[:-1] if self.own in KERNELS else self.names

    @cached_property
    def layer_name(self) -> str:
        return self.layer[-1] if self.layer else ""

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes of a single layer."""
        return tuple(a for a in range(len(self.shape)) if a not in self.stack)

    @property
    def one_shape(self) -> tuple[int, ...]:
        """The shape in a single layer."""
        return tuple(self.shape[a] for a in self.rest) if self.stack else self.shape

    @property
    def one_bias(self) -> tuple[int, ...]:
        """The shape of a single layer's bias, () if there is none."""
        bias = tuple(n for a, n in enumerate(self.bias or ()) if a not in self.stack)
        return bias[:1] if set(bias[1:]) == {1} else bias  # Equinox' convolutions have (out, 1, 1)

    @cached_property
    def of_norm(self) -> bool:
        """Whether it is a norm's gain or bias, which a single layer has as vectors."""
        scope = self.names[-2] if len(self.names) > 1 else ""
        in_norm = (
            (has(scope, NORMS) and not has(scope, {"mlp"})) or "norm" in scope.lower()
        ) and not self.beside_kernel
        return has(self.own, GAINS) or (in_norm and self.own.lower() in {"weight", "w", *VECTORS})

    @property
    def is_vector(self) -> bool:
        """By its name at any rank, or because it is as long as it is big: a probe is (1, 1, width)."""
        is_table = words(self.own)[-1:] == ("table",) and len(self.one_shape) > 1
        if self.is_bias or self.of_norm or (has(self.own, VECTORS) and not is_table) or len(self.one_shape) == 1:
            return True
        is_long = len(self.one_shape) > 2 > sum(n != 1 for n in self.one_shape)
        return is_long and self.kind not in KERNELS and not self.is_embedding

    @property
    def is_conv(self) -> bool:
        """By its layer's name, or because its window is square: a bias of several axes is a projection's, and experts
        may be as many as layers."""
        shape = self.one_shape
        if len(shape) > 3 and any(name in PATCHES for name in self.names[:-1]):
            return True
        square = len(shape) == 4 and self.window is not None and self.kind in KERNELS and len(self.one_bias) < 2
        if "local" in self.layer_name.lower():  # a window for every place: Linen's ConvLocal
            return False
        return len(shape) > 2 and ("conv" in self.layer_name.lower() or (square and not self._names_experts))

    @property
    def window(self) -> slice | None:
        """Where in the shape of what may be a single convolution its square window stands: the smaller of two squares.

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
    def channels(self) -> tuple[int, int]:
        """The axes of a convolution's input and output, which a transposed one's bias shows to be exchanged."""
        is_behind = self.kind == "weight" and not (len(self.one_shape) == 4 and self.window == slice(0, 2))
        into, out = self.rest[1::-1] if is_behind else self.rest[-2:]
        bias = math.prod(self.one_bias)
        return (out, into) if self.one_bias and self.shape[into] == bias != self.shape[out] else (into, out)

    @property
    def may_be_stacked_convs(self) -> bool:
        """Whether it is a convolution, or else a stack of those with a dimension less: nothing shows which.

        A window (H, W) that isn't square may be a stack of (W,), and (D, H, H) one of (H, H), unless a norm of a single
        layer that fits stands beside it.
        """
        rank, name = len(self.shape), self.layer_name.lower()
        if not self.is_conv or self.stack or self.bias or rank not in (4, 5) or f"{rank - 2}d" in name:
            return False
        is_behind = self.kind == "weight" and not (rank == 4 and self.window == slice(0, 2))
        window = self.shape[2:] if is_behind else self.shape[:-2]
        if any(has(scope, TRANSFORMED) for scope in self.names):
            return True
        if any(self.shape[a] in self.norms for a in self.channels):
            return False
        return self.shape[0] != 1 and window[0] != window[1] and window[1:] == window[-1:] * (rank - 3)

    @cached_property
    def head_scope(self) -> tuple[str, ...]:
        """The path of the innermost module around it, or layer, that is called a head; () if there is none. What lies
        inside an attention is an attention's head."""
        if self.layer in (("out",), ("output",)) and not self.beside_queries:  # the whole model's
            return self.layer
        ends = [i for i, name in enumerate(self.layer, 1) if _says_head(name)]
        if not ends:
            return ()
        called, around = self.layer[ends[-1] - 1], self.layer[: ends[-1] - 1]
        is_attentions = any(words(name)[-1:] in (("attention",), ("attn",)) for name in around)
        return () if is_attentions and words(called) in (("head",), ("heads",)) else self.layer[: ends[-1]]

    @property
    def is_embedding(self) -> bool:
        """By its own name at any rank (a class token is (1, 1, width)), by its layer's name at rank 2."""
        named = lambda name: ("embed" in name.lower() or has(name, EMBEDDINGS)) and not has(name, PROJECTIONS)
        is_table = words(self.own)[-1:] == ("table",) and len(self.one_shape) > 1
        if named(self.own) or has(self.own, TOKENS) or is_table:
            return True
        is_long = len(self.one_shape) == 2 and self.one_shape[0] > 64 * self.one_shape[1]  # a vocabulary
        return len(self.one_shape) == 2 and (named(self.layer_name) or (is_long and "embed" in self.layer_name.lower()))

    @cached_property
    def projections(self) -> int:
        """How many projections a fused kernel holds, 0 if it is none."""
        name = self.layer_name
        if words(name) in (("dense",), ("linear",)) and len(self.layer) > 1:
            name = self.layer[-2]  # QKV_0/Dense_0
        if name == "c_attn" or {"query", "key", "value"} <= set(words(name)):
            return 3
        return next((n for fused, n in FUSED.items() if fused in words(name)), 0)

    @cached_property
    def into_heads(self) -> bool:
        """Whether it makes queries, keys or values; a value head makes none."""
        named = (has(self.layer_name, INTO_HEADS) or self.projections > 0) and "weight" not in words(self.layer_name)
        return named and not _says_head(self.layer_name)

    @property
    def attends(self) -> bool:
        """Whether it belongs to an attention, by its neighbours or by a name near above it."""
        return self.beside_queries or any("attention" in n.lower() or "attn" in words(n) for n in self.layer[-3:-1])

    @property
    def out_of_heads(self) -> bool:
        """Whether it puts the heads together; outside an attention a stack of experts' "wo" doesn't."""
        name = self.layer_name if self.beside_queries else " ".join(self.layer[-2:])
        if self.into_heads or has(name, {"in"}):
            return False
        if self.attends:
            return has(name, {*OUT_OF_HEADS, "proj"})
        return has(self.layer_name, OUT_OF_HEADS) and not self._is_under_experts

    @cached_property
    def _names_experts(self) -> bool:
        return any(part in name.lower() for name in self.names for part in EXPERTS)

    @property
    def _is_under_experts(self) -> bool:
        return self._names_experts or any(has(name, TRANSFORMED) for name in self.names)

    @property
    def is_expert(self) -> bool:
        """Whether all but its last two axes count experts, or layers that nothing else shows."""
        if len(self.one_shape) < 3 or self.is_vector or self.is_embedding:
            return False
        if self.is_gated:
            return True
        return self._is_under_experts and not (self.is_conv or self.into_heads or self.out_of_heads)


def read(leaves: Leaves) -> list[Parameter]:
    """The parameters in the tree's order, with their biases, attentions and stacks found."""
    plain = lambda names: names[:-1] if names[-1:] == ("0",) and names[-2:-1] in (("w",), ("kernel",)) else names
    parameters = [Parameter(path, plain(names), shape) for path, names, shape in leaves]
    beside = lambda p: (p.names[:-1], p.own[len(p.kind) :])  # the bias of w1 is b1
    kernels = {beside(p): p.shape for p in parameters if p.kind in KERNELS}
    names = {p.names for p in parameters}
    for p in parameters:
        p.is_bias = p.kind == "bias" or (p.kind == "b" and _is_bias_of(p.shape, kernels.get(beside(p), ())))
        p.is_bias |= p.own.endswith("_b") and (*p.names[:-1], p.own[:-1] + "w") in names  # gating_b of gating_w
    layers = {p.names[:-1] for p in parameters if p.own == "kernel"}
    for p in parameters:
        p.beside_kernel = p.own != "kernel" and p.names[:-1] in layers
    biases = {beside(p): p.shape for p in parameters if p.is_bias}
    queries: dict[Any, dict[str, int]] = defaultdict(dict)
    for p in parameters:
        p.bias = biases.get(beside(p)) if p.kind in KERNELS else None
        if p.into_heads:
            queries[p.layer[:-1]][p.layer_name] = max(1, p.projections)
    for p in parameters:
        p.beside_queries = sum(queries.get(p.layer[:-1], {}).values()) > 1
    _find_stacks(parameters, 0)
    gating = {p.layer[:-1]: p for p in parameters if p.layer_name == "gating_einsum"}
    for p in parameters:
        if p.layer_name == "linear" and (beside_linear := gating.get(p.layer[:-1])):
            beside_linear.linear = p.one_shape
            p.is_gated = True
    _find_gates(parameters)
    _find_turned(parameters)
    _find_widths(parameters)
    norms: dict[Any, set[int]] = defaultdict(set)
    for p in parameters:
        if p.of_norm and len(p.shape) == 1:
            norms[p.names[:-2]].update(p.shape)
    for p in parameters:
        p.norms = frozenset(norms[p.layer[:-1]])
    return parameters


def _is_bias_of(bias: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether what is called "b" has a bias's shape: LoRA's "b" beside "w" is a matrix."""
    bias = tuple(n for n in bias if n != 1) if len(bias) >= len(kernel) else bias
    if len(bias) == 1 or not kernel:
        return bool(kernel)
    fits = bias == kernel[-len(bias) :] or any(n == m for n, m in zip(bias[:2], kernel, strict=False))
    return len(bias) < len(kernel) and (fits or sum(n != 1 for n in bias) < 2)


def _find_gates(parameters: list[Parameter]) -> None:
    """Which kernels hold a gate and what it gates, (width, 2, hidden width), as MaxText's wi: the module's only other
    one leads back."""
    modules: dict[Any, list[Parameter]] = defaultdict(list)
    for p in parameters:
        if p.own in KERNELS and not p.is_vector:
            modules[p.layer[:-1]].append(p)
    for members in modules.values():
        for p, other in itertools.permutations(members, 2) if len(members) == 2 else ():
            shape, back = p.one_shape, other.one_shape
            is_attentions = p.beside_queries or p.into_heads or other.into_heads or p.is_conv
            p.holds_gates = len(shape) == 3 and shape[1] == 2 and back == shape[:1:-1] + shape[:1] and not is_attentions


def _find_turned(parameters: list[Parameter]) -> None:
    """Which bare matrices are (out, in): in every layer of a kind they begin with the bias's length, and in one they
    don't also end with it."""
    with_kernel = {p.names[:-1] for p in parameters if p.kind in KERNELS}
    biases = {p.names[:-1]: p.one_shape for p in parameters if p.own == "bias" and p.names[:-1] not in with_kernel}
    alike: dict[str, list[Parameter]] = defaultdict(list)
    for p in parameters:
        if len(p.one_shape) == 2 and p.names[:-1] in biases:
            alike[re.sub("[0-9]+", "", p.path)].append(p)
    for members in alike.values():
        sides = [(p.one_shape[:1], p.one_shape[1:], biases[p.names[:-1]]) for p in members]
        is_turned = all(a == bias for a, _, bias in sides) and any(b != bias for _, b, bias in sides)
        for p in members:
            p.is_turned = is_turned


def _find_widths(parameters: list[Parameter]) -> None:
    """What a key or value, or better the output's kernel, says of an attention's width, when the stacks are known.

    Without the latter a query of rank 4 may be one of grouped queries or a stack of plain ones (with keys of rank 3 of
    multi-query attention), if no norm is as wide as its first axis. Those of rank 3 may be a stack of matrices, if the
    output gives another width than all of them take.
    """
    into: dict[Any, set[int]] = defaultdict(set)
    out: dict[Any, set[int]] = defaultdict(set)
    long: set[Any] = set()
    for p in parameters:
        rank, scope = len(p.one_shape), p.layer[:-1]
        if p.beside_queries and 1 < rank < 4 and p.into_heads:
            into[scope].add(p.one_shape[0])
        elif p.beside_queries and rank > 1 and p.out_of_heads:
            out[scope].add(p.one_shape[-1])
        elif p.beside_queries and rank > 3 and p.into_heads and not (p.is_conv or p.projections or p.bias):
            long.add(scope)
    norms = {p.one_shape[0] for p in parameters if p.of_norm and len(p.one_shape) == 1}
    for p in parameters:
        scope = p.layer[:-1]
        p.widths = frozenset(out[scope] or into[scope])
        is_shown = out[scope] or (into[scope] and into[scope] <= norms) or p.stack
        is_foreign = out[scope] and into[scope] and out[scope].isdisjoint(into[scope]) and not p.stack
        p.may_be_stacked_queries = p.into_heads and bool((scope in long and not is_shown) or is_foreign)


def _says_head(name: str) -> bool:
    if has(name, NO_HEADS):
        return False
    return has(name, HEADS) or words(name)[-1:] == ("head",) or words(name) in (("heads",), ("final", "proj"))


# Stacks of layers.


def _find_stacks(parameters: list[Parameter], depth: int) -> None:
    """From the whole tree down to single layers: what looks like a stack of layers has one axis more."""
    while (axis := _stack_axis(parameters)) is not None:
        for p in parameters:
            p.stack = (*p.stack, p.rest[axis])
    scope = lambda p: p.names[depth]
    inside = sorted((p for p in parameters if len(p.names) > depth), key=scope)
    for _, members in itertools.groupby(inside, scope):
        _find_stacks(list(members), depth + 1)


def _stack_axis(parameters: list[Parameter]) -> int | None:
    """The axis that counts layers: 0, or 1 as T5X and MaxText scan, or None.

    All have the same length there, a kernel has two axes more, and one shows that it can't be a single layer's. Where
    there are neither gains nor biases, it is the first axis of two or more arrays of rank 3, none of them a
    convolution, and not all of them queries, keys and values, which share the width of the model.
    """
    shapes = [p.one_shape for p in parameters]
    if any(len(p.one_shape) == 1 and (p.of_norm or p.is_bias) for p in parameters):
        return None
    if any(len(p.one_shape) == 2 and p.kind in TABLES and not (p.of_norm or len(p.one_bias) > 1) for p in parameters):
        return None
    alike = [a for a in (0, 1) if shapes and min(map(len, shapes)) > a and len({shape[a] for shape in shapes}) == 1]
    for axis in alike:
        if any(_counts_layers(p, axis) for p in parameters):
            return axis
    is_one = len(alike) == 1 and min(map(len, shapes)) > 1  # queries, keys and values share the model's width, too
    if is_one and _has_long_queries(parameters):
        return alike[0]
    plain = len(parameters) > 1 and all(len(shape) == 3 for shape in shapes) and 0 in alike
    if plain and not any(p.is_vector or p.is_conv for p in parameters) and not all(p.into_heads for p in parameters):
        return 0
    return None


def _has_long_queries(parameters: list[Parameter]) -> bool:
    """Whether queries, keys and values have all rank 4 or more: a single layer's key has 3 at most, its query has 4
    where queries are grouped, (width, groups, queries of a group, head width)."""
    ranks = [len(p.one_shape) for p in parameters if p.into_heads and not (p.projections or p.one_bias or p.is_conv)]
    return len(ranks) > 1 and min(ranks) > 3


def _counts_layers(p: Parameter, axis: int) -> bool:
    """Whether this axis can't be a single layer's: a norm has vectors, and a layer's bias has its kernel's last
    axes alone."""
    shape, bias = p.one_shape, p.one_bias
    if p.of_norm:
        return len(shape) == 2
    if len(bias) not in range(2, len(shape)):
        return False
    one = bias[:axis] + bias[axis + 1 :]
    return bias[axis] == shape[axis] and one == shape[-len(one) :] and bias != shape[-len(bias) :]
