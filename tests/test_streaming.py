"""Ensembles that stream through statistics: the numbers of ensembles that are held, whatever the devices."""

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from systems import spying_trap

from thermojax.distributions import Gaussian
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import exponential_mean, jarzynski, mean
from thermojax.functionals import log_ratio, work
from thermojax.potentials import Harmonic, Polynomial
from thermojax.protocols import Ramp
from thermojax.steppers import EulerMaruyama, ExactLinear
from thermojax.streaming import arrays_of, Exponential, Histogram, Keep, Moments, stream, stream_each, with_arrays

TRAP = Overdamped(Harmonic(2.0), Ramp(0.0, 1.0))
START = Gaussian([0.0], 0.5)
TS = jnp.linspace(0.0, 1.0, 11)


def run(statistics, functionals=work, *, samples=1000, block=128, **options):
    return stream(statistics, functionals, TRAP, START, TS, samples=samples, block=block, **options)


def block_of(b, key, size=128):
    """Block number `b` by `accumulate`, from the key that it is said to have."""
    start_key, noise_key = jr.split(jr.fold_in(key, b))
    return accumulate((work, log_ratio), TRAP, START.sample(size, key=start_key), TS, key=noise_key)[1]


def close(a, b, scale=1.0):
    return np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))) < rounding(scale, 20)


def test_blocks_are_those_of_accumulate(key):
    kept = run((Keep(), Keep()), (work, log_ratio), key=key)
    for place, held in enumerate(zip(*(block_of(b, key) for b in range(8)), strict=True)):
        assert kept[place].values.shape == (1000,)
        assert close(kept[place].values, np.concatenate(held)[:1000], 10)


def test_all_may_start_at_one_place(key):
    found = stream(Keep(), work, TRAP, jnp.array([0.3]), TS, samples=128, block=128, read=lambda walk: walk.x0[0], key=key)
    assert close(found.values, 0.3)


@pytest.mark.slow
def test_a_trajectory_does_not_depend_on_how_many_there_are(key):
    few, many = (run(Keep(), samples=n, key=key).values for n in (300, 1000))
    assert np.array_equal(few, many[:300])


def test_merged_statistics_are_those_of_all_values_at_once(key):
    statistics = {"moments": Moments(), "free energy": Exponential(1.5), "ratio": Exponential(), "all": Keep()}
    found = run(statistics, key=key)
    values = jnp.asarray(found["all"].values)
    pairs = (
        (found["moments"].estimate(), mean(values)),
        (found["free energy"].free_energy(), jarzynski(values, beta=1.5)),
        (found["ratio"].estimate(), exponential_mean(values)),
    )
    for merged, held in pairs:
        assert close(merged.value, held.value, 10)
        assert abs(merged.stderr / held.stderr - 1) < rounding(1000)
        assert abs(merged.ess / held.ess - 1) < rounding(1000)
        assert (bool(merged.trustworthy), int(merged.samples), int(merged.excluded)) == (bool(held.trustworthy), 1000, 0)
    assert abs(found["ratio"].estimate().tail_index - exponential_mean(values).tail_index) < rounding(1000)
    z = (np.asarray(values, float) - np.mean(values, dtype=float)) / np.std(values, dtype=float)
    assert abs(found["moments"].skewness - np.mean(z**3)) < rounding(1000)
    assert abs(found["moments"].kurtosis - (np.mean(z**4) - 3)) < rounding(1000)


def test_mean_work_and_free_energy_of_a_dragged_trap(key):
    many = {"samples": 60_000, "block": 1024, "key": key}
    # The Euler chain's mean: what is left of the lag is 1 - 2h in each step, then the trap jumps on by 0.1.
    lag, works = 0.0, 0.0
    for _ in range(10):
        lag = 0.8 * lag
        works += (lag + 0.1) ** 2 - lag**2
        lag += 0.1
    assert_estimate(run(Moments(), stepper=EulerMaruyama(0.0), **many).estimate(), works)
    # Exact relaxation obeys detailed balance: Jarzynski's equality holds at this step size.
    found = run((Exponential(), Exponential()), stepper=ExactLinear(), read=lambda walk: (walk.sums, -walk.sums), **many)
    assert_estimate(found[0].free_energy(), 0.0)
    with pytest.raises(AssertionError, match="is not"):
        assert_estimate(found[1].free_energy(), 0.0)


