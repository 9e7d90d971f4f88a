"""Work, heat and the entropy of the medium in Crooks' order: exact balances on the grid."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.dynamics import AbstractLangevin, Escorted, kick_before, undo_kick_after
from thermojax.ensemble import Step
from thermojax.phase import position_of


def energy_change(step: Step) -> Scalar:
    r"""Change of the internal energy; the first law is `work` = `energy_change` + `heat`."""
    driven = driven_of(step)
    return driven.energy(step.t1, step.x1) - driven.energy(step.t0, step.x0)


def work(step: Step) -> Scalar:
    r"""Work done on the system: by the switches and kicks in Crooks' order, and by the nonconservative force, $\sum f\circ dx$
    (trapezoidal).
    """
    first, second = _switches(step, lambda t: 1.0)
    return first + second + _pushed(step)


def heat(step: Step) -> Scalar:
    """Heat dissipated into the medium: the particle moves at fixed control.

    With inertia it includes what the time step did to the energy, which `shadow_work` tells apart.
    """
    driven, lam = driven_of(step), driven_of(step).protocol(step.t)
    x0, x1 = moved(step)
    return driven.energy_at(x0, lam) - driven.energy_at(x1, lam) + _pushed(step)


def medium_entropy(step: Step) -> Scalar:
    r"""Entropy gained by the medium, $\beta(t_c)$ times `heat`."""
    return beta_of(step, step.t) * heat(step)


def reduced_work(step: Step) -> Scalar:
    r"""Reduced work $Y$: the switches and kicks of $u = \beta E$ in Crooks' order, $\lambda$ and $\beta$ together, and $\beta\int
    f\circ dx$.

    $\langle e^{-Y}\rangle = Z_\tau/Z_0$ from equilibrium; for constant $\beta$ it is $\beta W$.
    """
    first, second = _switches(step, lambda t: beta_of(step, t))
    return first + second + beta_of(step, step.t) * _pushed(step)


def moved(step: Step) -> tuple[Any, Any]:
    """The states between which the step moved: after the protocol's kick at its beginning, before the kick at its end."""
    return kick_before(step.dynamics, step.t0, step.t1, step.x0), undo_kick_after(step.dynamics, step.t0, step.t1, step.x1)


def driven_of(step: Step) -> AbstractLangevin:
    """The driven dynamics of the step.

    Raises:
        ValueError: if it has no potential, protocol and bath.
    """
    dynamics = step.dynamics.driven if isinstance(step.dynamics, Escorted) else step.dynamics
    rule = "have a potential, a protocol and a bath, for work and heat"
    require(isinstance(dynamics, AbstractLangevin), "dynamics", rule, type(dynamics).__name__)
    return dynamics


def beta_of(step: Step, t: Scalar) -> Scalar:
    """The one inverse temperature at time `t`.

    Raises:
        ValueError: if there are several baths.
    """
    beta = jnp.asarray(driven_of(step).bath(t))
    rule = "return one beta for all coordinates here; use `medium_entropy_stratonovich` or `log_ratio` between several baths"
    require(jnp.ndim(beta) == 0, "bath", rule, f"shape {jnp.shape(beta)}")
    return beta


def push_at(step: Step, position: Array, lam: ArrayLike) -> Scalar:
    r"""$f(x, \lambda)\cdot\Delta x$, or zero without a nonconservative force."""
    push, distance = driven_of(step).nonconservative, position_of(step.x1) - position_of(step.x0)
    return jnp.zeros((), distance.dtype) if push is None else jnp.sum(push(position, jnp.asarray(lam)) * distance)


def _pushed(step):
    lam = driven_of(step).protocol(step.t)
    return 0.5 * (push_at(step, position_of(step.x0), lam) + push_at(step, position_of(step.x1), lam))


def _switches(step, scale):
    """The changes of `scale` times the energy at both ends of a step, by switches and kicks."""
    driven = driven_of(step)
    u = lambda t, x: scale(t) * driven.energy(t, x)
    x0, x1 = moved(step)
    return u(step.t, x0) - u(step.t0, step.x0), u(step.t1, step.x1) - u(step.t, x1)
