import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from annealing_oracles import moments, Quartic, quartic_path
from assertions import assert_estimate, rounding

from thermojax.annealing import AbstractKernel, Adjusted, Annealing, ess_schedule, Geometric, Langevin, smc
from thermojax.distributions import AbstractDistribution, Gaussian
from thermojax.estimators import exponential_mean, mean
from thermojax.measures import assess
from thermojax.targets import EightSchools, ManyWell


def uniform(levels):
    return jnp.linspace(0.0, 1.0, levels + 1)


def quartic_chain(levels=6):
    path = quartic_path()
    return Annealing(path, path.initial, uniform(levels), Langevin(0.1))


@pytest.mark.slow
def test_populations_estimate_normaliser_and_means_without_bias(key):
    z, first = moments()
    found = smc(quartic_chain(), 8, islands=2000, threshold=0.95, key=key)
    assert_estimate(exponential_mean(-found.log_zs), z)
    assert_estimate(found.log_z, np.log(z))
    assert bool(found.log_z.trustworthy)
    assert int(found.log_z.samples) == 2000
    # Populations of eight are biased towards the first density; not so their weighted mean over all islands.
    assert_estimate(found.mean(lambda x: x[0]), first)
    assert float(found.report.elbo.value) < float(found.log_z.value)
    assert found.particles.shape == (2000, 8, 1)
    assert found.shares.shape == (2000, 6)
    assert 0.5 < float(jnp.mean(found.resamplings)) < 6
    assert int(found.lost) == 0
    # Resampled where the share was below the threshold, and only there.
    assert np.array_equal(found.resamplings, np.sum(np.asarray(found.shares) < 0.95, axis=1))
    assert np.allclose(jax.nn.logsumexp(found.log_weights, axis=1) - np.log(8), found.log_zs, atol=rounding(10))
    with pytest.raises(AssertionError):
        assert_estimate(found.log_z, np.log(z) + 0.1)
    with pytest.raises(AssertionError):
        assert_estimate(mean(jnp.mean(found.particles[:, :, 0], axis=1)), first)


class Fixed(AbstractKernel):
    """Stays."""

    gradients: ClassVar[bool] = False
    smooth: ClassVar[bool] = True

    def check(self, path, x0s, lams):
        return x0s

    def reversal(self):
        return self

    def __call__(self, path, place, lam, index, key):
        return place, jnp.zeros_like(lam)


@pytest.mark.slow
def test_without_resampling_the_weights_are_those_of_importance_sampling(key):
    path = quartic_path()
    found = smc(Annealing(path, path.initial, uniform(6), Fixed()), 16, islands=2000, threshold=0.0, key=key)
    exact = jax.vmap(jax.vmap(lambda x: Quartic()(x) - path.initial.log_prob(x)))(found.particles)
    assert np.max(np.abs(found.log_weights - exact)) < rounding(1000)
    assert np.all(np.asarray(found.resamplings) == 0)
    always = smc(Annealing(path, path.initial, uniform(6), Fixed()), 16, islands=2000, threshold=1.0, key=key)
    # Each step is followed by resampling, after which all weights are equal; particles have died out.
    assert np.all(np.asarray(always.resamplings) == 6)
    assert np.max(np.ptp(np.asarray(always.log_weights), axis=1)) < rounding(10)
    assert len(np.unique(np.asarray(always.particles[0]))) < 16


class Coin(AbstractDistribution):
    """A state 0 or 1."""

    logs: jax.Array

    def sample(self, n, *, key):
        return jr.categorical(key, self.logs, shape=(n, 1))

    def log_prob(self, x):
        return jax.nn.log_softmax(self.logs)[x[0]]

    def score(self, x):
        raise NotImplementedError


class HeatBath(Fixed):
    """Forgets, sometimes."""

    share: jax.Array

    def __call__(self, path, place, lam, index, key):
        forget_key, draw_key = jr.split(key)
        logs = jnp.stack([path(jnp.full_like(place.x, i), lam) for i in (0, 1)])
        x = jnp.where(jr.bernoulli(forget_key, self.share), jr.categorical(draw_key, logs), place.x[0])
        return path.at(x.astype(place.x.dtype)[None]), jnp.zeros_like(lam)


COIN, TARGET, SHARE, LEVELS = np.array([0.3, 0.7]), np.array([3.0, 0.5]), 0.2, 6
PAIRS = list(itertools.product((0, 1), repeat=2))


def systematic(w):
    """Law of the two ancestors, of which the first has the share w: pointers u / 2 and (1 + u) / 2."""
    both, split = (2 * w - 1, 2 - 2 * w) if w >= 0.5 else (0.0, 2 * w)
    return {(0, 0): both, (0, 1): split, (1, 1): 1 - both - split}


def multinomial(w):
    return {(i, j): (w, 1 - w)[i] * (w, 1 - w)[j] for i, j in PAIRS}


