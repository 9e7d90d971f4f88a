r"""The landscape of generation: potentials, symmetry breaking, Franz-Parisi potential, collapse.

The reversal of a linear noising $dx = -r\,x\,dt + g\,dW$ moves in the potential $U = -\tfrac12 r|x|^2 - g^2\ln p_t(x)$ at temperature
$g^2/2$: its drift is $r\,x + g^2\nabla\ln p_t = -\nabla U$. Times are those of the noising, so that generation runs from late to early
ones. Three things can happen on the way. The curvature of $U$ changes sign at its stationary point, and generation decides between
classes (`speciation_time`). Where components are broad, $U$ ceases to be bounded below (`instability_time`). With finitely many data the
posterior condenses on one of them (`collapse_time`).

The posterior $p(x_0|x_t) \propto p_0(x_0)\,e^{-|x_t - \alpha x_0|^2/2v}$ is a system with quenched disorder $x_t$. Its Franz-Parisi
potential $V(q, t)$ is the mean free energy at the *squared* distance $q$ from the datum that was noised, with the likelihood as written,
not normalised (`franz_parisi`). A field coupled to that distance gives a concave free energy, and its Legendre transform a convex
potential (`coupled_free_energy`, `legendre_potential`): a maximum over the field.

Everything is in nats, except $U$, which is in units of the noising. Data are a Gaussian or a mixture of Gaussians, or points, whose
noised density `Points` knows exactly.

References:
    Z. Yu, H. Huang, Nonequilibrium physics of generative diffusion models, arXiv:2405.11932 (2024). G. Biroli, T. Bonnaire,
    V. de Bortoli, M. Mézard, Dynamical regimes of diffusion models, arXiv:2402.18491 (2024).
"""

from thermojax.generative.landscape._collapse import (
    collapse_time as collapse_time,
    collapse_time_of_gaussian as collapse_time_of_gaussian,
    collapse_time_of_points as collapse_time_of_points,
    gaussian_information as gaussian_information,
    mutual_information as mutual_information,
)
from thermojax.generative.landscape._coupling import (
    Coupled as Coupled,
    coupled_free_energy as coupled_free_energy,
    Legendre as Legendre,
    legendre_potential as legendre_potential,
)
from thermojax.generative.landscape._franz_parisi import (
    franz_parisi as franz_parisi,
    franz_parisi_quadrature as franz_parisi_quadrature,
    FranzParisi as FranzParisi,
    FranzParisiCurve as FranzParisiCurve,
)
from thermojax.generative.landscape._potential import (
    FreeEnergy as FreeEnergy,
    Points as Points,
    posterior_free_energy as posterior_free_energy,
    reverse_free_energy as reverse_free_energy,
    reverse_free_energy_quadrature as reverse_free_energy_quadrature,
    reverse_potential as reverse_potential,
)
from thermojax.generative.landscape._speciation import (
    Curvature as Curvature,
    curvature as curvature,
    Instability as Instability,
    instability_time as instability_time,
    phase_diagram as phase_diagram,
    phase_of as phase_of,
    Speciation as Speciation,
    speciation_time as speciation_time,
    speciation_time_of_covariance as speciation_time_of_covariance,
    symmetric_mixture_speciation_time as symmetric_mixture_speciation_time,
)
