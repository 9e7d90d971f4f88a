r"""The bound of DDPM term by term.

Of the noising chain $q$, given a datum $x_0$, and the denoising chain $p_\theta$ on the times $t_0 < \dots < t_N$ the mean log-ratio is

$L = \mathrm{KL}(q(x_N|x_0)\Vert\pi) + \sum_k\langle\mathrm{KL}(q(x_{k-1}|x_k, x_0)\Vert p_\theta(x_{k-1}|x_k))\rangle
+ \langle-\ln p_\theta(x_0|x_{t_0})\rangle$,

the number of `path_bound`. Every kernel is a Gaussian, so that each divergence is a closed form of $x_k$, and $x_k$ is drawn directly
from $q(x_k|x_0)$: no path is followed, and the noise of a step is its own. In continuous time a step costs
$\int\tfrac12\sigma_t^2\langle\lVert s_\theta - \nabla\ln p(x_t|x_0)\rVert^2\rangle dt$; what the kernel costs more is the discretisation
error of that step. Everything is in nats.

Reference:
    J. Ho, A. Jain, P. Abbeel, arXiv:2006.11239 (2020), eq. (5).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast, Scalar
from thermojax._check import check_times
from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.estimators import Estimate, mean
from thermojax.generative._conditional import check_noise, decoding_cost, shared_times, steadied, stratified, terminal_kl
from thermojax.generative._sampling import Ancestral
from thermojax.generative._training import denoising_rate
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractGaussianStepper, AbstractStepper, log_volume, whiten, with_density


class KernelTerms(NamedTuple):
    """The bound of DDPM term by term, in nats per configuration; profiles have one entry per step, the cleanest first."""

    bound: Estimate
    """Upper bound on the negative log-likelihood of the sampler: the sum of `terminal`, `steps` and `decoding`."""
    terminal: Estimate
    """Mismatch of the prior, KL of the noised datum from it."""
    steps: Float[Array, " step"]
    """KL of the noising chain's posterior from the kernel of each step."""
    step_errors: Float[Array, " step"]
    """Their standard errors."""
    decoding: Estimate
    """Cost of the last step, which undoes the noise of the earliest time."""
    ts: Float[Array, " step"]
    """The noisier time of each step, from which its kernel denoises."""
    widths: Float[Array, " step"]
    """The length of each step."""
    continuous: Float[Array, " step"]
    """Conditional path KL of the same interval in continuous time."""
    continuous_errors: Float[Array, " step"]
    """Their standard errors."""
    gaps: Float[Array, " step"]
    """Discretisation error of each step, `steps` less `continuous`."""
    gap_errors: Float[Array, " step"]
    """Their standard errors: smaller than those of the two, which share their noise."""


