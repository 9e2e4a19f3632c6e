"""A user's own workload, by `train`: NumPy arrays, Flax modules and losses of theirs, rules of three houses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from optlab.config import Target
from optlab.data import DataError, arrays
from optlab.training import Checkpoints, Workload, train

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(203, 6)).astype(np.float32)
LABELS = np.tanh(INPUTS @ RNG.normal(size=(6, 2)) / 4).astype(np.float32)


class Net(nn.Module):
    """A module that knows nothing of optlab."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.Dense(16)(nn.tanh(nn.Dense(16)(x)))))


class Noisy(nn.Module):
    """One with dropout and running statistics."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(2)(nn.Dropout(0.2, deterministic=not train)(nn.relu(x)))


class Newer(nnx.Module):
    """The same with NNX."""

    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.dropout, self.out = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def huber(outputs, batch):
    return optax.losses.huber_loss(outputs, batch["labels"]).sum(-1)


def workload(model=None, loss=huber, **kwargs):
    return Workload.from_model(
        model or Net(), arrays(INPUTS, LABELS, validation=0.2, test=0.2), loss=loss, batch_size=32, **kwargs
    )


def test_running_statistics_of_a_float64_model_are_float64_from_the_start():
    with jax.enable_x64(True):
        types = {"dtype": "float64", "param_dtype": "float64"}
        model = workload(optlab.models.mlp(2, widths=(8,), norm="batch", **types))
        params, before = jax.eval_shape(model.init, jax.random.key(0))
        loss = lambda *given: model.loss(*given, {"inputs": INPUTS, "labels": LABELS}, jax.random.key(0), True)
        _, (after, _) = jax.eval_shape(loss, params, before)
        assert {x.dtype for x in jax.tree.leaves((before, after))} == {jnp.dtype("float64")}


RULES = {
    "optax.lbfgs": optax.lbfgs,
    "optax.contrib.schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "optlab.muon": lambda: optlab.muon(1e-2),
}


@pytest.mark.thinned
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("model", [Net(), Noisy(), Newer], ids=["plain", "noisy", "nnx"])
def test_a_workload_of_the_users_is_trained_by_rules_of_any_house(name, model):
    history = train(workload(model), RULES[name](), steps=60, log_every=5)
    steps, losses = history["train/loss"]
    assert steps[-1] == 60
    assert history["validation/loss"][1][-1] < 0.6 * losses[0]
    assert "test/loss" in history.records[-1]


def test_the_architectures_example_runs():
    hidden = optax.chain(
        optlab.momentum(0.95, nesterov=True),
        optlab.orthogonalize(),
        optlab.scale_by_matrix_shape(),
        optlab.decay_weights(0.1),
    )
    rest = optax.chain(optlab.scale_by_adam(b2=0.95), optlab.decay_weights(0.1))
    tx = optax.chain(
        optlab.by_role({"matrix": hidden, "conv": hidden, "default": rest}),
        optax.scale_by_learning_rate(optlab.schedules.warmup_cosine(peak=3e-3, steps=150, warmup=20)),
    )
    history = train(Workload.digits(), tx, steps=150, strategy="single")
    assert history["validation/accuracy"][1][-1] > 0.9
    assert history.reached is None or history.reached <= 150


@pytest.mark.slow
def test_an_nnx_model_keeps_its_statistics_its_dropout_and_its_bits(tmp_path):
    make = lambda steps, folder: train(workload(Newer), optax.adamw(1e-2), steps=steps, checkpoints=Checkpoints(folder))
    whole = make(12, tmp_path / "whole")
    make(5, tmp_path / "parts")
    parts = make(12, tmp_path / "parts")
    for a, b in zip(*(jax.tree.leaves(h.state.params) for h in (whole, parts)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    mean = whole.state.model_state["norm"]["mean"][...]
    assert np.abs(mean).max() > 0
    other = train(workload(Newer), optax.adamw(1e-2), steps=1, seed=5)
    assert (
        other.records[-1]["train/loss"] != train(workload(Newer), optax.adamw(1e-2), steps=1).records[-1]["train/loss"]
    )


@pytest.mark.parametrize("model", [Newer(nnx.Rngs(0)), 3])
def test_what_is_no_model_is_named(model):
    with pytest.raises(TypeError, match=r"Linen module or a function rngs -> nnx.Module, got (Newer|int)"):
        workload(model)


def test_schedule_free_is_judged_by_its_own_parameters():
    tx = optax.contrib.schedule_free_adamw(1e-2)
    history = train(workload(), tx, steps=20)
    inner = history.state.opt_state
    expected = optax.contrib.schedule_free_eval_params(inner, history.state.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), history.params, expected))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), history.params, history.state.params))


def test_a_scalar_loss_is_the_mean_over_the_examples():
    """So that the last short batch of an evaluation counts for as much as it holds."""
    scalar = train(workload(loss=lambda o, b: huber(o, b).mean()), optax.sgd(0.01), steps=5).records[-1]
    each = train(workload(), optax.sgd(0.01), steps=5).records[-1]
    assert scalar == pytest.approx({**each, "seconds": scalar["seconds"]}, rel=1e-5)


def test_an_evaluation_covers_the_whole_split_whatever_the_batch():
    records = [
        train(
            Workload.from_model(Net(), arrays(INPUTS, LABELS, validation=0.2, test=0.2), loss=huber, batch_size=b),
            optax.sgd(0.0),
            steps=1,
        ).records[-1]
        for b in (7, 100)
    ]
    for split in ("validation", "test"):
        assert records[0][f"{split}/loss"] == pytest.approx(records[1][f"{split}/loss"], rel=1e-5)


def test_weights_must_fit_the_loss():
    source = arrays(INPUTS, LABELS)

    class Weighted:
        def __len__(self):
            return len(source.train)

        def take(self, indices, epoch=None, seed=0):
            return {**source.train.take(indices, epoch, seed), "weight": np.ones((len(indices), 2), np.float32)}

    bad = Workload.from_model(Net(), dataclasses.replace(source, train=Weighted()), loss=huber, batch_size=32)
    with pytest.raises(
        ValueError, match=r"weight must have the loss's shape \(1,\), one for every value, got \(1, 2\)"
    ):
        train(bad, optax.sgd(0.1), steps=1)


def test_metrics_may_not_take_the_steps_names():
    with pytest.raises(ValueError, match="metrics can't be named loss: the step has values of that name"):
        workload(metrics={"loss": huber})


def test_two_functions_are_a_workload():
    """Without Flax: the contract itself."""

    def init(key):
        return {"w": jax.random.normal(key, (6, 2))}, {}

    def loss(params, model_state, batch, key, train):
        errors = jnp.square(batch["inputs"] @ params["w"] - batch["labels"]).sum(-1)
        total, count = errors.sum(), jnp.float32(errors.size)
        return total / count, (model_state, {"loss": (total, count)})

    mine = Workload("least squares", arrays(INPUTS, LABELS, validation=0.2, test=0), init, loss, 32, Target())
    history = train(mine, optlab.sgd(0.05), steps=50)
    assert history["train/loss"][1][-1] < history["train/loss"][1][0]
    assert "validation/loss" in history.records[-1]
    assert "test/loss" not in history.records[-1]


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("is_scalar", [False, True])
def test_metrics_of_every_dtype_are_means(dtype, is_scalar):
    """Also where a batch has more examples than the dtype can count."""

    def ones(outputs, batch):
        values = jnp.ones(len(outputs), dtype)
        return values[0] if is_scalar else values

    data = arrays(np.zeros((3001, 6), np.float32), np.zeros((3001, 2), np.float32))
    work = Workload.from_model(Net(), data, loss=huber, metrics={"ones": ones}, batch_size=2049)
    record = train(work, optax.sgd(0.0), steps=1, log_every=1).records[-1]
    assert [record[f"{split}/ones"] for split in ("train", "validation", "test")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, jnp.bfloat16])
def test_weights_and_losses_of_every_dtype_are_summed_in_single_precision(dtype):
    batch = {"inputs": np.ones((600, 6), np.float32), "weight": np.arange(600) % 3 > 0}
    batch["weight"] = batch["weight"].astype(dtype)
    work = workload(loss=lambda outputs, batch: jnp.full(600, 200, jnp.float16))
    value, (_, metrics) = work.loss(*work.init(jax.random.key(0)), batch, jax.random.key(0), False)
    assert (value, *metrics["loss"]) == (200.0, 80000.0, 400.0)


@pytest.mark.parametrize("metrics", [{}, {"pairs": lambda o, b: o[:, 0] - b["labels"][:, :1]}])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_values_for_every_pair_of_examples_are_refused(metrics, batch_size):
    """Outputs (B, 1) less labels (B,), and the other way round."""
    data = arrays(INPUTS, LABELS[:, :1] if metrics else LABELS[:, 0])
    own = huber if metrics else lambda outputs, batch: (outputs[:, :1] - batch["labels"]) ** 2
    bad = Workload.from_model(Net(), data, loss=own, metrics=metrics, batch_size=batch_size)
    name = "pairs" if metrics else "loss"
    message = rf"^{name} must give a value for every example.*\(422, 422\), one for every"
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        train(bad, optax.sgd(0.1), steps=1)


@pytest.mark.parametrize("values", [lambda e: e.mean(keepdims=True), lambda e: e[1:], lambda e: e[: len(e) // 2]])
def test_values_of_another_shape_than_the_batchs_are_refused(values):
    bad = workload(loss=lambda outputs, batch: values(huber(outputs, batch)))
    with pytest.raises(ValueError, match="loss must give a value for every example or position"):
        train(bad, optax.sgd(0.1), steps=1)


@pytest.mark.parametrize(
    "values",
    [lambda e: e, lambda e: e[:, :1], lambda e: e.reshape(-1), lambda e: e.T, lambda e: e.mean(), lambda e: e[:, 0]],
)
def test_values_by_example_or_position_or_their_mean_are_taken(values):
    work = workload(loss=lambda outputs, batch: values((outputs - batch["labels"]) ** 2))
    assert train(work, optax.sgd(0.1), steps=1).outcome == "finished"


def test_a_model_for_batches_of_one_size_is_taken():
    class Own:
        def batch(self, step):
            return {"inputs": INPUTS[:8], "labels": LABELS[:8]}

    data = dataclasses.replace(arrays(INPUTS, LABELS), train=Own(), validation=None, test=None)
    work = Workload.from_model(Net(), data, loss=lambda o, b: (o.reshape(8, 2) - b["labels"]) ** 2, batch_size=8)
    assert train(work, optax.sgd(0.1), steps=1).outcome == "finished"


class Padded:
    """Half of the labels are -1."""

    def __len__(self):
        return 60

    def take(self, indices, epoch=None, seed=0):
        labels = np.where(indices % 2, -1, 1).astype(np.int32)
        return {"inputs": INPUTS[indices], "labels": labels} | self.more(labels)

    def more(self, labels):
        return {}


class Weighted(Padded):
    """And don't count."""

    def more(self, labels):
        return {"weight": (labels >= 0).astype(np.float32)}


