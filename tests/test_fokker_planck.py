"""The laws of the Fokker-Planck solver; its oracles are in test_fokker_planck_oracles."""

import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from systems import spying_trap, SYSTEMS, twisting, wavy

from thermojax.baths import Isothermal, LinearBeta
from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import OrnsteinUhlenbeck, Overdamped, ProbabilityFlow
from thermojax.estimators import mean
from thermojax.fokker_planck import (
    energetics,
    evolve,
    expected_work,
    exponential_work,
    feynman_kac,
    generating_function,
    Grid,
    GridDensity,
    mean_work,
    propose_grid,
    steady_state,
    thermodynamics,
    work_distribution,
    work_moments,
)
from thermojax.potentials import DoubleWell, Harmonic, Polynomial, Tilt
from thermojax.protocols import Constant, PiecewiseLinear, Ramp

LINE = Grid(-8.0, 9.0, 120)
PLANE = Grid([-7.0, -6.5], [6.0, 7.5], (24, 22))
COUPLED = lambda x, lam: jnp.sum(0.5 * x**2 + 0.1 * x**4) + 0.4 * x[0] * x[1] - lam * x[0]
PLANAR = Overdamped(COUPLED, Ramp(0.0, 1.0), Isothermal(1.2), jnp.array([1.0, 0.6]))
PUSHED = Overdamped(wavy, Ramp(0.2, 1.0), LinearBeta(0.7, 1.6), 1.0, twisting)


def boltzmann(dynamics, grid, t):
    """The equilibrium on the cells and its normaliser, as sums over the cells."""
    logs = -dynamics.bath(t) * jax.vmap(lambda x: dynamics.energy(t, x))(grid.centres.reshape(-1, grid.dim)).reshape(grid.cells)
    weights = jnp.exp(logs)
    z = grid.integrate(weights)
    return weights / z, z


CASES = {
    "jumps": (SYSTEMS["jumps at both ends"], LINE, standard_normal(1)),
    "pushed": (PUSHED, LINE, standard_normal(1)),
    "noising": (OrnsteinUhlenbeck(2.0, 0.7), LINE, Gaussian([1.0], 0.4)),
    "walls": (Overdamped(Tilt(), Ramp(1.0, -1.0)), Grid(0.0, 2.0, 80, "wall"), lambda x: -jnp.log(2.0)),
    "ring": (
        Overdamped(lambda x, lam: jnp.sum(jnp.cos(x - lam)), Ramp(0.0, 3.0), Isothermal(), 1.0, twisting),
        Grid(0.0, 2 * np.pi, 80, "periodic"),
        lambda x: -jnp.log(2 * jnp.pi),
    ),
    "plane": (PLANAR, PLANE, standard_normal(2)),
}
TS, TS_SHORT = jnp.linspace(0.0, 1.0, 11), jnp.linspace(0.0, 0.1, 101)


@ft.cache
def evolved(kind):
    dynamics, grid, start = CASES[kind]
    return evolve(dynamics, start, grid, TS, substeps=20)


@ft.cache
def started(kind):
    """From equilibrium at time zero: what the energetics are, and the two partition sums."""
    dynamics, grid, _ = CASES[kind]
    start, z0 = boltzmann(dynamics, grid, jnp.array(0.0))
    final, z1 = boltzmann(dynamics, grid, jnp.array(1.0))
    return energetics(dynamics, start, grid, TS), start, final, z1 / z0


@pytest.mark.parametrize("kind", CASES)
def test_probability_is_conserved_and_stays_positive(kind):
    found = evolved(kind)
    assert jnp.max(jnp.abs(found.lost)) < (1e-12 if jax.config.jax_enable_x64 else rounding())
    assert jnp.min(found.densities) > -rounding()
    assert jnp.max(jnp.abs(found.densities[-1] - found.densities[0])) > 0.01


@pytest.mark.parametrize("kind", ["jumps", pytest.param("plane", marks=pytest.mark.slow)])
def test_equilibrium_does_not_move(kind):
    dynamics, grid, _ = CASES[kind]
    frozen = eqx.tree_at(lambda d: d.protocol, dynamics, Constant(0.3))
    start, _ = boltzmann(frozen, grid, jnp.array(0.0))
    found = evolve(frozen, start, grid, 20.0 * TS)
    assert jnp.max(jnp.abs(found.densities[-1] - start)) < rounding(steps=50)
    assert jnp.allclose(steady_state(frozen, grid), start, atol=rounding(), rtol=rounding(steps=50))
    rates = thermodynamics(frozen, start, grid, 0.0)
    assert abs(rates.entropy_production) < rounding(steps=50)
    assert all(jnp.max(jnp.abs(j)) < rounding(steps=50) for j in rates.current)


