r"""The likelihood of a sampler by importance weights.

Given a datum $x$, the noising chain proposes a path and the denoising chain weighs it: $e^{-\ell}$ with the log-ratio $\ell$ of the two,
kernel by kernel, has the mean $p_\theta(x)$, the density of what the sampler makes in these very steps, whatever score and steps. So

$-\ln\tfrac1K\sum_{k=1}^K e^{-\ell_k}$

lies above $-\ln p_\theta(x)$ in expectation. One particle gives the bound of `path_bound`; the mean falls with every particle, towards
the negative log-likelihood itself. How fast is a question of the spread of $\ell$, as for every exponential average: where one particle
in many carries the weight, what is printed is a bound and nothing more.

Reference:
    Y. Burda, R. Grosse, R. Salakhutdinov, Importance weighted autoencoders, arXiv:1509.00519 (2016).
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast, Scalar
from thermojax._check import check_times, require
from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.functionals import BackwardRatio
from thermojax.generative._conditional import check_noise, decoding_cost, shared_times
from thermojax.generative._sampling import Ancestral
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractStepper, ExactLinear, with_density

# A typical datum needs this many effective particles, and the bias that is left must hide in the error bar.
_MIN_PARTICLES, _MAX_BIAS = 10.0, 0.1


class ImportanceNll(NamedTuple):
    """Negative log-likelihood by importance weights, in nats per configuration."""

    nll: Estimate
    """Upper bound in expectation on the negative log-likelihood of the sampler. Trustworthy if it may be read as that number itself:
    ten effective particles for the median datum, and a bias below a tenth of the error bar."""
    bound: Estimate
    """The bound of `path_bound` from the same particles: the mean of their log-ratios."""
    ess: Float[Array, " sample"]
    """Effective number of particles behind each datum, between one and all of them."""
    bias: Scalar
    """What `nll` still has too much, by the jackknife over particles; infinite for one particle."""
    nlls: Float[Array, " sample"]
    """The estimate for each datum."""


def importance_nll(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    ts: ArrayLike,
    *,
    particles: int = 16,
    prior: Gaussian | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> ImportanceNll:
    """Negative log-likelihood of the very sampler that takes the steps `ts`, from `particles` noising paths for each datum.

    Memory grows as the data times the particles, and not with the number of steps.

    Args:
        score: ``score(t, x)``.
        noising: The noising process; its noise must not vanish at ``ts[0]``.
        data: Configurations, independent of each other, shape ``(sample, dim)``.
        ts: Increasing times of the forward process.
        particles: Noising paths for each datum.
        prior: Where generation starts; the standard normal if omitted.
        stepper: Kernel of the denoising chain, of known density; `Ancestral` if omitted.
        key: Random key.

    Raises:
        TypeError, ValueError: if the data are not rows, the times do not increase, there is no noise at ``ts[0]``, `particles` is less
            than one, or the density of `stepper` is unknown.
    """
    data = check_configurations(data)
    require(particles >= 1, "particles", "be at least 1", particles)
    ts = check_noise(noising, check_times(ts, data.dtype), "ts[0]")
    prior = standard_normal(data.shape[1]) if prior is None else prior
    stepper = with_density(Ancestral() if stepper is None else stepper)
    score, noising, prior, stepper = cast((score, noising, prior, stepper), data.dtype)
    first_key, path_key = jr.split(key)
    ts, copies = shared_times(ts), jnp.repeat(data, particles, axis=0)
    zs = jr.normal(first_key, copies.shape, copies.dtype)
    x0s, firsts = _noise_first(score, noising, ts[0], copies, zs)
    ratio = BackwardRatio(Reversed(noising, score, ts[-1]), ts[-1], stepper)
    x1s, totals = accumulate(ratio, noising, x0s, ts, stepper=ExactLinear(), key=path_key)
    return _summary(prior, x1s, (firsts + totals).reshape(data.shape[0], particles))


@eqx.filter_jit
def _noise_first(score, noising, t, data, zs):
    """The data at the first time, and the log-ratio of that step: ln q(x_t|x_0) - ln p(x_0|x_t)."""
    x0s = noising.alpha(t) * data + jnp.sqrt(noising.variance(t)) * zs
    densities = -0.5 * jnp.sum(zs**2, axis=1) - 0.5 * data.shape[1] * jnp.log(2 * jnp.pi * noising.variance(t))
    return x0s, densities + jax.vmap(lambda x, z: decoding_cost(noising, score, t, x, z))(data, zs)


@eqx.filter_jit
def _summary(prior, x1s, ratios):
    count = ratios.shape[1]
    ratios = ratios - jax.vmap(prior.log_prob)(x1s).reshape(ratios.shape)
    logs = logsumexp(-ratios, axis=1)
    ess = jnp.exp(2 * logs - logsumexp(-2 * ratios, axis=1))
    nll = mean(math.log(count) - logs)
    if count == 1:
        bias = jnp.full((), jnp.inf, ratios.dtype)
    else:
        # The logarithms of the means that lack one particle each.
        without = jnp.log1p(-jnp.exp(-ratios - logs[:, None])) + math.log(count / (count - 1))
        bias = -(count - 1) * jnp.mean(without)
    sound = (jnp.median(ess) >= _MIN_PARTICLES) & (bias <= _MAX_BIAS * nll.stderr)
    return ImportanceNll(
        nll=nll._replace(trustworthy=nll.trustworthy & sound),
        bound=mean(jnp.mean(ratios, axis=1)),
        ess=ess,
        bias=bias,
        nlls=math.log(count) - logs,
    )
