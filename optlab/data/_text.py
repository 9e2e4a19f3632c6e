"""Text as bytes: a file, a folder or the Python standard library, cut into windows for next-byte prediction."""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optlab._integers import is_count
from optlab.data._files import check_whole, places
from optlab.data._held_out import held_out_size
from optlab.data._random import OFFSET, random_bits
from optlab.data._types import Batch, DataError, Facts, InMemory, Source

# Folders in the standard library's that aren't the library, and its tests (a third of it, with tables of odd bytes).
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def _windows(tokens_N: np.ndarray, starts_B: np.ndarray, length: int) -> Batch:
    check_whole("text", tokens_N)
    windows = np.lib.stride_tricks.sliding_window_view(tokens_N, length + 1)[starts_B]
    return {"inputs": windows[:, :-1].astype(np.int32), "labels": windows[:, 1:].astype(np.int32)}


@dataclass(frozen=True, eq=False)
class TrainingWindows(InMemory):
    """Windows side by side, on a grid that starts at another byte every epoch (without an epoch at the first one)."""

    tokens: np.ndarray  # (N,) uint8
    length: int

    def __len__(self) -> int:
        # One window fewer than fit, so that the grid can be shifted by a whole window and every byte gets its turn.
        return len(self.tokens) // self.length - 1

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        offset = 0
        if epoch is not None:
            spare = len(self.tokens) - len(self) * self.length
            offset = int(random_bits(OFFSET, seed, epoch)[0]) % spare
        return _windows(self.tokens, offset + np.asarray(indices) * self.length, self.length)


@dataclass(frozen=True, eq=False)
class EvaluationWindows(InMemory):
    """Windows that predict every byte but the first once: the last one overlaps the one before, there with weight 0."""

    tokens: np.ndarray  # (N,) uint8
    length: int

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.length)

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        first_new = np.asarray(indices) * self.length
        starts = np.minimum(first_new, len(self.tokens) - 1 - self.length)
        weight = starts[:, None] + np.arange(self.length) >= first_new[:, None]
        return _windows(self.tokens, starts, self.length) | {"weight": weight.astype(np.float32)}


def _files(root: Path) -> list[Path]:
    """Lists the files below a folder that aren't hidden, in the same order on every system.

    Raises:
        DataError: for an entry that can't be read, which would be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"text: the folder {error.filename} can't be read: {error.strerror}") from error

    found = []
    for folder, below, files in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        for path in (Path(folder, name) for name in (*below, *files) if not name.startswith(".")):
            if path.is_symlink() and not path.exists():
                raise DataError(f"text: {path} is a link to {os.readlink(path)}, which isn't there")
            if path.is_symlink() and path.is_dir():
                raise DataError(f"text: {path} is a link to a folder, which isn't followed: name that folder itself")
            if not path.is_file() and not path.is_dir():
                raise DataError(f"text: {path} is neither a file nor a folder")
        found += [Path(folder, file) for file in files if not file.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _library() -> list[Path]:
    """Lists the standard library's sources."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _NOT_LIBRARY and not name.startswith(".")]
        found += [Path(folder, file) for file in files if file.endswith(".py") and not file.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _join(files: list[Path]) -> np.ndarray:
    """Joins the bytes of the text files. A file with a zero byte near its start is no text (git's rule)."""
    contents = map(_content, files)
    return np.frombuffer(b"".join(content for content in contents if b"\0" not in content[:8192]), np.uint8)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"text: {file} can't be read: {error.strerror}") from error


def _tokens(path: str | None) -> np.ndarray:
    if path is None:
        return _join(_library())
    (place,) = places("text", path)
    if place.is_dir():
        return _join(_files(place))
    if not place.is_file():
        raise DataError(f"text: {place} is neither a file nor a folder")
    # An empty file can't be mapped.
    return np.memmap(place, np.uint8, mode="r") if place.stat().st_size else np.empty(0, np.uint8)


def text(path: str | None = None, *, length: int = 256, validation: float = 0.1, test: float = 0.1) -> Source:
    """Text as windows of bytes, each byte predicted from those before it.

    Inputs and labels (B, length) int32 in 0 … 255, the labels one byte ahead. The windows of the training split lie
    side by side, on a grid that starts elsewhere every epoch. In validation and test every byte of the split but its
    first is predicted exactly once: a "weight" (B, length) is 0 where the last window overlaps the one before.

    Args:
        path: a file, or a folder whose text files are joined in the order of their names (without hidden ones and those
            with zero bytes). By default the Python standard library's own sources, about 12 MB.
        length: bytes in a window, the T of a model's (B, T) inputs.
        validation: fraction of the bytes held out for validation, in one piece before the test's; 0 for none.
        test: fraction of the bytes held out for the test, in one piece at the end; 0 for none.

    Raises:
        DataError: if the path doesn't exist, or a split has too few bytes for the length.
    """
    if not is_count(length):
        raise DataError(f"length must be a number of bytes, 1 or more, got {length!r}")
    length = int(length)
    tokens, what = _tokens(path), "the standard library" if path is None else str(path)
    n_validation, n_test = (
        held_out_size(name, part, len(tokens)) for name, part in (("validation", validation), ("test", test))
    )
    n_train = len(tokens) - n_validation - n_test
    for name, size, needed in (
        ("training", n_train, 2 * length),
        ("validation", n_validation or length + 1, length + 1),
        ("test", n_test or length + 1, length + 1),
    ):
        if size < needed:
            raise DataError(
                f"text: {what} has {len(tokens):,} bytes, which leaves {max(size, 0):,} for the {name} split; "
                f"windows of length {length} need {needed:,}: take a shorter length or more text"
            )
    held_out = EvaluationWindows(tokens[n_train : n_train + n_validation], length) if n_validation else None
    last = EvaluationWindows(tokens[n_train + n_validation :], length) if n_test else None
    facts: Facts = {"vocabulary": 256, "length": length}
    return Source("text", TrainingWindows(tokens[:n_train], length), held_out, last, facts)
