import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import needs_x64

from thermojax.estimators import bar, exponential_mean, jarzynski, trust

REPETITIONS = 1000


def gaussian(spread):
    """Log-ratios of Gaussian law that obey the integral fluctuation theorem; their weights are log-normal."""
    return lambda key, n: spread**2 / 2 + spread * jr.normal(key, (n,))


def mixture(variance):
    """Total entropy production of the noising of two Gaussians at -1 and 1, after a long time (reference 5).

    With X_T a standard normal, ln p_0(x_0) - ln p_T(x_T) + (x_0^2 - x_T^2)/2 is a function of x_0 alone. The variance of e^{-l} is infinite
    below 1/2.
    """

    def draw(key, n):
        x = 1 + jnp.sqrt(variance) * jr.normal(key, (n,))
        peaks = jnp.logaddexp(-((x - 1) ** 2) / (2 * variance), -((x + 1) ** 2) / (2 * variance))
        return peaks - jnp.log(2.0) - 0.5 * jnp.log(variance) + x**2 / 2

    return draw


def repeat(law, n, key):
    """Verdicts, and whether the nominal 95 % intervals of both averages hold the truth."""

    def one(key):
        ratios = law(key, n)
        free, average = jarzynski(ratios, beta=1.0), exponential_mean(ratios)
        hits = jnp.abs(free.value) < 1.96 * free.stderr, jnp.abs(average.value - 1) < 1.96 * average.stderr
        return jnp.stack([free.trustworthy, *hits])

    found = np.asarray(jax.lax.map(one, jr.split(key, REPETITIONS), batch_size=max(1, 100_000 // n)))
    return found[:, 0], found[:, 1:]


SOUND = {"0.5, 200": (0.5, 200), "1, 1000": (1.0, 1000), "1.25, 1000": (1.25, 1000), "1.5, 10000": (1.5, 10_000)}


@needs_x64
@pytest.mark.parametrize(("spread", "n"), SOUND.values(), ids=SOUND)
@pytest.mark.slow
def test_sound_averages_are_reliable_and_covered(key, spread, n):
    reliable, covered = repeat(gaussian(spread), n, key)
    assert reliable.mean() > 0.95
    assert np.all((covered[reliable].mean(axis=0) > 0.92) & (covered[reliable].mean(axis=0) < 0.97)), covered[reliable].mean(axis=0)


@pytest.mark.nightly
@needs_x64
def test_averages_on_the_border_are_covered_where_they_are_called_reliable(key):
    # Spreads and sizes at which the verdict is undecided: what passes there must be covered too, taken together.
    cells = [(0.75, 200), (1.0, 200), (1.25, 500), (1.5, 1000), (1.5, 3000)]
    found = [repeat(gaussian(s), n, jr.fold_in(key, i)) for i, (s, n) in enumerate(cells)]
    reliable, covered = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert 0.2 < reliable.mean() < 0.8
    assert np.all(covered[reliable].mean(axis=0) > 0.92), covered[reliable].mean(axis=0)
    # Without the verdict they are not: the check can fail.
    rough = repeat(gaussian(2.0), 500, key)[1]
    assert np.all(rough.mean(axis=0) < 0.91)


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize(
    ("spread", "n"),
    [(1.5, 500), (2.0, 1000), pytest.param(3.0, 3000, marks=pytest.mark.slow), pytest.param(4.0, 10_000, marks=pytest.mark.nightly)],
)
def test_averages_that_rare_samples_dominate_are_unreliable(key, spread, n):
    reliable, _ = repeat(gaussian(spread), n, key)
    assert reliable.mean() < 0.01


@needs_x64
@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_an_infinite_second_moment_is_seen(key, n):
    reliable, _ = repeat(mixture(0.1), n, key)
    assert reliable.mean() < 0.05
    reliable, covered = repeat(mixture(1.0), n, key)
    assert reliable.mean() > 0.95
    assert np.all((covered.mean(axis=0) > 0.92) & (covered.mean(axis=0) < 0.97))


def test_mixture_obeys_the_fluctuation_theorem(key):
    # The test law itself, by quadrature: the mean of reference 5.
    ratios = mixture(1.0)(key, 200_000)
    estimate = exponential_mean(ratios)
    assert abs(estimate.value - 1) < 4 * estimate.stderr
    assert abs(jnp.mean(ratios) - 0.1631691797) < 4 * jnp.std(ratios) / np.sqrt(200_000)


@needs_x64
@pytest.mark.parametrize(("spread", "n"), [(1.0, 200), (3.0, 1000), pytest.param(4.0, 5000, marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_intervals_of_bar_cover_the_truth_where_it_is_reliable(key, spread, n):
    def one(key):
        forward, backward = (gaussian(spread)(k, n) for k in jr.split(key))
        found = bar(forward, backward, beta=1.0)
        return jnp.stack([found.trustworthy, jnp.abs(found.value) < 1.96 * found.stderr])

    found = np.asarray(jax.lax.map(one, jr.split(key, REPETITIONS), batch_size=max(1, 50_000 // n)))
    reliable, covered = found.T
    assert reliable.mean() > 0.95
    assert 0.92 < covered[reliable].mean() < 0.97


SAMPLES = {
    "sound": (1.0, 5000, ()),
    "few": (0.5, 90, ()),
    "wide": (3.0, 5000, ()),
    "unlucky": (1.5, 500, ()),
    "broken": (0.5, 500, (np.nan,)),
}


@pytest.mark.parametrize(("spread", "n", "more"), SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.slow
def test_report_and_estimate_agree(spread, n, more, beta):
    work = np.append(3 + spread**2 / 2 + spread * np.random.default_rng(0).normal(size=n), more) / beta
    report, estimate = trust(work, beta=beta), jarzynski(work, beta=beta)
    assert (report.verdict == "reliable") == bool(estimate.trustworthy)
    assert report.ess == pytest.approx(float(estimate.ess), rel=1e-5)
    assert report.tail_index == pytest.approx(float(estimate.tail_index), abs=1e-5)
    assert report.samples == n
    assert all(reason.endswith(".") for reason in report.reasons)
    assert str(report).startswith(report.verdict + ": ")
    both, pair = trust(work, work - 6 / beta, beta=beta), bar(work, work - 6 / beta, beta=beta)
    assert (both.verdict == "reliable") == bool(pair.trustworthy)


def test_report_tells_in_words_what_is_wrong():
    rng = np.random.default_rng(0)
    wide, tail = 3 * rng.normal(size=5000), mixture(0.1)(jr.key(0), 10_000)
    assert "The average rests on" in str(trust(wide))
    assert "Gaussian work of this spread, 3" in str(trust(wide))
    assert "second moment may be infinite" in str(trust(tail))
    assert not trust(tail).second_moment_finite
    assert trust(rng.normal(size=5000)).second_moment_finite
    assert "1 of 501 samples are not finite." in trust(np.append(np.nan, rng.normal(size=500))).reasons
    apart = trust(100 + rng.normal(size=500), 100 + rng.normal(size=500))
    assert "The two work distributions do not overlap." in apart.reasons
    assert apart.overlap < 1e-10


def test_overlap_is_that_of_the_work_distributions():
    # Gaussian work of variance s^2 and its mirror image, centred s^2 apart: the integral by quadrature.
    rng = np.random.default_rng(0)
    w = np.linspace(-10, 10, 20_001)
    for s in (0.5, 2.0):
        ahead, back = (np.exp(-((w - c) ** 2) / (2 * s**2)) / np.sqrt(2 * np.pi * s**2) for c in (s**2 / 2, -(s**2) / 2))
        exact = np.sum(2 * ahead * back / (ahead + back)) * (w[1] - w[0])
        report = trust(s**2 / 2 + s * rng.normal(size=20_000), s**2 / 2 + s * rng.normal(size=20_000))
        assert report.overlap == pytest.approx(exact, rel=0.03)


def test_needed_samples_are_the_exponential_of_the_dissipation():
    rng = np.random.default_rng(0)
    forward, backward = 4.5 + 2 + 2 * rng.normal(size=20_000), -4.5 + 2 + 2 * rng.normal(size=20_000)
    assert trust(forward, backward).needed == pytest.approx(np.exp(2.0), rel=0.1)
    assert trust(forward / 2, backward / 2, beta=2.0).needed == pytest.approx(np.exp(2.0), rel=0.1)
    assert trust(forward).needed == pytest.approx(np.exp(2.0), rel=0.4)


def test_bias_is_that_of_the_second_order():
    # -ln of an average of n weights of variance v is too large by v/(2n) on average; the jackknife must see that order.
    v = np.expm1(1.0)
    found = [trust(np.random.default_rng(seed).normal(size=2000)).bias for seed in range(20)]
    assert np.mean(found) == pytest.approx(v / 4000, rel=0.5)
    assert trust(np.random.default_rng(0).normal(size=2000) / 2, beta=2.0).bias == pytest.approx(found[0] / 2, rel=1e-3)


def test_correlated_samples_are_worth_less():
    work = np.random.default_rng(0).normal(size=2000)
    assert trust(work).verdict == "reliable"
    assert trust(work, inefficiency=20.0).verdict == "unreliable"
    assert trust(work, inefficiency=20.0).ess == pytest.approx(trust(work).ess / 20, rel=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`beta` must be one number"):
        trust(jnp.ones(3), beta=jnp.ones(2))
    with pytest.raises(ValueError, match="`work` must be a vector of at least two samples"):
        trust(jnp.ones(0))
    with pytest.raises(ValueError, match="`backward` must hold at least two finite samples"):
        trust(jnp.ones(3), jnp.full(3, jnp.nan))
