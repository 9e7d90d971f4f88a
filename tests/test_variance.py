import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax import accumulate, EulerMaruyama, mean, Overdamped, Phase, simulate, Splitting, Step, Underdamped
from thermojax.baths import Isothermal
from thermojax.distributions import equilibrium, Gaussian
from thermojax.ensemble import refine
from thermojax.fokker_planck import expected_sum, Grid
from thermojax.functionals import work
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp
from thermojax.speed import quartic_trap
from thermojax.variance import (
    controlled,
    extrapolated,
    paired,
    replicated_mean,
    response_control,
    ResponseControl,
    sobol_bridges,
    SobolBridges,
    stein_controls,
    Summed,
)

STEPS = 40
TRAP = quartic_trap()


@pytest.fixture
def ts():
    return jnp.linspace(0.0, 1.0, STEPS + 1)


@pytest.fixture(scope="module")
def chain():
    """Mean work of the Euler chain from the origin and from equilibrium, by quadrature."""
    # The origin is the middle of a cell.
    grid = Grid(-5.025, 5.975, 220)
    means = expected_sum(work, TRAP, grid, jnp.linspace(0.0, 1.0, STEPS + 1), nodes=12)
    density = jnp.exp(-0.25 * grid.lines[0] ** 4)
    origin = int(jnp.argmin(jnp.abs(grid.lines[0])))
    return {"origin": float(means[origin]), "equilibrium": float(jnp.sum(density * means) / jnp.sum(density))}


def free():
    """Diffusion without a force, whose steps are its normals times the square root of twice their length."""
    return Overdamped(lambda x, lam: 0.0 * jnp.sum(x * lam), Ramp(0.0, 1.0))


def normals_of(paths, ts):
    """The normals that drove free paths."""
    return jnp.diff(paths, axis=0) / jnp.sqrt(2 * jnp.diff(ts))[:, None, None]


# Bridges


class Forgetful(SobolBridges):
    """A wrong bridge: it does not know that the rest of the sum has less variance than it had."""

    def draw(self, held, k, shape, steps, dtype, *, key):
        zs, held = SobolBridges.draw(self, held, k, shape, steps, dtype, key=key)
        return zs + 0.3 * jr.normal(jr.fold_in(key, k + steps), shape, dtype), held


def check_law(noise, count, key):
    """The normals of one path are independent and standard: all moments of second order, and a fourth one."""
    ts = jnp.linspace(0.0, 1.0, 8)
    zs = normals_of(simulate(free(), jnp.zeros((count, 1)), ts, noise=noise, key=key), ts)[..., 0]
    for i in range(7):
        for j in range(i + 1):
            assert_estimate(mean(zs[i] * zs[j]), float(i == j))
        assert_estimate(mean(zs[i]), 0.0)
        assert_estimate(mean(zs[i] ** 4), 3.0)


@pytest.mark.slow
def test_every_path_of_a_bridge_sees_independent_standard_normals(key):
    # Seven steps in three intervals: of three, two and two. With independent sums the paths are independent too.
    coarse_key, key = jr.split(key)
    coarse = jr.normal(coarse_key, (3, 4000, 1))
    check_law(SobolBridges(coarse), 4000, key)
    with pytest.raises(AssertionError):
        check_law(Forgetful(coarse), 4000, key)


def test_the_coarse_sums_are_those_that_were_given(key):
    _, noise = sobol_bridges(points=8, replicates=2, intervals=3, dim=2, key=key)
    ts = jnp.linspace(0.0, 1.0, 8)
    zs = normals_of(simulate(free(), jnp.zeros((16, 2)), ts, noise=noise, key=key), ts)
    for interval, (first, last) in enumerate([(0, 3), (3, 5), (5, 7)]):
        assert jnp.allclose(jnp.sum(zs[first:last], axis=0) / jnp.sqrt(last - first), noise.coarse[interval], atol=rounding(20.0))


