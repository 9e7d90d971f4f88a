"""Systems that several tests share. None is symmetric: a symmetric one cannot see a sign error."""

import equinox as eqx
import jax
import jax.numpy as jnp

from thermojax.baths import Isothermal, LinearBeta
from thermojax.dynamics import Overdamped
from thermojax.generative import MixtureScore
from thermojax.potentials import AbstractPotential, DoubleWell, Harmonic, Polynomial, Tilt
from thermojax.protocols import PiecewiseLinear, Ramp
from thermojax.steppers import EulerMaruyama, ExactLinear


class Scaled(eqx.Module):
    """A score that is wrong by a known factor."""

    score: MixtureScore
    factor: jax.Array

    def __call__(self, t, x):
        return self.factor * self.score(t, x)


def wavy(x, lam):
    """An anharmonic landscape, x^2/2 + cos 2x, dragged and tilted by its control."""
    return jnp.sum(0.5 * (x - lam) ** 2 + jnp.cos(2 * x))


def twisting(x, lam):
    """A force that is no gradient: a rotation in two dimensions, a control-dependent push in one."""
    push = 0.3 + 0.2 * lam + 0.1 * jnp.sin(x)
    return push if x.shape[0] == 1 else jnp.array([[0.0, -0.7], [0.7, 0.0]], x.dtype) @ x + push


def mobility(t):
    return 1.0 + 0.3 * t


SYSTEMS = {
    "dragged trap": Overdamped(Harmonic(2.0), Ramp(0.0, 1.0), Isothermal(1.3)),
    "jumps at both ends": Overdamped(Harmonic(2.0), PiecewiseLinear(0.0, [0.4, 0.5, 0.7], 1.0), Isothermal(1.3), 0.7),
    "cooled, pushed, wavy": Overdamped(wavy, Ramp(0.2, 1.0), LinearBeta(0.7, 1.6), mobility, twisting),
    "tilted double well": Overdamped(DoubleWell(2.0) + Tilt(), Ramp(-0.5, 1.0), LinearBeta(1.0, 2.0)),
    "vector control": Overdamped(lambda x, lam: 0.5 * lam[0] * jnp.sum((x - lam[1]) ** 2), Ramp([1.0, 0.0], [2.0, 0.5]), Isothermal(1.0)),
    "quartic": Overdamped(Polynomial([0.0, 0.3, -1.0, 0.0, 0.5]), Ramp(0.0, 1.0), Isothermal(2.0)),
}
STEPPERS = {
    "left": EulerMaruyama(0.0),
    "middle": EulerMaruyama(),
    "right": EulerMaruyama(1.0),
    "exact": ExactLinear(),
}


def spying_trap(traces):
    """A class of traps that note in the list `traces` each time they are traced."""

    class Spy(AbstractPotential):
        stiffness: jax.Array

        def __call__(self, x, lam):
            traces.append(1)
            return 0.5 * self.stiffness * jnp.sum((x - lam) ** 2)

    return Spy
