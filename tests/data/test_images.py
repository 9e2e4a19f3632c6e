"""Fashion-MNIST and CIFAR-10: found, read, standardized, augmented."""

import functools
import gzip
import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from published_files import write_archive, write_binary, write_fashion, write_python

from optlab._extras import MissingExtraError
from optlab.data import Batches, DataError, Source, Split, cifar10, fashion_mnist
from optlab.data import _images as images_module
from optlab.data._images import crop_and_flip
from optlab.data._random import random_bits
from optlab.data._readers import find_cifar


def everything(split: Split) -> dict[str, np.ndarray]:
    return split.take(np.arange(len(split)))


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data on this machine but the test's own, and an empty cache."""
    monkeypatch.delenv("OPTLAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images_module, "_FASHION_SYSTEM", tmp_path / "no-system-folder")


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of four small files that pass for Fashion-MNIST."""
    folder = tmp_path / "data" / "fashion_mnist"
    published = {
        name: images_module._Published(
            hashlib.sha256((folder / name).read_bytes()).hexdigest(), hashlib.sha256(content).hexdigest()
        )
        for name, content in write_fashion(folder).items()
    }
    # In the order that the reader relies on.
    monkeypatch.setattr(
        images_module, "_FASHION_FILES", {name: published[name] for name in images_module._FASHION_FILES}
    )
    return folder


def all_crops(image: np.ndarray) -> np.ndarray:
    """The 162 outcomes for one image, by plain slicing: flip, rows down, columns right."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    height, width, _ = image.shape
    crops = [padded[i : i + height, j : j + width] for i in range(9) for j in range(9)]
    return np.stack([*crops, *(crop[:, ::-1] for crop in crops)])


def test_crop_and_flip_has_the_162_outcomes() -> None:
    image = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    found = crop_and_flip(np.repeat(image[None], 162, axis=0), np.arange(162, dtype=np.uint64) + np.uint64(162 * 10**9))
    assert np.array_equal(found, all_crops(image))


def test_augmentation_is_uniform() -> None:
    # A single bright pixel shows the shift; the pixel beside it shows the flip.
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4], image[4, 5] = 1, 2
    outcomes = {crop.tobytes(): i for i, crop in enumerate(all_crops(image))}
    assert len(outcomes) == 162
    count = 162 * 100
    crops = crop_and_flip(np.repeat(image[None], count, axis=0), random_bits(0, 7, 0, np.arange(count)))
    found = np.bincount([outcomes[crop.tobytes()] for crop in crops], minlength=162)
    assert ((found - 100) ** 2 / 100).sum() < 224  # χ² with 161 degrees of freedom: 1 in 1,000


def test_augmentation_belongs_to_the_example(cifar: tuple, tmp_path: Path) -> None:
    train = cifar10(str(write_binary(tmp_path, *cifar)), validation=10).train
    together = train.take(np.arange(90), epoch=3, seed=5)["inputs"]
    mixed = np.array([40, 7, 89, 7])
    assert np.array_equal(train.take(mixed, epoch=3, seed=5)["inputs"], together[mixed])
    plain = everything(train)["inputs"]
    assert np.array_equal(plain, train.take(np.arange(90))["inputs"])
    for other in (plain, train.take(np.arange(90), 4, 5)["inputs"], train.take(np.arange(90), 3, 6)["inputs"]):
        assert np.mean([np.array_equal(a, b) for a, b in zip(together, other, strict=True)]) < 0.1
    for i in (0, 44):
        assert any(np.array_equal(together[i], crop) for crop in all_crops(plain[i]))


def test_only_training_images_are_augmented_and_only_on_request(cifar: tuple, tmp_path: Path) -> None:
    folder = str(write_binary(tmp_path, *cifar))
    source, plain = cifar10(folder, validation=10), cifar10(folder, validation=10, augment=False)
    for split in (source.validation, source.test, plain.train):
        assert np.array_equal(split.take(np.arange(10), epoch=1)["inputs"], split.take(np.arange(10))["inputs"])
    assert Batches(source.train, 90).batch(0)["inputs"].std() != Batches(plain.train, 90).batch(0)["inputs"].std()


