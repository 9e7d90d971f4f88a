r"""Dynamics: stochastic differential equations $dx = b(t, x)\,dt + \sigma(t)\,dW$ with additive noise, for one particle.

- `Overdamped`: Langevin dynamics in a potential that is driven, in a bath that may change.
- Noising processes $dx = -r(t)\,x\,dt + \sigma(t)\,dW$ (`OrnsteinUhlenbeck`, `VariancePreserving`,
  `LogSnrLinear`, `VarianceExploding`), whose transition densities are known.
- `Reversed` and `ProbabilityFlow`: the time reversal of another process, by a score $s(t, x) \approx \nabla\ln p_t(x)$,
  as an SDE and as an ODE. They run in their own time $u = T - t$.

The noise is one number, or one per coordinate. $k_B = 1$ and $D = \sigma^2/2 = \mu/\beta$.
"""

import abc
from collections.abc import Callable
from typing import cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive
from thermojax.baths import Bath, ConstantMobility, Isothermal
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.potentials import energy, force, Potential
from thermojax.protocols import Protocol

Score = Callable[[Array, Array], Array]
Closed = TypeVar("Closed", bound=Gaussian | GaussianMixture)


class AbstractDynamics(eqx.Module):
    r"""A diffusion $dx = b(t, x)\,dt + \sigma(t)\,dW$ with additive noise."""

    @abc.abstractmethod
    def drift(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The drift $b$."""

    @abc.abstractmethod
    def noise(self, t: Scalar) -> Float[Array, "..."]:
        r"""The noise amplitude $\sigma$, a number or one per coordinate."""


def _as_mobility(value: "ArrayLike | Callable[[Array], Array]") -> "Callable[[Array], Array]":
    return value if callable(value) else ConstantMobility(value)


class Overdamped(AbstractDynamics):
    r"""Overdamped Langevin dynamics, $dx = \mu_t\,[-\nabla V(x, \lambda_t) + f(x, \lambda_t)]\,dt + \sqrt{2\mu_t/\beta_t}\,dW$."""

    potential: Potential
    r"""$V(x, \lambda)$."""
    protocol: Protocol
    r"""$\lambda(t)$."""
    bath: Bath = eqx.field(default_factory=Isothermal)
    r"""$\beta(t)$."""
    mobility: Callable[[Array], Array] = eqx.field(converter=_as_mobility, default=1.0)
    r"""$\mu(t)$, or a number; the diffusion constant is $\mu/\beta$."""
    nonconservative: Callable[[Array, Array], Array] | None = None
    r"""$f(x, \lambda)$, a force that is not a gradient, of shape ``(dim,)``; none if omitted."""

    def drift(self, t, x):
        lam = self.protocol(t)
        total = force(self.potential, x, lam)
        if self.nonconservative is not None:
            total = total + self.nonconservative(x, lam)
        return self.mobility(t) * total

    def noise(self, t):
        return jnp.sqrt(2.0 * self.mobility(t) / self.bath(t))

    def energy(self, t: Scalar, x: Float[Array, " dim"]) -> Scalar:
        r"""The internal energy $V(x, \lambda_t)$."""
        return energy(self.potential, x, self.protocol(t))


class AbstractNoising(AbstractDynamics):
    r"""A linear noising process $dx = -r(t)\,x\,dt + \sigma(t)\,dW$.

    Its transition is $x_t \mid x_0 \sim N(\alpha(t)\,x_0, v(t))$ with the same $\alpha$ and $v$ in every coordinate. A process may
    start with a little noise: $v(0)$ need not be zero.
    """

    @abc.abstractmethod
    def log_alpha(self, t: Scalar) -> Scalar:
        r"""The logarithm of the factor $\alpha(t)$ by which the data have shrunk."""

    @abc.abstractmethod
    def variance(self, t: Scalar) -> Scalar:
        r"""The variance $v(t)$ of the noise in $x_t$."""

    @abc.abstractmethod
    def transition(self, t0: Scalar, t1: Scalar) -> tuple[Scalar, Scalar]:
        r"""Factor and variance of the step: $x_{t_1} \mid x_{t_0} \sim N(a\,x_{t_0}, w)$."""

    def alpha(self, t: Scalar) -> Scalar:
        r"""The factor $\alpha(t)$ by which the data have shrunk."""
        return jnp.exp(self.log_alpha(t))

    def marginal(self, data: Closed, t: Scalar) -> Closed:
        """The density at time `t` of data that are a Gaussian or a mixture, exactly."""
        return cast(Closed, data.push(self.alpha(t), self.variance(t)))


class OrnsteinUhlenbeck(AbstractNoising):
    r"""$dx = -r\,x\,dt + \sqrt{2rT}\,dW$: relaxation at rate $r$ to a Gaussian of variance $T$."""

    rate: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The rate $r$."""
    temperature: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The variance $T$ at late times."""

    def __check_init__(self):
        check_positive(self.rate, "rate")
        check_positive(self.temperature, "temperature")

    def drift(self, t, x):
        del t
        return -self.rate * x

    def noise(self, t):
        del t
        return jnp.sqrt(2.0 * self.rate * self.temperature)

    def log_alpha(self, t):
        return -self.rate * t

    def variance(self, t):
        return -self.temperature * jnp.expm1(-2.0 * self.rate * t)

    def transition(self, t0, t1):
        return self.alpha(t1 - t0), self.variance(t1 - t0)


class VariancePreserving(AbstractNoising):
    r"""$dx = -\tfrac12 b\,x\,dt + \sqrt{b}\,dW$ with $b$ linear in time, from `start` at $t = 0$ to `stop` at $t = 1$.

    Reference:
        Y. Song et al., arXiv:2011.13456 (2021), eq. (32).
    """

    start: Scalar = eqx.field(converter=as_scalar, default=0.1)
    """$b$ at time 0."""
    stop: Scalar = eqx.field(converter=as_scalar, default=20.0)
    """$b$ at time 1."""

    def __check_init__(self):
        check_positive(self.start, "start")
        check_positive(self.stop, "stop")

    def drift(self, t, x):
        return -0.5 * self.noise(t) ** 2 * x

    def noise(self, t):
        return jnp.sqrt(self.start + (self.stop - self.start) * t)

    def log_alpha(self, t):
        return -0.5 * t * (self.start + 0.5 * (self.stop - self.start) * t)

    def variance(self, t):
        return -jnp.expm1(2.0 * self.log_alpha(t))

    def transition(self, t0, t1):
        return _preserving_step(self, t0, t1)


class LogSnrLinear(AbstractNoising):
    r"""A variance-preserving process whose log signal-to-noise ratio $\gamma = \ln(\alpha^2/v)$ falls linearly on $0 \le t \le 1$.

    $\alpha^2 = 1/(1 + e^{-\gamma})$ and $v = 1 - \alpha^2$: equal times are equal factors of noise, and path KL per unit time is
    the score error itself. At $t = 0$ the data already carry noise of variance $v(0) \approx e^{-\gamma(0)}$.

    Reference:
        D. P. Kingma et al., Variational diffusion models, arXiv:2107.00630 (2021).
    """

    start: Scalar = eqx.field(converter=as_scalar, default=12.0)
    r"""$\gamma$ at time 0."""
    stop: Scalar = eqx.field(converter=as_scalar, default=-9.0)
    r"""$\gamma$ at time 1."""

    def __check_init__(self):
        check_positive(self.start - self.stop, "start - stop")

    def log_snr(self, t: Scalar) -> Scalar:
        r"""The log signal-to-noise ratio $\gamma(t)$."""
        return self.start + (self.stop - self.start) * t

    def drift(self, t, x):
        return -0.5 * self.noise(t) ** 2 * x

    def noise(self, t):
        return jnp.sqrt((self.start - self.stop) * self.variance(t))

    def log_alpha(self, t):
        return 0.5 * jax.nn.log_sigmoid(self.log_snr(t))

    def variance(self, t):
        return jax.nn.sigmoid(-self.log_snr(t))

    def transition(self, t0, t1):
        return _preserving_step(self, t0, t1)


class VarianceExploding(AbstractNoising):
    r"""$dx = \sigma(t)\,dW$ such that the standard deviation of the noise grows geometrically from `start` to `stop` on $0 \le t \le 1$.

    Reference:
        Y. Song et al., arXiv:2011.13456 (2021), eq. (30).
    """

    start: Scalar = eqx.field(converter=as_scalar, default=0.01)
    """Standard deviation of the noise at time 0."""
    stop: Scalar = eqx.field(converter=as_scalar, default=50.0)
    """Standard deviation of the noise at time 1."""

    def __check_init__(self):
        check_positive(self.start, "start")
        check_positive(self.stop, "stop")

    def drift(self, t, x):
        del t
        return jnp.zeros_like(x)

    def noise(self, t):
        return jnp.sqrt(2.0 * jnp.log(self.stop / self.start) * self.variance(t))

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def variance(self, t):
        return self.start**2 * (self.stop / self.start) ** (2.0 * t)

    def transition(self, t0, t1):
        return jnp.ones_like(t0), self.variance(t1) - self.variance(t0)


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


def _preserving_step(noising, t0, t1):
    # 1 - a^2 by expm1: the difference of two variances near one would lose the digits of a short step.
    log_factor = noising.log_alpha(t1) - noising.log_alpha(t0)
    return jnp.exp(log_factor), -jnp.expm1(2.0 * log_factor)
