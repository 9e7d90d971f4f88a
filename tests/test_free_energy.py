import statistics
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, assert_order, needs_x64

from thermojax.estimators import bar, crossing, cumulants, jarzynski, mbar, thermodynamic_integration


def doctest_samples():
    """The samples of pymbar's doctests: Gaussian work, free-energy difference 1."""
    rng = np.random.RandomState(0)
    return rng.randn(200) + 1.5, rng.randn(200) - 0.5


def printed(estimate):
    return round(float(estimate.value), 3), round(float(estimate.stderr), 3)


def test_second_cumulant_reproduces_the_numbers_that_pymbar_documents():
    forward, backward = doctest_samples()
    assert printed(cumulants(forward, beta=1.0)) == (1.049, 0.089)
    assert printed(cumulants(backward, beta=1.0)) == (-1.073, 0.080)


@needs_x64
@pytest.mark.parametrize("sizes", [(200, 200), (1000, 150)])
def test_bar_is_that_of_pymbar(sizes):
    pymbar = pytest.importorskip("pymbar")
    rng = np.random.default_rng(1)
    for spread in (0.5, 2.0, 4.0):
        forward, backward = (0.5 * spread**2 + spread * rng.normal(size=n) for n in sizes)
        theirs, ours = pymbar.bar(forward + 3, backward - 3), bar(forward + 3, backward - 3, beta=1.0)
        assert ours.value == pytest.approx(theirs["Delta_f"], abs=1e-8)
        assert ours.stderr == pytest.approx(theirs["dDelta_f"], abs=1e-8)


@needs_x64
def test_exponential_average_is_that_of_pymbar():
    pymbar = pytest.importorskip("pymbar")
    for work in doctest_samples():
        theirs, ours = pymbar.exp(work), jarzynski(work, beta=1.0)
        assert ours.value == pytest.approx(theirs["Delta_f"], abs=1e-12)
        assert ours.stderr == pytest.approx(theirs["dDelta_f"], abs=1e-12)


def wells(key, stiffness, centres=(1.0, 2.0), n=20_000):
    """Instantaneous work between two harmonic wells k(x - c)^2/2, forward and backward."""
    well = lambda k, c, x: 0.5 * k * (x - c) ** 2
    first, last = zip(stiffness, centres, strict=True)
    x, y = (c + jr.normal(k, (n,)) / jnp.sqrt(stiff) for k, (stiff, c) in zip(jr.split(key), (first, last), strict=True))
    return well(*last, x) - well(*first, x), well(*first, y) - well(*last, y)


# Offsets and stiffnesses of two wells; the free-energy difference is half the logarithm of the ratio of the stiffnesses.
# The second and the third are pymbar's test cases, centres (1, 2) and stiffnesses (0.5, 2) and (0.5, 1).
WELLS = {
    "softer": ((2.0, 0.5), (1.0, 1.2), 0.5 * np.log(0.25)),
    "pymbar, four times as stiff": ((0.5, 2.0), (1.0, 2.0), 0.693147),
    "pymbar, twice as stiff": ((0.5, 1.0), (1.0, 2.0), 0.346574),
}


@pytest.mark.parametrize(("stiffness", "centres", "exact"), WELLS.values(), ids=WELLS)
def test_free_energy_of_harmonic_wells(key, stiffness, centres, exact):
    forward, backward = wells(key, stiffness, centres)
    assert_estimate(bar(forward, backward, beta=1.0), exact)
    found = crossing(forward, backward, beta=1.0)
    assert_estimate(found, exact)
    assert found.trustworthy
    with pytest.raises(AssertionError):
        assert_estimate(bar(backward, forward, beta=1.0), exact)
    with pytest.raises(AssertionError):
        assert_estimate(crossing(backward, forward, beta=1.0), exact)


def test_free_energy_of_exponential_laws(key):
    # u = rate * x from rate 1 to rate 4: the difference is ln 4.
    x, y = jr.exponential(key, (20_000,)), jr.exponential(jr.fold_in(key, 1), (20_000,)) / 4
    assert_estimate(bar(3 * x, -3 * y, beta=1.0), np.log(4))
    assert_estimate(jarzynski(3 * x, beta=1.0), np.log(4))
    assert_estimate(crossing(3 * x, -3 * y, beta=1.0), np.log(4))


def gaussian_work(key, spread, n):
    return 3 + spread**2 / 2 + spread * jr.normal(key, (n,)), -3 + spread**2 / 2 + spread * jr.normal(jr.fold_in(key, 1), (n,))


@pytest.mark.nightly
@needs_x64
def test_error_bars_of_crossing_and_cumulants_cover_the_truth(key):
    def one(key):
        forward, backward = gaussian_work(key, 1.0, 400)
        found = [crossing(forward, backward, beta=1.0), *(cumulants(forward, beta=1.0, order=k) for k in (2, 3))]
        return jnp.stack([jnp.abs(e.value - 3) < 1.96 * e.stderr for e in found])

    covered = jnp.mean(jax.vmap(one)(jr.split(key, 1000)), axis=0)
    assert jnp.all((covered > 0.92) & (covered < 0.97)), covered


