"""Entropy production of noising and of generation: rates against quadrature, fluctuation theorems in both directions."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from scipy.optimize import brentq, minimize_scalar
from systems import Scaled

from thermojax import EulerMaruyama, exponential_mean, mean
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import LogSnrLinear, OrnsteinUhlenbeck, Reversed, VarianceExploding, VariancePreserving
from thermojax.ensemble import Step
from thermojax.fokker_planck import evolve, Grid, thermodynamics
from thermojax.functionals import log_ratio, medium_entropy_stratonovich
from thermojax.generative import entropy_rates, MixtureScore, path_entropies
from thermojax.steppers import log_density

OU, X64 = OrnsteinUhlenbeck(), jax.config.jax_enable_x64
# Equal weights at +-1; variance 0.4, and 1, which the noising does not change.
DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
EVEN = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [1.0, 1.0])
# Asymmetric: a symmetric density cannot see every sign.
THREE = GaussianMixture([1.0, 0.5], [[1.0], [-1.0]], [0.4, 0.2])
PROCESSES = {
    "Ornstein-Uhlenbeck": OrnsteinUhlenbeck(1.7, 0.6),
    "variance preserving": VariancePreserving(0.2, 5.0),
    "linear log-SNR": LogSnrLinear(4.0, -3.0),
    "variance exploding": VarianceExploding(0.1, 3.0),
}


def number(t):
    return jnp.asarray(t, float)


# Rates.


# Exact, quadrature: times, production, flux, flux of the reversal, rate of the system, entropy.
TIMES = np.array([0.0, 0.1, 0.5, 1.0, 3.0])
TABLE = {
    "production": [0.84504359326629, 0.35225868974783, 0.02801363733624, 0.0029657497189952, 9.8212526733e-07],
    "flux": [0.4, 0.32749230123119, 0.14715177646858, 0.054134113294645, 0.00099150087067],
    "reverse_flux": [1.2900871865326, 0.37702507826447, -0.091124501796096, -0.048202613856655, -0.00098953662013],
    "system": [0.44504359326629, 0.024766388516641, -0.11913813913234, -0.05116836357565, -0.00099051874540],
    "entropy": [1.5103975051179, 1.5298073269069, 1.4864148744733, 1.4452744863496, 1.4194340380307],
}


# Gauss-Legendre nodes on (-1, 1), and times that the next two tests ask for in one go.
PLACES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def rates(data, horizon):
    """Rates at the times of the table, and at the nodes of a quadrature until `horizon` and its two ends."""
    nodes = 0.5 * horizon * (PLACES + 1.0)
    found = entropy_rates(OU, data, np.concatenate([TIMES, nodes, np.array([0.0, horizon])]))
    take = lambda part: jax.tree.map(lambda a: a[part], found)
    return take(slice(5)), take(slice(5, -2)), take(slice(-2, None))


def check_table(found):
    for name, expected in TABLE.items():
        assert np.allclose(getattr(found, name), expected, rtol=0, atol=1e-12 if X64 else 3e-6), name


def test_entropy_rates_agree_with_quadrature():
    found, _, _ = rates(DATA, 3.0)
    check_table(found)
    assert jnp.all(found.production_errors == 0)
    assert jnp.all(found.entropy_errors == 0)
    wrong = {
        "flux of the reversal with the sign of the literature": found._replace(reverse_flux=found.flux - 2 * found.production),
        "flux out of the medium": found._replace(flux=-found.flux),
        "time of the reversal": found._replace(system=-found.system),
        "narrower data": rates(GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.39, 0.39]), 3.0)[0],
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_table(law)


def check_integrals(data, horizon, produced):
    _, found, ends = rates(data, horizon)
    integral = lambda rate: 0.5 * horizon * (WEIGHTS @ np.asarray(rate))
    assert integral(found.production) == pytest.approx(produced, rel=1e-11 if X64 else 1e-5)
    assert integral(found.system) == pytest.approx(float(ends.entropy[1] - ends.entropy[0]), rel=1e-11 if X64 else 1e-4)


def test_entropy_production_adds_up_to_the_divergences_of_both_ends():
    # Exact, quadrature: until t = 3 for the narrow components, until t = 10 for the wide ones.
    check_integrals(DATA, 3.0, 0.10854078247743)
    check_integrals(EVEN, 10.0, 0.16316917965317)
    with pytest.raises(AssertionError):
        check_integrals(EVEN, 1.0, 0.16316917965317)


@pytest.mark.slow
@needs_x64
def test_where_the_rates_vanish_and_where_they_are_least():
    at = lambda name: lambda t: float(getattr(entropy_rates(OU, DATA, t), name))
    for name, low, zero, lowest, least in (
        ("system", 0.05, 0.1121428031, 0.3373346554, -0.1352193671),
        ("reverse_flux", 0.1, 0.2444680966, 0.4931107746, -0.0911517771),
    ):
        assert brentq(at(name), low, 0.3, xtol=1e-13) == pytest.approx(zero, abs=1e-9)
        found = minimize_scalar(at(name), bounds=(0.2, 0.7), method="bounded", options={"xatol": 1e-8})
        assert found.x == pytest.approx(lowest, abs=1e-7)
        assert found.fun == pytest.approx(least, abs=1e-9)


def closed_form(noising, data, t):
    """Entropy production of a Gaussian: what its mean and its covariance cost to move."""
    now, diffusion = noising.marginal(data, t), 0.5 * noising.noise(t) ** 2
    dim = now.mean.shape[0]
    covariance = now.covariance if now.covariance.ndim == 2 else jnp.diag(jnp.broadcast_to(now.covariance, (dim,)))
    rate = -noising.drift(t, jnp.ones(dim))[0]
    slope = diffusion * jnp.linalg.inv(covariance) - rate * jnp.eye(dim)
    return (rate**2 * jnp.sum(now.mean**2) + jnp.trace(slope @ slope @ covariance)) / diffusion


@pytest.mark.slow
@pytest.mark.parametrize("noising", PROCESSES.values(), ids=PROCESSES)
def test_rates_of_gaussian_data_are_the_closed_form(noising):
    data, ts = Gaussian([0.7], 0.5), jnp.array([0.1, 0.4, 0.9])
    found = entropy_rates(noising, data, ts)
    tolerance = 1e-10 if X64 else 1e-4
    assert np.allclose(found.production, jax.vmap(ft.partial(closed_form, noising, data))(ts), rtol=tolerance)
    assert np.allclose(found.entropy, jax.vmap(lambda t: noising.marginal(data, t).entropy())(ts), rtol=tolerance)
    assert not np.allclose(found.production, jax.vmap(lambda t: closed_form(noising, Gaussian([0.7], 0.4), t))(ts), rtol=tolerance)


def check_near(values, errors, expected):
    assert np.all(np.asarray(errors) > 0), "an error bar of zero tests nothing"
    assert np.all(np.abs(np.asarray(values) - np.asarray(expected)) < 4 * np.asarray(errors)), f"{values} ± {errors} is not {expected}"


COVARIANCES = {"axes": [0.5, 0.4, 0.9], "matrix": [[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.9]]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVARIANCES)
def test_samples_agree_with_the_closed_form_in_three_dimensions(key, kind):
    data = Gaussian([0.7, -0.3, 0.2], COVARIANCES[kind])
    noising, ts = PROCESSES["variance preserving"], jnp.array([0.1, 0.4, 0.9])
    found = entropy_rates(noising, data, ts, samples=2000, key=key)
    expected = jax.vmap(ft.partial(closed_form, noising, data))(ts)
    check_near(found.production, found.production_errors, expected)
    entropies = jax.vmap(lambda t: noising.marginal(data, t).entropy())(ts)
    check_near(found.entropy, found.entropy_errors, entropies)
    # Second moments are all that the flux needs: what is left is the derivative of the entropy.
    slopes = jax.vmap(jax.grad(lambda t: noising.marginal(data, t).entropy()))(ts)
    assert np.allclose(found.flux, expected - slopes, rtol=1e-9 if X64 else 1e-3)
    for wrong in (2.0 * expected, -expected, expected - found.flux):
        with pytest.raises(AssertionError):
            check_near(found.production, found.production_errors, wrong)


@pytest.mark.slow
def test_samples_agree_with_quadrature(key):
    exact, found = entropy_rates(OU, DATA, TIMES), entropy_rates(OU, DATA, TIMES, samples=20_000, key=key)
    for scale, name in ((1.0, "production"), (1.0, "system"), (2.0, "reverse_flux")):
        check_near(getattr(found, name), scale * found.production_errors, getattr(exact, name))
    check_near(found.entropy, found.entropy_errors, exact.entropy)
    assert jnp.all(found.flux == exact.flux)


# The Fokker-Planck equation, which knows neither the score nor the marginals.


def gaps(cells):
    """Differences between a density on a grid, evolved until t = 0.5 and back, and the exact rates."""
    grid, ts = Grid(-7.0, 7.0, cells), jnp.linspace(0.0, 0.5, cells // 4 + 1)
    late = ts[-1]
    exact = entropy_rates(OU, THREE, late)
    there = thermodynamics(OU, evolve(OU, THREE, grid, ts, tolerance=1e-5).densities[-1], grid, late)
    back = Reversed(OU, MixtureScore(OU, THREE), 1.0)
    again = thermodynamics(back, evolve(back, OU.marginal(THREE, number(1.0)), grid, ts, tolerance=1e-5).densities[-1], grid, late)
    return {
        "production": there.entropy_production - exact.production,
        "flux": there.entropy_flux - exact.flux,
        "system": there.entropy_rate - exact.system,
        "entropy": there.entropy - exact.entropy,
        "production of the reversal": again.entropy_production - exact.production,
        "flux of the reversal": again.entropy_flux - exact.reverse_flux,
        "system of the reversal": again.entropy_rate + exact.system,
        "current of the reversal": jnp.max(jnp.abs(there.current[0] + again.current[0])),
    }


@pytest.mark.slow
@needs_x64
def test_rates_are_those_of_the_evolved_density_at_second_order():
    sizes = (192, 384)
    found = [gaps(cells) for cells in sizes]
    for name in found[0]:
        assert_order([abs(float(gap[name])) for gap in found], [1 / cells for cells in sizes], 2, band=0.2)
        assert abs(float(found[-1][name])) < 2e-4
    # The check can fail: the reversal does not have the flux of the noising.
    assert abs(float(found[-1]["flux of the reversal"] + 2 * entropy_rates(OU, THREE, 0.5).system)) > 0.1


# Paths.


PATHS = 20_000


def check_theorem(found):
    assert found.trustworthy
    assert_estimate(found, 1.0)


# Exact, quadrature: mean, variance, variance of the exponential. The share of the paths on which entropy is destroyed is Phi(x - 1) -
# Phi(-x - 1) with cosh x = sqrt(e), but for what is left of the data after t = 10.
PRODUCED, SPREAD, EXPONENTIAL_SPREAD, NEGATIVE = 0.1631691797, 0.4177466267, 0.222138176, 0.5153513063


def check_statistics(totals):
    check_theorem(exponential_mean(totals))
    weights = jnp.exp(-totals)
    expected = {
        PRODUCED: totals,
        SPREAD: (totals - jnp.mean(totals)) ** 2,
        EXPONENTIAL_SPREAD: (weights - jnp.mean(weights)) ** 2,
        NEGATIVE: jnp.where(totals < 0, 1.0, 0.0).astype(totals.dtype),
    }
    for value, values in expected.items():
        assert_estimate(mean(values), value)


def telescoped(found):
    return 0.5 * (found.x0s**2 - found.x1s**2)[:, 0]


@pytest.mark.slow
def test_total_entropy_of_the_noising_has_the_exact_statistics(key):
    found = path_entropies(OU, EVEN, PATHS, jnp.linspace(0.0, 10.0, 3), key=key)
    check_statistics(found.total)
    check_theorem(found.theorem)
    assert jnp.array_equal(found.total, found.system + found.medium)
    # Exact steps: kernels and midpoints both telescope.
    assert np.allclose(found.medium, telescoped(found), atol=rounding(10.0, 10))
    assert np.allclose(found.midpoint_medium, found.medium, atol=rounding(10.0, 10))
    wrong = {
        "the system alone": found.system,
        "heat out of the medium": found.system - found.medium,
        "the exponential turned": -found.total,
        "entropy in the middle of a step": found.total + 0.02,
    }
    for totals in wrong.values():
        with pytest.raises(AssertionError):
            check_statistics(totals)


@pytest.mark.slow
def test_midpoint_sum_of_the_noising_telescopes_even_for_coarse_euler_steps(key):
    found = path_entropies(OU, EVEN, PATHS, jnp.linspace(0.0, 10.0, 41), stepper=EulerMaruyama(), key=key)
    assert np.allclose(found.midpoint_medium, telescoped(found), atol=rounding(10.0, 40))
    assert not np.allclose(found.medium, telescoped(found), atol=0.01), "the kernels of Euler know their own step"


def octet(dim):
    """Eight components with means and variances of their own, that produce entropy of order one in any dimension."""
    rng, scale = np.random.default_rng(dim), np.sqrt(2.0 / dim)
    weights, means, spreads = rng.uniform(0.5, 1.5, 8), rng.normal(size=(8, dim)), rng.uniform(-1.0, 1.0, (8, dim))
    return GaussianMixture(weights, 0.4 * scale * means, 1.0 + 0.2 * scale * spreads)


def check_theorem_of_paths(dim, direction, key, *, n):
    ts = jnp.array([0.0, 0.1, 0.25, 0.5]) * (2.0 / dim) ** 0.25
    found = path_entropies(OU, octet(dim), n, ts, direction=direction, stepper=EulerMaruyama(), key=key)
    check_theorem(found.theorem)
    for wrong in (found.system, found.medium, found.system - found.medium):
        with pytest.raises(AssertionError):
            check_theorem(exponential_mean(wrong))


def test_fluctuation_theorem_holds_for_generation_at_three_coarse_steps(key):
    check_theorem_of_paths(2, "reverse", key, n=PATHS)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dim", [2, 16, 256])
def test_fluctuation_theorem_holds_both_ways_in_many_dimensions(key, dim, direction):
    check_theorem_of_paths(dim, direction, key, n=4000)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_mean_total_entropy_is_the_integral_of_the_production_in_many_dimensions(key, direction):
    path_key, rate_key = jr.split(key)
    data = octet(16)
    places, weights = np.polynomial.legendre.leggauss(12)
    rates = entropy_rates(OU, data, 0.75 * (places + 1.0), samples=4000, key=rate_key)
    produced = 0.75 * (weights @ np.asarray(rates.production))
    error = 0.75 * np.sqrt(weights**2 @ np.asarray(rates.production_errors) ** 2)
    # Exact steps do not discretise; the reversal is extrapolated from two step sizes.
    run = lambda steps, k: path_entropies(OU, data, 4000, jnp.linspace(0.0, 1.5, steps + 1), direction=direction, key=k)
    if direction == "forward":
        total = mean(run(4, path_key).total)
    else:
        coarse, fine = (mean(run(steps, k).total) for steps, k in zip((20, 40), jr.split(path_key), strict=True))
        total = fine._replace(value=2 * fine.value - coarse.value, stderr=jnp.hypot(2 * fine.stderr, coarse.stderr))
    assert_estimate(total._replace(stderr=jnp.hypot(total.stderr, error)), produced)


@pytest.mark.slow
def test_theorem_holds_for_a_wrong_score_at_coarse_steps(key):
    # The kernels' ratio asks for no particular score: it is a ratio of what the sampler does to its own reversal.
    wrong = Scaled(MixtureScore(OU, EVEN), number(1.2))
    found = path_entropies(OU, EVEN, PATHS, jnp.linspace(0.0, 1.0, 6), direction="reverse", score=wrong, key=key)
    check_theorem(found.theorem)
    with pytest.raises(AssertionError):
        check_theorem(exponential_mean(found.medium))


@pytest.mark.slow
def test_an_average_of_infinite_variance_warns_though_no_sample_shows_it(key):
    # Exact: the second moment of the noising to N(0, 1) is infinite for components narrower than 1/2.
    for variance, finite in ((0.4, False), (0.49, False), (0.51, True), (1.0, True)):
        data = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [variance, variance])
        found = path_entropies(OU, data, PATHS, jnp.linspace(0.0, 10.0, 3), key=key)
        assert exponential_mean(found.total).trustworthy
        assert found.theorem.trustworthy == finite
        assert_estimate(found.theorem, 1.0)
    # A wide component covers a narrow one.
    covered = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 1.0])
    assert path_entropies(OU, covered, PATHS, jnp.linspace(0.0, 10.0, 3), key=key).theorem.trustworthy


@pytest.mark.slow
@needs_x64
def test_second_moment_of_the_reversal_exists_where_the_propagated_one_converges():
    # Of e^{-2s}, by kernels on wider and wider grids: it settles for components of variance 0.4, and grows without end for 3.
    doubled = lambda step: 2.0 * log_ratio(step)
    for variance, exists in ((0.4, True), (3.0, False)):
        data = Gaussian([0.0], variance)
        near, far = (propagated(200, doubled, data=data, horizon=2.0, reach=reach, power=2)[0] for reach in (10.0, 16.0))
        assert (abs(far / near - 1.0) < 1e-6) == exists
        found = path_entropies(OU, data, 4000, jnp.linspace(0.0, 2.0, 201), direction="reverse", key=jr.key(0))
        if exists:
            assert found.theorem.trustworthy
        else:
            assert not found.theorem.trustworthy


@pytest.mark.slow
def test_midpoint_totals_of_the_reversal_carry_the_bias_of_the_step(key):
    ts = jnp.linspace(0.0, 10.0, 1001)
    found = path_entropies(OU, EVEN, PATHS, ts, direction="reverse", stepper=EulerMaruyama(clock=0.0), key=key)
    check_theorem(found.theorem)
    assert_estimate(exponential_mean(found.midpoint_total), 1.00258623)
    assert_estimate(mean(found.midpoint_total), 0.15923785)


def propagated(steps, functional, *, data=EVEN, horizon=10.0, reach=8.0, power=1):
    """Mean of the total entropy of Euler's reversal, and of its exponential, without noise.

    The density, weighted and plain, goes through the kernels as through matrices; trapezoidal sums of Gaussians converge exponentially.
    """
    stepper, dynamics = EulerMaruyama(clock=0.0), Reversed(OU, MixtureScore(OU, data), horizon)
    spacing = min(0.1, 0.5 * np.sqrt(2.0 * horizon / steps))
    xs = jnp.asarray(spacing * np.arange(-np.ceil(reach / spacing), np.ceil(reach / spacing) + 1))[:, None]
    first, last = (jax.vmap(OU.marginal(data, number(t)).log_prob)(xs) for t in (horizon, 0.0))
    pairs = lambda function: jax.vmap(lambda x0: jax.vmap(lambda x1: function(x0, x1))(xs))(xs)

    def step(carry, times):
        weighted, plain, gained = carry
        t0, t1 = times
        logs = pairs(lambda x0, x1: log_density(stepper, dynamics, t0, t1, x0, x1))
        entropies = pairs(lambda x0, x1: functional(Step(stepper, dynamics, t0, t1, x0, x1)))
        kernel = spacing * jnp.exp(logs)
        gained = gained + plain @ jnp.sum(kernel * entropies, axis=1)
        return (weighted @ (spacing * jnp.exp(logs - entropies)), plain @ kernel, gained), None

    @jax.jit
    def run(ts):
        # The weight of the first configuration is the density over its own power.
        start = (jnp.exp((1 - power) * first), jnp.exp(first), jnp.zeros(()))
        (weighted, plain, gained), _ = jax.lax.scan(step, start, (ts[:-1], ts[1:]))
        system = jnp.exp(first) @ first - plain @ last
        return spacing * (weighted @ jnp.exp(power * last)), spacing * (system + gained)

    return tuple(float(a) for a in run(jnp.linspace(0.0, horizon, steps + 1)))


@pytest.mark.slow
@needs_x64
def test_bias_of_the_midpoint_rule_is_exact_and_the_kernels_have_none():
    assert propagated(1000, medium_entropy_stratonovich) == pytest.approx((1.00258623, 0.15923785), abs=1e-8)
    steps, excess = (250, 500), []
    for n in steps:
        exponential, produced = propagated(n, log_ratio)
        assert exponential == pytest.approx(1.0, abs=1e-10)
        excess.append(PRODUCED - produced)
    assert_order(excess, [1 / n for n in steps], 1)
    assert 0 < excess[-1] < 0.01


# The border.


WIDE = octet(2)
REFUSED = {
    "dimension": (lambda key: entropy_rates(OU, WIDE, 1.0), "`samples` must be given in 2 dimensions: quadrature is for one, got None."),
    "key": (lambda key: entropy_rates(OU, WIDE, 1.0, samples=9), "`key` must be given with `samples`, got None."),
    "samples": (lambda key: entropy_rates(OU, WIDE, 1.0, samples=1, key=key), "`samples` must be at least 2, got 1."),
    "direction": (
        lambda key: path_entropies(OU, DATA, 9, np.array([0.0, 1.0]), direction="up", key=key),
        "`direction` must be 'forward' or 'reverse', got 'up'.",
    ),
    "score": (
        lambda key: path_entropies(OU, DATA, 9, np.array([0.0, 1.0]), score=MixtureScore(OU, DATA), key=key),
        "`score` must be omitted for the noising, which has no score, got one.",
    ),
    "number": (lambda key: path_entropies(OU, DATA, 1, np.array([0.0, 1.0]), key=key), "`n` must be at least 2, got 1."),
    "times": (
        lambda key: path_entropies(OU, DATA, 9, np.array([1.0, 0.0]), key=key),
        "`ts` must increase strictly (every time step positive), got [1. 0.].",
    ),
    "noise": (
        lambda key: entropy_rates(VariancePreserving(), DATA, -1.0),
        "`ts` must be times at which the process has noise, got -1.0.",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(key, call, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        call(key)
    assert str(refusal.value) == message


def test_data_without_exact_marginals_are_refused(key):
    for call in (lambda data: entropy_rates(OU, data, 1.0), lambda data: path_entropies(OU, data, 9, np.array([0.0, 1.0]), key=key)):
        with pytest.raises(TypeError, match="data"):
            call(jnp.zeros((3, 1)))