@pytest.mark.parametrize(
    ("split", "loss", "settings", "where"),
    [
        ("train", optlab.training.cross_entropy, {}, "step 1: cross_entropy"),
        ("train", optlab.training.cross_entropy, {"guard": "skip"}, "step 1: cross_entropy"),
        ("train", lambda o, b: o.sum(-1) ** 2, {"guard": None}, "step 1: accuracy"),
        ("validation", optlab.training.cross_entropy, {}, "validation examples from 0 on: cross_entropy"),
    ],
)
def test_labels_that_are_no_classes_end_a_run_that_names_them(split, loss, settings, where):
    source = dataclasses.replace(arrays(INPUTS, (LABELS[:, 0] > 0).astype(int)), **{split: Padded()})
    bad = Workload.from_model(Net(), source, loss=loss, metrics={"accuracy": optlab.training.accuracy}, batch_size=32)
    with pytest.raises(DataError, match=f"^{where} needs labels from 0 to 1, .* got -1 at"):
        train(bad, optax.sgd(0.1), steps=2, **settings)


def test_labels_that_only_pad_change_nothing():
    source = arrays(INPUTS, (LABELS[:, 0] > 0).astype(int))
    source = dataclasses.replace(source, train=Weighted(), validation=Weighted())
    work = Workload.from_model(Net(), source, metrics={"accuracy": optlab.training.accuracy}, batch_size=32)
    record = train(work, optax.sgd(0.5), steps=30).records[-1]
    assert record["validation/accuracy"] == record["train/accuracy"] == 1


