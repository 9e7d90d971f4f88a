import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax.estimators import bar, bootstrap, cumulants, exponential_mean, jarzynski, mean, statistical_inefficiency, tail_index


def doctest_samples():
    """The samples of pymbar's doctests: Gaussian work, free-energy difference 1."""
    rng = np.random.RandomState(0)
    return jnp.asarray(rng.randn(200) + 1.5), jnp.asarray(rng.randn(200) - 0.5)


def test_bar_and_jarzynski_reproduce_the_numbers_that_pymbar_documents():
    forward, backward = doctest_samples()
    found = bar(forward, backward, beta=1.0), jarzynski(forward, beta=1.0), jarzynski(backward, beta=1.0)
    assert [(round(float(e.value), 3), round(float(e.stderr), 3)) for e in found] == [(1.088, 0.050), (1.088, 0.076), (-1.073, 0.082)]


def test_mean_is_that_of_numpy():
    values = np.random.default_rng(0).normal(size=50)
    found = mean(jnp.asarray(values))
    assert found.value == pytest.approx(values.mean(), rel=1e-5)
    assert found.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-5)
    assert found.trustworthy


@pytest.mark.parametrize("spread", [0.3, 1.0])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_gaussian_work_gives_the_exact_free_energy(key, spread, beta):
    # Gaussian work of variance s^2: delta F = <W> - beta s^2 / 2, and BAR's reverse work has the mean of opposite dissipation.
    dissipated = beta * spread**2 / 2
    forward_key, backward_key = jr.split(key)
    forward = 3.0 + dissipated + spread * jr.normal(forward_key, (20_000,))
    backward = -3.0 + dissipated + spread * jr.normal(backward_key, (10_000,))
    assert_estimate(jarzynski(forward, beta=beta), 3.0)
    assert_estimate(bar(forward, backward, beta=beta), 3.0)
    assert_estimate(exponential_mean(beta * (forward - 3.0)), 1.0)


WRONG = {
    "sign of the work": lambda w, beta: jarzynski(-w, beta=beta),
    "beta forgotten": lambda w, beta: jarzynski(w, beta=1.0),
    "mean work": lambda w, beta: mean(w),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_free_energy_check_can_fail(key, wrong):
    work = 3.0 + 1.0 + jr.normal(key, (20_000,))
    with pytest.raises(AssertionError):
        assert_estimate(wrong(work, 2.0), 3.0)


@pytest.mark.slow
@needs_x64
def test_error_bars_cover_the_truth_as_often_as_they_say(key):
    def one(key):
        forward_key, backward_key = jr.split(key)
        forward, backward = 0.5 + jr.normal(forward_key, (400,)), 0.5 + jr.normal(backward_key, (400,))
        found = jarzynski(forward, beta=1.0), bar(forward, backward, beta=1.0), mean(forward)
        return jnp.stack([jnp.abs(e.value - truth) < 1.96 * e.stderr for e, truth in zip(found, (0.0, 0.0, 0.5), strict=True)])

    covered = jnp.mean(jax.vmap(one)(jr.split(key, 1000)), axis=0)
    assert jnp.all((covered > 0.92) & (covered < 0.97)), covered


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "believed"), [(0.5, True), (1.5, True), (3.5, False), (5.0, False)])
def test_estimates_that_rare_samples_dominate_are_not_trustworthy(key, spread, believed):
    verdicts = jax.vmap(lambda k: exponential_mean(spread * jr.normal(k, (20_000,))).trustworthy)(jr.split(key, 20))
    assert jnp.all(verdicts == believed)


@pytest.mark.parametrize("index", [0.2, 0.5, 1.0])
def test_tail_index_of_a_power_law_is_found(key, index):
    # Weights u^(-index) have a Pareto tail of just this index; the fit's own error is (1 + index)/sqrt(size of the tail).
    found = tail_index(-index * jnp.log(jr.uniform(key, (40_000,), minval=1e-12)))
    assert abs(found - index) < 4 * (1 + index) / np.sqrt(1000)


