"""Targets: densities against SciPy, normalisers against quadrature, exact draws against the density, and what is refused."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import halfcauchy, multivariate_normal, norm, poisson

from thermojax import jarzynski, mean
from thermojax._array import cast
from thermojax.distributions import Gaussian, grid_equilibrium, standard_normal
from thermojax.measures import draw, log_of
from thermojax.targets import (
    as_target,
    breast_cancer,
    brownian_path,
    BrownianPath,
    BrownianPathAndScales,
    check_target,
    cox_process,
    CoxProcess,
    EightSchools,
    Energy,
    Funnel,
    grid_mixture,
    iris,
    logistic_regression,
    LogisticRegression,
    ManyWell,
    MultiWell,
    random_mixture,
    Target,
    TARGETS,
    wine,
)

# One size for all draws: a sampler is compiled once for each.
DRAWS = 8000
MADE = {name: make() for name, make in TARGETS.items()}
OTHERS = {
    "many-well, 6": ManyWell(6, tilt=0.3, curvature=3.0),
    "multi-well, 4": MultiWell(4, 2, separation=1.5),
    "eight schools, centred": EightSchools(centred=True),
    "brownian with scales": BrownianPathAndScales(MADE["brownian"].observations, MADE["brownian"].seen),
    "cox, whitened": CoxProcess(MADE["cox"].counts, MADE["cox"].mean, MADE["cox"].factor, MADE["cox"].area, whitened=True),
    "a distribution": as_target(Gaussian([1.0, -2.0], [[2.0, 0.5], [0.5, 1.0]]), dim=2),
    "a function": Target(lambda x: -jnp.sum(jnp.cosh(x)), 3),
}
EVERY = MADE | OTHERS


def each(targets):
    """A test for each target; those without a name in the registry are slow."""
    marks = lambda name: [pytest.mark.slow] if name in OTHERS else []
    return pytest.mark.parametrize("target", [pytest.param(target, id=name, marks=marks(name)) for name, target in targets.items()])


every_target = each(EVERY)
UNSAMPLED = ("breast-cancer", "iris", "wine", "cox", "brownian with scales", "cox, whitened", "a function")
SAMPLED = {name: target for name, target in EVERY.items() if name not in UNSAMPLED}
every_sampled = each(SAMPLED)
# In a funnel the score has no variance, or one that no sample shows; these two have tests of their own.
WIDE = {name: target for name, target in SAMPLED.items() if name not in ("funnel", "eight schools, centred")}
every_wide = each(WIDE)
WITH_WELLS = {name: EVERY[name] for name in ("many-well", "many-well, 6", "multi-well, 4", "grid25", "gaussians40")}


def grid(*ends, points=801):
    """Nodes of the trapezoidal rule on a box, and the logarithm of their volume."""
    lines = [np.linspace(a, b, points) for a, b in ends]
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(ends)), sum(np.log(s[1] - s[0]) for s in lines)


@eqx.filter_jit
def values(target, xs):
    return jax.vmap(target)(xs)


def log_integral(target, *ends, points=801):
    places, log_volume = grid(*ends, points=points)
    return logsumexp(np.asarray(values(target, jnp.asarray(places, dtype=float)), float)) + log_volume


# ---- every target


@every_target
def test_a_target_is_a_number_that_is_finite_with_its_gradient(target, key):
    xs = jr.normal(key, (16, target.dim))
    check_target(target, xs)
    assert values(target, xs).shape == (16,)
    assert values(target, xs).dtype == xs.dtype
    assert target.log_z is None or (target.log_z.shape == () and target.log_z.dtype == xs.dtype and jnp.isfinite(target.log_z))


@needs_x64
@pytest.mark.slow
@each(MADE)
def test_a_target_in_single_precision_stays_there(target, key):
    single = cast(target, jnp.dtype("float32"))
    xs = jr.normal(key, (16, target.dim), jnp.float32)
    check_target(single, xs)
    narrow = values(single, xs)
    assert narrow.dtype == jnp.float32
    assert target.log_z is None or single.log_z.dtype == jnp.float32
    # A value is a sum of hundreds of terms: the digits of single precision, of their size.
    wide = values(target, xs.astype(jnp.zeros(()).dtype))
    assert np.allclose(narrow, wide, rtol=1e-4, atol=1e-3)


@every_target
def test_a_target_refuses_another_number_of_coordinates(target):
    with pytest.raises(ValueError, match=rf"`x` must have shape \({target.dim},\)"):
        target(jnp.zeros(target.dim + 1))
    with pytest.raises(ValueError, match="`x` must have shape"):
        target(jnp.zeros((3, target.dim)))


@every_sampled
@pytest.mark.slow
def test_a_target_is_what_a_pair_of_measures_can_end_in(target, key):
    xs = draw(target, DRAWS, name="final", key=key)
    assert xs.shape == (DRAWS, target.dim)
    assert xs.dtype == jnp.zeros(()).dtype
    assert values(log_of(target), xs[:16]).shape == (16,)


@pytest.mark.parametrize("name", UNSAMPLED)
def test_a_target_without_an_exact_sampler_says_so(name, key):
    with pytest.raises(ValueError, match="`target` must have an exact sampler for independent draws, got .* without one"):
        EVERY[name].sample(3, key=key)


@eqx.filter_jit
def stein_terms(target, xs, key, sign):
    r"""$\langle\tanh(a\cdot x)\,b\cdot\nabla\ln\gamma + a\cdot b\,\mathrm{sech}^2(a\cdot x)\rangle = 0$ for a random $b$, and $a$ along it.

    Stein's identity, by a bounded function: its error bar can be believed whatever the tails.
    """
    direction = jr.normal(key, (target.dim,), xs.dtype) / jnp.std(xs, axis=0)
    b = jnp.std(xs, axis=0) ** 2 * direction
    a = direction / jnp.std(xs @ direction)

    def one(x):
        bounded = jnp.tanh(a @ (x - jnp.mean(xs, axis=0)))
        return bounded * sign * (b @ jax.grad(target)(x)) + (a @ b) * (1 - bounded**2)

    return jax.vmap(one)(xs)


def stein(target, xs, *, key, sign=1.0):
    return mean(stein_terms(target, xs, key, jnp.asarray(sign, dtype=float)))


@pytest.mark.slow
@every_wide
def test_draws_obey_the_score_of_the_density(target, key):
    draw_key, stein_key = jr.split(key)
    xs = target.sample(DRAWS, key=draw_key)
    for one in jr.split(stein_key, 2):
        assert_estimate(stein(target, xs, key=one), 0.0)
    with pytest.raises(AssertionError):
        assert_estimate(stein(target, xs, key=stein_key, sign=-1.0), 0.0)


def test_draws_that_are_too_wide_fail_the_identity(key):
    target = SAMPLED["multi-well"]
    xs = target.sample(DRAWS, key=key)
    with pytest.raises(AssertionError):
        assert_estimate(stein(target, 1.05 * xs, key=key), 0.0)


def check_wells(target, weights, key):
    numbers = values(target.well, target.sample(DRAWS, key=key))
    common = np.argsort(-np.asarray(weights))[:3]
    for number in common:
        assert_estimate(mean((numbers == number).astype(float)), weights[number])


@pytest.mark.parametrize("target", WITH_WELLS.values(), ids=WITH_WELLS)
@pytest.mark.slow
def test_draws_visit_each_well_by_its_weight(target, key):
    assert jnp.abs(jnp.sum(target.well_weights) - 1) < rounding(steps=len(target.well_weights))
    check_wells(target, target.well_weights, key)


def test_weights_of_wells_that_are_wrong_show(key):
    with pytest.raises(AssertionError):
        check_wells(ManyWell(), ManyWell().well_weights[::-1], key)


# ---- funnel and mixtures


def test_the_funnel_is_the_product_of_its_laws(key):
    x = np.asarray(jr.normal(key, (6,)), float)
    exact = norm.logpdf(x[0], scale=2.0) + norm.logpdf(x[1:], scale=np.exp(x[0] / 2)).sum()
    assert abs(float(Funnel(6, 2.0)(jnp.asarray(x, dtype=float))) - exact) < rounding(abs(exact), 6)


def test_draws_of_the_funnel_have_its_laws(key):
    xs = Funnel(3, 2.0).sample(DRAWS, key=key)
    assert_estimate(mean(xs[:, 0] ** 2), 4.0)
    for i in (1, 2):
        assert_estimate(mean(xs[:, i] ** 2 * jnp.exp(-xs[:, 0])), 1.0)
    assert_estimate(mean(xs[:, 1] * xs[:, 2] * jnp.exp(-xs[:, 0])), 0.0)
    with pytest.raises(AssertionError):  # a width e^v in place of e^{v/2}
        assert_estimate(mean(xs[:, 1] ** 2 * jnp.exp(-2 * xs[:, 0])), 1.0)


def test_mixtures_are_the_sums_they_are_said_to_be(key):
    places, x = itertools.product((-10, -5, 0, 5, 10), repeat=2), np.array([4.0, -6.0])
    exact = np.log(np.mean([multivariate_normal(place, 0.3).pdf(x) for place in places]))
    assert abs(float(grid_mixture()(jnp.asarray(x, dtype=float))) - exact) < rounding(abs(exact), 25)
    random = random_mixture(components=200, dim=3, reach=7.0, variance=2.0, key=key)
    assert random.dim == 3
    assert random.density.covariances.tolist() == [2.0] * 200
    assert jnp.max(jnp.abs(random.density.means)) < 7
    assert_estimate(mean(random.density.means.reshape(-1) ** 2), 49 / 3)


def test_a_key_means_the_same_mixture_in_both_precisions():
    # The first mean of `jr.key(0)`; see `random_mixture`.
    assert jnp.array_equal(MADE["gaussians40"].density.means.astype(jnp.float32), 40 * jr.uniform(jr.key(0), (40, 2), jnp.float32, -1, 1))


# ---- wells


def test_normalisers_of_wells_are_those_of_quadrature():
    # By adaptive quadrature of one well in double precision, to 1e-12.
    assert abs(float(MultiWell(5, 5, 4.0).log_z) + 0.541055512879) < max(1e-12, rounding(4, 5))
    assert abs(float(ManyWell().log_z) - 10.293479707074) < max(1e-12, rounding(10))


@needs_x64
@pytest.mark.parametrize("separation", [0.2, 1.5, 9.0])
def test_normaliser_of_the_multi_well_at_any_separation(separation):
    one = quad(lambda x: np.exp(-((x**2 - separation) ** 2)), 0, 6, epsabs=0, epsrel=1e-13, points=[separation**0.5])[0]
    exact = 2 * np.log(2 * one) + 1.5 * np.log(2 * np.pi)
    assert abs(float(MultiWell(5, 2, separation).log_z) - exact) < 1e-12


@needs_x64
@pytest.mark.parametrize(("tilt", "curvature"), [(-2.0, 5.0), (0.0, 1.0), (4.0, 12.0)])
def test_normaliser_and_weights_of_the_many_well_at_any_tilt(tilt, curvature):
    weight = lambda x: np.exp(tilt * x + curvature * x**2 - x**4)
    target = ManyWell(4, tilt, curvature)
    edge = float(target.barrier)
    assert abs(tilt + 2 * curvature * edge - 4 * edge**3) < 1e-12
    assert 2 * curvature - 12 * edge**2 > 0
    left, right = (quad(weight, *ends, epsabs=0, epsrel=1e-13, limit=200)[0] for ends in ((-7, edge), (edge, 7)))
    assert abs(float(target.log_z) - 2 * np.log(left + right) - np.log(2 * np.pi)) < 1e-11
    exact = np.array([left**2, left * right, left * right, right**2]) / (left + right) ** 2
    assert np.allclose(target.well_weights, exact, rtol=1e-11, atol=0)


def test_slope_of_the_normaliser_is_a_mean_of_the_draws(key):
    slope = jax.grad(lambda tilt: ManyWell(2, tilt, 2.0).log_z)(jnp.asarray(0.5))
    assert_estimate(mean(ManyWell(2, 0.5, 2.0).sample(DRAWS, key=key)[:, 0]), slope)


@needs_x64
def test_draws_by_inversion_have_the_distribution_function_of_the_well(key):
    xs = np.sort(np.asarray(MultiWell(1, 1, 1.5).sample(DRAWS, key=key)[:, 0]))
    line = np.linspace(-3, 3, 60_001)
    cumulative = np.cumsum(np.exp(-((line**2 - 1.5) ** 2)))
    levels = np.interp(xs, line, cumulative / cumulative[-1])
    distance = np.max(np.abs(levels - (np.arange(DRAWS) + 0.5) / DRAWS))
    # Kolmogorov: above 2.2 / sqrt(n) once in eight thousand.
    assert distance < 2.2 / np.sqrt(DRAWS)


def test_a_target_is_a_potential(key):
    target = ManyWell(2, 0.5, 2.0)
    assert Energy(target)(jnp.array([0.3, 1.0]), jnp.array(0.0)) == -target(jnp.array([0.3, 1.0]))
    assert abs(float(grid_equilibrium(Energy(target), 0.0, dim=2, cells=256).log_z - target.log_z)) < rounding(10, 10)


# ---- regression


FEATURES = np.array([[-1.0, 0.5], [1.0, 0.2], [1.0, -1.5], [1.0, 2.0]])


def log_evidence(target):
    return log_integral(target, (-12, 12), (-12, 12), points=241)


def check_evidences(density):
    """Over all labels they are those of a law; `density` takes a target and returns what is integrated."""
    posteriors = [LogisticRegression(FEATURES, np.array(labels), 2, 1.5) for labels in itertools.product((0, 1), repeat=4)]
    assert abs(logsumexp([log_evidence(density(posterior)) for posterior in posteriors])) < rounding(10, 241)


def test_evidences_of_all_labels_add_up_to_one():
    check_evidences(lambda posterior: posterior)
    with pytest.raises(AssertionError):  # a likelihood without a prior, in the same box
        check_evidences(lambda posterior: posterior.log_likelihood)


def test_evidence_of_a_small_regression_from_draws_of_the_prior(key):
    target = LogisticRegression(FEATURES, np.array([0, 1, 0, 1]), 2, 1.5)
    ws = 1.5 * jr.normal(key, (DRAWS, 2))
    assert_estimate(jarzynski(-values(target.log_likelihood, ws), beta=1.0), -log_evidence(target))


def test_evidence_of_two_classes_in_one_dimension_by_hand():
    target = LogisticRegression([[2.0], [-1.0]], np.array([1, 1]))
    weight = lambda w: norm.pdf(w) / (1 + np.exp(-2 * w)) / (1 + np.exp(w))
    assert abs(log_integral(target, (-12, 12), points=1001) - np.log(quad(weight, -12, 12)[0])) < rounding(10, 100)


def test_classes_have_the_probabilities_of_a_softmax(key):
    labels = np.array([2, 0, 1, 2])
    target = LogisticRegression(FEATURES, labels, 3, 0.7)
    w = np.asarray(jr.normal(key, (3, 2)), float)
    weights = np.exp(FEATURES @ w.T)
    exact = np.log(weights[np.arange(4), labels] / weights.sum(axis=1)).sum() + norm.logpdf(w, scale=0.7).sum()
    assert abs(float(target(jnp.asarray(w.ravel(), dtype=float))) - exact) < rounding(abs(exact), 10)


@pytest.mark.parametrize(("make", "shape", "classes"), [(breast_cancer, (569, 31), 2), (iris, (150, 5), 3), (wine, (178, 14), 3)])
def test_data_are_standardised_with_an_intercept(make, shape, classes):
    target = make()
    assert target.features.shape == shape
    assert target.classes == classes
    assert jnp.all(target.features[:, 0] == 1)
    assert np.allclose(target.features[:, 1:].mean(axis=0), 0, atol=1e-6)
    assert np.allclose(target.features[:, 1:].std(axis=0), 1, atol=1e-6)


# ---- Brownian path


def test_evidence_of_a_brownian_path_is_that_of_its_observations():
    target = brownian_path(times=12, hidden=4, innovation=0.5, noise=0.3, key=jr.key(3))
    ranks = np.arange(1, 13)[np.asarray(target.seen)]
    covariance = 0.5**2 * np.minimum(ranks[:, None], ranks[None]) + 0.3**2 * np.eye(8)
    exact = multivariate_normal(np.zeros(8), covariance).logpdf(np.asarray(target.observations, float)[np.asarray(target.seen)])
    assert abs(float(target.log_z) - exact) < rounding(10, 12)


def check_posterior(target, log_z, key):
    posterior = target.posterior()
    xs = jr.normal(key, (16, target.dim))
    logs = values(target, xs)
    assert jnp.allclose(logs - log_z, values(posterior.log_prob, xs), rtol=rounding(), atol=rounding(float(jnp.max(jnp.abs(logs)))))


@pytest.mark.slow
def test_joint_density_over_evidence_is_the_posterior(key):
    target = brownian_path(times=12, hidden=4, innovation=0.5, noise=0.3, key=jr.key(3))
    check_posterior(target, target.log_z, key)
    with pytest.raises(AssertionError):
        check_posterior(target, eqx.tree_at(lambda t: t.noise, target, jnp.asarray(0.31)).log_z, key)
    xs = target.sample(DRAWS, key=key)
    for i in (0, 5, 11):
        assert_estimate(mean(xs[:, i]), target.posterior().mean[i])


def test_unknown_scales_come_with_their_priors(key):
    known = brownian_path(times=12, hidden=4, innovation=0.5, noise=0.3, key=jr.key(3))
    scales = np.log([0.5, 0.3])
    x = jr.normal(key, (12,))
    exact = float(known(x)) + norm.logpdf(scales, scale=1.7).sum()
    unknown = BrownianPathAndScales(known.observations, known.seen, 1.7)
    assert abs(float(unknown(jnp.concatenate([jnp.asarray(scales, dtype=float), x]))) - exact) < rounding(abs(exact), 12)


def test_observations_are_drawn_from_the_model(key):
    data = jax.vmap(lambda k: brownian_path(times=5, hidden=0, innovation=0.5, noise=0.3, key=k).observations)(jr.split(key, DRAWS))
    assert_estimate(mean(data[:, 4] ** 2), 5 * 0.5**2 + 0.3**2)
    assert_estimate(mean(data[:, 1] * data[:, 4]), 2 * 0.5**2)


def test_what_is_not_seen_is_not_read(key):
    seen = np.array([True, False, True])
    first, second = (BrownianPath([0.1, hidden, 0.3], seen) for hidden in (7.0, np.nan))
    xs = jr.normal(key, (16, 3))
    check_target(second, xs)
    assert jnp.all(values(first, xs) == values(second, xs))
    assert first.log_z == second.log_z


# ---- eight schools


def schools_on_a_grid():
    """Places in (mu, ln tau), the logarithm of the joint density with the data there, the effects integrated by hand, and of a cell."""
    places, log_volume = grid((-35, 40), (-35, 16))
    mu, log_tau = places.T
    tau, model = np.exp(log_tau), EightSchools()
    logs = norm.logpdf(mu, scale=5) + halfcauchy.logpdf(tau, scale=5) + log_tau
    for effect, error in zip(np.asarray(model.effects), np.asarray(model.errors), strict=True):
        logs = logs + norm.logpdf(effect, mu, np.hypot(tau, error))
    return places, logs, log_volume


def test_evidence_and_draws_of_eight_schools_are_those_of_quadrature_in_two_dimensions(key):
    places, logs, log_volume = schools_on_a_grid()
    log_z = logsumexp(logs) + log_volume
    assert abs(float(EightSchools().log_z) - log_z) < max(1e-10, rounding(50))
    weights = np.exp(logs - log_volume - log_z + 2 * log_volume)
    xs = EightSchools().sample(DRAWS, key=key)
    for i in (0, 1):
        assert_estimate(mean(xs[:, i]), weights @ places[:, i])
        assert_estimate(mean(xs[:, i] ** 2), weights @ places[:, i] ** 2)
    assert_estimate(mean(xs[:, 0] * xs[:, 1]), weights @ (places[:, 0] * places[:, 1]))


def test_evidence_of_eight_schools_from_draws_of_the_prior(key):
    model = EightSchools()
    spread_key, rest_key = jr.split(key)
    taus = 5 * jnp.abs(jnp.tan(jnp.pi * (jr.uniform(spread_key, (DRAWS,)) - 0.5)))
    zs = jr.normal(rest_key, (DRAWS, 9))
    xs = jnp.concatenate([5 * zs[:, :1], jnp.log(taus)[:, None], zs[:, 1:]], axis=1)
    log_tau = xs[:, 1]
    jacobian = jnp.log(2 / (5 * jnp.pi * (1 + (taus / 5) ** 2))) + log_tau
    priors = jnp.sum(jax.scipy.stats.norm.logpdf(zs), axis=1) - jnp.log(5.0) + jacobian
    works = priors - values(model, xs)
    assert_estimate(jarzynski(works, beta=1.0), -model.log_z)
    with pytest.raises(AssertionError):  # without the Jacobian of the logarithm
        assert_estimate(jarzynski(works - log_tau, beta=1.0), -model.log_z)


@pytest.mark.slow
def test_centred_effects_are_the_same_model(key):
    free, centred = EightSchools(), EightSchools(centred=True)
    xs = free.sample(DRAWS, key=key)
    effects = xs[:, :1] + jnp.exp(xs[:, 1:2]) * xs[:, 2:]
    ys = jnp.concatenate([xs[:, :2], effects], axis=1)
    assert jnp.allclose(centred.sample(DRAWS, key=key), ys, rtol=rounding(10), atol=rounding(100))
    # At places where the division by tau loses no digits; the volume of the change of coordinates is tau for each school.
    wide = np.flatnonzero(xs[:, 1] > 0)[:16]
    xs, ys = xs[wide], ys[wide]
    assert jnp.allclose(values(free, xs), values(centred, ys) + 8 * xs[:, 1], rtol=rounding(), atol=rounding(100))
    assert free.log_z == centred.log_z


# ---- Cox process


def test_cox_process_is_poisson_given_a_gaussian_field(key):
    target, white = EVERY["cox"], EVERY["cox, whitened"]
    places = np.array(list(itertools.product((np.arange(8) + 0.5) / 8, repeat=2)))
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    level, covariance = np.log(126) - 1.91 / 2, 1.91 * np.exp(-33 * distances)
    x = np.asarray(level + jr.normal(key, (64,)), float)
    exact = multivariate_normal(np.full(64, level), covariance).logpdf(x) + poisson.logpmf(np.asarray(target.counts), np.exp(x) / 64).sum()
    assert abs(float(target(jnp.asarray(x, dtype=float))) - exact) < rounding(abs(exact), 50)
    z = np.linalg.solve(np.asarray(target.factor, float), x - level)
    volume = np.log(np.diag(np.asarray(target.factor))).sum()
    assert abs(float(white(jnp.asarray(z, dtype=float))) - exact - volume) < rounding(abs(exact), 50)


def test_evidences_of_all_counts_add_up_to_one():
    # One cell that sees two points on average: beyond 60 there is nothing.
    evidences = [log_integral(CoxProcess([count], np.log(2.0) - 0.1, [[0.2**0.5]], 1.0), (-4, 5), points=401) for count in range(60)]
    assert abs(logsumexp(evidences)) < rounding(10, 60)


@pytest.mark.slow
def test_counts_are_drawn_from_the_model(key):
    counts = jax.jit(jax.vmap(lambda k: cox_process(side=3, expected=40.0, variance=0.3, length=0.4, key=k).counts))(jr.split(key, DRAWS))
    assert_estimate(mean(jnp.sum(counts, axis=1)), 40.0)
    # Neighbours: E[y_i y_j] = (40 / 9)^2 exp(C_ij).
    assert_estimate(mean(counts[:, 0] * counts[:, 1]), (40 / 9) ** 2 * np.exp(0.3 * np.exp(-1 / 3 / 0.4)))


# ---- at the border


def test_new_numbers_do_not_compile_again():
    traces = []

    @eqx.filter_jit
    def value(target, x):
        traces.append(1)
        return target(x)

    by_gaussian = lambda s: Target(Gaussian([s, s], s).log_prob, 2)
    for make in (lambda s: ManyWell(2, s), lambda s: Funnel(2, s), lambda s: MultiWell(2, 1, s), by_gaussian):
        before = len(traces)
        assert value(make(0.5), jnp.ones(2)) != value(make(0.7), jnp.ones(2))
        assert len(traces) == before + 1


def test_a_function_is_a_target_with_what_is_known_of_it(key):
    target = Target(lambda x: -0.5 * jnp.sum(x**2), 3, 1.5 * np.log(2 * np.pi), standard_normal(3).sample)
    assert target.sample(4, key=key).shape == (4, 3)
    assert abs(float(target.log_z) - float(Target(standard_normal(3).log_prob, 3)(jnp.zeros(3))) * -1) < rounding(3)
    with pytest.raises(ValueError, match=r"`sampler` must return draws of shape \(4, 3\), got shape \(4, 2\)"):
        Target(target, 3, sampler=standard_normal(2).sample).sample(4, key=key)
    with pytest.raises(ValueError, match="`log_density` must return one number for one configuration, got shape"):
        Target(lambda x: x**2, 3)(jnp.zeros(3))


def test_a_sick_target_is_told_where_it_is_sick():
    xs = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 3.0], [-1.0, 2.0, 0.5]])
    with pytest.raises(ValueError, match=r"`target` must have a finite value, got nan at xs\[2\] = \[-1. +2. +0.5\] \(1 of 3 places\)"):
        check_target(lambda x: jnp.log(x[0]), xs)
    with pytest.raises(ValueError, match=r"a finite gradient, got an infinite number in the coordinates \[1\] at xs\[1\]"):
        check_target(lambda x: -jnp.sum(jnp.sqrt(x[1:])), xs)
    with pytest.raises(ValueError, match=r"a finite value, got an infinite number at xs\[0\] .* \(3 of 3 places\)"):
        check_target(lambda x: jnp.where(x[0] > 5, 0.0, -jnp.inf), xs)
    with pytest.raises(ValueError, match=r"`xs` must have shape \(place, 10\), as the target, got shape \(3, 3\)"):
        check_target(Funnel(), xs)
    with pytest.raises(ValueError, match=r"`xs` must have shape \(place, dim\)"):
        check_target(Funnel(), xs[0])
    with pytest.raises(ValueError, match=r"`target` must return one number for one configuration, got shape \(3,\)"):
        check_target(lambda x: x, xs)
    check_target(lambda x: jnp.sum(x), xs)


REFUSED = {
    "dim": (lambda: Funnel(1), "`dim` must be a whole number, at least 2, got 1"),
    "improper": (lambda: Target(jnp.sum, 2, np.inf), "`log_z` must be finite: a density that cannot be normalised"),
    "odd": (lambda: ManyWell(3), "`dim` must be even"),
    "no barrier": (lambda: ManyWell(2, 9.0), "`tilt` must leave a barrier"),
    "double": (lambda: MultiWell(2, 3), "`double` must be between 1 and dim = 2, got 3"),
    "separation": (lambda: MultiWell(2, 2, -1.0), "`separation` must be positive, got -1.0"),
    "flat prior": (lambda: LogisticRegression([[1.0]], np.array([0]), 2, np.inf), "`prior_scale` must be positive and finite: a prior"),
    "classes": (lambda: LogisticRegression([[1.0]], np.array([2])), "`labels` must be whole numbers from 0 to 1"),
    "constant": (lambda: logistic_regression(np.ones((2, 1)), np.array([0, 1])), "`features` must vary"),
    "empty class": (lambda: logistic_regression(np.eye(2)[:, :1], np.array([0, 2])), "`labels` must hold every class"),
    "flat schools": (lambda: EightSchools(spread_scale=np.inf), "`spread_scale` must be positive and finite: a prior"),
    "schools": (lambda: EightSchools([1.0, 2.0]), r"`errors` must have shape \(2,\), got shape \(8,\)"),
    "counts": (lambda: CoxProcess([0.5], 0.0, [[1.0]], 1.0), "`counts` must be whole numbers"),
    "factor": (lambda: CoxProcess([1.0], 0.0, [[1.0, 0.0]], 1.0), r"`factor` must have shape \(1, 1\)"),
    "nan": (lambda: BrownianPath([np.nan, 1.0], np.array([True, True])), "`observations` must be finite where they are seen"),
    "hidden": (lambda: brownian_path(times=3, hidden=3, key=jr.key(0)), "`hidden` must be between 0 and 2, got 3"),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