class Sowing(nn.Module):
    """One that sows an auxiliary value, as a mixture of experts does, beside a state of its own that is a tuple."""

    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "pair", lambda: (jnp.zeros(()), jnp.zeros(())))
        if not self.is_initializing() and self.is_mutable_collection("counts"):
            count.value = (count.value[0] + 1, count.value[1] + 2)
        self.sow("losses", "aux", jnp.mean(x**2))
        return nn.Dense(2)(x)


class NewerSowing(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        self.sow(nnx.Intermediate, "h", jnp.mean(x))
        return self.layer(x)


@pytest.mark.parametrize("model", [Sowing(), NewerSowing], ids=["linen", "nnx"])
def test_what_a_model_sows_is_no_state(model):
    workload = Workload.from_model(model, arrays(INPUTS, LABELS), loss=optlab.training.squared_error, batch_size=20)
    state = train(workload, optax.sgd(0.1), steps=3).state
    assert jax.tree.structure(state.model_state) == jax.tree.structure(workload.init(jax.random.key(0))[1])
    if isinstance(model, nn.Module):
        assert state.model_state.keys() == {"counts"}
        assert [float(x) for x in state.model_state["counts"]["pair"]] == [3, 6]


def test_a_model_is_rematerialized_as_a_whole():
    batched = arrays(INPUTS, LABELS)
    plain = Workload.from_model(Noisy(), batched, loss=optlab.training.squared_error, batch_size=20)
    remade = nn.remat(Noisy, static_argnums=(2,))()
    remade = Workload.from_model(remade, batched, loss=optlab.training.squared_error, batch_size=20)
    one, other = (train(w, optax.sgd(0.1), steps=3)["train/gradient_norm"][1] for w in (plain, remade))
    np.testing.assert_allclose(one, other, rtol=1e-5)
