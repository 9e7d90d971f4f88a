"""The audit in words: what is wrong, how much it costs, where, and what to change."""

from collections.abc import Callable
from typing import Any

import numpy as np

from thermojax.estimators import Estimate


def diagnose(found: Any, dim: int, tolerance: float, log_snr: Callable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Faults and remarks of an `Audit`, in sentences.

    A loss is a fault if it is above `tolerance`, in nats per dimension, and above four of its own standard errors. `log_snr` gives the log
    signal-to-noise ratios at times.
    """
    counts = lambda estimate: float(estimate.value) > max(tolerance * dim, 4 * float(estimate.stderr))
    faults = _of_the_data(found) + _of_the_score(found, dim, counts, log_snr)
    terminal = found.profile.terminal
    if counts(terminal):
        faults.append(
            f"The prior costs {_shown(terminal, dim)} nats per dimension: it starts at t = {float(found.ts[1]):.3g}, where the data "
            f"still show (log signal-to-noise ratio {float(log_snr(found.ts)[1]):.1f}). Run the noising further, or start generation from "
            "a Gaussian with the mean and the variance of the noised data."
        )
    memorised = found.memorised
    if memorised is not None and counts(memorised.total):
        faults.append(
            f"The model has memorised {_shown(memorised.total, dim)} nats per dimension: so much less do its training data cost than "
            f"others, {_half(found.profile.log_snr, memorised.rates * found.profile.widths)}. Stop training earlier, regularise, or train "
            "on more data."
        )
    remarks = _of_the_sampler(found, dim, tolerance, log_snr) + _of_the_likelihoods(found, dim, tolerance)
    if memorised is not None and not counts(memorised.total):
        remarks.append(f"Nothing is seen to be memorised: {_shown(memorised.total, dim)} nats per dimension.")
    return tuple(faults), tuple(remarks)


def in_words(found: Any) -> str:
    """The text of an `Audit`: verdict, numbers, remarks."""
    numbers = {
        "bound on the negative log-likelihood": found.profile.bound,
        "  conditional path KL": found.profile.path_kl,
        "  mismatch of the prior": found.profile.terminal,
        "  decoding": found.profile.decoding,
        "certain error of the score, at least": found.profile.recoverable,
        "error of the score, D": found.limits.score_error if found.limits.score_error is not None else found.limits.path_kl,
        "negative log-likelihood, SDE": found.sampler.nll,
        "negative log-likelihood, flow": found.flow,
        "averaged likelihood L": found.limits.likelihood,
        "entropy-rate bound B": found.limits.bound,
        "memorised": None if found.memorised is None else found.memorised.total,
    }
    table = [f"{name:38s} {float(n.value):12.4f} ± {float(n.stderr):.4f}" for name, n in numbers.items() if n is not None]
    verdict = found.faults or ("Nothing is wrong.",)
    return "\n".join([*verdict, "", "nats per configuration", *table, "", *found.remarks])


def band(places: Any, losses: Any) -> tuple[float, float]:
    """The narrowest interval of `places` that holds half of the losses, where they are positive."""
    order = np.argsort(np.asarray(places))
    places, losses = np.asarray(places, float)[order], np.maximum(np.asarray(losses, float)[order], 0.0)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    starts = np.flatnonzero(sums[:-1] <= 0.5 * sums[-1])
    stops = np.minimum(np.searchsorted(sums, sums[starts] + 0.5 * sums[-1] * (1 - 1e-9)), len(places)) - 1
    best = int(np.argmin(places[np.maximum(stops, starts)] - places[starts]))
    return float(places[starts[best]]), float(places[max(stops[best], starts[best])])


def _of_the_data(found):
    weak = [name for name in ("bound", "path_kl", "decoding") if not bool(getattr(found.profile, name).trustworthy)]
    if not weak:
        return []
    return [
        f"There are too few data, or single ones decide, or values are not finite: do not believe {' and '.join(f'`{n}`' for n in weak)}."
    ]


def _of_the_score(found, dim, counts, log_snr):
    profile, known = found.profile, found.limits.score_error is not None
    lost = found.limits.score_error if known else profile.recoverable
    if not counts(lost):
        return []
    where, rates = (found.limits, found.limits.score_error_rate.values) if known else (profile, profile.recoverable_rates)
    amount, place = "" if known else "at least ", _half(log_snr(where.ts), rates * where.widths)
    faults = [
        f"The score loses {amount}{_shown(lost, dim)} nats per dimension of path KL, {place}. Train longer, with times drawn more "
        "often there (`ScoreMatching.focus`)."
    ]
    factors, errors = np.asarray(profile.factors, float), np.maximum(np.asarray(profile.factor_errors, float), 1e-12)
    common, error = np.sum(factors / errors**2) / np.sum(errors**-2), np.sum(errors**-2) ** -0.5
    if abs(common - 1) > max(4 * error, 0.01):
        even = np.mean(np.abs(factors - common) < 4 * errors) > 0.9
        cause = " It does so at all noise levels alike: look for a wrong unit, parameterisation or schedule." if even else ""
        faults.append(f"Multiplied by {common:.3g} the score would cost less.{cause}")
    return faults


def _of_the_sampler(found, dim, tolerance, log_snr):
    costs = [(terms.steps.shape[0], float(np.sum(terms.gaps)) / dim) for terms in found.budgets]
    enough = [steps for steps, cost in costs if abs(cost) < tolerance]
    text = f"Time steps cost, in nats per dimension: {', '.join(f'{cost:.2g} with {steps} steps' for steps, cost in costs)}. "
    text += f"{enough[0]} are enough." if enough else "All of these are too few."
    first = found.budgets[0]
    if costs[0][1] > tolerance:
        text += f" With {costs[0][0]}, {_half(log_snr(first.ts - 0.5 * first.widths), first.gaps)}: place steps there."
    return [text]


def _of_the_likelihoods(found, dim, tolerance):
    sampler = found.sampler.nll
    gap, error = float(found.flow.value - sampler.value) / dim, float(np.hypot(found.flow.stderr, sampler.stderr)) / dim
    text = f"In nats per dimension the negative log-likelihood is {_shown(sampler, dim)} for the SDE"
    text += "" if bool(sampler.trustworthy) else " (an upper bound: too few particles carry it)"
    text += f" and {_shown(found.flow, dim)} for the probability flow"
    if abs(gap) < max(tolerance, 4 * error):
        return [text + ": they agree."]
    better = "SDE" if gap > 0 else "flow"
    return [f"{text}: sample with the {better}."]


def _half(places, losses):
    low, high = band(places, losses)
    return f"half of it between log signal-to-noise ratios {low:.1f} and {high:.1f}"


def _shown(estimate: Estimate, dim: int) -> str:
    return f"{float(estimate.value) / dim:.3g} ± {float(estimate.stderr) / dim:.1g}"
