"""The command line: ``thermojax list | show | run | status | report | export | info``."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(
    help="Differentiable stochastic thermodynamics: run experiments and see how fast this machine is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
_SWEEP = "Run for each of these values: a,b,c or linspace(0, 1, 5), logspace(-2, 1, 4), arange(1, 9, 2); more than one: all combinations."


class LiveProgress:
    """Progress bars in the terminal."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `experiments.Progress.stage`."""
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        if total is None:
            columns.pop(3)
        with Bars(*columns, console=console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)
            bars.update(task, total=total or 1, completed=total or 1)


@app.command("list")
def list_experiments() -> None:
    """List the experiments and their parameters."""
    from thermojax.experiments import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        table = Table(title=f"{experiment.name}: {experiment.summary}", title_justify="left", show_header=True)
        for column in ("parameter", "default", "meaning"):
            table.add_column(column)
        for name, info in experiment.parameters.model_fields.items():
            table.add_row(name, str(info.default), info.description)
        console.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="An experiment.")]) -> None:
    """Print an experiment's parameters as a TOML file to edit and run."""
    from thermojax.settings import find

    experiment = find(name)
    lines = [f'experiment = "{experiment.name}"', "seed = 0", "", "[parameters]"]
    for key, info in experiment.parameters.model_fields.items():
        value = f'"{info.default}"' if isinstance(info.default, str) else str(info.default).lower()
        lines.append(f"{key} = {value}  # {info.description}")
    typer.echo("\n".join(lines))


@app.command()
def run(
    what: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", help="An experiment, or a file that `show` printed.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter; may be repeated.")] = None,
    sweep: Annotated[list[str] | None, typer.Option("--sweep", metavar="KEY=VALUES", help=_SWEEP)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, new or empty; runs/NAME-K if omitted.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all randomness, the same at every point of a sweep; 0 if omitted.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in OUT; the newest if omitted.")] = False,  # noqa: FBT002
    devices: Annotated[int | None, typer.Option(min=1, metavar="N", help="Devices that each process uses; on a CPU, cores.")] = None,
    distributed: Annotated[bool, typer.Option("--distributed", help="This is one of several processes that share the run.")] = False,  # noqa: FBT002
    coordinator: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 waits; as the scheduler tells.")] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help="How many processes; as the scheduler tells.")] = None,
    process: Annotated[int | None, typer.Option(metavar="I", help="Which process this is, from 0; as the scheduler tells.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait until all processes are there.")] = 60.0,
) -> None:
    """Run an experiment, once or for each point of a sweep; write summary.json, figures and report.html."""
    # Fail on what can be checked before JAX is started.
    from thermojax.settings import read_asked, UsageError

    asked = read_asked(what, settings or [], sweep or [], seed)
    if distributed and asked.grid and asked.experiment.sweep is None:
        rule = "be one of those that run their points side by side, if `--sweep` comes with `--distributed`"
        raise UsageError(f"`experiment` must {rule}, got {asked.experiment.name}.")
    if not distributed and (coordinator, processes, process) != (None, None, None):
        raise UsageError("`--coordinator`, `--processes` and `--process` must come with `--distributed`, got none.")
    # A polite kill is an interruption like ctrl-C: the run keeps what it has, and if it has nothing leaves nothing.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from thermojax import cluster

    if not distributed:
        if devices is not None:
            cluster.use_devices(devices)
        _lead(asked, out, resume=resume, crew=None)
        return
    seat = cluster.seat(coordinator, processes, process, timeout=timeout)
    with cluster.joined(seat, task=_task(asked), devices=devices, timeout=timeout) as crew:
        if crew.leads:
            _lead(asked, out, resume=resume, crew=crew)
        else:
            _follow(asked, crew)


@app.command()
def status(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run or of a sweep.")]) -> None:
    """Tell how far a run is, while it runs or after it was interrupted."""
    from thermojax.store import brief, read_manifest, stages, state
    from thermojax.sweeps import point_folders, read_table

    manifest = read_manifest(folder)
    _say(f"{folder}: {manifest['experiment']}, seed {manifest['seed']}, begun {manifest['begun']}, {state(folder)}")
    parts = {"": stages(folder)}
    if "sweep" in manifest:
        table = read_table(folder)
        _say(f"{len(table.summaries)} of {len(table.values)} points finished")
        for index, point in enumerate(point_folders(folder, len(table.values))):
            settings = ", ".join(f"{key}={brief(value)}" for key, value in zip(table.keys, table.values[index], strict=True))
            begun = (point / "manifest.json").exists()
            found = stages(point) if begun else []
            _say(f"  {index:03d} ({settings}): {state(point, found) if begun else 'not begun'}")
            parts[f"  {index:03d} "] = found
    for head, found in parts.items():
        for part in found:
            damaged = f", {part.damaged} damaged" if part.damaged else ""
            _say(f"  {head}{part.title}: {part.made} of {part.total}{damaged}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run or of a sweep.")]) -> None:
    """Write the report anew; of a sweep with the points that are finished so far."""
    from thermojax.store import read_manifest, rebuild_report
    from thermojax.sweeps import write_sweep

    if "sweep" in read_manifest(folder):
        for sentence in write_sweep(folder)["conclusions"]:
            _say(sentence)
    else:
        rebuild_report(folder)
    _say(f"Report: {folder / 'report.html'}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run or of a sweep.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.nc", help="A new file.")],
) -> None:
    """Write blocks and numbers of a run as NetCDF."""
    from thermojax.store import export

    export(folder, file)
    _say(f"Written: {file}")


