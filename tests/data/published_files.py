"""Small files in the published layouts, written from scratch."""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

RECORDS = 20  # instead of 10,000 in a file of CIFAR-10


def cifar_names(stem: str) -> list[str]:
    return [f"data_batch_{i}{stem}" for i in range(1, 6)] + [f"test_batch{stem}"]


def write_binary(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    folder = folder / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i, name in enumerate(cifar_names(".bin")):
        content = b""
        for image, label in zip(*(x[i * RECORDS : (i + 1) * RECORDS] for x in (images, labels)), strict=True):
            content += bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        (folder / name).write_bytes(content)
    return folder


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The bytes that Python 2's cPickle (protocol 2) wrote for {"data": array, "labels": list}."""
    pixels = data.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01", *(b"M" + struct.pack("<H", n) for n in data.shape), b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T", struct.pack("<i", len(pixels)), pixels, b"tb",
            b"U\x06labels](", *(b"K" + bytes([label]) for label in labels), b"eu.",
        ]
    )  # fmt: skip


def python3_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"a batch"}, protocol=2)


def write_python(folder: Path, images: np.ndarray, labels: np.ndarray, dump: Callable = python2_pickle) -> Path:
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate(cifar_names("")):
        rows = slice(i * RECORDS, (i + 1) * RECORDS)
        planes = images[rows].transpose(0, 3, 1, 2).reshape(RECORDS, -1)
        (folder / name).write_bytes(dump(planes, labels[rows].tolist()))
    return folder


def write_archive(folder: Path, archive: Path) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    archive.write_bytes(buffer.getvalue())
    return archive


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_fashion(folder: Path, train: int = 60, test: int = 20) -> dict[str, bytes]:
    """Four files in the layout of Fashion-MNIST; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    contents = {}
    for stem, count in (("train", train), ("t10k", test)):
        contents[f"{stem}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (count, 28, 28), np.uint8))
        contents[f"{stem}-labels-idx1-ubyte.gz"] = idx(rng.integers(0, 10, count, np.uint8))
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content, mtime=0))
    return contents