def test_samples_that_are_not_finite_are_left_out_and_counted():
    work = jnp.concatenate([jnp.linspace(0.0, 1.0, 500), jnp.array([jnp.nan, jnp.inf])])
    for estimate in (mean(work), jarzynski(work, beta=1.0), bar(work, -work, beta=1.0)):
        assert int(estimate.excluded) in (2, 4)
        assert bool(jnp.isfinite(estimate.value))
        assert not estimate.trustworthy
    clean = jarzynski(work[:500], beta=1.0)
    assert jarzynski(work, beta=1.0).value == pytest.approx(float(clean.value), rel=1e-5)


def test_a_mean_that_one_sample_decides_is_not_trustworthy():
    values = np.random.default_rng(0).normal(size=200)
    assert mean(values).trustworthy
    assert not mean(np.append(values, 1e6)).trustworthy


def test_equal_work_is_its_own_free_energy_without_error():
    estimate = jarzynski(jnp.full(200, 2.0), beta=1.0)
    assert estimate.value == pytest.approx(2.0, rel=1e-6)
    assert float(estimate.stderr) < rounding()
    assert estimate.trustworthy


def test_large_work_does_not_overflow():
    estimate = jarzynski(jnp.asarray(np.random.default_rng(0).normal(size=1000) - 1e4), beta=1.0)
    assert estimate.value == pytest.approx(-1e4, abs=2)


def test_bar_without_overlap_is_not_trustworthy():
    estimate = bar(jnp.linspace(100.0, 101.0, 300), jnp.linspace(100.0, 101.0, 300), beta=1.0)
    assert not estimate.trustworthy
    assert bool(jnp.isfinite(estimate.value))


@needs_x64
def test_estimators_are_differentiable():
    forward, backward = doctest_samples()
    for value in (
        lambda s: bar(s * forward, backward, beta=1.0).value,
        lambda s: jarzynski(s * forward, beta=1.0).value,
        lambda s: exponential_mean(s * forward).value,
    ):
        h = 1e-5
        assert jax.grad(value)(1.0) == pytest.approx(float((value(1 + h) - value(1 - h)) / (2 * h)), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 1e30])
def test_whole_weights_count_a_sample_as_often(factor):
    rng = np.random.default_rng(0)
    values, times = rng.normal(size=300), rng.integers(0, 4, size=300)
    for estimator in (mean, exponential_mean, lambda v, **k: jarzynski(v, beta=2.0, **k), lambda v, **k: cumulants(v, beta=2.0, **k)):
        weighted = estimator(values, weights=factor * times.astype(float))
        assert weighted.value == pytest.approx(float(estimator(np.repeat(values, times)).value), rel=2e-5)
    ones = bar(values + 1, values - 1, beta=1.0, weights=(None, np.full(300, factor)))
    assert ones.value == pytest.approx(float(bar(values + 1, values - 1, beta=1.0).value), abs=1e-5)


def importance_samples(key, n=20_000):
    """Gaussian work of variance one and free-energy difference 3, drawn from a law shifted by -1/2; log-weights undo the shift."""
    z = jr.normal(key, (n,))
    return 3.5 - 0.5 + z, 0.5 * z - 0.125


def test_importance_weights_undo_the_wrong_sampling(key):
    work, log_weights = importance_samples(key)
    weights, reverse = jnp.exp(log_weights), -2.5 + jr.normal(jr.fold_in(key, 1), (20_000,))
    assert_estimate(mean(work, weights=weights), 3.5)
    assert_estimate(jarzynski(work, beta=1.0, weights=weights), 3.0)
    assert_estimate(exponential_mean(work - 3.0, weights=weights), 1.0)
    assert_estimate(cumulants(work, beta=1.0, weights=weights), 3.0)
    assert_estimate(bar(work, reverse, beta=1.0, weights=(weights, None)), 3.0)
    assert_estimate(bar(reverse, work, beta=1.0, weights=(None, weights)), -3.0)
    with pytest.raises(AssertionError):
        assert_estimate(jarzynski(work, beta=1.0), 3.0)
    with pytest.raises(AssertionError):
        assert_estimate(bar(work, reverse, beta=1.0, weights=(1 / weights, None)), 3.0)


