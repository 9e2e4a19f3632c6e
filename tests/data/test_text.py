"""Text as windows of bytes: shifted by one, every byte evaluated once, another grid every epoch."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.data import Batches, DataError, arrays, evaluation_batches, text
from optlab.data._text import EvaluationWindows, TrainingWindows

# Where every byte is its own position, a window shows where it was taken.
POSITIONS = np.arange(256, dtype=np.uint8)
lengths = st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(2 * length, 256)))


@given(lengths, st.integers(0, 2**32), st.integers(0, 1000))
def test_training_windows_are_side_by_side(sizes: tuple[int, int], seed: int, epoch: int) -> None:
    length, size = sizes
    split = TrainingWindows(POSITIONS[:size], length)
    batch = split.take(np.arange(len(split)), epoch, seed)
    assert batch.keys() == {"inputs", "labels"}
    assert batch["inputs"].shape == (len(split), length)
    assert batch["inputs"].dtype == batch["labels"].dtype == np.int32
    assert np.array_equal(batch["labels"], batch["inputs"] + 1)
    flat = batch["inputs"].ravel()
    assert np.array_equal(flat, np.arange(flat[0], flat[0] + len(flat)))
    # All that fits beside the grid's freedom to start anywhere in the first window.
    assert len(flat) > size - 2 * length - 1


@pytest.mark.parametrize("sizes", [(1, 2), (7, 20), (7, 21), (30, 256)])
def test_every_byte_gets_its_turn_in_training(sizes: tuple[int, int]) -> None:
    length, size = sizes
    split = TrainingWindows(POSITIONS[:size], length)
    offsets = {int(split.take(np.array([0]), epoch, 3)["inputs"][0, 0]) for epoch in range(1000)}
    spare = size - len(split) * length
    assert max(offsets) + len(split) * length <= size - 1
    assert min(offsets) == 0
    assert max(offsets) == spare - 1
    assert split.take(np.array([0]))["inputs"][0, 0] == 0


@given(st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(length + 1, 256))))
def test_every_byte_is_evaluated_once(sizes: tuple[int, int]) -> None:
    length, size = sizes
    split = EvaluationWindows(POSITIONS[:size], length)
    for batch_size in (1, 3):
        counted = []
        for batch in evaluation_batches(split, batch_size):
            assert np.array_equal(batch["labels"], batch["inputs"] + 1)
            assert batch["weight"].shape == batch["labels"].shape
            assert set(np.unique(batch["weight"])) <= {0.0, 1.0}
            counted.append(batch["labels"][batch["weight"] == 1])
        assert np.array_equal(np.concatenate(counted), np.arange(1, size))


def test_epochs_differ_and_repeat() -> None:
    split = TrainingWindows(POSITIONS, 20)
    batches = Batches(split, 4, seed=1)
    per_epoch = len(split) // 4 + 1
    first = {row.tobytes() for step in range(2) for row in batches.batch(step)["inputs"]}
    later = {row.tobytes() for step in range(2 * per_epoch, 3 * per_epoch) for row in batches.batch(step)["inputs"]}
    assert not first & later
    again = Batches(TrainingWindows(POSITIONS, 20), 4, seed=1).batch(2 * per_epoch)
    assert np.array_equal(again["inputs"], batches.batch(2 * per_epoch)["inputs"])
    starts = {int(split.take(np.array([0]), 0, seed)["inputs"][0, 0]) for seed in range(50)}
    assert len(starts) > 20


def test_file_is_cut_in_three_without_overlap(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    (tmp_path / "a.txt").write_bytes(content.tobytes())
    source = text(str(tmp_path / "a.txt"), length=64)
    splits = [source.train.tokens, source.validation.tokens, source.test.tokens]
    assert [len(tokens) for tokens in splits] == [8000, 1000, 1000]
    assert np.array_equal(np.concatenate(splits), content)
    assert isinstance(source.train.tokens, np.memmap)
    assert source.facts == {"vocabulary": 256, "length": 64}
    whole = text(str(tmp_path / "a.txt"), length=64, validation=0, test=0)
    assert (len(whole.train.tokens), whole.validation, whole.test) == (10_000, None, None)
    uneven = text(str(tmp_path / "a.txt"), length=64, validation=0.25, test=0.5)
    assert (len(uneven.validation.tokens), len(uneven.test.tokens)) == (2500, 5000)
    assert np.array_equal(uneven.test.tokens, content[5000:])


def test_folder_is_joined_in_the_order_of_names(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": b"second ",
        "a/z.txt": b"first ",
        "c/a/deep.md": b"third ",
        "c/b.py": b"fourth",
        ".hidden": b"NO",
        ".git/config": b"NO",
        "picture.png": b"\x89PNG\0NO",
        "empty.txt": b"",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = text(str(tmp_path), length=2, validation=0, test=0)
    assert source.train.tokens.tobytes() == b"first second third fourth"


def test_standard_library_is_the_default() -> None:
    source = text()
    joined = b"".join(split.tokens.tobytes() for split in (source.train, source.validation, source.test))
    assert 8e6 < len(joined) < 30e6
    library = Path(sysconfig.get_path("stdlib"))
    for module in ("abc.py", "json/decoder.py"):
        assert (library / module).read_bytes() in joined
    batch = Batches(source.train, 4, seed=0).batch(0)
    assert batch["inputs"].shape == (4, 256)
    assert batch["inputs"].max() < 256


def test_only_the_library_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.py", "a.py", "p/__init__.py", "notes.txt", "test/t.py", "p/tests/t.py", "site-packages/q/s.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    source = text(length=2, validation=0, test=0)
    assert source.train.tokens.tobytes() == b"<a.py><b.py><p/__init__.py>"


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (0, {}, "has 0 bytes, which leaves 0 for the training split; windows of length 256 need 512: take a shorter"),
        (600, {}, "has 600 bytes, which leaves 480 for the training split; windows of length 256 need 512"),
        (2000, {}, "has 2,000 bytes, which leaves 200 for the validation split; windows of length 256 need 257"),
        (2000, {"validation": 0, "test": 0.05}, "leaves 100 for the test split; windows of length 256 need 257"),
        (2000, {"validation": 0.6, "test": 0.6}, "leaves 0 for the training split"),
        (2000, {"validation": 1.0}, r"validation must be a fraction in \[0, 1\), got 1.0"),
        (2000, {"length": 0}, "length must be a number of bytes, 1 or more, got 0"),
        (2000, {"length": 8.0}, "length must be a number of bytes, 1 or more, got 8.0"),
    ],
)
def test_impossible_texts(size: int, arguments: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    with pytest.raises(DataError, match=message):
        text(str(tmp_path / "a.txt"), **arguments)


def test_shortest_texts_that_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(8)))
    source = text(str(tmp_path / "a.txt"), length=1, validation=0.25, test=0.25)
    assert (len(source.train), len(source.validation), len(source.test)) == (3, 1, 1)
    with pytest.raises(DataError, match="text: the path '/no/such' doesn't exist"):
        text("/no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has 0 bytes"):
        text(str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["text", "arrays"])
def test_a_mapped_file_that_is_cut_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("a.txt" if kind == "text" else "a.npy")
    if kind == "text":
        file.write_bytes(b"abcdefgh" * 4096)
        split = text(str(file), length=8).train
    else:
        np.save(file, np.ones((4096, 4), np.float32))
        split = arrays(np.load(file, mmap_mode="r"), np.zeros(4096, int)).train
    last = np.array([len(split) - 1])
    split.take(last)
    file.rename(tmp_path / "elsewhere")  # the same file, under another name: nothing is lost
    split.take(last)
    with open(tmp_path / "elsewhere", "r+b") as opened:
        opened.truncate(4096)
    with pytest.raises(DataError, match=rf"{file.name} was cut from [\d,]+ bytes to 4,096"):
        split.take(last)
