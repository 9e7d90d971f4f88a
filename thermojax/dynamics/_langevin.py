"""Langevin dynamics of a particle in a driven landscape, with and without inertia."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive
from thermojax.baths import Bath, ConstantMobility, Isothermal
from thermojax.phase import Amplitude, Phase, State
from thermojax.potentials import energy, force, Potential
from thermojax.protocols import kicks, Protocol

Force = Callable[[Array, Array], Array]


class AbstractDynamics(eqx.Module):
    r"""A diffusion $dx = b(t, x)\,dt + \sigma(t)\,dW$ with additive noise."""

    @abc.abstractmethod
    def drift(self, t: Scalar, x: State) -> State:
        """The drift $b$."""

    @abc.abstractmethod
    def noise(self, t: Scalar) -> Amplitude:
        r"""The noise amplitude $\sigma$, a number or one per coordinate; for a `Phase` one such for positions and velocities each."""


class AbstractLangevin(AbstractDynamics):
    r"""A particle in a potential $V(x, \lambda_t)$ and a force $f(x, \lambda_t)$ that is no gradient, in a bath of inverse temperature
    $\beta_t$ in which it moves with mobility $\mu_t$.
    """

    potential: eqx.AbstractVar[Potential]
    protocol: eqx.AbstractVar[Protocol]
    bath: eqx.AbstractVar[Bath]
    mobility: eqx.AbstractVar[Callable[[Array], Array]]
    nonconservative: eqx.AbstractVar[Force | None]

    @abc.abstractmethod
    def energy_at(self, x: State, lam: ArrayLike) -> Scalar:
        r"""The internal energy under the control $\lambda$, with the kinetic energy if there is one."""

    def energy(self, t: Scalar, x: State) -> Scalar:
        r"""The internal energy at time $t$."""
        return self.energy_at(x, self.protocol(t))

    def total_force(self, t: Scalar, position: Float[Array, " dim"]) -> Array:
        r"""The force $-\nabla V + f$ at time $t$."""
        lam = self.protocol(t)
        total = force(self.potential, position, lam)
        return total if self.nonconservative is None else total + self.nonconservative(position, lam)


def _as_mobility(value: "ArrayLike | Callable[[Array], Array]") -> "Callable[[Array], Array]":
    return value if callable(value) else ConstantMobility(value)


class Overdamped(AbstractLangevin):
    r"""Overdamped Langevin dynamics, $dx = \mu_t\,[-\nabla V(x, \lambda_t) + f(x, \lambda_t)]\,dt + \sqrt{2\mu_t/\beta_t}\,dW$."""

    potential: Potential
    r"""$V(x, \lambda)$."""
    protocol: Protocol
    r"""$\lambda(t)$."""
    bath: Bath = eqx.field(default_factory=Isothermal)
    r"""$\beta(t)$."""
    mobility: Callable[[Array], Array] = eqx.field(converter=_as_mobility, default=1.0)
    r"""$\mu(t)$, or a number; the diffusion constant is $\mu/\beta$."""
    nonconservative: Force | None = None
    r"""$f(x, \lambda)$, a force that is not a gradient, of shape ``(dim,)``; none if omitted."""

    def drift(self, t, x):
        return self.mobility(t) * self.total_force(t, x)

    def noise(self, t):
        return jnp.sqrt(2.0 * self.mobility(t) / self.bath(t))

    def energy_at(self, x, lam):
        return energy(self.potential, x, lam)


class Underdamped(AbstractLangevin):
    r"""Langevin dynamics with inertia, $dx = v\,dt$ and
    $m\,dv = [-\nabla V(x, \lambda_t) + f(x, \lambda_t) - v/\mu_t]\,dt + \sqrt{2/(\mu_t\beta_t)}\,dW$.

    States are a `Phase` of positions and velocities. The drag is $1/\mu$, so that velocities relax at the rate $1/(\mu m)$ and
    `Overdamped` with the same mobility is the limit of small mass. A protocol may kick the velocity at its ends (`protocols.Kicked`).
    """

    potential: Potential
    r"""$V(x, \lambda)$."""
    protocol: Protocol
    r"""$\lambda(t)$."""
    bath: Bath = eqx.field(default_factory=Isothermal)
    r"""$\beta(t)$."""
    mobility: Callable[[Array], Array] = eqx.field(converter=_as_mobility, default=1.0)
    r"""$\mu(t)$, or a number: the inverse of the drag."""
    mass: Array = eqx.field(converter=as_float, default=1.0)
    """$m$, a number or one per coordinate."""
    nonconservative: Force | None = None
    r"""$f(x, \lambda)$, a force that is not a gradient, of shape ``(dim,)``; none if omitted."""

    def __check_init__(self):
        check_positive(self.mass, "mass")

    def drift(self, t, x):
        return Phase(x.velocity, self.acceleration(t, x.position) - self.friction(t) * x.velocity)

    def noise(self, t):
        amplitude = jnp.sqrt(2.0 / (self.mobility(t) * self.bath(t))) / self.mass
        return Phase(jnp.zeros_like(amplitude), amplitude)

    def energy_at(self, x, lam):
        return energy(self.potential, x.position, lam) + self.kinetic_energy(x)

    def kinetic_energy(self, x: Phase) -> Scalar:
        r"""$\tfrac12 mv^2$."""
        return 0.5 * jnp.sum(self.mass * x.velocity**2)

    def acceleration(self, t: Scalar, position: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The total force divided by the mass."""
        return self.total_force(t, position) / self.mass

    def friction(self, t: Scalar) -> Float[Array, "..."]:
        r"""The rate $1/(\mu m)$ at which a velocity relaxes."""
        return 1.0 / (self.mobility(t) * self.mass)


