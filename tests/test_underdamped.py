import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from scipy.integrate import solve_ivp

from thermojax import exact
from thermojax.baths import Isothermal, LinearBeta
from thermojax.distributions import MaxwellBoltzmann, phase_equilibrium
from thermojax.dynamics import Overdamped, Underdamped
from thermojax.ensemble import accumulate, along, simulate, Step
from thermojax.estimators import mean
from thermojax.functionals import (
    energy_change,
    GirsanovRatio,
    heat,
    heat_stratonovich,
    log_ratio,
    medium_entropy,
    medium_entropy_stratonovich,
    path_log_ratio,
    reduced_work,
    shadow_work,
    work,
)
from thermojax.phase import Phase
from thermojax.potentials import Harmonic
from thermojax.protocols import Constant, Kicked, PiecewiseLinear, Ramp, Reverse
from thermojax.steppers import advance, Diffrax, EulerMaruyama, ExactLinear, Splitting
from thermojax.switching import both_ways, free_energy_change
from thermojax.theorems import integral_fluctuation_theorem

WORDS = ["OBABO", "BAOAB", "ABOBA", "OABAO", "BAO", "OBAB"]
STIFFNESS, MASS = 2.0, 0.7
PERIOD = 2 * np.pi * np.sqrt(MASS / STIFFNESS)


def shaken(duration):
    """A trap that jumps, is dragged, heated and kicked."""
    protocol = Kicked(PiecewiseLinear(0.0, [0.3, 0.6], 1.0, duration), 0.4, -0.2, duration)
    return Underdamped(Harmonic(STIFFNESS), protocol, LinearBeta(1.3, 0.9, duration), lambda t: 0.8 + 0.1 * t, MASS)


def pushed(dim=2):
    """An anharmonic landscape and a force that is no gradient, with a mass for each coordinate."""
    landscape = lambda x, lam: jnp.sum(0.5 * (x - lam) ** 2 + jnp.cos(2 * x))
    swirl = lambda x, lam: 0.3 * jnp.roll(x, 1) + 0.1 * lam
    return Underdamped(landscape, Ramp(0.2, 1.0), LinearBeta(0.7, 1.6), 1.2, jnp.linspace(0.5, 1.5, dim), swirl)


def states(key, n=3, dim=2):
    return Phase(jr.normal(key, (n, dim)), jr.normal(jr.fold_in(key, 1), (n, dim)))


def gaussian_integral(log_weight, dim):
    r"""$\langle e^{-\ell(z)}\rangle$ of standard normals for a quadratic $\ell$, without noise."""
    z = jnp.zeros(dim)
    constant, slope, curvature = log_weight(z), jax.grad(log_weight)(z), jax.hessian(log_weight)(z)
    precision = jnp.eye(dim) + curvature
    log_mean = -constant + 0.5 * slope @ jnp.linalg.solve(precision, slope) - 0.5 * jnp.linalg.slogdet(precision)[1]
    return jnp.exp(log_mean)


def fluctuation_integral(word, *, ratio=log_ratio, clock=0.5, steps=2, step=0.3 * PERIOD):
    """The mean of exp(-l) over starts and noise of a shaken trap: l is quadratic in them."""
    stepper, ts = Splitting(word, clock), jnp.linspace(0.0, steps * step, steps + 1)
    dynamics = shaken(ts[-1])
    initial, final = (phase_equilibrium(dynamics.potential, lam, beta=b, mass=MASS) for lam, b in ((0.0, 1.3), (1.0, 0.9)))

    def log_weight(z):
        x0 = x = Phase(z[:1] / jnp.sqrt(1.3 * STIFFNESS), z[1:2] / jnp.sqrt(1.3 * MASS))
        total = jnp.zeros(())
        for k in range(steps):
            zs = jax.lax.dynamic_slice(z, (2 + k * stepper.normals,), (stepper.normals,))[:, None]
            y = advance(stepper, dynamics, ts[k], ts[k + 1], x, zs)
            total = total + ratio(Step(stepper, dynamics, ts[k], ts[k + 1], x, y, zs))
            x = y
        return initial.log_prob(x0) - final.log_prob(x) + total

    return gaussian_integral(jax.jit(log_weight), 2 + steps * stepper.normals)


# One splitting of each kind; the slow tests have the others.
MAIN = ["OBABO", "BAOAB", "BAO"]
ALL = [pytest.param(word, marks=[] if word in MAIN else pytest.mark.slow) for word in WORDS]


