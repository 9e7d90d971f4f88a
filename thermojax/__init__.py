r"""Differentiable stochastic thermodynamics in JAX.

Everything is a functional of one number: the log-ratio $\ell = \ln dP/dQ$ of two path measures on the same trajectories. Work, heat
and entropy production, Jarzynski's and Crooks' relations, the score error of a diffusion model and the bounds on its likelihood are
ways to read it.

Data flows one way:

    potential V(x, λ), protocol λ(t), bath β(t)      potentials, protocols, baths, distributions
      -> dynamics: what moves, for one particle      dynamics: Overdamped, Underdamped, ...
      -> stepper: a one-step Markov kernel           steppers
      -> ensemble: many trajectories, one scan       simulate, accumulate
      -> functionals: increments summed on the way   functionals
      -> estimators: numbers with error bars         mean, jarzynski, bar, exponential_mean, trust
      -> less variance at the same law               variance
      -> streaming: ensembles of any size, all devices   stream(Moments(), ...)
      -> theorems: residuals of the laws             theorems; switching.both_ways runs and reverses an experiment
      -> optimisation over any leaf of the model     optimize: MonteCarlo(Mean(work), ...), FokkerPlanck, fit
      -> pairs of path measures, read as samplers    measures: assess; targets, annealing, samplers, gflownets, bridges

The oracle without noise is `fokker_planck`; closed forms are in `exact`.

Generative models are the same nouns: a noising process is a dynamics, a learned score reverses it, and `generative.audit` reads the
log-ratio of the two. $k_B = 1$; work is done on the system, heat goes into the medium. Importing this package starts no JAX backend
and changes no configuration.
"""

from thermojax import (
    annealing as annealing,
    baths as baths,
    bridges as bridges,
    distributions as distributions,
    dynamics as dynamics,
    escorting as escorting,
    estimators as estimators,
    exact as exact,
    fokker_planck as fokker_planck,
    functionals as functionals,
    generative as generative,
    geometry as geometry,
    gflownets as gflownets,
    measures as measures,
    optimize as optimize,
    potentials as potentials,
    protocols as protocols,
    samplers as samplers,
    steppers as steppers,
    streaming as streaming,
    switching as switching,
    targets as targets,
    theorems as theorems,
    variance as variance,
)
from thermojax.distributions import equilibrium as equilibrium
from thermojax.dynamics import Overdamped as Overdamped, Underdamped as Underdamped
from thermojax.ensemble import accumulate as accumulate, along as along, simulate as simulate, Step as Step
from thermojax.estimators import (
    bar as bar,
    Estimate as Estimate,
    exponential_mean as exponential_mean,
    jarzynski as jarzynski,
    mean as mean,
    trust as trust,
)
from thermojax.functionals import path_log_ratio as path_log_ratio
from thermojax.optimize import fit as fit, MonteCarlo as MonteCarlo
from thermojax.phase import Phase as Phase
from thermojax.steppers import (
    Diffrax as Diffrax,
    EulerMaruyama as EulerMaruyama,
    ExactLinear as ExactLinear,
    Splitting as Splitting,
)
from thermojax.streaming import stream as stream
from thermojax.switching import both_ways as both_ways
