"""Many devices against one, in float64, and what is refused. The whole matrix is benchmarks/equality.py."""

import contextlib
import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optlab
from optlab.data import arrays
from optlab.models import mlp, transformer
from optlab.models.resnet import ResNet
from optlab.training import (
    DeviceMemoryError,
    Workload,
    check_memory,
    init_state,
    make_mesh,
    make_step,
    parallelize,
    train,
)
from optlab.training.mean import check_mean

MODELS = {
    "mlp": lambda **types: mlp(10, widths=(16, 24), **types),
    "resnet": lambda **types: ResNet(10, stages=(1,), width=8, **types),
    "gpt": lambda **types: transformer(32, length=8, width=16, depth=1, heads=2, qk_norm=True, **types),
}
OPTIMIZERS = {
    "sgd": lambda **axis: optlab.sgd(0.01, momentum=0.9),
    "adamw": lambda **axis: optlab.adamw(1e-3),
    "muon": lambda **axis: optlab.muon(1e-3, **axis),
}


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Data:
    """Another batch every step, of unequal weights."""

    def __init__(self, model, examples=16):
        self.model, self.examples = model, examples

    def batch(self, step):
        rng, n = np.random.default_rng(step), self.examples
        if self.model == "gpt":
            tokens = rng.integers(0, 32, (n, 9))
            weight = (np.arange(8) < rng.integers(4, 9, (n, 1))).astype(np.float32)
            return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weight": weight}
        inputs, weight = rng.normal(size=(n, 4, 4, 3)), rng.uniform(0.5, 1.5, n)
        return {"inputs": np.float32(inputs), "labels": rng.integers(0, 10, n), "weight": np.float32(weight)}


def workload(model, examples=16, **settings):
    data = Data(model, examples)
    return Workload.from_model(MODELS[model](**settings), SimpleNamespace(train=data, validation=None, test=None))


@functools.cache
def weights(model, **types):
    """(parameters, running statistics), compiled without optimizations."""
    return jax.jit(workload(model, **types).init, compiler_options=QUICK)(jax.random.key(0))


def parts(model, optimizer, *, axis=None, clip=None, types=None, examples=16, **settings):
    """(initial state, step, data)"""
    types, of_axis = types or {}, {"axis_name": axis} if axis else {}
    tx = OPTIMIZERS[optimizer](**of_axis)
    if clip:
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    loss = workload(model, examples, **types, **(of_axis if model == "resnet" else {})).loss
    state = init_state(*weights(model, **types), tx, key=jax.random.key(1), ema="ema" in settings)
    return state, make_step(loss, tx, axis_name=axis, **settings), Data(model, examples)


def trained(strategy, mesh, *arguments, steps=10, rules=None, **settings):
    """((parameters, running statistics, average), the last step's metrics)"""
    axis = "data" if strategy == "pmap" else None
    state, step, data = parts(*arguments, axis=axis, **settings)
    place_state, place_batch, step = parallelize(step, strategy, mesh, rules=rules)
    state = place_state(state)
    for t in range(steps):
        state, metrics = step(state, place_batch(data.batch(t)))
    return jax.device_get(((state.params, state.model_state, state.ema), metrics))