@needs_x64
@pytest.mark.parametrize("word", ALL)
def test_integral_fluctuation_theorem_is_exact_for_every_splitting_at_a_step_of_a_third_of_the_period(word):
    # Without noise: the variance of exp(-l) is infinite at such a step, and an average over paths would show nothing.
    assert abs(fluctuation_integral(word) - 1) < 1e-10


@pytest.mark.slow
@needs_x64
def test_integral_fluctuation_theorem_is_exact_at_any_clock():
    assert abs(fluctuation_integral("BAOAB", clock=0.0) - 1) < 1e-10


WRONG_RATIOS = {
    "shadow work forgotten": medium_entropy,
    "sign": lambda step: -log_ratio(step),
    "mass forgotten": lambda step: log_ratio(step) / MASS,
}


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("wrong", WRONG_RATIOS.values(), ids=WRONG_RATIOS)
def test_check_of_the_integral_fluctuation_theorem_can_fail(wrong):
    assert not abs(fluctuation_integral("BAOAB", ratio=wrong, step=0.1 * PERIOD) - 1) < 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize("word", ALL)
def test_bar_of_the_total_work_finds_the_free_energy_at_a_step_of_a_third_of_the_period(key, word):
    # A switched well: two standard deviations of displacement and an offset of one k_BT.
    well = lambda x, lam: 0.5 * STIFFNESS * jnp.sum((x - 2 / jnp.sqrt(STIFFNESS) * lam) ** 2) + lam
    ts = 0.3 * 2 * np.pi / np.sqrt(STIFFNESS) * np.arange(4)
    forward, backward = both_ways(Underdamped(well, Ramp(0.0, 1.0, ts[-1])), ts, 10_000, stepper=Splitting(word), key=key)
    assert_estimate(free_energy_change(forward, backward), 1.0)
    if word == "BAO":
        # A splitting of first order, whose protocol work alone is badly wrong at this step.
        protocol_work = free_energy_change(*(d._replace(total_work=None) for d in (forward, backward)))
        with pytest.raises(AssertionError):
            assert_estimate(protocol_work, 1.0)


STEPPERS = {
    "euler": EulerMaruyama(),
    "splitting": Splitting(),
    "align": Diffrax(diffrax.ALIGN()),
    "should": Diffrax(diffrax.ShOULD()),
    "quicsort": Diffrax(diffrax.QUICSORT()),
    "shark": Diffrax(diffrax.ShARK()),
}


@pytest.mark.parametrize(
    "stepper", [pytest.param(s, marks=pytest.mark.slow if name in ("should", "quicsort") else [], id=name) for name, s in STEPPERS.items()]
)
def test_first_law_and_reduced_work_hold_on_every_path_of_every_stepper(key, stepper):
    dynamics, ts, x0s = pushed(), jnp.linspace(0.0, 1.0, 9), states(key)
    functionals = (work, heat, energy_change, reduced_work, medium_entropy)
    x1s, (w, q, de, y, sm) = accumulate(functionals, dynamics, x0s, ts, stepper=stepper, key=key)
    u = lambda scale, t, xs: jax.vmap(lambda x: scale(t) * dynamics.energy(t, x))(xs)
    change = lambda scale: u(scale, ts[-1], x1s) - u(scale, ts[0], x0s)
    assert jnp.max(jnp.abs(w - de - q)) < rounding(10, len(ts))
    assert jnp.max(jnp.abs(de - change(lambda t: 1.0))) < rounding(10, len(ts))
    assert jnp.max(jnp.abs(y - sm - change(dynamics.bath))) < rounding(10, len(ts))


def test_a_kick_costs_the_kinetic_energy_that_it_gives():
    dynamics, still = shaken(1.0), Phase(jnp.array([0.3]), jnp.array([0.5]))
    zero = Phase(jnp.array([0.3]), jnp.array([0.7]))  # 0.5 kicked by 0.4, at rest for a moment, kicked by -0.2
    step = Step(Splitting(), dynamics, jnp.zeros(()), jnp.ones(()), still, zero)
    switch = 0.5 * STIFFNESS * ((0.3 - 1.0) ** 2 - 0.3**2)
    assert abs(work(step) - switch - 0.5 * MASS * (0.7**2 - 0.5**2)) < rounding()
    assert abs(heat(step)) < rounding()


