"""The image data sets: digits, Fashion-MNIST and CIFAR-10, all as float32 (B, height, width, channels)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optlab.data._arrays import statistics
from optlab.data._files import download, not_found, places, require
from optlab.data._held_out import hold_out
from optlab.data._random import AUGMENT, random_bits
from optlab.data._readers import find_cifar, read_cifar, read_idx
from optlab.data._types import Batch, DataError, InMemory, Source

PAD = 4


def outcomes(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What random bits choose of the 2 · 9 · 9 outcomes: whether an image is mirrored, and its crop's first pixels."""
    shifts = 2 * PAD + 1
    flip, down, right = np.unravel_index((bits % np.uint64(2 * shifts * shifts)).astype(np.intp), (2, shifts, shifts))
    return flip, down, right


def crop_and_flip(images_BxHxWxC: np.ndarray, bits_B: np.ndarray) -> np.ndarray:
    """Pads each image with zeros, crops it at a random place and mirrors it with probability ½.

    Source: He et al. (arXiv 1512.03385, section 4.2): 4 pixels of padding on each side, a crop of the old size, a
    horizontal flip. The images are standardized before, so that the padding is the mean colour.

    Args:
        images_BxHxWxC: standardized images.
        bits_B: 64 random bits for each image, which choose its outcome.
    """
    B, H, W, C = images_BxHxWxC.shape
    flip, down, right = outcomes(bits_B)
    padded = np.zeros((B, H + 2 * PAD, W + 2 * PAD, C), images_BxHxWxC.dtype)
    padded[:, PAD:-PAD, PAD:-PAD] = images_BxHxWxC
    windows = np.lib.stride_tricks.sliding_window_view(padded, (H, W, C), axis=(1, 2, 3))
    crops = windows[np.arange(B), down, right, 0]
    mirrored = np.flatnonzero(flip)
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops


@dataclass(frozen=True, eq=False)
class ImageSplit(InMemory):
    """Rows of a uint8 array of images, standardized (and augmented) when they are taken."""

    images: np.ndarray  # (N, H, W, C)
    labels: np.ndarray  # (N,)
    rows: np.ndarray
    mean: np.ndarray  # (H · W · C,), repeated for each pixel: NumPy subtracts such a row fastest
    scale: np.ndarray
    augment: bool

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        rows = self.rows[indices]
        images = self.images[rows].reshape(len(rows), -1).astype(np.float32)
        images -= self.mean
        images *= self.scale
        images = images.reshape(len(rows), *self.images.shape[1:])
        if self.augment and epoch is not None:
            images = crop_and_flip(images, random_bits(AUGMENT, seed, epoch, np.asarray(indices)))
        return {"inputs": images, "labels": self.labels[rows]}


def _source(
    name: str,
    learn: tuple[np.ndarray, np.ndarray],
    final: tuple[np.ndarray, np.ndarray] | None,
    *,
    validation: int,
    test: int = 0,
    augment: bool = False,
) -> Source:
    """Makes a source of ten classes from images and labels; the test split is `final`, or else held out of `learn`."""
    train, chosen, unseen = hold_out(len(learn[0]), validation, test)
    pixels = learn[0][0].size // learn[0].shape[-1]
    mean, scale = (np.tile(figure, pixels).astype(np.float32) for figure in statistics(learn[0], train))

    def split(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, augment: bool = False) -> ImageSplit:
        return ImageSplit(images, labels.astype(np.int32), rows, mean, scale, augment)

    held_out = split(*learn, chosen) if validation else None
    last = split(*final, np.arange(len(final[0]))) if final else split(*learn, unseen)
    return Source(name, split(*learn, train, augment), held_out, last, {"outputs": 10})


def digits() -> Source:
    """Handwritten digits, 8×8, which come with scikit-learn: 1,297 to train, 200 to validate, 300 to test.

    Inputs (B, 8, 8, 1) float32, labels (B,) int32 in 0 … 9. Standardized with one mean and one std for all pixels.
    """
    data = require("sklearn.datasets", "digits").load_digits()
    images = data.images.astype(np.uint8)[..., None]
    return _source("digits", (images, data.target), None, validation=200, test=300)


