import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax import exact, theorems
from thermojax.baths import Isothermal
from thermojax.distributions import Gaussian
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate
from thermojax.functionals import DualRatio, HatanoSasa, log_ratio, medium_entropy_stratonovich, path_log_ratio, StochasticIntegral
from thermojax.potentials import Harmonic
from thermojax.protocols import Constant, Ramp
from thermojax.steppers import ExactLinear
from thermojax.switching import both_ways


def gaussian_work(key, spread, n, *, delta=0.7):
    """Work of both directions with the given spread, that obeys Crooks' relation; beta = 1."""
    ahead, back = jr.split(key)
    lost = spread**2 / 2
    return delta + lost + spread * jr.normal(ahead, (n,)), -delta + lost + spread * jr.normal(back, (n,))


def residuals(forward, backward, delta):
    s = forward - delta
    return {
        "jarzynski": theorems.jarzynski(forward / 2.0, delta / 2.0, beta=2.0),
        "generalised": theorems.generalised_jarzynski(forward, delta),
        "integral": theorems.integral_fluctuation_theorem(s),
        "hatano-sasa": theorems.hatano_sasa(s),
        "crooks": theorems.crooks(forward, backward, delta).residual,
        "detailed": theorems.detailed_fluctuation_theorem(s).residual,
    }


def test_every_residual_of_work_that_obeys_the_laws_is_zero(key):
    for name, estimate in residuals(*gaussian_work(key, 1.0, 40_000), 0.7).items():
        assert_estimate(estimate, 0.0)
        assert estimate.trustworthy, name


WRONG = {
    "free energy": (1.0, 1.0),
    "sign of the work": (-1.0, 0.7),
    "temperature": (0.6, 0.7),
}


@pytest.mark.parametrize(("scale", "delta"), WRONG.values(), ids=WRONG)
def test_every_residual_sees_work_that_breaks_the_laws(key, scale, delta):
    forward, backward = gaussian_work(key, 1.0, 40_000)
    for estimate in residuals(scale * forward, scale * backward, delta).values():
        assert abs(estimate.value) > 4 * estimate.stderr


@pytest.mark.slow
@needs_x64
def test_error_bars_of_the_residuals_cover_zero_as_often_as_they_say(key):
    def one(key):
        found = residuals(*gaussian_work(key, 0.8, 1000), 0.7)
        inside = [jnp.abs(e.value) < 1.96 * e.stderr for e in found.values()]
        return jnp.stack(inside), jnp.stack([e.trustworthy for e in found.values()])

    inside, reliable = jax.vmap(one)(jr.split(key, 1000))
    assert jnp.all(jnp.mean(reliable, axis=0) > 0.95)
    covered = jnp.sum(inside & reliable, axis=0) / jnp.sum(reliable, axis=0)
    assert jnp.all((covered > 0.92) & (covered < 0.97)), covered


@pytest.mark.slow
@pytest.mark.parametrize("law", ["crooks", "detailed"])
def test_histograms_are_a_chi_squared_without_a_bias_by_the_width_or_the_choice_of_bins(key, law):
    # Six wide bins: midpoints would be off by much more than the error bars, and so would bins chosen by their counts.
    def one(key):
        ahead, back = gaussian_work(key, 1.5, 2000)
        found = (
            theorems.crooks(ahead, back[:1000], 0.7, bins=6)
            if law == "crooks"
            else theorems.detailed_fluctuation_theorem(ahead - 0.7, bins=6)
        )
        return found.p_value, (found.log_ratios - found.centres + (0.7 if law == "crooks" else 0.0)) / found.stderrs

    verdicts, misses = jax.vmap(one)(jr.split(key, 400))
    # Uniform on (0, 1) if the symmetry holds, and each bin is a standard normal.
    assert abs(jnp.mean(verdicts) - 0.5) < 4 / np.sqrt(12 * 400)
    assert 0.01 < float(jnp.mean(verdicts < 0.05)) < 0.1
    seen = np.sum(np.isfinite(np.asarray(misses)), axis=0)
    assert np.sum(seen > 200) >= 4
    assert np.all(np.abs(np.nansum(np.asarray(misses), axis=0)) < 4.5 * np.sqrt(np.asarray(seen) + 1.0))
    off = theorems.crooks(*gaussian_work(key, 1.5, 5000), 0.9, bins=6)
    assert off.p_value < 1e-3
    assert off.bins >= 3


