import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from scipy.linalg import solve_discrete_lyapunov
from systems import STEPPERS, SYSTEMS, twisting, wavy

from thermojax.baths import Isothermal, LinearBeta
from thermojax.distributions import Gaussian, grid_equilibrium
from thermojax.dynamics import OrnsteinUhlenbeck, Overdamped
from thermojax.ensemble import accumulate, along, simulate, Step
from thermojax.estimators import exponential_mean, mean
from thermojax.functionals import (
    convention_change,
    GirsanovRatio,
    heat,
    heat_ito,
    heat_ito_correction,
    heat_stratonovich,
    log_ratio,
    medium_entropy,
    medium_entropy_stratonovich,
    OnsagerMachlup,
    path_log_ratio,
    reduced_work,
    shadow_work,
    StochasticIntegral,
    system_entropy,
    work,
    work_ito,
    work_stratonovich,
)
from thermojax.potentials import Breathing, Harmonic
from thermojax.protocols import Constant, PiecewiseLinear, Ramp
from thermojax.steppers import Diffrax, EulerMaruyama, ExactLinear, log_density

BOTH = [(system, stepper) for system in SYSTEMS for stepper in STEPPERS if stepper != "exact" or "trap" in system or "jumps" in system]


def path_of(dynamics, stepper, key, *, dim=1, steps=40):
    ts = jnp.linspace(0.0, 1.0, steps + 1)
    start_key, noise_key = jr.split(key)
    xs = simulate(dynamics, jr.normal(start_key, (3, dim)), ts, stepper=stepper, key=noise_key)
    return ts, xs[:, 0]


def check_first_law(dynamics, stepper, ts, path, *, work=work, heat=heat):
    change = dynamics.energy(ts[-1], path[-1]) - dynamics.energy(ts[0], path[0])
    balance = along(work, dynamics, ts, path, stepper=stepper) - along(heat, dynamics, ts, path, stepper=stepper)
    assert abs(balance - change) < rounding(10, len(ts))


@pytest.mark.parametrize(("system", "stepper"), BOTH)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.slow
def test_first_law_holds_along_every_path(key, system, stepper, dim):
    dynamics = SYSTEMS[system]
    check_first_law(dynamics, STEPPERS[stepper], *path_of(dynamics, STEPPERS[stepper], key, dim=dim))


def without_push(d):
    return Overdamped(d.potential, d.protocol, d.bath, d.mobility)


WRONG_HEATS = {
    "sign": lambda step: -heat(step),
    "switched too early": lambda step: heat(step._replace(t0=step.t1)),
    "nonconservative force forgotten": lambda step: heat(step) - (work(step) - work(step._replace(dynamics=without_push(step.dynamics)))),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG_HEATS.values(), ids=WRONG_HEATS)
def test_first_law_check_can_fail(key, wrong):
    dynamics, stepper = SYSTEMS["cooled, pushed, wavy"], EulerMaruyama()
    path = path_of(dynamics, stepper, key)
    with pytest.raises(AssertionError):
        check_first_law(dynamics, stepper, *path, heat=wrong)


@pytest.mark.parametrize(("system", "stepper"), BOTH)
def test_reduced_work_is_the_change_of_reduced_energy_and_the_entropy_of_the_medium(key, system, stepper):
    dynamics, stepper = SYSTEMS[system], STEPPERS[stepper]
    ts, path = path_of(dynamics, stepper, key, dim=2)
    u = lambda k: dynamics.bath(ts[k]) * dynamics.energy(ts[k], path[k])
    total = along(reduced_work, dynamics, ts, path, stepper=stepper)
    assert abs(total - (u(-1) - u(0) + along(medium_entropy, dynamics, ts, path, stepper=stepper))) < rounding(10, len(ts))


def test_at_constant_temperature_reduced_work_is_beta_times_work(key):
    dynamics, stepper = SYSTEMS["jumps at both ends"], EulerMaruyama()
    ts, path = path_of(dynamics, stepper, key)
    reduced, plain = (along(f, dynamics, ts, path, stepper=stepper) for f in (reduced_work, work))
    assert abs(reduced - 1.3 * plain) < rounding(10, len(ts))


