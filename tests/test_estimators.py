import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64

from thermojax.estimators import bar, exponential_mean, jarzynski, mean, tail_index


def doctest_samples():
    """The samples of pymbar's doctests: Gaussian work, free-energy difference 1."""
    rng = np.random.RandomState(0)
    return jnp.asarray(rng.randn(200) + 1.5), jnp.asarray(rng.randn(200) - 0.5)


def test_bar_and_jarzynski_reproduce_the_numbers_that_pymbar_documents():
    forward, backward = doctest_samples()
    found = bar(forward, backward, beta=1.0), jarzynski(forward, beta=1.0), jarzynski(backward, beta=1.0)
    assert [(round(float(e.value), 3), round(float(e.stderr), 3)) for e in found] == [(1.088, 0.050), (1.088, 0.077), (-1.073, 0.083)]


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


@needs_x64
def test_error_bars_cover_the_truth_as_often_as_they_say(key):
    def one(key):
        forward_key, backward_key = jr.split(key)
        forward, backward = 0.5 + jr.normal(forward_key, (400,)), 0.5 + jr.normal(backward_key, (400,))
        found = jarzynski(forward, beta=1.0), bar(forward, backward, beta=1.0), mean(forward)
        return jnp.stack([jnp.abs(e.value - truth) < 1.96 * e.stderr for e, truth in zip(found, (0.0, 0.0, 0.5), strict=True)])

    covered = jnp.mean(jax.vmap(one)(jr.split(key, 1000)), axis=0)
    assert jnp.all((covered > 0.92) & (covered < 0.97)), covered


@pytest.mark.parametrize(("spread", "believed"), [(0.5, True), (1.5, True), (3.5, False), (5.0, False)])
def test_estimates_that_rare_samples_dominate_are_not_trustworthy(key, spread, believed):
    verdicts = jax.vmap(lambda k: exponential_mean(spread * jr.normal(k, (20_000,))).trustworthy)(jr.split(key, 20))
    assert jnp.all(verdicts == believed)


@pytest.mark.parametrize("index", [0.2, 0.5, 1.0])
def test_tail_index_of_a_power_law_is_found(key, index):
    # Weights u^(-index) have a Pareto tail of just this index; the fit's own error is (1 + index)/sqrt(size of the tail).
    found = tail_index(-index * jnp.log(jr.uniform(key, (40_000,), minval=1e-12)))
    assert abs(found - index) < 4 * (1 + index) / np.sqrt(3 * 200)


def test_samples_that_are_not_finite_are_left_out_and_counted():
    work = jnp.concatenate([jnp.linspace(0.0, 1.0, 500), jnp.array([jnp.nan, jnp.inf])])
    for estimate in (mean(work), jarzynski(work, beta=1.0), bar(work, -work, beta=1.0)):
        assert int(estimate.excluded) in (2, 4)
        assert bool(jnp.isfinite(estimate.value))
        assert not estimate.trustworthy
    clean = jarzynski(work[:500], beta=1.0)
    assert jarzynski(work, beta=1.0).value == pytest.approx(float(clean.value), rel=1e-5)


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


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"`beta` must be one number; for a changing bath take `exponential_mean`.*, got shape \(2,\)"):
        jarzynski(jnp.ones(3), beta=jnp.ones(2))
    with pytest.raises(ValueError, match="`beta` must be positive, got -1.0."):
        jarzynski(jnp.ones(3), beta=-1.0)
    with pytest.raises(ValueError, match=r"`work` must be a vector of at least two samples, got shape \(1,\)."):
        jarzynski(jnp.ones(1), beta=1.0)
    with pytest.raises(ValueError, match="`backward` must hold at least two finite samples"):
        bar(jnp.ones(3), jnp.full(3, jnp.nan), beta=1.0)
