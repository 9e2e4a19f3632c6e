"""The role and the matrix axes of a parameter, as far as its name, its shape and its neighbours show them."""

import functools
import itertools
import re
from collections import Counter

from optlab.roles._axes import MatrixAxes
from optlab.roles._parameters import CELLS, INTO_HEADS, KERNELS, POSITIONS, TABLES, Parameter, has, words


def axes(p: Parameter) -> MatrixAxes:
    """The axes of the input and the output, and of the projections that a fused kernel holds; whole, not by head."""
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
    elif p.holds_gates:
        stack, rest = (*p.stack, rest[1]), (rest[0], rest[2])
    else:
        stack = p.stack
    if p.kind in KERNELS and _is_bias_by_group(p):
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
    """How many gates of a recurrent cell are in one kernel, as Haiku's lstm/linear/w and Equinox's lstm/weight_hh."""
    cell = next((w for name in p.names[-3:-1] for w in words(name) if w in CELLS), None)
    is_one = p.kind in ("weight_ih", "weight_hh") or (p.own == "w" and p.layer_name == "linear")
    if cell is None or not is_one or len(p.one_shape) != 2:
        return 0
    return CELLS[cell] if max(p.one_shape) % CELLS[cell] == 0 else 0


def _is_bias_by_group(p: Parameter) -> bool:
    """Whether a bias (groups, out) shows that a kernel (groups, in, out) is a matrix for each group."""
    bias = tuple(n for n in p.bias or () if n != 1)
    return len(p.shape) == 3 and not p.stack and bias == p.shape[::2] != p.shape[1:]


def _einsum(p: Parameter, stack: tuple[int, ...], rest: tuple[int, ...]) -> MatrixAxes | None:
    """Gemma's: queries (heads, width, head width), keys and values (2, heads, width, head width), and back."""
    if p.layer_name == "attn_vec_einsum" and len(rest) == 3:
        return MatrixAxes(p.stack, rest[:-1], rest[-1:])
    if p.layer_name == "gating_einsum":  # (2, width, hidden width), or turned, as the layer behind it shows
        sides = tuple(p.shape[a] for a in rest[-2:])
        if sides[0] == sides[1] or sorted(sides) != sorted(p.linear[-2:]):
            return None
        into, out = rest[:-3:-1] if sides == p.linear[-2:] else rest[-2:]
        return MatrixAxes((*stack, *rest[:-2]), (into,), (out,))
    if len(rest) != 3 or not (p.projections or has(p.layer_name, INTO_HEADS)):
        return None
    return MatrixAxes(stack, (rest[1],), (rest[0], rest[2]))


def _outputs(p: Parameter, shape: list[int]) -> tuple[int, bool]:
    """How many axes of this shape are the output, and whether they come first: as the bias shows, or the name tells."""
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
    return (rank - 1 if p.into_heads and (not grouped or shape[0] in p.widths) else 0), False


def by_head(p: Parameter, head_width: int | None) -> MatrixAxes:
    """As `axes`, but each head's projection is a matrix of its own.

    Raises:
        ValueError: where the heads of an attention's kernel can't be told, or don't divide it.
    """
    found = axes(p)
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
            f"per_head=True can't tell the heads of {p.path!r} by its shape {p.shape}: say head_width= (the width of "
            "a head), or its axes by overrides"
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
    found = axes(p)
    shown = p.into_heads or p.out_of_heads or p.holds_gates or has(p.layer_name, {"einsum"}) or _is_bias_by_group(p)
    return "matrix" if len(found.output) > 1 or (found.is_matrix and shown) else None


def roles(parameters: list[Parameter]) -> list[str | None]:
    """The role of every parameter; None where nothing shows it."""
    named, tables = _named_heads(parameters), _one_hot_tables(parameters)
    heads = named | _unnamed_heads(parameters, named) | set(tables.values())
    if not heads:
        heads = _decoders(parameters) or _unread(parameters)
    return ["head" if p in heads else "embedding" if p in tables else role(p) for p in parameters]


