"""The path KL of few steps, and the grids on which it is least: closed forms, brute force, and the density that is made."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from linear_chains import DATA, density_made, divergence, made, marginal, OU, path_divergences, scaled, STEPPERS, VARIANCE
from systems import Scaled

from thermojax import mean
from thermojax.distributions import Gaussian, GaussianMixture, squared_quantile_distance
from thermojax.dynamics import LogSnrLinear
from thermojax.generative import (
    Ancestral,
    Calibrated,
    chain_density,
    Clock,
    denoising_length,
    denoising_profile,
    DenoisingProfile,
    dynamic_grid,
    entropic_grid,
    kernel_terms,
    length_grid,
    MixtureScore,
    named_grid,
    optimise_grid,
    path_kl,
    reclocked,
    step_costs,
)

X64 = jax.config.jax_enable_x64
TS = np.geomspace(0.05, 1.5, 5)
NOISING = LogSnrLinear(5.0, -5.0)
EASY = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
HARD = GaussianMixture([0.8, 0.2], [[-1.0], [1.0]], [0.02, 0.02])
each_kernel_but_one_slow = pytest.mark.parametrize("kind", ["ancestral", pytest.param("euler", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def profile():
    return denoising_profile(MixtureScore(NOISING, HARD), NOISING, HARD, levels=9)


# The path KL.


def check_path_kl(found, factor, ts, kind):
    exact, _ = path_divergences(factor, ts, kind)
    assert float(found.total) == pytest.approx(exact, rel=rounding(1, 100), abs=rounding(10, 10))


@each_kernel_but_one_slow
def test_path_kl_of_a_linear_score_is_that_of_two_gaussians_over_paths(kind):
    found = path_kl(scaled(0.7), OU, DATA, TS, stepper=STEPPERS[kind])
    check_path_kl(found, 0.7, TS, kind)
    assert jnp.all(found.steps > 0)
    assert np.allclose(found.conditional, found.steps - jnp.diff(found.information), rtol=rounding(1, 10))
    assert found.total_error == 0 == jnp.max(found.step_errors)
    # The information that noised data hold of a Gaussian datum.
    variances = marginal(TS)[1]
    assert np.allclose(found.information, 0.5 * np.log(variances / (variances - VARIANCE * np.exp(-2 * TS))), rtol=rounding(1, 100))
    other = next(name for name in STEPPERS if name != kind)
    for factor, ts, wrong in ((1.0, TS, kind), (0.7, TS, other), (0.7, TS[::2], kind)):
        with pytest.raises(AssertionError):
            check_path_kl(found, factor, ts, wrong)


@pytest.mark.slow
def test_the_variance_of_least_cost_undoes_the_noise_of_a_gaussian_exactly():
    # At the times of the profile the calibrated kernel is the posterior itself.
    ends = TS[0], TS[-1]
    found = denoising_profile(scaled(1.0), OU, DATA, start=ends[0], horizon=ends[1], levels=5)
    quiet = path_kl(scaled(1.0), OU, DATA, found.ts, stepper=Calibrated(found))
    assert np.allclose(quiet.steps, 0.0, atol=rounding(10, 10))
    assert np.allclose(step_costs(found, variance="optimal"), -jnp.diff(quiet.information), rtol=rounding(1, 100))
    # That of known data is too small.
    assert jnp.all(step_costs(found) > 1.02 * step_costs(found, variance="optimal"))


def check_costs(profile, found, variance):
    assert np.allclose(step_costs(profile, variance=variance), found.conditional, rtol=rounding(1, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["posterior", "optimal"])
def test_the_error_of_the_noisier_level_is_all_that_a_step_needs(profile, variance):
    stepper = {"posterior": Ancestral(), "optimal": Calibrated(profile)}[variance]
    found = path_kl(MixtureScore(NOISING, HARD), NOISING, HARD, profile.ts, stepper=stepper)
    check_costs(profile, found, variance)
    other = "optimal" if variance == "posterior" else "posterior"
    cleaner = profile._replace(errors=jnp.roll(profile.errors, -1))
    for wrong, choice in ((profile, other), (cleaner, variance)):
        with pytest.raises(AssertionError):
            check_costs(wrong, found, choice)


@pytest.mark.slow
def test_terms_of_the_bound_exceed_the_path_kl_by_the_information_at_the_first_time(key):
    data_key, term_key = jax.random.split(key)
    ts = named_grid("cosine", NOISING, 0.0, 1.0, 4)
    score = Scaled(MixtureScore(NOISING, HARD), jnp.asarray(0.9, float))
    terms = kernel_terms(score, NOISING, HARD.sample(20_000, key=data_key), ts, key=term_key)
    found = path_kl(score, NOISING, HARD, ts)
    estimate = terms.bound
    for value, error, exact in zip(terms.steps, terms.step_errors, found.conditional, strict=True):
        assert_estimate(estimate._replace(value=value, stderr=error), exact)
    bound = estimate._replace(value=terms.terminal.value + jnp.sum(terms.steps))
    assert_estimate(bound, found.total + found.information[0])
    for wrong in (found.total, found.total + found.information[-1]):
        with pytest.raises(AssertionError):
            assert_estimate(bound, wrong)


def product(dim):
    """The same mixture in the first coordinate, and independent Gaussians in the others."""
    means = jnp.zeros((2, dim)).at[:, 0].set(jnp.array([-1.0, 1.0]))
    return GaussianMixture([0.8, 0.2], means, jnp.full((2, dim), 0.3).at[:, 0].set(0.1))


@pytest.mark.slow
def test_samples_agree_with_quadrature_and_independent_coordinates_add(key):
    ts, line = named_grid("log-snr", NOISING, 0.0, 1.0, 4), GaussianMixture([0.8, 0.2], [[-1.0], [1.0]], [0.1, 0.1])
    exact = [path_kl(MixtureScore(NOISING, data), NOISING, data, ts) for data in (line, Gaussian([0.0], 0.3))]
    some = mean(jnp.arange(4000.0))
    for dim in (1, 3):
        found = path_kl(MixtureScore(NOISING, product(dim)), NOISING, product(dim), ts, samples=4000, key=key)
        estimate = some._replace(value=found.total, stderr=found.total_error)
        total = exact[0].total + (dim - 1) * exact[1].total
        assert_estimate(estimate, total)
        with pytest.raises(AssertionError):
            assert_estimate(estimate, total + exact[1].total)
        for k in range(4):
            step = some._replace(value=found.steps[k], stderr=found.step_errors[k])
            assert_estimate(step, exact[0].steps[k] + (dim - 1) * exact[1].steps[k])


# Grids.


@pytest.mark.slow
def test_dynamic_programming_finds_the_cheapest_of_all_grids(profile):
    of = lambda rows: float(jnp.sum(step_costs(jax.tree.map(lambda a: a[jnp.asarray(rows)] if a.ndim else a, profile))))
    every = {(0, *rows, 8): of((0, *rows, 8)) for rows in itertools.combinations(range(1, 8), 2)}
    best = min(every, key=lambda rows: every[rows])
    found = dynamic_grid(profile, 3, refinements=0)
    assert np.allclose(found, profile.ts[jnp.asarray(best)], rtol=rounding())
    worst = max(every, key=lambda rows: every[rows])
    assert not np.allclose(found, profile.ts[jnp.asarray(worst)], rtol=rounding())
    assert np.array_equal(dynamic_grid(profile, 8, refinements=0), profile.ts)


def profile_of(errors):
    """A profile of one coordinate between the levels 2 and -2."""
    levels = np.linspace(2.0, -2.0, 401)
    return DenoisingProfile(*(jnp.asarray(a, float) for a in (np.linspace(0.0, 1.0, 401), levels, errors(levels), 0 * levels, 1.0)))


def test_grids_of_equal_loss_and_of_equal_length_are_those_of_their_integrals():
    # Equal errors at all levels: both are equal levels. Errors e^l have no length (their data are known), and a loss that grows as e^l.
    flat, steep = profile_of(lambda levels: np.ones_like(levels)), profile_of(np.exp)
    for grid in (entropic_grid, length_grid):
        assert np.allclose(grid(flat, 4), np.linspace(0.0, 1.0, 5), atol=1e-6)
    loss = lambda ts: np.exp(2.0 - 4.0 * np.asarray(ts))
    assert np.allclose(np.diff(loss(entropic_grid(steep, 4))), (np.exp(-2.0) - np.exp(2.0)) / 4, rtol=1e-3)
    assert float(denoising_length(flat)[-1]) == pytest.approx(4.0, rel=1e-5)
    assert float(denoising_length(steep)[-1]) < 0.02 * 4.0
    # One coordinate whose error is all noise has nothing left for the variance of least cost.
    assert float(denoising_length(flat, variance="optimal")[-1]) < 1e-2
    with pytest.raises(AssertionError):
        assert np.allclose(entropic_grid(steep, 4), np.linspace(0.0, 1.0, 5), atol=1e-2)


@pytest.mark.slow
@needs_x64
def test_with_the_exact_score_equal_loss_is_equal_information():
    score = MixtureScore(NOISING, HARD)
    ts = entropic_grid(denoising_profile(score, NOISING, HARD, levels=1025), 6)
    gaps = np.diff(path_kl(score, NOISING, HARD, ts).information)
    assert np.allclose(gaps, np.mean(gaps), rtol=1e-4)
    others = np.diff(path_kl(score, NOISING, HARD, named_grid("log-snr", NOISING, 0.0, 1.0, 6)).information)
    assert not np.allclose(others, np.mean(others), rtol=0.1)


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("variance", ["posterior", "optimal"])
def test_many_steps_of_equal_length_cost_a_quarter_of_the_squared_length_shared_among_them(variance):
    score = MixtureScore(NOISING, EASY)
    found = denoising_profile(score, NOISING, EASY, levels=2049)
    stepper = Ancestral() if variance == "posterior" else Calibrated(found)
    length = float(denoising_length(found, variance=variance)[-1])
    counts, excess = (32, 64, 128), []
    for steps in counts:
        total = path_kl(score, NOISING, EASY, length_grid(found, steps, variance=variance), stepper=stepper)
        excess.append(float(total.total - total.terminal) * 4 * steps / length**2 - 1)
    assert abs(excess[-1]) < 0.05
    if variance == "posterior":
        assert_order(np.abs(excess), 1 / np.array(counts), 1)
    # The check can fail: equal levels are longer.
    equal = path_kl(score, NOISING, EASY, named_grid("log-snr", NOISING, 0.0, 1.0, counts[-1]), stepper=stepper)
    assert float(equal.total - equal.terminal) * 4 * counts[-1] / length**2 - 1 > 0.05


def totals(data):
    """The path KL of a grid as a compiled function of its times."""
    score = MixtureScore(NOISING, data)
    return jax.jit(lambda ts: path_kl(score, NOISING, data, ts).total)


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("data", [EASY, HARD], ids=["easy", "hard"])
def test_the_optimised_grid_has_the_least_path_kl(data):
    found = denoising_profile(MixtureScore(NOISING, data), NOISING, data, levels=257)
    total = totals(data)
    for steps in (4, 8, 16):
        named = [named_grid(name, NOISING, 0.0, 1.0, steps) for name in ("linear", "cosine", "edm")]
        named += [grid(found, steps) for grid in (entropic_grid, length_grid)]
        others = [float(total(ts)) for ts in named]
        best = float(total(dynamic_grid(found, steps)))
        assert best < min(others)
        # Between the levels there is something to gain.
        assert best < float(total(dynamic_grid(found, steps, refinements=0)))


@pytest.mark.slow
@needs_x64
def test_gradient_descent_and_dynamic_programming_find_the_same_grid():
    score, total, steps = MixtureScore(NOISING, HARD), totals(HARD), 4
    free = optimise_grid(score, NOISING, HARD, steps, method="gradient", levels=129, iterations=150)
    programmed = optimise_grid(score, NOISING, HARD, steps)
    assert float(total(programmed.ts)) == pytest.approx(float(total(free.ts)), rel=1e-4)
    assert float(programmed.cost) == pytest.approx(float(free.cost), rel=1e-4)
    assert free.history[-1] < free.history[0]
    # A stationary point, unlike equal levels.
    slope = jax.jit(jax.grad(total))
    flat, steep = (float(jnp.max(jnp.abs(slope(ts)[1:-1]))) for ts in (free.ts, named_grid("linear", NOISING, 0.0, 1.0, steps)))
    assert flat < 0.01 * steep
    assert float(total(named_grid("linear", NOISING, 0.0, 1.0, steps))) > 1.1 * float(total(free.ts))


@pytest.mark.slow
def test_equal_steps_of_another_clock_are_the_grid():
    ts = named_grid("edm", NOISING, 0.0, 1.0, 3)
    clock = Clock.through(ts)
    new = reclocked(NOISING, clock)
    found = path_kl(MixtureScore(NOISING, HARD), NOISING, HARD, ts).total
    same, other = (path_kl(MixtureScore(process, HARD), process, HARD, jnp.linspace(0, 1, 4)).total for process in (new, NOISING))
    assert float(same) == pytest.approx(float(found), rel=rounding(1, 500))
    assert float(other) != pytest.approx(float(found), rel=1e-2)


@pytest.mark.slow
def test_a_grid_made_for_data_is_good_for_others(key):
    keys = jax.random.split(key, 3)
    score = MixtureScore(NOISING, HARD)
    found = optimise_grid(score, NOISING, HARD.sample(4000, key=keys[0]), 6, levels=129, key=keys[1])
    best = optimise_grid(score, NOISING, HARD, 6, levels=129)
    total = lambda ts: float(path_kl(score, NOISING, HARD, ts).total)
    assert total(found.ts) == pytest.approx(total(best.ts), rel=0.05)
    assert total(named_grid("log-snr", NOISING, 0.0, 1.0, 6)) > 1.2 * total(best.ts)


# What is made.


def test_the_distance_of_histograms_is_exact_where_levels_meet_and_where_there_is_a_gap():
    # Uniform on (0, 2) and on (1, 2): the quantiles 2u and 1 + u. Halves on (0, 1) and (3, 4): 2u and 2 + 2u.
    uniform, late = ([0.0, 0.5, 1.0, 2.0], [0.0, 0.25, 0.5, 1.0]), ([0.0, 0.5, 1.0, 2.0], [0.0, 0.0, 0.0, 1.0])
    apart = [0.0, 1.0, 3.0, 4.0], [0.0, 0.5, 0.5, 1.0]
    exact = jax.jit(squared_quantile_distance)
    distance = lambda first, second: float(exact(*(np.array(a, float) for a in (*first, *second))))
    assert distance(uniform, late) == pytest.approx(1 / 3, rel=rounding(1, 10))
    assert distance(apart, uniform) == pytest.approx(2.0, rel=rounding(1, 10))
    assert distance(apart, apart) == 0 == distance(late, late)


def check_made(found, factor, ts, kind):
    # The points end at six standard deviations of what is made.
    tolerance = 1e-7 if X64 else 1e-5
    means, covariance = (a[1:2] for a in made(factor, ts, kind))
    exact = Gaussian(means.copy(), covariance[0, 1])
    assert np.allclose(found.density, jnp.exp(jax.vmap(exact.log_prob)(found.xs[:, None])), atol=tolerance)
    mean0, variance0 = marginal(ts[0])
    gap = divergence((np.array([mean0]), np.array([[variance0]])), (means, covariance[:, 1:2]))
    assert float(found.kl) == pytest.approx(gap, rel=10 * tolerance)
    distance = np.hypot(means[0] - mean0, np.sqrt(covariance[0, 1]) - np.sqrt(variance0))
    assert float(found.wasserstein) == pytest.approx(distance, rel=1e-3)


@each_kernel_but_one_slow
def test_the_density_made_by_a_linear_score_is_a_gaussian(kind):
    found = chain_density(scaled(0.7), OU, DATA, TS, stepper=STEPPERS[kind], points=601)
    assert float(found.mass) == pytest.approx(1.0, rel=1e-6)
    check_made(found, 0.7, TS, kind)
    other = next(name for name in STEPPERS if name != kind)
    for factor, wrong in ((1.0, kind), (0.7, other)):
        with pytest.raises(AssertionError):
            check_made(found, factor, TS, wrong)
    assert density_made(0.7, TS, kind).mean.shape == (1,)


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("stepper", ["posterior", "optimal"])
def test_what_is_made_is_no_further_than_the_paths(stepper):
    score = Scaled(MixtureScore(NOISING, HARD), jnp.asarray(0.9, float))
    found = denoising_profile(score, NOISING, HARD, levels=129)
    kernel = Ancestral() if stepper == "posterior" else Calibrated(found)
    for steps in (4, 16):
        ts = dynamic_grid(found, steps)
        end, total = chain_density(score, NOISING, HARD, ts, stepper=kernel), path_kl(score, NOISING, HARD, ts, stepper=kernel).total
        assert float(end.mass) == pytest.approx(1.0, abs=1e-5)
        assert 0 < end.kl < total


# The border.

XS = jnp.zeros((3, 1))
PLANE = GaussianMixture([1.0, 1.0], [[1.0, 0.0], [-1.0, 0.0]], [0.4, 0.4])
SCORE = MixtureScore(NOISING, EASY)
REFUSED = {
    "noise": (lambda key: path_kl(SCORE, OU, EASY, np.array([0.0, 1.0])), "`ts[0]` must be a time at which the process has noise"),
    "dimension": (lambda key: path_kl(SCORE, OU, PLANE, np.array([0.1, 1.0])), "`samples` must be given in 2 dimensions"),
    "key": (lambda key: denoising_profile(SCORE, NOISING, XS), "`key` must be given with configurations, got None."),
    "samples": (lambda key: denoising_profile(SCORE, NOISING, XS, samples=3, key=key), "`samples` must be omitted for configurations"),
    "levels": (lambda key: denoising_profile(SCORE, NOISING, EASY, levels=1), "`levels` must be at least 2, got 1."),
    "iterations": (
        lambda key: optimise_grid(SCORE, NOISING, EASY, 4, method="gradient", iterations=0),
        "`iterations` must be at least 1",
    ),
    "method": (
        lambda key: optimise_grid(SCORE, NOISING, EASY, 4, method="newton"),
        "`method` must be 'dynamic' or 'gradient'",
    ),
    "variance": (lambda key: optimise_grid(SCORE, NOISING, EASY, 4, variance="both"), "`variance` must be 'posterior' or 'optimal'"),
    "line": (lambda key: chain_density(SCORE, NOISING, PLANE, np.array([0.1, 1.0])), "`data` must have one dimension, got 2 dimensions."),
    "steps": (
        lambda key: dynamic_grid(profile_of(np.exp), 401),
        "`steps` must be at least 1 and at most 400",
    ),
    "reversal": (
        lambda key: Calibrated(profile_of(np.exp)).reversal(),
        "`stepper` must have a reversal by the same kernels",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(key, call, message):
    with pytest.raises((ValueError, TypeError)) as refusal:  # noqa: PT011
        call(key)
    assert str(refusal.value).startswith(message)
