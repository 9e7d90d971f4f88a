r"""Annealing: from a density that can be drawn from to one that cannot, by way of the densities between them.

    path: ln γ_λ(x), from λ = 0 to λ = 1     `Geometric`, `Driven` (potential, protocol, bath), or any callable ``(x, lam)``
      -> kernel: moves at one λ               `Langevin`, `Adjusted`, `BlackJax` (any of its kernels), `Relaxation`
      -> Annealing(path, initial, lams, kernel): a pair of path measures, read by `measures.assess`
      -> `smc`: the same chain with resampling, in independent islands

$P$ draws $x_0$ from the initial density $p_0$, and at each level first switches, $\lambda_{k-1}\to\lambda_k$, then moves with the kernel
$K_k$ of the new density. $Q$ draws $x_K$ from $\gamma_1/Z$ and moves down with the same kernels. With
$Z = \int\gamma_1\,dx$ the log-ratio without it is

$$\ell = \ln p_0(x_0) - \ln\gamma_1(x_K) + \sum_k\ln\frac{K_k(x_k|x_{k-1})}{K_k(x_{k-1}|x_k)}
       = \ln\frac{p_0(x_0)}{\gamma_0(x_0)} - \sum_k\ln\frac{\gamma_{\lambda_k}}{\gamma_{\lambda_{k-1}}}(x_{k-1}) + \sum_k s_k ,$$

work and shadow work: $s_k$, the log-ratio of a move less the change of $\ln\gamma_{\lambda_k}$ in it, vanishes for kernels in detailed
balance, and for unadjusted ones it is what keeps $\langle e^{-\ell}\rangle_P = Z$ at every step size and for every number of levels. So
$e^{-\ell}$ are the weights of annealed importance sampling, and the gap of the ELBO, $\ln Z + \langle\ell\rangle$, is the dissipated
work.

Schedules: `length_schedule` moves at a constant rate of thermodynamic length, `ess_schedule` by steps that each keep the same share of the
particles; `FreeSchedule` is tuned, with the steps of `Langevin`, by gradients of `NegativeElbo` through the unadjusted chain.

Reference:
    R. M. Neal, Stat. Comput. 11, 125 (2001); P. Del Moral, A. Doucet, A. Jasra, J. R. Stat. Soc. B 68, 411 (2006); A. Thin et al., ICML
    (2021) for unadjusted chains.
"""

from thermojax.annealing._annealing import Annealing as Annealing, NegativeElbo as NegativeElbo
from thermojax.annealing._kernels import (
    AbstractKernel as AbstractKernel,
    Adjusted as Adjusted,
    BlackJax as BlackJax,
    Langevin as Langevin,
    Relaxation as Relaxation,
)
from thermojax.annealing._levels import FreeSchedule as FreeSchedule
from thermojax.annealing._paths import (
    AbstractPath as AbstractPath,
    as_path as as_path,
    Driven as Driven,
    Geometric as Geometric,
    Place as Place,
)
from thermojax.annealing._schedules import (
    ess_schedule as ess_schedule,
    length_schedule as length_schedule,
    LengthSchedule as LengthSchedule,
)
from thermojax.annealing._smc import Populations as Populations, smc as smc
