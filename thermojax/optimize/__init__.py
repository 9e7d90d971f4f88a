r"""Optimisation: `fit` drives any loss of any model with optax; a loss is an objective of a dynamics.

    objective: Mean(work) + 20.0 * ErrorRate(inside, 0.1)      what is to be small
      -> loss: MonteCarlo(objective, initial, ts)              on an ensemble; FokkerPlanck on a density, without noise
      -> fit(loss, dynamics, where=lambda d: d.protocol.knots, ...)

Objectives are statistics of paths or of a density, and add up. Losses differ in where the numbers come from and how they are
differentiated; `terms` gives the terms of a sum one by one.
"""

from thermojax.optimize._checkpoint import checkpoint_steps as checkpoint_steps
from thermojax.optimize._final import (
    AbstractFinal as AbstractFinal,
    ErrorRate as ErrorRate,
    FinalKL as FinalKL,
    FinalMean as FinalMean,
    FinalMoments as FinalMoments,
    FinalWasserstein as FinalWasserstein,
)
from thermojax.optimize._fit import Fit as Fit, fit as fit
from thermojax.optimize._gradients import (
    gradient_statistics as gradient_statistics,
    GradientStatistics as GradientStatistics,
    Loss as Loss,
    Where as Where,
)
from thermojax.optimize._losses import AbstractLoss as AbstractLoss, FokkerPlanck as FokkerPlanck, MonteCarlo as MonteCarlo
from thermojax.optimize._objectives import (
    AbstractObjective as AbstractObjective,
    Duration as Duration,
    EntropyProduction as EntropyProduction,
    FreeEnergyError as FreeEnergyError,
    LogRatio as LogRatio,
    Mean as Mean,
    Variance as Variance,
    Weighted as Weighted,
)
from thermojax.optimize._pareto import Front as Front, pareto as pareto
from thermojax.optimize._paths import Flow as Flow, Paths as Paths
