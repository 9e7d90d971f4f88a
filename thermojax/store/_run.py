"""The folder of a run: whose it is, who writes there, and how it ends."""

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, UTC
from pathlib import Path
from typing import Any

import jax

from thermojax._check import require
from thermojax.experiments import Results
from thermojax.store._blocks import Stage
from thermojax.store._disk import DiskError, force, is_draft, sweep_drafts, telling, write_file
from thermojax.store._keeper import Keeper, Shown
from thermojax.store._report import report, summarise, versions

FORMAT = 1
_LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """What is asked: all that a result depends on."""

    experiment: str
    parameters: dict[str, Any]
    seed: int
    sweep: dict[str, list] | None = None
    """Values of each key of a sweep, whose `parameters` are the others; None for a single run."""

    def numbers(self) -> dict[str, str]:
        """How numbers are made in this process: on that a result depends too."""
        precision = str(jax.dtypes.canonicalize_dtype(float))
        return {"precision": precision, "generator": str(jax.config.values["jax_default_prng_impl"])}


class Interrupted(KeyboardInterrupt):
    """A run was told to end; its text is what was kept, nothing if nothing was."""


class Run:
    """A run that this process writes; `opened` makes it."""

    def __init__(self, folder: Path, job: Job, manifest: dict[str, Any], *, resumed: bool):
        """See `opened`."""
        self.folder = folder
        self.job = job
        self.manifest = manifest
        self.resumed = resumed
        """Whether it was begun before."""
        self.keeper: Keeper | None = None

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "summary.json").exists()

    def progress(self, shown: Shown, say: Callable[[str], None]) -> Keeper:
        """The progress to hand to the experiment."""
        self.keeper = Keeper(self.folder, shown, say)
        return self.keeper

    def keeps(self) -> bool:
        """Whether there is anything that a resumed run would not make again."""
        kept = self.finished or any(stage.recorded() for stage in Stage.of(self.folder))
        return kept or any(not is_draft(p) for p in self.folder.glob("checkpoints/*")) or any(self.folder.glob("points/*/manifest.json"))

    def so_far(self) -> str:
        """How far it is, in words."""
        if self.job.sweep is not None and any(self.folder.glob("points/*/manifest.json")):
            total = math.prod(len(values) for values in self.job.sweep.values())
            return f"{len(list(self.folder.glob('points/*/summary.json')))} of {total} points"
        made = list(self.keeper.made.values()) if self.keeper else []
        return f"{made[-1][0]} of {made[-1][1]} blocks" if made else "a checkpoint"

    def finish(self, results: Results, seconds: float) -> dict[str, Any]:
        """Write the figures, ``report.html`` and, last, ``summary.json``, which it returns."""
        pictures = {name: _png(picture.figure) for name, picture in results.figures.items()}
        summary = summarise(self.manifest, results, seconds)
        page = report(summary, pictures)
        with telling(self.folder):
            for name, png in pictures.items():
                write_file(self.folder / f"{name}.png", png)
            write_file(self.folder / "report.html", page)
        self.close(summary)
        return summary

    def close(self, summary: dict[str, Any]) -> None:
        """Write the summary, with which a run is finished, and remove what only an unfinished one needs."""
        with telling(self.folder):
            # A finished run is not looked at again: what it rests on must be there whenever the summary is.
            for kept in ("blocks.zarr", "records"):
                force(self.folder / kept)
            write_file(self.folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


@contextmanager
def opened(folder: Path, job: Job, *, resume: bool = False) -> Iterator[Run]:
    """The run of `job` in `folder`, which no other process can write meanwhile.

    A run that ends without having kept anything leaves nothing; any other stays, to be resumed.

    Args:
        folder: New or empty, or with `resume` that of the same job.
        job: What is asked.
        resume: Whether to go on with what is there; where there is nothing, the run begins.

    Raises:
        ValueError: if the folder cannot be made or written, holds something else, or another process writes it.
        DiskError: if there is no room.
        Interrupted: for a `KeyboardInterrupt` in its body.
    """
    from filelock import FileLock, Timeout

    if not resume or not folder.exists():
        check_new(folder)
    mine = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    require(os.access(folder, os.W_OK), "out", "be a folder that can be written", folder)
    lock = FileLock(folder / _LOCK)
    try:
        # A look at the lock, as by `is_running`, takes it for a moment.
        lock.acquire(timeout=1.0)
    except (Timeout, OSError) as error:
        rule = "be a folder that no other process writes" if isinstance(error, Timeout) else "be a folder that can be written"
        raise ValueError(f"`out` must {rule}, got {folder}.") from error
    run = None
    try:
        with telling(folder):
            run = _begun(folder, job, resume=resume)
        yield run
    except KeyboardInterrupt as error:
        raise Interrupted(run.so_far() if run is not None and run.keeps() else "") from error
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)
        if run is None:
            # Refused, or no room for the first file: the folder is as it was.
            if mine and _is_blank(folder):
                shutil.rmtree(folder, ignore_errors=True)
        elif not run.keeps():
            _clear(folder)
            if mine or run.resumed:
                folder.rmdir()


