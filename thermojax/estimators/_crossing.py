r"""The crossing of the work distributions of a protocol and of its reverse."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike

from thermojax.estimators._bar import bar, two_sides
from thermojax.estimators._estimate import Estimate
from thermojax.estimators._health import MIN_ESS

_STEPS = 60


def crossing(forward: ArrayLike, backward: ArrayLike, *, beta: ArrayLike, inefficiency: Sequence[ArrayLike] | ArrayLike = 1.0) -> Estimate:
    r"""The work at which the two distributions cross, $P(W) = \tilde P(-W)$: the free-energy difference, by Crooks' relation.

    Fits $\ln P(W)/\tilde P(-W) = b\,(W - W^*)$ by maximum likelihood (logistic regression of the direction on the work) and reads off
    $W^*$. Crooks' relation says $b = \beta$; the slope is left free, so that the crossing needs no bins, no shape of the distributions
    and no temperature, and is consistent wherever the log-ratio is a straight line. With $b$ held at $\beta$ this is `bar`, which has the
    smaller error. A slope more than four of its errors away from `beta` says that the relation does not hold (paths that did not
    start in equilibrium, a wrong temperature, a time step too large): the estimate is then not trustworthy.

    Args:
        forward: Work of paths that start in equilibrium at the first control, shape ``(n,)``.
        backward: Work of paths under the reversed protocol, from equilibrium at the last control, shape ``(m,)``.
        beta: Inverse temperature, one number for both; it does not enter the value.
        inefficiency: How many correlated paths are worth one independent path, for both sides or for each.

    Raises:
        ValueError: if `beta` is not one positive number, or a side has no finite sample.

    Reference:
        G. E. Crooks, Phys. Rev. E 60, 2721 (1999); M. R. Shirts et al., Phys. Rev. Lett. 91, 140601 (2003).
    """
    ahead, back, scale = two_sides(forward, backward, beta, None, inefficiency)
    near = bar(forward, backward, beta=beta, inefficiency=inefficiency)
    return _crossing(ahead, back, scale, near)


@jax.jit
def _crossing(ahead, back, beta, near):
    # In units of 1/beta, and from the estimate of `bar`, so that the slope is close to one and the offset to zero.
    origin = lax.stop_gradient(near.value) * beta
    sides = (ahead, ahead.values - origin, 1.0), (back, -back.values - origin, -1.0)
    shift = jnp.log(ahead.independent / back.independent)

    def loss(theta):
        """Negative log-likelihood of the directions."""
        cost = lambda side, y, sign: jnp.sum(side.weights * jax.nn.softplus(-sign * (shift + theta[0] + theta[1] * y)))
        return sum(cost(*side) * side[0].independent / side[0].number for side in sides)

    def improve(_, theta):
        slope, curvature = jax.grad(loss)(theta), jax.hessian(loss)(theta)
        ridge = jnp.finfo(slope.dtype).eps * (1.0 + jnp.trace(curvature)) * jnp.eye(2, dtype=slope.dtype)
        step = jnp.linalg.solve(curvature + ridge, slope)
        # Without overlap the likelihood has no maximum; steps of bounded length stay finite.
        step = step / jnp.maximum(1.0, jnp.sqrt(jnp.sum(step**2)))
        halves = 0.5 ** jnp.arange(4, dtype=slope.dtype)
        costs = jax.vmap(lambda h: loss(theta - h * step))(halves)
        return theta - halves[jnp.argmin(costs)] * step

    theta = lax.fori_loop(0, _STEPS, improve, jnp.stack([jnp.zeros_like(beta), jnp.ones_like(beta)]))

    def scores(side, y, sign):
        """Spread of the score of one direction: its number of samples was chosen, so only the spread within it counts."""
        pull = sign * jax.nn.sigmoid(-sign * (shift + theta[0] + theta[1] * y))
        both = jnp.stack([pull, pull * y])
        centred = (both - jnp.sum(side.weights[None] * both, axis=1, keepdims=True) / side.number) * side.weights[None]
        return centred @ centred.T * (side.independent / side.number) ** 2 * side.inefficiency

    inverse = jnp.linalg.inv(jax.hessian(loss)(theta))
    covariance = inverse @ sum(scores(*side) for side in sides) @ inverse
    crossed = -theta[0] / theta[1]
    pull = -jnp.stack([jnp.ones_like(crossed), crossed]) / theta[1]
    variance = pull @ covariance @ pull
    straight = jnp.abs(theta[1] - 1) < 4 * jnp.sqrt(covariance[1, 1])
    trustworthy = near.trustworthy & straight & jnp.isfinite(variance) & (near.ess >= MIN_ESS)
    return near._replace(value=(origin + crossed) / beta, stderr=jnp.sqrt(variance) / beta, trustworthy=trustworthy)
