"""The bound of DDPM term by term and the likelihood by importance weights, against Gaussian chains in closed form."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, rounding
from diffrax import Heun
from linear_chains import bound_on_nll, DATA, density_made, OU, precision, scaled, STEPPERS, VARIANCE
from scipy.integrate import quad

from thermojax import Diffrax, EulerMaruyama, exponential_mean, mean
from thermojax.distributions import GaussianMixture
from thermojax.generative import importance_nll, kernel_terms, MixtureScore, path_bound
from thermojax.steppers import AbstractGaussianStepper

TS, FACTOR = np.geomspace(0.05, 1.5, 9), 0.7
average = jax.jit(mean)
each_kernel_but_one_slow = pytest.mark.parametrize("kind", ["ancestral", pytest.param("euler", marks=pytest.mark.slow)])


def close(found, expected, steps=1):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


def profile(values, errors, n):
    """One entry of a profile as an estimate."""
    return average(jnp.zeros(n))._replace(value=values, stderr=errors)


# The bound term by term.


@each_kernel_but_one_slow
@pytest.mark.slow
def test_terms_add_up_to_the_bound_of_the_chain(key, kind):
    data_key, term_key = jr.split(key)
    data, exact = DATA.sample(4000, key=data_key), bound_on_nll(FACTOR, TS, kind)
    found = kernel_terms(scaled(FACTOR), OU, data, TS, stepper=STEPPERS[kind], key=term_key)
    assert_estimate(found.bound, exact)
    assert found.bound.trustworthy
    assert close(found.bound.value, found.terminal.value + jnp.sum(found.steps) + found.decoding.value, steps=20)
    assert close(found.gaps, found.steps - found.continuous, steps=20)
    assert close(found.ts, TS[1:])
    assert close(found.widths, np.diff(TS), steps=10)
    # The check can fail: the continuous terms, no decoding, another score, the other kernel.
    other = next(name for name in STEPPERS if name != kind)
    for wrong in (
        exact - jnp.sum(found.gaps),
        exact - found.decoding.value,
        bound_on_nll(1.0, TS, kind),
        bound_on_nll(FACTOR, TS, other),
    ):
        with pytest.raises(AssertionError):
            assert_estimate(found.bound, wrong)


@pytest.mark.nightly
def test_terms_have_the_mean_of_the_bound_along_paths_and_less_spread(key):
    # One datum, so that all spread is that of the noise.
    kind = "euler"
    term_key, path_key = jr.split(key)
    data = jnp.full((4000, 1), 0.9)
    found = kernel_terms(scaled(FACTOR), OU, data, TS, stepper=STEPPERS[kind], key=term_key).bound
    along = path_bound(scaled(FACTOR), OU, data, TS, stepper=STEPPERS[kind], key=path_key)
    assert_estimate(along._replace(value=along.value - found.value, stderr=jnp.hypot(found.stderr, along.stderr)), 0.0)
    assert found.stderr < 0.7 * along.stderr


def check_continuous(found, expected, n):
    for value, error, exact in zip(found.continuous, found.continuous_errors, expected, strict=True):
        assert_estimate(profile(value, error, n), exact)


def test_continuous_terms_are_the_path_kl_of_each_interval(key):
    def rate(t):
        alpha, v, p = np.exp(-t), -np.expm1(-2 * t), precision(FACTOR, t)
        return (p * alpha) ** 2 * VARIANCE + (1 - p * v) ** 2 / v

    data_key, term_key = jr.split(key)
    found = kernel_terms(scaled(FACTOR), OU, DATA.sample(4000, key=data_key), TS, stepper=STEPPERS["ancestral"], key=term_key)
    expected = np.array([quad(rate, t0, t1)[0] for t0, t1 in zip(TS[:-1], TS[1:], strict=True)])
    check_continuous(found, expected, 4000)
    for wrong in (0.95 * expected, found.steps):
        with pytest.raises(AssertionError):
            check_continuous(found, wrong, 4000)


class Blind(eqx.Module):
    """Guesses 0 for every datum."""

    factor: jax.Array
    traces: ClassVar[list] = []

    def __call__(self, t, x):
        self.traces.append(1)
        return -self.factor * x / OU.variance(t)


def blind_terms(factor, ts):
    data = jnp.array([[1.0], [-1.0], [1.0]])
    return kernel_terms(Blind(jnp.asarray(factor, float)), OU, data, ts, key=jr.key(7))


def check_signal(steps, ts):
    ratio = np.exp(-2 * ts) / -np.expm1(-2 * ts)
    assert close(steps, -0.5 * np.diff(ratio), steps=50)


@pytest.mark.nightly
def test_an_ancestral_step_costs_the_loss_of_signal_to_noise():
    # The guess is wrong by one for data that are +-1: KL = (SNR(t0) - SNR(t1)) / 2, without any spread.
    found = blind_terms(1.0, TS)
    check_signal(found.steps, TS)
    assert jnp.all(found.step_errors < rounding(100))
    for wrong in (2 * found.steps, found.continuous, found.steps[::-1]):
        with pytest.raises(AssertionError):
            check_signal(wrong, TS)


@pytest.mark.slow
def test_new_numbers_compile_nothing():
    blind_terms(1.0, TS)
    first = len(Blind.traces)
    blind_terms(0.5, 1.1 * TS)
    assert len(Blind.traces) == first


class Tilted(AbstractGaussianStepper):
    """Euler's step with noise that is correlated, or has one amplitude per coordinate."""

    normals = 1
    clock = 0.5
    tilt: jax.Array

    def reversal(self):
        return self

    def check(self, dynamics, ts, x0s):
        return x0s

    def increment(self, dynamics, t0, t1, x0):
        mean, spread = EulerMaruyama().increment(dynamics, t0, t1, x0)
        return mean, spread * self.tilt

    def __call__(self, dynamics, t0, t1, x0, zs):
        raise NotImplementedError


