"""The friction tensor: by quadrature, from the generator on a grid, from simulations."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding

from thermojax.baths import Isothermal, LinearBeta
from thermojax.dynamics import OrnsteinUhlenbeck, Overdamped, Underdamped
from thermojax.fokker_planck import Grid, propose_grid
from thermojax.geometry import Friction, friction, friction_from_simulation, friction_spectral
from thermojax.potentials import AbstractPotential, Breathing, DoubleWell, Harmonic
from thermojax.protocols import Constant
from thermojax.steppers import ExactLinear


class Pulled(AbstractPotential):
    """A double well, pulled by a spring to the control."""

    barrier: jax.Array
    stiffness: jax.Array

    def __call__(self, x, lam):
        return self.barrier * jnp.sum((x**2 - 1.0) ** 2) + 0.5 * self.stiffness * jnp.sum((x - lam) ** 2)


def pulled(barrier, stiffness):
    return Pulled(jnp.asarray(barrier, float), jnp.asarray(stiffness, float))


def trap(x, lam):
    """A trap whose place and stiffness are controlled."""
    return 0.5 * lam[1] * jnp.sum((x - lam[0]) ** 2)


CONTROLS = (0.0, 0.25, 0.5, 1.0, 2.0)
# Reference values by quadrature, with beta = gamma = 1.
TABLE = {
    (4.0, 8.0): (17.16004621, 3.824962536, 0.3695174763, 0.05791807203, 0.02240027438),
    (8.0, 8.0): (394.7842989, 24.32943284, 0.3512293696, 0.01570530346, 0.008565431107),
}


@pytest.mark.parametrize("case", TABLE)
def test_friction_of_a_double_well_is_the_tabulated_one(case):
    rel = 1e-9 if jax.config.jax_enable_x64 else 2e-4
    potential, expected = pulled(*case), TABLE[case]
    assert np.asarray(frictions(Friction(potential), jnp.asarray(CONTROLS))) == pytest.approx(expected, rel=rel)
    assert friction(potential, 0.25) == pytest.approx(expected[1], rel=rel)
    with pytest.raises(AssertionError):
        # At the wrong temperature.
        assert friction(potential, 0.25, beta=1.1) == pytest.approx(expected[1], rel=0.01)


@jax.jit
def frictions(metric, controls):
    return jax.vmap(metric)(controls)


def trap_friction(stiffness, beta=1.3, mobility=0.5):
    return np.diag([1.0, 1.0 / (4 * beta * stiffness**3)]) / mobility


def test_friction_of_a_trap_is_the_drag_and_the_drag_over_four_beta_k_cubed():
    # Far from the origin, and narrow.
    for place, stiffness in ((0.3, 2.0), (300.0, 40.0)):
        found = friction(trap, jnp.array([place, stiffness]), beta=1.3, mobility=0.5)
        rel = 1e-9 if jax.config.jax_enable_x64 else 2e-2
        assert np.asarray(found) == pytest.approx(trap_friction(stiffness), rel=rel, abs=rel)


@pytest.mark.slow
def test_friction_is_differentiable_and_outside_its_domain_it_is_nan():
    slope = eqx.filter_jit(eqx.filter_grad(lambda both: both[0](both[1])[1, 1]))
    by_metric, by_control = slope((Friction(trap, 1.3, 0.5), jnp.array([0.3, 2.0])))
    expected = trap_friction(2.0)[1, 1]
    rel = 1e-8 if jax.config.jax_enable_x64 else 1e-3
    assert by_control[1] == pytest.approx(-3.0 * expected / 2.0, rel=rel)
    assert by_metric.beta == pytest.approx(-expected / 1.3, rel=rel)
    assert by_metric.mobility == pytest.approx(-expected / 0.5, rel=rel)
    assert bool(jnp.all(jnp.isnan(Friction(trap)(jnp.array([0.3, -1.0])))))


@pytest.mark.slow
def test_friction_between_walls_and_over_a_high_barrier():
    # A tilted box: Pi' = -beta x (1 - x)/2 at zero tilt, and the integral of its square is 1/120.
    assert friction(lambda x, lam: -lam * x[0], 0.0, walls=[0.0, 1.0]) == pytest.approx(1 / 120, rel=1e-5)
    # A barrier of 10 kT between wells a distance 2 apart, tilted by the control: Kramers' rate both ways, one slow exponential.
    found = friction(lambda x, lam: 10.0 * jnp.sum((x**2 - 1.0) ** 2) - lam * x[0], 0.0)
    kramers = np.pi * np.exp(10.0) / np.sqrt(80.0 * 40.0)
    assert found == pytest.approx(kramers, rel=0.01)


@pytest.mark.slow
@needs_x64
def test_the_generator_gives_the_same_friction_at_second_order():
    potential = pulled(4.0, 8.0)
    errors, sizes = [], [100, 200, 400]
    for cells in sizes:
        grid = propose_grid(potential, [0.25], cells=cells)
        errors.append(abs(friction_spectral(potential, 0.25, grid) - TABLE[4.0, 8.0][1]))
    assert_order(errors, [1 / n for n in sizes], 2.0)
    assert errors[-1] < 1e-4
    with pytest.raises(AssertionError):
        assert_order(errors, [1 / n for n in sizes], 1.0)


def test_the_generator_of_a_ring():
    # A particle dragged round by V = a cos(x - lambda): the drag, less what slips through.
    grid = Grid(0.0, 2 * np.pi, 100, "periodic")
    found = friction_spectral(lambda x, lam: 1.5 * jnp.sum(jnp.cos(x - lam)), 0.3, grid)
    assert found == pytest.approx(1.0 - 1.0 / np.i0(1.5) ** 2, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("cells", [64])
def test_independent_coordinates_add_their_frictions(cells):
    # A pulled particle and a breathing trap under one control, with a mobility each.
    breathing = lambda x, lam: 0.5 * lam**2 * jnp.sum(x**2)
    plane = lambda x, lam: pulled(1.0, 4.0)(x[:1], lam) + breathing(x[1:], lam)
    expected = friction(pulled(1.0, 4.0), 0.7) + friction(breathing, 0.7, mobility=0.5)
    found = [
        friction_spectral(plane, 0.7, propose_grid(plane, [0.7], dim=2, cells=n), mobility=jnp.array([1.0, 0.5]))
        for n in (cells, 2 * cells)
    ]
    errors = np.abs(np.asarray(found) - float(expected))
    assert errors[1] < 2e-2 * expected
    if jax.config.jax_enable_x64:
        assert_order(errors, [1.0, 0.5], 2.0)
    # The gradient of the solve, against a difference.
    if jax.config.jax_enable_x64:
        grid = propose_grid(plane, [0.7], dim=2, cells=32)
        value = lambda beta: friction_spectral(plane, 0.7, grid, beta=beta)
        assert jax.grad(value)(1.0) == pytest.approx(float(value(1.001) - value(0.999)) / 0.002, rel=1e-5)


@ft.cache
def simulated_breathing(dim):
    still = Overdamped(Breathing(), Constant(1.0), Isothermal(1.3), 0.5)
    return friction_from_simulation(still, 2.0, jnp.linspace(0.0, 3.0, 61), 4000, dim=dim, stepper=ExactLinear(), key=jr.key(dim))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 8])
def test_simulated_friction_of_the_stiffness_is_the_same_for_every_coordinate(dim):
    # Correlations fall as exp(-2 mu k t): the cut-off leaves out exp(-6), an eighth of the error bar.
    expected = dim * trap_friction(2.0)[1, 1]
    found = simulated_breathing(dim)
    assert_estimate(found.friction, expected)
    assert abs(found.late.value) < 4 * found.late.stderr
    with pytest.raises(AssertionError):
        assert_estimate(found.friction, 2 * expected)


@pytest.mark.slow
def test_simulated_friction_of_a_shallow_double_well(key):
    potential, lam = pulled(1.0, 4.0), 0.25
    ts = jnp.linspace(0.0, 4.0, 401)
    found = friction_from_simulation(Overdamped(potential, Constant(0.0)), lam, ts, 40_000, key=key)
    # Euler-Maruyama errs by the order of the step, a fifth of the error bar.
    assert_estimate(found.friction, friction(potential, lam))
    with pytest.raises(AssertionError):
        assert_estimate(found.friction, friction(potential, lam, beta=1.3))


@pytest.mark.slow
def test_simulated_friction_of_an_underdamped_trap(key):
    # The drag for the position; for the stiffness the integral of (k^2/4)... of the correlations of x^2, from those of x.
    mass, stiffness, drag = 0.5, 2.0, 1.0
    dynamics = Underdamped(trap, Constant([0.0, 1.0]), mass=mass)
    found = friction_from_simulation(dynamics, [0.3, stiffness], jnp.linspace(0.0, 8.0, 401), 40_000, key=key)
    drift = jnp.array([[0.0, 1.0], [-stiffness / mass, -drag / mass]])
    ts = jnp.linspace(0.0, 20.0, 4001)
    c = jax.vmap(lambda t: jax.scipy.linalg.expm(drift * t)[0, 0])(ts) / stiffness
    # <delta x^2(0) delta x^2(t)> = 2 c^2 for Gaussians.
    stiff = 0.5 * jnp.sum(0.5 * (c[1:] ** 2 + c[:-1] ** 2)) * (ts[1] - ts[0])
    pick = lambda i, j: jax.tree.map(lambda a: a[i, j], found.friction)
    assert_estimate(pick(0, 0), drag)
    assert_estimate(pick(1, 1), stiff)
    assert_estimate(pick(0, 1), 0.0)
    assert float(pick(0, 1).value) == float(pick(1, 0).value)
    with pytest.raises(AssertionError):
        # The overdamped value.
        assert_estimate(pick(1, 1), 1.0 / (4 * stiffness**3))


@pytest.mark.slow
def test_too_short_a_cut_off_shows(key):
    still = Overdamped(Breathing(), Constant(1.0))
    found = friction_from_simulation(still, 1.0, jnp.linspace(0.0, 1.0, 51), 20_000, stepper=ExactLinear(), key=key)
    expected = 0.25 * (1 - np.exp(-2.0))
    assert_estimate(found.friction, expected)
    assert found.late.value > 4 * found.late.stderr
    assert_estimate(found.late, 0.25 * (np.exp(-1.0) - np.exp(-2.0)))


def test_what_has_no_friction_is_refused(key):
    ts = jnp.linspace(0.0, 1.0, 5)
    pushed = Overdamped(Breathing(), Constant(1.0), Isothermal(), 1.0, lambda x, lam: jnp.ones_like(x))
    grid = Grid(-3.0, 3.0, 20)
    simulate = lambda dynamics, lam=1.0, ts=ts, n=10: friction_from_simulation(dynamics, lam, ts, n, key=key)
    for call, message in (
        (lambda: friction(trap, jnp.ones((2, 2))), r"`lam` must be a number or have shape \(control,\), got shape \(2, 2\)."),
        (lambda: friction(trap, jnp.array([0.0, -1.0])), "`potential` must be normalisable as a Boltzmann weight"),
        (lambda: friction(DoubleWell(1.0), 0.0, beta=-1.0), "`beta` must be positive, got -1.0."),
        (lambda: friction(DoubleWell(1.0), 0.0, mobility=jnp.ones(2)), r"`mobility` must be one number, got shape \(2,\)."),
        (lambda: friction(DoubleWell(1.0), 0.0, walls=[1.0, 0.0]), "`walls` must be finite and increase"),
        (lambda: friction(DoubleWell(1.0), jnp.nan), "`lam` must be finite, got nan."),
        (lambda: friction(Harmonic(), 0.0, walls=[-1.0, 1e5]), "`potential` must have wells that 1024 points resolve"),
        (lambda: friction_spectral(Breathing(), 1.0, Grid(-3.0, 3.0, 20, "open")), "`grid` must have no open end"),
        (lambda: friction_spectral(Breathing(), 0.1, grid), "`grid` must hold the whole density"),
        (lambda: friction_spectral(Breathing(), jnp.ones((1, 1)), grid), "`lam` must be a number"),
        (lambda: friction_spectral(Breathing(), 1.0, grid, mobility=[1.0, 2.0]), "`mobility` must be one number, or one for each axis"),
        (lambda: simulate(pushed), "`dynamics` must have an equilibrium"),
        (lambda: simulate(Overdamped(Breathing(), Constant(1.0), LinearBeta(1.0, 2.0))), "`bath` must be constant, got one that differs"),
        (lambda: simulate(Overdamped(Breathing(), Constant(1.0)), n=1), "`samples` must be at least two, got 1."),
        (lambda: simulate(Overdamped(Breathing(), Constant(1.0)), ts=ts[:2]), "`ts` must have at least two steps"),
        (lambda: simulate(Overdamped(Breathing(), Constant(1.0)), lam=-1.0), "`potential` must be normalisable"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="`dynamics` must be `Overdamped` or `Underdamped`, got OrnsteinUhlenbeck."):
        simulate(OrnsteinUhlenbeck(1.0))


@pytest.mark.slow
def test_friction_is_the_same_to_rounding_wherever_the_well_is():
    potential = lambda x, lam: jnp.sum(jnp.cosh(x - lam))
    # Energies that overflow soon, and a place with a long way to look.
    here, there = friction(potential, 0.0), friction(potential, 200.5)
    assert abs(here - there) < 1e3 * rounding()
