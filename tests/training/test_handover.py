"""A batch that is handed on is nobody else's any more, and its numbers are what they were."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.data import Batches, DataError
from optlab.training import Workload, assemble, parallelize, train
from optlab.training.handover import owned


def aligned(shape):
    """A buffer that a CPU's device would read in place."""
    size = int(np.prod(shape)) * 4
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(np.float32).reshape(shape)


GIVEN = {
    "buffer": lambda buffer: buffer,
    "view": lambda buffer: buffer[::2, ::-1],
    "jax": jnp.asarray,
    "placed": jax.device_put,
}


@pytest.mark.parametrize("given", list(GIVEN))
@pytest.mark.parametrize("strategy", ["single", "jit", "pmap"])
def test_steps_see_their_own_batch_of_a_buffer_that_is_filled_again(given, strategy):
    class Loader:
        def __init__(self):
            self.buffer = aligned((4096, 64))

        def batch(self, step):
            self.buffer[:] = step + 1
            return {"inputs": GIVEN[given](self.buffer)}

    def loss(params, model_state, batch, key, train):
        mean = batch["inputs"].mean()
        return mean + 0 * params["w"], (model_state, {"loss": (mean * 64, 64)})

    data = SimpleNamespace(train=Loader(), validation=None, test=None)
    work = Workload("buffer", data, lambda key: ({"w": jnp.zeros(())}, {}), loss)
    history = train(work, optax.sgd(0.1), steps=12, log_every=1, strategy=strategy)
    assert history["train/loss"][1].tolist() == pytest.approx(range(1, 13))


def test_what_is_placed_is_a_copy():
    buffer = aligned((8, 4))
    buffer[:] = 1
    for strategy in ("single", "jit"):
        placed = parallelize(lambda s, b: (s, {}), strategy).place_batch({"a": {"b": buffer}, "c": [buffer]})
        buffer[:] = 2
        assert [float(x.max()) for x in jax.tree.leaves(placed)] == [1, 1]
        buffer[:] = 1


def test_numbers_are_narrowed_as_jax_does():
    batch = {"a": np.arange(3), "b": np.float64([1, np.inf, np.nan]), "c": np.array([True]), "d": np.uint64([7])}
    found = owned(batch)
    assert {name: str(x.dtype) for name, x in found.items()} == {
        "a": "int32",
        "b": "float32",
        "c": "bool",
        "d": "uint32",
    }
    assert np.isinf(found["b"][1])
    with jax.enable_x64(True):
        assert {name: x.dtype for name, x in owned(batch).items()} == {name: x.dtype for name, x in batch.items()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, 2**31]), "'labels' has 2147483648, which is beyond int32"),
        (np.array([-(2**40), 1]), "has -1099511627776, which is beyond int32"),
        (np.array([2**63], np.uint64), "has 9223372036854775808, which is beyond uint32"),
        (np.array([1e39]), r"has 1e\+39, which is beyond float32"),
        (np.array(["a"]), "'labels' must hold numbers, got dtype <U1"),
        (np.array([None]), "must hold numbers, got dtype object"),
        (np.array(["2020-01-01"], "M8[D]"), r"must hold numbers, got dtype datetime64"),
        (np.zeros(1, [("a", int)]), "must hold numbers"),
    ],
)
def test_what_does_not_fit_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        owned({"labels": value})


@pytest.mark.parametrize("seed", [2**32, -1, 2**63, 1.5, True])
@pytest.mark.parametrize("made", [Batches, train, assemble])
def test_a_seed_that_would_be_cut_off_is_refused(made, seed):
    workload = Workload.digits()
    arguments = (workload.data.train, 2) if made is Batches else (workload, optax.sgd(0.1))
    settings = {"steps": 1} if made is train else {}
    says = f"seed must be a whole number, got {seed}"
    if type(seed) is int:
        says = rf"seed must lie in \[0, 2\*\*32\), got {seed}"
    with pytest.raises((TypeError, ValueError), match=says):
        made(*arguments, **settings, seed=seed)
