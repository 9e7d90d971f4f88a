"""What a bridge is: a reference process, a time interval, and a guide in each direction."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, check_times, ensure, library_of, require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, AbstractNoising, Reversed
from thermojax.measures import Diffusions, Tilted
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractStepper

Guide = Callable[[Array, Array], Array]
r"""``guide(t, x)``: the gradient of the logarithm of what a reference process is weighted with, of shape ``(dim,)``."""


class Brownian(AbstractNoising):
    r"""$dx = \sigma\,dW$: the reference of Schrödinger's problem."""

    sigma: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""The noise $\sigma$."""

    def __check_init__(self):
        check_positive(self.sigma, "sigma")

    def drift(self, t, x):
        del t
        return jnp.zeros_like(x)

    def noise(self, t):
        del t
        return self.sigma

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def variance(self, t):
        return self.sigma**2 * t

    def transition(self, t0, t1):
        return jnp.ones_like(t1 - t0), self.variance(t1 - t0)


class Guided(AbstractDynamics):
    r"""A reference process under a guide, $dx = [f(t, x) + \sigma_t^2\,g(t, x)]\,dt + \sigma_t\,dW$: Doob's transform."""

    reference: AbstractDynamics
    r"""The process without the guide, of drift $f$ and noise $\sigma$."""
    guide: Guide
    """$g(t, x)$."""

    def drift(self, t, x):
        return self.reference.drift(t, x) + self.reference.noise(t) ** 2 * self.guide(t, x)

    def noise(self, t):
        return self.reference.noise(t)


class Samples(AbstractDistribution):
    """Samples, drawn from with replacement. They have no density."""

    xs: Float[Array, "sample dim"] = eqx.field(converter=check_configurations)
    """The samples."""

    def sample(self, n, *, key):
        return self.xs[jr.randint(key, (n,), 0, self.xs.shape[0])]

    def log_prob(self, x):
        raise TypeError("`density` must be a distribution whose density is known where that is asked for, got samples.")

    def score(self, x):
        return self.log_prob(x)