def require_close(expected, result, limit):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(result), strict=True):
        assert np.max(np.abs(a - b)) <= limit * np.max(np.abs(a)), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("strategy", "mesh", "model", "optimizer", "settings"),
    [
        ("pmap", (8, 1), "resnet", "sgd", {"accumulate": 2}),
        ("jit", (4, 2), "gpt", "adamw", {"accumulate": 2}),
        ("zero1", (8, 1), "mlp", "adamw", {"ema": 0.9}),
        ("fsdp", (8, 1), "mlp", "muon", {"accumulate": 2}),
        slow("pmap", (8, 1), "gpt", "muon", {"clip": 0.1}),
        slow("jit", (8, 1), "resnet", "muon", {"clip": 0.1}),
        slow("jit", (8, 1), "gpt", "sgd", {"ema": 0.9, "types": {"dropout": 0.2}}),
        slow("zero1", (4, 2), "resnet", "sgd", {}),
        slow("fsdp", (4, 2), "gpt", "muon", {}),
    ],
    ids=str,
)
def test_every_strategy_trains_what_one_device_trains(strategy, mesh, model, optimizer, settings):
    with jax.enable_x64(True):
        types = {"dtype": "float64", "param_dtype": "float64", **settings.get("types", {})}
        settings = {**settings, "types": types}
        expected, one = trained("single", None, model, optimizer, **settings)
        result, many = trained(strategy, make_mesh(*mesh), model, optimizer, **settings)
    require_close(expected, result, 1e-9)
    require_close(one, many, 1e-9)


@pytest.mark.parametrize("strategy", ["fsdp", slow("single"), slow("jit"), slow("zero1")])
@pytest.mark.parametrize("optimizer", ["muon", slow("adamw")])
def test_a_step_writes_its_new_state_where_the_old_one_was(strategy, optimizer):
    """Counted in the compiled program: what results share with arguments is all of a device's state."""
    state, step, data = parts("mlp", optimizer, ema=0.9)
    place_state, place_batch, step = parallelize(step, strategy)
    state, batch = place_state(state), place_batch(data.batch(0))
    memory = step.compile(state, batch).memory_analysis()
    on_a_device = lambda x: x.dtype.itemsize * np.prod(x.sharding.shard_shape(x.shape), dtype=int)
    expected = sum(on_a_device(x) for x in jax.tree.leaves(dataclasses.replace(state, key=None)))
    assert expected <= memory.alias_size_in_bytes <= expected + 64  # the key, and padding


NARROW = {"dtype": "bfloat16", "remat": True, "scan": True}


@functools.cache
def trained_alone():
    return trained("single", None, "gpt", "adamw", types=NARROW, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "pmap", "jit", "zero1"])
def test_bfloat16_remat_and_a_scan_over_layers_work_under_every_strategy(strategy):
    (params, _, _), one = trained_alone()
    (other, _, _), many = trained(strategy, None, "gpt", "adamw", types=NARROW, steps=3)
    assert {x.dtype for x in jax.tree.leaves((params, other))} == {np.dtype("float32")}
    np.testing.assert_allclose(many["loss"][0], one["loss"][0], rtol=1e-4)
    np.testing.assert_allclose(many["gradient_norm"][0], one["gradient_norm"][0], rtol=2e-3)


@pytest.mark.parametrize(
    ("strategy", "mesh", "model", "types"),
    [
        ("jit", (8, 1), "gpt", {"scan": True, "remat": True}),
        ("fsdp", (8, 1), "gpt", {"tied": False}),
        slow("zero1", (8, 1), "resnet", {}),
        slow("jit", (4, 2), "gpt", {}),
    ],
)
def test_the_gradients_of_a_bfloat16_model_are_summed_over_the_devices_in_float32(
    strategy, mesh, model, types, tmp_path, uncached
):
    """In the program as it is divided (later passes for the CPU know no bfloat16). Pairs of devices that share matrices
    may add up activations in bfloat16; no sum over the devices that share the batch is in it."""
    state, step, data = parts(model, "sgd", types={"dtype": "bfloat16", **types})
    place_state, place_batch, _ = parallelize(step, strategy, make_mesh(*mesh))
    state = place_state(state)
    lowered = jax.jit(step, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None)).lower(
        state, place_batch(data.batch(0))
    )
    lowered.compile({"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd.*", **QUICK})
    (program,) = [f.read_text() for f in tmp_path.iterdir() if "after_spmd-partitioning" in f.name]
    sums = re.findall(r"= (.*) (?:all-reduce|reduce-scatter)\(.*?replica_groups=(\S+)", program)
    over_pairs = "[4,2]<=[8],"
    wide = [types for types, groups in sums if "f32" in types and groups != over_pairs]
    assert len(wide) >= len(jax.tree.leaves(state.params))
    assert not [types for types, groups in sums if "bf16" in types and groups != over_pairs]


