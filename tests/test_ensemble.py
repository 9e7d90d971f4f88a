import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding
from systems import spying_trap, STEPPERS, SYSTEMS

from thermojax.baths import Isothermal
from thermojax.dynamics import OrnsteinUhlenbeck, Overdamped, VariancePreserving
from thermojax.ensemble import accumulate, along, refine, simulate
from thermojax.estimators import mean
from thermojax.functionals import log_ratio, work
from thermojax.potentials import Harmonic
from thermojax.protocols import Constant, Ramp
from thermojax.steppers import Diffrax, EulerMaruyama, ExactLinear

TS = [0.0, 0.1, 0.25, 0.3]


@pytest.mark.parametrize("name", ["cooled, pushed, wavy", "jumps at both ends"])
def test_streaming_equals_stored(key, name):
    dynamics, ts, x0s = SYSTEMS[name], jnp.array(TS), jr.normal(key, (5, 2))
    xs = simulate(dynamics, x0s, ts, key=key)
    x1s, totals = accumulate({"work": work, "ratio": log_ratio}, dynamics, x0s, ts, key=key)
    assert jnp.max(jnp.abs(x1s - xs[-1])) < rounding(10)
    for key_, functional in (("work", work), ("ratio", log_ratio)):
        stored = jax.vmap(lambda path, f=functional: along(f, dynamics, ts, path), in_axes=1)(xs)
        assert jnp.max(jnp.abs(totals[key_] - stored)) < rounding(100)


def test_substeps_are_the_steps_of_a_finer_grid(key):
    dynamics, ts, x0s = SYSTEMS["quartic"], jnp.array(TS), jr.normal(key, (5, 1))
    fine = simulate(dynamics, x0s, refine(ts, 3), key=key)
    assert jnp.max(jnp.abs(simulate(dynamics, x0s, ts, substeps=3, key=key) - fine[::3])) < rounding(10)


@pytest.mark.nightly
def test_segments_change_neither_values_nor_gradients(key):
    dynamics, x0s, ts = SYSTEMS["dragged trap"], jr.normal(key, (5, 1)), jnp.linspace(0.0, 1.0, 12)

    def total(stiffness, segments):
        driven = Overdamped(Harmonic(stiffness), dynamics.protocol)
        return jnp.sum(accumulate(work, driven, x0s, ts, segments=segments, key=key)[1])

    whole = jax.value_and_grad(total)(2.0, 1)
    for segments in (3, 5):
        cut = jax.value_and_grad(total)(2.0, segments)
        assert max(abs(a - b) for a, b in zip(whole, cut, strict=True)) < rounding(100)


def test_the_same_key_gives_the_same_bits_and_more_trajectories_leave_the_first_alone(key):
    dynamics, ts = SYSTEMS["quartic"], jnp.array(TS)
    few, many = (simulate(dynamics, jnp.zeros((n, 1)), ts, key=key) for n in (4, 9))
    assert jnp.array_equal(few, simulate(dynamics, jnp.zeros((4, 1)), ts, key=key))
    assert jnp.array_equal(few, many[:, :4])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_precision_is_that_of_the_configurations(key, dtype):
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64")
    x1s, totals = accumulate((work, log_ratio), SYSTEMS["tilted double well"], jnp.zeros((3, 1), dtype), jnp.array(TS), key=key)
    assert {x1s.dtype, totals[0].dtype, totals[1].dtype} == {jnp.dtype(dtype)}


def test_jit_vmap_and_grad_go_through(key):
    ts = jnp.array(TS)

    def total(stiffness):
        return jnp.mean(accumulate(log_ratio, Overdamped(Harmonic(stiffness), Ramp(0.0, 1.0)), jnp.zeros((4, 1)), ts, key=key)[1])

    one = jnp.stack([jax.grad(total)(k) for k in (1.0, 2.0)])
    assert jnp.max(jnp.abs(jax.jit(jax.vmap(jax.grad(total)))(jnp.array([1.0, 2.0])) - one)) < rounding(10)


