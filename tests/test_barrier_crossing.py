"""The experiment `barrier-crossing`, the landscape, and the bound of full control on a line."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import needs_x64

from thermojax.distributions import equilibrium, Gaussian, GaussianMixture
from thermojax.experiments import EXPERIMENTS, Silent
from thermojax.experiments._barrier_crossing import _draw_friction
from thermojax.geometry import free_end, full_control
from thermojax.potentials import Bistable, Harmonic

X64 = jax.config.jax_enable_x64


def test_bistable_wells_under_a_spring_are_a_mixture_of_two_gaussians():
    kappa, spring, lam = 6.38629, 9.562515, 0.3
    places = jnp.linspace(-1.5, 1.5, 7)[:, None]
    weight = -jax.vmap(lambda x: (Bistable(kappa) + Harmonic(spring))(x, jnp.asarray(lam)))(places)
    centres = np.array([-kappa + spring * lam, kappa + spring * lam]) / (kappa + spring)
    shares = np.exp(-0.5 * kappa * spring / (kappa + spring) * np.array([1 + lam, 1 - lam]) ** 2)

    def check(shares):
        gap = jax.vmap(GaussianMixture(shares, centres[:, None], np.full(2, 1 / (kappa + spring))).log_prob)(places) - weight
        assert np.asarray(gap) == pytest.approx(float(gap[0]), abs=1e-10 if X64 else 1e-4)

    check(shares)
    with pytest.raises(AssertionError):
        check(shares[::-1])
    # A barrier of 2.5 kT between the wells.
    at = lambda x: Bistable(kappa)(jnp.array([x]), jnp.asarray(0.0))
    assert at(0.0) - at(1.0) == pytest.approx(2.5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("duration", [1e-5, 1e-3, 0.2, 10.0])
def test_the_least_work_of_full_control_is_the_closed_form_for_gaussians(duration):
    start, final = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[0.25]])
    options = {"beta": 1.3, "mobility": 0.5}
    found, expected = free_end(start, final, duration, **options), full_control(start, final, duration, **options)
    close = lambda value: pytest.approx(float(value), rel=1e-5 if X64 else 2e-4, abs=1e-5 if X64 else 2e-4)
    # A bound, however short the duration.
    slack = 1e-6 if X64 else 5e-4
    assert found.dissipated < expected.dissipated + slack
    assert found.gap > -slack
    assert found.dissipated == close(expected.dissipated)
    if X64:
        assert found.transport == close(expected.transport)
        assert found.relaxation == close(expected.relaxation)
        assert found.gap < 1e-5
    with pytest.raises(AssertionError):
        assert found.dissipated == close(full_control(start, final, duration).dissipated)


@pytest.mark.slow
@needs_x64
def test_the_least_work_between_two_wells_lies_below_every_process_and_is_concave_in_the_rate():
    potential = Bistable(6.38629) + Harmonic(9.562515)
    start, final = (equilibrium(potential, lam) for lam in (-1.0, 1.0))
    rates = np.linspace(0.1, 2.0, 12)
    found = [free_end(start, final, 1 / rate) for rate in rates]
    least = np.array([float(f.dissipated) for f in found])
    # A minimum over what is linear in the rate.
    assert np.all(np.diff(least) > 0)
    assert np.all(np.diff(least, 2) < 0)
    # The transport of the best end is the slope.
    slopes = np.array([float(f.transport) for f in found]) / rates
    assert np.all((np.diff(least) / np.diff(rates) < slopes[:-1] + 1e-4) & (np.diff(least) / np.diff(rates) > slopes[1:] - 1e-4))
    assert max(abs(float(f.gap)) for f in found) < 1e-4
    with pytest.raises(AssertionError):
        assert np.all(np.diff(least + 0.05 * np.cos(9 * rates), 2) < 0)


def test_ends_that_are_not_on_a_line_are_refused():
    for call, message in (
        (lambda: free_end(Gaussian(jnp.zeros(2), jnp.eye(2)), Gaussian(jnp.zeros(2), jnp.eye(2)), 1.0), "`start` must be in one dimension"),
        (lambda: free_end(Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[1.0]]), 0.0), "`duration` must be positive, got 0.0."),
        (lambda: free_end(Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[1.0]]), 1.0, nodes=3), "`nodes` must be at least 17, got 3."),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_durations_that_would_be_left_out_are_refused():
    parameters = EXPERIMENTS["barrier-crossing"].parameters
    for settings, message in (
        ({"taus": [0.5, 0.5, 2.0, 10.0]}, "`taus` must be positive and increase, got"),
        ({"taus": [0.0, 0.5, 2.0, 10.0]}, "`taus` must be positive and increase, got"),
        ({"taus": [0.5, 2.0]}, r"`simulated` must be some of `taus`, \[0.5, 2.0\], each once, got \[0.5, 2.0, 10.0\]."),
        ({"simulated": [0.5, 0.5]}, "`simulated` must be some of `taus`"),
    ):
        with pytest.raises(ValueError, match=message):
            parameters(**settings)
    assert parameters(taus=[0.5], simulated=[]).simulated == []


def test_every_barrier_has_its_own_line_in_the_figure():
    found = [SimpleNamespace(barrier=barrier, metric=lambda lam: 1.0 + lam**2) for barrier in np.linspace(1.0, 6.0, 6)]
    lines = _draw_friction(found, None).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(found)


# Mean works of ramp and geodesic over 2.5 kT, from the Fokker-Planck equation to 1e-6.
PRINTED = {"0.5": (8.179757, 7.800432), "2": (2.778900, 2.375040), "10": (0.604363, 0.470764)}


@pytest.fixture(scope="module")
def crossing():
    experiment = EXPERIMENTS["barrier-crossing"]
    settings = {"taus": [0.5, 2.0, 10.0], "iterations": 60, "learning_rate": 0.08, "knots": 17, "descent_steps": 200, "simulated": [2.0]}
    return experiment.run(experiment.parameters(**settings), jr.key(1), Silent())


def check_works(estimates):
    for tau, (linear, best) in PRINTED.items():
        # Single precision rounds a thousand steps.
        assert estimates[f"barrier_2.5_tau_{tau}_linear"].value == pytest.approx(linear, abs=1e-3 if X64 else 5e-3)
        assert estimates[f"barrier_2.5_tau_{tau}_geodesic"].value == pytest.approx(best, abs=1e-3 if X64 else 5e-3)


def check_order(estimates, order):
    for barrier in ("2.5", "10"):
        for tau in PRINTED:
            values = [estimates[f"barrier_{barrier}_tau_{tau}_{name}"].value for name in order]
            assert values[0] < values[1] < min(values[2:]), (barrier, tau)


@pytest.mark.slow
def test_crossing_costs_the_printed_work_and_the_optimum_lies_between_the_bound_and_both(crossing):
    estimates = crossing.estimates
    check_works(estimates)
    check_order(estimates, ("bound", "optimised", "linear", "geodesic"))
    # Over a high barrier the geodesic loses to the ramp.
    for tau in PRINTED:
        costs = [estimates[f"barrier_{barrier}_tau_{tau}_{name}"].value for barrier in ("2.5", "10") for name in ("geodesic", "linear")]
        assert costs[0] < costs[1]
        assert costs[2] > costs[3]
    exchanged = {"linear": "geodesic", "geodesic": "linear"}
    swapped = {"_".join(exchanged.get(part, part) for part in name.split("_")): q for name, q in estimates.items()}
    with pytest.raises(AssertionError):
        check_works(swapped)
    with pytest.raises(AssertionError):
        check_order(estimates, ("optimised", "bound", "linear", "geodesic"))


@pytest.mark.slow
def test_simulated_crossings_agree_with_the_fokker_planck_equation(crossing):
    simulated = {name: q for name, q in crossing.estimates.items() if name.endswith("simulated")}
    assert len(simulated) == 6
    assert all(abs(pull) < 4 for pull in crossing.pulls().values())
    assert all(q.trustworthy for q in simulated.values())
    for picture in crossing.figures.values():
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in picture.figure.axes)
