"""The density p(x, t), and its currents, entropies and their rates."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, cast, Scalar
from thermojax._check import check_times, ensure, require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Overdamped, Underdamped
from thermojax.ensemble import refine
from thermojax.fokker_planck._generator import energies, fluxes, generator, propagate
from thermojax.fokker_planck._grid import Grid, GridDensity, other_logs, safe_log

Start = AbstractDistribution | Callable[[Array], Array] | ArrayLike


class Evolution(NamedTuple):
    """A density in the course of time."""

    grid: Grid
    """The cells."""
    ts: Float[Array, " time"]
    """The times."""
    densities: Float[Array, "time *cells"]
    """The density at the middles of the cells."""
    outside: Scalar
    """Probability of the initial density that the grid did not hold; the densities start from the rest, made to integrate to one."""
    lost: Float[Array, " time"]
    """Probability that has left through open ends."""
    edge: Float[Array, " time"]
    """Probability in the outermost cells of reflecting axes."""

    def at(self, index: int) -> GridDensity:
        """The density at one of the times, as a distribution."""
        return GridDensity(self.grid, self.densities[index])


class Thermodynamics(NamedTuple):
    r"""Currents and entropies of a density, in nats and nats per unit time; $dS/dt = \pi - \varphi$ to rounding unless an end is open."""

    current: tuple[Array, ...]
    """Probability current along each axis through the upper face of every cell, shape ``(*cells,)`` each."""
    velocity: tuple[Array, ...]
    r"""Local mean velocity $b - D\,\partial\ln p$ at the same faces; zero at faces that nothing passes."""
    entropy_production: Array
    r"""Entropy production rate $\pi \ge 0$."""
    entropy_flux: Array
    r"""Entropy flux $\varphi$ into the medium."""
    entropy_rate: Array
    """Rate of change of the system's entropy by the currents between cells."""
    entropy: Array
    r"""Entropy $-\int p\ln p$ of the system."""
    energy: Array | None
    """Mean energy; None without a potential."""


def evolve(
    dynamics: AbstractDynamics, density0: Start, grid: Grid, ts: ArrayLike, *, substeps: int = 1, tolerance: ArrayLike | None = None
) -> Evolution:
    r"""The density $p(x, t)$ at the times `ts`.

    Args:
        dynamics: What moves: `Overdamped`, or any dynamics with additive noise.
        density0: The initial density: a distribution, a callable log-density, or values at the middles of the cells.
        grid: The cells.
        ts: Times of the output, increasing.
        substeps: Implicit steps from one of `ts` to the next.
        tolerance: Probability that the grid may miss at first, or have in its outermost reflecting cells later; 1e-6 if omitted, or
            what the precision allows.

    Returns:
        The densities at `ts`, shape ``(time, *cells)``, and how much probability the grid missed, lost, and has at its ends.

    Raises:
        ValueError: if the grid does not hold the density, the potential is not periodic on a periodic axis, or there is no noise.
    """
    require(substeps >= 1, "substeps", "be at least 1", substeps)
    dynamics, density, ts, tolerance, outside = prepare(dynamics, density0, grid, ts, tolerance)
    densities, lost, edge = _evolve(dynamics, density, grid, ts, substeps)
    return Evolution(grid, ts, check_edge(densities, edge, tolerance), outside, lost, edge)


@eqx.filter_jit
def _evolve(dynamics, density, grid, ts, substeps):
    def advance(p, times):
        t0, t1 = times
        return propagate(generator(dynamics, grid, clock(t0, t1)), grid, p, t1 - t0), None

    def interval(p, times):
        p, _ = lax.scan(sparing(advance), p, times)
        return p, p

    fine = refine(ts, substeps)
    times = jax.tree.map(lambda a: a.reshape(-1, substeps), (fine[:-1], fine[1:]))
    _, later = lax.scan(interval, density, times)
    densities = jnp.concatenate([density[None], later])
    kept = jnp.sum(densities.reshape(ts.shape[0], -1), axis=1) * grid.volume
    return densities, 1.0 - kept, edge_probability(densities, grid)


