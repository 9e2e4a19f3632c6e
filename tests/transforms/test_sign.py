import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab

from .runs import gradients, in_float64, iterates, scan_updates, updates


def test_sign_is_the_sign():  # A7
    np.testing.assert_array_equal(updates(optlab.scale_by_sign(), gradients()), np.sign(gradients()))


@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_softsign_formula(eps):  # A8
    g = gradients()
    np.testing.assert_allclose(updates(optlab.scale_by_softsign(eps), g), g / (np.abs(g) + eps), rtol=1e-14)


def test_softsign_is_the_sign_where_eps_is_small_against_the_gradient():
    g = gradients()
    np.testing.assert_allclose(updates(optlab.scale_by_softsign(1e-12), g), np.sign(g), rtol=1e-6)


def test_softsign_is_adam_without_memory():  # A14
    g = gradients()
    adam = optlab.scale_by_adam(b1=0.0, b2=0.0, eps=1e-3)
    np.testing.assert_allclose(updates(adam, g), updates(optlab.scale_by_softsign(1e-3), g), rtol=1e-12)


softsigns = in_float64(lambda eps, g: scan_updates(optlab.scale_by_softsign(eps), g))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6))
def test_softsign_scales_with_its_epsilon(scale):
    g = gradients(3)
    np.testing.assert_allclose(softsigns(0.1 * scale, scale * g), softsigns(0.1, g), rtol=1e-12)


def test_sign_chatters_around_the_minimum_with_the_size_of_the_step():  # A7
    for rate in (0.03, 0.003):
        path = iterates(optlab.signsgd(rate), lambda theta: theta, np.array(1.0), 500)  # the loss is ½θ²
        assert 0.4 * rate < abs(path[-50:]).max() <= rate


def test_softsign_refuses_an_epsilon_that_isnt_positive():
    with pytest.raises(ValueError, match=r"eps must be positive, got 0\.0"):
        optlab.scale_by_softsign(0.0)
