r"""Entropy-rate limits of a score in one dimension, by quadrature: no sampling, every number to ten digits.

Noising $dx = f\,dt + \sigma\,dW$ of data with density $p_0$, true score $s$, learned score $s_\theta$, prior $\pi$, times from `start` to
`horizon` $= T$. The limits refer to the data as they are noised at `start`; $S_0$ and $S_1$ are the entropies of $p_{start}$ and $p_T$.
With the averages over the forward marginals, all in nats:

- path KL $D_\theta = \tfrac12\int\sigma^2\langle(s_\theta - s)^2\rangle dt$;
- learned change of entropy $\int\dot S_\theta dt$ with $\dot S_\theta = \langle\nabla\cdot f\rangle + \tfrac12\sigma^2\langle
  s_\theta^2\rangle$; with the true score it is $S_1 - S_0$;
- $B = \tfrac12(S_0 + S_1) - \tfrac12\int\dot S_\theta dt$ and the averaged likelihood $L = -\langle\ln\pi\rangle_T -
  \int\langle\nabla\cdot f\rangle dt + \tfrac12\int\sigma^2\langle\nabla\cdot s_\theta\rangle dt$, with $L - B = KL(p_T\|\pi) +
  \tfrac12 D_\theta$;
- the negative log-likelihoods of the two samplers, `sample_ode` and `sample_sde`, in continuous time, with $S_0 \le \mathrm{NLL_{SDE}}
  \le S_0 + KL(p_T\|\pi) + D_\theta$.

Density of the SDE. With $\delta = s_\theta - s$ the logarithm $\psi = \ln p_\theta/p_t$ of the sampler's density over the true one obeys
$-\partial_t\psi = (f - \sigma^2\delta)\,\psi' + \tfrac12\sigma^2(\psi'' + \psi'^2) - \sigma^2(\delta' + s\,\delta)$ and ends as
$\ln\pi/p_T$: a smooth function, zero for a perfect model, whose error is relative to the density even in the tails.

Discretisation. One grid in $x$ that moves and widens with the moments of $p_t$, equally spaced: averages by the trapezoidal rule, which
converges exponentially; derivatives of $\psi$ by centred differences of order ten, continued over the ends by a parabola (in backward time
the drift leaves through them); adaptive steps (Tsit5) in time. Integrals over time by Gauss-Legendre nodes in the square root of $t -
start$, which crowd where a process that starts without noise changes fastest.
"""

import math
from typing import cast, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_times, ensure, require
from thermojax.distributions import AbstractDistribution, as_mixture, Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, Score
from thermojax.generative._likelihood import flow_log_prob

# Standard deviations on either side that the grid holds, beyond the outermost component.
_REACH = 8.0
# Neighbours on either side that a difference reads.
_ARM = 5


class LineLimits(NamedTuple):
    """What `line_limits` computed, in nats."""

    initial_entropy: Scalar
    """$S_0$, the entropy of the data as they are at `start`."""
    final_entropy: Scalar
    """$S_1$, the entropy at `horizon`."""
    mismatch: Scalar
    r"""$KL(p_T\|\pi)$ of the noised data from the prior."""
    path_kl: Scalar
    r"""$D_\theta$, the error of the score."""
    system_change: Scalar
    r"""$\int\dot S_\theta dt$, the change of entropy as the learned score sees it."""
    true_system_change: Scalar
    r"""$\int\dot S\,dt = S_1 - S_0$, by the true score."""
    bound: Scalar
    """$B$; a lower bound of `likelihood`, not of the samplers' likelihoods."""
    likelihood: Scalar
    """$L$, the likelihood averaged over the forward marginals."""
    ceiling: Scalar
    r"""$S_0 + KL(p_T\|\pi) + D_\theta$; an upper bound of `sampler_nll`."""
    flow_nll: Scalar
    """Negative log-likelihood of the data at `start` under the probability flow."""
    sampler_nll: Scalar
    """The same under the reversed SDE."""
    ts: Float[Array, " time"]
    """Nodes of the quadrature over time."""
    weights: Float[Array, " time"]
    """Their weights."""
    path_kl_rates: Float[Array, " time"]
    """Path KL per unit time at the nodes."""
    system_rates: Float[Array, " time"]
    r"""$\dot S_\theta$ at the nodes."""
    true_system_rates: Float[Array, " time"]
    r"""$\dot S$ at the nodes."""


