import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, rounding
from systems import twisting, wavy

from thermojax import exact
from thermojax.baths import Isothermal, LinearBeta
from thermojax.distributions import free_energy, Gaussian
from thermojax.dynamics import Escorted, Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import exponential_mean, jarzynski, mean
from thermojax.functionals import escorted_work, system_entropy
from thermojax.potentials import Breathing, Harmonic
from thermojax.protocols import Ramp
from thermojax.steppers import Diffrax, EulerMaruyama, ExactLinear
from thermojax.switching import both_ways, drive, equilibrium_at, free_energy_change, reversed_experiment

# V = k(t) x^2/2 in a bath beta(t), mobility 1; closed form by the equation of the variance.
COLUMNS = {
    "k = 1 + t, beta = 1 + t/2, tau = 1": {
        "dynamics": Overdamped(Breathing(), Ramp(1.0, 2.0, 1.0), LinearBeta(1.0, 1.5, 1.0)),
        "tau": 1.0,
        "v": 0.45545939791092,
        "Y": 0.73052964642925,
        "var Y": 0.59392182325366,
        "delta": 0.54930614433405,
        "var exp(-Y)": 0.062650599373517,
        "Sigma": 0.18122350209519,
        "total": 0.15411619773161,
        "medium": 0.54734054956287,
        "W": 0.37785877559762,
        "Q": 0.42239937768670,
    },
    "k = 1, beta = 1 + t, tau = 2": {
        "dynamics": Overdamped(Breathing(), Ramp(1.0, 1.0, 2.0), LinearBeta(1.0, 3.0, 2.0)),
        "tau": 2.0,
        "v": 0.42004962066461,
        "Y": 0.69429373916790,
        "var Y": 0.44387259122150,
        "delta": 0.54930614433405,
        "var exp(-Y)": 0.054283101805206,
        "Sigma": 0.14498759483385,
        "total": 0.13052809304915,
        "medium": 0.56421930817099,
        "W": 0.0,
        "Q": 0.28997518966769,
    },
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.slow
def test_a_trap_in_a_changing_bath_has_every_mean_of_its_closed_form(key, name):
    row = COLUMNS[name]
    ts = jnp.linspace(0.0, row["tau"], 401)
    found = drive(row["dynamics"], ts, 40_000, stepper=ExactLinear(), key=key)
    end = Gaussian([0.0], row["v"])
    system = system_entropy(equilibrium_at(row["dynamics"], 0.0), end, found.x0s, found.x1s)
    u = lambda t, xs: jax.vmap(lambda x: row["dynamics"].bath(t) * row["dynamics"].energy(t, x))(xs)
    medium = found.reduced_work - (u(ts[-1], found.x1s) - u(ts[0], found.x0s))
    assert_estimate(mean(found.x1s[:, 0] ** 2), row["v"])
    assert_estimate(mean(found.reduced_work), row["Y"])
    assert_estimate(mean((found.reduced_work - row["Y"]) ** 2), row["var Y"])
    assert_estimate(mean(found.reduced_work - row["delta"]), row["Sigma"])
    assert_estimate(mean(system + medium), row["total"])
    assert_estimate(mean(medium), row["medium"])
    assert_estimate(exponential_mean(found.reduced_work), jnp.exp(-row["delta"]))
    assert_estimate(mean((jnp.exp(-found.reduced_work) - jnp.exp(-row["delta"])) ** 2), row["var exp(-Y)"])
    # Sigma = total entropy + ln p_tau/p_eq, path by path.
    relative = jax.vmap(end.log_prob)(found.x1s) - jax.vmap(equilibrium_at(row["dynamics"], ts[-1]).log_prob)(found.x1s)
    dissipated = found.reduced_work - row["delta"]
    assert jnp.max(jnp.abs(dissipated - (system + medium + relative))) < rounding(100, len(ts))
    heat = found.work - jax.vmap(lambda a, b: row["dynamics"].energy(ts[-1], b) - row["dynamics"].energy(ts[0], a))(found.x0s, found.x1s)
    assert_estimate(mean(heat), row["Q"])
    if row["W"]:
        assert_estimate(mean(found.work), row["W"])
    else:
        assert jnp.max(jnp.abs(found.work)) == 0


# Closed forms (Schmiedl and Seifert 2007): mean work of the linear ramp and least mean work, k_BT = 1.
MOVING = [
    ((5, 1, 1), 9.19698602929, 8.33333333333),
    ((1, 1, 1), 0.367879441171, 0.333333333333),
    ((1, 0.1, 1), 0.483741803596, 0.476190476190),
    ((2, 5, 1), 0.641078071520, 0.571428571429),
    ((1, 2, 3), 0.416873229348, 0.375),
]
BREATHING = [
    ((1, 2, 1), 0.412465798535, 0.178628754019, 0.346573590280),
    ((1, 2, 0.1), 0.484586731345, 0.439122696691, 0.346573590280),
    ((1, 5, 1), 1.123952221047, 1.189855120364, 0.804718956217),
    ((2, 1, 1), -0.297269872240, 0.074901149842, -0.346573590280),
]


@pytest.mark.parametrize(("row", "linear", "least"), MOVING)
def test_moving_traps_cost_what_the_closed_forms_say(key, row, linear, least):
    distance, duration, stiffness = row
    ts = jnp.linspace(0.0, duration, 201)
    best = exact.moving_trap_optimal_protocol(distance, duration, stiffness=stiffness)
    for protocol, expected in ((Ramp(0.0, distance, duration), linear), (best, least)):
        found = drive(Overdamped(Harmonic(stiffness), protocol), ts, 20_000, stepper=ExactLinear(), key=key)
        assert_estimate(mean(found.work), expected)
        # Gaussian work without a change of free energy: the variance is twice the mean.
        assert_estimate(mean((found.work - expected) ** 2), 2 * expected)


@pytest.mark.parametrize(("row", "linear", "variance", "delta"), BREATHING)
def test_breathing_traps_cost_what_the_closed_forms_say(key, row, linear, variance, delta):
    start, stop, duration = row
    dynamics = Overdamped(Breathing(), Ramp(start, stop, duration))
    found = drive(dynamics, jnp.linspace(0.0, duration, 201), 20_000, stepper=ExactLinear(), key=key)
    assert_estimate(mean(found.work), linear)
    assert_estimate(mean((found.work - linear) ** 2), variance)
    assert_estimate(jarzynski(found.work, beta=found.beta), delta)


def test_compensated_cooling_costs_nothing_on_any_path(key):
    # beta k constant: Y = Sigma = 0 on every trajectory while work is done.
    dynamics = Overdamped(Breathing(), lambda t: 1.0 + t, lambda t: 1.0 / (1.0 + t))
    found = drive(dynamics, jnp.linspace(0.0, 1.0, 101), 10_000, stepper=ExactLinear(), key=key)
    assert jnp.max(jnp.abs(found.reduced_work)) < rounding(10, 100)
    assert_estimate(mean(found.work), 0.5)


def wavy_experiment(stepper, key, *, steps=5, samples=20_000):
    dynamics = Overdamped(wavy, Ramp(0.0, 0.8), LinearBeta(0.8, 1.1), lambda t: 1.0 + 0.3 * t, twisting)
    return both_ways(dynamics, jnp.linspace(0.0, 1.0, steps + 1), samples, stepper=stepper, key=key)


WAVY_DELTA = lambda: 1.1 * free_energy(wavy, 0.8, beta=1.1) - 0.8 * free_energy(wavy, 0.0, beta=0.8)


@pytest.mark.parametrize("clock", [0.0, 0.5])
def test_both_ways_give_the_free_energy_at_a_large_step(key, clock):
    # Cooled, dragged and pushed, with five steps: exact for kernels that know their reversal, whatever the clock.
    forward, backward = wavy_experiment(EulerMaruyama(clock), key)
    assert_estimate(free_energy_change(forward, backward), WAVY_DELTA())
    # The protocol work alone is not.
    biased = free_energy_change(*(d._replace(total_work=None) for d in (forward, backward)))
    with pytest.raises(AssertionError):
        assert_estimate(biased, WAVY_DELTA())


@pytest.mark.slow
def test_reversal_with_the_wrong_clock_is_seen(key):
    dynamics = Overdamped(Breathing(), Ramp(1.0, 4.0), Isothermal(1.0))
    ts, stepper = jnp.linspace(0.0, 1.0, 4), EulerMaruyama(0.0)
    forward = drive(dynamics, ts, 80_000, stepper=stepper, key=jr.fold_in(key, 0))
    back = reversed_experiment(dynamics, 1.0)
    right, wrong = (drive(back, ts, 80_000, stepper=s, key=jr.fold_in(key, 1)) for s in (stepper.reversal(), stepper))
    assert_estimate(free_energy_change(forward, right), np.log(2.0))
    with pytest.raises(AssertionError):
        assert_estimate(free_energy_change(forward, wrong), np.log(2.0))


@pytest.mark.nightly
def test_steppers_without_density_measure_the_protocol_work(key):
    forward, backward = wavy_experiment(Diffrax(diffrax.ShARK()), key, steps=100, samples=5000)
    assert forward.total_work is None
    assert_estimate(free_energy_change(forward, backward), WAVY_DELTA())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.slow
def test_escorted_work_gives_the_free_energy_at_a_large_step_and_less_dissipation_the_better_the_escort(key, strength):
    # A trap that is dragged and squeezed; the perfect escort keeps its density in equilibrium.
    def trap(x, lam):
        return 0.5 * (1.0 + lam) * jnp.sum((x - 2.0 * lam) ** 2)

    def escort(t, x):
        return 2.0 - 0.5 * (x - 2.0 * t) / (1.0 + t)

    dynamics = Escorted(Overdamped(trap, Ramp(0.0, 1.0), Isothermal(1.3)), escort, strength)
    ts = jnp.linspace(0.0, 1.0, 21)
    forward, backward = both_ways(dynamics, ts, 20_000, key=key)
    delta = 0.5 * np.log(2.0)
    assert_estimate(free_energy_change(forward, backward), delta)
    dissipated = mean(forward.total_work - delta).value
    least, most = {0.0: (1.0, 5.0), 0.5: (0.2, 1.3), 1.0: (0.0, 0.02)}[strength]
    assert least < dissipated < most
    if strength == 1.0:
        assert_estimate(jarzynski(forward.total_work, beta=1.0), delta)


def test_escorted_work_is_the_total_reduced_work_and_needs_an_escort(key):
    plain = Overdamped(Harmonic(), Ramp(0.0, 1.0))
    with pytest.raises(ValueError, match="`dynamics` must be `Escorted`, got Overdamped"):
        accumulate(escorted_work, plain, jnp.ones((2, 1)), jnp.array([0.0, 1.0]), key=key)
    still = Escorted(plain, lambda t, x: jnp.zeros_like(x))
    ts = jnp.linspace(0.0, 1.0, 5)
    escorted, alone = (drive(d, ts, 10, key=key).total_work for d in (still, plain))
    assert jnp.max(jnp.abs(escorted - alone)) < rounding(10, 5)


def test_bad_experiments_are_refused(key):
    dynamics, ts = Overdamped(Breathing(), Ramp(1.0, 2.0), LinearBeta(1.0, 1.5)), jnp.linspace(0.0, 1.0, 5)
    forward, backward = both_ways(dynamics, ts, 10, key=key)
    with pytest.raises(ValueError, match=r"`backward` must have the betas of `forward` \(1 -> 1.5\) in the other order, got 1 -> 1.5"):
        free_energy_change(forward, forward)
    with pytest.raises(ValueError, match="`backward` must take as long as `forward`, 1, got 2"):
        free_energy_change(forward, backward._replace(duration=jnp.asarray(2.0)))
    rule = "`drive` must be in one constant bath; for a changing one take the reduced work.*, got a bath that goes from beta = 1 to 1.5"
    with pytest.raises(ValueError, match=rule):
        jarzynski(forward.work, beta=forward.beta)
    with pytest.raises(ValueError, match="`bath` must return one beta for an equilibrium"):
        drive(Overdamped(Harmonic(), Ramp(0.0, 1.0), Isothermal([1.0, 2.0])), ts, 10, dim=2, key=key)
    steady = drive(Overdamped(Harmonic(), Ramp(0.0, 1.0), Isothermal(1.3)), ts, 10, key=key)
    assert float(steady.beta) == pytest.approx(1.3)
