"""Controlled samplers: unbiased before any training, one look at each state, losses that vanish where the two measures agree."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.measures import assess, assessment
from thermojax.optimize import fit, gradient_statistics
from thermojax.phase import position_of
from thermojax.samplers import (
    controlled,
    DetailedBalance,
    learned,
    LogVariance,
    METHODS,
    OverdampedSampler,
    replay,
    ReverseKL,
    SubTrajectoryBalance,
    TrajectoryBalance,
    walk,
)

TARGET = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.2, -0.4]], [0.5, 0.3])
CASES = [(name, inertia) for name, method in METHODS.items() for inertia in ((False, True) if method.inertia else (False,))]
BALANCES = {
    "log-variance": LogVariance,
    "trajectory": TrajectoryBalance,
    "sub-trajectory": SubTrajectoryBalance,
    "detailed": DetailedBalance,
}


class Lifted(eqx.Module):
    """A density times a constant."""

    density: GaussianMixture | Gaussian
    log_z: jax.Array

    def __call__(self, x):
        return self.density.log_prob(x) + self.log_z

    def sample(self, n, *, key):
        return self.density.sample(n, key=key)


def scrambled(sampler, size=0.3, *, seed=1):
    """The sampler with a network whose last layers say something."""
    last = lambda s: [layers[-1].weight for layers in (s.network.body.layers, s.network.gain.layers)]
    noisy = [size * scale * jr.normal(jr.key(seed), a.shape, a.dtype) for a, scale in zip(last(sampler), (1.0, 0.1), strict=True)]
    return eqx.tree_at(last, sampler, noisy)


def sampler_of(name, *, inertia=False, steps=8, target=TARGET, seed=0):
    return controlled(name, target, dim=2, steps=steps, scale=1.5, inertia=inertia, width=12, depth=1, key=jr.key(seed))


def check_unbiased(name, key, *, inertia, steps, backward=True):
    target = Lifted(TARGET, jnp.asarray(0.6))
    # Controls that depend on the velocity feed themselves: many steps bear only weak random ones.
    sampler = scrambled(sampler_of(name, inertia=inertia, steps=steps, target=target), min(0.3, 2.4 / steps))
    found = assess(sampler, 10_000, backward=backward, key=key)
    estimate = found.best
    assert estimate.trustworthy
    assert_estimate(estimate, 0.6)
    assert found.elbo.value < 0.6
    assert not backward or found.eubo.value > 0.6


# All of them are among the slow tests.
@pytest.mark.parametrize(("name", "inertia"), [("cmcd", True), ("dis", False), ("pis", False)])
@pytest.mark.slow
def test_untrained_samplers_are_unbiased_with_few_steps(key, name, inertia):
    check_unbiased(name, key, inertia=inertia, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inertia"), CASES, ids=[f"{n}{'-inertial' if i else ''}" for n, i in CASES])
def test_all_untrained_samplers_are_unbiased(key, name, inertia):
    check_unbiased(name, key, inertia=inertia, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 64])
@pytest.mark.parametrize("inertia", [False, True])
def test_untrained_samplers_are_unbiased_with_any_number_of_steps(key, inertia, steps):
    check_unbiased("cmcd", key, inertia=inertia, steps=steps)


@pytest.mark.parametrize("steps", [1, 8, 64])
@pytest.mark.slow
def test_untrained_langevin_annealing_is_unbiased_as_importance_sampling(key, steps):
    # Without the paths of Q, whose weights a bidirectional estimate would lean on. Wide tails: the weights have a finite variance.
    target = Lifted(Gaussian([0.5, -0.3], 0.8), jnp.asarray(-0.4))
    sampler = controlled("ula", target, dim=2, steps=steps, scale=1.1, key=jr.key(0))
    found = assess(sampler, 10_000, key=key)
    assert found.log_z.trustworthy
    assert_estimate(found.log_z, -0.4)


@pytest.mark.slow
def test_a_wrong_backward_kernel_is_seen(key):
    # The control of the backward kernel with the sign of the forward one.
    sampler = scrambled(sampler_of("cmcd", steps=3))
    right = sampler.forward(10_000, key=key)
    half = dataclasses.replace(sampler, side="forward").forward(10_000, key=key)
    assert jnp.allclose(right.x1s, half.x1s)
    assert_estimate(assessment(right.log_ratios).log_z, 0.0)
    assert_estimate(assessment(half.log_ratios).log_z, 0.0)
    # Both are pairs; a mixture of the two, part of the ratio from one and part from the other, is none.
    with pytest.raises(AssertionError):
        assert_estimate(assessment(2 * right.log_ratios - half.log_ratios).log_z, 0.0)


def test_log_ratio_is_that_of_kernels_evaluated_twice(key):
    """A transcription of controlled Monte Carlo diffusion that evaluates both kernels of a step anew."""
    sampler = scrambled(sampler_of("cmcd", steps=5))
    trace = eqx.filter_jit(walk)(sampler, 7, key=key)
    betas = np.linspace(0.0, 1.0, 6)
    prior = Gaussian(sampler.prior_mean, jnp.exp(2 * sampler.prior_log_scale))
    _, noise_key = jr.split(key)

    def field(k, x):
        annealed = jax.grad(lambda y: (1 - betas[k]) * prior.log_prob(y) + betas[k] * TARGET.log_prob(y))(x)
        control, _ = sampler.network(jnp.asarray(k / 5), x, jax.grad(TARGET.log_prob)(x))
        return annealed, control[0]

    def path(x, zs):
        total = prior.log_prob(x)
        for k in range(5):
            step = jnp.exp(sampler.log_steps[k])
            annealed, control = field(k, x)
            ahead = Gaussian(x + step * annealed + jnp.sqrt(2 * step) * control, 2 * step)
            y = ahead.mean + jnp.sqrt(2 * step) * zs[k]
            annealed, control = field(k + 1, y)
            back = Gaussian(y + step * annealed - jnp.sqrt(2 * step) * control, 2 * step)
            total = total + ahead.log_prob(y) - back.log_prob(x)
            x = y
        return total - TARGET.log_prob(x)

    zs = jnp.stack([jr.normal(jr.fold_in(noise_key, k), (7, 2), trace.x0s.dtype) for k in range(5)], axis=1)
    assert jnp.max(jnp.abs(trace.log_ratios - jax.vmap(path)(trace.x0s, zs))) < rounding(30.0, 10)


@pytest.mark.slow
@pytest.mark.parametrize("inertia", [False, True])
def test_a_path_costs_one_look_per_state(key, inertia):
    calls = {"target": 0, "network": 0}

    def counted(name):
        def note(_):
            calls[name] += 1

        return note

    class Counting(eqx.Module):
        def __call__(self, x):
            jax.debug.callback(counted("target"), x[0])
            return TARGET.log_prob(x)

    class Watched(eqx.Module):
        body: eqx.nn.MLP

        def __call__(self, features):
            jax.debug.callback(counted("network"), features[0])
            return self.body(features)

    sampler = sampler_of("cmcd", inertia=inertia, steps=6, target=Counting())
    sampler = eqx.tree_at(lambda s: s.network.body, sampler, Watched(sampler.network.body))
    jax.block_until_ready(walk(sampler, 3, key=key).log_ratios)
    jax.effects_barrier()
    # Six steps, seven states.
    assert calls == {"target": 3 * 7, "network": 3 * 7}


def at_rest(balance_log_z=0.3):
    """A sampler of its own prior: P is Q."""
    prior = Lifted(Gaussian([0.5, -0.2], 2.25), jnp.asarray(0.3))
    sampler = controlled("dds", prior, dim=2, steps=6, mean=jnp.asarray([0.5, -0.2]), scale=1.5, width=8, depth=1, key=jr.key(0))
    return eqx.tree_at(lambda s: s.log_z, sampler, jnp.asarray(balance_log_z))


class TestLosses:
    """What they are where the two measures agree, and where they do not."""

    @pytest.mark.slow
    @pytest.mark.parametrize("loss", BALANCES.values(), ids=BALANCES)
    def test_balances_vanish_where_both_measures_agree(self, key, loss):
        anywhere = loss(samples=10, stretch=1.3, ends=jr.normal(key, (5, 2)))
        assert abs(eqx.filter_jit(anywhere)(at_rest(), key)) < rounding(100.0)

    @pytest.mark.parametrize("loss", BALANCES.values(), ids=BALANCES)
    @pytest.mark.slow
    def test_balances_see_a_wrong_normaliser_and_a_control(self, key, loss):
        small = eqx.filter_jit(loss(samples=10))
        wrong = small(at_rest(0.5), key)
        # By trajectory balance the square of the gap; log-variance knows no normaliser; single steps see it once, at the first.
        expected = {"LogVariance": 0.0, "TrajectoryBalance": 0.04}.get(loss.__name__)
        assert wrong > 1e-3 if expected is None else abs(wrong - expected) < rounding(100.0)
        assert small(scrambled(at_rest()), key) > 1e-3

    def test_reverse_divergence_is_minus_the_log_normaliser_there(self, key):
        assert abs(ReverseKL(10)(at_rest(), key) + 0.3) < rounding(100.0)

    @needs_x64
    @pytest.mark.parametrize("inertia", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.slow
    def test_gradient_of_the_reverse_divergence_by_finite_differences(self, key, inertia):
        # Along one direction in everything that is learned.
        sampler, loss = scrambled(sampler_of("cmcd", inertia=inertia, steps=4)), ReverseKL(16)
        arrays, rest = eqx.partition(learned(sampler), eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(arrays)
        directions = [jr.normal(k, a.shape) for k, a in zip(jr.split(key, len(leaves)), leaves, strict=True)]

        @jax.jit
        def value(e):
            moved = jax.tree.unflatten(structure, [a + e * d for a, d in zip(leaves, directions, strict=True)])
            return loss(eqx.tree_at(learned, sampler, eqx.combine(moved, rest)), key)

        difference = (value(1e-5) - value(-1e-5)) / 2e-5
        assert abs(difference) > 0.1
        assert abs(jax.jit(jax.grad(value))(0.0) - difference) < 1e-6 * (1 + abs(difference))

    @pytest.mark.parametrize("inertia", [pytest.param(False, marks=pytest.mark.slow), True])
    @pytest.mark.slow
    def test_log_variance_has_the_gradient_of_the_divergence(self, key, inertia):
        # On paths of P the gradient of half the log-variance is that of KL(P||Q) in expectation, for what moves P alone.
        sampler = dataclasses.replace(scrambled(sampler_of("cmcd", inertia=inertia, steps=3), 0.1), side="forward")
        where = lambda s: s.network.gain.layers[-1].bias
        first, second = jr.split(key)
        kl = gradient_statistics(ReverseKL(200), sampler, where=where, repeats=60, key=first)
        half = lambda s, k: 0.5 * LogVariance(200)(s, k)
        variance = gradient_statistics(half, sampler, where=where, repeats=60, key=second)
        gap = where(kl.mean) - where(variance.mean)
        assert jnp.max(jnp.abs(gap) / jnp.hypot(where(kl.stderr), where(variance.stderr))) < 4.5
        assert jnp.max(jnp.abs(where(kl.mean)) / where(kl.stderr)) > 8

    @pytest.mark.slow
    def test_sub_trajectories_of_all_lengths_are_balanced(self, key):
        # Long stretches alone are trajectory balance; stretches of one step alone are detailed balance.
        sampler = scrambled(at_rest())
        many = SubTrajectoryBalance(16, decay=1e6)(sampler, key)
        assert jnp.allclose(many, TrajectoryBalance(16)(sampler, key), rtol=1e-4)
        short = SubTrajectoryBalance(16, decay=1e-6)(sampler, key)
        assert jnp.allclose(short * 6, DetailedBalance(16)(sampler, key), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("inertia", [False, True])
def test_a_step_backward_has_the_log_ratio_of_the_same_step_forward(key, inertia):
    """The kernels of one step, made from the side of Q and read from that of P."""
    sampler = scrambled(sampler_of("gbs", inertia=inertia, steps=5))
    x1, k, z = jax.tree.map(lambda a: a[0], sampler.last(1, key)), jnp.asarray(2), jr.normal(key, (2,))
    x0, here, back = sampler.move_back(k, x1, sampler.look(k + 1, x1), z)
    # The normals that make the step forward.
    if inertia:
        half = x1.velocity - 0.5 * jnp.exp(sampler.log_steps[k]) * sampler._score(k + 1, x1.position, sampler.look(k + 1, x1))
        speed = half - 0.5 * jnp.exp(sampler.log_steps[k]) * sampler._score(k, x0.position, here)
        mean, log_scale = sampler._refreshed(k, x0.velocity, here, ahead=True)
        own = (speed - mean) * jnp.exp(-log_scale)
    else:
        mean, log_scale = sampler._ahead(k, x0, here)
        own = (x1 - mean) * jnp.exp(-log_scale)
    again, _, ahead = sampler.move(k, x0, here, own, held=False)
    assert all(jnp.max(jnp.abs(a - b)) < rounding(10.0) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(x1), strict=True))
    assert abs(ahead - back) < rounding(100.0)
    assert abs(back) > 1e-3


@pytest.mark.parametrize(
    "loss",
    [LogVariance, *(pytest.param(loss, marks=pytest.mark.slow) for loss in (ReverseKL, *BALANCES.values()) if loss is not LogVariance)],
    ids=lambda loss: loss.__name__,
)
@pytest.mark.slow
def test_training_brings_the_measures_together(key, loss):
    sampler = sampler_of("cmcd", steps=6)
    before = assess(sampler, 10_000, backward=True, log_z=0.0, key=key)
    with jax.numpy_dtype_promotion("standard"):
        found = fit(loss(64), sampler, optimizer=optax.adam(0.01), steps=150, where=learned, average=0.9, key=key)
    after = assess(found.model, 10_000, backward=True, log_z=0.0, key=key)
    assert after.divergence.value < 0.6 * before.divergence.value
    assert after.reverse_divergence.value < before.reverse_divergence.value
    assert_estimate(after.log_z_both, 0.0)


@pytest.mark.slow
def test_replayed_states_are_those_of_the_target(key):
    # Resampled by their weights: moments of the target within their errors.
    sampler = sampler_of("ula", steps=6)
    places = replay(sampler, 10_000, key=key)
    trace = sampler.forward(10_000, key=key)
    raw = jnp.mean(trace.x1s[:, 0])
    exact = float(TARGET.moments().mean[0])
    # Two draws, of paths and from their weights.
    error = float(jnp.std(places[:, 0])) * (2 / 10_000 / float(assessment(trace.log_ratios).efficiency)) ** 0.5
    assert abs(float(jnp.mean(places[:, 0])) - exact) < 4 * error
    assert abs(raw - exact) > 4 * error


def test_numbers_do_not_compile_again(key):
    traces = []

    def target(x):
        traces.append(1)
        return TARGET.log_prob(x)

    sampler = sampler_of("mcd", steps=3, target=target)
    sampler.forward(10, key=key)
    first = len(traces)
    eqx.tree_at(lambda s: s.log_steps, sampler, sampler.log_steps - 0.5).forward(10, key=key)
    assert len(traces) == first


@pytest.mark.slow
def test_precision_is_that_of_the_prior(key):
    sampler = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, sampler_of("cmcd", inertia=True, steps=3))
    walks = sampler.forward(8, key=key)
    assert walks.log_ratios.dtype == jnp.float32
    assert position_of(walks.x1s).dtype == jnp.float32


def test_what_has_no_meaning_is_refused(key):
    with pytest.raises(ValueError, match="`method` must be one of ula, mcd, cmcd, gbs, dds, dis, pis, got 'hmc'"):
        controlled("hmc", TARGET, dim=2, key=key)
    with pytest.raises(ValueError, match="`method` must have an underdamped form"):
        controlled("pis", TARGET, dim=2, inertia=True, key=key)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        controlled("cmcd", TARGET, dim=2, scale=0.0, key=key)
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        controlled("cmcd", TARGET, dim=2, steps=0, key=key)
    with pytest.raises(ValueError, match="`ends` must have shape"):
        LogVariance(4, ends=jnp.zeros(3))
    with pytest.raises(ValueError, match="`samples` must be at least 2"):
        LogVariance(1)
    sampler = sampler_of("cmcd", target=lambda x: -0.5 * jnp.sum(x**2))
    with pytest.raises(ValueError, match="`target` must have a method sample"):
        sampler.backward(4, key=key)
    with pytest.raises(ValueError, match="`network` must have 2 heads"):
        OverdampedSampler(TARGET, sampler.network, jnp.zeros(2), jnp.zeros(2), jnp.zeros((3, 2)), jnp.zeros(3), side="both")


@pytest.mark.slow
def test_paths_into_a_hole_of_the_target_are_counted(key):
    sampler = sampler_of("ula", target=lambda x: jnp.where(x[0] > 2.5, jnp.nan, TARGET.log_prob(x)))
    found = assess(sampler, 10_000, key=key)
    assert int(found.log_z.excluded) > 0
    assert not found.log_z.trustworthy
    assert found.trust.verdict == "unreliable"
