"""Learned scores and their price: path KL, likelihoods and bounds, hysteresis, the kernels' bound, and the work of generation."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.estimators import Estimate, mean
from thermojax.experiments._experiment import Picture, Progress, Quantity, Results
from thermojax.experiments._fluctuating_diffusion._setting import double_precision, FluctuatingDiffusion, twins
from thermojax.generative import (
    entropy_limits,
    EntropyLimits,
    flow_log_prob,
    generation_work,
    GenerationWork,
    importance_nll,
    ImportanceNll,
    kernel_terms,
    KernelTerms,
    line_limits,
    LineLimits,
    MixtureScore,
    path_divergence,
    PathDivergence,
)
from thermojax.plots import COLOURS, histogram, panels

# Where paths and kernels end, which need some noise there; their steps.
START, STEPS = 0.01, 200
# Particles behind each datum of the sampler's likelihood, and how many data.
PARTICLES, DATA = 32, 1000


class Scaled(eqx.Module):
    """The score of a mixture, wrong by a factor."""

    score: MixtureScore
    """The score of some data."""
    factor: Scalar
    """One if it is right."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The score of one configuration at time `t`."""
        return self.factor * self.score(t, x)


class Surprise(eqx.Module):
    """The reduced potential of noised data, minus the logarithm of their density."""

    noising: OrnsteinUhlenbeck
    """The process that noises the data."""
    data: GaussianMixture
    """Their density."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Scalar:
        """The potential of one configuration at time `t`."""
        return -self.noising.marginal(self.data, t).log_prob(x)


class Measured(NamedTuple):
    """What was measured of one model."""

    label: str
    """What the model is called."""
    line: LineLimits
    """Its limits by quadrature."""
    cut: LineLimits
    """The same down to the time at which paths end."""
    limits: EntropyLimits
    """Its limits by Monte Carlo."""
    flow: Estimate
    """Negative log-likelihood of the ODE."""
    sampler: ImportanceNll
    """That of the SDE, in the steps that it takes."""
    divergence: PathDivergence
    """Its distance from the noising."""
    terms: KernelTerms
    """Its bound, step by step."""
    work: GenerationWork
    """The work of its generation."""


def models(p: FluctuatingDiffusion) -> dict:
    """Scores of the data and the prior that each starts from, all of one structure, so that nothing is compiled twice."""
    noising, end = OrnsteinUhlenbeck(), jnp.asarray(p.end)
    data, broad = twins(p.mean, p.variance), p.variance + p.mean**2
    scaled = lambda factor, density: Scaled(MixtureScore(noising, density), jnp.asarray(factor))
    normal = Gaussian([0.0], 1.0)
    late = Gaussian([0.0], noising.alpha(end) ** 2 * broad + noising.variance(end))
    # The Gaussian of the moments of the data, as a mixture of two that coincide.
    return {
        "fit": ("Gaussian fit", scaled(1.0, twins(0.0, broad)), late),
        "half": ("0.5 s", scaled(0.5, data), normal),
        "most": ("0.9 s", scaled(0.9, data), normal),
        "true": ("s", scaled(1.0, data), normal),
    }


def tell_scores(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Every model by quadrature and by Monte Carlo."""
    exact = {}
    with progress.stage("limits of learned scores, by quadrature", 4) as done, double_precision():
        for k, (name, (_, score, prior)) in enumerate(models(p).items()):
            exact[name] = [_line(p, score, prior, start) for start in (0.0, START)]
            done(k + 1)
    found = {}
    with progress.stage("limits of learned scores, by Monte Carlo", 4) as done:
        for k, ((name, model), model_key) in enumerate(zip(models(p).items(), jr.split(key, 4), strict=True)):
            found[name] = jax.block_until_ready(_measure(p, model, exact[name], model_key))
            done(k + 1)
    for name, measured in found.items():
        _tell_model(p, results, name, measured)

    results.figures["limits"] = Picture(
        _draw_limits(p, found),
        "Left: what is known about each model, by quadrature in continuous time (symbols) and by Monte Carlo (error bars; for the SDE of "
        f"the chain of {STEPS} steps). The negative log-likelihood of the SDE lies in the band between the entropy of the data and its "
        "upper bound; B, L and the ODE need not. "
        "Right: path KL per unit time, by quadrature (lines) and Monte Carlo (points).",
    )
    results.figures["hysteresis"] = Picture(
        _draw_hysteresis(found),
        "Log-ratio of noising and generation on noised and on generated paths. The distributions cross at zero, and the distance of their "
        "means is the area of the loop: even the exact score leaves the discretisation error of its steps.",
    )
    results.figures["kernels"] = Picture(
        _draw_kernels(found),
        f"Left: conditional path KL per unit time, by the kernels of {STEPS} steps (points) and in continuous time (lines). "
        "Right: what the kernels add, summed from the cleanest step on.",
    )
    results.figures["work"] = Picture(
        _draw_work(found),
        "Left and middle: work of generation; the free-energy difference is zero, and the mean (dashed) is the excess. "
        "Right: the mean work done until time t, as the generation runs from the right to the left.",
    )
    order = all(m.line.initial_entropy <= m.line.sampler_nll + 1e-6 and m.line.sampler_nll <= m.line.ceiling + 1e-6 for m in found.values())
    above = [m.label for m in found.values() if m.line.bound > max(m.line.sampler_nll, m.line.flow_nll) + 1e-6]
    results.conclusions.append(
        f"The negative log-likelihood of the SDE {'lies' if order else 'does not lie'} between the entropy of the data and its upper bound "
        "for every model; the bound B exceeds the likelihoods of both samplers for " + (", ".join(above) if above else "none") + "."
    )
    half, true = found["half"], found["true"]
    results.conclusions.append(
        f"With half the score the path KL is {float(half.line.path_kl):.6g} nats and the loop of noising and generation has the area "
        f"{float(half.divergence.hysteresis.value):.3g} ± {float(half.divergence.hysteresis.stderr):.1g}; with the exact score "
        f"{float(true.divergence.hysteresis.value):.3g} ± {float(true.divergence.hysteresis.stderr):.1g} is left by {STEPS} steps."
    )
    results.conclusions.append(
        f"The kernels add {float(jnp.sum(true.terms.gaps)):.3g} nats to the bound of the exact score in continuous time; the work of its "
        f"generation exceeds the free-energy difference by {float(true.work.excess.value):.3g} ± {float(true.work.excess.stderr):.1g}."
    )


