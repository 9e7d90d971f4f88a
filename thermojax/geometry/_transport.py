r"""Full control: what optimal transport says about the least dissipation in a given time.

Overdamped dynamics that take a density $p_0$ to $p_1$ in time $\tau$ produce at least the entropy $W_2^2(p_0, p_1)/(D\tau)$,
$D = \mu/\beta$, whatever the forces; the bound is reached if every potential can be applied (`transport_bound`). Then the particles move
on straight lines at constant speed (the displacement interpolation of McCann), and the potential is that whose force drives the
velocity $v$ of these lines against diffusion, $-\nabla V = v/\mu + \beta^{-1}\nabla\ln p$ (`transport_protocol`).

The work of such a process is $W = \Delta F + \mathrm{KL}(p_1\|\pi_1)/\beta + W_2^2(p_0, p_1)/(\mu\tau)$: the switch to the last potential,
whose equilibrium is $\pi_1$, leaves the particles out of equilibrium. If only that last potential is prescribed, the least work is that of
the best $p_1$ in between (`full_control`); with $p_1 = \pi_1$ it would be $\Delta F + W_2^2(p_0, \pi_1)/(\mu\tau)$, which is more. With
Gaussian ends everything stays Gaussian, and the optimum needs a stiffness matrix and a force only: for the two case studies of Schmiedl
and Seifert, in which the control is one number, it is their optimum.

$k_B = 1$; entropies in nats, work in units of energy; bath and mobility constant.

References:
    E. Aurell, C. Mejía-Monasterio, P. Muratore-Ginanneschi, Phys. Rev. Lett. 106, 250601 (2011). E. Aurell, K. Gawedzki,
    C. Mejía-Monasterio, R. Mohayaee, P. Muratore-Ginanneschi, J. Stat. Phys. 147, 487 (2012). R. J. McCann, Adv. Math. 128, 153 (1997).
    R. Jordan, D. Kinderlehrer, F. Otto, SIAM J. Math. Anal. 29, 1 (1998): the best $p_1$ is one step of their scheme.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax._symmetric import lyapunov, square_root
from thermojax.baths import Isothermal
from thermojax.distributions import (
    AbstractDistribution,
    as_mixture,
    Gaussian,
    GaussianMixture,
    GridBoltzmann,
    squared_quantile_distance,
    squared_wasserstein,
)
from thermojax.dynamics import Overdamped
from thermojax.fokker_planck import GridDensity
from thermojax.potentials import AbstractPotential
from thermojax.protocols import AbstractProtocol

# Cells of a density on a line that is not a mixture: its distance is right to about 1e-8 of its width.
_CELLS = 1 << 15
_REACH = 12.0


class Quadratic(AbstractPotential):
    r"""Every quadratic potential, $V = \tfrac12 (x - m)^\mathsf{T}K(x - m) - f\cdot(x - m)$.

    The control, of shape ``(dim + 2, dim)``, is the stiffness matrix $K$, which need not confine, above the force $f$ above the place $m$.
    """

    def __call__(self, x, lam):
        away = x - lam[-1]
        return 0.5 * away @ lam[:-2] @ away - lam[-2] @ away


class Displacement(AbstractProtocol):
    r"""The control of `Quadratic` that takes one Gaussian to another on straight lines, $m$ and $C^{1/2}$ of the map linear in time.

    Before the protocol the control is that whose equilibrium is the first density; after it, any: it jumps at both ends.
    """

    start: Gaussian
    """The density at time 0, with a covariance matrix."""
    shift: Float[Array, " dim"] = eqx.field(converter=as_float)
    """How far the mean goes."""
    stretch: Float[Array, "dim dim"] = eqx.field(converter=as_float)
    r"""The symmetric matrix $A$ of the optimal map $x \mapsto m_1 + A\,(x - m_0)$."""
    after: Float[Array, "row dim"] = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar)
    r"""$\tau$."""
    beta: Scalar = eqx.field(converter=as_scalar)
    r"""$\beta$ of the bath."""
    mobility: Scalar = eqx.field(converter=as_scalar)
    r"""$\mu$."""

    def density(self, t: Scalar) -> Gaussian:
        """The density at time `t`."""
        share = jnp.clip(t / self.duration, 0.0, 1.0)
        stretched = self._stretched(share)
        return Gaussian(self.start.mean + share * self.shift, stretched @ self.start.covariance @ stretched)

    def velocity(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The velocity of the straight line through `x` at time `t` inside the protocol."""
        return self.shift / self.duration + self._rate(t) @ (x - self.density(t).mean)

    def __call__(self, t):
        density = self.density(t)
        stiffness = jnp.linalg.inv(density.covariance) / self.beta - self._rate(t) / self.mobility
        push = self.shift / (self.mobility * self.duration)
        inside = jnp.concatenate([0.5 * (stiffness + stiffness.T), push[None], density.mean[None]])
        # A grid that is a rounding error short has still come to the end.
        slack = 8 * jnp.finfo(self.duration.dtype).eps * self.duration
        before = _trap(self.start, self.beta)
        return jnp.where(t <= slack, before, jnp.where(t >= self.duration - slack, self.after, inside))

    def _stretched(self, share):
        """The map so far: it commutes with the whole one."""
        unit = jnp.eye(self.shift.shape[0], dtype=self.shift.dtype)
        return unit + share * (self.stretch - unit)

    def _rate(self, t):
        unit = jnp.eye(self.shift.shape[0], dtype=self.shift.dtype)
        return jnp.linalg.solve(self._stretched(jnp.clip(t / self.duration, 0.0, 1.0)), self.stretch - unit) / self.duration