def line_limits(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    *,
    prior: AbstractDistribution | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    points: int = 401,
    times: int = 64,
    rtol: float = 1e-10,
    atol: float = 1e-10,
) -> LineLimits:
    """Path KL, entropy rates, bounds and likelihoods of a score for one-dimensional data of known density.

    Args:
        score: ``score(t, x)`` for ``x`` of shape ``(1,)``, any callable.
        noising: The noising process.
        data: Density of the data at time zero, in one dimension. At `start` it must have a width, its own or that of the noise.
        prior: Where generation starts; the standard normal if omitted.
        start: Earliest time.
        horizon: Latest time.
        points: Points of the grid in space: at least five to the standard deviation of the narrowest component. The time it takes to
            solve for the density of the SDE grows with their cube.
        times: Nodes of the quadrature over time.
        rtol: Relative tolerance of the two solvers.
        atol: Absolute tolerance.

    Returns:
        The limits in nats, to about ten digits with the settings above for densities as smooth as a few broad components.

    Raises:
        ValueError: if JAX computes in single precision (set ``jax_enable_x64``), the data have more than one dimension, or the grid is
            too coarse for them.
    """
    require(jnp.zeros(()).dtype == jnp.float64, "jax_enable_x64", "be on for limits by quadrature", "single precision")
    dim = data.mean.shape[0] if isinstance(data, Gaussian) else data.means.shape[1]
    require(dim == 1, "data", "have one dimension; use `entropy_limits` for more", f"{dim} dimensions")
    require(times >= 2, "times", "be at least 2", times)
    edges = check_times(jnp.stack([as_scalar(start), as_scalar(horizon)]))
    mixture = as_mixture(data)
    # One variance for each component, in whatever shape they came.
    mixture = GaussianMixture(mixture.weights, mixture.means, mixture.covariances.reshape(-1))
    half, finest = _half_width(noising, mixture, edges[0])
    rule = "put five points on the standard deviation of the narrowest component at `start`"
    half = ensure(half, 10.0 * half <= finest * (points - 1), "points", rule, points)
    nodes, weights = (jnp.asarray(a) for a in np.polynomial.legendre.leggauss(times))
    prior = standard_normal(1) if prior is None else prior
    ys = jnp.linspace(-1.0, 1.0, points)
    return _line_limits(score, noising, mixture, prior, edges, half * ys, (nodes, weights), rtol, atol)


@eqx.filter_jit
def _line_limits(score, noising, data, prior, edges, ys, rule, rtol, atol):
    start, horizon, (nodes, weights) = edges[0], edges[1], rule
    # t = start + (T - start) u^2 for u in [0, 1].
    shares = 0.5 * (nodes + 1.0)
    ts, weights = start + (horizon - start) * shares**2, (horizon - start) * shares * weights
    system, true, path_kl, expansion, stretch = lax.map(lambda t: _rates(score, noising, data, ys, t), ts)
    (xs, masses, logs), (x1s, late, late_logs) = (_density(noising, data, ys, t) for t in (start, horizon))
    priors = jax.vmap(prior.log_prob)(x1s[:, None])
    initial, final, cross = -masses @ logs, -late @ late_logs, -late @ priors
    flow = flow_log_prob(noising, score, xs[:, None], prior=prior, start=start, horizon=horizon, rtol=rtol, atol=atol)
    excess = _log_excess(score, noising, data, ys, priors - late_logs, start, horizon, rtol, atol)
    change, error = weights @ system, weights @ path_kl
    return LineLimits(
        initial_entropy=initial,
        final_entropy=final,
        mismatch=late @ (late_logs - priors),
        path_kl=error,
        system_change=change,
        true_system_change=weights @ true,
        bound=0.5 * (initial + final - change),
        likelihood=cross - weights @ expansion + weights @ stretch,
        ceiling=initial + late @ (late_logs - priors) + error,
        flow_nll=-masses @ flow,
        sampler_nll=initial - masses @ excess,
        ts=ts,
        weights=weights,
        path_kl_rates=path_kl,
        system_rates=system,
        true_system_rates=true,
    )


