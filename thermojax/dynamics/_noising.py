r"""Noising processes $dx = -r(t)\,x\,dt + \sigma(t)\,dW$: linear, with known transition densities."""

import abc
from typing import cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics._langevin import AbstractDynamics

Closed = TypeVar("Closed", bound=Gaussian | GaussianMixture)


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

    def transition(self, t0: Scalar, t1: Scalar) -> tuple[Scalar, Scalar]:
        r"""Factor and variance of the step: $x_{t_1} \mid x_{t_0} \sim N(a\,x_{t_0}, w)$."""
        # w = v_1 - a^2 v_0, written by expm1: the difference would lose the digits of a short step.
        factor = jnp.exp(self.log_alpha(t1) - self.log_alpha(t0))
        return factor, -self.variance(t1) * jnp.expm1(self.log_snr(t1) - self.log_snr(t0))

    def alpha(self, t: Scalar) -> Scalar:
        r"""The factor $\alpha(t)$ by which the data have shrunk."""
        return jnp.exp(self.log_alpha(t))

    def log_snr(self, t: Scalar) -> Scalar:
        r"""The log signal-to-noise ratio $\lambda(t) = \ln(\alpha^2/v)$, for data of unit variance."""
        return 2.0 * self.log_alpha(t) - jnp.log(self.variance(t))

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
        return preserving_step(self, t0, t1)


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

    def log_snr(self, t):
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
        return preserving_step(self, t0, t1)


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


def preserving_step(noising: AbstractNoising, t0: Scalar, t1: Scalar) -> tuple[Scalar, Scalar]:
    """The transition of a process that preserves unit variance."""
    # 1 - a^2 by expm1: the difference of two variances near one would lose the digits of a short step.
    log_factor = noising.log_alpha(t1) - noising.log_alpha(t0)
    return jnp.exp(log_factor), -jnp.expm1(2.0 * log_factor)
