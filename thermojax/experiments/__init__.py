"""Experiments: what ``thermojax run NAME`` runs, one file each."""

from thermojax.experiments import (
    _active_particle,
    _barrier_crossing,
    _bit_erasure,
    _bridge,
    _digits,
    _fluctuating_diffusion,
    _fluctuation_theorems,
    _free_energy_data,
    _hypergrid,
    _moving_trap,
    _noise_schedule,
    _optimal_transport_of_a_trap,
    _quartic_trap,
    _sample,
)
from thermojax.experiments._experiment import (
    Arrays as Arrays,
    Experiment as Experiment,
    Parameters as Parameters,
    Picture as Picture,
    Progress as Progress,
    Quantity as Quantity,
    Results as Results,
    Silent as Silent,
    stack as stack,
)

_MODULES = (
    _digits,
    _moving_trap,
    _quartic_trap,
    _fluctuating_diffusion,
    _fluctuation_theorems,
    _bit_erasure,
    _free_energy_data,
    _noise_schedule,
    _sample,
    _hypergrid,
    _bridge,
    _optimal_transport_of_a_trap,
    _active_particle,
    _barrier_crossing,
)
EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}
