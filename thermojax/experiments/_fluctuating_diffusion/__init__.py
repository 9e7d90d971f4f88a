"""Noising and generation of a mixture of two Gaussians on one page: every number with its exact value beside it.

Exact numbers come from quadrature and closed forms, computed in the run and in double precision; samples are drawn in the precision that
is set. A number whose exact value holds in continuous time says so where the time step matters.
"""

import jax
import jax.random as jr

from thermojax.experiments._experiment import Experiment, Picture, Progress, Results
from thermojax.experiments._fluctuating_diffusion._landscape import tell_distances, tell_symmetry
from thermojax.experiments._fluctuating_diffusion._paths import tell_dimensions, tell_paths
from thermojax.experiments._fluctuating_diffusion._rates import tell_rates
from thermojax.experiments._fluctuating_diffusion._schedules import tell_schedules
from thermojax.experiments._fluctuating_diffusion._scores import tell_scores
from thermojax.experiments._fluctuating_diffusion._setting import FluctuatingDiffusion
from thermojax.plots import pulls

PARTS = (tell_paths, tell_rates, tell_symmetry, tell_distances, tell_scores, tell_schedules, tell_dimensions)


def run(parameters: FluctuatingDiffusion, key: jax.Array, progress: Progress) -> Results:
    """Entropies along paths, rates, landscape, learned scores, schedules; then all numbers against their exact values."""
    results = Results()
    for part, part_key in zip(PARTS, jr.split(key, len(PARTS)), strict=True):
        part(parameters, part_key, progress, results)
    doubtful = [name for name, q in results.estimates.items() if q.trustworthy is False]
    results.figures["pulls"] = Picture(
        pulls(results.pulls(), doubtful),
        "How far each number is from its exact value, in units of its own error bar; the band is two error bars. "
        "Orange: numbers that say themselves that they must not be trusted.",
    )
    results.conclusions.insert(0, results.tally())
    if doubtful:
        results.conclusions.append(f"Not to be trusted by their own verdict: {', '.join(doubtful)}.")
    return results


EXPERIMENT = Experiment(
    "fluctuating-diffusion",
    "noising and generation of two Gaussians: entropies, landscape, learned scores and schedules against exact numbers",
    FluctuatingDiffusion,
    run,
)
