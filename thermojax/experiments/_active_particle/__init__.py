"""Switch a swimmer on: from rest to the active steady state in finite time, with two bounded controls, by Monte Carlo gradients.

The cost is the work of the trap plus a price times the error of the last moments; one descent for each price. The moments close, so the
best that this parameterisation can do is known without noise, and judges what the noisy descents found. What the moments do not see,
the rest of the last density, is compared with a long simulation of the steady state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float
from pydantic import Field

from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import mean
from thermojax.experiments._active_particle._figures import draw_controls, draw_front, draw_law, draw_moments
from thermojax.experiments._active_particle._model import (
    active_particle,
    ByMoments,
    chain_moments,
    controls_inside,
    features,
    flow_moments,
    MomentError,
    Moments,
    PassiveEquilibrium,
    push_work,
    steady_moments,
    trap_work,
)
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.optimize import Mean, MonteCarlo, pareto, Weighted
from thermojax.protocols import Bounded, PiecewiseLinear, ramp_with_jumps

WORDS = {"ramp": "both controls in straight lines", "jump": "both controls at once, then wait", "found": "found at the highest price"}


class ActiveParticle(Parameters):
    """Parameters of `active-particle`; k_B = 1."""

    tau: float = Field(0.5, gt=0, description="duration")
    stiffness_first: float = Field(1.0, gt=0, description="stiffness of the trap before, where the particle does not swim")
    stiffness_last: float = Field(2.0, gt=0, description="stiffness of the trap after")
    speed_last: float = Field(3.0, gt=0, description="speed at which the particle swims after")
    stiffness_low: float = Field(0.5, gt=0, description="least stiffness")
    stiffness_high: float = Field(2.5, gt=0, description="largest stiffness")
    speed_high: float = Field(5.0, gt=0, description="largest speed; the least is zero")
    mobility: float = Field(1.0, gt=0, description="mobility of the particle")
    beta: float = Field(1.0, gt=0, description="inverse temperature of the bath")
    rotation: float = Field(1.0, gt=0, description="diffusion constant of the direction")
    steps: int = Field(60, ge=2, description="time steps of the simulation")
    knots: int = Field(12, ge=2, description="knots of each control")
    members: int = Field(5, ge=2, description="prices of an error: one descent each")
    price_low: float = Field(2.0, gt=0, description="lowest price of an error in units of energy")
    price_high: float = Field(100.0, gt=0, description="highest price")
    iterations: int = Field(400, ge=1, description="gradient steps of each descent; the descent without noise takes six times as many")
    batch: int = Field(256, ge=2, description="trajectories in a gradient step")
    learning_rate: float = Field(0.15, gt=0, description="first step of Adam; falls to zero as a cosine")
    samples: int = Field(40_000, ge=1000, description="trajectories that judge a protocol, with fresh noise")


class Judged(NamedTuple):
    """One protocol on fresh noise, and its exact means."""

    dynamics: Overdamped
    """The dynamics under it."""
    features: Float[Array, "sample moment"]
    r"""$|r|^2$ and $r\cdot n$ at the end."""
    works: tuple[Array, Array]
    """Works of the trap and of the push."""
    moments: Moments
    """Exact means at all times."""


def run(parameters: ActiveParticle, key: jax.Array, progress: Progress) -> Results:
    """Optimise from the linear ramp at every price, with noise and without; judge ramp, jump and the best ending on fresh noise."""
    p = parameters
    front_key, best_key, judge_key, steady_key = jr.split(key, 4)
    ts = jnp.linspace(0.0, p.tau, p.steps + 1)
    first, last = np.array([p.stiffness_first, 0.0]), np.array([p.stiffness_last, p.speed_last])
    low, high = np.array([p.stiffness_low, 0.0]), np.array([p.stiffness_high, p.speed_high])
    drive = lambda protocol: active_particle(protocol, mobility=p.mobility, beta=p.beta, rotation=p.rotation)
    ramp = drive(ramp_with_jumps(first, last, p.tau, knots=p.knots))
    held = np.stack([last] * p.knots)
    jump = drive(PiecewiseLinear(first, held, last, p.tau))
    rest = drive(PiecewiseLinear(last, held, last, p.tau))
    bounded = Bounded.like(ramp.protocol, low, high)
    initial = PassiveEquilibrium(1.0 / (p.beta * p.stiffness_first))
    target = jnp.stack(steady_moments(p.stiffness_last, p.speed_last, ramp))
    objective = Weighted((Mean(trap_work), MomentError(target)), [1.0, p.price_high])
    noiseless = ByMoments(objective, initial, ts)
    prices = np.stack([np.ones(p.members), np.geomspace(p.price_low, p.price_high, p.members)], axis=1)

    def descend(title, loss, steps, key, **options):
        optimizer = optax.adam(optax.cosine_decay_schedule(p.learning_rate, steps))
        options |= {"where": lambda dynamics: dynamics.protocol.free, "checkpoint": progress.checkpoint(title)}
        with progress.stage(title, steps) as done:
            return pareto(loss, drive(bounded), prices, optimizer=optimizer, steps=steps, progress=done, key=key, **options)

    loss = MonteCarlo(objective, initial, ts, p.batch)
    front = descend("optimising both controls at every price", loss, p.iterations, front_key, average=0.95, repeats=100)
    best = descend("optimising without noise, by the moments", noiseless, 6 * p.iterations, best_key, repeats=2)
    with progress.stage("judging the front without noise"):
        exact = jnp.stack([noiseless.terms(member) for member in front.models])
    with progress.stage("judging ramp, jump and optimum on fresh noise"):
        driven = {"ramp": ramp, "jump": jump, "found": front.models[-1]}
        keys = dict(zip(driven, jr.split(judge_key, len(driven)), strict=True))
        judged = {name: _judge(dynamics, initial, ts, p.samples, keys[name]) for name, dynamics in driven.items()}
        steady = _steady(rest, initial, p, steady_key)

    results = Results()
    for name, found in judged.items():
        _tell_protocol(results, name, found, noiseless, steady)
    resting = chain_moments(rest, initial, _long(p))
    for k, name in enumerate(("spread", "alignment")):
        meaning = f"{name} of the active steady state, by a long simulation"
        results.add(f"{name}_steady", mean(steady[0][:, k]), meaning, exact=float(resting[k][-1]))
    for k, name in enumerate(("radius", "along")):
        distance, stderr = _distance(_law(steady[0])[k], _law(steady[1])[k])
        results.estimates[f"{name}_floor"] = Quantity(distance, "the same between two samples of the steady state", stderr=stderr)
    _tell_front(results, prices, front, exact, best, noiseless, ramp)
    smooth = flow_moments(front.models[-1], initial, ts)
    results.estimates["step_bias"] = Quantity(
        float(judged["found"].moments.trap_work[-1] - smooth.trap_work[-1]),
        "work of the protocol found in steps of this size, minus that in continuous time",
    )
    _conclude(results, p, front, exact, noiseless, judged)
    results.figures["controls"] = Picture(
        draw_controls(front.models[-1].protocol, best.models[-1].protocol, front.models[0].protocol, bounded, p.tau),
        "Both controls at the highest price: found with noise, and without (dashed); thin, at the lowest price; grey, the linear ramp. "
        "The shaded controls are out of bounds. The cost is flat: protocols that differ as these do cost nearly the same.",
    )
    results.figures["moments"] = Picture(
        draw_moments(ts, {name: found.moments for name, found in judged.items()}, judged["found"].features, target),
        "Mean squared distance and alignment in the course of time, exact; with error bars, simulated; dotted, the active steady state.",
    )
    points = {name: noiseless.terms(judged[name].dynamics) for name in ("ramp", "jump")}
    results.figures["front"] = Picture(
        draw_front(front, exact, best, points),
        "Work of the trap against the error at the end, one point for each price: on fresh noise with error bars, without noise "
        "(open), and the optima without noise (line).",
    )
    results.figures["law"] = Picture(
        draw_law({name: _law(judged[name].features) for name in ("jump", "found")}, _law(steady[0])),
        "What the moments do not see: distance from the centre, and place along the direction of swimming, at the end; filled, the "
        "steady state.",
    )
    return results


_features = jax.jit(jax.vmap(features))


def _judge(dynamics, initial, ts, samples, key):
    start_key, noise_key = jr.split(key)
    x0s = initial.sample(samples, key=start_key)
    x1s, works = accumulate((trap_work, push_work), dynamics, x0s, ts, key=noise_key)
    return Judged(dynamics, _features(x1s), works, chain_moments(dynamics, initial, ts))


def _long(p):
    """Steps of the same size until the slower of both moments has lost all but e^-8 of its distance."""
    slowest = min(2.0 * p.mobility * p.stiffness_last, p.mobility * p.stiffness_last + p.rotation)
    size = p.tau / p.steps
    count = int(np.ceil(8.0 / slowest / size))
    return jnp.linspace(0.0, count * size, count + 1)


def _steady(dynamics, initial, p, key):
    """Features of two samples of the steady state."""
    start_key, noise_key = jr.split(key)
    x1s, _ = accumulate((), dynamics, initial.sample(2 * p.samples, key=start_key), _long(p), key=noise_key)
    found = _features(x1s)
    return found[: p.samples], found[p.samples :]


def _law(found):
    """The distance from the centre and the place along the direction, one number each per path."""
    return np.sqrt(np.asarray(found[:, 0])), np.asarray(found[:, 1])


def _distance(first, second, groups=20):
    """The distance W2 of two samples of the same size on a line, with the standard error of a jackknife over groups."""
    between = lambda a, b: float(np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2)))
    left = np.arange(first.size) % groups
    without = np.array([between(first[left != g], second[left != g]) for g in range(groups)])
    return between(first, second), float(np.sqrt((groups - 1) * np.var(without)))


def _tell_protocol(results, name, found, noiseless, steady):
    words, moments = WORDS[name], found.moments
    trap, push = (mean(works) for works in found.works)
    results.add(f"work_{name}", trap, f"work of the trap: {words}", exact=float(moments.trap_work[-1]))
    results.add(f"push_{name}", push, f"work of the self-propulsion: {words}", exact=float(moments.push_work[-1]))
    results.add(f"spread_{name}", mean(found.features[:, 0]), f"mean squared distance at the end: {words}", exact=float(moments.spread[-1]))
    results.add(f"alignment_{name}", mean(found.features[:, 1]), f"alignment at the end: {words}", exact=float(moments.alignment[-1]))
    error = float(noiseless.terms(found.dynamics)[1])
    results.estimates[f"error_{name}"] = Quantity(error, f"squared relative errors of both moments at the end, without noise: {words}")
    for k, what in enumerate(("radius", "along")):
        where = ("distance from the centre", "place along the direction")[k]
        distance, stderr = _distance(_law(found.features)[k], _law(steady[0])[k])
        results.estimates[f"{what}_{name}"] = Quantity(distance, f"W2 of the {where} to the steady state: {words}", stderr=stderr)


def _tell_front(results, prices, front, exact, best, noiseless, ramp):
    costs, least = (np.sum(prices * np.asarray(terms), axis=1) for terms in (exact, best.values))
    start = prices @ np.asarray(noiseless.terms(ramp))
    for name, gap, words in (
        ("excess", costs / least - 1.0, "relative to the optimum without noise"),
        ("excess_of_gain", (costs - least) / (start - least), "as a share of what there is to gain on the ramp"),
    ):
        meaning = f"cost of what was found with noise above the optimum without, {words}: the worst of all prices"
        results.estimates[name] = Quantity(float(np.max(gap)), meaning)
    for k, price in enumerate(prices[:, 1]):
        results.estimates[f"front_work_{k}"] = Quantity(
            float(front.values[k, 0]),
            f"work of the trap at the price {price:.3g}, on fresh noise",
            stderr=float(front.stderrs[k, 0]),
            exact=float(exact[k, 0]),
        )
        results.estimates[f"front_error_{k}"] = Quantity(
            float(front.values[k, 1]),
            f"error at the end at the price {price:.3g}, on fresh noise",
            stderr=float(front.stderrs[k, 1]),
            exact=float(exact[k, 1]),
        )


def _conclude(results, p, front, exact, noiseless, judged):
    exact, numbers = np.asarray(exact), results.estimates
    by = {name: np.asarray(noiseless.terms(judged[name].dynamics)) for name in ("ramp", "jump")}
    for name, words in (("ramp", "straight lines"), ("jump", "the jump")):
        better = (exact[:, 1] <= by[name][1]) & (exact[:, 0] < by[name][0])
        if better.any():
            k = int(np.argmin(np.where(better, exact[:, 0], np.inf)))
            results.conclusions.append(
                f"Against {words} (work {by[name][0]:.3g}, error {by[name][1]:.2g}) the cheapest protocol found takes {exact[k, 0]:.3g}, "
                f"{100 * (1 - exact[k, 0] / by[name][0]):.0f} % less, with an error of {exact[k, 1]:.2g}; the most careful one takes "
                f"{exact[-1, 0]:.3g}, with an error {by[name][1] / exact[-1, 1]:.0f} times smaller."
            )
        else:
            results.conclusions.append(f"No protocol found is better than {words} in both work and error.")
    results.conclusions.append(
        f"The protocols found with noise cost at most {100 * numbers['excess'].value:.1f} % more than the optima without noise. "
        f"{results.tally()}"
    )
    bounded = front.models[0].protocol
    low, high = np.asarray(bounded.low), np.asarray(bounded.high)
    paths = [np.asarray(controls_inside(member.protocol, jnp.linspace(0.0, 1.0, 1001))) for member in front.models]
    margin = min(float(np.min(np.minimum(path - low, high - path) / (high - low))) for path in paths)
    numbers["margin"] = Quantity(margin, "least distance of any control from its bounds, in units of their distance")
    for path, words in ((paths[-1], "highest"), (paths[0], "lowest")):
        third = len(path) // 3
        early, late = (float(np.mean(part[:, 1])) for part in (path[:third], path[-third:]))
        results.conclusions.append(
            f"At the {words} price the stiffness jumps from {p.stiffness_first:.3g} to {path[0, 0]:.3g}, reaches {path[:, 0].max():.3g} "
            f"(bound {p.stiffness_high:.3g}) and jumps from {path[-1, 0]:.3g} to {p.stiffness_last:.3g}; the speed is {early:.2g} on "
            f"average in the first third and {late:.2g} in the last (bound {p.speed_high:.3g}), and jumps to {p.speed_last:.3g}."
        )
    results.conclusions.append(
        f"The work of the trap leaves out what the swimmer pays: {numbers['push_found'].exact:.3g} at the highest price, against "
        f"{numbers['push_ramp'].exact:.3g} for straight lines and {numbers['push_jump'].exact:.3g} for the jump."
    )
    kept = "No control leaves its bounds." if margin >= 0 else "Some control leaves its bounds."
    results.conclusions.append(
        f"{kept} The moments are not all of the law: the W2 distance of the last radius to the steady state is "
        f"{numbers['radius_found'].value:.2g}, against {numbers['radius_ramp'].value:.2g} for straight lines, "
        f"{numbers['radius_jump'].value:.2g} for the jump and {numbers['radius_floor'].value:.2g} between two samples of the steady state."
    )


EXPERIMENT = Experiment(
    "active-particle",
    "switch a swimmer on in a trap, with two bounded controls: work against error",
    ActiveParticle,
    run,
)