def test_a_batch_that_the_devices_dont_divide_goes_whole_to_all_of_them():
    expected, _ = trained("single", None, "mlp", "sgd", examples=12)
    result, _ = trained("jit", None, "mlp", "sgd", examples=12)
    require_close(expected, result, 2e-6)


def test_pmap_refuses_a_batch_that_its_devices_dont_divide():
    with pytest.raises(ValueError, match="needs a batch that its 8 devices divide, got 12"):
        trained("pmap", None, "mlp", "sgd", examples=12)


def own_step(state, batch, *, mean):
    """A step that was not made here, with a state that is a dict."""
    loss = lambda params: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    value, grads = jax.value_and_grad(loss)(state["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], mean["grads"](grads))
    seen = state["seen"] + mean["seen"](jnp.mean(batch["y"]))
    return {"params": params, "seen": seen}, {"loss": mean["loss"](value)}


def own_problem():
    rng = np.random.default_rng(0)
    state = {"params": {"w": np.zeros(3, np.float32)}, "seen": np.zeros((), np.float32)}
    return state, {"x": np.float32(rng.normal(size=(16, 3))), "y": np.float32(rng.normal(size=16))}


def run_own(strategy, mean):
    state, batch = own_problem()
    place_state, place_batch, step = parallelize(functools.partial(own_step, mean=mean), strategy)
    state = place_state(state)
    for _ in range(3):
        state, metrics = step(state, place_batch(batch))
    return jax.device_get((state, metrics))


OVER_DEVICES = functools.partial(jax.lax.pmean, axis_name="data")
ALL = {"grads": OVER_DEVICES, "seen": OVER_DEVICES, "loss": OVER_DEVICES}
NONE = {"grads": lambda x: x, "seen": lambda x: x, "loss": lambda x: x}


@pytest.mark.parametrize(("strategy", "mean"), [("pmap", ALL), ("jit", NONE), ("fsdp", NONE)])
def test_a_step_of_ones_own_trains_what_one_device_trains(strategy, mean):
    expected, result = run_own("single", NONE), run_own(strategy, mean)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-8)  # a parameter of 0.003 is a difference of larger ones


def test_what_a_step_of_ones_own_forgets_to_average_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"states differ in 'seen'.*jax\.lax\.pmean"):
        run_own("pmap", {**ALL, "seen": lambda x: x})
    with pytest.raises(ValueError, match="states differ in 'params/w'"):
        run_own("pmap", {**ALL, "grads": lambda x: x})


def test_a_step_without_a_mean_over_the_devices_is_refused_with_the_way_out():
    advice = re.escape("make_step(..., axis_name='data'), or jax.lax.pmean(gradients, 'data')")
    with pytest.raises(ValueError, match=f"this one never does: {advice}"):
        run_own("pmap", NONE)
    state, step, data = parts("mlp", "sgd")
    place_state, place_batch, run = parallelize(step, "pmap")
    with pytest.raises(ValueError, match=f"this one never does: {advice}"):
        run(place_state(state), place_batch(data.batch(0)))


def test_a_mean_over_another_axis_is_refused_with_the_name_of_this_one():
    wrong = functools.partial(jax.lax.pmean, axis_name="batch")
    with pytest.raises(ValueError, match=r"batch.*strategy='pmap' has the axis 'data', so make_step"):
        run_own("pmap", {**ALL, "grads": wrong})