class FullControl(NamedTuple):
    """The process of least work between two equilibria, if every potential can be applied."""

    dynamics: Overdamped
    """What does it: a driven quadratic potential. Its protocol knows the density at every time (`Displacement.density`)."""
    end: Gaussian
    """The density at the end of the protocol, before it relaxes to the last equilibrium."""
    transport: Scalar
    r"""Work dissipated on the way, $W_2^2(p_0, p_1)/(\mu\tau)$."""
    relaxation: Scalar
    r"""Work dissipated after the end, $\mathrm{KL}(p_1\|\pi_1)/\beta$."""

    @property
    def dissipated(self) -> Scalar:
        r"""The least dissipated work, $W - \Delta F$."""
        return self.transport + self.relaxation


def transport_bound(
    start: AbstractDistribution, stop: AbstractDistribution, duration: ArrayLike, *, beta: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> Scalar:
    r"""The least entropy production of overdamped dynamics from one density to another, $W_2^2\beta/(\mu\tau)$, in nats.

    Exact for Gaussians in any dimension and for mixtures of Gaussians in one; any other densities of `distributions` and
    `fokker_planck` in one dimension by their quantiles, to about 1e-8. From samples: `sampled_transport_bound`.

    Args:
        start: The density at time 0.
        stop: The density at time `duration`.
        duration: $\tau$.
        beta: Inverse temperature.
        mobility: $\mu$.

    Raises:
        ValueError: if the dimensions differ or are too many, or numbers are not positive.
        TypeError: if a density is not known well enough.
    """
    scale = diffused(duration, beta, mobility)
    if isinstance(start, Gaussian) and isinstance(stop, Gaussian):
        _check_same(start, stop)
        first, last = _full(start), _full(stop)
        return _squared_way(first.covariance, last.mean - first.mean, _growth(first.covariance, last.covariance)) / scale
    if isinstance(start, Gaussian | GaussianMixture) and isinstance(stop, Gaussian | GaussianMixture):
        return squared_wasserstein(start, stop) / scale
    return squared_quantile_distance(*tabulated(start, "start")[:2], *tabulated(stop, "stop")[:2]) / scale


def transport_protocol(
    start: Gaussian,
    stop: Gaussian,
    duration: ArrayLike,
    *,
    final: Gaussian | None = None,
    beta: ArrayLike = 1.0,
    mobility: ArrayLike = 1.0,
) -> Overdamped:
    r"""The dynamics that takes one Gaussian to another in time $\tau$ with the least entropy production.

    Args:
        start: The density at time 0, the equilibrium of the control before the protocol.
        stop: The density at time `duration`.
        duration: $\tau$.
        final: The equilibrium of the control after the protocol; `stop` if omitted.
        beta: Inverse temperature.
        mobility: $\mu$.

    Returns:
        Overdamped dynamics in `Quadratic`, driven by a `Displacement`. Its stiffness may be negative on the way.

    Raises:
        ValueError: if shapes differ, or numbers are not positive.
    """
    final = stop if final is None else final
    _check_same(start, stop)
    _check_same(start, final, "final")
    diffused(duration, beta, mobility)
    first, last, beta = _full(start), _full(stop), as_scalar(beta)
    growth = _growth(first.covariance, last.covariance)
    return _displacing(first, last.mean - first.mean, growth, _full(final), duration, beta, mobility)


def full_control(start: Gaussian, final: Gaussian, duration: ArrayLike, *, beta: ArrayLike = 1.0, mobility: ArrayLike = 1.0) -> FullControl:
    r"""The process of least work from the equilibrium `start` to the potential whose equilibrium is `final`, in time $\tau$.

    Minimises $\mathrm{KL}(p_1\|\pi_1)/\beta + W_2^2(p_0, p_1)/(\mu\tau)$ over $p_1$; the best one is Gaussian. With
    $\kappa = 2\beta/(\mu\tau)$ its mean solves $(C_1^{-1} + \kappa)\,(m - m_0) = C_1^{-1}(m_1 - m_0)$, and the inverse $B$ of its map is
    the root of $BC_0^{-1}B + \kappa B = C_1^{-1} + \kappa$: a quadratic equation for $C_0^{-1/2}BC_0^{-1/2}$. Its work
    is $\Delta F$ and `dissipated`; for short durations no digits are lost in the difference of what is almost the same.

    Args:
        start: Equilibrium of the first potential.
        final: Equilibrium of the last potential.
        duration: $\tau$.
        beta: Inverse temperature.
        mobility: $\mu$.

    Raises:
        ValueError: if shapes differ, or numbers are not positive.
    """
    _check_same(start, final, "final")
    scale = diffused(duration, beta, mobility)
    first, last, beta = _full(start), _full(final), as_scalar(beta)
    shift, growth, covariance, relative = _best_end(first, last, 2.0 / scale)
    dynamics = _displacing(first, shift, growth, last, duration, beta, mobility)
    transport = _squared_way(first.covariance, shift, growth) / scale
    return FullControl(dynamics, Gaussian(first.mean + shift, covariance), transport / beta, relative / beta)


def diffused(duration: ArrayLike, beta: ArrayLike, mobility: ArrayLike) -> Scalar:
    r"""$D\tau$ with $D = \mu/\beta$, of positive numbers."""
    checked = [check_positive(as_scalar(value), name) for value, name in ((duration, "duration"), (beta, "beta"), (mobility, "mobility"))]
    return checked[0] * checked[2] / checked[1]


@jax.jit
def _best_end(first, last, kappa):
    unit = jnp.eye(first.mean.shape[0], dtype=first.mean.dtype)
    ends = [jnp.linalg.inv(density.covariance) for density in (first, last)]
    root = square_root(first.covariance)
    inverse_root = jnp.linalg.inv(root)
    shift = jnp.linalg.solve(ends[1] + kappa * unit, ends[1] @ (last.mean - first.mean))
    within = lambda matrix: _even(inverse_root @ matrix @ inverse_root)
    # The inverse of the map is that of no change and a rest: a difference of two roots, from that of their squares.
    total = square_root(0.25 * kappa**2 * unit + within(ends[1] + kappa * unit)) + 0.5 * kappa * unit + ends[0]
    rest = _even(root @ lyapunov(total, 2.0 * within(ends[1] - ends[0])) @ root)
    growth = -_even(jnp.linalg.solve(unit + rest, rest))
    covariance = _even((unit + growth) @ first.covariance @ (unit + growth))
    away, ratio = first.mean + shift - last.mean, ends[1] @ covariance
    relative = 0.5 * (jnp.trace(ratio) - unit.shape[0] - jnp.linalg.slogdet(ratio)[1] + away @ ends[1] @ away)
    return shift, growth, covariance, relative


@jax.jit
def _growth(first, last):
    """The optimal map from one covariance to another, less the identity: a difference of two roots, from that of their squares."""
    root = square_root(first)
    inverse = jnp.linalg.inv(root)
    total = square_root(_even(root @ last @ root)) + first
    return _even(inverse @ lyapunov(total, 2.0 * _even(root @ (last - first) @ root)) @ inverse)


@jax.jit
def _squared_way(covariance, shift, growth):
    """The mean square of the way that particles go."""
    return jnp.sum(shift**2) + jnp.trace(growth @ covariance @ growth)


def _even(matrix):
    return 0.5 * (matrix + matrix.T)


def _displacing(first, shift, growth, final, duration, beta, mobility):
    stretch = jnp.eye(shift.shape[0], dtype=shift.dtype) + growth
    protocol = Displacement(first, shift, stretch, _trap(final, beta), duration, beta, mobility)
    return Overdamped(Quadratic(), protocol, Isothermal(beta), as_scalar(mobility))


def _trap(density, beta):
    """The control of `Quadratic` whose equilibrium is a Gaussian."""
    stiffness = jnp.linalg.inv(density.covariance) / beta
    return jnp.concatenate([stiffness, jnp.zeros_like(density.mean)[None], density.mean[None]])


def _full(density):
    """The same Gaussian with a covariance matrix."""
    return as_mixture(density).moments()


def _check_same(start, stop, name="stop"):
    shape = start.mean.shape
    require(stop.mean.shape == shape, name, f"have the dimension of `start`, {shape[0]}", stop.mean.shape[0])


def tabulated(density, name):
    """Faces of cells on a line, and the probability below and above each: both have digits where they are small."""
    if isinstance(density, Gaussian | GaussianMixture):
        mixture = as_mixture(density)
        dim = mixture.means.shape[1]
        reach = _REACH * jnp.sqrt(mixture.covariances.reshape(mixture.means.shape[0], -1)[:, :1])
        low, high = jnp.min(mixture.means - reach), jnp.max(mixture.means + reach)
    elif isinstance(density, GridBoltzmann):
        dim, half = density.spacing.shape[0], 0.5 * density.spacing[0]
        low, high = density.centres[0, 0] - half, density.centres[-1, 0] + half
    elif isinstance(density, GridDensity):
        dim, low, high = density.grid.dim, density.grid.low[0], density.grid.high[0]
    else:
        known = "be a Gaussian, a mixture, or a density on a grid; for others draw samples for `sampled_transport_bound`"
        raise TypeError(f"`{name}` must {known}, got {type(density).__name__}.")
    require(dim == 1, name, "be in one dimension, or a Gaussian like the other; draw samples for `sampled_transport_bound`", dim)
    return _cumulative(density, low, high)


@eqx.filter_jit
def _cumulative(density, low, high):
    width = (high - low) / _CELLS
    middles = low + width * (jnp.arange(_CELLS, dtype=width.dtype) + 0.5)
    logs = jax.vmap(density.log_prob)(middles[:, None])
    weights = jnp.exp(logs - jnp.max(logs))
    sums = lambda weights: jnp.concatenate([jnp.zeros_like(weights[:1]), jnp.cumsum(weights)])
    below, above = sums(weights), sums(weights[::-1])[::-1]
    return low + width * jnp.arange(_CELLS + 1, dtype=width.dtype), below / below[-1], above / above[0]
