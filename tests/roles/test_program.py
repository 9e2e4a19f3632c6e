"""The layout that the program shows, with no name to help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas
from jax.extend import core as jcore
from jax.sharding import PartitionSpec as P

from optlab.roles import MatrixAxes, read_program
from optlab.roles._program import _primitives as primitives

from .mechanisms import MECHANISMS, B, F, T, V, W
from .published import PUBLISHED


@pytest.fixture(autouse=True)
def _programs_as_people_write_them():
    with jax.numpy_rank_promotion("allow"):
        yield


struct = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")


@pytest.mark.parametrize("mechanism", [*MECHANISMS.values(), *PUBLISHED.values()], ids=[*MECHANISMS, *PUBLISHED])
def test_mechanisms_and_published_models(mechanism):
    layout = read_program(mechanism.trees(), mechanism.params, *mechanism.batch)
    for i, answer in enumerate(mechanism.answers):
        reading = layout[f"p{i}"]
        if isinstance(answer, str):
            assert reading.role == answer
        else:
            role, *axes = answer
            assert (reading.role, reading.axes) == (role, MatrixAxes(*axes))


def test_unequal_parts_are_reported_and_one_matrix():
    mechanism = MECHANISMS["unequal_parts_are_reported"]
    layout = read_program(mechanism.trees(), mechanism.params, *mechanism.batch)
    assert layout["p0"].parts == (4, 3)
    assert "parts of 4, 3" in str(layout)


def test_an_input_layer_is_one_that_no_product_lies_before():
    loss = lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"])
    layout = read_program(loss, {"a": struct(W, F), "b": struct(F, F), "c": struct(F, V)}, struct(B, W))
    assert {path: layout[path].is_input for path in layout} == {"a": True, "b": False, "c": False}


def test_every_output_counts():
    both = lambda p, x: {"first": x @ p["a"], "second": (jnp.tanh(x @ p["b"]) @ p["c"], 1)}
    layout = read_program(both, {"a": struct(W, F), "b": struct(W, F), "c": struct(F, V)}, struct(B, W))
    assert layout.roles == {"a": "head", "b": "matrix", "c": "head"}


def test_what_isnt_used_is_unknown():
    layout = read_program(lambda p, x: jnp.sum(x @ p["a"]), {"a": struct(W, F), "b": struct(F, V)}, struct(B, W))
    assert layout["b"].role is None
    assert layout["b"].uses == frozenset()
    assert "unknown: unused" in str(layout)


# What isn't known.

brand_new = jcore.Primitive("brand_new")
brand_new.def_abstract_eval(lambda x, *rest: x)


def test_a_primitive_that_isnt_known_is_never_taken_for_elementwise():
    loss = lambda p, x: jnp.sum(brand_new.bind(x, p["a"]) @ p["b"])
    layout = read_program(loss, {"a": struct(B, W), "b": struct(W, V)}, struct(B, W))
    assert (layout["a"].role, layout["a"].uses) == (None, {"unknown brand_new"})
    assert layout["b"].role == "head"


def test_an_activation_goes_on_behind_it():
    loss = lambda p, x: jnp.sum(brand_new.bind(x @ p["a"]) @ p["b"])
    assert read_program(loss, {"a": struct(W, F), "b": struct(F, V)}, struct(B, W)).roles == {
        "a": "matrix",
        "b": "head",
    }


def kernel(x, w, out):
    out[...] = x[...] * w[...]


UNKNOWN = {
    "pallas": lambda x, w: pallas.pallas_call(kernel, out_shape=struct(B, W))(x, w),
    "callback": lambda x, w: jax.pure_callback(np.multiply, struct(B, W), x, w),
    "custom call": lambda x, w: jax.ffi.ffi_call("mine", struct(B, W))(x, w),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_kernel_of_ones_own_is_unknown(name):
    loss = lambda p, x: jnp.sum(jnp.tanh(UNKNOWN[name](x @ p["a"], p["b"])) @ p["c"])
    layout = read_program(loss, {"a": struct(W, W), "b": struct(B, W), "c": struct(W, V)}, struct(B, W))
    assert layout.roles == {"a": "matrix", "b": None, "c": "head"}


ELEMENTWISE = sorted(name for name in primitives.ELEMENTWISE if callable(getattr(lax, name, None)))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_primitives_are_elementwise(name):
    """f(x[order]) = f(x)[order], on this version of JAX."""
    function, order = getattr(lax, name), np.array([3, 0, 4, 1, 2])
    if name == "polynomial":  # since JAX 0.12
        function = lambda x, *coefficients: lax.polynomial(x, coefficients)
    settings = {"convert_element_type": ("float32",), "integer_pow": (3,), "reduce_precision": (5, 5)}.get(name, ())
    for dtype in ("float32", "int32", "bool", "complex64"):
        x = jnp.asarray([0.1, 0.7, 0.3, 0.9, 0.5]) if dtype != "int32" else jnp.asarray([1, 5, 3, 2, 4])
        x = x.astype(dtype)
        for count in (1, 2, 3):
            first = [x > 0.4] if name == "select_n" else []
            operands = [*first, *[x + i if dtype != "bool" else x for i in range(count - len(first))]]
            try:
                whole = function(*operands, *settings)
                turned = function(*(operand[order] for operand in operands), *settings)
            except (TypeError, ValueError, NotImplementedError, AttributeError):
                continue
            if getattr(whole, "shape", None) != x.shape:
                continue
            np.testing.assert_array_equal(np.asarray(whole)[order], turned)
            return
    pytest.skip("it can't be called here alone")


def test_most_of_the_list_is_tried():
    assert len(ELEMENTWISE) > 70
    groups = [primitives.ELEMENTWISE, primitives.ALONG_AXES, primitives.OF_MATRICES, primitives.CALLS.keys()]
    assert sum(map(len, groups)) == len(set().union(*groups))


# Over devices.


def over_devices(inside, specs):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    return jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)


def test_weights_divided_by_their_outputs_and_inputs():
    def inside(a, b, c, x):
        return lax.psum(jnp.sum(lax.psum(jnp.tanh(x @ a) @ b, "d") @ c), "d")

    loss = lambda p, x: over_devices(inside, (P(None, "d"), P("d"), P(), P()))(*p, x)
    layout = read_program(loss, [struct(W, F), struct(F, W), struct(W, V)], struct(B, W))
    assert layout.roles == ["matrix", "matrix", "head"]
    assert set(layout.matrix_axes) == {MatrixAxes((), (0,), (1,))}


def test_weights_that_are_gathered_first():
    def inside(a, b, x):
        a, b = (lax.all_gather(w, "d", tiled=True) for w in (a, b))
        return lax.psum(jnp.sum(jnp.tanh(x @ a) @ b), "d")

    loss = lambda p, x: over_devices(inside, (P("d"), P("d"), P("d")))(*p, x)
    layout = read_program(loss, [struct(W, F), struct(F, V)], struct(B, W))
    assert layout.roles == ["matrix", "head"]
    assert set(layout.matrix_axes) == {MatrixAxes((), (0,), (1,))}


def test_a_step_per_device_of_the_batch():
    inside = lambda a, b, x: lax.psum(jnp.sum(jnp.tanh(x @ a) @ b), "d")
    layout = read_program(
        lambda p, x: over_devices(inside, (P(), P(), P("d")))(*p, x), [struct(W, F), struct(F, V)], struct(B, W)
    )
    assert layout.roles == ["matrix", "head"]


# Linear in the program.


def test_the_time_is_linear_in_the_layers():
    def equations(depth):
        from optlab.roles._program._walk import Reader

        count = 0

        class Counting(Reader):
            def equation(self, eqn, ins):
                nonlocal count
                count += 1
                return super().equation(eqn, ins)

        from optlab.roles._program import _conclusions

        def loss(p, x):
            for a, b in p:
                x = x + jnp.tanh(x @ a) @ b
            return jnp.sum(x)

        params = [(struct(W, F), struct(F, W))] * depth
        closed = jax.make_jaxpr(lambda leaves, x: loss(list(zip(leaves[::2], leaves[1::2], strict=True)), x))(
            jax.tree.leaves(params), struct(B, T, W)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_conclusions, "Reader", Counting)
            _conclusions.read_jaxpr(closed.jaxpr, [x.shape for x in jax.tree.leaves(params)])
        return count

    assert equations(32) - equations(16) == 2 * (equations(16) - equations(8))
