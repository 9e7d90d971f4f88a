r"""Controls from linear response.

A sum $A$ over a path that is driven by normals $z_0, z_1, \dots$ has the martingale part
$\sum_k [g_k(x_k)\cdot z_k + \tfrac12\,g'_k(x_k)\cdot(z_k^2 - 1) + \dots]$ with the response
$g_k(x) = \langle\partial A/\partial z_k\,|\,x_k = x\rangle$: how much a small push now changes what is still to come, averaged over the
noise of this step and of all later ones; and with its own dependence on the push,
$g'_k(x) = \langle z_k\,\partial A/\partial z_k\,|\,x_k = x\rangle$ (Stein). A pilot run has $\partial A/\partial z_k$ of every path by one
backward pass, and regresses it on polynomials of the state for every step.

Whatever polynomials come out, the control has mean zero exactly, at every step size, since $z_k$ is independent of $x_k$ and of the
pilot. The better the fit, the less of the spread of $A$ is left: what pilot and polynomials miss, a fraction of the order of coefficients
over paths of the pilot, and what single steps do at third order, or in two coordinates at once.

References:
    J. M. C. Clark, Ann. Math. Stat. 41, 1282 (1970); D. Ocone, Stochastics 12, 161 (1984) (the representation).
    G. N. Milstein, M. V. Tretyakov, SIAM J. Numer. Anal. 47, 886 (2009); D. Belomestny et al., SIAM J. Sci. Comput. 40, A3709 (2018)
    (regression of such controls).
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast, Scalar
from thermojax._check import check_times, require
from thermojax.dynamics import AbstractDynamics
from thermojax.ensemble import Functional, Step, stepper_for
from thermojax.phase import check_states, Phase, position_of
from thermojax.steppers import AbstractStepper, advance
from thermojax.variance._controls import flat

# Polynomials are kept constant outside of this many standard deviations of the pilot, where nothing holds them.
_REACH = 4.0
_RIDGE = 1e-5


class ResponseControl(eqx.Module):
    """A functional of mean zero that follows another one, made by `response_control`.

    Give it to `accumulate` beside the functional that it follows, with another key than the pilot had. The grid may be another one.
    """

    edges: Float[Array, " time"]
    """The grid of the pilot."""
    centre: Float[Array, "step coordinate"]
    """The mean of the state before each of its steps."""
    spread: Float[Array, "step coordinate"]
    """Its standard deviation."""
    first: Float[Array, "step normal dim feature"]
    r"""The response $g$ to the noise of the step, over $\sqrt h$: the coefficient of every polynomial of the state."""
    second: Float[Array, "step normal dim feature"]
    r"""Its dependence $g'$ on that noise, over $h$."""
    degree: int = eqx.field(static=True)
    """The degree of the polynomials."""

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step.

        Raises:
            ValueError: for a stored path, whose normals are not known.
        """
        if step.zs is None:
            raise ValueError("`step` must have its normals: a control is summed by `accumulate`, got a step of a stored path.")
        own = cast(self, step.zs.dtype)
        # The middle of the step: safe against rounding of its ends, and right on finer grids.
        passed = jnp.searchsorted(own.edges, 0.5 * (step.t0 + step.t1), side="right", method="compare_all")
        k = jnp.clip(passed - 1, 0, own.centre.shape[0] - 1)
        terms = _polynomials(flat(step.x0), own.centre[k], own.spread[k], self.degree)
        h, zs = step.t1 - step.t0, step.zs
        first, second = jnp.sqrt(h) * _combine(own.first[k], terms), h * _combine(own.second[k], terms)
        return jnp.sum(first * zs + 0.5 * second * (zs**2 - 1.0))


def response_control(
    functional: Functional,
    dynamics: AbstractDynamics,
    x0s: ArrayLike | Phase,
    ts: ArrayLike,
    *,
    stepper: AbstractStepper | None = None,
    degree: int = 4,
    key: Key,
) -> ResponseControl:
    """The control of a functional from its linear response, by a pilot ensemble.

    Args:
        functional: A differentiable functional of a `Step`, of one number.
        dynamics: What moves.
        x0s: First states of the pilot; some thousand are enough. They may be among those of the run.
        ts: Times of the pilot. A coarser grid than that of the run costs less and is nearly as good.
        stepper: As for `accumulate`.
        degree: Degree of the polynomials in every coordinate of the state (without mixed terms).
        key: Random key of the pilot; the run must have another one, or its normals are not independent of the control.

    Returns:
        The control, to be summed beside `functional`; see `controlled`. A pilot of n paths of N steps stores the normals and states of all.

    Raises:
        TypeError, ValueError: if shapes, times or numbers have no meaning.
    """
    require(degree >= 0, "degree", "not be negative", degree)
    x0s = check_states(x0s)
    count, dtype = position_of(x0s).shape[0], position_of(x0s).dtype
    features = 1 + degree * flat(x0s).shape[1]
    require(count > 4 * features, "x0s", f"hold more than {4 * features} states, to fit {features} coefficients", count)
    ts = check_times(ts, dtype)
    kernel, dynamics = cast((stepper_for(dynamics) if stepper is None else stepper, dynamics), dtype)
    return _response(functional, kernel, dynamics, kernel.check(dynamics, ts, x0s), ts, degree, key)


@eqx.filter_jit
def _response(functional, stepper, dynamics, x0s, ts, degree, key):
    count, dim = position_of(x0s).shape
    zs = jr.normal(key, (ts.shape[0] - 1, count, stepper.normals, dim), ts.dtype)

    def total(zs):
        def one(t0, t1, x0, z):
            x1 = advance(stepper, dynamics, t0, t1, x0, z)
            return x1, functional(Step(stepper, dynamics, t0, t1, x0, x1, z))

        def move(xs, inputs):
            t0, t1, z = inputs
            ys, gains = jax.vmap(ft.partial(one, t0, t1))(xs, z)
            return ys, (jnp.sum(gains), flat(xs))

        _, (gains, states) = lax.scan(jax.checkpoint(move, prevent_cse=False), x0s, (ts[:-1], ts[1:], zs))
        return jnp.sum(gains), states

    responses, states = jax.grad(total, has_aux=True)(zs)

    def fit(inputs):
        h, xs, gs, z = inputs
        centre, spread = jnp.mean(xs, axis=0), jnp.std(xs, axis=0)
        rows = jax.vmap(lambda x: _features(x, centre, spread, degree))(xs)
        gram = rows.T @ rows / count + _RIDGE * jnp.eye(rows.shape[1], dtype=rows.dtype)
        regress = lambda a: jnp.linalg.solve(gram, rows.T @ a.reshape(count, -1) / count)
        first = regress(gs)
        # What the first order explains is independent of z: without it the second one is less noisy.
        second = regress(z * (gs - (rows @ first).reshape(gs.shape)))
        shaped = lambda a: a.T.reshape(*gs.shape[1:], -1)
        return centre, spread, shaped(first) / jnp.sqrt(h), shaped(second) / h

    centre, spread, first, second = lax.map(fit, (jnp.diff(ts), states, responses, zs))
    return ResponseControl(ts, centre, spread, first, second, degree)


def _combine(coefficients, terms):
    """A combination of one and the polynomials, for every noise of a step.

    Term by term: sums of products are fused into one pass over the ensemble, a product of matrices is not.
    """
    constant, others = coefficients[..., 0], coefficients[..., 1:]
    others = others.reshape(*constant.shape, len(terms), -1) if terms else others
    return sum((jnp.sum(others[..., n, :] * term[None, None], axis=-1) for n, term in enumerate(terms)), constant)


def _features(x, centre, spread, degree):
    """One, and the polynomials of every coordinate."""
    return jnp.concatenate([jnp.ones((1,), x.dtype), *_polynomials(x, centre, spread, degree)])


def _polynomials(x, centre, spread, degree):
    """Hermite's polynomials of every standardised coordinate from the first on, of unit variance for a Gaussian."""
    known = spread > 0
    s = jnp.where(known, jnp.clip((x - centre) / jnp.where(known, spread, 1.0), -_REACH, _REACH), 0.0)
    terms = [jnp.ones_like(s), s]
    for n in range(1, degree):
        terms.append((s * terms[n] - n**0.5 * terms[n - 1]) / (n + 1) ** 0.5)
    return terms[1 : degree + 1]