@pytest.mark.parametrize("strategy", ["single", "jit"])
def test_a_mean_over_an_axis_is_refused_where_there_is_none(strategy):
    with pytest.raises(ValueError, match=f"unbound axis name: data.*{strategy!r} has the whole batch and no such axis"):
        run_own(strategy, ALL)

    def broken(state, batch):
        raise NameError("name 'jnp' is not defined")

    place_state, place_batch, step = parallelize(broken, strategy)
    with pytest.raises(NameError, match="name 'jnp' is not defined"):
        step(place_state({}), place_batch({"x": np.ones(8)}))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(64, 64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x)).sum(-1)


@pytest.mark.parametrize("strategy", ["pmap", "jit"])
def test_dropout_of_an_nnx_module_draws_other_masks_on_every_device_and_in_every_step(strategy):
    """Eight equal examples, one a device: were the masks equal, so would be the outputs, whose variance is measured."""
    measures = {"loss": lambda outputs, batch: outputs, "metrics": {"square": lambda outputs, batch: outputs**2}}
    data = SimpleNamespace(train=SimpleNamespace(batch=lambda step: {"inputs": np.ones((8, 64), np.float32)}))
    workload, tx = Workload.from_model(Dropped, data, **measures), optax.sgd(0.0)
    step = make_step(workload.loss, tx, axis_name="data" if strategy == "pmap" else None)
    place_state, place_batch, run = parallelize(step, strategy)
    state = place_state(lambda key: init_state(*workload.init(key), tx, key=key), jax.random.key(0))
    means = []
    for t in range(2):
        state, metrics = run(state, place_batch(data.train.batch(t)))
        mean, square = (float(metrics[name][0] / metrics[name][1]) for name in ("loss", "square"))
        assert square - mean**2 > 0.1
        means.append(mean)
    assert means[0] != means[1]


def own_workload(value):
    """Least squares whose scalar is value(errors), with a weight that is a Python number."""

    def loss(params, model_state, batch, key, train):
        errors = (batch["inputs"] @ params - batch["labels"]) ** 2
        return value(errors), (model_state, {"loss": (errors.sum(), len(errors))})

    inputs = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    source = arrays(inputs, inputs.sum(1), validation=0.25, test=0)
    return Workload("own", source, lambda key: (jnp.zeros(4), {}), loss, 16)


@pytest.mark.parametrize("settings", [{"strategy": "pmap"}, {"accumulate": 2}], ids=str)
def test_a_summed_loss_is_refused_where_its_parts_would_be_averaged(settings):
    with pytest.raises(ValueError, match=r"of a batch it is 85.* the mean of its halves .* is 42.*pmap"):
        train(own_workload(jnp.sum), optax.sgd(1e-3), steps=2, **settings)
    for mean in (jnp.mean, lambda x: jnp.mean(x) + 0.1):  # a part of the loss may be missing in the metric
        expected = train(own_workload(mean), optax.sgd(0.1), steps=2).records[-1]
        record = train(own_workload(mean), optax.sgd(0.1), steps=2, **settings).records[-1]
        assert record == pytest.approx({**expected, "seconds": record["seconds"]})


DRAWS = {
    "normal": lambda key, n: jax.random.normal(key, (n, 4)),
    "a key an example": lambda key, n: jax.vmap(lambda k: jax.random.normal(k, (4,)))(jax.random.split(key, n)),
    "folded": lambda key, n: jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (4,)))(jnp.arange(n)),
    "rejection": lambda key, n: jax.random.gamma(key, 0.5, (n, 4)),
    "classes": lambda key, n: jax.nn.one_hot(jax.random.categorical(key, jnp.zeros((n, 4))), 4),
    "one for all": lambda key, n: jax.random.normal(key, (1, 4)),
    "raw key": lambda key, n: jax.random.normal(jax.random.key_data(key), (n, 4)),
    "a key of a number": lambda key, n: jax.random.normal(jax.random.key(jax.random.bits(key)), (n, 4)),
    "none": lambda key, n: 0.0,
}