def test_plain_numbers_and_lambdas_are_legal_baths_protocols_and_mobilities(key):
    plain = Overdamped(lambda x, lam: jnp.sum((x - lam) ** 2), lambda t: 0.5, lambda t: 2.0, lambda t: 3.0)
    _, (heats, entropies) = accumulate((heat, medium_entropy), plain, jnp.ones((4, 1)), jnp.linspace(0.0, 0.1, 4), key=key)
    assert jnp.max(jnp.abs(entropies - 2.0 * heats)) < rounding(10, 4)


def test_a_jump_of_the_control_costs_one_sudden_switch():
    trap = Harmonic(2.0)
    path = jnp.array([[0.3], [0.3]])  # one step in which nothing moves
    dynamics = Overdamped(trap, PiecewiseLinear(0.0, [0.4, 0.4], 1.0))
    x = path[0]
    total = along(work, dynamics, jnp.array([0.0, 1.0]), path)
    assert abs(total - (trap(x, jnp.array(1.0)) - trap(x, jnp.array(0.0)))) < rounding()
    # The heat is exchanged under the control inside: here the particle falls to the middle of the jumped trap.
    fell = along(heat, dynamics, jnp.array([0.0, 1.0]), jnp.array([[0.3], [0.4]]))
    assert abs(fell - 0.01) < rounding()


@pytest.mark.parametrize("stepper", [EulerMaruyama(0.0), EulerMaruyama(), EulerMaruyama(1.0)])
@pytest.mark.parametrize("dim", [1, 2])
def test_log_ratio_is_the_difference_of_the_log_densities_of_step_and_reversal(key, stepper, dim):
    dynamics = SYSTEMS["cooled, pushed, wavy"]
    ts, path = path_of(dynamics, stepper, key, dim=dim)

    def difference(step):
        ahead = log_density(step.stepper, step.dynamics, step.t0, step.t1, step.x0, step.x1)
        return ahead - log_density(step.stepper, step.dynamics, step.t0, step.t1, step.x1, step.x0)

    totals = [along(f, dynamics, ts, path, stepper=stepper) for f in (log_ratio, difference)]
    assert abs(totals[0] - totals[1]) < rounding(100, len(ts))


def test_log_ratio_changes_sign_when_the_path_is_reversed(key):
    # Forward and reversed protocols use the same kernels on the same grid only if the clock is in the middle.
    forward = SYSTEMS["jumps at both ends"]
    backward = Overdamped(forward.potential, lambda t: forward.protocol(1.0 - t), forward.bath, forward.mobility)
    ts, path = path_of(forward, EulerMaruyama(), key)
    ratio = lambda dynamics, xs, clock: along(log_ratio, dynamics, ts, xs, stepper=EulerMaruyama(clock))
    assert abs(ratio(forward, path, 0.5) + ratio(backward, path[::-1], 0.5)) < rounding(10, len(ts))
    assert abs(ratio(forward, path, 0.0) + ratio(backward, path[::-1], 0.0)) > 1e-3


@pytest.mark.slow
def test_exact_relaxation_has_no_shadow_work(key):
    dynamics = SYSTEMS["jumps at both ends"]
    ts, path = path_of(dynamics, ExactLinear(), key, steps=3)
    assert abs(along(shadow_work, dynamics, ts, path, stepper=ExactLinear())) < rounding(100, len(ts))
    assert abs(along(shadow_work, dynamics, ts, path, stepper=EulerMaruyama())) > 1e-3


def ratios_at(h, key, *, entropy=log_ratio, samples=20_000):
    """Log-ratios of the hardest case: anharmonic, dragged, cooled and pushed."""
    dynamics = Overdamped(wavy, Ramp(0.0, 0.8), LinearBeta(0.8, 1.4), 1.0, twisting)
    start_key, noise_key = jr.split(key)
    initial = grid_equilibrium(wavy, 0.0, beta=0.8)
    final = Gaussian([0.6], 1.2)  # any density serves: here not even an equilibrium one
    x0s = initial.sample(samples, key=start_key)
    x1s, totals = accumulate(entropy, dynamics, x0s, jnp.linspace(0.0, 1.0, round(1 / h) + 1), key=noise_key)
    return path_log_ratio(initial, final, x0s, x1s, totals)


@pytest.mark.parametrize("h", [0.2, 0.05, 0.01])
def test_integral_fluctuation_theorem_is_exact_at_every_step_size(key, h):
    assert_estimate(exponential_mean(ratios_at(h, key)), 1.0)


