"""Densities in phase space."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive
from thermojax.distributions._boltzmann import equilibrium
from thermojax.distributions._gaussian import AbstractDistribution, Gaussian
from thermojax.phase import Phase, State, States
from thermojax.potentials import Potential


class MaxwellBoltzmann(AbstractDistribution):
    r"""Positions from any density, and independent velocities of variance $1/(\beta m)$; of a `Phase`."""

    position: AbstractDistribution
    """The density of the positions."""
    beta: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""Inverse temperature of the velocities."""
    mass: Array = eqx.field(converter=as_float, default=1.0)
    """Mass, a number or one per coordinate."""

    def __check_init__(self):
        check_positive(self.beta, "beta")
        check_positive(self.mass, "mass")

    def sample(self, n, *, key):
        position_key, velocity_key = jr.split(key)
        positions = self.position.sample(n, key=position_key)
        zs = jr.normal(velocity_key, positions.shape, positions.dtype)
        return Phase(positions, jax.vmap(lambda z: z / jnp.sqrt(self.beta * self.mass))(zs))

    def log_prob(self, x):
        precision = jnp.broadcast_to(self.beta * self.mass, x.velocity.shape)
        maxwell = 0.5 * jnp.sum(jnp.log(precision / (2 * jnp.pi)) - precision * x.velocity**2)
        return self.position.log_prob(x.position) + maxwell

    def score(self, x):
        return Phase(self.position.score(x.position), -self.beta * self.mass * x.velocity)


def phase_equilibrium(
    potential: Potential, lam: ArrayLike, *, beta: ArrayLike = 1.0, mass: ArrayLike = 1.0, dim: int = 1
) -> MaxwellBoltzmann:
    r"""The equilibrium of underdamped dynamics, $e^{-\beta[V(x, \lambda) + mv^2/2]}/Z$; see `equilibrium`.

    Raises:
        ValueError: if $e^{-\beta V}$ cannot be normalised, or parameters are traced.
    """
    return MaxwellBoltzmann(equilibrium(potential, lam, beta=beta, dim=dim), beta, mass)


def sample_in_pairs(density: Any, n: int, *, key: Key) -> States:
    """Draws of an even number of states, the second half mirror images of the first where the density has a centre of symmetry that we
    know: a Gaussian, or one with Maxwell's velocities. Plain draws of any other density.
    """
    centre = centre_of(density)
    if centre is None:
        return density.sample(n, key=key)
    half = density.sample(n // 2, key=key)
    return jax.tree.map(lambda a, middle: jnp.concatenate([a, 2.0 * middle[None] - a]), half, centre)


def centre_of(density: Any) -> State | None:
    """The mean of a Gaussian, also of one with velocities; None of any other density."""
    if isinstance(density, MaxwellBoltzmann) and isinstance(density.position, Gaussian):
        mean = density.position.mean
        return Phase(mean, jnp.zeros_like(mean))
    return density.mean if isinstance(density, Gaussian) else None
