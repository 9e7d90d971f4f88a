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
    if counts(found.mismatch):
        amount = "" if found.limits.score_error is not None else "at least "
        faults.append(
            f"The prior costs {amount}{_shown(found.mismatch, dim)} nats per dimension: it starts at t = {float(found.ts[1]):.3g}, where "
            f"the log signal-to-noise ratio is {float(log_snr(found.ts)[1]):.1f}. Run the noising further, or start generation from a "
            "Gaussian with the mean and the variance of the noised data."
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
        clear = float(memorised.total.value) + 2 * float(memorised.total.stderr) < tolerance * dim
        verdict = "Nothing is memorised" if clear else "Whether something is memorised cannot be told from these data"
        remarks.append(f"{verdict}: {_shown(memorised.total, dim)} nats per dimension.")
    return tuple(faults), tuple(remarks)


def in_words(found: Any) -> str:
    """The text of an `Audit`: verdict, numbers, remarks."""
    numbers = {
        "bound on the negative log-likelihood": found.profile.bound,
        "  conditional path KL": found.profile.path_kl,
        "  terminal KL, of noised datum and prior": found.profile.terminal,
        "  decoding": found.profile.decoding,
        "mismatch of the prior, at least": found.mismatch,
        "certain error of the score, at least": _certain_error(found.profile)[0],
        "error of the score, D": found.limits.score_error if found.limits.score_error is not None else found.limits.path_kl,
        "negative log-likelihood, SDE": found.sampler.nll,
        "negative log-likelihood, flow": found.flow,
        "averaged likelihood L": found.limits.likelihood,
        "entropy-rate bound B": found.limits.bound,
        "memorised": None if found.memorised is None else found.memorised.total,
    }
    table = [f"{name:40s} {float(n.value):12.4f} ± {float(n.stderr):.4f}" for name, n in numbers.items() if n is not None]
    verdict = found.faults or ("Nothing is wrong that these data can show.",)
    return "\n".join([*verdict, "", "nats per configuration", *table, "", *found.remarks])


def band(places: Any, losses: Any) -> tuple[float, float]:
    """The narrowest interval of `places` that holds half of the losses, where they are positive."""
    order = np.argsort(np.asarray(places))
    places, losses = np.asarray(places, float)[order], np.maximum(np.asarray(losses, float)[order], 0.0)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    starts = np.flatnonzero(sums[:-1] <= 0.5 * sums[-1])
    stops = np.minimum(np.searchsorted(sums, sums[starts] + 0.5 * sums[-1] * (1 - 1e-9)), len(places)) - 1
    stops = np.maximum(stops, starts)
    widths = places[stops] - places[starts]
    # Of intervals as narrow, the one that holds most.
    best = int(np.argmax(np.where(widths <= widths.min() * (1 + 1e-6), sums[stops + 1] - sums[starts], -np.inf)))
    return float(places[starts[best]]), float(places[stops[best]])


def _certain_error(profile):
    """The recoverable path KL of the noisy levels, down to the one with which it is seen best, and those levels."""
    # Every level may be left out of a lower bound; at the clean ones the spread of the data's own part hides what is recoverable.
    gains = np.cumsum((np.asarray(profile.recoverable_rates, float) * np.asarray(profile.widths, float))[::-1])
    errors = np.sqrt(np.cumsum((np.asarray(profile.recoverable_errors, float) * np.asarray(profile.widths, float))[::-1] ** 2))
    best = int(np.argmax(gains - 4 * errors))
    return profile.recoverable._replace(value=gains[best], stderr=errors[best]), slice(len(gains) - 1 - best, None)


def _of_the_data(found):
    weak = [name for name in ("bound", "path_kl", "decoding") if not bool(getattr(found.profile, name).trustworthy)]
    if not weak:
        return []
    return [
        f"There are too few data, or single ones decide, or values are not finite: do not believe {' and '.join(f'`{n}`' for n in weak)}."
    ]


def _of_the_score(found, dim, counts, log_snr):
    profile, limits = found.profile, found.limits
    if limits.score_error is not None:
        lost, amount = limits.score_error, ""
        ts, losses = limits.ts, limits.score_error_rate.values * limits.widths
    else:
        (lost, used), amount = _certain_error(profile), "at least "
        ts, losses = profile.ts[used], (profile.recoverable_rates * profile.widths)[used]
    if not counts(lost):
        return []
    place = _half(log_snr(ts), losses)
    faults = [
        f"The score loses {amount}{_shown(lost, dim)} nats per dimension of path KL, {place}. Train longer, with times drawn more "
        "often there (`ScoreMatching.focus`)."
    ]
    factors, errors = np.asarray(profile.factors, float), np.maximum(np.asarray(profile.factor_errors, float), 1e-12)
    common, error = np.sum(factors / errors**2) / np.sum(errors**-2), np.sum(errors**-2) ** -0.5
    # One percent of a score costs a ten-thousandth of its square.
    if abs(common - 1) > max(4 * error, 0.02):
        even = np.mean(np.abs(factors - common) < 4 * errors) > 0.9
        cause = " It does so at all noise levels alike: look for a wrong unit, parameterisation or schedule." if even else ""
        faults.append(f"Multiplied by {common:.3g} the score would cost less.{cause}")
    known = errors < 0.05
    low, high = (float(end(factors[known])) if known.any() else 1.0 for end in (np.min, np.max))
    if high - low > 0.4:
        faults.append(f"The best factor runs from {low:.2g} to {high:.2g} over the noise levels: look for a wrong schedule or clock.")
    return faults


def _of_the_sampler(found, dim, tolerance, log_snr):
    costs = [(terms.steps.shape[0], *_gap(terms, dim)) for terms in found.budgets]
    listed = ", ".join(f"{_plain(cost)} ± {_plain(error, 1)} with {steps} steps" for steps, cost, error in costs)
    text = f"Time steps cost, in nats per dimension: {listed}."
    enough = [steps for steps, cost, error in costs if cost + 2 * error < tolerance]
    steps, cost, error = costs[-1]
    if enough:
        text += f" {enough[0]} are enough."
    elif cost > max(tolerance, 4 * error):
        text += " All of these are too few."
    first = found.budgets[0]
    if costs[0][1] > max(tolerance, 4 * costs[0][2]):
        text += f" With {costs[0][0]}, {_half(log_snr(first.ts - 0.5 * first.widths), first.gaps)}: place steps there."
    return [text]


def _of_the_likelihoods(found, dim, tolerance):
    sampler = found.sampler.nll
    text = f"In nats per dimension the negative log-likelihood is {_shown(sampler, dim)} for the SDE with {len(found.budgets[-1].ts)} steps"
    text += "" if bool(sampler.trustworthy) else " (an upper bound: too few particles carry it)"
    text += f" and {_shown(found.flow, dim)} for the probability flow"
    gap, error = float(found.excess.value) / dim, float(found.excess.stderr) / dim
    difference = f"of the same data the flow's is {_plain(abs(gap))} ± {_plain(error, 1)} {'higher' if gap > 0 else 'lower'}"
    if gap > max(tolerance, 4 * error):
        return [f"{text}; {difference}: sample with the SDE."]
    if gap < -max(tolerance, 4 * error):
        known = bool(sampler.trustworthy)
        return [f"{text}; {difference}: {'sample with the flow' if known else 'more steps or particles may bring the SDE down'}."]
    return [f"{text}; {difference}: they {'agree' if 2 * error < tolerance else 'cannot be told apart'}."]


def _gap(terms, dim):
    """What the steps of a budget cost, and its standard error."""
    return float(np.sum(terms.gaps)) / dim, float(np.sqrt(np.sum(np.asarray(terms.gap_errors, float) ** 2))) / dim


def _half(places, losses):
    low, high = (f"{end:.1f}" for end in band(places, losses))
    if low == high:
        return f"half of it at the log signal-to-noise ratio {low}"
    return f"half of it between log signal-to-noise ratios {low} and {high}"


def _shown(estimate: Estimate, dim: int) -> str:
    return f"{_plain(float(estimate.value) / dim, 3)} ± {_plain(float(estimate.stderr) / dim, 1)}"


def _plain(value: float, digits: int = 2) -> str:
    """`value` to so many digits, without an exponent where it would read badly."""
    return f"{float(f'{value:.{digits}g}'):g}"
