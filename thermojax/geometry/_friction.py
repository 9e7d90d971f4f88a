"""The friction tensor of overdamped dynamics in one dimension, by quadrature."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, cast, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.geometry._panels import panels
from thermojax.potentials import energy, Potential

# A Boltzmann factor below exp(-50) changes no digit of the integrals.
_CUTOFF = 50.0
# Where densities are looked for, |x| below this.
_REACH = 2.0**17
_PROBES, _ROUNDS = 257, 6
_PANELS, _ORDER = 64, 16


def _as_walls(value: Any) -> Array | None:
    return None if value is None else as_float(value)


class Friction(eqx.Module):
    r"""The friction tensor $\zeta(\lambda)$ of overdamped dynamics in one dimension as a metric: a function of the control alone.

    It checks nothing and returns nan where there is no equilibrium, so that a search for a geodesic turns back there; `friction` is the
    same with checks.
    """

    potential: Potential
    r"""$V(x, \lambda)$ in one dimension."""
    beta: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Inverse temperature."""
    mobility: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""$\mu$, the inverse of the drag $\gamma$."""
    walls: Float[Array, " 2"] | None = eqx.field(converter=_as_walls, default=None)
    """Places of hard walls; without them the density is looked for on the whole line."""

    def __call__(self, lam: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\zeta$ of shape ``()`` for one control, ``(control, control)`` for several."""
        zeta, gap, rough = _integrals(self, lam)
        return jnp.where((gap > _CUTOFF) & (rough < _tolerance(zeta.dtype)), zeta, jnp.nan)


def friction(
    potential: Potential,
    lam: ArrayLike | Sequence[float],
    *,
    beta: ArrayLike = 1.0,
    mobility: ArrayLike = 1.0,
    walls: ArrayLike | Sequence[float] | None = None,
) -> Float[Array, "..."]:
    r"""The friction tensor of overdamped dynamics in one dimension, by quadrature.

    $$\zeta_{ij}(\lambda) = \beta\int_0^\infty\langle\delta X_i(0)\,\delta X_j(t)\rangle\,dt
    = \frac{\beta^2}{\mu}\int\frac{g_i\,g_j}{\pi}\,dx, \qquad g_i(x) = \int_{-\infty}^x(\partial_iV - \langle\partial_iV\rangle)\,\pi.$$

    With the cumulative distribution $\Pi$ of the equilibrium $\pi$ it is $\mu^{-1}\int\partial_i\Pi\,\partial_j\Pi/\pi\,dx$. The interval
    follows the density at each control, to where it has fallen to $e^{-50}$; each half of the probability is summed from its own tail.
    Differentiable in the parameters of the potential, the control, `beta` and `mobility`; may be mapped over controls by `jax.vmap`.

    Args:
        potential: $V(x, \lambda)$, normalisable as a Boltzmann weight.
        lam: The control, a number or of shape ``(control,)``.
        beta: Inverse temperature.
        mobility: $\mu$, the inverse of the drag.
        walls: Two places of hard walls that the density may lean on, for potentials that do not confine.

    Returns:
        $\zeta$, energy times time over control squared, of shape ``()`` or ``(control, control)``.

    Raises:
        ValueError: if the control has another shape, or the Boltzmann weight cannot be normalised or resolved.

    Reference:
        D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012).
    """
    lam = check_control(lam)
    walls = None if walls is None else check_walls(walls)
    found = Friction(potential, check_scale(beta, "beta"), check_scale(mobility, "mobility"), walls)
    zeta, gap, rough = _checked(found, lam)
    xp = library_of(zeta)
    rule = "be normalisable as a Boltzmann weight (it must confine, or take `walls`)"
    zeta = ensure(zeta, xp.asarray(gap) > _CUTOFF, "potential", rule, f"one that is exp(-{gap}) of its maximum far out")
    good = xp.isfinite(zeta).all() & (xp.asarray(rough) < _tolerance(zeta.dtype))
    return ensure(zeta, good, "potential", f"have wells that {_PANELS * _ORDER} points resolve", f"a roughness of {rough}")


def check_control(lam: Any, name: str = "lam") -> Array:
    """Return one control as a floating-point array of shape ``()`` or ``(control,)``."""
    lam = as_float(lam)
    require(lam.ndim <= 1 and lam.size > 0, name, "be a number or have shape (control,)", f"shape {lam.shape}")
    return ensure(lam, library_of(lam).isfinite(lam), name, "be finite", lam)


def check_scale(value: Any, name: str) -> Scalar:
    """Return one positive number."""
    value = as_float(value)
    require(value.ndim == 0, name, "be one number", f"shape {value.shape}")
    return check_positive(value, name)


