"""Readers of the published image formats: bytes to uint8 arrays, with every size checked."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optlab.data._files import gunzip
from optlab.data._types import DataError

Labelled = tuple[np.ndarray, np.ndarray]

RECORDS = 10_000  # in every file of CIFAR-10
_PIXELS = 3 * 32 * 32


def read_idx(path: Path) -> tuple[np.ndarray, bytes]:
    """Reads a gzipped IDX file of unsigned bytes (LeCun's format of MNIST).

    Returns:
        the array, and the uncompressed content that it was read from.
    """
    content, _ = gunzip(path)
    ndim = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * ndim
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise DataError(f"{path} is damaged: it doesn't start with the header of an IDX file of bytes")
    shape = tuple(np.frombuffer(content, ">i4", ndim, offset=4).tolist())
    expected = start + int(np.prod(shape))
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "damaged"
        raise DataError(f"{path} is {state}: its header {shape} promises {expected:,} bytes, found {len(content):,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), content


def _binary_batch(content: bytes, file: str) -> Labelled:
    """Reads the binary layout: records of one label byte and 3,072 pixel bytes."""
    expected = RECORDS * (1 + _PIXELS)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "damaged"
        raise DataError(f"{file} is {state}: expected {expected:,} bytes, found {len(content):,}")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and bytes alone: a pickle from the internet could call any function."""

    _allowed = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # how Python 3 writes bytes in the old protocols
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        # The published files name NumPy's core as it was called then; importing it by that name warns.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _python_batch(content: bytes, file: str) -> Labelled:
    """Reads the Python layout: a pickled dict with (10,000, 3,072) pixels under b"data" and a list under b"labels"."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[b"labels"], np.int64)
    except Exception as error:  # a cut or altered pickle can raise nearly anything
        raise DataError(
            f"{file} is truncated or damaged: no pickled CIFAR-10 batch can be read from its {len(content):,} bytes, "
            f"expected more than {RECORDS * _PIXELS:,} ({error})"
        ) from error
    shape = getattr(pixels, "shape", None)
    if shape != (RECORDS, _PIXELS) or pixels.dtype != np.uint8 or labels.shape != (RECORDS,):
        raise DataError(
            f"{file} is damaged: expected {RECORDS:,} labels and bytes of shape {(RECORDS, _PIXELS)}, "
            f"found {labels.size:,} labels and {shape}"
        )
    return pixels, labels


@dataclass(frozen=True)
class _Layout:
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    parse: Callable[[bytes, str], Labelled]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)


_LAYOUTS = (
    _Layout(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        parse=_binary_batch,
    ),
    _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        parse=_python_batch,
    ),
)
_FILES = {file for layout in _LAYOUTS for file in layout.files}


def find_cifar(root: Path) -> Path | None:
    """Finds the folder or archive of CIFAR-10 at this path or just below it."""
    below = [root / layout.folder for layout in _LAYOUTS] + [root / layout.archive for layout in _LAYOUTS]
    for place in [root, *below]:
        if place.is_file() or (place.is_dir() and _FILES & set(os.listdir(place))):
            return place
    return None


def _contents(place: Path) -> dict[str, bytes]:
    """Reads the files of a folder or of a .tar.gz archive, by name."""
    if place.is_dir():
        return {file: (place / file).read_bytes() for file in _FILES if (place / file).is_file()}
    # The checksum stands at the end, so the archive is unpacked whole before anything is read.
    archive, whole = gunzip(place)
    if not whole:
        raise DataError(
            f"{place} is truncated: it ends after {place.stat().st_size:,} bytes, "
            "the published archives have 170,052,171 (binary) and 170,498,071 (Python)"
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            members = {member.name.rsplit("/", 1)[-1]: member for member in tar if member.isfile()}
            return {file: tar.extractfile(members[file]).read() for file in _FILES & set(members)}  # type: ignore[union-attr]
    except tarfile.TarError as error:
        raise DataError(f"{place} is damaged, or no .tar.gz archive ({error})") from error


def read_cifar(place: Path) -> tuple[Labelled, Labelled]:
    """Reads CIFAR-10 from a folder or archive in the binary or the Python layout.

    Returns:
        training and test set: images (N, 32, 32, 3) uint8 and labels (N,) int32.
    """
    contents = _contents(place)
    layout = max(_LAYOUTS, key=lambda layout: len(contents.keys() & set(layout.files)))
    missing = [file for file in layout.files if file not in contents]
    if missing:
        raise DataError(f"{place} isn't all of CIFAR-10: {', '.join(missing)} missing")

    def read(files: tuple[str, ...]) -> Labelled:
        images = np.empty((len(files) * RECORDS, 32, 32, 3), np.uint8)
        labels = np.empty(len(files) * RECORDS, np.int32)
        for i, file in enumerate(files):
            rows = slice(i * RECORDS, (i + 1) * RECORDS)
            pixels, labels[rows] = layout.parse(contents.pop(file), str(place / file))
            images[rows] = pixels.reshape(RECORDS, 3, 32, 32).transpose(0, 2, 3, 1)
            if np.any((labels[rows] < 0) | (labels[rows] > 9)):
                raise DataError(f"{place / file} is damaged: it has labels outside 0 … 9")
        return images, labels

    return read(layout.train), read((layout.test,))