WRONG_ENTROPIES = {
    "stratonovich at a large step": medium_entropy_stratonovich,
    "beta forgotten": heat,
    "reversed under the next control": lambda step: log_ratio(step._replace(t0=step.t1, t1=2 * step.t1 - step.t0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG_ENTROPIES.values(), ids=WRONG_ENTROPIES)
def test_integral_fluctuation_theorem_check_can_fail(key, wrong):
    with pytest.raises(AssertionError):
        assert_estimate(exponential_mean(ratios_at(0.2, key, entropy=wrong, samples=100_000)), 1.0, min_ess=1)


def integral_by_quadrature(entropy, h, *, cells=300):
    """The exponential average of the hardest case without noise: the product of the steps' weighted kernels on a grid."""
    dynamics = Overdamped(wavy, Ramp(0.0, 0.8), LinearBeta(0.8, 1.4), 1.0, twisting)
    final = grid_equilibrium(wavy, 0.8, beta=1.4)
    xs = jnp.linspace(-7.0, 7.5, cells)[:, None]
    stepper, ts = EulerMaruyama(), jnp.linspace(0.0, 1.0, round(1 / h) + 1)

    @jax.jit
    def weighted(t0, t1):
        def entry(x0, x1):
            return jnp.exp(log_density(stepper, dynamics, t0, t1, x0, x1) - entropy(Step(stepper, dynamics, t0, t1, x0, x1)))

        return jax.vmap(lambda x0: jax.vmap(lambda x1: entry(x0, x1))(xs))(xs) * (xs[1, 0] - xs[0, 0])

    # exp(-l) times the initial density leaves the final density as the only weight of the ends.
    weight = jnp.exp(jax.vmap(final.log_prob)(xs))
    for t0, t1 in zip(ts[:-1][::-1], ts[1:][::-1], strict=True):
        weight = weighted(t0, t1) @ weight
    return jnp.sum(weight) * (xs[1, 0] - xs[0, 0])


@needs_x64
def test_integral_by_quadrature_is_one_to_rounding_for_the_exact_ratio_at_a_large_step():
    assert abs(integral_by_quadrature(log_ratio, 0.2) - 1) < 1e-10


@pytest.mark.slow
@needs_x64
def test_bias_of_the_stratonovich_form_falls_linearly_with_the_step():
    steps = [0.01, 0.005, 0.0025]
    assert_order([abs(integral_by_quadrature(medium_entropy_stratonovich, h) - 1) for h in steps], steps, 1.0)


@needs_x64
@pytest.mark.slow
def test_ito_and_correction_make_stratonovich(key):
    dynamics = SYSTEMS["cooled, pushed, wavy"]
    sizes, gaps, spreads = [32, 128, 512], [], []
    for n in sizes:
        names = {"ito": heat_ito, "correction": heat_ito_correction, "stratonovich": heat_stratonovich, "exact": heat}
        _, sums = accumulate(names, dynamics, jnp.full((20_000, 1), 0.3), jnp.linspace(0.0, 1.0, n + 1), key=key)
        gaps.append(jnp.mean(sums["ito"] + sums["correction"] - sums["stratonovich"]))
        spreads.append(jnp.std(sums["stratonovich"] - sums["exact"]))
    assert_order(gaps, [1 / n for n in sizes], 1.0)
    assert_order(spreads, [1 / n for n in sizes], 1.0)
    # Without the correction there is no convergence at all.
    assert abs(jnp.mean(sums["stratonovich"] - sums["ito"])) > 10 * gaps[-1]


@pytest.mark.nightly
@needs_x64
def test_stratonovich_and_ito_work_converge_to_the_discrete_work(key):
    # Not quadratic in position and control, or the midpoint sum would be exact; no nonconservative force, whose Itô sum has another limit.
    dynamics = Overdamped(lambda x, lam: jnp.sum(0.5 * x**2 + jnp.cos(2 * (x - lam))), Ramp(0.2, 1.0), LinearBeta(0.7, 1.6))
    gaps = {"stratonovich": [], "ito": []}
    sizes = [32, 64, 128, 256]
    for n in sizes:
        names = {"exact": work, "stratonovich": work_stratonovich, "ito": work_ito}
        _, sums = accumulate(names, dynamics, jnp.full((1000, 1), 0.3), jnp.linspace(0.0, 1.0, n + 1), key=key)
        gaps["stratonovich"].append(jnp.sqrt(jnp.mean((sums["stratonovich"] - sums["exact"]) ** 2)))
        gaps["ito"].append(jnp.sqrt(jnp.mean((sums["ito"] - sums["exact"]) ** 2)))
    assert_order(gaps["stratonovich"], [1 / n for n in sizes], 1.0)
    assert_order(gaps["ito"], [1 / n for n in sizes], 1.0)


def test_girsanov_ratio_is_the_difference_of_log_densities_and_averages_to_the_path_kl(key):
    here, there = OrnsteinUhlenbeck(1.0), Overdamped(Harmonic(1.0), Constant(0.5))
    ts, n = jnp.linspace(0.0, 1.0, 21), 20_000
    _, totals = accumulate(GirsanovRatio(there), here, jnp.zeros((n, 1)), ts, key=key)
    # Equal noise, drifts that differ by 1/2: half of the squared gap over the noise, times the duration.
    assert_estimate(mean(totals), 0.5**2 / 2 / 2)
    assert_estimate(exponential_mean(totals), 1.0)
    same = accumulate(GirsanovRatio(here), here, jnp.zeros((10, 1)), ts, key=key)[1]
    assert jnp.max(jnp.abs(same)) < rounding(1, 20)


def two_bath_rate(h, hot=250.0, cold=25.0):
    """Entropy production rate of Euler's chain of two beads between two baths, unit springs, from its discrete Lyapunov equation."""
    temperatures, slope = np.diag([hot, cold]), np.array([[-2.0, 1.0], [1.0, -2.0]])
    move = np.eye(2) + slope * h
    covariance = solve_discrete_lyapunov(move, 2 * temperatures * h)
    return np.trace(np.linalg.inv(temperatures) @ slope @ (covariance @ move.T - move @ covariance)) / (2 * h)


@pytest.mark.slow
def test_two_baths_produce_entropy_at_the_known_rate(key):
    # Exact for small steps: (Th - Tc)^2 / (4 Th Tc) = 2.025. The simulation is held to the chain that it is, step and all.
    assert_order([abs(two_bath_rate(h) - 2.025) for h in (0.01, 0.005, 0.0025)], [4, 2, 1], 1.0)
    spring = lambda x, lam: lam * 0.5 * (x[0] ** 2 + (x[0] - x[1]) ** 2 + x[1] ** 2)
    dynamics = Overdamped(spring, Constant(1.0), Isothermal([1 / 250, 1 / 25]))
    burn, long = jnp.linspace(0.0, 10.0, 1001), jnp.linspace(0.0, 20.0, 2001)
    key0, key1 = jr.split(key)
    xs, _ = accumulate((), dynamics, jnp.zeros((1000, 2)), burn, key=key0)
    _, totals = accumulate(medium_entropy_stratonovich, dynamics, xs, long, key=key1)
    assert_estimate(mean(totals / 20), two_bath_rate(0.01))
    with pytest.raises(ValueError, match="`bath` must return one beta for all coordinates"):
        accumulate(medium_entropy, dynamics, xs, burn, key=key)


def test_work_on_a_process_without_a_potential_is_refused(key):
    with pytest.raises(ValueError, match="`dynamics` must have a potential, a protocol and a bath"):
        accumulate(work, OrnsteinUhlenbeck(), jnp.zeros((3, 1)), jnp.linspace(0.0, 1.0, 3), key=key)


def test_log_ratio_of_a_solver_without_density_names_the_steppers_that_have_one(key):
    import diffrax

    with pytest.raises(TypeError, match="`EulerMaruyama` and `ExactLinear` do.*got ShARK"):
        accumulate(log_ratio, SYSTEMS["quartic"], jnp.zeros((3, 1)), jnp.linspace(0.0, 1.0, 3), stepper=Diffrax(diffrax.ShARK()), key=key)


@pytest.mark.slow
def test_compensated_breathing_does_nothing_to_any_trajectory(key):
    # beta * k constant: Y = 0 on every path while work is done (k = 1 + t, beta = 1/(1 + t): <W> = 1/2).
    dynamics = Overdamped(Breathing(), lambda t: 1 + t, lambda t: 1 / (1 + t))
    x0s = jr.normal(key, (20_000, 1))
    _, (reduced, plain) = accumulate((reduced_work, work), dynamics, x0s, jnp.linspace(0.0, 1.0, 101), stepper=ExactLinear(), key=key)
    assert jnp.max(jnp.abs(reduced)) < rounding(10, 100)
    # In the time of this bath, D grows as 1 + t and the spring keeps pace: <x^2> obeys v' = -2(1+t)v + 2(1+t), so v = 1.
    assert_estimate(mean(plain), 0.5)


@pytest.mark.parametrize("dim", [1, 2])
def test_onsager_machlup_action_at_zero_is_the_log_density_of_euler(key, dim):
    dynamics, stepper = SYSTEMS["cooled, pushed, wavy"], EulerMaruyama()
    ts, path = path_of(dynamics, stepper, key, dim=dim)

    def normalised(step):
        volume = 0.5 * dim * jnp.log(2 * jnp.pi * dynamics.noise(step.t) ** 2 * (step.t1 - step.t0))
        return OnsagerMachlup(0.0)(step) + volume + log_density(stepper, dynamics, step.t0, step.t1, step.x0, step.x1)

    assert abs(along(normalised, dynamics, ts, path)) < rounding(100, len(ts))


@pytest.mark.parametrize("convention", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
@pytest.mark.slow
def test_actions_of_a_path_and_its_reversal_differ_by_the_entropy_of_the_medium(key, convention):
    # Exactly so in Stratonovich's convention; in any other one with the conjugate convention, up to the time step.
    dynamics = Overdamped(wavy, Constant(0.3), Isothermal(1.3), 1.0, twisting)
    gaps = []
    for steps in (25, 100, 400):
        ts = jnp.linspace(0.0, 1.0, steps + 1)
        xs = simulate(dynamics, jr.normal(key, (300, 2)), ts, key=jr.fold_in(key, 1))

        @jax.jit
        def gap(paths, ts=ts):
            total = lambda functional, p: jax.vmap(lambda path: along(functional, dynamics, ts, path), in_axes=1)(p)
            ahead, back = total(OnsagerMachlup(convention), paths), total(OnsagerMachlup(1 - convention), paths[::-1])
            return jnp.std(back - ahead - total(medium_entropy_stratonovich, paths))

        gaps.append(gap(xs))
    if convention == 0.5:
        assert gaps[-1] < rounding(1e3, 400)
    else:
        assert_order(gaps, [1 / 25, 1 / 100, 1 / 400], 0.5, band=0.2)


@pytest.mark.nightly
@needs_x64
def test_stochastic_integrals_change_convention_as_they_should(key):
    dynamics, field = SYSTEMS["cooled, pushed, wavy"], lambda t, x: (1 + t) * jnp.sin(2 * x)
    gaps = []
    for steps in (50, 200, 800):
        functionals = [StochasticIntegral(field, 0.0), convention_change(field, 0.0, 1.0), StochasticIntegral(field, 1.0)]
        _, (ito, change, anti) = accumulate(functionals, dynamics, jnp.full((2000, 2), 0.3), jnp.linspace(0.0, 1.0, steps + 1), key=key)
        gaps.append(jnp.std(ito + change - anti))
    assert_order(gaps, [1 / 50, 1 / 200, 1 / 800], 0.5)
    assert jnp.abs(jnp.mean(anti - ito)) > 5 * gaps[-1]
    with pytest.raises(ValueError, match="`convention` must lie between 0 .* and 1 .*, got 2.0"):
        StochasticIntegral(field, 2.0)


def test_system_entropy_takes_any_density(key):
    x0s, x1s = jr.normal(key, (5, 1)), 1.0 + jr.normal(key, (5, 1))
    here, there = Gaussian([0.0], 1.0), Gaussian([1.0], 1.0)
    known = system_entropy(here, there, x0s, x1s)
    assert jnp.max(jnp.abs(known - system_entropy(here.log_prob, lambda x: there.log_prob(x), x0s, x1s))) < rounding(10)
    assert jnp.max(jnp.abs(known - 0.5 * ((x1s - 1) ** 2 - x0s**2)[:, 0])) < rounding(10)


def test_functionals_are_differentiable(key):
    dynamics, ts = SYSTEMS["tilted double well"], jnp.linspace(0.0, 0.2, 11)

    def total(stop):
        driven = Overdamped(dynamics.potential, Ramp(-0.5, stop), dynamics.bath)
        return jnp.mean(accumulate(log_ratio, driven, jnp.zeros((8, 1)), ts, key=key)[1])

    reverse, forward = jax.grad(total)(1.0), jax.jacfwd(total)(1.0)
    assert abs(reverse - forward) < rounding(100, 10)
    assert jnp.isfinite(reverse)
