"""Experiments: what ``thermojax run NAME`` runs, one file each."""

from thermojax.experiments import _digits, _fluctuation_theorems, _free_energy_data, _moving_trap
from thermojax.experiments._experiment import (
    Experiment as Experiment,
    Parameters as Parameters,
    Picture as Picture,
    Progress as Progress,
    Quantity as Quantity,
    Results as Results,
    Silent as Silent,
)

EXPERIMENTS: dict[str, Experiment] = {
    e.name: e for e in (_digits.EXPERIMENT, _moving_trap.EXPERIMENT, _fluctuation_theorems.EXPERIMENT, _free_energy_data.EXPERIMENT)
}
