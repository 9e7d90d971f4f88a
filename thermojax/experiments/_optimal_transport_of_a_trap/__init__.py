r"""Move a trap, or change its stiffness, with as little work as possible: protocols found by gradient descent beside exact optima.

Descent starts from the linear ramp and has its gradients from three places: from the noise of simulated paths (Monte Carlo), from the
density (Fokker-Planck, no noise), and with inertia from paths whose velocity the protocol may kick. Every protocol is judged on fresh
noise and without noise, against the closed form, the ramp, and the bound of optimal transport.

What counts is the dissipated work $W - \Delta F$ over the least one. On fresh noise Jarzynski's equality lends a control variate:
$e^{-\beta(W - \Delta F)}$ has the mean one, at every time step, and varies with the work.

References:
    T. Schmiedl, U. Seifert, Phys. Rev. Lett. 98, 108301 (2007). A. Gomez-Marin, T. Schmiedl, U. Seifert, J. Chem. Phys. 129, 024114
    (2008).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from thermojax.dynamics import AbstractLangevin
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, exponential_mean, mean
from thermojax.experiments._experiment import Experiment, Picture, Progress, Quantity, Results
from thermojax.experiments._optimal_transport_of_a_trap._figures import draw_descent, draw_excess, draw_protocols, draw_works
from thermojax.experiments._optimal_transport_of_a_trap._problems import OptimalTransportOfATrap, Problem, problems
from thermojax.functionals import work
from thermojax.optimize import fit, Mean, MonteCarlo

# Percent over the least dissipation from which on a protocol counts as found; with inertia.
TARGETS = {"position": 3.0, "stiffness": 3.0, "underdamped": 2.0}


class Found(NamedTuple):
    """What was found for one trap."""

    problem: Problem
    """The problem."""
    models: dict[str, AbstractLangevin]
    """The dynamics driven by the ramp, and by what each method found."""
    costs: dict[str, float]
    """Their mean work, without noise."""
    works: dict[str, np.ndarray]
    """Work of single paths on fresh noise, of the ramp and of what Monte Carlo gradients found."""
    fresh: dict[str, Estimate]
    """The mean dissipated work of these paths."""
    trajectories: np.ndarray
    """Trajectories that the descent on Monte Carlo gradients had seen after each round."""
    course: np.ndarray
    """The mean work of its averaged protocol then, without noise."""

    @property
    def needed(self) -> float | None:
        """Trajectories after which the protocol stays within the target; None if it never does."""
        above = np.flatnonzero(~(self.problem.over(self.course) <= TARGETS[self.problem.name]))
        after = above[-1] + 1 if above.size else 0
        return float(self.trajectories[after]) if after < self.trajectories.size else None


def run(parameters: OptimalTransportOfATrap, key: jax.Array, progress: Progress) -> Results:
    """Optimise from the linear ramp, judge on fresh noise and without noise, and tell how many trajectories it took."""
    p, results, every = parameters, Results(), []
    for problem, problem_key in zip(problems(p), jr.split(key, 3), strict=False):
        found = optimise(problem, p, problem_key, progress)
        every.append(found)
        _tell(found, results)
    results.conclusions.insert(0, results.tally())
    results.figures["protocols"] = Picture(
        draw_protocols(every),
        "Protocols found by descent from the linear ramp, and the exact optima (dashed); vertical strokes are jumps.",
    )
    results.figures["excess"] = Picture(
        draw_excess(every),
        "Dissipated work in units of the least, of the closed form (dashed), which is also the bound of optimal transport. Discs: without "
        "noise. Open squares: on fresh noise, with four error bars.",
    )
    results.figures["work"] = Picture(
        draw_works(every, p.beta),
        "Work on fresh noise, and Gaussians (dashed). For a trap that moves they are exact, of variance twice the mean over beta; the work "
        "of a trap that breathes is no Gaussian, and those have its mean and its variance.",
    )
    results.figures["descent"] = Picture(
        draw_descent(every, TARGETS),
        "How far the averaged protocol is from the least dissipation, without noise, against the trajectories that the descent has seen; "
        "dotted, the targets.",
    )
    return results


def optimise(problem: Problem, p: OptimalTransportOfATrap, key: jax.Array, progress: Progress) -> Found:
    """Descend in each way there is, and judge."""
    fit_key, *judge_keys = jr.split(key, 3)
    loss = MonteCarlo(Mean(work), problem.initial, problem.ts, p.batch, stepper=problem.stepper, noise=p.noise)
    optimizer = _optimizer(p.learning_rate * problem.change, p.iterations)
    options = {"optimizer": optimizer, "steps": p.iterations, "where": problem.where, "average": 0.9, "key": fit_key}
    options["every"] = max(1, p.iterations // 50)
    models = {"ramp": problem.dynamics}
    with progress.stage(f"{problem.name}: descent on Monte Carlo gradients", p.iterations) as done:
        kept = progress.checkpoint(f"{problem.name}: Monte Carlo")
        models["monte_carlo"] = fit(loss, problem.dynamics, checkpoint=kept, progress=lambda k, value: done(k), **options).model
    with progress.stage(f"{problem.name}: the same descent, watched", p.iterations) as done:
        # To the same bits: an exact work may watch a descent, but not choose what it returns.
        options |= {"validate": problem.watch, "checkpoint": progress.checkpoint(f"{problem.name}: Monte Carlo, watched")}
        course = fit(loss, problem.dynamics, progress=lambda k, value: done(k), **options).validation
    if problem.density is not None:
        with progress.stage(f"{problem.name}: descent on Fokker-Planck gradients", p.density_iterations) as done:
            models["fokker_planck"] = descend_density(
                problem, p, lambda k, value: done(k), progress.checkpoint(f"{problem.name}: Fokker-Planck")
            )
    with progress.stage(f"{problem.name}: judging on fresh noise"):
        judged = zip(("ramp", "monte_carlo"), judge_keys, strict=True)
        works = {name: np.asarray(_works(models[name], problem, p.samples, k)) for name, k in judged}
    costs = {name: problem.work(model) for name, model in models.items()}
    fresh = {name: dissipated(jnp.asarray(values), problem.delta_f, p.beta) for name, values in works.items()}
    made = np.minimum(options["every"] * np.arange(1, course.shape[0] + 1), p.iterations)
    return Found(problem, models, costs, works, fresh, made * p.batch, np.asarray(course))


def descend_density(problem: Problem, p: OptimalTransportOfATrap, progress=None, checkpoint=None) -> AbstractLangevin:
    """The dynamics found on the gradients of the Fokker-Planck equation, which have no noise."""
    assert problem.density is not None
    n = p.density_iterations
    options = {
        "optimizer": _optimizer(p.learning_rate * problem.change, n),
        "every": max(1, n // 10),
        "where": problem.where,
        "progress": progress,
        "checkpoint": checkpoint,
    }
    return fit(problem.density, problem.dynamics, steps=n, key=jr.key(0), **options).model


def dissipated(works: Float[Array, " sample"], delta_f: float, beta: float) -> Estimate:
    r"""The mean of $W - \Delta F$, with Jarzynski's equality as control variate where its average may be trusted."""
    lost = works - delta_f
    if not exponential_mean(beta * lost).trustworthy:
        return mean(lost)
    surplus = jnp.expm1(-beta * lost)
    slope = jnp.mean((lost - jnp.mean(lost)) * (surplus - jnp.mean(surplus))) / jnp.var(surplus)
    return mean(lost - slope * surplus)


