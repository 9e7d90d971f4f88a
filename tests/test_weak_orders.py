"""Weak orders, from the chain of each stepper on a grid: no noise hides them."""

import diffrax
import jax.numpy as jnp
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding

from thermojax import accumulate, Diffrax, EulerMaruyama, mean, Overdamped
from thermojax.fokker_planck import expected_sum, Grid, mean_work
from thermojax.functionals import log_ratio, work, work_stratonovich
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp

# A trap without a centre of symmetry: that of `speed.quartic_trap` with a slope.
TRAP = Overdamped(lambda x, lam: 0.25 * jnp.sum((x - lam) ** 4) + 0.3 * jnp.sum(x), Ramp(0.0, 1.0))
# The origin is the middle of a cell.
GRID = Grid(-5.05, 5.95, 110)
HEUN = Diffrax(diffrax.Heun())


def both(step):
    """Work, and the gain of the square of the position."""
    return jnp.stack([work(step), jnp.sum(step.x1**2 - step.x0**2)])


def equilibrium_mean(means, grid=GRID):
    """The mean over the equilibrium of the first control."""
    x = grid.lines[0]
    density = jnp.exp(-0.25 * x**4 - 0.3 * x)
    return jnp.tensordot(density / jnp.sum(density), means, 1)


def chain_means(stepper, steps, functional=both):
    """The means of the chain of `stepper` with equal `steps`."""
    return equilibrium_mean(expected_sum(functional, TRAP, GRID, jnp.linspace(0.0, 1.0, steps + 1), stepper=stepper, nodes=12))


@pytest.fixture(scope="module")
def limit():
    """The means in continuous time: two of Heun's chains, extrapolated."""
    return (4 * chain_means(HEUN, 320) - chain_means(HEUN, 160)) / 3


SIZES = [20, 40, 80]


@needs_x64
@pytest.mark.parametrize(
    ("stepper", "order"),
    [
        (EulerMaruyama(), 1),
        (HEUN, 2),
        # Two normals for each coordinate; strong order 3/2.
        pytest.param(Diffrax(diffrax.ShARK()), 2, marks=pytest.mark.slow),
        pytest.param(Diffrax(diffrax.SRA1()), 2, marks=pytest.mark.slow),
    ],
    ids=["Euler", "Heun", "ShARK", "SRA1"],
)
@pytest.mark.slow
def test_weak_order_of_work_and_of_the_position(limit, stepper, order):
    errors = jnp.abs(jnp.stack([chain_means(stepper, n) for n in SIZES]) - limit[None])
    for column in errors.T:
        assert_order(column, [1 / n for n in SIZES], order, band=0.25)
    with pytest.raises(AssertionError):
        assert_order(errors[:, 0], [1 / n for n in SIZES], 3 - order, band=0.25)


@needs_x64
@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Midpoint(), diffrax.Ralston()])
def test_some_solvers_of_second_order_have_the_first_with_noise(limit, solver):
    sizes = [80, 160]
    errors = jnp.abs(jnp.stack([chain_means(Diffrax(solver), n) for n in sizes]) - limit[None])
    for column in errors.T:
        assert_order(column, [1 / n for n in sizes], 1, band=0.25)


@pytest.mark.slow
@needs_x64
def test_work_at_the_midpoint_of_the_chord_spoils_the_order(limit):
    """The mean of a function at the mean of two places is not its mean at a place between: Jensen's gap is of first order."""
    errors = [abs(chain_means(HEUN, n, work_stratonovich) - limit[0]) for n in SIZES]
    assert_order(errors, [1 / n for n in SIZES], 1, band=0.25)