@app.command()
def info() -> None:
    """Versions, devices, and the measured step rate against the limit."""
    from thermojax.speed import ensemble_job, interleaved, normals_only
    from thermojax.store import versions

    for package, number in versions().items():
        console.print(f"{package:12s} {number}", highlight=False)
    samples, steps = 10_000, 500
    with LiveProgress().stage("measuring the step rate"):
        jobs = {"limit": normals_only(samples, steps), "ensemble": ensemble_job(samples, steps)}
        seconds = interleaved(jobs, rounds=5)
    rates = {name: samples * steps / s / 1e6 for name, s in seconds.items()}
    console.print(
        f"step rate    {rates['ensemble']:.0f} million steps/s with work and log-ratio, "
        f"{rates['ensemble'] / rates['limit']:.2f} of the rate at which the normals alone are drawn",
        highlight=False,
    )


def main() -> None:
    """Entry point: every mistake of the user is one sentence and exit code 2, a run that went wrong one sentence and exit code 1."""
    from thermojax.cluster import exits

    with exits():
        _main()


def _main():
    try:
        app()
    except ValueError as error:
        _tell(f"Error: {error}")
        sys.exit(2)
    except OSError as error:
        # Of ours, which say all there is to say.
        if type(error).__name__ != "DiskError":
            raise
        _tell(f"Error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _tell("Interrupted; nothing was written.")
        sys.exit(130)


def _lead(asked, out, *, resume, crew):
    """Run what is asked, alone or as the first of several processes."""
    from thermojax.store import DiskError, Interrupted, unfinished

    name = asked.experiment.name
    folder = out if out is not None else unfinished(name, Path("runs")) if resume else _free_folder(name)
    tick = time.perf_counter()
    try:
        summary = (_run_sweep if asked.grid else _run_once)(asked, folder, out, resume=resume, crew=crew)
    except Interrupted as stop:
        kept = str(stop)
        _tell(f"Interrupted after {kept}; go on with: {_again(folder, out)}" if kept else "Interrupted; nothing was written.")
        raise typer.Exit(130) from None
    except DiskError as error:
        there = folder.exists() and any(folder.iterdir())
        _tell(f"Error: {error}" + (f" What was kept before is intact; go on with: {_again(folder, out)}" if there else ""))
        raise typer.Exit(1) from None
    finally:
        if out is None and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    assert summary is not None
    for sentence in summary["conclusions"]:
        _say(sentence)
    _say(f"Report: {folder / 'report.html'} ({time.perf_counter() - tick:.1f} s)")


def _run_once(asked, folder, out, *, resume, crew):
    import jax

    from thermojax.store import opened, read_summary

    with opened(folder, asked.job, resume=resume) as run:
        if (summary := read_summary(folder)) is not None:
            _say(f"The run in {folder} is finished; it found:")
            if crew is not None:
                _tell_crew(crew, None)
            return summary
        tick = time.perf_counter()
        progress = run.progress(LiveProgress().stage, _say)
        if crew is not None:
            progress = _shared(run, progress, out, crew)
        results = asked.experiment.run(asked.points[0], jax.random.key(asked.seed), progress)
        with LiveProgress().stage("writing the report"):
            return run.finish(results, time.perf_counter() - tick)


def _shared(run, progress, out, crew):
    """The progress of a run that other processes share, after they have been told that it begins."""
    from thermojax.cluster import Leader

    crew.last_words = lambda: _last_words(run, out)
    _tell_crew(crew, run.folder)
    return Leader(crew, progress)


def _tell_crew(crew, folder):
    """Tell the other processes in which folder a run begins, or that there is nothing to run."""
    import numpy as np

    crew.tell({"begins": np.asarray(folder is not None), "folder": np.asarray(str(folder))})


def _follow(asked, crew):
    """Share a run as a process that neither prints nor writes files."""
    import jax

    from thermojax.cluster import Follower

    try:
        told = crew.tell()
        if not told["begins"]:
            return
        crew.last_words = lambda: f"What was kept is in {told['folder']} of process 0; go on with --resume."
        key, progress = jax.random.key(asked.seed), Follower(crew)
        if asked.grid:
            asked.experiment.sweep(list(asked.points), key, progress)
        else:
            asked.experiment.run(asked.points[0], key, progress)
    except KeyboardInterrupt:
        _tell("Interrupted.")
        raise typer.Exit(130) from None


def _task(asked):
    """What all processes of a run must have been asked for, in words."""
    job = asked.sweep.job if asked.grid else asked.job
    settings = ", ".join(f"{key} = {value}" for key, value in (job.parameters | (job.sweep or {})).items())
    return f"{asked.experiment.name} with seed {asked.seed}, {', '.join(job.numbers().values())}, {settings}"


def _last_words(run, out):
    """What the user is told when the run ends because another process has."""
    if console.is_terminal:
        # A progress bar hides it.
        console.show_cursor()
    if not run.keeps():
        return f"Nothing was kept yet; begin again with: {_again(run.folder, out)}"
    return f"What was kept is in {run.folder}; go on with: {_again(run.folder, out)}"


def _run_sweep(asked, folder, out, *, resume, crew):
    from thermojax.sweeps import PointsError, read_table, run_sweep

    told = []

    def share(run, progress):
        told.append(run.folder)
        return _shared(run, progress, out, crew)

    options = {} if crew is None else {"share": share}
    try:
        summary = run_sweep(folder, asked.sweep, resume=resume, shown=LiveProgress().stage, say=_say, **options)
    except PointsError as error:
        _tell(f"Error: {error}")
        raise typer.Exit(1) from None
    if crew is not None and not told:
        _tell_crew(crew, None)
    _show(read_table(folder))
    return summary


def _show(found):
    """The table of a sweep in the terminal, as far as it is wide enough."""
    from thermojax.store import as_text, brief

    table = Table()
    fitting = max(1, (console.width - 8 - 12 * len(found.keys)) // 22)
    for column in (*found.keys, *found.names[:fitting]):
        table.add_column(column, overflow="fold")
    for index in found.summaries:
        cells = [found.estimate(index, name) for name in found.names[:fitting]]
        texts = [as_text(q["value"], q["stderr"]) + ("" if q["trustworthy"] is not False else " (not to be trusted)") for q in cells]
        table.add_row(*map(brief, found.values[index]), *texts)
    console.print(table)
    if len(found.names) > fitting:
        _say(f"{len(found.names) - fitting} more numbers are in table.csv.")


def _again(folder, out):
    """The command that goes on with a run."""
    words = [word for word in sys.argv[1:] if word != "--resume"] + ([] if out is not None else ["--out", str(folder)])
    return shlex.join(["thermojax", *words, "--resume"])


def _free_folder(name: str) -> Path:
    """A new folder, which no other process that looks for one at the same time finds too."""
    from thermojax.store import check_new

    k = 1
    while True:
        folder = Path("runs") / f"{name}-{k}"
        if not folder.exists():
            check_new(folder)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        k += 1


def _say(sentence: str) -> None:
    console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # noqa: T201
