"""Named time grids, and clocks that can be trained: what each is equally spaced in, for any process."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import needs_x64, rounding

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import Cosine, Elucidated, LogSnrLinear, OrnsteinUhlenbeck
from thermojax.generative import (
    Clock,
    constant_speed_grid,
    log_snr_grid,
    MixtureScore,
    named_grid,
    optimise_grid,
    reclocked,
    transport_cost,
)
from thermojax.generative._budget import _adam
from thermojax.generative._grids import times_at
from thermojax.optimize import fit

X64 = jax.config.jax_enable_x64
OU = OrnsteinUhlenbeck(0.7)
ENDS = (0.05, 2.0)
# What each grid is equally spaced in, of the standard deviation of the noise per unit of data.
COORDINATES = {
    "log-snr": lambda noises: -2 * np.log(noises),
    "cosine": np.arctan,
    "edm": lambda noises: noises ** (1 / 7),
}
DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])


def noises_of(ts, rate=0.7):
    """Noise per unit of data of the Ornstein-Uhlenbeck process, in NumPy."""
    ts = np.asarray(ts, float)
    return np.sqrt(np.expm1(2 * rate * ts))


def check_equal(values, scale=1.0):
    gaps = np.diff(values)
    assert np.allclose(gaps, np.mean(gaps), rtol=rounding(scale, 200))


@pytest.mark.parametrize("name", COORDINATES)
def test_a_named_grid_has_equal_steps_in_its_coordinate_alone(name):
    ts = named_grid(name, OU, *ENDS, 6)
    assert ts.shape == (7,)
    assert ts[0] == jnp.asarray(ENDS[0])
    assert ts[-1] == ENDS[1]
    check_equal(COORDINATES[name](noises_of(ts)))
    for wrong in [coordinate for other, coordinate in COORDINATES.items() if other != name] + [lambda noises: np.log1p(noises**2)]:
        with pytest.raises(AssertionError):
            check_equal(wrong(noises_of(ts)))


def test_named_grids_are_those_in_use():
    # Equal times of the cosine process; powers of the time, where the time is the noise; and the grid that was there before.
    assert np.allclose(named_grid("cosine", Cosine(), 0.1, 0.9, 4), np.linspace(0.1, 0.9, 5), rtol=rounding(1, 100))
    powers = np.linspace(0.002 ** (1 / 5), 80 ** (1 / 5), 9) ** 5
    assert np.allclose(named_grid("edm", Elucidated(), 0.002, 80.0, 8, rho=5.0), powers, rtol=rounding(1, 500))
    assert np.allclose(named_grid("log-snr", OU, *ENDS, 6), log_snr_grid(OU, *ENDS, 6), rtol=rounding(1, 100))
    assert np.allclose(named_grid("linear", OU, *ENDS, 6), np.linspace(*ENDS, 7), rtol=rounding(1, 10))


@pytest.mark.slow
def test_times_move_with_the_levels_and_with_the_process():
    process = LogSnrLinear(12.0, -9.0)
    levels = jnp.linspace(12.0, -9.0, 4)
    ends = jnp.asarray(0.0), jnp.asarray(1.0)
    of_levels, of_process = jax.jit(
        lambda levels, process: (
            jax.jacfwd(lambda a: times_at(process, a, *ends))(levels),
            jax.grad(lambda p: times_at(p, levels, *ends)[1])(process).start,
        )
    )(levels, process)
    # t = (start - level) / 21, with the ends fixed.
    assert np.allclose(of_levels, np.diag([0, -1 / 21, -1 / 21, 0]), atol=rounding())
    assert float(of_process) == pytest.approx(2 / 3 / 21, rel=rounding(1, 50))


# Clocks.


@pytest.mark.slow
def test_a_clock_shows_the_times_it_was_made_of_and_never_stands_still(key):
    ts = jnp.asarray([0.1, 0.2, 0.25, 0.9, 2.0])
    clock = Clock.through(ts)
    shown = jax.jit(jax.vmap(clock))
    assert np.allclose(shown(jnp.linspace(0.0, 1.0, 5)), ts, rtol=rounding(1, 10))
    rates = jax.jit(jax.vmap(jax.grad(lambda s, c: c(s)), (0, None)))
    wild = Clock(3.0 * jr.normal(key, (4,)), 0.1, 2.0)
    places = jnp.linspace(0.0, 1.0, 401)
    for one in (clock, wild):
        assert jnp.all(rates(places, one) > 0)
    # No jump of the rate at a knot, of which there are jumps of the piecewise straight clock.
    before, after = rates(jnp.asarray([0.5 - 1e-6, 0.5 + 1e-6]), clock)
    assert float(after) == pytest.approx(float(before), rel=1e-3)
    assert not np.allclose(*(4 * np.diff(np.asarray(ts))[1:3]), rtol=1e-3)
    # Equal intervals are a straight line.
    straight = Clock(jnp.zeros(4), 0.1, 2.0)
    assert np.allclose(jax.jit(jax.vmap(straight))(places), 0.1 + 1.9 * places, rtol=rounding(1, 10))


@jax.jit
def read(process, t):
    x = jnp.asarray([0.3])
    return jnp.stack([process.alpha(t), process.variance(t), process.noise(t) ** 2, process.drift(t, x)[0]])


def check_reclocked(process, clock, s, rate):
    expected = read(process, clock(s)) * jnp.stack([jnp.ones_like(rate), jnp.ones_like(rate), rate, rate])
    assert np.allclose(read(reclocked(process, clock), s), expected, rtol=rounding(1, 1000))


@pytest.mark.slow
def test_another_clock_gives_the_same_densities_at_another_speed():
    clock, s = Clock.through(np.array([0.1, 0.2, 0.25, 0.9, 2.0])), jnp.asarray(0.6)
    rate = jax.grad(clock)(s)
    check_reclocked(OU, clock, s, rate)
    with pytest.raises(AssertionError):
        check_reclocked(OU, clock, s, jnp.ones_like(rate))


@pytest.mark.slow
@needs_x64
def test_a_clock_of_constant_speed_reaches_the_square_of_the_length():
    # Exact, quadrature: action and length of the Ornstein-Uhlenbeck process until t = 3.
    found = transport_cost(OrnsteinUhlenbeck(), DATA, horizon=3.0, nodes=1024)
    assert float(found.action) == pytest.approx(0.325622347432, rel=1e-8)
    clock = Clock.through(constant_speed_grid(found, 1024))
    even = transport_cost(reclocked(OrnsteinUhlenbeck(), clock), DATA, nodes=512)
    assert float(even.length) == pytest.approx(0.278172974719, abs=1e-6)
    assert float(even.action) == pytest.approx(0.278172974719**2, abs=1e-6)
    with pytest.raises(AssertionError):
        assert float(found.action) == pytest.approx(0.278172974719**2, abs=1e-6)


@pytest.mark.slow
@needs_x64
def test_gradient_descent_on_the_action_finds_the_clock_of_constant_speed(key):
    process = OrnsteinUhlenbeck()
    action = lambda clock, key: transport_cost(reclocked(process, clock), DATA, nodes=24).action
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 100))
    found = fit(action, Clock(jnp.zeros(6)), optimizer=adam, steps=100, every=100, where=lambda clock: clock.logits, key=key)
    exact = transport_cost(process, DATA)
    least, equal = float(exact.length) ** 2, float(exact.action)
    reached = float(transport_cost(reclocked(process, found.model), DATA, nodes=128).action)
    assert 0 < reached - least < 0.02 * (equal - least)
    # What it found are the times of equal lengths.
    assert np.allclose(found.model.times(), constant_speed_grid(exact, 6), atol=0.02)
    assert not np.allclose(jnp.linspace(0, 1, 7), constant_speed_grid(exact, 6), atol=0.1)


LEVELS = LogSnrLinear(5.0, -5.0)
BROAD, NARROW = (GaussianMixture([0.8, 0.2], [[-1.0], [1.0]], [v, v]) for v in (0.4, 0.02))


class Watched(eqx.Module):
    """A score that counts how often it is traced; its slope in time is finite only if `smooth`."""

    score: MixtureScore
    count: Callable = eqx.field(static=True)
    smooth: bool = eqx.field(static=True, default=True)

    def __call__(self, t, x):
        self.count(None)
        return self.score(t, x) * (1.0 if self.smooth else 1.0 + jnp.sqrt(t - t))


@pytest.mark.nightly
def test_gradient_descent_for_other_data_compiles_nothing_and_a_diverged_one_is_refused():
    traces = []
    count = traces.append

    def grid(data, *, smooth=True):
        score = Watched(MixtureScore(LEVELS, data), count, smooth)
        return optimise_grid(score, LEVELS, data, 3, method="gradient", levels=9, iterations=5).ts

    def check_traces(data):
        before = len(traces)
        ts = grid(data)
        # The descent looks at the shape of its loss once more.
        assert len(traces) == before + 1
        return ts

    first = grid(BROAD)
    assert not np.allclose(first, check_traces(NARROW), rtol=1e-3)
    _adam.cache_clear()
    with pytest.raises(AssertionError):
        check_traces(NARROW)
    with pytest.raises(ValueError, match="`score` must have finite errors, .*, got a descent that diverged"):
        grid(BROAD, smooth=False)


# The border.

REFUSED = {
    "name": (lambda: named_grid("sigmoid", OU, *ENDS, 4), "`name` must be one of 'linear', 'log-snr', 'cosine', 'edm', got 'sigmoid'."),
    "steps": (lambda: named_grid("edm", OU, *ENDS, 0), "`steps` must be at least 1, got 0."),
    "rho": (lambda: named_grid("edm", OU, *ENDS, 4, rho=0.0), "`rho` must be positive, got 0.0."),
    "order": (lambda: named_grid("edm", LogSnrLinear(), 1.0, 0.0, 4), "`start` must have a finite log signal-to-noise ratio, above that"),
    "no noise": (lambda: named_grid("edm", OU, 0.0, 1.0, 4), "`start` must have a finite log signal-to-noise ratio"),
    "clock": (lambda: Clock(jnp.zeros(3), 1.0, 1.0), "`horizon - start` must be positive, got 0.0."),
    "logits": (lambda: Clock(jnp.zeros((3, 2))), "`logits` must be a vector"),
    "times": (lambda: Clock.through(np.array([0.0, 2.0, 1.0])), "`ts` must increase strictly"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises((ValueError, TypeError)) as refusal:  # noqa: PT011
        call()
    if "logits" not in message:
        assert str(refusal.value).startswith(message)
