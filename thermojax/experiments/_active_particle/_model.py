r"""An active Brownian particle in a harmonic trap, its two lowest moments, and the work of its two controls.

The particle sits at $r = (x, y)$ and swims along $n = (\cos\theta, \sin\theta)$ with speed $v$:

$$dr = -\mu k(t)\,r\,dt + v(t)\,n\,dt + \sqrt{2D}\,dW,\qquad d\theta = \sqrt{2D_r}\,dW_\theta,\qquad D = \mu/\beta.$$

As `Overdamped` dynamics of $(x, y, \theta)$ under the controls $\lambda = (k, v)$: potential $\tfrac12 k|r|^2$, nonconservative force
$(v/\mu)\,(\cos\theta, \sin\theta, 0)$, mobilities $(\mu, \mu, \beta D_r)$, one $\beta$.

Moments. With $M = \langle|r|^2\rangle$ and $c = \langle r\cdot n\rangle$, closed for every protocol,

$$\dot M = -2\mu kM + 2vc + 4D,\qquad \dot c = -(\mu k + D_r)\,c + v,$$

at rest in $c = v/(\mu k + D_r)$, $M = (2D + vc)/(\mu k)$. The moments of the Euler-Maruyama chain close too: within a step of size $h$ the
position is multiplied by $a = 1 - \mu kh$, so that $M' = a^2M + 2avhc + v^2h^2 + 4Dh$ and $c' = e^{-D_rh}(ac + vh)$. `chain_moments` is
therefore the exact mean of what is simulated, at every step; `flow_moments` is its limit of small steps.

Work. The first law has two works, $\Delta E = W_\text{trap} + W_\text{push} - Q$:

- of the trap, $\int\tfrac12\dot k\,|r|^2dt$, in Crooks' order in a step, jumps included: what whoever moves the trap pays;
- of the push, $\int(v/\mu)\,n\circ dr$, of mean power $v^2/\mu - kvc$: what the swimmer pays. It never ends: in the steady state it is
  $D_rv^2/[\mu(\mu k + D_r)]$, all of which is heat.

`functionals.work` is the sum of both.

Reference:
    M. Baldovin, D. Guéry-Odelin, E. Trizac, Phys. Rev. Lett. 131, 118302 (2023), for steering between such states in finite time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax.baths import Isothermal
from thermojax.distributions import AbstractDistribution, Gaussian
from thermojax.dynamics import Overdamped
from thermojax.ensemble import Step
from thermojax.functionals import energy_change, work
from thermojax.optimize import AbstractLoss, AbstractObjective, Weighted
from thermojax.protocols import AbstractFiniteTime


class Moments(NamedTuple):
    """Moments and works in the course of time, each of shape ``(time,)``."""

    spread: Array
    r"""$M = \langle|r|^2\rangle$."""
    alignment: Array
    r"""$c = \langle r\cdot n\rangle$."""
    trap_work: Array
    """Mean work of the trap until then; the jump of the control at the end is in the last entry."""
    push_work: Array
    """Mean work of the self-propulsion until then."""


class PassiveEquilibrium(AbstractDistribution):
    r"""The particle at rest in the trap, $v = 0$: a Gaussian of variance $1/\beta k$ in $x$ and $y$, and any direction."""

    variance: Scalar = eqx.field(converter=as_scalar)
    r"""$1/\beta k$."""

    def sample(self, n, *, key):
        place_key, turn_key = jr.split(key)
        places = self._places.sample(n, key=place_key)
        return jnp.concatenate([places, jr.uniform(turn_key, (n, 1), places.dtype, -jnp.pi, jnp.pi)], axis=1)

    def log_prob(self, x):
        return self._places.log_prob(x[:2]) - jnp.log(2.0 * jnp.pi)

    def score(self, x):
        return jnp.append(self._places.score(x[:2]), 0.0)

    @property
    def _places(self):
        return Gaussian(jnp.zeros(2, self.variance.dtype), self.variance)


class Propulsion(eqx.Module):
    r"""The force $(v/\mu)\,n$ that a swimmer of speed $v$ would need to be pulled by."""

    mobility: Scalar = eqx.field(converter=as_scalar)
    r"""$\mu$."""

    def __call__(self, x, lam):
        return lam[1] / self.mobility * jnp.stack([jnp.cos(x[2]), jnp.sin(x[2]), jnp.zeros_like(x[2])])


class MomentError(AbstractObjective):
    r"""How far $M$ and $c$ are at the end from those wanted: $(M/\bar M - 1)^2 + (c/\bar c - 1)^2$.

    From n paths it is an average over pairs of different paths, without bias: it may come out negative.
    """

    wanted: Float[Array, " moment"] = eqx.field(converter=as_float)
    r"""$(\bar M, \bar c)$, neither of them zero."""

    def of_paths(self, paths):
        away = lambda x: features(x) / self.wanted.astype(x.dtype) - 1.0
        misses, count = jax.vmap(away)(paths.x1s), paths.x1s.shape[0]
        total, own = (jax.vmap(paths.average, in_axes=1)(values) for values in (misses, misses**2))
        return jnp.sum(count * total**2 - own) / (count - 1)

    def of_moments(self, moments: Moments) -> Scalar:
        """The same, without noise."""
        last = jnp.stack([moments.spread[-1], moments.alignment[-1]])
        return jnp.sum((last / self.wanted.astype(last.dtype) - 1.0) ** 2)


class ByMoments(AbstractLoss):
    """The noise-free loss: the mean work of the trap and the error at the end, of the Euler-Maruyama chain on the same grid."""

    objective: Weighted
    """The sum of ``Mean(trap_work)`` and a `MomentError`, with weights."""
    initial: PassiveEquilibrium
    """Where the chain starts."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Its times."""

    def terms(self, dynamics, key=None):
        moments = chain_moments(dynamics, self.initial, self.ts)
        _, error = self.objective.terms
        assert isinstance(error, MomentError)
        return jnp.stack([moments.trap_work[-1], error.of_moments(moments)])