@pytest.mark.slow
def test_crossing_needs_no_temperature_but_notices_a_wrong_one(key):
    forward, backward = gaussian_work(key, 1.0, 5000)
    right, wrong = crossing(forward, backward, beta=1.0), crossing(forward, backward, beta=1.5)
    assert right.trustworthy
    assert not wrong.trustworthy
    assert wrong.value == pytest.approx(float(right.value), abs=1e-4)
    # The second work distribution breaks Crooks' relation: paths that did not start in equilibrium.
    assert not crossing(forward, 0.5 * backward, beta=1.0).trustworthy


def test_cumulants_are_exact_for_gaussian_work_from_the_second_order_on(key):
    work, _ = gaussian_work(key, 0.7, 20_000)
    beta = 0.8
    assert_estimate(cumulants(work, beta=beta), 3 + 0.245 - beta * 0.245)
    assert_estimate(cumulants(work, beta=beta, order=3), 3 + 0.245 - beta * 0.245)
    assert_estimate(cumulants(work, beta=beta, order=1), 3 + 0.245)
    assert cumulants(work, beta=beta).trustworthy
    assert not cumulants(work, beta=beta, order=1).trustworthy
    with pytest.raises(AssertionError):
        assert_estimate(cumulants(work, beta=beta + 1.0), 3 + 0.245 - beta * 0.245)


@pytest.mark.slow
def test_third_cumulant_improves_on_the_second_for_skewed_work(key):
    # Work of Gamma law, shape 2: beta F = 2 ln(1 + s), cumulants 2 s, 2 s^2, 4 s^3.
    s = 0.5
    work = s * jr.gamma(key, 2.0, (100_000,))
    assert_estimate(cumulants(work, beta=1.0), 2 * s - s**2)
    assert_estimate(cumulants(work, beta=1.0, order=3), 2 * s - s**2 + 4 * s**3 / 6)
    exact = 2 * np.log1p(s)
    assert abs(cumulants(work, beta=1.0, order=3).value - exact) < abs(cumulants(work, beta=1.0).value - exact)
    # The truncation is not in the error bar; the verdict tells.
    assert not cumulants(work, beta=1.0).trustworthy
    assert_estimate(jarzynski(work, beta=1.0), exact)


def stiffening(key, windows, n):
    """Samples of dV/dlam for V = lam x^2/2, lam from 1 to 4; the exact difference is ln(4)/2."""
    lams = jnp.linspace(1.0, 4.0, windows)
    return lams, 0.5 * jr.normal(key, (windows, n)) ** 2 / lams[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "order"), [("trapezoid", 2), ("spline", 3)])
def test_quadrature_converges_at_its_order(rule, order):
    # Means without noise: mean force 1/(2 lam). The natural spline loses one order to its ends.
    def error(windows):
        lams = np.linspace(1.0, 4.0, windows)
        means = np.stack([0.5 / lams, 0.5 / lams], axis=1)
        return abs(float(thermodynamic_integration(lams, means, rule=rule).value) - 0.5 * np.log(4))

    sizes = (9, 17, 33)
    assert_order([error(n) for n in sizes], [1 / (n - 1) for n in sizes], order, band=0.35)


@pytest.mark.nightly
def test_thermodynamic_integration_finds_the_free_energy(key):
    lams, slopes = stiffening(key, 17, 2000)
    exact = 0.5 * np.log(4)
    found = thermodynamic_integration(lams, slopes, rule="spline")
    assert_estimate(found, exact)
    assert found.trustworthy
    assert_estimate(thermodynamic_integration(lams[::-1], slopes[::-1], rule="spline"), -exact)
    uneven = thermodynamic_integration(lams, [row[: 1000 + 50 * i] for i, row in enumerate(slopes)], rule="spline")
    assert_estimate(uneven, exact)
    correlated = thermodynamic_integration(lams, jnp.repeat(slopes, 2, axis=1), rule="spline", inefficiency=[2.0] * 17)
    assert correlated.stderr == pytest.approx(float(found.stderr), rel=1e-3)
    with pytest.raises(AssertionError):
        assert_estimate(thermodynamic_integration(lams, jnp.roll(slopes, 1, axis=0), rule="spline"), exact)


@pytest.mark.slow
def test_coarse_quadrature_is_not_trustworthy(key):
    assert not thermodynamic_integration(*stiffening(key, 3, 100_000)).trustworthy
    assert not thermodynamic_integration(*stiffening(key, 2, 1000)).trustworthy