def check_walls(walls: Any) -> Float[Array, " 2"]:
    """Return the places of two walls, the lower one first."""
    walls = as_float(walls)
    require(walls.shape == (2,), "walls", "be two places", f"shape {walls.shape}")
    xp = library_of(walls)
    return ensure(walls, xp.isfinite(walls).all() & (xp.diff(walls) > 0), "walls", "be finite and increase", walls)


@eqx.filter_jit
def _checked(found, lam):
    return _integrals(found, lam)


def _tolerance(dtype):
    # The two highest coefficients that rounding alone leaves, with room to spare.
    return max(1e-7, 1e4 * float(jnp.finfo(dtype).eps))


def _integrals(found, lam):
    """Friction, how far the Boltzmann factor has fallen far out, and how rough the density is on the panels."""
    found = cast(found, lam.dtype)
    reduced = lambda x, l: found.beta * energy(found.potential, x[None], l)
    if found.walls is None:
        low, high, gap = _window(lambda x: reduced(x, lam), lam.dtype)
    else:
        (low, high), gap = found.walls, jnp.full((), jnp.inf, lam.dtype)
    rule = panels(low, high, _PANELS, _ORDER)
    places = rule.nodes.ravel()
    us = jax.vmap(lambda x: reduced(x, lam))(places).reshape(rule.nodes.shape)
    slopes = jax.vmap(lambda x: jax.grad(reduced, argnums=1)(x, lam))(places)
    slopes = jnp.moveaxis(slopes.reshape(*rule.nodes.shape, -1), -1, 0)
    usable = jnp.isfinite(us)
    us = jnp.where(usable, us, jnp.inf)
    us = us - lax.stop_gradient(jnp.min(us))
    weights = jnp.exp(-us)
    z = rule.integral(weights)
    weights = weights / z
    lower = rule.below(weights) < rule.above(weights)

    def summed(slope):
        # Centred by the mean, so that both sums agree in the middle. Beyond hard walls nothing is added.
        centred = jnp.where(usable, slope, 0.0)
        centred = (centred - rule.integral(weights * centred)) * weights
        return jnp.where(lower, rule.below(centred), -rule.above(centred))

    g = jax.vmap(summed)(slopes)
    # One over the density without a division, whose derivative would overflow in the tails.
    there = weights > jnp.finfo(lam.dtype).tiny
    inverse = jnp.where(there, z * jnp.exp(jnp.where(there, us, 0.0)), 0.0)
    zeta = jnp.einsum("ipn,jpn->ij", g, jax.vmap(lambda a: rule.weights * (a * inverse))(g)) / found.mobility
    return zeta.reshape(lam.shape + lam.shape), gap, rule.roughness(weights)


def _window(reduced, dtype):
    """The interval in which the Boltzmann factor is above exp(-50) of its maximum, and how far it has fallen at the ends of the line.

    The first look is at places that lie the denser the nearer they are to the origin; others follow, each fifty times closer or more. A
    place is dropped only if it lies too high by more than the energy changes to its nearer neighbour, so that narrow wells are not lost
    at the first, coarse look.
    """
    reduced = lambda x, f=reduced: lax.stop_gradient(f(x))
    outwards = np.geomspace(1e-2, _REACH, _PROBES // 2)
    far = jnp.asarray(np.concatenate([-outwards[::-1], [0.0], outwards]), dtype)

    def look(_, ends):
        low, high, gap, first = ends
        places = jnp.where(first, far, jnp.linspace(low, high, _PROBES, dtype=dtype))
        us = jax.vmap(reduced)(places)
        us = jnp.where(jnp.isnan(us), jnp.inf, us)
        finite = jnp.isfinite(us)
        steps = jnp.where(finite[1:] & finite[:-1], jnp.abs(jnp.diff(jnp.where(finite, us, 0.0))), jnp.inf)
        steps = jnp.pad(steps, 1, constant_values=jnp.inf)
        least = us - jnp.minimum(steps[1:], steps[:-1])
        kept = finite & (least < jnp.min(us) + 1.2 * _CUTOFF)
        gap = jnp.where(first, jnp.minimum(us[0], us[-1]) - jnp.min(us), gap)
        index = jnp.arange(_PROBES)
        left, right = jnp.min(jnp.where(kept, index, _PROBES)), jnp.max(jnp.where(kept, index, -1))
        return places[jnp.maximum(left - 1, 0)], places[jnp.minimum(right + 1, _PROBES - 1)], gap, False

    reach = jnp.asarray(_REACH, dtype)
    low, high, gap, _ = lax.fori_loop(0, _ROUNDS, look, (-reach, reach, jnp.zeros((), dtype), True))
    return low, high, gap
