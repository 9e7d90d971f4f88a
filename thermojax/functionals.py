r"""Functionals of one trajectory, as increments per step.

Each takes one `ensemble.Step` and returns a number; `ensemble.accumulate` sums it while the trajectory runs, `ensemble.along` over a
stored one. $k_B = 1$.

Signs. Work is done *on* the system, heat is dissipated *into* the medium, so $W = \Delta E + Q$ along every path, and the entropy of
the medium grows by $\Delta s_m = \int\beta\,\delta Q$.

Discretisation. On a step from $t_0$ to $t_1$ whose coefficients were read at the clock $t_c$, the control switches from
$\lambda(t_0)$ to $\lambda(t_c)$ at the old position (work), the particle moves at fixed $\lambda(t_c)$ (heat), and the control
switches from $\lambda(t_c)$ to $\lambda(t_1)$ at the new position (work): Crooks' order. It telescopes, so the first law holds to
rounding, jumps of the protocol at either end cost what they should, and $\beta(t)$ needs no extra term in the reduced work $Y =
\Delta u + \Delta s_m$ with $u = \beta V$.

The exact log-ratio. `log_ratio` is $\ln K(x_1|x_0) - \ln K(x_0|x_1)$ of the kernel that made the step. Together with the densities
at both ends (`path_log_ratio`) it is $\ell = \ln dP/dQ$ with $\langle e^{-\ell}\rangle = 1$ at *every* step size. The
`_stratonovich` and `_ito` sums are the usual discretisations of the continuous-time formulas, correct up to $O(h)$ in the mean;
what `log_ratio` has more than $\beta$ times the heat is the shadow work of the step size.

References:
    G. E. Crooks, J. Stat. Phys. 90, 1481 (1998). K. Sekimoto, Stochastic Energetics (2010), ch. 4.
    U. Seifert, Rep. Prog. Phys. 75, 126001 (2012), sec. 2. D. A. Sivak, J. D. Chodera, G. E. Crooks, Phys. Rev. X 3, 011007 (2013).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Overdamped
from thermojax.ensemble import Step
from thermojax.potentials import energy
from thermojax.steppers import AbstractStepper, log_density, log_reversal_ratio, whiten, with_density


class GirsanovRatio(eqx.Module):
    r"""The log-ratio $\ln K(x_1|x_0) - \ln K'(x_1|x_0)$ of the step's own kernel to that of a second process on the same path.

    Its mean over paths of the first is the path KL divergence, exact at the step size used. Both processes must have the same noise.
    """

    other: AbstractDynamics
    """The second process."""

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        gaussian = with_density(step.stepper)
        own, factor = gaussian.increment(step.dynamics, step.t0, step.t1, step.x0)
        theirs, _ = gaussian.increment(self.other, step.t0, step.t1, step.x0)
        gap = whiten(factor, own - theirs)
        # (|z'|^2 - |z|^2)/2 with z' = z + gap: no difference of large numbers.
        return jnp.sum(gap * (whiten(factor, step.x1 - step.x0 - own) + 0.5 * gap))


class BackwardRatio(eqx.Module):
    r"""The log-ratio $\ln K(x_1|x_0) - \ln L(x_0|x_1)$ of the step's own kernel to that of a backward process.

    The backward process runs in its own time $u = T - t$, so it goes from $T - t_1$ to $T - t_0$: a learned denoising process against the
    noising one, or the other way round.
    """

    backward: AbstractDynamics
    """The process that makes the path from its end to its beginning, in its own time."""
    horizon: Scalar = eqx.field(converter=as_scalar)
    """The time $T$ of the forward process at which the backward one starts."""
    stepper: AbstractStepper | None = None
    """The kernel of the backward process; that of the forward one if omitted."""

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        ahead = log_density(step.stepper, step.dynamics, step.t0, step.t1, step.x0, step.x1)
        u0, u1 = self.horizon - step.t1, self.horizon - step.t0
        stepper = step.stepper if self.stepper is None else self.stepper
        return ahead - log_density(stepper, self.backward, u0, u1, step.x1, step.x0)


def work(step: Step) -> Scalar:
    r"""Work done on the system in Crooks' order, and by the nonconservative force, $\sum f\circ dx$ (trapezoidal)."""
    v = _energies(step)
    lam0, lam, lam1 = _controls(step)
    return (v(step.x0, lam) - v(step.x0, lam0)) + (v(step.x1, lam1) - v(step.x1, lam)) + _pushed(step, lam)


def heat(step: Step) -> Scalar:
    """Heat dissipated into the medium: the particle moves at fixed control."""
    v, lam = _energies(step), _driven(step).protocol(step.t)
    return v(step.x0, lam) - v(step.x1, lam) + _pushed(step, lam)


def medium_entropy(step: Step) -> Scalar:
    r"""Entropy gained by the medium, $\beta(t_c)$ times `heat`."""
    return _beta(step, step.t) * heat(step)


def reduced_work(step: Step) -> Scalar:
    r"""Reduced work $Y$: the switches of $u = \beta V$ in Crooks' order, $\lambda$ and $\beta$ together, and $\beta\int f\circ dx$.

    $\langle e^{-Y}\rangle = Z_\tau/Z_0$ from equilibrium; for constant $\beta$ it is $\beta W$.
    """
    v = _energies(step)
    lam0, lam, lam1 = _controls(step)
    b0, b, b1 = (_beta(step, t) for t in (step.t0, step.t, step.t1))
    first = b * v(step.x0, lam) - b0 * v(step.x0, lam0)
    second = b1 * v(step.x1, lam1) - b * v(step.x1, lam)
    return first + second + b * _pushed(step, lam)


