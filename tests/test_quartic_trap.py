"""The batch experiment: an ensemble in pieces that are kept, and several points side by side."""

import jax.random as jr
import numpy as np
import pytest
from assertions import rounding

from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import mean
from thermojax.experiments import EXPERIMENTS, Silent
from thermojax.experiments._quartic_trap import DraggedTrap
from thermojax.functionals import work
from thermojax.protocols import Ramp

TRAP = EXPERIMENTS["quartic-trap"]
SMALL = {"samples": 10_000, "steps": 20, "kept": 4096}


class Remembering(Silent):
    """Keeps what was made and makes only what is not there."""

    def __init__(self, kept=()):
        self.kept, self.made = dict(kept), []

    def blocks(self, title, count, make):
        def remembered(i):
            if (title, i) not in self.kept:
                self.made.append(i)
                self.kept[title, i] = make(i)
            return self.kept[title, i]

        return super().blocks(title, count, remembered)


@pytest.fixture(scope="module")
def whole():
    progress = Remembering()
    return TRAP.run(TRAP.parameters(**SMALL), jr.key(3), progress), progress


def test_laws_hold_within_error_bars(whole):
    results, _ = whole
    estimates = results.estimates
    assert abs(estimates["ift"].value - 1) < 4 * estimates["ift"].stderr < 0.1
    assert estimates["work"].ess == 10_000
    # The dissipation is the mean work, but for the shadow work of the step.
    assert abs(estimates["work"].value - estimates["log_ratio"].value) < 0.1 * estimates["work"].value
    assert {"work", "convergence"} == set(results.figures)


def test_pieces_that_are_kept_are_not_made_again(whole):
    results, first = whole
    assert first.made == [0, 1, 2]
    some = {name: arrays for name, arrays in first.kept.items() if name[1] != 1}
    again = Remembering(some)
    resumed = TRAP.run(TRAP.parameters(**SMALL), jr.key(3), again)
    assert again.made == [1]
    assert resumed.estimates == results.estimates


@pytest.mark.slow
def test_points_of_a_sweep_are_single_runs(whole):
    points = [TRAP.parameters(**SMALL | {"tau": tau}) for tau in (0.5, 1.0, 2.0)]
    points.append(TRAP.parameters(**SMALL | {"steps": 10}))
    swept = TRAP.sweep(points, jr.key(3), Silent())
    works = [results.estimates["work"].value for results in swept]
    assert works[0] > works[1] > works[2]
    for name, estimate in whole[0].estimates.items():
        assert abs(swept[1].estimates[name].value - estimate.value) < rounding(100), name
    alone = TRAP.run(points[3], jr.key(3), Silent())
    assert alone.estimates == swept[3].estimates


@pytest.mark.slow
def test_mean_work_is_that_of_an_ensemble_that_is_held(whole, key):
    potential = DraggedTrap(0.0, 1.0)
    dynamics = Overdamped(potential, Ramp(0.0, 1.0))
    start_key, noise_key = jr.split(key)
    x0s = equilibrium(potential, 0.0).sample(40_000, key=start_key)
    held = mean(accumulate(work, dynamics, x0s, np.linspace(0.0, 1.0, 21), key=noise_key)[1])
    value, stderr = whole[0].estimates["work"].value, whole[0].estimates["work"].stderr
    assert abs(value - float(held.value)) < 4 * np.hypot(stderr, float(held.stderr))


@pytest.mark.slow
def test_mirrored_pairs_have_smaller_errors(whole):
    paired = TRAP.run(TRAP.parameters(**SMALL | {"noise": "antithetic"}), jr.key(3), Silent())
    assert paired.estimates["work"].stderr < 0.8 * whole[0].estimates["work"].stderr
    assert abs(paired.estimates["work"].value - whole[0].estimates["work"].value) < 4 * whole[0].estimates["work"].stderr
