r"""Generative models as nonequilibrium processes: noising, learned denoising, and the audit of the difference.

A score is any callable ``score(t, x)`` for one configuration. `ScoreMatching` is a loss for `optimize.fit`; `sample_sde` and `sample_ode`
generate; `flow_log_prob`, `path_bound` and `audit` measure, in nats.
"""

from thermojax.generative._audit import Audit as Audit, audit as audit, path_bound as path_bound
from thermojax.generative._likelihood import flow_log_prob as flow_log_prob
from thermojax.generative._network import Cells as Cells, Mixer as Mixer, ScoreNetwork as ScoreNetwork
from thermojax.generative._sampling import Ancestral as Ancestral, sample_ode as sample_ode, sample_sde as sample_sde
from thermojax.generative._scores import (
    data_to_score as data_to_score,
    MixtureScore as MixtureScore,
    score_to_data as score_to_data,
)
from thermojax.generative._training import denoising_rate as denoising_rate, ScoreMatching as ScoreMatching
