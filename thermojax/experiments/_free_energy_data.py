r"""Free energies of real simulations: benzene taken out of water, in the windows of a public GROMACS data set.

A leg of the transformation is a row of controls $0 = \lambda_0 < \dots < \lambda_K = 1$ with an equilibrium run at each of them: first the
charges are switched off (``coulomb``), then the van der Waals interactions (``vdw``). A frame $x$ of window $j$ comes with the
energies $u(x, \lambda_k)$ at all controls, so that $u(x, \lambda_k) - u(x, \lambda_j)$ is the work of switching at once from $\lambda_j$ to
$\lambda_k$: forward if $j < k$, reverse if $j > k$. Energies are in units of kT at 300 K, and $\beta = 1$; every number here is
$F(\lambda = 1) - F(\lambda = 0)$, so that a reverse estimate has its sign turned.

The published values are the reference values of the alchemlyb package, which takes every frame for an independent one. Here frames
are correlated with the statistical inefficiency g that is measured: the values stay, the error bars grow by the root of g.
"""

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from pydantic import Field

from thermojax.estimators import bar, bootstrap, Estimate, jarzynski, mbar, mean, statistical_inefficiency, thermodynamic_integration, trust
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.plots import COLOURS, panels

TEMPERATURE = 300.0
# Values and standard errors of each leg, in kT: the reference values of alchemlyb, which its tests hold to three digits.
PUBLISHED = {
    "coulomb": {"bar": (3.044385, 0.0164), "mbar": (3.041156, 0.0209), "ti": (3.089, 0.0216)},
    "vdw": {"bar": (-3.033, 0.0344), "mbar": (-3.007, 0.0452), "ti": (-3.056, 0.0486)},
}


class FreeEnergyData(Parameters):
    """Parameters of `free-energy-data`."""

    leg: Literal["both", "coulomb", "vdw"] = Field("both", description="charges (coulomb, 5 windows), van der Waals (vdw, 16), or both")
    discard: int = Field(0, ge=0, le=2000, description="frames left out at the start of each window; 10 ps each")
    resamples: int = Field(100, ge=10, description="bootstrap resamples")
    block: int = Field(10, ge=1, le=500, description="frames that the bootstrap keeps together")


@dataclass(frozen=True)
class Leg:
    """The windows of one leg, in kT."""

    lams: np.ndarray
    """Controls, shape ``(window,)``."""
    energies: np.ndarray
    """Energy of the frames of each window at every control, shape ``(window, frame, control)``."""
    slopes: np.ndarray
    """Derivative of the energy by the control, shape ``(window, frame)``."""
    times: np.ndarray
    """Times of the frames, in ps, the same in each window."""

    def work(self, start: int, stop: int) -> np.ndarray:
        """Work of switching at once from control number `start` to `stop`, for the frames of window `start`."""
        return self.energies[start, :, stop] - self.energies[start, :, start]


def load(leg: str, *, discard: int = 0) -> Leg:
    """Read one leg, ``"coulomb"`` or ``"vdw"``, without the first `discard` frames of each window.

    Raises:
        ValueError: if the packages that hold and parse the data are not installed.
    """
    try:
        from alchemlyb.parsing.gmx import extract_dHdl, extract_u_nk
        from alchemtest.gmx.access import load_benzene
    except ModuleNotFoundError as error:
        needs = "`free-energy-data` needs the packages alchemlyb and alchemtest: python -m pip install 'thermojax[data]'."
        raise ValueError(needs) from error
    files = load_benzene()["data"][{"coulomb": "Coulomb", "vdw": "VDW"}[leg]]
    with warnings.catch_warnings():
        # The parser calls pandas in a way that pandas will drop one day; its answer is right.
        warnings.simplefilter("ignore", DeprecationWarning)
        tables: list[Any] = [extract_u_nk(file, T=TEMPERATURE) for file in files]
        slopes: list[Any] = [extract_dHdl(file, T=TEMPERATURE) for file in files]
    return Leg(
        np.asarray(tables[0].columns, float),
        np.stack([table.to_numpy(float)[discard:] for table in tables]),
        np.stack([slope.to_numpy(float)[discard:, 0] for slope in slopes]),
        tables[0].index.get_level_values("time").to_numpy(float)[discard:],
    )


