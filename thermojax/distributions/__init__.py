r"""Probability densities of one configuration: sampled, evaluated, and differentiated with respect to the configuration.

A density takes one configuration ``x`` of shape ``(dim,)``: ``log_prob(x)`` is a number, ``score(x)`` is
$\nabla_x \ln p(x)$, and ``sample(n, key=key)`` returns independent draws of shape ``(n, dim)``. Gaussians and mixtures of
Gaussians stay what they are under every linear map with Gaussian noise (`GaussianMixture.push`), so their exact scores are known at
every time of a linear noising process. `equilibrium` returns the Boltzmann density of a potential, `phase_equilibrium` that of a
`phase.Phase` of positions and velocities.
"""

from thermojax.distributions._boltzmann import (
    equilibrium as equilibrium,
    free_energy as free_energy,
    gaussian_equilibrium as gaussian_equilibrium,
    grid_equilibrium as grid_equilibrium,
    GridBoltzmann as GridBoltzmann,
    SampledBoltzmann as SampledBoltzmann,
)
from thermojax.distributions._gaussian import (
    AbstractDistribution as AbstractDistribution,
    as_mixture as as_mixture,
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
    standard_normal as standard_normal,
)
from thermojax.distributions._phase import (
    centre_of as centre_of,
    MaxwellBoltzmann as MaxwellBoltzmann,
    phase_equilibrium as phase_equilibrium,
    sample_in_pairs as sample_in_pairs,
)
from thermojax.distributions._transport import (
    nodes_on_line as nodes_on_line,
    squared_quantile_distance as squared_quantile_distance,
    squared_wasserstein as squared_wasserstein,
)
