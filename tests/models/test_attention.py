"""Which attention is taken where, as far as it can be seen without a GPU."""

import types
import warnings

import jax
import jax.numpy as jnp
import pytest

from optlab.models import MultiHeadAttention, attention, gpt2_small, transformer, vision_transformer

H100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100")
V100 = types.SimpleNamespace(platform="gpu", compute_capability="7.0", device_kind="Tesla V100")
MI300 = types.SimpleNamespace(platform="gpu", compute_capability="gfx942", device_kind="AMD MI300X")
CPU = types.SimpleNamespace(platform="cpu", device_kind="cpu")


@pytest.fixture
def taken(monkeypatch):
    """What `jax.nn.dot_product_attention` is asked for; XLA's is done, whatever it is."""
    asked, plain = [], jax.nn.dot_product_attention

    def recorded(*heads, implementation, **settings):
        asked.append(implementation)
        return plain(*heads, **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return asked


def run(monkeypatch, device, implementation, dtype="bfloat16", width=64, heads=2):
    monkeypatch.setattr(attention, "_device", lambda: device)
    model = MultiHeadAttention(width, heads=heads, causal=True, implementation=implementation, dtype=dtype)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 4, width)))


@pytest.mark.parametrize("implementation", ["auto", "cudnn"])
def test_cudnns_is_taken_on_an_nvidia_gpu_in_bfloat16(monkeypatch, taken, implementation):
    run(monkeypatch, H100, implementation)
    assert taken == ["cudnn"]


def test_xlas_is_taken_where_it_is_asked_for(monkeypatch, taken):
    run(monkeypatch, H100, "xla")
    assert taken == ["xla"]


MISSING = [
    (CPU, {}, "compute capability 8.0 or more, and the device is 'cpu'"),
    (MI300, {}, "compute capability 8.0 or more, and the device is 'AMD MI300X'"),
    (V100, {}, "compute capability 8.0 or more, and the device is 'Tesla V100'"),
    (H100, {"dtype": "float32"}, "dtype='bfloat16', and is given float32"),
    (H100, {"width": 24}, "a multiple of 8, 128 at most, and width / heads is 12"),
    (H100, {"width": 512}, "a multiple of 8, 128 at most, and width / heads is 256"),
]


@pytest.mark.parametrize(("device", "settings", "message"), MISSING)
def test_where_cudnns_cant_be_had_auto_takes_xlas_and_says_so_on_an_nvidia_gpu(
    monkeypatch, taken, device, settings, message
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(monkeypatch, device, "auto", **settings)
    assert taken == ["xla"]
    said = [str(w.message) for w in caught if "attention" in str(w.message)]
    assert len(said) == (device in (H100, V100))
    assert all(message in text and "'xla' asks for it" in text for text in said)


@pytest.mark.parametrize(("device", "settings", "message"), MISSING)
def test_where_cudnns_cant_be_had_asking_for_it_is_an_error(monkeypatch, device, settings, message):
    with pytest.raises(ValueError, match=f"attention='cudnn' needs .*{message}: take 'auto'"):
        run(monkeypatch, device, "cudnn", **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: transformer(11, width=32, heads=2, depth=2, **settings),
        lambda **settings: gpt2_small(11, length=8, **settings),
        lambda **settings: vision_transformer(3, width=32, heads=2, depth=2, **settings),
    ],
)
@pytest.mark.parametrize("scan", [False, True])
def test_every_transformer_passes_it_on(monkeypatch, taken, make, scan):
    monkeypatch.setattr(attention, "_device", lambda: H100)
    inputs = jnp.zeros((1, 8, 8, 3)) if "patch" in repr(make(attention="xla")) else jnp.zeros((1, 4), int)
    for name in ("xla", "cudnn"):
        taken.clear()
        model = make(attention=name, scan=scan, dtype="bfloat16")
        jax.eval_shape(model.init, jax.random.key(0), inputs)
        assert set(taken) == {name}
    with pytest.raises(ValueError, match="attention must be one of auto, xla, cudnn, got 'flash'"):
        make(attention="flash")


def test_the_device_is_the_default_one():
    second = jax.devices()[1]
    assert attention._device() == jax.devices()[0]
    with jax.default_device(second):
        assert attention._device() == second