def test_crooks_relation_holds_for_a_simulated_experiment_and_its_reversal(key):
    forward, backward = both_ways(Overdamped(Harmonic(), Ramp(0.0, 1.0)), jnp.linspace(0.0, 1.0, 11), 20_000, key=key)
    found = theorems.crooks(forward.total_work, backward.total_work, 0.0)
    assert_estimate(found.residual, 0.0)
    assert found.p_value > 1e-3
    seen = jnp.isfinite(found.log_ratios)
    assert jnp.all(jnp.abs(found.log_ratios - found.centres)[seen] < 5 * found.stderrs[seen])


# A trap with a rotation: its steady state is the Boltzmann density, and its current goes round.
ROTATION = 0.7
SWIRL = lambda x, lam: ROTATION * jnp.array([-x[1], x[0]])


def steady_state(key, *, h=0.02, samples=20_000):
    """Work against the rotation, the angle gone through and both entropies, from the steady state."""
    dynamics = Overdamped(Harmonic(), Constant(jnp.zeros(2)), Isothermal(1.0), 1.0, SWIRL)
    density = Gaussian(jnp.zeros(2), 1.0)
    functionals = {
        "current": StochasticIntegral(lambda t, x: jnp.array([-x[1], x[0]])),
        "entropy": log_ratio,
        "medium": medium_entropy_stratonovich,
        "housekeeping": DualRatio(lambda x, lam: -0.5 * jnp.sum(x**2)),
    }
    start, noise = jr.split(key)
    x0s = density.sample(samples, key=start)
    x1s, sums = accumulate(functionals, dynamics, x0s, jnp.linspace(0.0, 1.0, round(1 / h) + 1), stepper=ExactLinear(), key=noise)
    sums["total"] = path_log_ratio(density, density, x0s, x1s, sums["entropy"])
    return sums


@pytest.fixture(scope="module")
def steady():
    return steady_state(jr.key(7))


@pytest.mark.slow
def test_steady_state_obeys_the_detailed_theorem_and_the_second_law(steady):
    for estimate in (
        theorems.detailed_fluctuation_theorem(steady["total"]).residual,
        theorems.integral_fluctuation_theorem(steady["total"]),
        theorems.integral_fluctuation_theorem(steady["housekeeping"]),
    ):
        assert_estimate(estimate, 0.0)
    # Entropy production of the rotation: omega^2 <r^2> = 2 omega^2 per unit time.
    assert_estimate(theorems.second_law(steady["medium"]), 2 * ROTATION**2)
    assert_estimate(theorems.second_law(steady["total"]), 2 * ROTATION**2)
    with pytest.raises(AssertionError):
        assert_estimate(theorems.detailed_fluctuation_theorem(1.3 * steady["total"]).residual, 0.0)


@pytest.mark.slow
def test_uncertainty_relation_holds_in_the_steady_state_and_fails_for_a_current_without_noise(steady):
    slack = theorems.uncertainty_relation(steady["current"], steady["total"])
    assert slack.value > 4 * slack.stderr
    # The entropy itself is nearly the optimal current at short times.
    tight = theorems.uncertainty_relation(steady["medium"], steady["total"])
    assert tight.value > -4 * tight.stderr
    calm = theorems.uncertainty_relation(1.0 + 0.1 * steady["current"], steady["total"])
    assert calm.value < -4 * calm.stderr


