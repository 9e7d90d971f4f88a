"""The audit: it recovers known numbers, finds what is wrong and names it with its size, and finds nothing in a perfect model."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64

from thermojax import mean
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import Cosine, OrnsteinUhlenbeck
from thermojax.generative import audit, MixtureScore

# Data N(+-1, 0.4) with equal weights under dx = -x dt + sqrt(2) dW until t = 3. All numbers: exact, quadrature.
DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
OU = OrnsteinUhlenbeck()
XS, TRAINED = DATA.sample(400, key=jr.key(1)), DATA.sample(400, key=jr.key(2))
# Twenty points, all there is to learn from.
FEW = jnp.tile(TRAINED[:20], (20, 1))
ENTROPY = 1.510397505118
ALIKE = "It does so at all noise levels alike"


class Broken(eqx.Module):
    """The true score times a factor, constant or not, or that of the training data alone, or none at one time: compiled once."""

    factor: jax.Array
    memory: jax.Array
    gap: jax.Array
    drift: jax.Array

    def __call__(self, t, x):
        shrunk, added = jnp.exp(-t), -jnp.expm1(-2 * t)
        variance = added + 0.4 * shrunk**2
        own = self.factor * t**self.drift * (shrunk * jnp.tanh(shrunk * x / variance) - x) / variance
        away = x - shrunk * FEW[:, 0]
        learned = -(jax.nn.softmax(-0.5 * away**2 / added) @ away)[None] / added
        score = (1.0 - self.memory) * own + self.memory * learned
        return jnp.where(jnp.abs(jnp.log(t / self.gap)) < 0.5, jnp.nan, score)


def broken(factor=1.0, memory=0.0, gap=1e9, drift=0.0):
    return Broken(*(jnp.asarray(a, float) for a in (factor, memory, gap, drift)))


def small(score, xs=XS, **how):
    """A small audit. All of them share what is compiled."""
    numbers = {"trained_on": TRAINED, "start": 0.01, "horizon": 3.0, "levels": 20, "budgets": (8,), "likelihoods": 40, "key": jr.key(7)}
    return audit(score, OU, xs, **(numbers | how))


@ft.cache
def audited(factor=1.0, memory=0.0, **how):
    return small(broken(factor, memory), **how)


def check_finds(found, *sentences):
    """There is a fault for each of the sentences, in this order, and no other."""
    assert len(found.faults) == len(sentences), found.faults
    for fault, sentence in zip(found.faults, sentences, strict=True):
        assert sentence in fault, fault


@pytest.mark.nightly
def test_nothing_is_wrong_with_the_true_score():
    found = audited()
    check_finds(found)
    assert str(found).startswith("Nothing is wrong that these data can show.")
    assert "± " in str(found)
    assert_estimate(found.profile.bound, ENTROPY)
    assert_estimate(found.limits.likelihood, ENTROPY)
    assert found.memorised is not None
    assert_estimate(found.memorised.total, 0.0)
    # The check can fail.
    with pytest.raises(AssertionError):
        check_finds(audited(0.5))


@pytest.mark.slow
def test_a_wrong_factor_is_found_with_its_number():
    check_finds(audited(0.5), "The score loses at least", "Multiplied by 2 the score would cost less. " + ALIKE)
    check_finds(
        audited(0.9), "The score loses at least", "Multiplied by 1.11 the score would cost less. It does so at all noise levels alike"
    )
    with pytest.raises(AssertionError):
        check_finds(audited(0.9), "The score loses at least", "Multiplied by 0.9")


@pytest.mark.slow
def test_a_factor_that_changes_with_the_noise_points_to_the_clock():
    found = small(broken(drift=1.0))
    assert any("The best factor runs from" in fault and "wrong schedule or clock" in fault for fault in found.faults), found.faults
    assert not any("The best factor runs from" in fault for fault in (*audited().faults, *audited(0.9).faults))


@pytest.mark.slow
def test_what_was_memorised_is_found():
    found = small(broken(memory=1.0), trained_on=FEW)
    assert any("The model has memorised" in fault for fault in found.faults), found
    assert not any("memorised" in fault for fault in audited(0.5).faults)
    assert found.memorised is not None
    # It is the data of its training that the model knows: on those it does better than the truth.
    assert float(found.memorised.seen.bound.value) < ENTROPY < float(found.profile.bound.value)


@pytest.mark.slow
def test_a_prior_that_misses_the_noised_data_is_found():
    shifted = small(broken(), prior=Gaussian([1.0], 1.0))
    check_finds(shifted, "The prior costs at least")
    assert_estimate(shifted.mismatch, 0.5 + 0.2 * np.exp(-6.0))
    assert "t = 3" in shifted.faults[0]
    # Halfway a datum and its noised self still know of each other; that is no fault of the prior, which fits all of them together.
    late = audited(horizon=1.0)
    check_finds(late)
    assert float(late.profile.terminal.value) > 0.05


@pytest.mark.slow
def test_a_singular_end_is_cut_and_noted():
    found = audited(start=0.0)
    assert "The schedule has no noise at t = 0; it was cut by" in found.remarks[-1]
    assert 0 < float(found.ts[0]) < 1e-4
    assert not any("it was cut" in remark for remark in audited().remarks)


BAD = {
    "shape": (dict(score=lambda t, x: jnp.sum(x)), r"`score` must return shape \(1,\) for a configuration of that shape, got shape \(\)."),
    "dimension": (dict(score=lambda t, x: x @ jnp.ones((2, 2))), "`score` must accept configurations of the dimension of the data"),
    "not finite": (
        dict(score=broken(gap=0.1)),
        r"`score` must be finite at every noise level, got nan at t = .* \(log signal",
    ),
    "data": (dict(xs=XS[:, 0]), r"`data` must have shape \(sample, dim\)"),
    "holes": (dict(xs=XS.at[3].set(jnp.nan)), "`data` must be finite, got 1 of 400 configurations that are not."),
    "one": (dict(xs=XS[:1]), "`data` must be at least two configurations, got 1."),
    "no budgets": (dict(budgets=()), r"`budgets` must be at least one number of steps, each at least 1, got \(\)."),
    "no steps": (dict(budgets=(16, 0)), r"`budgets` must be at least one number of steps, each at least 1, got \(16, 0\)."),
    "no levels": (dict(levels=0), "`levels` must be at least 1, got 0."),
    "no particles": (dict(particles=0), "`particles` must be at least 1, got 0."),
    "one likelihood": (dict(likelihoods=1), "`likelihoods` must be at least 2, got 1."),
    "tolerance": (dict(tolerance=0.0), "`tolerance` must be positive, got 0.0."),
    "divergence": (dict(divergence="stein"), "`divergence` must be 'exact' or 'hutchinson', got 'stein'."),
    "prior": (dict(prior=Gaussian([0.0, 0.0], 1.0)), r"`prior` must have the dimension of `data`, 1, got shape \(2,\)."),
    "other data": (dict(trained_on=np.ones((5, 2))), r"`trained_on` must have the dimension of `data`, 1, got shape \(5, 2\)."),
    "other truth": (dict(truth=Gaussian([0.0, 0.0], 1.0)), "`truth` must have the dimension of `data`, 1, got 2."),
    "times": (dict(start=4.0), "`horizon` must be a finite time later than `start` = 4.0, got 3.0."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    how, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        small(**({"score": broken()} | how))


@pytest.mark.nightly
def test_the_audit_recovers_the_numbers_of_a_score_that_is_wrong_by_a_tenth(key):
    data_key, key = jr.split(key)
    xs = DATA.sample(2000, key=data_key)
    found = audit(broken(0.9), OU, xs, truth=DATA, start=1e-3, horizon=3.0, budgets=(512,), likelihoods=500, key=key)
    check = ft.partial(check_numbers, found, xs)
    check()
    check_finds(found, "The score loses 0.029", "Multiplied by 1.11")
    assert "error of the score, D" in str(found)
    assert "entropy-rate bound B" in str(found)
    # The check can fail: the numbers of the true score.
    with pytest.raises(AssertionError):
        check(path_kl=0.0)
    with pytest.raises(AssertionError):
        check(flow=ENTROPY)


def check_numbers(found, xs, *, path_kl=0.0290903653, bound=1.7867559757, likelihood=1.8013014040, flow=1.5829108493, sde=1.51973904):
    """What 0.9 of the true score costs."""
    assert_estimate(found.limits.score_error, path_kl)
    assert_estimate(found.limits.bound, bound)
    assert_estimate(found.limits.likelihood, likelihood)
    assert_estimate(found.flow, flow)
    # The spread of the data themselves is common to both.
    few = xs[: found.sampler.nlls.shape[0]]
    assert_estimate(mean(found.sampler.nlls + jax.vmap(DATA.log_prob)(few)), sde - ENTROPY)
    assert_estimate(found.excess, flow - sde)


@needs_x64
@pytest.mark.nightly
def test_five_data_in_single_precision_stay_so_and_are_not_believed():
    found = small(MixtureScore(OU, DATA), XS[:5].astype("float32"), trained_on=None)
    assert found.memorised is None
    assert all(a.dtype == "float32" for a in jax.tree.leaves(found) if jnp.issubdtype(getattr(a, "dtype", bool), jnp.floating))
    assert "There are too few data" in found.faults[0]
    assert "`bound` and `path_kl` and `decoding`" in found.faults[0]


@pytest.mark.nightly
def test_a_schedule_that_is_singular_at_both_ends_is_cut_at_both():
    found = audit(MixtureScore(Cosine(), DATA), Cosine(), XS, levels=20, budgets=(64,), likelihoods=40, key=jr.key(3))
    check_finds(found)
    assert [note[:29] for note in found.remarks[-2:]] == ["The schedule has no noise at ", "The schedule keeps nothing of"]
    assert_estimate(found.profile.bound, ENTROPY)