@pytest.mark.nightly
@needs_x64
def test_error_bars_of_weighted_samples_cover_the_truth(key):
    def one(key):
        work, log_weights = importance_samples(key, 1000)
        weights, reverse = jnp.exp(log_weights), -2.5 + jr.normal(jr.fold_in(key, 1), (1000,))
        found = (
            jarzynski(work, beta=1.0, weights=weights),
            mean(work - 0.5, weights=weights),
            bar(work, reverse, beta=1.0, weights=(weights, None)),
        )
        return jnp.stack([jnp.abs(e.value - 3.0) < 1.96 * e.stderr for e in found])

    covered = jnp.mean(jax.vmap(one)(jr.split(key, 1000)), axis=0)
    assert jnp.all((covered > 0.92) & (covered < 0.97)), covered


@pytest.mark.nightly
def test_repeated_samples_with_their_inefficiency_are_worth_the_originals():
    forward, backward = doctest_samples()
    again = lambda values: jnp.repeat(values, 4)
    for estimator in (
        lambda f, b, **k: jarzynski(f, beta=1.0, **k),
        lambda f, b, **k: cumulants(f, beta=1.0, **k),
        lambda f, b, **k: bar(f, b, beta=1.0, **k),
    ):
        once, often = estimator(forward, backward), estimator(again(forward), again(backward), inefficiency=4.0)
        for a, b in zip(once[:3], often[:3], strict=True):
            assert a == pytest.approx(float(b), rel=1e-4)
        naive = estimator(again(forward), again(backward))
        assert naive.stderr == pytest.approx(float(once.stderr) / 2, rel=0.01)
    one_side = bar(forward, again(backward), beta=1.0, inefficiency=(1.0, 4.0))
    assert one_side.value == pytest.approx(float(bar(forward, backward, beta=1.0).value), rel=1e-4)


def autoregression(key, memory, shape):
    """Stationary chains x' = memory x + noise of unit variance along the last axis."""
    noise = jr.normal(key, shape)
    push = jnp.sqrt(1 - memory**2)
    step = lambda x, z: (memory * x + push * z,) * 2
    return jax.lax.scan(step, noise[..., 0], noise.swapaxes(0, -1))[1].swapaxes(0, -1)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_inefficiency_of_an_autoregression_is_known(key, memory):
    chains = autoregression(key, memory, (8, 8000))
    exact = (1 + memory) / (1 - memory)
    assert statistical_inefficiency(chains) == pytest.approx(exact, rel=0.15)
    alone = jnp.stack([statistical_inefficiency(chain) for chain in chains])
    assert jnp.mean(alone) == pytest.approx(exact, rel=0.15)
    pymbar = pytest.importorskip("pymbar")
    theirs = np.mean([pymbar.timeseries.statistical_inefficiency(np.asarray(chain, np.float64)) for chain in chains])
    assert jnp.mean(alone) == pytest.approx(theirs, rel=0.1)
    # The error bar of the mean, against the spread over chains.
    spread = float(jnp.std(jnp.mean(chains, axis=1)))
    stderr = float(mean(chains[0], inefficiency=exact).stderr)
    assert 0.4 < spread / stderr < 2.0


def test_a_series_that_never_moves_is_one_sample():
    assert statistical_inefficiency(jnp.ones(50)) == 50


@pytest.mark.nightly
def test_bootstrap_agrees_with_the_formulas(key):
    forward, backward = doctest_samples()
    for estimator, sets in (
        (lambda f, b: bar(f, b, beta=1.0), (forward, backward)),
        (lambda f: jarzynski(f, beta=1.0), (forward,)),
    ):
        formula, found = estimator(*sets), bootstrap(estimator, *sets, resamples=400, key=key)
        assert found.value == formula.value
        assert found.stderr == pytest.approx(float(formula.stderr), rel=0.2)
        assert found.trustworthy == formula.trustworthy
    plain = bootstrap(jnp.mean, forward, resamples=400, key=key)
    assert plain.stderr == pytest.approx(float(mean(forward).stderr), rel=0.2)
    hosted = bootstrap(lambda f: float(np.mean(np.asarray(f))), forward, resamples=400, key=key)
    assert hosted.stderr == pytest.approx(float(plain.stderr), rel=1e-4)


