"""Text in errors and reports: the nearest name, and rows of cells under each other."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like this one; None where there are none."""
    return next(iter(difflib.get_close_matches(name, list(names), 1, 0)), None)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A line a row, with the cells of each column under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