@pytest.mark.thinned
@pytest.mark.parametrize("draw", list(DRAWS))
@pytest.mark.parametrize("value", [jnp.mean, jnp.sum])
def test_a_loss_that_draws_noise_is_a_mean_or_a_sum_all_the_same(draw, value):
    def loss(params, model_state, batch, key, train):
        noise = DRAWS[draw](key, len(batch["inputs"]))
        errors = ((batch["inputs"] + noise) @ params) ** 2
        return value(errors), (model_state, {"loss": (errors.sum(), len(errors))})

    state = init_state(jnp.ones(4), {}, optax.sgd(0.1), key=jax.random.key(0))
    batch = {"inputs": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)}
    with contextlib.nullcontext() if value is jnp.mean else pytest.raises(ValueError, match="the loss must be a mean"):
        check_mean(loss, state, batch, 2)


def test_an_nnx_model_that_draws_noise_is_trained_in_parts():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.out, self.rngs = nnx.Linear(4, 2, rngs=rngs), rngs

        def __call__(self, x):
            return self.out(x + jax.random.normal(self.rngs.noise(), x.shape))

    inputs = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    make = lambda rngs: Noisy(nnx.Rngs(noise=rngs(), params=rngs()))
    work = Workload.from_model(make, arrays(inputs, (inputs[:, 0] > 0).astype(int)), batch_size=16)
    assert train(work, optax.sgd(0.1), steps=2, accumulate=2).outcome == "finished"


def test_a_sum_over_the_devices_in_a_loss_is_for_training_alone():
    def workload(is_meant):
        plain = own_workload(jnp.mean)

        def loss(params, model_state, batch, key, train):
            seen = jax.lax.psum(len(batch["labels"]), "data") if train or not is_meant else 0
            value, (_, metrics) = plain.loss(params, {}, batch, key, train)
            return value, ({"seen": model_state["seen"] + seen}, metrics)

        return dataclasses.replace(plain, init=lambda key: (jnp.zeros(4), {"seen": jnp.zeros((), int)}), loss=loss)

    with pytest.raises(ValueError, match=r"unbound axis name: data.*evaluation.*`if train`"):
        train(workload(False), optax.sgd(0.1), steps=1, strategy="pmap")
    assert int(train(workload(True), optax.sgd(0.1), steps=1, strategy="pmap").state.model_state["seen"]) == 16


def test_metrics_that_differ_between_devices_are_refused_by_their_name():
    with pytest.raises(ValueError, match=r"after 1 steps .* devices' metrics differ in 'loss': .* is measured must be"):
        run_own("pmap", {**ALL, "loss": lambda x: x})


def test_a_state_of_other_shapes_has_a_program_of_its_own():
    def step(state, batch):
        return jax.tree.map(lambda x: x + jax.lax.pmean(jnp.mean(batch["x"]), "data"), state), {}

    place_state, place_batch, run = parallelize(step, "pmap")
    batch = place_batch({"x": np.ones(16, np.float32)})
    for state in ({"a": np.zeros(3)}, {"a": np.zeros(4)}, {"b": np.zeros(4)}):
        (found,) = run(place_state(state), batch)[0].values()
        np.testing.assert_array_equal(found, np.ones(len(found)))


@pytest.mark.parametrize("summed", [False, True])
def test_whole_numbers_in_the_model_state_that_devices_count_differently_are_refused(summed):
    """What they count alike is right for steps; examples have to be summed over the devices by the loss."""

    def loss(params, model_state, batch, key, train):
        heavy = jnp.sum(batch["weight"] > 0.5)
        heavy = jax.lax.psum(heavy, "data") if summed else heavy
        model_state = {"steps": model_state["steps"] + 1, "heavy": model_state["heavy"] + heavy}
        return params @ params, (model_state, {"loss": (params @ params * 2, jnp.float32(2))})

    tx = optax.sgd(0.1)
    place_state, place_batch, run = parallelize(make_step(loss, tx, axis_name="data"), "pmap")
    counts = {"steps": jnp.zeros((), int), "heavy": jnp.zeros((), int)}
    state = place_state(init_state(jnp.ones(3), counts, tx, key=jax.random.key(0)))
    batch = place_batch({"weight": np.arange(16) / np.float32(16)})
    if summed:
        state, _ = run(state, batch)
        assert {k: int(x) for k, x in state.model_state.items()} == {"steps": 1, "heavy": 7}
    else:
        with pytest.raises(ValueError, match="devices' states differ in 'model_state/heavy'"):
            run(state, batch)