def _named_heads(parameters: list[Parameter]) -> set[Parameter]:
    """The matrices and convolutions that are called a head, or are the last of a module that is."""
    called = lambda p: p.layer == p.head_scope
    kernels = [p for p in parameters if (len(p.one_shape) == 2 or p.is_conv) and not p.is_vector]
    kernels = [p for p in kernels if called(p) or not p.is_embedding]
    named = [p for p in kernels if p.head_scope and not p.beside_queries]
    inside = {scope: [p for p in kernels if p.names[: len(scope)] == scope] for scope in {p.head_scope for p in named}}
    last = {scope: _last(members) for scope, members in inside.items()}
    return {p for p in named if called(p) or p in last[p.head_scope]}


def _last(kernels: list[Parameter]) -> set[Parameter]:
    """Those whose output none of the others takes in; where there are none, those of the highest number.

    A dense layer may take in the whole image of a convolution.
    """
    reads = {p: p.shape[p.channels[0]] if p.is_conv else axes(p).fans(p.shape)[0] for p in kernels}
    count = Counter(reads.values())

    def is_read(p: Parameter) -> bool:
        width = axes(p).fans(p.shape)[1]
        dense = (n for other, n in reads.items() if p.is_conv and not other.is_conv)
        return count[width] > (reads[p] == width) or any(n % width == 0 for n in dense)

    number = lambda p: [int(digits) for digits in re.findall("[0-9]+", p.path)]
    last = {p for p in kernels if not is_read(p)}
    highest = max(map(number, kernels), default=[])
    return last or {p for p in kernels if number(p) == highest}


def _unnamed_heads(parameters: list[Parameter], named: set[Parameter]) -> set[Parameter]:
    """The kernels that must be heads, where none is named so (but for one that gives a single number)."""
    if any(axes(p).fans(p.shape)[1] > 1 for p in named):
        return set()
    matrices = [p for p in parameters if len(p.one_shape) == 2 and not p.is_vector]
    fans = {p: axes(p).fans(p.shape) for p in matrices}
    norms = {p.one_shape for p in parameters if p.of_norm}
    embeddings = [p for p in matrices if p.is_embedding and not has(" ".join(p.names[-2:]), POSITIONS)]
    found = (_head_of(embedding, fans, norms) for embedding in embeddings)
    return {head for head in found if head is not None}


def _head_of(
    embedding: Parameter, fans: dict[Parameter, tuple[int, int]], norms: set[tuple[int, ...]]
) -> Parameter | None:
    """The only kernel outside the blocks that is as wide as the embedding's vocabulary. Where another takes that width
    in, or a norm has it, it is a hidden width, and no head's. A vocabulary as large as the model is wide shows less:
    there it may also be the only kernel in the embedding's module."""
    vocabulary, width = embedding.one_shape
    outside = [p for p in fans if not p.is_embedding and not _in_a_block(p, embedding)]
    takes_in = [p for p in outside if fans[p][0] == vocabulary]
    as_wide = [p for p in outside if p.kind in KERNELS and fans[p][1] == vocabulary]
    heads = [p for p in as_wide if takes_in in ([], [p]) and (takes_in or (vocabulary,) not in norms)]
    if not heads and vocabulary == width:
        module = embedding.names[: -2 if embedding.own in TABLES else -1]
        beside = [p for p in outside if p.layer[:-1] == module]
        heads = beside if beside and beside[0] in as_wide else []
    return heads[0] if len(heads) == 1 else None


def _one_hot_tables(parameters: list[Parameter]) -> dict[Parameter, Parameter]:
    """The linear layers that embed one-hot tokens, and each one's head: its turned shape shows the vocabulary, if there
    is no other table. A patch embedding takes pixels in, of which an autoencoder gives as many."""
    if any(p.is_embedding and not has(" ".join(p.names[-2:]), POSITIONS) for p in parameters):
        return {}
    names = lambda p: " ".join(p.layer).lower()
    is_table = lambda p: "embed" in names(p) and "patch" not in names(p) and p.one_shape[0] > p.one_shape[1]
    is_head = lambda q, p: "embed" not in names(q) and q.one_shape == p.one_shape[::-1]
    return {p: q for p, q in _of_one_width(parameters) if is_table(p) and is_head(q, p)}


def _decoders(parameters: list[Parameter]) -> set[Parameter]:
    """The kernels of a decoder that give what the encoder takes in."""
    inside = lambda p, module: any(has(name, {module}) for name in p.layer[:-1])
    return {q for p, q in _of_one_width(parameters) if inside(p, "encoder") and inside(q, "decoder")}


