"""Train a score network on real handwritten digits, and audit it as a nonequilibrium process.

The data are the 1797 images of 8 by 8 pixels and 17 grey levels that scikit-learn ships. Uniform noise of one grey level makes them
continuous; densities are reported in bits per dimension of that continuous variable, so that a model of the grey levels themselves
can only be better.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from pydantic import Field

from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import LogSnrLinear
from thermojax.estimators import mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.generative import (
    Ancestral,
    audit,
    Cells,
    flow_log_prob,
    NoiseProfile,
    sample_sde,
    ScoreMatching,
    ScoreNetwork,
)
from thermojax.optimize import fit
from thermojax.plots import band, COLOURS, images, panels

LEVELS, SHAPE, DIM = 17, (8, 8), 64


def noising() -> LogSnrLinear:
    """The forward process: made when asked for, since it owns arrays."""
    # Grey levels become real by 13 nats below the noise; by -9 nothing of the data is left (terminal mismatch 1e-4 bits per dimension).
    return LogSnrLinear(13.0, -9.0)


class Digits(Parameters):
    """Parameters of `digits`."""

    iterations: int = Field(1500, ge=1, description="gradient steps, at most")
    batch: int = Field(128, ge=2, description="images in a gradient step")
    learning_rate: float = Field(1e-2, gt=0, description="largest step of the optimiser (Muon), after a warm-up and before a cosine")
    weight_decay: float = Field(0.3, ge=0, description="weight decay")
    width: int = Field(64, ge=4, description="channels of the network")
    depth: int = Field(3, ge=1, description="blocks of the network")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the images held out, always the same")
    patience: int = Field(3, ge=1, description="rounds of 100 steps without a better validation before training stops")
    noise_levels: int = Field(100, ge=2, description="noise levels of the audit")
    sampler_steps: int = Field(256, ge=16, description="steps of the sampler, and of its own bound")
    exact_images: int = Field(32, ge=2, description="held-out images whose likelihood takes the exact divergence and importance weights")
    samples: int = Field(48, ge=1, description="images to generate")
    mixture: int = Field(20, ge=1, description="largest number of components of the Gaussian mixtures compared")


@dataclass(frozen=True)
class Images:
    """The images, standardised: shifted by their mean and divided by one scale, so that the noise is of unit size."""

    train: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray
    mean: np.ndarray
    scale: float

    def standardise(self, raw: np.ndarray) -> np.ndarray:
        """Grey levels to standardised pixels."""
        return (raw - self.mean) / self.scale

    def dequantised(self, raw: np.ndarray, seed: int) -> np.ndarray:
        """Standardised pixels with uniform noise of one grey level."""
        return self.standardise(raw + np.random.default_rng(seed).random(raw.shape))


def load(held_out: float) -> Images:
    """The digits of scikit-learn in a fixed split; a tenth of the training images is for validation."""
    from sklearn.datasets import load_digits

    raw = np.asarray(load_digits(return_X_y=True)[0])
    raw = raw[np.random.default_rng(0).permutation(len(raw))]
    kept = len(raw) - round(held_out * len(raw))
    validation = max(2, kept // 10)
    train, middle, rest = raw[: kept - validation], raw[kept - validation : kept], raw[kept:]
    # The uniform noise adds half a grey level to the mean and a twelfth to each variance.
    scale = float(np.sqrt(np.mean(np.var(train, axis=0)) + 1 / 12))
    return Images(train, middle, rest, train.mean(axis=0) + 0.5, scale)


def untrained(data: Images, width: int, depth: int, key: jax.Array) -> ScoreNetwork:
    """The network before training: the score of the Gaussian fit."""
    covariance = (np.cov(data.train.T, bias=True) + np.eye(DIM) / 12) / data.scale**2
    counts = np.stack([(data.train == level).sum(axis=0) for level in range(LEVELS)], axis=1) + 0.1
    cells = Cells(data.standardise(np.zeros(DIM)), 1 / data.scale, np.log(counts / counts.sum(axis=1, keepdims=True)))
    return ScoreNetwork(noising(), Gaussian(np.zeros(DIM), covariance), SHAPE, cells=cells, width=width, depth=depth, dropout=0.0, key=key)


def train(data: Images, parameters: Digits, key: jax.Array, progress: Progress):
    """Fit the network, and stop where the validation images say."""
    p = parameters
    network_key, fit_key, judge_key = jr.split(key, 3)
    # Most draws go where images are neither noise nor sharp: there the Gaussian fit is wrong, and there training has most to learn.
    snr = np.linspace(13.0, -9.0, 44)
    loss = ScoreMatching(
        noising(), data.standardise(data.train), 1 / data.scale, focus=0.1 + np.cosh((snr - 2) / 2.5) ** -2.0, batch=p.batch
    )
    judge = ScoreMatching(noising(), data.standardise(data.validation), 1 / data.scale, batch=2048)
    warm = min(100, max(1, p.iterations // 10))
    rate = optax.warmup_cosine_decay_schedule(0.0, p.learning_rate, warm, max(p.iterations, warm + 1), 0.02 * p.learning_rate)
    muon = optax.contrib.muon(rate, weight_decay=p.weight_decay, adam_b2=0.99, adam_weight_decay=0.0)
    with progress.stage("training the score", p.iterations) as done:
        return fit(
            loss,
            untrained(data, p.width, p.depth, network_key),
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), muon),
            steps=p.iterations,
            where=lambda score: (score.network, score.trust),
            average=0.995,
            validate=lambda score: judge(score, judge_key),
            every=min(100, p.iterations),
            patience=p.patience,
            checkpoint=progress.checkpoint("training the score"),
            progress=lambda k, value: done(k),
            key=fit_key,
        )


def run(parameters: Digits, key: jax.Array, progress: Progress) -> Results:
    """Train, audit on training and held-out images, compare with Gaussian and mixture, and draw."""
    p = parameters
    keys = jr.split(key, 8)
    data = load(p.held_out)
    seen, unseen = data.dequantised(data.train, 1), data.dequantised(data.held_out, 2)
    with progress.stage("fitting Gaussian mixtures"):
        baselines = _baselines(data.dequantised(data.train, 3), data.dequantised(data.validation, 4), unseen, p.mixture)
    fitted = train(data, p, keys[0], progress)
    score, prior = fitted.model, standard_normal(DIM)

    budgets = (p.sampler_steps // 16, p.sampler_steps // 4, p.sampler_steps)
    with progress.stage("auditing the score"):
        found = audit(
            score,
            noising(),
            unseen,
            trained_on=seen,
            levels=p.noise_levels,
            budgets=budgets,
            likelihoods=p.exact_images,
            particles=8,
            key=keys[1],
        )
    held, discrete = found.profile, found.budgets[-1].bound
    assert found.memorised is not None
    memorised, trained = found.memorised.total, found.memorised.seen
    shrunk = noising().alpha(jnp.zeros(()))
    shift = DIM * float(noising().log_alpha(jnp.zeros(())))
    with progress.stage("likelihood by the probability flow"):
        flow = flow_log_prob(noising(), score, shrunk * unseen, prior=prior, divergence="hutchinson", key=keys[3])
    few = unseen[: p.exact_images]
    with progress.stage("the same with the exact divergence"):
        exact = jax.block_until_ready(flow_log_prob(noising(), score, shrunk * few, prior=prior))
    grid = jnp.linspace(0.0, 1.0, p.sampler_steps + 1)
    with progress.stage("generating images"):
        drawn = sample_sde(noising(), score, p.samples, grid, prior=prior, stepper=Ancestral(), key=keys[4]) / shrunk

    results = Results()
    add = lambda name, estimate, meaning: results.add(
        name, estimate, meaning + ", bits per dimension", scale=1 / (DIM * np.log(2)), shift=float(np.log2(data.scale))
    )
    part = lambda name, estimate, meaning: results.add(name, estimate, meaning + ", bits per dimension", scale=1 / (DIM * np.log(2)))
    add("elbo_held_out", held.bound, "bound on the negative log-likelihood of held-out images (path measures, continuous time)")
    add("elbo_train", trained.bound, "the same for training images")
    add("flow_held_out", mean(-flow - shift), "negative log-likelihood of held-out images by the probability flow (Hutchinson)")
    add("flow_held_out_exact", mean(-exact - shift), f"the same with the exact divergence, for the first {p.exact_images} held-out images")
    part("hutchinson_error", mean(exact - flow[: p.exact_images]), "Hutchinson minus exact negative log-likelihood, for those images")
    add("sampler_bound_held_out", discrete, f"bound on the likelihood of the sampler with {p.sampler_steps} steps, kernel by kernel")
    part("terminal_held_out", held.terminal, "terminal mismatch: the prior is not the noised image")
    part("path_kl_held_out", held.path_kl, "conditional path KL, summed over all noise levels")
    add("decoding_held_out", held.decoding, "cost of undoing the noise of the earliest time")
    add(
        "sampler_held_out",
        found.sampler.nll,
        f"negative log-likelihood of that sampler by importance weights, first {p.exact_images} images",
    )
    for terms in found.budgets[:-1]:
        add(f"sampler_bound_{terms.steps.shape[0]}_steps", terms.bound, f"bound on the likelihood with {terms.steps.shape[0]} steps")
    part("certain_error", held.recoverable, "certain error of the score: the least that a better one would save")
    add("averaged_likelihood", found.limits.likelihood, "negative log-likelihood averaged over the noising, L of the entropy-rate limits")
    add("entropy_of_the_data", found.limits.entropy, "entropy of the images by the learned entropy rates; no bound")
    add("ceiling_of_the_sde", found.limits.ceiling, "upper limit on the negative log-likelihood of the SDE by the entropy rates")
    part("memorised", memorised, "path KL of held-out minus training images: what the model memorised")
    for name, (values, words) in baselines.items():
        add(name, mean(jnp.asarray(values)), words)
    results.estimates["steps_trained"] = Quantity(float(fitted.steps), "gradient steps of the model kept, by validation")

    results.figures["samples"] = Picture(
        images(_rows(np.asarray(drawn), unseen, data), vmax=LEVELS - 1), "Generated images, and held-out images that training never saw."
    )
    results.figures["dissipation"] = Picture(
        _draw_dissipation(held, trained),
        "Conditional path KL by noise level, in bits per dimension and per unit of log signal-to-noise ratio; its area is the bulk of the "
        "bound. Right, held-out minus training images: where it rises above zero the model has memorised.",
    )
    results.figures["steps"] = Picture(
        _draw_steps(found.budgets),
        "What the sampler's time step costs by noise level: the divergence of each denoising kernel less the path KL of the same "
        "interval in continuous time, for three step budgets.",
    )
    results.figures["entropy_rates"] = Picture(
        _draw_rates(found.limits),
        "Entropy rates along the noising of held-out images, with the learned score: the system's, the exchange with the medium, and their "
        "difference, the intrinsic rate (entropy production).",
    )
    bits = {name: q.value for name, q in results.estimates.items()}
    results.conclusions += [
        f"Held-out images cost {bits['elbo_held_out']:.3f} bits per dimension by the bound and {bits['flow_held_out']:.3f} by the "
        f"probability flow; the best Gaussian mixture needs {bits['mixture']:.3f}, the full Gaussian {bits['gaussian']:.3f}.",
        "The bound belongs to the reversed SDE and charges it for the mismatch of whole paths; the likelihood belongs to the probability "
        "flow. The two models share a score, and for an exact one both numbers are the entropy of the data. Here the bound is "
        f"{bits['elbo_held_out'] - bits['flow_held_out']:+.3f} from the flow. "
        f"With {p.sampler_steps} steps the sampler itself is bounded by {bits['sampler_bound_held_out']:.3f}: the rest is its time step.",
        f"Training images cost {bits['elbo_train']:.3f}: {bits['memorised']:.3f} bits per dimension of path KL are memorised. "
        + fitted.message,
        *found.faults,
        *found.remarks,
    ]
    return results


def _baselines(train, validation, held_out, largest):
    from sklearn.mixture import GaussianMixture

    # Components and regularisation are chosen on the validation images, like the network's number of steps.
    candidates = [(1, 0.0)] + [(k, ridge) for k in range(5, largest + 1, 5) for ridge in (3e-3, 1e-2)]
    fitted = lambda choice, images: GaussianMixture(choice[0], reg_covar=choice[1], random_state=0).fit(images)
    best = max(candidates, key=lambda choice: fitted(choice, train).score(validation))
    # The baselines then learn from the validation images too, which the network never does.
    both = np.concatenate([train, validation])
    score = lambda choice: -fitted(choice, both).score_samples(held_out)
    return {
        "gaussian": (score((1, 0.0)), "negative log-likelihood of held-out images, full Gaussian"),
        "mixture": (score(best), f"the same, best Gaussian mixture ({best[0]} components, ridge {best[1]:g})"),
    }


def _rows(drawn, held_out, data):
    grey = lambda xs: np.clip(xs * data.scale + data.mean - 0.5, 0, LEVELS - 1).reshape(-1, *SHAPE)
    generated, real = grey(drawn), grey(held_out[: min(len(drawn), 16)])
    rows = [("generated" if i == 0 else "", generated[i : i + 16]) for i in range(0, len(generated), 16)]
    return [*rows, ("held out", real)]


def _per_level(found: NoiseProfile):
    """Log signal-to-noise ratio, path KL per unit of it in bits per dimension, and the error of that."""
    unit = DIM * np.log(2) * float(noising().start - noising().stop)
    return np.asarray(noising().log_snr(found.ts)), np.asarray(found.rates) / unit, np.asarray(found.rate_errors) / unit


def _draw_dissipation(held, trained):
    figure, (left, right) = panels(2)
    snr, rate, error = _per_level(held)
    _, seen, seen_error = _per_level(trained)
    band(left, snr, rate, error, label="held out", colour=COLOURS["first"])
    band(left, snr, seen, seen_error, label="training", colour=COLOURS["second"])
    left.set(xlabel="log signal-to-noise ratio", ylabel="path KL (bits / dim / unit)", ylim=(0, None))
    left.legend(frameon=False)
    # The same noise for both would make this less noisy; the images differ, so it cannot be paired.
    band(right, snr, rate - seen, np.hypot(error, seen_error), label="held out − training", colour=COLOURS["exact"])
    right.axhline(0, color=COLOURS["faint"], linewidth=0.8)
    right.set(xlabel="log signal-to-noise ratio", ylabel="memorised (bits / dim / unit)")
    for ax in (left, right):
        ax.invert_xaxis()
    return figure


def _draw_steps(budgets):
    figure, (ax,) = panels()
    for terms, colour in zip(budgets, ("second", "first", "exact"), strict=True):
        steps = terms.steps.shape[0]
        unit = DIM * np.log(2) * float(noising().start - noising().stop) / steps
        snr = np.asarray(noising().log_snr(terms.ts - 0.5 * terms.widths))
        cost = np.asarray(terms.gaps) / unit
        band(ax, snr, cost, np.asarray(terms.gap_errors) / unit, label=f"{steps} steps", colour=COLOURS[colour])
    ax.invert_xaxis()
    ax.set(xlabel="log signal-to-noise ratio", ylabel="discretisation (bits / dim / unit)", yscale="log", ylim=(1e-4, None))
    ax.legend(frameon=False)
    return figure


def _draw_rates(limits):
    figure, (ax,) = panels()
    snr = np.asarray(noising().log_snr(limits.ts))
    unit = DIM * float(noising().start - noising().stop)
    # Images near equilibrium exchange next to nothing: system and intrinsic rate all but coincide, so one is dashed.
    for name, colour, style in (("system", "first", "-"), ("exchange", "second", "-"), ("intrinsic", "exact", "--")):
        ax.plot(snr, np.asarray(getattr(limits, name).values) / unit, style, color=COLOURS[colour], label=name)
    ax.axhline(0, color=COLOURS["faint"], linewidth=0.8)
    ax.invert_xaxis()
    ax.set(xlabel="log signal-to-noise ratio", ylabel="entropy rate (nats / dim / unit)")
    ax.legend(frameon=False)
    return figure


EXPERIMENT = Experiment("digits", "train a score network on real digits and audit it as a nonequilibrium process", Digits, run)