@pytest.mark.parametrize(
    ("strategy", "mesh", "message"),
    [
        ("pnap", lambda: None, "strategy must be one of single, pmap, jit, zero1, fsdp, got 'pnap'"),
        ("single", make_mesh, "strategy='single' is one device, got a mesh of 8: say strategy='jit'"),
        ("pmap", lambda: make_mesh(4, 2), "strategy='pmap' has one axis, 'data', got {'data': 4, 'model': 2}"),
        ("jit", lambda: jax.make_mesh((8,), ("data",), (AxisType.Explicit,)), "the mesh's axes must be Auto"),
        ("jit", lambda: make_mesh(16), "data=16 times model=1 is more than the 8 devices"),
        ("jit", lambda: make_mesh(model=3), "model=3 must divide the 8 devices"),
        ("jit", lambda: make_mesh(0), "data=0 and model=1 must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(strategy, mesh, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parallelize(lambda state, batch: (state, {}), strategy, mesh())


@pytest.mark.parametrize("strategy", ["single", "pmap"])
def test_a_mesh_must_be_one(strategy):
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh, got 8: say make_mesh"):
        parallelize(lambda state, batch: (state, {}), strategy, 8)


@pytest.mark.parametrize("batch", [{"x": np.ones(8), "t": np.float32(1)}, {"x": np.ones((0, 3))}, {}], ids=str)
def test_a_batch_without_examples_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch's '[xt]' must have the examples as its first axis|must hold arrays"):
        parallelize(lambda state, batch: (state, {}), "jit").place_batch(batch)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_a_state_that_was_not_placed_is_refused(make):
    state, batch = own_problem()
    state = jax.tree.map(make, state)
    parallel = parallelize(functools.partial(own_step, mean=NONE), "fsdp")
    with pytest.raises(ValueError, match="state's 'params/w' isn't on the mesh's 8 devices: say place_state"):
        parallel.step(state, parallel.place_batch(batch))


@pytest.mark.parametrize(("strategy", "mean"), [("single", NONE), ("pmap", ALL), ("jit", NONE)])
def test_a_state_that_was_given_away_is_refused(strategy, mean):
    """With eight simulated devices it was the end of the process."""
    state, batch = own_problem()
    place_state, place_batch, step = parallelize(functools.partial(own_step, mean=mean), strategy)
    state, batch = place_state(state), place_batch(batch)
    step(state, batch)
    with pytest.raises(ValueError, match="the state's 'params/w' was given away to an earlier step"):
        step(state, batch)


def placed(strategy, mesh=None, model="gpt", optimizer="adamw", *, rules=None, **settings):
    state, step, _ = parts(model, optimizer, **settings)
    return parallelize(step, strategy, mesh, rules=rules).place_state(state)


def held(tree, device):
    """Bytes on a device, counted from its shards."""
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device]
    return sum(s.data.nbytes for s in shards)


def share(x):
    """A leaf's bytes on one of eight devices: an eighth, or all of them if no axis can be cut in eight."""
    return x.nbytes // 8 if any(n and n % 8 == 0 for n in x.shape) else x.nbytes


@pytest.mark.parametrize("strategy", ["jit", "zero1", "fsdp"])
def test_a_device_holds_an_eighth_of_what_the_strategy_divides(strategy):
    state = placed(strategy, model="resnet", ema=0.9)  # its head's bias has 10 numbers, its first convolution 3·3·3·8
    whole = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    shares = lambda tree: sum(share(x) for x in jax.tree.leaves(tree))
    assert whole(state.params) / 8 < shares(state.params) < whole(state.params) / 7
    for device in jax.devices():
        assert held(state.params, device) == (shares if strategy == "fsdp" else whole)(state.params)
        for tree in (state.opt_state, state.ema):
            assert held(tree, device) == (whole if strategy == "jit" else shares)(tree)


def specs_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.spec for path, x in leaves}


def test_the_model_axis_cuts_matrices_by_outputs_and_those_that_read_them_by_inputs():
    state = placed("jit", make_mesh(4, 2))
    specs, block = specs_of(state.params), "body/block_0/"
    assert specs["embedding/embedding"] == P("model")
    assert specs[block + "attention/query/kernel"] == specs[block + "feed_forward/up/kernel"] == P(None, "model")
    assert specs[block + "attention/out/kernel"] == specs[block + "feed_forward/down/kernel"] == P("model")
    assert specs[block + "attention/query/bias"] == specs[block + "feed_forward/up/bias"] == P("model")
    for whole in ("norm_attention/scale", "attention/out/bias", "feed_forward/down/bias"):
        assert specs[block + whole] == P()
    stacked = specs_of(placed("jit", make_mesh(4, 2), types={"scan": True}).params)
    assert stacked["body/blocks/feed_forward/up/bias"] == P(None, "model")
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    assert specs_of(moments) == specs


def test_an_nnx_modules_bias_is_divided_with_its_kernel():
    state = {"params": nnx.state(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)}
    state = parallelize(lambda state, batch: (state, {}), "jit", make_mesh(4, 2)).place_state(state)
    assert specs_of(state) == {"params/bias/value": P("model"), "params/kernel/value": P(None, "model")}


def test_rules_by_role_and_by_path_go_before():
    rules = {"embedding": P(None, "model"), "*/up/kernel": P("model"), "*/down/*": P()}
    state = placed("fsdp", make_mesh(4, 2), rules=rules)
    specs = specs_of(state.params)
    assert specs["embedding/embedding"] == P("data", "model")
    assert specs["body/block_0/feed_forward/up/kernel"] == P("model", "data")
    assert specs["body/block_0/feed_forward/down/kernel"] == P("data", None)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"*/up/kernel": P("data")}, "may name the axis 'model' alone"),
        ({"*/up/kernel": P("model", "model")}, "for '.*/up/kernel' may name the axis 'model' once alone"),
        ({"*/up/bias": P(None, "model")}, r"has more axes than its shape \(64,\)"),
        (
            {"*/up/kernle": P("model")},
            r"the rule for '\*/up/kernle' fits no parameter and no role here; there are up/kernel",
        ),
        ({"conv": P()}, "the rule for 'conv' fits no parameter and no role here; there are "),
        ({"*/up/kernel": (None, "model")}, "must be a jax.sharding.PartitionSpec, got .None, 'model'.$"),
    ],
)
def test_an_impossible_rule_is_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        placed("jit", make_mesh(4, 2), rules=rules)


