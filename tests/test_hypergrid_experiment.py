from dataclasses import replace

import jax.random as jr
import pytest

from thermojax.experiments import Silent
from thermojax.experiments._hypergrid import EXPERIMENT

SMALL = {"side": 4, "trajectories": 8000, "learning_rate": 1e-2, "width": 32, "samples": 4000}


def run(**settings):
    return EXPERIMENT.run(EXPERIMENT.parameters(**(SMALL | settings)), jr.key(1), Silent())


def check_agreement(results):
    """Numbers that are to be believed are within four errors of the sums over all paths."""
    known = {name: q for name, q in results.estimates.items() if q.exact is not None and q.stderr and q.trustworthy}
    assert {"elbo_untrained", "eubo_untrained", "log_z_both_untrained", "elbo_trained", "log_z_both_trained"} <= set(known)
    for name, q in known.items():
        assert abs(q.value - q.exact) < 4 * q.stderr, name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["tb", "fm"])
def test_a_small_grid_is_learned_and_agrees_with_dynamic_programming(loss):
    results = run(loss=loss)
    check_agreement(results)
    numbers = results.estimates
    assert numbers["l1_trained"].value < 0.05 < 0.3 < numbers["l1_untrained"].value
    assert numbers["dissipation_trained"].exact < 0.01 < 0.1 < numbers["dissipation_untrained"].exact
    assert abs(numbers["log_z_learned"].value - numbers["log_z_learned"].exact) < 0.01
    assert set(results.figures) == {"distribution", "crooks", "training"}
    for picture in results.figures.values():
        assert picture.caption
        for ax in picture.figure.axes:
            assert ax.get_xlabel() or ax.get_ylabel()
    # A bound that is off by ten of its errors is seen.
    q = numbers["elbo_trained"]
    numbers["elbo_trained"] = replace(q, exact=q.exact + 10 * q.stderr)
    with pytest.raises(AssertionError):
        check_agreement(results)