@pytest.mark.slow
def test_the_points_of_one_set_fill_the_space_evenly(key):
    starts, noise = sobol_bridges(points=256, replicates=4, intervals=4, start=2, key=key)
    uniform = jax.scipy.stats.norm.cdf(starts).reshape(4, 256, 2)
    # Every one of 256 equal intervals has its point, in each set and coordinate.
    assert jnp.all(jnp.sort(jnp.floor(256 * uniform).astype(int), axis=1) == jnp.arange(256)[None, :, None])
    assert not jnp.allclose(uniform[0], uniform[1])
    # The slowest mode is even as well.
    mode = jnp.cos(jnp.pi / 8 * (jnp.arange(4.0) + 0.5)) / jnp.sqrt(2.0)
    slow = jax.scipy.stats.norm.cdf(jnp.einsum("m,mnd->nd", mode, noise.coarse)).reshape(4, 256)
    assert jnp.all(jnp.sort(jnp.floor(256 * slow).astype(int), axis=1) == jnp.arange(256)[None])


def test_bridges_have_the_mean_of_the_chain_and_a_hundredth_of_the_variance(key, ts, chain):
    _, noise = sobol_bridges(points=512, replicates=32, intervals=16, key=key)
    x0s = jnp.zeros((512 * 32, 1))
    estimate = replicated_mean(accumulate(work, TRAP, x0s, ts, noise=noise, key=key)[1], replicates=32)
    assert_estimate(estimate, chain["origin"], min_ess=30)
    assert bool(estimate.trustworthy)
    plain = mean(accumulate(work, TRAP, x0s, ts, key=key)[1])
    assert_estimate(plain, chain["origin"])
    assert estimate.stderr**2 < plain.stderr**2 / 100


@pytest.mark.slow
def test_gradients_go_through_bridges(key, ts):
    _, noise = sobol_bridges(points=32, replicates=2, intervals=4, key=key)

    def mean_work(stop, segments):
        driven = Overdamped(TRAP.potential, Ramp(0.0, stop))
        return jnp.mean(accumulate(work, driven, jnp.zeros((64, 1)), ts, noise=noise, segments=segments, key=key)[1])

    assert jnp.allclose(jax.grad(mean_work)(1.0, 5), jax.jacfwd(mean_work)(1.0, 1), rtol=rounding(10))


@pytest.mark.slow
def test_simulate_and_accumulate_see_the_same_bridges(key, ts):
    _, noise = sobol_bridges(points=4, replicates=2, intervals=3, key=key)
    x1s, _ = accumulate(work, TRAP, jnp.zeros((8, 1)), ts, noise=noise, key=key)
    paths = simulate(TRAP, jnp.zeros((8, 1)), ts[::5], substeps=5, noise=noise, key=key)
    assert jnp.allclose(paths[-1], x1s, atol=rounding(10))


# Pairs


@pytest.mark.slow
def test_the_error_bar_of_pairs_is_that_of_repetitions(key):
    zs = jr.normal(key, (500, 200))
    values = jnp.concatenate([zs, -zs], axis=1) ** 2
    pairs, halves = jax.vmap(lambda v: mean(paired(v)))(values), jax.vmap(mean)(values)
    assert_estimate(mean(pairs.value), 1.0)
    assert_estimate(mean((pairs.value - 1.0) ** 2), jnp.mean(pairs.stderr**2))
    # An even function is the same in both halves: they do not count twice.
    with pytest.raises(AssertionError):
        assert_estimate(mean((pairs.value - 1.0) ** 2), jnp.mean(halves.stderr**2))


def test_pairs_are_the_halves_that_the_ensemble_mirrors(key):
    ts = jnp.linspace(0.0, 1.0, 3)
    _, sums = accumulate(lambda step: step.x1 - step.x0, free(), jnp.zeros((6, 1)), ts, noise="antithetic", key=key)
    assert jnp.all(paired(sums) == 0.0)
    assert jnp.all(sums != 0.0)