def test_rules_without_an_axis_or_parameters_for_them_are_refused():
    step, rules, mesh = lambda state, batch: (state, {}), {"w": P("model")}, jax.sharding.Mesh(jax.devices(), "data")
    with pytest.raises(ValueError, match=r"P.*'model'.* for 'w': the mesh has no such axis, but {'data': 8}"):
        parallelize(step, "jit", mesh, rules=rules)
    with pytest.raises(ValueError, match="strategy='single' divides nothing, got rules for w"):
        parallelize(step, rules=rules)
    with pytest.raises(ValueError, match="the state has no 'params': got w"):
        parallelize(step, "jit", make_mesh(4, 2), rules=rules).place_state({"weights": jnp.ones(8)})


def test_a_rule_for_what_the_devices_dont_divide_is_refused():
    with pytest.raises(ValueError, match=r"'head/bias': model=4 must divide 10 of shape \(10,\)"):
        placed("jit", make_mesh(2, 4), "mlp", rules={"head/bias": P("model")})


def test_a_step_that_needs_more_memory_than_there_is_is_refused_with_what_takes_less(monkeypatch):
    state, step, data = parts("mlp", "adamw")
    parallel = parallelize(step, "jit")
    state, batch = parallel.place_state(state), parallel.place_batch(data.batch(0))
    needed = check_memory(parallel, state, batch)
    assert needed > held(state, jax.devices()[0])
    monkeypatch.setattr("optlab.training.parallel.memory_of", lambda device: needed - 1)
    with pytest.raises(DeviceMemoryError, match=r"accumulate=4.*remat=True.*strategy='fsdp'"):
        check_memory(parallel, state, batch)
    monkeypatch.setattr("optlab.training.parallel.memory_of", lambda device: needed)
    assert check_memory(parallel, state, batch) == needed