@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("where", ["folder", "above", "archive", "folder of the archive", "OPTLAB_DATA", "below it"])
def test_cifar_is_found_and_read(
    write: Callable, where: str, cifar: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = cifar
    root = tmp_path / "cifar10"
    path: Path | None = write(root, images, labels)
    if "archive" in where:
        published = "cifar-10-binary.tar.gz" if write is write_binary else "cifar-10-python.tar.gz"
        archive = write_archive(path, tmp_path / ("mine.tgz" if where == "archive" else published))
        path = archive if where == "archive" else tmp_path
        root.rename(tmp_path / "elsewhere")
    elif where == "above":
        path = root
    elif where != "folder":
        monkeypatch.setenv("OPTLAB_DATA", str(root if where == "OPTLAB_DATA" else tmp_path))
        path = None
    source = cifar10(path and str(path), validation=10, augment=False)
    assert (len(source.train), len(source.validation), len(source.test)) == (90, 10, 20)
    assert source.facts == {"outputs": 10}
    assert np.array_equal(np.sort(np.concatenate([source.train.rows, source.validation.rows])), np.arange(100))
    pixels = images[source.train.rows].astype(np.float64)
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    for split, rows in (
        (source.train, source.train.rows),
        (source.validation, source.validation.rows),
        (source.test, np.arange(100, 120)),
    ):
        batch = everything(split)
        np.testing.assert_allclose(batch["inputs"], (images[rows] - mean) / std, rtol=1e-4, atol=1e-5)
        assert batch["inputs"].dtype == np.float32
        assert np.array_equal(batch["labels"], labels[rows])
        assert batch["labels"].dtype == np.int32


def test_standardized_per_channel(cifar: tuple, tmp_path: Path) -> None:
    images, labels = cifar
    images = np.stack([images[..., 0] // 4, images[..., 1] // 2 + 100, np.full_like(images[..., 2], 77)], axis=-1)
    train = everything(cifar10(str(write_binary(tmp_path, images, labels)), validation=0).train)["inputs"]
    np.testing.assert_allclose(train.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(train.std((0, 1, 2)), [1, 1, 0], atol=1e-4)


def test_validation_can_be_none_or_too_much(cifar: tuple, tmp_path: Path) -> None:
    folder = str(write_binary(tmp_path, *cifar))
    assert cifar10(folder, validation=0).validation is None
    with pytest.raises(DataError, match=r"holding out 100 \+ 0 of 100 examples leaves none to train on"):
        cifar10(folder, validation=100)


def test_fashion_mnist(fashion: Path) -> None:
    source = fashion_mnist(str(fashion), validation=10)
    assert (len(source.train), len(source.validation), len(source.test)) == (50, 10, 20)
    raw = np.frombuffer(gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    raw = raw.reshape(60, 28, 28, 1)
    pixels = raw[source.train.rows].astype(np.float64)
    batch = everything(source.validation)
    expected = (raw[source.validation.rows] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(batch["inputs"], expected, rtol=1e-4, atol=1e-5)
    labels = np.frombuffer(gzip.decompress((fashion / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    assert np.array_equal(everything(source.test)["labels"], labels)
    assert np.array_equal(source.train.take(np.arange(5), 1)["inputs"], source.train.take(np.arange(5))["inputs"])


@pytest.mark.parametrize("where", ["OPTLAB_DATA", "below it", "the system's folder"])
def test_fashion_mnist_is_found(where: str, fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "the system's folder":
        monkeypatch.setattr(images_module, "_FASHION_SYSTEM", fashion)
    else:
        monkeypatch.setenv("OPTLAB_DATA", str(fashion if where == "OPTLAB_DATA" else fashion.parent))
    assert len(fashion_mnist(validation=10).train) == 50


def test_fashion_mnist_that_is_incomplete_or_something_else(fashion: Path) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress((fashion / name).read_bytes())
    (fashion / name).write_bytes(gzip.compress(content[:-1] + b"\x09", mtime=0))
    with pytest.raises(DataError, match=f"{name} isn't Fashion-MNIST's: its content has another SHA-256"):
        fashion_mnist(str(fashion), validation=10)
    (fashion / name).unlink()
    with pytest.raises(DataError, match=f"fashion_mnist isn't all of Fashion-MNIST: {name} missing"):
        fashion_mnist(str(fashion), validation=10)


def test_recompressed_files_are_as_good(fashion: Path) -> None:
    before = everything(fashion_mnist(str(fashion), validation=10).train)["inputs"]
    for file in fashion.iterdir():
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=1, mtime=12345))
    assert np.array_equal(everything(fashion_mnist(str(fashion), validation=10).train)["inputs"], before)


@pytest.mark.parametrize("source", [cifar10, fashion_mnist])
def test_paths_without_data(source: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=rf"{source.__name__}: the path '/no/such' doesn't exist"):
        source("/no/such")
    with pytest.raises(DataError, match=rf"{source.__name__}: no .* in {tmp_path}\.\nGet it from http.* OPTLAB_DATA"):
        source(str(tmp_path))
    monkeypatch.setenv("OPTLAB_DATA", "/no/such")
    with pytest.raises(DataError, match=rf"{source.__name__}: the environment's OPTLAB_DATA=/no/such is no folder"):
        source()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder `data` of the test, served on this machine."""
    (tmp_path / "data").mkdir(exist_ok=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "data")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_downloads_are_checked_shown_and_kept(
    fashion: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(images_module, "_FASHION_URL", f"{server}/fashion_mnist")
    first = everything(fashion_mnist(validation=10).train)["inputs"]
    assert "100%" in capsys.readouterr().err
    fashion.rename(fashion.with_name("gone"))
    assert np.array_equal(everything(fashion_mnist(validation=10).train)["inputs"], first)
    assert "%" not in capsys.readouterr().err


def test_a_wrong_download_is_refused_and_not_kept(
    fashion: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_FASHION_URL", f"{server}/fashion_mnist")
    file = fashion / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"train-images.* can't be downloaded: SHA256 hash of downloaded file"):
        fashion_mnist(validation=10)
    assert list((tmp_path / "cache" / "optlab").iterdir()) == []
    file.write_bytes(whole)
    assert len(fashion_mnist(validation=10).train) == 50


def test_cifar_archive_is_downloaded(
    cifar: tuple, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(write_binary(tmp_path, *cifar), tmp_path / "data" / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(images_module, "_CIFAR_URL", f"{server}/{archive.name}")
    monkeypatch.setattr(images_module, "_CIFAR_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert len(cifar10(validation=10).train) == 90


def test_offline_says_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(images_module, "_CIFAR_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        cifar10()
    lines = str(error.value).split("\n")
    for place in (tmp_path / "cifar10", tmp_path, tmp_path / "cache" / "optlab"):
        assert f"{place}, " in lines[0]
    assert lines[0].endswith("it can't be downloaded: there is no connection.")
    assert lines[1].startswith("Get it from http://127.0.0.1:9/cifar-10-binary.tar.gz and give path='FOLDER'")
    assert len(lines) == 2


def test_download_needs_pooch_and_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("tqdm", "pooch"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=rf"cifar10, to be .* needs {library}.*pip install -e '.\[train\]'"):
            cifar10()


SYSTEM = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="Debian's package dataset-fashion-mnist isn't installed")
def test_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_FASHION_SYSTEM", SYSTEM)
    source = fashion_mnist()
    assert (len(source.train), len(source.validation), len(source.test)) == (55_000, 5_000, 10_000)
    sample = source.train.take(np.arange(0, 55_000, 11))["inputs"]
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02
    assert np.bincount(everything(source.test)["labels"]).tolist() == [1000] * 10


REAL = find_cifar(Path(os.environ.get("OPTLAB_DATA", "/no/such")))


@pytest.mark.skipif(REAL is None, reason="no CIFAR-10 below OPTLAB_DATA")
def test_real_cifar10() -> None:
    source = cifar10(str(REAL))
    assert (len(source.train), len(source.validation), len(source.test)) == (45_000, 5_000, 10_000)
    sample = source.train.take(np.arange(0, 45_000, 9))["inputs"]
    np.testing.assert_allclose(sample.mean((0, 1, 2)), 0, atol=0.03)
    np.testing.assert_allclose(sample.std((0, 1, 2)), 1, atol=0.03)
    assert np.bincount(everything(source.test)["labels"]).tolist() == [1000] * 10
