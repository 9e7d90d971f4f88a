"""The active particle in a trap: moments, works and gradients of its simulation against what is known without noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding

from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate, along
from thermojax.estimators import mean
from thermojax.experiments import Silent
from thermojax.experiments._active_particle import EXPERIMENT
from thermojax.experiments._active_particle._model import (
    active_particle,
    ByMoments,
    chain_moments,
    features,
    flow_moments,
    MomentError,
    PassiveEquilibrium,
    push_work,
    steady_moments,
    trap_work,
)
from thermojax.functionals import work
from thermojax.optimize import gradient_statistics, Mean, MonteCarlo, Weighted
from thermojax.optimize._paths import Paths
from thermojax.protocols import Bounded, Constant, PiecewiseLinear

X64 = jax.config.jax_enable_x64
START, STOP, TAU = np.array([1.5, 0.0]), np.array([2.0, 3.0]), 0.5
KNOTS = np.array([[1.2, 2.0], [2.5, 4.5], [2.2, 4.0]])
RATES = {"mobility": 0.8, "beta": 1.25, "rotation": 1.4}
INITIAL = PassiveEquilibrium(1.0 / (RATES["beta"] * START[0]))


def swimmer(start=START, knots=KNOTS, stop=STOP, duration=TAU, **changed):
    """A swimmer that is switched on with jumps at both ends."""
    return active_particle(PiecewiseLinear(start, knots, stop, duration), **(RATES | changed))


def grid(steps):
    return jnp.linspace(0.0, TAU, steps + 1)


def wanted():
    return MomentError(jnp.stack(steady_moments(*STOP, swimmer())))


@pytest.fixture(scope="module")
def coarse():
    """A few large steps: what the moment equations say of them in the limit of small ones is wrong."""
    start_key, noise_key = jr.split(jr.key(3))
    x0s = eqx.filter_jit(INITIAL.sample)(20_000, key=start_key)
    x1s, works = accumulate((trap_work, push_work), swimmer(), x0s, grid(8), key=noise_key)
    return jnp.stack([*jax.jit(jax.vmap(features, out_axes=1))(x1s), *works])


def check_means(found, moments):
    for values, expected in zip(found, moments, strict=True):
        assert_estimate(mean(values), expected[-1])


def test_moments_and_works_of_the_simulation_are_those_of_its_chain_at_every_step_size(coarse):
    check_means(coarse, chain_moments(swimmer(), INITIAL, grid(8)))
    # Half the noise, as with 2D for 4D; a direction that turns half as fast.
    for wrong in (
        chain_moments(swimmer(beta=2.5), INITIAL, grid(8)),
        chain_moments(swimmer(rotation=0.7), INITIAL, grid(8)),
    ):
        with pytest.raises(AssertionError):
            check_means(coarse, wrong)


@needs_x64
@pytest.mark.slow
def test_chain_tends_to_the_moment_equations_with_the_step():
    steps = [20, 40, 80]
    chains = [chain_moments(swimmer(), INITIAL, grid(n)) for n in steps]
    limit = flow_moments(swimmer(), INITIAL, grid(160))
    for k, name in enumerate(limit._fields):
        assert_order([abs(float(chain[k][-1] - limit[k][-1])) for chain in chains], [1 / n for n in steps], 1), name
    with pytest.raises(AssertionError):
        assert_order([abs(float(chain[0][-1] - limit[0][0])) for chain in chains], [1 / n for n in steps], 1)


@pytest.mark.slow
def test_work_without_swimming_is_that_of_two_breathing_traps():
    rates, ts = {"mobility": 1.0, "beta": 1.0, "rotation": 1.0}, jnp.linspace(0.0, 1.0, 161)
    rest, stiff = np.array([1.0, 0.0]), np.array([2.0, 0.0])
    ramp = swimmer(rest, np.linspace(rest, stiff, 3), stiff, 1.0, **rates)
    jump = swimmer(rest, np.stack([stiff] * 3), stiff, 1.0, **rates)
    found, at_once = (flow_moments(dynamics, PassiveEquilibrium(1.0), ts) for dynamics in (ramp, jump))
    # Reference value of one dimension: a ramp of the stiffness from 1 to 2 in unit time.
    assert float(found.trap_work[-1]) == pytest.approx(2 * 0.412465798535, rel=1e-9 if X64 else 1e-5)
    # A jump costs half of the change of stiffness times the mean square before it.
    assert float(at_once.trap_work[-1]) == pytest.approx(1.0, rel=1e-9 if X64 else 1e-5)
    assert float(found.push_work[-1]) == 0.0


@pytest.mark.slow
def test_steady_state_is_what_the_equations_end_in_and_its_swimming_is_all_dissipated():
    (k, v), ts = STOP, jnp.linspace(0.0, 12.0, 161)
    dynamics = swimmer(STOP, np.stack([STOP] * 3), STOP, 12.0)
    found = flow_moments(dynamics, INITIAL, ts)
    spread, alignment = steady_moments(k, v, dynamics)
    assert float(found.spread[-1]) == pytest.approx(float(spread), rel=1e-5)
    assert float(found.alignment[-1]) == pytest.approx(float(alignment), rel=1e-5)
    power = (found.push_work[-1] - found.push_work[-21]) / (ts[-1] - ts[-21])
    mobility, rotation = RATES["mobility"], RATES["rotation"]
    assert float(power) == pytest.approx(rotation * v**2 / (mobility * (mobility * k + rotation)), rel=1e-4)
    assert abs(float(found.trap_work[-1])) < rounding(1, 160)


def test_work_of_the_trap_is_the_work_without_the_push(key):
    dynamics = swimmer()
    alone = Overdamped(dynamics.potential, dynamics.protocol, dynamics.bath, dynamics.mobility)
    # An identity of every path, possible or not.
    xs = jr.normal(key, (9, 3))

    @jax.jit
    def works(xs):
        of = lambda functional, driven: along(functional, driven, grid(8), xs)
        return of(trap_work, dynamics), of(push_work, dynamics), of(work, dynamics), of(work, alone)

    of_trap, of_push, of_both, of_trap_alone = map(float, works(xs))
    assert of_trap == pytest.approx(of_trap_alone, abs=rounding(10, 8))
    assert of_both == pytest.approx(of_trap + of_push, abs=rounding(10, 8))
    assert abs(of_push) > 0.1


def test_start_is_a_gaussian_in_any_direction():
    evaluate = jax.jit(lambda x: (INITIAL.log_prob(x), INITIAL.score(x), jax.grad(INITIAL.log_prob)(x)))
    stiffness = RATES["beta"] * START[0]
    # Two coordinates, and the density of an angle.
    log_prob, score, slope = evaluate(jnp.asarray([0.3, -0.4, 1.0]))
    assert float(log_prob) == pytest.approx(np.log(stiffness / (2 * np.pi) ** 2) - 0.125 * stiffness, rel=1e-5)
    assert np.asarray(score) == pytest.approx(np.asarray(slope), rel=1e-5)


def test_error_of_the_moments_has_no_bias_from_few_paths(coarse):
    objective, few = wanted(), 4

    @jax.jit
    def evaluate(found):
        # Features alone decide the error: states that have them, swimming along the first axis.
        across = jnp.sqrt(jnp.maximum(found[0] - found[1] ** 2, 0.0))
        x1s = jnp.stack([found[1], across, jnp.zeros_like(across)], axis=1).reshape(-1, few, 3)
        value = lambda x: objective.of_paths(Paths(None, INITIAL, x, x, (), jnp.zeros(few, x.dtype), x[0, 0]))
        spread = jnp.sum(jnp.var(found, axis=1) / objective.wanted.astype(found.dtype) ** 2)
        return jax.vmap(value)(x1s), spread / few

    values, bias = evaluate(coarse[:2])
    expected = objective.of_moments(chain_moments(swimmer(), INITIAL, grid(8)))
    assert_estimate(mean(values), expected)
    with pytest.raises(AssertionError):
        assert_estimate(mean(values + bias), expected)


def check_gradients(found, expected):
    pulls = np.abs(np.asarray(found.mean.protocol.free - expected)) / np.asarray(found.stderr.protocol.free)
    assert np.all(pulls < 4), pulls


@pytest.mark.slow
def test_gradients_of_the_simulation_are_those_of_the_moments(key):
    bounded = Bounded.like(PiecewiseLinear(START, KNOTS, STOP, TAU), 0.0, 5.0)
    dynamics = active_particle(bounded, **RATES)

    def exact_gradient(weights):
        loss = ByMoments(Weighted((Mean(trap_work), wanted()), weights), INITIAL, grid(8))
        return eqx.filter_grad(lambda d: loss(d))(dynamics).protocol.free

    loss = MonteCarlo(Mean(trap_work) + 10.0 * wanted(), INITIAL, grid(8), 100)
    found = gradient_statistics(loss, dynamics, where=lambda d: d.protocol.free, repeats=100, key=key)
    check_gradients(found, exact_gradient([1.0, 10.0]))
    with pytest.raises(AssertionError):
        check_gradients(found, exact_gradient([1.0, 7.0]))


@pytest.fixture(scope="module")
def small():
    settings = {"steps": 30, "knots": 8, "members": 2, "price_high": 20.0, "iterations": 200, "batch": 256, "samples": 4000}
    return EXPERIMENT.run(EXPERIMENT.parameters(**settings), jr.key(1), Silent())


@pytest.mark.slow
def test_numbers_of_the_run_agree_with_their_exact_values(small):
    pulls = small.pulls()
    assert {"work_ramp", "push_jump", "spread_found", "alignment_found", "spread_steady", "front_error_0"} <= set(pulls)
    for name, pull in pulls.items():
        assert abs(pull) < 4, name


@pytest.mark.slow
def test_noisy_descent_comes_close_to_the_noise_free_optimum_and_keeps_the_bounds(small):
    numbers = small.estimates
    # Both descents are finite: neither need be at the bottom.
    assert -0.01 < numbers["excess"].value < 0.1
    assert numbers["margin"].value >= 0
    assert numbers["front_work_0"].exact < numbers["work_ramp"].exact
    assert numbers["front_error_0"].exact < 0.1 * numbers["error_ramp"].value
    assert numbers["error_found"].value < 0.02 * numbers["error_ramp"].value


@pytest.mark.slow
def test_whole_law_at_the_end_is_nearer_to_the_steady_state_too(small):
    for what in ("radius", "along"):
        found, ramp, jump = (small.estimates[f"{what}_{name}"] for name in ("found", "ramp", "jump"))
        for other in (ramp, jump):
            assert found.value + 4 * np.hypot(found.stderr, other.stderr) < other.value


@pytest.mark.slow
def test_figures_have_labelled_axes(small):
    for picture in small.figures.values():
        for ax in picture.figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel()
        assert picture.caption


@pytest.mark.slow
def test_steady_state_of_the_experiment_is_the_fixed_point_of_its_chain():
    held = active_particle(Constant(STOP), **RATES)
    later = chain_moments(held, INITIAL, jnp.linspace(0.0, 20.0, 2001))
    spread, alignment = steady_moments(*STOP, held)
    for found, expected in ((later.spread[-1], spread), (later.alignment[-1], alignment)):
        assert float(found) == pytest.approx(float(expected), rel=0.02)
        assert float(found) != pytest.approx(float(expected), rel=1e-4)
