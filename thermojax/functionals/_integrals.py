r"""Stochastic integrals and the path action in any discretisation convention.

The convention $\alpha$ is the place in the step at which a field is read, $x_\alpha = x_0 + \alpha\,(x_1 - x_0)$: 0 for Itô, 1/2 for
Stratonovich, 1 for the anti-Itô (Hänggi-Klimontovich) convention. Times are read at the stepper's clock.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.dynamics import AbstractDynamics, Underdamped
from thermojax.ensemble import Step
from thermojax.functionals._thermodynamic import driven_of, moved, push_at
from thermojax.phase import Phase, position_of


class StochasticIntegral(eqx.Module):
    r"""$\int g(t, x)\cdot dx$ in the convention $\alpha$: $\sum g(t_c, x_\alpha)\cdot\Delta x$.

    A current of the system, and the building block of heat and entropy. `convention_change` takes it from one convention to another.
    """

    field: Callable[[Array, Array], Array]
    """$g(t, x)$, of shape ``(dim,)``."""
    convention: float = eqx.field(static=True, default=0.5)
    r"""$\alpha$."""

    def __check_init__(self):
        _check_convention(self.convention)

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        x0, x1 = position_of(step.x0), position_of(step.x1)
        return jnp.sum(self.field(step.t, x0 + self.convention * (x1 - x0)) * (x1 - x0))


class OnsagerMachlup(eqx.Module):
    r"""The Onsager-Machlup action, minus the logarithm of the density of the path up to a constant, in any convention:
    $S_\alpha = \sum\left[\sum_i\frac{(\Delta x_i - b_i h)^2}{2\sigma_i^2 h} + \alpha h\,\nabla\cdot b\right]$ with the drift at
    $x_\alpha$, for short steps.

    At $\alpha = 0$ it is exactly minus the log-density of Euler's step, without its normaliser
    $\sum_i\tfrac12\ln(2\pi\sigma_i^2 h)$. What the reversed path has more in the convention $1 - \alpha$ is the entropy of the medium;
    at 1/2 exactly `medium_entropy_stratonovich`.

    References:
        L. Onsager, S. Machlup, Phys. Rev. 91, 1505 (1953). Conventions: L. F. Cugliandolo, V. Lecomte, J. Phys. A 50, 345001 (2017).
    """

    convention: float = eqx.field(static=True, default=0.5)
    r"""$\alpha$."""

    def __check_init__(self):
        _check_convention(self.convention)

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        require(not isinstance(step.x0, Phase), "dynamics", "be overdamped for the Onsager-Machlup action", type(step.dynamics).__name__)
        h, distance = step.t1 - step.t0, step.x1 - step.x0
        drift = lambda x: step.dynamics.drift(step.t, x)
        x = step.x0 + self.convention * distance
        miss = (distance - drift(x) * h) / step.dynamics.noise(step.t)
        action = 0.5 * jnp.sum(miss**2) / h
        if self.convention == 0.0:
            return action
        return action + self.convention * h * jnp.trace(jax.jacfwd(drift)(x))


def convention_change(field: Callable[[Array, Array], Array], start: float, stop: float) -> Callable[[Step], Array]:
    r"""What a `StochasticIntegral` of `field` in the convention `stop` has more than in the convention `start`.

    $(\alpha' - \alpha)\int\sum_i\sigma_i^2\,\partial_i g_i\,dt$, read at the left of the step; from Itô (0) to Stratonovich (1/2) it is the
    familiar correction.
    """

    def functional(step: Step) -> Array:
        slope = jax.jacfwd(lambda x: field(step.t, x))(position_of(step.x0))
        noise = jnp.zeros_like(step.t) if isinstance(step.x0, Phase) else step.dynamics.noise(step.t)
        variance = jnp.broadcast_to(noise**2, position_of(step.x0).shape)
        return (stop - start) * jnp.sum(variance * jnp.diagonal(slope)) * (step.t1 - step.t0)

    return functional


def work_stratonovich(step: Step) -> Scalar:
    r"""$\partial_\lambda V(\bar x, \bar\lambda)\cdot\Delta\lambda + f\cdot\Delta x$ at the midpoint of the step; for protocols without
    jumps.
    """
    lam0, lam1 = _control_ends(step)
    middle = 0.5 * (position_of(step.x0) + position_of(step.x1))
    return _power(step, middle, 0.5 * (lam0 + lam1)) + push_at(step, middle, driven_of(step).protocol(step.t))


def work_ito(step: Step) -> Scalar:
    r"""$\partial_\lambda V(x_0, \lambda_0)\cdot\Delta\lambda + f(x_0, \lambda_0)\cdot\Delta x$ at the left of the step; for protocols
    without jumps.

    Never an objective: an optimiser finds protocols that make this sum as negative as it likes.
    """
    lam0, _ = _control_ends(step)
    x0 = position_of(step.x0)
    return _power(step, x0, lam0) + push_at(step, x0, lam0)


def heat_stratonovich(step: Step) -> Scalar:
    r"""$F\circ\Delta x$ with the total force at the midpoint of the step, less what the kinetic energy gained."""
    return StochasticIntegral(driven_of(step).total_force, 0.5)(step) - _kinetic_gain(step, 1.0)


def heat_ito(step: Step) -> Scalar:
    r"""$F\cdot\Delta x$ with the total force at the left of the step; add `heat_ito_correction` to have the Stratonovich sum."""
    return StochasticIntegral(driven_of(step).total_force, 0.0)(step) - _kinetic_gain(step, 1.0)


def heat_ito_correction(step: Step) -> Scalar:
    r"""The conversion $\int F\circ dx - \int F\cdot dx = \int \tfrac12\sum_i\sigma_i^2\,\partial_i F_i\,dt$, at the left of the step."""
    return convention_change(driven_of(step).total_force, 0.0, 0.5)(step)


def medium_entropy_stratonovich(step: Step) -> Scalar:
    r"""$2b(t_c, \bar x)/\sigma^2\cdot\Delta x$ at the midpoint of the step: $\beta F\circ dx$ for any diffusion, with a potential or
    without; with inertia $\beta\,[F\circ dx - d(\tfrac12mv^2)]$. Each coordinate may have its own bath.
    """
    if isinstance(step.x0, Phase):
        beta = driven_of(step).bath(step.t)
        field = lambda t, x: beta * driven_of(step).total_force(t, x)
        return StochasticIntegral(field, 0.5)(step) - _kinetic_gain(step, beta)
    dynamics: AbstractDynamics = step.dynamics
    return StochasticIntegral(lambda t, x: 2.0 * dynamics.drift(t, x) / dynamics.noise(t) ** 2, 0.5)(step)


def _control_ends(step):
    protocol = driven_of(step).protocol
    return protocol(step.t0), protocol(step.t1)


def _power(step, position, lam):
    lam0, lam1 = _control_ends(step)
    return jnp.sum(jax.grad(lambda l: driven_of(step).potential(position, l))(lam) * (lam1 - lam0))


def _kinetic_gain(step, scale):
    driven = driven_of(step)
    if not isinstance(driven, Underdamped):
        return jnp.zeros_like(step.t)
    x0, x1 = moved(step)
    gain = 0.5 * driven.mass * (x1.velocity - x0.velocity) * (x1.velocity + x0.velocity)
    return jnp.sum(scale * gain)


def _check_convention(convention):
    require(0.0 <= convention <= 1.0, "convention", "lie between 0 (Itô) and 1 (anti-Itô)", convention)
