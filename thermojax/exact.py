r"""Closed forms that tests, notebooks, experiments and benchmarks share ($k_B = 1$).

Two driven harmonic traps: the moving trap, $V = \tfrac{k}{2}|x - \lambda|^2$, and the breathing trap, $V = \tfrac12\lambda x^2$ in one
dimension. Both start in equilibrium. The states stay Gaussian, so the moments of the work of any protocol follow from ordinary
differential equations: no noise, and gradients that are exact.
"""

from typing import Any, cast, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive
from thermojax._symmetric import square_root
from thermojax.protocols import AbstractFiniteTime, finite_time, Kicked, PiecewiseLinear, Protocol


def moving_trap_work(distance: ArrayLike, duration: ArrayLike, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0) -> Scalar:
    r"""Mean work of dragging a harmonic trap by $L$ at constant speed in time $\tau$, from equilibrium:
    $\langle W\rangle = kL^2(a - 1 + e^{-a})/a^2$ with $a = \mu k\tau$.

    The work is Gaussian with variance $2\langle W\rangle/\beta$; the free energy does not change.

    Reference:
        O. Mazonka, C. Jarzynski, arXiv:cond-mat/9912121 (1999).
    """
    distance, duration, stiffness, mobility = map(as_float, (distance, duration, stiffness, mobility))
    a = mobility * stiffness * duration
    return stiffness * distance**2 * (a + jnp.expm1(-a)) / a**2


def moving_trap_optimal_work(distance: ArrayLike, duration: ArrayLike, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0) -> Scalar:
    r"""Least mean work of dragging a harmonic trap by $L$ in time $\tau$: $kL^2/(2 + \mu k\tau)$.

    Reference:
        T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007), first case study.
    """
    distance, duration, stiffness, mobility = map(as_float, (distance, duration, stiffness, mobility))
    return stiffness * distance**2 / (2 + mobility * stiffness * duration)