class Escorted(AbstractDynamics):
    r"""Overdamped dynamics with a drift $u(t, x)$ that carries the particle along, $dx = [\mu F + u]\,dt + \sqrt{2\mu/\beta}\,dW$.

    The escort is not a force of the system: its work is counted so that free energies come out right for any $u$
    (`functionals.escorted_work`), with less dissipation the better $u$ keeps up with the equilibrium density.

    Reference:
        S. Vaikuntanathan, C. Jarzynski, Phys. Rev. Lett. 100, 190601 (2008).
    """

    driven: Overdamped
    """The dynamics without its escort."""
    flow: Callable[[Array, Array], Array]
    """$u(t, x)$, of shape ``(dim,)``."""
    strength: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """A factor of the flow."""

    def drift(self, t, x):
        return self.driven.drift(t, x) + self.strength * self.flow(t, x)

    def noise(self, t):
        return self.driven.noise(t)

    def conjugate(self) -> "Escorted":
        """The same with the escort turned round: what the reversed path must be compared with."""
        return Escorted(self.driven, self.flow, -self.strength)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the driven dynamics; likewise `potential`, `bath` and `mobility`."""
        return self.driven.protocol

    @property
    def potential(self) -> Potential:
        """See `protocol`."""
        return self.driven.potential

    @property
    def bath(self) -> Bath:
        """See `protocol`."""
        return self.driven.bath

    @property
    def mobility(self) -> Callable[[Array], Array]:
        """See `protocol`."""
        return self.driven.mobility


def kick_before(dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: State) -> State:
    """The state after the kick that the protocol gives at the beginning of a step."""
    return _kicked(dynamics, x0, 0, 1.0, t0, t1)


def kick_after(dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x1: State) -> State:
    """The state after the kick that the protocol gives at the end of a step."""
    return _kicked(dynamics, x1, 1, 1.0, t0, t1)


def undo_kick_after(dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x1: State) -> State:
    """The state before the kick that the protocol gave at the end of a step."""
    return _kicked(dynamics, x1, 1, -1.0, t0, t1)


def _kicked(dynamics, x, end, sign, t0, t1):
    change = kicks(getattr(dynamics, "protocol", None), t0, t1) if isinstance(x, Phase) else None
    return x if change is None else Phase(x.position, x.velocity + sign * change[end])
