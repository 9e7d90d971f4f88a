r"""Estimators: from samples of work and of path log-ratios to numbers with error bars and a verdict on their health.

An exponential average is dominated by rare samples; when these are missed, its spread is missed with it and the error bar looks
small. Each estimate therefore says how many samples carry it (`Estimate.ess`), how heavy the tail of the weights is
(`Estimate.tail_index`), and whether it may be believed (`Estimate.trustworthy`); `trust` gives the same verdict in words. Samples that are
not finite are left out and counted (`Estimate.excluded`); an estimate that had any is not trustworthy. Energies and $\beta$ are in
units with $k_B = 1$.

Samples may carry importance weights, and may be correlated: `statistical_inefficiency` says how many of a series are worth one
independent sample. Error bars are first-order theory (the delta method); `bootstrap` gives them by resampling instead.
"""

from thermojax.estimators._averages import (
    exponential_mean as exponential_mean,
    jarzynski as jarzynski,
    mean as mean,
)
from thermojax.estimators._bar import bar as bar
from thermojax.estimators._crossing import crossing as crossing
from thermojax.estimators._cumulants import cumulants as cumulants
from thermojax.estimators._estimate import Estimate as Estimate
from thermojax.estimators._health import (
    MAX_TAIL_INDEX as MAX_TAIL_INDEX,
    MIN_ESS as MIN_ESS,
    summarise as summarise,
    tail_index as tail_index,
)
from thermojax.estimators._series import bootstrap as bootstrap, statistical_inefficiency as statistical_inefficiency
from thermojax.estimators._states import mbar as mbar, thermodynamic_integration as thermodynamic_integration
from thermojax.estimators._trust import Trust as Trust, trust as trust