def _rates(score, noising, data, ys, t):
    """Entropy rates by the learned and by the true score, path KL, and the expansions of drift and score as they enter the likelihood."""
    xs, masses, _ = _density(noising, data, ys, t)
    half_noise = 0.5 * noising.noise(t) ** 2
    true = _true_score(noising, data, t)
    learned, slopes = jax.vmap(lambda x: _with_slope(lambda z: score(t, z), x))(xs)
    exact = jax.vmap(lambda x: true(x[None])[0])(xs)
    _, expansions = jax.vmap(lambda x: _with_slope(lambda z: noising.drift(t, z), x))(xs)
    expansion = masses @ expansions
    return (
        expansion + half_noise * (masses @ learned**2),
        expansion + half_noise * (masses @ exact**2),
        half_noise * (masses @ (learned - exact) ** 2),
        expansion,
        half_noise * (masses @ slopes),
    )


def _log_excess(score, noising, data, ys, final, start, horizon, rtol, atol):
    """Log-ratio of the density of the reversed SDE to the true one, on the grid at `start`."""
    slope, curvature = _differences(ys[1] - ys[0])

    def field(u, psi, args):
        del args
        t = horizon - u
        true, width = _true_score(noising, data, t), jnp.sqrt(_moments(noising, data, t)[1])
        xs = _grid(noising, data, ys, t)
        exact = jax.vmap(lambda x: true(x[None])[0])(xs)
        error, error_slope = jax.vmap(lambda x: _with_slope(lambda z: score(t, z) - true(z), x))(xs)
        padded = _continued(psi)
        first, second = slope(padded) / width, curvature(padded) / width**2
        # The drift less the motion of the grid: what is left of them is the widening by the noise.
        wind = -0.5 * ys / width - error
        return noising.noise(t) ** 2 * (wind * first + 0.5 * (second + first**2) - error_slope - exact * error)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        jnp.zeros_like(start),
        horizon - start,
        None,
        final,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=None,
    )
    return cast(Array, solution.ys)[-1]


@eqx.filter_jit
def _half_width(noising, data, t):
    """Half the width of the grid, enough for every component from t on, and the width of the narrowest, in standard deviations of all."""
    density = noising.marginal(data, t)
    moments = density.moments()
    variance = moments.covariance[0, 0]
    apart = jnp.abs(density.means[:, 0] - moments.mean[0]) / jnp.sqrt(variance)
    widths = jnp.sqrt(density.covariances / variance)
    return jnp.max(apart + _REACH * jnp.maximum(1.0, widths)), jnp.min(widths)


def _moments(noising, data, t):
    moments = noising.marginal(data, t).moments()
    return moments.mean[0], moments.covariance[0, 0]


def _grid(noising, data, ys, t):
    mean, variance = _moments(noising, data, t)
    return mean + jnp.sqrt(variance) * ys


def _density(noising, data, ys, t):
    """Grid, weights of the averages and logarithm of the true density at time t."""
    xs = _grid(noising, data, ys, t)
    logs = jax.vmap(noising.marginal(data, t).log_prob)(xs[:, None])
    return xs, jnp.exp(logs) * (xs[1] - xs[0]), logs


def _true_score(noising, data, t):
    return noising.marginal(data, t).score


def _with_slope(field, x):
    """A field on the line and its derivative."""
    return jax.jvp(lambda z: field(z[None])[0], (x,), (jnp.ones_like(x),))


def _differences(spacing):
    """First and second derivative of values on the grid that `_continued` has lengthened."""
    offsets = np.arange(-_ARM, _ARM + 1, dtype=float)
    powers = np.vander(offsets, increasing=True).T

    def derivative(order):
        unit = math.factorial(order) * np.eye(2 * _ARM + 1)[order]
        stencil = jnp.asarray(np.linalg.solve(powers, unit)[::-1].copy())
        return lambda values: jnp.convolve(values, stencil, mode="valid") / spacing**order

    return derivative(1), derivative(2)


def _continued(values):
    """`values` with the parabola through the last three added at each end."""
    steps = jnp.arange(1.0, _ARM + 1.0)

    def beyond(last, second, third):
        return last + steps * (1.5 * last - 2.0 * second + 0.5 * third) + steps**2 * (0.5 * last - second + 0.5 * third)

    return jnp.concatenate([beyond(*values[:3])[::-1], values, beyond(*values[-3:][::-1])])