def switch(leg: Leg, start: int, stop: int) -> dict[str, Estimate]:
    """Free-energy difference of two windows, with correlation, by the estimators that need no other window."""
    forward, reverse = leg.work(start, stop), leg.work(stop, start)
    g = inefficiency(forward, reverse)
    return {
        "bar": bar(forward, reverse, beta=1.0, inefficiency=g),
        "forward": jarzynski(forward, beta=1.0, inefficiency=g),
        "reverse": _negative(jarzynski(reverse, beta=1.0, inefficiency=g)),
        "slopes": thermodynamic_integration(leg.lams[[start, stop]], leg.slopes[[start, stop]], inefficiency=g),
    }


def inefficiency(*series: np.ndarray) -> float:
    """The largest statistical inefficiency of some series.

    One number for both directions leaves the value of BAR as it is for independent frames; only the error bar grows.
    """
    return max(float(statistical_inefficiency(one)) for one in series)


def total(steps: list[Estimate]) -> Estimate:
    """The sum of estimates for neighbouring windows, with the errors of independent ones."""
    stack = lambda field: jnp.stack([getattr(step, field) for step in steps])
    return Estimate(
        jnp.sum(stack("value")),
        jnp.sqrt(jnp.sum(stack("stderr") ** 2)),
        jnp.min(stack("ess")),
        jnp.all(stack("trustworthy")),
        jnp.sum(stack("samples")),
        jnp.sum(stack("excluded")),
    )


def resampled(leg: Leg, *, resamples: int, block: int, key: jax.Array) -> Estimate:
    """The sum of BAR, with the error of a bootstrap of whole windows.

    The two estimates that meet in a window share its frames and err together; resampling the window once for both keeps that.
    """
    last = len(leg.lams) - 1
    # Of each window the works to the neighbour before and after; the outer windows have one neighbour.
    windows = [np.stack([leg.work(k, max(k - 1, 0)), leg.work(k, min(k + 1, last))], axis=1) for k in range(last + 1)]

    def summed(*windows):
        return total([bar(a[:, 1], b[:, 0], beta=1.0) for a, b in pairwise(windows)])

    return bootstrap(summed, *windows, resamples=resamples, block=block, key=key)


def together(leg: Leg) -> dict[str, Estimate]:
    """Free-energy difference of the ends by MBAR and by thermodynamic integration (trapezium rule), with correlation."""
    gs = np.asarray([inefficiency(slopes) for slopes in leg.slopes])
    windows, frames, _ = leg.energies.shape
    states = mbar(np.concatenate(leg.energies).T, np.full(windows, frames), inefficiency=np.max(gs))
    return {
        "mbar": jax.tree.map(lambda field: field[-1], states),
        "ti": thermodynamic_integration(leg.lams, leg.slopes, inefficiency=gs),
    }


def run(parameters: FreeEnergyData, key: jax.Array, progress: Progress) -> Results:
    """Estimate each leg window by window and in one jump; hold the numbers against the published ones and against their trust reports."""
    p = parameters
    results = Results()
    names = ("coulomb", "vdw") if p.leg == "both" else (p.leg,)
    # The published digits, and works up to 1e23 where atoms overlap, need double precision.
    with jax.enable_x64(True):
        for name, leg_key in zip(names, jr.split(key, len(names)), strict=True):
            with progress.stage(f"{name}: reading the windows"):
                leg = load(name, discard=p.discard)
            with progress.stage(f"{name}: from window to window"):
                steps = [switch(leg, k, k + 1) for k in range(len(leg.lams) - 1)]
            with progress.stage(f"{name}: all windows together"):
                whole = together(leg)
            with progress.stage(f"{name}: bootstrap"):
                whole["bootstrap"] = resampled(leg, resamples=p.resamples, block=p.block, key=leg_key)
            _tell_windows(results, name, leg, steps, whole)
            with progress.stage(f"{name}: in one jump"):
                _tell_jump(results, name, leg)
    weak = [name for name, q in results.estimates.items() if q.trustworthy is False]
    if weak:
        results.conclusions.append(f"Not to be believed: {', '.join(weak)}.")
    return results


