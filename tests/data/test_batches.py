"""A batch is a function of (seed, step); an epoch shows every example once."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optlab.data import (
    Batches,
    DamagedRecordError,
    DataError,
    Share,
    arrays,
    as_batches,
    evaluation_batches,
    prefetch,
    text,
)
from optlab.data._random import AUGMENT, random_bits
from optlab.data.batches import check_splits


class Numbers:
    """The numbers 0 … n − 1 as examples, each with random bits of its own in training."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        noise = np.zeros(len(indices)) if epoch is None else random_bits(AUGMENT, seed, epoch, indices)
        return {"inputs": np.array(indices), "noise": noise}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


sizes = st.integers(1, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


@given(sizes, st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_every_epoch_is_a_permutation(sizes: tuple[int, int], seed: int, epoch: int) -> None:
    size, batch_size = sizes
    batches = Batches(Numbers(size), batch_size, seed=seed)
    steps = range(epoch * size // batch_size, -(-(epoch + 1) * size // batch_size))
    seen = np.concatenate([batches.batch(step)["inputs"] for step in steps])
    skip = epoch * size - steps[0] * batch_size
    assert np.array_equal(np.sort(seen[skip : skip + size]), np.arange(size))
    assert batches.steps_per_epoch == size / batch_size


@given(sizes, st.integers(0, 50))
def test_indices_say_what_the_batch_holds(sizes: tuple[int, int], step: int) -> None:
    size, batch_size = sizes
    batches = Batches(Numbers(size), batch_size, seed=3)
    indices, epochs = batches.indices(step)
    assert epochs.tolist() == [(step * batch_size + i) // size for i in range(batch_size)]
    batch = batches.batch(step)
    assert batch["inputs"].tolist() == indices.tolist()
    # Each example's randomness is that of its own epoch and index, also where a batch spans two epochs.
    alone = [Numbers(size).take(np.array([i]), int(e), 3)["noise"][0] for i, e in zip(indices, epochs, strict=True)]
    assert batch["noise"].tolist() == alone


@given(sizes, st.lists(st.integers(0, 40), max_size=12))
def test_batch_is_the_same_in_any_order_of_access(sizes: tuple[int, int], steps: list[int]) -> None:
    used = Batches(Numbers(sizes[0]), sizes[1], seed=1)
    for step in steps:
        assert same(used.batch(step), Batches(Numbers(sizes[0]), sizes[1], seed=1).batch(step))


def test_batch_is_the_same_in_another_process() -> None:
    program = """if True:
        import numpy as np
        from optlab.data import Batches, arrays
        split = arrays(np.arange(97), np.arange(97), validation=0, test=0).train
        print([Batches(split, 10, seed=5).batch(step)["inputs"].tolist() for step in (0, 9, 25)])
    """
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    split = arrays(np.arange(97), np.arange(97), validation=0, test=0).train
    assert there.strip() == str([Batches(split, 10, seed=5).batch(step)["inputs"].tolist() for step in (0, 9, 25)])


def test_other_seeds_and_epochs_have_another_order() -> None:
    orders = {
        tuple(Batches(Numbers(50), 50, seed=seed).batch(epoch)["inputs"].tolist())
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_evaluation_is_the_whole_split_in_order() -> None:
    batches = list(evaluation_batches(Numbers(10), 4))
    assert [batch["inputs"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert not any(batch["noise"].any() for batch in batches)
    first, last = evaluation_batches(Numbers(10), 2, batches=2)  # evenly spaced: a split may be sorted by class
    assert [first["inputs"].tolist(), last["inputs"].tolist()] == [[0, 1], [4, 5]]
    assert len(list(evaluation_batches(Numbers(10), 4, batches=5))) == 3


@given(sizes, st.integers(0, 40), st.integers(1, 4))
def test_shares_are_the_rows_of_the_batch_and_read_no_others(sizes: tuple[int, int], step: int, parts: int) -> None:
    class Seen(Numbers):
        def take(self, indices, *rest):
            seen.append(len(indices))
            return super().take(indices, *rest)

    whole = Batches(Numbers(sizes[0]), sizes[1], seed=1).batch(step)
    cuts = [sizes[1] * i // parts for i in range(parts + 1)]
    for start, stop in itertools.pairwise(cuts):
        if start < stop:
            seen: list[int] = []
            rows = lambda count, start=start, stop=stop: slice(start, stop)
            share, examples = Share(Batches(Seen(sizes[0]), sizes[1], seed=1), rows, sizes[1]).batch(step)
            assert examples == sizes[1]
            assert same(share, {name: x[start:stop] for name, x in whole.items()})
            assert sum(seen) == stop - start


def test_a_share_of_batches_of_ones_own_is_cut_out() -> None:
    class Own:
        def batch(self, step):
            return {"inputs": np.arange(6) + step}

    share, examples = Share(Own(), lambda count: slice(count // 2, count), 6).batch(1)
    assert (share["inputs"].tolist(), examples) == ([4, 5, 6], 6)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_batch_sizes_that_are_none(batch_size: object) -> None:
    with pytest.raises(ValueError, match="batch_size must be a number of examples, 1 or more"):
        Batches(Numbers(10), batch_size)
    with pytest.raises(ValueError, match="batch_size must be a number of examples, 1 or more"):
        next(evaluation_batches(Numbers(10), batch_size))


def test_batch_larger_than_the_data_and_negative_step() -> None:
    with pytest.raises(ValueError, match="batch_size must be at most 10, the examples of the split, got 11"):
        Batches(Numbers(10), 11)
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        Batches(Numbers(10), 3).batch(-1)


class Recorder:
    """Batches that are their step; notes who asked for which, and fails at one step."""

    def __init__(self, fails_at: int | None = None, delay: float = 0.0):
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.fails_at, self.delay = fails_at, delay

    def batch(self, step: int) -> dict[str, np.ndarray]:
        time.sleep(self.delay)
        self.asked.append(step)
        self.threads.add(threading.get_ident())
        if step == self.fails_at:
            raise OSError(f"disk gone at {step}")
        return {"inputs": np.array([step])}


def no_worker_left() -> bool:
    return not any(thread.name.startswith("optlab-prefetch") for thread in threading.enumerate())


@given(st.integers(0, 5), st.integers(0, 12), st.integers(1, 4))
@settings(max_examples=25)
def test_prefetch_keeps_the_order(start: int, stop: int, depth: int) -> None:
    recorder = Recorder()
    placed = prefetch(recorder, start, stop, place=lambda batch: int(batch["inputs"][0]) * 10, depth=depth)
    assert list(placed) == [10 * step for step in range(start, stop)]
    assert recorder.asked == list(range(start, stop))
    assert threading.get_ident() not in recorder.threads
    assert no_worker_left()


def test_prefetch_works_ahead_but_not_further_than_its_depth() -> None:
    recorder = Recorder()
    iterator = prefetch(recorder, 0, 100, depth=3)
    next(iterator)
    deadline = time.monotonic() + 10
    while len(recorder.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert recorder.asked == [0, 1, 2, 3]
    iterator.close()


@pytest.mark.parametrize("where", ["batch", "place"])
def test_prefetch_raises_at_the_step_that_failed(where: str) -> None:
    def place(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if where == "place" and batch["inputs"][0] == 4:
            raise OSError("disk gone at 4")
        return batch

    seen: list[dict[str, np.ndarray]] = []
    batches = prefetch(Recorder(fails_at=4 if where == "batch" else None), 0, 10, place=place)
    with pytest.raises(OSError, match="disk gone at 4"):
        seen.extend(batches)
    assert [int(batch["inputs"][0]) for batch in seen] == [0, 1, 2, 3]
    assert no_worker_left()


def test_closing_prefetch_stops_its_thread() -> None:
    recorder = Recorder(delay=0.1)
    iterator = prefetch(recorder, 0, 1000, depth=20)
    next(iterator)
    start = time.monotonic()
    iterator.close()
    assert time.monotonic() - start < 1  # the batch under way, not the nineteen that wait
    assert no_worker_left()
    assert len(recorder.asked) < 5


def test_prefetch_needs_a_depth() -> None:
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        prefetch(Recorder(), 0, 1, depth=0)


def test_as_batches_takes_splits_and_what_has_batches() -> None:
    split, recorder = Numbers(20), Recorder()
    assert same(as_batches(split, 4, seed=9).batch(3), Batches(split, 4, seed=9).batch(3))
    assert as_batches(recorder, 4, seed=9) is recorder


def test_as_batches_takes_a_grain_data_set() -> None:
    grain = pytest.importorskip("grain")
    source = [{"inputs": np.float32(i), "labels": i % 3} for i in range(20)]
    dataset = grain.MapDataset.source(source).seed(7).shuffle().repeat().batch(5)
    batches = as_batches(dataset, 5)
    for step in (0, 3, 11, 3):
        assert same(batches.batch(step), dataset[step])
    epoch = np.concatenate([batches.batch(step)["inputs"] for step in range(4)])
    assert sorted(epoch.tolist()) == list(range(20))
    with pytest.raises(TypeError, match=r"a dict of arrays with the example first; got ndarray"):
        as_batches(grain.MapDataset.source([1, 2, 3]).batch(2), 2).batch(0)


@pytest.mark.parametrize("data", [np.zeros((3, 2)), [1, 2], {"inputs": np.zeros(3)}, None, arrays([1.0] * 9, [1] * 9)])
def test_as_batches_refuses_the_rest(data: object) -> None:
    with pytest.raises(TypeError, match=r"data must be a split .*got (ndarray|list|dict|NoneType|Source)\. Arrays of"):
        as_batches(data, 2)


class Torn(Numbers):
    """Numbers of which some can't be read; it names one at a time."""

    def __init__(self, size: int, torn: tuple[int, ...], weighted: bool = True):
        super().__init__(size)
        self.torn, self.weighted = torn, weighted

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        for i in self.torn:
            if i in indices:
                raise DamagedRecordError([i], "torn")
        batch = super().take(indices, epoch, seed)
        return {**batch, "weight": np.ones((len(indices), 2))} if self.weighted else batch


@given(sizes, st.sets(st.integers(0, 59), max_size=4), st.integers(0, 8))
def test_damaged_examples_are_left_out_and_no_other_moves(sizes: tuple[int, int], torn: set[int], step: int) -> None:
    size, batch_size = sizes
    hurt = tuple(i for i in sorted(torn, reverse=True) if i < size)
    batches = Batches(Torn(size, hurt), batch_size, seed=3)
    if len(hurt) == size:
        return
    batch, whole = batches.batch(step), Batches(Torn(size, ()), batch_size, seed=3).batch(step)
    is_hurt = np.isin(whole["inputs"], hurt)
    assert np.array_equal(batch["weight"], np.where(is_hurt, 0, 1)[:, None] * np.ones(2))
    assert all(np.array_equal(batch[name][~is_hurt], whole[name][~is_hurt]) for name in whole)
    assert not np.isin(batch["inputs"], hurt).any()
    left_out = [(i, "torn") for i in whole["inputs"][is_hurt].tolist()]  # twice, if it is the batch's in two epochs
    assert batches.damaged == ({step: left_out} if left_out else {})
    parts = [Batches(Torn(size, hurt), batch_size, seed=3).batch(step, slice(i, i + 1)) for i in range(batch_size)]
    assert same(batch, {name: np.concatenate([p[name] for p in parts]) for name in batch})


def test_damaged_examples_have_no_weight_in_an_evaluation() -> None:
    told: dict[int, str] = {}
    found = list(evaluation_batches(Torn(7, (3, 4, 6)), 3, on_damage=told.update))
    assert [b["inputs"].tolist() for b in found] == [[0, 1, 2], [5, 5, 5], [0]]
    assert [b["weight"][:, 0].tolist() for b in found] == [[1, 1, 1], [0, 0, 1], [0]]
    assert told == dict.fromkeys((3, 4, 6), "torn")


def test_what_can_not_be_left_out_is_an_error() -> None:
    with pytest.raises(DataError, match=r'example 3 is damaged \(torn\).*batches need a "weight"'):
        Batches(Torn(7, (3,), weighted=False), 7).batch(0)
    with pytest.raises(DataError, match="all 3 examples are damaged, the last one: torn"):
        Batches(Torn(3, (0, 1, 2)), 2).batch(0)


def test_numbers_may_be_numpys() -> None:
    x, y = np.zeros((40, 2), np.float32), np.arange(40) % 2
    source = arrays(x, y, validation=np.float32(0.25), test=np.float64(0))
    assert (len(source.train), len(source.validation), source.test) == (30, 10, None)
    ours = Batches(source.train, np.int64(4), seed=np.int32(1))
    assert type(ours.batch_size) is type(ours.seed) is int
    assert np.array_equal(ours.batch(3)["labels"], Batches(source.train, 4, seed=1).batch(3)["labels"])
    assert text(length=np.int64(8)).facts["length"] == 8


def test_data_that_has_no_numbered_batches_is_named() -> None:
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source([{"inputs": np.ones(2)}] * 8).repeat().batch(4)
    with pytest.raises(TypeError, match="without to_iter_dataset"):
        as_batches(dataset.to_iter_dataset(), 4)
    with pytest.raises(TypeError, match="without to_iter_dataset"):
        as_batches(iter(dataset.to_iter_dataset()), 4)
    with pytest.raises(TypeError, match="validation must be a split"):
        check_splits(dataset, dataset)