def _begun(folder: Path, job: Job, *, resume: bool) -> Run:
    if resume and not _is_blank(folder):
        manifest = read_manifest(folder)
        _compare(manifest, job, folder)
        sweep_drafts(folder)
        return Run(folder, job, manifest, resumed=True)
    # Another process may have begun between the check and the lock.
    check_new(folder)
    _clear(folder)
    manifest = {"thermojax": "run" if job.sweep is None else "sweep", "format": FORMAT, "experiment": job.experiment}
    manifest |= {"parameters": job.parameters, "seed": job.seed}
    if job.sweep is not None:
        manifest["sweep"] = job.sweep
    manifest |= {"numbers": job.numbers(), "versions": versions(), "begun": datetime.now(UTC).isoformat(timespec="seconds")}
    write_file(folder / "manifest.json", json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    # As a reader of the file sees it: tuples are lists.
    return Run(folder, job, json.loads(json.dumps(manifest)), resumed=False)


def check_new(folder: Path) -> Path:
    """Return `folder` if a run may begin there.

    Raises:
        ValueError: if it exists and is not an empty folder, or cannot be made.
    """
    if folder.exists() and not _is_blank(folder):
        hint = ", which holds an unfinished run: `--resume` goes on with it" if _state(folder) == "unfinished" else ""
        raise ValueError(f"`out` must be a new or an empty folder, got {folder}{hint}.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ValueError(f"`out` must be in a folder that can be written, got {folder}.")
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a run's folder says that it is of.

    Raises:
        ValueError: if it is no run's folder, or of another format.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        known = manifest["thermojax"] in ("run", "sweep")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`folder` must be that of a run, got {folder} without a manifest.json that can be read.") from error
    require(known, "folder", "be that of a run", folder)
    by = manifest.get("versions", {}).get("thermojax", "?")
    require(manifest.get("format") == FORMAT, "folder", f"be of format {FORMAT}", f"{manifest.get('format')} of thermojax {by} in {folder}")
    return manifest


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run; None if it is unfinished."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def is_running(folder: Path) -> bool:
    """Whether a process writes this run now."""
    from filelock import FileLock, Timeout

    path = folder / _LOCK
    if not path.exists() or not os.access(path, os.W_OK):
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def unfinished(name: str, parent: Path) -> Path:
    """The newest unfinished run of an experiment in `parent`.

    Raises:
        ValueError: if there is none.
    """
    found = {}
    for path in parent.glob(f"{name}-*/manifest.json"):
        folder = path.parent
        if folder.name.removeprefix(f"{name}-").isdigit() and _state(folder) == "unfinished":
            found[folder] = int(folder.name.removeprefix(f"{name}-"))
    require(bool(found), "--resume", f"find an unfinished run of {name} in {parent}", "none")
    return max(found, key=lambda folder: found[folder])


def rebuild_report(folder: Path) -> Path:
    """Write ``report.html`` of a finished run anew, from its numbers and figures.

    Raises:
        ValueError: if the run is not finished.
    """
    read_manifest(folder)
    summary = read_summary(folder)
    if summary is None:
        raise ValueError(f"`folder` must be that of a finished run, got {folder}; `thermojax status {folder}` tells how far it is.")
    pictures = {name: (folder / f"{name}.png").read_bytes() for name in summary["figures"]}
    with telling(folder):
        write_file(folder / "report.html", report(summary, pictures))
    return folder / "report.html"


def _compare(manifest: dict[str, Any], job: Job, folder: Path) -> None:
    """Refuse a folder of something else, and say of what."""
    asked = json.loads(json.dumps({**job.parameters}))
    found = manifest["parameters"]
    here = f"in {folder}"
    require(manifest["experiment"] == job.experiment, "experiment", f"be {manifest['experiment']} {here}", job.experiment)
    swept = job.sweep is not None
    rule = "come with a `--sweep`" if manifest["thermojax"] == "sweep" else "come without `--sweep`"
    require(swept == (manifest["thermojax"] == "sweep"), "--resume", f"{rule} {here}", "one" if swept else "none")
    if job.sweep is not None:
        sweep = json.loads(json.dumps(job.sweep))
        require(list(manifest["sweep"].items()) == list(sweep.items()), "--sweep", f"be {manifest['sweep']} {here}", sweep)
    for name in asked | found:
        require(asked.get(name) == found.get(name), name, f"be {found.get(name)!r} {here}", repr(asked.get(name)))
    require(manifest["seed"] == job.seed, "seed", f"be {manifest['seed']} {here}", job.seed)
    for name, value in job.numbers().items():
        require(manifest["numbers"][name] == value, name, f"be {manifest['numbers'][name]} {here}", value)


def _state(folder: Path) -> str:
    if (folder / "summary.json").exists():
        return "finished"
    return "unfinished" if (folder / "manifest.json").exists() else "no run"


def _is_blank(folder: Path) -> bool:
    """Whether nothing is there but what a process leaves that was killed before its first file."""
    return folder.is_dir() and all(path.name in (_LOCK, ".manifest.json.draft") for path in folder.iterdir())


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _unwritable(folder, error):
    if isinstance(error, DiskError):
        return error
    return ValueError(f"`out` must be in a folder that can be made, got {folder} ({error.strerror}).")


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