class AbstractBridge(eqx.Module):
    r"""A process from one density to another, in the interval from $t_0$ to $t_1$, by guides of a reference process.

    Its drift is $f + \sigma^2 g$ forward, and $-f + \sigma^2\hat g$ backward, in its own time $t_0 + t_1 - t$. Where the one is the time
    reversal of the other, $g + \hat g$ is the score.
    """

    initial: eqx.AbstractVar[AbstractDistribution]
    """The density at $t_0$."""
    final: eqx.AbstractVar[AbstractDistribution]
    """The density at $t_1$."""
    reference: eqx.AbstractVar[AbstractNoising]
    """The reference process."""
    t0: eqx.AbstractVar[Scalar]
    """The beginning of the interval."""
    t1: eqx.AbstractVar[Scalar]
    """Its end."""

    @property
    @abc.abstractmethod
    def guide(self) -> Any:
        r"""$g$, a `Guide`; for a Schrödinger bridge $\nabla\ln h_t$ with $h_t(x) = \langle h_{t_1}(x_{t_1})\mid x_t = x\rangle$ in the
        reference.
        """

    @property
    @abc.abstractmethod
    def reverse_guide(self) -> Any:
        r"""$\hat g$, in forward time $t$; for a Schrödinger bridge $\nabla\ln\hat h_t$ with $p_t = h_t\hat h_t$."""

    @property
    def dynamics(self) -> Guided:
        """What moves from the first density to the last."""
        return Guided(self.reference, self.guide)

    @property
    def reverse(self) -> Reversed:
        """What moves from the last density to the first, in its own time."""
        return Reversed(self.reference, self.reverse_guide, self.t0 + self.t1)

    def score(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        r"""$\nabla\ln p_t(x) = g + \hat g$, if the two directions are one process."""
        return self.guide(t, x) + self.reverse_guide(t, x)

    def against(self, other: AbstractDynamics, ts: ArrayLike, *, stepper: AbstractStepper | None = None) -> Tilted:
        r"""The pair of this process and another one of the same noise, the reference or another bridge, from the same first density.

        $\ell = \ln dP/dR$ with $Z = 1$: its mean is the path KL divergence of the kernels, exactly.

        Args:
            other: What moves the second process.
            ts: Times of the steps, in the interval.
            stepper: Kernel of both, which must have the same spread; Euler-Maruyama if omitted.

        Raises:
            ValueError: if a time is outside of the interval.
        """
        return Tilted(self.initial, self.dynamics, other, self._inside(ts), stepper=stepper)

    def directions(self, ts: ArrayLike, *, stepper: AbstractStepper | None = None) -> Diffusions:
        r"""The pair of both directions, $Z = 1$; for a perfect bridge $\ell$ is zero up to the time step.

        Args:
            ts: Times of the steps, from $t_0$ to $t_1$.
            stepper: Kernel of both; Euler-Maruyama if omitted.

        Raises:
            ValueError: if the times do not fill the interval.
        """
        ts = self._inside(ts)
        whole = jnp.isclose(ts[0], self.t0) & jnp.isclose(ts[-1], self.t1)
        ts = ensure(ts, whole, "ts", f"go through the whole interval of the bridge{_ends(self)}", ts)
        return Diffusions(self.initial, self.dynamics, self.final, self.reverse, ts, stepper=stepper)

    def _inside(self, ts):
        ts = check_times(jnp.asarray(ts, self.t1.dtype))
        return inside(self, ts, "ts")


def inside(bridge: Any, t: Array, name: str) -> Array:
    """Return times if they lie in the interval of a bridge."""
    xp = library_of(t + bridge.t1)
    slack = 8 * float(jnp.finfo(t.dtype).eps) * xp.maximum(xp.abs(bridge.t0), xp.abs(bridge.t1))
    good = (t >= bridge.t0 - slack) & (t <= bridge.t1 + slack)
    return ensure(t, good, name, f"lie in the interval of the bridge{_ends(bridge)}", t)


def _ends(bridge):
    known = not isinstance(bridge.t0 + bridge.t1, Tracer)
    return f", from {float(bridge.t0):g} to {float(bridge.t1):g}" if known else ""


def check_interval(reference: AbstractNoising, t0: Scalar, t1: Scalar) -> None:
    """Raise an error unless a reference can be bridged in an interval."""
    if not isinstance(reference, AbstractNoising):
        kind = type(reference).__name__
        raise TypeError(f"`reference` must be a linear process with a known transition (`Brownian`, `OrnsteinUhlenbeck`, …), got {kind}.")
    ensure(t1, library_of(t1 - t0).isfinite(t1 - t0) & (t1 > t0), "t1", "be later than `t0`", t1)
    variance = reference.transition(t0, t1)[1]
    require(jnp.shape(variance) == (), "reference", "have one noise for all coordinates", f"shape {jnp.shape(variance)}")


def pin(reference: AbstractNoising, t0: Scalar, t: Scalar, t1: Scalar, blur: ArrayLike = 0.0) -> tuple[Scalar, Scalar, Scalar]:
    r"""The reference between two fixed ends: $x_t \mid x_{t_0}, y \sim N(r x_{t_0} + s y, \tau)$.

    Here $y$ is $x_{t_1}$ with Gaussian noise of variance `blur`. With the transitions $(a, q)$ from $t_0$ to $t$ and $(b, w)$ from $t$ to
    $t_1$, the blur added to $w$, and $v = b^2q + w$: $r = aw/v$, $s = bq/v$ and $\tau = qw/v$.
    """
    a, q = reference.transition(t0, t)
    b, w = reference.transition(t, t1)
    w = w + blur
    v = b**2 * q + w
    return a * w / v, b * q / v, q * w / v