def test_a_missing_mean_is_seen_when_the_learning_rate_has_left_zero():
    """At first nothing moves, and all devices have the same weights; that there is some mean hides the missing one."""

    def step(state, batch):
        grads = jax.grad(lambda w: jnp.mean((batch["inputs"] @ w) ** 2))(state["params"])
        rate = 0.1 * jnp.maximum(0, state["t"] - 1)
        return {"params": state["params"] - rate * grads, "t": state["t"] + 1}, jax.lax.pmean(rate, "data")

    place_state, place_batch, run = parallelize(step, "pmap")
    state = place_state({"params": jnp.ones(3), "t": jnp.float32(0)})
    batch = place_batch({"inputs": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)})
    with pytest.raises(ValueError, match="after 4 steps under strategy='pmap' the devices' states differ in 'params'"):
        functools.reduce(lambda state, _: run(state, batch)[0], range(8), state)


@pytest.mark.parametrize("strategy", ["pmap", "jit", "zero1", "fsdp"])
def test_python_numbers_and_complex_arrays_in_a_state(strategy):
    """Flax's `TrainState.create` counts its steps with a Python number."""

    def step(state, batch):
        mean = jnp.mean(batch["inputs"])
        mean = jax.lax.pmean(mean, "data") if strategy == "pmap" else mean
        return {"params": state["params"] + 1j * mean, "step": state["step"] + 1}, mean

    place_state, place_batch, run = parallelize(step, strategy)
    state, _ = run(place_state({"params": jnp.zeros(8, "complex64"), "step": 0}), place_batch({"inputs": np.ones(16)}))
    assert int(state["step"]) == 1
    np.testing.assert_array_equal(state["params"], np.full(8, 1j))


@pytest.mark.parametrize(("strategy", "accumulate"), [("pmap", 1), ("single", 8), ("jit", 1)])
def test_a_part_of_the_batch_without_any_weight(strategy, accumulate):
    """A device's or a microbatch's share of the mean is then 0, not 0 / 0."""
    source = arrays(np.eye(16, 4, dtype=np.float32), np.arange(16) % 3, validation=0, test=0)
    weight = (np.arange(16) < 6).astype(np.float32)
    batch = {**source.train.take(np.arange(16)), "weight": weight}
    workload = Workload.from_model(mlp(3, widths=(4,)), source, batch_size=16)
    axis = "data" if strategy == "pmap" else None
    step = make_step(workload.loss, optax.sgd(0.1), axis_name=axis, accumulate=accumulate)
    plain = make_step(workload.loss, optax.sgd(0.1))
    make = lambda key: init_state(*workload.init(key), optax.sgd(0.1), key=key)
    place_state, place_batch, run = parallelize(step, strategy)
    state, metrics = run(place_state(make, jax.random.key(0)), place_batch(batch))
    expected, _ = jax.jit(plain)(make(jax.random.key(0)), batch)
    assert float(metrics["fault"][0]) == 0
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7)
