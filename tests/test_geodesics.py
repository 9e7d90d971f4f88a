"""Thermodynamic length, geodesics, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_order, needs_x64

from thermojax import exact
from thermojax.distributions import equilibrium, free_energy
from thermojax.dynamics import Overdamped
from thermojax.fokker_planck import Grid, mean_work
from thermojax.geometry import Friction, geodesic, linear_response_work, thermodynamic_length
from thermojax.potentials import AbstractPotential
from thermojax.protocols import Monotone, PiecewiseLinear, Ramp, Reverse, SlewLimited

BETA, MOBILITY = 1.3, 0.5


def rel_of(double, single):
    """The one tolerance or the other, by the precision of the tests."""
    return double if jax.config.jax_enable_x64 else single


TIGHT = rel_of(1e-8, 2e-5)


def width_metric(k):
    """The friction of a trap's stiffness."""
    return 1.0 / (4 * BETA * MOBILITY * k**3)


def trap_metric(lam):
    """The friction of a trap's place and stiffness: flat in mean and standard deviation."""
    return jnp.diag(jnp.stack([jnp.full_like(lam[1], 1.0 / MOBILITY), width_metric(lam[1])]))


def deviation(stiffness):
    return 1.0 / np.sqrt(BETA * np.asarray(stiffness))


def test_length_of_a_change_of_stiffness_is_that_of_the_standard_deviation():
    expected = (deviation(0.5) - deviation(4.0)) / np.sqrt(MOBILITY)
    for path in ([0.5, 4.0], Ramp(0.5, 4.0, 3.0)):
        assert thermodynamic_length(width_metric, path) == pytest.approx(expected, rel=TIGHT)
    # A straight line costs more than the square of the length over the duration: the integral of the metric.
    cost = 3.5 * (0.5**-2 - 4.0**-2) / (8 * BETA * MOBILITY) / 3.0
    for path, duration in (([0.5, 4.0], 3.0), (Ramp(0.5, 4.0, 3.0), None)):
        assert linear_response_work(width_metric, path, duration) == pytest.approx(cost, rel=TIGHT)
    assert cost > expected**2 / 3.0
    with pytest.raises(AssertionError):
        assert linear_response_work(width_metric, [0.5, 4.0], 2.0) == pytest.approx(cost, rel=TIGHT)


@pytest.mark.slow
def test_every_path_of_straight_lines_costs_what_its_corners_say():
    monotone = Monotone(0.5, jnp.array([-1.0, 0.5, 1.5, -2.0, 1.0, 0.3]), 4.0, 3.0)
    limited = SlewLimited(0.5, jnp.array([9.0, -1.0, 2.0, 4.0]), 4.0, 3.0, 0.3, 9.0, 3.0)
    cost = lambda path, duration=None: float(linear_response_work(width_metric, path, duration, count=1))
    for protocol, corners in ((monotone, monotone.knots), (limited, limited.controls), (Reverse(monotone, 3.0), monotone.knots[::-1])):
        expected = cost(PiecewiseLinear(corners[0], corners, corners[-1], 3.0))
        assert cost(protocol) == pytest.approx(expected, rel=TIGHT)
        with pytest.raises(AssertionError):
            # Panels that know of no corners.
            assert cost(lambda t, protocol=protocol: protocol(t), 3.0) == pytest.approx(expected, rel=100 * TIGHT)


def test_geodesic_of_one_control_moves_its_standard_deviation_at_constant_speed():
    for start, stop in ((0.5, 4.0), (4.0, 0.5)):
        found = geodesic(width_metric, start, stop, 2.0, knots=33)
        knots = np.asarray(found.protocol.knots)
        assert knots[0] == start
        assert knots[-1] == stop
        assert np.all(np.diff(knots) * (stop - start) > 0)
        assert deviation(knots) == pytest.approx(np.linspace(deviation(start), deviation(stop), 33), rel=10 * TIGHT)
        assert found.length == pytest.approx((deviation(0.5) - deviation(4.0)) / np.sqrt(MOBILITY), rel=TIGHT)
        assert found.excess_work == pytest.approx(float(found.length) ** 2 / 2.0, rel=TIGHT)
        assert found.protocol.jumps == (0.0, 0.0)
        with pytest.raises(AssertionError):
            assert knots == pytest.approx(np.linspace(start, stop, 33), rel=0.01)


