"""The landscape of generation: reverse potential and free energies, symmetry breaking, phases, collapse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from scipy.optimize import brentq
from scipy.special import logsumexp

from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import LogSnrLinear, OrnsteinUhlenbeck, Reversed, VarianceExploding
from thermojax.generative import landscape, MixtureScore
from thermojax.generative.landscape import (
    collapse_time,
    collapse_time_of_gaussian,
    collapse_time_of_points,
    curvature,
    instability_time,
    phase_diagram,
    phase_of,
    Points,
    posterior_free_energy,
    reverse_free_energy,
    reverse_free_energy_quadrature,
    reverse_potential,
    speciation_time,
    speciation_time_of_covariance,
    symmetric_mixture_speciation_time,
)

OU = OrnsteinUhlenbeck()
TIGHT = 1e-8 if jax.config.jax_enable_x64 else 1e-3


def number(t):
    return jnp.asarray(t, float)


def pair(mean, variance):
    """Data with two classes of equal weight at plus and minus `mean`."""
    mean = jnp.asarray(mean, float)
    means = jnp.stack([mean, -mean]).reshape(2, -1)
    return GaussianMixture([1.0, 1.0], means, jnp.stack([jnp.asarray(variance, float)] * 2))


SKEW = GaussianMixture([1.0, 0.4], [[1.0, 0.3], [-0.7, 0.5]], [[0.3, 0.5], [0.8, 0.2]])
POINTS = np.array([[1.0, 0.2], [-0.5, 0.7], [0.3, -1.1]])
ORIGIN = np.zeros(1)


def points_as_mixture(t):
    """What three points become under noise, as a mixture."""
    return GaussianMixture(np.ones(3), POINTS * np.exp(-t), np.full(3, -np.expm1(-2 * t)))


# The potential and the free energies.


def check_drift(potential, data, score):
    """The reverse drift is minus the gradient of the potential."""

    @jax.jit
    def both(t, x):
        return -jax.grad(lambda y: potential(OU, data, t, y))(x), Reversed(OU, score, 1.0).drift(1.0 - t, x)

    forces, drift = both(number(0.4), jnp.array([0.3, -0.8]))
    assert np.allclose(forces, drift, rtol=rounding(steps=10))


def test_the_reverse_dynamics_descend_the_reverse_potential():
    score = MixtureScore(OU, SKEW)
    check_drift(reverse_potential, SKEW, score)
    check_drift(reverse_potential, POINTS, Points(OU, POINTS))
    # The check can fail: the sign of the confinement turned.
    with pytest.raises(AssertionError):
        check_drift(lambda n, d, t, x: reverse_potential(n, d, t, x) + jnp.sum(x**2), SKEW, score)


def test_noised_points_are_a_mixture_of_the_noise():
    @jax.jit
    def both(points, mixture, t, x):
        return (points.log_prob(t, x), points(t, x)), (mixture.log_prob(x), mixture.score(x)), points.posterior(t, x)

    t, x = number(0.4), jnp.array([0.3, -0.8])
    found, expected, posterior = both(Points(OU, POINTS), points_as_mixture(0.4), t, x)
    assert all(np.allclose(a, b, rtol=rounding(steps=10)) for a, b in zip(found, expected, strict=True))
    assert float(np.sum(posterior)) == pytest.approx(1.0, rel=rounding())
    _, wrong, _ = both(Points(OU, POINTS), points_as_mixture(0.5), t, x)
    assert not any(np.allclose(a, b, rtol=rounding(steps=10)) for a, b in zip(found, wrong, strict=True))


def test_posterior_free_energy_is_the_integral_over_the_data():
    t, x = 0.3, 0.4
    alpha, v = np.exp(-t), -np.expm1(-2 * t)
    grid = np.linspace(-12, 12, 4001)
    p0 = 0.5 * sum(np.exp(-((grid - m) ** 2) / 0.8) for m in (1, -1)) / np.sqrt(0.8 * np.pi)
    expected = -np.log(np.sum(p0 * np.exp(-((x - alpha * grid) ** 2) / (2 * v))) * (grid[1] - grid[0]))
    found = jax.jit(lambda data, t, x: posterior_free_energy(OU, data, t, x))(pair([1.0], 0.4), number(t), jnp.array([x]))
    assert float(found) == pytest.approx(expected, rel=rounding(steps=10))
    with pytest.raises(AssertionError):
        assert float(found) == pytest.approx(expected + 0.5 * np.log(2 * np.pi * v), rel=rounding(steps=10))


# Entropies of N(+-1, 0.4) under the process, exact (quadrature), and the free energy they give: -<x^2>/2 + S.
ENTROPIES = {0.0: 1.5103975051179, 0.5: 1.4864148744733, 1.0: 1.4452744863496}


def test_reverse_free_energy_by_quadrature_has_the_known_entropies():
    data = pair([1.0], 0.4)
    for t, entropy in ENTROPIES.items():
        found = reverse_free_energy_quadrature(OU, data, t)
        second = 1.0 + 0.4 * np.exp(-2 * t)
        assert np.allclose(found.entropy, entropy, rtol=TIGHT)
        assert np.allclose(found.energy, -0.5 * second + 2 * entropy, rtol=TIGHT)
        assert np.allclose(found.free_energy, -0.5 * second + entropy, rtol=TIGHT)
    with pytest.raises(AssertionError):
        assert np.allclose(found.free_energy, found.energy - 2 * entropy, rtol=TIGHT)


@pytest.mark.slow
def test_reverse_free_energy_by_monte_carlo_agrees_with_quadrature(key):
    data = pair([1.0], 0.4)
    found = reverse_free_energy_quadrature(OU, data, 1.0)
    drawn = reverse_free_energy(OU, data, 1.0, key=key)
    for name in found._fields:
        assert_estimate(getattr(drawn, name), getattr(found, name))
    with pytest.raises(AssertionError):
        assert_estimate(drawn.free_energy, found.energy)


@pytest.mark.slow
def test_free_energy_of_points_is_that_of_the_mixture(key):
    found = reverse_free_energy(OU, POINTS, 0.3, key=key)
    assert_estimate(found.entropy, reverse_free_energy(OU, points_as_mixture(0.3), 0.0, key=key).entropy.value, k=6)


# Symmetry breaking.


# Exact: t_S = ln(mu^2 + sqrt((s2 - 1)^2 + mu^4)) / 2; negative: unbroken.
SPECIATION = {
    (1.0, 1.0): 0.346573590280,
    (1.0, 0.4): 0.386485019489,
    (1.0, 0.1): 0.426219966771,
    (2.0, 1.0): 1.039720770840,
    (0.5, 1.0): -0.346573590280,
    (1.0, 2.5): 0.515305112679,
}


def check_speciation(found, expected):
    if expected < 0:
        assert found.verdict == "unbroken"
        assert jnp.isnan(found.time)
    else:
        assert found.verdict == "broken"
        assert abs(float(found.time) - expected) < TIGHT


@pytest.mark.parametrize("centre", [None, ORIGIN], ids=["tracked", "centre"])
@pytest.mark.slow
def test_speciation_of_two_classes_agrees_with_the_closed_form(centre):
    for (place, variance), expected in SPECIATION.items():
        assert abs(float(symmetric_mixture_speciation_time(place, variance)) - expected) < max(1e-11, rounding())
        check_speciation(speciation_time(OU, pair([place], variance), centre=centre, horizon=3.0), expected)
    with pytest.raises(AssertionError):
        check_speciation(speciation_time(OU, pair([1.0], 0.4**2), centre=centre, horizon=3.0), SPECIATION[1.0, 0.4])


@pytest.mark.slow
def test_speciation_follows_rate_and_temperature():
    found = speciation_time(OrnsteinUhlenbeck(0.7, 1.6), pair([1.3], 0.5), horizon=4.0)
    check_speciation(found, float(symmetric_mixture_speciation_time(1.3, 0.5, rate=0.7, temperature=1.6)))
    with pytest.raises(AssertionError):
        check_speciation(found, float(symmetric_mixture_speciation_time(1.3, 0.5)))


def eight_classes(dim):
    """Four random means and their opposites, with their own variances."""
    rng = np.random.default_rng(dim)
    means = 1.5 * rng.normal(size=(4, dim)) / np.sqrt(dim) + 0.8 * np.eye(4, dim)
    variances = rng.uniform(0.1, 0.8, 4)
    return np.concatenate([means, -means]), np.concatenate([variances, variances])


def exact_speciation(dim):
    """The latest root of the smallest eigenvalue at the origin, from the Hessian of a mixture in closed form, and its eigenvector."""
    means, variances = eight_classes(dim)

    def hessian(t):
        m, v = np.exp(-t) * means, 1 + (variances - 1) * np.exp(-2 * t)
        logs = -0.5 * (m**2).sum(1) / v - 0.5 * dim * np.log(v)
        w = np.exp(logs - logsumexp(logs))
        pulls = m / v[:, None]
        # The mean pull is zero at the origin.
        return -np.eye(dim) - 2 * ((w[:, None] * pulls).T @ pulls - np.sum(w / v) * np.eye(dim))

    smallest = lambda t: np.linalg.eigvalsh(hessian(t))[0]
    grid = np.linspace(0, 3, 301)
    last = max(i for i in range(300) if smallest(grid[i]) < 0)
    time = brentq(smallest, grid[last], grid[last + 1], xtol=1e-13)
    return time, np.linalg.eigh(hessian(time))[1][:, 0]


@pytest.mark.parametrize("dim", [pytest.param(2, marks=pytest.mark.slow), 16, pytest.param(256, marks=pytest.mark.slow)])
def test_speciation_of_eight_classes_agrees_with_the_analytic_hessian(dim):
    means, variances = eight_classes(dim)
    found = speciation_time(OU, GaussianMixture(np.ones(8), means, variances), centre=np.zeros(dim), horizon=3.0, levels=32)
    time, direction = exact_speciation(dim)
    check_speciation(found, time)
    assert abs(np.dot(direction, found.direction)) == pytest.approx(1.0, abs=TIGHT)
    assert float(found.gradient) < 100 * rounding()
    # The check can fail: the root of other classes.
    with pytest.raises(AssertionError):
        check_speciation(found, exact_speciation(4)[0])


@pytest.mark.slow
def test_speciation_of_two_points_is_that_of_classes_without_width():
    expected = float(symmetric_mixture_speciation_time(1.0, 1e-30))
    check_speciation(speciation_time(OU, np.array([[1.0], [-1.0]]), start=0.05, horizon=3.0), expected)
    with pytest.raises(AssertionError):
        check_speciation(speciation_time(OU, np.array([[1.1], [-1.1]]), start=0.05, horizon=3.0), expected)


@pytest.mark.slow
def test_speciation_of_a_bare_score_is_that_of_its_data():
    score = MixtureScore(OU, pair([1.0], 0.4))
    found = speciation_time(OU, lambda t, x: score(t, x), centre=ORIGIN, horizon=3.0)
    check_speciation(found, SPECIATION[1.0, 0.4])


def test_unequal_classes_leave_the_stationary_point_from_the_noise_stable():
    unequal = GaussianMixture([1.0, 1.2], [[1.0], [-1.0]], [0.4, 0.4])
    followed = speciation_time(OU, unequal, horizon=3.0)
    assert followed.verdict == "unbroken"
    assert float(followed.gradient) < 100 * rounding()
    # It ends in the heavier class. At the mean of the data there is a change of sign, away from any stationary point.
    assert float(followed.point[0]) < -0.9
    fixed = speciation_time(OU, unequal, centre=unequal.moments().mean, horizon=3.0)
    assert fixed.verdict == "broken"
    assert float(fixed.gradient) > 0.01


def test_speciation_of_a_covariance_is_half_its_logarithm():
    wide = Gaussian([0.5, 0.0], [[9.0, 0.0], [0.0, 2.0]])
    found = speciation_time_of_covariance(OU, wide, horizon=3.0)
    check_speciation(found, 0.5 * np.log(9.0))
    assert np.allclose(found.direction, [1.0, 0.0], atol=1e-6)
    check_speciation(speciation_time_of_covariance(OU, Gaussian([0.0], 0.9), horizon=3.0), -1.0)
    # Far classes: the closed form is later by ln(2)/2, the part of the confinement in the potential.
    far = float(symmetric_mixture_speciation_time(100.0, 1.0) - 0.5 * jnp.log(number(1e4)))
    assert far == pytest.approx(0.5 * np.log(2), rel=10 * rounding())


@pytest.mark.slow
def test_speciation_of_an_array_takes_its_own_covariance(key):
    data = Gaussian([0.5, 0.0], [[9.0, 0.0], [0.0, 2.0]]).sample(200, key=key)
    found = speciation_time_of_covariance(OU, data, horizon=3.0)
    variances, directions = np.linalg.eigh(np.cov(np.asarray(data, float).T))
    check_speciation(found, 0.5 * np.log(variances[-1]))
    assert abs(np.dot(directions[:, -1], found.direction)) == pytest.approx(1.0, abs=TIGHT)


@pytest.mark.slow
def test_speciation_of_a_covariance_is_at_the_same_ratio_of_signal_to_noise_in_any_process():
    wide, rule = Gaussian([0.0], 9.0), -np.log(8.0)
    clock, exploding = LogSnrLinear(9.0, -9.0), VarianceExploding()
    assert float(clock.log_snr(speciation_time_of_covariance(clock, wide).time)) == pytest.approx(rule, abs=100 * TIGHT)
    noise = exploding.variance(speciation_time_of_covariance(exploding, wide).time)
    assert -float(jnp.log(noise)) == pytest.approx(rule, abs=100 * TIGHT)


# Phases.


def test_broad_components_are_unstable_before_half_ln_variance_less_one():
    found = instability_time(OU, pair([1.0], 2.5), horizon=3.0)
    assert found.unstable
    assert abs(float(found.time) - 0.202732554054) < TIGHT
    assert not instability_time(OU, pair([1.0], 1.9), horizon=3.0).unstable
    with pytest.raises(ValueError, match="`horizon` must be a time at which the potential is bounded below"):
        instability_time(OU, pair([1.0], 2.5), horizon=0.1)


@pytest.mark.slow
def test_the_broadest_direction_decides_stability():
    # The broadest direction of the broadest component decides.
    skewed = Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 2.0]])
    broadest = np.linalg.eigvalsh([[1.0, 0.9], [0.9, 2.0]])[-1]
    assert abs(float(instability_time(OU, skewed, horizon=3.0).time) - 0.5 * np.log(broadest - 1)) < TIGHT


def test_phases_change_at_the_closed_form_boundaries():
    broad = pair([1.0], 2.5)
    assert [phase_of(OU, broad, t) for t in (0.20, 0.21, 0.51, 0.52)] == ["unstable", "broken", "broken", "unbroken"]
    variances, ts = np.array([0.3, 1.0, 1.9, 2.5, 4.0]), np.linspace(0.01, 1.2, 23)
    diagram = np.asarray(phase_diagram(OU, lambda s2: pair([1.0], s2), variances, ts))
    unstable = ts[None] < 0.5 * np.log(np.maximum(variances - 1, 1e-3))[:, None]
    broken = ts[None] < np.array([float(symmetric_mixture_speciation_time(1.0, s2)) for s2 in variances])[:, None]
    assert np.array_equal(diagram, np.where(unstable, 2, np.where(broken, 1, 0)))
    # Without confinement nothing is unstable.
    assert phase_of(VarianceExploding(), pair([1.0], 50.0), 0.01) == "unbroken"


# At the border.


def test_bad_input_is_refused_in_one_grammar(key):
    gaussian, mixture = Gaussian([0.0], 1.0), pair([1.0], 0.4)
    refused = {
        "`t` must be one time": lambda: reverse_potential(OU, mixture, np.array([0.1, 0.2]), ORIGIN),
        "`x` must have shape": lambda: curvature(OU, mixture, 0.1, 0.0),
        "`t` must be a time at which the process has noise": lambda: posterior_free_energy(OU, mixture, 0.0, ORIGIN),
        "`horizon` must be so late that": lambda: speciation_time(OU, mixture, horizon=0.1),
        "`start` must be a time at which the score": lambda: speciation_time(OU, np.array([[1.0], [-1.0]]), horizon=3.0),
        "`horizon` must be later than": lambda: speciation_time(OU, mixture, start=2.0),
        "`centre` must be given": lambda: speciation_time(OU, lambda t, x: -x),
        "`levels` must be at least 2": lambda: speciation_time(OU, mixture, levels=1),
        "`data` must have one dimension": lambda: reverse_free_energy_quadrature(OU, SKEW, 0.1),
        "`n` must be above one": lambda: collapse_time(OU, mixture, 1, key=key),
        "`horizon` must be after the collapse": lambda: collapse_time_of_gaussian(OU, gaussian, 2, horizon=0.01),
        "`points` must be at least two": lambda: collapse_time_of_points(OU, ORIGIN[None], key=key),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="`data` must be a Gaussian"):
        collapse_time_of_gaussian(OU, mixture, 10)
    with pytest.raises(TypeError, match="`data` must be a Gaussian, a mixture of Gaussians or points"):
        reverse_potential(OU, "data", 0.1, ORIGIN)


@needs_x64
@pytest.mark.slow
def test_speciation_is_found_inside_compiled_code():
    found = eqx.filter_jit(lambda m: landscape.speciation_time(OU, pair(m, 0.4), horizon=3.0).time)(jnp.array([1.0]))
    assert abs(float(found) - SPECIATION[1.0, 0.4]) < TIGHT
