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


softsigns = in_float64(lambda eps, g: scan_updates(optlab.scale_by_softsign(eps), g))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6))
def test_softsign_scales_with_its_epsilon(scale):
    g = gradients(3)
    np.testing.assert_allclose(softsigns(0.1 * scale, scale * g), softsigns(0.1, g), rtol=1e-12)


signs = in_float64(lambda g: scan_updates(optlab.scale_by_sign(), g))
signums = in_float64(lambda g: scan_updates(optlab.signum(1.0), g))
tiny = in_float64(lambda g: scan_updates(optlab.scale_by_softsign(1e-30), g))
scales = st.floats(1e-6, 1e6)


@pytest.mark.parametrize("rule", [signs, signums, tiny], ids=["sign", "signum", "softsign as ε → 0"])
@settings(max_examples=20, deadline=None)
@given(scale=scales)
def test_signs_dont_see_the_scale_of_the_gradients(rule, scale):  # A7, A8
    g = gradients(10)
    np.testing.assert_allclose(rule(scale * g), rule(g), rtol=1e-12)


memoryless = in_float64(lambda eps, g: scan_updates(optlab.scale_by_adam(0.0, 0.0, eps), g))


@settings(max_examples=20, deadline=None)
@given(eps=st.floats(1e-8, 10), scale=scales)
def test_softsign_is_adam_without_memory(eps, scale):  # A14
    g = scale * gradients(5)
    np.testing.assert_allclose(memoryless(eps, g), softsigns(eps, g), rtol=1e-12)


def test_sign_chatters_around_the_minimum_with_the_size_of_the_step():  # A7
    for rate in (0.03, 0.003):
        path = iterates(optlab.signsgd(rate), lambda theta: theta, np.array(1.0), 500)  # the loss is ½θ²
        assert 0.4 * rate < abs(path[-50:]).max() <= rate


def test_softsign_refuses_an_epsilon_that_isnt_positive():
    with pytest.raises(ValueError, match=r"eps must be positive, got 0\.0"):
        optlab.scale_by_softsign(0.0)
