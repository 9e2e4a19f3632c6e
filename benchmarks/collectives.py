"""What a compiled program exchanges between devices, read from its text."""

from __future__ import annotations

import collections
import math
import re

_KINDS = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
_WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}


def collectives(program: str, count: int) -> dict[str, tuple[int, float]]:
    """{kind: (how many, bytes that come to a device from the others)} of `count` devices; a loop's count once."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    pattern = rf"^\s*\S+ = (.*?) ({_KINDS})(?:-start)?\("
    others = (count - 1) / count
    share = {"all-reduce": 2 * others, "reduce-scatter": count * others, "collective-permute": 1}
    for result, kind in re.findall(pattern, program, re.MULTILINE):
        arrays = re.findall(rf"({'|'.join(_WIDTH)})\[([\d,]*)\]", result)
        size = sum(_WIDTH[t] * math.prod(map(int, filter(None, dims.split(",")))) for t, dims in arrays)
        found[kind].append(share.get(kind, others) * size)
    return {kind: (len(sizes), sum(sizes)) for kind, sizes in found.items()}
