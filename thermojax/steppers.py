r"""Steppers: one-step Markov kernels, and their transition densities where these are known.

A stepper takes one particle from `t0` to `t1` by standard normals that it is given. `EulerMaruyama` and `ExactLinear` are Gaussian
kernels, so that the log-ratio of a path to its reversal, and of two processes on one path, is exact at any step (`functionals.log_ratio`);
`Diffrax` takes any fixed-step solver of diffrax, whose density is in general unknown.

The clock. Within its step a Gaussian kernel freezes the coefficients at ``t0 + clock * (t1 - t0)``. At a protocol's jumps and for
the reversal of a path the middle (``clock=0.5``) is the natural choice: forward and reversed protocols then use the same kernels on
the same grid, and a jump at either end is one sudden switch. ``clock=0`` is the textbook's left point: move under $\lambda_k$, then
switch; ``clock=1`` is the order of annealed importance sampling: switch, then move. For coefficients that do not depend on time the
three agree.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.scipy.linalg import expm, solve_triangular
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import ensure, require
from thermojax.dynamics import AbstractDynamics, AbstractNoising


class AbstractStepper(eqx.Module):
    """A Markov kernel that takes one particle from `t0` to `t1`, driven by standard normals."""

    normals: eqx.AbstractVar[int]
    """How many standard normals a step takes for each coordinate."""

    @abc.abstractmethod
    def clock_at(self, t0: Scalar, t1: Scalar) -> Scalar:
        """The time in the step at which functionals read the coefficients."""

    @abc.abstractmethod
    def check(self, dynamics: AbstractDynamics, ts: Float[Array, " time"], x0s: Float[Array, "sample dim"]) -> Array:
        """Return `x0s` if this stepper can step `dynamics`; called once, before the first step."""

    @abc.abstractmethod
    def __call__(
        self, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"], zs: Float[Array, "normal dim"]
    ) -> Float[Array, " dim"]:
        """The configuration at `t1`."""


class AbstractGaussianStepper(AbstractStepper):
    """A kernel $K(x_1|x_0) = N(x_0 + d(x_0), L L^T)$ whose spread does not depend on the configuration."""

    @abc.abstractmethod
    def increment(
        self, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"]
    ) -> tuple[Float[Array, " dim"], Float[Array, "..."]]:
        """The mean increment $d(x_0)$ and the factor $L$: a standard deviation, one per coordinate, or a triangular matrix."""


class EulerMaruyama(AbstractGaussianStepper):
    r"""Euler's step with the clock in its middle: $x_1 = x_0 + b(t_c, x_0)\,h + \sigma(t_c)\sqrt{h}\,z$; weak order 1.

    Taken by `diffrax.Euler`.
    """

    clock: float = eqx.field(static=True, default=0.5)
    """Where in the step the coefficients are read, from 0 (left) to 1 (right)."""
    normals: ClassVar[int] = 1

    def __check_init__(self):
        require(0.0 <= self.clock <= 1.0, "clock", "lie between 0 and 1", self.clock)

    def clock_at(self, t0, t1):
        return t0 + self.clock * (t1 - t0)

    def check(self, dynamics, ts, x0s):
        return _check_shapes(dynamics, ts, x0s)

    def increment(self, dynamics, t0, t1, x0):
        t, h = self.clock_at(t0, t1), t1 - t0
        return dynamics.drift(t, x0) * h, dynamics.noise(t) * jnp.sqrt(h)

    def __call__(self, dynamics, t0, t1, x0, zs):
        t = self.clock_at(t0, t1)
        frozen = _terms(lambda _, x: dynamics.drift(t, x), lambda _: dynamics.noise(t), zs, x0)
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
        require(0.0 <= self.clock <= 1.0, "clock", "lie between 0 and 1", self.clock)

    def clock_at(self, t0, t1):
        return t0 + self.clock * (t1 - t0)

    def check(self, dynamics, ts, x0s):
        x0s = _check_shapes(dynamics, ts, x0s)
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


class Diffrax(AbstractStepper):
    """Any fixed-step solver of diffrax, for instance ``Diffrax(diffrax.ShARK())`` or, without noise, ``Diffrax(diffrax.Heun())``.

    The solver starts anew at every step, so that a step is a Markov kernel; its transition density is unknown. Functionals read the
    coefficients in the middle of the step.
    """

    solver: diffrax.AbstractSolver
    """An explicit solver for additive noise (Itô and Stratonovich agree)."""

    @property
    def normals(self) -> int:
        """One for the increment, and one for each Lévy area that the solver asks for."""
        area = getattr(self.solver, "minimal_levy_area", diffrax.BrownianIncrement)
        space_time_time = issubclass(area, diffrax.AbstractSpaceTimeTimeLevyArea)
        return 3 if space_time_time else 2 if issubclass(area, diffrax.AbstractSpaceTimeLevyArea) else 1

    def clock_at(self, t0, t1):
        return t0 + 0.5 * (t1 - t0)

    def check(self, dynamics, ts, x0s):
        return _check_shapes(dynamics, ts, x0s)

    def __call__(self, dynamics, t0, t1, x0, zs):
        terms = _terms(dynamics.drift, dynamics.noise, zs, x0)
        state = self.solver.init(terms, t0, t1, x0, None)
        return self.solver.step(terms, t0, t1, x0, None, state, False)[0]


class StepNoise(diffrax.AbstractBrownianPath):
    """The Brownian motion of one step, made of standard normals that were drawn elsewhere.

    It is a function of those normals and of the length of the step alone: reproducible, and differentiable in the times.
    """

    zs: Float[Array, "normal dim"]
    levy_area: ClassVar[Any] = diffrax.SpaceTimeTimeLevyArea

    @property
    def t0(self):
        return -jnp.inf

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment from `t0` to `t1`, with as many Lévy areas as there are normals."""
        del left
        if t1 is None:
            raise ValueError("`t1` must be given: the noise of one step has increments only, got None.")
        h = t1 - t0
        increment = jnp.sqrt(h) * self.zs[0]
        if not use_levy:
            return increment
        if self.zs.shape[0] == 1:
            return diffrax.BrownianIncrement(dt=h, W=increment)
        area = jnp.sqrt(h / 12) * self.zs[1]
        if self.zs.shape[0] == 2:
            return diffrax.SpaceTimeLevyArea(dt=h, W=increment, H=area)
        return diffrax.SpaceTimeTimeLevyArea(dt=h, W=increment, H=area, K=jnp.sqrt(h / 720) * self.zs[2])


