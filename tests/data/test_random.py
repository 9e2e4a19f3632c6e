"""The hash that all randomness of the data comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.data._held_out import held_out_size, hold_out
from optlab.data._random import permutation, random_bits
from optlab.data._types import DataError


def splitmix64(key: int, counter: int) -> int:
    """The counter-th output of SplitMix64 started at key, in exact integers, as the paper's listing has it."""
    z = (key + 0x9E3779B97F4A7C15 * (counter + 1)) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_known_outputs_of_splitmix64() -> None:
    # The first outputs for the seed 0, as every implementation prints them.
    assert [hex(bits) for bits in random_bits(np.arange(3))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), st.integers(0, 2**63 - 1))
def test_keys_are_chained(keys: list[int], index: int) -> None:
    expected = 0
    for key in [*keys, index]:
        expected = splitmix64(expected, key % 2**64)
    assert random_bits(*keys, np.array([index]))[0] == expected


@pytest.mark.parametrize("changed", range(3))
def test_every_bit_of_every_key_changes_half_of_the_bits(changed: int) -> None:
    keys = [3, 5, np.arange(200)]
    before = random_bits(*keys)
    for bit in range(63):
        other = list(keys)
        other[changed] = keys[changed] ^ (1 << bit)
        flipped = np.bitwise_count(before ^ random_bits(*other)).mean()
        # One number for the scalar keys' mixing, 200 for the index: the mean of 200 · 64 fair bits is 32 ± 0.3.
        assert abs(flipped - 32) < 1.5


def test_seeds_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        random_bits(1.5)
    assert random_bits(np.int64(7)) == random_bits(7)


def test_permutation_is_pinned() -> None:
    # A resumed run depends on this order: it may never change, whatever NumPy does to its generators.
    assert permutation(12, 1, 2, 3).tolist() == [4, 11, 10, 6, 2, 0, 1, 3, 5, 8, 7, 9]


def test_permutations_are_uniform() -> None:
    first = np.bincount([permutation(10, 0, epoch)[0] for epoch in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 28  # χ² with 9 degrees of freedom: 1 in 1,000


@given(st.integers(1, 300), st.data())
def test_hold_out_divides_everything_once(size: int, data: st.DataObject) -> None:
    validation = data.draw(st.integers(0, size - 1))
    test = data.draw(st.integers(0, size - 1 - validation))
    parts = hold_out(size, validation, test)
    assert [len(part) for part in parts] == [size - validation - test, validation, test]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_hold_out_takes_from_everywhere() -> None:
    _, validation, test = hold_out(10_000, 1000, 1000)
    for part in (validation, test):
        assert abs(part.mean() - 5000) < 400  # 4 σ of the mean of 1,000 uniform numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 5, 5), r"holding out 5 \+ 5 of 10 examples leaves none to train on"),
        ((10, -1), "validation must be a number of examples, 0 or more, got -1"),
        ((10, 0.1), "validation must be a number of examples, 0 or more, got 0.1"),
        ((10, True), "validation must be a number of examples"),
    ],
)
def test_impossible_hold_outs(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hold_out(*arguments)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, True, "0.1", float("nan"), None])
def test_impossible_fractions(fraction: object) -> None:
    with pytest.raises(DataError, match=r"test must be a fraction in \[0, 1\), got"):
        held_out_size("test", fraction, 10)


def test_fraction_holds_out_at_least_one() -> None:
    assert [held_out_size("test", f, 5) for f in (0, 0.0, 0.01, 0.4, 0.99)] == [0, 0, 1, 2, 5]
