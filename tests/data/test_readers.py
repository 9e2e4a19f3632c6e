"""Damaged, truncated and hostile files are named as such, with the sizes."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published_files import RECORDS, idx, python3_pickle, write_archive, write_binary, write_python

from optlab.data import DataError
from optlab.data._readers import _FILES, read_cifar, read_idx


@pytest.mark.parametrize("shape", [(7,), (5, 4, 3), (1, 28, 28)])
def test_idx(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    found, content = read_idx(tmp_path / "x.gz")
    assert np.array_equal(found, array)
    assert content == idx(array)


ARRAY = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)  # doesn't compress


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            gzip.compress(idx(ARRAY), mtime=0)[:20_000],
            r"x.gz is truncated: its header \(50, 28, 28\) promises 39,216 bytes, found",
        ),
        (gzip.compress(idx(ARRAY)[:-100], mtime=0), "x.gz is truncated: .* promises 39,216 bytes, found 39,116"),
        (gzip.compress(idx(ARRAY) + b"more", mtime=0), "x.gz is damaged: .* promises 39,216 bytes, found 39,220"),
        (gzip.compress(b"", mtime=0), "x.gz is damaged: it doesn't start with the header of an IDX file"),
        (gzip.compress(b"<html>not found</html>", mtime=0), "x.gz is damaged: it doesn't start with the header"),
        (gzip.compress(idx(ARRAY)[:10], mtime=0), "x.gz is damaged: it doesn't start with the header"),
        (b"<html>not found</html>", r"x.gz is damaged, or no gzip file \(.*; 22 bytes\)"),
        (b"", "x.gz is damaged: it doesn't start with the header"),
    ],
)
def test_idx_that_is_truncated_or_damaged(file: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(file)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x.gz")


def test_no_flipped_bit_of_a_gzip_file_passes(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(idx(ARRAY), mtime=0))
    for position in np.random.default_rng(0).integers(10, len(whole), 40):
        damaged = whole.copy()
        damaged[position] ^= 16
        (tmp_path / "x.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.gz is (damaged|truncated)"):
            read_idx(tmp_path / "x.gz")


def expected(cifar: tuple) -> tuple:
    images, labels = cifar
    return (images[: 5 * RECORDS], labels[: 5 * RECORDS]), (images[5 * RECORDS :], labels[5 * RECORDS :])


@pytest.mark.parametrize("layout", ["binary", "Python 2", "Python 3"])
@pytest.mark.parametrize("archived", [False, True])
def test_cifar_layouts(layout: str, archived: bool, cifar: tuple, tmp_path: Path) -> None:
    if layout == "binary":
        place = write_binary(tmp_path, *cifar)
    else:
        place = write_python(tmp_path, *cifar, *([python3_pickle] if layout == "Python 3" else []))
    if archived:
        place = write_archive(place, tmp_path / "some.tar.gz")
    for found, wanted in zip(read_cifar(place), expected(cifar), strict=True):
        assert np.array_equal(found[0], wanted[0])
        assert np.array_equal(found[1], wanted[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], r"data_batch_3.bin is truncated: expected 61,460 bytes, found 61,459"),
        (lambda content: content[:-3073], r"data_batch_3.bin is truncated: expected 61,460 bytes, found 58,387"),
        (lambda content: content + b"x", r"data_batch_3.bin is damaged: expected 61,460 bytes, found 61,461"),
        (lambda content: b"", r"data_batch_3.bin is truncated: expected 61,460 bytes, found 0"),
        (lambda content: b"\x0a" + content[1:], r"data_batch_3.bin is damaged: it has labels outside 0 … 9"),
    ],
)
def test_binary_batch_that_is_truncated_or_damaged(
    change: Callable[[bytes], bytes], message: str, cifar: tuple, tmp_path: Path
) -> None:
    place = write_binary(tmp_path, *cifar)
    file = place / "data_batch_3.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        read_cifar(place)


def test_cifar_with_a_file_missing(cifar: tuple, tmp_path: Path) -> None:
    place = write_python(tmp_path, *cifar)
    (place / "data_batch_2").unlink()
    (place / "test_batch").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py isn't all of CIFAR-10: data_batch_2, test_batch missing"):
        read_cifar(place)


def test_python_batch_that_is_truncated(cifar: tuple, tmp_path: Path) -> None:
    place = write_python(tmp_path, *cifar)
    whole = (place / "data_batch_4").read_bytes()
    for size in (0, 3, 100, 50_000, len(whole) - 1):
        (place / "data_batch_4").write_bytes(whole[:size])
        message = f"data_batch_4 is truncated or damaged.*its {size:,} bytes, expected more than 61,440"
        with pytest.raises(DataError, match=message):
            read_cifar(place)


def test_python_batch_of_another_shape(cifar: tuple, tmp_path: Path) -> None:
    place = write_python(tmp_path, *cifar)
    for data, labels in (
        (np.zeros((RECORDS, 100), np.uint8), [0] * RECORDS),
        (np.zeros((RECORDS, 3072), np.float32), [0] * RECORDS),
        (np.zeros((RECORDS, 3072), np.uint8), [0] * (RECORDS - 1)),
        ([1, 2], [0] * RECORDS),
    ):
        (place / "data_batch_1").write_bytes(python3_pickle(data, labels))
        with pytest.raises(DataError, match="data_batch_1 is damaged: expected 20 labels and bytes of shape"):
            read_cifar(place)
    (place / "data_batch_1").write_bytes(python3_pickle(np.zeros((RECORDS, 3072), np.uint8), [10] * RECORDS))
    with pytest.raises(DataError, match="data_batch_1 is damaged: it has labels outside 0 … 9"):
        read_cifar(place)


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_code_in_a_pickle_is_run(protocol: int, cifar: tuple, tmp_path: Path) -> None:
    place = write_python(tmp_path, *cifar)
    (place / "data_batch_1").write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "touched")}, protocol))
    with pytest.raises(
        DataError, match=r"data_batch_1 is truncated or damaged.*it asks for .*, which no CIFAR-10 file"
    ):
        read_cifar(place)
    assert not (tmp_path / "touched").exists()


def test_archive_that_is_truncated_or_damaged(cifar: tuple, tmp_path: Path) -> None:
    archive = write_archive(write_binary(tmp_path, *cifar), tmp_path / "cifar-10-binary.tar.gz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1000])
    size = f"{len(whole) - 1000:,}"
    with pytest.raises(DataError, match=f"binary.tar.gz is truncated: it ends after {size} bytes, .*170,052,171"):
        read_cifar(archive)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match=r"binary.tar.gz is (damaged|truncated)"):
        read_cifar(archive)
    archive.write_bytes(gzip.compress(b"no archive" * 100, mtime=0))
    with pytest.raises(DataError, match=r"binary.tar.gz is damaged, or no .tar.gz archive"):
        read_cifar(archive)
    archive.write_bytes(gzip.compress(struct.pack("10240x"), mtime=0))
    with pytest.raises(DataError, match=r"binary.tar.gz isn't all of CIFAR-10: data_batch_1.bin, "):
        read_cifar(archive)


def test_file_names_are_the_published_ones() -> None:
    assert sorted(_FILES) == sorted(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
        + [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)]
        + ["test_batch.bin"]
    )
