r"""Switching experiments: drive a system from equilibrium, and drive it back.

`both_ways` runs a protocol from the equilibrium at its first control, and the reversed protocol from the equilibrium at its last.
Both return work on the system, reduced work $Y$, and the total reduced work $Y$ + shadow work, for which Jarzynski's equality,
Crooks' relation and Bennett's estimate (`free_energy_change`) hold at every step size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_times, require
from thermojax.distributions import AbstractDistribution, equilibrium, phase_equilibrium
from thermojax.dynamics import AbstractLangevin, Escorted, Underdamped
from thermojax.ensemble import accumulate, stepper_for
from thermojax.estimators import bar, Estimate
from thermojax.functionals import reduced_work, total_reduced_work, work
from thermojax.phase import States
from thermojax.protocols import Reverse
from thermojax.steppers import AbstractStepper, knows_reversal


class Drive(NamedTuple):
    """What one direction of a switching experiment measured, on each path."""

    x0s: States
    """First states, from `initial`."""
    x1s: States
    """Last states."""
    work: Float[Array, " sample"]
    """Work done on the system by the protocol, in units of energy. Free energies from it have the bias of the time step."""
    reduced_work: Float[Array, " sample"]
    r"""Reduced work $Y$, dimensionless; $\beta W$ in one constant bath."""
    total_work: Float[Array, " sample"] | None
    r"""Reduced work and shadow work: free energies from it are exact at any step size. The shadow work of a coarse step is dissipated
    like any other. None if the stepper does not know its reversal."""
    betas: Float[Array, " 2"]
    r"""$\beta$ at the beginning and at the end."""
    duration: Scalar
    """How long it took."""

    @property
    def beta(self) -> Scalar:
        r"""The one $\beta$ of a constant bath.

        Raises:
            ValueError: if the bath changed: no free energy follows from work and one temperature.
        """
        first, last = (float(b) for b in self.betas)
        slack = 1e3 * jnp.finfo(self.work.dtype).eps * (1 + jnp.abs(self.reduced_work))
        same = bool(jnp.all(jnp.abs(self.reduced_work - first * self.work) <= slack))
        rule = "be in one constant bath; for a changing one take the reduced work and `generalised_jarzynski`"
        require(first == last and same, "drive", rule, f"a bath that goes from beta = {first:.6g} to {last:.6g}")
        return self.betas[0]


class Mirrored(eqx.Module):
    """A field ``g(t, x)`` in reversed time."""

    field: Callable[[Array, Array], Array]
    duration: Scalar = eqx.field(converter=as_scalar)

    def __call__(self, t: Scalar, x: Array) -> Array:
        """The field at the mirrored time."""
        return self.field(self.duration - t, x)


def equilibrium_at(dynamics: AbstractLangevin | Escorted, t: ArrayLike, *, dim: int = 1) -> AbstractDistribution:
    """The equilibrium of driven dynamics under the control and the bath of time `t`.

    Raises:
        ValueError: if there is none; see `distributions.equilibrium`.
    """
    t = as_scalar(t)
    lam, beta = jnp.asarray(dynamics.protocol(t)), jnp.asarray(dynamics.bath(t))
    require(beta.ndim == 0, "bath", "return one beta for an equilibrium", f"shape {beta.shape}")
    if isinstance(dynamics, Underdamped):
        return phase_equilibrium(dynamics.potential, lam, beta=beta, mass=dynamics.mass, dim=dim)
    return equilibrium(dynamics.potential, lam, beta=beta, dim=dim)


def reversed_experiment(dynamics: Any, duration: ArrayLike) -> Any:
    r"""The same dynamics with protocol, bath and mobility (and the escort, turned round) run backwards from time `duration`."""
    if isinstance(dynamics, Escorted):
        return Escorted(reversed_experiment(dynamics.driven, duration), Mirrored(dynamics.flow, duration), -dynamics.strength)
    schedules = lambda d: (d.protocol, d.bath, d.mobility)
    return eqx.tree_at(schedules, dynamics, tuple(Reverse(s, duration) for s in schedules(dynamics)))


def drive(
    dynamics: AbstractLangevin | Escorted,
    ts: ArrayLike,
    samples: int,
    *,
    initial: AbstractDistribution | None = None,
    dim: int = 1,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> Drive:
    """Drive `samples` independent paths along the time grid `ts`.

    Args:
        dynamics: What moves, driven by its protocol and its bath.
        ts: Strictly increasing times, shape ``(time,)``.
        samples: Number of paths.
        initial: Density of the first states; the equilibrium at ``ts[0]`` if omitted.
        dim: Number of coordinates of that equilibrium.
        stepper: One-step kernel; see `ensemble.accumulate`.
        key: Random key.

    Raises:
        ValueError: if there is no equilibrium to start from, or as `ensemble.accumulate`.
    """
    ts = check_times(ts)
    start_key, noise_key = jr.split(key)
    initial = equilibrium_at(dynamics, ts[0], dim=dim) if initial is None else initial
    x0s = initial.sample(samples, key=start_key)
    stepper = stepper_for(dynamics) if stepper is None else stepper
    functionals = {"work": work, "reduced_work": reduced_work}
    if knows_reversal(stepper, dynamics):
        functionals["total_work"] = total_reduced_work
    x1s, sums = accumulate(functionals, dynamics, x0s, ts, stepper=stepper, key=noise_key)
    betas = jnp.stack([jnp.asarray(dynamics.bath(t), ts.dtype) for t in (ts[0], ts[-1])])
    return Drive(x0s, x1s, sums["work"], sums["reduced_work"], sums.get("total_work"), betas, ts[-1] - ts[0])


def both_ways(
    dynamics: AbstractLangevin | Escorted,
    ts: ArrayLike,
    samples: int,
    *,
    initial: AbstractDistribution | None = None,
    final: AbstractDistribution | None = None,
    dim: int = 1,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> tuple[Drive, Drive]:
    """The experiment and its reversal, each with `samples` independent paths from its own equilibrium.

    The reversal runs protocol, bath and mobility backwards on the mirrored grid, with the kernels of the reversed stepper, so that each of
    its paths is a forward path run backwards (with the velocities turned round), weighted otherwise.

    Args:
        dynamics: What moves.
        ts: Strictly increasing times.
        samples: Number of paths in each direction.
        initial: Density from which the forward paths start; the equilibrium at ``ts[0]`` if omitted.
        final: Density from which the backward paths start; the equilibrium at ``ts[-1]`` if omitted.
        dim: Number of coordinates of these equilibria.
        stepper: One-step kernel; see `ensemble.accumulate`.
        key: Random key.

    Returns:
        The forward and the backward experiment.
    """
    ts = check_times(ts)
    forward_key, backward_key = jr.split(key)
    stepper = stepper_for(dynamics) if stepper is None else stepper
    duration = ts[0] + ts[-1]
    ends = [equilibrium_at(dynamics, t, dim=dim) if p is None else p for t, p in ((ts[0], initial), (ts[-1], final))]
    forward = drive(dynamics, ts, samples, initial=ends[0], stepper=stepper, key=forward_key)
    back = reversed_experiment(dynamics, duration)
    backward = drive(back, (duration - ts)[::-1], samples, initial=ends[1], stepper=stepper.reversal(), key=backward_key)
    return forward, backward


def free_energy_change(forward: Drive, backward: Drive) -> Estimate:
    r"""Bennett's estimate of $\Delta(\beta F)$ from both directions, exact at any step size where the total work is known.

    Divide by $\beta$ if the bath is constant.

    Raises:
        ValueError: if the two are no experiment and its reversal: other temperatures at the ends, or another duration.
    """
    check_reversal(forward, backward)
    if forward.total_work is None or backward.total_work is None:
        return bar(forward.reduced_work, backward.reduced_work, beta=1.0)
    return bar(forward.total_work, backward.total_work, beta=1.0)


def check_reversal(forward: Drive, backward: Drive) -> None:
    """Raise ``ValueError`` unless `backward` can be the reversal of `forward`."""
    slack = 100 * jnp.finfo(forward.betas.dtype).eps
    same = jnp.all(jnp.abs(forward.betas - backward.betas[::-1]) <= slack * forward.betas)
    ends = [f"{float(b[0]):.6g} -> {float(b[1]):.6g}" for b in (forward.betas, backward.betas)]
    require(bool(same), "backward", f"have the betas of `forward` ({ends[0]}) in the other order", ends[1])
    took = [float(d.duration) for d in (forward, backward)]
    require(abs(took[0] - took[1]) <= 1e-5 * took[0], "backward", f"take as long as `forward`, {took[0]:.6g}", f"{took[1]:.6g}")
