"""Gaussian kernels: Euler-Maruyama, and the exact transition of a linear process."""

import abc
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import expm, solve_triangular
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import ensure, require
from thermojax.dynamics import AbstractDynamics, AbstractNoising
from thermojax.phase import Amplitude, Phase, State
from thermojax.steppers._abstract import AbstractStepper, check_clock, check_shapes, sde_terms


class AbstractGaussianStepper(AbstractStepper):
    """A kernel $K(x_1|x_0) = N(x_0 + d(x_0), L L^T)$ whose spread does not depend on the configuration."""

    @abc.abstractmethod
    def increment(self, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: State) -> tuple[State, Amplitude]:
        """The mean increment $d(x_0)$ and the factor $L$: a standard deviation, one per coordinate, or a triangular matrix."""


class EulerMaruyama(AbstractGaussianStepper):
    r"""Euler's step with the clock in its middle: $x_1 = x_0 + b(t_c, x_0)\,h + \sigma(t_c)\sqrt{h}\,z$; weak order 1.

    Taken by `diffrax.Euler`.
    """

    clock: float = eqx.field(static=True, default=0.5)
    """Where in the step the coefficients are read, from 0 (left) to 1 (right)."""
    normals: ClassVar[int] = 1

    def __check_init__(self):
        check_clock(self.clock)

    def reversal(self):
        return EulerMaruyama(1.0 - self.clock)

    def check(self, dynamics, ts, x0s):
        return check_shapes(dynamics, ts, x0s)

    def increment(self, dynamics, t0, t1, x0):
        t, h = self.clock_at(t0, t1), t1 - t0
        drift, noise = dynamics.drift(t, x0), dynamics.noise(t)
        return jax.tree.map(lambda b: b * h, drift), jax.tree.map(lambda s: s * jnp.sqrt(h), noise)

    def __call__(self, dynamics, t0, t1, x0, zs):
        t = self.clock_at(t0, t1)
        frozen = sde_terms(lambda _, x: dynamics.drift(t, x), lambda _: dynamics.noise(t), zs, x0)
        return diffrax.Euler().step(frozen, t0, t1, x0, None, None, False)[0]


class ExactLinear(AbstractGaussianStepper):
    r"""The exact transition of a linear process, for any step.

    For a noising process it is the transition from `t0` to `t1`. For any other dynamics whose drift is linear in $x$ (normal or
    not: the covariance solves the full Lyapunov equation) it is the transition under the coefficients frozen at the clock, which
    leaves $e^{-\beta V}$ exactly invariant where the force is a gradient.

    Reference:
        C. F. Van Loan, IEEE Trans. Autom. Control 23, 395 (1978).
    """

    clock: float = eqx.field(static=True, default=0.5)
    """Where in the step the coefficients are read, from 0 (left) to 1 (right); of no consequence for noising processes."""
    normals: ClassVar[int] = 1

    def __check_init__(self):
        check_clock(self.clock)

    def reversal(self):
        return ExactLinear(1.0 - self.clock)

    def check(self, dynamics, ts, x0s):
        require(not isinstance(x0s, Phase), "x0s", "be configurations for `ExactLinear`; use `Splitting`", "a `Phase`")
        x0s = check_shapes(dynamics, ts, x0s)
        if isinstance(dynamics, AbstractNoising):
            return x0s
        slope = jax.jacfwd(lambda x: dynamics.drift(self.clock_at(ts[0], ts[1]), x))
        here, there = slope(x0s[0]), slope(x0s[0] + 1.0)
        close = jnp.abs(there - here) <= 1e3 * jnp.finfo(x0s.dtype).eps * (jnp.abs(here) + jnp.abs(there))
        rule = "have a drift that is linear in x for `ExactLinear`; use `EulerMaruyama`"
        return ensure(x0s, close, "dynamics", rule, "a drift whose Jacobian depends on x")

    def increment(self, dynamics, t0, t1, x0):
        if isinstance(dynamics, AbstractNoising):
            factor, variance = dynamics.transition(t0, t1)
            return (factor - 1.0) * x0, jnp.sqrt(variance)
        t, h, dim = self.clock_at(t0, t1), t1 - t0, x0.shape[0]
        drift = lambda x: dynamics.drift(t, x)
        origin = jnp.zeros_like(x0)
        slope = jax.jacfwd(drift)(origin)
        if dim == 1:
            return _relaxation(slope[0], drift(origin), dynamics.noise(t), h, x0)
        source = jnp.diag(jnp.broadcast_to(dynamics.noise(t) ** 2, (dim,)))
        # One exponential gives the propagator, the covariance and the integral of the constant force.
        zero = jnp.zeros((dim, dim), x0.dtype)
        blocks = expm(jnp.block([[-slope, source], [zero, slope.T]]) * h)
        propagator = blocks[dim:, dim:].T
        covariance = propagator @ blocks[:dim, dim:]
        shift = expm(jnp.block([[slope, jnp.eye(dim, dtype=x0.dtype)], [zero, zero]]) * h)[:dim, dim:] @ drift(origin)
        mean = (propagator - jnp.eye(dim, dtype=x0.dtype)) @ x0 + shift
        return mean, jnp.linalg.cholesky(0.5 * (covariance + covariance.T))

    def __call__(self, dynamics, t0, t1, x0, zs):
        mean, factor = self.increment(dynamics, t0, t1, x0)
        return x0 + mean + (factor @ zs[0] if factor.ndim == 2 else factor * zs[0])


def whiten(factor: Float[Array, "..."], x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    r"""$L^{-1}x$ for a spread $L$ that is a number, one per coordinate, or a triangular matrix."""
    return solve_triangular(factor, x, lower=True) if factor.ndim == 2 else x * (1.0 / factor)


def log_volume(factor: Float[Array, "..."], dim: int) -> Scalar:
    r"""The log-normaliser $\ln\det L + \tfrac{d}{2}\ln 2\pi$ of a Gaussian of spread $L$."""
    spread = jnp.diagonal(factor) if factor.ndim == 2 else jnp.broadcast_to(factor, (dim,))
    return jnp.sum(jnp.log(spread)) + 0.5 * dim * jnp.log(2 * jnp.pi)


def _relaxation(slope, constant, noise, h, x0):
    r"""Mean increment and spread of $dx = (a x + c)\,dt + \sigma\,dW$ after a time h, in one dimension."""
    # a -> 0 is free diffusion: the division is by one there, and the limit is taken instead.
    free = jnp.abs(slope) * h < jnp.finfo(x0.dtype).eps
    safe = jnp.where(free, 1.0, slope)
    grown = jnp.where(free, h, jnp.expm1(safe * h) / safe)
    doubled = jnp.where(free, h, jnp.expm1(2.0 * safe * h) / (2.0 * safe))
    return grown * (slope * x0 + constant), noise * jnp.sqrt(doubled)
