"""Pairs of diffusions: with backward kernels of their own, with each other's, with those of the reversed experiment."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_times, require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics
from thermojax.ensemble import accumulate
from thermojax.functionals import BackwardRatio, GirsanovRatio
from thermojax.measures._pair import AbstractPair, check_normalised, draw, log_of, Unnormalised, Walks
from thermojax.steppers import AbstractStepper
from thermojax.switching import drive, equilibrium_at, reversed_experiment


class Diffusions(AbstractPair):
    """A diffusion that runs forward, and one that makes the same paths from their end to their beginning.

    The log-ratio is that of the kernels, exact at any step size. The backward process runs in its own time
    $T - t$ with $T$ the `horizon`, like `dynamics.Reversed`.
    """

    initial: AbstractDistribution
    """The first density of P, normalised."""
    dynamics: AbstractDynamics
    """What moves P."""
    final: Unnormalised
    """The last density of Q, up to its normaliser."""
    reverse: AbstractDynamics
    """What moves Q, in its own time."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Times of the steps."""
    stepper: AbstractStepper | None = None
    """Kernel of P; Euler-Maruyama if omitted."""
    reverse_stepper: AbstractStepper | None = None
    """Kernel of Q; that of P if omitted."""

    def __check_init__(self):
        check_times(self.ts)
        check_normalised(self.initial, "initial")

    @property
    def horizon(self) -> Scalar:
        """The time $T$; Q starts at $T - t_N$ of its own time, that is at $t_0$."""
        return self.ts[0] + self.ts[-1]

    def forward(self, samples, *, key):
        start_key, noise_key = jr.split(key)
        x0s = self.initial.sample(samples, key=start_key)
        ratio = BackwardRatio(self.reverse, self.horizon, self.reverse_stepper)
        x1s, sums = accumulate(ratio, self.dynamics, x0s, self.ts, stepper=self.stepper, key=noise_key)
        return _walks(self, x0s, x1s, sums)

    def backward(self, samples, *, key):
        start_key, noise_key = jr.split(key)
        x1s = draw(self.final, samples, name="final", key=start_key)
        own = (self.horizon - self.ts)[::-1]
        stepper = self.stepper if self.reverse_stepper is None else self.reverse_stepper
        ratio = BackwardRatio(self.dynamics, self.horizon, self.stepper)
        x0s, sums = accumulate(ratio, self.reverse, x1s, own, stepper=stepper, key=noise_key)
        return _walks(self, x0s, x1s, -sums)


class Tilted(AbstractPair):
    r"""Two processes that run the same way: P, and $dQ \propto e^{-c(x_N)}\,dR$ with a reference process R of the same noise.

    By Girsanov's theorem, with the kernels' own ratio. With the cost $c = \ln r_N/\gamma$, $r_N$ the last density of R, Q ends in
    $\gamma/Z$: the form of the path integral sampler, and of stochastic optimal control.
    """

    initial: AbstractDistribution
    """The first density of P, normalised; also of R, unless it has one."""
    dynamics: AbstractDynamics
    """What moves P."""
    reference: AbstractDynamics
    """What moves R."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Times of the steps."""
    cost: Callable[[Array], Array] | None = None
    r"""$c(x)$ of a last state; none if omitted, and Q is R."""
    reference_initial: AbstractDistribution | None = None
    """The first density of R."""
    stepper: AbstractStepper | None = None
    """Kernel of both; Euler-Maruyama if omitted."""

    def __check_init__(self):
        check_times(self.ts)
        check_normalised(self.initial, "initial")
        if self.reference_initial is not None:
            check_normalised(self.reference_initial, "reference_initial")

    def forward(self, samples, *, key):
        start_key, noise_key = jr.split(key)
        x0s = self.initial.sample(samples, key=start_key)
        x1s, sums = accumulate(GirsanovRatio(self.reference), self.dynamics, x0s, self.ts, stepper=self.stepper, key=noise_key)
        return Walks(x0s, x1s, sums + self._ends(x0s, x1s))

    def backward(self, samples, *, key):
        rule = "be omitted for paths of Q, which are then those of the reference"
        require(self.cost is None, "cost", rule, "a function of the last state")
        start_key, noise_key = jr.split(key)
        x0s = self._first().sample(samples, key=start_key)
        x1s, sums = accumulate(GirsanovRatio(self.dynamics), self.reference, x0s, self.ts, stepper=self.stepper, key=noise_key)
        return Walks(x0s, x1s, self._ends(x0s, x1s) - sums)

    def _first(self):
        return self.initial if self.reference_initial is None else self.reference_initial

    def _ends(self, x0s, x1s):
        ends = jnp.zeros(jax.tree.leaves(x0s)[0].shape[0], jax.tree.leaves(x0s)[0].dtype)
        if self.reference_initial is not None:
            ends = ends + jax.vmap(lambda x: self.initial.log_prob(x) - self._first().log_prob(x))(x0s)
        return ends if self.cost is None else ends + jax.vmap(self.cost)(x1s)