@functools.cache
def _optimizer(rate, iterations):
    """One object for one schedule, so that problems that differ in numbers alone are compiled once."""
    return optax.adam(optax.cosine_decay_schedule(rate, iterations), b2=0.99)


def _works(dynamics, problem, samples, key):
    start_key, noise_key = jr.split(key)
    x0s = problem.initial.sample(samples, key=start_key)
    return accumulate(work, dynamics, x0s, problem.ts, stepper=problem.stepper, key=noise_key)[1]


def _tell(found: Found, results: Results) -> None:
    problem, costs = found.problem, found.costs
    name, excess = problem.name, problem.least - problem.delta_f
    note = results.estimates
    note[f"{name}_least"] = Quantity(problem.least, "least mean work, closed form")
    note[f"{name}_bound"] = Quantity(
        problem.bound(), "bound of optimal transport on the mean work: here it is reached", exact=problem.least
    )
    plain = {way: mean(jnp.asarray(works)) for way, works in found.works.items()}
    results.add(f"{name}_ramp", plain["ramp"], "mean work of the linear ramp, against its exact value", exact=costs["ramp"])
    words = "mean work of the protocol from Monte Carlo gradients, on fresh noise, against the exact value of this protocol"
    results.add(f"{name}_found", plain["monte_carlo"], words, exact=costs["monte_carlo"])
    words = "dissipation above the least, in percent: protocol from Monte Carlo gradients, on fresh noise, with the control variate"
    results.add(f"{name}_over_fresh", found.fresh["monte_carlo"], words, scale=100.0 / excess, shift=-100.0)
    titles = {"ramp": "linear ramp", "monte_carlo": "protocol from Monte Carlo gradients", "fokker_planck": "from exact gradients"}
    for way, cost in costs.items():
        note[f"{name}_over_{way}"] = Quantity(problem.over(cost), f"dissipation above the least, in percent: {titles[way]}, without noise")
    protocol: Any = found.models["monte_carlo"].protocol
    inner, best = (getattr(q, "protocol", q) for q in (protocol, problem.best))
    for end, jump, right in zip(("first", "last"), inner.jumps, best.jumps, strict=True):
        note[f"{name}_jump_{end}"] = Quantity(float(jump), f"{end} jump of the protocol from Monte Carlo gradients", exact=float(right))
        if inner is not protocol:
            kick, exact = (float(getattr(q, end)) for q in (protocol, problem.best))
            note[f"{name}_kick_{end}"] = Quantity(kick, f"{end} kick of the velocity by the same protocol", exact=exact)
    target, needed = TARGETS[name], found.needed
    if needed is not None:
        words = f"trajectories after which the averaged protocol stays within {target:g} % of the least dissipation"
        note[f"{name}_trajectories"] = Quantity(needed, words)
    over = {way: f"{problem.over(cost):.2g} %" for way, cost in costs.items()}
    exact_way = f", from exact gradients {over['fokker_planck']}" if "fokker_planck" in over else ""
    took = "more trajectories than were made" if needed is None else f"{needed:.0f} trajectories"
    results.conclusions.append(
        f"{name.capitalize()}: the least dissipation is {excess:.4g}. The ramp has {over['ramp']} more, the protocol from Monte Carlo "
        f"gradients {over['monte_carlo']}{exact_way}; it took {took} to stay within {target:g} %."
    )


EXPERIMENT = Experiment(
    "optimal-transport-of-a-trap",
    "move or stiffen a trap with least work, with and without inertia: descent on noisy and exact gradients against closed forms",
    OptimalTransportOfATrap,
    run,
)
