r"""The three traps: what drives them, where they start, and what is known exactly.

Work without noise, in double precision: of the moving trap in closed form, of the breathing trap from the equations of its moments. With
inertia the work of one pair of antithetic paths is the mean work, since it is linear in the state: the noise of the two cancels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array
from pydantic import Field

from thermojax import exact
from thermojax._array import cast
from thermojax.baths import Isothermal
from thermojax.distributions import AbstractDistribution, Gaussian, MaxwellBoltzmann
from thermojax.dynamics import AbstractLangevin, Overdamped, Underdamped
from thermojax.experiments._experiment import Parameters
from thermojax.fokker_planck import Grid
from thermojax.functionals import work
from thermojax.geometry import full_control
from thermojax.optimize import FokkerPlanck, Mean, MonteCarlo
from thermojax.potentials import Breathing, Harmonic
from thermojax.protocols import Kicked, ramp_with_jumps
from thermojax.steppers import AbstractStepper, ExactLinear, Splitting

# Standard deviations of the widest equilibrium that the grid holds on each side.
_REACH = 6.5


class OptimalTransportOfATrap(Parameters):
    """Parameters of `optimal-transport-of-a-trap`; k_B = 1."""

    trap: Literal["position", "stiffness", "underdamped", "all"] = Field("all", description="which trap is driven")
    distance: float = Field(5.0, gt=0, description="how far the trap moves")
    tau: float = Field(1.0, gt=0, description="how long the protocol takes")
    stiffness: float = Field(1.0, gt=0, description="spring constant of the trap that moves")
    stiffness_first: float = Field(1.0, gt=0, description="spring constant before the protocol of the trap that breathes")
    stiffness_last: float = Field(5.0, gt=0, description="spring constant after it, another one")
    mobility: float = Field(1.0, gt=0, description="mobility of the particle")
    mass: float = Field(1.0, gt=0, description="mass of the particle with inertia")
    beta: float = Field(1.0, gt=0, description="inverse temperature of the bath")
    steps: int = Field(250, ge=2, description="time steps of the simulation")
    knots: int = Field(12, ge=2, description="knots of the piecewise linear protocol, its free ends included")
    iterations: int = Field(250, ge=1, description="gradient steps on Monte Carlo gradients")
    batch: int = Field(1000, ge=2, description="trajectories in such a step")
    noise: Literal["independent", "antithetic"] = Field("independent", description="noise of these trajectories")
    cells: int = Field(96, ge=16, description="cells of the Fokker-Planck equation")
    density_steps: int = Field(60, ge=2, description="time steps of the Fokker-Planck equation")
    density_iterations: int = Field(120, ge=1, description="gradient steps on its exact gradients")
    learning_rate: float = Field(0.05, gt=0, description="first step of Adam in units of the change of the control; falls as a cosine")
    samples: int = Field(200_000, ge=100, description="trajectories that judge a protocol, with fresh noise")


@dataclass(frozen=True)
class Problem:
    """A trap to be driven with least work."""

    name: str
    """What is driven."""
    control: str
    """The control in words, for an axis."""
    dynamics: AbstractLangevin
    """What moves, driven by the linear ramp; its knots, and kicks, are free."""
    initial: AbstractDistribution
    """The equilibrium at the start."""
    ts: Array
    """Times of the simulation."""
    stepper: AbstractStepper
    """Its one-step kernel."""
    where: Callable[[Any], Any]
    """Picks what is optimised."""
    change: float
    """The change of the control: the unit of a gradient step."""
    delta_f: float
    """Free-energy difference."""
    least: float
    """Least mean work, of the closed form."""
    bound: Callable[[], float]
    """Solves for the same as a bound from optimal transport, for every potential that could be applied."""
    best: Any
    """The protocol of least work."""
    exact_work: Callable[[Any], Array]
    """Mean work without noise, as a function of the dynamics; accurate in double precision."""
    watch: Callable[[Any], Array]
    """The same to three digits of the dissipation, in single precision too."""
    density: FokkerPlanck | None
    """The mean work on a grid; None with inertia."""

    def work(self, dynamics: Any) -> float:
        """Mean work without noise, in double precision."""
        with _double():
            return float(self.exact_work(cast(dynamics, jnp.dtype("float64"))))

    def over(self, value: Any) -> Any:
        """By how many percent a mean work dissipates more than the least."""
        return 100.0 * (value - self.least) / (self.least - self.delta_f)


def problems(p: OptimalTransportOfATrap) -> list[Problem]:
    """The problems that were asked for."""
    makers = {"position": _position, "stiffness": _stiffness, "underdamped": _underdamped}
    return [make(p) for name, make in makers.items() if p.trap in (name, "all")]


def _position(p):
    potential, ramp = Harmonic(p.stiffness), ramp_with_jumps(0.0, p.distance, p.tau, knots=p.knots)
    scales = {"stiffness": p.stiffness, "mobility": p.mobility}
    spread = (p.beta * p.stiffness) ** -0.5
    dragging = lambda dynamics: exact.moving_trap_work_of(dynamics.protocol, **scales)
    return _overdamped(
        "position",
        "position of the trap λ",
        Overdamped(potential, ramp, Isothermal(p.beta), p.mobility),
        (spread, spread),
        p,
        change=p.distance,
        delta_f=0.0,
        least=_number(exact.moving_trap_optimal_work, p.distance, p.tau, **scales),
        best=exact.moving_trap_optimal_protocol(p.distance, p.tau, **scales),
        exact_work=dragging,
        watch=dragging,
    )


def _stiffness(p):
    first, last = p.stiffness_first, p.stiffness_last
    scales, ends = {"beta": p.beta, "mobility": p.mobility}, (first, last, p.tau)
    return _overdamped(
        "stiffness",
        "stiffness of the trap λ",
        Overdamped(Breathing(), ramp_with_jumps(*ends, knots=p.knots), Isothermal(p.beta), p.mobility),
        ((p.beta * first) ** -0.5, (p.beta * last) ** -0.5),
        p,
        change=abs(last - first),
        delta_f=_number(exact.breathing_trap_free_energy, first, last, beta=p.beta),
        least=_number(exact.breathing_trap_optimal_work, *ends, **scales),
        best=exact.breathing_trap_optimal_protocol(*ends, mobility=p.mobility),
        exact_work=lambda dynamics: exact.breathing_trap_work(dynamics.protocol, **scales).mean,
        watch=lambda dynamics: _breathing(dynamics.protocol, p),
    )


def _overdamped(name, control, dynamics, spreads, p, *, delta_f, least, **known):
    """A problem without inertia, between equilibria of these spreads."""
    shift = p.distance if name == "position" else 0.0
    ends = [Gaussian([place], [[spread**2]]) for place, spread in zip((0.0, shift), spreads, strict=True)]
    reach = _REACH * max(spreads)
    grid = Grid(-reach, shift + reach, p.cells)
    ts = jnp.linspace(0.0, p.tau, p.density_steps + 1)
    return Problem(
        name,
        control,
        dynamics,
        ends[0],
        jnp.linspace(0.0, p.tau, p.steps + 1),
        ExactLinear(),
        lambda d: d.protocol.knots,
        delta_f=delta_f,
        least=least,
        bound=lambda: delta_f + _transport(ends, p),
        density=FokkerPlanck(Mean(work), ends[0], ts, grid),
        **known,
    )


def _breathing(protocol, p):
    """Mean work of many small switches of the stiffness, each followed by exact relaxation: sums, which rounding does not spoil."""
    steps = 4 * p.steps
    inside = jax.vmap(protocol.inside)((jnp.arange(steps, dtype=protocol.start.dtype) + 0.5) / steps)

    def switch(carry, after):
        before, square, total = carry
        total = total + 0.5 * (after - before) * square
        kept = jnp.exp(-2.0 * p.mobility * p.tau / steps * after)
        return (after, kept * square + (1.0 - kept) / (p.beta * after), total), None

    start = (protocol.start, 1.0 / (p.beta * protocol.start), jnp.zeros_like(protocol.start))
    (before, square, total), _ = lax.scan(switch, start, inside)
    return total + 0.5 * (protocol.stop - before) * square


def _underdamped(p):
    scales = {"stiffness": p.stiffness, "mobility": p.mobility}
    ramp = Kicked(ramp_with_jumps(0.0, p.distance, p.tau, knots=p.knots), 0.0, 0.0, p.tau)
    places = [Gaussian([place], [[1.0 / (p.beta * p.stiffness)]]) for place in (0.0, p.distance)]
    initial, stepper = MaxwellBoltzmann(places[0], p.beta, p.mass), Splitting("BAOAB")
    frequency = (p.stiffness / p.mass) ** 0.5
    quality = p.mass * frequency * p.mobility

    def mean_path_work(dynamics):
        dtype = dynamics.mass.dtype
        # Four times as fine as the simulation, whose own time step is to be judged.
        ts = jnp.linspace(0.0, p.tau, 4 * p.steps + 1, dtype=dtype)
        loss = MonteCarlo(Mean(work), cast(initial, dtype), ts, 2, stepper=stepper, noise="antithetic")
        return loss(dynamics, jr.key(0))

    return Problem(
        "underdamped",
        "position of the trap λ",
        Underdamped(Harmonic(p.stiffness), ramp, Isothermal(p.beta), p.mobility, p.mass),
        initial,
        jnp.linspace(0.0, p.tau, p.steps + 1),
        stepper,
        lambda d: (d.protocol.protocol.knots, d.protocol.first, d.protocol.last),
        change=p.distance,
        delta_f=0.0,
        least=_number(exact.inertial_trap_optimal_work, p.distance, p.tau, frequency=frequency, quality=quality, mass=p.mass),
        # Inertia cannot lower the least work of a Gaussian that moves: kicks give it the velocity it wants.
        bound=lambda: _transport(places, p),
        best=exact.inertial_trap_optimal_protocol(p.distance, p.tau, **scales),
        exact_work=mean_path_work,
        watch=mean_path_work,
        density=None,
    )


def _transport(ends, p):
    """The least dissipation between two equilibria under any potential."""
    start, final = ends
    return float(full_control(start, final, p.tau, beta=p.beta, mobility=p.mobility).dissipated)


def _number(closed_form, *args, **scales):
    """A closed form in double precision: dissipation is a small difference."""
    with _double():
        return float(closed_form(*args, **scales))


def _double() -> AbstractContextManager:
    return jax.enable_x64(True)  # pyright: ignore[reportCallIssue]
