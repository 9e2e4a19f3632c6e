"""Text in the terminal: lines that are too long for it are wrapped between words."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap

ENTRY = re.compile(r" +\*{0,2}[\w.]+: ")  # an argument in a docstring's section


def width() -> int | None:
    """Returns the columns of the terminal, or of COLUMNS; None for a pipe, into which lines are written whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def hanging(head: str, text: str, columns: int | None) -> str:
    """Returns a head and its text, whose further lines begin where its first one does."""
    return _filled(head + text, "", " " * len(head), columns)


def wrapped(docstring: str, columns: int | None) -> str:
    """Returns a docstring whose lines fit; a paragraph or an argument whose lines fit already stays as it is."""
    items: list[list[str]] = []
    for line in docstring.splitlines():
        if items and _continues(line, items[-1]):
            items[-1].append(line)
        else:
            items.append([line])
    return "\n".join(_item(lines, columns) for lines in items)


def _continues(line: str, item: list[str]) -> bool:
    if not line or not item[0] or item[-1].endswith(":"):  # a blank line; a heading, such as Args:
        return False
    return _indent(line) >= _indent(item[0]) and not ENTRY.match(line)


def _item(lines: list[str], columns: int | None) -> str:
    if columns is None or max(map(len, lines)) <= columns:
        return "\n".join(lines)
    first = " " * _indent(lines[0])
    rest = first + " " * 4 if ENTRY.match(lines[0]) else first
    return _filled(" ".join(line.strip() for line in lines), first, rest, columns)


def _filled(text: str, first: str, rest: str, columns: int | None) -> str:
    if columns is None or len(first + text) <= columns:
        return first + text
    return textwrap.fill(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
