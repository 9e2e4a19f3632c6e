import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
    """Theory is exact; what training differs from it by should be rounding that can be seen through."""
    with jax.enable_x64(True):
        yield
