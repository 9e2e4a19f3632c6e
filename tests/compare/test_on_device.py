"""Batches that a program picks from data on the device: those that a run has from the host, bit for bit."""

import jax
import numpy as np
import pytest

from optlab.compare.on_device import rows_of
from optlab.data import Batches, arrays
from optlab.data._images import _source

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (70, 12, 10, 3), np.uint8)


@pytest.mark.parametrize(
    "source",
    [
        arrays(PIXELS.astype(np.float32), np.arange(70)),
        _source("images", (PIXELS, np.arange(70)), None, validation=10, augment=False),
        _source("images", (PIXELS, np.arange(70)), None, validation=10, augment=True),
    ],
    ids=["arrays", "images", "augmented"],
)
@pytest.mark.parametrize("draw", ["shuffled", "replacement"])
def test_a_picked_batch_is_that_of_the_host(source, draw):
    batches = Batches(source.train, 16, seed=3, draw=draw)
    rows, steps = rows_of(source.train), range(2, 9)  # some span two epochs
    items = rows.items(batches, steps)
    for i, step in enumerate(steps):
        picked = jax.jit(rows.pick)(rows.arrays, jax.tree.map(lambda x, i=i: x[i], items))
        jax.tree.map(np.testing.assert_array_equal, picked, batches.batch(step))


def test_a_split_of_another_type_makes_its_batches_itself():
    class Other(type(arrays(PIXELS, np.arange(70)).train)):
        pass

    split = arrays(PIXELS, np.arange(70)).train
    assert rows_of(Other(split.inputs, split.labels, split.rows)) is None
