"""What all parts of the experiment share: its parameters, its data, and the precision of what is exact."""

import jax
from pydantic import Field

from thermojax.distributions import GaussianMixture
from thermojax.experiments._experiment import Parameters


class FluctuatingDiffusion(Parameters):
    """Parameters of `fluctuating-diffusion`; the noising is the Ornstein-Uhlenbeck process of unit rate and temperature."""

    mean: float = Field(1.0, gt=0, description="the data are two Gaussians of equal weight, at this and at minus this")
    variance: float = Field(0.4, gt=0, lt=0.5, description="their variance; below 1/2 the weights of the fluctuation theorem have none")
    wide: float = Field(1.0, gt=0.5, description="their variance where the fluctuation theorem is tested: above 1/2 its weights have one")
    narrow: float = Field(0.1, gt=0, description="their variance for the Franz-Parisi potential")
    horizon: float = Field(10.0, gt=0, description="duration of the paths of the fluctuation theorem")
    end: float = Field(3.0, gt=0, description="duration of the noising for everything else")
    trajectories: int = Field(10_000, ge=1000, description="paths of the fluctuation theorem in each direction")
    steps: int = Field(1000, ge=50, description="time steps of these paths")
    samples: int = Field(10_000, ge=1000, description="configurations in each other Monte Carlo average")
    cells: int = Field(400, ge=100, description="cells of the Fokker-Planck equation")
    points: int = Field(20, ge=2, description="data of a model that memorises them")


def twins(mean: float, variance: float) -> GaussianMixture:
    """Two Gaussians of equal weight, symmetric about zero."""
    return GaussianMixture([1.0, 1.0], [[mean], [-mean]], [variance, variance])


def double_precision():
    """A context in which JAX computes in double precision: exact numbers are computed there, whatever the samples are drawn in."""
    return jax.enable_x64(True)
