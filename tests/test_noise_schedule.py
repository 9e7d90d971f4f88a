"""The experiment `noise-schedule`, small: mixtures by quadrature, and the digits' own numbers."""

import jax.random as jr
import numpy as np
import pytest

from thermojax.experiments import EXPERIMENTS, Silent
from thermojax.experiments._noise_schedule import GRIDS, sliced_distance

NAMED = [grid for grid in GRIDS if grid not in ("optimised", "length")]


def run(**settings):
    experiment = EXPERIMENTS["noise-schedule"]
    return experiment.run(experiment.parameters(**settings), jr.key(1), Silent())


def test_every_group_has_images():
    with pytest.raises(ValueError, match="`images` must be at least 16, one in each of the `groups`, got 8."):
        run(images=8, groups=16)


@pytest.mark.slow
def test_groups_have_no_more_images_than_there_are_to_compare_with():
    # Refused before anything is trained.
    with pytest.raises(ValueError, match="`images` must be at most 12.., .* in each of the `groups`, got 2000."):
        run(data="digits", images=4000, groups=2)


@pytest.fixture(scope="module")
def mixtures():
    return run(data="mixture", steps=[4, 8], levels=65)


def check_order(estimates, name, steps, *, best="optimised"):
    for variance in ("posterior", "optimal"):
        of = lambda grid, v=variance: estimates[f"{name}_{v}_{grid}_{steps}_path_kl"].value
        assert of(best) < min(of(grid) for grid in NAMED if grid != best)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("name", ["broad", "narrow"])
def test_the_optimised_grid_costs_least(mixtures, name, steps):
    check_order(mixtures.estimates, name, steps)
    with pytest.raises(AssertionError):
        check_order(mixtures.estimates, name, steps, best="cosine")


@pytest.mark.slow
def test_what_is_made_is_no_further_than_the_paths(mixtures):
    found = mixtures.estimates
    paths = {name.removesuffix("path_kl"): q.value for name, q in found.items() if name.endswith("path_kl")}
    assert len(paths) == 2 * 2 * 2 * len(GRIDS)
    for name, value in paths.items():
        assert 0 < found[name + "kl"].value < value
    assert {"path_kl", "grids", "density"} == set(mixtures.figures)
    for picture in mixtures.figures.values():
        for ax in picture.figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel() or ax.get_yticklabels()


@pytest.mark.slow
def test_the_sliced_distance_of_a_shift_is_its_length_along_the_directions():
    xs = np.random.default_rng(0).normal(size=(100, 3))
    directions = np.eye(3)
    shift = np.array([0.3, 0.0, -0.4])
    assert sliced_distance(xs, xs + shift, directions) == pytest.approx(np.sqrt(0.25 / 3))
    assert sliced_distance(xs, xs[::-1], directions) == pytest.approx(0.0, abs=1e-12)
