"""Limits of learned scores: quadrature on the line against the table of exact numbers, Monte Carlo against quadrature."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from systems import Scaled

from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import LogSnrLinear, OrnsteinUhlenbeck, VarianceExploding
from thermojax.generative import entropy_limits, line_limits, MixtureScore

# Data N(+-1, 0.4) with equal weights under dx = -x dt + sqrt(2) dW until t = 3.
DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
OU, HORIZON = OrnsteinUhlenbeck(), 3.0
ENTROPY, LATE_ENTROPY = 1.510397505118, 1.419434038031
# The Gaussian of the same moments, as a mixture: the model of a linear score.
TWINS = GaussianMixture([1.0, 1.0], [[0.0], [0.0]], [1.4, 1.4])
NORMAL, FITTED = Gaussian([0.0], 1.0), Gaussian([0.0], 1.0 + 0.4 * np.exp(-2 * HORIZON))


def scaled(factor, data=DATA, noising=OU):
    return Scaled(MixtureScore(noising, data), jnp.asarray(factor, float))


# Exact, quadrature; the density of the SDE by a second method (the linear equation for the density on a fixed grid).
NAMES = ("path_kl", "system_change", "bound", "likelihood", "flow_nll", "sampler_nll")
TABLE = {
    "fit": (0.076777146394, -0.167740613481, 1.548786078315, 1.587174651515, 1.587174651515, 1.587174651515),
    "half": (0.7272591332, -2.2727408668, 2.6012862050, 2.9649160172, 2.5025562786, 2.0130874035),
    "nine tenths": (0.0290903653, -0.6436804083, 1.7867559757, 1.8013014040, 1.5829108493, 1.5197390408),
    "exact": (0.0, -0.0909634671, 1.5103975051, 1.5103977507, 1.5103977507, 1.5103975051),
}
MODELS = {
    "fit": (scaled(1.0, TWINS), FITTED),
    "half": (scaled(0.5), NORMAL),
    "nine tenths": (scaled(0.9), NORMAL),
    "exact": (scaled(1.0), NORMAL),
}


def line(name, data=DATA, **how):
    score, prior = MODELS[name]
    return line_limits(score, OU, data, prior=prior, horizon=HORIZON, points=257, rtol=1e-9, atol=1e-9, **how)


def check_row(found, expected):
    for name, value in zip(NAMES, expected, strict=True):
        assert float(getattr(found, name)) == pytest.approx(value, abs=1e-8), name


def check_identities(found, *, share=0.5):
    """Path KL is the integral of its rates, so is the change of entropy, and the averaged likelihood exceeds the bound by its share."""
    assert float(found.true_system_change) == pytest.approx(float(found.final_entropy - found.initial_entropy), abs=1e-10)
    assert float(found.likelihood - found.bound) == pytest.approx(float(found.mismatch + share * found.path_kl), abs=1e-10)
    assert float(found.weights @ found.path_kl_rates) == pytest.approx(float(found.path_kl), abs=1e-10)


def check_sandwich(lower, found, upper):
    assert lower - 1e-8 <= found <= upper + 1e-8


@needs_x64
@pytest.mark.slow
def test_limits_on_the_line_are_those_of_the_table():
    rows = {name: line(name) for name in TABLE}
    for name, found in rows.items():
        check_row(found, TABLE[name])
        check_identities(found)
        assert float(found.initial_entropy) == pytest.approx(ENTROPY, abs=1e-10)
        assert float(found.final_entropy) == pytest.approx(LATE_ENTROPY, abs=1e-10)
        check_sandwich(found.initial_entropy, found.sampler_nll, found.ceiling)
    assert float(rows["exact"].mismatch) == pytest.approx(2.456e-7, abs=1e-10)
    # What no theorem says: the bound, and the averaged likelihood, below the likelihood of the flow.
    with pytest.raises(AssertionError):
        check_sandwich(rows["half"].bound, rows["half"].flow_nll, rows["half"].likelihood)
    # The checks can fail: another model, the whole path KL for its half, the flow in the place of the SDE.
    with pytest.raises(AssertionError):
        check_row(rows["nine tenths"], TABLE["half"])
    with pytest.raises(AssertionError):
        check_identities(rows["half"], share=1.0)
    with pytest.raises(AssertionError):
        check_sandwich(rows["half"].initial_entropy, rows["half"].flow_nll, rows["half"].ceiling)


@pytest.mark.slow
@needs_x64
def test_identities_on_the_line_hold_for_a_lopsided_mixture_and_a_score_of_other_data():
    lopsided = GaussianMixture([1.0, 0.4], [[0.7], [-1.3]], [0.3, 0.6])
    found = line("nine tenths", lopsided)
    check_identities(found)
    check_sandwich(found.initial_entropy, found.sampler_nll, found.ceiling)
    assert found.initial_entropy < found.flow_nll
    # A later start is another problem with the noised data in the place of the data.
    start, rest = 0.2, OU.marginal(lopsided, jnp.asarray(0.2))
    late = line("nine tenths", lopsided, start=start)
    assert float(late.initial_entropy) == pytest.approx(-quadrature(rest), abs=1e-8)
    check_identities(late)
    check_sandwich(late.initial_entropy, late.sampler_nll, late.ceiling)


def quadrature(density):
    """The mean of the logarithm of a density on the line."""
    xs = jnp.linspace(-12.0, 12.0, 2001)
    logs = jax.vmap(density.log_prob)(xs[:, None])
    return float(jnp.exp(logs) @ logs * (xs[1] - xs[0]))


@needs_x64
@pytest.mark.nightly
def test_limits_on_the_line_do_not_depend_on_the_clock_or_the_grid():
    def limits(noising, start, horizon, points):
        return line_limits(scaled(0.9, noising=noising), noising, DATA, prior=NORMAL, start=start, horizon=horizon, points=points)

    clock = LogSnrLinear(6.0, -np.log(np.expm1(2 * HORIZON)))
    start = 0.5 * np.log1p(np.exp(-6.0))
    by_clock, by_time = limits(clock, 0.0, 1.0, 301), limits(OU, start, HORIZON, 401)
    for name in (*NAMES, "initial_entropy", "final_entropy", "mismatch", "ceiling"):
        assert float(getattr(by_clock, name)) == pytest.approx(float(getattr(by_time, name)), abs=1e-8), name
    # The check can fail: the same numbers from time zero.
    with pytest.raises(AssertionError):
        check_row(by_time, TABLE["nine tenths"])


BAD_LINES = {
    "`data` must have one dimension": {"data": standard_normal(2)},
    "`points` must put five points": {"points": 60},
    "`ts` must increase strictly": {"horizon": 0.0},
    "`times` must be at least 2": {"times": 1},
}


@needs_x64
@pytest.mark.parametrize("message", BAD_LINES)
def test_problems_that_the_line_cannot_hold_are_refused(message):
    changes = {"data": DATA, "horizon": HORIZON} | BAD_LINES[message]
    with pytest.raises(ValueError, match=message):
        line_limits(scaled(1.0), OU, changes.pop("data"), **changes)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="needs float32")
def test_the_line_asks_for_double_precision():
    with pytest.raises(ValueError, match="`jax_enable_x64` must be on"):
        line_limits(scaled(1.0), OU, DATA)


# Monte Carlo.


def limits(name, key, *, n=5000, **how):
    score, prior = MODELS[name]
    data_key, limits_key = jr.split(key)
    how = {"horizon": HORIZON, "truth": DATA, "levels": 25} | how
    return entropy_limits(score, OU, DATA.sample(n, key=data_key), prior=prior, key=limits_key, **how)


def exact_limits(name):
    """The row of the table, with what follows from it."""
    row = dict(zip(NAMES, TABLE[name], strict=True))
    mismatch = row["likelihood"] - row["bound"] - 0.5 * row["path_kl"]
    gap = mismatch + row["path_kl"]
    return {
        "likelihood": row["likelihood"],
        "ceiling": ENTROPY + gap,
        "system_change": row["system_change"],
        "final_entropy": LATE_ENTROPY,
        "entropy": LATE_ENTROPY - row["system_change"],
        "initial_entropy": ENTROPY,
        "bound": row["bound"],
        "gap": gap,
        "path_kl": row["path_kl"],
        "score_error": row["path_kl"],
    }


def check_limits(found, expected):
    for name, value in expected.items():
        assert_estimate(getattr(found, name), value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "nine tenths"])
def test_limits_from_samples_agree_with_quadrature(key, name):
    found, expected = limits(name, key), exact_limits(name)
    check_limits(found, expected)
    assert found.ceiling.trustworthy
    assert found.ts.shape == found.widths.shape == found.system.values.shape == found.system.errors.shape == (25,)
    total = jnp.sum(found.system.values * found.widths)
    assert float(total) == pytest.approx(float(found.system_change.value), abs=rounding(10, steps=100))
    # Guaranteed, beyond the errors: the bound below the likelihood; the SDE's likelihood in the sandwich.
    assert found.bound.value < found.likelihood.value
    sampler = TABLE[name][NAMES.index("sampler_nll")]
    low, high = found.initial_entropy, found.ceiling
    assert low.value - 4 * low.stderr < sampler < high.value + 4 * high.stderr
    # The check can fail: another model; the bound in the place of the likelihood.
    with pytest.raises(AssertionError):
        check_limits(found, exact_limits("half"))
    with pytest.raises(AssertionError):
        check_limits(found._replace(bound=found.likelihood), expected)


# Exact, quadrature: dS/dt = pi - phi, -phi, pi and -(2 pi - phi) at t = 0.5.
RATES = {"system": -0.11913813913234, "exchange": -0.14715177646858, "intrinsic": 0.02801363733624, "reverse_exchange": 0.091124501796096}


def check_rates(found, expected):
    for name, value in expected.items():
        rate = np.mean(found[name], axis=1)
        assert abs(rate.mean() - value) < 4 * rate.std(ddof=1) / np.sqrt(len(rate)), name


@pytest.mark.slow
def test_profiles_agree_with_quadrature(key):
    # Independent samples, so that their spread has the fluctuations of the data too.
    runs = [limits("exact", k, start=0.495, horizon=0.505) for k in jr.split(key, 12)]
    found = {name: np.stack([getattr(run, name).values for run in runs]) for name in RATES}
    check_rates(found, RATES)
    for run in runs[:1]:
        assert np.allclose(run.intrinsic.values, run.system.values - run.exchange.values, atol=rounding(10))
    wrong = {
        "the reverse process gives back what the forward one took": found | {"reverse_exchange": -found["exchange"]},
        "production is the rate of the system": found | {"intrinsic": found["system"]},
        "sign of the flux": found | {"exchange": -found["exchange"]},
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_rates(law, RATES)


@needs_x64
@pytest.mark.nightly
def test_every_way_to_the_divergence_has_the_same_mean(key):
    clock = LogSnrLinear(6.0, -np.log(np.expm1(2 * HORIZON)))
    score, data_key, limits_key = scaled(0.9, noising=clock), *jr.split(key)
    exact = line_limits(score, clock, DATA, prior=NORMAL)
    data = DATA.sample(20_000, key=data_key)
    errors = {}
    for divergence in ("exact", "denoising", "stein"):
        found = entropy_limits(score, clock, data, prior=NORMAL, truth=DATA, levels=50, divergence=divergence, key=limits_key)
        for name in ("likelihood", "ceiling", "bound", "path_kl", "score_error", "system_change"):
            assert_estimate(getattr(found, name), float(getattr(exact, "path_kl" if name == "score_error" else name)))
        with pytest.raises(AssertionError):
            assert_estimate(found.likelihood, float(exact.flow_nll))
        errors[divergence] = float(found.likelihood.stderr)
    # What replaces the divergence by parts costs variance.
    assert errors["exact"] < min(errors["denoising"], errors["stein"])


@pytest.mark.nightly
def test_exact_score_in_sixteen_dimensions_closes_the_gap(key):
    mean_key, data_key, limits_key = jr.split(key, 3)
    truth = GaussianMixture(jnp.ones(3), jr.normal(mean_key, (3, 16)), jnp.array([0.3, 0.5, 0.8]))
    data, how = truth.sample(4000, key=data_key), {"horizon": 2.0, "levels": 25, "divergence": "hutchinson"}
    found = {factor: entropy_limits(scaled(factor, truth), OU, data, truth=truth, key=limits_key, **how) for factor in (1.0, 0.8)}
    check_limits(found[1.0], {"path_kl": 0.0, "gap": float(found[1.0].mismatch.value)})
    # The mean score error of a scaled score is known from the rates of the exact one.
    assert_estimate(found[0.8].path_kl, found[0.8].score_error.value)
    with pytest.raises(AssertionError):
        check_limits(found[0.8], {"path_kl": 0.0})


@pytest.mark.nightly
def test_samples_and_their_entropy_alone_give_the_limits_of_gaussian_data(key):
    data_key, limits_key = jr.split(key)
    truth = Gaussian([0.5, -0.2, 0.1], jnp.array([[0.8, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.5]]))
    late, start = OU.marginal(truth, jnp.asarray(1.0)), float(truth.entropy())
    mismatch = 0.5 * float(jnp.sum(late.mean**2) + jnp.trace(late.covariance) + 3 * jnp.log(2 * jnp.pi)) - float(late.entropy())
    data, score = truth.sample(5000, key=data_key), MixtureScore(OU, truth)
    measure = lambda **how: entropy_limits(score, OU, data, levels=25, key=limits_key, **how)
    found = measure(entropy=start)
    # The score is exact, the Gaussian of the same moments the density itself, and the prior some way off.
    expected = {
        "entropy": start,
        "bound": start,
        "likelihood": start + mismatch,
        "ceiling": start + mismatch,
        "gap": mismatch,
        "mismatch": mismatch,
        "path_kl": 0.0,
        "final_entropy": float(late.entropy()),
    }
    check_limits(found, expected)
    assert found.score_error is found.score_error_rate is None
    blind = measure()
    assert blind.bound is blind.gap is blind.path_kl is blind.initial_entropy is None
    assert float(blind.ceiling.value) == pytest.approx(float(found.ceiling.value), abs=rounding(10, steps=100))
    # The checks can fail: the entropy of other data, a prior said to be perfect.
    with pytest.raises(AssertionError):
        check_limits(measure(entropy=start + 0.3), expected)
    with pytest.raises(AssertionError):
        check_limits(found, {"mismatch": 0.0})


@pytest.mark.slow
def test_without_drift_the_reverse_process_exchanges_minus_twice_the_production(key):
    data_key, limits_key = jr.split(key)
    noising = VarianceExploding(0.1, 5.0)
    data, prior = DATA.sample(500, key=data_key), noising.marginal(DATA.moments(), jnp.asarray(1.0))
    found = entropy_limits(MixtureScore(noising, DATA), noising, data, prior=prior, levels=10, divergence="denoising", key=limits_key)
    assert np.allclose(found.reverse_exchange.values, -2 * found.intrinsic.values, rtol=rounding(10))
    assert np.all(np.asarray(found.exchange.values) == 0)
    assert np.all(np.asarray(found.intrinsic.values) > 0)


BAD_LIMITS = {
    "`divergence` must be one of": {"divergence": "guessed"},
    "`truth` must be given": {"divergence": "stein"},
    "`start` must be a time at which the process has noise": {"divergence": "denoising"},
    "`entropy` must be omitted": {"truth": DATA, "entropy": 1.5},
    "`truth` must have the dimension": {"truth": standard_normal(2)},
    "`levels` must be at least 1": {"levels": 0},
    "`ts` must increase strictly": {"horizon": 0.0},
    "`data` must have shape": {"data": jnp.ones(4)},
}


@pytest.mark.parametrize("message", BAD_LIMITS)
def test_limits_that_have_no_meaning_are_refused(message):
    changes = {"data": jnp.ones((4, 1))} | BAD_LIMITS[message]
    with pytest.raises(ValueError, match=message):
        entropy_limits(scaled(1.0), OU, changes.pop("data"), key=jr.key(0), **changes)