def test_new_parameter_values_do_not_retrace(key):
    traces = []
    spy = spying_trap(traces)
    run = lambda k: accumulate(work, Overdamped(spy(jnp.asarray(k)), Ramp(0.0, k)), jnp.zeros((3, 1)), jnp.array(TS), key=key)
    run(1.0)
    first = len(traces)
    run(2.0)
    # The border looks at the shape of the drift each time; the scan itself is not traced again.
    border = len(traces) - first
    run(3.0)
    assert len(traces) - first == 2 * border
    assert border < first / 2


@needs_x64
def test_gradient_of_mean_work_is_the_difference_quotient_with_the_same_noise(key):
    ts = jnp.linspace(0.0, 1.0, 33)

    def mean_work(stiffness):
        dynamics = Overdamped(Harmonic(stiffness), Ramp(0.0, 1.0))
        return jnp.mean(accumulate(work, dynamics, jnp.zeros((16, 1)), ts, key=key)[1])

    h = 1e-5
    difference = (mean_work(2.0 + h) - mean_work(2.0 - h)) / (2 * h)
    assert abs(jax.grad(mean_work)(2.0) - difference) < 1e-7 * abs(difference)


@pytest.mark.slow
@needs_x64
def test_times_are_differentiable_too(key):
    def final(end):
        ts = jnp.linspace(0.0, 1.0, 9) * end
        return jnp.mean(accumulate((), OrnsteinUhlenbeck(), jnp.ones((16, 1)), ts, key=key)[0] ** 2)

    h = 1e-6
    assert abs(jax.grad(final)(1.0) - (final(1 + h) - final(1 - h)) / (2 * h)) < 1e-7


