r"""Controlled diffusion samplers: pairs of chains between a prior and a target $\gamma/Z$, one way and back, that a network controls.

    controlled("cmcd", target, dim=10, steps=64)      an untrained pair; its weights e^{-ℓ} are already unbiased
      -> fit(ReverseKL(128), sampler, where=learned)   training: the two measures come closer
      -> measures.assess(sampler, 10_000)              log Z, ELBO, EUBO, effective share, trust

All methods are one construction: kernels towards the target and back, from a base (Langevin annealing, relaxation to the prior, its time
reversal, Brownian motion) and a control on one side or both, with inertia or without. $\ell$ is the log-ratio of these kernels, so
that no step size biases $Z$; what training lowers is the dissipation $KL(P\|Q)$. Prior, steps and tempering are leaves and can be
learned along. Target gradient and network are called once per state.

Losses: `ReverseKL` through the paths; `LogVariance`, `TrajectoryBalance`, `SubTrajectoryBalance`, `DetailedBalance` on paths from
anywhere (`replay`). Training by the reverse divergence seeks modes and can lose some: an EUBO far above the ELBO tells, where the target
can be sampled.
"""

from thermojax.samplers._abstract import (
    AbstractSampler as AbstractSampler,
    Look as Look,
    Trace as Trace,
    walk as walk,
    walk_back as walk_back,
)
from thermojax.samplers._losses import (
    AbstractBalance as AbstractBalance,
    DetailedBalance as DetailedBalance,
    learned as learned,
    LogVariance as LogVariance,
    replay as replay,
    ReverseKL as ReverseKL,
    SubTrajectoryBalance as SubTrajectoryBalance,
    TrajectoryBalance as TrajectoryBalance,
)
from thermojax.samplers._methods import controlled as controlled, Method as Method, METHODS as METHODS
from thermojax.samplers._network import Control as Control
from thermojax.samplers._overdamped import OverdampedSampler as OverdampedSampler
from thermojax.samplers._underdamped import UnderdampedSampler as UnderdampedSampler
