"""The least dissipation under full control: bounds, and the protocols that reach them."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax import exact
from thermojax.baths import Isothermal
from thermojax.distributions import (
    Gaussian,
    GaussianMixture,
    grid_equilibrium,
    phase_equilibrium,
    squared_wasserstein,
    standard_normal,
)
from thermojax.ensemble import accumulate
from thermojax.estimators import mean
from thermojax.fokker_planck import Grid, GridDensity
from thermojax.functionals import log_ratio, path_log_ratio, work
from thermojax.geometry import full_control, sampled_transport_bound, transport_bound, transport_protocol
from thermojax.potentials import Harmonic
from thermojax.steppers import ExactLinear

X64 = jax.config.jax_enable_x64
# Means and standard deviations, D, duration; W_2^2/(D tau): closed forms.
GAUSSIANS = (((0, 1), (2, 1), 1, 1, 4.0), ((0, 1), (0, 0.5), 1, 1, 0.25), ((0, 1), (1, 2), 1, 2, 1.0), ((-1, 0.5), (3, 1.5), 0.5, 2, 17.0))
# Distance, duration, stiffness; least work (Schmiedl and Seifert 2007).
MOVING = (
    ((5, 1, 1), 8.33333333333),
    ((1, 1, 1), 0.333333333333),
    ((1, 0.1, 1), 0.476190476190),
    ((2, 5, 1), 0.571428571429),
    ((1, 2, 3), 0.375),
)
# First and last stiffness, duration; stiffness just inside both ends, least work, change of free energy.
BREATHING = (
    ((1, 2, 1), (1.1909830056, 1.7639320225), 0.402918361125, 0.346573590280),
    ((1, 2, 0.1), (1.4339268104, 1.5463898281), 0.478289107117, 0.346573590280),
    ((1, 5, 1), (1.4530818393, 4.1715728753), 1.056537941924, 0.804718956217),
    ((2, 1, 1), (1.7847495630, 1.1771243445), -0.302575395069, -0.346573590280),
)
MIXTURE = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
DISTANCE2 = 0.065104594812
# Two Gaussians whose covariances do not commute, and the scales between them.
FIRST = Gaussian([0.3, -1.0], [[1.0, 0.4], [0.4, 0.6]])
LAST = Gaussian([1.5, 0.5], [[0.5, -0.2], [-0.2, 1.4]])
SCALES = {"beta": 1.3, "mobility": 0.7}
DURATION = 0.8


def close(value, expected, rel=1e-10):
    assert float(value) == pytest.approx(expected, rel=rel if X64 else 3e-5)


def line(place, width):
    return Gaussian([float(place)], float(width) ** 2)


def test_the_least_entropy_production_between_gaussians_is_the_tabulated_number():
    for start, stop, diffusion, duration, expected in GAUSSIANS:
        close(transport_bound(line(*start), line(*stop), duration, mobility=diffusion), expected)
        # The diffusion constant is the mobility over beta.
        close(transport_bound(line(*start), line(*stop), duration, beta=2.0, mobility=2.0 * diffusion), expected)
        with pytest.raises(AssertionError):
            close(transport_bound(line(*start), line(*stop), duration, beta=2.0, mobility=diffusion), expected)


@eqx.filter_jit
def control_at(protocol, t):
    return protocol(t)


def test_full_control_of_a_moving_trap_is_the_linear_control():
    for (distance, duration, stiffness), least in MOVING:
        width = stiffness**-0.5
        found = full_control(line(0, width), line(distance, width), duration)
        close(found.dissipated, least)
        # The same places of the trap, whose stiffness stays what it was.
        best = exact.moving_trap_optimal_protocol(distance, duration, stiffness=stiffness)
        for share in (0.0, 0.3, 1.0):
            control = control_at(found.dynamics.protocol, jnp.asarray(share * duration, float))
            close(control[0, 0], stiffness)
            assert control[2, 0] + control[1, 0] / control[0, 0] == pytest.approx(
                float(best(jnp.asarray(share * duration))), abs=1e-4 * distance
            )
        # Going all the way to equilibrium costs more.
        assert transport_bound(line(0, width), line(distance, width), duration) > 1.05 * found.dissipated


def test_full_control_of_a_breathing_trap_is_the_linear_control():
    for (first, last, duration), inside, least, delta in BREATHING:
        found = full_control(line(0, first**-0.5), line(0, last**-0.5), duration)
        assert float(found.dissipated + delta) == pytest.approx(least, rel=1e-9 if X64 else 1e-4)
        assert float(exact.breathing_trap_optimal_work(first, last, duration)) == pytest.approx(least, rel=1e-9 if X64 else 1e-4)
        for share, expected in zip((1e-5, 1 - 1e-5), inside, strict=True):
            control = control_at(found.dynamics.protocol, jnp.asarray(share * duration, float))[0, 0]
            assert float(control) == pytest.approx(expected, rel=1e-4)
        ends = [float(control_at(found.dynamics.protocol, jnp.asarray(t, float))[0, 0]) for t in (0.0, duration)]
        assert ends == pytest.approx([first, last], rel=1e-5)


@pytest.mark.slow
def test_short_ways_keep_their_digits():
    for duration in (1e-3, 1e-5):
        # The inverse of the stretch of a standard deviation that full driving takes to 0.2, without a difference.
        half = 1.0 / duration
        right = 25.0 + 2.0 * half
        back = right / (np.sqrt(half**2 + right) + half)
        expected = (24.0 / (back + 1.0 + 2.0 * half) / back) ** 2 / duration
        found = full_control(line(0, 1), line(0, 0.2), duration)
        close(found.transport, expected)
        close(full_control(line(0, 1), line(2, 1), duration).transport, 4.0 / (1.0 + 2.0 * half) ** 2 / duration)
    variance = 1.0 + 5.0 * 2.0**-11
    expected = (np.sqrt(variance) - 1.0) ** 2
    close(transport_bound(Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[variance]]), 1.0), expected, rel=1e-9)
    # A difference of traces, in single precision.
    lost = np.float32(1.0 + variance) - np.float32(2.0) * np.sqrt(np.float32(variance))
    with pytest.raises(AssertionError):
        assert lost == pytest.approx(expected, rel=1e-3)


@eqx.filter_jit
def rates(dynamics, t):
    """How fast mean and covariance change under the drift of `dynamics`, how fast those of its protocol do, and the mean square speed."""
    density = dynamics.protocol.density
    now, speed = jax.jvp(lambda s: (density(s).mean, density(s).covariance), (t,), (jnp.ones_like(t),))
    slope = jax.jacfwd(lambda x: dynamics.drift(t, x))(now[0])
    spread = slope @ now[1] + now[1] @ slope.T + dynamics.noise(t) ** 2 * jnp.eye(2)
    velocity = lambda x: dynamics.protocol.velocity(t, x)
    matrix = jax.jacfwd(velocity)(now[0])
    square = jnp.sum(velocity(now[0]) ** 2) + jnp.trace(matrix @ now[1] @ matrix.T)
    return jnp.concatenate([dynamics.drift(t, now[0])[None], spread]), jnp.concatenate([speed[0][None], speed[1]]), square


@pytest.mark.slow
def test_the_protocol_carries_gaussians_on_straight_lines_at_constant_dissipation():
    dynamics = transport_protocol(FIRST, LAST, DURATION, **SCALES)
    end = dynamics.protocol.density(jnp.asarray(DURATION, float))
    assert jnp.max(jnp.abs(end.covariance - LAST.covariance)) < rounding(100)
    least = transport_bound(FIRST, LAST, DURATION, **SCALES)
    for share in (0.1, 0.7):
        t = jnp.asarray(share * DURATION, float)
        driven, expected, square = rates(dynamics, t)
        assert jnp.max(jnp.abs(driven - expected)) < rounding(100)
        # <v^2>/D is the same at every time: the bound is reached.
        close(square * SCALES["beta"] / SCALES["mobility"] * DURATION, float(least))
        # In another bath the same control takes another way.
        wrong, _, _ = rates(eqx.tree_at(lambda d: d.bath, dynamics, Isothermal(1.5)), t)
        with pytest.raises(AssertionError):
            assert jnp.max(jnp.abs(wrong - expected)) < rounding(100)


def dissipated(end, start=FIRST, final=LAST):
    """Dissipated work by way of any end: what `full_control` minimises."""
    precision = jnp.linalg.inv(final.covariance)
    away, ratio = end.mean - final.mean, precision @ end.covariance
    relative = 0.5 * (jnp.trace(ratio) - 2.0 - jnp.linalg.slogdet(ratio)[1] + away @ precision @ away)
    return (relative + transport_bound(start, end, DURATION, **SCALES)) / SCALES["beta"]


@eqx.filter_jit
def slope_at(end):
    """The slope of the dissipated work in mean and covariance of the end."""
    slope = jax.grad(lambda m, c: dissipated(Gaussian(m, 0.5 * (c + c.T))), argnums=(0, 1))(end.mean, end.covariance)
    return jnp.concatenate([slope[0][None], slope[1]])


@pytest.mark.slow
def test_full_control_in_two_dimensions_is_a_minimum():
    found = full_control(FIRST, LAST, DURATION, **SCALES)
    close(found.dissipated, float(dissipated(found.end)))
    assert jnp.max(jnp.abs(slope_at(found.end))) < rounding(100)
    with pytest.raises(AssertionError):
        assert jnp.max(jnp.abs(slope_at(LAST))) < rounding(100)
    # Slow driving reaches the last equilibrium, sudden driving stays at the first.
    assert jnp.max(jnp.abs(full_control(FIRST, LAST, 1e4).end.mean - LAST.mean)) < 1e-3
    assert jnp.max(jnp.abs(full_control(FIRST, LAST, 1e-4).end.mean - FIRST.mean)) < 1e-3


@pytest.mark.slow
def test_a_simulation_of_full_control_costs_the_least_work_and_entropy(key):
    found = full_control(FIRST, LAST, DURATION, **SCALES)
    start_key, noise_key = jr.split(key)
    x0s = FIRST.sample(20_000, key=start_key)
    grid = jnp.linspace(0.0, DURATION, 101)
    x1s, (works, ratios) = accumulate((work, log_ratio), found.dynamics, x0s, grid, stepper=ExactLinear(), key=noise_key)
    volume = lambda g: 0.5 * jnp.linalg.slogdet(g.covariance)[1]
    assert_estimate(mean(works), (volume(FIRST) - volume(LAST)) / SCALES["beta"] + found.dissipated)
    entropies = path_log_ratio(FIRST, found.end, x0s, x1s, ratios)
    expected = transport_bound(FIRST, found.end, DURATION, **SCALES)
    assert_estimate(mean(entropies), expected)
    # Started from elsewhere it is more.
    with pytest.raises(AssertionError):
        assert_estimate(mean(path_log_ratio(FIRST, LAST, x0s, x1s, ratios)), expected)


@pytest.mark.slow
def test_mixtures_on_a_line_have_the_bound_of_their_quantiles():
    close(transport_bound(MIXTURE, standard_normal(1), 2.0, mobility=0.5), DISTANCE2)


@pytest.mark.slow
@needs_x64
def test_densities_on_grids_have_the_bound_of_their_quantiles():
    landscape = grid_equilibrium(lambda x, lam: -MIXTURE.log_prob(x), 0.0)
    grid = Grid(-9.0, 9.0, 1000)
    tabulated = GridDensity(grid, jax.vmap(lambda x: jnp.exp(MIXTURE.log_prob(x)))(grid.centres))
    for density in (landscape, tabulated):
        assert float(transport_bound(density, standard_normal(1), 1.0)) == pytest.approx(DISTANCE2, rel=1e-6)
        assert float(transport_bound(standard_normal(1), density, 1.0)) == pytest.approx(DISTANCE2, rel=1e-6)
    assert float(squared_wasserstein(MIXTURE, standard_normal(1))) == pytest.approx(DISTANCE2, rel=1e-10)
    # The Gaussians of the same moments are closer than the densities.
    assert transport_bound(MIXTURE.moments(), standard_normal(1), 1.0) < 0.9 * DISTANCE2


def clouds(key, n, dim=2):
    """Samples of two normal densities a unit apart, and the squared distance of these."""
    keys = jr.split(key)
    first, last = Gaussian(jnp.zeros(dim), 1.0), Gaussian(jnp.eye(dim)[0], 0.25)
    return first.sample(n, key=keys[0]), last.sample(n, key=keys[1]), 1.0 + 0.25 * dim


@pytest.mark.slow
def test_the_bound_from_samples_has_the_error_bar_of_its_spread(key):
    found = []
    for k in jr.split(key, 30):
        x0s, x1s, distance = clouds(k, 300)
        found.append(sampled_transport_bound(x0s, x1s, 2.0, beta=1.5).bound)
    values, errors = (np.asarray([float(getattr(f, name)) for f in found]) for name in ("value", "stderr"))
    assert all(bool(f.trustworthy) for f in found)
    # The biases of two dimensions hide in the error bar of each cloud: the mean of thirty shows less than one of these.
    assert abs(np.mean(values) - 0.75 * distance) < np.mean(errors)
    # 30 values know their spread to one part in the square root of 60.
    assert abs(np.std(values, ddof=1) / np.mean(errors) - 1) < 4 / np.sqrt(60)


@pytest.mark.slow
def test_halves_show_the_bias_that_few_samples_in_many_dimensions_make(key):
    x0s, x1s, distance = clouds(key, 400, 6)
    found = sampled_transport_bound(x0s, x1s, 1.0, epsilon=0.1)
    assert found.bound.value - distance > 2 * found.bound.stderr
    assert found.halved > found.bound.value
    assert float(found.epsilon) == pytest.approx(0.1)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"`sampled_transport_bound` needs OTT-JAX; install the extra `thermojax\[ott\]`."):
        sampled_transport_bound(jnp.zeros((5, 2)), jnp.ones((5, 2)), 1.0)


PLANE = GaussianMixture([1.0, 1.0], [[1.0, 0.0], [-1.0, 0.0]], [0.4, 0.4])
REFUSED = {
    "dimension": (lambda: transport_bound(line(0, 1), LAST, 1.0), "`stop` must have the dimension of `start`, 1, got 2."),
    "plane": (lambda: transport_bound(PLANE, PLANE, 1.0), "`first` must be in one dimension, got 2."),
    "duration": (lambda: transport_bound(line(0, 1), line(1, 1), -1.0), "`duration` must be positive, got -1.0."),
    "mobility": (lambda: full_control(line(0, 1), line(1, 1), 1.0, mobility=0.0), "`mobility` must be positive, got 0.0."),
    "final": (lambda: transport_protocol(line(0, 1), line(1, 1), 1.0, final=LAST), "`final` must have the dimension of `start`, 1, got 2."),
    "few": (lambda: sampled_transport_bound(jnp.zeros((3, 1)), jnp.zeros((9, 1)), 1.0), "`x0s` must hold at least four samples"),
    "shape": (
        lambda: sampled_transport_bound(jnp.zeros((9, 1)), jnp.zeros((9, 2)), 1.0),
        "`x1s` must have the dimension of `x0s`, 1, got 2.",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_densities_without_quantiles_are_refused():
    phase = phase_equilibrium(Harmonic(), 0.0)
    with pytest.raises(TypeError, match="`start` must be a Gaussian, a mixture, or a density on a grid"):
        transport_bound(phase, phase, 1.0)