class Switched(AbstractPair):
    r"""A driven system and the reversed experiment, each from its own equilibrium; $\ell$ is the total reduced work and $Z$ is
    $Z_\tau/Z_0$.

    With the potential $-\ln\gamma_\lambda(x)$ it is annealed importance sampling by Langevin kernels, adjusted by their own ratio.
    Over- and underdamped, in any bath. See `switching`.
    """

    dynamics: Any
    """What moves, and how it is driven; its bath and its protocol at the ends give the two equilibria."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Times of the steps."""
    dim: int = eqx.field(static=True, default=1)
    """Number of coordinates."""
    initial: AbstractDistribution | None = None
    """The first equilibrium, if it is known better than `distributions.equilibrium` finds it; only drawn from."""
    final: Any = None
    """The last equilibrium, likewise."""
    stepper: AbstractStepper | None = None
    """One-step kernel; see `ensemble.accumulate`."""

    def __check_init__(self):
        check_times(self.ts)

    def forward(self, samples, *, key):
        initial = self._end(self.initial, self.ts[0])
        run = drive(self.dynamics, self.ts, samples, initial=initial, dim=self.dim, stepper=self.stepper, key=key)
        return Walks(run.x0s, run.x1s, self._total(run))

    def backward(self, samples, *, key):
        horizon = self.ts[0] + self.ts[-1]
        final = self._end(self.final, self.ts[-1])
        back = reversed_experiment(self.dynamics, horizon)
        stepper = None if self.stepper is None else self.stepper.reversal()
        own = (horizon - self.ts)[::-1]
        run = drive(back, own, samples, initial=final, dim=self.dim, stepper=stepper, key=key)
        return Walks(run.x1s, run.x0s, -self._total(run))

    def _end(self, known, t):
        return equilibrium_at(self.dynamics, t, dim=self.dim) if known is None else known

    def _total(self, run):
        if run.total_work is None:
            kind = type(self.stepper).__name__
            raise ValueError(f"`stepper` must know its reversal, for work that is exact at any step size, got {kind}.")
        return run.total_work


class ForwardBackward(eqx.Module):
    r"""The forward-backward Radon-Nikodym derivative in continuous form, relative to a reference and its reversal.

    $\int\sigma^{-2}(a - r)\cdot[dx - \tfrac12(a + r)\,dt]$ with the forward drifts $a$ of P and $r$ of the reference as an Itô sum, less
    $\int\sigma^{-2}(b - \bar r)\cdot[dx - \tfrac12(b + \bar r)\,dt]$ with the backward drifts, seen in forward time and read at the right
    ends. Without a reference ($r = \bar r = 0$, Lebesgue measure at both ends) it is the ratio of the Euler kernels, exactly; with one
    it converges to it as the step falls, if the ends carry the densities of the reference: $\ln p_0/r_0 - \ln p_T/r_T$.

    Reference:
        F. Vargas et al., arXiv:2307.01050 (2024), proposition 2.2.
    """

    reverse: AbstractDynamics
    """What moves Q, in its own time."""
    horizon: Scalar = eqx.field(converter=as_scalar)
    """The time $T$ at which it starts."""
    reference: AbstractDynamics | None = None
    """The reference, forward."""
    reference_reverse: AbstractDynamics | None = None
    """Its time reversal, in its own time; see `dynamics.Reversed`."""

    def __check_init__(self):
        both = (self.reference is None) == (self.reference_reverse is None)
        require(both, "reference_reverse", "come with `reference`", "one of the two")

    def __call__(self, step: Any) -> Scalar:
        """The increment of one step, for overdamped dynamics of any noise."""
        h, dx = step.t1 - step.t0, step.x1 - step.x0
        u = self.horizon - step.t1
        ahead, back = step.dynamics.drift(step.t0, step.x0), -self.reverse.drift(u, step.x1)
        zero = jnp.zeros_like(dx)
        r = zero if self.reference is None else self.reference.drift(step.t0, step.x0)
        s = zero if self.reference_reverse is None else -self.reference_reverse.drift(u, step.x1)
        part = lambda drift, other, noise: jnp.sum((drift - other) * (dx - 0.5 * h * (drift + other)) / noise**2)
        return part(ahead, r, step.dynamics.noise(step.t0)) - part(back, s, self.reverse.noise(u))


def nelson_residual(
    dynamics: AbstractDynamics, reverse: AbstractDynamics, score: Callable[[Array, Array], Array], horizon: Any
) -> Callable[[Array, Array], Array]:
    r"""The field $a(t, x) + b(T - t, x) - \sigma_t^2\,\nabla\ln p_t(x)$, zero where `reverse` is the time reversal of `dynamics`.

    Args:
        dynamics: The forward process, of drift $a$.
        reverse: The backward one, of drift $b$ in its own time $T - t$.
        score: ``score(t, x)``, that of the marginals of either.
        horizon: The time $T$.

    Reference:
        E. Nelson, Dynamical Theories of Brownian Motion (1967), ch. 13.
    """
    end = as_scalar(horizon)

    def residual(t, x):
        drifts = dynamics.drift(t, x) + reverse.drift(end - t, x)
        return drifts - dynamics.noise(t) ** 2 * score(t, x)

    return residual


def _walks(pair, x0s, x1s, sums):
    ends = jax.vmap(pair.initial.log_prob)(x0s) - jax.vmap(log_of(pair.final))(x1s)
    return Walks(x0s, x1s, ends + sums)
