r"""Schrödinger bridges: of all processes with two given end densities, the one nearest to a reference.

The reference $R$ is a linear process with one noise for all coordinates: `Brownian`, or `dynamics.OrnsteinUhlenbeck` and the other
noising processes. The bridge minimises $KL(P\|R)$ over processes from $p_0$ at $t_0$ to $p_1$ at $t_1$. It is the reference under a guide,
$dx = [f + \sigma^2\nabla\ln h_t]\,dt + \sigma\,dW$, with $dP/dR = h_{t_1}(x_{t_1})/h_{t_0}(x_{t_0})$, where $R$ starts from $p_0$.

- `GaussianBridge`: the closed form between Gaussians; `ExactBridge` steps it without error.
- `sampled_bridge`: between samples, from entropic transport (OTT-JAX).
- `learn_bridge`: between samples or any densities that can be drawn from, by networks that fit each other's paths.

All are an `AbstractBridge`: `dynamics` and `reverse` move it, `against` compares it with the reference or with another bridge, `directions`
its two directions with each other; both are pairs of path measures for `measures.assess`. Path KL divergences are in nats.
"""

from thermojax.bridges._bridge import (
    AbstractBridge as AbstractBridge,
    Brownian as Brownian,
    Guide as Guide,
    Guided as Guided,
    Samples as Samples,
)
from thermojax.bridges._gaussian import ExactBridge as ExactBridge, GaussianBridge as GaussianBridge, LinearGuide as LinearGuide
from thermojax.bridges._learned import (
    BridgeMatching as BridgeMatching,
    Guides as Guides,
    learn_bridge as learn_bridge,
    LearnedBridge as LearnedBridge,
    NetworkGuide as NetworkGuide,
)
from thermojax.bridges._sampled import MixtureGuide as MixtureGuide, sampled_bridge as sampled_bridge, SampledBridge as SampledBridge
