"""Collapse on finitely many points, against closed forms for Gaussian data and for the population."""

import jax
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, rounding

from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.estimators import mean
from thermojax.generative.landscape import (
    collapse_time,
    collapse_time_of_gaussian,
    collapse_time_of_points,
    gaussian_information,
    mutual_information,
)

OU = OrnsteinUhlenbeck()
TIGHT = 1e-8 if jax.config.jax_enable_x64 else 1e-3
FAR = GaussianMixture([1.0, 1.0], [[3.0], [-3.0]], [1e-2, 1e-2])


def closed_collapse(variance, n, dim):
    return 0.5 * np.log1p(variance / (n ** (2 / dim) - 1))


def test_collapse_of_gaussian_data_agrees_with_the_closed_form():
    data, n = Gaussian(np.zeros(4), 0.7), 1000
    expected = closed_collapse(0.7, n, 4)
    assert abs(float(collapse_time_of_gaussian(OU, data, n, horizon=5.0)) - expected) < TIGHT
    with pytest.raises(AssertionError):
        assert abs(float(collapse_time_of_gaussian(OU, data, n / 2, horizon=5.0)) - expected) < TIGHT


@pytest.mark.slow
def test_collapse_by_monte_carlo_agrees_with_the_closed_form(key):
    data, n = Gaussian(np.zeros(4), 0.7), 1000
    expected = closed_collapse(0.7, n, 4)
    assert_estimate(collapse_time(OU, data, n, horizon=5.0, key=key), expected)
    with pytest.raises(AssertionError):
        assert_estimate(collapse_time(OU, data, n / 1.2, horizon=5.0, key=key), expected)


@pytest.mark.slow
def test_mutual_information_is_half_a_log_determinant_for_gaussians(key):
    skewed = Gaussian([0.3, 0.1], [[1.0, 0.9], [0.9, 2.0]])
    expected = float(gaussian_information(OU, skewed, 0.5))
    ratio = np.exp(-1.0) / -np.expm1(-1.0)
    matrix = np.eye(2) + ratio * np.array([[1.0, 0.9], [0.9, 2.0]])
    assert expected == pytest.approx(0.5 * np.log(np.linalg.det(matrix)), rel=rounding(steps=10))
    assert_estimate(mutual_information(OU, skewed, 0.5, key=key), expected)
    with pytest.raises(AssertionError):
        assert_estimate(mutual_information(OU, skewed, 0.6, key=key), expected)


@pytest.mark.slow
def test_two_far_classes_are_worth_one_bit(key):
    found = mutual_information(OU, FAR, 0.1, key=key)
    inside = float(gaussian_information(OU, Gaussian([0.0], 1e-2), 0.1))
    assert_estimate(found, np.log(2) + inside)
    with pytest.raises(AssertionError):
        assert_estimate(found, inside)


def gap_of_points(n, dim, key, *, sets=32, samples=200):
    """How much later points collapse than their population, as a share of the latter; the error is that between sets of points."""
    data = Gaussian(np.zeros(dim), 0.7)

    @jax.jit
    @jax.vmap
    def times(key):
        data_key, noise_key = jr.split(key)
        return collapse_time_of_points(OU, data.sample(n, key=data_key), horizon=5.0, samples=samples, key=noise_key)

    found = times(jr.split(key, sets))
    return mean(found.value / closed_collapse(0.7, n - 1, dim) - 1)


def check_later(gap, error):
    assert gap > 4 * error


def check_scaling(before, after, factor):
    """Only the signal-to-noise ratio counts: points twice as far apart collapse where it is a quarter."""
    ratio = lambda found: np.log(np.expm1(2 * float(found.value)))
    assert ratio(after) - ratio(before) == pytest.approx(2 * np.log(factor), abs=100 * TIGHT)


@pytest.mark.slow
def test_collapse_of_points_depends_on_the_ratio_of_signal_to_noise_alone(key):
    points = np.random.default_rng(0).normal(size=(64, 6))
    before, after = (collapse_time_of_points(OU, a, horizon=5.0, samples=128, key=key) for a in (points, 1.7 * points))
    assert before.trustworthy
    check_scaling(before, after, 1.7)
    with pytest.raises(AssertionError):
        check_scaling(before, after, np.sqrt(1.7))


@pytest.mark.nightly
def test_points_collapse_later_than_their_population_and_less_so_in_higher_dimension(key):
    # Sets of few points differ much: many of them.
    gaps = [gap_of_points(64, 4, key, sets=128), gap_of_points(256, 8, key)]
    check_later(gaps[1].value, gaps[1].stderr)
    check_later(gaps[0].value - gaps[1].value, np.hypot(gaps[0].stderr, gaps[1].stderr))
    with pytest.raises(AssertionError):
        check_later(gaps[1].value - gaps[0].value, np.hypot(gaps[0].stderr, gaps[1].stderr))