# Controls


def test_controls_that_are_fitted_elsewhere_make_no_bias(key):
    cs = jr.normal(key, (20_000, 16))
    ys = cs + cs**2
    honest = jax.vmap(lambda y, c: jnp.mean(controlled(y, c, folds=4)))(ys, cs)
    assert_estimate(mean(honest), 1.0)
    naive = jnp.mean(ys, 1) - jnp.mean(cs, 1) * jnp.sum((cs - cs.mean(1)[:, None]) * ys, 1) / jnp.sum((cs - cs.mean(1)[:, None]) ** 2, 1)
    with pytest.raises(AssertionError):
        assert_estimate(mean(naive), 1.0)


@pytest.mark.slow
def test_what_controls_explain_is_gone_and_idle_ones_do_no_harm(key):
    c, rest = jr.normal(key, (2, 5000))
    y = 3.0 + 2.0 * c + 0.1 * rest
    alone = mean(controlled(y, c))
    assert_estimate(alone, 3.0)
    assert alone.stderr < 0.102 / 5000**0.5
    more = mean(controlled(y, jnp.stack([c, c, jnp.zeros_like(c), 1e6 * rest**3 * c], axis=1)))
    assert_estimate(more, 3.0)
    assert more.stderr < 0.11 / 5000**0.5


def test_a_path_that_is_not_finite_is_left_out_and_counted(key):
    c = jr.normal(key, (1000,))
    estimate = mean(controlled((1.0 + c).at[7].set(jnp.nan), c))
    assert float(estimate.excluded) == 1
    assert not bool(estimate.trustworthy)
    assert jnp.isfinite(estimate.value)


def test_controls_of_the_start_have_mean_zero_in_their_own_density_only(key):
    density = equilibrium(TRAP.potential, 0.0)
    x0s = density.sample(20_000, key=key)
    for column in stein_controls(density, x0s, degree=3).T:
        assert_estimate(mean(column), 0.0)
    # Those of another density show: of these samples, spread out.
    with pytest.raises(AssertionError):
        assert_estimate(mean(stein_controls(density, 1.1 * x0s, degree=3)[:, 1]), 0.0)


