import jax.random as jr
import numpy as np
import pytest
from assertions import rounding

from thermojax.experiments import EXPERIMENTS, Silent


def run(name, **settings):
    experiment = EXPERIMENTS[name]
    return experiment.run(experiment.parameters(**settings), jr.key(1), Silent())


@pytest.fixture(scope="module")
def theorems():
    return run("fluctuation-theorems", steps=100, samples=4000, cells=48, tau=0.5)


@pytest.mark.slow
def test_fluctuation_theorems_agree_with_their_exact_values(theorems):
    known = {name: q for name, q in theorems.estimates.items() if q.exact is not None and q.stderr}
    assert {"generalised_jarzynski", "crooks", "integral_theorem", "detailed_theorem", "hatano_sasa", "housekeeping"} <= set(known)
    for name, q in known.items():
        assert abs(q.value - q.exact) < 4 * q.stderr, name
    assert theorems.conclusions[0].startswith(f"{len(known)} of {len(known)} numbers")


@pytest.mark.slow
def test_balance_of_the_fokker_planck_equation_closes(theorems):
    # <Y> - change of beta F = <total entropy> + KL(p || equilibrium), without noise; the steady state is Boltzmann's.
    for name in ("balance", "first_law"):
        assert abs(theorems.estimates[name].value) < rounding(10, 1000), name
    # Cells are not points: second order in their size.
    assert abs(theorems.estimates["steady_kl"].value) < 1e-5
    assert theorems.estimates["second_law"].value > 0
    assert theorems.estimates["relaxation_left"].value > 0


@pytest.fixture(scope="module")
def erasure():
    return run("bit-erasure", steps=2000, iterations=100, batch=200, samples=4000, cells=200, tau=2.0, knots=8)


@pytest.mark.slow
def test_erasure_costs_more_than_landauer_and_the_fokker_planck_equation_agrees(erasure):
    for name in ("hand", "found"):
        work, error = erasure.estimates[f"work_{name}"], erasure.estimates[f"error_{name}"]
        for measured in (work, error):
            assert abs(measured.value - measured.exact) < 4 * measured.stderr
        slack = erasure.estimates[f"landauer_{name}"]
        assert slack.value > 4 * slack.stderr


@pytest.mark.slow
def test_gradient_descent_makes_erasure_cheaper(erasure):
    price = {name: erasure.estimates[f"work_{name}"].exact + 20 * erasure.estimates[f"error_{name}"].exact for name in ("hand", "found")}
    assert price["found"] < 0.9 * price["hand"]
    assert erasure.estimates["bit"].value == pytest.approx(np.log(2))


@pytest.mark.slow
@pytest.mark.parametrize("results", ["theorems", "erasure"])
def test_every_figure_has_labelled_axes(results, request):
    for picture in request.getfixturevalue(results).figures.values():
        for ax in picture.figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel() or ax.get_yticklabels()
        assert picture.caption
