"""Noise schedules: their transitions and equations, tables of discrete models, schedules of one's own, and singular ends."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import needs_x64, rounding

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import (
    AbstractNoising,
    Cosine,
    cut_ends,
    Elucidated,
    Interpolant,
    LogSnrLinear,
    OrnsteinUhlenbeck,
    Schedule,
    SubVariancePreserving,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
)

BETAS = np.linspace(1e-4, 0.02, 1000)
TABLE = np.cumprod(1 - BETAS)
OWN = Schedule(lambda t: -0.3 * t**2, lambda t: 3.0 - 5.0 * t - t**3)
# Each with a time up to which it is regular.
PROCESSES = {
    "sub-variance preserving": (SubVariancePreserving(0.2, 5.0), 1.0),
    "elucidated": (Elucidated(), 80.0),
    "cosine": (Cosine(), 0.95),
    "interpolant": (Interpolant(), 0.95),
    "table": (Tabulated([0.9, 0.7, 0.2]), 3.0),
    "own": (OWN, 1.0),
}
every_process = pytest.mark.parametrize(("noising", "horizon"), PROCESSES.values(), ids=PROCESSES)
SHARES = (0.1, 0.45, 0.9)


def number(t):
    return jnp.asarray(t, float)


def close(found, expected, steps=10):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


@eqx.filter_jit
def read(noising, ts):
    """Everything that the laws below speak of, at three times and between them, in one compiled function."""

    def at(t):
        rate = -noising.drift(t, jnp.ones(1))[0]
        slopes = jax.grad(noising.log_alpha)(t), jax.grad(noising.variance)(t)
        return rate, noising.noise(t), noising.alpha(t), noising.log_alpha(t), noising.variance(t), noising.log_snr(t), *slopes

    pairs = noising.transition(ts[0], ts[1]), noising.transition(ts[1], ts[2]), noising.transition(ts[0], ts[2])
    plain = AbstractNoising.transition(noising, ts[0], ts[2])
    late = ts[1] + 1e-8
    return jax.vmap(at)(ts), pairs, plain, (late - ts[1], *noising.transition(ts[1], late))


def check_process(noising, horizon, wrong=lambda values, pairs: (values, pairs)):
    values, pairs, plain, _ = read(noising, horizon * jnp.asarray(SHARES))
    (rate, noise, alpha, log_alpha, v, level, log_slope, slope), pairs = wrong(values, pairs)
    (a, w), (b, u), (c, both) = pairs
    assert close(a * b, c), "factors compose"
    assert close(b**2 * w + u, both), "variances compose"
    assert close((c, both), plain), "the transition is that of the factor and the variance"
    assert close(c * alpha[0], alpha[2]), "the factor is that of the marginals"
    assert close(c**2 * v[0] + both, v[2]), "the variance is that of the marginals"
    assert close(jnp.exp(log_alpha), alpha)
    assert close(level, 2 * log_alpha - jnp.log(v))
    assert close(log_slope, -rate), "the drift is the slope of the factor"
    assert close(slope, -2 * rate * v + noise**2, steps=100), "the noise makes the variance"
    assert jnp.all(rate >= 0)
    assert jnp.all(jnp.diff(level) < 0)


@every_process
def test_schedules_are_linear_noising_processes(noising, horizon):
    check_process(noising, horizon)
    wrong = {
        "twice the noise": lambda values, pairs: ((values[0], 2 * values[1], *values[2:]), pairs),
        "the marginal for the step": lambda values, pairs: (values, (*pairs[:2], (pairs[2][0], values[4][2]))),
        "no shrinking left": lambda values, pairs: ((values[0] + 1.0, *values[1:]), pairs),
        "factor squared": lambda values, pairs: ((*values[:2], values[2] ** 2 + 1.0, *values[3:]), pairs),
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_process(noising, horizon, law)


@needs_x64
@every_process
def test_short_steps_of_schedules_keep_their_digits(noising, horizon):
    (rates, noises, *_), _, _, (h, factor, added) = read(noising, horizon * jnp.asarray(SHARES))
    assert float(added / (noises[1] ** 2 * h)) == pytest.approx(1.0, rel=1e-6)
    assert float(factor) == pytest.approx(float(1 - rates[1] * h), rel=1e-15)


def test_interpolants_are_what_their_names_say():
    t = number(0.3)
    assert close(Interpolant().alpha(t), 0.7)
    assert close(jnp.sqrt(Interpolant().variance(t)), 0.3)
    assert close(Cosine().alpha(t) ** 2 + Cosine().variance(t), 1.0)
    assert close(Cosine().alpha(t), np.cos(0.15 * np.pi))
    assert Interpolant().alpha(number(1.0)) == Cosine().alpha(number(1.0)) == 0.0
    assert close(Elucidated().variance(number(80.0)), 6400.0)
    # The drift of VP; less noise, and the same at late times.
    sub, vp = SubVariancePreserving(), VariancePreserving()
    assert close(sub.drift(t, jnp.ones(2)), vp.drift(t, jnp.ones(2)))
    assert close(sub.variance(t), vp.variance(t) ** 2)


@needs_x64
@pytest.mark.nightly
def test_marginals_of_schedules_solve_the_fokker_planck_equation():
    data = GaussianMixture([1.0, 2.0], [[-1.0], [0.8]], [0.4, 0.2])

    def residual(noising, t, x, share):
        """(dp/dt + d(b p)/dx - share noise^2 p'' / 2) / p."""
        logs = lambda t, y: noising.marginal(data, t).log_prob(jnp.array([y]))
        slope = jax.grad(logs, 1)
        drift = lambda y: noising.drift(t, jnp.array([y]))[0]
        spread = share * noising.noise(t) ** 2
        return (
            jax.grad(logs)(t, x)
            + jax.grad(drift)(x)
            + drift(x) * slope(t, x)
            - 0.5 * spread * (jax.grad(slope, 1)(t, x) + slope(t, x) ** 2)
        )

    found = eqx.filter_jit(jax.vmap(residual, in_axes=(None, None, 0, None)))
    xs = jnp.linspace(-2.0, 2.0, 9)
    for noising, horizon in PROCESSES.values():
        t = number(0.45 * min(horizon, 2.0))
        assert jnp.max(jnp.abs(found(noising, t, xs, 1.0))) < 1e-9
        assert jnp.max(jnp.abs(found(noising, t, xs, 1.1))) > 1e-3


# Schedules of one's own.


def test_own_schedules_include_those_of_the_library():
    ts = 0.9 * jnp.asarray(SHARES)
    pairs = [
        (Elucidated(), Schedule(lambda t: 0.0, lambda t: -2 * jnp.log(t))),
        (Interpolant(), Schedule(lambda t: jnp.log1p(-t), lambda t: 2 * jnp.log((1 - t) / t))),
    ]
    for ours, own in pairs:
        for found, expected in zip(jax.tree.leaves(read(own, ts)), jax.tree.leaves(read(ours, ts)), strict=True):
            assert close(found, expected, steps=50)


class Slope(eqx.Module):
    """A log signal-to-noise ratio with a parameter."""

    slope: jax.Array

    def __call__(self, t):
        return 3.0 - self.slope * t


def test_own_schedules_can_be_differentiated_by_their_parameters():
    def noise2(slope):
        noising = Schedule(lambda t: jnp.zeros_like(t), Slope(slope))
        return noising.noise(number(0.5)) ** 2

    # v = e^{-3 + s t} and noise^2 = s v.
    found, slope = jax.value_and_grad(noise2)(number(2.0))
    assert close(found, 2.0 * np.exp(-2.0))
    assert close(slope, np.exp(-2.0) * (1 + 2.0 * 0.5))


# Tables.


def test_a_table_is_met_at_the_integers():
    noising = Tabulated(TABLE)
    logs = jax.jit(jax.vmap(noising.log_alpha))(jnp.arange(1.0, 1001.0))
    assert np.allclose(2 * logs, np.log(TABLE), rtol=rounding(0.1), atol=0.0)
    assert noising.variance(number(0.0)) == 0.0
    assert np.allclose(Tabulated.from_betas(BETAS).log_alpha_bars, np.log(TABLE), rtol=rounding(), atol=0.0)
    # The first variance keeps its digits in single precision too: the logarithm was taken of the numbers as they were given.
    assert float(noising.variance(number(1.0))) == pytest.approx(1e-4, rel=rounding() + 1e-9)


def check_steps(betas):
    """One step of the table is one noising step of the model, x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z."""
    noising = Tabulated(TABLE)
    ts = jnp.arange(0.0, 1001.0)
    factors, variances = jax.jit(jax.vmap(noising.transition))(ts[:-1], ts[1:])
    # The logarithms lie between 0 and -10: a step is known to the rounding of their difference.
    assert np.allclose(variances, betas, rtol=0.0, atol=rounding(2.0))
    assert np.allclose(factors**2, 1 - betas, rtol=0.0, atol=rounding(2.0))


def test_steps_of_a_table_are_those_of_the_model():
    check_steps(BETAS)
    with pytest.raises(AssertionError):
        check_steps(BETAS[::-1])
    with pytest.raises(AssertionError):
        check_steps(np.append(BETAS[1:], 0.02))


def test_a_table_between_its_entries_is_a_process_with_the_rate_of_the_interval():
    noising = Tabulated([0.9, 0.7, 0.2])
    for t, rate in ((0.5, -np.log(0.9)), (1.0, -np.log(0.9)), (1.5, np.log(0.9 / 0.7)), (3.0, np.log(0.7 / 0.2))):
        assert close(noising.noise(number(t)) ** 2, rate)
        assert close(jax.grad(noising.variance)(number(t)), rate * (1 - noising.variance(number(t))))
    assert close(noising.alpha(number(1.5)) ** 2, np.sqrt(0.9 * 0.7))


BAD_SCHEDULES = {
    "rising": (lambda: Tabulated([0.9, 0.95]), "`alpha_bars` must fall strictly from below one, and stay above zero, got"),
    "one": (lambda: Tabulated([1.0, 0.5]), "`alpha_bars` must fall strictly"),
    "zero": (lambda: Tabulated([0.9, 0.0]), "`alpha_bars` must fall strictly"),
    "shape": (lambda: Tabulated([[0.9], [0.8]]), r"`alpha_bars` must be a vector, got shape \(2, 1\)"),
    "betas": (lambda: Tabulated.from_betas([0.1, 1.0]), "`betas` must be between zero and one, got"),
    "rate": (lambda: SubVariancePreserving(-0.1), "`start` must be positive, got -0.1"),
}


@pytest.mark.parametrize(("make", "message"), BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)
def test_schedules_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Singular ends.


def limit(noising, ends):
    return (float(noising.log_snr(ends.start)), float(noising.log_snr(ends.horizon)))


def test_regular_ends_stay_as_they_are():
    for noising, start, horizon in (
        (LogSnrLinear(), 0.0, 1.0),
        (VarianceExploding(), 0.0, 1.0),
        (Elucidated(), 0.002, 80.0),
        # More noise, and less, than the limits: not singular.
        (OrnsteinUhlenbeck(), 1e-9, 12.0),
    ):
        ends = cut_ends(noising, start, horizon)
        assert ends.start == number(start)
        assert ends.horizon == number(horizon)
        assert ends.notes == ()


def test_ends_without_noise_are_cut_to_the_limit():
    for noising in (VariancePreserving(), OrnsteinUhlenbeck(), SubVariancePreserving()):
        ends = cut_ends(noising, 0.0, 1.0)
        assert float(noising.log_snr(ends.start)) == pytest.approx(18.0, abs=rounding(100.0))
        assert ends.horizon == 1.0
        assert len(ends.notes) == 1
    ends = cut_ends(OrnsteinUhlenbeck(), 0.0, 3.0)
    # v = e^{-18} (1 - v).
    assert float(ends.start) == pytest.approx(-0.5 * np.log1p(-1 / (1 + np.exp(18.0))), rel=rounding(100.0))
    pattern = r"The schedule has no noise at t = 0; it was cut by 7.6e-09 to t = 7.61\d*e-09, where the log signal-to-noise ratio is 18\."
    assert re.fullmatch(pattern, ends.notes[0])


def test_ends_without_data_are_cut_to_the_limit():
    for noising in (Interpolant(), Cosine()):
        ends = cut_ends(noising, 0.0, 1.0, log_snr=(-10.0, 12.0))
        # Close to t = 1 a time, and so the ratio, is known to a few digits only in single precision.
        assert limit(noising, ends) == pytest.approx((12.0, -10.0), abs=1e4 * rounding())
        assert "keeps nothing of the data at t = 1; it was cut by" in ends.notes[1]
    # x_t = (1 - t) x_0 + t z: e^{lambda/2} = (1 - t) / t.
    ends = cut_ends(Interpolant(), 0.0, 1.0)
    assert float(ends.start) == pytest.approx(1 / (1 + np.exp(9.0)), rel=rounding(100.0))
    assert float(ends.horizon) == pytest.approx(1 / (1 + np.exp(-9.0)), rel=rounding())


def test_ends_are_cut_in_the_precision_of_the_times():
    start, horizon = jnp.float32(0.0), jnp.float32(1.0)
    ends = cut_ends(Interpolant(), start, horizon, log_snr=(-60.0, 60.0))
    assert ends.start.dtype == ends.horizon.dtype == jnp.float32
    # The limit is out of reach: this is as close to one as a time can be told from it.
    assert ends.horizon == 1.0 - np.finfo(np.float32).eps
    assert float(ends.start) == pytest.approx(np.exp(-30.0), rel=1e-4)
    assert ends.notes[1].endswith("where the log signal-to-noise ratio is -31.88.")


def test_singularities_missed_by_rounding_are_found():
    # cos(pi / 2) is 6e-17 in double precision, and negative in single.
    noising = Schedule(lambda t: jnp.log(jnp.cos(0.5 * jnp.pi * t)), lambda t: -2.0 * jnp.log(jnp.tan(0.5 * jnp.pi * t)))
    ends = cut_ends(noising, 0.0, 1.0, log_snr=(-10.0, 10.0))
    assert limit(noising, ends) == pytest.approx((10.0, -10.0), abs=1e4 * rounding())
    assert len(ends.notes) == 2


BAD_ENDS = {
    "order": (lambda: cut_ends(Interpolant(), 1.0, 0.0), "`horizon` must be a finite time later than `start` = 1.0, got 0.0."),
    "endless": (lambda: cut_ends(OrnsteinUhlenbeck(), 0.0, np.inf), "`horizon` must be a finite time later than `start` = 0.0, got inf."),
    "limits": (lambda: cut_ends(Interpolant(), 0.0, 1.0, log_snr=(2.0, 1.0)), "`log_snr` must be a lower and an upper limit, got"),
    "too short": (
        lambda: cut_ends(OrnsteinUhlenbeck(), 0.0, 1e-10),
        "`noising` must have log signal-to-noise ratios from -18.0 to 18.0 between t = 0.0 and t = .*, got none.",
    ),
    "rising": (
        lambda: cut_ends(Schedule(lambda t: 0.0, lambda t: 5.0 * t), 0.0, 1.0),
        "`noising` must have a log signal-to-noise ratio that falls with time, got .* at t = .* and .* at t = ",
    ),
    "singular inside": (
        lambda: cut_ends(Schedule(lambda t: 0.0, lambda t: jnp.where(jnp.abs(t - 0.5) < 0.1, jnp.nan, -t)), 0.0, 1.0),
        "`noising` must have noise, data, and finite drift inside its interval, got one that has no finite drift",
    ),
    "rising late": (
        lambda: cut_ends(Wrong(), 0.0, 1.0),
        "`noising` must have a log signal-to-noise ratio that falls with time, got",
    ),
}


class Wrong(OrnsteinUhlenbeck):
    """Its ratio rises again."""

    def log_snr(self, t):
        return (t - 0.5) ** 2

    def variance(self, t):
        return jnp.ones_like(t)


@pytest.mark.parametrize(("make", "message"), BAD_ENDS.values(), ids=BAD_ENDS)
def test_ends_that_cannot_be_cut_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