@pytest.mark.nightly
def test_blocks_keep_the_correlations_that_single_samples_lose(key):
    chain = autoregression(key, 0.9, (1, 20_000))[0]
    exact = np.sqrt(19 / 20_000)
    assert bootstrap(jnp.mean, chain, resamples=300, block=200, key=key).stderr == pytest.approx(exact, rel=0.25)
    assert bootstrap(jnp.mean, chain, resamples=300, key=key).stderr < 0.5 * exact


BAD = {
    "two betas": (lambda: bar(jnp.ones(3), jnp.ones(3), beta=jnp.array([1.0, 2.0])), r"`beta` must be one number; .*, got shape \(2,\)"),
    "negative weights": (lambda: mean(jnp.ones(3), weights=jnp.array([1.0, -1.0, 1.0])), "`weights` must be one number for each sample"),
    "no weight": (lambda: mean(jnp.ones(3), weights=jnp.zeros(3)), "`weights` must be .* not all zero"),
    "wrong weights": (lambda: mean(jnp.ones(3), weights=jnp.ones(2)), r"`weights` must be .*, got shape \(2,\)"),
    "weights of one side": (lambda: bar(jnp.ones(3), jnp.ones(3), beta=1.0, weights=jnp.ones(3)), "`weights` must be a pair"),
    "inefficiency": (lambda: jarzynski(jnp.ones(3), beta=1.0, inefficiency=0.5), "`inefficiency` must be at least one, got 0.5"),
    "inefficiencies": (lambda: mean(jnp.ones(3), inefficiency=jnp.ones(2)), "`inefficiency` must be one number"),
    "three inefficiencies": (
        lambda: bar(jnp.ones(3), jnp.ones(3), beta=1.0, inefficiency=(1.0, 1.0, 1.0)),
        "`inefficiency` must be one number",
    ),
    "empty": (lambda: exponential_mean(jnp.ones(0)), r"`ratios` must be a vector of at least two samples, got shape \(0,\)"),
    "not finite": (lambda: exponential_mean(jnp.full(3, jnp.inf)), "`ratios` must hold at least two finite samples"),
    "short series": (lambda: statistical_inefficiency(jnp.ones(3)), "`series` must be a vector of at least four samples"),
    "broken series": (lambda: statistical_inefficiency(jnp.full(9, jnp.nan)), "`series` must hold finite samples only"),
    "no samples": (lambda: bootstrap(jnp.mean, key=jr.key(0)), "`samples` must hold at least one sample set, got none"),
    "long blocks": (lambda: bootstrap(jnp.mean, jnp.ones(9), block=5, key=jr.key(0)), "`block` must be between one and half .*, got 5"),
    "one resample": (lambda: bootstrap(jnp.mean, jnp.ones(9), resamples=1, key=jr.key(0)), "`resamples` must be at least two, got 1"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_samples_are_refused_with_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"`beta` must be one number; for a changing bath take `exponential_mean`.*, got shape \(2,\)"):
        jarzynski(jnp.ones(3), beta=jnp.ones(2))
    with pytest.raises(ValueError, match="`beta` must be positive, got -1.0."):
        jarzynski(jnp.ones(3), beta=-1.0)
    with pytest.raises(ValueError, match=r"`work` must be a vector of at least two samples, got shape \(1,\)."):
        jarzynski(jnp.ones(1), beta=1.0)
    with pytest.raises(ValueError, match="`backward` must hold at least two finite samples"):
        bar(jnp.ones(3), jnp.full(3, jnp.nan), beta=1.0)