def test_controls_of_the_start_of_a_linear_functional_leave_nothing(key):
    density = Gaussian(jnp.array([1.0, -1.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    x0s = density.sample(400, key=key)
    left = controlled(x0s @ jnp.array([1.0, 3.0]), stein_controls(density, x0s, degree=0))
    assert jnp.allclose(left, -2.0, atol=rounding(100))


def both(start, count, ts, key, noise="independent"):
    """Work, its control from linear response and those of the start."""
    start_key, pilot_key, run_key = jr.split(key, 3)
    density = equilibrium(TRAP.potential, 0.0)
    x0s = jnp.zeros((count, 1)) if start == "origin" else density.sample(count, key=start_key)
    if noise == "antithetic":
        x0s = jnp.concatenate([x0s[: count // 2], -x0s[: count // 2]])
    control = response_control(work, TRAP, x0s[:2000], ts, key=pilot_key)
    _, (works, controls) = accumulate((work, control), TRAP, x0s, ts, noise=noise, key=run_key)
    rows = controls[:, None] if start == "origin" else jnp.concatenate([controls[:, None], stein_controls(density, x0s)], axis=1)
    return works, rows


@pytest.mark.parametrize("start", [pytest.param("origin", marks=pytest.mark.slow), "equilibrium"])
def test_controls_from_linear_response_have_mean_zero_and_leave_little(key, ts, chain, start):
    works, controls = both(start, 8000, ts, key)
    assert_estimate(mean(controls[:, 0]), 0.0)
    plain, better = mean(works), mean(controlled(works, controls))
    assert_estimate(better, chain[start])
    assert better.stderr**2 < plain.stderr**2 / 100
    # A bias of a hundredth of the spread shows now.
    with pytest.raises(AssertionError):
        assert_estimate(better, chain[start] + 0.01 * float(jnp.std(works)))


@pytest.mark.slow
def test_controls_work_beside_antithetic_pairs(key, ts, chain):
    works, controls = both("equilibrium", 8000, ts, key, noise="antithetic")
    better = mean(controlled(paired(works), paired(controls)))
    assert_estimate(better, chain["equilibrium"])
    assert better.stderr < mean(paired(works)).stderr / 5


class Ahead(eqx.Module):
    """A wrong control, which reads the state after the step that its noise made."""

    control: ResponseControl

    def __call__(self, step):
        return self.control(step._replace(x0=step.x1))


def test_a_control_that_looks_ahead_is_seen_to_be_biased(key, ts):
    start = jnp.zeros((8000, 1))
    control = response_control(work, TRAP, start[:2000], ts, key=key)
    _, ahead = accumulate(Ahead(control), TRAP, start, ts, key=jr.fold_in(key, 1))
    with pytest.raises(AssertionError):
        assert_estimate(mean(ahead), 0.0)


@pytest.mark.slow
def test_a_pilot_may_have_a_coarser_grid(key, ts):
    start = jnp.zeros((4000, 1))
    control = response_control(work, TRAP, start[:2000], ts[::4], degree=3, key=key)
    _, (works, controls) = accumulate((work, control), TRAP, start, ts, key=jr.fold_in(key, 1))
    assert_estimate(mean(controls), 0.0)
    assert jnp.var(controlled(works, controls)) < jnp.var(works) / 30


@pytest.mark.slow
def test_the_response_of_a_linear_system_with_inertia_leaves_nothing(key):
    """The work of a moved harmonic trap is linear in the noise: its mean is that of the path without any."""
    ts = jnp.linspace(0.0, 1.0, 21)
    trap = lambda beta: Underdamped(Harmonic(2.0), Ramp(0.0, 1.0), Isothermal(beta))
    rest = lambda n: Phase(jnp.zeros((n, 2)), jnp.zeros((n, 2)))
    control = response_control(work, trap(1.0), rest(400), ts, degree=0, key=key)
    _, (works, controls) = accumulate((work, control), trap(1.0), rest(400), ts, stepper=Splitting(), key=jr.fold_in(key, 1))
    _, exact = accumulate(work, trap(1e12), rest(2), ts, key=key)
    assert jnp.std(works) > 0.1
    # The pilot's fit has a ridge of 1e-5; the coefficient makes up for it.
    assert jnp.allclose(controlled(works, controls), exact[0], atol=max(rounding(10, 20), 1e-5))


@pytest.mark.slow
def test_a_new_control_does_not_compile_again(key, ts):
    traces = []

    def counted(step: Step):
        traces.append(1)
        return work(step)

    start = jnp.zeros((200, 1))
    controls = [response_control(work, TRAP, start, ts, degree=1, key=k) for k in jr.split(key)]
    accumulate((counted, controls[0]), TRAP, start, ts, key=key)
    once = len(traces)
    accumulate((counted, controls[1]), TRAP, start, ts, key=key)
    assert len(traces) == once


# Extrapolation


@pytest.mark.slow
def test_a_coarse_run_has_the_motion_of_the_fine_one(key):
    ts = jnp.linspace(0.0, 1.0, 6)
    start = jnp.zeros((5, 2))
    fine = simulate(free(), start, refine(ts, 3), key=key)
    coarse = simulate(free(), start, ts, noise=Summed(3), key=key)
    assert jnp.allclose(fine[::3], coarse, atol=rounding(10, 5))
    assert not jnp.allclose(fine[::3], simulate(free(), start, ts, noise=Summed(2), key=key), atol=0.01)


@pytest.mark.slow
def test_extrapolation_removes_the_first_order_and_hardly_adds_variance(key):
    """The mean square of a trap, whose Euler chain is known: var' = (1 - kh)^2 var + 2h."""
    trap, ts = Overdamped(Harmonic(1.0), Ramp(0.0, 0.0)), jnp.linspace(0.0, 1.0, 9)
    square = lambda step: jnp.sum(step.x1**2 - step.x0**2)

    def chain(n):
        variance = 0.0
        for _ in range(n):
            variance = (1 - 1 / n) ** 2 * variance + 2 / n
        return variance

    values = extrapolated(square, trap, jnp.zeros((40_000, 1)), ts, key=key)
    estimate = mean(values)
    assert_estimate(estimate, 2 * chain(16) - chain(8))
    with pytest.raises(AssertionError):
        assert_estimate(estimate, chain(16))
    assert abs(2 * chain(16) - chain(8) - (1 - np.exp(-2))) < 0.1 * abs(chain(16) - (1 - np.exp(-2)))
    # The square of a Gaussian has twice the square of its variance; two runs with noise of their own would have five times that.
    assert jnp.var(values) < 1.3 * 2 * chain(16) ** 2


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"points": 12}, "`points` must be a power of two, got 12."),
        ({"replicates": 1}, "`replicates` must be at least 2, got 1."),
        ({"intervals": 0}, "`intervals` must be at least 1"),
        ({"intervals": 20_000, "dim": 2}, "`intervals` must leave `start . intervals . dim` at no more than 21201, got 40000."),
    ],
)
def test_bridges_that_cannot_be_built_are_refused(key, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sobol_bridges(**({"points": 4, "replicates": 2, "intervals": 2} | arguments), key=key)


def test_bridges_of_another_ensemble_are_refused(key, ts):
    _, noise = sobol_bridges(points=4, replicates=2, intervals=16, key=key)
    with pytest.raises(ValueError, match="`noise` must be made for 6 particles in 1 dimensions, got bridges for"):
        accumulate(work, TRAP, jnp.zeros((6, 1)), ts, noise=noise, key=key)
    with pytest.raises(ValueError, match=r"`noise` must have at most as many intervals as there are steps \(5\), got 16."):
        accumulate(work, TRAP, jnp.zeros((8, 1)), ts[:6], noise=noise, key=key)


def test_bad_samples_are_refused(key, ts):
    with pytest.raises(ValueError, match="`values` must hold an even number of samples"):
        paired(jnp.zeros(5))
    with pytest.raises(ValueError, match="`controls` must be one row for each of the 5 values"):
        controlled(jnp.zeros(5), jnp.zeros(4))
    with pytest.raises(ValueError, match="`folds` must be at least 2"):
        controlled(jnp.zeros(5), jnp.zeros(5), folds=1)
    with pytest.raises(ValueError, match="`values` must be a vector of 3"):
        replicated_mean(jnp.zeros(5), replicates=3)
    with pytest.raises(ValueError, match="`x0s` must hold more than 20 states, to fit 5 coefficients, got 8."):
        response_control(work, TRAP, jnp.zeros((8, 1)), ts, key=key)
    with pytest.raises(ValueError, match="`factor` must be at least 1, got 0."):
        Summed(0)


@pytest.mark.slow
def test_a_stored_path_has_no_noise_to_sum(ts):
    control = ResponseControl(ts, *jnp.zeros((2, STEPS, 1)), *jnp.zeros((2, STEPS, 1, 1, 2)), degree=1)
    with pytest.raises(ValueError, match="`step` must have its normals"):
        control(Step(EulerMaruyama(), TRAP, ts[0], ts[1], jnp.zeros(1), jnp.zeros(1)))


@needs_x64
@pytest.mark.slow
def test_a_control_made_in_double_precision_serves_a_single_one(key, ts):
    control = response_control(work, TRAP, jnp.zeros((200, 1)), ts, degree=2, key=key)
    _, sums = accumulate(control, TRAP, jnp.zeros((200, 1), jnp.float32), ts, key=key)
    assert sums.dtype == jnp.float32
