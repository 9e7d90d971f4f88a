r"""Generative models as nonequilibrium processes: noising, learned denoising, and the audit of the difference.

A score is any callable ``score(t, x)`` for one configuration; `Predicted` makes one of a model that predicts noise, data or velocity, and
`from_torch` of a PyTorch module. Everything is in nats.

- Train and draw: `ScoreMatching` is a loss for `optimize.fit`; `sample_sde`, `sample_ode`, `Ancestral`, `log_snr_grid`.
- Measure a score on data: `audit` does all of it, and says it in words. Its parts are `noise_profile` (the bound, level by level),
  `path_bound` and `kernel_terms` (of a sampler, step by step), `importance_nll` and `flow_log_prob` (likelihoods), `entropy_limits`.
- Few steps: `optimise_grid`, from the error by noise level (`denoising_profile`, with `dynamic_grid`, `length_grid`, `entropic_grid`);
  `named_grid` for those in use; `path_kl` is what a grid costs, and `Calibrated` the kernel of least cost. A `Clock` makes a schedule
  trainable.
- Where the truth is known: `score_error`, `path_divergence` (both ways round the cycle), `generation_work`, and on the line, without
  noise, `line_limits`.
- The processes themselves: `entropy_rates`, `path_entropies`, `transport_cost`, and `landscape` with its phase transitions.
"""

from thermojax.distributions import squared_wasserstein as squared_wasserstein
from thermojax.generative import landscape as landscape
from thermojax.generative._audit import Audit as Audit, audit as audit, Memorised as Memorised
from thermojax.generative._budget import (
    optimise_grid as optimise_grid,
    OptimisedGrid as OptimisedGrid,
    path_kl as path_kl,
    PathKL as PathKL,
)
from thermojax.generative._chain import chain_density as chain_density, ChainDensity as ChainDensity
from thermojax.generative._denoising import (
    Calibrated as Calibrated,
    denoising_length as denoising_length,
    denoising_profile as denoising_profile,
    DenoisingProfile as DenoisingProfile,
    dynamic_grid as dynamic_grid,
    entropic_grid as entropic_grid,
    length_grid as length_grid,
    step_costs as step_costs,
)
from thermojax.generative._entropy import (
    entropy_rates as entropy_rates,
    EntropyRates as EntropyRates,
    path_entropies as path_entropies,
    PathEntropies as PathEntropies,
)
from thermojax.generative._grids import Clock as Clock, named_grid as named_grid, reclocked as reclocked
from thermojax.generative._hysteresis import (
    path_divergence as path_divergence,
    PathDivergence as PathDivergence,
    score_error as score_error,
    score_gap as score_gap,
    ScoreError as ScoreError,
)
from thermojax.generative._importance import importance_nll as importance_nll, ImportanceNll as ImportanceNll
from thermojax.generative._kernel_terms import kernel_terms as kernel_terms, KernelTerms as KernelTerms
from thermojax.generative._likelihood import flow_log_prob as flow_log_prob
from thermojax.generative._limits import entropy_limits as entropy_limits, EntropyLimits as EntropyLimits
from thermojax.generative._line import line_limits as line_limits, LineLimits as LineLimits
from thermojax.generative._network import Cells as Cells, Mixer as Mixer, ScoreNetwork as ScoreNetwork
from thermojax.generative._parameterisations import (
    check_score as check_score,
    Predicted as Predicted,
    prediction_to_score as prediction_to_score,
    score_to_prediction as score_to_prediction,
)
from thermojax.generative._profile import noise_profile as noise_profile, NoiseProfile as NoiseProfile, path_bound as path_bound
from thermojax.generative._sampling import (
    Ancestral as Ancestral,
    log_snr_grid as log_snr_grid,
    sample_ode as sample_ode,
    sample_sde as sample_sde,
)
from thermojax.generative._scores import (
    data_to_score as data_to_score,
    MixtureScore as MixtureScore,
    score_to_data as score_to_data,
)
from thermojax.generative._torch import from_torch as from_torch
from thermojax.generative._training import denoising_rate as denoising_rate, ScoreMatching as ScoreMatching
from thermojax.generative._transport import (
    constant_speed_grid as constant_speed_grid,
    Transport as Transport,
    transport_cost as transport_cost,
)
from thermojax.generative._work import generation_work as generation_work, GenerationWork as GenerationWork
