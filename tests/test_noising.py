"""Noising processes: transitions, moments, Fokker-Planck equation; and the reversals of a process."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax import ExactLinear, mean, Overdamped, simulate
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import (
    LogSnrLinear,
    OrnsteinUhlenbeck,
    ProbabilityFlow,
    Reversed,
    VarianceExploding,
    VariancePreserving,
)
from thermojax.generative import Ancestral, MixtureScore, sample_sde
from thermojax.potentials import Harmonic
from thermojax.protocols import Constant

PROCESSES = {
    "Ornstein-Uhlenbeck": OrnsteinUhlenbeck(1.7, 0.6),
    "variance preserving": VariancePreserving(0.2, 5.0),
    "linear log-SNR": LogSnrLinear(4.0, -3.0),
    "variance exploding": VarianceExploding(0.1, 3.0),
}
every_process = pytest.mark.parametrize("noising", PROCESSES.values(), ids=PROCESSES)
MIXTURE = GaussianMixture([1.0, 2.0], [[-1.0, 0.3], [0.8, 0.5]], [[[0.4, 0.1], [0.1, 0.2]], [[0.3, 0.0], [0.0, 0.6]]])
# Of the same kind, and quicker to differentiate three times.
ROUND = GaussianMixture([1.0, 2.0], [[-1.0, 0.3], [0.8, 0.5]], [0.4, 0.2])
TIMES = (0.1, 0.45, 0.9)


def number(t):
    return jnp.asarray(t, float)


def close(found, expected, steps=1):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


def check_composition(transition):
    t0, t1, t2 = (number(t) for t in TIMES)
    (a, v), (b, w), (c, u) = transition(t0, t1), transition(t1, t2), transition(t0, t2)
    assert close(a * b, c)
    assert close(b**2 * v + w, u)


@every_process
def test_transitions_compose(noising):
    check_composition(noising.transition)


@every_process
def test_transition_from_the_start_is_the_marginal_of_one_point(noising):
    t0, t1 = number(0.0), number(0.7)
    factor, added = noising.transition(t0, t1)
    assert close(factor * noising.alpha(t0), noising.alpha(t1))
    assert close(factor**2 * noising.variance(t0) + added, noising.variance(t1))
    assert close(jnp.log(noising.alpha(t1)), noising.log_alpha(t1))


@needs_x64
@every_process
def test_short_steps_keep_their_digits(noising):
    t0, h = number(0.6), 1e-8
    factor, added = noising.transition(t0, t0 + h)
    h = (t0 + h) - t0
    rate = -noising.drift(t0, jnp.ones(1))[0]
    assert float(added / (noising.noise(t0) ** 2 * h)) == pytest.approx(1.0, rel=1e-6)
    assert float(factor) == pytest.approx(float(1 - rate * h), rel=1e-15)


def check_odes(noising, noise):
    for t in (number(t) for t in (*TIMES, 0.0)):
        rate = -noising.drift(t, jnp.ones(1))[0]
        assert close(jax.grad(noising.log_alpha)(t), -rate)
        assert close(jax.grad(noising.variance)(t), -2 * rate * noising.variance(t) + noise(t) ** 2, steps=10)


@every_process
def test_factor_and_variance_solve_their_equations(noising):
    check_odes(noising, noising.noise)


@every_process
def test_checks_of_a_process_can_fail(noising):
    with pytest.raises(AssertionError):
        check_odes(noising, lambda t: 0.5 * noising.noise(t))
    with pytest.raises(AssertionError):
        check_composition(lambda t0, t1: (noising.alpha(t1), noising.variance(t1)))
    with pytest.raises(AssertionError):
        check_composition(lambda t0, t1: (noising.transition(t0, t1)[0], noising.variance(t1) - noising.variance(t0) + 0.01))


@every_process
def test_drift_is_linear_and_of_the_right_sign(noising):
    t, x = number(0.4), jnp.array([0.3, -1.2])
    assert close(noising.drift(t, 2.0 * x), 2.0 * noising.drift(t, x))
    assert jnp.all(noising.drift(t, x) * x <= 0)


def test_log_snr_falls_linearly():
    noising = PROCESSES["linear log-SNR"]
    for t in TIMES:
        level = 2 * noising.log_alpha(number(t)) - jnp.log(noising.variance(number(t)))
        assert close(level, noising.log_snr(number(t)))
        assert close(level, 4.0 - 7.0 * t)


@every_process
def test_exact_steps_reproduce_the_marginals(key, noising):
    start_key, noise_key = jr.split(key)
    ts = jnp.array([0.0, 0.2, 0.6, 1.0])
    # The process may start with noise: its own first configuration is the noised one.
    x0s = noising.marginal(MIXTURE, ts[0]).sample(5000, key=start_key)
    xs = simulate(noising, x0s, ts, stepper=ExactLinear(), key=noise_key)
    estimate = jax.jit(mean)
    for t, x in zip(ts[1:], xs[1:], strict=True):
        expected = noising.marginal(MIXTURE, t).moments()
        for i in range(2):
            assert_estimate(estimate(x[:, i]), expected.mean[i])
            for j in range(i + 1):
                product = (x[:, i] - expected.mean[i]) * (x[:, j] - expected.mean[j])
                assert_estimate(estimate(product), expected.covariance[i, j])


def residual(noising, log_density, t, x):
    r"""(dp/dt + div(b p) - noise^2 lap(p) / 2) / p, with everything by differentiation."""
    logs = lambda t, y: log_density(t, y)
    score = jax.grad(logs, 1)(t, x)
    spread = noising.noise(t) ** 2
    drift = noising.drift(t, x)
    divergence = jnp.trace(jax.jacfwd(lambda y: noising.drift(t, y))(x))
    curvature = jnp.trace(jax.jacfwd(jax.grad(logs, 1), 1)(t, x))
    return jax.grad(logs)(t, x) + divergence + drift @ score - 0.5 * spread * (curvature + score @ score)


def check_fokker_planck(noising, log_density):
    xs = jnp.asarray(np.random.default_rng(2).normal(size=(20, 2)), float)
    found = jax.jit(jax.vmap(jax.vmap(lambda t, x: residual(noising, log_density, t, x), (None, 0)), (0, None)))
    worst = jnp.max(jnp.abs(found(jnp.asarray(TIMES), xs)))
    assert worst < 1e-8, f"the Fokker-Planck equation misses by {worst}"


@pytest.mark.slow
@needs_x64
@every_process
def test_marginal_of_a_mixture_solves_the_fokker_planck_equation(noising):
    check_fokker_planck(noising, lambda t, x: noising.marginal(ROUND, t).log_prob(x))


WRONG_MARGINALS = {
    "no shrinking": lambda noising, t: ROUND.push(1.0, noising.variance(t)),
    "too much noise": lambda noising, t: ROUND.push(noising.alpha(t), 2 * noising.variance(t)),
}


@needs_x64
@pytest.mark.parametrize("wrong", WRONG_MARGINALS.values(), ids=WRONG_MARGINALS)
def test_check_of_the_fokker_planck_equation_can_fail(wrong):
    noising = PROCESSES["variance preserving"]
    with pytest.raises(AssertionError):
        check_fokker_planck(noising, lambda t, x: wrong(noising, t).log_prob(x))


@every_process
def test_mixture_score_is_that_of_the_marginal(noising):
    t, x = number(0.3), jnp.array([0.2, -0.5])
    score = MixtureScore(noising, MIXTURE)(t, x)
    assert close(score, jax.grad(noising.marginal(MIXTURE, t).log_prob)(x), steps=10)


def check_reversal(noising, backward, share):
    """The reversed drift in its own time u = T - t, with `share` of the noise in the score."""
    score = lambda t, x: t * x**2 - 1.0
    process, horizon = backward(noising, score, 0.8), 0.8
    x = jnp.array([0.4, -1.5])
    for u in (0.0, 0.3, 0.75):
        t = number(horizon - u)
        expected = share * noising.noise(t) ** 2 * score(t, x) - noising.drift(t, x)
        assert close(process.drift(number(u), x), expected, steps=10)


@every_process
def test_reversals_have_the_drift_of_anderson_and_of_the_flow(noising):
    check_reversal(noising, Reversed, 1.0)
    check_reversal(noising, ProbabilityFlow, 0.5)
    assert close(Reversed(noising, lambda t, x: x, 0.8).noise(number(0.3)), noising.noise(number(0.5)), steps=10)
    assert ProbabilityFlow(noising, lambda t, x: x, 0.8).noise(number(0.3)) == 0


WRONG_REVERSALS = {
    "the other": ProbabilityFlow,
    "sign of the score": lambda noising, score, horizon: Reversed(noising, lambda t, x: -score(t, x), horizon),
    "clock": lambda noising, score, horizon: Reversed(noising, lambda t, x: score(horizon - t, x), horizon),
    "horizon": lambda noising, score, horizon: Reversed(noising, score, 1.0),
}


@pytest.mark.parametrize("wrong", WRONG_REVERSALS.values(), ids=WRONG_REVERSALS)
def test_check_of_reversals_can_fail(wrong):
    with pytest.raises(AssertionError):
        check_reversal(PROCESSES["variance preserving"], wrong, 1.0)


@needs_x64
@pytest.mark.parametrize("name", ["linear log-SNR", "variance exploding"])
def test_reversal_and_flow_carry_the_marginals_backwards(name):
    # With the exact score q(u) = p(T - u) solves the Fokker-Planck equation of the reversal, and of the flow.
    noising, horizon = PROCESSES[name], 1.0
    for process in (
        Reversed(noising, MixtureScore(noising, ROUND), horizon),
        ProbabilityFlow(noising, MixtureScore(noising, ROUND), horizon),
    ):
        check_fokker_planck(process, lambda u, x: noising.marginal(ROUND, horizon - u).log_prob(x))


@every_process
def test_ancestral_step_is_the_posterior_of_a_gaussian(noising):
    # For Gaussian data of variance c the posterior p(x_0 | x_1) of two times is Gaussian; the kernel has its mean exactly.
    data = Gaussian([0.4], 0.5)
    backward = Reversed(noising, MixtureScore(noising, data), 1.0)
    t, s, x = number(0.7), number(0.5), jnp.array([0.9])
    factor, added = noising.transition(s, t)
    early, late = noising.marginal(data, s), noising.marginal(data, t)
    mean_of = early.mean + factor * early.covariance / late.covariance * (x - factor * early.mean)
    move, spread = Ancestral().increment(backward, 1.0 - t, 1.0 - s, x)
    assert close(x + move, mean_of, steps=10)
    assert close(spread**2, noising.variance(s) * added / noising.variance(t), steps=10)
    assert spread**2 < early.covariance * added / late.covariance


def test_ancestral_refuses_what_it_cannot_step(key):
    ts, x0s = jnp.linspace(0.0, 1.0, 5), jnp.zeros((3, 1))
    message = "`dynamics` must be a noising process `Reversed` for `Ancestral`, got "
    trap = Overdamped(Harmonic(), Constant(0.0))
    with pytest.raises(ValueError, match=message + "OrnsteinUhlenbeck"):
        simulate(OrnsteinUhlenbeck(), x0s, ts, stepper=Ancestral(), key=key)
    with pytest.raises(ValueError, match=message + "Overdamped"):
        simulate(trap, x0s, ts, stepper=Ancestral(), key=key)
    with pytest.raises(ValueError, match=message + "Reversed"):
        simulate(Reversed(trap, lambda t, x: -x), x0s, ts, stepper=Ancestral(), key=key)
    with pytest.raises(ValueError, match=message + "ProbabilityFlow"):
        simulate(ProbabilityFlow(OrnsteinUhlenbeck(), lambda t, x: -x), x0s, ts, stepper=Ancestral(), key=key)
    with pytest.raises(ValueError, match=message + "Reversed"):
        sample_sde(trap, lambda t, x: -x, 3, ts, prior=Gaussian([0.0], 1.0), stepper=Ancestral(), key=key)


BAD_PROCESSES = {
    "rate": (lambda: OrnsteinUhlenbeck(-1.0), "`rate` must be positive, got -1.0"),
    "temperature": (lambda: OrnsteinUhlenbeck(1.0, 0.0), "`temperature` must be positive, got 0.0"),
    "beta": (lambda: VariancePreserving(0.0), "`start` must be positive, got 0.0"),
    "order": (lambda: LogSnrLinear(-9.0, 12.0), "`start - stop` must be positive, got -21.0"),
    "deviation": (lambda: VarianceExploding(0.1, -3.0), "`stop` must be positive, got -3.0"),
}


@pytest.mark.parametrize(("make", "message"), BAD_PROCESSES.values(), ids=BAD_PROCESSES)
def test_processes_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
