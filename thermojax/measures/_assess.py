"""What the log-ratios of a pair say: bounds, normalisers and divergences, each with an error bar."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.estimators import bar, Estimate, jarzynski, mean, Trust, trust
from thermojax.measures._pair import AbstractPair


class Assessment(NamedTuple):
    r"""What is known of a pair from paths of $P$, and of $Q$ where there are some. ELBO $\le\ln Z\le$ EUBO in expectation, always."""

    log_z: Estimate
    r"""$\ln Z = \ln\langle e^{-\ell}\rangle_P$: the estimate of importance sampling, Jarzynski's. Its average is below $\ln Z$."""
    elbo: Estimate
    r"""$-\langle\ell\rangle_P$."""
    eubo: Estimate | None
    r"""$-\langle\ell\rangle_Q$."""
    log_z_backward: Estimate | None
    r"""$\ln Z = -\ln\langle e^{\ell}\rangle_Q$."""
    log_z_both: Estimate | None
    """Bennett's estimate from both sides, the one of least variance."""
    divergence: Estimate
    r"""$KL(P\|Q) = \ln Z + \langle\ell\rangle_P$."""
    reverse_divergence: Estimate | None
    r"""$KL(Q\|P) = -\langle\ell\rangle_Q - \ln Z$."""
    log_variance: Estimate
    r"""$\mathrm{Var}_P\,\ell$, the log-variance divergence."""
    efficiency: Scalar
    """Effective share of the paths of P as importance samples, at most one; blind to what P never visits."""
    efficiency_backward: Scalar | None
    r"""The same share seen from Q, $1/\langle e^{-\ell}\rangle_Q\langle e^{\ell}\rangle_Q$, which falls where P misses what Q visits."""
    trust: Trust
    """Whether `log_z`, or with paths of Q `log_z_both`, may be believed, and why."""

    @property
    def best(self) -> Estimate:
        r"""The best estimate of $\ln Z$ there is: from both sides, if there are two."""
        return self.log_z if self.log_z_both is None else self.log_z_both


def assess(pair: AbstractPair, samples: int, *, backward: bool = False, log_z: ArrayLike | None = None, key: Key) -> Assessment:
    """Draw paths of a pair and read them.

    Args:
        pair: The two measures.
        samples: Paths from each side.
        backward: Whether paths of Q are drawn too, which needs a last density that can be sampled.
        log_z: The logarithm of the normaliser, if it is known: divergences then have no error from its estimate.
        key: Random key.

    Raises:
        ValueError: if Q cannot be drawn from.
    """
    forward_key, backward_key = jr.split(key)
    ahead = pair.forward(samples, key=forward_key).log_ratios
    back = pair.backward(samples, key=backward_key).log_ratios if backward else None
    return assessment(ahead, back, log_z=log_z)


def assessment(
    forward: Float[Array, " sample"], backward: Float[Array, " other"] | None = None, *, log_z: ArrayLike | None = None
) -> Assessment:
    r"""What log-ratios say.

    Args:
        forward: $\ell = \ln dP/dQ$ along independent paths of $P$, the normaliser of $Q$ left out.
        backward: The same along independent paths of $Q$.
        log_z: The logarithm of the normaliser, if it is known.

    Raises:
        ValueError: if a side has fewer than two finite log-ratios.
    """
    forward = jnp.asarray(forward)
    if log_z is not None:
        require(jnp.ndim(log_z) == 0, "log_z", "be one number", f"shape {jnp.shape(log_z)}")
    ahead, elbo = _negative(jarzynski(forward, beta=1.0)), _negative(mean(forward))
    squares = (forward - jnp.nanmean(jnp.where(jnp.isfinite(forward), forward, jnp.nan))) ** 2
    count = jnp.sum(jnp.isfinite(forward)).astype(forward.dtype)
    log_variance = _scaled(mean(squares), count / (count - 1))
    exact = None if log_z is None else _known(log_z, forward)
    if backward is None:
        gap = _own_divergence(forward, ahead, elbo) if exact is None else _difference(exact, elbo)
        return Assessment(ahead, elbo, None, None, None, gap, None, log_variance, _share(forward), None, trust(forward))
    backward = jnp.asarray(backward)
    eubo, behind = _negative(mean(backward)), jarzynski(-backward, beta=1.0)
    both = _negative(bar(forward, -backward, beta=1.0))
    best = both if exact is None else exact
    return Assessment(
        log_z=ahead,
        elbo=elbo,
        eubo=eubo,
        log_z_backward=behind,
        log_z_both=both,
        divergence=_difference(best, elbo),
        reverse_divergence=_difference(eubo, best),
        log_variance=log_variance,
        efficiency=_share(forward),
        efficiency_backward=_share_backward(backward),
        trust=trust(forward, -backward),
    )


def _negative(estimate):
    return estimate._replace(value=-estimate.value)


def _scaled(estimate, factor):
    return estimate._replace(value=factor * estimate.value, stderr=factor * estimate.stderr)


def _known(log_z, like):
    nothing, many = jnp.zeros((), like.dtype), jnp.asarray(jnp.inf, like.dtype)
    return Estimate(jnp.asarray(log_z, like.dtype), nothing, many, jnp.asarray(True), many, nothing)  # noqa: FBT003


def _difference(first, second):
    """Of two estimates, with their errors in quadrature."""
    return Estimate(
        first.value - second.value,
        jnp.hypot(first.stderr, second.stderr),
        jnp.minimum(first.ess, second.ess),
        first.trustworthy & second.trustworthy,
        jnp.minimum(first.samples, second.samples),
        first.excluded + second.excluded,
    )


def _own_divergence(ratios, log_z, elbo):
    r"""$\langle\ell\rangle + \ln\langle e^{-\ell}\rangle$ of the same paths: their fluctuations largely cancel."""
    good = jnp.isfinite(ratios)
    weights = jnp.where(good, jnp.exp(-ratios - log_z.value), jnp.nan)
    influence = mean(ratios + weights)
    return _difference(log_z, elbo)._replace(stderr=influence.stderr, excluded=influence.excluded)


@jax.jit
def _share(ratios):
    logs = jnp.where(jnp.isfinite(ratios), -ratios, -jnp.inf)
    count = jnp.sum(jnp.isfinite(ratios)).astype(ratios.dtype)
    return jnp.exp(2 * jax.nn.logsumexp(logs) - jax.nn.logsumexp(2 * logs)) / count


@jax.jit
def _share_backward(ratios):
    good = jnp.isfinite(ratios)
    up, down = jnp.where(good, ratios, -jnp.inf), jnp.where(good, -ratios, -jnp.inf)
    return jnp.exp(2 * jnp.log(jnp.sum(good).astype(ratios.dtype)) - jax.nn.logsumexp(up) - jax.nn.logsumexp(down))