def moving_trap_optimal_protocol(
    distance: ArrayLike, duration: ArrayLike, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> PiecewiseLinear:
    r"""The protocol of least work, $\lambda(t) = L(1 + \mu kt)/(2 + \mu k\tau)$, with jumps of $L/(2 + \mu k\tau)$ at both ends.

    Reference:
        T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007), first case study.
    """
    distance, duration, stiffness, mobility = map(as_float, (distance, duration, stiffness, mobility))
    jump = distance / (2 + mobility * stiffness * duration)
    return PiecewiseLinear(jnp.zeros_like(distance), jnp.stack([jump, distance - jump]), distance, duration)


def inertial_trap_optimal_work(
    distance: ArrayLike, duration: ArrayLike, *, frequency: ArrayLike, quality: ArrayLike, mass: ArrayLike = 1.0
) -> Scalar:
    r"""Least mean work of dragging a harmonic trap with a particle that has inertia, $m\omega_0^2L^2/(2 + Q\omega_0\tau)$.

    Args:
        distance: $L$.
        duration: $\tau$.
        frequency: $\omega_0$ of the trap, of stiffness $m\omega_0^2$.
        quality: Quality factor $Q = m\omega_0\mu$.
        mass: $m$.

    Reference:
        A. Gomez-Marin, T. Schmiedl, U. Seifert, J. Chem. Phys. 129, 024114 (2008).
    """
    mass, frequency, quality = map(as_float, (mass, frequency, quality))
    return moving_trap_optimal_work(distance, duration, stiffness=mass * frequency**2, mobility=quality / (mass * frequency))


def moving_trap_work_of(protocol: PiecewiseLinear, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0) -> Scalar:
    r"""Mean work of moving a harmonic trap by straight lines and jumps, in any number of dimensions.

    The mean lag $l = \lambda - \langle x\rangle$ obeys $\dot l = \dot\lambda - \mu kl$, and the work is $k\int l\,d\lambda$; a jump of
    $\delta$ costs $k(l\delta + \delta^2/2)$. The work is Gaussian, with variance $2\langle W\rangle/\beta$. For any other protocol take
    ``PiecewiseLinear.like(protocol, knots=...)``, as fine as you like.
    """
    return _moving_trap_work_of(protocol, as_scalar(stiffness), as_scalar(mobility))


def inertial_trap_optimal_protocol(
    distance: ArrayLike, duration: ArrayLike, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> Kicked:
    r"""The protocol of least work for a particle with inertia: the overdamped one, and kicks that bring the mean velocity at once to
    $\mu kL/(2 + \mu k\tau)$ and, at the end, to rest.

    Its work is `moving_trap_optimal_work`, whatever the mass.

    Reference:
        A. Gomez-Marin, T. Schmiedl, U. Seifert, J. Chem. Phys. 129, 024114 (2008).
    """
    inside = moving_trap_optimal_protocol(distance, duration, stiffness=stiffness, mobility=mobility)
    speed = as_float(mobility) * as_float(stiffness) * inside.jumps[0]
    return Kicked(inside, speed, -speed, duration)


class BreathingTrapOptimum(AbstractFiniteTime):
    r"""The protocol of least work for the stiffness of a harmonic trap, $\lambda(t) = (\lambda_i - cg)/g^2$ with $g = 1 + c\mu t$.

    It has no parameters but those of the problem: nothing is free. See `breathing_trap_optimal_protocol`.
    """

    start: Scalar = eqx.field(converter=as_scalar)
    r"""The stiffness $\lambda_i$ before."""
    stop: Scalar = eqx.field(converter=as_scalar)
    r"""The stiffness $\lambda_f$ after."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""$\tau$."""
    mobility: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""$\mu$."""

    def __check_init__(self):
        for name in ("start", "stop", "mobility"):
            check_positive(getattr(self, name), name)

    @property
    def spreading(self) -> Scalar:
        r"""$c\mu\tau$: by how much the standard deviation has grown, relative to the first one."""
        return _spreading(self.start, self.stop, self.mobility * self.duration)

    def inside(self, s):
        grown = 1.0 + self.spreading * s
        return (self.start - self.spreading / (self.mobility * self.duration) * grown) / grown**2

    def mean_square(self, t: ArrayLike, *, beta: ArrayLike = 1.0) -> Scalar:
        r"""$\langle x^2\rangle = g^2/(\beta\lambda_i)$: the standard deviation grows linearly in time."""
        grown = 1.0 + self.spreading * as_float(t) / self.duration
        return grown**2 / (as_float(beta) * self.start)

    @property
    def free(self) -> Any:
        """Nothing."""
        return ()


def breathing_trap_optimal_protocol(
    start: ArrayLike, stop: ArrayLike, duration: ArrayLike, *, mobility: ArrayLike = 1.0
) -> BreathingTrapOptimum:
    r"""The protocol of least work for the stiffness of a harmonic trap, with jumps at both ends, whatever the temperature.

    Reference:
        T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007), second case study.
    """
    return BreathingTrapOptimum(start, stop, duration, mobility)


def breathing_trap_optimal_work(
    start: ArrayLike, stop: ArrayLike, duration: ArrayLike, *, beta: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> Scalar:
    r"""Least mean work of changing the stiffness of a harmonic trap in time $\tau$, from equilibrium in one dimension.

    Reference:
        T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007), second case study.
    """
    start, stop, duration, beta, mobility = map(as_float, (start, stop, duration, beta, mobility))
    tau = mobility * duration
    spreading = _spreading(start, stop, tau)
    return (spreading**2 / (tau * start) - jnp.log1p(spreading) + 0.5 * stop / start * (1 + spreading) ** 2 - 0.5) / beta


def breathing_trap_free_energy(start: ArrayLike, stop: ArrayLike, *, beta: ArrayLike = 1.0) -> Scalar:
    r"""Free-energy change of a harmonic trap with its stiffness, $\ln(\lambda_f/\lambda_i)/2\beta$."""
    return 0.5 * jnp.log(as_float(stop) / as_float(start)) / as_float(beta)


class BreathingTrapWork(NamedTuple):
    """Moments of a harmonic trap whose stiffness was driven."""

    mean: Scalar
    """Mean work."""
    variance: Scalar
    """Variance of the work."""
    mean_square: Scalar
    r"""$\langle x^2\rangle$ at the end."""


def breathing_trap_work(protocol: Protocol, *, beta: ArrayLike = 1.0, mobility: ArrayLike = 1.0) -> BreathingTrapWork:
    r"""Mean and variance of the work of changing the stiffness of a harmonic trap by any protocol, from equilibrium.

    With $v = \langle x^2\rangle$ and $g = \mathrm{Cov}(W, x^2)$: $\dot v = 2\mu(1/\beta - \lambda v)$, $d\langle W\rangle =
    \tfrac12v\,d\lambda$, $\dot g = -2\mu\lambda g + \dot\lambda v^2$, $d\mathrm{Var}\,W = g\,d\lambda$, solved to ten digits in float64
    where the protocol is smooth. In float32 an adaptive solver steps too far over a kink: up to some 1e-3 of the work are lost between
    straight lines, nothing on a smooth protocol. A jump of $\delta$ adds $\tfrac12\delta v$ to the mean, $\delta g +
    \tfrac12\delta^2v^2$ to the variance and $\delta v^2$ to $g$.

    Args:
        protocol: The stiffness, a number, as a protocol of finite duration, positive all the way.
        beta: Inverse temperature.
        mobility: Mobility.

    Raises:
        ValueError: if the protocol does not know its duration and its jumps, does not start at a positive stiffness, or a number has no
            meaning.
    """
    driven = finite_time(protocol)
    check_positive(driven.start, "start")
    return _breathing_trap_work(driven, check_positive(as_scalar(beta), "beta"), check_positive(as_scalar(mobility), "mobility"))


def annealed_trap_work(
    steps: int, distance: ArrayLike, duration: ArrayLike, *, stiffness: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> Scalar:
    r"""Mean work of moving a harmonic trap by $L$ in `steps` equal jumps, each followed by exact relaxation for $\tau/K$.

    After each relaxation the mean lag is multiplied by $e^{-\mu k\tau/K}$; a jump of $\delta = L/K$ at lag $l$ costs $k(\delta l +
    \delta^2/2)$.
    """
    distance, duration, stiffness, mobility = map(as_float, (distance, duration, stiffness, mobility))
    jump = distance / steps
    memory = jnp.exp(-mobility * stiffness * duration / steps)
    lags = jump * memory * (1 - memory ** jnp.arange(steps, dtype=float)) / (1 - memory)
    return stiffness * jnp.sum(jump * lags + 0.5 * jump**2)


def gaussian_transport(mean0: ArrayLike, covariance0: ArrayLike, mean1: ArrayLike, covariance1: ArrayLike) -> Scalar:
    r"""Squared Wasserstein distance of two Gaussians, $|\Delta m|^2 + \mathrm{tr}[C_0 + C_1 - 2(C_1^{1/2}C_0C_1^{1/2})^{1/2}]$.

    Divided by $D\tau$ it is the least entropy production of overdamped dynamics that takes one to the other in time $\tau$.

    Args:
        mean0: Mean of the first, shape ``(dim,)``.
        covariance0: Covariance of the first, shape ``(dim, dim)``.
        mean1: Mean of the second.
        covariance1: Covariance of the second.

    References:
        D. C. Dowson, B. V. Landau, J. Multivar. Anal. 12, 450 (1982). E. Aurell et al., J. Stat. Phys. 147, 487 (2012).
    """
    mean0, covariance0, mean1, covariance1 = map(as_float, (mean0, covariance0, mean1, covariance1))
    root = square_root(covariance1)
    overlap = jnp.sum(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(root @ covariance0 @ root), 0.0)))
    return jnp.sum((mean1 - mean0) ** 2) + jnp.trace(covariance0) + jnp.trace(covariance1) - 2 * overlap


@eqx.filter_jit
def _moving_trap_work_of(protocol, stiffness, mobility):
    dt = protocol.duration / (protocol.knots.shape[0] - 1)
    a = mobility * stiffness
    # The lag decays to `memory` of itself, and its integral over the interval is `reach`.
    memory, reach = jnp.exp(-a * dt), -jnp.expm1(-a * dt) / a
    rest = (a * dt + jnp.expm1(-a * dt)) / a**2
    jumped = lambda lag, jump: stiffness * jnp.sum(lag * jump + 0.5 * jump**2)

    def interval(carry, step):
        lag, total = carry
        speed = step / dt
        total = total + stiffness * jnp.sum(speed * (lag * reach + speed * rest))
        return (lag * memory + speed * reach, total), None

    first, last = protocol.jumps
    start = (first, jumped(jnp.zeros_like(first), first))
    (lag, total), _ = jax.lax.scan(interval, start, jnp.diff(protocol.knots, axis=0))
    return total + jumped(lag, last)


def _spreading(start, stop, tau):
    """The relative growth of the standard deviation under the optimal protocol, free of cancellation for small `tau`."""
    root = jnp.sqrt(1 + 2 * start * tau + start * stop * tau**2)
    return tau * ((2 * start + start * stop * tau) / (root + 1) - stop) / (2 + stop * tau)


@eqx.filter_jit
def _breathing_trap_work(protocol, beta, mobility):
    tau = mobility * protocol.duration

    def jump(moments, size):
        square, mean, shared, variance = moments
        return jnp.stack(
            [
                square,
                mean + 0.5 * size * square,
                shared + size * square**2,
                variance + size * shared + 0.5 * (size * square) ** 2,
            ]
        )

    def field(s, moments, args):
        del args
        square, _, shared, _ = moments
        stiffness, slope = jax.jvp(protocol.inside, (s,), (jnp.ones_like(s),))
        return jnp.stack(
            [
                2 * tau * (1 / beta - stiffness * square),
                0.5 * slope * square,
                slope * square**2 - 2 * tau * stiffness * shared,
                slope * shared,
            ]
        )

    first, last = protocol.jumps
    square = 1 / (beta * protocol.start)
    nothing = jnp.zeros_like(square)
    moments = jump(jnp.stack([square, nothing, nothing, nothing]), first)
    tolerance = float(jnp.finfo(moments.dtype).eps) ** 0.75
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        nothing,
        nothing + 1.0,
        None,
        moments,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=16_384,
    )
    square, mean, _, variance = jump(cast(Float[Array, "1 4"], solution.ys)[-1], last)
    return BreathingTrapWork(mean, variance, square)
