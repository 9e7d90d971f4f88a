"""Likelihood through the probability flow."""

import typing

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Score
from thermojax.phase import check_configurations


def flow_log_prob(
    noising: AbstractDynamics,
    score: Score,
    xs: ArrayLike,
    *,
    prior: AbstractDistribution,
    divergence: str = "exact",
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    key: Key | None = None,
) -> Float[Array, " sample"]:
    r"""Log-likelihood of configurations under the probability flow, $\ln p(x) = \ln\pi(x_T) + \int\nabla\cdot[b - \tfrac12\sigma^2 s]\,dt$.

    Args:
        noising: The forward process.
        score: ``score(t, x)``.
        xs: Configurations at time `start`, shape ``(sample, dim)``. Where the process has shrunk the data by then, multiply them by
            ``noising.alpha(start)`` and add ``dim`` times its logarithm to the result.
        prior: Density at `horizon`.
        divergence: "exact", the trace at the cost of `dim` derivatives per evaluation, or "hutchinson", an estimate that costs one and is
            unbiased for the log-likelihood, with one random sign vector for each configuration.
        start: Time of the configurations.
        horizon: Time of the prior.
        rtol: Relative tolerance of the adaptive steps (Tsit5).
        atol: Absolute tolerance.
        key: Random key, for Hutchinson's estimate only.

    Returns:
        Log-likelihoods in nats.

    Reference:
        Y. Song et al., arXiv:2011.13456 (2021), eqs. (39) and (40).
    """
    require(divergence in ("exact", "hutchinson"), "divergence", "be 'exact' or 'hutchinson'", repr(divergence))
    require(divergence == "exact" or key is not None, "key", "be given for Hutchinson's estimate", key)
    xs = check_configurations(xs)
    start, horizon = (jnp.asarray(t, xs.dtype) for t in (start, horizon))
    probes = None if divergence == "exact" or key is None else jr.rademacher(key, xs.shape, xs.dtype)
    noising, score, prior = cast((noising, score, prior), xs.dtype)
    return _flow_log_prob(noising, score, xs, probes, prior, start, horizon, rtol, atol)


@eqx.filter_jit
def _flow_log_prob(noising, score, xs, probes, prior, start, horizon, rtol, atol):
    def solve(x, probe):
        def field(t, state, args):
            del args
            velocity = lambda y: noising.drift(t, y) - 0.5 * noising.noise(t) ** 2 * score(t, y)
            if probe is None:
                value, trace = velocity(state[0]), jnp.trace(jax.jacfwd(velocity)(state[0]))
            else:
                value, slope = jax.jvp(velocity, (state[0],), (probe,))
                trace = jnp.sum(slope * probe)
            return value, trace

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            start,
            horizon,
            None,
            (x, jnp.zeros((), x.dtype)),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=None,
        )
        ends, gains = typing.cast(tuple[Array, Array], solution.ys)
        return prior.log_prob(ends[-1]) + gains[-1]

    return jax.vmap(solve, in_axes=(0, None if probes is None else 0))(xs, probes)