def _tell_windows(results, name, leg, steps, whole):
    """Estimates, figure and conclusions of the leg from window to window."""
    published = PUBLISHED[name]
    words = {
        "bar": "BAR from window to window, errors added as if independent",
        "bootstrap": "the same, with the error of a bootstrap that resamples each window for both its neighbours",
        "mbar": "MBAR, all windows together",
        "ti": "thermodynamic integration, trapezium rule; the error bar is without that of the rule",
        "forward": "Jarzynski's equality from window to window, forward",
        "reverse": "the same, reverse",
    }
    found = {**{method: total([step[method] for step in steps]) for method in ("bar", "forward", "reverse")}, **whole}
    for method, text in words.items():
        value, error = published.get("bar" if method == "bootstrap" else method, (None, None))
        meaning = f"{name}, in kT: {text}" + (f" (exact: published, ± {error})" if method in published else "")
        results.add(f"{name}_{method}", found[method], meaning, exact=value)
    g = inefficiency(*leg.slopes)
    results.estimates[f"{name}_inefficiency"] = Quantity(g, f"{name}: largest statistical inefficiency of the windows, in frames of 10 ps")
    results.figures[f"{name}_windows"] = Picture(
        _draw_windows(leg, steps),
        f"Free energy of {name} from window to window. Left, by BAR; right, the other estimates minus BAR, each with its own standard "
        "error, and that of BAR in grey. TI is thermodynamic integration, whose error bar is without that of the trapezium rule.",
    )
    error = lambda method: float(found[method].stderr)
    results.conclusions += [
        f"{name}: {_show(found['bar'])} kT by BAR and {_show(found['mbar'])} by MBAR; published are {published['bar'][0]} and "
        f"{published['mbar'][0]}. Frames are correlated by up to g = {g:.2f}.",
        f"The errors of neighbouring steps are not independent, since they share a window: the bootstrap finds ± {error('bootstrap'):.4f} "
        f"for the sum of BAR, where adding them as if independent gives ± {error('bar'):.4f}.",
    ]


def _tell_jump(results, name, leg):
    """Estimates, figure and conclusions of the leg in one jump."""
    forward, reverse = leg.work(0, -1), leg.work(-1, 0)
    g = inefficiency(forward, reverse)
    jump = switch(leg, 0, -1)
    truth = PUBLISHED[name]["bar"][0]
    for key, work, ends in (("work", forward, "0 to 1"), ("work_reverse", reverse, "1 to 0")):
        average = mean(work, inefficiency=g)
        # No verdict: a mean of works up to 1e23 has none.
        meaning = f"{name}, one jump from λ = {ends}, in kT: mean work"
        results.estimates[f"{name}_jump_{key}"] = Quantity(float(average.value), meaning, stderr=float(average.stderr))
    for method, text in {"bar": "BAR", "forward": "Jarzynski's equality, forward", "reverse": "Jarzynski's equality, reverse"}.items():
        meaning = f"{name}, one jump, in kT: free energy by {text} (exact: published, BAR of all windows)"
        results.add(f"{name}_jump_{method}", jump[method], meaning, exact=truth)
    results.figures[f"{name}_jump"] = Picture(
        _draw_jump(forward, reverse, jump, truth),
        f"Work of {name} in one jump. Left, forward work and minus the reverse work, with the free energies that follow: by Crooks' "
        "theorem the two laws cross at the true one. Right, the share of the exponential average that the heaviest frames carry; a good "
        "average rests on many.",
    )
    sides = {"forward": (forward,), "reverse": (reverse,), "bar": (forward, reverse)}
    for method, works in sides.items():
        value, report = float(jump[method].value), trust(*works, inefficiency=g)
        title = "BAR" if method == "bar" else f"Jarzynski's equality, {method},"
        results.conclusions.append(
            f"{name} in one jump: {title} gives {value:.4g} kT, {value - truth:+.3g} from the published value. "
            f"The trust report says {report.verdict}. {' '.join(report.reasons)}"
        )
    frame = int(np.argmin(reverse))
    without = float(_negative(jarzynski(np.delete(reverse, frame), beta=1.0)).value)
    sentence = (
        f"One frame of {len(reverse)}, at {leg.times[frame]:g} ps, carries {100 * _shares(reverse)[0]:.0f} % of the reverse average; "
        f"without it the estimate is {without:.4g} kT."
    )
    first, last = (energies[frame] - energies[frame, 0] for energies in (leg.energies[0], leg.energies[-1]))
    if np.allclose(first, last, atol=1e-3):
        sentence += " It is the same configuration in both windows: where the runs start, and no sample of equilibrium at λ = 1."
    results.conclusions.append(sentence)


