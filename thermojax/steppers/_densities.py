"""Transition densities of steps, and their log-ratios."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax.dynamics import AbstractDynamics, Escorted, Underdamped
from thermojax.phase import Phase, State
from thermojax.steppers._abstract import AbstractStepper
from thermojax.steppers._diffrax import Diffrax
from thermojax.steppers._gaussian import AbstractGaussianStepper, log_volume, whiten
from thermojax.steppers._splitting import Splitting


def log_density(
    stepper: AbstractStepper, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"], x1: Float[Array, " dim"]
) -> Scalar:
    r"""The log transition density $\ln K(x_1|x_0)$ of one step.

    Raises:
        TypeError: if the density of `stepper` is unknown.
    """
    mean, factor = with_density(stepper).increment(dynamics, t0, t1, x0)
    z = whiten(factor, x1 - x0 - mean)
    return -0.5 * jnp.sum(z**2) - log_volume(factor, x0.shape[0])


def log_reversal_ratio(
    stepper: AbstractStepper,
    dynamics: AbstractDynamics,
    t0: Scalar,
    t1: Scalar,
    x0: State,
    x1: State,
    zs: Float[Array, "normal dim"] | None = None,
) -> Scalar:
    r"""The log-ratio $\ln K(x_1|x_0) - \ln K(x_0|x_1)$ of one step to its reversal under the same coefficients.

    With mean increments $d_0, d_1$ at the two ends and everything in units of the spread it is
    $(d_0 + d_1)\cdot[x_1 - x_0 + \tfrac12(d_1 - d_0)]$: the large quadratic terms cancel on paper instead of in floating point. For
    `Escorted` dynamics the reversal moves with the escort turned round; in phase space it has the velocities turned round
    (`Splitting.released`).

    Raises:
        TypeError: if the density of `stepper` is unknown.
    """
    if isinstance(stepper, Splitting) and isinstance(dynamics, Underdamped):
        return stepper.released(dynamics, t0, t1, x0, x1, zs)
    if isinstance(x0, Phase):
        name = _name(stepper)
        raise TypeError(f"`stepper` must reach the momentum-reversed path of its step (`Splitting` does), got {name}.")
    gaussian = with_density(stepper)
    conjugate = dynamics.conjugate() if isinstance(dynamics, Escorted) else dynamics
    out, factor = gaussian.increment(dynamics, t0, t1, x0)
    back, _ = gaussian.increment(conjugate, t0, t1, x1)
    return jnp.sum(whiten(factor, out + back) * whiten(factor, x1 - x0 + 0.5 * (back - out)))


def with_density(stepper: AbstractStepper) -> AbstractGaussianStepper:
    """Return `stepper` if it knows its transition density.

    Raises:
        TypeError: if it does not; the message names the steppers that do.
    """
    if not isinstance(stepper, AbstractGaussianStepper):
        raise TypeError(f"`stepper` must know its transition density (`EulerMaruyama` and `ExactLinear` do), got {_name(stepper)}.")
    return stepper


def knows_reversal(stepper: AbstractStepper, dynamics: AbstractDynamics) -> bool:
    """Whether `log_reversal_ratio` of these steps is known."""
    return isinstance(stepper, Splitting if isinstance(dynamics, Underdamped) else AbstractGaussianStepper)


def _name(stepper):
    return type(stepper.solver if isinstance(stepper, Diffrax) else stepper).__name__
