"""Random bits as a pure function of integers, so that data never depends on earlier draws.

Each bit pattern is an output of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): for a key s and a counter i, the i-th number of the stream that starts at s. Chained over the keys, it is
a counter-based hash of all of them. Unlike `np.random.Generator`, it doesn't change with NumPy's version.
"""

import operator

import numpy as np

# The first key is the purpose, so that two purposes never share random bits.
HOLD_OUT, SHUFFLE, AUGMENT, OFFSET, DRAW = range(5)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def random_bits(*keys: int | np.ndarray) -> np.ndarray:
    """Returns 64 random bits for every combination of the keys: integers, and arrays of shape (N,).

    Returns:
        uint64 array of shape (N,), or (1,) when every key is a Python integer.
    """
    bits = np.zeros(1, np.uint64)
    for key in keys:
        if isinstance(key, np.ndarray):
            counter = key.astype(np.uint64)
        else:  # a seed may be negative or longer than 64 bits
            counter = np.array([operator.index(key) % 2**64], np.uint64)
        bits = _mix(bits + _GAMMA * (counter + np.uint64(1)))
    return bits


def permutation(size: int, *keys: int) -> np.ndarray:
    """Returns a random order of range(size), of dtype int64: the indices sorted by their random bits."""
    return np.argsort(random_bits(*keys, np.arange(size)), kind="stable")