def _negative(estimate):
    return estimate._replace(value=-estimate.value)


def _shares(work):
    """Shares of the exponential average by frame, the largest first, summing to one."""
    weights = np.sort(np.exp(np.min(work) - work))[::-1]
    return weights / np.sum(weights)


def _show(estimate):
    return f"{float(estimate.value):.4f} ± {float(estimate.stderr):.4f}"


def _draw_windows(leg, steps):
    figure, (left, right) = panels(2)
    centres, widths = (leg.lams[1:] + leg.lams[:-1]) / 2, np.diff(leg.lams)
    read = lambda method: np.asarray([(step[method].value, step[method].stderr) for step in steps]).T
    reference, error = read("bar")
    left.bar(centres, reference, widths, color=COLOURS["first"], alpha=0.3, edgecolor=COLOURS["first"])
    left.errorbar(centres, reference, error, fmt="none", color=COLOURS["exact"], capsize=2)
    left.axhline(0, color=COLOURS["faint"], linewidth=0.8)
    left.set(xlabel="control λ", ylabel="ΔF of the step, by BAR (kT)")
    right.bar(centres, 2 * error, widths, bottom=-error, color=COLOURS["faint"], alpha=0.3, label="BAR")
    # Side by side, for steps of any width.
    for method, colour, marker, label, shift in (
        ("forward", "first", "o", "Jarzynski, forward", -0.2),
        ("reverse", "second", "s", "Jarzynski, reverse", 0.2),
        ("slopes", "exact", "^", "TI, trapezium", 0.0),
    ):
        value, error = read(method)
        right.errorbar(
            centres + shift * widths, value - reference, error, fmt=marker, markersize=3.5, color=COLOURS[colour], capsize=2, label=label
        )
    right.set(xlabel="control λ", ylabel="ΔF of the step minus BAR (kT)")
    right.margins(y=0.3)
    right.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return figure


def _draw_jump(forward, reverse, jump, truth):
    figure, (left, right) = panels(2, height=4.4)
    # Where atoms overlap the reverse work is beyond any axis: those frames are counted in the legend.
    least = min(forward.min(), truth) - 10
    bins = np.linspace(max(least, -reverse.max()), max(forward.max(), -reverse.min()) + 0.5, 60)
    counts = np.arange(1, len(forward) + 1)
    for work, colour, sign, label in ((forward, "first", 1, "forward work, at λ = 0"), (reverse, "second", -1, "− reverse work, at λ = 1")):
        count, _ = np.histogram(sign * work, bins=bins)
        missing = f" ({len(work) - count.sum()} of {len(work)} frames are off to the left)" if count.sum() < len(work) else ""
        share = np.where(count > 0, count, np.nan) / len(work)
        left.stairs(share, bins, baseline=0.5 / len(work), fill=True, alpha=0.3, color=COLOURS[colour])
        left.stairs(share, bins, baseline=0.5 / len(work), color=COLOURS[colour], label=label + missing)
        right.plot(counts, np.cumsum(_shares(work)), color=COLOURS[colour], label=label.split(" work")[0].removeprefix("− "))
    left.axvline(truth, color=COLOURS["exact"], linewidth=1, linestyle="--", label=f"ΔF, published: {truth:.4g}")
    for method, colour in (("forward", "first"), ("reverse", "second")):
        value = float(jump[method].value)
        left.axvline(value, color=COLOURS[colour], linewidth=1.5, linestyle=":", label=f"ΔF, Jarzynski {method}: {value:.4g}")
    # A logarithm, so that single frames are seen: they decide the averages.
    left.set(
        xlabel="work (kT)", ylabel="share of the frames in a bin", xlim=(bins[0], bins[-1]), yscale="log", ylim=(0.5 / len(forward), 1)
    )
    left.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    right.plot(counts, counts / len(forward), color=COLOURS["faint"], label="equal weights")
    right.set(xscale="log", xlabel="number of heaviest frames", ylabel="their share of the exponential average", ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=8)
    return figure


EXPERIMENT = Experiment(
    "free-energy-data", "estimate free energies from public molecular simulations, and see which estimates to believe", FreeEnergyData, run
)
