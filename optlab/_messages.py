"""Parts of messages: the name nearest to a misspelt one, sizes in bytes, aligned tables."""

import difflib
from collections.abc import Iterable, Sequence


def closest(name: str, names: Iterable[str]) -> str | None:
    """Returns the most similar of some paths, however different; None where there are none."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)), None)


def meant(name: str, names: Iterable[str]) -> list[str]:
    """Returns the names that were probably meant by another: several on a tie, none where no name is near.

    Case and hyphens don't count. Before the smallest number of typing errors comes what people call it elsewhere (lr,
    mse), and its initials (ce); after it, a name that begins so (acc). A name without a dot comes before dotted ones.
    """
    names, own = sorted(names), usual(_plain(name))
    first = [n for n in names if "." not in n] if "." not in name else []
    return _meant(own, first) or _meant(own, names)


def _meant(own: str, names: Sequence[str]) -> list[str]:
    plain = {n: _plain(n) for n in names}
    if exact := [n for n in names if plain[n] == own]:
        return exact
    if initials := [n for n in names if own == "".join(w[:1] for w in plain[n].split("_"))]:
        return initials if len(initials) == 1 else []
    errors = {n: _errors(own, plain[n]) for n in names}
    least = min(errors.values(), default=len(own))
    if least <= max(1, len(own) // 3) and least < len(own):
        found = [n for n in names if errors[n] == least]
        found = [n for n in found if plain[n].startswith(own)] or found  # step is steps rather than stop
    else:
        found = [n for n in names if len(own) > 2 and plain[n].startswith(own)]
    return found if len(found) < 4 else []


def nearest(name: str, names: Iterable[str]) -> str:
    """Ends an error message with the names that were probably meant, or with all names."""
    names = sorted(names)
    if found := meant(name, names):
        return f"did you mean {' or '.join(map(repr, found))}?"
    return f"there are {', '.join(names)}" if names else "it takes none"


_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "beta1": "b1",
    "beta2": "b2",
    "bs": "batch_size",
    "acc": "accuracy",
    "mse": "squared_error",
    "opt": "optimizer",
    "scheduler": "schedule",
    "lr_schedule": "schedule",
    "max_steps": "steps",
    "num_steps": "steps",
    "iterations": "steps",
    "eval_every": "evaluate_every",
}


def usual(name: str) -> str:
    """Returns optlab's name of what has a common other one: accuracy for acc."""
    return _ELSEWHERE.get(name, name)


def _plain(name: str) -> str:
    return name.rpartition(".")[2].lower().replace("-", "_")


def _errors(a: str, b: str) -> int:
    """Counts the typing errors between two words: characters that are wrong, missing, too many, or swapped."""
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


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
