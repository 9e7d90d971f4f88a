"""Cells that cover a box in one or two dimensions, and densities that live on them."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.distributions import AbstractDistribution, grid_equilibrium
from thermojax.potentials import Potential

BOUNDARIES = ("reflecting", "wall", "periodic", "open")


class Grid(eqx.Module):
    r"""Equal cells in a box of one or two dimensions.

    What happens at the ends of each axis:

    - ``"reflecting"``: nothing passes. The box is meant to hold the whole density, and a density that reaches its ends is refused.
    - ``"wall"``: nothing passes either, and the walls are real: the density may lean on them.
    - ``"periodic"``: the ends are one point.
    - ``"open"``: probability leaves and does not return.
    """

    low: Float[Array, " dim"]
    """The lower end of each axis."""
    high: Float[Array, " dim"]
    """The upper end of each axis."""
    cells: tuple[int, ...] = eqx.field(static=True)
    """How many cells each axis has."""
    boundary: tuple[str, ...] = eqx.field(static=True)
    """What happens at the ends of each axis."""

    def __init__(
        self,
        low: ArrayLike | Sequence[float],
        high: ArrayLike | Sequence[float],
        cells: int | Sequence[int],
        boundary: str | Sequence[str] = "reflecting",
    ):
        low, high = (jnp.atleast_1d(jnp.asarray(end, float)) for end in (low, high))
        dim = low.shape[0]
        require(low.ndim == 1 and dim in (1, 2), "low", "be a number, or a vector of two", f"shape {low.shape}")
        require(high.shape == low.shape, "high", f"have the shape of `low`, {low.shape}", f"shape {high.shape}")
        xp = library_of(high - low)
        self.low, self.high = low, ensure(high, xp.isfinite(high - low) & (xp.asarray(high - low) > 0), "high", "be above `low`", high)
        self.cells = (int(cells),) * dim if isinstance(cells, int | np.integer) else tuple(int(n) for n in cells)
        good = len(self.cells) == dim and min(self.cells) >= 4
        require(good, "cells", f"be at least 4, one number or {dim}", cells)
        self.boundary = (boundary,) * dim if isinstance(boundary, str) else tuple(boundary)
        known = len(self.boundary) == dim and set(self.boundary) <= set(BOUNDARIES)
        require(known, "boundary", f"be one of {', '.join(BOUNDARIES)}, common to all axes or one each", boundary)

    @property
    def dim(self) -> int:
        """One or two."""
        return len(self.cells)

    @property
    def spacing(self) -> Float[Array, " dim"]:
        """The size of a cell along each axis."""
        return (self.high - self.low) / jnp.asarray(self.cells, self.low.dtype)

    @property
    def volume(self) -> Scalar:
        """The size of a cell."""
        return jnp.prod(self.spacing)

    @property
    def lines(self) -> tuple[Array, ...]:
        """The middles of the cells along each axis, of shape ``(cells,)`` each."""
        places = zip(self.cells, self.low, self.spacing, strict=True)
        return tuple(a + dx * (jnp.arange(n, dtype=a.dtype) + 0.5) for n, a, dx in places)

    @property
    def centres(self) -> Float[Array, "*cells dim"]:
        """The middle of every cell, of shape ``(*cells, dim)``."""
        return jnp.stack(jnp.meshgrid(*self.lines, indexing="ij"), axis=-1)

    def integrate(self, values: Float[Array, "*cells"]) -> Scalar:
        """The integral over the box of a function known at the middles of the cells."""
        return jnp.sum(values) * self.volume


class GridDensity(AbstractDistribution):
    r"""A density known at the middles of the cells of a grid: a distribution like any other.

    Between the middles $\ln p$ is a cubic (Catmull and Rom's, exact for Gaussians); outside the box the density is zero. `sample`
    draws a cell and a uniform place in it.
    """

    grid: Grid
    """Where the density lives."""
    density: Float[Array, "*cells"]
    """Its values at the middles of the cells."""

    def __init__(self, grid: Grid, density: ArrayLike):
        self.grid, self.density = grid, as_float(density)
        require(self.density.shape == grid.cells, "density", f"have the shape of the cells, {grid.cells}", f"shape {self.density.shape}")

    def sample(self, n, *, key):
        cell_key, place_key = jr.split(key)
        cumulative = jnp.cumsum(jnp.maximum(self.density, 0.0).ravel())
        cells = jnp.searchsorted(cumulative, cumulative[-1] * jr.uniform(cell_key, (n,), cumulative.dtype), side="right")
        places = jr.uniform(place_key, (n, self.grid.dim), cumulative.dtype, minval=-0.5, maxval=0.5)
        centres = self.grid.centres.reshape(-1, self.grid.dim)
        return centres[jnp.minimum(cells, centres.shape[0] - 1)] + jax.vmap(lambda u: u * self.grid.spacing)(places)

    def log_prob(self, x):
        periodic = jnp.asarray([kind == "periodic" for kind in self.grid.boundary])
        inside = jnp.all(periodic | ((x >= self.grid.low) & (x <= self.grid.high)))
        return jnp.where(inside, self._interpolate(x), -jnp.inf)

    def score(self, x):
        return jax.grad(self._interpolate)(x)

    def entropy(self) -> Scalar:
        r"""The differential entropy $-\int p\ln p$ in nats."""
        return -self.grid.integrate(self.density * safe_log(self.density))

    def kl(self, other: AbstractDistribution) -> Scalar:
        r"""The Kullback–Leibler divergence $\int p\ln(p/q)$ of this density from `other`, in nats."""
        logs = other_logs(other, self.grid)
        # Where the density has underflowed nothing is added, whatever the other one is.
        kept = self.density > jnp.finfo(self.density.dtype).tiny
        return self.grid.integrate(jnp.where(kept, self.density * (safe_log(self.density) - jnp.where(kept, logs, 0.0)), 0.0))

    def _interpolate(self, x):
        values = safe_log(self.density)
        for axis, kind in enumerate(self.grid.boundary):
            values = _with_ghosts(values, axis, kind == "periodic")
        for axis in reversed(range(self.grid.dim)):
            # One axis after the other, so that what is left is contracted along its last one.
            low, high, cells = self.grid.low[axis], self.grid.high[axis], self.grid.cells[axis]
            place = x[axis] if self.grid.boundary[axis] != "periodic" else low + jnp.mod(x[axis] - low, high - low)
            position = (place - low) / (high - low) * cells - 0.5
            left = jnp.clip(jnp.floor(position), -1, cells - 1)
            taken = jax.lax.dynamic_slice_in_dim(values, left.astype(int) + 1, 4, axis)
            values = jnp.tensordot(taken, _catmull_rom(position - left), axes=[[axis], [0]])
        return values


def propose_grid(
    potential: Potential,
    lams: Sequence[ArrayLike],
    *,
    beta: ArrayLike = 1.0,
    dim: int = 1,
    cells: int | Sequence[int] | None = None,
    boundary: str | Sequence[str] = "reflecting",
) -> Grid:
    r"""A grid that holds the equilibria at all controls `lams`: each has fallen to $e^{-50}$ of its maximum at the ends.

    Args:
        potential: $V(x, \lambda)$ in one or two dimensions.
        lams: The controls that a protocol visits; its two ends are mostly enough.
        beta: Inverse temperature: the smallest of a bath that changes.
        dim: One or two.
        cells: Cells along each axis; 1000 in one dimension and 128 in two if omitted.
        boundary: As in `Grid`.

    Raises:
        ValueError: if the potential does not confine at one of the controls.
    """
    require(len(lams) >= 1, "lams", "hold at least one control", "none")
    found = [grid_equilibrium(potential, lam, beta=jnp.min(as_float(beta)), dim=dim) for lam in lams]
    low = jnp.min(jnp.stack([jnp.min(e.centres, axis=0) - 0.5 * e.spacing for e in found]), axis=0)
    high = jnp.max(jnp.stack([jnp.max(e.centres, axis=0) + 0.5 * e.spacing for e in found]), axis=0)
    return Grid(low, high, (1000 if dim == 1 else 128) if cells is None else cells, boundary)


def safe_log(density: Array) -> Array:
    """The logarithm of a density, finite where it has underflowed or is a rounding error below zero."""
    return jnp.log(jnp.maximum(density, jnp.finfo(density.dtype).tiny))


def other_logs(density, grid: Grid) -> Array:
    """Log-densities at the middles of the cells, from a distribution or a callable."""
    log_prob = density.log_prob if isinstance(density, AbstractDistribution) else density
    return jax.vmap(log_prob)(grid.centres.reshape(-1, grid.dim)).reshape(grid.cells)


def _with_ghosts(values, axis, periodic):
    """Two more values at each end of an axis: those of the other end, or a parabola through the last three."""
    values = jnp.moveaxis(values, axis, 0)
    if periodic:
        values = jnp.concatenate([values[-2:], values, values[:2]])
    else:
        for _ in range(2):
            first = 3.0 * (values[0] - values[1]) + values[2]
            last = 3.0 * (values[-1] - values[-2]) + values[-3]
            values = jnp.concatenate([first[None], values, last[None]])
    return jnp.moveaxis(values, 0, axis)


def _catmull_rom(f):
    return 0.5 * jnp.stack(
        [
            f * (f * (2.0 - f) - 1.0),
            f * f * (3.0 * f - 5.0) + 2.0,
            f * (f * (4.0 - 3.0 * f) + 1.0),
            f * f * (f - 1.0),
        ]
    )
