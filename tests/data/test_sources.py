"""The sources that need no files, and what holds for all of them."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optlab._extras import MissingExtraError
from optlab.data import DataError, Split, arrays, digits, sources
from optlab.data._arrays import statistics


def everything(split: Split) -> dict[str, np.ndarray]:
    return split.take(np.arange(len(split)))


@pytest.mark.parametrize("name", sources.__all__)
def test_every_argument_of_every_source_is_explained(name: str) -> None:
    factory = getattr(sources, name)
    for argument in inspect.signature(factory).parameters:
        assert f"\n        {argument}: " in factory.__doc__.replace("\n    Args:", "\n    Args:\n"), argument


def test_import_is_light() -> None:
    program = """if True:
        import sys
        from optlab import data
        data.arrays([[1.0], [2.0]], [0, 1], validation=0, test=0)
        print([name for name in ("jax", "sklearn", "pooch", "tqdm", "requests", "grain") if name in sys.modules])
        data.digits()
        print("jax" in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "False"]


def test_digits() -> None:
    source = digits()
    assert (len(source.train), len(source.validation), len(source.test)) == (1297, 200, 300)
    assert source.facts == {"outputs": 10}
    batch = everything(source.train)
    assert batch["inputs"].shape == (1297, 8, 8, 1)
    assert batch["inputs"].dtype == np.float32
    assert batch["labels"].dtype == np.int32
    assert set(batch["labels"]) == set(range(10))
    assert abs(batch["inputs"].mean()) < 1e-5
    assert abs(batch["inputs"].std() - 1) < 1e-5
    rows = np.concatenate([source.train.rows, source.validation.rows, source.test.rows])
    assert np.array_equal(np.sort(rows), np.arange(1797))


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw, source = load_digits(), digits()
    pixels = raw.images[source.train.rows].astype(np.float64)
    batch = everything(source.validation)
    expected = (raw.images[source.validation.rows] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(batch["inputs"][..., 0], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(batch["labels"], raw.target[source.validation.rows])


def test_a_missing_library_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"digits needs sklearn: pip install -e '.\[train\]'"):
        digits()


@given(st.integers(1, 2500), st.integers(1, 3), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_statistics(rows: int, channels: int, mean: float, std: float) -> None:
    inputs = np.random.default_rng(rows).normal(mean, std, (rows + 1, 2, channels))
    found_mean, scale = statistics(inputs, np.arange(1, rows + 1))
    flat = inputs[1:].reshape(-1, channels)
    assume((flat.std(0) > 1e-9 * abs(mean)).all())  # two numbers may be as good as one by chance
    np.testing.assert_allclose(found_mean, flat.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(1 / scale, flat.std(0), rtol=1e-5)


def test_statistics_of_a_constant_feature() -> None:
    for constant in (0.0, 0.1, 1e8):
        inputs = np.stack([np.full(1001, constant), np.arange(1001.0)], axis=1)
        mean, scale = statistics(inputs, np.arange(1001))
        assert scale[0] == 1
        np.testing.assert_allclose(mean, [constant, 500], rtol=1e-12)


def test_arrays_are_taken_as_they_are() -> None:
    x, y = np.random.default_rng(0).normal(5, 3, (50, 4)), np.arange(50) % 3
    source = arrays(x, y)
    assert (len(source.train), len(source.validation), len(source.test)) == (40, 5, 5)
    assert source.facts == {"outputs": 3}
    splits = [everything(split) for split in (source.train, source.validation, source.test)]
    found = np.concatenate([part["inputs"] for part in splits])
    assert found.dtype == np.float32
    assert sorted(map(tuple, found)) == sorted(map(tuple, x.astype(np.float32)))
    for part, split in zip(splits, (source.train, source.validation, source.test), strict=True):
        assert np.array_equal(part["labels"], y[split.rows])
        assert part["labels"].dtype == np.int32


def test_arrays_standardized_by_the_training_part() -> None:
    x = np.random.default_rng(0).normal([5, -1e4, 0], [3, 0.1, 0], (500, 3))
    source = arrays(x, x[:, 0], standardize=True, validation=(x[:7] + 1, x[:7, 0]))
    train = everything(source.train)["inputs"]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), [1, 1, 0], atol=1e-5)
    raw = x[source.train.rows]
    expected = (x[:7] + 1 - raw.mean(0)) / np.where(raw.std(0) > 0, raw.std(0), 1)
    np.testing.assert_allclose(everything(source.validation)["inputs"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(everything(source.test)["inputs"].mean(0)[:2], 0, atol=0.5)
    integers = arrays(np.arange(20).reshape(-1, 1), np.zeros(20), validation=0, test=0, standardize=True)
    assert abs(everything(integers.train)["inputs"].std() - 1) < 1e-5


def test_arrays_of_other_kinds() -> None:
    tokens = np.arange(60, dtype=np.uint8).reshape(20, 3)
    batch = everything(arrays(tokens, tokens % 7, validation=0, test=0).train)
    assert batch["inputs"].dtype == batch["labels"].dtype == np.int32
    assert arrays(tokens, tokens % 7).facts == {"outputs": 7}
    assert arrays(tokens, np.zeros((20, 3))).facts == {"outputs": 3}
    assert arrays(tokens, np.zeros(20)).facts == {"outputs": 1}
    assert arrays([[1.0], [2.0]], [True, False], validation=0, test=0).facts == {"outputs": 2}
    assert arrays(tokens, np.zeros(20, int), test=(tokens[:2], [0, 4])).facts == {"outputs": 5}


def test_arrays_without_held_out_parts_or_with_given_ones() -> None:
    x, y = np.arange(10.0), np.arange(10.0)
    none = arrays(x, y, validation=0, test=0)
    assert (len(none.train), none.validation, none.test) == (10, None, None)
    given = arrays(x, y, validation=[[50.0, 51.0], [1.0, 2.0]], test=0.2)
    assert everything(given.validation)["inputs"].tolist() == [50, 51]
    assert (len(given.train), len(given.test)) == (8, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0], [2.0]], [1]), "inputs and labels must be equally long, got 2 and 1 examples"),
        (([], []), r"inputs must hold at least one example, got an array of shape \(0,\)"),
        ((3.0, [1]), r"inputs must hold at least one example, got an array of shape \(\)"),
        (([[1.0, 2.0], [3.0]], [1, 2]), "inputs must be an array with one example a row"),
        ((["a", "b"], [1, 2]), "inputs must hold real numbers of a NumPy type, got dtype <U1"),
        (([[1j]], [1]), "inputs must hold real numbers"),
        (([[1.0, 2.0], [3.0, np.nan]], [1, 2]), r"inputs has 1 values .* NaN or infinite, the first at \(1, 1\)"),
        (([1.0, 2.0], [1.0, -np.inf]), r"labels has 1 values .* NaN or infinite, the first at \(1,\)"),
        (([1.0, 2.0], [-1, 1]), "integer labels are classes that count from 0, got -1; pass floats"),
        (([1, 2**31], [0, 1]), "inputs has integers beyond 32 bits, up to 2147483648"),
        (([1.0], [1]), r"holding out 1 \+ 1 of 1 examples leaves none to train on"),
    ],
)
def test_impossible_arrays(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(*arguments)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (1.0, r"test must be a fraction in \[0, 1\), got 1.0"),
        (([[1.0]],), r"test must be a fraction in \[0, 1\), 0 for none, or \(inputs, labels\), got 1 things"),
        (None, r"test must be a fraction in \[0, 1\), 0 for none, or \(inputs, labels\), got None"),
        ("0.1", r"test must be .*, got '0.1'"),
        (([[1.0, 2.0]], [0]), r"test inputs must be like the training ones, float64\[1\] .*got float64\[2\]"),
        (([[1.0]], [0.5]), r"test labels must be like the training ones, int64\[\] .*got float64\[\]"),
        (([[np.nan]], [0]), "test inputs has 1 values that are NaN or infinite"),
        (([[1.0], [2.0]], [0]), "test inputs and test labels must be equally long, got 2 and 1"),
    ],
)
def test_impossible_held_out_parts(held_out: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(np.ones((20, 1)), np.zeros(20, int), test=held_out)
