"""Tells what a parameter is from its name, shape and neighbours, as Flax names and shapes them: kernels are (in, out).

Linen's dicts, an `nnx.State`, `nnx.to_pure_dict`; in plain lists only ranks 0, 1 and 2 can be told.
Names are compared word by word: "o_proj" has the words o and proj.
"""

import dataclasses
import itertools
import re
from typing import Any

import jax

KERNELS = {"kernel", "weight", "w"}  # a layer's own array: the layer's name stands before it
GAINS = {"scale", "gain", "gamma"}
VECTORS = {*GAINS, "bias", "beta"}
POSITIONS = {"position", "positions", "pos", "wpe"}
EMBEDDINGS = {*POSITIONS, "wte", "cls"}  # and whatever has "embed" in it
HEADS = {"head", "unembed", "unembedding", "logits", "classifier"}  # whole names, and "…_head"
INTO_HEADS = {"query", "key", "value", "q", "k", "v", "qkv", "kv"}  # attention: (width, heads, head width)
OUT_OF_HEADS = {"out", "output", "o"}  # attention: (heads, head width, width)


def words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


@dataclasses.dataclass(eq=False)
class Parameter:
    """A leaf of the parameters' tree while it is being told."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None = None  # the shape of the bias beside a kernel
    stack: int = 0  # leading axes that count layers

    @property
    def path(self) -> str:
        return "/".join(self.names)

    @property
    def own(self) -> str:
        return self.names[-1] if self.names else ""

    @property
    def layer(self) -> tuple[str, ...]:
        """The path of the layer that it is the kernel of; its own path where it isn't called a kernel."""
        return self.names[:-1] if self.own in KERNELS else self.names

    @property
    def layer_name(self) -> str:
        return self.layer[-1] if self.layer else ""

    @property
    def one_shape(self) -> tuple[int, ...]:
        """The shape in a single layer."""
        return self.shape[self.stack :]

    @property
    def is_vector(self) -> bool:
        return len(self.one_shape) == 1 or bool(words(self.own) & VECTORS)

    @property
    def is_conv(self) -> bool:
        return "conv" in self.layer_name.lower()

    @property
    def is_head(self) -> bool:
        return len(self.one_shape) == 2 and any(n in HEADS or n.endswith("_head") for n in map(str.lower, self.layer))

    @property
    def is_embedding(self) -> bool:
        """By its own name at any rank (a class token is (1, 1, width)), by its layer's name at rank 2."""
        named = lambda name: "embed" in name.lower() or bool(words(name) & EMBEDDINGS)
        return named(self.own) or (len(self.one_shape) == 2 and named(self.layer_name))

    def is_called(self, names: set[str]) -> bool:
        return bool(words(self.layer_name) & names)


def read(params: Any) -> list[Parameter]:
    """The parameters in the tree's order, with their biases and stacks found."""
    parameters = [
        Parameter(_names(path), getattr(x, "shape", ())) for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    biases = {p.names[:-1]: p.shape for p in parameters if p.own == "bias"}
    for p in parameters:
        p.bias = biases.get(p.names[:-1]) if p.own in KERNELS else None
    _find_stacks(parameters, 0)
    return parameters


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    if len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]  # an nnx.State holds variables, and a variable its value
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


# Stacks of layers.


def _find_stacks(parameters: list[Parameter], depth: int) -> None:
    """From the whole tree down to single layers: what looks like a stack of layers has one more leading axis."""
    while _is_stack(parameters):
        for p in parameters:
            p.stack += 1
    scope = lambda p: p.names[depth]
    inside = sorted((p for p in parameters if len(p.names) > depth), key=scope)
    for _, members in itertools.groupby(inside, scope):
        _find_stacks(list(members), depth + 1)


def _is_stack(parameters: list[Parameter]) -> bool:
    """Whether all have the same leading length, and one shows that this axis counts layers.

    That is a gain of rank 2 (a norm's gains are a vector), or a kernel whose bias has the kernel's first axis and last,
    but not its second. Where there are neither gains nor biases, it is two or more arrays of rank 3, none of them a
    convolution, and not all of them queries, keys and values, which share the width of the model.
    """
    shapes = [p.one_shape for p in parameters]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        return False
    if any(words(p.own) & VECTORS for p in parameters):
        return any(map(_counts_layers, parameters))
    dense = all(len(shape) == 3 for shape in shapes) and not any(p.is_conv for p in parameters)
    return len(parameters) > 1 and dense and not all(p.is_called(INTO_HEADS) for p in parameters)


def _counts_layers(p: Parameter) -> bool:
    """Whether the first axis can't be a single layer's."""
    shape = p.one_shape
    if p.bias is None:
        return len(shape) == 2 and bool(words(p.own) & GAINS)
    return len(shape) > 2 and p.bias[p.stack :] == (shape[0], shape[-1]) != shape[1:]


# What a single parameter is.


def axes(p: Parameter) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(stack, input, output). The last axes are the output: as many as the bias has, or as the name tells."""
    rank, bias = len(p.one_shape), p.bias and p.bias[p.stack :]
    if rank < 2 or p.is_vector:
        outputs = 0
    elif bias and len(bias) < rank and p.one_shape[-len(bias) :] == bias:
        outputs = len(bias)
    elif rank == 2 or p.is_conv or p.is_embedding or p.is_called(OUT_OF_HEADS):
        outputs = 1
    elif p.is_called(INTO_HEADS):
        outputs = rank - 1
    else:
        outputs = 1 if rank == 4 and p.own in KERNELS else 0
    every = tuple(range(len(p.shape)))
    if not outputs:
        return every[: p.stack], (), ()
    return every[: p.stack], every[p.stack : -outputs], every[-outputs:]


def role(p: Parameter) -> str | None:
    """The role, "head" where the name says so; None where it can't be told."""
    rank, outputs = len(p.one_shape), len(axes(p)[2])
    if rank == 0:
        return "scalar"
    if p.is_vector:
        return "vector"
    if p.is_head:
        return "head"
    if p.is_embedding:
        return "embedding"
    if rank == 2:
        return "matrix"
    if p.is_conv or (rank == 4 and p.own in KERNELS and outputs == 1):
        return "conv"
    return "matrix" if outputs > 1 or (outputs == 1 and p.is_called(OUT_OF_HEADS)) else None


def unnamed_head(parameters: list[Parameter]) -> Parameter | None:
    """The kernel that must be the head, where none is named so: outside the blocks it alone has the vocabulary's width,
    and nothing there takes that width in."""
    matrices = [p for p in parameters if len(p.one_shape) == 2 and not p.is_vector]
    if any(p.is_head for p in matrices):
        return None
    for embedding in matrices:
        if not embedding.is_embedding or words(" ".join(embedding.names[-2:])) & POSITIONS:
            continue
        vocabulary = embedding.one_shape[0]
        outside = [p for p in matrices if not p.is_embedding and not _in_a_block(p, embedding)]
        heads = [p for p in outside if p.own in KERNELS and p.one_shape[1] == vocabulary]
        goes_on = any(p.one_shape[0] == vocabulary for p in outside if p not in heads)
        if len(heads) == 1 and not goes_on:
            return heads[0]
    return None


def _in_a_block(p: Parameter, embedding: Parameter) -> bool:
    """Whether it is stacked, or inside something numbered, as block_0, that doesn't hold the embedding too."""
    above = [p.layer[:i] for i in range(1, len(p.layer))]
    return p.stack != embedding.stack or any(s[-1][-1:].isdigit() and s != embedding.names[: len(s)] for s in above)
