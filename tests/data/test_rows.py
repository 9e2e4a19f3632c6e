"""What a split or a loader gives is what was asked for: as many rows, in that order, unmasked, of numbers that fit."""

import os
from collections import namedtuple
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from optlab.data import Batches, DataError, Share, arrays, check_splits, evaluation_batches, fingerprint, text

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
    check_splits(Split(), Split(lambda i: X[i] + random.normal()), Split(lambda i: X[i] * 0))


def test_splits_are_asked_for_no_more_than_the_run_asks_for():
    """In epochs to learn from; to be judged on, as files are read, in ascending order alone."""

    def learned_from(self, indices, epoch, seed):
        return {"inputs": X[indices] + np.random.default_rng((seed, epoch)).normal(), "labels": X[indices, 0]}

    def ascending(i):
        if (np.diff(i) <= 0).any():
            raise TypeError("Indexing elements must be in increasing order")
        return X[i]

    def as_torch(i):
        assert all(n >= 0 for n in i.strides)  # torch takes no others
        return X[i]

    train = type("Augmented", (Split,), {"take": learned_from})()
    check_splits(train, Split(ascending), Split(as_torch))
    check_splits(Split(as_torch))
    with pytest.raises(TypeError, match="increasing"):
        check_splits(Split(ascending))


NESTED = [
    lambda i: (X[i], X[i, :1]),
    lambda i: (X[i], X[i]),
    lambda i: {"a": X[i], "b": {"c": X[i, :1]}},
    lambda i: [X[i], {"a": X[i]}],
    lambda i: Pair(X[i], X[i, :1]),
]
Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize("way", NESTED)
def test_inputs_of_several_arrays(way):
    split, plain = Split(way), Split()
    for step in (0, 2):  # within an epoch, and over its end
        rows = Batches(plain, 8).batch(step)["inputs"]
        found, expected = Batches(split, 8).batch(step)["inputs"], way((rows[:, 0] / 2).astype(int))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))
    check_splits(split, split)
    assert [len(jax.tree.leaves(b["inputs"])[0]) for b in evaluation_batches(split, 8)] == [8, 8, 4]
    assert fingerprint(split) == fingerprint(Split(way)) != fingerprint(plain)
    loader = SimpleNamespace(batch=lambda step: {"inputs": way(np.arange(20)), "labels": X[:, 0]})
    batch, examples = Share(loader, lambda n: slice(n // 2), 20).batch(0)
    assert examples == 20
    assert [len(x) for x in jax.tree.leaves(batch)] == [10] * len(jax.tree.leaves(batch))


def test_several_inputs_of_unequal_length_are_refused():
    with pytest.raises(DataError, match=r"gave 'inputs/1' of shape \(7, 2\) where 8 examples were asked"):
        Batches(Split(lambda i: (X[i], X[i[1:]])), 8).batch(0)


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
    with pytest.raises(DataError, match=r"inputs is a masked array with 1 masked values"):
        arrays([np.ma.masked_greater(x, 38) for x in X], X[:, 0])
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
