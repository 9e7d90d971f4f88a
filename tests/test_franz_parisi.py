"""The Franz-Parisi potential, the coupled free energy and its Legendre transform, against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import chi

from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.estimators import Estimate
from thermojax.generative.landscape import coupled_free_energy, franz_parisi, franz_parisi_quadrature, legendre_potential

OU = OrnsteinUhlenbeck()
X64 = jax.config.jax_enable_x64
PAIR = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.1, 0.1])
# V(q, t) of these data. Exact: quadrature, for the likelihood as it is, not normalised.
QS = np.array([0.01, 0.1, 1.0, 4.0])
TABLE = {
    0.42: [-0.841507148643, 0.44734881485, 4.35770749863, 4.35581893961],
    0.015: [-0.81313521473, 1.33467465845, 17.3069841435, 65.8404003773],
    0.01: [-0.7901297578, 1.89208583683, 24.6621715756, 97.6625975539],
}


def entries(estimates):
    """The estimates in an `Estimate` of arrays, one by one."""
    return [Estimate(*(None if a is None else a[i] for a in estimates)) for i in range(estimates.value.shape[0])]


def check_estimates(found, expected):
    for one, value in zip(entries(found), np.asarray(expected), strict=True):
        assert_estimate(one, value)


# One dimension.


def check_table(found, t):
    assert np.allclose(found, TABLE[t], rtol=0, atol=1e-8)


@needs_x64
def test_quadrature_agrees_with_known_potentials():
    for t in TABLE:
        value = franz_parisi_quadrature(OU, PAIR, QS, t).value
        check_table(value, t)
        wrong = {
            "q is a distance": franz_parisi_quadrature(OU, PAIR, QS**2, t).value,
            "no Jacobian": value - np.log(2 * np.sqrt(QS)),
            "one neighbour": value + np.log(2),
            "likelihood normalised": value + 0.5 * np.log(-2 * np.pi * np.expm1(-2 * t)),
        }
        for law in wrong.values():
            with pytest.raises(AssertionError):
                check_table(law, t)


@needs_x64
def test_slope_and_curvature_are_derivatives_by_the_squared_distance():
    qs, h = np.array([0.1, 1.0, 2.0, 4.0]), 1e-5
    at = lambda shift: franz_parisi_quadrature(OU, PAIR, qs + shift, 0.42)
    found, above, below = at(0.0), at(h), at(-h)
    assert np.allclose(found.slope, (above.value - below.value) / (2 * h), rtol=1e-4)
    assert np.allclose(found.curvature, (above.slope - below.slope) / (2 * h), rtol=1e-4)
    # Beyond the barrier it falls: the other class.
    assert found.slope[2] < 0 < found.slope[1]
    with pytest.raises(AssertionError):
        assert np.allclose(found.slope, (above.value - found.value) / (h * 2 * np.sqrt(qs)), rtol=1e-4)


@pytest.mark.slow
def test_monte_carlo_agrees_with_quadrature_in_one_dimension(key):
    found, exact = franz_parisi(OU, PAIR, QS, 0.42, samples=4000, key=key), franz_parisi_quadrature(OU, PAIR, QS, 0.42)
    check_estimates(found.value, exact.value)
    check_estimates(found.slope, exact.slope)
    with pytest.raises(AssertionError):
        check_estimates(found.value, franz_parisi_quadrature(OU, PAIR, QS, 0.5).value)


# More dimensions.


TIME, VARIANCE = 0.5, 0.6
STRENGTH = np.exp(-2 * TIME) / -np.expm1(-2 * TIME)


def gaussian_potential(q, dim):
    """V(q) of Gaussian data: the integral over the sphere is a Bessel function of a strength that is chi-distributed."""
    scale = np.sqrt(q * (STRENGTH + 1 / VARIANCE))
    order = dim / 2 - 1
    log_sphere = lambda k: dim / 2 * np.log(2 * np.pi) + np.log(ive(order, k)) + k - order * np.log(k)
    middle = np.sqrt(dim)
    spread = (max(1e-12, middle - 9), middle + 10)
    sphere = quad(lambda r: chi.pdf(r, dim) * log_sphere(scale * r), *spread, epsabs=1e-11, limit=400, points=[middle])[0]
    prior = -dim / 2 * np.log(2 * np.pi * VARIANCE) - dim / 2 - q / (2 * VARIANCE)
    return dim / 2 + STRENGTH * q / 2 - order * np.log(q) + np.log(2) - prior - sphere


def isotropic(dim):
    return Gaussian(np.full(dim, 0.3), VARIANCE)


SHARES = np.array([0.3, 1.0, 3.0])


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16, 64])
def test_potential_of_gaussian_data_is_an_average_of_bessel_functions(key, dim):
    qs = dim * SHARES
    expected = [gaussian_potential(q, dim) for q in qs]
    found = franz_parisi(OU, isotropic(dim), qs, TIME, samples=2000, key=key).value
    check_estimates(found, expected)
    # The check can fail: a degree of freedom less.
    fewer = [gaussian_potential(q, dim - 1) for q in qs]
    with pytest.raises(AssertionError):
        check_estimates(found, fewer)


def spelled_out(data, form):
    """The same mixture of isotropic components with its covariances in longer form."""
    dim = data.means.shape[1]
    covariances = data.covariances[:, None] * jnp.ones((1, dim))
    if form == "matrices":
        covariances = covariances[:, :, None] * jnp.eye(dim)[None]
    return GaussianMixture(data.weights, data.means, covariances)


def mixture(dim):
    rng = np.random.default_rng(dim)
    return GaussianMixture([1.0, 0.5, 0.8], rng.normal(size=(3, dim)), [0.4, 0.1, 0.9])


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "form"), [(1, "vectors"), (16, "matrices")])
def test_the_polar_angle_and_the_complex_field_give_the_same_integral(key, dim, form):
    data, qs = mixture(dim), dim * np.array([1e-3, 0.3, 3.0, 20.0])
    polar = franz_parisi(OU, data, qs, TIME, samples=64, key=key)
    laplace = franz_parisi(OU, spelled_out(data, form), qs, TIME, samples=64, key=key)
    alike = lambda a, b: np.allclose(a, b, rtol=1e-8 if X64 else 1e-3, atol=1e-8 if X64 else 1e-3)
    assert alike(polar.value.value, laplace.value.value)
    assert alike(polar.slope.value, laplace.slope.value)
    with pytest.raises(AssertionError):
        assert alike(polar.value.value, laplace.value.value + np.log(2))


TILTED = GaussianMixture([1.0, 2.0], [[0.5, -1.0], [2.0, 1.0]], [[[1.0, 0.3], [0.3, 0.2]], [[0.1, 0.0], [0.0, 2.0]]])


def circle_potential(q, n, rng):
    """V(q) of two-dimensional data with any covariances by sums over circles, and its error: NumPy throughout."""
    means, covariances = np.asarray(TILTED.means, float), np.asarray(TILTED.covariances, float)
    picks = rng.choice(2, n, p=[1 / 3, 2 / 3])
    factors = np.linalg.cholesky(covariances)
    references = means[picks] + np.einsum("nij,nj->ni", factors[picks], rng.normal(size=(n, 2)))
    pulls = np.sqrt(STRENGTH) * rng.normal(size=(n, 2))
    angles = np.linspace(0, 2 * np.pi, 257)[:-1]
    steps = np.sqrt(q) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    density = np.zeros((n, 256))
    for weight, m, c in zip([1 / 3, 2 / 3], means, covariances, strict=True):
        away = references[:, None] + steps[None] - m
        density += weight * np.exp(-0.5 * np.einsum("nai,ij,naj->na", away, np.linalg.inv(c), away)) / np.sqrt(np.linalg.det(2 * np.pi * c))
    values = -np.log(np.pi * np.mean(density * np.exp(pulls @ steps.T), axis=1)) + 1.0 + STRENGTH * q / 2
    return values.mean(), values.std() / np.sqrt(n)


@pytest.mark.slow
def test_potential_of_tilted_components_agrees_with_sums_over_circles(key):
    qs = np.array([0.1, 1.0, 4.0])
    found = franz_parisi(OU, TILTED, qs, TIME, samples=1000, key=key).value
    rng = np.random.default_rng(1)
    for q, one in zip(qs, entries(found), strict=True):
        value, error = circle_potential(q, 5000, rng)
        assert_estimate(one._replace(stderr=jnp.hypot(one.stderr, error)), value)
        with pytest.raises(AssertionError):
            assert_estimate(one, value + np.log(2))


# The coupling, and the Legendre transform.


def coupled_gaussian(field, dim):
    """The coupled free energy of Gaussian data, its slope, and minus its curvature."""
    growth = 1 + (STRENGTH + 2 * field) * VARIANCE
    free = dim / 2 * (1 + np.log(growth) + 2 * field * VARIANCE / growth)
    distance = dim * VARIANCE * (growth + 1 + STRENGTH * VARIANCE) / growth**2
    return free, distance, 2 * dim * VARIANCE**2 * (growth + 2 * (1 + STRENGTH * VARIANCE)) / growth**3


def test_coupled_free_energy_of_gaussian_data_agrees_with_the_closed_form(key):
    fields = np.array([-0.4, 0.0, 1.0, 5.0])
    found = coupled_free_energy(OU, isotropic(3), fields, TIME, samples=4000, key=key)
    free, distance, variance = coupled_gaussian(fields, 3)
    # Without a field the free energy is that of the posterior.
    assert free[1] == pytest.approx(1.5 * (1 + np.log(1 + STRENGTH * VARIANCE)))
    check_estimates(found.squared_distance, distance)
    check_estimates(found.susceptibility, variance)
    check_estimates(found.free_energy, free)
    wrong = {"sign of the field": coupled_gaussian(-0.4 * np.ones(4), 3)[0], "a dimension less": coupled_gaussian(fields, 2)[0]}
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_estimates(found.free_energy, law)


LEGENDRE_QS = np.array([0.1, 0.5, 1.5, 3.0, 5.0])


def check_maximum(value, others):
    assert np.all(np.asarray(value)[:, None] >= others - rounding(steps=1000))


def check_convex(qs, values):
    assert np.all(np.diff(np.diff(values) / np.diff(qs)) > 0)


def check_legendre(data, qs, trials, samples, key):
    """The transform is the largest of its trials, convex, and its field holds the distance that was asked for."""
    found = legendre_potential(OU, data, qs, TIME, samples=samples, key=key)
    value = np.asarray(found.value.value)
    # The same key is the same samples: their free energy at other fields, and what these would give.
    others = coupled_free_energy(OU, data, trials, TIME, samples=samples, key=key).free_energy.value
    others = np.asarray(others)[None] - np.outer(qs, trials)
    check_maximum(value, others)
    check_convex(qs, value)
    # Not a minimum, and of a convex function.
    with pytest.raises(AssertionError):
        check_maximum(-value, -others)
    with pytest.raises(AssertionError):
        check_convex(qs, -value)
    again = coupled_free_energy(OU, data, found.field.value, TIME, samples=samples, key=key)
    assert np.allclose(again.squared_distance.value, qs, rtol=1e-6 if X64 else 1e-3)
    return found


def test_legendre_transform_is_a_maximum_over_the_field_and_convex(key):
    fields = np.array([-0.4, 0.0, 1.0, 5.0])
    free, distances, _ = coupled_gaussian(fields[::-1], 3)
    found = check_legendre(isotropic(3), distances, fields, 4000, key)
    check_estimates(found.value, free - fields[::-1] * distances)
    check_estimates(found.field, fields[::-1])
    with pytest.raises(AssertionError):
        check_estimates(found.field, -fields[::-1])


@pytest.mark.slow
def test_legendre_transform_of_two_classes_is_convex_over_the_barrier(key):
    check_legendre(PAIR, LEGENDRE_QS, np.array([-1.5, -0.3, 0.2, 1.0, 10.0]), 2000, key)


@pytest.mark.slow
def test_the_mean_of_the_potential_over_any_interval_of_length_one_bounds_the_legendre_transform(key):
    found = legendre_potential(OU, PAIR, LEGENDRE_QS[1:], 0.42, key=key).value
    # The potential has a barrier and is not convex.
    qs = np.linspace(0.05, 5.5, 110)
    potential = np.asarray(franz_parisi_quadrature(OU, PAIR, qs, 0.42, nodes=401).value)
    with pytest.raises(AssertionError):
        check_convex(qs, potential)
    for q, one in zip(LEGENDRE_QS[1:], entries(found), strict=True):
        inside = q - 0.5 + (np.arange(50) + 0.5) / 50
        window = np.asarray(franz_parisi_quadrature(OU, PAIR, inside, 0.42, nodes=401).value)
        assert one.value - 4 * one.stderr < np.mean(window)
    # On the barrier the bound is far from the transform: it is the convex envelope that counts.
    assert np.interp(1.5, qs, potential) - float(found.value[1]) > 2.0


@needs_x64
@pytest.mark.slow
def test_slope_of_the_legendre_transform_is_minus_the_field(key):
    at = lambda shift: legendre_potential(OU, PAIR, LEGENDRE_QS + shift, 0.42, samples=1000, key=key)
    slopes = (at(1e-3).value.value - at(-1e-3).value.value) / (2e-3)
    fields = at(0.0).field.value
    assert np.allclose(slopes, -fields, rtol=1e-2, atol=1e-5)
    with pytest.raises(AssertionError):
        assert np.allclose(slopes, fields, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_legendre_transform_and_potential_agree_per_degree_of_freedom_in_high_dimension(key):
    def gap(dim):
        """V - V_L of Gaussian data at the squared distance 1 per degree of freedom, and its error."""
        found = legendre_potential(OU, isotropic(dim), np.array([1.0 * dim]), TIME, key=key)
        difference = gaussian_potential(1.0 * dim, dim) - float(found.value.value[0])
        return difference / dim, float(found.value.stderr[0]) / dim

    gaps = [gap(dim) for dim in (4, 16, 64)]
    for (value, error), (later, later_error) in zip(gaps, gaps[1:], strict=False):
        # Positive, and falling nearly as the inverse of the dimension: by half or more.
        assert later > -4 * later_error
        assert later < value / 2 + 4 * np.hypot(error, later_error)


def test_bad_input_is_refused_in_one_grammar(key):
    refused = {
        "`qs` must be positive": lambda: franz_parisi(OU, PAIR, np.array([0.0, 1.0]), 0.1, key=key),
        "`qs` must be a vector": lambda: legendre_potential(OU, PAIR, 1.0, 0.1, key=key),
        "`t` must be a time at which the process has noise": lambda: franz_parisi_quadrature(OU, PAIR, QS, 0.0),
        "`data` must have one dimension": lambda: franz_parisi_quadrature(OU, isotropic(2), QS, 0.1),
        "`fields` must leave the integral": lambda: coupled_free_energy(OU, PAIR, np.array([-100.0]), 0.1, key=key),
        "`samples` must be at least 2": lambda: franz_parisi(OU, PAIR, QS, 0.1, samples=1, key=key),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
