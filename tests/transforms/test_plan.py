"""What is done together, in what form, at what cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.roles import matrix_axes
from optlab.transforms._divide import axes_to_divide, share
from optlab.transforms._newton_schulz import Recipe
from optlab.transforms._orthogonalize import plan_of


def settings(**arguments):
    return optlab.orthogonalize(**arguments).init({}).settings


def plan(shapes, of="float32", **arguments):
    leaves = [jax.ShapeDtypeStruct(shape, of) for shape in shapes]
    return plan_of(leaves, matrix_axes(leaves), settings(**arguments))


def test_a_matrix_and_its_transpose_are_one_group():
    (group,) = plan([(8, 32), (32, 8), (8, 32)]).groups
    assert (group.shape, group.members, group.count) == ((8, 32), (0, 1, 2), 3)


@pytest.mark.parametrize(
    ("shape", "arguments", "form"),
    [
        ((8, 8), {}, "standard"),
        ((8, 12), {}, "standard"),
        ((8, 16), {}, "gram"),
        ((8, 16), {"dtype": "bfloat16"}, "standard"),
        ((8, 12), {"dtype": jnp.float16}, "standard"),
        ((8, 16), {"dtype": jnp.float16}, "gram"),
        ((8, 16), {"precision": "default"}, "standard"),
        ((8, 16), {"dtype": "float32", "precision": "high"}, "standard"),
        ((8, 16), {"method": "polar_express"}, "gram"),
        ((8, 16), {"method": "svd"}, "svd"),
    ],
)
def test_the_form_is_the_cheaper_one_that_is_exact_enough(shape, arguments, form):
    (group,) = plan([shape], **arguments).groups
    assert group.recipes.cpu.form == form


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_working_dtype_is_at_least_float32_unless_asked_for(dtype):
    assert plan([(8, 8)], dtype).groups[0].recipes.cpu.dtype == "float32"
    assert plan([(8, 8)], dtype, precision="high").groups[0].recipes.cpu.dtype == "float32"
    assert plan([(8, 8)], dtype, dtype="bfloat16").groups[0].recipes.cpu.dtype == "bfloat16"


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_accelerators_compute_in_16_bits_and_a_cpu_in_float32(method, dtype):
    square, wide = plan([(8, 8), (8, 32)], dtype, method=method).groups
    standard = Recipe("standard", (5,), "bfloat16", "default")
    assert square.recipes == (Recipe("standard", (5,), "float32", "highest"), standard, standard)
    gram = Recipe("gram", (1, 2, 2), "float16", "default")
    assert wide.recipes == (Recipe("gram", (2, 3), "float32", "highest"), gram, standard)


@pytest.mark.parametrize(
    ("dtype", "arguments", "working", "precision"),
    [
        ("float32", {"dtype": "float32"}, "float32", "highest"),
        ("float32", {"dtype": "float32", "precision": "default"}, "float32", "default"),
        ("bfloat16", {"precision": "highest"}, "float32", "highest"),
        ("float32", {"precision": "default"}, "float32", "default"),
        ("float32", {"dtype": "bfloat16"}, "bfloat16", "default"),
        ("float32", {"dtype": "float16"}, "float16", "default"),
        ("float64", {}, "float64", "highest"),
        ("float64", {"dtype": "bfloat16"}, "bfloat16", "default"),
        ("float32", {"method": "polar_express", "steps": 10, "lower_bound": 1e-5}, "float32", "highest"),
        ("float32", {"method": "svd"}, "float32", "highest"),
        ("complex64", {"method": "svd"}, "complex64", "highest"),
    ],
)
def test_what_is_asked_for_is_the_same_on_every_platform_and_so_is_float64(dtype, arguments, working, precision):
    for group in plan([(8, 8), (8, 32)], dtype, **arguments).groups:
        assert len(set(group.recipes)) == 1
        assert group.recipes.gpu[2:] == (working, precision)


def test_leaves_of_two_dtypes_are_two_groups():
    leaves = [jnp.ones((8, 8)), jnp.ones((8, 8), jnp.bfloat16)]
    assert len(plan_of(leaves, matrix_axes(leaves), settings()).groups) == 2


def test_it_can_be_printed_and_counts_the_work():
    printed = plan([(768, 768)] * 48 + [(768, 3072)] * 24)
    assert str(printed).splitlines() == [
        "matrices  shape     on        form      steps  computed in  GFLOP",
        "48        768×768   CPU       standard  5      float32      652",
        "48        768×768   GPU, TPU  standard  5      bfloat16     652",
        "24        768×3072  CPU       gram      2+3    float32      652",
        "24        768×3072  GPU       gram      1+2+2  float16      761",
        "24        768×3072  TPU       standard  5      bfloat16     978",
    ]
    asked = plan([(768, 768)], dtype="float32", precision="default")
    assert str(asked).splitlines()[1:] == ["1         768×768  any  standard  5      float32, default  13.6"]
    assert (
        printed.flops_per_device({}, "gpu") == sum(g.count * g.flops_on("gpu") for g in printed.groups) > printed.flops
    )
    assert printed.flops_per_device({"x": 8}) * 8 == printed.flops
    assert printed.flops_per_device({"x": 5}) * 5 > printed.flops
    assert printed.flops_per_device({}) == printed.flops


@pytest.mark.parametrize(
    ("count", "sizes", "axes"),
    [
        (48, {"x": 4, "y": 2}, ("x", "y")),
        (2, {"x": 4, "y": 2}, ("y",)),
        (4, {"x": 4, "y": 2}, ("x",)),
        (1, {"x": 4, "y": 2}, ()),
        (6, {"x": 8}, ("x",)),
        (5, {"x": 3}, ("x",)),
    ],
)
def test_axes_are_those_that_leave_the_fewest_matrices_on_the_fewest_devices(count, sizes, axes):
    assert axes_to_divide(count, sizes) == axes
    devices = int(np.prod([sizes[a] for a in axes]))
    assert share(count, axes, sizes) == -(-count // devices)


def test_settings_never_come_back_from_a_state():
    """They are noted in it to be read, equal to their equals alone, and not used."""
    few, many = optlab.orthogonalize(steps=1), optlab.orthogonalize(steps=5)
    X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
    assert jax.tree.structure(few.init(X)) == jax.tree.structure(optlab.orthogonalize(steps=1).init(X))
    assert jax.tree.structure(few.init(X)) != jax.tree.structure(many.init(X))
    np.testing.assert_array_equal(many.update(X, few.init(X))[0], many.update(X, many.init(X))[0])
