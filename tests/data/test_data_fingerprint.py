"""The data's fingerprint: the same for the same examples, another one for others, and cheap."""

import dataclasses
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import optlab.data
from optlab.data import Batches, arrays, fingerprint
from optlab.data._declared import Zeros
from optlab.data._images import ImageSplit
from optlab.data._text import TrainingWindows
from optlab.data._types import InMemory

X, Y = np.arange(200.0).reshape(100, 2), np.arange(100)


def of(x, y):
    return fingerprint(arrays(x, y, validation=0, test=0).train)


def test_the_same_examples_have_the_same_fingerprint():
    assert of(X, Y) == of(X.copy(), Y.copy())
    assert of(X, Y).startswith("100 examples ")


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X + 1e-5, Y),
        (X, Y[::-1]),
        (X[:-1], Y[:-1]),
        (X.reshape(100, 2, 1), Y),
        (X.astype(np.int32), Y),
        (np.where(np.arange(200).reshape(100, 2) == 199, 0, X), Y),
    ],
)
def test_other_examples_have_another(x, y):
    assert of(x, y) != of(X, Y)


def test_in_memory_one_bit_of_one_example_makes_another():
    images = np.random.default_rng(0).integers(0, 255, (5000, 4, 4, 1), np.uint8)
    split = ImageSplit(images, np.zeros(5000, np.int32), np.arange(5000), np.zeros(16), np.ones(16), augment=True)
    flipped = images.copy()
    flipped[1234, 1, 2, 0] ^= 1
    assert fingerprint(dataclasses.replace(split, images=flipped)) != fingerprint(split)
    assert fingerprint(dataclasses.replace(split, images=images.copy(), augment=False)) == fingerprint(split)
    tokens = np.arange(100_000).astype(np.uint8)
    assert fingerprint(TrainingWindows(tokens, 10)) != fingerprint(
        TrainingWindows(np.where(tokens == 77, 7, tokens), 10)
    )


def test_every_split_of_optlabs_declares_its_arrays():
    """One that forgot would be sampled in silence."""
    modules = [importlib.import_module(f"optlab.data.{m.name}") for m in pkgutil.iter_modules(optlab.data.__path__)]
    kinds = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    no_data = {optlab.data.Split, Zeros}  # the second has the shapes alone of data that nobody reads
    splits = {kind for kind in kinds if hasattr(kind, "take")} - no_data
    assert {ImageSplit, TrainingWindows} < splits
    assert all(issubclass(kind, InMemory) for kind in splits), splits


def test_the_same_bytes_of_another_dtype_are_others():
    assert of(0 * X, Y) != of((0 * X).astype(np.int32), Y)


def test_of_other_splits_at_most_64_examples_are_read_as_they_are_without_augmentation():
    class Spy(ImageSplit):
        def take(self, indices, epoch=None, seed=0):
            read.extend(indices)
            assert epoch is None
            return super().take(indices, epoch, seed)

    read = []
    images = np.random.default_rng(0).integers(0, 255, (5000, 4, 4, 1), np.uint8)
    split = Spy(images, np.zeros(5000, np.int32), np.arange(5000), np.zeros(16), np.ones(16), augment=True)
    fingerprint(split)
    assert len(read) == len(set(read)) == 64
    assert (min(read), max(read)) == (0, 4999)


def test_of_a_grain_data_set_it_is_the_first_batchs():
    grain = pytest.importorskip("grain")
    make = lambda shift: grain.MapDataset.source(X + shift).map(lambda x: {"inputs": x}).batch(10)
    assert fingerprint(make(0)) == fingerprint(make(0)) != fingerprint(make(1))


def test_of_batches_with_an_order_of_their_own_it_tells_the_order():
    split = arrays(X, Y, validation=0, test=0).train
    assert fingerprint(Batches(split, 10)) != fingerprint(Batches(split, 10, seed=1))