@needs_x64
@pytest.mark.slow
def test_density_converges_at_second_order_in_space_and_in_time():
    # A trap that moves at unit speed: the mean lags behind by 1 - exp(-t).
    dynamics = Overdamped(Harmonic(1.0), Ramp(0.0, 1.0))

    def moments(cells, steps):
        grid = Grid(-8.0, 9.0, cells)
        found = evolve(dynamics, Gaussian([0.5], 0.6), grid, jnp.array([0.0, 1.0]), substeps=steps).densities[-1]
        x = grid.lines[0]
        first = grid.integrate(found * x)
        return jnp.stack([first, grid.integrate(found * x**2) - first**2])

    sizes = [60, 120, 240]
    exact = jnp.array([1.5 * np.exp(-1.0), 1 - 0.4 * np.exp(-2.0)])
    for errors in np.abs([moments(n, 400) - exact for n in sizes]).T:
        assert_order(errors, [1 / n for n in sizes], 2.0)
    # In time, from the differences between one number of steps and twice as many.
    counts = [4, 8, 16]
    found = np.array([moments(60, n) for n in [*counts, 32]])
    for errors in np.abs(np.diff(found, axis=0)).T:
        assert_order(errors, [1 / n for n in counts], 2.0)


def first_law(dynamics, grid, found, start):
    at = lambda t, p: grid.integrate(p * jax.vmap(lambda x: dynamics.energy(t, x))(grid.centres.reshape(-1, grid.dim)).reshape(grid.cells))
    change = at(jnp.array(1.0), found.density) - at(jnp.array(0.0), start)
    assert abs(found.work - found.heat - change) < rounding(10.0, steps=10)


@pytest.mark.parametrize("kind", ["jumps", "pushed", pytest.param("plane", marks=pytest.mark.slow)])
def test_first_law_holds_for_the_means(kind):
    dynamics, grid, _ = CASES[kind]
    found, start, _, _ = started(kind)
    first_law(dynamics, grid, found, start)
    with pytest.raises(AssertionError):
        first_law(dynamics, grid, found._replace(heat=-found.heat), start)


def jarzynski_law(kind, ts, average=exponential_work):
    dynamics, grid, _ = CASES[kind]
    _, start, _, ratio = started(kind)
    assert average(dynamics, start, grid, ts) == pytest.approx(float(ratio), rel=rounding(steps=10))


@pytest.mark.parametrize(
    ("kind", "ts"),
    [
        ("jumps", TS),
        pytest.param("pushed", TS, marks=pytest.mark.slow),
        ("ring", TS),
        pytest.param("plane", TS[::10], marks=pytest.mark.slow),
    ],
)
def test_exponential_reduced_work_is_the_ratio_of_partition_sums_at_any_step(kind, ts):
    jarzynski_law(kind, ts)