@pytest.mark.slow
def test_uncertainty_relation_has_the_error_bar_of_repetitions(key):
    def one(key):
        a, b = jr.split(key)
        s = 2.0 + jr.normal(a, (400,))
        return theorems.uncertainty_relation(s + 0.5 * jr.normal(b, (400,)), s)[:2]

    values, stderrs = jax.vmap(one)(jr.split(key, 1000))
    assert jnp.std(values) / jnp.mean(stderrs) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_hatano_sasa_holds_where_jarzynski_does_not(key):
    # The rotation grows while the trap tightens: the steady state of each control is known, and detailed balance is broken throughout.
    trap = lambda x, lam: 0.5 * lam * jnp.sum(x**2)
    dynamics = Overdamped(trap, Ramp(1.0, 3.0), Isothermal(1.0), 1.0, lambda x, lam: 0.6 * lam * SWIRL(x, lam))
    log_steady = lambda x, lam: jnp.log(lam / (2 * jnp.pi)) - 0.5 * lam * jnp.sum(x**2)
    start, noise = jr.split(key)
    functionals = HatanoSasa(log_steady), DualRatio(log_steady), log_ratio
    x0s = jr.normal(start, (20_000, 2))
    x1s, (excess, keeping, ratio) = accumulate(functionals, dynamics, x0s, jnp.linspace(0.0, 1.0, 101), stepper=ExactLinear(), key=noise)
    # Exact relaxation leaves the steady state of each control invariant, so that the equality holds at any step.
    assert_estimate(theorems.hatano_sasa(excess), 0.0)
    assert_estimate(theorems.integral_fluctuation_theorem(keeping), 0.0)
    with pytest.raises(AssertionError):
        assert_estimate(theorems.hatano_sasa(-excess), 0.0)
    # The total entropy is what keeps the steady state and what leaves it: exactly so on every path of kernels that know it.
    total = path_log_ratio(lambda x: log_steady(x, 1.0), lambda x: log_steady(x, 3.0), x0s, x1s, ratio)
    assert jnp.max(jnp.abs(total - keeping - excess)) < rounding(1e3, 100)


TRANSPORTS = {
    "shift": ((0.0, 1.0), (2.0, 1.0), 1.0, 1.0, 4.0),
    "squeeze": ((0.0, 1.0), (0.0, 0.5), 1.0, 1.0, 0.25),
    "both": ((0.0, 1.0), (1.0, 2.0), 1.0, 2.0, 1.0),
    "far": ((-1.0, 0.5), (3.0, 1.5), 0.5, 2.0, 17.0),
}


def transport(key, start, stop, diffusion, duration, *, samples=20_000, steps=100):
    """Entropy production of the drive that moves mean and width of a Gaussian at constant speed; mobility D, beta = 1."""
    (m0, s0), (m1, s1) = start, stop
    speed, growth = (m1 - m0) / duration, (s1 - s0) / duration

    def control(t):
        m, s = m0 + speed * t, s0 + growth * t
        stiffness = 1 / s**2 - growth / (s * diffusion)
        return jnp.stack([stiffness, m + speed / (diffusion * stiffness)])

    dynamics = Overdamped(lambda x, lam: 0.5 * lam[0] * jnp.sum((x - lam[1]) ** 2), control, Isothermal(1.0), diffusion)
    ends = [Gaussian([m], s**2) for m, s in (start, stop)]
    start_key, noise_key = jr.split(key)
    x0s = ends[0].sample(samples, key=start_key)
    x1s, totals = accumulate(log_ratio, dynamics, x0s, jnp.linspace(0.0, duration, steps + 1), stepper=ExactLinear(), key=noise_key)
    return path_log_ratio(*ends, x0s, x1s, totals), x0s, x1s


@pytest.mark.slow
@pytest.mark.parametrize(("start", "stop", "diffusion", "duration", "least"), TRANSPORTS.values(), ids=TRANSPORTS)
def test_transport_at_constant_speed_reaches_the_wasserstein_speed_limit(key, start, stop, diffusion, duration, least):
    # Least entropy production W_2^2/(D tau) between Gaussians, from the closed form.
    apart = exact.gaussian_transport(*(jnp.array(a) for a in ([start[0]], [[start[1] ** 2]], [stop[0]], [[stop[1] ** 2]])))
    assert apart / (diffusion * duration) == pytest.approx(least, rel=1e-5)
    entropies, x0s, x1s = transport(key, start, stop, diffusion, duration)
    assert_estimate(theorems.second_law(entropies), least)
    slack = theorems.speed_limit(entropies, x0s, x1s, diffusion=diffusion, duration=duration)
    assert_estimate(slack, 0.0)
    broken = theorems.speed_limit(0.5 * entropies, x0s, x1s, diffusion=diffusion, duration=duration)
    assert broken.value < -4 * broken.stderr


