"""Pairs of path measures: their log-ratio from either side, its forms, and what is read off it."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from systems import Scaled

from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractDynamics, OrnsteinUhlenbeck, Overdamped, Reversed, Underdamped
from thermojax.ensemble import along, simulate
from thermojax.estimators import Estimate
from thermojax.functionals import BackwardRatio
from thermojax.generative import MixtureScore
from thermojax.measures import assess, assessment, Diffusions, ForwardBackward, nelson_residual, Switched, Tilted
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp
from thermojax.steppers import Diffrax, EulerMaruyama, ExactLinear

DATA = GaussianMixture([0.7, 0.3], [[-1.0], [1.5]], [0.3, 0.5])
NOISING = OrnsteinUhlenbeck()
T = 1.5


class Steady(AbstractDynamics):
    """Constant drift and noise."""

    pull: jax.Array
    amplitude: jax.Array

    def drift(self, t, x):
        return jnp.full_like(x, self.pull)

    def noise(self, t):
        return self.amplitude


class Heavier(eqx.Module):
    """An unnormalised density: a distribution times a constant."""

    density: GaussianMixture
    log_z: float

    def __call__(self, x):
        return self.density.log_prob(x) + self.log_z

    def sample(self, n, *, key):
        return self.density.sample(n, key=key)


def denoising(steps=20, factor=1.0, final=DATA):
    """Generation by a score that is wrong by a factor, and the noising of the data: a pair in the time of generation."""
    score = Scaled(MixtureScore(NOISING, DATA), jnp.asarray(factor))
    return Diffusions(standard_normal(1), Reversed(NOISING, score, T), final, NOISING, jnp.linspace(0.0, T, steps + 1))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_both_sides_give_the_normaliser_at_coarse_steps(key, factor):
    found = assess(denoising(6, factor, Heavier(DATA, 0.9)), 10_000, backward=True, key=key)
    for estimate in (found.log_z, found.log_z_backward, found.log_z_both):
        assert estimate.trustworthy
        assert_estimate(estimate, 0.9)
    assert found.elbo.value < 0.9 < found.eubo.value
    assert found.best is found.log_z_both
    assert found.trust.verdict == "reliable"


@pytest.mark.slow
def test_a_lost_sign_of_the_ends_shows(key):
    pair = denoising(6)
    walks = pair.forward(10_000, key=key)
    ends = jax.vmap(pair.initial.log_prob)(walks.x0s) - jax.vmap(DATA.log_prob)(walks.x1s)
    assert_estimate(assessment(walks.log_ratios).log_z, 0.0)
    with pytest.raises(AssertionError):
        assert_estimate(assessment(walks.log_ratios - 2 * ends).log_z, 0.0)


def test_log_ratio_of_a_path_is_the_same_from_either_side(key):
    # One stored path, read forward by the kernels of one process and backward by those of the other.
    pair = denoising(16)
    path = simulate(pair.dynamics, jnp.asarray([[0.3]]), pair.ts, key=key)[:, 0]
    ahead = along(BackwardRatio(pair.reverse, pair.horizon), pair.dynamics, pair.ts, path)
    own = (pair.horizon - pair.ts)[::-1]
    back = along(BackwardRatio(pair.dynamics, pair.horizon), pair.reverse, own, path[::-1])
    assert abs(ahead + back) < rounding(100.0, 16)
    assert abs(ahead - back) > 1e-3


@pytest.mark.slow
def test_path_divergence_of_a_wrong_score_has_its_closed_form(key):
    # Gaussian data at rest stay at rest: s = -x, so a factor f costs (1 - f)^2 <x^2> per unit time, 1/2 sigma^2 = 1.
    at_rest = standard_normal(1)
    score = Scaled(MixtureScore(NOISING, at_rest), jnp.asarray(0.7))
    pair = Diffusions(at_rest, Reversed(NOISING, score, T), at_rest, NOISING, jnp.linspace(0.0, T, 201))
    found = assess(pair, 10_000, backward=True, log_z=0.0, key=key)
    # Along paths of Q, which are at rest.
    assert_estimate(found.reverse_divergence, 0.3**2 * T)
    assert found.divergence.value > 0


@pytest.mark.parametrize(("steps", "mean"), [(1, 0.5), (10, 0.369239139502)])
def test_switched_systems_are_a_pair(key, steps, mean):
    # Work first, then exact relaxation: the clock at the end of the step. Closed form by the mean of the position.
    dynamics = Overdamped(Harmonic(1.0), Ramp(0.0, 1.0))
    pair = Switched(dynamics, jnp.linspace(0.0, 1.0, steps + 1), stepper=ExactLinear(1.0))
    found = assess(pair, 10_000, backward=True, key=key)
    assert_estimate(found.elbo._replace(value=-found.elbo.value), mean)
    assert_estimate(found.eubo, mean)
    assert_estimate(found.log_z, 0.0)
    assert_estimate(found.log_z_both, 0.0)


@pytest.mark.slow
def test_switched_systems_with_inertia_are_a_pair(key):
    dynamics = Underdamped(Harmonic(2.0), Ramp(0.0, 1.0), mass=0.5)
    pair = Switched(dynamics, jnp.linspace(0.0, 1.0, 9))
    found = assess(pair, 10_000, backward=True, key=key)
    assert_estimate(found.log_z, 0.0)
    assert_estimate(found.log_z_both, 0.0)


class TestTilted:
    """Brownian motion from zero with a cost of its last place, and with a push."""

    sigma, push = 0.8, 0.5
    ts = jnp.linspace(0.0, 1.0, 5)

    def pair(self, cost=None, other=None):
        start = Gaussian([0.2], 0.3)
        return Tilted(
            start,
            Steady(jnp.asarray(self.push), jnp.asarray(self.sigma)),
            Steady(jnp.asarray(0.0), jnp.asarray(self.sigma)),
            self.ts,
            cost,
            other,
        )

    def test_a_cost_at_the_end_has_the_normaliser_of_the_reference(self, key):
        # Last place N(0.2, 0.3 + sigma^2) under the reference; <e^{-x}> = exp(-m + v/2).
        found = assess(self.pair(lambda x: x[0]), 10_000, key=key)
        assert_estimate(found.log_z, -0.2 + 0.5 * (0.3 + self.sigma**2))
        # KL(P||R) = push^2 / 2 sigma^2 and the mean cost under P.
        assert_estimate(found.elbo, -(self.push**2 / (2 * self.sigma**2) + 0.2 + self.push))

    def test_paths_of_the_reference_see_the_divergence_the_other_way(self, key):
        other = Gaussian([-0.1], 0.4)
        found = assess(self.pair(None, other), 10_000, backward=True, log_z=0.0, key=key)
        drift = self.push**2 / (2 * self.sigma**2)
        start = lambda m, v, n, w: 0.5 * ((v + (m - n) ** 2) / w - 1 + np.log(w / v))
        assert_estimate(found.divergence, drift + start(0.2, 0.3, -0.1, 0.4))
        assert_estimate(found.reverse_divergence, drift + start(-0.1, 0.4, 0.2, 0.3))
        assert_estimate(found.log_z_both, 0.0)

    def test_with_a_cost_there_are_no_paths_of_the_tilted_measure(self, key):
        with pytest.raises(ValueError, match="`cost` must be omitted for paths of Q"):
            self.pair(lambda x: x[0]).backward(10, key=key)


class TestForwardBackward:
    """The continuous form of the log-ratio."""

    reverse = Reversed(NOISING, MixtureScore(NOISING, DATA), T)

    def terms(self, steps, key, reference=None, reference_reverse=None):
        """Continuous and kernel form along one fine path that is read at a coarser grid, for each of a few paths."""
        fine = jnp.linspace(0.0, T, 1025)
        xs = simulate(NOISING, DATA.sample(64, key=key), fine, key=key)[:: 1024 // steps]
        ts = fine[:: 1024 // steps]
        forms = ForwardBackward(self.reverse, T, reference, reference_reverse), BackwardRatio(self.reverse, T, EulerMaruyama(0.0))
        read = lambda form, path: along(form, NOISING, ts, path, stepper=EulerMaruyama(0.0))
        both = eqx.filter_jit(lambda paths: [jax.vmap(lambda path, f=form: read(f, path), in_axes=1)(paths) for form in forms])
        return (*both(xs), xs)

    @pytest.mark.slow
    def test_without_reference_it_is_the_ratio_of_the_kernels(self, key):
        continuous, kernels, _ = self.terms(32, key)
        assert jnp.max(jnp.abs(continuous - kernels)) < rounding(300.0, 32)

    @pytest.mark.slow
    @needs_x64
    def test_with_a_reference_it_converges_to_it(self, key):
        # The stationary process is its own reversal; its density at the ends is the standard normal one.
        at_rest = standard_normal(1)
        reference = Reversed(NOISING, lambda t, x: -x, T)

        def error(steps):
            continuous, kernels, xs = self.terms(steps, key, NOISING, reference)
            ends = jax.vmap(at_rest.log_prob)(xs[-1]) - jax.vmap(at_rest.log_prob)(xs[0])
            return jnp.sqrt(jnp.mean((continuous + ends - kernels) ** 2))

        # The reference is linear: what its two sums differ by telescopes, up to a term of order h.
        sizes = [16, 64, 256]
        assert_order([error(n) for n in sizes], [1 / n for n in sizes], order=1.0)

    def test_a_reference_needs_its_reversal(self):
        with pytest.raises(ValueError, match="`reference_reverse` must come with `reference`"):
            ForwardBackward(self.reverse, T, NOISING)


def test_nelsons_relation_holds_for_the_exact_score_alone():
    true = MixtureScore(NOISING, DATA)
    places, times = jnp.linspace(-3.0, 3.0, 13)[:, None], jnp.asarray([0.1, 0.7, 1.4])
    field = lambda score: jax.vmap(jax.vmap(nelson_residual(NOISING, Reversed(NOISING, score, T), true, T), (None, 0)), (0, None))
    assert jnp.max(jnp.abs(field(true)(times, places))) < rounding(20.0)
    # A score wrong by a factor leaves sigma^2 (f - 1) s.
    wrong = field(Scaled(true, jnp.asarray(0.9)))(times, places)
    expected = jax.vmap(jax.vmap(lambda t, x: -0.1 * NOISING.noise(t) ** 2 * true(t, x), (None, 0)), (0, None))(times, places)
    assert jnp.max(jnp.abs(wrong - expected)) < rounding(20.0)


class TestAssessment:
    """Gaussian log-ratios: of P with mean s^2/2 - log Z and variance s^2, of Q with mean -s^2/2 - log Z."""

    spread, log_z = 0.8, 0.4

    def ratios(self, key, count=10_000):
        zs = jr.normal(key, (2, count))
        half = 0.5 * self.spread**2
        return half - self.log_z + self.spread * zs[0], -half - self.log_z + self.spread * zs[1]

    def test_every_number_is_that_of_the_gaussian(self, key):
        found = assessment(*self.ratios(key))
        half = 0.5 * self.spread**2
        assert_estimate(found.log_z, self.log_z)
        assert_estimate(found.log_z_backward, self.log_z)
        assert_estimate(found.log_z_both, self.log_z)
        assert_estimate(found.elbo, self.log_z - half)
        assert_estimate(found.eubo, self.log_z + half)
        assert_estimate(found.divergence, half)
        assert_estimate(found.reverse_divergence, half)
        assert_estimate(found.log_variance, self.spread**2)
        assert abs(found.efficiency - np.exp(-(self.spread**2))) < 0.05
        assert abs(found.efficiency_backward - np.exp(-(self.spread**2))) < 0.05

    @pytest.mark.slow
    def test_error_of_the_divergence_is_that_of_repetitions(self, key):
        # From the forward paths alone, ELBO and log Z share their noise.
        found = [assessment(self.ratios(k, 400)[0]) for k in jr.split(key, 200)]
        pulls = np.asarray([(a.divergence.value - 0.5 * self.spread**2) / a.divergence.stderr for a in found])
        # The spread of 200 pulls is known to a twentieth.
        assert 0.8 < np.std(pulls) < 1.2
        separate = np.mean([np.hypot(a.log_z.stderr, a.elbo.stderr) for a in found])
        assert separate > 1.5 * np.mean([a.divergence.stderr for a in found])

    def test_a_known_normaliser_is_used(self, key):
        found = assessment(self.ratios(key)[0], log_z=self.log_z)
        assert found.divergence.stderr == found.elbo.stderr
        assert_estimate(found.divergence, 0.5 * self.spread**2)

    def test_paths_that_are_not_finite_are_counted(self, key):
        ratios, _ = self.ratios(key)
        found = assessment(ratios.at[3].set(jnp.nan))
        assert all(int(e.excluded) == 1 for e in found if isinstance(e, Estimate))
        assert not found.log_z.trustworthy
        assert found.trust.verdict == "unreliable"
        assert jnp.isfinite(found.efficiency)

    def test_what_p_never_visits_shows_from_q_alone(self, key):
        # A third of Q has no weight under P.
        ahead, back = self.ratios(key)
        back = jnp.where(jnp.arange(back.shape[0]) % 3 == 0, -30.0, back)
        found = assessment(ahead, back)
        assert found.efficiency > 0.3
        assert found.efficiency_backward < 1e-3


def test_what_cannot_be_done_is_said():
    pair = denoising(4, final=lambda x: -0.5 * jnp.sum(x**2))
    with pytest.raises(ValueError, match="`final` must have a method sample"):
        assess(pair, 10, backward=True, key=jr.key(0))
    coarse = Switched(Overdamped(Harmonic(1.0), Ramp(0.0, 1.0)), jnp.linspace(0.0, 1.0, 4), stepper=Diffrax(diffrax.Heun()))
    with pytest.raises(ValueError, match="`stepper` must know its reversal"):
        coarse.forward(10, key=jr.key(0))
    with pytest.raises(ValueError, match="`ts` must increase strictly"):
        Diffusions(standard_normal(1), NOISING, DATA, NOISING, jnp.asarray([0.0, 0.0]))


def test_an_unnormalised_prior_is_refused(monkeypatch):
    # Without the tests' own check of types, as for a user.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    ts, prior = jnp.linspace(0.0, 1.0, 3), lambda x: -jnp.sum(x**2)
    for make in (lambda: Diffusions(prior, NOISING, DATA, NOISING, ts), lambda: Tilted(prior, NOISING, NOISING, ts)):
        with pytest.raises(TypeError, match="`initial` must be a normalised distribution that can be drawn from .*, got function"):
            make()
