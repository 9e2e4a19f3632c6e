"""The words in names that mean something: the one list of them.

Names are compared word by word: "o_proj" has the words o and proj.
"""

import functools
import re

# Every word that means something.
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
    """True if one of the name's words is wanted."""
    return not wanted.isdisjoint(words(name))


def says_head(name: str) -> bool:
    if has(name, NO_HEADS):
        return False
    return has(name, HEADS) or words(name)[-1:] == ("head",) or words(name) in (("heads",), ("final", "proj"))