def _line(p, score, prior, start):
    how = {"horizon": p.end, "points": 193, "times": 48, "rtol": 1e-7, "atol": 1e-7}
    limits = line_limits(score, OrnsteinUhlenbeck(), twins(p.mean, p.variance), prior=prior, start=start, **how)
    return jax.tree.map(np.asarray, limits)


def _measure(p, model, exact, key):
    (label, score, prior), (line, cut) = model, exact
    noising, data = OrnsteinUhlenbeck(), twins(p.mean, p.variance)
    ts = np.geomspace(START, p.end, STEPS + 1)
    keys = jr.split(key, 6)
    xs = data.sample(p.samples, key=keys[0])
    few = xs[:DATA]
    return Measured(
        label,
        line,
        cut,
        entropy_limits(score, noising, xs, prior=prior, truth=data, horizon=p.end, levels=50, key=keys[1]),
        mean(-flow_log_prob(noising, score, few, prior=prior, horizon=p.end)),
        importance_nll(score, noising, few, ts, particles=PARTICLES, prior=prior, key=keys[2]),
        path_divergence(score, noising, data, p.samples, ts, prior=prior, key=keys[3]),
        kernel_terms(score, noising, xs, ts, prior=prior, key=keys[4]),
        generation_work(score, noising, Surprise(noising, data), p.samples, ts, prior=prior, log_normaliser=0.0, key=keys[5]),
    )


