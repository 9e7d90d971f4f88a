"""Sweeps: one experiment at many parameters, and one table, figure and report of all.

Every point starts from the seed of the sweep, so that a point has the bits of a single run with its parameters, and differences between
points are not those of their noise. Points are made at once by experiments that can (`Experiment.sweep`), and queued over the devices
otherwise, each a run of its own in ``points/000``, ``points/001``, and so on; either way a sweep resumes like a run.
"""

from thermojax.sweeps._grid import parse_values as parse_values, points_of as points_of, Sweep as Sweep
from thermojax.sweeps._queue import PointsError as PointsError, run_sweep as run_sweep
from thermojax.sweeps._table import point_folders as point_folders, read_table as read_table, Table as Table, write_sweep as write_sweep
