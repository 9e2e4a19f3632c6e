import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.roles import MatrixAxes, read_names


@pytest.mark.parametrize(
    ("shape", "axes", "rms", "spectral"),
    [
        ((4, 16), None, 0.2 * 4, 2.0),  # Flax kernels are (in, out): four times as many out
        ((16, 4), None, 0.2 * 4, 1.0),
        ((3, 3, 1, 36), MatrixAxes((), (0, 1, 2), (3,)), 0.2 * 6, 2.0),
        ((5, 8, 2, 4), MatrixAxes((0,), (1,), (2, 3)), 0.2 * np.sqrt(8), 1.0),
    ],
)
def test_factors(shape, axes, rms, spectral):
    for scale, factor in (("rms", rms), ("spectral", spectral)):
        tx = optlab.scale_by_matrix_shape(scale)
        leaves = [jnp.ones(shape)]
        update, _ = tx.update(leaves, tx.init(None), layout=read_names(leaves, axes and {"0": axes}))
        np.testing.assert_allclose(update[0], factor, rtol=1e-6)


def test_rms_gives_orthogonal_updates_the_size_of_adams():
    tx = optlab.scale_by_matrix_shape("rms")
    orthogonal = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((64, 16)))[0])
    update, _ = tx.update(orthogonal, tx.init(orthogonal))
    assert float(jnp.sqrt(jnp.mean(update**2))) == pytest.approx(0.2, rel=1e-5)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be one of 'rms', 'spectral', got 'shape'"):
        optlab.scale_by_matrix_shape("shape")
