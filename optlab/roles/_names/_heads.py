"""The role of every parameter by names and shapes. Which kernel is the head, few names say."""

import itertools
import re
from collections import Counter
from typing import TypeAlias

from optlab.roles._names._matrices import role
from optlab.roles._names._parameter import Parameter
from optlab.roles._names._words import KERNELS, TABLES, has

Fans: TypeAlias = dict[Parameter, tuple[int, int]]  # what each kernel takes in and gives


def roles(parameters: list[Parameter]) -> list[str | None]:
    """The role of every parameter; None where nothing shows it."""
    fans = {p: p.fans for p in parameters if role(p) in ("matrix", "conv") and p.axes.is_matrix}
    single = _outside_of_blocks(parameters, fans)
    pairs = _of_one_width(parameters, single, fans)
    named, tables = _named_heads(parameters), _one_hot_tables(parameters, pairs)
    heads = named | _unnamed_heads(parameters, named) | set(tables.values())
    heads = heads or _decoders(pairs) or _unread(parameters, single, fans)
    return ["head" if p in heads else "embedding" if p in tables else role(p) for p in parameters]


def _named_heads(parameters: list[Parameter]) -> set[Parameter]:
    """The matrices and convolutions that are called a head, or are the last of a module that is."""

    def called(p: Parameter) -> bool:
        return p.layer == p.head_scope

    kernels = [p for p in parameters if (len(p.one_shape) == 2 or p.is_conv) and not p.is_vector]
    kernels = [p for p in kernels if called(p) or not p.is_embedding]
    named = [p for p in kernels if p.head_scope and not p.module.has_queries]
    inside = {scope: [p for p in kernels if p.names[: len(scope)] == scope] for scope in {p.head_scope for p in named}}
    last = {scope: _last(members) for scope, members in inside.items()}
    return {p for p in named if called(p) or p in last[p.head_scope]}


def _last(kernels: list[Parameter]) -> set[Parameter]:
    """Those whose output none of the others takes in; where there are none, those of the highest number.

    A dense layer may take in the whole image of a convolution.
    """
    reads = {p: p.shape[p.channels[0]] if p.is_conv else p.fans[0] for p in kernels}
    count = Counter(reads.values())

    def is_read(p: Parameter) -> bool:
        width = p.fans[1]
        dense = (n for other, n in reads.items() if p.is_conv and not other.is_conv)
        return count[width] > (reads[p] == width) or any(n % width == 0 for n in dense)

    def number(p: Parameter) -> list[int]:
        return [int(digits) for digits in re.findall("[0-9]+", p.path)]

    last = {p for p in kernels if not is_read(p)}
    highest = max(map(number, kernels), default=[])
    return last or {p for p in kernels if number(p) == highest}


def _unnamed_heads(parameters: list[Parameter], named: set[Parameter]) -> set[Parameter]:
    """The kernels that must be heads, where none is named so (but for one that gives a single number)."""
    if any(p.fans[1] > 1 for p in named):
        return set()
    matrices = [p for p in parameters if len(p.one_shape) == 2 and not p.is_vector]
    fans = {p: p.fans for p in matrices}
    norms = {p.one_shape for p in parameters if p.of_norm}
    embeddings = [p for p in matrices if p.is_embedding and not p.of_positions]
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


def _outside_of_blocks(parameters: list[Parameter], fans: Fans) -> list[Parameter]:
    """The kernels of single layers outside of repeated modules."""
    stems = Counter(map(_stem, {p.layer[:i] for p in parameters for i in range(1, len(p.layer))}))

    def is_repeated(p: Parameter) -> bool:
        return bool(p.stack) or any(stems[_stem(p.layer[:i])] > 1 for i in range(1, len(p.layer)))

    return [p for p in fans if p.kind in KERNELS and len(p.shape) == 2 and not (p.into_heads or is_repeated(p))]


def _of_one_width(
    parameters: list[Parameter], single: list[Parameter], fans: Fans
) -> list[tuple[Parameter, Parameter]]:
    """Kernels outside of repeated modules, of which one alone takes in what the other alone gives."""
    takes, gives = Counter(i for i, _ in fans.values()), Counter(o for _, o in fans.values())
    gives.update(_hidden_widths(parameters))
    giver = {fans[q][1]: q for q in single if gives[fans[q][1]] == 1}
    alone = [p for p in single if takes[fans[p][0]] == 1 and fans[p][0] in giver]
    return [(p, giver[fans[p][0]]) for p in alone if giver[fans[p][0]] is not p]


