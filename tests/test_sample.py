"""What controlled samplers reach on targets with known normalisers, and the experiment that runs them."""

import jax
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate

from thermojax.experiments import EXPERIMENTS, Silent
from thermojax.experiments._sample import LOSSES, Sample, SCALES
from thermojax.measures import assess
from thermojax.optimize import fit
from thermojax.samplers import controlled, learned, LogVariance, METHODS, ReverseKL
from thermojax.targets import Funnel, grid_mixture, TARGETS

TINY = {"iterations": 4, "batch": 8, "samples": 256, "steps": 4, "width": 8}


def trained(loss, sampler, steps, rate, key):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))
    with jax.numpy_dtype_promotion("standard"):
        return fit(loss, sampler, optimizer=optimizer, steps=steps, where=learned, average=0.99, key=key).model


@pytest.mark.slow
def test_controlled_monte_carlo_diffusion_on_the_funnel(key):
    # The method's authors print an ELBO of -0.59 with 64 steps (arXiv:2307.01050, table 2) after 150 000 iterations.
    model = trained(ReverseKL(128), controlled("cmcd", Funnel(), dim=10, steps=64, key=jr.key(0)), 600, 5e-3, key)
    found = assess(model, 8192, backward=True, log_z=0.0, key=key)
    assert found.elbo.value > -0.8
    assert abs(found.log_z.value) < 0.2
    assert found.elbo.value < 0.0 < found.eubo.value
    # Importance weights of the neck have no finite variance, and the report says so; both sides together are sound.
    assert not found.log_z.trustworthy
    assert_estimate(found.log_z_both, 0.0)


@pytest.mark.slow
def test_the_log_variance_finds_every_mode(key):
    target = grid_mixture()
    sampler = controlled("cmcd", target, dim=2, steps=32, scale=8.0, step=0.15, key=jr.key(0))
    before = assess(sampler, 4096, backward=True, log_z=0.0, key=key)
    model = trained(LogVariance(128), sampler, 400, 0.01, key)
    after = assess(model, 4096, backward=True, log_z=0.0, key=key)
    assert after.divergence.value < 0.25 * before.divergence.value
    assert_estimate(after.log_z_both, 0.0)
    walks = model.forward(4096, key=key)
    shares = np.bincount(np.asarray(jax.vmap(target.well)(walks.x1s)), minlength=25) / 4096 * 25
    # No mode has less than a third of its share, nor more than three times as much.
    assert shares.min() > 1 / 3
    assert shares.max() < 3


def run(**settings):
    experiment = EXPERIMENTS["sample"]
    return experiment.run(experiment.parameters(**{**TINY, **settings}), jr.key(1), Silent())


def check_bounds(results, name, exact):
    elbo, eubo = (results.estimates[f"{name}_{which}"] for which in ("elbo", "eubo"))
    assert elbo.value < exact + 4 * elbo.stderr
    assert eubo.value > exact - 4 * eubo.stderr


@pytest.mark.slow
def test_one_method_reports_bounds_normaliser_and_time():
    results = run(target="many-well", method="cmcd", inertia=True, loss="log-variance", replayed=True)
    exact = float(TARGETS["many-well"]().log_z)
    check_bounds(results, "cmcd_inertial", exact)
    assert results.estimates["cmcd_inertial_log_z"].exact == pytest.approx(exact)
    assert results.estimates["cmcd_inertial_seconds"].value > 0
    assert set(results.figures) == {"bounds", "training"}
    assert "cmcd-inertial: log Z" in results.conclusions[0]
    assert "reliable" in results.conclusions[0]


@pytest.mark.slow
def test_annealing_and_populations_report_the_same_numbers():
    for method in ("ais", "smc"):
        results = run(target="grid25", method=method, steps=12, samples=4096)
        estimate = results.estimates[f"{method}_log_z"]
        assert abs(estimate.value - estimate.exact) < 4 * estimate.stderr or estimate.trustworthy is False
        assert results.estimates[f"{method}_elbo"].value < 0.0
        assert set(results.figures) == {"bounds"}


@pytest.mark.slow
def test_a_target_of_unknown_normaliser_has_one_bound():
    results = run(target="iris", method="ula")
    assert results.estimates["ula_log_z"].exact is None
    assert "ula_eubo" not in results.estimates
    assert "Exact" not in results.conclusions[0]


@pytest.mark.nightly
def test_all_methods_stand_in_one_table():
    results = run(target="many-well", method="all")
    exact = float(TARGETS["many-well"]().log_z)
    names = ["ais", *METHODS, *(f"{name}_inertial" for name, method in METHODS.items() if method.inertia)]
    for name in names:
        check_bounds(results, name, exact)
    assert "smc_elbo" in results.estimates
    assert len(results.conclusions) == len(names) + 1
    assert np.isfinite([q.value for q in results.estimates.values()]).all()


def test_parameters_name_what_there_is():
    fields = Sample.model_fields
    names = lambda field: set(fields[field].annotation.__args__)
    assert names("target") == set(TARGETS) == set(SCALES)
    assert names("method") == {"ais", "smc", "all", *METHODS}
    assert names("loss") == set(LOSSES)
