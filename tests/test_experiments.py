from dataclasses import replace

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


@pytest.mark.nightly
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


@pytest.mark.nightly
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


@pytest.fixture(scope="module")
def diffusion():
    return run("fluctuating-diffusion", trajectories=4000, steps=100, samples=4000, cells=200)


# Exact, quadrature and closed forms; the two zeros and minima are those of the rates.
KNOWN = {
    "forward_total": 0.16316917965317,
    "forward_variance": 0.4177466267,
    "system_zero": 0.1121428031,
    "system_minimum": -0.1352193671,
    "reverse_flux_zero": 0.2444680966,
    "reverse_flux_minimum": -0.0911517771,
    "speciation_0.4": 0.386485019489,
    "instability_2.5": 0.202732554054,
    "franz_parisi_1": 4.35770749863,
    "fit_path_kl": 0.076777146394,
    "half_rate_bound": 2.6012862050,
    "half_likelihood": 2.9649160172,
    "most_flow_nll": 1.5829108493,
    "action_conditional_ot": 0.576692071546,
    "length_cosine": 0.278668604439,
}


def check_known(estimates):
    for name, exact in KNOWN.items():
        assert estimates[name].exact == pytest.approx(exact, abs=2e-8), name


def check_agreement(estimates):
    for name, q in estimates.items():
        if q.exact is not None and q.stderr and q.trustworthy:
            assert abs(q.value - q.exact) < 4 * q.stderr, name


@pytest.mark.nightly
def test_diffusion_agrees_with_exact_values_and_says_where_it_may_not_be_trusted(diffusion):
    check_known(diffusion.estimates)
    check_agreement(diffusion.estimates)
    # Means and verdicts: data of variance 0.4 have no variance of exp(-total entropy).
    assert diffusion.estimates["forward_theorem"].trustworthy
    assert not diffusion.estimates["narrow_theorem"].trustworthy
    for name in ("speciation_0.4", "speciation_1", "speciation_2.5", "instability_2.5", "octet_speciation"):
        assert diffusion.estimates[name].value == pytest.approx(diffusion.estimates[name].exact, abs=1e-9), name
    # The midpoint rule is biased by the step; the exact number knows it.
    assert diffusion.estimates["midpoint_theorem"].exact > 1.01
    exchanged = {"fit_path_kl": diffusion.estimates["half_path_kl"]}
    shifted = {name: replace(q, exact=q.exact + 9 * q.stderr) for name, q in diffusion.estimates.items() if name == "fit_path_kl"}
    with pytest.raises(AssertionError):
        check_known(diffusion.estimates | exchanged)
    with pytest.raises(AssertionError):
        check_agreement(diffusion.estimates | shifted)


@pytest.mark.slow
@pytest.mark.parametrize("results", ["theorems", "erasure", "diffusion"])
def test_every_figure_has_labelled_axes(results, request):
    for picture in request.getfixturevalue(results).figures.values():
        for ax in picture.figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel() or ax.get_yticklabels()
        assert picture.caption
