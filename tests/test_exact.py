import jax
import jax.numpy as jnp
import pytest
from assertions import needs_x64

from thermojax import exact
from thermojax.protocols import PiecewiseLinear, Ramp, ramp_with_jumps

# Closed forms and quadrature, evaluated to twelve digits. A short ramp loses two digits to cancellation.
REL = 1e-10 if jax.config.jax_enable_x64 else 2e-5
# L, tau, k, mu: least work, work of the ramp, work of one jump.
MOVING = {
    (5, 1, 1, 1): (8.33333333333, 9.19698602929, 12.5),
    (1, 1, 1, 1): (0.333333333333, 0.367879441171, 0.5),
    (1, 0.1, 1, 1): (0.476190476190, 0.483741803596, 0.5),
    (2, 5, 1, 1): (0.571428571429, 0.641078071520, 2.0),
    (1, 2, 3, 1): (0.375, 0.416873229348, 1.5),
}
# Stiffness from, to, tau: the controls just inside both ends, least work, mean and variance of the work of the ramp, free energy.
BREATHING = {
    (1, 2, 1): (1.1909830056, 1.7639320225, 0.402918361125, 0.412465798535, 0.178628754019, 0.346573590280),
    (1, 2, 0.1): (1.4339268104, 1.5463898281, 0.478289107117, 0.484586731345, 0.439122696691, 0.346573590280),
    (1, 5, 1): (1.4530818393, 4.1715728753, 1.056537941924, 1.123952221047, 1.189855120364, 0.804718956217),
    (2, 1, 1): (1.7847495630, 1.1771243445, -0.302575395069, -0.297269872240, 0.074901149842, -0.346573590280),
}
each_move = pytest.mark.parametrize("row", MOVING)
each_breath = pytest.mark.parametrize("row", BREATHING)
# Printed to ten decimals.
PRINTED = 6e-11 if jax.config.jax_enable_x64 else 2e-6
# The same, for sums of terms of order one.
SUMMED = {"rel": 2e-11, "abs": 2e-12} if jax.config.jax_enable_x64 else {"rel": 2e-5, "abs": 1e-6}


@each_move
def test_moving_traps_cost_the_tabulated_work(row):
    distance, duration, stiffness, mobility = row
    scales = {"stiffness": stiffness, "mobility": mobility}
    least, ramp, jump = MOVING[row]
    assert float(exact.moving_trap_optimal_work(distance, duration, **scales)) == pytest.approx(least, rel=REL)
    assert float(exact.moving_trap_work(distance, duration, **scales)) == pytest.approx(ramp, rel=REL)
    # The work of any path agrees, whatever it is cut into.
    cost = lambda protocol: float(exact.moving_trap_work_of(protocol, **scales))
    best = exact.moving_trap_optimal_protocol(distance, duration, **scales)
    assert cost(PiecewiseLinear.like(best, knots=5)) == pytest.approx(least, rel=REL)
    assert cost(ramp_with_jumps(0.0, distance, duration, knots=5)) == pytest.approx(ramp, rel=REL)
    assert cost(PiecewiseLinear(0.0, jnp.full(5, distance, float), distance, duration)) == pytest.approx(jump, rel=REL)
    # With inertia: k L^2/(2 + Q omega_0 tau), Q = m omega_0/gamma, omega_0^2 = k/m, whatever the mass.
    for mass in (0.3, 2.0):
        omega = (stiffness / mass) ** 0.5
        quality = mass * omega * mobility
        assert float(exact.inertial_trap_optimal_work(distance, duration, frequency=omega, quality=quality, mass=mass)) == pytest.approx(
            least, rel=REL
        )


