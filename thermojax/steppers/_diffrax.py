"""Solvers of diffrax as steppers."""

from typing import ClassVar

import diffrax
import jax.numpy as jnp

from thermojax._check import require
from thermojax.dynamics import Underdamped
from thermojax.phase import Phase
from thermojax.steppers._abstract import AbstractStepper, check_shapes, sde_terms, StepNoise

_Inertial = diffrax.ALIGN | diffrax.QUICSORT | diffrax.ShOULD


class Diffrax(AbstractStepper):
    """Any fixed-step solver of diffrax, for instance ``Diffrax(diffrax.ShARK())`` or, without noise, ``Diffrax(diffrax.Heun())``.

    The solver starts anew at every step, so that a step is a Markov kernel; its transition density is unknown. Functionals read the
    coefficients in the middle of the step. The solvers for underdamped dynamics (``ALIGN``, ``ShOULD``, ``QUICSORT``) freeze them there.
    """

    solver: diffrax.AbstractSolver
    """An explicit solver for additive noise (Itô and Stratonovich agree)."""
    clock: ClassVar[float] = 0.5

    @property
    def normals(self) -> int:
        """One for the increment, and one for each Lévy area that the solver asks for."""
        area = getattr(self.solver, "minimal_levy_area", diffrax.BrownianIncrement)
        space_time_time = issubclass(area, diffrax.AbstractSpaceTimeTimeLevyArea)
        return 3 if space_time_time else 2 if issubclass(area, diffrax.AbstractSpaceTimeLevyArea) else 1

    def reversal(self):
        return self

    def check(self, dynamics, ts, x0s):
        if isinstance(self.solver, _Inertial):
            name = type(self.solver).__name__
            require(isinstance(dynamics, Underdamped), "dynamics", f"be underdamped for {name}", type(dynamics).__name__)
        return check_shapes(dynamics, ts, x0s)

    def __call__(self, dynamics, t0, t1, x0, zs):
        if isinstance(self.solver, _Inertial):
            return Phase(*self._step(self._inertial_terms(dynamics, t0, t1, x0, zs), t0, t1, tuple(x0)))
        return self._step(sde_terms(dynamics.drift, dynamics.noise, zs, x0), t0, t1, x0)

    def _step(self, terms, t0, t1, x0):
        state = self.solver.init(terms, t0, t1, x0, None)
        return self.solver.step(terms, t0, t1, x0, None, state, False)[0]

    def _inertial_terms(self, dynamics, t0, t1, x0, zs):
        # diffrax: dv = -gamma v dt - u grad f dt + sqrt(2 gamma u) dW, so that u is the variance of the velocity and f = beta V.
        t, shape = self.clock_at(t0, t1), x0.velocity.shape
        beta = dynamics.bath(t)
        gamma = jnp.broadcast_to(dynamics.friction(t), shape)
        u = jnp.broadcast_to(1.0 / (beta * dynamics.mass), shape)
        drift = diffrax.UnderdampedLangevinDriftTerm(gamma, u, lambda x, args: -beta * dynamics.total_force(t, x))
        return diffrax.MultiTerm(drift, diffrax.UnderdampedLangevinDiffusionTerm(gamma, u, StepNoise(zs)))