def test_histogram_and_quantiles(key):
    edges = np.linspace(-3.0, 4.0, 71)
    found = run({"histogram": Histogram(edges), "all": Keep()}, samples=20_000, block=1024, key=key)
    values = np.asarray(found["all"].values, float)
    counts, _ = np.histogram(values, edges)
    histogram = found["histogram"]
    assert np.array_equal(histogram.data["counts"][1:-1], counts)
    assert close(histogram.density(), counts / 0.1 / 20_000)
    for level in (0.1, 0.5, 0.9):
        assert abs(float(histogram.quantile(level).value) - np.quantile(values, level)) < 0.02
        assert_estimate(histogram.quantile(level), np.quantile(values, level), k=1.0)
    with pytest.raises(ValueError, match=r"`level` must be between the shares of the weight below the first and the last edge"):
        run(Histogram(edges + 10.0), key=key).quantile(0.5)


@pytest.mark.slow
def test_weighted_quantiles_are_those_of_the_measure_that_the_weights_make(key):
    # The final positions weighted by e^-W are in equilibrium at the end (Jarzynski): N(1, 1/2).
    edges = np.linspace(-4.0, 5.0, 91)
    found, plain = (
        run(Histogram(edges, weighted=weighted), samples=60_000, block=1024, stepper=ExactLinear(), read=reader, key=key)
        for weighted, reader in ((True, position_and_weight), (False, lambda walk: walk.x1[0]))
    )
    assert_estimate(found.quantile(0.5), 1.0)
    with pytest.raises(AssertionError):
        assert_estimate(plain.quantile(0.5), 1.0)


@pytest.mark.slow
def test_error_bars_of_weighted_quantiles_are_the_spread_of_many_runs(key):
    edges = np.linspace(-4.0, 5.0, 91)
    found = [run(Histogram(edges, weighted=True), block=1000, read=position_and_weight, key=k).quantile(0.5) for k in jr.split(key, 60)]
    spread = np.std([float(e.value) for e in found], ddof=1)
    said = np.sqrt(np.mean([float(e.stderr) ** 2 for e in found]))
    # The spread of 60 runs is known to 1/sqrt(120) = 9 %.
    assert abs(said / spread - 1) < 4 * 0.091


def position_and_weight(walk):
    return walk.x1[0], -walk.sums


def test_pieces_are_the_whole(key):
    statistics = {"moments": Moments(), "weights": Exponential(), "counts": Histogram([0.0, 0.5, 1.0])}
    whole, first = run(statistics, key=key), run(statistics, part=range(3), key=key)
    resumed = run(first, part=range(3, 8), key=key)
    assert [np.asarray(a).tobytes() for a in jax.tree.leaves(resumed)] == [np.asarray(a).tobytes() for a in jax.tree.leaves(whole)]


def test_what_was_seen_can_be_stored_and_added_up(key):
    statistics = {"work": {"moments": Moments(), "weights": Exponential()}, "counts": Histogram([0.0, 0.5, 1.0])}
    parts = [arrays_of(run(statistics, part=part, key=key)) for part in (range(1), range(1, 8))]
    assert "work.moments.power2" in parts[0]
    found = statistics
    for arrays in parts:
        found = with_arrays(found, arrays)
    whole = run(statistics, key=key)
    assert close(found["work"]["moments"].estimate().stderr, whole["work"]["moments"].estimate().stderr)
    assert close(found["work"]["weights"].free_energy().value, whole["work"]["weights"].free_energy().value)
    assert np.array_equal(found["counts"].data["counts"], whole["counts"].data["counts"])


@pytest.mark.slow
def test_antithetic_pairs_have_the_error_bar_of_pairs(key):
    # The work of a trap is linear in the noise: pairs have none.
    mirrored = run(Moments(paired=True), noise="antithetic", key=key)
    assert mirrored.estimate().samples == 500
    assert mirrored.estimate().stderr < rounding(10)
    assert abs(mirrored.estimate().value - run(Moments(), samples=20_000, key=key).estimate().value) < 0.03
    assert run(Moments(paired=True), key=key).estimate().stderr > 0.01


@pytest.mark.slow
def test_exponential_averages_of_mirror_images_have_the_error_bar_of_pairs(key):
    options = {"noise": "antithetic", "block": 1000, "key": key}
    paired, alone, kept = (run(s, read=lambda walk: walk.x1[0] ** 2, **options) for s in (Exponential(paired=True), Exponential(), Keep()))
    weights = np.exp(-kept.values.astype(float))
    pairs = 0.5 * (weights[:500] + weights[500:])
    estimate = paired.estimate()
    assert close(estimate.value, pairs.mean(), 10)
    assert abs(estimate.stderr / (pairs.std() / np.sqrt(500)) - 1) < rounding(1000)
    assert abs(estimate.stderr / alone.estimate().stderr - 1) > 0.05


