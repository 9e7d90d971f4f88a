"""The friction tensor from the fluctuations of simulated equilibria, in any dimension."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, PRNGKeyArray as Key

from thermojax._check import check_times, ensure, require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Overdamped, Underdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.geometry._friction import check_control
from thermojax.phase import position_of
from thermojax.potentials import energy
from thermojax.protocols import Constant
from thermojax.steppers import AbstractStepper
from thermojax.switching import equilibrium_at


class SimulatedFriction(NamedTuple):
    """A friction tensor from simulations; the arrays of each estimate have the shape of the tensor."""

    friction: Estimate
    r"""$\zeta(\lambda)$, the correlations integrated over the whole time."""
    late: Estimate
    """The part of it from the second half of the time: not zero within its error if the time is too short."""


def friction_from_simulation(
    dynamics: AbstractDynamics,
    lam: ArrayLike | Sequence[float],
    ts: ArrayLike,
    samples: int,
    *,
    initial: AbstractDistribution | None = None,
    dim: int = 1,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> SimulatedFriction:
    r"""The friction tensor by Green and Kubo, $\zeta_{ij} = \beta\int_0^T\langle\delta X_i(0)\,\delta X_j(t)\rangle\,dt$.

    Independent paths start in equilibrium under the fixed control. Each gives
    $\tfrac\beta2[\delta X_i(0)\,I_j + I_i\,\delta X_j(T)]$ with $I = \int_0^T\delta X\,dt$ by the trapezoidal rule, and their spread the
    error bar. The bias of the cut-off $T$ is the integral that is left out, which falls exponentially; the variance grows as $T$, so that
    about ten relaxation times are a good choice, and `late` tells whether they are enough. The bias of the time step is that of the
    stepper: of first order for `EulerMaruyama`, of second order for exact or split steps. The mean of $X$ is that of the samples, which
    costs one part in `samples`.

    Args:
        dynamics: Overdamped or underdamped dynamics in one constant bath, without a force that is no gradient; its protocol is not used.
        lam: The control, a number or of shape ``(control,)``.
        ts: Strictly increasing times; their range is the cut-off.
        samples: Number of paths.
        initial: The equilibrium under the control, if the library's own is not wanted.
        dim: Number of coordinates of the equilibrium.
        stepper: One-step kernel; see `ensemble.accumulate`.
        key: Random key.

    Raises:
        ValueError: if the control has another shape, or the dynamics have no equilibrium. Of the bath only both ends of `ts` are compared.
        TypeError: if the dynamics are others.

    Reference:
        D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012).
    """
    lam, ts = check_control(lam), check_times(ts)
    if not isinstance(dynamics, Overdamped | Underdamped):
        raise TypeError(f"`dynamics` must be `Overdamped` or `Underdamped`, got {type(dynamics).__name__}.")
    require(dynamics.nonconservative is None, "dynamics", "have an equilibrium, without a nonconservative force", "one with such a force")
    require(ts.shape[0] >= 3, "ts", "have at least two steps", f"shape {ts.shape}")
    require(samples >= 2, "samples", "be at least two", samples)
    beta = dynamics.bath(ts[0])
    require(jnp.ndim(beta) == 0, "bath", "return one beta for an equilibrium", f"shape {jnp.shape(beta)}")
    ts = ensure(ts, dynamics.bath(ts[-1]) == beta, "bath", "be constant", "one that differs between both ends of `ts`")
    still = eqx.tree_at(lambda d: d.protocol, dynamics, Constant(lam), is_leaf=lambda leaf: leaf is None)
    start_key, first_key, second_key = jr.split(key, 3)
    initial = equilibrium_at(still, ts[0], dim=dim) if initial is None else initial
    x0s = initial.sample(samples, key=start_key)
    half = ts.shape[0] // 2
    integral = _Integral()
    x1s, first = accumulate(integral, still, x0s, ts[: half + 1], stepper=stepper, key=first_key)
    x2s, second = accumulate(integral, still, x1s, ts[half:], stepper=stepper, key=second_key)
    values, late = _products(still, (x0s, x1s, x2s), (first, second), ts[half] - ts[0], ts[-1] - ts[0], beta)
    return SimulatedFriction(*(_estimates(v, lam.shape) for v in (values, late)))


class _Integral(eqx.Module):
    """The increment of the integral of the generalised force, by the trapezoidal rule."""

    def __call__(self, step: Any) -> Array:
        ends = [_observed(step.dynamics, x) for x in (step.x0, step.x1)]
        return 0.5 * (step.t1 - step.t0) * (ends[0] + ends[1])


def _observed(dynamics, x):
    lam = dynamics.protocol.value
    return -jax.grad(lambda l: energy(dynamics.potential, position_of(x), l))(lam).reshape(lam.size)


@eqx.filter_jit
def _products(dynamics, states, integrals, half, whole, beta):
    dynamics = jax.tree.map(lambda a: a.astype(integrals[0].dtype) if eqx.is_inexact_array(a) else a, dynamics)
    half, whole, beta = (jnp.asarray(a, integrals[0].dtype) for a in (half, whole, beta))
    first, middle, last = (jax.vmap(lambda x: _observed(dynamics, x))(xs) for xs in states)
    average = jnp.mean(integrals[0] + integrals[1], axis=0) / whole
    centred = lambda values, time: jax.vmap(lambda v: v - time * average)(values)
    one = jnp.ones_like(whole)
    first, middle, last = (centred(values, one) for values in (first, middle, last))
    early, total = centred(integrals[0], half), centred(integrals[0] + integrals[1], whole)

    def products(start, end, integral):
        outer = jax.vmap(lambda a, b, i: jnp.outer(a, i) + jnp.outer(i, b))(start, end, integral)
        # Symmetric by reversal of time.
        return 0.25 * beta * (outer + jnp.swapaxes(outer, 1, 2))

    values = products(first, last, total)
    return values, values - products(first, middle, early)


def _estimates(values, shape):
    flat = jax.vmap(mean, in_axes=1)(values.reshape(values.shape[0], -1))
    return jax.tree.map(lambda a: a.reshape(shape + shape), flat)
