r"""Functionals of one trajectory, as increments per step.

Each takes one `ensemble.Step` and returns a number; `ensemble.accumulate` sums it while the trajectory runs, `ensemble.along` over a
stored one. $k_B = 1$. With inertia the internal energy includes the kinetic one.

Signs. Work is done *on* the system, heat is dissipated *into* the medium, so $W = \Delta E + Q$ along every path, and the entropy of
the medium grows by $\Delta s_m = \int\beta\,\delta Q$.

Discretisation. On a step from $t_0$ to $t_1$ whose coefficients were read at the clock $t_c$, the control switches from
$\lambda(t_0)$ to $\lambda(t_c)$ at the old position (work), the particle moves at fixed $\lambda(t_c)$ (heat), and the control
switches from $\lambda(t_c)$ to $\lambda(t_1)$ at the new position (work): Crooks' order. It telescopes, so the first law holds to
rounding, jumps and kicks of the protocol at either end cost what they should, and $\beta(t)$ needs no extra term in the reduced work
$Y = \Delta u + \Delta s_m$ with $u = \beta E$.

The exact log-ratio. `log_ratio` is $\ln K(x_1|x_0) - \ln K(x_0|x_1)$ of the kernel that made the step. Together with the densities
at both ends (`path_log_ratio`) it is $\ell = \ln dP/dQ$ with $\langle e^{-\ell}\rangle = 1$ at *every* step size. The
`_stratonovich` and `_ito` sums are the usual discretisations of the continuous-time formulas, correct up to $O(h)$ in the mean;
what `log_ratio` has more than $\beta$ times the heat is the shadow work of the step size.

Ends. The total entropy production is `system_entropy` and the entropy of the medium; the dissipated reduced work is
$\Sigma = Y - \Delta(\beta F)$, and $\Sigma = \Delta s_{tot} + \ln p_\tau(x_\tau)/p_{eq}(x_\tau)$ on every path from equilibrium.

References:
    G. E. Crooks, J. Stat. Phys. 90, 1481 (1998). K. Sekimoto, Stochastic Energetics (2010), ch. 4.
    U. Seifert, Rep. Prog. Phys. 75, 126001 (2012), sec. 2. D. A. Sivak, J. D. Chodera, G. E. Crooks, Phys. Rev. X 3, 011007 (2013).
"""

from thermojax.functionals._integrals import (
    convention_change as convention_change,
    heat_ito as heat_ito,
    heat_ito_correction as heat_ito_correction,
    heat_stratonovich as heat_stratonovich,
    medium_entropy_stratonovich as medium_entropy_stratonovich,
    OnsagerMachlup as OnsagerMachlup,
    StochasticIntegral as StochasticIntegral,
    work_ito as work_ito,
    work_stratonovich as work_stratonovich,
)
from thermojax.functionals._ratios import (
    BackwardRatio as BackwardRatio,
    DualRatio as DualRatio,
    escorted_work as escorted_work,
    GirsanovRatio as GirsanovRatio,
    HatanoSasa as HatanoSasa,
    log_ratio as log_ratio,
    path_log_ratio as path_log_ratio,
    shadow_work as shadow_work,
    system_entropy as system_entropy,
    total_reduced_work as total_reduced_work,
)
from thermojax.functionals._thermodynamic import (
    energy_change as energy_change,
    heat as heat,
    medium_entropy as medium_entropy,
    reduced_work as reduced_work,
    work as work,
)