def active_particle(protocol: Callable, *, mobility: float, beta: float, rotation: float) -> Overdamped:
    """The dynamics of (x, y, angle) under the controls (stiffness, speed)."""
    mobilities = jnp.asarray([mobility, mobility, beta * rotation])
    return Overdamped(trap, protocol, Isothermal(beta), mobilities, nonconservative=Propulsion(mobility))


def trap(x: Float[Array, " dim"], lam: Float[Array, " control"]) -> Scalar:
    """The energy in the trap."""
    return 0.5 * lam[0] * jnp.sum(x[:2] ** 2)


def features(x: Float[Array, " dim"]) -> Float[Array, " moment"]:
    r"""$|r|^2$ and $r\cdot n$ of one state: their means are $M$ and $c$."""
    return jnp.stack([jnp.sum(x[:2] ** 2), x[0] * jnp.cos(x[2]) + x[1] * jnp.sin(x[2])])


def trap_work(step: Step) -> Scalar:
    r"""Work of the trap, $\int\partial_k V\,\dot k\,dt$, in Crooks' order: what changes the energy but not by a move of the particle."""
    driven, lam = step.dynamics, step.dynamics.protocol(step.t)
    return energy_change(step) - (driven.energy_at(step.x1, lam) - driven.energy_at(step.x0, lam))


def push_work(step: Step) -> Scalar:
    r"""Work of the self-propulsion, $\int(v/\mu)\,n\circ dr$."""
    return work(step) - trap_work(step)


@eqx.filter_jit
def controls_inside(protocol: AbstractFiniteTime, shares: Float[Array, " share"]) -> Float[Array, "share control"]:
    """The controls at shares of the duration, at its ends just inside."""
    return jax.vmap(protocol.inside)(shares)


def steady_moments(k: Any, v: Any, dynamics: Overdamped) -> tuple[Scalar, Scalar]:
    """The moments of the steady state under constant controls."""
    mobility, diffusion, rotation = _rates(dynamics, jnp.zeros(()))
    alignment = v / (mobility * k + rotation)
    return (2.0 * diffusion + v * alignment) / (mobility * k), alignment


@eqx.filter_jit
def chain_moments(dynamics: Overdamped, initial: PassiveEquilibrium, ts: Float[Array, " time"]) -> Moments:
    """Means of the Euler-Maruyama chain with its clock in the middle of each step, exact at every step size."""

    def step(m, times):
        t0, t1 = times
        t, h = t0 + 0.5 * (t1 - t0), t1 - t0
        (k, v), before, after = dynamics.protocol(t), dynamics.protocol(t0)[0], dynamics.protocol(t1)[0]
        mobility, diffusion, rotation = _rates(dynamics, t)
        kept, turned = 1.0 - mobility * k * h, jnp.exp(-rotation * h)
        spread = kept**2 * m.spread + 2.0 * kept * v * h * m.alignment + (v * h) ** 2 + 4.0 * diffusion * h
        alignment = turned * (kept * m.alignment + v * h)
        switched = 0.5 * ((k - before) * m.spread + (after - k) * spread)
        pushed = 0.5 * (1.0 + turned) * v / mobility * (v - mobility * k * m.alignment) * h
        m = Moments(spread, alignment, m.trap_work + switched, m.push_work + pushed)
        return m, m

    first = _at_rest(initial, ts)
    _, later = lax.scan(step, first, (ts[:-1], ts[1:]))
    return jax.tree.map(lambda a, rest: jnp.concatenate([a[None], rest]), first, later)


@eqx.filter_jit
def flow_moments(dynamics: Overdamped, initial: PassiveEquilibrium, ts: Float[Array, " time"]) -> Moments:
    r"""The same in continuous time, by the moment equations, for a protocol of finite duration; `ts` has its kinks, and both its ends.

    The work of the trap is integrated by parts, $\tfrac12kM - \int\tfrac12k\,\dot M\,dt$, so that jumps need no care.
    """
    protocol: Any = dynamics.protocol
    controls = lambda t: protocol.inside((t - ts[0]) / protocol.duration)

    def slope(t, m, args):
        k, v = controls(t)
        mobility, diffusion, rotation = _rates(dynamics, t)
        spread = -2.0 * mobility * k * m.spread + 2.0 * v * m.alignment + 4.0 * diffusion
        alignment = v - (mobility * k + rotation) * m.alignment
        return Moments(spread, alignment, -0.5 * k * spread, (v / mobility - k * m.alignment) * v)

    steps, first = dfx.StepTo(ts=ts), _at_rest(initial, ts)
    saved = dfx.SaveAt(ts=ts)
    found: Any = dfx.diffeqsolve(
        dfx.ODETerm(slope), dfx.Tsit5(), ts[0], ts[-1], None, first, stepsize_controller=steps, saveat=saved, max_steps=ts.shape[0]
    ).ys
    ks = jax.vmap(lambda t: controls(t)[0])(ts).at[-1].set(protocol.stop[0])
    return found._replace(trap_work=found.trap_work + 0.5 * (ks * found.spread - protocol.start[0] * first.spread))


def _at_rest(initial, ts):
    nothing = jnp.zeros((), ts.dtype)
    return Moments(2.0 * initial.variance.astype(ts.dtype), nothing, nothing, nothing)


def _rates(dynamics, t):
    """Mobility, and the diffusion constants of place and direction."""
    mobilities, beta = dynamics.mobility(t), dynamics.bath(t)
    return mobilities[0], mobilities[0] / beta, mobilities[2] / beta