@pytest.mark.parametrize("word", [pytest.param("OBABO", marks=pytest.mark.slow), "BAO"])
def test_streaming_equals_stored(key, word):
    dynamics, ts, stepper = pushed(), jnp.linspace(0.0, 1.0, 9), Splitting(word)
    xs = simulate(dynamics, states(key), ts, stepper=stepper, key=key)
    functionals = {"work": work, "ratio": log_ratio}
    x1s, totals = accumulate(functionals, dynamics, states(key), ts, stepper=stepper, key=key)
    assert jnp.max(jnp.abs(x1s.velocity - xs.velocity[-1])) < rounding(10)
    for name, functional in functionals.items():
        stored = jax.vmap(lambda path, f=functional: along(f, dynamics, ts, path, stepper=stepper), in_axes=1)(xs)
        assert jnp.max(jnp.abs(totals[name] - stored)) < rounding(100, 8 / 0.125)


@pytest.mark.slow
def test_log_ratio_changes_sign_when_the_path_is_reversed(key):
    dynamics, ts = shaken(1.0), jnp.linspace(0.0, 1.0, 9)
    back = Underdamped(dynamics.potential, *(Reverse(s, 1.0) for s in (dynamics.protocol, dynamics.bath, dynamics.mobility)), MASS)
    for word in ("BAOAB", "OBAB"):
        xs = simulate(dynamics, states(key, dim=1), ts, stepper=Splitting(word), key=key)
        turned = Phase(xs.position[::-1], -xs.velocity[::-1])
        total = lambda d, paths, s: jax.vmap(lambda path: along(log_ratio, d, ts, path, stepper=s), in_axes=1)(paths)
        ratios, reverse = total(dynamics, xs, Splitting(word)), total(back, turned, Splitting(word).reversal())
        assert jnp.max(jnp.abs(ratios + reverse)) < rounding(100, 80)
        assert jnp.max(jnp.abs(ratios)) > 0.1


def trap_work(duration, mobility):
    """Mean work of dragging the trap at constant speed, from the equation of motion of the mean."""

    def motion(t, y):
        x, v, _ = y
        pull = STIFFNESS * (t / duration - x)
        return [v, (pull - v / mobility) / MASS, pull / duration]

    return solve_ivp(motion, (0, duration), [0, 0, 0], rtol=1e-10, atol=1e-12).y[2, -1]