def thermodynamics(dynamics: AbstractDynamics, densities: ArrayLike, grid: Grid, ts: ArrayLike) -> Thermodynamics:
    r"""Currents, velocities, entropy production and flux of a density, or of one for each of several times.

    The entropy production is Schnakenberg's sum over the faces, $\pi = \sum J\ln\frac{k_+p_i}{k_-p_{i+1}}$: never negative, and
    $dS/dt = \pi - \varphi$ holds on the grid. All converge at second order in the spacing.

    Args:
        dynamics: What moves.
        densities: Values at the middles of the cells, shape ``(*cells,)`` or ``(time, *cells)``.
        grid: The cells.
        ts: The time or the times at which the coefficients are read.

    Reference:
        J. Schnakenberg, Rev. Mod. Phys. 48, 571 (1976).
    """
    densities, ts = as_float(densities), as_float(ts)
    require(densities.shape == (*ts.shape, *grid.cells), "densities", f"have shape {(*ts.shape, *grid.cells)}", f"shape {densities.shape}")
    dynamics = cast(dynamics, grid.low.dtype)
    check_dynamics(dynamics, grid, jnp.ravel(ts))
    return _thermodynamics(dynamics, densities, grid, ts)


@eqx.filter_jit
def _thermodynamics(dynamics, densities, grid, ts):
    at_one_time = ft.partial(_rates, dynamics, grid)
    return at_one_time(densities, ts) if ts.ndim == 0 else jax.vmap(at_one_time)(densities, ts)


def _rates(dynamics, grid, p, t):
    logs = safe_log(p)
    current, velocity = [], []
    production = flux = jnp.zeros((), p.dtype)
    for axis, hops in enumerate(generator(dynamics, grid, t)):
        dx, open_end = grid.spacing[axis], grid.boundary[axis] == "open"
        moved, logs_moved = jnp.moveaxis(p, axis, -1), jnp.moveaxis(logs, axis, -1)
        passed = fluxes(hops, moved)
        inner = passed.at[..., -1].set(0.0) if open_end else passed
        # ln(k+ p_i / k- p_{i+1}): what drives the current through the face.
        drive = hops.affinity + logs_moved - jnp.roll(logs_moved, -1, axis=-1)
        if grid.boundary[axis] != "periodic":
            drive = drive.at[..., -1].set(0.0)
        production = production + grid.volume * jnp.sum(inner * drive)
        flux = flux + grid.volume * jnp.sum(inner * hops.affinity)
        out = passed.at[..., -1].set(hops.up[..., -1] * moved[..., -1]) if open_end else passed
        current.append(jnp.moveaxis(dx * out, -1, axis))
        velocity.append(jnp.moveaxis(hops.diffusion / dx * drive, -1, axis))
    entropy = -grid.integrate(p * logs)
    mean_energy = grid.integrate(p * energies(dynamics, grid, t)) if isinstance(dynamics, Overdamped) else None
    return Thermodynamics(tuple(current), tuple(velocity), production, flux, production - flux, entropy, mean_energy)


def clock(t0: Array, t1: Array) -> Array:
    """The middle of a step, where its coefficients are frozen."""
    return t0 + 0.5 * (t1 - t0)


def sparing(advance: Callable) -> Callable:
    """`advance` with only its carry stored for the backward pass."""
    return jax.checkpoint(advance, prevent_cse=False)


def prepare(dynamics: Any, density0: Any, grid: Grid, ts: Any, tolerance: Any) -> tuple[Any, Array, Array, Any, Array]:
    """Everything checked and in one precision; the density made to integrate to one, and how much of it was outside."""
    dtype = grid.low.dtype
    dynamics, ts = cast(dynamics, dtype), check_times(ts, dtype)
    check_dynamics(dynamics, grid, ts)
    tolerance = allowed(tolerance, dtype)
    if not (isinstance(density0, AbstractDistribution) or callable(density0)):
        density0 = as_float(density0)
        require(density0.shape == grid.cells, "density0", f"have the shape of the cells, {grid.cells}", f"shape {density0.shape}")
    density, outside, least, edge = _discretise(cast(density0, dtype), grid)
    density = ensure(density, compare(least, lambda p: p >= -tolerance), "density0", "be finite and not negative", least)
    got = readable("{:.3g} of its probability outside", outside)
    density = ensure(density, compare(outside, lambda q: q <= tolerance), "grid", "hold the initial density", got)
    rule, got = "resolve the initial density, which must be normalised", readable("a sum over the cells of 1 + {:.3g}", -outside)
    density = ensure(density, compare(outside, lambda q: q >= -tolerance), "grid", rule, got)
    return dynamics, check_edge(density, edge, tolerance), ts, tolerance, outside


