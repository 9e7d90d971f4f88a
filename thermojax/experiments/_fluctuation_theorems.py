"""Every identity of a driven system on one page: a double well driven by its tilt, by its bath and by a force that is no gradient."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from pydantic import Field

from thermojax import theorems
from thermojax.distributions import free_energy
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.fokker_planck import energetics, GridDensity, propose_grid, steady_state
from thermojax.functionals import (
    DualRatio,
    energy_change,
    HatanoSasa,
    heat,
    log_ratio,
    medium_entropy,
    path_log_ratio,
    shadow_work,
    StochasticIntegral,
    system_entropy,
    work,
)
from thermojax.plots import COLOURS, curve, histogram, panels, pulls
from thermojax.protocols import Constant, Ramp
from thermojax.switching import both_ways, equilibrium_at, free_energy_change


class FluctuationTheorems(Parameters):
    """Parameters of `fluctuation-theorems`; k_B = 1, mobility 1."""

    barrier: float = Field(2.0, gt=0, description="height of the barrier between the wells at x = -1 and x = 1")
    tilt: float = Field(0.5, description="the tilt goes from minus this to this")
    beta: float = Field(1.0, gt=0, description="inverse temperature at the start")
    beta_end: float = Field(1.4, gt=0, description="inverse temperature at the end")
    swirl: float = Field(0.15, description="strength of the force that is no gradient: it turns round the contours of the potential")
    tau: float = Field(2.0, gt=0, description="duration of the drive, and of the steady state that is watched after it")
    steps: int = Field(800, ge=2, description="time steps of the simulation")
    samples: int = Field(40_000, ge=1000, description="trajectories in each experiment")
    cells: int = Field(128, ge=16, description="cells of the Fokker-Planck equation along each axis")


def landscape(barrier: float):
    """Two wells along x, a trap along y; the control is the tilt and beta, of which the energy reads the tilt."""

    def potential(x, lam):
        return barrier * (x[0] ** 2 - 1.0) ** 2 + 2.0 * x[1] ** 2 - lam[0] * x[0]

    return potential


def around(potential, strength: float):
    """A force along the contours of the potential: it breaks detailed balance and leaves the Boltzmann density as it is."""

    def force(x, lam):
        slope = jax.grad(potential)(x, lam)
        return strength * jnp.stack([-slope[1], slope[0]])

    return force


def run(parameters: FluctuationTheorems, key: jax.Array, progress: Progress) -> Results:
    """Drive forwards and backwards, watch a steady state, and hold every identity against its error bar and against Fokker-Planck."""
    p = parameters
    drive_key, steady_key, start_key = jr.split(key, 3)
    potential = landscape(p.barrier)
    schedule = Ramp([-p.tilt, p.beta], [p.tilt, p.beta_end], p.tau)
    dynamics = Overdamped(potential, schedule, lambda t: schedule(t)[1], 1.0, around(potential, p.swirl))
    ts = jnp.linspace(0.0, p.tau, p.steps + 1)
    ends = [schedule(t) for t in (ts[0], ts[-1])]
    equilibria = [equilibrium_at(dynamics, t, dim=2) for t in (ts[0], ts[-1])]
    delta = float(
        ends[1][1] * free_energy(potential, ends[1], beta=ends[1][1], dim=2)
        - ends[0][1] * free_energy(potential, ends[0], beta=ends[0][1], dim=2)
    )

    with progress.stage("solving the Fokker-Planck equation"):
        grid = propose_grid(potential, ends, beta=min(p.beta, p.beta_end), dim=2, cells=p.cells)
        oracle = jax.block_until_ready(energetics(dynamics, equilibria[0], grid, jnp.linspace(0.0, p.tau, 201)))
        final = GridDensity(grid, oracle.density)

    with progress.stage("driving forwards and backwards"):
        forward, backward = both_ways(dynamics, ts, p.samples, initial=equilibria[0], final=equilibria[1], key=drive_key)
        jax.block_until_ready(backward.total_work)

    with progress.stage("entropies along the paths"):
        log_steady = lambda x, lam: -lam[1] * potential(x, lam)
        names = {
            "work": work,
            "heat": heat,
            "change": energy_change,
            "medium": medium_entropy,
            "ratio": log_ratio,
            "shadow": shadow_work,
            "housekeeping": DualRatio(log_steady),
            "excess": HatanoSasa(log_steady),
        }
        x0s = equilibria[0].sample(p.samples, key=jr.fold_in(start_key, 0))
        x1s, sums = accumulate(names, dynamics, x0s, ts, key=jr.fold_in(start_key, 1))
        system = system_entropy(equilibria[0], final, x0s, x1s)
        total = path_log_ratio(equilibria[0], final, x0s, x1s, sums["ratio"])

    with progress.stage("watching the steady state"):
        still = Overdamped(potential, Constant(ends[1]), lambda t: ends[1][1], 1.0, around(potential, p.swirl))
        steady = GridDensity(grid, steady_state(still, grid))
        y0s = equilibria[1].sample(p.samples, key=jr.fold_in(steady_key, 0))
        current = StochasticIntegral(lambda t, x: around(potential, 1.0)(x, ends[1]))
        y1s, (entropies, angles) = accumulate((log_ratio, current), still, y0s, ts, key=jr.fold_in(steady_key, 1))
        steady_total = path_log_ratio(equilibria[1], equilibria[1], y0s, y1s, entropies)

    ahead, back = (jnp.asarray(d.total_work) for d in (forward, backward))
    reduced = forward.reduced_work
    crooks = theorems.crooks(ahead, back, delta)
    detailed = theorems.detailed_fluctuation_theorem(steady_total)
    identities: dict[str, tuple[Estimate, str]] = {
        "generalised_jarzynski": (theorems.generalised_jarzynski(ahead, delta), "mean of exp(-(Y - change of beta F)) - 1"),
        "crooks": (crooks.residual, "Bennett's equation for both directions: difference of its two sides"),
        "integral_theorem": (theorems.integral_fluctuation_theorem(total), "mean of exp(-total entropy) - 1"),
        "hatano_sasa": (theorems.hatano_sasa(sums["excess"] - delta), "mean of exp(-excess) - 1, up to the time step"),
        "housekeeping": (theorems.integral_fluctuation_theorem(sums["housekeeping"]), "mean of exp(-housekeeping entropy) - 1"),
        "detailed_theorem": (detailed.residual, "steady state: mean of f(1 - 2f) of the entropy"),
        "steady_integral_theorem": (theorems.integral_fluctuation_theorem(steady_total), "steady state: mean of exp(-entropy) - 1"),
    }
    results = Results()
    for name, (estimate, meaning) in identities.items():
        results.add(name, estimate, meaning, exact=0.0)
    means = {
        "reduced_work": (reduced, oracle.reduced_work, "mean reduced work Y"),
        "work": (sums["work"], oracle.work, "mean work"),
        "heat": (sums["heat"], oracle.heat, "mean heat into the medium"),
        "total_entropy": (system + sums["medium"], oracle.entropy_production, "mean total entropy production"),
    }
    results.add("delta_beta_f", free_energy_change(forward, backward), "change of beta F by Bennett's estimate", exact=delta)
    for name, (values, expected, meaning) in means.items():
        results.add(name, mean(values), meaning + ", against Fokker-Planck", exact=float(expected))
    results.add(
        "shadow_work", mean(sums["shadow"]), "mean shadow work, in units of k_BT: what the time step adds to the entropy production"
    )
    results.add("second_law", theorems.second_law(reduced - delta), "mean dissipated reduced work: never negative")
    slack = theorems.uncertainty_relation(angles, steady_total)
    results.add("uncertainty_relation", slack, "steady state: slack of the uncertainty relation, never negative")
    lag = float(final.kl(equilibria[1]))
    plain = {
        "first_law": (
            jnp.max(jnp.abs(sums["work"] - sums["change"] - sums["heat"])),
            "largest violation of the first law on any path: rounding",
        ),
        "relaxation_left": (lag, "KL divergence of the final density from equilibrium: entropy still to be produced"),
        "crooks_p_value": (crooks.p_value, "chance of a worse histogram if Crooks' relation holds"),
        "detailed_p_value": (detailed.p_value, "chance of a worse histogram if the detailed theorem holds"),
        "steady_kl": (steady.kl(equilibria[1]), "KL divergence of the steady state from Boltzmann: none, the force goes round it"),
        "balance": (
            oracle.reduced_work - delta - oracle.entropy_production - lag,
            "Fokker-Planck: mean Y, less the change of beta F, the total entropy and what is left; zero",
        ),
    }
    results.estimates |= {name: Quantity(float(value), meaning) for name, (value, meaning) in plain.items()}

    results.figures["crooks"] = Picture(
        _draw_crooks(np.asarray(ahead), -np.asarray(back), crooks, delta, p.samples),
        "Left: total reduced work of the drive and, with its sign turned, of the reversal; they cross at the change of beta F. "
        "Right: the logarithm of their ratio, and Crooks' straight line of slope one.",
    )
    results.figures["entropy"] = Picture(
        _draw_entropy(np.asarray(total), detailed),
        "Left: total entropy production of single paths; those on the left of zero break the second law, one path at a time. "
        "Right: the symmetry of the entropy in the steady state.",
    )
    results.figures["identities"] = Picture(
        pulls(results.pulls(), {name for name, q in results.estimates.items() if q.trustworthy is False}),
        "How far each number is from its exact value, in units of its own error bar; the band is two error bars.",
    )
    results.conclusions.append(results.tally())
    broken = float(jnp.mean(total < 0))
    results.conclusions.append(
        f"{100 * broken:.1f} % of the paths lower the total entropy; the mean rises by {float(jnp.mean(total)):.3g}, "
        f"and the mean of exp(-entropy) is {1 + float(identities['integral_theorem'][0].value):.4f}."
    )
    return results


def _draw_crooks(ahead, back, crooks, delta, samples):
    figure, (left, right) = panels(2)
    low, high = np.quantile(np.concatenate([ahead, back]), [5 / samples, 1 - 5 / samples])
    bins = np.linspace(low, high, 80)
    histogram(left, ahead, label="P(Y)", colour=COLOURS["first"], bins=bins)
    histogram(left, back, label="P̃(−Y)", colour=COLOURS["second"], bins=bins)
    left.axvline(delta, color=COLOURS["exact"], linestyle="--", linewidth=1, label="Δ(βF)")
    left.set(xlabel="reduced work Y", ylabel="probability density")
    left.legend(frameon=False)
    _draw_line(right, crooks, delta)
    right.set(xlabel="reduced work Y", ylabel="ln P(Y)/P̃(−Y)")
    return figure


def _draw_entropy(total, detailed):
    figure, (left, right) = panels(2)
    low, high = np.quantile(total, [0.0005, 0.9995])
    width = (high - low) / 80
    # Zero is an edge, so that no bin mixes both signs.
    bins = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    histogram(left, total, label="all paths", colour=COLOURS["first"], bins=bins)
    density, _ = np.histogram(total, bins=bins, density=True)
    left.stairs(np.where(bins[1:] <= 1e-9, density, 0.0), bins, fill=True, color=COLOURS["second"], label="entropy falls")
    left.axvline(total.mean(), color=COLOURS["exact"], linestyle="--", linewidth=1, label="mean")
    left.set(xlabel="total entropy production Δs", ylabel="probability density")
    left.legend(frameon=False)
    _draw_line(right, detailed, 0.0)
    right.set(xlabel="steady-state entropy production s", ylabel="ln P(s)/P(−s)")
    return figure


def _draw_line(ax, symmetry, delta):
    centres, logs, errors = (np.asarray(a) for a in (symmetry.centres, symmetry.log_ratios, symmetry.stderrs))
    seen = np.isfinite(logs)
    ax.errorbar(centres[seen], logs[seen], errors[seen], fmt="o", markersize=3, color=COLOURS["first"], label="measured")
    if seen.any():
        curve(ax, lambda w: w - delta, float(centres[seen].min()), float(centres[seen].max()), label="slope one")
    ax.legend(frameon=False)


EXPERIMENT = Experiment(
    "fluctuation-theorems", "a double well driven by tilt, bath and a swirling force: all identities on one page", FluctuationTheorems, run
)
