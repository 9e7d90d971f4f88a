"""Train a generative flow network on a grid, and read it as a driven system: work, free energy, dissipation, Crooks' relation.

The default run takes about half a minute on two cores.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from thermojax.estimators import exponential_mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.gflownets import (
    AbstractBalance,
    balance_optimizer,
    DetailedBalance,
    Exactly,
    exactly,
    explore,
    FlowMatching,
    FlowReversal,
    GFlowNet,
    Graph,
    Hypergrid as Grid,
    learned,
    Network,
    SubTrajectoryBalance,
    terminal_probabilities,
    TrajectoryBalance,
)
from thermojax.measures import assessment
from thermojax.optimize import fit
from thermojax.plots import COLOURS, histogram, panels

# Rounds of the descent, after each of which the distance from the target is computed exactly.
_ROUNDS = 20


class Hypergrid(Parameters):
    """Parameters of `hypergrid`."""

    side: int = Field(8, ge=3, description="points along each coordinate")
    dim: int = Field(2, ge=2, description="coordinates; the grid must have at most 50 000 points, so that all is known exactly")
    floor: float = Field(0.1, gt=0, description="reward of every point")
    corners: float = Field(0.5, ge=0, description="more reward near the corners")
    modes: float = Field(2.0, ge=0, description="yet more reward at the modes")
    loss: Literal["tb", "db", "subtb", "fm"] = Field("tb", description="trajectory, detailed, sub-trajectory balance, or flow matching")
    weight: float = Field(0.9, gt=0, description="geometric weight of sub-trajectories (subtb)")
    trajectories: int = Field(32_000, ge=100, description="trajectories to learn from")
    batch: int = Field(16, ge=1, description="trajectories in a gradient step")
    exploration: float = Field(0.1, ge=0, le=1, description="probability that a move in training is any legal one")
    learning_rate: float = Field(3e-3, gt=0, description="first step of Adam; falls to zero as a cosine")
    log_z_rate: float = Field(0.1, gt=0, description="the same for the logarithm of the normaliser")
    width: int = Field(128, ge=1, description="units of each hidden layer")
    depth: int = Field(2, ge=1, description="hidden layers")
    backward: bool = Field(False, description="learn the backward policy too")  # noqa: FBT003
    samples: int = Field(20_000, ge=100, description="trajectories of either policy that judge the network, before and after")


def run(parameters: Hypergrid, key: jax.Array, progress: Progress) -> Results:
    """Judge the untrained network, train it, judge it again; every number beside its exact value."""
    p = parameters
    network_key, fit_key, before_key, after_key = jr.split(key, 4)
    grid = Grid(p.side, p.dim, p.floor, p.corners, p.modes)
    with progress.stage("exploring the grid"):
        graph = explore(grid)
    network = Network(grid, width=p.width, depth=p.depth, backward=p.backward, key=network_key)
    start = GFlowNet(grid, network, 0.0, graph)
    steps = -(-p.trajectories // p.batch)
    every = max(1, steps // _ROUNDS)
    problem = {"optimizer": balance_optimizer(steps, rate=p.learning_rate, log_z_rate=p.log_z_rate), "where": learned, "key": fit_key}

    with progress.stage("training", steps) as done:
        kept = progress.checkpoint("training")
        found = fit(_loss(p), start, steps=steps, every=every, checkpoint=kept, progress=lambda k, loss: done(k), **problem)
    with progress.stage("training again, the same way, to watch the distance from the target", steps) as done:
        distance = lambda model: exactly(model, graph).l1
        problem |= {"validate": distance, "checkpoint": progress.checkpoint("training, watched")}
        watched = fit(_loss(p), start, steps=steps, every=every, progress=lambda k, loss: done(k), **problem)
    # Flow matching leaves the backward policy alone: the one to compare with is the reversal of the flow it found.
    trained = eqx.tree_at(lambda m: m.policy, found.model, FlowReversal(found.model)) if p.loss == "fm" else found.model
    works = {}
    with progress.stage("judging the network before and after"):
        for name, model, model_key in (("untrained", start, before_key), ("trained", trained, after_key)):
            keys = jr.split(model_key)
            sides = model.forward(p.samples, key=keys[0]).log_ratios, model.backward(p.samples, key=keys[1]).log_ratios
            works[name] = tuple(np.asarray(side) for side in jax.block_until_ready(sides))
    exact = {"untrained": exactly(start, graph), "trained": exactly(trained, graph)}

    results = Results()
    for name, sides in works.items():
        _report(results, name, sides, exact[name])
    log_z = float(graph.log_z)
    results.estimates["log_z_learned"] = Quantity(float(found.model.log_z), "ln Z that the network learned", exact=log_z)
    for name, words in (("untrained", "before training"), ("trained", "after training")):
        results.estimates[f"l1_{name}"] = Quantity(float(exact[name].l1), f"sum of |p(x) - R(x)/Z| over all points, {words}, exact")
    results.conclusions.append(results.tally())
    ratio = float(jnp.exp(found.model.log_z - graph.log_z)) - 1
    results.conclusions.append(
        f"{steps * p.batch} trajectories brought the distance of the ends from R/Z from {float(exact['untrained'].l1):.3g} to "
        f"{float(exact['trained'].l1):.2g} and the dissipation from {float(exact['untrained'].divergence):.3g} to "
        f"{float(exact['trained'].divergence):.2g}; the learned Z is off by {100 * ratio:+.2g} %. {found.message}"
    )
    weak = [name for name, q in results.estimates.items() if q.trustworthy is False]
    if weak:
        results.conclusions.append(f"Not to be believed: {', '.join(weak)}, which rare trajectories decide.")
    results.figures["distribution"] = Picture(
        _draw_distribution(terminal_probabilities(trained, graph), graph, p),
        "Where walks end: the target R/Z, the trained network, exactly, and their difference; "
        + ("points of the grid." if p.dim == 2 else "sums over all coordinates but the first two."),
    )
    results.figures["crooks"] = Picture(
        _draw_crooks(works, -log_z),
        "Work under the forward policy, and along walks of the backward policy, whose own work is the negative; before training, their "
        "logarithmic ratio with error bars against Crooks' line, and after training, on another scale.",
    )
    results.figures["training"] = Picture(
        _draw_training(np.asarray(found.history), np.asarray(watched.validation), every, p.batch),
        "The loss, averaged over a fiftieth of the training, and the distance of the ends from R/Z, exactly, after each twentieth.",
    )
    return results


def _loss(p: Hypergrid) -> AbstractBalance:
    if p.loss == "subtb":
        return SubTrajectoryBalance(p.batch, p.exploration, p.weight)
    return {"tb": TrajectoryBalance, "db": DetailedBalance, "fm": FlowMatching}[p.loss](p.batch, p.exploration)


def _report(results: Results, name: str, sides: tuple[np.ndarray, np.ndarray], exact: Exactly) -> None:
    ahead, back = (jnp.asarray(side) for side in sides)
    seen = assessment(ahead, back)
    log_z = float(exact.log_z)
    results.add(f"z_{name}", exponential_mean(ahead), f"<exp(-W)> of the {name} policy: Z", exact=float(jnp.exp(exact.log_z)))
    results.add(f"log_z_{name}", seen.log_z, f"ln Z by Jarzynski's equality, {name}", exact=log_z)
    for part, words in (("log_z_both", "Bennett's estimate of ln Z from both policies"), ("elbo", "ELBO"), ("eubo", "EUBO")):
        estimate = getattr(seen, part)
        results.add(f"{part}_{name}", estimate, f"{words}, {name}", exact=float(getattr(exact, part)) if part != "log_z_both" else log_z)
    results.add(f"dissipation_{name}", seen.divergence, f"mean dissipation <W> - ΔF, {name}", exact=float(exact.divergence))
    results.estimates[f"efficiency_{name}"] = Quantity(
        float(seen.efficiency), f"effective share of the {name} walks as importance samples", exact=float(exact.efficiency)
    )
    results.conclusions.append(f"Both policies together, {name}: {seen.trust}")


def _draw_distribution(ends: jax.Array, graph: Graph, p: Hypergrid) -> Figure:
    figure, axes = panels(3, width=3.6, height=3.2)
    points = np.asarray(graph.states)
    tables = []
    for chances in (graph.target, ends):
        table = np.zeros((p.side, p.side))
        np.add.at(table, (points[:, 0], points[:, 1]), np.asarray(chances, float))
        tables.append(table)
    most = max(table.max() for table in tables)
    miss = tables[1] - tables[0]
    reach = max(np.abs(miss).max(), 1e-12)
    for ax, table, title, style in (
        (axes[0], tables[0], "target R/Z", {"cmap": "Blues", "vmin": 0, "vmax": most}),
        (axes[1], tables[1], "trained network", {"cmap": "Blues", "vmin": 0, "vmax": most}),
        (axes[2], miss, "difference", {"cmap": "RdBu", "vmin": -reach, "vmax": reach}),
    ):
        picture = ax.imshow(table.T, origin="lower", **style)
        ax.grid(visible=False)
        ax.set(xlabel="x₁", ylabel="x₂", title=title)
        bar = figure.colorbar(picture, ax=ax, shrink=0.8)
        bar.set_label("probability")
    return figure


def _draw_crooks(works: dict[str, tuple[np.ndarray, np.ndarray]], delta_f: float) -> Figure:
    figure, (left, middle, right) = panels(3, width=4.2)
    ahead, back = works["untrained"]
    low, high = np.quantile(np.concatenate([ahead, back]), [0.0005, 0.9995])
    bins = np.linspace(low, high, 60)
    counts = np.stack([np.histogram(side, bins)[0] for side in (ahead, back)])
    centres = 0.5 * (bins[1:] + bins[:-1])
    # Bins by their sum, and by how it is expected to be shared: a choice by the rarer count would favour its fluctuations.
    seen = (counts.sum(axis=0) / (1 + np.exp(np.abs(centres - delta_f))) >= 5) & np.all(counts > 0, axis=0)
    centres, counts = centres[seen], counts[:, seen]
    ratio, error = np.log(counts[0] / counts[1]), np.sqrt(np.sum(1 / counts, axis=0))
    middle.errorbar(centres, ratio, error, fmt="o", markersize=3, color=COLOURS["first"], label="untrained")
    middle.plot(centres, centres - delta_f, "--", color=COLOURS["exact"], linewidth=1, label="W − ΔF")
    middle.set(xlabel="work W", ylabel="ln P(W) / P̃(−W)")
    middle.legend(frameon=False)
    # Rounding alone may be left of the width after training.
    late = np.concatenate(works["trained"])
    width = max(4 * float(np.std(late)), 1e-3)
    for ax, name, edges in ((left, "untrained", bins), (right, "trained", np.linspace(delta_f - width, delta_f + width, 60))):
        for side, label, colour in zip(works[name], ("P(W), forward", "P̃(−W), backward"), ("first", "second"), strict=True):
            histogram(ax, side, label=label, colour=COLOURS[colour], bins=edges)
        ax.axvline(delta_f, color=COLOURS["exact"], linestyle="--", linewidth=1, label="ΔF = −ln Z")
        ax.set(xlabel="work W", ylabel="probability density", title=name)
    left.legend(frameon=False, fontsize=8)
    return figure


def _draw_training(history: np.ndarray, distances: np.ndarray, every: int, batch: int) -> Figure:
    figure, (left, right) = panels(2)
    block = max(1, len(history) // 50)
    kept = len(history) // block * block
    means = history[:kept].reshape(-1, block).mean(axis=1)
    left.plot((np.arange(len(means)) + 0.5) * block * batch, means, color=COLOURS["first"])
    left.set(xlabel="trajectories", ylabel="loss", yscale="log")
    rounds = np.minimum((np.arange(len(distances)) + 1) * every, len(history))
    right.plot(rounds * batch, distances, "o-", markersize=3, color=COLOURS["first"])
    right.set(xlabel="trajectories", ylabel="Σ |p(x) − R(x)/Z|", yscale="log")
    return figure


EXPERIMENT = Experiment(
    "hypergrid", "a generative flow network on a grid: trained by balance, judged by Jarzynski and Crooks", Hypergrid, run
)
