import time

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate

from thermojax.experiments import Silent
from thermojax.experiments._optimal_transport_of_a_trap import (
    descend_density,
    dissipated,
    EXPERIMENT,
    OptimalTransportOfATrap,
    optimise,
    problems,
)

# Reference values: closed forms evaluated to twelve digits; distance, tau, stiffness: least work, work of the ramp.
POSITIONS = {
    (5, 1, 1): (8.33333333333, 9.19698602929),
    (1, 1, 1): (0.333333333333, 0.367879441171),
    (1, 0.1, 1): (0.476190476190, 0.483741803596),
    (2, 5, 1): (0.571428571429, 0.641078071520),
    (1, 2, 3): (0.375, 0.416873229348),
}
# First and last stiffness, tau: least work, work of the ramp, free energy.
STIFFNESSES = {
    (1, 2, 1): (0.402918361125, 0.412465798535, 0.346573590280),
    (1, 2, 0.1): (0.478289107117, 0.484586731345, 0.346573590280),
    (1, 5, 1): (1.056537941924, 1.123952221047, 0.804718956217),
    (2, 1, 1): (-0.302575395069, -0.297269872240, -0.346573590280),
}
SMALL = {"knots": 6, "cells": 48, "density_steps": 24, "density_iterations": 60, "learning_rate": 0.1}
# A fair number of trajectories: thirty thousand find a protocol, the rest judge it.
FAIR = {"knots": 8, "steps": 100, "iterations": 150, "batch": 400, "samples": 200_000, "density_iterations": 80, "density_steps": 40}


def settings_of(row):
    """The parameters of a row of the tables."""
    first, second, third = row
    if row in POSITIONS:
        return {"trap": "position", "distance": first, "tau": second, "stiffness": third}
    return {"trap": "stiffness", "stiffness_first": first, "stiffness_last": second, "tau": third}


def problem_of(row, **settings):
    p = OptimalTransportOfATrap(**settings_of(row), **settings)
    (problem,) = problems(p)
    return problem, p


def assert_least(problem, work, percent):
    """The dissipation is within that many percent of the least."""
    assert abs(problem.over(work)) < percent, f"{problem.over(work):.3g} % above the least"


def without_jumps(dynamics):
    """The same protocol through start and stop."""
    protocol = dynamics.protocol
    knots = protocol.knots.at[0].set(protocol.start).at[-1].set(protocol.stop)
    return eqx.tree_at(lambda d: d.protocol.knots, dynamics, knots)


def assert_table(row, problem):
    least, ramp, *rest = (POSITIONS | STIFFNESSES)[row]
    assert problem.least == pytest.approx(least, rel=1e-10)
    assert problem.delta_f == pytest.approx(rest[0] if rest else 0.0, rel=1e-10)
    assert problem.work(problem.dynamics) == pytest.approx(ramp, rel=1e-7)


@pytest.mark.parametrize("row", [pytest.param((5, 1, 1), marks=pytest.mark.slow), (1, 5, 1)])
@pytest.mark.slow
def test_exact_gradients_find_the_least_dissipation_from_the_ramp(row):
    problem, p = problem_of(row, **SMALL)
    assert_table(row, problem)
    found = descend_density(problem, p)
    assert_least(problem, problem.work(found), 0.3)
    # Neither the ramp nor the same protocol without its jumps is there.
    for wrong in (problem.dynamics, without_jumps(found)):
        with pytest.raises(AssertionError):
            assert_least(problem, problem.work(wrong), 3)


@pytest.mark.slow
def test_control_variate_leaves_the_mean_and_lowers_the_error(key):
    # Gaussian work of variance twice its mean obeys Jarzynski's equality at no change of the free energy; of another variance, not.
    works = 0.1 + jnp.sqrt(0.2) * jr.normal(key, (4000,))
    narrow = dissipated(works, 0.0, 1.0)
    assert_estimate(narrow, 0.1)
    assert narrow.stderr < 0.5 * jnp.std(works) / 4000**0.5
    with pytest.raises(AssertionError):
        assert_estimate(dissipated(0.1 + jnp.sqrt(0.3) * jr.normal(key, (4000,)), 0.0, 1.0), 0.1)
    # Where rare paths decide the average of exponentials, the plain mean is left.
    wide = 8.0 + 4.0 * jr.normal(key, (4000,))
    assert dissipated(wide, 0.0, 1.0).stderr == pytest.approx(float(jnp.std(wide, ddof=1)) / 4000**0.5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("row", [*POSITIONS, *STIFFNESSES])
def test_every_row_is_found_with_noisy_and_with_exact_gradients(row, key):
    # One step size for all rows, whatever the change of the control: they are compiled once.
    problem, p = problem_of(row, **FAIR, learning_rate=0.08 / (abs(row[1] - row[0]) if row in STIFFNESSES else row[0]))
    assert_table(row, problem)
    assert problem.bound() == pytest.approx(problem.least, rel=1e-5)
    found = optimise(problem, p, key, Silent())
    assert_least(problem, found.costs["fokker_planck"], 0.3)
    assert_least(problem, found.costs["monte_carlo"], 3)
    for way in ("ramp", "monte_carlo"):
        assert_estimate(found.fresh[way], found.costs[way] - problem.delta_f)
    assert_least(problem, problem.delta_f + float(found.fresh["monte_carlo"].value), 3)
    assert found.needed is not None
    # A short protocol gains little: there the ramp is nearly as good.
    if row != (1, 0.1, 1):
        with pytest.raises(AssertionError):
            assert_least(problem, found.costs["ramp"], 3)


@pytest.mark.slow
def test_moving_trap_is_found_within_two_million_trajectories_and_a_minute(key):
    problem, p = problem_of((5, 1, 1), steps=500, knots=32, iterations=100, batch=500)
    tick = time.process_time()
    found = optimise(problem, p, key, Silent())
    assert time.process_time() - tick < 120
    assert found.trajectories[-1] <= 2_000_000
    assert found.needed is not None
    assert found.needed <= 100_000
    assert_least(problem, found.costs["monte_carlo"], 3)


@pytest.fixture(scope="module")
def kicked():
    settings = {
        "mass": 2.0,
        "distance": 2.0,
        "stiffness": 1.5,
        "steps": 100,
        "knots": 6,
        "iterations": 120,
        "batch": 300,
        "samples": 20_000,
    }
    return EXPERIMENT.run(OptimalTransportOfATrap(trap="underdamped", **settings), jr.key(1), Silent())


@pytest.mark.slow
def test_kicks_reach_the_least_work_of_a_particle_with_inertia(kicked):
    # k L^2 / (2 + Q omega_0 tau), where Q omega_0 = mu k.
    found = kicked.estimates
    assert found["underdamped_least"].value == pytest.approx(1.5 * 4 / 3.5)
    assert abs(found["underdamped_over_monte_carlo"].value) < 2
    assert found["underdamped_over_ramp"].value > 10
    fresh = found["underdamped_over_fresh"]
    assert abs(fresh.value) < 2 + 4 * fresh.stderr
    for end in ("first", "last"):
        kick = found[f"underdamped_kick_{end}"]
        assert kick.value == pytest.approx(kick.exact, rel=0.1)
    assert all(abs(pull) < 4 for pull in kicked.pulls().values())


@pytest.mark.slow
def test_every_figure_of_the_traps_has_labelled_axes(kicked):
    assert set(kicked.figures) == {"protocols", "excess", "work", "descent"}
    for picture in kicked.figures.values():
        assert picture.caption
        for ax in picture.figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel() or np.size(ax.get_yticklabels())