@pytest.mark.slow
@needs_x64
def test_straight_lines_between_knots_cost_more_at_second_order():
    counts = (9, 17, 33)
    found = [geodesic(width_metric, 0.5, 4.0, knots=n) for n in counts]
    extra = [linear_response_work(width_metric, g.protocol) / g.excess_work - 1.0 for g in found]
    assert_order(extra, [1 / (n - 1) for n in counts], 2.0)


@pytest.mark.slow
def test_geodesic_of_place_and_stiffness_is_the_straight_line_of_optimal_transport():
    start, stop = jnp.array([0.0, 0.5]), jnp.array([1.0, 4.0])
    found = geodesic(trap_metric, start, stop, 2.0, knots=33)
    places, stiffnesses = np.asarray(found.protocol.knots).T
    line = np.linspace(0.0, 1.0, 33)
    tight = rel_of(1e-6, 1e-3)
    assert places == pytest.approx(line, abs=tight)
    assert deviation(stiffnesses) == pytest.approx(deviation(0.5) + line * (deviation(4.0) - deviation(0.5)), abs=tight)
    # W2 squared over mobility and duration: what the fastest full control costs too.
    ends = [(jnp.array([m]), jnp.array([[float(deviation(k)) ** 2]])) for m, k in ((0.0, 0.5), (1.0, 4.0))]
    transport = exact.gaussian_transport(*ends[0], *ends[1])
    assert found.excess_work == pytest.approx(float(transport) / (MOBILITY * 2.0), rel=10 * TIGHT)
    assert found.residual < 1e-4
    # The straight line in the controls is longer.
    assert thermodynamic_length(trap_metric, jnp.stack([start, stop])) > 1.02 * found.length
    assert thermodynamic_length(trap_metric, found.protocol) == pytest.approx(float(found.length), rel=2e-3)


@pytest.mark.slow
def test_a_geodesic_needs_enough_polynomials_and_says_so():
    few, many = (geodesic(trap_metric, [0.0, 0.3], [1.0, 9.0], modes=n, knots=5) for n in (1, 12))
    assert few.residual > 100 * many.residual
    assert few.length > many.length
    # What the residual says is left is what is left.
    assert few.excess_work / many.excess_work - 1.0 == pytest.approx(float(few.residual), rel=1.0)


class Pulled(AbstractPotential):
    """A double well, pulled by a spring to the control."""

    barrier: jax.Array

    def __call__(self, x, lam):
        return self.barrier * jnp.sum((x**2 - 1.0) ** 2) + 4.0 * jnp.sum((x - lam) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("barrier", "length", "least", "ramp", "change"),
    # Reference values by quadrature.
    [
        (4.0, 2.9022983415, 8.423335663, 25.580698747, -1.726164126346),
        (8.0, 7.8620509996, 61.811845921, 389.811542640, -1.158155333763),
    ],
)
def test_lengths_and_costs_of_a_pulled_double_well_are_the_tabulated_ones(barrier, length, least, ramp, change):
    metric = Friction(Pulled(jnp.asarray(barrier)))
    assert free_energy(metric.potential, 0.0) - free_energy(metric.potential, -2.0) == pytest.approx(change, rel=rel_of(1e-10, 1e-4))
    rel = rel_of(1e-8, 1e-4)
    found = geodesic(metric, -2.0, 2.0, 1.0)
    assert found.length == pytest.approx(length, rel=rel)
    assert found.excess_work == pytest.approx(least, rel=rel)
    assert linear_response_work(metric, [-2.0, 2.0], 1.0) == pytest.approx(ramp, rel=rel)
    # The metric is even, and so is the protocol: odd about its middle.
    knots = np.asarray(found.protocol.knots)
    assert knots == pytest.approx(-knots[::-1], abs=100 * rel)


