r"""Less variance at the same law: what may be done to an ensemble without changing any mean.

All tools are exact at every step size: the expectation is that of plain Monte Carlo *with the same chain*, and the error bar is measured.

- Antithetic pairs (``noise="antithetic"`` of the ensemble): `paired` gives one value for each pair. They cancel what is odd in the noise.
- Quasi-random bridges (`sobol_bridges`): scrambled Sobol points decide the coarse shape of the noise, pseudo-random numbers the rest
  *given* that shape. Every path has the right law; paths of one set of points fill the space of coarse shapes evenly. Independent sets give
  the error bar (`replicated_mean`).
- Controls from linear response (`response_control`): the response of a functional to a small push at time $t$, averaged over what comes
  later, is the integrand of its martingale part, $A = \langle A\rangle + \int\langle\delta A/\delta W_t\,|\,x_t\rangle\cdot dW_t$ (Clark
  and Ocone). A short pilot run measures it; the integral over the very noise that drives a path then has mean zero, whatever the
  pilot found, and takes away nearly all of the spread. What is left comes from the first states: `stein_controls`.
- `extrapolated`: Richardson's extrapolation to short steps, with both step sizes driven by the same motion, so that the combination
  varies little more than one run.

`controlled` subtracts controls with coefficients that never saw the samples they are applied to, so that no bias is made on the way.
"""

from thermojax.variance._bridges import replicated_mean as replicated_mean, sobol_bridges as sobol_bridges, SobolBridges as SobolBridges
from thermojax.variance._controls import controlled as controlled, paired as paired, stein_controls as stein_controls
from thermojax.variance._extrapolation import extrapolated as extrapolated, Summed as Summed
from thermojax.variance._response import response_control as response_control, ResponseControl as ResponseControl
