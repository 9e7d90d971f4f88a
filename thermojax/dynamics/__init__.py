r"""Dynamics: stochastic differential equations $dx = b(t, x)\,dt + \sigma(t)\,dW$ with additive noise, for one particle.

- `Overdamped` and `Underdamped`: Langevin dynamics in a potential that is driven, in a bath that may change. `Escorted` adds a drift that
  carries the particle along with its equilibrium.
- Noising processes $dx = -r(t)\,x\,dt + \sigma(t)\,dW$ (`OrnsteinUhlenbeck`, `VariancePreserving`,
  `LogSnrLinear`, `VarianceExploding`), whose transition densities are known. More schedules: `SubVariancePreserving`, `Elucidated`,
  `Cosine`, `Interpolant`, `Tabulated`, and `Schedule` for any other; `cut_ends` where one is singular.
- `Reversed` and `ProbabilityFlow`: the time reversal of another process, by a score $s(t, x) \approx \nabla\ln p_t(x)$,
  as an SDE and as an ODE. They run in their own time $u = T - t$.

The noise is one number, or one per coordinate. $k_B = 1$ and $D = \sigma^2/2 = \mu/\beta$.
"""

from thermojax.dynamics._langevin import (
    AbstractDynamics as AbstractDynamics,
    AbstractLangevin as AbstractLangevin,
    Escorted as Escorted,
    Force as Force,
    kick_after as kick_after,
    kick_before as kick_before,
    Overdamped as Overdamped,
    Underdamped as Underdamped,
    undo_kick_after as undo_kick_after,
)
from thermojax.dynamics._noising import (
    AbstractNoising as AbstractNoising,
    LogSnrLinear as LogSnrLinear,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from thermojax.dynamics._reversal import ProbabilityFlow as ProbabilityFlow, Reversed as Reversed, Score as Score
from thermojax.dynamics._schedules import (
    Cosine as Cosine,
    cut_ends as cut_ends,
    Elucidated as Elucidated,
    Ends as Ends,
    Interpolant as Interpolant,
    Schedule as Schedule,
    SubVariancePreserving as SubVariancePreserving,
    Tabulated as Tabulated,
)
