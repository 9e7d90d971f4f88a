"""Log-ratios of path measures, from the kernels that made the step, and the entropies that they are."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, Escorted
from thermojax.ensemble import Step
from thermojax.functionals._thermodynamic import beta_of, driven_of, medium_entropy, moved
from thermojax.phase import Phase, State, States
from thermojax.steppers import AbstractStepper, log_density, log_reversal_ratio, whiten, with_density

LogDensity = AbstractDistribution | Callable[[State], Array]


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
        # In phase space only the velocities are uncertain.
        own, theirs, factor, x0, x1 = (_noisy(a) for a in (own, theirs, factor, step.x0, step.x1))
        gap = whiten(factor, own - theirs)
        # (|z'|^2 - |z|^2)/2 with z' = z + gap: no difference of large numbers.
        return jnp.sum(gap * (whiten(factor, x1 - x0 - own) + 0.5 * gap))


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


class DualRatio(eqx.Module):
    r"""Housekeeping entropy: the log-ratio of the step's kernel to that of the dual process, whose steady current is turned round.

    With the steady density $p_s(x, \lambda)$ the dual drift is $b^\dagger = \sigma^2\nabla\ln p_s - b$. $\langle e^{-s_{hk}}\rangle = 1$
    at every step size, whatever $p_s$ is; with the true one it is the entropy that keeps the steady state going.

    Reference:
        T. Speck, U. Seifert, J. Phys. A 38, L581 (2005).
    """

    log_steady: Callable[[Array, Array], Array]
    r"""$\ln p_s(x, \lambda)$, normalised or not."""

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        return GirsanovRatio(_Dual(step.dynamics, self.log_steady))(step)


class HatanoSasa(eqx.Module):
    r"""The functional $Y_s = \sum\Delta_\lambda\phi$ of Hatano and Sasa, the switches of $\phi = -\ln p_s(x, \lambda)$ in Crooks' order.

    $\langle e^{-Y_s}\rangle = 1$ from the steady state of the first control, for steps short enough to leave $p_s$ invariant.

    Reference:
        T. Hatano, S. Sasa, Phys. Rev. Lett. 86, 3463 (2001).
    """

    log_steady: Callable[[Array, Array], Array]
    r"""$\ln p_s(x, \lambda)$, normalised for every $\lambda$."""

    def __call__(self, step: Step) -> Scalar:
        """The increment of one step."""
        protocol, phi = driven_of(step).protocol, lambda t, x: -self.log_steady(x, protocol(t))
        return phi(step.t, step.x0) - phi(step.t0, step.x0) + phi(step.t1, step.x1) - phi(step.t, step.x1)


class _Dual(AbstractDynamics):
    """The process with the same steady state and the opposite steady current."""

    dynamics: Any
    log_steady: Callable[[Array, Array], Array]

    def drift(self, t, x):
        lam = self.dynamics.protocol(t)
        score = jax.grad(lambda y: self.log_steady(y, lam))(x)
        return self.noise(t) ** 2 * score - self.dynamics.drift(t, x)

    def noise(self, t):
        return self.dynamics.noise(t)


def log_ratio(step: Step) -> Scalar:
    r"""The kernel's own log-ratio to its reversal, $\ln K(x_1|x_0) - \ln K(x_0|x_1)$, exact at any step size.

    In phase space the reversal has the velocities turned round. For `Escorted` dynamics the reversal has the escort turned round.

    Raises:
        TypeError: if the stepper's density is unknown, or its steps cannot be reversed in phase space.
    """
    x0, x1 = moved(step)
    return log_reversal_ratio(step.stepper, step.dynamics, step.t0, step.t1, x0, x1, step.zs)


def shadow_work(step: Step) -> Scalar:
    r"""What the exact log-ratio has more than the medium's entropy: zero for kernels in detailed balance.

    In units of $k_BT$; its spread falls as $h$ for `EulerMaruyama` and as $h^2$ for the symmetric splittings. The
    number that tells whether the step is small enough: compare its sum with the entropy production.
    """
    return log_ratio(step) - medium_entropy(step)


def total_reduced_work(step: Step) -> Scalar:
    r"""Reduced work and shadow work: $\Delta u$ and the exact log-ratio, with $u = \beta E$.

    From equilibrium $\langle e^{-Y}\rangle = Z_\tau/Z_0$ holds for it at every step size, and so do Crooks' relation and BAR.
    """
    driven = driven_of(step)
    u = lambda t, x: beta_of(step, t) * driven.energy(t, x)
    return u(step.t1, step.x1) - u(step.t0, step.x0) + log_ratio(step)


def escorted_work(step: Step) -> Scalar:
    r"""Reduced work of an escorted path, $\int\beta\,[\partial_t V + u\cdot\nabla V]\,dt - \int\nabla\cdot u\,dt$, exact at any step size.

    It is `total_reduced_work` of `Escorted` dynamics: the kernels of the forward path and of the reversed one, with the escort turned
    round, bring the divergence with them.

    Raises:
        ValueError: if the dynamics is not `Escorted`.

    Reference:
        S. Vaikuntanathan, C. Jarzynski, Phys. Rev. Lett. 100, 190601 (2008).
    """
    require(isinstance(step.dynamics, Escorted), "dynamics", "be `Escorted`", type(step.dynamics).__name__)
    return total_reduced_work(step)


def path_log_ratio(
    initial: LogDensity, final: LogDensity, x0s: States, x1s: States, totals: Float[Array, " sample"]
) -> Float[Array, " sample"]:
    r"""The log-ratio of path measures, $\ell = \ln p_0(x_0) - \ln p_1(x_N) + \sum_k[\ln K_k - \ln L_k]$.

    With equilibrium densities at both ends it is the dissipated reduced work (and the shadow work); with the density at the end
    of the forward process it is the total entropy production.

    Args:
        initial: Density of the first states under the forward measure: a distribution, or a callable that returns its logarithm.
        final: Density of the last states under the backward measure, likewise.
        x0s: First states.
        x1s: Last states.
        totals: Sums of the kernels' log-ratios (`log_ratio`, `BackwardRatio`), or of another entropy of the medium.
    """
    return system_entropy(initial, final, x0s, x1s) + totals


def system_entropy(initial: LogDensity, final: LogDensity, x0s: States, x1s: States) -> Float[Array, " sample"]:
    r"""Change of the system's entropy along each path, $\Delta s = -\ln p_\tau(x_\tau) + \ln p_0(x_0)$.

    Args:
        initial: Density of the first states: a distribution, or a callable that returns its logarithm.
        final: Density of the last states: exact, from `fokker_planck`, or any estimate of it.
        x0s: First states.
        x1s: Last states.
    """
    log_at = lambda density: density.log_prob if isinstance(density, AbstractDistribution) else density
    return jax.vmap(log_at(initial))(x0s) - jax.vmap(log_at(final))(x1s)


def _noisy(a):
    return a.velocity if isinstance(a, Phase) else a
