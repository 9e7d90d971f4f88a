"""How far and how fast schedules carry the same data."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from thermojax.dynamics import Cosine, Interpolant, OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from thermojax.experiments._experiment import Picture, Progress, Quantity, Results
from thermojax.experiments._fluctuating_diffusion._setting import double_precision, FluctuatingDiffusion, twins
from thermojax.generative import squared_wasserstein, transport_cost
from thermojax.plots import COLOURS, panels

NODES = 128


def schedules(end: float) -> dict:
    """The schedules and how long they run."""
    return {
        "conditional_ot": ("conditional OT", Interpolant(), 1.0),
        "cosine": ("cosine", Cosine(), 1.0),
        "ou": ("Ornstein-Uhlenbeck", OrnsteinUhlenbeck(), end),
        "vp": ("variance preserving", VariancePreserving(), 1.0),
        "ve": ("variance exploding", VarianceExploding(), 1.0),
    }


def tell_schedules(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Action and length of each schedule, and the distance that bounds them."""
    with progress.stage("cost of the schedules"):
        with double_precision():
            data = twins(p.mean, p.variance)
            exact, distances = {}, {}
            for name, (_, noising, end) in schedules(p.end).items():
                exact[name] = jax.tree.map(np.asarray, transport_cost(noising, data, horizon=end, nodes=NODES))
                # At their very end some schedules are singular; the density there is that of the noise.
                late = jnp.asarray(end)
                distances[name] = float(squared_wasserstein(noising.marginal(data, 0.0 * late), noising.marginal(data, late)))
        data, measured = twins(p.mean, p.variance), {}
        samples = max(p.samples // 5, 200)
        for (name, (_, noising, end)), k in zip(schedules(p.end).items(), jr.split(key, 5), strict=True):
            measured[name] = transport_cost(noising, data, horizon=end, nodes=NODES, samples=samples, key=k)
    for name, (label, _, _) in schedules(p.end).items():
        for what in ("action", "length"):
            results.estimates[f"{what}_{name}"] = Quantity(
                float(getattr(measured[name], what)),
                f"{what} of the schedule {label}, by Monte Carlo; exact: quadrature",
                stderr=float(getattr(measured[name], f"{what}_error")),
                ess=float(samples),
                exact=float(getattr(exact[name], what)),
                trustworthy=True,
            )
        results.estimates[f"distance_{name}"] = Quantity(
            distances[name], f"squared Wasserstein distance of the ends of {label}: least action of any path between them"
        )
    results.figures["schedules"] = Picture(
        _draw_schedules(p, exact, distances),
        "Left: speed of the density along each schedule, in units of its mean; at constant speed the action is least for a given path. "
        "Right: action, squared length and squared distance of the ends; each is at most the one before.",
    )
    names = schedules(p.end)
    same = [name for name in names if name != "ve"]
    best = min(same, key=lambda name: exact[name].action)
    results.conclusions.append(
        f"Of the schedules that end in the standard normal, {names[best][0]} costs the least action, {exact[best].action:.6g}: "
        f"{exact[best].action / distances[best]:.3f} times the bound of {distances[best]:.6g}, "
        f"{exact[best].length ** 2 / distances[best]:.3f} times with a clock of constant speed."
    )


def _draw_schedules(p, exact, distances):
    figure, (left, right) = panels(2, width=5.4, height=4.0)
    names = schedules(p.end)
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    shades = (COLOURS["first"], COLOURS["second"], COLOURS["exact"], COLOURS["first"], COLOURS["faint"])
    for (name, (label, _, end)), style, colour in zip(names.items(), styles, shades, strict=True):
        found = exact[name]
        left.plot(found.ts / end, found.speeds * end / found.length, linestyle=style, color=colour, label=label)
    left.axhline(1.0, color=COLOURS["exact"], linewidth=0.6)
    left.set(xlabel="time / duration", ylabel="speed / mean speed", yscale="log", ylim=(0.01, 20), xlim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    rows = np.arange(len(names))
    marks = {
        "action": [exact[n].action for n in names],
        "length²": [exact[n].length ** 2 for n in names],
        "W₂² of the ends": [distances[n] for n in names],
    }
    for k, ((label, values), colour) in enumerate(zip(marks.items(), ("first", "second", "faint"), strict=True)):
        right.plot(values, rows + 0.2 * (k - 1), "osD"[k], color=COLOURS[colour], label=label)
    right.set_yticks(rows, [label for label, _, _ in names.values()])
    right.invert_yaxis()
    right.set(xlabel="squared length (units of x²)", xscale="log")
    right.legend(frameon=False, fontsize=8)
    return figure
