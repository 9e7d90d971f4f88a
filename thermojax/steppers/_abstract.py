"""What a stepper is, and the noise of one step."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.dynamics import AbstractDynamics, kick_after, kick_before, Underdamped
from thermojax.phase import first_of, Phase, position_of, State, States


class AbstractStepper(eqx.Module):
    """A Markov kernel that takes one particle from `t0` to `t1`, driven by standard normals."""

    normals: eqx.AbstractVar[int]
    """How many standard normals a step takes for each coordinate."""
    clock: eqx.AbstractVar[float]
    """Where in the step the coefficients are read, from 0 (left) to 1 (right)."""

    def clock_at(self, t0: Scalar, t1: Scalar) -> Scalar:
        """The time in the step at which the coefficients are read."""
        return t0 + self.clock * (t1 - t0)

    @abc.abstractmethod
    def reversal(self) -> "AbstractStepper":
        """The stepper that makes the reversed path under the reversed protocol by the same kernels."""

    @abc.abstractmethod
    def check(self, dynamics: AbstractDynamics, ts: Float[Array, " time"], x0s: States) -> States:
        """Return `x0s` if this stepper can step `dynamics`; called once, before the first step."""

    @abc.abstractmethod
    def __call__(self, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: State, zs: Float[Array, "normal dim"]) -> State:
        """The state at `t1`, if the protocol gives no kick."""


def check_clock(clock: float) -> None:
    """Raise ``ValueError`` unless a clock lies in its step."""
    require(0.0 <= clock <= 1.0, "clock", "lie between 0 and 1", clock)


def advance(
    stepper: AbstractStepper, dynamics: AbstractDynamics, t0: Scalar, t1: Scalar, x0: State, zs: Float[Array, "normal dim"]
) -> State:
    """One whole step: the protocol's kick at its beginning, if there is one, the move, the kick at its end."""
    return kick_after(dynamics, t0, t1, stepper(dynamics, t0, t1, kick_before(dynamics, t0, t1, x0), zs))


class StepNoise(diffrax.AbstractBrownianPath):
    """The Brownian motion of one step, made of standard normals that were drawn elsewhere.

    It is a function of those normals and of the length of the step alone: reproducible, and differentiable in the times.
    """

    zs: Float[Array, "normal dim"]
    phase: bool = eqx.field(static=True, default=False)
    """Whether it drives a `Phase`, of which it moves the velocities alone."""
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
        h, count = jnp.asarray(t1 - t0), self.zs.shape[0]
        dt = Phase(h, h) if self.phase else h
        increment = self._driven(jnp.sqrt(h) * self.zs[0])
        if not use_levy:
            return increment
        if count == 1:
            return diffrax.BrownianIncrement(dt=dt, W=increment)
        area = self._driven(jnp.sqrt(h / 12) * self.zs[1])
        if count == 2:
            return diffrax.SpaceTimeLevyArea(dt=dt, W=increment, H=area)
        return diffrax.SpaceTimeTimeLevyArea(dt=dt, W=increment, H=area, K=self._driven(jnp.sqrt(h / 720) * self.zs[2]))

    def _driven(self, velocity):
        return Phase(jnp.zeros_like(velocity), velocity) if self.phase else velocity


def sde_terms(drift: Callable, noise: Callable, zs: Float[Array, "normal dim"], x: State) -> diffrax.MultiTerm:
    """Drift and noise as terms of diffrax; the noise of a `Phase` drives its velocity alone."""
    spread = lambda amplitude: jax.tree.map(lambda a, like: jnp.broadcast_to(a, like.shape), amplitude, x)
    return diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: drift(t, y)),
        diffrax.ControlTerm(lambda t, y, args: lx.DiagonalLinearOperator(spread(noise(t))), StepNoise(zs, isinstance(x, Phase))),
    )


def check_shapes(dynamics: AbstractDynamics, ts: Float[Array, " time"], x0s: States) -> States:
    """Return `x0s` if drift and noise of `dynamics` have the shapes of one of these states."""
    phase = isinstance(dynamics, Underdamped)
    require(isinstance(x0s, Phase) or not phase, "x0s", "be a `Phase` of positions and velocities for underdamped dynamics", "an array")
    dim = position_of(x0s).shape[1]
    found = jax.eval_shape(lambda ts, xs: (dynamics.drift(ts[0], first_of(xs)), dynamics.noise(ts[0]), first_of(xs)), ts, x0s)
    drift, noise, shapes = jax.tree.map(jnp.shape, found)
    require(drift == shapes, "dynamics", f"have a drift of shape {shapes}, like one of `x0s`", f"shape {drift}")
    rule = f"have one noise amplitude, or one per coordinate ({dim},)"
    for shape in noise if isinstance(noise, Phase) else [noise]:
        require(shape in ((), (dim,)), "dynamics", rule, f"shape {shape}")
    return x0s
