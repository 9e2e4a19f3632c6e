"""The command line's words for the library's errors, which speak Python: `allow_change=('seed',)` is an option here."""

from __future__ import annotations

import re

_WORDS = (
    (r"allow_change=\(([^)]*)\)", lambda m: " ".join(f"--allow-change {key}" for key in re.findall("'(.*?)'", m[1]))),
    (r"\ballow_change\b", "--allow-change"),
    (r"name another folder(?!:)", "name another folder: --run DIR"),
    (
        r"start the same run in another folder, stop it and copy its config.json here",
        "start the same command with --run OTHER, stop it and copy OTHER/config.json here",
    ),
    (r"\ba model with remat=True\b", "model.remat=true"),
    (r"\b(\w+)='([\w.]+)'", r"\1=\2"),
    (r"\b(\w+)=None\b", r"\1=none"),
)


def in_words(error: Exception) -> str:
    """Writes an error as the command line would: its options, and values without quotes."""
    text = str(error)
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text