def _of_one_width(parameters: list[Parameter]) -> list[tuple[Parameter, Parameter]]:
    """Kernels outside of repeated modules, of which one alone takes in what the other alone gives."""
    single, fans = _single_kernels(parameters)
    takes, gives = Counter(i for i, _ in fans.values()), Counter(o for _, o in fans.values())
    gives.update(_hidden_widths(parameters))
    giver = {fans[q][1]: q for q in single if gives[fans[q][1]] == 1}
    alone = [p for p in single if takes[fans[p][0]] == 1 and fans[p][0] in giver]
    return [(p, giver[fans[p][0]]) for p in alone if giver[fans[p][0]] is not p]


def _hidden_widths(parameters: list[Parameter]) -> set[int]:
    """The lengths of tables and norms."""
    return {n for p in parameters if p.is_embedding or p.of_norm for n in p.one_shape}


def _unread(parameters: list[Parameter]) -> set[Parameter]:
    """The kernels outside of repeated modules whose output's width nothing else has: what reads it but the loss?"""
    single, matrices = _single_kernels(parameters)
    last = _end_of_chain(matrices) if set(single) == set(matrices) else None
    if last and matrices[last][1] not in _hidden_widths(parameters):
        return {last}
    if len(matrices) < 4:  # a part of a model, maybe
        return set()
    read = Counter(fan_in for fan_in, _ in matrices.values())
    read.update(n for p in parameters if p.is_embedding for n in p.one_shape)
    read.update(n for p in parameters if p.of_norm for n in set(p.one_shape))
    channels = {p.shape[p.channels[0]] for p in matrices if p.is_conv}
    made = Counter(fan_out for _, fan_out in matrices.values())
    made.update(n for p in parameters if p.is_embedding or p.of_norm for n in p.one_shape[-1:])
    read.update(n for p in parameters if p.is_expert for n in p.one_shape[:-2])
    is_read = lambda n: (
        any(read[n // k] for k in (1, 2, 3, 4, 6) if n % k == 0) or any(n % c == 0 for c in channels if c > 4)
    )
    return {p for p in single if made[matrices[p][0]] and not is_read(matrices[p][1]) and "emb" not in p.layer_name}


def _single_kernels(parameters: list[Parameter]) -> tuple[list[Parameter], dict[Parameter, tuple[int, int]]]:
    """The kernels of single layers outside of repeated modules, and the fans of all that are matrices."""
    stems = Counter(map(_stem, {p.layer[:i] for p in parameters for i in range(1, len(p.layer))}))
    is_repeated = lambda p: bool(p.stack) or any(stems[_stem(p.layer[:i])] > 1 for i in range(1, len(p.layer)))
    fans = {p: axes(p).fans(p.shape) for p in parameters if role(p) in ("matrix", "conv") and axes(p).is_matrix}
    single = [p for p in fans if p.kind in KERNELS and len(p.shape) == 2 and not (p.into_heads or is_repeated(p))]
    return single, fans


def _end_of_chain(matrices: dict[Parameter, tuple[int, int]]) -> Parameter | None:
    """The last of three or more numbered layers, each of which takes in what the one before gives, if no other takes in
    what it gives; but the first may, as in an autoencoder. Two may be a part of a model."""
    if len(matrices) < 3 or len({_stem(p.layer) for p in matrices}) > 1:
        return None
    number = lambda p: int("0" + re.sub(".*?([0-9]*)$", r"\1", p.layer_name))
    chain = sorted(matrices, key=number)
    is_chain = all(matrices[p][1] == matrices[q][0] for p, q in itertools.pairwise(chain))
    given = matrices[chain[-1]][1]
    return chain[-1] if is_chain and all(matrices[p][0] != given for p in chain[1:]) else None


def _stem(scope: tuple[str, ...]) -> tuple[str, ...]:
    """The path without its last number: numbered modules share it."""
    return (*scope[:-1], scope[-1].rstrip("0123456789"))


def _in_a_block(p: Parameter, embedding: Parameter) -> bool:
    """Whether it is stacked, or inside something numbered, as block_0, that doesn't hold the embedding too."""
    above = [p.layer[:i] for i in range(1, len(p.layer))]
    numbered = [scope for scope in above if any(map(str.isdigit, scope[-1]))]
    return p.stack != embedding.stack or any(scope != embedding.names[: len(scope)] for scope in numbered)
