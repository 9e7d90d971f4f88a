"""Noising and generation as two path measures: their divergences, the error of a score, and the work of generation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, rounding
from diffrax import Heun
from jaxtyping import Array
from linear_chains import DATA, marginal, OU, path_divergences, scaled, STEPPERS

from thermojax import accumulate, bar, Diffrax, EulerMaruyama, exponential_mean, mean
from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import Reversed
from thermojax.functionals import GirsanovRatio
from thermojax.generative import Ancestral, generation_work, MixtureScore, path_divergence, sample_sde, score_error, score_gap

# Coarse steps, a bad score, and a prior that is not the end of the noising. With these factors both exponential averages have a finite
# variance: twice the precision of one path measure exceeds that of the other.
TS = np.geomspace(0.05, 1.5, 9)
FACTORS = {"ancestral": 1.2, "euler": 0.85}
TWINS = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
PLANE = GaussianMixture([1.0, 0.5], [[1.0, 0.0], [-1.0, 0.4]], [[0.4, 0.6], [0.3, 0.8]])
average = jax.jit(mean)
one_kernel_slow = pytest.mark.parametrize("kind", ["ancestral", pytest.param("euler", marks=pytest.mark.slow)])


def close(found, expected, steps=1):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


# Divergences.


def check_divergence(found, forward, backward):
    assert_estimate(found.forward, forward)
    assert_estimate(found.backward, backward)
    assert_estimate(found.hysteresis, forward + backward)
    for law in (found.forward_law, found.backward_law):
        assert law.trustworthy
        assert_estimate(law, 1.0)
    assert found.offset.trustworthy
    assert_estimate(found.offset, 0.0)


@one_kernel_slow
def test_noising_and_generation_differ_by_the_divergences_of_their_paths(key, kind):
    found = path_divergence(scaled(FACTORS[kind]), OU, DATA, 10_000, TS, stepper=STEPPERS[kind], key=key)
    forward, backward = path_divergences(FACTORS[kind], TS, kind)
    check_divergence(found, forward, backward)
    late, variance = marginal(TS[-1])
    assert_estimate(found.terminal, 0.5 * (late**2 + variance - 1 - np.log(variance)))
    assert close(found.forward.value, found.terminal.value + found.path.value, steps=10)
    assert close(found.hysteresis.value, found.forward.value + found.backward.value)
    wrong = {
        "directions exchanged": found._replace(forward=found.backward, backward=found.forward),
        "only one side": found._replace(hysteresis=found.forward),
        "sign": found._replace(backward_law=exponential_mean(-found.backward_samples)),
        "crossing with a sign": found._replace(offset=bar(found.forward_samples, -found.backward_samples, beta=1.0)),
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_divergence(law, forward, backward)


@pytest.mark.slow
def test_laws_hold_in_the_plane_with_a_bad_score(key):
    prior = Gaussian([-0.2, 0.0], [1.1, 0.9])
    found = path_divergence(scaled(0.9, PLANE), OU, PLANE, 10_000, TS, prior=prior, stepper=EulerMaruyama(0.0), key=key)
    check_divergence(found, found.forward.value, found.backward.value)
    assert found.hysteresis.value > 4 * found.hysteresis.stderr
    assert found.terminal.value > 4 * found.terminal.stderr


@pytest.mark.slow
def test_divergence_tends_to_the_error_of_the_score(key):
    # The error of the kernels is of first order in the steps: extrapolated from two grids.
    path_key, data_key, level_key = jr.split(key, 3)
    grids = [np.geomspace(1e-3, 3.0, steps + 1) for steps in (64, 256)]
    prior = OU.marginal(TWINS, jnp.asarray(3.0))
    coarse, fine = (path_divergence(scaled(0.5, TWINS), OU, TWINS, 5000, ts, prior=prior, key=path_key).path for ts in grids)
    exact = score_error(
        scaled(0.5, TWINS), scaled(1.0, TWINS), OU, TWINS.sample(4000, key=data_key), start=1e-3, horizon=3.0, levels=50, key=level_key
    ).total
    limit, error = (4 * fine.value - coarse.value) / 3, jnp.hypot(4 * fine.stderr, coarse.stderr) / 3
    assert_estimate(fine._replace(value=limit - exact.value, stderr=jnp.hypot(error, exact.stderr)), 0.0)
    with pytest.raises(AssertionError):
        assert_estimate(coarse._replace(value=coarse.value - exact.value), 0.0)


# The error of a score.

# Exact, quadrature: data N(+-1, 0.4) under dx = -x dt + sqrt(2) dW until t = 3; the score times a factor, and that of the Gaussian fit.
ERRORS = {0.5: 0.7272591332, 0.9: 0.0290903653}
FIT_ERROR = 0.076777146394


def measured(verb, score, key, start=0.0):
    data_key, level_key = jr.split(key)
    data = TWINS.sample(4000, key=data_key)
    return verb(score, scaled(1.0, TWINS), OU, data, start=start, horizon=3.0, levels=40, key=level_key)


@pytest.mark.slow
def test_error_of_a_score_agrees_with_quadrature(key):
    for factor, expected in ERRORS.items():
        found = measured(score_error, scaled(factor, TWINS), key)
        assert_estimate(found.total, expected)
        assert close(found.total.value, jnp.sum(found.rates * found.widths), steps=50)
        assert found.ts.shape == found.rates.shape == found.rate_errors.shape == (40,)
    # The check can fail: without the half, and another error.
    for wrong in (2 * expected, ERRORS[0.5]):
        with pytest.raises(AssertionError):
            assert_estimate(found.total, wrong)


@pytest.mark.slow
def test_error_of_a_gaussian_fit_agrees_with_quadrature(key):
    found = measured(score_error, MixtureScore(OU, TWINS.moments()), key)
    assert_estimate(found.total, FIT_ERROR)
    with pytest.raises(AssertionError):
        assert_estimate(found.total._replace(value=2 * found.total.value), FIT_ERROR)


@pytest.mark.slow
def test_gap_of_two_scores_needs_no_true_score(key):
    error_key, gap_key, data_key, level_key = jr.split(key, 4)
    error = measured(score_error, scaled(0.5, TWINS), error_key, start=0.05).total
    gap = measured(score_gap, scaled(0.5, TWINS), gap_key, start=0.05).total
    assert_estimate(gap._replace(value=gap.value - error.value, stderr=jnp.hypot(gap.stderr, error.stderr)), 0.0)
    # Between two wrong scores it is the difference of their errors.
    between = score_gap(
        scaled(0.5, TWINS), scaled(0.9, TWINS), OU, TWINS.sample(4000, key=data_key), start=0.05, horizon=3.0, levels=40, key=level_key
    ).total
    # Both errors are the same function of time, times (1 - factor) squared.
    assert_estimate(between, float(error.value) * (0.25 - 0.01) / 0.25)
    with pytest.raises(AssertionError):
        assert_estimate(between._replace(value=-between.value), float(error.value) * 0.96)


@pytest.mark.slow
def test_error_of_a_score_is_a_girsanov_ratio_of_two_generations(key):
    # On paths of the exact generation, against the learned one with the same noise; steps halved and extrapolated.
    start_key, path_key, error_key = jr.split(key, 3)
    x1s = OU.marginal(TWINS, jnp.asarray(3.0)).sample(20_000, key=start_key)
    exact, learned = (Reversed(OU, scaled(factor, TWINS), 3.0) for factor in (1.0, 0.5))

    def ratio(steps):
        us = (3.0 - np.geomspace(1e-3, 3.0, steps + 1))[::-1]
        return average(accumulate(GirsanovRatio(learned), exact, x1s, us, key=path_key)[1])

    coarse, fine = ratio(64), ratio(256)
    limit, error = (4 * fine.value - coarse.value) / 3, jnp.hypot(4 * fine.stderr, coarse.stderr) / 3
    expected = measured(score_error, scaled(0.5, TWINS), error_key, start=1e-3).total
    assert_estimate(fine._replace(value=limit - expected.value, stderr=jnp.hypot(error, expected.stderr)), 0.0)


# Work.

LOG_NORMALISER = 0.8


class Landscape(eqx.Module):
    """The reduced potential of the noised data, less a constant: its normaliser is known."""

    data: Gaussian
    shift: Array

    def __call__(self, t, x):
        return -OU.marginal(self.data, t).log_prob(x) - self.shift


def worked(factor, key, *, kind="ancestral", n=10_000, prior=None, known=LOG_NORMALISER):
    landscape = Landscape(DATA, jnp.asarray(LOG_NORMALISER, float))
    prior = standard_normal(1) if prior is None else prior
    return generation_work(scaled(factor), OU, landscape, n, TS, prior=prior, log_normaliser=known, stepper=STEPPERS[kind], key=key)


def check_work(found, excess):
    assert_estimate(found.excess, excess)
    assert found.excess.value > -4 * found.excess.stderr, "no second law"
    assert found.delta_f.trustworthy
    assert_estimate(found.delta_f, -LOG_NORMALISER)


@one_kernel_slow
def test_excess_work_is_the_divergence_of_the_generated_paths(key, kind):
    work_key, path_key = jr.split(key)
    found = worked(FACTORS[kind], work_key, kind=kind)
    _, backward = path_divergences(FACTORS[kind], TS, kind)
    check_work(found, backward)
    assert found.work.trustworthy
    # The parts and the profile add up.
    assert close(found.work.value, found.jump.value + found.protocol.value + found.kernels.value, steps=20)
    assert close(found.work.value, found.jump.value + jnp.sum(found.rates * found.widths), steps=50)
    assert close(found.protocol.value, jnp.sum(found.protocol_rates * found.widths), steps=50)
    assert close(found.ts, (0.5 * (TS[1:] + TS[:-1]))[::-1], steps=10)
    # With the directions mixed there is no second law: the difference of free energies of the noising, paths of the noising.
    mixed = found.work._replace(value=found.work.value - LOG_NORMALISER)
    noised = path_divergence(scaled(FACTORS[kind]), OU, DATA, 10_000, TS, stepper=STEPPERS[kind], key=path_key).forward
    for wrong in (mixed, noised._replace(value=-noised.value)):
        assert wrong.value < -4 * wrong.stderr
        with pytest.raises(AssertionError):
            check_work(found._replace(excess=wrong), backward)
    with pytest.raises(AssertionError):
        check_work(found._replace(excess=noised), backward)


@pytest.mark.slow
def test_excess_work_without_a_known_normaliser(key):
    one_key, repeat_key = jr.split(key)
    found = worked(0.85, one_key, known=None)
    check_work(found, path_divergences(0.85, TS, "ancestral")[1])
    assert close(found.excess.value, found.work.value - found.delta_f.value, steps=100)
    # Its error bar is that of repetition.
    repeats = [worked(0.85, k, known=None, n=1000).excess for k in jr.split(repeat_key, 40)]
    spread = np.std([float(r.value) for r in repeats], ddof=1)
    claimed = np.mean([float(r.stderr) for r in repeats])
    assert abs(spread / claimed - 1) < 4 / np.sqrt(2 * 39)


def excess_of_steps(factor, kind, steps, end=3.0):
    return [path_divergences(factor, np.geomspace(0.05, end, n + 1), kind, marginal(end))[1] for n in steps]


@pytest.mark.parametrize("kind", STEPPERS)
def test_excess_work_of_the_exact_score_falls_with_the_step(kind):
    steps = np.array([32, 64, 128, 256])
    assert_order(excess_of_steps(1.0, kind, steps), 1.0 / steps, 1.0)
    # A wrong score costs something whatever the step.
    with pytest.raises(AssertionError):
        assert_order(excess_of_steps(0.85, kind, steps), 1.0 / steps, 1.0)


@pytest.mark.slow
def test_the_protocol_alone_has_no_second_law(key):
    found = worked(1.3, key, prior=OU.marginal(DATA, jnp.asarray(TS[-1])))
    assert close(found.jump.value, -LOG_NORMALISER, steps=100)
    alone = found.jump.value + found.protocol.value + LOG_NORMALISER
    assert alone < -4 * found.protocol.stderr
    assert found.excess.value > 4 * found.excess.stderr


def test_work_is_that_of_the_paths_of_the_sampler(key):
    found = worked(0.85, key)
    xs = sample_sde(OU, scaled(0.85), 10_000, TS, prior=standard_normal(1), stepper=Ancestral(), key=key)
    assert jnp.allclose(found.configurations, xs, rtol=rounding(1e3), atol=rounding(1e3))
    levels = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
    assert close(found.quantiles, np.quantile(np.asarray(found.samples), levels), steps=10)
    samples = np.asarray(found.samples, np.float64)
    deviations = samples - np.mean(samples)
    assert np.isclose(found.skewness, np.mean(deviations**3) / np.mean(deviations**2) ** 1.5, rtol=rounding(1e4))
    assert found.upper_tail_index > found.delta_f.tail_index


# Errors.


def test_questions_without_meaning_are_refused(key):
    score, prior, u = scaled(1.0), standard_normal(1), lambda t, x: 0.5 * jnp.sum(x**2)
    with pytest.raises(ValueError, match=r"`ts\[0\]` must be a time to which the last kernel has noise: its density is needed, got 0.0"):
        path_divergence(score, OU, DATA, 10, np.linspace(0.0, 1.0, 4), key=key)
    with pytest.raises(ValueError, match=r"`ts\[0\]` must be a time to which the last kernel has noise"):
        generation_work(score, OU, u, 10, np.linspace(0.0, 1.0, 4), prior=prior, key=key)
    with pytest.raises(ValueError, match="`ts` must increase strictly"):
        generation_work(score, OU, u, 10, TS[::-1], prior=prior, key=key)
    with pytest.raises(TypeError, match="`stepper` must know its transition density"):
        path_divergence(score, OU, DATA, 10, TS, stepper=Diffrax(Heun()), key=key)
    with pytest.raises((ValueError, TypeError), match="`log_normaliser` must be one number|log_normaliser"):
        generation_work(score, OU, u, 10, TS, prior=prior, log_normaliser=jnp.zeros(2), key=key)
    with pytest.raises((ValueError, TypeError), match="`data` must be a `Gaussian` or a `GaussianMixture`|data"):
        path_divergence(score, OU, jnp.zeros((3, 1)), 10, TS, key=key)
    with pytest.raises(ValueError, match="`levels` must be at least 1, got 0"):
        score_error(score, score, OU, jnp.zeros((3, 1)), levels=0, key=key)
    with pytest.raises(ValueError, match="`start` must be a time at which the process has noise"):
        score_gap(score, score, OU, jnp.zeros((3, 1)), key=key)
