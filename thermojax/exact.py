r"""Closed forms that tests, notebooks, experiments and benchmarks share ($k_B = 1$)."""

import jax.numpy as jnp
from jaxtyping import ArrayLike

from thermojax._array import as_float, Scalar
from thermojax.protocols import Kicked, PiecewiseLinear


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


def breathing_trap_optimal_work(
    start: ArrayLike, stop: ArrayLike, duration: ArrayLike, *, beta: ArrayLike = 1.0, mobility: ArrayLike = 1.0
) -> Scalar:
    r"""Least mean work of changing the stiffness of a harmonic trap in time $\tau$, from equilibrium in one dimension.

    Reference:
        T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007), second case study.
    """
    start, stop, duration, beta, mobility = map(as_float, (start, stop, duration, beta, mobility))
    tau = mobility * duration
    root = jnp.sqrt(1 + 2 * start * tau + start * stop * tau**2)
    c = (root - 1 - stop * tau) / (tau * (2 + stop * tau))
    grown = 1 + c * tau
    return (c**2 * tau / start - jnp.log(grown) + 0.5 * stop / start * grown**2 - 0.5) / beta


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
    root = _root(covariance1)
    overlap = jnp.sum(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(root @ covariance0 @ root), 0.0)))
    return jnp.sum((mean1 - mean0) ** 2) + jnp.trace(covariance0) + jnp.trace(covariance1) - 2 * overlap


def _root(covariance):
    values, vectors = jnp.linalg.eigh(covariance)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T
