"""Run the points of a sweep: at once, or queued over the devices."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import jax

from thermojax.experiments import Progress, Silent
from thermojax.store import DiskError, Interrupted, opened, Run
from thermojax.sweeps._grid import Sweep
from thermojax.sweeps._table import point_folders, write_sweep

Shown = Callable[..., Any]


class PointsError(RuntimeError):
    """Some points of a sweep failed; the others are there."""


def run_sweep(
    folder: Path,
    sweep: Sweep,
    *,
    resume: bool = False,
    shown: Shown,
    say: Callable[[str], None],
    share: Callable[[Run, Progress], Progress] = lambda run, progress: progress,
) -> dict[str, Any]:
    """Run what is not there yet of `sweep` in `folder`, and write its table, figure and report; returns its summary.

    Args:
        folder: New or empty, or with `resume` that of the same sweep.
        sweep: What is swept.
        resume: Whether to go on with what is there.
        shown: Shows a stage, as `Progress.stage`.
        say: Takes sentences for the user.
        share: Returns the progress of points side by side, as that of several processes; not called if there is nothing to run.

    Raises:
        PointsError: if points failed; what the others found is written, and a resumed sweep tries those that failed again.
    """
    with opened(folder, sweep.job, resume=resume) as whole:
        failed = {}
        if not whole.finished:
            if sweep.experiment.sweep is None:
                failed = _queued(whole, sweep, shown, say)
            else:
                _at_once(whole, sweep, shown, say, share)
        summary = write_sweep(folder)
        if failed:
            index = min(failed)
            words = f"{len(failed)} of {len(sweep.points)} points failed, the first of them {sweep.words(index)}: {failed[index]}"
            raise PointsError(words)
        if not whole.finished:
            whole.close(summary)
    return summary


def _at_once(whole: Run, sweep: Sweep, shown, say, share) -> None:
    assert sweep.experiment.sweep is not None
    folders = point_folders(whole.folder, len(sweep.points))
    if all((point / "summary.json").exists() for point in folders):
        return
    tick = time.perf_counter()
    found = sweep.experiment.sweep(list(sweep.points), jax.random.key(sweep.seed), share(whole, whole.progress(shown, say)))
    seconds = (time.perf_counter() - tick) / len(found)
    for index, results in enumerate(found):
        folders[index].parent.mkdir(exist_ok=True)
        with opened(folders[index], sweep.point(index), resume=True) as run:
            if not run.finished:
                run.finish(results, seconds)


def _queued(whole: Run, sweep: Sweep, shown, say) -> dict[int, str]:
    """Run the points that are not finished, one on each device at a time; returns what went wrong with which."""
    folders = point_folders(whole.folder, len(sweep.points))
    todo = [index for index, folder in enumerate(folders) if not (folder / "summary.json").exists()]
    devices: SimpleQueue = SimpleQueue()
    for device in jax.local_devices():
        devices.put(device)
    ended, drawing = threading.Event(), threading.Lock()

    @contextmanager
    def unseen(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage that nobody sees: the bar counts points. It ends where the sweep has."""

        def look(done: int) -> None:
            if ended.is_set():
                raise KeyboardInterrupt

        look(0)
        with Silent().stage(title, total):
            yield look

    def make(index: int) -> None:
        look_out = lambda sentence: say(f"Point {index:03d}, {sentence}")
        device = devices.get()
        try:
            with jax.default_device(device), opened(folders[index], sweep.point(index), resume=True) as run:
                tick = time.perf_counter()
                progress = run.progress(unseen, look_out)
                results = sweep.experiment.run(sweep.points[index], jax.random.key(sweep.seed), progress)
                seconds = time.perf_counter() - tick
                # Matplotlib draws for one thread at a time.
                with drawing:
                    run.finish(results, seconds)
        finally:
            devices.put(device)

    failed, made = {}, len(folders) - len(todo)
    if todo:
        folders[0].parent.mkdir(exist_ok=True)
    with shown("points", len(folders)) as done, ThreadPoolExecutor(jax.local_device_count()) as pool:
        done(made)
        waiting = {pool.submit(make, index): index for index in todo}
        try:
            for future in as_completed(waiting):
                try:
                    future.result()
                except (DiskError, Interrupted):
                    raise
                except Exception as error:  # noqa: BLE001
                    # One point's trouble is not that of the others.
                    failed[waiting[future]] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                made += 1
                done(made)
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed
