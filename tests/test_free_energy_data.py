import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

pytest.importorskip("alchemlyb")
pytest.importorskip("alchemtest")

from thermojax.estimators import bar, jarzynski, trust
from thermojax.experiments import EXPERIMENTS, Silent
from thermojax.experiments._free_energy_data import inefficiency, load, PUBLISHED, resampled, switch, together, total

LEGS = ("coulomb", "vdw")


@pytest.fixture(autouse=True)
def double():
    """The published digits need double precision, as the experiment takes it for itself."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def legs():
    return {name: load(name) for name in LEGS}


@pytest.fixture(scope="module")
def finished():
    """A run by a user of single precision, and the precision after it."""
    experiment = EXPERIMENTS["free-energy-data"]
    with jax.enable_x64(False):
        results = experiment.run(experiment.parameters(leg="coulomb", resamples=10), jr.key(0), Silent())
        return results, jnp.ones(()).dtype


def by_windows(leg, step=lambda forward, reverse: bar(forward, reverse, beta=1.0)):
    """The sum of an estimate over neighbouring windows, for frames taken as independent."""
    return total([step(leg.work(k, k + 1), leg.work(k + 1, k)) for k in range(len(leg.lams) - 1)])


def printed(estimate, digits):
    return round(float(estimate.value), digits[0]), round(float(estimate.stderr), digits[1])


def test_the_data_are_the_windows_of_the_two_legs(legs):
    assert [leg.energies.shape for leg in legs.values()] == [(5, 4001, 5), (16, 4001, 16)]
    for leg in legs.values():
        assert (leg.lams[0], leg.lams[-1]) == (0, 1)
        assert np.all(np.diff(leg.lams) > 0)
        assert np.allclose(np.diff(leg.times), 10)
        assert leg.slopes.shape == leg.energies.shape[:2]


def test_charges_act_linearly_so_that_work_is_slope_times_distance(legs):
    leg = legs["coulomb"]
    assert np.allclose(leg.work(1, 3), 0.5 * leg.slopes[1], atol=1e-3)


@pytest.mark.parametrize(("name", "value"), [("coulomb", (3.044385, 0.0164)), ("vdw", (-3.033, 0.0344))])
def test_bar_from_window_to_window_gives_the_published_value(legs, name, value):
    digits = (6, 4) if name == "coulomb" else (3, 4)
    assert printed(by_windows(legs[name]), digits) == value == PUBLISHED[name]["bar"]


WRONG = {
    "sign of the reverse work": lambda forward, reverse: bar(forward, -reverse, beta=1.0),
    "forward work alone": lambda forward, _: jarzynski(forward, beta=1.0),
    "another temperature": lambda forward, reverse: bar(forward, reverse, beta=300 / 298),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_comparison_with_the_published_value_can_fail(legs, wrong):
    assert printed(by_windows(legs["coulomb"], wrong), (4, 4)) != (3.0444, 0.0164)


@pytest.mark.parametrize("name", LEGS)
@pytest.mark.slow
def test_mbar_and_thermodynamic_integration_give_the_published_values(legs, name):
    found = together(legs[name])
    for method, digits in (("mbar", 6 if name == "coulomb" else 3), ("ti", 3)):
        value, error = PUBLISHED[name][method]
        assert round(float(found[method].value), digits) == value
        # Published errors are those of independent frames: ours are larger, but not by much.
        assert 1 <= float(found[method].stderr) / error < 1.1


def test_one_jump_gives_the_reference_values(legs):
    leg = legs["coulomb"]
    forward, reverse = leg.work(0, -1), leg.work(-1, 0)
    assert (round(forward.mean(), 6), round(reverse.mean(), 6)) == (7.986670, 0.407683)
    jump = switch(leg, 0, -1)
    assert round(float(jump["forward"].value), 4) == 2.9586
    assert round(float(jump["reverse"].value), 4) == 5.1742
    assert printed(bar(forward, reverse, beta=1.0), (4, 3)) == (3.0398, 0.043)


def test_correlation_moves_no_value_and_widens_every_error_bar(legs):
    leg = legs["coulomb"]
    for k in range(len(leg.lams) - 1):
        forward, reverse = leg.work(k, k + 1), leg.work(k + 1, k)
        found, independent = switch(leg, k, k + 1)["bar"], bar(forward, reverse, beta=1.0)
        g = inefficiency(forward, reverse)
        assert found.value == pytest.approx(float(independent.value), abs=1e-10)
        assert found.stderr == pytest.approx(float(independent.stderr) * g**0.5, rel=1e-6)
    assert max(inefficiency(slopes) for slopes in leg.slopes) > 1.03


@pytest.mark.slow
def test_repeating_every_frame_makes_no_error_bar_smaller(legs):
    leg = legs["coulomb"]
    fivefold = dataclasses.replace(leg, energies=np.repeat(leg.energies, 5, axis=1), slopes=np.repeat(leg.slopes, 5, axis=1))
    once, often = switch(leg, 0, 1), switch(fivefold, 0, 1)
    for name in ("bar", "forward", "reverse", "slopes"):
        assert float(often[name].stderr / once[name].stderr) == pytest.approx(1, abs=0.15)
    # Without the statistical inefficiency the same comparison fails.
    blind = bar(fivefold.work(0, 1), fivefold.work(1, 0), beta=1.0)
    assert float(blind.stderr / once["bar"].stderr) < 0.5


@pytest.mark.nightly
def test_neighbouring_steps_err_together_as_mbar_knows_and_their_sum_does_not(legs, key):
    leg = legs["coulomb"]
    found = resampled(leg, resamples=100, block=10, key=key)
    apart, joint = by_windows(leg), together(leg)["mbar"]
    assert found.value == pytest.approx(float(apart.value), abs=1e-10)
    # The bootstrap's own error is 7 per cent.
    assert float(found.stderr / joint.stderr) == pytest.approx(1, abs=4 * 0.07)
    assert float(apart.stderr / joint.stderr) < 0.85


def test_the_trust_report_flags_the_reverse_jump_and_only_what_deserves_it(legs):
    leg = legs["coulomb"]
    jump = switch(leg, 0, -1)
    assert abs(float(jump["reverse"].value) - 3.044) > 2
    assert not jump["reverse"].trustworthy
    report = trust(leg.work(-1, 0))
    assert report.verdict == "unreliable"
    assert report.ess < 2
    assert "The average rests on 1 effective sample" in str(report)
    # The same estimator from window to window, and BAR on the same jump, may be believed.
    assert trust(leg.work(1, 0)).verdict == "reliable"
    assert trust(leg.work(0, -1), leg.work(-1, 0)).verdict == "reliable"
    assert jump["bar"].trustworthy
    assert abs(float(jump["bar"].value) - 3.044) < 4 * float(jump["bar"].stderr)


def test_where_atoms_overlap_nothing_that_one_jump_gives_is_believed(legs):
    jump = switch(legs["vdw"], 0, -1)
    assert not any(bool(jump[name].trustworthy) for name in ("bar", "forward", "reverse"))


def test_the_frame_that_carries_the_reverse_jump_is_where_the_runs_start(legs):
    leg = legs["coulomb"]
    reverse = leg.work(-1, 0)
    assert np.argmin(reverse) == 0
    assert np.allclose(leg.slopes[:, 0], leg.slopes[0, 0])
    assert np.std(leg.slopes[:, 1]) > 1
    later = load("coulomb", discard=1)
    assert np.array_equal(later.energies, leg.energies[:, 1:])
    assert -float(jarzynski(later.work(-1, 0), beta=1.0).value) == pytest.approx(2.590, abs=1e-3)


@pytest.mark.slow
def test_a_run_tells_published_values_verdicts_and_the_reason(finished):
    results, _ = finished
    estimates = results.estimates
    for method in ("bar", "mbar", "ti"):
        q = estimates[f"coulomb_{method}"]
        assert q.exact == PUBLISHED["coulomb"][method][0]
        assert "published" in q.meaning
        assert abs(q.value - q.exact) < 0.1 * q.stderr
        assert q.trustworthy
    assert estimates["coulomb_jump_reverse"].trustworthy is False
    said = " ".join(results.conclusions)
    assert "Jarzynski's equality, reverse, gives 5.174 kT" in said
    assert "The trust report says unreliable. The average rests on 1 effective sample" in said
    assert "at 0 ps, carries 92 % of the reverse average; without it the estimate is 2.59 kT. It is the same configuration" in said
    assert "Not to be believed: coulomb_jump_forward, coulomb_jump_reverse." in said
    assert set(results.figures) == {"coulomb_windows", "coulomb_jump"}


@pytest.mark.slow
def test_a_run_takes_double_precision_for_itself_only(finished):
    results, after = finished
    assert after == jnp.float32
    assert round(results.estimates["coulomb_bar"].value, 6) == 3.044385


def python(code, check=0):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=300)
    assert done.returncode == check, done.stderr
    return done.stdout if check == 0 else done.stderr


def test_without_the_extra_a_run_ends_in_one_sentence(tmp_path):
    code = "import sys; sys.modules['alchemlyb'] = None; sys.argv[1:] = {}; from thermojax.cli import main; main()"
    said = python(code.format(["run", "free-energy-data", "--out", str(tmp_path / "out")]), check=2)
    assert said.strip() == (
        "Error: `free-energy-data` needs the packages alchemlyb and alchemtest: python -m pip install 'thermojax[data]'."
    )
    assert list(tmp_path.iterdir()) == []


def test_listing_experiments_imports_none_of_the_packages_of_the_extra():
    code = "import sys, thermojax.experiments; print([m for m in ('alchemlyb', 'alchemtest', 'pandas', 'pymbar') if m in sys.modules])"
    assert python(code).strip() == "[]"
