"""Parts of messages: the name nearest to a misspelt one, sizes in bytes, aligned tables."""

import difflib
from collections.abc import Iterable, Sequence


def closest(name: str, names: Iterable[str], *, cutoff: float = 0.0) -> str | None:
    """Returns the most similar of the names, or None where none reaches the cutoff, a similarity in [0, 1]."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """Ends an error message with the name that was probably meant, or with all names. Initials count: ce, for one."""
    names = sorted(names)
    initials = [n for n in names if name.rpartition(".")[2] == "".join(w[:1] for w in n.rpartition(".")[2].split("_"))]
    meant = initials[0] if len(initials) == 1 else closest(name, names, cutoff=0.6)
    if meant is not None:
        return f"did you mean {meant!r}?"
    return f"there are {', '.join(names)}" if names else "it takes none"


def in_bytes(count: int) -> str:
    """Writes a size, such as 1.50 GiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count} B"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows of text as a table whose columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
