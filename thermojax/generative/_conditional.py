"""The noising of one datum: what the bounds on its likelihood share, and the times that noising and generation share."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import ensure
from thermojax.distributions import Gaussian
from thermojax.dynamics import AbstractNoising, Score


def terminal_kl(noising: AbstractNoising, prior: Gaussian, t: Scalar, x0: Float[Array, " dim"]) -> Scalar:
    """KL of the noised datum from a Gaussian prior."""
    mean, variance = noising.alpha(t) * x0, noising.variance(t)
    cross = -prior.log_prob(mean) - 0.5 * variance * jnp.trace(jax.jacfwd(prior.score)(mean))
    return cross - 0.5 * x0.shape[0] * (1.0 + jnp.log(2 * jnp.pi * variance))


def decoding_cost(noising: AbstractNoising, score: Score, t: Scalar, x0: Float[Array, " dim"], z: Float[Array, " dim"]) -> Scalar:
    r"""$-\ln N(x_0; \hat x_0, v/\alpha^2)$ with the denoised datum $\hat x_0$: what the last step costs."""
    spread = jnp.sqrt(noising.variance(t))
    missed = z + spread * score(t, noising.alpha(t) * x0 + spread * z)
    log_scale = jnp.log(spread) - noising.log_alpha(t)
    return 0.5 * jnp.sum(missed**2) + x0.shape[0] * (log_scale + 0.5 * jnp.log(2 * jnp.pi))


def steadied(values: Float[Array, " sample"], zs: Float[Array, "sample dim"]) -> Float[Array, " sample"]:
    """`values` less their regression on the mean square of the noise, which is known.

    The same mean, to order one over their number, and less spread: at little noise the score knows nothing of it, and the square of the
    noise is nearly all of the spread.
    """
    control = jnp.sum(zs**2, axis=1) - zs.shape[1]
    slope = jnp.sum(control * (values - jnp.mean(values))) / jnp.sum(control**2)
    return values - slope * control


def stratified(n: int, dtype: jnp.dtype, *, key: Key) -> Float[Array, " sample"]:
    """`n` numbers that are each uniform between 0 and 1, one in each n-th part, in random order."""
    order_key, shift_key = jr.split(key)
    return (jr.permutation(order_key, n).astype(dtype) + jr.uniform(shift_key, (), dtype)) / n


def shared_times(ts: Float[Array, " time"]) -> Float[Array, " time"]:
    """The times `ts` as both clocks can write them, that of the noising and that of the generation.

    Rounding $T - t$ drops digits of small times; after that $T - (T - t) = t$ holds exactly, and both processes have the same kernels
    wherever they are evaluated.
    """
    return ts[-1] - (ts[-1] - ts)


def check_noise(noising: AbstractNoising, ts: Float[Array, " time"], name: str) -> Float[Array, " time"]:
    """Return `ts` if the process has noise at the first of them."""
    rule = "be a time at which the process has noise: the bound starts there"
    return ensure(ts, noising.variance(ts[0]) > 0, name, rule, ts[0])