def log_ratio(step: Step) -> Scalar:
    r"""The kernel's own log-ratio to its reversal, $\ln K(x_1|x_0) - \ln K(x_0|x_1)$, exact at any step size.

    Raises:
        TypeError: if the stepper's density is unknown.
    """
    return log_reversal_ratio(step.stepper, step.dynamics, step.t0, step.t1, step.x0, step.x1)


def shadow_work(step: Step) -> Scalar:
    r"""What the exact log-ratio has more than the medium's entropy: zero for kernels in detailed balance, $O(h)$ for `EulerMaruyama`.

    The number that tells whether the step is small enough: compare its sum with the entropy production.
    """
    return log_ratio(step) - medium_entropy(step)


def work_stratonovich(step: Step) -> Scalar:
    r"""$\partial_\lambda V(\bar x, \bar\lambda)\cdot\Delta\lambda + f\cdot\Delta x$ at the midpoint of the step; for protocols without
    jumps.
    """
    lam0, _, lam1 = _controls(step)
    return _power(step, 0.5 * (step.x0 + step.x1), 0.5 * (lam0 + lam1)) + _midpoint_push(step)


def work_ito(step: Step) -> Scalar:
    r"""$\partial_\lambda V(x_0, \lambda_0)\cdot\Delta\lambda + f(x_0, \lambda_0)\cdot\Delta x$ at the left of the step; for protocols
    without jumps.

    Never an objective: an optimiser finds protocols that make this sum as negative as it likes.
    """
    lam0, _, _ = _controls(step)
    return _power(step, step.x0, lam0) + _push_at(step, step.x0, lam0)


def heat_stratonovich(step: Step) -> Scalar:
    r"""$F\cdot\Delta x$ with the total force at the midpoint of the step."""
    return jnp.sum(_total_force(step, step.t, 0.5 * (step.x0 + step.x1)) * (step.x1 - step.x0))


def heat_ito(step: Step) -> Scalar:
    r"""$F\cdot\Delta x$ with the total force at the left of the step; add `ito_correction` of the force to have the Stratonovich sum."""
    return jnp.sum(_total_force(step, step.t, step.x0) * (step.x1 - step.x0))


def heat_ito_correction(step: Step) -> Scalar:
    r"""The conversion $\int F\circ dx - \int F\cdot dx = \int \tfrac12\sum_i\sigma_i^2\,\partial_i F_i\,dt$, at the left of the step."""
    slope = jax.jacfwd(lambda x: _total_force(step, step.t, x))(step.x0)
    variance = jnp.broadcast_to(step.dynamics.noise(step.t) ** 2, step.x0.shape)
    return 0.5 * jnp.sum(variance * jnp.diagonal(slope)) * (step.t1 - step.t0)


def medium_entropy_stratonovich(step: Step) -> Scalar:
    r"""$2b(t_c, \bar x)/\sigma^2\cdot\Delta x$ at the midpoint of the step: $\beta F\circ dx$ for any diffusion, with a potential or
    without.
    """
    x = 0.5 * (step.x0 + step.x1)
    return jnp.sum(2.0 * step.dynamics.drift(step.t, x) / step.dynamics.noise(step.t) ** 2 * (step.x1 - step.x0))


def path_log_ratio(
    initial: AbstractDistribution,
    final: AbstractDistribution,
    x0s: Float[Array, "sample dim"],
    x1s: Float[Array, "sample dim"],
    totals: Float[Array, " sample"],
) -> Float[Array, " sample"]:
    r"""The log-ratio of path measures, $\ell = \ln p_0(x_0) - \ln p_1(x_N) + \sum_k[\ln K_k - \ln L_k]$.

    With equilibrium densities at both ends it is the dissipated reduced work (and the shadow work); with the density at the end
    of the forward process it is the total entropy production.

    Args:
        initial: Density of the first configurations under the forward measure.
        final: Density of the last configurations under the backward measure.
        x0s: First configurations.
        x1s: Last configurations.
        totals: Sums of the kernels' log-ratios (`log_ratio`, `BackwardRatio`), or of another entropy of the medium.
    """
    return jax.vmap(initial.log_prob)(x0s) - jax.vmap(final.log_prob)(x1s) + totals


def _driven(step) -> Overdamped:
    rule = "have a potential, a protocol and a bath, for work and heat"
    require(hasattr(step.dynamics, "potential"), "dynamics", rule, type(step.dynamics).__name__)
    return step.dynamics


def _energies(step) -> Callable[[Any, Any], Array]:
    potential = _driven(step).potential
    return lambda x, lam: energy(potential, x, lam)


def _controls(step):
    protocol = _driven(step).protocol
    return protocol(step.t0), protocol(step.t), protocol(step.t1)


def _beta(step, t):
    beta = _driven(step).bath(t)
    rule = "return one beta for all coordinates here; use `medium_entropy_stratonovich` or `log_ratio` between several baths"
    require(jnp.ndim(beta) == 0, "bath", rule, f"shape {jnp.shape(beta)}")
    return beta


def _pushed(step, lam):
    return 0.5 * (_push_at(step, step.x0, lam) + _push_at(step, step.x1, lam))


def _push_at(step, x, lam):
    push = step.dynamics.nonconservative
    return jnp.zeros((), step.x0.dtype) if push is None else jnp.sum(push(x, lam) * (step.x1 - step.x0))


def _midpoint_push(step):
    return _push_at(step, 0.5 * (step.x0 + step.x1), step.dynamics.protocol(step.t))


def _power(step, x, lam):
    v = _energies(step)
    lam0, _, lam1 = _controls(step)
    return jnp.sum(jax.grad(lambda l: v(x, l))(lam) * (lam1 - lam0))


def _total_force(step, t, x):
    return step.dynamics.drift(t, x) / _driven(step).mobility(t)