WRONG = {
    "work without beta": lambda *args: generating_function(*args, -1.0),
    "sign": lambda *args: generating_function(*args, 1.0, quantity="reduced work"),
    "mean": lambda *args: jnp.exp(-started("pushed")[0].reduced_work),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_check_of_the_exponential_average_can_fail(wrong):
    with pytest.raises(AssertionError):
        jarzynski_law("pushed", TS, wrong)


@pytest.mark.parametrize("kind", ["jumps", "pushed"])
def test_reduced_work_is_entropy_production_and_distance_from_equilibrium(kind):
    found, _, final, ratio = started(kind)
    dissipated = found.reduced_work + jnp.log(ratio)
    grid = CASES[kind][1]
    distance = GridDensity(grid, found.density).kl(GridDensity(grid, final))
    assert dissipated == pytest.approx(float(found.entropy_production + distance), rel=rounding(steps=1000))
    assert found.entropy_production > 0
    assert distance > 0


@pytest.mark.parametrize("kind", ["pushed", "ring"])
@pytest.mark.slow
def test_work_moments_are_those_of_the_energetics(kind):
    dynamics, grid, _ = CASES[kind]
    found, start, _, _ = started(kind)
    average, variance = work_moments(dynamics, start, grid, TS, quantity="reduced work")
    assert average == pytest.approx(float(found.reduced_work), rel=rounding(steps=100))
    assert variance > 0


@pytest.mark.parametrize("kind", ["jumps", "pushed", "noising", "ring", "plane"])
def test_entropy_rate_is_production_less_flux(kind):
    dynamics, grid, _ = CASES[kind]
    found = evolved(kind)
    rates = thermodynamics(dynamics, found.densities, grid, found.ts)
    assert jnp.all(rates.entropy_production >= -rounding())
    assert jnp.allclose(rates.entropy_rate, rates.entropy_production - rates.entropy_flux, atol=rounding(10.0))
    # The current times the local mean velocity over D, summed over the faces, is the entropy production too.
    if kind == "noising":
        summed = jnp.sum(rates.current[0] * rates.velocity[0], axis=1) * grid.volume / 1.4
        assert jnp.allclose(summed, rates.entropy_production, rtol=1e-4)


@needs_x64
def test_entropy_rate_is_the_slope_of_the_entropy():
    dynamics, grid, start = CASES["noising"]
    found = evolve(dynamics, start, grid, 0.01 * TS)
    rates = thermodynamics(dynamics, found.densities, grid, found.ts)
    assert rates.entropy_rate[5] == pytest.approx(float((rates.entropy[6] - rates.entropy[4]) / 2e-3), rel=1e-4)


def test_current_of_a_driven_ring_is_that_of_the_closed_form():
    push, rate = 1.3, 0.7
    flat = Overdamped(lambda x, lam: 0.0 * jnp.sum(x), Constant(0.0), Isothermal(), rate, lambda x, lam: jnp.full_like(x, push))
    ring = Grid(0.0, 2 * np.pi, 200, "periodic")
    rates = thermodynamics(flat, steady_state(flat, ring), ring, 0.0)
    assert jnp.allclose(rates.current[0], rate * push / (2 * jnp.pi), rtol=rounding(steps=1000))
    assert rates.entropy_production == pytest.approx(rate * push**2, rel=rounding(steps=1000))


@pytest.mark.slow
@needs_x64
def test_current_over_a_periodic_barrier_converges_to_stratonovich_formula():
    # J = D (1 - e^{-fL}) / int dx int_x^{x+L} dy exp(U(y) - U(x)) with U = 1.5 cos x - f x, by the trapezoidal rule (periodic in x).
    push, n = 1.3, 4000
    x = 2 * np.pi * np.arange(2 * n) / n
    weights = np.exp(1.5 * np.cos(x) - push * x)
    # Simpson's rule of the inner integral, whose integrand is not periodic.
    simpson = np.ones(n + 1)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    inner = np.array([np.dot(simpson, weights[i : i + n + 1]) for i in range(0, n, 20)]) * 2 * np.pi / n / 3
    exact = (1 - np.exp(-2 * np.pi * push)) / (np.sum(inner / weights[:n:20]) * 2 * np.pi * 20 / n)

    def current(cells):
        hill = lambda x, lam: 1.5 * jnp.sum(jnp.cos(x))
        dynamics = Overdamped(hill, Constant(0.0), Isothermal(), 1.0, lambda x, lam: jnp.full_like(x, push))
        ring = Grid(0.0, 2 * np.pi, cells, "periodic")
        flow = thermodynamics(dynamics, steady_state(dynamics, ring), ring, 0.0).current[0]
        assert jnp.ptp(flow) < 1e-12
        return flow[0]

    sizes = [50, 100, 200]
    found = [current(n) for n in sizes]
    assert_order([abs(j - exact) for j in found], [1 / n for n in sizes], 2.0)
    assert (4 * found[-1] - found[-2]) / 3 == pytest.approx(exact, rel=1e-6)


TORUS = Overdamped(
    lambda x, lam: jnp.sum(jnp.cos(x)) + 0.5 * jnp.cos(x[0] - x[1] + 0.3), Constant(0.0), Isothermal([1.0, 0.5]), 1.0,
    lambda x, lam: jnp.stack([0.5 + 0.0 * x[0], 0.3 * jnp.sin(x[0])]),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["periodic", ("periodic", "wall"), ("wall", "periodic")])
def test_currents_of_a_steady_state_have_no_sources(ends):
    grid = Grid([0.0, 0.0], [2 * np.pi, 2 * np.pi], (14, 12), ends)
    density = steady_state(TORUS, grid)
    rates = thermodynamics(TORUS, density, grid, 0.0)
    source = sum((j - jnp.roll(j, 1, axis=axis)) / grid.spacing[axis] for axis, j in enumerate(rates.current))
    assert jnp.max(jnp.abs(source)) < rounding()
    assert jnp.max(jnp.abs(rates.current[0])) > 1e-3
    assert jnp.min(density) > 0
    assert rates.entropy_production == pytest.approx(float(rates.entropy_flux), abs=rounding(steps=10))
    # A wrong density has sources.
    rates = thermodynamics(TORUS, jnp.roll(density, 1, axis=0), grid, 0.0)
    assert jnp.max(jnp.abs(sum(j - jnp.roll(j, 1, axis=axis) for axis, j in enumerate(rates.current)))) > 1e-3


@pytest.mark.slow
@needs_x64
def test_turning_force_in_the_plane_gives_the_exact_covariance_at_late_times():
    # dx = -(1 - R) x dt + noise with a rotation R: p is N(0, 1) at all times, while a current flows in circles.
    turn = jnp.array([[0.0, -0.7], [0.7, 0.0]])
    dynamics = Overdamped(lambda x, lam: 0.5 * jnp.sum(x**2), Constant(0.0), Isothermal(), 1.0, lambda x, lam: turn @ x)
    grid = Grid([-6.5, -6.5], [6.5, 6.5], 48)
    start = Gaussian([1.0, 0.0], 0.5)
    found = evolve(dynamics, start, grid, jnp.array([0.0, 1.0]), substeps=50).densities[-1]
    average = jnp.array([grid.integrate(found * grid.centres[..., i]) for i in range(2)])
    exact = jnp.exp(-1.0) * jnp.array([jnp.cos(0.7), jnp.sin(0.7)])
    assert jnp.allclose(average, exact, atol=2e-2 * (13 / 48) ** 2 * 10)
    rates = thermodynamics(dynamics, steady_state(dynamics, grid), grid, 0.0)
    assert rates.entropy_production == pytest.approx(2 * 0.7**2, rel=2e-2)


@pytest.mark.slow
def test_density_between_absorbing_ends_decays_as_it_must():
    grid = Grid(0.0, 1.0, 100, "open")
    free = Overdamped(lambda x, lam: 0.0 * jnp.sum(x), Constant(0.0))
    start = jnp.sin(jnp.pi * grid.lines[0]) * jnp.pi / 2
    found = evolve(free, start, grid, TS_SHORT, tolerance=1e-3)
    assert found.lost[-1] == pytest.approx(1 - np.exp(-0.1 * np.pi**2), rel=3e-4)
    assert jnp.all(jnp.diff(found.lost) > 0)
    # The probability to be still there, from the backward equation, is the same number.
    alive = feynman_kac(free, grid, TS_SHORT)[0]
    assert grid.integrate(alive * found.densities[0]) == pytest.approx(float(1 - found.lost[-1]), rel=rounding(steps=10))


@pytest.mark.parametrize("kind", ["ring", "noising", pytest.param("plane", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_forward_and_backward_solutions_keep_their_product(kind):
    dynamics, grid, start = CASES[kind]
    goal = jnp.sin(grid.centres[..., 0]) + 0.3 * grid.centres[..., -1]
    forward, backward = evolve(dynamics, start, grid, TS).densities, feynman_kac(dynamics, grid, TS, terminal=goal)
    products = jax.vmap(grid.integrate)(forward * backward)
    assert jnp.ptp(products) < rounding(steps=20)
    assert jnp.ptp(jax.vmap(grid.integrate)(forward * backward[::-1])) > 1e-3


@pytest.mark.slow
def test_backward_equation_gives_exponential_and_mean_work():
    found, start, _, ratio = started("pushed")
    u = feynman_kac(PUSHED, LINE, TS, exponent=-1.0, quantity="reduced work")
    assert LINE.integrate(start * u[0]) == pytest.approx(float(ratio), rel=rounding(steps=100))
    expected = expected_work(PUSHED, LINE, TS)
    assert LINE.integrate(start * expected[0]) == pytest.approx(float(found.work), rel=rounding(steps=100))
    assert jnp.all(expected[-1] == 0)


WELLS = DoubleWell(1.0) + Harmonic(1.0)
BOX, WORKS = Grid(-3.5, 4.0, 100), jnp.linspace(-12.0, 20.0, 257)[:-1]


@ft.cache
def both_ways():
    ahead = Overdamped(WELLS, PiecewiseLinear(-0.5, [0.0, 0.3, 0.4], 1.0), Isothermal(1.5))
    back = Overdamped(WELLS, PiecewiseLinear(1.0, [0.4, 0.3, 0.0], -0.5), Isothermal(1.5))
    start, z0 = boltzmann(ahead, BOX, jnp.array(0.0))
    final, z1 = boltzmann(ahead, BOX, jnp.array(1.0))
    forward = work_distribution(ahead, start, BOX, TS, WORKS)
    backward = work_distribution(back, final, BOX, TS, -WORKS[::-1])[::-1]
    return forward, backward, -jnp.log(z1 / z0) / 1.5, work_moments(ahead, start, BOX, TS)


def crooks_relation(forward, backward, delta_f):
    seen = (forward > 1e-3) & (backward > 1e-3)
    assert jnp.sum(seen) > 20
    gap = jnp.log(forward / backward) - 1.5 * (WORKS - delta_f)
    assert jnp.max(jnp.abs(jnp.where(seen, gap, 0.0))) < 1e-5


@pytest.mark.slow
@needs_x64
def test_work_distributions_of_a_protocol_and_its_reverse_obey_crooks_relation():
    forward, backward, delta_f, _ = both_ways()
    crooks_relation(forward, backward, delta_f)
    for wrong in ((backward, forward, delta_f), (forward, backward[::-1], delta_f), (forward, backward, -delta_f)):
        with pytest.raises(AssertionError):
            crooks_relation(*wrong)


@pytest.mark.slow
def test_moments_of_the_work_distribution_are_those_of_the_generating_function():
    forward, _, _, moments = both_ways()
    spacing = WORKS[1] - WORKS[0]
    average = jnp.sum(forward * WORKS) * spacing
    variance = jnp.sum(forward * (WORKS - average) ** 2) * spacing
    assert jnp.sum(forward) * spacing == pytest.approx(1.0, rel=1e-5)
    assert jnp.allclose(jnp.stack([average, variance]), jnp.stack(moments), rtol=1e-4)


@pytest.mark.slow
@needs_x64
def test_gradient_of_mean_work_with_respect_to_32_knots_is_that_of_finite_differences():
    start = Gaussian([0.0], 1.0)

    def work(knots):
        dynamics = Overdamped(Harmonic(1.0), PiecewiseLinear(0.0, knots, 1.0, 2.0), Isothermal(1.0))
        return mean_work(dynamics, start, LINE, 2.0 * TS)

    knots = jnp.linspace(0.1, 0.8, 32)
    gradient, h = jax.grad(work)(knots), 1e-4
    for i in (0, 1, 17, 31):
        step = jnp.zeros(32).at[i].set(h)
        assert gradient[i] == pytest.approx(float((work(knots + step) - work(knots - step)) / (2 * h)), rel=1e-5)


@pytest.mark.slow
@needs_x64
def test_entropy_production_of_a_steady_state_is_differentiable_in_the_temperature():
    grid = Grid(0.0, 2 * np.pi, 40, "periodic")

    def production(beta):
        dynamics = Overdamped(lambda x, lam: jnp.sum(jnp.cos(x)), Constant(0.0), Isothermal(beta), 1.0, twisting)
        return thermodynamics(dynamics, steady_state(dynamics, grid), grid, 0.0).entropy_production

    h = 1e-5
    assert jax.grad(production)(1.3) == pytest.approx(float(production(1.3 + h) - production(1.3 - h)) / (2 * h), rel=1e-6)


@needs_x64
@pytest.mark.slow
def test_entropy_production_between_two_baths_is_differentiable_in_the_temperatures():
    grid = Grid([0.0, 0.0], [2 * np.pi, 2 * np.pi], (14, 12), "periodic")

    def production(betas):
        dynamics = eqx.tree_at(lambda d: d.bath, TORUS, Isothermal(betas))
        return thermodynamics(dynamics, steady_state(dynamics, grid), grid, 0.0).entropy_production

    betas, h = jnp.array([1.0, 0.5]), 1e-5
    gradient = jax.grad(production)(betas)
    for step in h * jnp.eye(2):
        assert jnp.dot(gradient, step) * 2 == pytest.approx(float(production(betas + step) - production(betas - step)), rel=1e-6)


def test_new_parameter_values_do_not_retrace():
    traces = []
    spy = spying_trap(traces)

    def run(stiffness):
        dynamics = Overdamped(spy(jnp.array(stiffness)), Ramp(0.0, stiffness), Isothermal(stiffness))
        start = Gaussian([0.0], 1 / stiffness)
        evolve(dynamics, start, LINE, TS)
        energetics(dynamics, start, LINE, TS)
        steady_state(dynamics, LINE)

    run(1.0)
    first = len(traces)
    run(1.2)
    assert len(traces) == first


@eqx.filter_jit
def values(density, xs):
    return jax.vmap(density.log_prob)(xs), jax.vmap(density.score)(xs)


def test_density_on_a_grid_is_a_distribution(key):
    exact = Gaussian([0.3], 0.8)
    grid = Grid(-7.0, 8.0, 200)
    found = GridDensity(grid, jnp.exp(values(exact, grid.centres)[0]))
    xs = jnp.array([[0.317], [-2.9], [7.99], [-6.999]])
    # Cubics reproduce the parabola ln p up to rounding, which differences divide by the spacing.
    for got, expected in zip(values(found, xs), values(exact, xs), strict=True):
        assert jnp.allclose(got, expected, rtol=rounding(steps=1000), atol=rounding(steps=1000))
    assert values(found, jnp.array([[8.1]]))[0][0] == -jnp.inf
    assert found.entropy() == pytest.approx(float(exact.entropy()), rel=1e-5)
    assert found.kl(standard_normal(1)) == pytest.approx(0.5 * (0.8 + 0.09 - 1 - np.log(0.8)), rel=1e-4)
    xs = found.sample(20_000, key=key)
    assert xs.shape == (20_000, 1)
    assert_estimate(mean(xs[:, 0]), 0.3)
    # The system's entropy along trajectories: its mean is the entropy.
    assert_estimate(mean(-values(found, xs)[0]), exact.entropy())


@pytest.mark.slow
def test_density_on_a_plane_or_a_ring_is_interpolated(key):
    exact = Gaussian([0.3, -0.2], [[0.8, 0.3], [0.3, 0.5]])
    grid = Grid([-5.0, -4.5], [5.5, 4.0], (60, 50))
    found = GridDensity(grid, jnp.exp(values(exact, grid.centres.reshape(-1, 2))[0]).reshape(grid.cells))
    xs = jnp.array([[1.234, -0.567], [-0.3, 0.9]])
    for got, expected in zip(values(found, xs), values(exact, xs), strict=True):
        assert jnp.allclose(got, expected, rtol=rounding(steps=1000), atol=rounding(steps=1000))
    assert jnp.allclose(jnp.mean(found.sample(4000, key=key), axis=0), exact.mean, atol=0.1)
    ring = Grid(0.0, 2 * np.pi, 100, "periodic")
    xs = jnp.array([[0.001], [6.28], [6.29], [-3.0]])
    found = values(GridDensity(ring, jnp.exp(jnp.cos(ring.lines[0])) / 7.95), xs)[0]
    assert jnp.allclose(found, jnp.cos(xs[:, 0]) - np.log(7.95), atol=2e-4)


def test_proposed_grid_holds_the_equilibria_at_all_controls():
    grid = propose_grid(Harmonic(2.0), [0.0, 3.0], beta=0.5)
    assert grid.cells == (1000,)
    assert -11.5 < grid.low[0] < -9.0
    assert 12.0 < grid.high[0] < 14.5
    assert propose_grid(COUPLED, [0.0], dim=2, cells=(20, 30)).cells == (20, 30)


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.slow
def test_grids_that_cut_off_probability_say_how_much():
    dynamics = SYSTEMS["dragged trap"]
    with refused("`grid` must hold the initial density, got 0.0227 of its probability outside."):
        evolve(dynamics, standard_normal(1), Grid(-2.0, 6.0, 400), TS)
    with refused('of its probability in the outermost cells (for real walls take boundary="wall").'):
        mean_work(Overdamped(Harmonic(1.0), Ramp(0.0, 5.0, 5.0)), standard_normal(1), Grid(-6.0, 6.0, 100), 5.0 * TS)
    with refused("`grid` must hold the whole density, got 0.0"):
        steady_state(dynamics, Grid(-8.0, 0.5, 100))
    with refused("`grid` must resolve the initial density, which must be normalised, got a sum over the cells of 1 + 0.5."):
        evolve(dynamics, lambda x: standard_normal(1).log_prob(x) + jnp.log(1.5), LINE, TS)
    assert evolve(dynamics, standard_normal(1), Grid(-2.0, 6.0, 400), TS, tolerance=0.1).outside == pytest.approx(0.02275, rel=1e-3)


def test_bad_input_is_refused():
    trap, start = SYSTEMS["dragged trap"], standard_normal(1)
    with refused("`high` must be above `low`, got [0.]."):
        Grid(1.0, 0.0, 10)
    with refused("`cells` must be at least 4, one number or 2, got (10, 2)."):
        Grid([0.0, 0.0], [1.0, 1.0], (10, 2))
    with refused("`boundary` must be one of reflecting, wall, periodic, open, common to all axes or one each, got closed."):
        Grid(0.0, 1.0, 10, "closed")
    with refused("`density0` must have the shape of the cells, (120,), got shape (3,)."):
        evolve(trap, jnp.ones(3), LINE, TS)
    with refused("`density0` must be finite and not negative, got -0.05882"):
        evolve(trap, -jnp.ones(120) / 17.0, LINE, TS)
    with refused("`ts` must increase strictly"):
        evolve(trap, start, LINE, jnp.array([0.0, 1.0, 0.5]))
    with refused("`noise` must be positive: without it no density is smooth enough for a grid, got [0. 0.]."):
        evolve(ProbabilityFlow(OrnsteinUhlenbeck(), lambda t, x: -x), start, LINE, TS)
    with refused("`dynamics` must have a potential, a protocol and a bath, for work and heat, got OrnsteinUhlenbeck."):
        mean_work(OrnsteinUhlenbeck(), start, LINE, TS)
    with refused("`potential` must be the same at both ends of a periodic axis (a constant force belongs into `nonconservative`)"):
        steady_state(trap, Grid(0.0, 1.0, 10, "periodic"))
    with refused("`potential` must be finite everywhere on the grid"):
        steady_state(Overdamped(lambda x, lam: -jnp.log(jnp.sum(x)), Constant(0.0)), LINE)
    with refused("`grid` must have no open end for a steady state, got ('open',)."):
        steady_state(trap, Grid(0.0, 1.0, 10, "open"))
    with refused("`quantity` must be one of work, reduced work, got heat."):
        work_moments(trap, start, LINE, TS, quantity="heat")
    with refused("`bath` must return one beta for all axes, for the reduced work, got shape (2,)."):
        exponential_work(TORUS, lambda x: 0.0, Grid([0.0, 0.0], [6.0, 6.0], 8), TS)
    with refused("`works` must cover the distribution of the work"):
        work_distribution(trap, start, LINE, TS, jnp.linspace(-1.0, 1.0, 32))
    with refused("`works` must be equally spaced and increase"):
        work_distribution(trap, start, LINE, TS, jnp.linspace(1.0, 5.0, 32) ** 2)
    with refused("`exponent` must be zero for dynamics without a potential, got 1.0."):
        feynman_kac(OrnsteinUhlenbeck(), LINE, TS, exponent=1.0)


@pytest.mark.slow
def test_quartic_mean_energy_relaxes_to_the_equilibrium_one():
    dynamics = Overdamped(Polynomial([0.0, 0.3, -1.0, 0.0, 0.5]), Constant(0.0), Isothermal(2.0))
    grid = Grid(-4.0, 4.0, 120)
    found = evolve(dynamics, Gaussian([1.0], 0.1), grid, 40.0 * TS)
    late = thermodynamics(dynamics, found.densities[-1], grid, 40.0)
    settled = thermodynamics(dynamics, steady_state(dynamics, grid), grid, 0.0)
    assert late.energy == pytest.approx(float(settled.energy), rel=1e-4)
    assert late.entropy == pytest.approx(float(settled.entropy), rel=1e-4)
