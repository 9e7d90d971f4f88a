"""Runs on disk: kept block by block, resumed to the same bits, and at the end a summary, figures and a self-contained report.

A run has a folder::

    manifest.json      what was asked: experiment, parameters, seed, versions; written first
    blocks.zarr/       one group for each stage of blocks, labelled arrays, one chunk for each block; stays after the end
    records/           for each block its checksums, written last: a block without its record, or with another checksum, does not count
    checkpoints/       where descents were; removed at the end
    *.png report.html  written at the end
    summary.json       all numbers, written last: a run with a summary is finished

Every file is written beside its place and renamed into it, so none is ever half there, whenever the writer is killed. Whether a run goes on
right now is told by a lock that the system takes away together with the process, and not by anything that could be left behind.
"""

from thermojax.store._disk import DiskError as DiskError, telling as telling, write_file as write_file
from thermojax.store._keeper import Keeper as Keeper
from thermojax.store._report import as_text as as_text, brief as brief, environment as environment, versions as versions
from thermojax.store._run import (
    check_new as check_new,
    Interrupted as Interrupted,
    is_running as is_running,
    Job as Job,
    opened as opened,
    read_manifest as read_manifest,
    read_summary as read_summary,
    rebuild_report as rebuild_report,
    Run as Run,
    unfinished as unfinished,
)
from thermojax.store._status import stages as stages, state as state
from thermojax.store._tree import export as export, open_run as open_run
