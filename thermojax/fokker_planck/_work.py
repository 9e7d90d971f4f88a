"""Work, heat and entropies of a driven system, their distribution, and the backward equation behind them."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, cast, Scalar
from thermojax._check import check_times, ensure, require
from thermojax.dynamics import AbstractDynamics, Overdamped
from thermojax.fokker_planck._evolve import check_dynamics, check_edge, clock, compare, edge_probability, prepare, readable, sparing, Start
from thermojax.fokker_planck._generator import betas, energies, fluxes, generator, propagate, relax, splitting
from thermojax.fokker_planck._grid import Grid, safe_log

QUANTITIES = ("work", "reduced work")


class Energetics(NamedTuple):
    r"""Mean energies and entropies of a driven process; `work` is the change of the mean energy and `heat`, to rounding."""

    work: Scalar
    r"""Mean work done on the system, $\langle W\rangle$."""
    heat: Scalar
    r"""Mean heat dissipated into the medium, $\langle Q\rangle$."""
    reduced_work: Scalar | None
    r"""Mean reduced work $\langle Y\rangle$; None between several baths, where it has no meaning."""
    medium_entropy: Scalar
    r"""Entropy gained by the medium, $\langle\Delta s_m\rangle$: heat times $\beta$, bath by bath."""
    system_entropy: Scalar
    r"""Entropy gained by the system, $\langle\Delta s\rangle$."""
    entropy_production: Scalar
    r"""Total entropy production $\langle\Delta s_\text{tot}\rangle \ge 0$: the sum of the two."""
    density: Array
    """The density at the end, shape ``(*cells,)``."""


def energetics(dynamics: AbstractDynamics, density0: Start, grid: Grid, ts: ArrayLike, *, tolerance: ArrayLike | None = None) -> Energetics:
    r"""Mean work, heat and entropies of a driven process that starts from `density0`.

    One step from each of `ts` to the next, with the discretisation of `functionals`: the control switches at the old density, the
    density moves under fixed coefficients, the control switches at the new one. The result converges at second order in the step.

    Args:
        dynamics: What moves; it must have a potential.
        density0: The initial density: a distribution, a callable log-density, or values at the middles of the cells.
        grid: The cells; no end may be open.
        ts: Times of the steps.
        tolerance: As for `evolve`.

    Raises:
        ValueError: if the grid does not hold the density or is open, or the dynamics have no potential.
    """
    check_driven(dynamics, grid)
    dynamics, density, ts, tolerance, _ = prepare(dynamics, density0, grid, ts, tolerance)
    found, edge = _energetics(dynamics, density, grid, ts)
    return found._replace(work=check_edge(found.work, edge, tolerance))


def mean_work(dynamics: AbstractDynamics, density0: Start, grid: Grid, ts: ArrayLike, *, tolerance: ArrayLike | None = None) -> Scalar:
    r"""The mean work $\langle W\rangle$ of a driven process: `energetics(...).work`, an objective without noise."""
    return energetics(dynamics, density0, grid, ts, tolerance=tolerance).work


@eqx.filter_jit
def _energetics(dynamics, density, grid, ts):
    single = jnp.ndim(dynamics.bath(ts[0])) == 0

    def advance(carry, times):
        p, totals = carry
        t0, t1 = times
        t = clock(t0, t1)
        v0, v, v1 = (energies(dynamics, grid, s) for s in (t0, t, t1))
        beta0, beta, beta1 = (betas(dynamics, grid, s) for s in (t0, t, t1))
        work, reduced = grid.integrate(p * (v - v0)), grid.integrate(p * (beta[0] * v - beta0[0] * v0))
        heat, medium = jnp.zeros_like(work), jnp.zeros_like(work)
        hops = generator(dynamics, grid, t)
        for axis, fraction in splitting(grid.dim):
            q, mean = relax(hops[axis], grid, axis, p, fraction * (t1 - t0))
            push = hops[axis].push
            pushed = 0.0 if push is None else grid.volume * fraction * (t1 - t0) * jnp.sum(fluxes(hops[axis], mean) * push)
            given = grid.integrate((p - q) * v) + pushed
            work, reduced = work + pushed, reduced + beta[0] * pushed
            heat, medium, p = heat + given, medium + beta[axis] * given, q
        work, reduced = work + grid.integrate(p * (v1 - v)), reduced + grid.integrate(p * (beta1[0] * v1 - beta[0] * v))
        return (p, jax.tree.map(jnp.add, totals, (work, heat, reduced, medium))), edge_probability(p, grid)

    zero = jnp.zeros((), density.dtype)
    (p, (work, heat, reduced, medium)), edge = lax.scan(sparing(advance), (density, (zero,) * 4), (ts[:-1], ts[1:]))
    gained = grid.integrate(density * safe_log(density)) - grid.integrate(p * safe_log(p))
    return Energetics(work, heat, reduced if single else None, medium, gained, medium + gained, p), edge


def generating_function(
    dynamics: AbstractDynamics,
    density0: Start,
    grid: Grid,
    ts: ArrayLike,
    exponents: ArrayLike,
    *,
    quantity: str = "work",
    tolerance: ArrayLike | None = None,
) -> Array:
    r"""The generating function $\langle e^{sA}\rangle$ of the work or the reduced work, for real or complex exponents $s$.

    The tilted evolution weighs the density by $e^{s\,\Delta A}$ at every switch, and every hop by the exponential of the work that
    a nonconservative force does on it. From equilibrium, $\langle e^{-Y}\rangle = Z_\tau/Z_0$ holds to rounding at *any* step and spacing,
    with the sums over the cells for $Z$.

    Args:
        dynamics: What moves; it must have a potential.
        density0: The initial density, as for `energetics`.
        grid: The cells; no end may be open.
        ts: Times of the steps.
        exponents: $s$, of any shape.
        quantity: ``"work"`` for $W$ or ``"reduced work"`` for $Y$.
        tolerance: As for `evolve`.

    Returns:
        The averages, in the shape of `exponents`.
    """
    check_driven(dynamics, grid, quantity)
    dynamics, density, ts, _, _ = prepare(dynamics, density0, grid, ts, tolerance)
    exponents = jnp.asarray(exponents)
    if not jnp.iscomplexobj(exponents):
        exponents = exponents.astype(density.dtype)
    return _generating_function(dynamics, density, grid, ts, exponents, quantity)


def exponential_work(
    dynamics: AbstractDynamics, density0: Start, grid: Grid, ts: ArrayLike, *, tolerance: ArrayLike | None = None
) -> Scalar:
    r"""The exponential average $\langle e^{-Y}\rangle$ of the reduced work: $Z_\tau/Z_0$ from equilibrium, whatever the step."""
    return generating_function(dynamics, density0, grid, ts, -1.0, quantity="reduced work", tolerance=tolerance)


def work_moments(
    dynamics: AbstractDynamics, density0: Start, grid: Grid, ts: ArrayLike, *, quantity: str = "work", tolerance: ArrayLike | None = None
) -> tuple[Scalar, Scalar]:
    r"""Mean and variance of the work or the reduced work: the first derivatives of $\ln\langle e^{sA}\rangle$ at $s = 0$."""
    check_driven(dynamics, grid, quantity)
    dynamics, density, ts, _, _ = prepare(dynamics, density0, grid, ts, tolerance)
    return _moments(dynamics, density, grid, ts, quantity)


def work_distribution(
    dynamics: AbstractDynamics,
    density0: Start,
    grid: Grid,
    ts: ArrayLike,
    works: ArrayLike,
    *,
    quantity: str = "work",
    tolerance: ArrayLike | None = None,
) -> Float[Array, " work"]:
    r"""The probability density of the work or the reduced work at `works`, by Fourier transform of its characteristic function.

    Exact for the discrete steps and cells, and it integrates to one over `works` by construction. A density with a sharp edge, such as that
    of one sudden switch, rings.

    Args:
        dynamics: What moves; it must have a potential.
        density0: The initial density, as for `energetics`.
        grid: The cells; no end may be open.
        ts: Times of the steps.
        works: Equally spaced values that cover the distribution, at least eight.
        quantity: ``"work"`` for $W$ or ``"reduced work"`` for $Y$.
        tolerance: As for `evolve`, and the largest density times spacing at the ends of `works`.

    Raises:
        ValueError: if `works` are not equally spaced or do not cover the distribution.
    """
    check_driven(dynamics, grid, quantity)
    dynamics, density, ts, tolerance, _ = prepare(dynamics, density0, grid, ts, tolerance)
    works = as_float(works)
    require(works.ndim == 1 and works.shape[0] >= 8, "works", "be a vector of at least eight values", f"shape {works.shape}")
    steps = jnp.diff(works)
    even = (steps > 0) & (jnp.abs(steps - steps[0]) < 1e-3 * jnp.abs(steps[0]))
    works = ensure(works, even, "works", "be equally spaced and increase", works)
    found, ends, moved = _distribution(dynamics, density, grid, ts, works, quantity)
    rule = f"cover the distribution of the {quantity}"
    got = readable("{:.3g} of the probability in a cell at the ends", ends)
    found = ensure(found, compare(ends, lambda q: q <= tolerance), "works", rule, got)
    got = readable("a mean that is {:.3g} of their range off, since a part is wrapped around", moved)
    return ensure(found, compare(moved, lambda q: abs(q) <= 1e-3), "works", rule, got)


def feynman_kac(
    dynamics: Any,
    grid: Grid,
    ts: ArrayLike,
    *,
    exponent: ArrayLike = 0.0,
    quantity: str = "work",
    terminal: ArrayLike | None = None,
) -> Float[Array, "time *cells"]:
    r"""The backward equation: $u(x, t) = E[e^{s A_t}\,g(x_\tau) \mid x_t = x]$, with $A_t$ the work from $t$ to the end.

    Each step is the transpose of the forward one, so $\int p\,u\,dx$ with the density of the tilted evolution is the same at all times to
    rounding. With $s = 0$ it is the mean of $g$; with open ends and $g = 1$, the probability to be still there.

    Args:
        dynamics: What moves.
        grid: The cells.
        ts: Times of the steps, increasing.
        exponent: $s$, real; zero for the mean of `terminal` alone, which needs no potential.
        quantity: ``"work"`` for $W$ or ``"reduced work"`` for $Y$.
        terminal: $g$ in every cell; one if omitted.

    Returns:
        $u$ at `ts`, shape ``(time, *cells)``.
    """
    dynamics, ts = cast(dynamics, grid.low.dtype), check_times(ts, grid.low.dtype)
    check_dynamics(dynamics, grid, ts)
    if isinstance(dynamics, Overdamped):
        _check_quantity(quantity, dynamics, grid)
    terminal = jnp.ones(grid.cells, grid.low.dtype) if terminal is None else as_float(terminal)
    require(terminal.shape == grid.cells, "terminal", f"have the shape of the cells, {grid.cells}", f"shape {terminal.shape}")
    exponent = as_float(exponent).astype(grid.low.dtype)
    require(exponent.ndim == 0, "exponent", "be one number", f"shape {exponent.shape}")
    free = not isinstance(dynamics, Overdamped)
    exponent = ensure(exponent, exponent == 0.0, "exponent", "be zero for dynamics without a potential", exponent) if free else exponent
    return _backward(dynamics, grid, ts, exponent, quantity, terminal)


def expected_work(dynamics: AbstractDynamics, grid: Grid, ts: ArrayLike, *, quantity: str = "work") -> Float[Array, "time *cells"]:
    r"""The mean work from $t$ to the end that is still to be done on a particle at $x$, $E[A_t \mid x_t = x]$, shape ``(time, *cells)``."""
    check_driven(dynamics, grid, quantity)
    dynamics, ts = cast(dynamics, grid.low.dtype), check_times(ts, grid.low.dtype)
    check_dynamics(dynamics, grid, ts)
    return _expected(dynamics, grid, ts, quantity)


@eqx.filter_jit
def _generating_function(dynamics, density, grid, ts, exponents, quantity):
    one = lambda s: _tilted(dynamics, density, grid, ts, s, quantity)
    return jax.vmap(one)(exponents.ravel()).reshape(exponents.shape)


@eqx.filter_jit
def _moments(dynamics, density, grid, ts, quantity):
    logarithm = lambda s: jnp.log(_tilted(dynamics, density, grid, ts, s, quantity))
    one = jnp.ones((), density.dtype)
    slope = lambda s: jax.jvp(logarithm, (s,), (one,))[1]
    return jax.jvp(slope, (jnp.zeros((), density.dtype),), (one,))


@eqx.filter_jit
def _distribution(dynamics, density, grid, ts, works, quantity):
    n, spacing = works.shape[0], works[1] - works[0]
    omegas = 2.0 * jnp.pi / (n * spacing) * jnp.arange(n // 2 + 1, dtype=works.dtype)
    characteristic = jax.vmap(lambda w: _tilted(dynamics, density, grid, ts, lax.complex(0.0 * w, w), quantity))(omegas)
    shift = omegas * works[0]
    found = jnp.fft.irfft(jnp.conj(characteristic) * lax.complex(jnp.cos(shift), jnp.sin(shift)), n) / spacing
    # The exact mean tells whether a part of the distribution has been wrapped around.
    zero, one = jnp.zeros((), density.dtype), jnp.ones((), density.dtype)
    mean = jax.jvp(lambda s: _tilted(dynamics, density, grid, ts, s, quantity), (zero,), (one,))[1]
    ends = jnp.maximum(jnp.abs(found[0]), jnp.abs(found[-1])) * spacing
    return found, ends, (jnp.sum(found * works) * spacing - mean) / (n * spacing)


def _tilted(dynamics, density, grid, ts, s, quantity):
    def advance(p, times):
        t0, t1 = times
        before, after, tilt = _switches(dynamics, grid, t0, t1, s, quantity)
        hops = generator(dynamics, grid, clock(t0, t1))
        return propagate(hops, grid, p * before, t1 - t0, tilt) * after, None

    p, _ = lax.scan(sparing(advance), density.astype(s.dtype), (ts[:-1], ts[1:]))
    return jnp.sum(p) * grid.volume.astype(s.dtype)


@eqx.filter_jit
def _backward(dynamics, grid, ts, s, quantity, terminal):
    driven = isinstance(dynamics, Overdamped)

    def advance(u, times):
        t0, t1 = times
        before, after, tilt = _switches(dynamics, grid, t0, t1, s, quantity) if driven else (1.0, 1.0, None)
        hops = generator(dynamics, grid, clock(t0, t1))
        (u,) = jax.linear_transpose(lambda p: propagate(hops, grid, p, t1 - t0, tilt), u)(u * after)
        return u * before, u * before

    _, earlier = lax.scan(sparing(advance), terminal, (ts[:-1], ts[1:]), reverse=True)
    return jnp.concatenate([earlier, terminal[None]])


@eqx.filter_jit
def _expected(dynamics, grid, ts, quantity):
    one = jnp.ones((), ts.dtype)
    ones = jnp.ones(grid.cells, ts.dtype)
    return jax.jvp(lambda s: _backward(dynamics, grid, ts, s, quantity, ones), (jnp.zeros_like(one),), (one,))[1]


def _switches(dynamics, grid, t0, t1, s, quantity):
    """The weights of the switches before and after a step, and the tilt of its hops."""
    t = clock(t0, t1)
    v0, v, v1 = (energies(dynamics, grid, u) for u in (t0, t, t1))
    tilt = s
    if quantity == "reduced work":
        b0, b, b1 = (dynamics.bath(u) for u in (t0, t, t1))
        v0, v, v1, tilt = b0 * v0, b * v, b1 * v1, s * b.astype(s.dtype)
    return jnp.exp(s * (v - v0).astype(s.dtype)), jnp.exp(s * (v1 - v).astype(s.dtype)), tilt


def check_driven(dynamics: Any, grid: Grid, quantity: str = "work") -> None:
    """Refuse dynamics without energies, and grids that lose them."""
    rule = "have a potential, a protocol and a bath, for work and heat"
    require(isinstance(dynamics, Overdamped), "dynamics", rule, type(dynamics).__name__)
    require("open" not in grid.boundary, "grid", "have no open end for work and heat", grid.boundary)
    _check_quantity(quantity, dynamics, grid)


def _check_quantity(quantity, dynamics, grid):
    require(quantity in QUANTITIES, "quantity", f"be one of {', '.join(QUANTITIES)}", quantity)
    if quantity == "reduced work":
        shape = jax.eval_shape(dynamics.bath, jnp.zeros((), grid.low.dtype)).shape
        require(shape == (), "bath", "return one beta for all axes, for the reduced work", f"shape {shape}")