class _Published(NamedTuple):
    """SHA-256 of a published .gz file, and of its content: other packagers compress the same content differently."""

    file: str
    content: str


_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": _Published(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": _Published(
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": _Published(
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": _Published(
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_FASHION_SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def _find_fashion(path: str | None) -> list[Path]:
    """Returns the four files, from the first folder that has any of them, or downloaded."""
    looked = places("fashion_mnist", path) + ([_FASHION_SYSTEM] if path is None else [])
    for folder in looked:
        missing = [file for file in _FASHION_FILES if not (folder / file).is_file()]
        if not missing:
            return [folder / file for file in _FASHION_FILES]
        if len(missing) < len(_FASHION_FILES):
            raise DataError(f"{folder} isn't all of Fashion-MNIST: {', '.join(missing)} missing; see {_FASHION_URL}")
    if path is not None:
        raise not_found("fashion_mnist", "train-images-idx3-ubyte.gz", looked, _FASHION_URL)
    return [
        download("fashion_mnist", f"{_FASHION_URL}/{file}", published.file, looked)
        for file, published in _FASHION_FILES.items()
    ]


def _read_fashion(path: Path) -> np.ndarray:
    array, content = read_idx(path)
    if hashlib.sha256(content).hexdigest() != _FASHION_FILES[path.name].content:
        raise DataError(f"{path} isn't Fashion-MNIST's: its content has another SHA-256; get it from {_FASHION_URL}")
    return array


def fashion_mnist(path: str | None = None, *, validation: int = 5_000) -> Source:
    """28×28 grey images of clothing in ten classes (Xiao, Rasul and Vollgraf, arXiv 1708.07747): 60,000 and 10,000.

    Inputs (B, 28, 28, 1) float32, labels (B,) int32 in 0 … 9. Standardized with one mean and one std for all pixels.
    The content of the four files is checked against the published hash.

    Args:
        path: folder of the four published .gz files. By default they are looked for in $OPTLAB_DATA/fashion_mnist,
            $OPTLAB_DATA and Debian's /usr/share/datasets/fashion-mnist, and then downloaded.
        validation: number of the 60,000 training images that are held out for validation, always the same ones.

    Raises:
        DataError: if a file can't be found or downloaded, or is truncated, damaged or not Fashion-MNIST's.
    """
    images, labels, test_images, test_labels = map(_read_fashion, _find_fashion(path))
    learn, final = (images[..., None], labels), (test_images[..., None], test_labels)
    return _source("fashion_mnist", learn, final, validation=validation)


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def _find_cifar(path: str | None) -> Path:
    looked = places("cifar10", path)
    for root in looked:
        place = find_cifar(root)
        if place is not None:
            return place
    if path is not None:
        raise not_found("cifar10", "cifar-10-batches-bin, cifar-10-batches-py or their .tar.gz", looked, _CIFAR_URL)
    return download("cifar10", _CIFAR_URL, _CIFAR_SHA256, looked)


def cifar10(path: str | None = None, *, augment: bool = True, validation: int = 5_000) -> Source:
    """32×32 colour images in ten classes (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

    50,000 images to learn from and 10,000 to test. Inputs (B, 32, 32, 3) float32, labels (B,) int32 in 0 … 9.
    Standardized with a mean and a std for each of red, green and blue.

    Args:
        path: folder cifar-10-batches-bin or cifar-10-batches-py, one of the published .tar.gz archives, or a folder
            with one of these. By default they are looked for in $OPTLAB_DATA/cifar10 and $OPTLAB_DATA, and then the
            binary archive is downloaded (162 MiB).
        augment: whether training images are shifted by up to 4 pixels (zero padding after standardization) and mirrored
            at random.
        validation: number of the 50,000 training images that are held out for validation, always the same ones.

    Raises:
        DataError: if a file can't be found or downloaded, or is truncated or damaged.
    """
    learn, final = read_cifar(_find_cifar(path))
    return _source("cifar10", learn, final, validation=validation, augment=augment)