def _tell_model(p, results, name, found):
    line, cut, limits, paths, work = found.line, found.cut, found.limits, found.divergence, found.work
    gaps, gap_error = jnp.sum(found.terms.gaps), jnp.sqrt(jnp.sum(found.terms.gap_errors**2))
    quadrature = "; exact: quadrature"
    told = {
        "path_kl": (limits.score_error, "error of the score D, a path KL" + quadrature, line.path_kl),
        "rate_bound": (limits.bound, "B, by the entropy rates: a lower bound of L, of nothing else" + quadrature, line.bound),
        "likelihood": (limits.likelihood, "L, the likelihood averaged over the noised data" + quadrature, line.likelihood),
        "ceiling": (limits.ceiling, "upper bound of the negative log-likelihood of the SDE" + quadrature, line.ceiling),
        "flow_nll": (found.flow, "negative log-likelihood of the ODE" + quadrature, line.flow_nll),
        "sampler_nll": (
            found.sampler.nll,
            f"negative log-likelihood of the SDE in {STEPS} steps, by importance weights; {line.sampler_nll:.6g} in continuous time",
            None,
        ),
        "kernel_bound": (found.terms.bound, f"bound by the kernels of {STEPS} steps, down to the data", None),
        "forward_kl": (
            paths.forward,
            f"KL of noising from generation as paths to t = {START:g}; exact: quadrature, and what the kernels add",
            cut.ceiling - cut.initial_entropy + gaps,
        ),
        "backward_kl": (paths.backward, "KL of generation from noising as paths", None),
        "hysteresis": (paths.hysteresis, "area of the loop of noising and generation", None),
        "forward_law": (paths.forward_law, "mean of the weight of generation on noised paths", 1.0),
        "backward_law": (paths.backward_law, "mean of the weight of noising on generated paths", 1.0),
        "excess_work": (work.excess, "work of generation above the free-energy difference", None),
        "free_energy": (work.delta_f, "free-energy difference by the work of generation", 0.0),
    }
    for what, (estimate, meaning, exact) in told.items():
        results.add(f"{name}_{what}", estimate, f"{found.label}: {meaning}", exact=None if exact is None else float(exact))
    results.estimates[f"{name}_gap"] = Quantity(
        float(gaps),
        f"{found.label}: what the kernels of {STEPS} steps add to the path KL in continuous time",
        stderr=float(gap_error),
        ess=float(p.samples),
        trustworthy=True,
    )


def _draw_limits(p, found):
    figure, (left, right) = panels(2, width=5.6, height=4.0)
    symbols = {
        "bound": ("B", "v", "faint"),
        "likelihood": ("L", "^", "faint"),
        "flow_nll": ("ODE", "s", "second"),
        "sampler_nll": ("SDE", "o", "first"),
    }
    for row, m in enumerate(found.values()):
        low, high = float(m.line.initial_entropy), float(m.line.ceiling)
        left.barh(row, high - low, left=low, height=0.6, color=COLOURS["first"], alpha=0.2, label=None if row else "guaranteed for the SDE")
        measured = {
            "bound": m.limits.bound,
            "likelihood": m.limits.likelihood,
            "flow_nll": m.flow,
            "sampler_nll": m.sampler.nll,
        }
        for k, (name, (label, marker, colour)) in enumerate(symbols.items()):
            place, estimate = row + 0.16 * (k - 1.5), measured[name]
            left.plot(getattr(m.line, name), place, marker, color=COLOURS[colour], markersize=5, label=None if row else label)
            left.errorbar(float(estimate.value), place, xerr=float(estimate.stderr), color=COLOURS["exact"], capsize=2, linewidth=1)
    left.axvline(float(found["true"].line.initial_entropy), color=COLOURS["exact"], linestyle="--", linewidth=1)
    left.set_yticks(range(len(found)), [m.label for m in found.values()])
    left.invert_yaxis()
    left.set_xlabel("nats; dashed: entropy of the data")
    left.legend(frameon=False, fontsize=8)
    for m, colour in zip(found.values(), ("faint", "second", "first"), strict=False):
        right.plot(m.line.ts, m.line.path_kl_rates, color=COLOURS[colour], linewidth=1.2, label=m.label)
        rate = m.limits.score_error_rate
        right.errorbar(m.limits.ts[::2], rate.values[::2], rate.errors[::2], fmt="o", markersize=3, color=COLOURS[colour])
    right.set(xlabel="time t of the noising", ylabel="path KL per unit time (nats)", yscale="log", ylim=(1e-4, 3))
    right.legend(frameon=False)
    return figure