@needs_x64
@pytest.mark.parametrize(
    ("stepper", "order"), [(Splitting("BAOAB"), 2), (Splitting("OBABO"), 2), (EulerMaruyama(), 1), (Diffrax(diffrax.ALIGN()), 2)]
)
@pytest.mark.slow
def test_mean_work_converges_to_that_of_the_equation_of_motion(key, stepper, order):
    # In a trap the mean obeys the noise-free equation: a bath of no temperature shows it without statistics.
    dynamics = Underdamped(Harmonic(STIFFNESS), Ramp(0.0, 1.0), Isothermal(1e14), 0.8, MASS)
    sizes, errors = [16, 32, 64], []
    for n in sizes:
        start = Phase(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        errors.append(
            abs(accumulate(work, dynamics, start, jnp.linspace(0.0, 1.0, n + 1), stepper=stepper, key=key)[1][0] - trap_work(1.0, 0.8))
        )
    assert_order(errors, [1 / n for n in sizes], order)


@pytest.mark.slow
def test_kicked_protocol_reaches_the_least_work_whatever_the_mass(key):
    # Gomez-Marin, Schmiedl, Seifert 2008: W* = kL^2/(2 + Q omega_0 tau), with Q omega_0 = mu k.
    for mass, duration in ((MASS, 1.0), (3.0, 2.0)):
        protocol = exact.inertial_trap_optimal_protocol(1.0, duration, stiffness=STIFFNESS, mobility=0.8)
        dynamics = Underdamped(Harmonic(STIFFNESS), protocol, mobility=0.8, mass=mass)
        x0s = phase_equilibrium(dynamics.potential, 0.0, mass=mass).sample(20_000, key=jr.fold_in(key, 99))
        _, works = accumulate(work, dynamics, x0s, jnp.linspace(0.0, duration, 101), key=key)
        least = STIFFNESS / (2 + 0.8 * STIFFNESS * duration)
        assert_estimate(mean(works), least)
        without = Underdamped(dynamics.potential, protocol.protocol, mobility=0.8, mass=mass)
        _, works = accumulate(work, without, x0s, jnp.linspace(0.0, duration, 101), key=key)
        with pytest.raises(AssertionError):
            assert_estimate(mean(works), least)


@pytest.mark.slow
def test_gradient_of_the_mean_work_vanishes_at_the_optimal_kicks_and_jumps(key):
    best = exact.inertial_trap_optimal_protocol(1.0, 1.0, stiffness=STIFFNESS, mobility=0.8)
    still = Phase(jnp.zeros((1, 1)), jnp.zeros((1, 1)))

    @eqx.filter_jit
    def slopes(protocol):
        # A bath of no temperature shows the mean of a trap without noise.
        dynamics = Underdamped(Harmonic(STIFFNESS), protocol, Isothermal(1e14), 0.8, MASS)
        cost = lambda d: accumulate(work, d, still, jnp.linspace(0.0, 1.0, 201), key=key)[1][0]
        found = eqx.filter_grad(cost)(dynamics).protocol
        return jnp.concatenate([found.first[None], found.last[None], found.protocol.knots])

    calm = eqx.tree_at(lambda p: (p.first, p.last), best, (jnp.zeros(()), jnp.zeros(())))
    assert jnp.max(jnp.abs(slopes(best))) < 2e-3
    assert jnp.min(jnp.abs(slopes(calm))[:2]) > 0.05


def test_equilibrium_stays_what_it_is(key):
    dynamics = Underdamped(Harmonic(STIFFNESS), Constant(0.0), Isothermal(1.3), 0.8, [0.5, 2.0])
    x0s = phase_equilibrium(dynamics.potential, 0.0, beta=1.3, mass=jnp.array([0.5, 2.0]), dim=2).sample(20_000, key=jr.fold_in(key, 99))
    # Steps so short that the velocities, off by (omega h/2)^2, show nothing of it.
    x1s, _ = accumulate((), dynamics, x0s, jnp.linspace(0.0, 2.0, 101), key=key)
    for i, mass in enumerate((0.5, 2.0)):
        assert_estimate(mean(x1s.velocity[:, i] ** 2), 1 / (1.3 * mass))
        assert_estimate(mean(x1s.position[:, i] ** 2), 1 / (1.3 * STIFFNESS))


@pytest.mark.slow
def test_small_mass_is_the_overdamped_limit(key):
    ts = jnp.linspace(0.0, 1.0, 101)
    heavy = Underdamped(Harmonic(STIFFNESS), Ramp(0.0, 1.0), mobility=0.8, mass=0.01)
    start = phase_equilibrium(heavy.potential, 0.0, mass=0.01).sample(5000, key=jr.fold_in(key, 99))
    # The velocities relax at the rate 1/(mu m) = 125, which the time step must resolve.
    _, works = accumulate(work, heavy, start, jnp.linspace(0.0, 1.0, 1001), key=key)
    light = Overdamped(Harmonic(STIFFNESS), Ramp(0.0, 1.0), mobility=0.8)
    x0s = jr.normal(key, (5000, 1)) / jnp.sqrt(STIFFNESS)
    _, limit = accumulate(work, light, x0s, ts, stepper=ExactLinear(), key=key)
    difference = mean(works)._replace(stderr=jnp.hypot(mean(works).stderr, mean(limit).stderr))
    assert_estimate(difference, mean(limit).value)


@pytest.mark.slow
@needs_x64
def test_stratonovich_heat_converges_to_the_heat_that_the_bath_takes(key):
    dynamics, sizes, gaps = pushed(), [16, 32, 64], []
    for n in sizes:
        functionals = (heat_stratonovich, heat, medium_entropy_stratonovich, log_ratio)
        _, sums = accumulate(functionals, dynamics, states(key, 2000), jnp.linspace(0.0, 1.0, n + 1), key=key)
        gaps.append((jnp.sqrt(jnp.mean((sums[0] - sums[1]) ** 2)), jnp.sqrt(jnp.mean((sums[2] - sums[3]) ** 2))))
    for gap in zip(*gaps, strict=True):
        assert_order(gap, [1 / n for n in sizes], 2, band=0.3)


@needs_x64
@pytest.mark.slow
def test_shadow_work_of_a_symmetric_splitting_falls_as_the_square_of_the_step(key):
    sizes = [16, 32, 64]
    spread = lambda n: jnp.std(accumulate(shadow_work, pushed(), states(key, 2000), jnp.linspace(0.0, 1.0, n + 1), key=key)[1])
    assert_order([spread(n) for n in sizes], [1 / n for n in sizes], 2, band=0.3)


def test_girsanov_ratio_of_euler_looks_at_the_velocities(key):
    here = Underdamped(Harmonic(1.0), Constant(0.0), mobility=0.5)
    there = Underdamped(Harmonic(1.0), Constant(0.5), mobility=0.5)
    x0s = Phase(jnp.zeros((20_000, 1)), jnp.zeros((20_000, 1)))
    _, totals = accumulate(GirsanovRatio(there), here, x0s, jnp.linspace(0.0, 1.0, 21), stepper=EulerMaruyama(), key=key)
    # Forces that differ by 1/2 and noise 2/mu = 4: half of the squared gap over the noise.
    assert_estimate(mean(totals), 0.5**2 / 4 / 2)


def test_maxwell_boltzmann_is_normalised_and_has_its_score(key):
    density = MaxwellBoltzmann(phase_equilibrium(Harmonic(2.0), 0.0, dim=2).position, 1.3, [0.5, 2.0])
    x = jax.tree.map(lambda a: a[0], states(key))
    flat = -0.5 * jnp.sum(2.0 * x.position**2 + 1.3 * jnp.array([0.5, 2.0]) * x.velocity**2)
    normaliser = jnp.log(2.0) + 0.5 * jnp.log(1.3**2 * 0.5 * 2.0) - 2 * jnp.log(2 * jnp.pi)
    assert abs(density.log_prob(x) - flat - normaliser) < rounding(10)
    slope = jax.grad(density.log_prob)(x)
    for found, expected in zip(density.score(x), slope, strict=True):
        assert jnp.max(jnp.abs(found - expected)) < rounding(10)


WELL = Overdamped(Harmonic(), Constant(0.0))
BAD = {
    "array for a phase": (lambda k: accumulate(work, pushed(), jnp.ones((3, 2)), jnp.array([0.0, 1.0]), key=k), "`x0s` must be a `Phase`"),
    "shapes of a phase": (
        lambda k: accumulate(work, pushed(), Phase(jnp.ones((3, 2)), jnp.ones((3, 1))), jnp.array([0.0, 1.0]), key=k),
        r"`x0s.velocity` must have the shape of the positions, \(3, 2\), got shape \(3, 1\)",
    ),
    "letters": (lambda k: Splitting("BAXAB"), "`word` must be made of the letters A, B and O, each at least once, got 'BAXAB'"),
    "overdamped": (
        lambda k: accumulate(
            work, Overdamped(Harmonic(), Ramp(0.0, 1.0)), jnp.ones((3, 1)), jnp.array([0.0, 1.0]), stepper=Splitting(), key=k
        ),
        "`dynamics` must be `Underdamped` for `Splitting`, got Overdamped",
    ),
    "exact": (
        lambda k: accumulate(work, pushed(), states(k), jnp.array([0.0, 1.0]), stepper=ExactLinear(), key=k),
        "`x0s` must be configurations for `ExactLinear`; use `Splitting`",
    ),
    "ratio of euler": (
        lambda k: accumulate(log_ratio, pushed(), states(k), jnp.array([0.0, 1.0]), stepper=EulerMaruyama(), key=k),
        r"`stepper` must reach the momentum-reversed path of its step \(`Splitting` does\), got EulerMaruyama",
    ),
    "ratio of a stored path": (
        lambda k: along(
            log_ratio, pushed(), jnp.array([0.0, 1.0]), Phase(jnp.ones((2, 2)), jnp.ones((2, 2))), stepper=Splitting("OBAOBAO")
        ),
        "`stepper` must be a splitting whose ends tell its velocities.*got OBAOBAO",
    ),
    "inertial solver": (
        lambda k: accumulate(
            work, Overdamped(Harmonic(), Ramp(0.0, 1.0)), jnp.ones((3, 1)), jnp.array([0.0, 1.0]), stepper=STEPPERS["align"], key=k
        ),
        "`dynamics` must be underdamped for ALIGN, got Overdamped",
    ),
    "mass": (lambda k: Underdamped(Harmonic(), Ramp(0.0, 1.0), mass=-1.0), "`mass` must be positive, got -1.0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_sentence(key, make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(key)


@pytest.mark.slow
def test_dissipated_work_is_a_relative_entropy(key):
    # The mean log-ratio is positive and its exponential average one, at a step where the variance is finite.
    dynamics, ts = Underdamped(Harmonic(STIFFNESS), Ramp(0.0, 0.5), LinearBeta(1.3, 1.1), 0.8, MASS), jnp.linspace(0.0, 1.0, 11)
    initial, final = (phase_equilibrium(dynamics.potential, lam, beta=b, mass=MASS) for lam, b in ((0.0, 1.3), (0.5, 1.1)))
    x0s = initial.sample(20_000, key=jr.fold_in(key, 99))
    x1s, totals = accumulate(log_ratio, dynamics, x0s, ts, key=key)
    ratios = path_log_ratio(initial, final, x0s, x1s, totals)
    assert_estimate(integral_fluctuation_theorem(ratios), 0.0)
    assert mean(ratios).value > 10 * mean(ratios).stderr