@pytest.mark.nightly
def test_kernels_of_correlated_noise_have_the_bound_of_their_paths(key):
    plane = GaussianMixture([1.0, 0.5], [[1.0, 0.0], [-1.0, 0.4]], [[0.4, 0.6], [0.3, 0.8]])
    keys = jr.split(key, 3)
    data, score, stepper = plane.sample(4000, key=keys[0]), MixtureScore(OU, plane), Tilted(jnp.array([[1.2, 0.0], [0.4, 0.9]]))
    terms = kernel_terms(score, OU, data, TS, stepper=stepper, key=keys[1]).bound
    along = path_bound(score, OU, data, TS, stepper=stepper, key=keys[2])
    assert_estimate(terms._replace(value=terms.value - along.value, stderr=jnp.hypot(terms.stderr, along.stderr)), 0.0)
    plain = kernel_terms(score, OU, data, TS, stepper=EulerMaruyama(), key=keys[1]).bound
    with pytest.raises(AssertionError):
        assert_estimate(along._replace(value=along.value - plain.value), 0.0)


# Importance weights.


def importance(data, particles, kind, key):
    return importance_nll(scaled(FACTOR), OU, data, TS, particles=particles, stepper=STEPPERS[kind], key=key)


def check_density(nlls, data, kind):
    """The weights average to the density of what is generated, at any number of particles."""
    found = exponential_mean(nlls + jax.vmap(density_made(FACTOR, TS, kind).log_prob)(data))
    assert found.trustworthy
    assert_estimate(found, 1.0)


@pytest.mark.slow
def test_importance_weights_average_to_the_density_of_the_sampler(key):
    kind = "euler"
    data_key, path_key = jr.split(key)
    data = DATA.sample(1000, key=data_key)
    found = importance(data, 8, kind, path_key)
    check_density(found.nlls, data, kind)
    assert jnp.all((found.ess >= 1 - rounding()) & (found.ess <= 8 + rounding(100)))
    assert found.nll.value < found.bound.value
    for wrong in (found.nlls + 0.1, -found.nlls):
        with pytest.raises(AssertionError):
            check_density(wrong, data, kind)


@pytest.mark.nightly
def test_the_bound_falls_with_every_particle_towards_the_likelihood(key):
    data_key, *path_keys = jr.split(key, 4)
    data, kind = DATA.sample(2000, key=data_key), "ancestral"
    single, few, many = (importance(data, n, kind, k) for n, k in zip((1, 4, 64), path_keys, strict=True))
    # One particle: the bound of the path; nobody can say how far it is from the likelihood.
    assert close(single.nll.value, single.bound.value, steps=100)
    assert jnp.isinf(single.bias)
    assert not single.nll.trustworthy
    for found in (single, many):
        assert_estimate(found.bound, bound_on_nll(FACTOR, TS, kind))
    for more, fewer in ((few, single), (many, few)):
        gain = average(fewer.nlls - more.nlls)
        assert gain.value > 4 * gain.stderr
        assert jnp.median(more.ess) > jnp.median(fewer.ess)
    # On the same data, what is left is what the jackknife says is left.
    exact = -jax.vmap(density_made(FACTOR, TS, kind).log_prob)(data)
    assert_estimate(average(many.nlls - exact), many.bias)
    for wrong in (single, few):
        with pytest.raises(AssertionError):
            assert_estimate(average(wrong.nlls - exact), many.bias)
    # Enough particles for few data: the number itself.
    some = importance(data[:250], 256, kind, path_keys[0])
    assert some.nll.trustworthy
    assert_estimate(some.nll, jnp.mean(exact[:250]))
    assert_estimate(average(some.nlls - exact[:250]), some.bias)


# Errors.


def test_terms_and_weights_without_meaning_are_refused(key):
    xs, score = jnp.zeros((3, 1)), scaled(1.0)
    for verb in (kernel_terms, importance_nll):
        with pytest.raises(ValueError, match=r"`ts\[0\]` must be a time at which the process has noise"):
            verb(score, OU, xs, np.linspace(0.0, 1.0, 4), key=key)
        with pytest.raises(ValueError, match="`ts` must increase strictly"):
            verb(score, OU, xs, TS[::-1], key=key)
        with pytest.raises(TypeError, match="`stepper` must know its transition density"):
            verb(score, OU, xs, TS, stepper=Diffrax(Heun()), key=key)
        with pytest.raises((ValueError, TypeError), match=r"\(sample, dim\)|sample dim"):
            verb(score, OU, jnp.zeros(3), TS, key=key)
    with pytest.raises(ValueError, match="`particles` must be at least 1, got 0"):
        importance_nll(score, OU, xs, TS, particles=0, key=key)