@pytest.mark.slow
def test_a_sudden_drive_stays_away_from_the_speed_limit(key):
    dynamics, density = Overdamped(Harmonic(), Constant(2.0)), Gaussian([0.0], 1.0)
    x0s = density.sample(20_000, key=jr.fold_in(key, 1))
    x1s, totals = accumulate(log_ratio, dynamics, x0s, jnp.linspace(0.0, 1.0, 51), stepper=ExactLinear(), key=key)
    final = Gaussian([2 * (1 - np.exp(-1))], 1.0)
    slack = theorems.speed_limit(path_log_ratio(density, final, x0s, x1s, totals), x0s, x1s, diffusion=1.0, duration=1.0)
    # Relaxation produces 2 (1 - e^-2) against the 4 (1 - 1/e)^2 of constant speed.
    assert_estimate(slack, 2 * (1 - np.exp(-2)) - 4 * (1 - np.exp(-1)) ** 2)


def test_gaussian_transport_of_matrices_is_symmetric_and_known_for_commuting_ones():
    a, b, origin = np.diag([1.0, 4.0]), np.diag([9.0, 0.25]), np.zeros(2)
    assert exact.gaussian_transport(origin, a, np.array([1.0, 2.0]), b) == pytest.approx(5 + (1 - 3) ** 2 + (2 - 0.5) ** 2, rel=1e-5)
    c, d = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    forth, back = exact.gaussian_transport(origin, c, origin, d), exact.gaussian_transport(origin, d, origin, c)
    assert forth == pytest.approx(float(back), rel=1e-5)
    assert abs(exact.gaussian_transport(origin, c, origin, c)) < rounding(10)


def test_landauer_counts_the_information_that_is_left():
    # Half of the bits erased at random is no erasure: the bound is zero.
    work = jnp.linspace(-0.1, 0.1, 400)
    coin = jnp.arange(400) % 2 == 0
    assert theorems.landauer(work, coin, beta=1.0).value == pytest.approx(0.0, abs=1e-6)
    sure = theorems.landauer(work + jnp.log(2.0) / 2.0, jnp.ones(400, bool), beta=2.0)
    assert sure.value == pytest.approx(0.0, abs=1e-6)
    most = theorems.landauer(work, jnp.arange(400) % 10 != 0, beta=1.0)
    assert most.value == pytest.approx(-(np.log(2) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9)), abs=1e-6)
    assert most.value < -4 * most.stderr


@pytest.mark.slow
def test_landauer_has_the_error_bar_of_repetitions(key):
    def one(key):
        a, b = jr.split(key)
        erased = jr.uniform(a, (500,)) > 0.1
        return theorems.landauer(0.5 + 0.3 * jr.normal(b, (500,)) + jnp.where(erased, 0.0, 0.4), erased, beta=1.5)[:2]

    values, stderrs = jax.vmap(one)(jr.split(key, 1000))
    assert jnp.std(values) / jnp.mean(stderrs) == pytest.approx(1.0, abs=0.1)


BAD = {
    "several betas": (lambda: theorems.jarzynski(jnp.ones(3), 0.0, beta=jnp.ones(2)), "`beta` must be one number; for a changing bath"),
    "nan": (
        lambda: theorems.crooks(jnp.array([1.0, jnp.nan]), jnp.ones(3), 0.0),
        "`forward` must be finite, got 1 of 2 samples that are not",
    ),
    "empty": (
        lambda: theorems.detailed_fluctuation_theorem(jnp.ones(0)),
        r"`entropies` must be a vector of at least two samples, got shape \(0,\)",
    ),
    "unequal": (
        lambda: theorems.uncertainty_relation(jnp.ones(3), jnp.ones(4)),
        r"`entropies` must have one number for each current, \(3,\)",
    ),
    "paths": (
        lambda: theorems.speed_limit(jnp.ones(3), jnp.ones((3, 1)), jnp.ones((4, 1)), diffusion=1.0, duration=1.0),
        r"`x1s` must have the shape of `x0s`, \(3, 1\), one for each of `entropies`, got shape \(4, 1\)",
    ),
    "diffusion": (
        lambda: theorems.speed_limit(jnp.ones(4), jnp.ones((4, 1)), jnp.ones((4, 1)), diffusion=0.0, duration=1.0, blocks=2),
        "`diffusion` must be positive, got 0.0",
    ),
    "outcomes": (
        lambda: theorems.landauer(jnp.ones(3), jnp.ones(4, bool), beta=1.0),
        "`erased` must have one entry for each work",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_residuals_of_hopeless_averages_say_so(key):
    forward, _ = gaussian_work(key, 5.0, 10_000)
    found = theorems.jarzynski(forward, 0.7, beta=1.0)
    assert isinstance(found, Estimate)
    assert not found.trustworthy
