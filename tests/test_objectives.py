"""Objectives against closed forms, and the gradients of losses against each other and against the Fokker-Planck equation."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate, needs_x64, rounding
from jax import lax

from thermojax import exact
from thermojax.baths import Isothermal, LinearBeta
from thermojax.distributions import equilibrium, Gaussian, gaussian_equilibrium, GaussianMixture, grid_equilibrium
from thermojax.dynamics import AbstractDynamics, Escorted, Overdamped, Underdamped
from thermojax.ensemble import accumulate, simulate
from thermojax.estimators import bar, mean
from thermojax.fokker_planck import Grid, GridDensity
from thermojax.functionals import (
    escorted_work,
    GirsanovRatio,
    reduced_work,
    shadow_work,
    work,
    work_ito,
)
from thermojax.optimize import (
    AbstractObjective,
    Duration,
    EntropyProduction,
    ErrorRate,
    FinalKL,
    FinalMean,
    FinalMoments,
    FinalWasserstein,
    fit,
    Flow,
    FokkerPlanck,
    FreeEnergyError,
    gradient_statistics,
    LogRatio,
    Mean,
    MonteCarlo,
    Paths,
    Variance,
    Weighted,
)
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp, ramp_with_jumps
from thermojax.steppers import Diffrax, EulerMaruyama, ExactLinear

TRAP = Harmonic(1.0)
MC = {"stepper": ExactLinear()}


def dragged(distance=0.6, knots=3, **options):
    """The moving trap of unit stiffness in unit time."""
    return Overdamped(TRAP, ramp_with_jumps(0.0, distance, 1.0, knots=knots), **options)


def grid_of_times(steps, dtype=float):
    return jnp.linspace(0.0, 1.0, steps + 1, dtype=dtype)


@eqx.filter_jit
def lag_work(protocol, ts):
    """Mean work and last mean position in the moving trap, for exact relaxation in each step: a recursion of the mean."""

    def step(carry, times):
        position, total = carry
        first, middle, last = (protocol(t) for t in (times[0], 0.5 * (times[0] + times[1]), times[1]))
        total = total + 0.5 * ((middle - position) ** 2 - (first - position) ** 2)
        position = middle + (position - middle) * jnp.exp(times[0] - times[1])
        return (position, total + 0.5 * ((last - position) ** 2 - (middle - position) ** 2)), None

    (position, total), _ = lax.scan(step, (jnp.zeros(()), jnp.zeros(())), jnp.stack([ts[:-1], ts[1:]], axis=1))
    return total, position


def repeated(loss, dynamics, key, times=40):
    """Each term of a loss as an estimate, over calls with fresh noise."""
    values = eqx.filter_jit(lambda d, keys: lax.map(lambda k: loss.terms(d, k), keys))(dynamics, jr.split(key, times))
    return [mean(values[:, i]) for i in range(values.shape[1])]


def given(sums, x1s=None, log_weights=None):
    """Paths that were not simulated."""
    x1s = jnp.zeros((sums.shape[0], 1), sums.dtype) if x1s is None else x1s
    log_weights = jnp.zeros_like(sums) if log_weights is None else log_weights
    return Paths(None, Gaussian([0.0], 1.0), x1s, x1s, sums, log_weights, jnp.ones(()))


def of_a_dragged_trap(distance):
    """All objectives, and their closed forms on the exactly relaxing trap: work and position are Gaussian."""
    dynamics = dragged(distance)
    cost, place = lag_work(dynamics.protocol, grid_of_times(20))
    lost = jnp.expm1(2 * cost)
    target, behind = Gaussian([0.3], 0.5), place - 0.3
    known = [
        (Mean(work), cost),
        (Variance(work), 2 * cost),
        (LogRatio(equilibrium(TRAP, distance)), cost),
        (EntropyProduction(), cost - 0.5 * (place - distance) ** 2),
        (FreeEnergyError("jarzynski"), lost),
        (FreeEnergyError("reverse"), lost),
        (FinalMoments([0.3], 0.5), behind**2 + 0.25),
        (FinalKL(target), 0.5 * (2.0 + 2.0 * behind**2 - 1.0 + jnp.log(0.5))),
        (FinalWasserstein(target), behind**2 + (1 - jnp.sqrt(0.5)) ** 2),
        (ErrorRate(lambda x: x[0]), jax.scipy.special.ndtr(-place)),
        (FinalMean(lambda x: x[0] ** 2), 1 + place**2),
        (Duration(), 1.0),
    ]
    return dynamics, *zip(*known, strict=True)


@pytest.mark.slow
def test_objectives_are_their_closed_forms_on_a_moving_trap(key):
    dynamics, objectives, expected = of_a_dragged_trap(0.6)
    # With held paths the true error rate is legal; values are the same for every gradient.
    loss = MonteCarlo(Weighted(objectives, np.ones(12)), equilibrium(TRAP, 0.0), grid_of_times(20), 1500, gradient="likelihood-ratio", **MC)
    found = repeated(loss, dynamics, key)
    for objective, estimate, value in zip(objectives[:-1], found, expected, strict=False):
        assert_estimate(estimate, value, min_ess=30)
        # Not the law of a trap that was dragged half as far.
        if isinstance(objective, Mean | Variance | FreeEnergyError | LogRatio):
            with pytest.raises(AssertionError):
                assert_estimate(estimate, 0.25 * value, min_ess=30)
    assert float(found[-1].value) == 1.0


@pytest.mark.slow
@needs_x64
def test_the_density_knows_them_without_noise():
    dynamics, objectives, expected = of_a_dragged_trap(0.6)
    loss = FokkerPlanck(Weighted(objectives, np.ones(12)), equilibrium(TRAP, 0.0), grid_of_times(200), Grid(-7.5, 7.5, 600))
    # Zero, where right becomes wrong, is a face of the grid.
    # Twenty steps of the trap against two hundred: the closed forms are at other step sizes, of second order.
    cost, _ = lag_work(dynamics.protocol, grid_of_times(200))
    values = loss.terms(dynamics)
    assert float(values[0]) == pytest.approx(float(cost), rel=1e-4)
    assert np.asarray(values) == pytest.approx(np.asarray(expected, dtype=float), rel=4e-3)
    assert float(loss(dynamics)) == pytest.approx(float(jnp.sum(values)), rel=1e-12)


def test_the_error_of_a_free_energy_is_that_of_its_estimator(key):
    # Gaussian work of mean w and variance 2w in both directions: Bennett's own error bar from n samples each.
    forward_key, backward_key = jr.split(key)
    n, w = 40_000, 0.8
    forward, backward = (w + np.sqrt(2 * w) * jr.normal(k, (n,)) for k in (forward_key, backward_key))
    found = FreeEnergyError("bar").of_paths(given(forward))
    own = n * float(bar(forward, backward, beta=1.0).stderr) ** 2
    assert float(found) == pytest.approx(own, rel=0.03)
    assert float(FreeEnergyError().of_paths(given(forward))) > 1.5 * own
    # In logarithms: works whose exponentials no float holds.
    for estimator in ("jarzynski", "reverse", "bar"):
        shifted = FreeEnergyError(estimator).of_paths(given(forward + 5000.0))
        assert float(shifted) == pytest.approx(float(FreeEnergyError(estimator).of_paths(given(forward))), rel=rounding(1e4))


@pytest.mark.slow
def test_the_distance_to_a_target_does_not_depend_on_how_it_is_given(key):
    points = 0.5 + jr.normal(key, (2000, 1))
    grid = Grid(-9.0, 9.0, 3000)
    gaussian = Gaussian([-0.2], 0.6)
    density = GridDensity(grid, jnp.exp(jax.vmap(gaussian.log_prob)(grid.centres)))
    samples = (-0.2 + np.sqrt(0.6) * jax.scipy.special.ndtri((jnp.arange(40_000, dtype=float) + 0.5) / 40_000))[:, None]
    mixture = GaussianMixture(np.ones(2), [[-0.2], [-0.2]], [0.6, 0.6])
    expected = float(FinalWasserstein(gaussian).of_paths(given(jnp.zeros(2000), points)))
    for target in (density, samples, mixture, grid_equilibrium(lambda x, lam: jnp.sum((x - lam) ** 2) / 1.2, -0.2)):
        assert float(FinalWasserstein(target).of_paths(given(jnp.zeros(2000), points))) == pytest.approx(expected, rel=2e-3)


def test_a_target_has_the_dimension_of_the_states():
    paths, flow = given(jnp.zeros(3)), Flow(dragged(), equilibrium(TRAP, 0.0), grid_of_times(1), Grid(-6.0, 6.0, 60))
    # Samples may be lists.
    assert float(eqx.filter_jit(FinalWasserstein([[2], [2]]).of_paths)(paths)) == 4.0
    gaussian = Gaussian([0.0, 0.0], 1.0)
    for objective in (FinalWasserstein(gaussian), FinalWasserstein([[0.0, 1.0], [1.0, 0.0]]), FinalKL(gaussian)):
        for value in (lambda: objective.of_paths(paths), lambda: objective.of_density(flow)):  # noqa: B023
            with pytest.raises(ValueError, match="`target` must have the dimension of the states, 1, got 2."):
                value()
    with pytest.raises(ValueError, match=r"`target` must have shape \(sample, dim\), got shape \(2,\)."):
        FinalWasserstein([0.0, 1.0])


@pytest.mark.slow
def test_the_entropy_production_of_few_paths_is_too_small(key):
    # Nothing happens, and the truth is zero; what remains is the mean logarithm of a variance of nine degrees of freedom.
    x1s = jr.normal(key, (4000, 10, 1))
    found = mean(jax.jit(jax.vmap(lambda points: EntropyProduction().of_paths(given(jnp.zeros(10), points))))(x1s))
    # (psi(9/2) - ln(9/2)) / 2; to leading order it is -dim (dim + 1) / 4n.
    assert_estimate(found, -0.0576)
    with pytest.raises(AssertionError):
        assert_estimate(found, 0.0)


def test_objectives_add_up():
    cost = Mean(work) + np.float64(20.0) * ErrorRate(lambda x: x[0], 0.1) + jnp.asarray(0.5) * (Duration() * 2.0)
    terms, weights = cost.split()
    assert [type(t) for t in terms] == [Mean, ErrorRate, Duration]
    assert jnp.array_equal(weights, jnp.asarray([1.0, 20.0, 1.0]))
    nested = Weighted((cost, Duration()), [1.0, 3.0])
    assert cost.smooth
    assert not (nested + ErrorRate(lambda x: x[0])).smooth


def knots_of(dynamics):
    return dynamics.protocol.knots


@pytest.mark.parametrize("gradient", ["likelihood-ratio", pytest.param("pathwise", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_gradients_are_those_of_the_closed_form(key, gradient):
    dynamics, ts = dragged(2.0), grid_of_times(10)
    loss = MonteCarlo(Mean(work) + Mean(shadow_work), equilibrium(TRAP, 0.0), ts, 1000, gradient=gradient, **MC)
    found = gradient_statistics(loss, dynamics, where=knots_of, key=key)
    expected = jax.grad(lambda knots: lag_work(eqx.tree_at(lambda p: p.knots, dynamics.protocol, knots), ts)[0])(knots_of(dynamics))
    away = jnp.abs(knots_of(found.mean) - expected) / knots_of(found.stderr)
    assert jnp.max(away) < 4
    assert jnp.max(jnp.abs(expected) / knots_of(found.stderr)) > 20


@pytest.mark.slow
def test_the_duration_is_a_leaf_like_any_other(key):
    # The trap moves by two, and time costs a half: with the ramp, dW/dtau + 1/2 by the recursion.
    dynamics, shares = Overdamped(TRAP, Ramp(0.0, 2.0, 1.5)), grid_of_times(10)
    duration = lambda d: d.protocol.duration
    scaled = lambda tau: lag_work(Ramp(0.0, 2.0, tau), tau * shares)[0] + 0.5 * tau
    value, expected = jax.value_and_grad(scaled)(jnp.asarray(1.5))
    objective = Mean(work) + 0.5 * Duration()
    loss = MonteCarlo(objective, equilibrium(TRAP, 0.0), shares, 1000, gradient="likelihood-ratio", clock=duration, **MC)
    found = gradient_statistics(loss, dynamics, where=duration, key=key)
    assert_estimate(found.loss, value, min_ess=20)
    assert abs(duration(found.mean) - expected) < 4 * duration(found.stderr)
    # The Duration itself is half of it: without it the gradient would have another sign.
    assert abs(duration(found.mean) - (expected - 0.5)) > 20 * duration(found.stderr)


@pytest.mark.slow
def test_antithetic_noise_is_mirrored_and_takes_the_noise_out_of_what_is_linear(key):
    x0s, ts = jnp.zeros((6, 1)), grid_of_times(4)
    free = Overdamped(lambda x, lam: 0.0 * jnp.sum(x), lambda t: t)
    paths = simulate(free, x0s, ts, noise="antithetic", key=key)
    assert jnp.array_equal(paths[:, :3], -paths[:, 3:])
    assert len(set(np.asarray(paths[-1, :3, 0]).tolist())) == 3
    dynamics = dragged()
    place = FinalMean(lambda x: x[0])
    losses = [MonteCarlo(place, equilibrium(TRAP, 0.0), ts, 100, noise=noise, **MC) for noise in ("antithetic", "independent")]
    quiet, noisy = ([float(loss(dynamics, k)) for k in jr.split(key)] for loss in losses)
    assert abs(quiet[0] - quiet[1]) < rounding()
    assert abs(quiet[0] - float(lag_work(dynamics.protocol, ts)[1])) < rounding(10)
    assert abs(noisy[0] - noisy[1]) > 1e-4
    with pytest.raises(ValueError, match="`noise` must be 'independent' or 'antithetic', got 'quiet'."):
        simulate(free, x0s, ts, noise="quiet", key=key)
    with pytest.raises(ValueError, match="`x0s` must hold an even number of states for antithetic noise, got 5."):
        accumulate(work, free, x0s[:5], ts, noise="antithetic", key=key)


class Pushed(AbstractDynamics):
    """Free diffusion under a push that does not depend on the position."""

    push: Any

    def drift(self, t, x):
        return jnp.broadcast_to(self.push, x.shape)

    def noise(self, t):
        return jnp.sqrt(jnp.asarray(2.0, t.dtype))


def steered(gradient, **options):
    """Steering against a linear cost of the last place: the best push is constant."""
    objective = Mean(GirsanovRatio(Pushed(jnp.zeros(())))) + FinalMean(lambda x: 0.8 * x[0])
    return MonteCarlo(objective, Gaussian([0.0], 1e-30), grid_of_times(8), 200, gradient=gradient, **options)


@pytest.mark.slow
def test_the_log_variance_gradient_has_no_noise_at_the_optimum(key):
    best = Pushed(jnp.asarray(-1.6))
    of = lambda loss, model: eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, key)
    value, flat = of(steered("log-variance"), best)
    _, noisy = of(steered("likelihood-ratio"), best)
    # -ln E exp(-0.8 x) of a Gaussian of variance two.
    assert float(value) == pytest.approx(-0.64, abs=5e-3)
    assert abs(flat.push) < rounding(100)
    assert abs(noisy.push) > 1e-3
    # Away from it, it is the gradient of half the variance over fixed paths, to rounding.
    model, loss = Pushed(jnp.asarray(-0.5)), steered("log-variance")
    start_key, noise_key = jr.split(key)
    x0s = loss.initial.sample(200, key=start_key)

    def half_variance(push):
        girsanov = loss.objective.terms[0].functional
        read = lambda step: girsanov(step._replace(dynamics=Pushed(push)))
        x1s, ratios = accumulate(read, Pushed(lax.stop_gradient(push)), x0s, loss.ts, key=noise_key)
        return 0.5 * jnp.var(ratios + 0.8 * x1s[:, 0], ddof=1)

    _, found = of(loss, model)
    assert abs(found.push - jax.grad(half_variance)(model.push)) < rounding(100)


@pytest.mark.slow
def test_batches_are_ensembles_one_after_the_other(key):
    one, three = (MonteCarlo(Mean(work), equilibrium(TRAP, 0.0), grid_of_times(4), 50, batches=n, **MC) for n in (1, 3))
    alone = [float(one(dragged(), k)) for k in jr.split(key, 3)]
    assert float(three(dragged(), key)) == pytest.approx(np.mean(alone), rel=rounding(10))


class Places(AbstractObjective):
    """Not one number."""

    def of_paths(self, paths):
        return paths.x1s[:, 0]


def test_choices_that_have_no_meaning_are_refused(key):
    start, ts, dynamics = equilibrium(TRAP, 0.0), grid_of_times(4), dragged()
    build = lambda objective=Mean(work), **bad: MonteCarlo(objective, start, ts, 10, **bad)  # noqa: B008
    for bad, message in (
        ({"gradient": "magic"}, "`gradient` must be one of pathwise, likelihood-ratio, log-variance, got 'magic'."),
        ({"noise": "some"}, "`noise` must be one of independent, antithetic, got 'some'."),
        ({"noise": "antithetic", "gradient": "likelihood-ratio"}, "`noise` must be 'independent' for .*, got 'antithetic'."),
        ({"batches": 0}, "`batches` must be at least 1, got 0."),
        ({"objective": ErrorRate(lambda x: x[0], 0.0)}, "`objective` must have a derivative along the paths.*, got ErrorRate."),
        ({"gradient": "log-variance"}, "`objective` must be a divergence from a fixed path measure.*, got Mean."),
        ({"objective": FinalMean(lambda x: x[0]), "gradient": "log-variance"}, "got costs of the last state alone."),
    ):
        with pytest.raises(ValueError, match=message):
            build(**bad)
    with pytest.raises(TypeError):
        build(work)
    with pytest.raises(TypeError, match="`stepper` must know its transition density .*got Heun."):
        build(gradient="likelihood-ratio", stepper=Diffrax(diffrax.Heun()))
    with pytest.raises(ValueError, match="`ts` must be shares of the duration from 0 to 1"):
        MonteCarlo(Mean(work), start, 2.0 * ts, clock=lambda d: d.protocol.duration)
    with pytest.raises(TypeError, match="`key` must be a random key for `MonteCarlo`, got None."):
        build()(dynamics)
    with pytest.raises(ValueError, match="`dynamics` must be first order in time for this gradient.*, got Underdamped."):
        build(gradient="likelihood-ratio")(Underdamped(TRAP, Ramp(0.0, 1.0)), key)
    escort = Escorted(dynamics, lambda t, x: x)
    with pytest.raises(ValueError, match="`functional` must be `escorted_work` .*, got reduced_work."):
        build(Mean(reduced_work))(escort, key)
    with pytest.raises(ValueError, match=r"`objective` must return one number, got shape \(10,\)."):
        build(Places())(dynamics, key)
    grid = Grid(-6.0, 6.0, 60)
    for objective, name in ((Mean(escorted_work), r"Mean\(escorted_work\)"), (FreeEnergyError("bar"), "'bar'")):
        with pytest.raises(ValueError, match=f"`objective` must be a property of a density .*got .*{name}"):
            FokkerPlanck(objective, start, ts, grid)(dynamics)
    with pytest.raises(ValueError, match="`estimator` must be one of jarzynski, reverse, bar, got mbar."):
        FreeEnergyError("mbar")
    with pytest.raises(ValueError, match="`initial` must be one fixed density for the log-variance gradient, got a function of "):
        MonteCarlo(Mean(GirsanovRatio(dynamics)), lambda d: start, ts, 10, gradient="log-variance")
    with pytest.raises(ValueError, match="`samples` must be more than the dimensions of a state, 1, .*, got 1."):
        EntropyProduction().of_paths(given(jnp.zeros(1)))
    with pytest.raises(TypeError, match="`target` must be Gaussian for paths.*got GaussianMixture."):
        FinalKL(GaussianMixture([1.0], [[0.0]], [1.0])).of_paths(given(jnp.zeros(3)))
    with pytest.raises(ValueError, match="`weights` must have shape"):
        Weighted((Mean(work),), [1.0, 2.0])


# Anharmonic problems, against the exact gradient of the density.


def quartic(x, lam):
    return jnp.sum(0.25 * (x - lam) ** 4 + 0.5 * (x - lam) ** 2)


def assert_gradient(loss, model, where, expected, key, *, power=5.0):
    """The mean gradient over 30 calls is within four standard errors of `expected`, and those are small."""
    found = gradient_statistics(loss, model, where=where, repeats=30, key=key)
    away = jnp.abs(where(found.mean) - expected) / where(found.stderr)
    assert jnp.max(jnp.abs(expected) / where(found.stderr)) > power, "the test has no power"
    assert jnp.max(away) < 4, f"{where(found.mean)} ± {where(found.stderr)} is not {expected}"


class Held(AbstractObjective):
    """The mean work without what it knows of the protocol along held paths: wrong."""

    def functionals(self, dynamics):
        return work

    def of_paths(self, paths):
        return paths.average(lax.stop_gradient(paths.sums))


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize(("gradient", "noise"), [("pathwise", "antithetic"), ("likelihood-ratio", "independent")])
def test_gradients_of_work_in_a_quartic_trap_are_those_of_the_density(key, gradient, noise):
    dynamics = Overdamped(quartic, ramp_with_jumps(0.0, 1.0, 1.0, knots=3))
    start = equilibrium(quartic, 0.0)
    objective = Mean(work)
    expected = knots_of(eqx.filter_grad(FokkerPlanck(objective, start, grid_of_times(50), Grid(-4.5, 5.5, 300)))(dynamics))
    ts = grid_of_times(100)
    loss = MonteCarlo(objective, start, ts, 2000, gradient=gradient, noise=noise)
    assert_gradient(loss, dynamics, knots_of, expected, key)
    if gradient == "likelihood-ratio":
        with pytest.raises(AssertionError, match="is not"):
            assert_gradient(MonteCarlo(Held(), start, ts, 2000, gradient=gradient), dynamics, knots_of, expected, key)


class Steered(AbstractDynamics):
    """A particle in a double well with a control that is a cubic of the position, its three parts changing in time."""

    knots: Any

    def drift(self, t, x):
        parts = self.knots[0] + t * (self.knots[1] - self.knots[0])
        return 2.0 * x * (1.0 - x**2) + parts[0] + parts[1] * x + parts[2] * x**3

    def noise(self, t):
        return jnp.ones((), t.dtype)


@pytest.mark.nightly
@needs_x64
@pytest.mark.parametrize("gradient", ["pathwise", "likelihood-ratio", "log-variance"])
def test_gradients_of_a_path_divergence_are_those_of_the_density(key, gradient):
    free, model = Steered(jnp.zeros((2, 3))), Steered(jnp.asarray([[0.8, -0.3, 0.1], [0.2, 0.5, -0.2]]))
    start = Gaussian([-0.8], 0.09)
    objective = Mean(GirsanovRatio(free)) + 2.0 * FinalMean(lambda x: (x[0] - 1.0) ** 2)
    of = lambda d: d.knots
    expected = of(eqx.filter_grad(FokkerPlanck(objective, start, grid_of_times(100), Grid(-4.0, 4.0, 300)))(model))
    loss = MonteCarlo(objective, start, grid_of_times(200), 1000, gradient=gradient)
    assert_gradient(loss, model, of, expected, key)
    # The variance over paths that move with the model is another function.
    if gradient == "log-variance":

        def moving(dynamics, key):
            start_key, noise_key = jr.split(key)
            x1s, ratios = accumulate(GirsanovRatio(free), dynamics, start.sample(1000, key=start_key), grid_of_times(200), key=noise_key)
            return 0.5 * jnp.var(ratios + 2.0 * (x1s[:, 0] - 1.0) ** 2, ddof=1)

        with pytest.raises(AssertionError, match="is not"):
            assert_gradient(moving, model, of, expected, key)


@pytest.mark.slow
@needs_x64
def test_the_rate_of_true_errors_has_the_gradient_of_the_density(key):
    # A well that is tilted over: no pathwise derivative exists, the likelihood ratio has one.
    tilted = lambda x, lam: jnp.sum(x**4 - 2.0 * x**2) - lam * jnp.sum(x)
    dynamics, start = Overdamped(tilted, ramp_with_jumps(0.0, 2.0, 1.0, knots=3)), equilibrium(tilted, 0.0)
    objective = ErrorRate(lambda x: x[0])
    # The wall between right and wrong is a face of the grid.
    expected = knots_of(eqx.filter_grad(FokkerPlanck(objective, start, grid_of_times(100), Grid(-3.5, 3.5, 400)))(dynamics))
    loss = MonteCarlo(objective, start, grid_of_times(200), 2000, gradient="likelihood-ratio")
    assert_gradient(loss, dynamics, knots_of, expected, key)


@pytest.mark.slow
def test_a_start_that_moves_with_the_model_has_its_score(key):
    # The work of one jump from the equilibrium at the first control, which is optimised too: k(l - a)^2/2.
    where = lambda d: d.protocol.start
    dynamics = Overdamped(TRAP, Ramp(0.5, 2.0, 1e-6))
    start = lambda d: gaussian_equilibrium(TRAP, d.protocol.start)
    for gradient in ("pathwise", "likelihood-ratio"):
        loss = MonteCarlo(Mean(work), start, jnp.asarray([0.0, 1e-6]), 1000, gradient=gradient, **MC)
        assert_gradient(loss, dynamics, where, -1.5, key)
    fixed = MonteCarlo(Mean(work), equilibrium(TRAP, 0.5), jnp.asarray([0.0, 1e-6]), 1000, **MC)
    with pytest.raises(AssertionError):
        assert_gradient(fixed, dynamics, where, -1.5, key)


@pytest.mark.slow
@needs_x64
def test_entropy_production_in_a_changing_bath_is_the_tabulated_one(key):
    # Reference value by quadrature of the moment equations: k = 1 + t, beta = 1 + t/2.
    dynamics = Overdamped(lambda x, k: 0.5 * k * jnp.sum(x**2), Ramp(1.0, 2.0), LinearBeta(1.0, 1.5))
    start, ts = Gaussian([0.0], 1.0), grid_of_times(200)
    exactly = FokkerPlanck(EntropyProduction(), start, ts, Grid(-7.0, 7.0, 400))(dynamics)
    assert float(exactly) == pytest.approx(0.15411619773161, rel=1e-3)
    found = repeated(MonteCarlo(EntropyProduction(), start, ts, 2000, **MC), dynamics, key)
    assert_estimate(found[0], 0.15411619773161, min_ess=30)


@pytest.mark.slow
@needs_x64
def test_two_dimensions_are_like_one():
    plane = lambda x, lam: 0.5 * jnp.sum((x - jnp.stack([lam, 0.0 * lam])) ** 2)
    dynamics, start = Overdamped(plane, Ramp(0.0, 1.0)), Gaussian([0.0, 0.0], 1.0)
    target = Gaussian([0.0, 0.0], 0.5)
    objective = Mean(work) + FinalKL(target) + FinalWasserstein(target)
    loss = FokkerPlanck(objective, start, grid_of_times(100), Grid([-6.0, -6.0], [7.0, 6.0], 90))
    place = float(jnp.exp(-1.0))
    expected = [exact.moving_trap_work(1.0, 1.0), place**2 + 1.0 - np.log(2.0), place**2 + 2 * (1 - np.sqrt(0.5)) ** 2]
    assert np.asarray(loss.terms(dynamics)) == pytest.approx(np.asarray(expected, float), rel=5e-3)


# Descents.


def descend(loss, dynamics, key, *, steps=150, rate=0.1, **options):
    schedule = optax.cosine_decay_schedule(rate, steps)
    return fit(loss, dynamics, optimizer=optax.adam(schedule), steps=steps, where=knots_of, key=key, **options)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["work", "log-ratio"])
def test_descent_from_the_ramp_finds_the_jumps(key, objective):
    chosen = Mean(work) if objective == "work" else LogRatio(equilibrium(TRAP, 2.0))
    loss = MonteCarlo(chosen, equilibrium(TRAP, 0.0), grid_of_times(40), 2000)
    found = descend(loss, dragged(2.0, knots=8), key)
    protocol = found.model.protocol
    assert jnp.max(jnp.abs(jnp.stack(protocol.jumps) - 2 / 3)) < 0.05
    assert jnp.all(protocol.start == 0)
    assert jnp.all(protocol.stop == 2)
    assert found.stopped == "steps"


@pytest.mark.nightly
def test_no_optimiser_pushes_a_loss_below_its_bound_by_exploiting_the_step(key):
    # Driven hard: few and large steps, a large rate, the same noise in every step of the descent.
    hard = {"rate": 0.5, "steps": 300, "noise": "common"}
    start, ts, ramp = equilibrium(TRAP, 0.0), grid_of_times(5), dragged(2.0, knots=6)
    for objective in (LogRatio(equilibrium(TRAP, 2.0)), Mean(work)):
        problem = MonteCarlo(objective, start, ts, 500)
        found = descend(problem, ramp, key, **hard).model
        fresh = mean(jnp.stack([problem(found, k) for k in jr.split(jr.fold_in(key, 1), 40)]))
        assert fresh.value > -4 * fresh.stderr
        assert fresh.value > 0.9 * exact.moving_trap_optimal_work(2.0, 1.0)
    # The left-point sum has no bound, and the same optimiser finds that out.
    assert descend(MonteCarlo(Mean(work_ito), start, ts, 500, stepper=EulerMaruyama(0.0)), ramp, key, **hard).history[-1] < -10


@needs_x64
def test_gradient_of_the_protocol_is_exact_for_a_trap_without_noise():
    # No temperature: the work is a quadratic form whose gradient follows from finite differences to rounding.
    dynamics = dragged(1.0, bath=Isothermal(1e30))
    loss = MonteCarlo(Mean(work), Gaussian([0.0], 1e-30), grid_of_times(20), 2)
    value = jax.jit(lambda knots: loss(eqx.tree_at(knots_of, dynamics, knots), jr.key(0)))
    gradient = jax.grad(value)(knots_of(dynamics))
    for i in range(3):
        push = 1e-4 * jnp.eye(3)[i]
        assert gradient[i] == pytest.approx(float(value(knots_of(dynamics) + push) - value(knots_of(dynamics) - push)) / 2e-4, rel=1e-7)


@pytest.mark.parametrize("steps", [1, 10])
def test_discrete_annealing_with_exact_kernels_costs_the_tabulated_work(key, steps):
    # Switch first, then relax: the clock reads the end of each step.
    dynamics, x0s = Overdamped(TRAP, Ramp(0.0, 1.0)), equilibrium(TRAP, 0.0).sample(20_000, key=key)
    _, works = accumulate(work, dynamics, x0s, grid_of_times(steps), stepper=ExactLinear(1.0), key=jr.fold_in(key, 1))
    assert_estimate(mean(works), exact.annealed_trap_work(steps, 1.0, 1.0))


@pytest.mark.parametrize("protocol", ["ramp", "optimum"])
def test_simulated_work_is_the_closed_form(key, protocol):
    chosen = Ramp(0.0, 2.0) if protocol == "ramp" else exact.moving_trap_optimal_protocol(2.0, 1.0)
    expected = (exact.moving_trap_work if protocol == "ramp" else exact.moving_trap_optimal_work)(2.0, 1.0)
    start_key, noise_key = jr.split(key)
    x0s = equilibrium(TRAP, 0.0).sample(10_000, key=start_key)
    _, works = accumulate(work, Overdamped(TRAP, chosen), x0s, grid_of_times(200), stepper=ExactLinear(), key=noise_key)
    assert_estimate(mean(works), expected)
    assert_estimate(mean((works - expected) ** 2), 2 * expected)
