r"""Thermodynamic geometry: what slow protocols cost, and what optimal transport says about fast ones.

Friction. Under a control $\lambda$ that moves slowly, work beyond $\Delta F$ is $\int\dot\lambda^\mathsf{T}\zeta(\lambda)\,\dot\lambda\,dt$
with the friction tensor $\zeta_{ij} = \beta\int_0^\infty\langle\delta X_i(0)\,\delta X_j(t)\rangle\,dt$ of the generalised forces
$X = -\partial_\lambda V$ in the equilibrium at that control. There are three ways to it: `friction` by quadrature (overdamped, one
dimension), `friction_spectral` from the Fokker-Planck generator on a grid (up to two), `friction_from_simulation` by Green and Kubo (any
dimension, with or without inertia, with error bars).

Length. $\zeta$ is a metric: paths have a `thermodynamic_length` $\mathcal L$, and in time $\tau$ the least excess work of linear response
is $\mathcal L^2/\tau$, on a `geodesic` at constant speed. Whatever takes a control to $\zeta$ is a metric; `Friction` is that of
`friction`. For a trap whose place and stiffness are controlled it is the Wasserstein distance of the equilibria,
$ds^2 = \mu^{-1}(dm^2 + d\sigma^2)$.

Transport. With full control of the potential the least dissipation is known for any duration, by optimal transport: `transport_bound` and
its companions, and `free_end` where only the potentials at both ends are given.

$k_B = 1$; $\zeta$ is energy times time over control squared, and $\mathcal L^2/\tau$ an energy: multiply by $\beta$ for entropy in nats.

Reference:
    D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012).
"""

from thermojax.geometry._clouds import sampled_transport_bound as sampled_transport_bound, SampledBound as SampledBound
from thermojax.geometry._correlations import friction_from_simulation as friction_from_simulation, SimulatedFriction as SimulatedFriction
from thermojax.geometry._free_end import free_end as free_end, FreeEnd as FreeEnd
from thermojax.geometry._friction import Friction as Friction, friction as friction
from thermojax.geometry._geodesics import Geodesic as Geodesic, geodesic as geodesic
from thermojax.geometry._length import (
    linear_response_work as linear_response_work,
    Metric as Metric,
    thermodynamic_length as thermodynamic_length,
)
from thermojax.geometry._spectral import friction_spectral as friction_spectral
from thermojax.geometry._transport import (
    Displacement as Displacement,
    full_control as full_control,
    FullControl as FullControl,
    Quadratic as Quadratic,
    transport_bound as transport_bound,
    transport_protocol as transport_protocol,
)
