"""What an objective is evaluated on: an ensemble of paths, or a density that evolves."""

import functools as ft
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import Scalar
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Overdamped
from thermojax.fokker_planck import Energetics, energetics, Evolution, evolve, Grid, GridDensity
from thermojax.optimize._statistics import flat, moments
from thermojax.phase import States


class Paths(NamedTuple):
    """An ensemble that has been simulated.

    Statistics are weighted by `shares`: they are equal in value, and where the paths are held fixed (likelihood-ratio gradients) they
    carry the derivative of the path density.
    """

    dynamics: Any
    """What moved."""
    initial: AbstractDistribution
    """The density of the first states."""
    x0s: States
    """First states."""
    x1s: States
    """Last states."""
    sums: Any
    """What the objective's functionals add up to along each path, in their structure."""
    log_weights: Float[Array, " sample"]
    """Logarithms of the weights: zero in value."""
    duration: Scalar
    """How long the paths are."""

    @property
    def shares(self) -> Float[Array, " sample"]:
        """What each path counts; they add up to one."""
        return jax.nn.softmax(self.log_weights)

    def average(self, values: Float[Array, " sample"]) -> Scalar:
        """The mean of one number per path."""
        return jnp.sum(self.shares * values)

    def final_moments(self) -> tuple[Array, Array]:
        """Mean, and covariance matrix without bias, of the last states as vectors."""
        mean, covariance = moments(flat(self.x1s), self.shares)
        return mean, self.unbiased * covariance

    @property
    def unbiased(self) -> float:
        """The factor n/(n - 1) of a variance."""
        count = self.log_weights.shape[0]
        return count / (count - 1)


class Flow:
    """A density on a grid and what its evolution costs, each solved for once, when first asked for."""

    def __init__(
        self,
        dynamics: AbstractDynamics,
        initial: AbstractDistribution,
        ts: Float[Array, " time"],
        grid: Grid,
        tolerance: ArrayLike | None = None,
    ):
        self.dynamics, self.initial, self.ts, self.grid, self.tolerance = dynamics, initial, ts, grid, tolerance

    @property
    def duration(self) -> Scalar:
        """How long the evolution is."""
        return self.ts[-1] - self.ts[0]

    @ft.cached_property
    def energetics(self) -> Energetics:
        """Work, heat and entropies; for driven dynamics only."""
        return energetics(self.dynamics, self.initial, self.grid, self.ts, tolerance=self.tolerance)

    @ft.cached_property
    def evolution(self) -> Evolution:
        """The density at all times."""
        return evolve(self.dynamics, self.initial, self.grid, self.ts, tolerance=self.tolerance)

    @property
    def final(self) -> GridDensity:
        """The density at the end."""
        closed = isinstance(self.dynamics, Overdamped) and "open" not in self.grid.boundary
        return GridDensity(self.grid, self.energetics.density) if closed else self.evolution.at(-1)

    def average(self, values: Float[Array, "*cells"]) -> Scalar:
        """The mean, at the end, of a function known in every cell."""
        return self.grid.integrate(self.final.density * values)

    def final_divergence(self, other: Any) -> Scalar:
        """The Kullback-Leibler divergence of the density at the end from another one, a distribution or its logarithm."""
        log_prob = other.log_prob if isinstance(other, AbstractDistribution) else other
        logs = jax.vmap(log_prob)(self.grid.centres.reshape(-1, self.grid.dim)).reshape(self.grid.cells)
        density = self.final.density
        # Where the density has underflowed nothing is added, whatever the other one is.
        kept = density > jnp.finfo(density.dtype).tiny
        gap = jnp.log(jnp.where(kept, density, 1.0)) - jnp.where(kept, logs, 0.0)
        return self.grid.integrate(jnp.where(kept, density * gap, 0.0))

    def final_moments(self) -> tuple[Array, Array]:
        """Mean and covariance matrix at the end."""
        return moments(self.grid.centres.reshape(-1, self.grid.dim), self.final.density.ravel() * self.grid.volume)