def second_moment(resampling):
    """Mean square of the estimate of Z by two particles on two states, by enumeration."""
    density = lambda lam: COIN ** (1 - lam) * TARGET**lam
    law = {pair: COIN[pair[0]] * COIN[pair[1]] for pair in PAIRS}
    for k in range(LEVELS):
        gains = density((k + 1) / LEVELS) / density(k / LEVELS)
        target = density((k + 1) / LEVELS) / np.sum(density((k + 1) / LEVELS))
        kernel = (1 - SHARE) * np.eye(2) + SHARE * target[None, :]
        after = dict.fromkeys(PAIRS, 0.0)
        for (a, b), p in law.items():
            weights = gains[[a, b]]
            ancestors = {(0, 1): 1.0} if a == b else resampling(weights[0] / np.sum(weights))
            for choice, q in ancestors.items():
                i, j = (a, b)[choice[0]], (a, b)[choice[1]]
                for c, d in PAIRS:
                    after[c, d] += p * np.mean(weights) ** 2 * q * kernel[i, c] * kernel[j, d]
        law = after
    return sum(law.values())


def test_two_particles_on_two_states_are_those_of_the_enumeration(key):
    path = Geometric(Coin(jnp.log(jnp.asarray(COIN))), lambda x: jnp.log(jnp.asarray(TARGET))[x[0]])
    chain = Annealing(path, path.initial, uniform(LEVELS), HeatBath(jnp.asarray(SHARE)))
    found = smc(chain, 2, islands=40_000, threshold=1.0, key=key)
    assert_estimate(exponential_mean(-found.log_zs), np.sum(TARGET))
    assert_estimate(exponential_mean(-2 * found.log_zs), second_moment(systematic))
    with pytest.raises(AssertionError):
        assert_estimate(exponential_mean(-2 * found.log_zs), second_moment(multinomial))


@pytest.mark.slow
def test_populations_that_lose_all_weight_are_refused_at_their_level(key):
    fading = lambda x, lam: jnp.where(lam > 0.5, -jnp.inf, -0.5 * jnp.sum(x**2))
    chain = Annealing(fading, Gaussian([0.0], 1.0), uniform(3), Fixed())
    with pytest.raises(ValueError, match="`path` must leave particles of weight above zero, got none in island 0 at level 2."):
        smc(chain, 4, islands=2, key=key)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`path` must leave particles of weight above zero"):
        eqx.filter_jit(lambda c: smc(c, 4, islands=2, key=key).log_z.value)(chain).block_until_ready()


@pytest.mark.slow
def test_particles_whose_weight_is_not_a_number_are_counted_and_new_numbers_compile_nothing_anew(key):
    traces, counts = [], []

    class Broken(Quartic):
        def __call__(self, x):
            traces.append(1)
            return jnp.where(x[0] > 1.2, jnp.nan, super().__call__(x))

    def run(step, a, threshold):
        path = Geometric(Gaussian([0.2], 1.2), Broken((a, 0.8, 0.3)))
        chain = Annealing(path, path.initial, uniform(3), Langevin(step))
        found = smc(chain, 8, islands=2000, threshold=threshold, key=key)
        counts.append(len(traces))
        return found

    run(0.2, 0.3, 0.6)
    found = run(0.1, 0.25, 0.5)
    assert counts[0] == counts[1]
    assert int(found.lost) > 1000
    assert not bool(found.log_z.trustworthy)
    assert np.all(np.isfinite(np.asarray(found.particles)))
    assert np.all(np.asarray(found.particles)[np.asarray(found.log_weights) > -np.inf] < 1.2)
    assert np.isfinite(float(found.log_z.value))
    # A target that is zero everywhere.
    with pytest.raises(ValueError, match="`path` must leave particles of weight above zero, got none in island 0 at level 1."):
        run(0.1, np.inf, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "spread", "step"), [(ManyWell(4), 2.0, 0.02), (EightSchools(), 25.0, 1.0)], ids=["many-well", "eight-schools"]
)
def test_targets_of_several_dimensions_are_annealed_along_a_schedule_of_their_own(key, target, spread, step):
    schedule_key, smc_key, pair_key = jr.split(key, 3)
    initial = Gaussian(jnp.zeros(target.dim), spread)
    chain = Annealing(Geometric(initial, target), initial, uniform(2), Adjusted(step), moves=2)
    chain = chain.along(ess_schedule(chain, 1000, key=schedule_key))
    found = smc(chain, 60, islands=300, key=smc_key)
    assert_estimate(found.log_z, target.log_z)
    both = assess(chain, 2000, backward=True, key=pair_key)
    assert_estimate(both.log_z_both, target.log_z)
    assert float(both.elbo.value) < float(target.log_z) < float(both.eubo.value)


def test_bad_choices_are_refused(key):
    for bad, message in (
        ({"particles": 0}, "`particles` must be at least 1, got 0."),
        ({"islands": 1}, "`islands` must be at least 2, for an error bar, got 1."),
        ({"threshold": 1.5}, "`threshold` must lie between 0 and 1, got 1.5."),
        ({"threshold": np.nan}, "`threshold` must lie between 0 and 1, got nan."),
    ):
        with pytest.raises(ValueError, match=message):
            smc(quartic_chain(), **({"particles": 4, "islands": 2, "key": key} | bad))
