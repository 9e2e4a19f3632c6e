"""What a split or a loader gives is what was asked for: as many rows, in that order, unmasked, of numbers that fit."""

import os

import numpy as np
import pytest

from optlab.data import Batches, DataError, Share, arrays, check_splits, evaluation_batches, text

X = np.arange(40, dtype=np.float32).reshape(20, 2)


class Split:
    """Twenty rows, given in some way."""

    def __init__(self, way=lambda i: X[i]):
        self.way = way

    def __len__(self):
        return 20

    def take(self, indices, epoch=None, seed=0):
        return {"inputs": self.way(np.asarray(indices)), "labels": X[indices, 0]}


@pytest.mark.parametrize(
    "way", [lambda i: X[i[1:]], lambda i: X[np.append(i, 0)], lambda i: X[i].T, lambda i: np.float32(3)]
)
def test_other_rows_than_were_asked_for_are_refused(way):
    for batches in (lambda: Batches(Split(way), 8).batch(0), lambda: list(evaluation_batches(Split(way), 8))):
        with pytest.raises(DataError, match=r"take\(\) of Split gave 'inputs' of shape .* where 8 examples were asked"):
            batches()


def test_arrays_of_unequal_length_in_a_loaders_batch_are_refused():
    loader = type("Loader", (), {"batch": lambda self, step: {"inputs": {"a": X}, "labels": X[1:]}})()
    loader.batch = lambda step: {"labels": X[1:, 0], "inputs": {"a": X}}
    with pytest.raises(DataError, match=r"batch\(3\) gave 'inputs/a' of shape \(20, 2\) where 19"):
        Share(loader, slice, 19).batch(3)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_an_order_of_the_splits_own_is_refused(name):
    with pytest.raises(DataError, match=f"take.. of the {name} split gives its rows in an order of its own"):
        check_splits(**{name: type("Sorted", (Split,), {"take": lambda self, i, *_: {"inputs": X[np.sort(i)]}})()})
    random = np.random.default_rng(0)
    check_splits(a=Split(), b=None, c=Split(lambda i: X[i] + random.normal()), d=Split(lambda i: X[i] * 0))


def test_a_batch_over_two_epochs_of_a_buffer_that_is_filled_again():
    buffer = np.empty((20, 2), np.float32)

    def filled(i):
        buffer[: len(i)] = X[i]
        return buffer[: len(i)]

    expected, found = (Batches(split, 15).batch(1) for split in (Split(), Split(filled)))
    assert (expected["inputs"] == found["inputs"]).all()


def test_masked_arrays_are_refused_where_they_mask():
    for inputs, labels in ((np.ma.masked_greater(X, 30), X[:, 0]), (X, np.ma.masked_greater(X[:, 0], 30))):
        with pytest.raises(DataError, match=r"(inputs|labels) is a masked array with (9|4) masked values"):
            arrays(inputs, labels)
    assert arrays(np.ma.masked_greater(X, 99), X[:, 0]).train.inputs.max() == 39
    with pytest.raises(DataError, match="'inputs' is a masked array"):
        Batches(Split(lambda i: np.ma.masked_greater(X[i], 10)), 8).batch(0)
    with pytest.raises(DataError, match="validation labels is a masked array"):
        arrays(X, X[:, 0], validation=(X, np.ma.masked_greater(X[:, 0], 30)))


@pytest.mark.parametrize("where", ["inputs", "labels"])
def test_floats_that_overflow_in_float32_are_refused(where):
    large = np.where(X > 30, 1e300, X.astype(np.float64))
    with pytest.raises(DataError, match=rf"{where} has values beyond float32, up to 1e\+300"):
        arrays(*((large, X) if where == "inputs" else (X, large)))


def test_arrays_that_their_owner_changes_later_are_as_they_were(tmp_path):
    inputs, labels = X.copy(), np.arange(20, dtype=np.int32)
    source = arrays(inputs, labels)
    before = source.train.take(np.arange(5))
    inputs[:], labels[:] = -1, 0
    after = source.train.take(np.arange(5))
    assert all((before[name] == after[name]).all() for name in before)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(arrays(mapped, labels).train.inputs, mapped)  # it may be larger than the memory


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.symlink_to(f.parent / "gone.txt"), "b is a link to .*gone.txt, which isn't there"),
        (lambda f: f.symlink_to(f.parent), "b is a link to a folder, which isn't followed"),
        (lambda f: f.symlink_to(f), "b is a link to .*b, which isn't there"),
        (os.mkfifo, "b is neither a file nor a folder"),
    ],
)
def test_what_cannot_be_read_in_a_folder_of_texts_is_refused(make, message, tmp_path):
    (tmp_path / "a.txt").write_text("words " * 100)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    assert len(text(str(tmp_path), length=4).train.tokens) == 960
    make(tmp_path / "b")
    with pytest.raises(DataError, match=message):
        text(str(tmp_path), length=4)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words " * 100)
    (tmp_path / "below").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"the folder .*below can't be read: Permission denied"):
        text(str(tmp_path), length=4)


def test_a_dangling_link_below_the_data_folder_is_not_passed_over(tmp_path, monkeypatch):
    from optlab.data import cifar10

    (tmp_path / "cifar10").symlink_to(tmp_path / "unmounted")
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar10 is a link to .*unmounted, which isn't there"):
        cifar10()
