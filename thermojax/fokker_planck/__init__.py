r"""The Fokker–Planck equation on a grid, in one and two dimensions: the oracle without noise.

$\partial_t p = -\nabla\cdot J$ with $J = b\,p - D\,\nabla p$, for `Overdamped` dynamics (any potential, one bath or one per
coordinate, a force that is no gradient) and for every other dynamics with additive noise. $k_B = 1$; signs of work, heat and entropies
are those of `functionals`.

Space. Finite volumes with Scharfetter and Gummel's fluxes: cells exchange probability at the positive rates $D/dx^2\,B(\mp a)$ with
$B(z) = z/(e^z - 1)$, where $a = -\beta\,\Delta V + \beta\int f\,dx$ is the affinity of the hop. The chain keeps densities positive, is in
detailed balance with the Boltzmann weights of the cells' middles if there is no other force, and is of second order in the spacing.

Time. One implicit step from each time to the next: the coefficients are frozen in its middle, and $e^{hL}$ is replaced by the L-stable
rational function of second order with real poles (that of TR-BDF2), applied through fluxes. Probability is conserved to the last bits,
and the equilibrium of the frozen coefficients does not move, whatever the step. In two dimensions the axes take turns (Strang's
splitting), each a batch of tridiagonal solves. As in simulations, work is done in sudden switches between the steps, in Crooks' order:
jumps of a protocol cost what they should, $\langle e^{-Y}\rangle = Z_\tau/Z_0$ holds to rounding at any step, and mean work converges
at second order. The steps are the caller's, not adaptive: these laws need steps that are known beforehand, a thousand steps of a
thousand cells take a tenth of a second, and the gradient costs about twice that. Where a density is rougher than a step can smooth (a
spike narrower than $\sqrt{hD}$), no rational function of second order keeps it positive: let such a density start with short steps.

Chains. `expected_sum` is the mean of any functional for the chain of a stepper at its own step size, in one dimension.

Backwards. `feynman_kac` runs the transposed steps. All results are differentiable in potentials, protocols, baths and initial densities.

References:
    D. L. Scharfetter, H. K. Gummel, IEEE Trans. Electron Devices 16, 64 (1969). J. S. Chang, G. Cooper, J. Comput. Phys. 6, 1 (1970).
    R. E. Bank et al., IEEE Trans. Electron Devices 32, 1992 (1985), for TR-BDF2. U. Seifert, Rep. Prog. Phys. 75, 126001 (2012), sec. 2.
"""

from thermojax.fokker_planck._chain import expected_sum as expected_sum
from thermojax.fokker_planck._evolve import (
    allowed as allowed,
    check_dynamics as check_dynamics,
    check_edge as check_edge,
    edge_probability as edge_probability,
    Evolution as Evolution,
    evolve as evolve,
    Thermodynamics as Thermodynamics,
    thermodynamics as thermodynamics,
)
from thermojax.fokker_planck._generator import energies as energies, generator as generator
from thermojax.fokker_planck._grid import Grid as Grid, GridDensity as GridDensity, propose_grid as propose_grid
from thermojax.fokker_planck._steady import steady_state as steady_state
from thermojax.fokker_planck._work import (
    Energetics as Energetics,
    energetics as energetics,
    expected_work as expected_work,
    exponential_work as exponential_work,
    feynman_kac as feynman_kac,
    generating_function as generating_function,
    mean_work as mean_work,
    work_distribution as work_distribution,
    work_moments as work_moments,
)
