"""The laws of the Fokker-Planck solver; its oracles are in test_fokker_planck_oracles."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from systems import SYSTEMS, twisting, wavy

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
from thermojax.potentials import AbstractPotential, DoubleWell, Harmonic, Polynomial, Tilt
from thermojax.protocols import Constant, PiecewiseLinear, Ramp, Reverse

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


def times(steps, duration=1.0):
    return jnp.linspace(0.0, duration, steps + 1)


ENDS = {
    "reflecting": (SYSTEMS["dragged trap"], LINE, standard_normal(1)),
    "jumps": (SYSTEMS["jumps at both ends"], LINE, standard_normal(1)),
    "pushed": (PUSHED, LINE, standard_normal(1)),
    "noising": (OrnsteinUhlenbeck(2.0, 0.7), LINE, Gaussian([1.0], 0.4)),
    "walls": (Overdamped(Tilt(), Ramp(1.0, -1.0)), Grid(0.0, 2.0, 80, "wall"), lambda x: -jnp.log(2.0)),
    "ring": (Overdamped(lambda x, lam: jnp.sum(jnp.cos(x - lam)), Ramp(0.0, 3.0), Isothermal(), 1.0, twisting), Grid(0.0, 2 * np.pi, 80, "periodic"),
             lambda x: -jnp.log(2 * jnp.pi)),
    "plane": (PLANAR, PLANE, standard_normal(2)),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_probability_is_conserved_and_stays_positive(case):
    dynamics, grid, start = case
    found = evolve(dynamics, start, grid, times(20), substeps=5)
    assert jnp.max(jnp.abs(found.lost)) < min(1e-12, rounding()) or not jax.config.jax_enable_x64
    assert jnp.max(jnp.abs(found.lost)) < rounding(steps=10)
    assert jnp.min(found.densities) > -rounding()


@pytest.mark.parametrize("kind", ["reflecting", "plane", "walls"])
def test_equilibrium_does_not_move(kind):
    dynamics, grid, _ = ENDS[kind]
    frozen = eqx.tree_at(lambda d: (d.protocol.stop, d.protocol.start), dynamics, (jnp.array(0.3), jnp.array(0.3)))
    start, _ = boltzmann(frozen, grid, jnp.array(0.0))
    found = evolve(frozen, start, grid, times(4, 20.0))
    assert jnp.max(jnp.abs(found.densities[-1] - start)) < rounding(steps=20)
    assert jnp.allclose(steady_state(frozen, grid), start, atol=rounding(), rtol=rounding(steps=20))
    rates = thermodynamics(frozen, start, grid, 0.0)
    assert abs(rates.entropy_production) < rounding(steps=20)
    assert all(jnp.max(jnp.abs(j)) < rounding(steps=20) for j in rates.current)


@needs_x64
def test_density_converges_at_second_order_in_space_and_in_time():
    def error(cells, steps):
        # A trap that moves at unit speed: the mean lags behind by 1 - exp(-t).
        dynamics = Overdamped(Harmonic(1.0), Ramp(0.0, 1.0))
        grid = Grid(-8.0, 9.0, cells)
        found = evolve(dynamics, Gaussian([0.5], 0.6), grid, jnp.array([0.0, 1.0]), substeps=steps).densities[-1]
        x = grid.lines[0]
        first, second = grid.integrate(found * x), grid.integrate(found * x**2)
        exact = jnp.exp(-1.0) * 1.5
        return abs(first - exact), abs(second - first**2 - (1 - 0.4 * jnp.exp(-2.0)))

    sizes = [60, 120, 240]
    for errors in zip(*(error(n, 400) for n in sizes), strict=True):
        assert_order(errors, [1 / n for n in sizes], 2.0)
    fine = jnp.asarray(error(240, 400))
    counts = [5, 10, 20]
    assert_order([abs(jnp.asarray(error(240, n))[1] - fine[1]) for n in counts], [1 / n for n in counts], 2.0, band=0.25)


def first_law(dynamics, grid, found, start):
    at = lambda t, p: grid.integrate(p * jax.vmap(lambda x: dynamics.energy(t, x))(grid.centres.reshape(-1, grid.dim)).reshape(grid.cells))
    change = at(jnp.array(1.0), found.density) - at(jnp.array(0.0), start)
    assert abs(found.work - found.heat - change) < rounding(10.0, steps=10)


@pytest.mark.parametrize("kind", ["reflecting", "jumps", "pushed", "plane"])
def test_first_law_holds_for_the_means(kind):
    dynamics, grid, _ = ENDS[kind]
    start, _ = boltzmann(dynamics, grid, jnp.array(0.0))
    found = energetics(dynamics, start, grid, times(10))
    first_law(dynamics, grid, found, start)
    with pytest.raises(AssertionError):
        first_law(dynamics, grid, found._replace(heat=-found.heat), start)


def jarzynski_law(dynamics, grid, steps, average=exponential_work):
    start, z0 = boltzmann(dynamics, grid, jnp.array(0.0))
    _, z1 = boltzmann(dynamics, grid, jnp.array(1.0))
    assert average(dynamics, start, grid, times(steps)) == pytest.approx(float(z1 / z0), rel=rounding(steps=10))


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("kind", ["jumps", "pushed", "plane", "ring"])
def test_exponential_reduced_work_is_the_ratio_of_partition_sums_at_any_step(kind, steps):
    dynamics, grid, _ = ENDS[kind]
    jarzynski_law(dynamics, grid, steps)


WRONG = {
    "work without beta": lambda *args: generating_function(*args, -1.0),
    "sign": lambda *args: generating_function(*args, 1.0, quantity="reduced work"),
    "mean": lambda *args: jnp.exp(-work_moments(*args, quantity="reduced work")[0]),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_check_of_the_exponential_average_can_fail(wrong):
    with pytest.raises(AssertionError):
        jarzynski_law(PUSHED, LINE, 7, wrong)


@pytest.mark.parametrize("kind", ["jumps", "pushed"])
def test_reduced_work_is_entropy_production_and_distance_from_equilibrium(kind):
    dynamics, grid, _ = ENDS[kind]
    start, z0 = boltzmann(dynamics, grid, jnp.array(0.0))
    final, z1 = boltzmann(dynamics, grid, jnp.array(1.0))
    found = energetics(dynamics, start, grid, times(30))
    dissipated = found.reduced_work + jnp.log(z1 / z0)
    distance = GridDensity(grid, found.density).kl(GridDensity(grid, final))
    assert dissipated == pytest.approx(float(found.entropy_production + distance), rel=rounding(steps=1000))
    assert found.entropy_production > 0
    assert distance > 0


@pytest.mark.parametrize("kind", ["reflecting", "pushed", "ring", "plane"])
def test_work_moments_are_those_of_the_energetics(kind):
    dynamics, grid, start = ENDS[kind]
    found = energetics(dynamics, start, grid, times(10))
    assert work_moments(dynamics, start, grid, times(10))[0] == pytest.approx(float(found.work), rel=rounding(steps=100))
    average, variance = work_moments(dynamics, start, grid, times(10), quantity="reduced work")
    assert average == pytest.approx(float(found.reduced_work), rel=rounding(steps=100))
    assert variance > 0


@pytest.mark.parametrize("kind", ["reflecting", "pushed", "noising", "ring", "plane"])
def test_entropy_rate_is_production_less_flux(kind):
    dynamics, grid, start = ENDS[kind]
    found = evolve(dynamics, start, grid, times(8))
    rates = thermodynamics(dynamics, found.densities, grid, found.ts)
    assert jnp.all(rates.entropy_production >= -rounding())
    assert jnp.allclose(rates.entropy_rate, rates.entropy_production - rates.entropy_flux, atol=rounding(10.0))
    # J times the velocity over D, summed over the faces, is the entropy production too.
    velocity_squared = sum(jnp.sum(j * v, axis=tuple(range(1, grid.dim + 1))) for j, v in zip(rates.current, rates.velocity, strict=True))
    if kind in ("reflecting", "noising"):
        diffusion = 0.5 * dynamics.noise(found.ts[0]) ** 2
        assert jnp.allclose(velocity_squared * grid.volume / diffusion, rates.entropy_production, rtol=1e-4)


@needs_x64
def test_entropy_rate_is_the_slope_of_the_entropy():
    ts = jnp.linspace(0.5 - 1e-3, 0.5 + 1e-3, 3)
    dynamics = SYSTEMS["dragged trap"]
    start = evolve(dynamics, Gaussian([0.5], 0.4), LINE, jnp.append(0.0, ts[:1]), substeps=50).densities[-1]
    found = evolve(dynamics, start, LINE, ts)
    rates = thermodynamics(dynamics, found.densities, LINE, found.ts)
    assert rates.entropy_rate[1] == pytest.approx(float((rates.entropy[2] - rates.entropy[0]) / 2e-3), rel=1e-5)


def test_current_of_a_driven_ring_is_that_of_the_closed_form():
    push, rate = 1.3, 0.7
    flat = Overdamped(lambda x, lam: 0.0 * jnp.sum(x), Constant(0.0), Isothermal(), rate, lambda x, lam: jnp.full_like(x, push))
    ring = Grid(0.0, 2 * np.pi, 200, "periodic")
    rates = thermodynamics(flat, steady_state(flat, ring), ring, 0.0)
    assert jnp.allclose(rates.current[0], rate * push / (2 * jnp.pi), rtol=rounding(steps=1000))
    assert rates.entropy_production == pytest.approx(rate * push**2, rel=rounding(steps=1000))


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
        dynamics = Overdamped(lambda x, lam: 1.5 * jnp.sum(jnp.cos(x)), Constant(0.0), Isothermal(), 1.0, lambda x, lam: jnp.full_like(x, push))
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


@pytest.mark.parametrize("ends", ["periodic", ("periodic", "wall"), ("wall", "periodic"), "wall"])
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


def test_density_between_absorbing_ends_decays_as_it_must():
    grid = Grid(0.0, 1.0, 100, "open")
    free = Overdamped(lambda x, lam: 0.0 * jnp.sum(x), Constant(0.0))
    start = jnp.sin(jnp.pi * grid.lines[0]) * jnp.pi / 2
    found = evolve(free, start, grid, times(100, 0.1), tolerance=1e-3)
    assert found.lost[-1] == pytest.approx(1 - np.exp(-0.1 * np.pi**2), rel=3e-4)
    assert jnp.all(jnp.diff(found.lost) > 0)
    # The probability to be still there, from the backward equation, is the same number.
    alive = feynman_kac(free, grid, times(100, 0.1))[0]
    assert grid.integrate(alive * found.densities[0]) == pytest.approx(float(1 - found.lost[-1]), rel=rounding(steps=10))


@pytest.mark.parametrize("kind", ["reflecting", "ring", "noising", "plane"])
def test_forward_and_backward_solutions_keep_their_product(kind):
    dynamics, grid, start = ENDS[kind]
    goal = jnp.sin(grid.centres[..., 0]) + 0.3 * grid.centres[..., -1]
    forward = evolve(dynamics, start, grid, times(10)).densities
    backward = feynman_kac(dynamics, grid, times(10), terminal=goal)
    products = jax.vmap(grid.integrate)(forward * backward)
    assert jnp.ptp(products) < rounding(steps=20)
    assert jnp.ptp(jax.vmap(grid.integrate)(forward * backward[::-1])) > 1e-3


@pytest.mark.parametrize("kind", ["pushed", "plane"])
def test_backward_equation_gives_exponential_and_mean_work(kind):
    dynamics, grid, start = ENDS[kind]
    density = evolve(dynamics, start, grid, times(10)).densities[0]
    found = grid.integrate(density * feynman_kac(dynamics, grid, times(10), exponent=-0.7)[0])
    assert found == pytest.approx(float(generating_function(dynamics, start, grid, times(10), -0.7)), rel=rounding(steps=100))
    found = grid.integrate(density * expected_work(dynamics, grid, times(10))[0])
    assert found == pytest.approx(float(mean_work(dynamics, start, grid, times(10))), rel=rounding(steps=100))


CROOKS = Overdamped(DoubleWell(1.0) + Harmonic(1.0), PiecewiseLinear(-0.5, [0.0, 0.3, 0.4], 1.0), Isothermal(1.5))


def crooks_relation(backward_of):
    grid, works = Grid(-3.5, 4.0, 100), jnp.linspace(-12.0, 20.0, 257)[:-1]
    start, z0 = boltzmann(CROOKS, grid, jnp.array(0.0))
    final, z1 = boltzmann(CROOKS, grid, jnp.array(1.0))
    delta_f = -jnp.log(z1 / z0) / 1.5
    forward = work_distribution(CROOKS, start, grid, times(20), works)
    reversed_ = eqx.tree_at(lambda d: d.protocol, CROOKS, Reverse(CROOKS.protocol, 1.0))
    backward = work_distribution(reversed_, final, grid, times(20), -works[::-1])[::-1]
    assert jnp.sum(forward) * (works[1] - works[0]) == pytest.approx(1.0, rel=1e-5)
    seen = (forward > 1e-3) & (backward > 1e-3)
    assert jnp.sum(seen) > 20
    gap = jnp.log(forward / backward_of(backward)) - 1.5 * (works - delta_f)
    assert jnp.max(jnp.abs(jnp.where(seen, gap, 0.0))) < 1e-4


@needs_x64
def test_work_distributions_of_a_protocol_and_its_reverse_obey_crooks_relation():
    crooks_relation(lambda p: p)
    with pytest.raises(AssertionError):
        crooks_relation(lambda p: p[::-1])


def test_moments_of_the_work_distribution_are_those_of_the_generating_function():
    works = jnp.linspace(-8.0, 10.0, 129)[:-1]
    found = work_distribution(SYSTEMS["dragged trap"], standard_normal(1), LINE, times(10), works)
    average = jnp.sum(found * works) * (works[1] - works[0])
    variance = jnp.sum(found * (works - average) ** 2) * (works[1] - works[0])
    expected = work_moments(SYSTEMS["dragged trap"], standard_normal(1), LINE, times(10))
    assert jnp.allclose(jnp.stack([average, variance]), jnp.stack(expected), rtol=1e-3)


@needs_x64
def test_gradient_of_mean_work_with_respect_to_32_knots_is_that_of_finite_differences():
    start = Gaussian([0.0], 1.0)

    def work(knots):
        dynamics = Overdamped(Harmonic(1.0), PiecewiseLinear(0.0, knots, 1.0, 2.0), Isothermal(1.0))
        return mean_work(dynamics, start, LINE, times(64, 2.0))

    knots = jnp.linspace(0.1, 0.8, 32)
    gradient, h = jax.grad(work)(knots), 1e-4
    for i in (0, 1, 17, 31):
        step = jnp.zeros(32).at[i].set(h)
        assert gradient[i] == pytest.approx(float((work(knots + step) - work(knots - step)) / (2 * h)), rel=1e-5)


@needs_x64
def test_entropy_production_of_a_steady_state_is_differentiable_in_the_temperatures():
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

    class Spy(AbstractPotential):
        stiffness: jax.Array

        def __call__(self, x, lam):
            traces.append(1)
            return 0.5 * self.stiffness * jnp.sum((x - lam) ** 2)

    def run(stiffness):
        dynamics = Overdamped(Spy(jnp.array(stiffness)), Ramp(0.0, stiffness), Isothermal(stiffness))
        start = Gaussian([0.0], 1 / stiffness)
        evolve(dynamics, start, LINE, times(3))
        energetics(dynamics, start, LINE, times(3))
        steady_state(dynamics, LINE)

    run(1.0)
    first = len(traces)
    run(1.2)
    assert len(traces) == first


def test_density_on_a_grid_is_a_distribution(key):
    exact = Gaussian([0.3], 0.8)
    grid = Grid(-7.0, 8.0, 200)
    found = GridDensity(grid, jnp.exp(jax.vmap(exact.log_prob)(grid.centres)))
    for x in (jnp.array([0.317]), jnp.array([-2.9]), jnp.array([7.99]), jnp.array([-6.999])):
        # Cubics reproduce the parabola ln p up to rounding, which differences divide by the spacing.
        assert found.log_prob(x) == pytest.approx(float(exact.log_prob(x)), rel=rounding(steps=100), abs=rounding(steps=100))
        assert found.score(x)[0] == pytest.approx(float(exact.score(x)[0]), rel=rounding(steps=1000), abs=rounding(steps=1000))
    assert found.log_prob(jnp.array([8.1])) == -jnp.inf
    assert found.entropy() == pytest.approx(float(exact.entropy()), rel=1e-5)
    assert found.kl(standard_normal(1)) == pytest.approx(0.5 * (0.8 + 0.09 - 1 - np.log(0.8)), rel=1e-4)
    xs = found.sample(20_000, key=key)
    assert xs.shape == (20_000, 1)
    assert_estimate(mean(xs[:, 0]), 0.3)
    # The system's entropy along trajectories: its mean is the entropy.
    assert_estimate(mean(-jax.vmap(found.log_prob)(xs)), exact.entropy())


def test_density_on_a_plane_or_a_ring_is_interpolated(key):
    exact = Gaussian([0.3, -0.2], [[0.8, 0.3], [0.3, 0.5]])
    grid = Grid([-5.0, -4.5], [5.5, 4.0], (60, 50))
    found = GridDensity(grid, jnp.exp(jax.vmap(exact.log_prob)(grid.centres.reshape(-1, 2))).reshape(grid.cells))
    x = jnp.array([1.234, -0.567])
    assert found.log_prob(x) == pytest.approx(float(exact.log_prob(x)), rel=rounding(steps=100))
    assert jnp.allclose(found.score(x), exact.score(x), rtol=rounding(steps=1000))
    assert jnp.allclose(jnp.mean(found.sample(4000, key=key), axis=0), exact.mean, atol=0.1)
    ring = Grid(0.0, 2 * np.pi, 100, "periodic")
    found = GridDensity(ring, jnp.exp(jnp.cos(ring.lines[0])) / 7.95)
    for x in (0.001, 6.28, 6.29, -3.0):
        assert found.log_prob(jnp.array([x])) == pytest.approx(np.cos(x) - np.log(7.95), abs=2e-4)


def test_proposed_grid_holds_the_equilibria_at_all_controls():
    grid = propose_grid(Harmonic(2.0), [0.0, 3.0], beta=0.5)
    assert grid.cells == (1000,)
    assert -11.5 < grid.low[0] < -9.0
    assert 12.0 < grid.high[0] < 14.5
    assert propose_grid(COUPLED, [0.0], dim=2).cells == (128, 128)


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


def test_grids_that_cut_off_probability_say_how_much():
    dynamics = SYSTEMS["dragged trap"]
    with refused("`grid` must hold the initial density, got 0.0227 of its probability outside."):
        evolve(dynamics, standard_normal(1), Grid(-2.0, 6.0, 400), times(3))
    with refused('of its probability in the outermost cells (for real walls take boundary="wall").'):
        mean_work(Overdamped(Harmonic(1.0), Ramp(0.0, 5.0, 5.0)), standard_normal(1), Grid(-6.0, 6.0, 100), times(20, 5.0))
    with refused("`grid` must hold the whole density, got 0.0"):
        steady_state(dynamics, Grid(-8.0, 0.5, 100))
    with refused("`grid` must resolve the initial density, which must be normalised, got a sum over the cells of 1 + 0.5."):
        evolve(dynamics, lambda x: standard_normal(1).log_prob(x) + jnp.log(1.5), LINE, times(3))
    assert evolve(dynamics, standard_normal(1), Grid(-2.0, 6.0, 400), times(3), tolerance=0.1).outside == pytest.approx(0.02275, rel=1e-3)


def test_bad_input_is_refused():
    trap, start = SYSTEMS["dragged trap"], standard_normal(1)
    with refused("`high` must be above `low`, got [0.]."):
        Grid(1.0, 0.0, 10)
    with refused("`cells` must be at least 4, one number or 2, got (10, 2)."):
        Grid([0.0, 0.0], [1.0, 1.0], (10, 2))
    with refused("`boundary` must be one of reflecting, wall, periodic, open, common to all axes or one each, got closed."):
        Grid(0.0, 1.0, 10, "closed")
    with refused("`density0` must have the shape of the cells, (120,), got shape (3,)."):
        evolve(trap, jnp.ones(3), LINE, times(3))
    with refused("`density0` must be finite and not negative, got -0.05882"):
        evolve(trap, -jnp.ones(120) / 17.0, LINE, times(3))
    with refused("`ts` must increase strictly"):
        evolve(trap, start, LINE, jnp.array([0.0, 1.0, 0.5]))
    with refused("`noise` must be positive: without it no density is smooth enough for a grid, got [0. 0.]."):
        evolve(ProbabilityFlow(OrnsteinUhlenbeck(), lambda t, x: -x), start, LINE, times(3))
    with refused("`dynamics` must have a potential, a protocol and a bath, for work and heat, got OrnsteinUhlenbeck."):
        mean_work(OrnsteinUhlenbeck(), start, LINE, times(3))
    with refused("`potential` must be the same at both ends of a periodic axis (a constant force belongs into `nonconservative`)"):
        steady_state(trap, Grid(0.0, 1.0, 10, "periodic"))
    with refused("`potential` must be finite everywhere on the grid"):
        steady_state(Overdamped(lambda x, lam: -jnp.log(jnp.sum(x)), Constant(0.0)), LINE)
    with refused("`grid` must have no open end for a steady state, got ('open',)."):
        steady_state(trap, Grid(0.0, 1.0, 10, "open"))
    with refused("`quantity` must be one of work, reduced work, got heat."):
        work_moments(trap, start, LINE, times(3), quantity="heat")
    with refused("`bath` must return one beta for all axes, for the reduced work, got shape (2,)."):
        exponential_work(TORUS, lambda x: 0.0, Grid([0.0, 0.0], [6.0, 6.0], 8), times(3))
    with refused("`works` must cover the distribution of the work"):
        work_distribution(trap, start, LINE, times(10), jnp.linspace(-1.0, 1.0, 32))
    with refused("`works` must be equally spaced and increase"):
        work_distribution(trap, start, LINE, times(10), jnp.linspace(1.0, 5.0, 32) ** 2)
    with refused("`exponent` must be zero for dynamics without a potential, got 1.0."):
        feynman_kac(OrnsteinUhlenbeck(), LINE, times(3), exponent=1.0)


def test_quartic_mean_energy_relaxes_to_the_equilibrium_one():
    dynamics = Overdamped(Polynomial([0.0, 0.3, -1.0, 0.0, 0.5]), Constant(0.0), Isothermal(2.0))
    grid = Grid(-4.0, 4.0, 120)
    found = evolve(dynamics, Gaussian([1.0], 0.1), grid, times(40, 40.0))
    late = thermodynamics(dynamics, found.densities[-1], grid, 40.0)
    settled = thermodynamics(dynamics, steady_state(dynamics, grid), grid, 0.0)
    assert late.energy == pytest.approx(float(settled.energy), rel=1e-4)
    assert late.entropy == pytest.approx(float(settled.entropy), rel=1e-4)