KAPPA, STIFFNESS = 6.38629, 9.562515


def bistable(x, lam):
    wells = jnp.logaddexp(-0.5 * KAPPA * (x + 1.0) ** 2, -0.5 * KAPPA * (x - 1.0) ** 2)
    return jnp.sum(0.5 * STIFFNESS * (x - lam) ** 2 - wells)


@pytest.mark.slow
@needs_x64
def test_a_bistable_landscape_is_crossed_at_the_tabulated_work():
    # Reference values from the Fokker-Planck equation, to 1e-6.
    grid, start = Grid(-2.6, 2.6, 600), equilibrium(bistable, -1.0)
    optimal = geodesic(Friction(bistable), -1.0, 1.0, 1.0, knots=401)
    for duration, straight, least in ((0.5, 8.179757, 7.800432), (2.0, 2.778900, 2.375040), (10.0, 0.604363, 0.470764)):
        ramp = Ramp(-1.0, 1.0, duration)
        slow = PiecewiseLinear(-1.0, optimal.protocol.knots, 1.0, duration)
        for protocol, expected in ((ramp, straight), (slow, least)):
            found = mean_work(Overdamped(bistable, protocol), start, grid, jnp.linspace(0.0, duration, 1201))
            assert found == pytest.approx(expected, abs=1e-3)
    # The free energy does not change, so that in slow protocols the work is the excess of linear response.
    assert optimal.excess_work / 10.0 == pytest.approx(0.470764, rel=0.1)


@pytest.mark.nightly
@needs_x64
def test_geodesic_of_a_trap_by_quadrature_turns_back_at_the_end_of_its_domain():
    # The search steps to negative stiffness, where there is no equilibrium and the metric is nan.
    metric = Friction(lambda x, lam: 0.5 * lam[1] * jnp.sum((x - lam[0]) ** 2), BETA, MOBILITY)
    found = geodesic(metric, [0.0, 0.3], [1.0, 3.0], knots=9, modes=6)
    expected = np.sqrt((1.0 + (deviation(0.3) - deviation(3.0)) ** 2) / MOBILITY)
    assert found.length == pytest.approx(expected, rel=1e-3)
    assert abs(found.length / expected - 1.0) < found.residual


def test_metrics_and_paths_without_meaning_are_refused():
    for call, message in (
        (lambda: geodesic(width_metric, [0.5, 1.0], 2.0), r"`stop` must have the shape of `start`, \(2,\), got shape \(\)."),
        (lambda: geodesic(width_metric, 1.0, 1.0), "`stop` must differ from `start`, got 1.0."),
        (lambda: geodesic(width_metric, 1.0, 2.0, -1.0), "`duration` must be positive, got -1.0."),
        (lambda: geodesic(width_metric, 1.0, 2.0, knots=2), "`knots` must be at least 3, got 2."),
        (lambda: geodesic(width_metric, -1.0, 1.0), "`metric` must be finite and positive definite everywhere on the path"),
        (lambda: geodesic(trap_metric, [0.0, -1.0], [0.0, 1.0]), "`metric` must be finite and positive definite everywhere on the path"),
        (lambda: geodesic(lambda lam: jnp.ones((3, 3)), [0.0, 1.0], [1.0, 1.0]), r"`metric` must return shape \(2, 2\) here"),
        (lambda: thermodynamic_length(lambda lam: -jnp.ones_like(lam), [0.0, 1.0]), "`metric` must be finite and positive definite"),
        (lambda: thermodynamic_length(width_metric, [1.0]), "`path` must be a protocol, or at least two controls"),
        (lambda: thermodynamic_length(width_metric, lambda t: 1.0 + t), "`duration` must be given for a protocol"),
        (lambda: linear_response_work(width_metric, [0.5, 1.0]), "`duration` must be given for a path of points"),
        (lambda: linear_response_work(width_metric, [0.5, 1.0], 1.0, count=0), "`count` must be at least 1, got 0."),
    ):
        with pytest.raises(ValueError, match=message):
            call()
