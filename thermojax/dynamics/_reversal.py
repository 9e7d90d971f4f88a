"""The time reversal of a process by its score, as an SDE and as an ODE."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from thermojax._array import as_scalar, Scalar
from thermojax.dynamics._langevin import AbstractDynamics

Score = Callable[[Array, Array], Array]


class Reversed(AbstractDynamics):
    r"""The time reversal of `forward`, driven by a score $s(t, x) \approx \nabla\ln p_t(x)$:
    $dy = [\sigma_t^2\, s(t, y) - b(t, y)]\,du + \sigma_t\,dW$ with $t = T - u$.

    Reference:
        B. D. O. Anderson, Stoch. Proc. Appl. 12, 313 (1982).
    """

    forward: AbstractDynamics
    """The process that is reversed."""
    score: Score
    """``score(t, x)`` in the time of `forward`."""
    horizon: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The time $T$ of `forward` at which the reversal starts."""

    def drift(self, t, x):
        u = self.horizon - t
        return self.forward.noise(u) ** 2 * self.score(u, x) - self.forward.drift(u, x)

    def noise(self, t):
        return self.forward.noise(self.horizon - t)


class ProbabilityFlow(AbstractDynamics):
    r"""The noise-free flow with the same marginals as `Reversed`: $dy = [\tfrac12\sigma_t^2\,s(t, y) - b(t, y)]\,du$ with $t = T - u$.

    Step it with any solver for ordinary differential equations, for instance ``steppers.Diffrax(diffrax.Heun())``.

    Reference:
        Y. Song et al., arXiv:2011.13456 (2021), eq. (13).
    """

    forward: AbstractDynamics
    """The process whose marginals the flow has."""
    score: Score
    """``score(t, x)`` in the time of `forward`."""
    horizon: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The time $T$ of `forward` at which the flow starts."""

    def drift(self, t, x):
        u = self.horizon - t
        return 0.5 * self.forward.noise(u) ** 2 * self.score(u, x) - self.forward.drift(u, x)

    def noise(self, t):
        return jnp.zeros_like(t)