@pytest.mark.slow
@needs_x64
def test_extrapolation_raises_the_order(limit):
    sizes = [40, 80, 160]
    values = {n: chain_means(EulerMaruyama(), n) for n in [20, *sizes]}
    errors = jnp.abs(jnp.stack([2 * values[n] - values[n // 2] for n in sizes]) - limit[None])
    for column in errors.T:
        assert_order(column, [1 / n for n in sizes], 2, band=0.4)
    assert jnp.all(errors[-1] < 0.1 * jnp.abs(values[160] - limit))


@needs_x64
@pytest.mark.slow
def test_the_limit_of_the_chains_is_the_fokker_planck_equation(limit):
    """Its work on two grids, extrapolated in the spacing, with steps so short that their error is below it."""

    def on(cells):
        grid = Grid(-4.5, 5.5, cells)
        x = grid.lines[0]
        density = jnp.exp(-0.25 * x**4 - 0.3 * x)
        return mean_work(TRAP, density / grid.integrate(density), grid, jnp.linspace(0.0, 1.0, 801))

    assert abs((4 * on(400) - on(200)) / 3 - limit[0]) < 3e-6


def linear_chain(steps, stiffness, start):
    """Mean square of a particle in a trap at rest that Euler's steps move, and its mean work while the trap moves at unit speed."""
    h, first, variance, total = 1 / steps, start, 0.0, 0.0
    for k in range(steps):
        lam0, lam, lam1 = k * h, (k + 0.5) * h, (k + 1) * h
        switch = lambda x, a, b: 0.5 * stiffness * ((x - b) ** 2 - (x - a) ** 2)
        total += switch(first, lam0, lam)
        first = first - stiffness * (first - lam) * h
        variance = (1 - stiffness * h) ** 2 * variance + 2 * h
        total += switch(first, lam, lam1)
    return total, first**2 + variance - start**2


def test_the_chain_of_a_linear_force_is_exact():
    dynamics, grid = Overdamped(Harmonic(2.0), Ramp(0.0, 1.0)), Grid(-7.05, 7.95, 150)
    means = expected_sum(both, dynamics, grid, jnp.linspace(0.0, 1.0, 8))
    place = int(jnp.argmin(jnp.abs(grid.lines[0] - 0.5)))
    start = float(grid.lines[0][place])
    for mean_of_chain, exact in zip(means[place], linear_chain(7, 2.0, start), strict=True):
        assert abs(mean_of_chain - exact) < rounding(50.0)
    assert abs(means[place, 0] - linear_chain(7, 2.1, start)[0]) > 0.005


@pytest.mark.slow
@needs_x64
def test_the_chain_is_that_of_a_simulation(key):
    # Steps that are much longer make this chain explode now and then, and then no mean is seen.
    ts = jnp.linspace(0.0, 1.0, 13)
    functional = lambda step: jnp.stack([log_ratio(step), jnp.sum(step.x1**2 - step.x0**2)])
    exact = expected_sum(functional, TRAP, GRID, ts)
    origin = int(jnp.argmin(jnp.abs(GRID.lines[0])))
    _, sums = accumulate(functional, TRAP, jnp.zeros((40_000, 1)), ts, key=key)
    for values, target in zip(sums.T, exact[origin], strict=True):
        assert_estimate(mean(values), target)
    # Continuous time is not what the simulation scatters around.
    with pytest.raises(AssertionError):
        assert_estimate(mean(sums[:, 1]), expected_sum(functional, TRAP, GRID, jnp.linspace(0.0, 1.0, 161))[origin, 1])


def test_the_last_state_may_count():
    free = Overdamped(lambda x, lam: 0.0 * jnp.sum(x * lam), Ramp(0.0, 1.0))
    nothing = lambda step: jnp.zeros_like(step.t0)
    grid = Grid(-20.0, 20.0, 160)
    means = expected_sum(nothing, free, grid, jnp.linspace(0.0, 1.0, 4), terminal=grid.lines[0] ** 4)
    # Fourth moment of a Gaussian of variance 2 around a.
    a = grid.lines[0][80]
    assert abs(means[80] - (a**4 + 6 * a**2 * 2 + 3 * 2**2)) < rounding(1e4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"grid": Grid([-1.0, -1.0], 1.0 * jnp.ones(2), 8)}, "`grid` must have one dimension, got 2."),
        ({"grid": Grid(-1.0, 1.0, 4)}, "`grid` must have at least 8 cells, got 4."),
        ({"terminal": jnp.zeros(5)}, r"`terminal` must have the shape \(110,\), of the cells and the functional, got shape \(5,\)."),
        ({"nodes": 0}, "`nodes` must be at least 1, got 0."),
    ],
)
def test_chains_that_have_no_meaning_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        expected_sum(work, TRAP, **({"grid": GRID, "ts": jnp.linspace(0.0, 1.0, 3)} | change))
