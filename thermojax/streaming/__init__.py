r"""Ensembles too large to hold: trajectories stream through statistics, over all devices of all processes.

    works = streaming.stream(streaming.Moments(), functionals.work, dynamics, initial, ts, samples=10**8, key=key)
    works.estimate()                                 the mean work, with its error bar

Blocks. The ensemble is cut into blocks of trajectories of fixed size (4096). Block number b draws its start and its noise from
``fold_in(key, b)``, and the statistics of the blocks are merged in their order, in double precision on the host: the result is a function
of the key, the size of the ensemble and of a block alone, to the last bit, on any number of devices and processes of one kind, in one piece
or interrupted and resumed. What is in memory at a time is a few blocks for each device, whatever `samples`.

Devices. Every device runs the same compiled program on blocks of its own and returns their statistics, some hundred numbers; trajectories
never leave it. (One program partitioned over a mesh would do the same work, but the compiler treats one partition differently from two: the
last digit of the log-ratio then depends on the number of devices.)
"""

from thermojax.streaming._ensemble import BLOCK as BLOCK, stream as stream, stream_each as stream_each, Walk as Walk
from thermojax.streaming._statistics import (
    AbstractStatistic as AbstractStatistic,
    arrays_of as arrays_of,
    Exponential as Exponential,
    Histogram as Histogram,
    Keep as Keep,
    Moments as Moments,
    shown_of as shown_of,
    with_arrays as with_arrays,
)