def _draw_hysteresis(found):
    figure, axes = panels(3, width=4.2)
    for ax, name in zip(axes, ("half", "most", "true"), strict=True):
        paths = found[name].divergence
        ahead, back = np.asarray(paths.forward_samples), -np.asarray(paths.backward_samples)
        low, high = np.quantile(np.concatenate([ahead, back]), [0.003, 0.997])
        bins = np.linspace(low, high, 70)
        histogram(ax, ahead, label="noising", colour=COLOURS["first"], bins=bins)
        histogram(ax, back, label="generation", colour=COLOURS["second"], bins=bins)
        ax.axvline(0, color=COLOURS["exact"], linestyle="--", linewidth=1)
        ax.set(xlabel=f"log-ratio Σ (nats), score {found[name].label}", ylabel="probability density")
    axes[0].legend(frameon=False)
    return figure


def _draw_kernels(found):
    figure, (left, right) = panels(2, width=5.4, height=4.0)
    for name, colour in (("half", "second"), ("true", "first")):
        terms, label = found[name].terms, found[name].label
        widths = np.asarray(terms.widths)
        left.plot(terms.ts, np.asarray(terms.continuous) / widths, color=COLOURS[colour], label=f"{label}, continuous")
        left.plot(
            terms.ts[::6], (np.asarray(terms.steps) / widths)[::6], "o", markersize=3, color=COLOURS[colour], label=f"{label}, kernels"
        )
    left.set(xlabel="time t of the noising", ylabel="conditional path KL per unit time (nats)", xscale="log", yscale="log")
    for m, (colour, style) in zip(found.values(), (("faint", "-"), ("second", "-"), ("exact", "--"), ("first", "-")), strict=True):
        right.plot(m.terms.ts, np.cumsum(m.terms.gaps), style, color=COLOURS[colour], label=m.label)
    right.set(xlabel="time t of the noising", ylabel="kernels less continuous time (nats)", xscale="log")
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8)
    return figure


def _draw_work(found):
    figure, (left, middle, right) = panels(3, width=4.4)
    colours = {"half": "second", "most": "faint", "true": "first"}
    for ax, names in ((left, ("most", "true")), (middle, ("half",))):
        works = {name: np.asarray(found[name].work.samples) for name in names}
        low, high = np.quantile(np.concatenate(list(works.values())), [0.005, 0.99])
        for name, values in works.items():
            histogram(ax, values, label=found[name].label, colour=COLOURS[colours[name]], bins=np.linspace(low, high, 70))
            ax.axvline(float(found[name].work.excess.value), color=COLOURS[colours[name]], linestyle="--", linewidth=1)
        ax.set(xlabel="work of generation Y (units of k_BT)", ylabel="probability density")
        ax.legend(frameon=False)
    for name, colour in colours.items():
        work = found[name].work
        done = np.cumsum(np.asarray(work.rates * work.widths)) + float(work.jump.value)
        right.plot(work.ts, np.where(done > 0, done, np.nan), color=COLOURS[colour], label=found[name].label)
    right.set(xlabel="time t of the noising", ylabel="mean work done (units of k_BT)", xscale="log", yscale="log", ylim=(1e-3, 10.0))
    right.legend(frameon=False)
    return figure
