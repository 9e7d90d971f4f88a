"""Generative models against exact scores: likelihoods, bounds, entropy rates, samplers, the network and its training."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate, needs_x64, rounding
from diffrax import Heun
from jax.flatten_util import ravel_pytree
from scipy.integrate import quad
from systems import Scaled

from thermojax import accumulate, Diffrax, EulerMaruyama, ExactLinear, exponential_mean, fit, mean, path_log_ratio
from thermojax.distributions import AbstractDistribution, Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import LogSnrLinear, OrnsteinUhlenbeck, Reversed
from thermojax.functionals import BackwardRatio
from thermojax.generative import (
    Ancestral,
    Cells,
    data_to_score,
    denoising_rate,
    entropy_limits,
    flow_log_prob,
    Mixer,
    MixtureScore,
    noise_profile,
    path_bound,
    sample_ode,
    sample_sde,
    score_to_data,
    ScoreMatching,
    ScoreNetwork,
)

# Data N(+-1, 0.4) with equal weights under dx = -x dt + sqrt(2) dW until t = 3. All numbers: exact, quadrature.
DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
OU, HORIZON = OrnsteinUhlenbeck(), 3.0
ENTROPY, SECOND_MOMENT = 1.510397505118, 1.4
# The path KL of 0.9 s and of 1.1 s.
SCORE_ERROR = 0.0290903653
# The same process by a clock that gives all noise levels equal time: path KL and likelihood do not change.
CLOCK = LogSnrLinear(9.0, -np.log(np.expm1(2 * HORIZON)))
MODELS = {1.0: 1.5103977507, 0.9: 1.5829108493, 0.5: 2.5025562786}
estimate = jax.jit(mean)


def scaled(factor, noising=OU, data=DATA):
    return Scaled(MixtureScore(noising, data), jnp.asarray(factor, float))


def number(t):
    return jnp.asarray(t, float)


def close(found, expected, steps=1):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


# Likelihood by the flow.


XS = 1 + np.sqrt(0.4) * np.linspace(-8, 8, 129)
TIGHT = 1e-8 if jax.config.jax_enable_x64 else 1e-5


def flow_logs(score, prior, **how):
    return flow_log_prob(OU, score, XS[:, None], prior=prior, horizon=HORIZON, rtol=TIGHT, atol=TIGHT, **how)


def flow_nll(score, prior):
    """Mean over the data; the density is even, so one component will do, and the trapezoidal rule converges exponentially."""
    weights = np.exp(-((XS - 1) ** 2) / 0.8)
    return -(weights @ np.asarray(flow_logs(score, prior))) / weights.sum()


def check_flow_nll(score, prior, expected):
    assert flow_nll(score, prior) == pytest.approx(expected, rel=1e-7)


@pytest.mark.slow
@needs_x64
def test_likelihood_of_the_flow_agrees_with_quadrature():
    for factor, expected in MODELS.items():
        check_flow_nll(scaled(factor), standard_normal(1), expected)
    # The check can fail: wrong factor, wrong prior.
    with pytest.raises(AssertionError):
        check_flow_nll(scaled(-1.0), standard_normal(1), MODELS[1.0])
    with pytest.raises(AssertionError):
        check_flow_nll(scaled(1.0), Gaussian([0.0], 1.1), MODELS[1.0])


@pytest.mark.slow
@needs_x64
def test_likelihood_of_the_flow_of_a_gaussian_fit_is_that_of_the_fit():
    variance = lambda t: 1 + 0.4 * jnp.exp(-2 * t)
    check_flow_nll(lambda t, x: -x / variance(t), Gaussian([0.0], variance(HORIZON)), 1.587174651515)


THREE = GaussianMixture([1.0, 0.5], [[1.0, 0.0, -0.5], [-1.0, 0.4, 0.3]], [[0.4, 0.6, 0.5], [0.3, 0.8, 0.4]])


@pytest.mark.slow
def test_likelihood_of_the_flow_is_the_density_in_three_dimensions(key):
    score, late = MixtureScore(OU, THREE), OU.marginal(THREE, number(2.0))
    x = jnp.array([0.3, -0.2, 0.6])
    flow = lambda xs, **how: flow_log_prob(OU, score, xs, prior=late, horizon=2.0, rtol=1e-5, atol=1e-5, **how)
    assert float(flow(x[None])[0]) == pytest.approx(float(THREE.log_prob(x)), abs=1e-3)
    # Hutchinson's probes are independent between rows: the mean of many is the trace.
    guesses = flow(jnp.broadcast_to(x, (1000, 3)), divergence="hutchinson", key=key)
    assert_estimate(estimate(guesses), THREE.log_prob(x))


@pytest.mark.slow
def test_likelihood_from_a_later_start_is_that_of_the_noised_data():
    # Two equal components: the exact prior is a Gaussian.
    twins, early = GaussianMixture([1.0, 1.0], [[0.3], [0.3]], [0.4, 0.4]), number(0.2)
    late = OU.marginal(Gaussian([0.3], 0.4), number(HORIZON))
    logs = flow_logs(scaled(1.0, data=twins), late, start=early)
    expected = jax.vmap(OU.marginal(Gaussian([0.3], 0.4), early).log_prob)(jnp.asarray(XS)[:, None])
    assert jnp.allclose(logs, expected, rtol=100 * TIGHT, atol=100 * TIGHT)


@pytest.mark.slow
def test_hutchinson_is_exact_in_one_dimension(key):
    guesses = flow_logs(scaled(0.9), standard_normal(1), divergence="hutchinson", key=key)
    assert close(guesses, flow_logs(scaled(0.9), standard_normal(1)), steps=100)


# Noise profile.


@eqx.filter_jit
def repeated_profiles(factor, keys):
    """Independent profiles of few data each, so that differences have a measured error."""

    def once(key):
        data_key, look_key = jr.split(key)
        prior = CLOCK.marginal(DATA.moments(), number(1.0))
        return noise_profile(scaled(factor, CLOCK), CLOCK, DATA.sample(500, key=data_key), prior=prior, levels=50, key=look_key)

    return jax.vmap(once)(keys)


def check_profile(found, exact, *, excess):
    assert_estimate(mean(found.path_kl.value - exact.path_kl.value), excess, min_ess=30)


def check_lower_bound(found, error):
    """What can be recovered is at most the error of the score."""
    recoverable = mean(found.recoverable.value)
    assert recoverable.value < error + 4 * recoverable.stderr


@pytest.mark.slow
def test_profile_recovers_the_entropy_and_the_error_of_the_score(key):
    keys = jr.split(key, 32)
    exact = repeated_profiles(number(1.0), keys)
    assert_estimate(mean(exact.bound.value), ENTROPY, min_ess=30)
    # So does each of them with its own error bar.
    assert jnp.all(jnp.abs(exact.bound.value - ENTROPY) < 4 * exact.bound.stderr)
    assert jnp.all(exact.bound.trustworthy)
    assert exact.ts.shape == exact.widths.shape == exact.rates.shape == exact.rate_errors.shape == (32, 50)
    assert close(exact.bound.value, exact.terminal.value + exact.path_kl.value + exact.decoding.value, steps=50)
    assert close(exact.path_kl.value, jnp.sum(exact.rates * exact.widths, axis=1), steps=50)
    check_lower_bound(exact, 0.0)
    for factor in (0.9, 1.1):
        found = repeated_profiles(number(factor), keys)
        check_profile(found, exact, excess=SCORE_ERROR)
        check_lower_bound(found, SCORE_ERROR)
        recoverable = mean(found.recoverable.value)
        assert recoverable.value > max(4 * recoverable.stderr, 0.5 * SCORE_ERROR)
        # The score of a mixture is largest in the middle: there its size is well known.
        best = jnp.argmin(jnp.mean(found.factor_errors, axis=0))
        assert_estimate(mean(found.factors[:, best]), 1 / factor, min_ess=30)
    # The check can fail: an error of the score twice as large, and none.
    for factor in (0.9 - 0.1 * (np.sqrt(2) - 1), 1.0):
        with pytest.raises(AssertionError):
            check_profile(repeated_profiles(number(factor), keys), exact, excess=SCORE_ERROR)
    with pytest.raises(AssertionError):
        check_lower_bound(repeated_profiles(number(0.5), keys), SCORE_ERROR)


# Exact, quadrature: entropy production pi, flux phi and dS/dt = pi - phi at t = 0.5.
RATES = {"intrinsic": 0.02801363733624, "exchange": -0.14715177646858, "system": -0.11913813913234}


def check_rates(found, expected):
    for name, value in expected.items():
        assert_estimate(mean(found[name]), value, min_ess=30)


@pytest.mark.slow
def test_entropy_rates_agree_with_quadrature(key):
    @jax.jit
    def rates(key):
        data_key, look_key = jr.split(key)
        found = entropy_limits(MixtureScore(OU, DATA), OU, DATA.sample(5000, key=data_key), edges=jnp.array([0.495, 0.505]), key=look_key)
        return {name: getattr(found, name).values[0] for name in RATES}

    found = jax.vmap(rates)(jr.split(key, 100))
    check_rates(found, RATES)
    wrong = {
        "sign of the flux": found | {"exchange": -found["exchange"]},
        "production is the rate of the system": found | {"intrinsic": found["system"]},
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_rates(law, RATES)


# Bounds kernel by kernel.


@pytest.mark.parametrize("stepper", [Ancestral(), EulerMaruyama()], ids=["ancestral", "euler"])
@pytest.mark.slow
def test_path_bound_lies_above_the_entropy_and_converges_to_it_at_first_order(key, stepper):
    data_key, path_key = jr.split(key)
    data, score, steps = DATA.sample(5000, key=data_key), MixtureScore(OU, DATA), (64, 256)
    grids = [np.geomspace(1e-3, HORIZON, n + 1) for n in steps]
    bounds = [path_bound(score, OU, data, ts, stepper=stepper, key=path_key) for ts in grids]
    for bound in bounds:
        assert bound.value > ENTROPY - 4 * bound.stderr
    # With four times the steps a first-order error is a quarter: what extrapolation leaves is of second order.
    coarser, finest = bounds
    assert finest.value < coarser.value
    limit = (4 * finest.value - coarser.value) / 3
    error = jnp.hypot(4 * finest.stderr, coarser.stderr) / 3
    assert_estimate(finest._replace(value=limit, stderr=error), ENTROPY)


def kernel_ratios(stepper, key):
    """Path log-ratios of the noising of Gaussian data to a denoising with a bad score, in eight coarse steps."""
    data = Gaussian([0.5], 0.4)
    start_key, noise_key = jr.split(key)
    ts = jnp.linspace(0.1, 1.5, 9)
    first, last = OU.marginal(data, ts[0]), standard_normal(1)
    backward = Reversed(OU, scaled(0.8, data=data), ts[-1])
    x0s = first.sample(10_000, key=start_key)
    x1s, totals = accumulate(BackwardRatio(backward, ts[-1], stepper), OU, x0s, ts, stepper=ExactLinear(), key=noise_key)
    return first, last, x0s, x1s, totals


def check_unit_mean(ratios):
    found = exponential_mean(ratios)
    assert found.trustworthy
    assert_estimate(found, 1.0)


WRONG_RATIOS = {
    "kernels upside down": lambda p, q, x0s, x1s, totals: path_log_ratio(p, q, x0s, x1s, -totals),
    "ends exchanged": lambda p, q, x0s, x1s, totals: path_log_ratio(q, p, x0s, x1s, totals),
    "no ends": lambda p, q, x0s, x1s, totals: totals,
    "sign": lambda *ratios: -path_log_ratio(*ratios),
}


@pytest.mark.parametrize("stepper", [Ancestral(), EulerMaruyama()], ids=["ancestral", "euler"])
def test_path_measures_are_normalised_at_coarse_steps_with_a_bad_score(key, stepper):
    ratios = kernel_ratios(stepper, key)
    check_unit_mean(path_log_ratio(*ratios))
    found = estimate(path_log_ratio(*ratios))
    assert found.value > 4 * found.stderr, "a bad score and coarse steps must cost something"
    for wrong in WRONG_RATIOS.values():
        with pytest.raises(AssertionError):
            check_unit_mean(wrong(*ratios))


# Samplers.


@pytest.mark.slow
@pytest.mark.parametrize("stepper", [Ancestral(), EulerMaruyama()], ids=["ancestral", "euler"])
def test_sampler_reproduces_the_second_moment_as_the_grid_is_refined(key, stepper):
    def moment(steps):
        ts = np.geomspace(1e-3, HORIZON, steps + 1)
        xs = sample_sde(OU, MixtureScore(OU, DATA), 20_000, ts, prior=OU.marginal(DATA, number(HORIZON)), stepper=stepper, key=key)
        return estimate(xs[:, 0] ** 2)

    expected = SECOND_MOMENT * np.exp(-2e-3) - np.expm1(-2e-3)
    coarse, fine = moment(40), moment(160)
    if isinstance(stepper, Ancestral):
        # Too narrow on a coarse grid, whatever the number of samples: its spread is that of perfectly denoised data.
        assert coarse.value + 4 * coarse.stderr < expected
    assert abs(fine.value - expected) < abs(coarse.value - expected)
    error = jnp.hypot(4 * fine.stderr, coarse.stderr) / 3
    assert_estimate(fine._replace(value=(4 * fine.value - coarse.value) / 3, stderr=error), expected)


class Grid(AbstractDistribution):
    """Not random: equally spaced points, for quadrature over the prior."""

    def sample(self, n, *, key):
        return jnp.linspace(-9.0, 9.0, n)[:, None]

    def log_prob(self, x):
        return jnp.zeros(())

    def score(self, x):
        return jnp.zeros_like(x)


@pytest.mark.slow
def test_flow_carries_the_prior_to_the_data(key):
    late = OU.marginal(DATA, number(HORIZON))
    tolerance = 1e-7 if jax.config.jax_enable_x64 else 1e-4
    draw = lambda prior: sample_ode(OU, scaled(1.0), 401, prior=prior, horizon=HORIZON, rtol=tolerance, atol=tolerance, key=key)[:, 0]
    line = jnp.linspace(-9.0, 9.0, 401)
    weights = jnp.exp(jax.vmap(late.log_prob)(line[:, None])) * (line[1] - line[0])
    # Quadrature over the prior, then as many random draws.
    assert float(weights @ draw(Grid()) ** 2) == pytest.approx(SECOND_MOMENT, rel=10 * tolerance)
    assert_estimate(estimate(draw(late) ** 2), SECOND_MOMENT)


# Scores and networks.


@pytest.mark.parametrize("noising", [OU, CLOCK], ids=["ou", "clock"])
def test_scores_and_denoised_data_stand_for_each_other(noising):
    x, score = jnp.array([0.3, -2.0]), jnp.array([-0.4, 1.0])
    for t in (0.2, 0.5, 0.9):
        t = number(t)
        denoised = score_to_data(noising, t, x, score)
        assert close(data_to_score(noising, t, x, denoised), score, steps=10)
        assert close(score_to_data(noising, t, x, data_to_score(noising, t, x, denoised)), denoised, steps=10)


def check_tweedie(denoise):
    """Gaussian data of mean m and variance c: the denoised data are the mean of the posterior."""
    data, t, x = Gaussian([0.7], 0.4), number(0.3), jnp.array([1.1])
    alpha, v = OU.alpha(t), OU.variance(t)
    posterior = (0.7 / 0.4 + alpha * x / v) / (1 / 0.4 + alpha**2 / v)
    assert close(denoise(t, x, MixtureScore(OU, data)(t, x)), posterior, steps=10)


def test_denoised_data_are_the_mean_of_the_posterior():
    check_tweedie(lambda t, x, s: score_to_data(OU, t, x, s))
    for wrong in (lambda t, x, s: x + OU.variance(t) * s, lambda t, x, s: (x - OU.variance(t) * s) / OU.alpha(t)):
        with pytest.raises(AssertionError):
            check_tweedie(wrong)


SHAPE, DIM = (4, 4), 16
NOISING = LogSnrLinear()


def image_fit():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(DIM, DIM)) / 4
    return Gaussian(rng.normal(size=DIM), root @ root.T + 0.2 * np.eye(DIM))


def image_cells():
    rng = np.random.default_rng(2)
    return Cells(rng.uniform(-2.0, -1.0, DIM), 0.5, rng.normal(size=(DIM, 5)))


@ft.cache
def network(kind, *, trained=False, dropout=0.0):
    cells = image_cells() if kind == "cells" else None
    score = ScoreNetwork(NOISING, image_fit(), SHAPE, cells=cells, width=8, depth=1, dropout=dropout, key=jr.key(5))
    return as_if_trained(score, jr.key(6)) if trained else score


with_and_without_cells = pytest.mark.parametrize("kind", ["plain", "cells"])


def as_if_trained(score, key):
    """The same network with all its learnable numbers moved."""
    learnable, rest = eqx.partition((score.network, score.trust), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(learnable)
    moved = unravel(flat + 0.1 * jr.normal(key, flat.shape, flat.dtype))
    return eqx.tree_at(lambda s: (s.network, s.trust), score, eqx.combine(moved, rest))


@eqx.filter_jit
def score_of_rows(score, ts, xs):
    return jax.vmap(score)(ts, xs)


@eqx.filter_jit
def fit_of_rows(fitted, ts, xs):
    return jax.vmap(lambda t, x: NOISING.marginal(fitted, t).score(x))(ts, xs)


def check_untrained(score, fitted):
    ts = jnp.linspace(0.0, 1.0, 9)
    xs = 1.5 * jnp.asarray(np.random.default_rng(4).normal(size=(9, DIM)), float)
    # At little noise a score is a small difference over a small variance.
    lost = rounding(100) / jax.vmap(NOISING.variance)(ts)
    assert jnp.all(jnp.abs(score_of_rows(score, ts, xs) - fit_of_rows(fitted, ts, xs)) < lost[:, None] + rounding(100))


@with_and_without_cells
@pytest.mark.slow
def test_untrained_network_is_the_score_of_the_gaussian_fit(kind):
    check_untrained(network(kind), image_fit())


@pytest.mark.slow
@with_and_without_cells
def test_check_of_an_untrained_network_can_fail(kind):
    with pytest.raises(AssertionError):
        check_untrained(network(kind), Gaussian(image_fit().mean, 1.01 * image_fit().covariance))
    with pytest.raises(AssertionError):
        check_untrained(network(kind, trained=True), image_fit())


@with_and_without_cells
@pytest.mark.slow
def test_a_large_batch_is_its_rows(key, kind):
    xs, ts = jr.normal(key, (2000, DIM)), jnp.linspace(0.05, 1.0, 2000)
    batched = jax.jit(jax.vmap(network(kind, trained=True).denoise))
    pieces = jnp.concatenate([batched(ts[i : i + 100], xs[i : i + 100]) for i in range(0, 2000, 100)])
    assert jnp.allclose(batched(ts, xs), pieces, rtol=rounding(1000), atol=rounding(1000))


@pytest.mark.slow
def test_gradients_of_the_loss_are_finite_and_reach_every_parameter(key):
    data_key, loss_key = jr.split(key)
    loss = ScoreMatching(NOISING, image_fit().sample(50, key=data_key), batch=64)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(network("cells", trained=True), loss_key)
    assert jnp.isfinite(value)
    leaves = jax.tree.leaves((gradient.network, gradient.trust))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient.network))


@pytest.mark.slow
def test_dropout_needs_a_key_and_changes_the_score(key):
    score = eqx.filter_jit(network("plain", trained=True, dropout=0.5))
    t, x = number(0.5), jnp.linspace(-1.0, 1.0, DIM)
    assert jnp.all(score(t, x) == score(t, x))
    assert not jnp.allclose(score(t, x), score(t, x, key=key))


LOW, WIDTH, WEIGHTS = -1.0, 0.5, np.array([0.05, 0.3, 0.1, 0.55])


def cell_mean(y, sigma):
    """<x | y> by quadrature over every cell."""
    density = lambda x: np.exp(-0.5 * ((x - y) / sigma) ** 2)
    total = first = 0.0
    for i, weight in enumerate(WEIGHTS):
        edges = LOW + WIDTH * i, LOW + WIDTH * (i + 1)
        peaks = [p for p in (y - 3 * sigma, y, y + 3 * sigma) if edges[0] < p < edges[1]] or None
        total += weight * quad(density, *edges, points=peaks, epsrel=1e-11)[0]
        first += weight * quad(lambda x: x * density(x), *edges, points=peaks, epsrel=1e-11)[0]
    return first / total


def check_cells(denoise, sigma):
    # Little noise is treated exactly; at much noise, from 1.5 cells on, each cell is a Gaussian.
    exact = sigma < 1.5 * WIDTH
    ys = np.array([LOW - 2 * sigma, LOW, -0.9, -0.52, -0.2, 0.1, 0.55, 1.0, 1.0 + 2 * sigma])
    expected = [cell_mean(y, sigma) for y in ys]
    found = jax.vmap(lambda y: denoise(y[None], number(sigma))[0])(jnp.asarray(ys, float))
    error = np.max(np.abs(np.asarray(found) - expected)) / WIDTH
    assert error < (max(1e-8, rounding(100)) if exact else 5e-3), f"off by {error} of a cell at noise {sigma}"


@pytest.mark.parametrize("sigma", [0.001, 0.05, 0.3, 0.74, 0.76, 2.0, 30.0])
def test_cells_denoise_like_quadrature(sigma):
    check_cells(Cells([LOW], WIDTH, np.log(WEIGHTS)[None]).denoise, sigma)
    # Weights count up to a constant, and may come as odds.
    check_cells(lambda y, s: Cells([LOW], WIDTH, np.zeros((1, 4))).denoise(y, s, jnp.asarray(np.log(WEIGHTS)[None] + 3, float)), sigma)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_check_of_cells_can_fail(sigma):
    with pytest.raises(AssertionError):
        check_cells(Cells([LOW], WIDTH, np.zeros((1, 4))).denoise, sigma)
    with pytest.raises(AssertionError):
        check_cells(lambda y, s: Cells([LOW], WIDTH, np.log(WEIGHTS)[None]).denoise(y, 1.1 * s), sigma)


# Training.


@eqx.filter_jit
def losses(factor, focus, keys):
    def once(key):
        data_key, loss_key = jr.split(key)
        loss = ScoreMatching(CLOCK, DATA.sample(300, key=data_key), focus=focus, batch=256)
        return loss(scaled(factor, CLOCK), loss_key)

    return jax.vmap(once)(keys)


@pytest.mark.slow
def test_score_matching_does_not_depend_on_where_it_looks_and_is_least_at_the_true_score(key):
    keys, even = jr.split(key, 300), jnp.ones(5)
    exact = losses(number(1.0), even, keys)
    looked = losses(number(1.0), jnp.array([5.0, 1.0, 1.0, 3.0, 9.0]), keys)
    assert_estimate(estimate(looked - exact), 0.0)
    # Same keys: the difference is the path KL of the wrong score, with little noise.
    for factor in (0.9, 1.1):
        excess = estimate(losses(number(factor), even, keys) - exact)
        assert_estimate(excess, SCORE_ERROR)
        assert excess.value > 4 * excess.stderr
    with pytest.raises(AssertionError):
        assert_estimate(estimate(losses(number(0.8), even, keys) - exact), SCORE_ERROR)
    # On the whole it is the conditional path KL of the profile.
    profiled = jnp.mean(repeated_profiles(number(1.0), keys[:32]).path_kl.value)
    assert_estimate(estimate(exact), profiled)


def test_denoising_rate_is_zero_for_the_score_of_one_point():
    point = jnp.array([0.4, -1.0])
    alone = lambda t, x: (OU.alpha(t) * point - x) / OU.variance(t)
    t, z = number(0.3), jnp.array([0.5, 1.5])
    assert float(denoising_rate(OU, alone, t, point, z)) < rounding(10)
    expected = 0.5 * OU.noise(t) ** 2 * jnp.sum(z**2) / OU.variance(t)
    assert close(denoising_rate(OU, lambda t, x: jnp.zeros_like(x), t, point, z), expected, steps=10)


@pytest.mark.nightly
def test_training_lowers_the_loss(key):
    keys = jr.split(key, 5)
    # Two faces, far apart: not Gaussian.
    faces = jnp.where(jr.bernoulli(keys[0], 0.5, (400, 1)), 1.0, -1.0) * jr.normal(keys[1], (1, DIM))
    data = faces + 0.3 * jr.normal(keys[2], (400, DIM))
    fitted = Gaussian(jnp.mean(data, axis=0), jnp.cov(data.T) + 1e-3 * jnp.eye(DIM))
    noising = LogSnrLinear(4.0, -4.0)
    score = ScoreNetwork(noising, fitted, SHAPE, width=16, depth=1, dropout=0.0, key=keys[3])
    loss = ScoreMatching(noising, data, batch=256)
    learnt = fit(loss, score, optimizer=optax.adam(1e-2), steps=150, every=150, where=lambda s: (s.network, s.trust), key=keys[4])
    # Fresh noise in every step: the first and the last steps are independent.
    early, late = mean(learnt.history[:10]), mean(learnt.history[-50:])
    gain, error = early.value - late.value, jnp.hypot(early.stderr, late.stderr)
    assert gain > 4 * error, f"training gained {gain} ± {error} nats"
    assert jnp.all(learnt.model.mean == score.mean)
    assert jnp.any(learnt.model.network.leave.weight != 0)


# Errors.


def test_questions_without_meaning_are_refused(key):
    xs, prior, score = jnp.zeros((3, 1)), standard_normal(1), scaled(1.0)
    ts = jnp.linspace(0.1, 1.0, 4)
    with pytest.raises((ValueError, TypeError), match="divergence"):
        flow_log_prob(OU, score, xs, prior=prior, divergence="guess")
    with pytest.raises(ValueError, match="`key` must be given for Hutchinson's estimate, got None"):
        flow_log_prob(OU, score, xs, prior=prior, divergence="hutchinson")
    with pytest.raises(ValueError, match="`levels` must be at least 1, got 0"):
        noise_profile(score, OU, xs, start=0.1, levels=0, key=key)
    with pytest.raises(ValueError, match="`ts` must increase strictly"):
        noise_profile(score, OU, xs, start=1.0, horizon=0.5, key=key)
    with pytest.raises(ValueError, match="`ts` must increase strictly"):
        path_bound(score, OU, xs, ts[::-1], key=key)
    with pytest.raises(TypeError, match="`stepper` must know its transition density"):
        path_bound(score, OU, xs, ts, stepper=Diffrax(Heun()), key=key)
    with pytest.raises(ValueError, match=r"`fit` must have 16 dimensions, the pixels of an image, got shape \(3,\)"):
        ScoreNetwork(NOISING, standard_normal(3), SHAPE, key=key)
    with pytest.raises(ValueError, match=r"`shape` must be a multiple of the patch, 2, got \(3, 4\)"):
        Mixer((3, 4), 3, 1, key=key)


FLAT = {
    "flow": lambda xs, key: flow_log_prob(OU, scaled(1.0), xs, prior=standard_normal(1)),
    "profile": lambda xs, key: noise_profile(scaled(1.0), OU, xs, start=0.1, key=key),
    "bound": lambda xs, key: path_bound(scaled(1.0), OU, xs, jnp.linspace(0.1, 1.0, 4), key=key),
}


@pytest.mark.parametrize("call", FLAT.values(), ids=FLAT)
def test_data_that_are_not_rows_are_refused(key, call):
    with pytest.raises((ValueError, TypeError), match=r"\(sample, dim\)|sample dim"):
        call(jnp.zeros(3), key)


def test_a_bound_that_starts_before_there_is_noise_is_refused(key):
    with pytest.raises(ValueError, match="`start` must be a time at which the process has noise: the bound starts there, got 0.0."):
        noise_profile(MixtureScore(OU, DATA), OU, jnp.zeros((3, 1)), horizon=HORIZON, key=key)
    with pytest.raises(ValueError, match=r"`ts\[0\]` must be a time at which the process has noise"):
        path_bound(MixtureScore(OU, DATA), OU, jnp.zeros((3, 1)), jnp.linspace(0.0, 1.0, 5), key=key)
