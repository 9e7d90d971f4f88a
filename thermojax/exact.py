r"""Closed forms that tests, notebooks, experiments and benchmarks share ($k_B = 1$)."""

import jax.numpy as jnp
from jaxtyping import ArrayLike

from thermojax._array import as_float, Scalar
from thermojax.protocols import PiecewiseLinear


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