def _hidden_widths(parameters: list[Parameter]) -> set[int]:
    """The lengths of tables and norms."""
    return {n for p in parameters if p.is_embedding or p.of_norm for n in p.one_shape}


def _one_hot_tables(
    parameters: list[Parameter], pairs: list[tuple[Parameter, Parameter]]
) -> dict[Parameter, Parameter]:
    """The linear layers that embed one-hot tokens, and each one's head: its turned shape shows the vocabulary, if there
    is no other table. A patch embedding takes pixels in, of which an autoencoder gives as many."""
    if any(p.is_embedding and not p.of_positions for p in parameters):
        return {}

    def names(p: Parameter) -> str:
        return " ".join(p.layer).lower()

    def is_table(p: Parameter) -> bool:
        return "embed" in names(p) and "patch" not in names(p) and p.one_shape[0] > p.one_shape[1]

    def is_head(q: Parameter, p: Parameter) -> bool:
        return "embed" not in names(q) and q.one_shape == p.one_shape[::-1]

    return {p: q for p, q in pairs if is_table(p) and is_head(q, p)}


def _decoders(pairs: list[tuple[Parameter, Parameter]]) -> set[Parameter]:
    """The kernels of a decoder that give what the encoder takes in."""

    def inside(p: Parameter, module: str) -> bool:
        return any(has(name, {module}) for name in p.layer[:-1])

    return {q for p, q in pairs if inside(p, "encoder") and inside(q, "decoder")}


def _unread(parameters: list[Parameter], single: list[Parameter], fans: Fans) -> set[Parameter]:
    """The kernels outside of repeated modules whose output's width nothing else has: what reads it but the loss?"""
    hidden = _hidden_widths(parameters)
    last = _end_of_chain(fans) if set(single) == set(fans) else None
    if last and fans[last][1] not in hidden:
        return {last}
    if len(fans) < 4:  # a part of a model, maybe
        return set()
    read = hidden | {i for i, _ in fans.values()} | {n for p in parameters if p.is_expert for n in p.one_shape[:-2]}
    made = {p.one_shape[-1] for p in parameters if (p.is_embedding or p.of_norm) and p.one_shape}
    made |= {o for _, o in fans.values()}
    channels = {p.shape[p.channels[0]] for p in fans if p.is_conv}

    def is_read(n: int) -> bool:
        return any(n % k == 0 and n // k in read for k in (1, 2, 3, 4, 6)) or any(n % c == 0 for c in channels if c > 4)

    return {p for p in single if fans[p][0] in made and not is_read(fans[p][1]) and "emb" not in p.layer_name}


def _end_of_chain(matrices: dict[Parameter, tuple[int, int]]) -> Parameter | None:
    """The last of three or more numbered layers, each of which takes in what the one before gives, if no other takes in
    what it gives; but the first may, as in an autoencoder. Two may be a part of a model."""
    if len(matrices) < 3 or len({_stem(p.layer) for p in matrices}) > 1:
        return None

    def number(p: Parameter) -> int:
        return int("0" + re.sub(".*?([0-9]*)$", r"\1", p.layer_name))

    chain = sorted(matrices, key=number)
    is_chain = all(matrices[p][1] == matrices[q][0] for p, q in itertools.pairwise(chain))
    given = matrices[chain[-1]][1]
    return chain[-1] if is_chain and all(matrices[p][0] != given for p in chain[1:]) else None


def _stem(scope: tuple[str, ...]) -> tuple[str, ...]:
    """The path without its last number: numbered modules share it."""
    return (*scope[:-1], scope[-1].rstrip("0123456789"))


def _in_a_block(p: Parameter, embedding: Parameter) -> bool:
    """True if it is stacked, or inside something numbered, as block_0, that doesn't hold the embedding too."""
    above = [p.layer[:i] for i in range(1, len(p.layer))]
    numbered = [scope for scope in above if any(map(str.isdigit, scope[-1]))]
    return p.stack != embedding.stack or any(scope != embedding.names[: len(scope)] for scope in numbered)
