r"""Richardson's extrapolation of sums over paths, with both step sizes driven by the same motion.

Reference:
    D. Talay, L. Tubaro, Stoch. Anal. Appl. 8, 483 (1990): the weak error of such chains is a power series in the step.
"""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key, PyTree

from thermojax._check import check_times, require
from thermojax._noise import normals
from thermojax.dynamics import AbstractDynamics
from thermojax.ensemble import AbstractNoise, accumulate, Functional, refine
from thermojax.phase import check_states, Phase, position_of
from thermojax.steppers import AbstractStepper


class Summed(AbstractNoise):
    """The noise of a run with the same key whose steps are `factor` times as short: the same Brownian motion, on a coarser grid."""

    factor: int = eqx.field(static=True)
    """How many of its steps make one of these."""

    def __check_init__(self):
        require(self.factor >= 1, "factor", "be at least 1", self.factor)

    def start(self, shape, steps, dtype):
        del shape, steps, dtype

    def draw(self, held, k, shape, steps, dtype, *, key):
        del steps
        parts = [normals(jr.fold_in(key, self.factor * k + i), shape, dtype) for i in range(self.factor)]
        return sum(parts[1:], parts[0]) / self.factor**0.5, held


def extrapolated(
    functionals: PyTree[Functional],
    dynamics: AbstractDynamics,
    x0s: ArrayLike | Phase,
    ts: ArrayLike,
    *,
    order: int = 1,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> PyTree[Float[Array, "sample ..."]]:
    r"""Sums over paths whose *mean* is of higher order in the step: $(2^p A_{h/2} - A_h)/(2^p - 1)$, from the same motion with both steps.

    It costs three halves of the finer run. The combination is right in the mean only: it is no sum over a path of any chain, and functions
    of it (an exponential average) must be extrapolated themselves.

    Args:
        functionals: As for `accumulate`.
        dynamics: What moves.
        x0s: First states.
        ts: The coarser of the two grids; the other has twice as many steps.
        order: The weak order $p$ of the stepper for these functionals: 1 for `EulerMaruyama`; 2 for ``Diffrax(diffrax.Heun())`` and for
            symmetric splittings.
        stepper: As for `accumulate`.
        key: Random key.
    """
    require(order >= 1, "order", "be at least 1", order)
    x0s = check_states(x0s)
    ts = check_times(ts, position_of(x0s).dtype)
    _, fine = accumulate(functionals, dynamics, x0s, refine(ts, 2), stepper=stepper, key=key)
    _, coarse = accumulate(functionals, dynamics, x0s, ts, stepper=stepper, noise=Summed(2), key=key)
    gain = 2**order
    return jax.tree.map(lambda a, b: (gain * a - b) / (gain - 1), fine, coarse)