def log_density(
    stepper: AbstractStepper, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"], x1: Float[Array, " dim"]
) -> Scalar:
    r"""The log transition density $\ln K(x_1|x_0)$ of one step.

    Raises:
        TypeError: if the density of `stepper` is unknown.
    """
    gaussian = with_density(stepper)
    mean, factor = gaussian.increment(dynamics, t0, t1, x0)
    z = whiten(factor, x1 - x0 - mean)
    return -0.5 * jnp.sum(z**2) - log_volume(factor, x0.shape[0])


def log_reversal_ratio(
    stepper: AbstractStepper, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"], x1: Float[Array, " dim"]
) -> Scalar:
    r"""The log-ratio $\ln K(x_1|x_0) - \ln K(x_0|x_1)$ of one step to its reversal under the same coefficients.

    With mean increments $d_0, d_1$ at the two ends and everything in units of the spread it is
    $(d_0 + d_1)\cdot[x_1 - x_0 + \tfrac12(d_1 - d_0)]$: the large quadratic terms cancel on paper instead of in floating point.

    Raises:
        TypeError: if the density of `stepper` is unknown.
    """
    gaussian = with_density(stepper)
    out, factor = gaussian.increment(dynamics, t0, t1, x0)
    back, _ = gaussian.increment(dynamics, t0, t1, x1)
    return jnp.sum(whiten(factor, out + back) * whiten(factor, x1 - x0 + 0.5 * (back - out)))


def with_density(stepper: AbstractStepper) -> AbstractGaussianStepper:
    """Return `stepper` if it knows its transition density.

    Raises:
        TypeError: if it does not; the message names the steppers that do.
    """
    if not isinstance(stepper, AbstractGaussianStepper):
        name = type(stepper.solver if isinstance(stepper, Diffrax) else stepper).__name__
        raise TypeError(f"`stepper` must know its transition density (`EulerMaruyama` and `ExactLinear` do), got {name}.")
    return stepper


def whiten(factor: Float[Array, "..."], x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    r"""$L^{-1}x$ for a spread $L$ that is a number, one per coordinate, or a triangular matrix."""
    return solve_triangular(factor, x, lower=True) if factor.ndim == 2 else x / factor


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


def _terms(drift: Callable, noise: Callable, zs, x):
    amplitude = lambda t, y, args: lx.DiagonalLinearOperator(jnp.broadcast_to(noise(t), x.shape))
    return diffrax.MultiTerm(diffrax.ODETerm(lambda t, y, args: drift(t, y)), diffrax.ControlTerm(amplitude, StepNoise(zs)))


def _check_shapes(dynamics, ts, x0s):
    dim = x0s.shape[1]
    drift = jax.eval_shape(dynamics.drift, ts[0], x0s[0])
    require(drift.shape == (dim,), "dynamics", f"have a drift of shape ({dim},), like one of `x0s`", f"shape {drift.shape}")
    noise = jax.eval_shape(dynamics.noise, ts[0])
    rule = f"have one noise amplitude, or one per coordinate ({dim},)"
    require(noise.shape in ((), (dim,)), "dynamics", rule, f"shape {noise.shape}")
    return x0s