@pytest.mark.slow
def test_trajectories_that_are_not_finite_are_counted_and_left_out(key):
    read = lambda walk: jnp.where(walk.x0[0] > 0.5, jnp.nan, walk.sums)
    found = run({"moments": Moments(), "weights": Exponential(), "all": Keep()}, read=read, key=key)
    lost = int(np.sum(np.isnan(found["all"].values)))
    assert lost > 100
    for estimate in (found["moments"].estimate(), found["weights"].estimate()):
        assert (int(estimate.excluded), int(estimate.samples), bool(estimate.trustworthy)) == (lost, 1000 - lost, False)
        assert np.isfinite(estimate.value)
    nothing = run((Moments(), Exponential()), read=lambda walk: walk.sums * jnp.nan, key=key)
    assert nothing[0].estimate().excluded == 1000
    assert not nothing[0].estimate().trustworthy


@pytest.mark.slow
def test_points_side_by_side_are_single_runs(key):
    models = [
        (Overdamped(Harmonic(k), Ramp(0.0, 1.0, tau)), Gaussian([0.0], 1 / k), tau * TS) for k, tau in ((1.0, 1.0), (2.0, 0.5), (3.0, 2.0))
    ]
    options = {"samples": 1000, "block": 128, "key": key}
    alone = [stream(Moments(), work, *model, **options).estimate() for model in models]
    for at_once in (2, 3):
        for one, other in zip(alone, stream_each([Moments()] * 3, work, models, at_once=at_once, **options), strict=True):
            assert close(one.value, other.estimate().value, 10)
            assert close(one.stderr, other.estimate().stderr)
    with pytest.raises(ValueError, match="`models` must differ in numbers only"):
        stream_each([Moments()] * 2, work, [models[0], (Overdamped(lambda x, lam: jnp.sum(x**2), Ramp(0.0, 1.0)), START, TS)], **options)


def test_new_numbers_compile_nothing(key):
    traces = []
    spy = spying_trap(traces)
    for stiffness in (1.0, 2.0):
        stream(Moments(), work, Overdamped(spy(jnp.asarray(stiffness)), Ramp(0.0, 1.0)), START, TS, samples=256, block=128, key=key)
        first = first if stiffness == 2.0 else len(traces)
    # Once, outside of what is compiled: the check of what was given.
    assert len(traces) == first + 1


MISTAKES = {
    "too few": ({"samples": 1}, "`samples` must be at least 2, got 1"),
    "an odd block": ({"block": 127}, "`block` must be an even number, got 127"),
    "a part outside": ({"part": range(7, 9)}, "`part` must lie in the 8 blocks of the ensemble"),
    "no device": ({"devices": []}, "`devices` must name at least one"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(key, options, message):
    with pytest.raises(ValueError, match=message):
        run(Moments(), key=key, **options)


def test_statistics_must_fit_what_they_see(key):
    with pytest.raises(ValueError, match="`statistics` must be statistics in the structure of what they see"):
        run((Moments(), Moments(), Moments()), (work, log_ratio), key=key)
    with pytest.raises(ValueError, match="`edges` must increase strictly"):
        Histogram([0.0, 0.0])
    with pytest.raises(ValueError, match="`statistic` must have seen values"):
        Moments().estimate()
    with pytest.raises(ValueError, match="`beta` must be positive"):
        Exponential(-1.0)


DEVICES = """
import hashlib, sys
sys.path[:0] = {path!r}
import jax, numpy as np
jax.config.update("jax_enable_x64", {x64})
from test_streaming import fingerprint
counts = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
print(*[fingerprint(jax.devices()[:n]) for n in counts])
"""


def fingerprint(devices):
    """All bits of a run with work, log-ratio, a histogram and exponential averages."""
    quartic = Overdamped(Polynomial([0.0, 0.3, -1.0, 0.0, 0.5]), Ramp(0.0, 1.0))
    statistics = ({"moments": Moments(), "weights": Exponential(), "counts": Histogram([0.0, 0.5, 1.0])}, (Exponential(), Keep()))
    found = stream(statistics, (work, log_ratio), quartic, START, TS, samples=9_000, block=128, devices=devices, key=jr.key(5))
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(found))).hexdigest()


def on_devices(count):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    code = DEVICES.format(path=[os.path.dirname(__file__)], x64=jax.config.jax_enable_x64)
    return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_devices_gives_the_same_bits(count):
    found = on_devices(count)
    assert len(found) == {2: 2, 8: 4}[count]
    assert set(found) == {fingerprint(None)}


@pytest.mark.slow
@needs_x64
def test_moments_far_from_zero_keep_their_digits(key):
    found = run(Moments(), read=lambda walk: 1e6 + walk.sums, key=key)
    near = run(Moments(), key=key)
    assert abs(found.variance / near.variance - 1) < 1e-8
