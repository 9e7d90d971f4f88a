r"""Pairs of path measures, continuous or discrete, and what their log-ratio says.

A pair is two measures on the same paths: $P$, from a first density by forward kernels, and $Q$, from a last density $\gamma/Z$ by backward
kernels. Everything is read off $\ell = \ln dP/dQ$ with $\gamma$ in place of the last density:

    log Z   = ln <e^{-ℓ}>_P = -ln <e^{ℓ}>_Q            unbiased weights e^{-ℓ}, with a trust report
    ELBO    = -<ℓ>_P  <=  log Z  <=  -<ℓ>_Q  = EUBO     their distances to log Z are KL(P‖Q) and KL(Q‖P)
    log-variance divergence Var_P ℓ, effective shares of the samples seen from P and from Q

`assess` draws from a pair and returns all of it. Driven systems and their reversal (`Switched`), any two diffusions (`Diffusions`), a
process and a reference with a cost at the end (`Tilted`) are pairs; so are the samplers, bridges and generative flow networks that build
on this. In the words of thermodynamics $\ell$ is the reduced work, $\ln Z = -\Delta(\beta F)$, $KL(P\|Q)$ the dissipation.

Log-ratios are those of the one-step kernels, so that $\langle e^{-\ell}\rangle_P = Z$ at *every* step size. `ForwardBackward` is the
continuous form, `nelson_residual` the relation between the drifts of a process and of its reversal.
"""

from thermojax.measures._assess import assess as assess, Assessment as Assessment, assessment as assessment
from thermojax.measures._diffusions import (
    Diffusions as Diffusions,
    ForwardBackward as ForwardBackward,
    nelson_residual as nelson_residual,
    Switched as Switched,
    Tilted as Tilted,
)
from thermojax.measures._pair import (
    AbstractPair as AbstractPair,
    check_normalised as check_normalised,
    draw as draw,
    log_of as log_of,
    Unnormalised as Unnormalised,
    Walks as Walks,
)
