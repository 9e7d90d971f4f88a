"""Exact scores, and the usual ways to write the same vector."""

import equinox as eqx
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising


class MixtureScore(eqx.Module):
    r"""The exact score $\nabla\ln p_t(x)$ of data that are a Gaussian or a mixture of Gaussians."""

    noising: AbstractNoising
    """The process that noises the data."""
    data: Gaussian | GaussianMixture
    """The density of the data."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The score of one configuration at time `t`."""
        return self.noising.marginal(self.data, t).score(x)


def score_to_data(noising: AbstractNoising, t: Scalar, x: Float[Array, " dim"], score: Float[Array, " dim"]) -> Float[Array, " dim"]:
    r"""The denoised data that a score stands for, $\hat x_0 = (x + v\,s)/\alpha$ (Tweedie)."""
    return (x + noising.variance(t) * score) / noising.alpha(t)


def data_to_score(noising: AbstractNoising, t: Scalar, x: Float[Array, " dim"], denoised: Float[Array, " dim"]) -> Float[Array, " dim"]:
    r"""The score that denoised data stand for, $s = (\alpha\hat x_0 - x)/v$."""
    return (noising.alpha(t) * denoised - x) / noising.variance(t)
