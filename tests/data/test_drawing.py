"""B8: four ways to draw a batch, each a function of (seed, step); and what the data's order does to a path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.data import Batches, DataError, as_batches
from optlab.training import Workload, train

N, B = 40, 8


class Rows:
    """N examples, of which `take` remembers what was asked for in training."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return N

    def take(self, indices, epoch=None, seed=0):
        if epoch is not None:
            self.asked.append(np.array(indices))
        return {"inputs": np.asarray(indices, np.float32)[:, None]}


def drawn(draw, steps, seed=0):
    batches = Batches(Rows(), B, seed=seed, draw=draw)
    return np.concatenate([batches.indices(step)[0] for step in range(steps)])


def test_ordered_is_the_datas_own_order_again_and_again():
    np.testing.assert_array_equal(drawn("ordered", 10), np.tile(np.arange(N), 2))


def test_a_stream_is_seen_once_and_ends():
    np.testing.assert_array_equal(drawn("stream", 5), np.arange(N))
    batches = Batches(Rows(), B, draw="stream")
    with pytest.raises(DataError, match="takes each of the 40 examples once, which are 5 batches of 8: 6 steps need"):
        batches.batch(5)


def test_with_replacement_every_draw_is_uniform_and_independent():
    seen = drawn("replacement", 5000)
    counts = np.bincount(seen, minlength=N)
    assert np.abs(counts - 1000).max() < 5 * 1000**0.5
    assert (np.bincount(seen[:N], minlength=N) == 0).sum() > 5  # about N/e are missing in an epoch
    pairs = np.bincount(seen[0::2] * N + seen[1::2], minlength=N * N)
    assert 0.8 < pairs.var() / pairs.mean() < 1.2  # Poisson: a pair says nothing of the next
    assert not np.array_equal(seen[:N], drawn("replacement", 5, seed=1))
    np.testing.assert_array_equal(seen[:N], drawn("replacement", 5))


def test_shuffled_is_what_it_was():
    seen = drawn("shuffled", 10)
    np.testing.assert_array_equal(np.sort(seen[:N]), np.arange(N))
    assert not np.array_equal(seen[:N], seen[N:])


@pytest.mark.slow
def test_the_datas_order_biases_the_path_and_chance_does_not():
    """The mean of labels sorted by class: at the end of an epoch SGD stands at the class that it saw last."""
    labels = np.repeat([-1.0, 1.0], N // 2)

    def ends(draw, seeds):
        found = []
        for seed in range(seeds):
            batches = Batches(Rows(), 1, seed=seed, draw=draw)
            seen = jnp.asarray(labels[np.concatenate([batches.indices(t)[0] for t in range(10 * N)])])
            tx = optlab.sgd(0.1)

            def step(w, y, tx=tx):
                update, _ = tx.update(w - y, tx.init(w))
                return w + update, None

            found.append(float(jax.lax.scan(step, jnp.zeros(()), seen)[0]))
        return np.array(found)

    assert ends("ordered", 1)[0] > 0.7  # the mean of the labels is 0
    for draw in ("shuffled", "replacement"):
        seen = ends(draw, 30)
        assert abs(seen.mean()) < 3.5 * seen.std(ddof=1) / 30**0.5


def test_it_is_a_setting_of_a_workload():
    def loss(params, model_state, batch, key, train):
        value = jnp.mean((params["w"] - batch["inputs"][:, 0]) ** 2)
        return value, (model_state, {"loss": (value, 1.0)})

    init, rows = lambda key: ({"w": jnp.zeros(())}, {}), Rows()
    source = optlab.data.Source("rows", rows, None, None, {})
    history = train(Workload("rows", source, init, loss, B, draw="ordered"), optlab.sgd(1e-3), steps=5)
    assert int(history.state.step) == 5
    taken = [x for x in rows.asked if len(x) == B]
    np.testing.assert_array_equal(np.concatenate(taken[:5]), np.arange(N))
    with pytest.raises(DataError, match="which are 5 batches of 8: 6 steps need another draw"):
        train(Workload("rows", source, init, loss, B, draw="stream"), optlab.sgd(1e-3), steps=6)


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(
        ValueError, match="draw must be one of 'shuffled', 'replacement', 'ordered', 'stream', got 'random'"
    ):
        Batches(Rows(), B, draw="random")

    class Own:
        def batch(self, step):
            return {}

    with pytest.raises(ValueError, match="draw='ordered' is for splits; Own makes batches of its own"):
        as_batches(Own(), B, draw="ordered")