def reduced_potentials(key, n=1000):
    """Samples from wells of stiffness 1, 2, 4, and their reduced potentials in these states and in one that was not sampled."""
    stiffness = np.array([1.0, 2.0, 4.0, 8.0])
    x = np.asarray(jr.normal(key, (3, n)), np.float64) / np.sqrt(stiffness[:3, None])
    return 0.5 * stiffness[:, None] * x.reshape(-1) ** 2, [n, n, n, 0], 0.5 * np.log(stiffness)


def entry(estimate, k):
    return jax.tree.map(lambda part: part[k], estimate)


def test_mbar_finds_the_free_energies_of_harmonic_wells(key):
    pytest.importorskip("pymbar")
    reduced, counts, exact = reduced_potentials(key)
    found = mbar(reduced, counts)
    assert (found.value[0], found.stderr[0]) == (0, 0)
    for k in (1, 2, 3):
        assert_estimate(entry(found, k), exact[k])
    assert jnp.all(found.trustworthy)
    with pytest.raises(AssertionError):
        assert_estimate(entry(mbar(-reduced, counts), 2), exact[2])
    worth = mbar(reduced, counts, inefficiency=4.0)
    assert jnp.allclose(worth.stderr, 2 * found.stderr, rtol=1e-5)


def test_mbar_of_two_states_is_bar():
    pytest.importorskip("pymbar")
    forward, backward = doctest_samples()
    reduced = np.zeros((2, 400))
    reduced[1, :200], reduced[0, 200:] = forward, backward
    assert entry(mbar(reduced, [200, 200]), 1).value == pytest.approx(float(bar(forward, backward, beta=1.0).value), abs=1e-5)


@pytest.mark.slow
def test_mbar_of_states_that_hardly_overlap_is_not_trusted(key):
    pytest.importorskip("pymbar")
    centres = np.array([0.0, 5.0])
    x = np.asarray(jr.normal(key, (2, 2000)), np.float64) + centres[:, None]
    found = mbar(0.5 * (x.reshape(-1) - centres[:, None]) ** 2, [2000, 2000])
    assert found.trustworthy.tolist() == [True, False]


def test_mbar_leaves_the_settings_of_the_process_alone(key):
    pytest.importorskip("pymbar")
    reduced, counts, _ = reduced_potentials(key, 100)
    before, state, errors = dict(jax.config.values), np.random.get_state()[1].copy(), np.geterr()
    mbar(reduced, counts)
    assert dict(jax.config.values) == before
    assert np.array_equal(np.random.get_state()[1], state)
    assert np.geterr() == errors


def test_mbar_without_pymbar_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pymbar", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra `thermojax\[mbar\]`"):
        mbar(np.zeros((2, 4)), [2, 2])


BAD = {
    "order": (lambda: cumulants(jnp.ones(3), beta=1.0, order=4), "`order` must be 1, 2 or 3, got 4"),
    "rule": (
        lambda: thermodynamic_integration([0, 1.0], jnp.ones((2, 3)), rule="simpson"),
        "`rule` must be one of trapezoid, spline, got simpson",
    ),
    "controls": (lambda: thermodynamic_integration(jnp.array([0, 1, 0.5]), jnp.ones((3, 3))), "`lams` must increase strictly or decrease"),
    "windows": (
        lambda: thermodynamic_integration(jnp.arange(3.0), jnp.ones((2, 3))),
        "`derivatives` must have one row for each of the 3 controls",
    ),
    "inefficiencies": (
        lambda: thermodynamic_integration(jnp.arange(3.0), jnp.ones((3, 3)), inefficiency=[1.0, 1.0]),
        "`inefficiency` must be one number or one for each of the 3 controls",
    ),
    "counts": (lambda: mbar(np.zeros((2, 4)), [2, 3]), "`counts` must be one whole number for each of the 2 states"),
    "potentials": (lambda: mbar(np.zeros(4), [2, 2]), r"`reduced` must have shape \(state, sample\), got shape \(4,\)"),
    "broken potentials": (lambda: mbar(np.full((2, 4), np.nan), [2, 2]), "`reduced` must be finite, got 8 entries that are not"),
    "two betas": (lambda: crossing(jnp.ones(3), jnp.ones(3), beta=jnp.ones(2)), "`beta` must be one number"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.nightly
@needs_x64
def test_bar_is_not_slower_than_pymbar_at_a_million_samples():
    pymbar = pytest.importorskip("pymbar")
    rng = np.random.default_rng(0)
    forward, backward = rng.normal(size=1_000_000) + 1.5, rng.normal(size=1_000_000) - 0.5
    runs = {"ours": lambda: jax.block_until_ready(bar(forward, backward, beta=1.0)), "theirs": lambda: pymbar.bar(forward, backward)}
    jax.block_until_ready(bar(forward, backward, beta=1.0))
    laps = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            tick = time.perf_counter()
            run()
            laps[name].append(time.perf_counter() - tick)
    assert statistics.median(laps["ours"]) < statistics.median(laps["theirs"]), laps
    assert runs["ours"]().value == pytest.approx(runs["theirs"]()["Delta_f"], abs=1e-8)