def kernel_terms(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    ts: ArrayLike,
    *,
    prior: Gaussian | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> KernelTerms:
    """The bound of `path_bound` by closed-form divergences, step by step, and what each step costs in continuous time.

    It has the mean of `path_bound` (to order one over the number of data) and less spread. Each datum has one random time in every
    interval, stratified over the data. The score is called twice for each datum and step.

    Args:
        score: ``score(t, x)``.
        noising: The noising process; its noise must not vanish at ``ts[0]``.
        data: Configurations the bound is averaged over, independent of each other, shape ``(sample, dim)``.
        ts: Increasing times of the forward process.
        prior: Where generation starts, a Gaussian; the standard normal if omitted.
        stepper: Gaussian kernel of the denoising chain; `Ancestral` if omitted.
        key: Random key.

    Raises:
        TypeError, ValueError: if the data are not rows, the times do not increase, there is no noise at ``ts[0]``, or the density of
            `stepper` is unknown.
    """
    data = check_configurations(data)
    ts = check_noise(noising, check_times(ts, data.dtype), "ts[0]")
    prior = standard_normal(data.shape[1]) if prior is None else prior
    gaussian = with_density(Ancestral() if stepper is None else stepper)
    score, noising, prior, gaussian = cast((score, noising, prior, gaussian), data.dtype)
    gaussian.check(Reversed(noising, score, ts[-1]), (ts[-1] - ts)[::-1], data)
    return _kernel_terms(score, noising, data, prior, gaussian, ts, key)


@eqx.filter_jit
def _kernel_terms(score, noising, data, prior, stepper, ts, key):
    n = data.shape[0]
    step_key, last_key = jr.split(key)
    ts = shared_times(ts)
    backward = Reversed(noising, score, ts[-1])

    def step(totals, inputs):
        t0, t1, k = inputs
        time_key, noise_key = jr.split(jr.fold_in(step_key, k))
        zs = jr.normal(noise_key, data.shape, data.dtype)
        times = t0 + (t1 - t0) * stratified(n, data.dtype, key=time_key)
        rates = jax.vmap(lambda t, x, z: denoising_rate(noising, score, t, x, z))(times, data, zs)
        costs = jax.vmap(lambda x, z: _step_kl(stepper, backward, t0, t1, x, z))(data, zs)
        costs, smooth = steadied(costs, zs), steadied((t1 - t0) * rates, zs)
        found = [(jnp.mean(a), jnp.std(a) / jnp.sqrt(n)) for a in (costs, smooth, costs - smooth)]
        return totals + costs, found

    inputs = (ts[:-1], ts[1:], jnp.arange(ts.shape[0] - 1))
    paths, found = lax.scan(step, jnp.zeros(n, data.dtype), inputs)
    (steps, step_errors), (continuous, continuous_errors), (gaps, gap_errors) = found
    zs = jr.normal(last_key, data.shape, data.dtype)
    decoding = steadied(jax.vmap(lambda x, z: decoding_cost(noising, score, ts[0], x, z))(data, zs), zs)
    terminal = jax.vmap(lambda x: terminal_kl(noising, prior, ts[-1], x))(data)
    return KernelTerms(
        bound=mean(terminal + paths + decoding),
        terminal=mean(terminal),
        steps=steps,
        step_errors=step_errors,
        decoding=mean(decoding),
        ts=ts[1:],
        widths=jnp.diff(ts),
        continuous=continuous,
        continuous_errors=continuous_errors,
        gaps=gaps,
        gap_errors=gap_errors,
    )


def _step_kl(
    stepper: AbstractGaussianStepper, backward: Reversed, t0: Scalar, t1: Scalar, x0: Float[Array, " dim"], z: Float[Array, " dim"]
) -> Scalar:
    r"""KL of the posterior $q(x_{t_0}|x_{t_1}, x_0)$ from the denoising kernel, at $x_{t_1} = \alpha x_0 + \sqrt{v}\,z$."""
    noising: AbstractNoising = backward.forward  # pyright: ignore[reportAssignmentType]
    (factor, added), before, after = noising.transition(t0, t1), noising.variance(t0), noising.variance(t1)
    x1 = noising.alpha(t1) * x0 + jnp.sqrt(after) * z
    increment, spread = stepper.increment(backward, backward.horizon - t1, backward.horizon - t0, x1)
    # The posterior's mean less x1, written without the difference of the two.
    exact = (1.0 - factor) * noising.alpha(t0) * x0 + (factor * before * (1.0 - factor) - added) / jnp.sqrt(after) * z
    variance = before * added / after
    return 0.5 * jnp.sum(whiten(spread, increment - exact) ** 2) + _spread_kl(variance, spread, x0)


def _spread_kl(variance, spread, like):
    r"""KL of $N(0, v)$ from $N(0, LL^T)$."""
    dim = like.shape[0]
    if spread.ndim < 2:
        # Of the ratio r of the variances, (r - 1 - ln r)/2: no difference of large logarithms.
        logs = jnp.broadcast_to(jnp.log(variance / spread**2), (dim,))
        return 0.5 * jnp.sum(jnp.expm1(logs) - logs)
    columns = jax.vmap(lambda e: whiten(spread, e))(jnp.eye(dim, dtype=like.dtype))
    return 0.5 * (variance * jnp.sum(columns**2) - dim * (1.0 + jnp.log(2 * jnp.pi * variance))) + log_volume(spread, dim)