@eqx.filter_jit
def _discretise(density0, grid):
    density = density0 if isinstance(density0, jax.Array) else jnp.exp(other_logs(density0, grid))
    total = grid.integrate(density)
    return density / total, 1.0 - total, jnp.min(density), edge_probability(density, grid)


def check_dynamics(dynamics: Any, grid: Grid, ts: Array) -> None:
    """Refuse dynamics that have no density on this grid at the first or the last of `ts`."""
    rule = "be first order in time with additive noise, dx = b(t, x) dt + sigma(t) dW"
    require(isinstance(dynamics, AbstractDynamics) and not isinstance(dynamics, Underdamped), "dynamics", rule, type(dynamics).__name__)
    noise, finite, mismatch = _inspect(dynamics, grid, ts)
    if not any(isinstance(a, Tracer) for a in (noise, finite, mismatch)):
        noise, finite, mismatch = (np.asarray(a).ravel() for a in (noise, finite, mismatch))
        ensure(noise, noise > 0, "noise", "be positive: without it no density is smooth enough for a grid", noise)
        name = "potential" if isinstance(dynamics, Overdamped) else "drift"
        ensure(finite, finite, name, "be finite everywhere on the grid (hard walls are the grid's own)", "an infinite or undefined one")
        rule = "be the same at both ends of a periodic axis (a constant force belongs into `nonconservative`)"
        ensure(mismatch, mismatch < 1e3 * np.finfo(mismatch.dtype).eps, name, rule, f"a relative difference of {mismatch.max():.3g}")


@eqx.filter_jit
def _inspect(dynamics, grid, ts):
    def at(t):
        driven = isinstance(dynamics, Overdamped)
        rough = energies(dynamics, grid, t) if driven else jax.vmap(lambda x: dynamics.drift(t, x))(grid.centres.reshape(-1, grid.dim))
        return jnp.ravel(jnp.asarray(dynamics.noise(t))), jnp.all(jnp.isfinite(rough)), _mismatch(dynamics, grid, t)

    return jax.vmap(at)(jnp.stack([ts[0], ts[-1]]))


def _mismatch(dynamics, grid, t):
    """How much energies, or drifts, differ between the two ends of periodic axes."""
    worst = jnp.zeros((), grid.low.dtype)
    driven = isinstance(dynamics, Overdamped)
    value = (lambda x: dynamics.energy(t, x)[None]) if driven else lambda x: dynamics.drift(t, x)
    for axis, kind in enumerate(grid.boundary):
        if kind == "periodic":
            line = jnp.moveaxis(grid.centres, axis, 0)[0].reshape(-1, grid.dim)
            lower, upper = (jax.vmap(value)(line.at[:, axis].set(end)) for end in (grid.low[axis], grid.high[axis]))
            worst = jnp.maximum(worst, jnp.max(jnp.abs(upper - lower)) / (1.0 + jnp.max(jnp.abs(lower))))
    return worst


def edge_probability(densities: Array, grid: Grid) -> Array:
    """Probability in the outermost cells of the reflecting axes, for a density or for several."""
    total = jnp.zeros(densities.shape[: densities.ndim - grid.dim], densities.dtype)
    for axis, kind in enumerate(grid.boundary):
        if kind == "reflecting":
            line = jnp.moveaxis(densities, axis - grid.dim, -1)
            ends = line[..., 0] + line[..., -1]
            total = total + grid.volume * (ends if grid.dim == 1 else jnp.sum(ends, axis=-1))
    return total


def check_edge(value: Any, edge: Any, tolerance: Any) -> Any:
    """Return `value` unless a density leans on the ends of a reflecting axis, with the probability `edge` in its outermost cells."""
    most = np.max(edge) if not isinstance(edge, Tracer) else jnp.max(edge)
    got = readable('{:.3g} of its probability in the outermost cells (for real walls take boundary="wall")', most)
    return ensure(value, compare(most, lambda q: q <= tolerance), "grid", "hold the whole density", got)


def allowed(tolerance: Any, dtype: Any) -> Any:
    """How much probability the grid may miss: the caller's number, or what the precision allows."""
    return max(1e-6, 1e3 * float(jnp.finfo(dtype).eps)) if tolerance is None else tolerance


def compare(value: Any, good: Callable) -> Any:
    """`good` of a number: at once, without compiling, if it is known."""
    return good(value if isinstance(value, Tracer) else np.asarray(value))


def readable(text: str, value: Any) -> str:
    """`text` with a number in it, if the number is known."""
    return "a traced value" if isinstance(value, Tracer) else text.format(float(value))