SOLVERS = {
    "Euler": diffrax.Euler(),
    "EulerHeun": diffrax.EulerHeun(),
    "Heun": diffrax.Heun(),
    "ItoMilstein": diffrax.ItoMilstein(),
    "StratonovichMilstein": diffrax.StratonovichMilstein(),
    "ReversibleHeun": diffrax.ReversibleHeun(),
    "SEA": diffrax.SEA(),
    "ShARK": diffrax.ShARK(),
    "SRA1": diffrax.SRA1(),
    "SlowRK": diffrax.SlowRK(),
    "SPaRK": diffrax.SPaRK(),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.slow
def test_any_solver_of_diffrax_relaxes_to_the_known_moments(key, solver):
    # From x = 1 in a trap of stiffness 2 at beta = 1/2: mean exp(-2t), variance (1 - exp(-4t)).
    dynamics = Overdamped(Harmonic(2.0), Constant(0.0), Isothermal(0.5))
    xs, _ = accumulate((), dynamics, jnp.ones((4000, 1)), jnp.linspace(0.0, 0.5, 33), stepper=Diffrax(solver), key=key)
    # Euler's bias at this step is a third of the error bar; the others have less.
    assert_estimate(mean(xs[:, 0]), jnp.exp(-1.0))
    assert_estimate(mean((xs[:, 0] - jnp.exp(-1.0)) ** 2), 1 - jnp.exp(-2.0))


def test_diffrax_euler_is_our_euler_for_coefficients_that_do_not_change(key):
    dynamics, ts = OrnsteinUhlenbeck(2.0), jnp.array(TS)
    ours, theirs = (simulate(dynamics, jnp.ones((3, 2)), ts, stepper=s, key=key) for s in (EulerMaruyama(), Diffrax(diffrax.Euler())))
    assert jnp.max(jnp.abs(ours - theirs)) < rounding(10)


@pytest.mark.slow
@needs_x64
def test_euler_converges_at_first_order_in_the_mean_work_of_a_trap_without_noise():
    from thermojax.exact import moving_trap_work

    dynamics = Overdamped(Harmonic(2.0), Ramp(0.0, 1.0), Isothermal(1e30))
    sizes = [32, 64, 128, 256]
    errors = []
    for n in sizes:
        _, works = accumulate(work, dynamics, jnp.zeros((1, 1)), jnp.linspace(0.0, 1.0, n + 1), key=jr.key(0))
        errors.append(abs(works[0] - moving_trap_work(1.0, 1.0, stiffness=2.0)))
    assert_order(errors, [1 / n for n in sizes], 1.0)


@needs_x64
@pytest.mark.parametrize("dim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_exact_linear_is_exact_at_any_step_for_drifts_that_are_not_normal(key, dim):
    # A shear: the symmetric part alone would give a wrong covariance. One step against many.
    matrix = -jnp.eye(dim) + 1.5 * jnp.eye(dim, k=1)
    push = lambda x, lam: matrix @ x + jnp.arange(1.0, dim + 1)
    dynamics = Overdamped(lambda x, lam: 0.0 * jnp.sum(x * lam), Constant(0.0), Isothermal(jnp.arange(1.0, dim + 1)), 0.7, push)
    stepper, t0, x0 = ExactLinear(), jnp.zeros(()), jnp.ones(dim)
    jump, spread = stepper.increment(dynamics, t0, t0 + 0.8, x0)
    n = 4096
    h, centre, covariance = 0.8 / n, x0, jnp.zeros((dim, dim))
    propagator = jnp.eye(dim) + 0.7 * matrix * h
    for _ in range(n):
        centre = centre + 0.7 * (matrix @ centre + jnp.arange(1.0, dim + 1)) * h
        covariance = propagator @ covariance @ propagator.T + jnp.diag(1.4 / jnp.arange(1.0, dim + 1)) * h
    found = spread @ spread.T if spread.ndim == 2 else jnp.diag(spread**2)
    assert jnp.max(jnp.abs(x0 + jump - centre)) < 2e-3
    assert jnp.max(jnp.abs(found - covariance)) < 2e-3
    # Two half steps make a whole one, to rounding.
    half, part = stepper.increment(dynamics, t0, t0 + 0.4, x0)
    again, _ = stepper.increment(dynamics, t0, t0 + 0.4, x0 + half)
    assert jnp.max(jnp.abs(half + again - jump)) < rounding(100)


def test_exact_linear_of_a_free_particle_is_diffusion():
    free = Overdamped(lambda x, lam: jnp.sum(0.0 * x) - lam * x[0], Constant(0.3))
    jump, spread = ExactLinear().increment(free, jnp.zeros(()), jnp.asarray(0.5), jnp.array([1.0]))
    assert abs(jump[0] - 0.15) < rounding()
    assert abs(spread**2 - 1.0).max() < rounding()


def test_a_nan_trajectory_is_counted_and_left_out(key):
    # V = -x^4 far out: Euler's step explodes there, and only there.
    dynamics = Overdamped(lambda x, lam: -jnp.sum((x - lam) ** 4), Constant(0.0))
    x0s = jnp.array([[1e3]] * 3 + [[0.0]] * 97)
    _, works = accumulate(log_ratio, dynamics, x0s, jnp.linspace(0.0, 0.01, 11), key=key)
    estimate = mean(works)
    assert (int(estimate.excluded), int(estimate.samples)) == (3, 97)
    assert jnp.isfinite(estimate.value)
    assert not estimate.trustworthy


def harmonic(**changes):
    return Overdamped(**({"potential": Harmonic(1.0), "protocol": Ramp(0.0, 1.0)} | changes))


BAD = {
    "decreasing times": (lambda: {"ts": jnp.array([0.0, 1.0, 0.5])}, "`ts` must increase strictly .*, got"),
    "a step of zero": (lambda: {"ts": jnp.array([0.0, 0.0, 0.5])}, "`ts` must increase strictly"),
    "one time": (lambda: {"ts": jnp.array([0.0])}, r"`ts` must be a vector of at least two times, got shape \(1,\)"),
    "complex states": (lambda: {"x0s": jnp.ones((3, 1), complex)}, "`x0s` must be real, got complex"),
    "complex times": (lambda: {"ts": jnp.ones(2, complex)}, "`ts` must be real, got complex"),
    "states without a sample axis": (lambda: {"x0s": jnp.ones(3)}, r"`x0s` must have shape \(sample, dim\), got shape \(3,\)"),
    "negative beta": (lambda: {"dynamics": harmonic(bath=Isothermal(-1.0))}, "`beta` must be positive, got -1.0."),
    "beta that falls below zero": (
        lambda: {"dynamics": harmonic(bath=lambda t: 0.2 - t)},
        "`bath` must return a positive beta at every time, got",
    ),
    "negative mobility": (lambda: {"dynamics": harmonic(mobility=-2.0)}, "`mobility` must be positive, got -2.0."),
    "mobility that falls below zero": (lambda: {"dynamics": harmonic(mobility=lambda t: 0.2 - t)}, "`mobility` must be positive, got"),
    "vector potential": (
        lambda: {"dynamics": harmonic(potential=lambda x, lam: (x - lam) ** 2)},
        r"`potential` must return one number for one configuration, got shape \(1,\)",
    ),
    "force of a wrong shape": (
        lambda: {"dynamics": harmonic(nonconservative=lambda x, lam: jnp.ones(2))},
        r"`dynamics` must have a drift of shape \(1,\)",
    ),
    "control of a wrong shape": (
        lambda: {"dynamics": harmonic(bath=Isothermal([1.0, 2.0]))},
        r"`dynamics` must have one noise amplitude, or one per coordinate \(1,\), got shape \(2,\)",
    ),
    "nonlinear drift for the exact kernel": (
        lambda: {"dynamics": harmonic(potential=lambda x, lam: jnp.sum(x**4)), "stepper": ExactLinear()},
        "`dynamics` must have a drift that is linear in x for `ExactLinear`; use `EulerMaruyama`",
    ),
    "no substeps": (lambda: {"substeps": 0}, "`substeps` must be at least 1, got 0."),
    "clock outside the step": (lambda: {"stepper": EulerMaruyama(1.5)}, "`clock` must lie between 0 and 1, got 1.5."),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_sentence(key, make, message):
    good = {"dynamics": harmonic(), "x0s": jnp.ones((3, 1)), "ts": jnp.array(TS)}
    with pytest.raises((ValueError, TypeError), match=message):
        simulate(**(good | make()), key=key)


def test_bad_values_are_found_under_jit_too(key):
    @eqx.filter_jit
    def run(ts):
        return simulate(harmonic(), jnp.ones((3, 1)), ts, key=key)

    with pytest.raises(RuntimeError, match="`ts` must increase strictly"):
        jax.block_until_ready(run(jnp.array([0.0, 1.0, 0.5])))


def test_times_that_single_precision_cannot_tell_apart_are_refused(key):
    ts = jnp.linspace(1e6, 1e6 + 1, 1001)
    with pytest.raises(ValueError, match="`ts` must increase strictly"):
        simulate(harmonic(), jnp.ones((3, 1), jnp.float32), ts, key=key)


def test_a_missing_key_and_an_unknown_argument_are_errors(key):
    with pytest.raises(TypeError, match="key"):
        simulate(harmonic(), jnp.ones((3, 1)), jnp.array(TS))
    with pytest.raises(TypeError, match="scheme"):
        simulate(harmonic(), jnp.ones((3, 1)), jnp.array(TS), scheme="euler", key=key)


@pytest.mark.parametrize("stepper", [s for s in STEPPERS if s != "exact"])
def test_the_clock_says_where_in_the_step_the_coefficients_are_read(key, stepper):
    share = {"left": 0.0, "middle": 0.5, "right": 1.0}[stepper]
    process = VariancePreserving(1.0, 9.0)
    x0 = jnp.ones((1, 1))
    x1 = simulate(process, x0, jnp.array([0.2, 0.6]), stepper=STEPPERS[stepper], key=key)[1]
    z = jr.normal(jr.fold_in(key, 0), (1, 1, 1))[:, 0]
    rate = 1.0 + 8.0 * (0.2 + 0.4 * share)
    assert jnp.max(jnp.abs(x1 - (x0 - 0.5 * rate * x0 * 0.4 + jnp.sqrt(rate * 0.4) * z))) < rounding(10)