@each_breath
def test_breathing_traps_cost_the_tabulated_work(row):
    first, last, least, ramp, variance, free_energy = BREATHING[row]
    best = exact.breathing_trap_optimal_protocol(*row)
    inside = [float(best.inside(jnp.asarray(s))) for s in (0.0, 1.0)]
    assert inside == pytest.approx([first, last], abs=PRINTED)
    assert float(exact.breathing_trap_optimal_work(*row)) == pytest.approx(least, **SUMMED)
    assert float(exact.breathing_trap_free_energy(*row[:2])) == pytest.approx(free_energy, rel=REL)
    steady = exact.breathing_trap_work(Ramp(*row))
    assert float(steady.mean) == pytest.approx(ramp, rel=REL)
    assert float(steady.variance) == pytest.approx(variance, rel=REL)
    # The closed form is what the moments say, and the standard deviation grows linearly.
    moments = exact.breathing_trap_work(best)
    assert float(moments.mean) == pytest.approx(least, rel=REL)
    assert float(moments.mean_square) == pytest.approx(float(best.mean_square(row[2])), rel=REL)
    roots = [float(best.mean_square(share * row[2])) ** 0.5 for share in (0.0, 0.5, 1.0)]
    assert roots[1] == pytest.approx(0.5 * (roots[0] + roots[2]), rel=REL)
    assert roots[0] == pytest.approx(row[0] ** -0.5, rel=REL)


def test_the_optimum_of_the_breathing_trap_scales_with_mobility_and_temperature():
    # mu tau and beta W are all that counts.
    best = exact.breathing_trap_optimal_protocol(1.0, 2.0, 0.5, mobility=2.0)
    assert float(best.inside(jnp.asarray(0.0))) == pytest.approx(1.1909830056, rel=REL)
    moments = exact.breathing_trap_work(best, beta=3.0, mobility=2.0)
    assert float(moments.mean) == pytest.approx(0.402918361125 / 3, rel=REL)
    ramp = exact.breathing_trap_work(Ramp(1.0, 2.0, 0.5), beta=3.0, mobility=2.0)
    assert float(ramp.variance) == pytest.approx(0.178628754019 / 9, rel=REL)


def test_one_jump_of_the_stiffness_costs_half_a_temperature_per_share():
    # W = (l_f - l_i) x^2/2 from equilibrium: mean 1/2, variance 1/2 for a stiffness that doubles.
    moments = exact.breathing_trap_work(Ramp(1.0, 2.0, 1e-7))
    assert float(moments.mean) == pytest.approx(0.5, rel=1e-5)
    assert float(moments.variance) == pytest.approx(0.5, rel=1e-5)
    assert float(moments.mean_square) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["beta", "mobility"])
def test_a_breathing_trap_has_a_positive_temperature_and_mobility(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0.0."):
        exact.breathing_trap_work(Ramp(1.0, 2.0), **{name: 0.0})


@needs_x64
@pytest.mark.slow
def test_no_change_of_the_protocol_makes_the_work_of_the_optimum_less():
    best = exact.breathing_trap_optimal_protocol(1.0, 5.0, 1.0)
    knots = PiecewiseLinear.like(best, knots=33).knots
    cost = lambda knots: exact.breathing_trap_work(PiecewiseLinear(1.0, knots, 5.0)).mean
    slope = jax.grad(cost)(knots)
    # Straight lines between 33 knots are off by the square of their distance, and so is the slope of the least work.
    assert float(jnp.max(jnp.abs(slope))) < 3e-4
    assert 0 < float(cost(knots)) - 1.056537941924 < 1e-5
    assert float(jnp.max(jnp.abs(jax.grad(cost)(jnp.linspace(1.0, 5.0, 33))))) > 1e-2


@pytest.mark.parametrize(
    ("first", "second", "diffusion", "duration", "expected"),
    [
        ((0, 1), (2, 1), 1.0, 1.0, 4.0),
        ((0, 1), (0, 0.5), 1.0, 1.0, 0.25),
        ((0, 1), (1, 2), 1.0, 2.0, 1.0),
        ((-1, 0.5), (3, 1.5), 0.5, 2.0, 17.0),
    ],
)
def test_gaussian_to_gaussian_costs_the_tabulated_entropy(first, second, diffusion, duration, expected):
    # Means and standard deviations; least entropy production W_2^2/(D tau).
    moments = [(jnp.array([m], float), jnp.array([[s**2]], float)) for m, s in (first, second)]
    least = float(exact.gaussian_transport(*moments[0], *moments[1])) / (diffusion * duration)
    assert least == pytest.approx(expected, rel=1e-10 if jax.config.jax_enable_x64 else 1e-5)


def test_annealing_costs_the_tabulated_work():
    for steps, expected in ((1, 0.5), (10, 0.369239139502), (100, 0.367893042136)):
        assert float(exact.annealed_trap_work(steps, 1, 1)) == pytest.approx(expected, rel=REL)
