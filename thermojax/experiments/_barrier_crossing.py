r"""Pull a particle over a barrier with a spring: the linear ramp, the geodesic of linear response, and the protocol of least work.

Two wells at -1 and 1, and a spring whose end goes from one to the other in time $\tau$; the free energy is the same at both ends, so
that all work is dissipated. The geodesic is best for slow pulling, and over a high barrier worse than the ramp for fast pulling.
Descent on the Fokker-Planck equation, without noise, starts from the better of the two and finds jumps at both ends.

Two curves without a protocol: $\mathcal L^2/\tau$, the work of the geodesic in linear response, which is no bound; and the least work of
any potentials that begin and end as these do (`geometry.free_end`), which is one.

Reference:
    D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012), for friction and geodesics.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from pydantic import Field, model_validator

from thermojax._check import require
from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.estimators import jarzynski, mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.fokker_planck import evolve, Grid, mean_work, propose_grid
from thermojax.functionals import work
from thermojax.geometry import free_end, FreeEnd, Friction, Geodesic, geodesic
from thermojax.optimize import fit, FokkerPlanck, Mean
from thermojax.plots import COLOURS, panels
from thermojax.potentials import Bistable, Harmonic
from thermojax.protocols import PiecewiseLinear, ramp_with_jumps, sampled
from thermojax.steppers import Diffrax
from thermojax.switching import Drive, drive

# Colour, line and words of each protocol.
_STYLES = {
    "linear": (COLOURS["faint"], "-", "linear"),
    "geodesic": (COLOURS["second"], "-", "geodesic"),
    "optimised": (COLOURS["first"], "-", "optimised"),
}


class BarrierCrossing(Parameters):
    """Parameters of `barrier-crossing`; k_B = 1, temperature 1, mobility 1."""

    barriers: list[float] = Field([2.5, 10.0], min_length=1, description="heights of the barriers to cross, in units of k_BT")
    spring: float = Field(9.562515, gt=0, description="stiffness of the spring that pulls")
    taus: list[float] = Field([0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], min_length=1, description="durations, positive and increasing")
    simulated: list[float] = Field([0.5, 2.0, 10.0], description="durations, some of `taus`, at which the protocols are also simulated")
    knots: int = Field(33, ge=3, description="knots of the protocol that is optimised")
    iterations: int = Field(120, ge=1, description="gradient steps")
    learning_rate: float = Field(0.04, gt=0, description="first step of Adam; falls to zero as a cosine")
    descent_steps: int = Field(400, ge=10, description="time steps of the Fokker-Planck equation in the descent")
    descent_cells: int = Field(160, ge=50, description="cells of the Fokker-Planck equation in the descent")
    steps: int = Field(1200, ge=10, description="time steps of the Fokker-Planck equation that judges")
    cells: int = Field(800, ge=50, description="cells of the Fokker-Planck equation that judges")
    samples: int = Field(6000, ge=1000, description="trajectories of a simulation")
    simulation_steps: int = Field(6000, ge=10, description="time steps of a simulation")

    @model_validator(mode="after")
    def _check_durations(self):
        require(all(low < high for low, high in pairwise([0.0, *self.taus])), "taus", "be positive and increase", self.taus)
        known = len(set(self.simulated)) == len(self.simulated) and set(self.simulated) <= set(self.taus)
        require(known, "simulated", f"be some of `taus`, {self.taus}, each once", self.simulated)
        return self


class Crossing(NamedTuple):
    """All that is known of one barrier."""

    barrier: float
    """Its height."""
    potential: Any
    """The wells and the spring."""
    metric: Friction
    """The friction."""
    geodesic: Geodesic
    """The geodesic, of duration one."""
    protocols: dict[float, dict[str, PiecewiseLinear]]
    """The three protocols for each duration."""
    works: dict[float, dict[str, float]]
    """Their mean works by the Fokker-Planck equation."""
    bounds: dict[float, FreeEnd]
    """The least work of any potentials."""
    drives: dict[float, dict[str, Drive]]
    """Simulations of them."""

    @property
    def squared_length(self) -> float:
        """The excess work of the geodesic in linear response, times the duration."""
        return float(self.geodesic.length) ** 2


def landscape(barrier: float, spring: float):
    """The wells, as high a barrier apart as is asked for, and the spring."""
    return Bistable(2.0 * (barrier + np.log(2.0))) + Harmonic(spring)


def run(parameters: BarrierCrossing, key: jax.Array, progress: Progress) -> Results:
    """Compare ramp, geodesic and optimum for every barrier and duration, with the bounds and with simulations."""
    p, results = parameters, Results()
    # One optimiser for all, so that the descent is compiled once.
    optimizer = optax.adam(optax.cosine_decay_schedule(p.learning_rate, p.iterations))
    crossings = [cross(barrier, p, optimizer, k, progress) for barrier, k in zip(p.barriers, jr.split(key, len(p.barriers)), strict=True)]
    for crossing in crossings:
        _tell(crossing, results)
    if results.pulls():
        results.conclusions.insert(0, results.tally())
    figures = {
        "excess": (
            _draw_excess,
            "Work against duration by the Fokker-Planck equation, and simulations with four error bars (open). Dashed: the least work of "
            "any potentials. Dotted: squared length over duration, the geodesic in linear response, which is no bound.",
        ),
        "protocols": (_draw_protocols, "The three protocols for the shortest and the longest duration; vertical strokes are jumps."),
        "friction": (_draw_friction, "The friction, on a logarithmic axis: the geodesic is slow where it is high."),
        "landscape": (
            _draw_landscape,
            "Landscape (black) and density (filled) under the optimised protocol in the middle duration, from left to right in time.",
        ),
    }
    for name, (draw, caption) in figures.items():
        results.figures[name] = Picture(draw(crossings, p), caption)
    return results


def cross(barrier: float, p: BarrierCrossing, optimizer: optax.GradientTransformation, key: jax.Array, progress: Progress) -> Crossing:
    """Everything about one barrier."""
    potential = landscape(barrier, p.spring)
    start, final = (equilibrium(potential, lam) for lam in (-1.0, 1.0))
    # Optimal protocols may jump ahead, but not beyond the wells.
    grid = propose_grid(potential, [-1.0, 1.0], cells=p.cells)
    coarse = Grid(grid.low, grid.high, p.descent_cells)
    metric = Friction(potential)
    with progress.stage(f"barrier {barrier:.3g}: friction and geodesic"):
        shortest = geodesic(metric, -1.0, 1.0, knots=401)
    protocols, works, bounds, drives = {}, {}, {}, {}
    judge = lambda protocol, tau: float(mean_work(Overdamped(potential, protocol), start, grid, jnp.linspace(0.0, tau, p.steps + 1)))
    with progress.stage(f"barrier {barrier:.3g}: descent for each duration", len(p.taus)) as done:
        for n, tau in enumerate(p.taus):
            found = {
                "linear": ramp_with_jumps(-1.0, 1.0, tau, knots=p.knots),
                "geodesic": eqx.tree_at(lambda g: g.duration, shortest.protocol, jnp.asarray(tau, shortest.protocol.duration.dtype)),
            }
            costs = {name: judge(protocol, tau) for name, protocol in found.items()}
            better = PiecewiseLinear.like(found[min(costs, key=lambda name: costs[name])], knots=p.knots)
            loss = FokkerPlanck(Mean(work), start, jnp.linspace(0.0, tau, p.descent_steps + 1), coarse)
            options = {"optimizer": optimizer, "steps": p.iterations, "every": p.iterations, "where": _knots, "key": jr.key(0)}
            kept = progress.checkpoint(f"barrier {barrier:.6g}, duration {tau:.6g}")
            found["optimised"] = fit(loss, Overdamped(potential, better), checkpoint=kept, **options).model.protocol
            costs["optimised"] = judge(found["optimised"], tau)
            protocols[tau], works[tau] = found, costs
            bounds[tau] = free_end(start, final, tau)
            done(n + 1)
    # Heun's step is of second order in the mean for additive noise; Euler's crosses a high barrier at the wrong rate.
    with progress.stage(f"barrier {barrier:.3g}: simulations", len(p.simulated)) as done:
        for n, (tau, tau_key) in enumerate(zip(p.simulated, jr.split(key, len(p.simulated)), strict=True)):
            ts = jnp.linspace(0.0, tau, p.simulation_steps + 1)
            keys = dict(zip(_STYLES, jr.split(tau_key, len(_STYLES)), strict=True))
            stepper = Diffrax(diffrax.Heun())  # pyright: ignore[reportCallIssue]
            options = {"initial": start, "stepper": stepper}
            driven = {name: Overdamped(potential, protocols[tau][name]) for name in _STYLES}
            drives[tau] = {name: drive(driven[name], ts, p.samples, key=keys[name], **options) for name in _STYLES}
            done(n + 1)
    return Crossing(barrier, potential, metric, shortest, protocols, works, bounds, drives)


def _knots(dynamics):
    return dynamics.protocol.knots


def _tell(found: Crossing, results: Results) -> None:
    place, note = f"barrier {found.barrier:.3g}", results.estimates
    label = f"barrier_{found.barrier:.3g}"
    note[f"{label}_length"] = Quantity(float(found.geodesic.length), f"thermodynamic length from -1 to 1 ({place})")
    for tau, costs in found.works.items():
        for name, value in costs.items():
            words = f"mean work of the {name} protocol, Fokker-Planck ({place}, duration {tau:.3g})"
            note[f"{label}_tau_{tau:.3g}_{name}"] = Quantity(value, words)
        bound = found.bounds[tau]
        words = f"least work of any potentials, up to {abs(float(bound.gap)):.1g} ({place}, duration {tau:.3g})"
        note[f"{label}_tau_{tau:.3g}_bound"] = Quantity(float(bound.dissipated), words)
        for name, paths in found.drives.get(tau, {}).items():
            words = f"mean work of the {name} protocol, simulated, against Fokker-Planck ({place}, duration {tau:.3g})"
            results.add(f"{label}_tau_{tau:.3g}_{name}_simulated", mean(paths.work), words, exact=costs[name])
            equality = jarzynski(paths.work, beta=1.0)
            words = f"free energy by Jarzynski's equality, from the {name} protocol ({place}, duration {tau:.3g})"
            # Exponential averages that rare paths decide are shown, but not counted.
            known = 0.0 if equality.trustworthy else None
            results.add(f"{label}_tau_{tau:.3g}_{name}_jarzynski", equality, words, exact=known)
    best = lambda costs: min(costs["linear"], costs["geodesic"])
    wins = [tau for tau, costs in found.works.items() if costs["optimised"] < best(costs)]
    loses = [tau for tau, costs in found.works.items() if costs["geodesic"] > costs["linear"]]
    gains = [1.0 - costs["optimised"] / best(costs) for costs in found.works.values()]
    durations = ", ".join(f"{tau:.3g}" for tau in loses)
    lost = f"the geodesic costs more than the ramp for tau = {durations}" if loses else "the geodesic never loses to the ramp"
    results.conclusions.append(
        f"{place.capitalize()}: {lost}. The optimised protocol costs less than both for {len(wins)} of {len(found.works)} durations, by "
        f"{100 * min(gains):.2g} to {100 * max(gains):.2g} percent of the better one."
    )


def _draw_excess(crossings, p):
    del p
    figure, axes = panels(len(crossings), width=4.8, height=4.0)
    for ax, found in zip(axes, crossings, strict=True):
        taus = np.asarray(list(found.works))
        for name, (colour, line, words) in _STYLES.items():
            ax.loglog(taus, [found.works[tau][name] for tau in found.works], line, marker="o", markersize=3, color=colour, label=words)
            for tau, drives in found.drives.items():
                estimate = mean(drives[name].work)
                style = {"fmt": "s", "markersize": 7, "markerfacecolor": "none", "color": colour, "linewidth": 0.8}
                ax.errorbar(tau, float(estimate.value), 4 * float(estimate.stderr), **style)
        ax.loglog(taus, [float(found.bounds[tau].dissipated) for tau in taus], "--", color=COLOURS["exact"], label="bound, full control")
        ax.loglog(taus, found.squared_length / taus, ":", color=COLOURS["second"], label="squared length / τ")
        ax.set(xlabel="duration τ", ylabel="mean work / k_BT")
        ax.set_ylim(top=3 * max(found.works[taus[0]].values()))
        ax.set_title(f"barrier {found.barrier:.3g} k_BT", fontsize=10)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _draw_protocols(crossings, p):
    ends = sorted({p.taus[0], p.taus[-1]})
    figure, axes = panels(len(crossings) * len(ends), width=3.2)
    places = [(found, tau) for found in crossings for tau in ends]
    for ax, (found, tau) in zip(axes, places, strict=True):
        for name, (colour, line, words) in _STYLES.items():
            ts, lams = sampled(found.protocols[tau][name], points=801)
            ax.plot(np.asarray(ts) / tau, np.asarray(lams), line, color=colour, label=words)
        ax.set(xlabel="share of the time t/τ", ylabel="end of the spring λ")
        ax.set_title(f"barrier {found.barrier:.3g} k_BT, τ = {tau:.3g}", fontsize=9)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _draw_friction(crossings, p):
    del p
    figure, (ax,) = panels()
    lams = jnp.linspace(-1.0, 1.0, 201)
    for n, found in enumerate(crossings):
        # Four colours, and then the same in other lines.
        turn, which = divmod(n, len(COLOURS))
        colour, line = list(COLOURS.values())[which], ("-", "--", ":", "-.")[turn % 4]
        ax.semilogy(lams, np.asarray(jax.vmap(found.metric)(lams)), line, color=colour, label=f"barrier {found.barrier:.3g} k_BT")
    ax.set(xlabel="end of the spring λ", ylabel="friction ζ(λ)")
    ax.legend(frameon=False)
    return figure


def _draw_landscape(crossings, p):
    found, tau = crossings[0], p.taus[len(p.taus) // 2]
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    protocol = found.protocols[tau]["optimised"]
    grid = propose_grid(found.potential, [-1.0, 1.0], cells=p.cells)
    ts = jnp.linspace(0.0, tau, 4 * max(1, p.steps // 4) + 1)
    densities = evolve(Overdamped(found.potential, protocol), equilibrium(found.potential, -1.0), grid, ts).densities
    figure, axes = panels(len(shares), width=2.4, height=2.8)
    x = np.asarray(grid.lines[0])
    for ax, share in zip(axes, shares, strict=True):
        lam = protocol(jnp.asarray(share * tau, ts.dtype))
        energies = np.asarray(jax.vmap(lambda a, lam=lam: found.potential(a, lam))(grid.centres))
        density = np.asarray(densities)[round(share * (ts.shape[0] - 1))]
        ax.plot(x, energies - energies.min(), color=COLOURS["exact"], linewidth=1)
        ax.fill_between(x, 4 * density, color=COLOURS["first"], alpha=0.5, linewidth=0)
        ax.plot([float(lam)], [0.3], "^", color=COLOURS["second"], markersize=6)
        ax.set(xlabel="position x", ylabel="energy / k_BT, and density", xlim=(-2, 2), ylim=(0, 14))
        ax.set_title(f"t = {share:.3g} τ", fontsize=9)
    return figure


EXPERIMENT = Experiment("barrier-crossing", "pull a particle over a barrier: ramp, geodesic, optimum, and bounds", BarrierCrossing, run)
